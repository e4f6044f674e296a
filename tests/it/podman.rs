//! podman's containers on the managed network: two and three hosts, each with its agent, and the runtime none the wiser.
//!
//! podman 4.3 of Debian with CNI and runc. Containers have the machine's own programs, read-only; there is no image and no registry.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, UNDERPASS, paired};
use crate::lab::command::{said, text};
use crate::lab::etcd::Etcd;
use crate::lab::site::{bridge_ports, link_plugins, make_root};
use crate::lab::traffic::streams;
use crate::lab::{Host, Lab, attempt, wait_for};

/// A container runtime on a host, with folders of its own.
struct Podman {
    host: Host,
    folder: TempDir,
    state: PathBuf,
}

impl Podman {
    fn on(host: &Host, agent: &Agent) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let podman =
            Self { host: host.clone(), folder, state: agent.key_file().parent().expect("the state directory").to_owned() };
        for name in ["plugins", "networks", "root", "run", "tmp"] {
            fs::create_dir(podman.path(name)).expect("a folder");
        }
        link_plugins(&podman.path("plugins"));
        make_root(&podman.path("rootfs"));
        podman.write("containers.conf", &podman.configuration());
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = {:?}\ngraphroot = {:?}\n",
            podman.path("run"),
            podman.path("root")
        );
        podman.write("storage.conf", &storage);
        podman.network("managed", &json!({"type": "underpass-cni", "underpass": {"stateDir": podman.state}}));
        podman
    }

    fn configuration(&self) -> String {
        format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
             [network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = {:?}\ncni_plugin_dirs = [{:?}, \"/usr/lib/cni\"]\n",
            self.path("networks"),
            self.path("plugins")
        )
    }

    /// A network of this name, made by this plugin.
    fn network(&self, name: &str, plugin: &Value) {
        let mut plugin = plugin.clone();
        plugin["capabilities"] = json!({"ips": true, "mac": true, "portMappings": true, "aliases": true});
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]});
        self.write(&format!("networks/10-{name}.conflist"), &list.to_string());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    fn attempt(&self, arguments: &[&str]) -> Output {
        let netns = format!("--net=/run/netns/{}", self.host.netns);
        let variables = ["containers", "storage"].map(|name| self.path(&format!("{name}.conf")).display().to_string());
        let [configuration, storage] = &variables;
        let (configuration, storage) =
            (format!("CONTAINERS_CONF={configuration}"), format!("CONTAINERS_STORAGE_CONF={storage}"));
        let tmp = self.path("tmp").display().to_string();
        let command = ["nsenter", &netns, "env", &configuration, &storage, "podman", "--tmpdir", &tmp];
        attempt(&[&command, arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.attempt(arguments);
        assert!(output.status.success(), "podman {arguments:?} on {}: {}", self.host.name, said(&output));
        text(&output.stdout).trim().to_owned()
    }

    /// A container that runs `command`; its address, as `podman inspect` has it.
    fn start(&self, name: &str, network: &str, more: &[&str], command: &[&str]) -> String {
        let rootfs = self.path("rootfs").display().to_string();
        let options = ["run", "-d", "--name", name, "--network", network, "-v", "/usr:/usr:ro", "--tmpfs", "/tmp"];
        self.run(&[&options, more, &["--rootfs", &rootfs], command].concat());
        self.address(name, network)
    }

    fn sleeper(&self, name: &str, network: &str) -> String {
        self.start(name, network, &[], &["sleep", "600"])
    }

    fn address(&self, name: &str, network: &str) -> String {
        let all: Value = serde_json::from_str(&self.run(&["inspect", name])).expect("JSON");
        all[0]["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap_or_default().to_owned()
    }

    fn in_container(&self, name: &str, command: &[&str]) -> Output {
        self.attempt(&[&["exec", name], command].concat())
    }

    fn pings(&self, name: &str, address: &str, more: &[&str]) -> bool {
        let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2"];
        self.in_container(name, &[&ping, more, &[address]].concat()).status.success()
    }

    /// How many addresses of this host are in use.
    fn leases(&self) -> usize {
        let state = self.state.display().to_string();
        let output = attempt(&[UNDERPASS, "--state-dir", &state, "ipam", "ls", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value["networks"]
            .as_array()
            .expect("networks")
            .iter()
            .map(|network| network["leases"].as_array().map_or(0, Vec::len))
            .sum()
    }

    /// The ports of bridges on this host.
    fn ports(&self) -> usize {
        bridge_ports(&self.host).len()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.attempt(&["rm", "-f", "-t", "0", "-a"]);
    }
}

/// Two hosts, their agents, podman on each.
fn two_hosts(lab: &Lab) -> (Agent, Agent, Podman, Podman) {
    let (alpha, beta) = paired(lab, |config| config);
    let sites = (Podman::on(&lab.alpha, &alpha), Podman::on(&lab.beta, &beta));
    (alpha, beta, sites.0, sites.1)
}

/// The largest packet that an interface takes.
fn mtu(show: &str) -> u32 {
    let mut words = show.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no MTU in: {show}"))
}

#[test]
fn containers_of_two_hosts_reach_each_other_and_the_outside() {
    let lab = Lab::direct();
    let (_alpha, _beta, on_alpha, on_beta) = two_hosts(&lab);
    let one = on_alpha.sleeper("one", "managed");
    let other = on_beta.sleeper("one", "managed");
    assert!(one.starts_with("10.42.1.") && other.starts_with("10.42.2."), "podman inspect says {one} and {other}");
    let seen = text(&on_alpha.in_container("one", &["ip", "-4", "-o", "address", "show", "eth0"]).stdout);
    assert!(seen.contains(&format!("{one}/16")), "a flat network: {seen}");

    assert!(on_alpha.pings("one", &other, &[]), "alpha's to beta's");
    assert!(on_beta.pings("one", &one, &[]), "beta's to alpha's");
    let tunnel = mtu(&lab.alpha.run(&["ip", "link", "show", "underpass0"]));
    let inside = mtu(&text(&on_alpha.in_container("one", &["ip", "link", "show", "eth0"]).stdout));
    assert_eq!(inside, tunnel, "containers may send what the tunnel takes");
    let full = (tunnel - 28).to_string();
    assert!(on_alpha.pings("one", &other, &["-M", "do", "-s", &full]), "at full MTU");
    streams(|command| on_alpha.in_container("one", command), |command| on_beta.in_container("one", command), &one);

    assert!(on_alpha.pings("one", "10.9.0.2", &[]), "the outside, by the host's address");
    assert_eq!((on_alpha.leases(), on_alpha.ports()), (1, 1));
    on_alpha.run(&["rm", "-f", "-t", "0", "one"]);
    assert_eq!((on_alpha.leases(), on_alpha.ports()), (0, 0), "nothing is left of it");
}

#[test]
fn two_networks_of_the_same_hosts_stay_apart() {
    let lab = Lab::direct();
    let (_alpha, _beta, podman, _) = two_hosts(&lab);
    let backend = json!({
        "type": "underpass-cni", "bridge": "backend0",
        "underpass": {"stateDir": podman.state, "network": "backend", "blocks": ["10.77.1.0/24"]},
    });
    podman.network("backend", &backend);
    let managed = podman.sleeper("one", "managed");
    let first = podman.sleeper("two", "backend");
    let second = podman.sleeper("three", "backend");
    assert!(podman.pings("two", &second, &[]), "within a network");
    assert!(!podman.pings("two", &managed, &[]), "backend to managed");
    assert!(!podman.pings("one", &first, &[]), "managed to backend");

    // One container on both reaches both, and leaves one again.
    podman.run(&["network", "connect", "backend", "one"]);
    assert!(podman.pings("one", &first, &[]), "on both networks");
    podman.run(&["network", "disconnect", "backend", "one"]);
    assert!(!podman.pings("one", &first, &[]), "off it again");
    assert_eq!((podman.leases(), podman.ports()), (3, 3));
}

#[test]
fn whatever_dies_nothing_is_left_and_addresses_are_kept() {
    let lab = Lab::direct();
    let (mut alpha, _beta, on_alpha, on_beta) = two_hosts(&lab);
    let other = on_beta.sleeper("one", "managed");
    let asked = on_alpha.start("asked", "managed", &["--ip", "10.42.1.77"], &["sleep", "600"]);
    assert_eq!(asked, "10.42.1.77", "a requested address");
    let rootfs = on_alpha.path("rootfs").display().to_string();
    let again =
        ["run", "-d", "--name", "thief", "--network", "managed", "--ip", "10.42.1.77", "--rootfs", &rootfs, "sleep", "9"];
    let refused = on_alpha.attempt(&again);
    assert!(!refused.status.success() && said(&refused).contains("10.42.1.77"), "{}", said(&refused));

    // The agent dies: what runs goes on locally, new containers come and old ones go.
    alpha.kill();
    let local = on_alpha.sleeper("local", "managed");
    assert!(on_alpha.pings("asked", &local, &[]), "without the agent");
    on_alpha.run(&["rm", "-f", "-t", "0", "local"]);
    alpha.start();
    wait_for("a ping across again", FIRST_CONTACT, || on_alpha.pings("asked", &other, &[]).then_some(()));

    // conmon and its container die by force.
    let inspected: Value = serde_json::from_str(&on_alpha.run(&["inspect", "asked"])).expect("JSON");
    for process in ["ConmonPid", "Pid"] {
        let pid = inspected[0]["State"][process].as_i64().expect("a process");
        attempt(&["kill", "-9", &pid.to_string()]);
    }
    for name in ["asked", "thief"] {
        // podman finds out in its own time that somebody else killed what it started.
        wait_for("podman to remove it", Duration::from_secs(20), || {
            on_alpha.attempt(&["rm", "-f", "-t", "0", name]).status.success().then_some(())
        });
    }
    assert_eq!((on_alpha.leases(), on_alpha.ports()), (0, 0), "nothing is left of them");
}

/// What `ps --json` of an agent says of the container with this address: host, name, other names, and ports.
fn described(agent: &Agent, address: &str) -> Option<Value> {
    let output = agent.control(&["ps", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("ps: {}", said(&output)));
    let found = answer["containers"].as_array().expect("a list").iter().find(|it| it["addresses"][0] == address)?.clone();
    Some(json!([found["host"], found["name"], found["aliases"], found["ports"]]))
}

/// podman says names, aliases and ports to the plugin; they stand in the journal, in `ps`, and in the store for other hosts.
#[test]
fn what_containers_are_called_is_known_on_every_host() {
    let (lab, switch) = Lab::switched();
    let etcd = Etcd::running(&switch);
    let agents = [&lab.alpha, &lab.beta].map(|host| {
        let mut agent = Agent::new(host);
        agent.configure_as(&format!(
            "host: {{name: {}, advertise: [{}]}}\ntun: {{queues: 1}}\nstore: {{kind: etcd, endpoints: [\"{}\"], allow_plaintext: true}}\n",
            host.name, host.address, etcd.url()
        ));
        agent.start();
        agent
    });
    let [alpha, beta] = &agents;
    wait_for("beta", Duration::from_secs(60), || (alpha.status()["peers"][0]["state"] == "up").then_some(()));
    let podman = Podman::on(&lab.alpha, alpha);
    podman.network(
        "second",
        &json!({
            "type": "underpass-cni", "bridge": "second0",
            "underpass": {"stateDir": podman.state, "network": "second", "blocks": ["10.77.1.0/24"]},
        }),
    );
    let more = [
        "--network-alias",
        "www",
        "--network-alias",
        "web.local",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:5353:53/udp",
        "-p",
        "9000-9002:9000-9002",
    ];
    let web = podman.start("web", "managed", &more, &["sleep", "600"]);
    let plain = podman.sleeper("plain", "managed");
    podman.run(&["network", "connect", "--alias", "other", "second", "web"]);
    let second = podman.address("web", "second");

    let ports = ["8080->80/tcp", "9000-9002->9000-9002/tcp", "127.0.0.1:5353->53/udp"];
    for agent in [alpha, beta] {
        let is = |address: &str, expected: Value| {
            let told = || (described(agent, address).as_ref() == Some(&expected)).then_some(());
            wait_for(&format!("{address} to be {expected}"), Duration::from_secs(20), told);
        };
        is(&web, json!(["alpha", "web", ["www", "web.local"], ports]));
        is(&plain, json!(["alpha", "plain", [], []]));
        is(&second, json!(["alpha", "web", ["other"], ports]));
    }
    let shown = text(&beta.control(&["ps"]).stdout);
    let line = shown.lines().find(|line| line.contains(&web)).expect("its line");
    assert!(shown.starts_with("CONTAINER") && line.contains("www web.local") && line.contains(&ports.join(" ")), "{shown}");
    let stored = etcd.script("etcdctl get --prefix --print-value-only /underpass/v1/");
    assert!(
        stored.contains(r#""aliases":["www","web.local"]"#) && stored.contains(r#""names":["plain"],"aliases":[]"#),
        "{stored}"
    );
    podman.run(&["rm", "-f", "-t", "0", "web"]);
    wait_for("it to be gone", Duration::from_secs(20), || described(beta, &web).is_none().then_some(()));
}

/// Three hosts, of which two are behind a NAT, and a member of an etcd cluster in a container on each.
#[test]
fn a_cluster_forms_across_three_hosts() {
    let lab = Lab::crowd();
    let gamma = lab.others[0].clone();
    let hosts = [&lab.alpha, &lab.beta, &gamma];
    let agents: Vec<Agent> = hosts
        .iter()
        .map(|host| {
            let calls = |peer: &&&Host| host.name != "beta" && peer.name != host.name;
            let mut peers: Vec<PeerConfig> = hosts.iter().filter(calls).map(|peer| PeerConfig::at(peer)).collect();
            if host.name == "beta" {
                peers = [&lab.alpha, &gamma].map(PeerConfig::calling).into();
            }
            Agent::running(host, &AgentConfig::new(host, &peers))
        })
        .collect();
    agents[0].wait_for_state("beta", "up", FIRST_CONTACT);
    agents[0].wait_for_state("gamma", "up", FIRST_CONTACT);
    agents[2].wait_for_state("beta", "up", FIRST_CONTACT);

    let sites: Vec<Podman> = hosts.iter().zip(&agents).map(|(host, agent)| Podman::on(host, agent)).collect();
    let addresses = ["10.42.1.20", "10.42.2.20", "10.42.3.20"];
    let members: Vec<String> =
        hosts.iter().zip(addresses).map(|(host, at)| format!("{}=http://{at}:2380", host.name)).collect();
    for ((site, host), at) in sites.iter().zip(hosts).zip(addresses) {
        let (peer, client) = (format!("http://{at}:2380"), format!("http://{at}:2379"));
        let etcd = [
            "etcd",
            "--name",
            host.name,
            "--data-dir",
            "/tmp/etcd",
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--initial-cluster",
            &members.join(","),
        ];
        site.start("etcd", "managed", &["--ip", at], &etcd);
    }
    let etcdctl = |site: &Podman, at: &str, words: &[&str]| {
        let endpoint = format!("--endpoints=http://{at}:2379");
        site.in_container("etcd", &[&["env", "ETCDCTL_API=3", "etcdctl", &endpoint], words].concat())
    };
    wait_for("all members to be healthy", Duration::from_secs(30), || {
        let healthy = etcdctl(&sites[0], addresses[0], &["endpoint", "health", "--cluster"]);
        (healthy.status.success() && said(&healthy).matches("is healthy").count() == 3).then_some(())
    });
    let put = etcdctl(&sites[0], addresses[0], &["put", "greeting", "from alpha"]);
    assert!(put.status.success(), "{}", said(&put));
    let got = etcdctl(&sites[2], addresses[2], &["get", "greeting", "--print-value-only"]);
    assert_eq!(text(&got.stdout), "from alpha\n", "{}", said(&got));
}
