//! A host with a Docker daemon of its own: a process namespace, a mount namespace and the laboratory's network namespace.
//!
//! Everything that the daemon starts dies with the first process of its namespace, and that dies with the test, however it ends. Mounts
//! vanish with the mount namespace; what stays are empty control groups, which are removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::agent::{Agent, AgentConfig};
use crate::lab::command::said;
use crate::lab::{Daemon, Host, attempt, run, wait_for};

/// Debian's package docker.io. Another client may stand before it in the path.
const DOCKERD: &str = "/usr/sbin/dockerd";
const DOCKER: &str = "/usr/bin/docker";

/// Debian's package busybox-static: the whole of an image.
const BUSYBOX: &str = "/bin/busybox";

/// What a process namespace's first process does: daemons of this machine, such as its containerd, and what Docker writes into its
/// folder are out of sight; then it waits for whoever is left to it.
const INIT: &str =
    "mount -t tmpfs none /run && mount -t tmpfs none /etc/docker && mkdir /run/ready && while :; do sleep 1000 & wait; done";

/// How long a daemon or a container may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes an image as `docker import` takes it; its path.
pub fn image(folder: &Path) -> String {
    let root = folder.join("root");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "www"] {
        fs::create_dir_all(root.join(name)).expect("a folder");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox");
    for name in ["sh", "sleep", "ping", "ip", "httpd", "wget", "cat", "true", "hostname"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    fs::write(root.join("www/hello"), "hello\n").expect("a page");
    let (root, tar) = (root.display().to_string(), folder.join("image.tar").display().to_string());
    run(&["tar", "-C", &root, "-cf", &tar, "."]);
    tar
}

/// A host with Docker and an agent.
pub struct DockerHost {
    pub host: Host,
    pub agent: Agent,
    /// The control groups of its containers, below each controller.
    groups: String,
    dockerd: Option<Daemon>,
    /// Whether Docker filters what this host forwards, as it does by default.
    filters: bool,
    init: Daemon,
    /// Last: the others tell their logs.
    folder: TempDir,
}

impl DockerHost {
    /// A host of the laboratory with a running daemon; the agent does not run yet.
    pub fn new(host: &Host) -> Self {
        Self::with(host, false)
    }

    /// The same, with a daemon that filters what the host forwards.
    pub fn with_filter(host: &Host) -> Self {
        Self::with(host, true)
    }

    fn with(host: &Host, filters: bool) -> Self {
        for tool in [DOCKERD, DOCKER, BUSYBOX] {
            assert!(Path::new(tool).exists(), "{tool} is missing: tests/run installs it");
        }
        let folder = tempfile::Builder::new().prefix("underpass-docker-").tempdir().expect("a folder");
        let netns = format!("--net=/run/netns/{}", host.netns);
        let argv =
            ["nsenter", &netns, "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", INIT];
        let init = Daemon::start(&format!("the host {}", host.name), &argv, &[], &folder.path().join("init.log"));
        let (first, _) = wait_for("the first process", PATIENCE, || child_of(init.pid()));
        let mut host = host.clone();
        let enter = ["nsenter", "--target", &first.to_string(), "--net", "--pid", "--mount", "--"];
        host.enter = enter.map(str::to_owned).to_vec();
        wait_for("the host", PATIENCE, || host.attempt(&["test", "-d", "/run/ready"]).status.success().then_some(()));
        let groups = format!("/{}", host.netns);
        let agent = Agent::new(&host);
        let mut made = Self { host, agent, groups, dockerd: None, filters, init, folder };
        made.start_docker();
        made.docker(&["import", &image(made.folder.path()), "bb:1"]);
        made
    }

    /// A folder of the host's own.
    pub fn folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    pub fn socket(&self) -> String {
        self.folder.path().join("docker.sock").display().to_string()
    }

    /// Starts the daemon, and waits until it answers.
    pub fn start_docker(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (data, exec, pid, config) = (path("data"), path("exec"), path("docker.pid"), path("daemon.json"));
        fs::write(&config, "{}").expect("a file");
        let listen = format!("unix://{}", self.socket());
        let words = [
            &[DOCKERD, "--data-root", &data, "--exec-root", &exec, "--pidfile", &pid, "--config-file", &config][..],
            &[
                "--host",
                &listen,
                "--storage-driver",
                "vfs",
                if self.filters { "--iptables=true" } else { "--iptables=false" },
            ],
            &["--ip6tables=false", "--userland-proxy=false", "--cgroup-parent", &self.groups, "--log-level", "warn"],
        ];
        let argv = self.host.on(&words.concat());
        let log = self.folder.path().join("dockerd.log");
        let mut dockerd = Daemon::start(&format!("dockerd on {}", self.host.name), &argv, &[], &log);
        wait_for("dockerd to answer", PATIENCE, || {
            assert!(dockerd.is_running(), "dockerd ended:\n{}", dockerd.log());
            self.try_docker(&["version"]).status.success().then_some(())
        });
        self.dockerd = Some(dockerd);
    }

    /// Ends the daemon as a service manager does; its containers end with it.
    pub fn stop_docker(&mut self) {
        let mut dockerd = self.dockerd.take().expect("a daemon");
        self.signal(dockerd.pid(), "TERM");
        wait_for("dockerd to end", PATIENCE, || (!dockerd.is_running()).then_some(()));
    }

    /// `kill -9` of the agent.
    pub fn kill_agent(&mut self) {
        let nsenter = self.agent.pid();
        self.signal(nsenter, "KILL");
        let agent = self.agent.daemon();
        wait_for("the agent to die", PATIENCE, || (!agent.is_running()).then_some(()));
    }

    /// Asks the agent to stop.
    pub fn stop_agent(&mut self) {
        let nsenter = self.agent.pid();
        self.signal(nsenter, "TERM");
        let agent = self.agent.daemon();
        wait_for("the agent to stop", PATIENCE, || (!agent.is_running()).then_some(()));
    }

    /// Has the agent stand still until [`Self::wake_agent`].
    pub fn freeze_agent(&self) {
        self.signal(self.agent.pid(), "STOP");
    }

    pub fn wake_agent(&self) {
        self.signal(self.agent.pid(), "CONT");
    }

    /// A signal to what a command that entered the host became.
    fn signal(&self, nsenter: u32, signal: &str) {
        let inner = child_of(nsenter).expect("a process in the host");
        run(&["kill", &format!("-{signal}"), &inner.to_string()]);
    }

    /// Starts the agent with this configuration and this daemon.
    pub fn start_agent(&mut self, config: &AgentConfig) {
        self.configure(config);
        self.agent.start();
    }

    /// The same with a configuration in other words than [`AgentConfig`] has.
    pub fn start_agent_as(&mut self, yaml: &str) {
        self.agent.configure_as(&format!("{yaml}docker: {{socket: {}}}\n", self.socket()));
        self.agent.start();
    }

    /// Has the agent read this configuration.
    pub fn reload_agent(&mut self, config: &AgentConfig) {
        self.configure(config);
        self.signal(self.agent.pid(), "HUP");
    }

    fn configure(&self, config: &AgentConfig) {
        let mut config = config.clone();
        config.more += &format!("docker: {{socket: {}}}\n", self.socket());
        self.agent.configure(&config);
    }

    pub fn try_docker(&self, arguments: &[&str]) -> Output {
        let (listen, config) = (format!("unix://{}", self.socket()), self.folder.path().display().to_string());
        attempt(&[&[DOCKER, "--config", &config, "--host", &listen], arguments].concat())
    }

    /// Runs a command of the client; what it prints.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        assert!(output.status.success(), "docker {arguments:?} on {}: {}", self.host.name, said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// `docker run -d` of a container that serves a page, with these arguments.
    pub fn start_container(&self, name: &str, arguments: &[&str]) {
        let command = ["bb:1", "httpd", "-f", "-p", "80", "-h", "/www"];
        self.docker(&[&["run", "-d", "--name", name], arguments, &command[..]].concat());
    }

    /// What `docker exec` prints; none if it fails.
    pub fn inside(&self, name: &str, command: &[&str]) -> Option<String> {
        let output = self.try_docker(&[&["exec", name], command].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A ping that must be answered, and a page that must come.
    pub fn reaches(&self, name: &str, address: &str) {
        let ping = || self.inside(name, &["ping", "-c", "1", "-W", "1", address]);
        wait_for(&format!("{name} on {} to ping {address}", self.host.name), PATIENCE, ping);
        let page = format!("http://{address}/hello");
        let fetched = self.try_docker(&["exec", name, "wget", "-q", "-O", "-", &page]);
        assert_eq!(said(&fetched), "hello\n", "{name} on {} from {address}: {}", self.host.name, fetched.status);
    }

    /// `underpass ps --json`, with its exit code.
    pub fn ps(&self) -> (i32, Value) {
        let output = self.agent.control(&["ps", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("ps: {}", said(&output)));
        assert_eq!(value["schema"], "underpass.containers/1");
        (output.status.code().expect("an exit code"), value)
    }

    /// One container in it, by name.
    pub fn seen(&self, name: &str) -> Option<Value> {
        let (_, all) = self.ps();
        all["containers"].as_array().expect("a list").iter().find(|container| container["name"] == name).cloned()
    }

    /// Waits until it is in this state; what is then known of it.
    pub fn until(&self, name: &str, state: &str) -> Value {
        let what = format!("{name} on {} to be {state}", self.host.name);
        let mut last = None;
        let (container, took) = wait_for(&what, PATIENCE, || {
            let now = self.seen(name);
            if now != last {
                eprintln!("{}: {name}: {}", self.host.name, now.as_ref().unwrap_or(&Value::Null));
                last.clone_from(&now);
            }
            now.filter(|container| container["state"] == state)
        });
        eprintln!("{what}: {took:?}");
        container
    }

    /// Its only address, once it is attached.
    pub fn address(&self, name: &str) -> String {
        let container = self.until(name, "attached");
        let addresses = container["addresses"].as_array().expect("a list");
        assert_eq!(addresses.len(), 1, "{container}");
        addresses[0].as_str().expect("a text").to_owned()
    }

    /// The addresses that this host's journal says are somebody's.
    pub fn leased(&self) -> Vec<String> {
        let output = self.agent.control(&["ipam", "ls", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("ipam ls: {}", said(&output)));
        let networks = value["networks"].as_array().expect("a list").iter();
        let leases = networks.flat_map(|network| network["leases"].as_array().expect("a list"));
        leases.map(|lease| lease["addresses"][0].as_str().expect("a text").to_owned()).collect()
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown = [&["ps"][..], &["status"], &["ipam", "ls"]].map(|words| said(&self.agent.control(words)));
            eprintln!("--- {}:\n{}", self.host.name, shown.join("\n"));
        }
        // The first process: with it all others of its namespace.
        self.init.kill();
        remove_control_groups(&self.groups);
    }
}

/// Removes the control groups of a daemon that was killed, below each controller.
pub fn remove_control_groups(name: &str) {
    let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups: Vec<PathBuf> = controllers.map(|entry| entry.path().join(&name[1..])).collect();
    // Processes that are being killed leave their groups in their own time.
    for _ in 0..100 {
        groups.iter().for_each(|group| remove_groups(group));
        if !groups.iter().any(|group| group.exists()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("control groups are left: {name}");
}

fn remove_groups(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_groups(&entry.path());
    }
    // One that is not empty stays for the next round.
    let _ = fs::remove_dir(group);
}

/// The one child of a process.
pub fn child_of(parent: u32) -> Option<u32> {
    let output = attempt(&["ps", "-o", "pid=", "--ppid", &parent.to_string()]);
    String::from_utf8_lossy(&output.stdout).split_whitespace().next()?.parse().ok()
}
