//! Docker 20.10 as Debian has it, on hosts of its own: containers that get addresses by their labels.

mod claim;
pub mod host;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::agent::{AgentConfig, PeerConfig};
use crate::lab::site::Site;
use crate::lab::{Host, Lab, wait_for};
use host::DockerHost;

const LABEL: &str = "--label=io.rancher.container.network=true";

/// A driver as the documents have it: the network is on Docker's own bridge.
fn config(host: &Host, peers: &[PeerConfig], folder: &str) -> AgentConfig {
    let mut config = AgentConfig::new(host, peers);
    config.more = drivers(folder);
    config
}

/// The sections `drivers` and `cni` of it.
fn drivers(folder: &str) -> String {
    format!(
        "drivers:
  - name: Rancher IPsec
    default_network:
      name: ipsec
      subnets: [{{network_address: 10.42.0.0/16}}]
    cni_config:
      10-rancher.conf:
        type: rancher-bridge
        bridge: docker0
        bridgeSubnet: 10.42.0.0/16
        isDefaultGateway: true
        hostNat: true
        hairpinMode: true
        mtu: 1500
        linkMTUOverhead: 98
        ipam: {{type: rancher-cni-ipam}}
cni: {{conf_dir: {folder}/cni/net.d, bin_dir: {folder}/bin, cache_dir: {folder}/cache}}
"
    )
}

/// A host with Docker and a running agent.
fn running(host: &Host, peers: &[PeerConfig]) -> DockerHost {
    let mut made = DockerHost::new(host);
    let config = config(host, peers, &made.folder());
    made.start_agent(&config);
    made
}

/// The IPv4 addresses that a container has, as it sees them.
fn addresses_inside(host: &DockerHost, name: &str) -> Vec<String> {
    let shown = host.inside(name, &["ip", "-4", "-o", "address", "show"]).expect("the container runs");
    let words = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.filter(|address| !address.starts_with("127.")).map(str::to_owned).collect()
}

#[test]
fn labelled_containers_reach_each_other_and_keep_their_addresses() {
    let lab = Lab::direct();
    let mut alpha = running(&lab.alpha, &[PeerConfig::at(&lab.beta)]);
    let beta = running(&lab.beta, &[PeerConfig::at(&lab.alpha)]);
    alpha.start_container("plain", &[]);
    let start = Instant::now();
    alpha.start_container("web", &[LABEL, "--restart=always"]);
    let ran = start.elapsed();
    let web = alpha.address("web");
    eprintln!("docker run took {ran:?}, the address was seen {:?} after it", start.elapsed().checked_sub(ran));
    alpha.start_container("alone", &[LABEL, "--network=none"]);
    beta.start_container("other", &[LABEL]);
    let (alone, other) = (alpha.address("alone"), beta.address("other"));
    assert!(web.starts_with("10.42.1.") && alone.starts_with("10.42.1.") && other.starts_with("10.42.2."));
    assert_ne!(web, alone);

    // Beside Docker's address, or alone; and whoever has no label has nothing of ours.
    let seen = addresses_inside(&alpha, "web");
    assert!(seen.len() == 2 && seen[0].starts_with("172.17.") && seen[1] == format!("{web}/16"), "{seen:?}");
    assert_eq!(addresses_inside(&alpha, "alone"), [format!("{alone}/16")]);
    let plain = addresses_inside(&alpha, "plain");
    assert!(plain.len() == 1 && plain[0].starts_with("172.17."), "{plain:?}");
    assert_eq!(alpha.seen("plain"), None);

    alpha.reaches("web", &other);
    beta.reaches("other", &web);
    beta.reaches("other", &alone);
    alpha.reaches("alone", &other);
    alpha.reaches("alone", &web);
    alpha.reaches("web", &alone);

    // A restart is a new namespace with the old address.
    for name in ["web", "alone"] {
        let had = alpha.address(name);
        alpha.docker(&["restart", "-t", "0", name]);
        assert_eq!(alpha.address(name), had);
        beta.reaches("other", &had);
    }

    // The agent dies; meanwhile one container is removed and one is stopped.
    alpha.start_container("brief", &[LABEL]);
    alpha.start_container("tired", &[LABEL]);
    let (brief, tired) = (alpha.address("brief"), alpha.address("tired"));
    alpha.kill_agent();
    alpha.docker(&["rm", "-f", "brief"]);
    alpha.docker(&["stop", "-t", "0", "tired"]);
    assert!(alpha.leased().contains(&brief), "nobody could release it yet");
    alpha.agent.start();
    assert_eq!((alpha.address("web"), alpha.address("alone")), (web.clone(), alone.clone()));
    assert_eq!(alpha.until("tired", "waiting")["addresses"][0], *tired);
    assert!(!alpha.leased().contains(&brief) && alpha.leased().contains(&tired), "{:?}", alpha.leased());
    beta.reaches("other", &web);
    beta.reaches("other", &alone);

    // Docker ends, and takes its containers with it; only one of them it starts again by itself.
    alpha.stop_docker();
    alpha.start_docker();
    assert_eq!(alpha.address("web"), web);
    assert_eq!(alpha.until("alone", "waiting")["addresses"][0], *alone);
    beta.reaches("other", &web);
    alpha.docker(&["start", "alone"]);
    assert_eq!(alpha.address("alone"), alone);
    beta.reaches("other", &alone);

    // Removed is released.
    alpha.docker(&["rm", "-f", "web", "alone", "tired"]);
    wait_for("no leases", Duration::from_secs(30), || alpha.leased().is_empty().then_some(()));
    wait_for("nobody", Duration::from_secs(30), || alpha.ps().1["containers"].as_array()?.is_empty().then_some(()));
}

