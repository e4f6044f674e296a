#!/bin/sh
# ctr.sh FOLDER NETNS UNDERPASS COMMAND...: one container of containerd on the networks in FOLDER/networks, in the network namespace
# NETNS. ctr has its two folders built in, so this runs in a mount namespace where they are ours (unshare --mount).
set -eu
folder=$1 netns=$2 underpass=$3
shift 3
mount -t tmpfs none /opt
mkdir -p /opt/cni/bin /etc/cni/net.d
ln -s /usr/lib/cni/loopback /opt/cni/bin/
for plugin in rancher-cni-ipam underpass-cni; do ln -s "$underpass" "/opt/cni/bin/$plugin"; done
mount --bind "$folder/networks" /etc/cni/net.d
cat >"$folder/containerd.toml" <<TOML
version = 2
root = "$folder/root"
state = "$folder/run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$folder/containerd.sock"
[ttrpc]
address = "$folder/containerd.sock.ttrpc"
TOML
containerd --config "$folder/containerd.toml" >"$folder/containerd.log" 2>&1 &
containerd=$!
trap 'kill $containerd; wait $containerd || true' EXIT
for _ in $(seq 100); do
  ctr --address "$folder/containerd.sock" version >/dev/null 2>&1 && break
  sleep 0.1
done
nsenter --net="$netns" ctr --address "$folder/containerd.sock" run --rm --cni \
  --mount type=bind,src=/usr,dst=/usr,options=rbind:ro --env PATH=/usr/sbin:/usr/bin --rootfs "$folder/rootfs" "$(basename "$folder")" "$@"
