//! podman with its CNI back end, one on each of two hosts: containers by `podman run --network managed`, from a folder with busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use underpass::sys::netns::Namespace;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig, UNDERPASS};
use crate::lab::{Host, Lab, wait_for};

/// The runtime's own world on a host: its configuration, its images, its containers.
struct Podman {
    namespace: Namespace,
    folder: TempDir,
}

impl Podman {
    fn new(host: &Host, state: &Path) -> Self {
        assert!(Path::new("/usr/bin/podman").exists(), "podman is missing: tests/run installs it");
        let folder = tempfile::Builder::new().prefix("underpass-podman-").tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["plugins", "net.d"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        for name in ["rancher-cni-ipam", "underpass-cni"] {
            symlink(UNDERPASS, path("plugins").join(name)).expect("a link");
        }
        let conflist = format!(
            r#"{{"cniVersion": "1.0.0", "name": "managed", "plugins": [{{
                "type": "underpass-cni", "capabilities": {{"ips": true, "mac": true, "portMappings": true}},
                "underpass": {{"stateDir": "{}"}}}}]}}"#,
            state.display()
        );
        fs::write(path("net.d").join("10-managed.conflist"), conflist).expect("a conflist");
        let configuration = format!(
            r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{}", "/usr/lib/cni"]
network_config_dir = "{}"
"#,
            path("plugins").display(),
            path("net.d").display()
        );
        fs::write(path("containers.conf"), configuration).expect("a configuration");
        let namespace = Namespace::open(&Path::new("/run/netns").join(&host.netns)).expect("the host");
        Self { namespace, folder }
    }

    fn attempt(&self, arguments: &[&str]) -> Output {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("/usr/bin/podman");
        command.env("CONTAINERS_CONF", path("containers.conf")).env("TMPDIR", self.folder.path());
        command.arg("--root").arg(path("root")).arg("--runroot").arg(path("run")).arg("--tmpdir").arg(path("tmp"));
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.namespace.spawn(command).expect("podman").wait_with_output().expect("its end")
    }

    fn call(&self, arguments: &[&str]) -> String {
        let output = self.attempt(arguments);
        assert!(output.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// A root file system that holds busybox alone.
    fn root_file_system(&self, name: &str) -> PathBuf {
        let root = self.folder.path().join(format!("rootfs-{name}"));
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static: tests/run installs it");
        for applet in ["sh", "sleep", "ping", "nc", "ip", "dd", "wc"] {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        root
    }

    /// A running container; its address, as podman shows it.
    fn run(&self, name: &str, more: &[&str]) -> String {
        let root = self.root_file_system(name).display().to_string();
        let start = ["run", "-d", "--name", name, "--network", "managed", "--stop-timeout", "0"];
        self.call(&[&start, more, &["--rootfs", &root, "/bin/sleep", "600"]].concat());
        let shown: Value = serde_json::from_str(&self.call(&["inspect", name])).expect("JSON");
        let address = &shown[0]["NetworkSettings"]["Networks"]["managed"]["IPAddress"];
        address.as_str().unwrap_or_else(|| panic!("no address in {}", shown[0]["NetworkSettings"])).to_owned()
    }

    fn exec(&self, name: &str, line: &str) -> Output {
        self.attempt(&[&["exec", name, "/bin/sh", "-c"], &[line][..]].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.attempt(&["rm", "-f", "-t", "0", "-a"]);
    }
}

#[test]
fn podmans_containers_reach_each_other_across_hosts() {
    let lab = Lab::direct();
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    let beta = Agent::running(&lab.beta, &AgentConfig::new(&lab.beta, &[PeerConfig::at(&lab.alpha)]));
    let site = |host, agent: &Agent| Podman::new(host, agent.key_file().parent().expect("the state directory"));
    let (near, far) = (site(&lab.alpha, &alpha), site(&lab.beta, &beta));
    let here = near.run("web", &[]);
    let there = far.run("db", &["--ip", "10.42.2.77", "--mac-address", "02:00:00:00:00:77"]);
    assert!(here.starts_with("10.42.1."), "{here}");
    assert_eq!(there, "10.42.2.77");
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
    beta.wait_for_state("alpha", "up", Duration::from_secs(15));
    for (podman, name, address) in [(&near, "web", &there), (&far, "db", &here)] {
        let output = podman.exec(name, &format!("ping -c 3 -W 2 {address}"));
        assert!(output.status.success(), "{name} to {address}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let shown = far.exec("db", "ip link show eth0");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("02:00:00:00:00:77"), "{shown:?}");
    // A stream, both ways.
    for (server, name, client, caller, address) in [(&near, "web", &far, "db", &here), (&far, "db", &near, "web", &there)] {
        server.call(&["exec", "-d", name, "/bin/sh", "-c", "nc -l -p 7000 > /tmp/got"]);
        let send = format!("dd if=/dev/zero bs=1000 count=2000 | nc -w 5 {address} 7000");
        wait_for("a stream between containers", Duration::from_secs(20), || {
            client.exec(caller, &send);
            let got = server.exec(name, "wc -c < /tmp/got");
            (String::from_utf8_lossy(&got.stdout).trim() == "2000000").then_some(())
        });
    }
    near.call(&["rm", "-f", "-t", "0", "web"]);
    let links = near.namespace.run(|| underpass::sys::netlink::Netlink::open().unwrap().links().unwrap()).unwrap();
    assert!(!links.iter().any(|link| link.name.starts_with("vethr")), "{links:?}");
    assert!(!String::from_utf8_lossy(&alpha.control(&["ipam", "ls"]).stdout).contains(&here));
    assert!(!far.exec("db", &format!("ping -c 1 -W 1 {here}")).status.success());
}
