//! The network's commands: compose files, and addresses that this host gave out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::agent::{CONFIG, Host};
use super::{Seen, folder, parsed, program, run, seen};

/// The example of the documents that describe the original network, as it was published.
pub(super) const EXAMPLE: &str = include_str!("../../src/network/testdata/rancher-ipsec.yml");

#[test]
fn config_check_reads_compose_files() {
    let folder = folder();
    fs::write(folder.path().join("rancher-compose.yml"), EXAMPLE).unwrap();
    let warning = "\
rancher-compose.yml:21: warning: ipsec.network_driver.cni_config.10-rancher.conf.hairpinMode\\\": malformed key; did you mean \
         \"hairpinMode\"? (it is ignored)
";
    let seen = run(folder.path(), &["config", "check", "rancher-compose.yml"]);
    let verdict = "rancher-compose.yml: fine: driver \"Rancher IPsec\", network ipsec 10.42.0.0/16, 1 CNI file, 1 warning\n";
    assert_eq!((seen.code, seen.out, seen.err.as_str()), (0, format!("{warning}{verdict}"), ""));
    let seen = run(folder.path(), &["config", "check", "--strict", "rancher-compose.yml"]);
    let verdict = "rancher-compose.yml: cannot be used: 1 error\n";
    assert_eq!((seen.code, seen.out), (5, format!("{}{verdict}", warning.replace(" warning:", ""))));
    let seen = run(folder.path(), &["config", "check", "rancher-compose.yml", "--json"]);
    let value = parsed(&seen.out);
    assert_eq!((seen.code, &value["schema"], &value["usable"]), (0, &json!("underpass.config-check/1"), &json!(true)));
    assert_eq!(value["messages"][0]["line"], 21);
    let driver = &value["drivers"][0];
    assert_eq!((&driver["service"], &driver["default_network"]["name"]), (&json!("ipsec"), &json!("ipsec")));
    assert_eq!(driver["default_network"]["subnets"][0]["gateway"], "10.42.0.1");
    assert_eq!(driver["cni_config"][0]["netconf"]["linkMTUOverhead"], 98);

    fs::write(folder.path().join("net.yml"), EXAMPLE.replace("'10.42.0.0/16'", "${SUBNET}")).unwrap();
    let check = |subnet: &str| {
        super::seen(
            super::underpass(folder.path()).args(["config", "check", "net.yml"]).env("SUBNET", subnet).output().unwrap(),
        )
    };
    assert!(check("10.9.0.0/16").out.contains("network ipsec 10.9.0.0/16, "), "{}", check("10.9.0.0/16").out);
    assert_eq!(check("10.9.0.0").code, 5);
}

#[test]
fn strict_is_for_configurations_as_well() {
    let folder = folder();
    let text = "host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\npeers:\n  - {name: b, address: '192.0.2.2:500', psk: \
        0123456789abcdef0123456789abcdef, remote_blocks: [10.42.2.0/24]}\n";
    fs::write(folder.path().join("u.yaml"), text).unwrap();
    assert_eq!(run(folder.path(), &["config", "check", "u.yaml"]).code, 0);
    let seen = run(folder.path(), &["config", "check", "--strict", "u.yaml"]);
    assert_eq!(seen.code, 5);
    assert!(seen.out.ends_with("u.yaml: cannot be used: 0 errors, 2 warnings\n"), "{}", seen.out);
}

/// Calls the plugin for addresses, for a container whose namespace this path leads to. The configuration names the block.
fn plugin(folder: &Path, command: &str, container: &str, netns: &str) -> Seen {
    plugin_with(folder, command, container, netns, &["10.42.1.0/29"])
}

/// The same with other blocks, or none: then the agent must have told them.
pub(super) fn plugin_with(folder: &Path, command: &str, container: &str, netns: &str, blocks: &[&str]) -> Seen {
    let link = folder.join("rancher-cni-ipam");
    if !link.exists() {
        symlink(program(), &link).unwrap();
    }
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "test", "ipam": {"type": "rancher-cni-ipam"},
        "underpass": {"stateDir": folder.join("state"), "blocks": blocks},
    });
    let mut command_line = Command::new(&link);
    command_line
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", container), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command_line.spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    seen(child.wait_with_output().unwrap())
}

