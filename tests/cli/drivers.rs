//! Network drivers: from a compose file to what container runtimes read, and the commands for networks.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::agent::{CONFIG, Host, wait_for};
use super::network::{EXAMPLE, plugin_with};
use super::{folder, parsed, program, run};

/// What the agent's configuration has besides peers: folders of the test's own.
const CNI: &str = "cni: {conf_dir: cni/net.d, bin_dir: bin, cache_dir: cache}\n";

/// The example under another name, with another subnet and bridge.
fn blue() -> String {
    EXAMPLE.replace("name: ipsec", "name: blue").replace("10.42.", "10.50.").replace("docker0", "br-blue")
}

fn squeezed(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn config_check_covers_drivers() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let base = "host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\n";
    write("r.yml", EXAMPLE);
    write("u.yaml", &format!("{base}drivers: [r.yml]\n"));
    let seen = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(
        (seen.code, seen.out.as_str()),
        (
            0,
            "\
r.yml:21: warning: ipsec.network_driver.cni_config.10-rancher.conf.hairpinMode\\\": malformed key; did you mean \
             \"hairpinMode\"? (it is ignored)
u.yaml: fine: host alpha, 0 peers, drivers from 1 place, 1 warning
"
        )
    );
    assert_eq!(run(folder.path(), &["config", "check", "--strict", "u.yaml"]).code, 5);
    let value = parsed(&run(folder.path(), &["config", "check", "--json", "u.yaml"]).out);
    assert_eq!((&value["messages"][0]["file"], &value["messages"][0]["line"]), (&json!("r.yml"), &json!(21)));

    write("b.yml", &EXAMPLE.replace("name: ipsec", "name: blue").replace("'10.42.0.0/16'", "'10.42.128.0/17'"));
    write("net.yml", &blue().replace("name: blue", "name: net").replace("bridge: br-blue", "bridge: a/b"));
    let more = "drivers: [r.yml, b.yml, net.yml, gone.yml, 'r.yml']
cni: {conf_dir: /etc/cni/net.d}
";
    write("u.yaml", &format!("{base}{more}"));
    let seen = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(seen.code, 5);
    for message in [
        "u.yaml:3: drivers[3]: expected a readable compose file, got gone.yml: No such file or directory (os error 2)\n",
        "b.yml:3: default_network.subnets: 10.42.128.0/17 of network blue overlaps 10.42.0.0/16 of network ipsec (r.yml:3): on \
         one host they cannot be told apart\n",
        "net.yml:18: ipsec.network_driver.cni_config.10-rancher.conf.bridge: expected an interface name",
    ] {
        assert!(seen.out.contains(message), "{message}: {}", seen.out);
    }
    write("net.yml", &blue().replace("name: blue", "name: net"));
    let inline = "drivers:
  - net.yml
  - name: one
    default_network: {name: one, subnets: [{network_address: 10.60.0.0/16}]}
    cni_config: {a.conf: {type: bridge}}
  - two:
      network_driver:
        name: two
        default_network: {name: one}
        cni_config: {a.conf: {type: bridge}}
  - nmae: three
";
    write("u.yaml", &format!("{base}{inline}"));
    let seen = run(folder.path(), &["config", "check", "u.yaml"]);
    let lines: Vec<&str> = seen.out.lines().filter(|line| !line.contains("warning")).collect();
    assert_eq!(
        lines,
        [
            "u.yaml:9: default_network.name: a network called one comes with the driver at u.yaml:5 already",
            "u.yaml:13: drivers[3].name: expected a name for the driver; it is missing",
            "net.yml:3: default_network.name: the network's own folder would be net.d, which is the last part of cni.conf_dir",
        ],
        "{}",
        seen.out
    );
}

/// Every example of the manual of networks is a part of a configuration that can be used.
#[test]
fn the_manual_of_networks_can_be_used() {
    let manual = include_str!("../../docs/networks.md");
    let folder = folder();
    let mut examples = 0;
    for part in manual.split("```yaml\n").skip(1) {
        let example = part.split("```").next().unwrap().replace("/etc/underpass/rancher-compose.yml", "blue.yml");
        fs::write(folder.path().join("blue.yml"), blue()).unwrap();
        let text = format!("host: {{name: alpha}}\noverlay: {{blocks: [10.42.1.0/24]}}\n{example}");
        fs::write(folder.path().join("u.yaml"), text).unwrap();
        let seen = run(folder.path(), &["config", "check", "u.yaml"]);
        assert_eq!(seen.code, 0, "{example}{}", seen.out);
        examples += 1;
    }
    assert_eq!(examples, 2);
}

