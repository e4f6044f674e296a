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
    _init: Daemon,
    folder: TempDir,
}

impl Machine {
    fn new(host: &Host) -> Self {
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
        script += "; rm -f /etc/cni/net.d/*; touch /run/ready; exec sleep infinity";
        let netns = format!("--net=/run/netns/{}", host.netns);
        let argv = ["nsenter", &netns, "unshare", "--mount", "sh", "-c", &script];
        let init = Daemon::start(&format!("the machine {}", host.name), &argv, &[], &folder.path().join("init.log"));
        let mut host = host.clone();
        let enter = ["nsenter", "--target", &init.pid().to_string(), "--net", "--mount", "--"];
        host.enter = enter.map(str::to_owned).to_vec();
        wait_for("the machine", PATIENCE, || host.attempt(&["test", "-e", "/run/ready"]).status.success().then_some(()));
        let machine = Self { agent: Agent::new(&host), host, _init: init, folder };
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
        let mut config = AgentConfig::new(&self.host, peers);
        config.more = "drivers: [rancher-compose.yml]\n".to_owned();
        self.agent.configure(&config);
        let written = self.agent.config().display().to_string();
        self.host.run(&["install", "-D", "-m", "600", &written, CONFIG]);
        self.host.run(&["install", "-D", "-m", "644", EXAMPLE, "/etc/underpass/rancher-compose.yml"]);
        // The agent of a test reads its own copy, which names the same file.
        config.more = "drivers: [/etc/underpass/rancher-compose.yml]\n".to_owned();
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
    machine.configure(&[]);
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

/// Docker starts after the agent, as systemd reads it, and never with addresses of a network.
#[test]
fn docker_is_told_by_systemd() {
    let lab = Lab::direct();
    let machine = Machine::new(&lab.alpha);
    machine.configure(&[]);
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