#[test]
fn ipam_shows_checks_and_repairs() {
    let folder = folder();
    let state = folder.path().join("state");
    let ask = |arguments: &[&str]| run(folder.path(), &[&["ipam"], arguments].concat());
    let none = ask(&["ls"]);
    assert_eq!((none.code, none.out.as_str()), (0, "no addresses: no agent has said which blocks are this host's\n"));
    let none = ask(&["check", "--repair"]);
    let nothing = format!("fine: there is no {}\n", state.join("ipam.journal").display());
    assert_eq!((none.code, none.out), (0, nothing));
    assert!(!state.exists(), "looking makes nothing");

    let living = folder.path().join("living");
    fs::write(&living, "").unwrap();
    assert_eq!(plugin(folder.path(), "ADD", "c1", living.to_str().unwrap()).code, 0);
    assert_eq!(plugin(folder.path(), "ADD", "c2", "/nonexistent/netns").code, 0);
    let listed = ask(&["ls"]);
    let lines: Vec<&str> = listed.out.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "NETWORK ADDRESS CONTAINER INTERFACE SINCE NAMESPACE"
    );
    assert!(lines[1].starts_with("managed  10.42.1.1  c1         eth0       "), "{}", listed.out);
    assert!(lines[2].ends_with(" s ago  /nonexistent/netns"), "{}", listed.out);
    assert_eq!(lines[3..], ["", "managed: 10.42.1.0/29: 2 of 6 leased, 0 reserved, 0 at rest, 4 free"]);
    assert_eq!(ask(&["ls", "managed"]).out, listed.out);
    let seen = ask(&["ls", "blue"]);
    assert_eq!((seen.code, seen.err.as_str()), (8, "underpass: no network is called \"blue\" here\n"));
    let value = parsed(&ask(&["ls", "--json"]).out);
    assert_eq!(value["schema"], "underpass.ipam/1");
    let network = &value["networks"][0];
    assert_eq!((&network["source"], &network["counts"]["ipv4"]["free"]), (&json!("netconf"), &json!(4)));
    assert_eq!(
        (&network["leases"][1]["container"], &network["leases"][1]["addresses"]),
        (&json!("c2"), &json!(["10.42.1.2"]))
    );

    let finding = "namespace-gone: network managed: container c2 (eth0) has 10.42.1.2, and its network namespace is gone \
        (/nonexistent/netns)";
    let seen = ask(&["check"]);
    assert_eq!((seen.code, seen.out), (3, format!("{finding} (--repair mends it)\n")));
    let value = parsed(&ask(&["check", "--json"]).out);
    assert_eq!(
        (&value["schema"], &value["findings"][0]["kind"]),
        (&json!("underpass.ipam-check/1"), &json!("namespace-gone"))
    );
    assert_eq!(
        (&value["findings"][0]["repaired"], &value["findings"][0]["lease"]["container"]),
        (&json!(false), &json!("c2"))
    );
    let seen = ask(&["check", "--repair"]);
    assert_eq!((seen.code, seen.out), (0, format!("{finding} (released)\n")));
    assert_eq!(ask(&["check"]).out, "fine: nothing to mend\n");
    let value: Value = parsed(&ask(&["ls", "--json"]).out);
    assert_eq!(value["networks"][0]["at_rest"][0]["address"], "10.42.1.2");

    fs::write(state.join("ipam.journal"), "00000000 {}\n").unwrap();
    let seen = ask(&["ls"]);
    assert_eq!(seen.code, 1);
    assert!(seen.err.contains("ipam.journal:1: the checksum is wrong; `underpass ipam check --repair`"), "{}", seen.err);
    assert_eq!(ask(&["check"]).code, 3);
    assert_eq!(ask(&["check", "--repair"]).code, 0);
    assert_eq!(ask(&["ls"]).code, 0);
}