const CONVERTED: &str = "\
# The network drivers of r.yml, for the agent's configuration.
# Not taken over:
#   r.yml:21: ipsec.network_driver.cni_config.10-rancher.conf.hairpinMode\\\": malformed key; did you mean \"hairpinMode\"? (it is ignored)
#   r.yml:28: web: no network driver: the agent runs no services, and has no volumes or other networks
# Still to be said: host, overlay (which addresses of the subnets this host owns) and peers.
drivers:
  - name: Rancher IPsec
    default_network:
      name: ipsec
      host_ports: true
      subnets:
        - network_address: \"10.42.0.0/16\"
      dns:
        - \"169.254.169.250\"
      dns_search:
        - rancher.internal
    cni_config:
      \"10-rancher.conf\":
        name: rancher-cni-network
        type: rancher-bridge
        bridge: docker0
        bridgeSubnet: \"10.42.0.0/16\"
        isDefaultGateway: true
        hostNat: true
        hairpinMode: true
        linkMTUOverhead: 98
        ipam:
          type: rancher-cni-ipam
          logToFile: \"/var/log/rancher-ipam.log\"
";

#[test]
fn compose_files_are_converted() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let web = "web: {image: nginx}\n";
    write("r.yml", &format!("{}\n{web}", EXAMPLE.trim_end()));
    let seen = run(folder.path(), &["config", "convert", "r.yml"]);
    assert_eq!((seen.code, seen.out.as_str(), seen.err.as_str()), (0, CONVERTED, ""));
    let value = parsed(&run(folder.path(), &["config", "convert", "--json", "r.yml"]).out);
    assert_eq!(value["schema"], "underpass.config-convert/1");
    assert_eq!((&value["not_taken"][1]["line"], &value["not_taken"][1]["key"]), (&json!(28), &json!("web")));
    assert_eq!(value["configuration"]["drivers"][0]["default_network"]["name"], "ipsec");

    // What it prints means what the file means: converted once more it is the same.
    let again = |text: &str| {
        write("again.yml", &text.replace("drivers:\n  - ", "s:\n  network_driver:\n    "));
        let seen = run(folder.path(), &["config", "convert", "again.yml"]);
        assert_eq!(seen.code, 0, "{text}{}", seen.err);
        seen.out.split_once("drivers:\n").unwrap().1.to_owned()
    };
    assert_eq!(again(CONVERTED), CONVERTED.split_once("drivers:\n").unwrap().1);
    let hard = "s:
  network_driver:
    name: 'a: b # c $$x'
    description: 'yes'
    default_network:
      name: n
      metadata: {empty: {}, none: ~, list: [1, [2, 'x y'], {a: 'true', b: true}], 'odd key': '1.5', price: 1.5}
      subnets: [{network_address: 10.9.0.0/24, gateway: 10.9.0.9, start_address: 10.9.0.20}]
    cni_config: {a.conf: {type: other, list: [{x: 1, y: [a, {z: '#'}]}, []], text: \"a\\nb\"}}
    network_metadata: {k: v}
version: '2'
";
    write("hard.yml", hard);
    let first = run(folder.path(), &["config", "convert", "hard.yml"]);
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(first.out.contains("#   hard.yml:11: version: the format of the file"), "{}", first.out);
    let drivers = |name: &str| parsed(&run(folder.path(), &["config", "check", "--json", name]).out)["drivers"].clone();
    again(&first.out);
    let (mut one, mut other) = (drivers("hard.yml"), drivers("again.yml"));
    for value in [&mut one, &mut other] {
        value[0]["line"] = Value::Null;
    }
    assert_eq!(one, other, "{}", first.out);

    write("bad.yml", &EXAMPLE.replace("type: rancher-bridge", "type: ../sh"));
    let seen = run(folder.path(), &["config", "convert", "bad.yml"]);
    assert_eq!((seen.code, seen.out.as_str()), (5, ""));
    assert!(seen.err.contains("bad.yml:17: "), "{}", seen.err);
    assert_eq!(run(folder.path(), &["config", "convert", "gone.yml"]).code, 8);
}

#[test]
fn setup_says_what_it_writes_and_writes_it_once() {
    let folder = folder();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let base = "host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\ndrivers: [r.yml]\n";
    write("r.yml", EXAMPLE);
    write("u.yaml", &format!("{base}{CNI}"));
    let setup = |runtime: &str, more: &[&str]| {
        run(folder.path(), &[&["setup", runtime, "--config", "u.yaml", "--root", "root"], more].concat())
    };
    let bin = folder.path().join("bin").display().to_string();
    let program = program();
    let links = ["rancher-bridge", "underpass-cni", "rancher-cni-ipam"].map(|name| format!("root{bin}/{name}"));
    let expected = |did: [&str; 2], target: &str, outcome: &str| {
        let links: String = links.iter().map(|link| format!("{} {link}{target}\n", did[1])).collect();
        format!(
            "{} root/etc/containers/containers.conf.d/50-underpass.conf\n{links}{outcome}\n\
             note: podman run --network managed … (or a network's own name)\n\
             note: networks that podman keeps for netavark are not seen with network_backend cni\n\
             note: the agent writes the networks into {}/cni/net.d when it starts; there is none yet\n",
            did[0],
            folder.path().display()
        )
    };
    let target = format!(" -> {program}");
    let seen = setup("podman", &["--dry-run"]);
    let dry = expected(["would write", "would link"], &target, "a dry run: nothing was changed");
    assert_eq!((seen.code, seen.out), (0, dry));
    assert!(!folder.path().join("root").exists() && !folder.path().join("bin").exists(), "nothing was written");
    let seen = setup("podman", &[]);
    assert_eq!((seen.code, seen.out), (0, expected(["wrote", "linked"], &target, "podman is set up")));
    assert!(!folder.path().join("bin").exists(), "everything is below the root");
    let conf = folder.path().join("root/etc/containers/containers.conf.d/50-underpass.conf");
    assert_eq!(
        fs::read_to_string(&conf).unwrap(),
        format!(
            "# Written by `underpass setup`; what is changed here is lost when it runs again.\n[network]\n\
             network_backend = \"cni\"\ncni_plugin_dirs = [\"{bin}\",\"/usr/lib/cni\",\"/usr/libexec/cni\",\"/opt/cni/bin\"]\n\
             network_config_dir = \"{}\"\n",
            folder.path().join("cni/net.d").display()
        )
    );
    assert_eq!(fs::read_link(folder.path().join(&links[0])).unwrap(), Path::new(program));
    let seen = setup("podman", &[]);
    let again = expected(["fine already:", "fine already:"], "", "podman is set up already: nothing to do");
    assert_eq!((seen.code, seen.out), (0, again));
    let seen = setup("podman", &["--dry-run"]);
    assert!(seen.out.contains("podman is set up already: nothing to do\n"), "{}", seen.out);
    // One link of somebody else's is in the way of that one, and of no other.
    let link = folder.path().join(&links[1]);
    fs::remove_file(&link).unwrap();
    fs::write(&link, "theirs").unwrap();
    let seen = setup("podman", &[]);
    assert_eq!((seen.code, fs::read_to_string(&link).unwrap().as_str()), (1, "theirs"));
    assert!(seen.err.contains("underpass-cni: not made by underpass (another program)"), "{}", seen.err);
    assert!(!seen.out.contains("set up"), "{}", seen.out);
    fs::remove_file(&link).unwrap();
    assert_eq!(setup("podman", &[]).code, 0);
    let value = parsed(&setup("podman", &["--json"]).out);
    assert_eq!((&value["schema"], &value["steps"][0]["changed"]), (&json!("underpass.setup/1"), &json!(false)));
    fs::write(&conf, "[network]\n").unwrap();
    let seen = setup("podman", &[]);
    assert_eq!(seen.code, 1);
    assert!(seen.err.contains("not made by underpass (it was written by somebody else): move it away"), "{}", seen.err);
    assert_eq!(fs::read_to_string(&conf).unwrap(), "[network]\n");

    let seen = setup("docker", &[]);
    assert_eq!((seen.code, seen.out.as_str()), (5, ""));
    assert!(
        seen.err.contains("u.yaml: the agent watches no Docker: add `docker: {socket: /var/run/docker.sock}`"),
        "{}",
        seen.err
    );
    write("u.yaml", &format!("{base}{CNI}docker: {{socket: /var/run/docker.sock}}\n"));
    for (daemon, is_elsewhere) in [("tcp://127.0.0.1:1", true), ("unix:///run/docker.sock", false), ("fd://", false)] {
        write("root/etc/docker/daemon.json", &json!({"hosts": [daemon]}).to_string());
        let note = "Docker listens at tcp://127.0.0.1:1, and docker.socket is /var/run/docker.sock\n";
        let seen = setup("docker", &["--dry-run"]);
        assert_eq!((seen.code, seen.out.contains(note)), (0, is_elsewhere), "{}{}", seen.out, seen.err);
        assert!(!seen.out.contains("no driver brings"), "{}", seen.out);
    }
    let seen = setup("docker", &[]);
    assert_eq!(seen.code, 0, "{}", seen.err);
    assert!(seen.out.starts_with("wrote root/etc/systemd/system/docker.service.d/50-underpass.conf\n"), "{}", seen.out);
    write("root/etc/docker/daemon.json", r#"{"default-address-pools": [{"base": "10.42.0.0/14", "size": 24}]}"#);
    let seen = setup("docker", &[]);
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("default-address-pools 10.42.0.0/14 overlaps 10.42.0.0/16 of network ipsec"), "{}", seen.err);

    let seen = setup("containerd", &[]);
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("containerd reads /etc/cni/net.d, and networks are in "), "{}", seen.err);
    let conf_dir = folder.path().join("cni/net.d");
    write(
        "root/etc/containerd/config.toml",
        &format!("[x]\n  bin_dir = \"{bin}\"\n  conf_dir = '{}'\n", conf_dir.display()),
    );
    let seen = setup("containerd", &[]);
    assert_eq!(seen.code, 0, "{}", seen.err);
    assert_eq!(squeezed(&seen.out)[3], format!("linked root/opt/cni/bin/rancher-bridge -> {program}"), "{}", seen.out);
    assert!(fs::read_link(folder.path().join("root/opt/cni/bin/rancher-cni-ipam")).is_ok());

    assert_eq!(setup("podman", &["--config", "gone.yaml"]).code, 2, "given twice");
    let seen = run(folder.path(), &["setup", "podman", "--config", "gone.yaml"]);
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("it is the agent's configuration; --config names another file"), "{}", seen.err);
}

