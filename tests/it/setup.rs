//! `underpass setup` as whoever installs it uses it: the real paths, then a runtime that knows nothing but what was written.
//!
//! A machine here is a host of the laboratory with `/etc`, `/opt`, `/var` and the folder of CNI plugins of its own: layers over this
//! machine's, so that what is written is known file by file, and goes with the test.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::docker::host::{child_of, image, remove_control_groups};
use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, UNDERPASS, both_up};
use crate::lab::command::{said, text};
use crate::lab::traffic::streams;
use crate::lab::{Daemon, Host, Lab, wait_for};

/// The example of the documents that describe the original network, unchanged.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/network/testdata/rancher-ipsec.yml");

/// Where the agent and every command look for the configuration if nobody says otherwise.
const CONFIG: &str = "/etc/underpass/underpass.yaml";

/// How long a runtime may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a machine has for itself.
const OWN: [&str; 4] = ["/etc", "/opt", "/var", "/usr/lib/cni"];

struct Machine {
    host: Host,
    agent: Agent,
    /// Behind whatever enters its namespaces.
    init: Daemon,
    /// What a Docker daemon here has of control groups.
    groups: Option<String>,
    folder: TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Some(groups) = &self.groups else { return };
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.host.name, said(&self.agent.control(&["ps"])));
            eprintln!("{}", said(&self.agent.control(&["status"])));
        }
        self.init.kill();
        remove_control_groups(groups);
    }
}

impl Machine {
    fn new(host: &Host) -> Self {
        Self::with(host, false)
    }

    /// One with processes of its own: whatever a daemon starts there ends with the machine.
    fn with_processes(host: &Host) -> Self {
        Self::with(host, true)
    }

    fn with(host: &Host, own_processes: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("underpass-machine-").tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut script = "set -e; mount -t tmpfs none /run".to_owned();
        for (number, place) in OWN.iter().enumerate() {
            let (upper, work) = (path(&format!("upper{number}")), path(&format!("work{number}")));
            script += &format!(
                "; mkdir {upper} {work}; mount -t overlay none -o lowerdir={place},upperdir={upper},workdir={work} {place}"
            );
        }
        // Other networks of this machine's runtimes are none of its business.
        script += "; rm -f /etc/cni/net.d/*; touch /run/ready; while :; do sleep 1000 & wait; done";
        let netns = format!("--net=/run/netns/{}", host.netns);
        let processes: &[&str] = if own_processes { &["--pid", "--fork", "--kill-child", "--mount-proc"] } else { &[] };
        let argv = [&["nsenter", &netns, "unshare", "--mount"], processes, &["sh", "-c", &script]].concat();
        let init = Daemon::start(&format!("the machine {}", host.name), &argv, &[], &folder.path().join("init.log"));
        let first = match own_processes {
            true => wait_for("the first process", PATIENCE, || child_of(init.pid())).0,
            false => init.pid(),
        };
        let mut host = host.clone();
        let target = first.to_string();
        let enter = [
            &["nsenter", "--target", &target, "--net", "--mount"][..],
            if own_processes { &["--pid"] } else { &[] },
            &["--"],
        ];
        host.enter = enter.concat().into_iter().map(str::to_owned).collect();
        wait_for("the machine", PATIENCE, || host.attempt(&["test", "-e", "/run/ready"]).status.success().then_some(()));
        let machine = Self { agent: Agent::new(&host), host, init, groups: None, folder };
        machine.make_rootfs();
        machine
    }