/// Whatever a runtime calls a namespace, it does not steer the terminal of whoever looks.
#[test]
fn texts_of_runtimes_do_not_steer_a_terminal() {
    let folder = folder();
    assert_eq!(plugin(folder.path(), "ADD", "c1", "/nonexistent/\u{1b}[31mred\u{9b}1m").code, 0);
    for command in [&["ipam", "ls"][..], &["ipam", "check"], &["ps"]] {
        let seen = run(folder.path(), command);
        let steers = |text: &str| text.chars().any(|it| it.is_control() && it != '\n');
        assert!(seen.out.contains("c1") && !steers(&seen.out) && !steers(&seen.err), "{command:?}: {:?}", seen.out);
    }
    assert!(run(folder.path(), &["ipam", "ls"]).out.contains("/nonexistent/\\u{1b}[31mred\\u{9b}1m"));
}

#[test]
fn ps_tells_what_the_journal_says_without_an_agent() {
    let folder = folder();
    let ps = |arguments: &[&str]| run(folder.path(), &[&["ps"], arguments].concat());
    let note =
        |seen: &Seen| seen.out.contains("no agent is running") && seen.out.contains("what the journal of addresses says");
    let nobody = ps(&[]);
    assert!(
        nobody.code == 0 && nobody.out.starts_with("no containers have addresses here\n") && note(&nobody),
        "{}",
        nobody.out
    );
    assert!(!folder.path().join("state").exists(), "looking makes nothing");
    let living = folder.path().join("living");
    fs::write(&living, "").unwrap();
    assert_eq!(plugin(folder.path(), "ADD", "c1", living.to_str().unwrap()).code, 0);
    let one = ps(&[]);
    assert!(
        one.code == 0 && one.out.contains("c1         -     managed  10.42.1.1  -     attached\n") && note(&one),
        "{}",
        one.out
    );
    assert_eq!(plugin(folder.path(), "ADD", "c2", "/nonexistent/netns").code, 0);
    let two = ps(&["--json"]);
    let value = parsed(&two.out);
    assert_eq!((two.code, &value["schema"], &value["agent"]), (3, &json!("underpass.containers/1"), &json!(false)));
    let gone = &value["containers"][1];
    assert_eq!((&gone["id"], &gone["state"], &gone["runtime"]), (&json!("c2"), &json!("disconnected"), &json!("cni")));
    assert!(gone["why"].as_str().unwrap().contains("its network namespace is gone"), "{gone}");
    fs::write(folder.path().join("state/ipam.journal"), "00000000 {}\n").unwrap();
    assert_eq!(ps(&[]).code, 1);
}

#[test]
fn plugins_take_addresses_from_what_the_agent_said_also_when_it_is_gone() {
    let host = Host::new(CONFIG);
    let folder = host.path("");
    let add = |container: &str, blocks: &[&str]| plugin_with(&folder, "ADD", container, "/nonexistent/netns", blocks);
    let nobody = add("c0", &[]);
    assert_eq!((nobody.code, &parsed(&nobody.out)["code"]), (1, &Value::from(7)), "no agent has run");
    let agent = host.start();
    let address = |seen: Seen| parsed(&seen.out)["ips"][0]["address"].as_str().map(str::to_owned);
    assert_eq!(address(add("c1", &[])).as_deref(), Some("10.42.1.2/16"), "10.42.1.1 is on the TUN device");
    let differs = add("c2", &["10.42.7.0/24"]);
    assert!(differs.out.contains("the agent's configuration says other blocks"), "{}", differs.out);
    host.configure(&CONFIG.replace("10.42.1.0/24", "10.42.9.0/24"));
    agent.signal(Signal::HUP);
    agent.expect_log("read the configuration again");
    assert_eq!(address(add("c2", &[])).as_deref(), Some("10.42.9.2/16"));
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().0, Some(0));
    assert_eq!(address(add("c3", &[])).as_deref(), Some("10.42.9.3/16"));
    // As after a restart of the host: nobody lives in those namespaces any more.
    let agent = host.start();
    agent.expect_log("took back what container c3 (eth0) had: its network namespace is gone");
    let listed = parsed(&run(&folder, &["ipam", "ls", "--json"]).out);
    assert_eq!(listed["networks"][0]["leases"], Value::Array(Vec::new()));
    assert_eq!(listed["networks"][0]["source"], "agent");
    fs::write(host.path("state/ipam.journal"), "nonsense\n").unwrap();
    agent.signal(Signal::HUP);
    agent.expect_log("CNI plugins do not know this host's blocks");
    assert!(host.status()["warnings"].to_string().contains("ipam.journal:1: the checksum is wrong"), "{}", host.status());
}