/// An agent's networks, shown, changed under a container, refused to go, and gone by force.
#[test]
fn networks_live_with_their_agent() {
    let config = |drivers: &str| format!("{CONFIG}{CNI}drivers: [{drivers}]\n");
    let host = Host::new(&config("r.yml"));
    let folder = host.path("");
    fs::write(host.path("r.yml"), EXAMPLE).unwrap();
    let net = |arguments: &[&str]| run(&folder, &[&["net"], arguments].concat());
    let seen = net(&["ls"]);
    assert_eq!((seen.code, seen.out.as_str()), (0, "no networks: no driver has brought one\n"));
    let seen = net(&["create", "blue", "--subnet", "10.50.0.0/16"]);
    assert_eq!(seen.code, 4, "{}", seen.err);
    let agent = host.start();
    agent.expect_log("driver Rancher IPsec brings network ipsec");
    agent.expect_log("alpha runs with 2 peers");
    let status = host.status();
    assert_eq!(
        status["networks"],
        json!([{
            "name": "ipsec", "managed": true, "driver": "Rancher IPsec", "state": "active", "subnets": ["10.42.0.0/16"],
            "problem": null
        }])
    );
    let place = fs::read_link(host.path("bin/rancher-cni-ipam")).unwrap();
    assert_eq!(place, Path::new(program()));
    let list = parsed(&fs::read_to_string(host.path("cni/net.d/10-underpass-managed.conflist")).unwrap());
    assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&json!("managed"), &json!("rancher-bridge")));
    assert_eq!(fs::read_link(host.path("cni/managed.d")).unwrap(), Path::new("ipsec.d"));

    fs::write(host.path("living"), "").unwrap();
    let living = host.path("living");
    assert_eq!(plugin_with(&folder, "ADD", "c1", living.to_str().unwrap(), &[]).code, 0);
    let seen = net(&["ls"]);
    assert_eq!(
        (seen.code, squeezed(&seen.out)),
        (
            0,
            vec![
                "NETWORK STATE SUBNETS HOST PORTS CONTAINERS DRIVER".to_owned(),
                "ipsec (managed) active 10.42.0.0/16 yes 1 Rancher IPsec".to_owned()
            ]
        )
    );
    let seen = net(&["show", "managed"]);
    assert_eq!(
        seen.out,
        "\
ipsec
  state             active
  managed           yes
  driver            Rancher IPsec
  subnets           10.42.0.0/16 (gateway 10.42.0.1, 10.42.0.2 to 10.42.255.250)
  name servers      169.254.169.250
  searched domains  rancher.internal
  host ports        yes
  plugins           rancher-bridge, rancher-cni-ipam
  addresses         ipam ls managed
  containers        c1 (eth0 10.42.1.2)
"
    );
    let value = parsed(&net(&["show", "ipsec", "--json"]).out);
    assert_eq!((&value["schema"], &value["containers"][0]["container"]), (&json!("underpass.network/1"), &json!("c1")));
    let seen = net(&["show", "blue"]);
    assert_eq!((seen.code, seen.err.as_str()), (8, "underpass: no network is called \"blue\"; there are ipsec\n"));

    // The driver changes: what can be changed is, under the container.
    let changed = EXAMPLE.replace("host_ports: true", "host_ports: false").replace("docker0", "br9");
    fs::write(host.path("r.yml"), &changed).unwrap();
    agent.signal(Signal::HUP);
    agent.expect_log("network ipsec: changed: default_network.host_ports");
    agent.expect_log("network ipsec: cni_config.10-rancher.conf.bridge cannot be changed while containers use it");
    let warned = || host.status()["warnings"].to_string().contains("stop 1 container: c1 (eth0 10.42.1.2)").then_some(());
    wait_for("the warning in the status", warned);
    let value = parsed(&net(&["show", "ipsec", "--json"]).out);
    assert_eq!(
        (&value["host_ports"], &value["cni_config"]["10-rancher.conf"]["bridge"]),
        (&json!(false), &json!("docker0"))
    );
    // The driver is taken out.
    host.configure(&config(""));
    agent.signal(Signal::HUP);
    agent.expect_log("its driver is not configured any more, but it is in use by 1 container: c1");
    assert_eq!(host.status()["networks"][0]["state"], "active");

    let seen = net(&["rm", "ipsec"]);
    assert_eq!(seen.code, 1);
    assert_eq!(
        seen.err,
        "underpass: network ipsec is in use by 1 container: c1 (eth0 10.42.1.2): stop them, or remove it by --force, which \
         disconnects them\n"
    );
    let seen = net(&["rm", "ipsec", "--force"]);
    assert_eq!(
        (seen.code, seen.out.as_str(), seen.err.as_str()),
        (
            0,
            "network ipsec is removed; disconnected 1 container: c1 (eth0 10.42.1.2)\n",
            "underpass: bridge docker0 is not for network ipsec alone: its containers keep their links\n"
        )
    );
    assert!(!host.path("cni/net.d/10-underpass-ipsec.conflist").exists());
    let seen = run(&folder, &["status"]);
    assert_eq!(seen.code, 3);
    assert!(
        seen.out.contains("disconnected containers\n  c1 (eth0)  10.42.1.2  network ipsec was removed by force"),
        "{}",
        seen.out
    );
    assert_eq!(host.status()["disconnected"][0]["container"], "c1");
    let refused = plugin_with(&folder, "ADD", "c2", living.to_str().unwrap(), &[]);
    assert!(refused.out.contains("this host has no block of it"), "{}", refused.out);
    assert_eq!(plugin_with(&folder, "DEL", "c1", "", &[]).code, 0);
    assert_eq!(host.status()["disconnected"], json!([]));

    // By hand, where nobody else is.
    let seen = net(&["create", "blue", "--subnet", "10.42.0.0/20"]);
    assert_eq!((seen.code, seen.out.as_str()), (0, "network blue is active\n"), "{}", seen.err);
    let seen = net(&["create", "red", "--subnet", "10.42.8.0/24", "--json"]);
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("10.42.8.0/24 of network red overlaps 10.42.0.0/20 of network blue"), "{}", seen.err);
    assert_eq!(net(&["create", "blue", "--subnet", "10.60.0.0/16"]).code, 1);
    assert_eq!(net(&["create", "managed", "--subnet", "10.60.0.0/16"]).code, 2);
    assert_eq!(net(&["create", "red", "--subnet", "10.60.0.1/16"]).code, 2);
    assert_eq!(net(&["create", "red"]).code, 8);
    let value = parsed(&net(&["rm", "blue", "--json"]).out);
    assert_eq!(value, json!({"schema": "underpass.network-removed/1", "network": "blue", "disconnected": []}));
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().0, Some(0));
}
