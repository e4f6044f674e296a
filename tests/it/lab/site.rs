//! A host as a container runtime sees it: containers as bare namespaces, which our plugins connect.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use underpass::sys::netlink::Netlink;
use underpass::sys::netns::Namespace;

use super::Host;
use super::agent::{Agent, PROGRAM};

/// A host as a container runtime sees it.
pub struct Site {
    pub namespace: Namespace,
    /// Its plugins.
    pub folder: TempDir,
    pub state: PathBuf,
    block: &'static str,
    pub containers: BTreeMap<String, Container>,
}

pub struct Container {
    pub namespace: Namespace,
    pub address: String,
    pub port: String,
}

/// Links to our plugins, in a folder that is there.
pub fn link_plugins(folder: &Path) {
    for name in ["rancher-cni-ipam", "rancher-bridge", "underpass-cni"] {
        symlink(PROGRAM.as_str(), folder.join(name)).expect("a link");
    }
}

/// The root of containers that have the machine's own programs: whoever runs one mounts `/usr`.
pub fn make_root(folder: &Path) {
    for name in ["usr", "etc", "proc", "sys", "dev", "tmp", "var", "run", "root"] {
        fs::create_dir_all(folder.join(name)).expect("a folder");
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(Path::new("usr").join(name), folder.join(name)).expect("a link");
    }
}

/// The ports of bridges on a host, as `ip` shows them.
pub fn bridge_ports(host: &Host) -> Vec<String> {
    let links = host.run(&["ip", "-o", "link", "show", "type", "veth"]);
    links.lines().filter(|line| line.contains(" master ")).map(str::to_owned).collect()
}

/// The path of a namespace that this process holds, as good for a child as for us.
pub fn netns_path(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd())
}

/// A host or a container by itself.
pub fn namespace() -> Namespace {
    let namespace = Namespace::create().expect("the integration tests need root");
    namespace.run(|| Netlink::open().unwrap().set_up("lo").unwrap()).unwrap();
    namespace
}

pub fn output(namespace: &Namespace, argv: &[&str]) -> Output {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    namespace.spawn(command).expect("a program").wait_with_output().expect("its end")
}

pub fn run(namespace: &Namespace, line: &str) -> String {
    let argv: Vec<&str> = line.split(' ').collect();
    let output = output(namespace, &argv);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

impl Site {
    pub fn new(host: &Host, state: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        link_plugins(folder.path());
        let namespace = Namespace::open(&Path::new("/run/netns").join(&host.netns)).expect("the host");
        Self { namespace, folder, state: state.to_owned(), block: host.block, containers: BTreeMap::new() }
    }

    /// A site beside a running agent.
    pub fn of_agent(host: &Host, agent: &Agent) -> Self {
        Self::new(host, agent.key_file().parent().expect("the state directory"))
    }

    pub fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "managed", "type": "underpass-cni", "bridge": "managed0",
            "underpass": {"stateDir": self.state, "blocks": [self.block]},
        })
    }

    /// The same where the agent alone says which blocks there are, and is asked for what they do not have.
    pub fn conf_of_agent(&self) -> Value {
        let mut conf = self.conf();
        conf["underpass"] = json!({"stateDir": self.state, "runDir": self.state.with_file_name("run")});
        conf
    }

    pub fn call(&self, command: &str, container: &str, netns: &Namespace, conf: &Value) -> Value {
        let output = self.attempt(command, container, netns, conf);
        assert!(output.status.success(), "{command} {container}: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// An ADD that must fail: its code and its message.
    pub fn refused(&self, name: &str, conf: &Value) -> (u64, String) {
        let output = self.attempt("ADD", name, &namespace(), conf);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert!(!output.status.success(), "ADD {name}: {said}");
        (said["code"].as_u64().expect("a code"), said["msg"].as_str().expect("a message").to_owned())
    }

    pub fn attempt(&self, command: &str, container: &str, netns: &Namespace, conf: &Value) -> Output {
        let netns = netns_path(netns);
        let mut plugin = Command::new(self.folder.path().join(conf["type"].as_str().unwrap()));
        plugin.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let path = format!("{}:/usr/lib/cni", self.folder.path().display());
        plugin.envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &path),
        ]);
        plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self.namespace.spawn(plugin).expect("the plugin");
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).expect("its input");
        child.wait_with_output().expect("its end")
    }

    /// A new container with an address.
    pub fn add(&mut self, name: &str) -> String {
        self.add_with(name, &self.conf())
    }

    pub fn add_with(&mut self, name: &str, conf: &Value) -> String {
        self.add_timed(name, conf).0
    }

    /// The same, with how long the plugin took.
    pub fn add_timed(&mut self, name: &str, conf: &Value) -> (String, Duration) {
        let namespace = namespace();
        let start = Instant::now();
        let result = self.call("ADD", name, &namespace, conf);
        let took = start.elapsed();
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        self.containers.insert(name.to_owned(), Container { namespace, address: address.clone(), port });
        (address, took)
    }

    pub fn del(&mut self, name: &str) {
        let container = self.containers.remove(name).unwrap();
        self.call("DEL", name, &container.namespace, &self.conf());
    }

    pub fn inside(&self, name: &str) -> &Namespace {
        &self.containers[name].namespace
    }

    pub fn address(&self, name: &str) -> IpAddr {
        self.containers[name].address.parse().unwrap()
    }
}
