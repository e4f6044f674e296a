//! Networks of several drivers on one host: the agent makes them, and a runtime's plugins use them.
//!
//! One driver has our plugins; the other has Debian's, `bridge` and `host-local`. The runtime here runs the lists that the agent wrote,
//! plugin by plugin, as libcni does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use underpass::sys::netlink::Netlink;
use underpass::sys::netns::Namespace;

use crate::lab::agent::{Agent, AgentConfig};
use crate::lab::command::{said, text};
use crate::lab::site::netns_path;
use crate::lab::{Host, Lab};

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A container of a runtime.
struct Container {
    id: &'static str,
    namespace: Namespace,
}

impl Container {
    fn new(id: &'static str) -> Self {
        Self { id, namespace: Namespace::create().expect("the integration tests need root") }
    }

    /// Whether a ping to this address is answered.
    fn reaches(&self, address: &str) -> bool {
        let mut command = Command::new("/bin/ping");
        command.args(["-c", "1", "-W", "2", address]).stdout(Stdio::null()).stderr(Stdio::null());
        self.namespace.spawn(command).expect("ping").wait().expect("its end").success()
    }

    fn addresses(&self) -> Vec<String> {
        let look = || Netlink::open().unwrap().addresses().unwrap();
        let addresses = self.namespace.run(look).unwrap();
        addresses.iter().filter(|it| it.address.addr().is_ipv4()).map(|it| it.address.to_string()).collect()
    }
}

/// A host with an agent, and a runtime that reads what the agent writes.
struct Site {
    agent: Agent,
    host: Host,
    folder: TempDir,
    _lab: Lab,
}

impl Site {
    fn new(drivers: &dyn Fn(&Path) -> String) -> Self {
        let lab = Lab::direct();
        lab.alpha.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        let folder = tempfile::tempdir().expect("a folder");
        let host = lab.alpha.clone();
        let mut config = AgentConfig::new(&host, &[]);
        config.blocks += ", 10.43.1.0/24";
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (conf_dir, bin_dir, cache_dir) = (path("cni/net.d"), path("bin"), path("cache"));
        config.more = format!(
            "cni: {{conf_dir: {conf_dir}, bin_dir: {bin_dir}, cache_dir: {cache_dir}}}\ndrivers:\n{}",
            drivers(folder.path())
        );
        let agent = Agent::running(&host, &config);
        Self { agent, host, folder, _lab: lab }
    }

    fn list(&self, network: &str) -> PathBuf {
        self.folder.path().join(format!("cni/net.d/10-underpass-{network}.conflist"))
    }

    /// What libcni notes of an attachment.
    fn note(&self, network: &str, container: &Container) -> PathBuf {
        let folder = self.folder.path().join("cache/results");
        fs::create_dir_all(&folder).expect("a folder");
        folder.join(format!("{network}-{}-eth0", container.id))
    }