    /// A folder with which a container starts that has this machine's programs.
    fn make_rootfs(&self) {
        let root = PathBuf::from(self.rootfs());
        for name in ["usr", "etc", "proc", "sys", "dev", "tmp", "var", "run", "root"] {
            fs::create_dir_all(root.join(name)).expect("a folder");
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), root.join(name)).expect("a link");
        }
    }

    fn rootfs(&self) -> String {
        self.folder.path().join("rootfs").display().to_string()
    }

    /// The agent's configuration where it belongs, with the documents' example as its driver. Nothing runs yet.
    fn configure(&self, peers: &[PeerConfig]) {
        self.configure_with(peers, "");
    }

    /// The same with further lines.
    fn configure_with(&self, peers: &[PeerConfig], more: &str) {
        let mut config = AgentConfig::new(&self.host, peers);
        config.more = format!("drivers: [rancher-compose.yml]\n{more}");
        self.agent.configure(&config);
        let written = self.agent.config().display().to_string();
        self.host.run(&["install", "-D", "-m", "600", &written, CONFIG]);
        self.host.run(&["install", "-D", "-m", "644", EXAMPLE, "/etc/underpass/rancher-compose.yml"]);
        // The agent of a test reads its own copy, which names the same file.
        config.more = format!("drivers: [/etc/underpass/rancher-compose.yml]\n{more}");
        self.agent.configure(&config);
    }

    fn write(&self, path: &str, text: &str) {
        let draft = self.folder.path().join("draft");
        fs::write(&draft, text).expect("a file");
        self.host.run(&["install", "-D", "-m", "644", &draft.display().to_string(), path]);
    }

    fn read(&self, path: &str) -> String {
        self.host.run(&["cat", path])
    }

    /// Every file that was written here and is not this machine's below: its place, size and time.
    fn written(&self) -> Vec<(PathBuf, u64, i64, i64)> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<(PathBuf, u64, i64, i64)>) {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let metadata = entry.metadata().expect("a file");
                if metadata.is_dir() {
                    walk(root, &entry.path(), found);
                } else {
                    let place = entry.path().strip_prefix(root).expect("below").to_owned();
                    found.push((place, metadata.size(), metadata.mtime(), metadata.mtime_nsec()));
                }
            }
        }
        let mut found = Vec::new();
        for number in 0..OWN.len() {
            walk(self.folder.path(), &self.folder.path().join(format!("upper{number}")), &mut found);
        }
        found.sort();
        found
    }

    /// `underpass setup` with these words: its exit code, and what it said.
    fn setup(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = self.host.attempt(&[&[UNDERPASS, "setup"], words].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// A dry run writes nothing, the next run does what it said, and the third finds nothing to do.
    fn sets_up(&self, runtime: &str, expected: &[&str]) {
        let before = self.written();
        let (code, promised, err) = self.setup(&[runtime, "--dry-run"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{promised}");
        assert!(promised.contains("a dry run: nothing was changed\n"), "{promised}");
        assert_eq!(self.written(), before, "a dry run");
        let (code, done, err) = self.setup(&[runtime]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{done}");
        eprintln!("$ underpass setup {runtime}\n{done}");
        let same = promised.replace("would write", "wrote").replace("would link", "linked");
        assert_eq!(done, same.replace("a dry run: nothing was changed", &format!("{runtime} is set up")));
        for line in expected {
            assert!(done.contains(line), "{line}: {done}");
        }
        let after = self.written();
        assert_ne!(after, before);
        let (code, again, err) = self.setup(&[runtime]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{again}");
        assert!(again.contains(&format!("{runtime} is set up already: nothing to do\n")), "{again}");
        assert!(!again.contains("wrote ") && !again.contains("linked "), "{again}");
        assert_eq!(self.written(), after, "the second time");
    }

    fn leases(&self) -> usize {
        let output = self.agent.control(&["ipam", "ls", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let networks = value["networks"].as_array().expect("networks").iter();
        networks.map(|network| network["leases"].as_array().map_or(0, Vec::len)).sum()
    }
}

/// podman on a machine, as installed: no option and no variable says where anything is.
struct Podman<'m> {
    machine: &'m Machine,
}

impl Podman<'_> {
    /// What a test's sandbox needs of every runtime; and a back end that is none of ours, which `setup` must change.
    fn install(machine: &Machine) {
        machine.write(
            "/etc/containers/containers.conf",
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
             [network]\nnetwork_backend = \"netavark\"\n",
        );
        machine.write(
            "/etc/containers/storage.conf",
            "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/test\"\n",
        );
    }

    fn attempt(&self, arguments: &[&str]) -> Output {
        self.machine.host.attempt(&[&["podman"], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.attempt(arguments);
        assert!(output.status.success(), "podman {arguments:?} on {}: {}", self.machine.host.name, said(&output));
        text(&output.stdout).trim().to_owned()
    }

    /// A container that sleeps; its address.
    fn start(&self, name: &str, network: &str) -> String {
        // This machine's `ping` has a capability of its own, and is not executed without it.
        let options = ["run", "-d", "--cap-add", "NET_RAW", "--name", name, "--network", network, "-v", "/usr:/usr:ro"];
        self.run(&[&options[..], &["--tmpfs", "/tmp", "--rootfs", &self.machine.rootfs(), "sleep", "600"]].concat());
        let all: Value = serde_json::from_str(&self.run(&["inspect", name])).expect("JSON");
        let address = &all[0]["NetworkSettings"]["Networks"][network]["IPAddress"];
        address.as_str().unwrap_or_else(|| panic!("no address in {}", all[0]["NetworkSettings"])).to_owned()
    }

    fn inside(&self, name: &str, command: &[&str]) -> Output {
        self.attempt(&[&["exec", name], command].concat())
    }

    fn pings(&self, name: &str, address: &str, more: &[&str]) -> bool {
        let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2"];
        self.inside(name, &[&ping, more, &[address]].concat()).status.success()
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.attempt(&["rm", "-f", "-t", "0", "-a"]);
    }
}

#[test]
fn the_documents_example_is_a_network_of_podman_on_two_hosts() {
    let lab = Lab::direct();
    let mut machines = [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)].map(|(host, peer)| {
        let machine = Machine::new(host);
        machine.configure(&[PeerConfig::at(peer)]);
        Podman::install(&machine);
        machine
    });
    for machine in &mut machines {
        machine.sets_up(
            "podman",
            &[
                "wrote /etc/containers/containers.conf.d/50-underpass.conf\n",
                &format!("linked /usr/lib/cni/rancher-bridge -> {UNDERPASS}\n"),
                "note: the agent writes the networks into /etc/cni/net.d when it starts; there is none yet\n",
            ],
        );
        machine.agent.start();
        let (_, said, _) = machine.setup(&["podman"]);
        assert!(!said.contains("there is none yet"), "{said}");
    }
    let [alpha, beta] = &machines;
    both_up(&alpha.agent, &beta.agent);
    let warnings = alpha.agent.log();
    assert!(warnings.contains("malformed key; did you mean"), "the example's slip of the hand is told: {warnings}");
    let (on_alpha, on_beta) = (Podman { machine: alpha }, Podman { machine: beta });

    let (one, near, other) =
        (on_alpha.start("one", "managed"), on_alpha.start("near", "ipsec"), on_beta.start("one", "managed"));
    assert!(
        one.starts_with("10.42.1.") && near.starts_with("10.42.1.") && other.starts_with("10.42.2."),
        "{one} {near} {other}"
    );
    let seen = text(&on_alpha.inside("one", &["ip", "-4", "-o", "address", "show", "eth0"]).stdout);
    assert!(seen.contains(&format!("{one}/16")), "a flat network: {seen}");
    assert!(on_alpha.pings("one", &near, &[]), "on one host");
    assert!(on_alpha.pings("one", &other, &[]) && on_beta.pings("one", &one, &[]), "on the other host, both ways");
    let tunnel = mtu(&lab.alpha.run(&["ip", "link", "show", "underpass0"]));
    assert!(on_alpha.pings("one", &other, &["-M", "do", "-s", &(tunnel - 28).to_string()]), "at full MTU");
    assert!(on_alpha.pings("one", "10.42.0.1", &[]), "every host's gateway");
    assert!(on_alpha.pings("one", "10.9.0.2", &[]), "the outside, by the host's address");
    let names = text(&on_alpha.inside("one", &["cat", "/etc/resolv.conf"]).stdout);
    assert!(names.contains("nameserver 169.254.169.250") && names.contains("search rancher.internal"), "{names}");
    streams(|command| on_beta.inside("one", command), |command| on_alpha.inside("one", command), &other);
    let log = alpha.read("/var/log/rancher-ipam.log");
    assert!(log.lines().count() >= 2 && log.contains(" rancher-cni-ipam ADD "), "where the example wants it: {log}");

    // Everybody goes, then the network, and with it whatever it made on the host.
    assert_eq!(alpha.leases(), 2);
    on_alpha.run(&["rm", "-f", "-t", "0", "one", "near"]);
    assert_eq!(alpha.leases(), 0);
    assert!(lab.alpha.run(&["ip", "-br", "link"]).contains("docker0"));
    let removed = alpha.agent.control(&["net", "rm", "managed"]);
    assert_eq!(said(&removed), "network ipsec is removed\n");
    assert!(!lab.alpha.run(&["ip", "-br", "link"]).contains("docker0"));
    assert!(!lab.alpha.run(&["nft", "list", "tables"]).contains("underpass-net"));
}

/// The largest packet of an interface, as `ip link` shows it.
fn mtu(show: &str) -> u32 {
    let mut words = show.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no MTU in: {show}"))
}

/// What `setup` finds of others, it leaves, and says so.
#[test]
fn setup_leaves_what_others_wrote() {
    let lab = Lab::direct();
    let machine = Machine::new(&lab.alpha);
    machine.configure_with(&[], WATCHED);
    for (path, runtime) in [
        ("/etc/containers/containers.conf.d/50-underpass.conf", "podman"),
        ("/usr/lib/cni/underpass-cni", "podman"),
        ("/etc/systemd/system/docker.service.d/50-underpass.conf", "docker"),
        ("/opt/cni/bin/rancher-bridge", "containerd"),
    ] {
        machine.write(path, "somebody else's\n");
        let (code, out, err) = machine.setup(&[runtime]);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(err.contains(&format!("{path}: not made by underpass")) && err.contains("move it away"), "{err}");
        assert!(!out.contains("is set up"), "{out}");
        assert_eq!(machine.read(path), "somebody else's\n");
        machine.host.run(&["rm", path]);
        let (code, out, err) = machine.setup(&[runtime]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    }
}

/// `ctr` has its folders built in; `setup` fills the one of plugins, the agent the one of networks.
#[test]
fn ctr_needs_nothing_but_setup() {
    let lab = Lab::direct();
    let mut machine = Machine::new(&lab.alpha);
    machine.configure(&[PeerConfig::at(&lab.beta)]);
    let path = |name: &str| machine.folder.path().join(name).display().to_string();
    let (root, state, socket, rootfs) = (path("root"), path("state"), path("c.sock"), machine.rootfs());
    machine.write(
        "/etc/containerd/config.toml",
        &format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
             bin_dir = \"/usr/lib/cni\"\nconf_dir = \"/etc/cni/net.d\"\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n"
        ),
    );
    machine.sets_up(
        "containerd",
        &[
            &format!("linked /usr/lib/cni/rancher-bridge -> {UNDERPASS}\n"),
            &format!("linked /opt/cni/bin/rancher-cni-ipam -> {UNDERPASS}\n"),
        ],
    );
    machine.agent.start();
    let beta = Agent::running(&lab.beta, &AgentConfig::new(&lab.beta, &[PeerConfig::at(&lab.alpha)]));
    machine.agent.wait_for_state("beta", "up", FIRST_CONTACT);
    let log = machine.folder.path().join("containerd.log");
    let _containerd = Daemon::start("containerd", &machine.host.on(&["containerd"]), &[], &log);
    let ctr = ["ctr", "--address", &socket];
    wait_for("containerd to answer", PATIENCE, || {
        machine.host.attempt(&[&ctr[..], &["version"]].concat()).status.success().then_some(())
    });
    let inside = "ip -4 -o address show eth0 && ping -n -c 3 -i 0.2 -W 2 10.42.2.1";
    let options = [
        "run",
        "--rm",
        "--cni",
        "--mount",
        "type=bind,src=/usr,dst=/usr,options=rbind:ro",
        "--env",
        "PATH=/usr/sbin:/usr/bin",
    ];
    let container = ["--rootfs", &rootfs, "underpass-setup-test", "sh", "-c", inside];
    let output = machine.host.attempt(&[&ctr[..], &options, &container].concat());
    assert!(output.status.success(), "{}", said(&output));
    let shown = text(&output.stdout);
    assert!(shown.contains("10.42.1.2/16") && shown.contains("3 received"), "{shown}");
    assert_eq!(machine.leases(), 0, "it is gone");
    drop(beta);
}

/// What the agent's configuration must say.
const WATCHED: &str = "docker: {socket: /var/run/docker.sock}\n";

/// Docker starts after the agent, as systemd reads it, and never with addresses of a network.
#[test]
fn docker_is_told_by_systemd() {
    let lab = Lab::direct();
    let machine = Machine::new(&lab.alpha);
    machine.configure_with(&[], WATCHED);
    let unit = "/etc/systemd/system/docker.service.d/50-underpass.conf";
    machine.sets_up("docker", &[&format!("wrote {unit}\n"), "note: systemctl daemon-reload makes systemd read it\n"]);
    let verify = || said(&machine.host.attempt(&["systemd-analyze", "verify", "docker.service"]));
    assert_eq!(verify(), "");
    machine.write(unit, &machine.read(unit).replace("Wants=", "Wanted="));
    assert!(verify().contains("50-underpass.conf:3: Unknown key 'Wanted'"), "it reads the file: {}", verify());
    for daemon in [r#"{"bip": "10.42.9.1/24"}"#, r#"{"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}"#] {
        machine.write("/etc/docker/daemon.json", daemon);
        let (code, _, err) = machine.setup(&["docker"]);
        assert_eq!(code, Some(5), "{err}");
        assert!(err.contains("Docker and underpass would give out the same addresses"), "{err}");
    }
}

/// Docker on a machine, as installed: no option says where anything is, and it filters what the host forwards.
struct Docker<'m> {
    machine: &'m Machine,
    _dockerd: Daemon,
}

impl<'m> Docker<'m> {
    /// What a test's sandbox needs of the daemon, and nothing else.
    fn configure(machine: &mut Machine) {
        let groups = format!("/{}", machine.host.netns);
        machine
            .write("/etc/docker/daemon.json", &format!("{{\"storage-driver\": \"vfs\", \"cgroup-parent\": \"{groups}\"}}"));
        machine.groups = Some(groups);
    }

    fn start(machine: &'m Machine) -> Self {
        let log = machine.folder.path().join("dockerd.log");
        let argv = machine.host.on(&["/usr/sbin/dockerd", "--log-level", "warn"]);
        let docker = Self { machine, _dockerd: Daemon::start("dockerd", &argv, &[], &log) };
        wait_for("dockerd to answer", PATIENCE, || docker.attempt(&["version"]).status.success().then_some(()));
        docker.run(&["import", &image(machine.folder.path()), "bb:1"]);
        docker
    }

    fn attempt(&self, arguments: &[&str]) -> Output {
        self.machine.host.attempt(&[&["/usr/bin/docker"], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.attempt(arguments);
        assert!(output.status.success(), "docker {arguments:?} on {}: {}", self.machine.host.name, said(&output));
        text(&output.stdout).trim().to_owned()
    }

    /// A container that serves a page.
    fn serve(&self, name: &str, options: &[&str]) {
        let command = ["bb:1", "httpd", "-f", "-p", "80", "-h", "/www"];
        self.run(&[&["run", "-d", "--name", name], options, &command[..]].concat());
    }

    /// Its address of the overlay, from the agent.
    fn address(&self, name: &str) -> String {
        let ask = || {
            let all: Value = serde_json::from_slice(&self.machine.agent.control(&["ps", "--json"]).stdout).ok()?;
            let found = all["containers"].as_array()?.iter().find(|it| it["name"] == name && it["state"] == "attached")?;
            Some(found["addresses"][0].as_str()?.to_owned())
        };
        wait_for(&format!("{name} on {} to have its address", self.machine.host.name), PATIENCE, ask).0
    }

    fn fetches(&self, name: &str, address: &str) {
        let page = format!("http://{address}/hello");
        let fetch = || {
            let output = self.attempt(&["exec", name, "wget", "-q", "-O", "-", &page]);
            (text(&output.stdout) == "hello\n").then_some(())
        };
        wait_for(&format!("{name} on {} to fetch {page}", self.machine.host.name), PATIENCE, fetch);
    }
}

/// After `underpass setup docker` the agent starts, then Docker, and a label is all that a container needs.
#[test]
fn a_label_is_all_that_a_container_of_docker_needs() {
    let lab = Lab::direct();
    let mut machines = [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)].map(|(host, peer)| {
        let mut machine = Machine::with_processes(host);
        machine.configure(&[PeerConfig::at(peer)]);
        Docker::configure(&mut machine);
        let (code, out, err) = machine.setup(&["docker"]);
        assert_eq!((code, out.as_str()), (Some(5), ""), "nobody would give containers their addresses: {err}");
        machine.configure_with(&[PeerConfig::at(peer)], WATCHED);
        machine
    });
    for machine in &mut machines {
        machine.sets_up("docker", &["wrote /etc/systemd/system/docker.service.d/50-underpass.conf\n"]);
        machine.agent.start();
    }
    let [alpha, beta] = &machines;
    both_up(&alpha.agent, &beta.agent);
    let [on_alpha, on_beta] = [alpha, beta].map(Docker::start);
    on_alpha.serve("plain", &[]);
    let looks = [&["ip", "address"][..], &["ip", "route"], &["cat", "/etc/resolv.conf"], &["cat", "/etc/hosts"]];
    let seen = || looks.map(|look| on_alpha.run(&[&["exec", "plain"], look].concat()));
    let before = seen();
    let label = ["--label", "io.rancher.container.network=true"];
    on_alpha.serve("web", &label);
    on_beta.serve("web", &label);
    on_beta.serve("alone", &[&label[..], &["--network", "none"]].concat());
    let (here, there, alone) = (on_alpha.address("web"), on_beta.address("web"), on_beta.address("alone"));
    assert!(here.starts_with("10.42.1.") && there.starts_with("10.42.2.") && alone.starts_with("10.42.2."));
    on_alpha.fetches("web", &there);
    on_alpha.fetches("web", &alone);
    on_beta.fetches("web", &here);
    on_beta.fetches("alone", &here);
    let names = on_alpha.run(&["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(names.contains("nameserver 169.254.169.250") && names.contains("search rancher.internal"), "{names}");
    assert_eq!(seen(), before, "who has no label is not touched");
    assert!(before[0].contains("inet 172.17.") && !before[0].contains("10.42."), "{}", before[0]);
    for machine in [alpha, beta] {
        assert!(machine.host.run(&["iptables", "-S", "FORWARD"]).contains("-P FORWARD DROP"), "Docker filters");
        let warnings = machine.agent.status()["warnings"].to_string();
        assert!(!warnings.contains("is dropped on this host"), "{warnings}");
    }
    on_alpha.run(&["rm", "-f", "web", "plain"]);
    wait_for("no leases", PATIENCE, || (alpha.leases() == 0).then_some(()));
}
