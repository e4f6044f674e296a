//! Hosts of tests: namespaces that a cable joins, an engine in each.

use std::net::IpAddr;

use super::*;

/// A host: its namespace and what runs there.
pub(super) struct Host {
    pub(super) namespace: Namespace,
    pub(super) handle: Handle<Script>,
    pub(super) number: u8,
}

impl Host {
    /// Starts an engine as overlay host `number`, with inner addresses 10.42.`number`.1 and fd00:42:`number`::1.
    pub(super) fn start(namespace: Namespace, number: u8, config: &Config) -> Self {
        let handle = inside(&namespace, || {
            let handle = Engine::start(config, Script::default()).expect("the engine starts");
            plumb(number);
            handle
        });
        Self { namespace, handle, number }
    }

    /// Its inner address.
    pub(super) fn inner(&self) -> IpAddr {
        [10, 42, self.number, 1].into()
    }

    /// Stops the engine, which must end well.
    pub(super) fn stop(self) {
        assert_eq!(self.handle.stop(PATIENCE), Ok(()));
    }
}

/// Addresses and routes of overlay host `number` in the calling thread's namespace: what the agent does.
pub(super) fn plumb(number: u8) {
    ip(&format!("addr add 10.42.{number}.1/32 dev overlay0"));
    ip(&format!("addr add fd00:42:{number}::1/128 dev overlay0 nodad"));
    ip("link set overlay0 mtu 1400 up");
    ip("route add 10.42.0.0/16 dev overlay0");
    ip("route add fd00:42::/32 dev overlay0");
}

/// Two namespaces with a cable: 192.0.2.1 and 2001:db8::1 at one end, .2 and ::2 at the other.
pub(super) fn joined_namespaces() -> [Namespace; 2] {
    let namespaces = [(); 2].map(|()| Namespace::create().expect("these tests need root for network namespaces"));
    inside(&namespaces[0], || {
        ip("link add under type veth peer name far");
        let mut netlink = crate::sys::netlink::Netlink::open().unwrap();
        netlink.move_link("far", std::os::fd::AsFd::as_fd(&namespaces[1])).unwrap();
    });
    inside(&namespaces[1], || ip("link set far name under"));
    for (namespace, number) in namespaces.iter().zip(1..) {
        inside(namespace, || {
            ip(&format!("addr add 192.0.2.{number}/24 dev under"));
            ip(&format!("addr add 2001:db8::{number}/64 dev under nodad"));
            ip("link set under up");
            ip("link set lo up");
        });
    }
    namespaces
}

/// The outer path between two addresses, NAT-T port to NAT-T port.
pub(super) fn natt_path(local: &str, remote: &str) -> Path {
    let end = |address: &str| SocketAddr::new(address.parse().unwrap(), 4500);
    Path { local: end(local), remote: end(remote) }
}

/// Two engines, keyed with each other over the given outer addresses; each end's last worker owns the SA.
pub(super) fn tunnel(configs: &[Config; 2], outer: [&str; 2]) -> [Host; 2] {
    let [first, second] = joined_namespaces();
    let hosts = [Host::start(first, 1, &configs[0]), Host::start(second, 2, &configs[1])];
    let owners = [0, 1].map(|end: usize| WorkerIndex(configs[end].workers - 1));
    let spis = [0, 1].map(|end: usize| spi((0x1111_1100 * (end as u32 + 1)) | u32::from(owners[end].0)));
    for (end, host) in hosts.iter().enumerate() {
        let other = 1 - end;
        let child = child(natt_path(outer[end], outer[other]), spis[end], spis[other]);
        let mut updates = vec![routes(host.number, hosts[other].number, owners[end])];
        updates.extend(install(child, true));
        update(&host.handle, updates);
    }
    for (host, spi) in hosts.iter().zip(spis) {
        await_that("the SA is installed", || heard(&host.handle).contains(&installed(spi)));
    }
    hosts
}