#[test]
fn labels_say_what_a_container_gets() {
    let lab = Lab::direct();
    let mut alpha = running(&lab.alpha, &[]);
    alpha.start_container("wish", &[LABEL, "--label=io.rancher.container.requested_ip=10.42.1.40,10.42.1.41"]);
    assert_eq!(alpha.address("wish"), "10.42.1.40");
    alpha.start_container("next", &[LABEL, "--label=io.rancher.container.requested_ip=10.42.1.40,10.42.1.41"]);
    assert_eq!(alpha.address("next"), "10.42.1.41");
    let exact = ["--label=io.rancher.cni.network=ipsec", "--label=io.rancher.container.ip=10.42.1.42/24"];
    let more =
        ["--label=io.rancher.container.mac_address=02:00:00:aa:bb:cc", "--label=io.rancher.cni.link_mtu_overhead=300"];
    alpha.start_container("exact", &[&exact[..], &more[..], &["--network=none"]].concat());
    assert_eq!(alpha.address("exact"), "10.42.1.42");
    assert_eq!(addresses_inside(&alpha, "exact"), ["10.42.1.42/24"]);
    let link = alpha.inside("exact", &["ip", "link", "show", "dev", "eth0"]).expect("the container runs");
    assert!(link.contains("02:00:00:aa:bb:cc") && link.contains("mtu 1200"), "{link}");

    // What makes no sense is said, and nothing is touched.
    let bad: [(&str, &[&str], &str); 4] = [
        ("taken", &[LABEL, "--label=io.rancher.container.ip=10.42.1.40"], "10.42.1.40 is held by container "),
        ("typo", &["--label=io.rancher.cni.network=ipsex"], "no network is called \"ipsex\" (did you mean \"ipsec\"?)"),
        ("words", &["--label=io.rancher.container.network=yes"], "expected true or false, got \"yes\""),
        ("hosted", &[LABEL, "--network=host"], "label io.rancher.container.network has no effect with mode host"),
    ];
    for (name, arguments, _) in bad {
        alpha.docker(&[&["run", "-d", "--name", name], arguments, &["bb:1", "sleep", "1000"]].concat());
    }
    for (name, _, why) in bad {
        let container = alpha.until(name, "failed");
        assert!(container["why"].as_str().is_some_and(|said| said.contains(why)), "{container}");
        if name != "hosted" {
            assert_eq!(addresses_inside(&alpha, name).len(), 1, "{name} has Docker's address alone");
        }
    }
    assert_eq!(alpha.ps().0, 3, "some are failed");

    // The address becomes free: who was refused gets it.
    alpha.docker(&["rm", "-f", "wish"]);
    assert_eq!(alpha.address("taken"), "10.42.1.40");
    for (name, _, _) in &bad[1..] {
        alpha.docker(&["rm", "-f", name]);
    }
    wait_for("nobody failed", Duration::from_secs(30), || (alpha.ps().0 == 0).then_some(()));

    // Without an agent the journal tells, and says so.
    alpha.stop_agent();
    let (code, all) = alpha.ps();
    assert_eq!((code, &all["agent"], &all["host"]), (0, &Value::Bool(false), &Value::Null));
    let states: Vec<&Value> = all["containers"].as_array().expect("a list").iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["unknown"; 3], "{all}");
    let output = alpha.agent.control(&["ps"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("10.42.1.42") && text.contains("this is what the journal of addresses says"), "{text}");
}

/// Two networks: `ipsec` on Docker's bridge, and `blue` on one of ours.
fn two_networks(host: &Host, peer: &Host, folder: &str) -> AgentConfig {
    let blue = |block: &str| block.replace("10.42.", "10.43.");
    let mut config = config(host, &[PeerConfig::at(peer)], folder);
    config.blocks = format!("{}, {}", host.block, blue(host.block));
    config.peers[0].blocks = format!("{}, {}", peer.block, blue(peer.block));
    let driver = "  - name: Blue
    default_network: {name: blue, subnets: [{network_address: 10.43.0.0/16}]}
    cni_config:
      10-blue.conf: {type: underpass-cni, bridge: blue0, bridgeSubnet: 10.43.0.0/16}
cni:";
    config.more = config.more.replace("cni:", driver);
    config
}