    /// Connects a container by the list of a network; its address.
    fn add(&self, network: &str, container: &Container) -> String {
        let list: Value = serde_json::from_slice(&fs::read(self.list(network)).expect("the agent's list")).expect("JSON");
        let mut result = Value::Null;
        for plugin in list["plugins"].as_array().expect("plugins") {
            result = self.call("ADD", &list, plugin, &result, container);
        }
        let note = json!({
            "kind": "cniCacheV1", "containerId": container.id, "ifName": "eth0", "networkName": list["name"],
            "config": list, "result": result,
        });
        fs::write(self.note(network, container), note.to_string()).expect("a note");
        let address = result["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("no address in {result}"));
        address.split('/').next().unwrap().to_owned()
    }

    /// Disconnects it by what was noted, as the list may be gone.
    fn del(&self, network: &str, container: &Container) {
        let note = self.note(network, container);
        let noted: Value = serde_json::from_slice(&fs::read(&note).expect("a note")).expect("JSON");
        for plugin in noted["config"]["plugins"].as_array().expect("plugins").iter().rev() {
            self.call("DEL", &noted["config"], plugin, &noted["result"], container);
        }
        fs::remove_file(note).expect("the note");
    }

    fn call(&self, command: &str, list: &Value, plugin: &Value, previous: &Value, container: &Container) -> Value {
        let mut netconf = plugin.clone();
        let members = netconf.as_object_mut().expect("an object");
        members.remove("capabilities");
        // The documents' example logs to where a test has no business.
        if let Some(log) = members.get_mut("ipam").and_then(|ipam| ipam.get_mut("logToFile")) {
            *log = json!(self.folder.path().join("ipam.log"));
        }
        members.insert("name".to_owned(), list["name"].clone());
        members.insert("cniVersion".to_owned(), list["cniVersion"].clone());
        if !previous.is_null() {
            members.insert("prevResult".to_owned(), previous.clone());
        }
        let stdin = self.folder.path().join("netconf");
        fs::write(&stdin, netconf.to_string()).expect("a file");
        let bin = self.folder.path().join("bin").display().to_string();
        let name = plugin["type"].as_str().expect("a type");
        let folders = [bin.as_str(), REFERENCE];
        let program = folders.iter().map(|folder| Path::new(folder).join(name)).find(|program| program.exists());
        let program = program.unwrap_or_else(|| panic!("no plugin {name}: tests/run installs them"));
        let script = format!("{} < {}", program.display(), stdin.display());
        let (netns, path) = (netns_path(&container.namespace), format!("CNI_PATH={bin}:{REFERENCE}"));
        let (command, id, netns) =
            (format!("CNI_COMMAND={command}"), format!("CNI_CONTAINERID={}", container.id), format!("CNI_NETNS={netns}"));
        let output = self.host.attempt(&["env", &command, &id, &netns, "CNI_IFNAME=eth0", &path, "sh", "-c", &script]);
        assert!(output.status.success(), "{command} {name}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Bridges of our plugins, tables of the fence, and routes that make networks unreachable.
    fn left(&self) -> [String; 3] {
        let lines = |words: &[&str], part: &str| {
            let shown = self.host.run(words);
            shown.lines().filter(|line| line.contains(part)).collect::<Vec<_>>().join("; ")
        };
        [
            lines(&["ip", "-o", "link", "show", "type", "bridge"], "up-ours"),
            lines(&["nft", "list", "tables"], "underpass-net"),
            lines(&["ip", "route", "show", "type", "unreachable"], "4294967294"),
        ]
    }

    fn net(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.agent.control(&[&["net"], arguments].concat());
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Name, state and number of containers of each network.
    fn networks(&self) -> Vec<String> {
        let output = self.agent.control(&["net", "ls", "--json"]);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let networks = value["networks"].as_array().expect("networks").iter();
        networks.map(|it| format!("{} {} {}", it["name"], it["state"], it["containers"]).replace('"', "")).collect()
    }
}

fn drivers(folder: &Path) -> String {
    format!(
        "  - name: Ours
    default_network: {{name: ours, subnets: [{{network_address: 10.42.0.0/16}}], dns: [192.0.2.53]}}
    cni_config:
      10-ours.conf: {{type: rancher-bridge, bridge: up-ours, isDefaultGateway: true, ipam: {{type: rancher-cni-ipam}}}}
  - name: Plain
    default_network: {{name: plain, host_ports: false}}
    cni_config:
      10-plain.conf:
        type: bridge
        bridge: up-plain
        isDefaultGateway: true
        ipMasq: true
        ipam: {{type: host-local, subnet: 10.88.0.0/24, dataDir: {}}}
      20-tune.conf: {{type: tuning, mtu: 1400}}
  - name: Theirs
    default_network: {{name: theirs, subnets: [{{network_address: 10.43.0.0/16}}]}}
    cni_config:
      10-theirs.conf: {{type: bridge, bridge: up-theirs, isDefaultGateway: true, ipMasq: true, ipam: {{type: rancher-cni-ipam}}}}
",
        folder.join("host-local").display()
    )
}

#[test]
fn two_drivers_side_by_side_and_one_removed_under_its_containers() {
    let site = Site::new(&drivers);
    assert_eq!(site.networks(), ["ours active 0", "plain active 0", "theirs active 0"]);
    let [c1, c2, c3, c4] = ["c1", "c2", "c3", "c4"].map(Container::new);
    let (first, second) = (site.add("managed", &c1), site.add("ours", &c2));
    let (third, fourth) = (site.add("plain", &c3), site.add("plain", &c4));
    assert_eq!(
        (first.as_str(), second.as_str()),
        ("10.42.1.2", "10.42.1.3"),
        "out of this host's block, past its own address"
    );
    assert_eq!((third.as_str(), fourth.as_str()), ("10.88.0.2", "10.88.0.3"));
    assert!(c1.addresses().contains(&"10.42.1.2/16".to_owned()), "a flat network: {:?}", c1.addresses());
    assert!(c1.reaches(&second) && c2.reaches(&first), "on ours");
    assert!(c3.reaches(&fourth) && c4.reaches(&third), "on plain");
    let mtu =
        |container: &Container| container.namespace.run(|| Netlink::open().unwrap().link("eth0").unwrap().mtu).unwrap();
    assert_eq!(mtu(&c3), 1400, "the second file of plain ran");
    let noted: Value = serde_json::from_slice(&fs::read(site.note("managed", &c1)).unwrap()).unwrap();
    assert_eq!(noted["result"]["dns"]["nameservers"], json!(["192.0.2.53"]), "the driver's name server");
    assert_eq!(site.networks(), ["ours active 2", "plain active 2", "theirs active 0"]);
    // The other host of the laboratory is the outside.
    assert!(c3.reaches("10.9.0.2") && c4.reaches("10.9.0.2"), "plain by Debian's masquerade");
    // Our addresses behind Debian's plugin: the guard knows the bridge by the driver.
    let [c5, c6] = ["c5", "c6"].map(Container::new);
    let (fifth, sixth) = (site.add("theirs", &c5), site.add("theirs", &c6));
    assert!(fifth.starts_with("10.43.1.") && c5.reaches(&sixth) && c6.reaches(&fifth), "on theirs: {fifth} {sixth}");
    assert!(c5.reaches("10.43.0.1") && c5.reaches("10.9.0.2"), "the gateway and the outside");
    for container in [&c5, &c6] {
        site.del("theirs", container);
    }

    assert!(c3.reaches("10.88.0.1"));
    let (code, said) = site.net(&["rm", "plain"]);
    assert_eq!(code, Some(1));
    let who = "network plain is in use by 2 containers: c3 (eth0 10.88.0.2), c4 (eth0 10.88.0.3): stop them";
    assert!(said.contains(who), "{said}");
    site.del("plain", &c4);
    assert_eq!(site.networks(), ["ours active 2", "plain active 1", "theirs active 0"]);
    let (code, said) = site.net(&["rm", "plain", "--force"]);
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "network plain is removed; disconnected 1 container: c3 (eth0 10.88.0.2)\n")
    );
    assert!(!site.list("plain").exists() && site.list("ours").exists());
    let status = site.agent.control(&["status"]);
    assert_eq!(status.status.code(), Some(3), "{}", text(&status.stdout));
    let line = "  c3 (eth0)  10.88.0.2  network plain was removed by force";
    assert!(text(&status.stdout).contains(line), "{}", text(&status.stdout));
    let lost = &site.agent.status()["disconnected"];
    assert_eq!(
        (&lost[0]["container"], &lost[0]["network"], lost.as_array().unwrap().len()),
        (&json!("c3"), &json!("plain"), 1)
    );
    assert!(c1.reaches(&second), "the other network goes on");
    assert!(!c3.reaches("10.88.0.1"), "what is shown as disconnected is");
    site.del("plain", &c3);
    assert_eq!(site.agent.status()["disconnected"], json!([]));
    assert_eq!(site.agent.control(&["status"]).status.code(), Some(0));

    for (network, container) in [("managed", &c1), ("ours", &c2)] {
        site.del(network, container);
    }
    assert_eq!(site.networks()[0], "ours active 0");
    assert_eq!(site.net(&["rm", "theirs"]).0, Some(0));
    let (code, said) = site.net(&["rm", "ours"]);
    assert_eq!((code, said.as_str()), (Some(0), "network ours is removed\n"));
    assert!(!site.list("managed").exists(), "no default network is left");
    assert_eq!(site.left(), NOTHING);
}

/// What is there of our networks' bridges, fence and routes.
const NOTHING: [&str; 3] = [""; 3];

/// A network is taken away under its last container: nothing of it is left when that has ended.
#[test]
fn a_network_that_was_removed_by_force_leaves_nothing_behind_its_last_container() {
    let site = Site::new(&drivers);
    let c1 = Container::new("c1");
    site.add("ours", &c1);
    assert!(c1.reaches("10.42.0.1"), "the gateway");
    assert_eq!(site.net(&["rm", "theirs"]).0, Some(0));
    let (code, said) = site.net(&["rm", "ours", "--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(site.left()[0].contains("up-ours"), "below its container it stays: {:?}", site.left());
    site.del("ours", &c1);
    crate::lab::wait_for("nothing to be left", std::time::Duration::from_secs(90), || {
        (site.left() == NOTHING).then_some(())
    });
    assert_eq!(site.agent.status()["disconnected"], json!([]));
}

/// The example of the documents that describe the original network, unchanged, in the agent's hands.
#[test]
fn the_documents_example_connects_containers() {
    let site = Site::new(&|folder| {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/src/network/testdata/rancher-ipsec.yml");
        fs::copy(example, folder.join("rancher-compose.yml")).expect("a copy");
        format!("  - {}\n", folder.join("rancher-compose.yml").display())
    });
    assert_eq!(site.networks(), ["ipsec active 0"]);
    let [c1, c2] = ["c1", "c2"].map(Container::new);
    let (first, second) = (site.add("managed", &c1), site.add("ipsec", &c2));
    assert_eq!((first.as_str(), second.as_str()), ("10.42.1.2", "10.42.1.3"));
    assert!(c1.reaches(&second) && c2.reaches(&first), "each other");
    assert!(c1.reaches("10.42.0.1"), "every host's gateway");
    assert_eq!(site.networks(), ["ipsec active 2"]);
    site.del("managed", &c1);
    site.del("ipsec", &c2);
    assert_eq!(site.net(&["rm", "managed"]), (Some(0), "network ipsec is removed\n".to_owned()));
    let state = site.agent.status();
    assert_eq!((&state["networks"][0]["state"], &state["disconnected"]), (&json!("removed"), &json!([])));
    assert_eq!(site.net(&["create", "ipsec"]), (Some(0), "network ipsec is active\n".to_owned()));
    assert_eq!(site.add("managed", &c1), "10.42.1.4");
    site.del("managed", &c1);
}

/// What an agent wrote is there when it is gone, and taken up by the next one.
#[test]
fn networks_outlive_their_agent() {
    let mut site = Site::new(&drivers);
    let c1 = Container::new("c1");
    site.agent.kill();
    assert_eq!(site.add("managed", &c1), "10.42.1.2");
    assert_eq!(site.networks(), ["ours active 1", "plain active 0", "theirs active 0"], "commands need no agent");
    site.agent.start();
    assert_eq!(site.networks(), ["ours active 1", "plain active 0", "theirs active 0"]);
    let created = |site: &Site| site.agent.control(&["net", "show", "ours", "--json"]).stdout;
    let before = created(&site);
    site.agent.signal("HUP");
    let reread = || site.agent.log().contains("read the configuration again").then_some(());
    crate::lab::wait_for("the reload", std::time::Duration::from_secs(10), reread);
    assert_eq!(created(&site), before, "the network was made once");
    site.del("managed", &c1);
}