/// Docker drops what this host forwards, but for its own networks.
#[test]
fn containers_get_through_dockers_filter() {
    let lab = Lab::direct();
    let mut hosts = [&lab.alpha, &lab.beta].map(DockerHost::with_filter);
    for (made, (host, peer)) in hosts.iter_mut().zip([(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)]) {
        let config = two_networks(host, peer, &made.folder());
        made.start_agent(&config);
        let policy = made.host.run(&["iptables", "-S", "FORWARD"]);
        assert!(policy.contains("-P FORWARD DROP"), "{policy}");
        made.start_container("web", &[LABEL]);
    }
    let mut sites = [(&lab.alpha, &hosts[0]), (&lab.beta, &hosts[1])].map(|(host, made)| Site::of_agent(host, &made.agent));
    for site in &mut sites {
        let mut conf = site.conf();
        (conf["name"], conf["bridge"], conf["bridgeSubnet"]) = (json!("blue"), json!("blue0"), json!("10.43.0.0/16"));
        conf["underpass"] = json!({"stateDir": site.state, "network": "blue"});
        site.add_with("c1", &conf);
    }
    let reach_each_other = |hosts: &[DockerHost; 2], when: &str| {
        for (from, to) in [(0, 1), (1, 0)] {
            hosts[from].reaches("web", &hosts[to].address("web"));
            let ping = || crate::attach::pings(sites[from].inside("c1"), sites[to].address("c1"), &[]).then_some(());
            wait_for(&format!("a container on a bridge of ours to be reached, {when}"), Duration::from_secs(60), ping);
        }
    };
    reach_each_other(&hosts, "at first");
    let rules = |made: &DockerHost| made.host.run(&["iptables", "-S", "DOCKER-USER"]);
    let before = rules(&hosts[0]);
    assert_eq!(before.matches("--comment underpass").count(), 4, "{before}");
    hosts[0].stop_docker();
    hosts[0].start_docker();
    hosts[0].docker(&["start", "web"]);
    reach_each_other(&hosts, "after a restart of Docker");
    assert_eq!(rules(&hosts[0]), before, "none of them twice");
    // Whoever sweeps them away.
    hosts[0].host.run(&["iptables", "-F", "DOCKER-USER"]);
    reach_each_other(&hosts, "after the rules were flushed");
}

/// What a container's resolver reads.
fn resolver(host: &DockerHost, name: &str) -> String {
    let text = host.inside(name, &["cat", "/etc/resolv.conf"]).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[test]
fn containers_ask_the_name_servers_of_their_network() {
    let lab = Lab::direct();
    let mut alpha = DockerHost::new(&lab.alpha);
    let folder = alpha.folder();
    let with = |dns: &str| {
        let mut config = config(&lab.alpha, &[], &folder);
        let network = "      name: ipsec\n";
        config.more =
            config.more.replace(network, &format!("{network}      dns: [{dns}]\n      dns_search: [rancher.internal]\n"));
        config
    };
    alpha.start_agent(&with("192.0.2.53"));
    alpha.start_container("plain", &[]);
    let untouched = resolver(&alpha, "plain");
    alpha.start_container("web", &[LABEL]);
    alpha.start_container("mute", &[LABEL, "--label=io.rancher.container.dns=false"]);
    alpha.start_container("own", &[LABEL, "--network=none", "--dns=192.0.2.99", "--dns-search=example.org"]);
    for name in ["web", "mute", "own"] {
        alpha.address(name);
    }
    let until = |alpha: &DockerHost, name: &str, wanted: &str| {
        let what = format!("{name} to read {wanted:?}");
        wait_for(&what, Duration::from_secs(30), || {
            let read = resolver(alpha, name);
            (read.starts_with(wanted)).then_some(())
        });
    };
    let own = |dns: &str| format!("nameserver 192.0.2.99; nameserver {dns}; search example.org rancher.internal");
    until(&alpha, "web", "nameserver 192.0.2.53; search rancher.internal");
    until(&alpha, "own", &own("192.0.2.53"));
    // Running containers follow the driver, and keep that over a restart.
    alpha.reload_agent(&with("192.0.2.54"));
    until(&alpha, "web", "nameserver 192.0.2.54; search rancher.internal");
    until(&alpha, "own", &own("192.0.2.54"));
    alpha.docker(&["restart", "-t", "0", "web"]);
    until(&alpha, "web", "nameserver 192.0.2.54; search rancher.internal");
    assert_eq!((resolver(&alpha, "mute"), resolver(&alpha, "plain")), (untouched.clone(), untouched));
}
