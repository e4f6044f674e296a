//! Golden tests: a file, and the exact messages that it earns.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use super::*;
use crate::crypto::SigningKey;
use crate::model::{AeadAlgorithm, PeerId, Rng, Secret, SeededRng};

/// A configuration that works, to be spoiled.
const GOOD: &str = "\
host: {name: alpha}
overlay: {blocks: [10.42.1.0/24]}
peers:
  - name: beta
    address: 192.0.2.2
    psk_file: beta.psk
    remote_blocks: [10.42.2.0/24]
";

fn surroundings() -> Surroundings {
    Surroundings { hostname: Some("hostess".to_owned()), cattle_agent_ip: None }
}

fn read(text: &str) -> (Option<Config>, String) {
    let (config, report) = parse(Path::new("u.yaml"), text.as_bytes(), &surroundings());
    assert_eq!(config.is_none(), report.has_errors(), "a configuration or an error: {report}");
    (config, report.to_string())
}

fn good(text: &str) -> Config {
    let (config, messages) = read(text);
    assert_eq!(messages, "");
    config.unwrap()
}

/// The manual's example says each default but the ones that it has names and addresses for.
#[test]
fn the_manual_names_every_key_with_its_default() {
    let manual = include_str!("../../docs/configuration.md");
    let example = manual.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let told = good(example);
    let short = GOOD
        .replace("{name: alpha}", "{name: alpha, advertise: [192.0.2.1]}")
        .replace("psk_file", "suites: [aes256gcm16]\n    psk_file");
    let mut silent = good(&short);
    // Places differ.
    silent.peers[0].name = told.peers[0].name.clone();
    silent.peers[0].auth = told.peers[0].auth.clone();
    assert_eq!(silent, told);
    for key in [include_str!("read.rs"), include_str!("store.rs")]
        .concat()
        .split("take(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
    {
        assert!(manual.contains(&format!("{key}:")), "{key} is not in the manual");
    }
}

/// The messages of [`GOOD`] with `from` replaced.
fn spoiled(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    read(&GOOD.replacen(from, to, 1)).1
}

/// The messages of a configuration that has these lines besides what it must have. They begin on line 1.
fn with(lines: &str) -> String {
    read(&format!("{lines}\noverlay: {{blocks: [10.42.1.0/24]}}\n")).1
}

/// The messages of a file with one good peer that has these lines besides. They begin on line 8.
fn with_peer(lines: &str) -> String {
    read(&format!("{GOOD}{lines}\n")).1
}

#[test]
fn defaults_are_those_of_the_manual() {
    let config = good("overlay: {blocks: [10.42.1.0/24, 'fd00:42:1::/64']}");
    assert_eq!(config.host.name, "hostess");
    assert_eq!(config.host.advertise, []);
    assert_eq!(config.host.listen, Listen { address: "0.0.0.0".parse().unwrap(), ike_port: 500, natt_port: 4500 });
    assert_eq!(
        config.tun,
        Tun {
            name: "underpass0".into(),
            mtu: Mtu::Auto,
            queues: Queues::Auto,
            pin: false,
            backend: Backend::Offload,
            offload: true
        }
    );
    assert_eq!(config.tun.mtu.initial(), 1400);
    assert_eq!(
        config.overlay.addresses,
        ["10.42.1.1".parse::<std::net::IpAddr>().unwrap(), "fd00:42:1::1".parse().unwrap()]
    );
    assert_eq!(
        config.ipsec,
        Ipsec {
            ike_rekey: Duration::from_secs(14_400),
            child_rekey: Duration::from_secs(3_600),
            replay_window: 4096,
            dpd: Duration::from_secs(10),
            suites: vec![AeadAlgorithm::Aes256Gcm16, AeadAlgorithm::ChaCha20Poly1305, AeadAlgorithm::Aes128Gcm16],
            require_pq: false,
        }
    );
    assert!(config.peers.is_empty());
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let key = SigningKey::from_seed(&[7; 32]).verifying_key();
    let text = format!(
        "
x-note: anything {{may}} stand here
host:
  name: alpha
  advertise: [192.0.2.1, '192.0.2.1:4501', '[2001:db8::1]:4500', iface:eth0]
  listen: {{address: '::', ike_port: 5000, natt_port: 5001}}
tun: {{name: up-0, mtu: 1380, queues: 2, pin: on, backend: offload, offload: off}}
overlay: {{address: 10.42.1.9/32, blocks: [10.42.1.0/24]}}
ipsec: {{ike_rekey: 1h30m, child_rekey: 90s, replay_window: 128, dpd: 5s, suites: [aes128gcm16], allow_short_psk: true, require_pq: true}}
peers:
  - {{name: beta, address: 192.0.2.2, psk_file: keys/beta, remote_blocks: [10.42.2.0/24, 10.43.0.0/16]}}
  - name: gamma
    x-owner: somebody
    address: '192.0.2.3:4600'
    local_id: 192.0.2.1
    remote_id: gw.example.org
    public_key: {}
    suites: [chacha20poly1305, aes256gcm16]
    require_pq: false
    local_blocks: [10.42.1.128/25]
    remote_blocks: [10.44.0.0/16]
",
        key.to_base64()
    );
    let (config, messages) = parse(Path::new("/etc/underpass/u.yaml"), text.as_bytes(), &surroundings());
    assert_eq!(messages.to_string(), "");
    let config = config.unwrap();
    assert_eq!(
        config.host.advertise,
        [
            Advertise::Address("192.0.2.1".parse().unwrap(), None),
            Advertise::Address("192.0.2.1".parse().unwrap(), Some(4501)),
            Advertise::Address("2001:db8::1".parse().unwrap(), Some(4500)),
            Advertise::Interface("eth0".into()),
        ]
    );
    assert_eq!(config.host.listen, Listen { address: "::".parse().unwrap(), ike_port: 5000, natt_port: 5001 });
    assert_eq!(
        config.tun,
        Tun {
            name: "up-0".into(),
            mtu: Mtu::Fixed(1380),
            queues: Queues::Fixed(2),
            pin: true,
            backend: Backend::Offload,
            offload: false
        }
    );
    assert_eq!(config.overlay.addresses, ["10.42.1.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.ipsec.ike_rekey, Duration::from_secs(5400));
    assert_eq!(config.ipsec.child_rekey, Duration::from_secs(90));
    assert_eq!(config.ipsec.replay_window, 128);
    let [beta, gamma] = config.peers.as_slice() else { panic!() };
    assert_eq!(beta.remote, Some(PeerRemote::Standard("192.0.2.2".parse().unwrap())));
    assert_eq!((&beta.local_id, &beta.remote_id), (&PeerId::Fqdn("alpha".into()), &PeerId::Fqdn("beta".into())));
    assert!(matches!(&beta.auth, PeerAuth::PskFile(path) if path.value == Path::new("/etc/underpass/keys/beta")));
    assert_eq!(beta.suites, [AeadAlgorithm::Aes128Gcm16]);
    assert_eq!((beta.require_pq, gamma.require_pq), (true, false));
    assert_eq!(beta.local_blocks, config.overlay.blocks);
    assert_eq!(gamma.remote, Some(PeerRemote::Natt("192.0.2.3:4600".parse().unwrap())));
    assert_eq!(gamma.local_id, PeerId::Ipv4("192.0.2.1".parse().unwrap()));
    assert_eq!(gamma.remote_id, PeerId::Fqdn("gw.example.org".into()));
    assert_eq!(gamma.auth, PeerAuth::PublicKeys(vec![key]));
    assert_eq!(gamma.suites, [AeadAlgorithm::ChaCha20Poly1305, AeadAlgorithm::Aes256Gcm16]);
    assert_eq!(gamma.local_blocks, ["10.42.1.128/25".parse::<ipnet::IpNet>().unwrap()]);
}

#[test]
fn texts_that_look_like_numbers_stay_texts() {
    let config = good(&GOOD.replace("alpha", "010").replace("beta\n", "1e3\n"));
    assert_eq!(config.host.name, "010");
    assert_eq!(config.peers[0].name.value, "1e3");
    assert!(matches!(config.peers[0].name.line, Some(4)));
}

#[test]
fn all_mistakes_are_shown_at_once_in_the_order_of_the_file() {
    let (_, messages) = read(
        "
host: {nmae: alpha, listen: {ike_port: 4500}}
tun:
  mtu: 100
  queues: four
  mtu: 1400
",
    );
    assert_eq!(messages, "u.yaml:6: mtu: this key stands twice; it was first on line 4\n");
    let (_, messages) = read(
        "
host: {nmae: alpha, listen: {ike_port: 4500}}
tun:
  mtu: 100
  queues: four
ipsec:
  suites: [aes256gcm, chacha20poly1305]
  dpd: 10
  replay_window: 1000
  secret: x
peers:
  - psk: short
    adress: 192.0.2.2
    remote_blocks: [10.42.2.1/24]
drivers: [[]]
cni: {bin: /x, conf_dir: ''}
Overlay: {}
",
    );
    assert_eq!(
        messages,
        "\
u.yaml: overlay: expected a section with `blocks`, the addresses that this host owns; it is missing
u.yaml:2: host.nmae: unknown key; did you mean \"name\"?
u.yaml:2: host.listen: expected two different ports, got 4500 as ike_port and as natt_port
u.yaml:4: tun.mtu: expected auto or a whole number from 576 to 9216, got \"100\"
u.yaml:5: tun.queues: expected auto or a whole number from 1 to 64, got \"four\"
u.yaml:7: ipsec.suites[0]: expected aes256gcm16, chacha20poly1305 or aes128gcm16, got \"aes256gcm\"; did you mean \
         \"aes256gcm16\"?
u.yaml:8: ipsec.dpd: expected a duration from 1s to 10s, such as 90s, 10m or 4h, got \"10\"; did you mean \"10s\"?
u.yaml:9: ipsec.replay_window: expected a multiple of 64 from 64 to 65536, got \"1000\"; did you mean \"1024\"?
u.yaml:10: ipsec.secret: unknown key; expected ike_rekey, child_rekey, replay_window, dpd, suites, require_pq or allow_short_psk
u.yaml:12: peers[0].name: expected a name for the peer; it is missing
u.yaml:12: peers[0].psk: expected a shared key of 32 to 1024 octets, got 5; make one with `openssl rand -base64 32`, or \
         say allow_short_psk: true where the peer cannot take a longer one
u.yaml:13: peers[0].adress: unknown key; did you mean \"address\"?
u.yaml:14: peers[0].remote_blocks[0]: expected a prefix without host bits, got \"10.42.2.1/24\"; did you mean \
         \"10.42.2.0/24\"?
u.yaml:15: drivers[0]: expected the path of a compose file, or a block with the keys of network_driver, got a list
u.yaml:16: cni.conf_dir: expected the path of a folder, got \"\"
u.yaml:16: cni.bin: unknown key; expected conf_dir, bin_dir or cache_dir
u.yaml:17: Overlay: unknown key; did you mean \"overlay\"?
"
    );
}

#[test]
fn drivers_and_labels_arrive() {
    let config = good(
        "
host: {name: alpha, labels: {io.rancher.x: 10.42.1.0/24, n: 5}}
overlay: {blocks: [10.42.1.0/24]}
drivers:
  - net/r.yml
  - /abs.yml
  - {name: d}
cni: {conf_dir: cni/net.d, bin_dir: /opt/cni/bin}
",
    );
    let labels: Vec<_> = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["io.rancher.x=10.42.1.0/24", "n=5"]);
    let [DriverSource::File(relative), DriverSource::File(absolute), DriverSource::Block(block)] = config.drivers.as_slice()
    else {
        panic!("{:?}", config.drivers)
    };
    assert_eq!((relative.value.as_path(), relative.line), (Path::new("net/r.yml"), Some(5)));
    assert_eq!((absolute.value.as_path(), block.line, block.key.as_str()), (Path::new("/abs.yml"), 7, "drivers[2]"));
    let Cni { conf_dir, bin_dir, cache_dir } = config.cni;
    let places = [conf_dir, bin_dir, cache_dir].map(|place| place.display().to_string());
    assert_eq!(places, ["cni/net.d", "/opt/cni/bin", "/var/lib/cni"]);
    assert_eq!(with("host: {name: a, labels: [x]}"), "u.yaml:1: host.labels: expected a section with keys, got a list\n");
    assert_eq!(with("host: {name: a, labels: {x: []}}"), "u.yaml:1: host.labels.x: expected a text, got a list\n");
}

/// Files that are not what a configuration is written in.
#[test]
fn yaml_beyond_need_is_refused_with_its_line() {
    let deep = format!("x-a: {}", "[".repeat(100));
    for (text, messages) in [
        ("", "u.yaml: overlay: expected a section with `blocks`, the addresses that this host owns; it is missing\n"),
        (
            "# nothing\n",
            "u.yaml: overlay: expected a section with `blocks`, the addresses that this host owns; it is missing\n",
        ),
        ("~\n", "u.yaml: overlay: expected a section with `blocks`, the addresses that this host owns; it is missing\n"),
        ("- a\n- b\n", "u.yaml:1: expected a section with keys, got a list\n"),
        ("underpass", "u.yaml:1: expected a section with keys, got \"underpass\"\n"),
        ("host: {}\n---\nhost: {}\n", "u.yaml:2: expected one YAML document, got a second one (`---`)\n"),
        ("a: &x 1\nb: *x\n", "u.yaml:1: anchors (`&name`) and tags (`!tag`) are not supported: write the plain value\n"),
        ("a:\n  !!str b\n", "u.yaml:2: anchors (`&name`) and tags (`!tag`) are not supported: write the plain value\n"),
        ("a: &x [1]\n", "u.yaml:1: anchors (`&name`) and tags (`!tag`) are not supported: write the plain value\n"),
        ("? [a]\n: b\n", "u.yaml:1: expected a text as key, got a list or section\n"),
        (&deep, "u.yaml:1: expected at most 16 levels of nesting\n"),
        ("host: {name: a}\nhost: {name: b}\n", "u.yaml:2: host: this key stands twice; it was first on line 1\n"),
    ] {
        assert_eq!(read(text).1, messages, "{text:.40}");
    }
    for text in ["a: [1\nb: 2", "a: b: c", "a: \"open", "a: 'x' y", "{a: 1", "]", "a\n b\n: c", "%YAML 9", "\u{0}"] {
        let messages = read(text).1;
        assert!(messages.contains("not valid YAML: ") && messages.starts_with("u.yaml:"), "{text:?}: {messages}");
    }
}

#[test]
fn octets_that_are_no_text_are_refused_with_their_line() {
    let (config, report) = parse(Path::new("u.yaml"), b"host:\n  name: al\xffpha\n", &surroundings());
    assert_eq!(config, None);
    assert_eq!(report.to_string(), "u.yaml:2: expected UTF-8, got an octet that is none\n");
}

#[test]
fn a_file_may_not_be_larger_than_a_megabyte() {
    let comment = format!("# {}\n{GOOD}", "x".repeat(MAX_FILE));
    let expected = "u.yaml: expected a file of at most 1048576 octets, and this one is larger\n";
    assert_eq!(read(&comment).1, expected);
}

#[test]
fn host_is_checked() {
    let name = "expected a name of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at each end";
    for (lines, message) in [
        ("host: alpha", "u.yaml:1: host: expected a section with keys, got \"alpha\"\n".to_owned()),
        ("host: {name: al pha}", format!("u.yaml:1: host.name: {name}, got \"al pha\"\n")),
        ("host: {name: -a}", format!("u.yaml:1: host.name: {name}, got \"-a\"\n")),
        ("host: {name: ''}", format!("u.yaml:1: host.name: {name}, got \"\"\n")),
        ("host: {name: }", format!("u.yaml:1: host.name: {name}, got nothing\n")),
        ("host: {name: [a]}", format!("u.yaml:1: host.name: {name}, got a list\n")),
        ("host: {name: \"a\\e[2J\"}", format!("u.yaml:1: host.name: {name}, got \"a\\u{{1b}}[2J\"\n")),
        (
            "host: {advertise: 192.0.2.1}",
            "u.yaml:1: host.advertise: expected a list, got \"192.0.2.1\"; did you mean [192.0.2.1]?\n".to_owned(),
        ),
        (
            "host: {advertise: [example.org]}",
            "u.yaml:1: host.advertise[0]: expected ADDRESS, ADDRESS:PORT or iface:NAME, got \"example.org\"\n".to_owned(),
        ),
        (
            "host: {advertise: ['iface:an-interface-name']}",
            "u.yaml:1: host.advertise[0]: expected an interface name of 1 to 15 letters, digits, '-', '_' and '.', got \
             \"iface:an-interface-name\"\n"
                .to_owned(),
        ),
        (
            "host: {listen: {address: any}}",
            "u.yaml:1: host.listen.address: expected an address, or 0.0.0.0 for all of them, got \"any\"\n".to_owned(),
        ),
        (
            "host: {listen: {ike_port: 0}}",
            "u.yaml:1: host.listen.ike_port: expected a whole number from 1 to 65535, got \"0\"\n".to_owned(),
        ),
        (
            "host: {listen: {natt_port: 65536}}",
            "u.yaml:1: host.listen.natt_port: expected a whole number from 1 to 65535, got \"65536\"\n".to_owned(),
        ),
        (
            "host: {listen: {natt_port: 0x1194}}",
            "u.yaml:1: host.listen.natt_port: expected a whole number from 1 to 65535, got \"0x1194\"\n".to_owned(),
        ),
    ] {
        assert_eq!(with(lines), message);
    }
}

#[test]
fn what_stands_around_the_file_is_checked_too() {
    let read = |surroundings: &Surroundings| {
        let (config, report) = parse(Path::new("u.yaml"), b"overlay: {blocks: [10.42.1.0/24]}", surroundings);
        (config, report.to_string())
    };
    let (_, messages) = read(&Surroundings { hostname: Some("my host".into()), cattle_agent_ip: None });
    assert_eq!(
        messages,
        "u.yaml: host.name: expected a name of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at each \
         end; it is missing, and the hostname \"my host\" cannot stand in\n"
    );
    let cattle = |text: &str| Surroundings { hostname: Some("a".into()), cattle_agent_ip: Some(text.into()) };
    let (config, _) = read(&cattle("192.0.2.9"));
    assert_eq!(config.unwrap().host.advertise, [Advertise::Address("192.0.2.9".parse().unwrap(), None)]);
    assert_eq!(read(&cattle("")).0.unwrap().host.advertise, []);
    let (_, messages) = read(&cattle("nowhere"));
    assert_eq!(
        messages,
        "u.yaml: CATTLE_AGENT_IP: expected ADDRESS, ADDRESS:PORT or iface:NAME in the environment, got \"nowhere\"\n"
    );
    let (config, report) = parse(Path::new("u.yaml"), GOOD.as_bytes(), &cattle("192.0.2.2"));
    assert_eq!(config, None);
    assert_eq!(report.to_string(), "u.yaml:5: peers[0].address: 192.0.2.2 is this host's own address\n");
}

#[test]
fn docker_is_asked_only_where_the_key_is() {
    let file = |line: &str| format!("{line}\noverlay: {{blocks: [10.42.1.0/24]}}\n");
    let socket = |line: &str| good(&file(line)).docker.map(|docker| docker.socket.display().to_string());
    assert_eq!(socket(""), None);
    assert_eq!(socket("docker: off"), None);
    for line in ["docker: {}", "docker:", "docker: {socket: /var/run/docker.sock}"] {
        assert_eq!(socket(line).as_deref(), Some("/var/run/docker.sock"), "{line}");
    }
    assert_eq!(socket("docker: {socket: 'unix:///run/d.sock'}").as_deref(), Some("/run/d.sock"));
    for (line, message) in [
        (
            "docker: {socket: docker.sock}",
            "docker.socket: expected the absolute path of a socket, such as /var/run/docker.sock",
        ),
        ("docker: {socket: 'tcp://192.0.2.1:2375'}", "docker.socket: expected the absolute path of a socket"),
        ("docker: {sockets: /run/d.sock}", "docker.sockets: unknown key; did you mean \"socket\"?"),
        ("docker: on", "docker: expected a section with keys, got \"on\""),
    ] {
        let said = with(line);
        assert!(said.contains(message), "{line}: {said}");
    }
}

#[test]
fn tun_is_checked() {
    for (lines, message) in [
        (
            "tun: {name: underpass-device}",
            "u.yaml:1: tun.name: expected an interface name of 1 to 15 letters, digits, '-', '_' and '.', got \
             \"underpass-device\"\n",
        ),
        (
            "tun: {name: tun%d}",
            "u.yaml:1: tun.name: expected an interface name of 1 to 15 letters, digits, '-', '_' and '.', got \"tun%d\"\n",
        ),
        ("tun: {mtu: 575}", "u.yaml:1: tun.mtu: expected auto or a whole number from 576 to 9216, got \"575\"\n"),
        ("tun: {mtu: 9217}", "u.yaml:1: tun.mtu: expected auto or a whole number from 576 to 9216, got \"9217\"\n"),
        ("tun: {mtu: 1_400}", "u.yaml:1: tun.mtu: expected auto or a whole number from 576 to 9216, got \"1_400\"\n"),
        ("tun: {queues: 0}", "u.yaml:1: tun.queues: expected auto or a whole number from 1 to 64, got \"0\"\n"),
        ("tun: {pin: yes}", "u.yaml:1: tun.pin: expected off or on, got \"yes\"\n"),
        ("tun: {backend: fast}", "u.yaml:1: tun.backend: expected offload or plain, got \"fast\"\n"),
        (
            "tun: {backend: plian}",
            "u.yaml:1: tun.backend: expected offload or plain, got \"plian\"; did you mean \"plain\"?\n",
        ),
        (
            "tun: {backend: plain, queues: 2}",
            "u.yaml:1: tun.queues: expected 1, as the backend plain has one queue, got 2\n",
        ),
    ] {
        assert_eq!(with(lines), message);
    }
    assert_eq!(
        read("tun: {mtu: 1279}\noverlay: {blocks: ['fd00::/64']}\n").1,
        "u.yaml:1: tun.mtu: expected at least 1280, as fd00::/64 is IPv6, got 1279\n"
    );
}

#[test]
fn overlay_is_checked() {
    for (overlay, message) in [
        ("{}", "u.yaml:1: overlay.blocks: expected a list of prefixes such as [10.42.1.0/24]; it is missing\n"),
        ("{blocks: []}", "u.yaml:1: overlay.blocks: expected at least one prefix such as 10.42.1.0/24, got a list\n"),
        (
            "{blocks: [10.42.1.5]}",
            "u.yaml:1: overlay.blocks[0]: expected a prefix such as 10.42.1.0/24, got \"10.42.1.5\"; did you mean \
             \"10.42.1.5/32\"?\n",
        ),
        (
            "{blocks: [10.42.1.0/33]}",
            "u.yaml:1: overlay.blocks[0]: expected a prefix such as 10.42.1.0/24, got \"10.42.1.0/33\"\n",
        ),
        (
            "{blocks: [10.42.1.0/24, 10.42.1.128/25]}",
            "u.yaml:1: overlay.blocks[1]: 10.42.1.128/25 overlaps 10.42.1.0/24, this host's own (line 1)\n",
        ),
        (
            "{blocks: [127.1.0.0/16]}",
            "u.yaml:1: overlay.blocks[0]: 127.1.0.0/16 holds loopback addresses, which no tunnel carries\n",
        ),
        (
            "{address: 10.43.0.1/32, blocks: [10.42.1.0/24, 10.42.2.0/24]}",
            "u.yaml:1: overlay.address: expected an address of overlay.blocks (10.42.1.0/24, 10.42.2.0/24), got 10.43.0.1\n",
        ),
        (
            "{address: 10.42.1.1/24, blocks: [10.42.1.0/24]}",
            "u.yaml:1: overlay.address: expected an address such as 10.42.1.1/32, got \"10.42.1.1/24\"; did you mean \
             \"10.42.1.1/32\"?\n",
        ),
        (
            "{address: 10.42.1.255, blocks: [10.42.1.0/24]}",
            "u.yaml:1: overlay.address: 10.42.1.255 is the broadcast address of 10.42.1.0/24\n",
        ),
        (
            "{address: [10.42.1.1, 10.42.1.2], blocks: [10.42.1.0/24]}",
            "u.yaml:1: overlay.address[1]: expected at most one IPv4 and one IPv6 address\n",
        ),
    ] {
        assert_eq!(read(&format!("overlay: {overlay}\n")).1, message);
    }
}

#[test]
fn ipsec_is_checked() {
    let duration = "expected a duration from 10s to 7d, such as 90s, 10m or 4h";
    for (value, suggestion) in [
        ("4", "; did you mean \"4s\"?"),
        ("4x", ""),
        ("1m1h", ""),
        ("9s", ""),
        ("8d", ""),
        ("-1h", ""),
        ("1.5h", ""),
        ("h", ""),
        ("''", ""),
        ("99999999999999999999d", ""),
        ("213503982334602d", ""),
    ] {
        let got = value.trim_matches('\'');
        let message = format!("u.yaml:1: ipsec.ike_rekey: {duration}, got \"{got}\"{suggestion}\n");
        assert_eq!(with(&format!("ipsec: {{ike_rekey: {value}}}")), message);
    }
    for (value, nearest) in [("0", 64), ("63", 64), ("65", 128), ("65537", 65_536), ("4294967295", 65_536)] {
        let message = format!(
            "u.yaml:1: ipsec.replay_window: expected a multiple of 64 from 64 to 65536, got \"{value}\"; did you mean \
             \"{nearest}\"?\n"
        );
        assert_eq!(with(&format!("ipsec: {{replay_window: {value}}}")), message);
    }
    for (lines, message) in [
        (
            "ipsec: {suites: []}",
            "u.yaml:1: ipsec.suites: expected at least one of aes256gcm16, chacha20poly1305 and aes128gcm16, got a list\n",
        ),
        ("ipsec: {suites: [aes128gcm16, aes128gcm16]}", "u.yaml:1: ipsec.suites[1]: aes128gcm16 stands twice in the list\n"),
        (
            "ipsec: {suites: [3des]}",
            "u.yaml:1: ipsec.suites[0]: expected aes256gcm16, chacha20poly1305 or aes128gcm16, got \"3des\"\n",
        ),
        (
            "ipsec: {dpd: 11s}",
            "u.yaml:1: ipsec.dpd: expected a duration from 1s to 10s, such as 90s, 10m or 4h, got \"11s\"\n",
        ),
        (
            "ipsec: {allow_short_psk: yes}",
            "u.yaml:1: ipsec.allow_short_psk: expected true or false, got \"yes\"; did you mean true?\n",
        ),
        ("ipsec: {dbd: 5s}", "u.yaml:1: ipsec.dbd: unknown key; did you mean \"dpd\"?\n"),
        ("ipsec: {ike-rekey: 5h}", "u.yaml:1: ipsec.ike-rekey: unknown key; did you mean \"ike_rekey\"?\n"),
    ] {
        assert_eq!(with(lines), message);
    }
}

#[test]
fn a_peer_must_have_one_key() {
    let weak = format!("public_key: {}", "A".repeat(43) + "=");
    let proofs = if cfg!(feature = "x509") { "psk, psk_file, public_key or ca_file" } else { "psk, psk_file or public_key" };
    let missing = format!("u.yaml:4: peers[0]: expected one of {proofs}: without a key the peer cannot prove itself\n");
    for (line, message) in [
        ("x-a: 1", missing.as_str()),
        ("psk: [a]", "u.yaml:6: peers[0].psk: expected a text, got a list\n"),
        ("psk: ''", "u.yaml:6: peers[0].psk: expected a shared key of 32 to 1024 octets, got 0\n"),
        ("psk_file: ''", "u.yaml:6: peers[0].psk_file: expected the path of a file, got \"\"\n"),
        (
            "psk: 0123456789abcdef0123456789abcdef",
            "u.yaml:6: warning: peers[0].psk: a key that stands here is seen by everybody who sees the file: psk_file keeps \
             it apart\n",
        ),
        (
            "public_key: abc",
            "u.yaml:6: peers[0].public_key: expected the peer's public key as `underpass key show` prints it there (not valid \
             base64), got \"abc\"\n",
        ),
        (
            &weak,
            "u.yaml:6: peers[0].public_key: expected the peer's public key as `underpass key show` prints it there (not a \
             usable Ed25519 public key: it is no point of the curve, or has a small order), got \
             \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n",
        ),
    ] {
        assert_eq!(spoiled("psk_file: beta.psk", line), message);
    }
    assert_eq!(
        spoiled("psk_file: beta.psk", "psk_file: a\n    public_key: b"),
        format!("u.yaml:7: peers[0].public_key: expected one of {proofs}, got this one besides psk_file\n")
    );
    assert_eq!(
        spoiled("psk_file: beta.psk", "psk: geheim\n    allow_short_psk: true"),
        "u.yaml:6: warning: peers[0].psk: a key that stands here is seen by everybody who sees the file: psk_file keeps it \
         apart\n"
    );
}

#[test]
fn a_shared_key_is_never_shown() {
    for spoil in ["psk: hunter2", "psk: hunter2\n    psk_file: x", "psk: hunter2\n    psk: hunter2", "psk: &a hunter2"] {
        let messages = spoiled("psk_file: beta.psk", spoil);
        assert!(!messages.is_empty() && !messages.contains("hunter2"), "{messages}");
    }
    let config = read(&GOOD.replace("psk_file: beta.psk", "psk: 0123456789abcdef0123456789abcdef")).0.unwrap();
    assert!(!format!("{config:?}").contains("0123456789"));
}

#[test]
fn a_peer_may_have_several_addresses() {
    let peer = |address: &str| good(&GOOD.replace("192.0.2.2", address)).peers.remove(0);
    let one = peer("192.0.2.2");
    assert_eq!(peer("[192.0.2.2]"), one, "a list of one is one");
    let several = peer("[192.0.2.2, '192.0.2.3:4501', 198.51.100.2]");
    let shown: Vec<String> = several.remotes().map(|remote| remote.to_string()).collect();
    assert_eq!(shown, ["192.0.2.2", "192.0.2.3:4501", "198.51.100.2"]);
    assert_eq!(several.remote, one.remote);
}

#[test]
fn peers_are_checked() {
    for (from, to, message) in [
        (
            "192.0.2.2",
            "beta.example.org",
            "u.yaml:5: peers[0].address: expected an address or ADDRESS:PORT (names are not looked up), got \
             \"beta.example.org\"\n",
        ),
        ("192.0.2.2", "192.0.2.2:0", "u.yaml:5: peers[0].address: expected a port from 1 to 65535, got \"192.0.2.2:0\"\n"),
        ("192.0.2.2", "0.0.0.0", "u.yaml:5: peers[0].address: expected the address of one host, got \"0.0.0.0\"\n"),
        ("192.0.2.2", "224.0.0.1", "u.yaml:5: peers[0].address: expected the address of one host, got \"224.0.0.1\"\n"),
        (
            "192.0.2.2",
            "'[2001:db8::2]'",
            "u.yaml:5: peers[0].address: expected an address or ADDRESS:PORT (names are not looked up), got \
             \"[2001:db8::2]\"; did you mean \"2001:db8::2\"?\n",
        ),
        (
            "192.0.2.2",
            "2001:db8::2",
            "u.yaml:5: peers[0].address: expected an IPv4 address, as host.listen.address is 0.0.0.0, got 2001:db8::2\n",
        ),
        (
            "192.0.2.2",
            "192.0.2.2:500",
            "u.yaml:5: warning: peers[0].address: port 500 is the IKE port; what stands here is the peer's NAT-T port, 4500 as \
             a rule\n",
        ),
        (
            "192.0.2.2",
            "[]",
            "u.yaml:5: peers[0].address: expected at least one address (without the key the peer calls us), got a list\n",
        ),
        (
            "192.0.2.2",
            "[192.0.2.2, '192.0.2.2:4501', 192.0.2.2]",
            "u.yaml:5: peers[0].address[2]: 192.0.2.2 is the address of peers[0] already (line 5)\n",
        ),
        (
            "192.0.2.2",
            "[192.0.2.2, 10.42.2.9]",
            "u.yaml:7: peers[0].remote_blocks[0]: 10.42.2.0/24 holds 10.42.2.9, beta's address (line 5): what is sent there \
             would enter the tunnel again; name the prefixes around it instead\n",
        ),
        ("name: beta", "name: alpha", "u.yaml:4: peers[0].name: \"alpha\" is this host's own name\n"),
        (
            "psk_file: beta.psk",
            "psk_file: beta.psk\n    remote_id: alpha",
            "u.yaml:7: peers[0].remote_id: \"alpha\" is what this host calls itself towards the peer\n",
        ),
        (
            "psk_file: beta.psk",
            "psk_file: beta.psk\n    remote_id: me@example.org",
            "u.yaml:7: peers[0].remote_id: expected a host name or an address (other kinds of IKE identities are not \
             supported), got \"me@example.org\"\n",
        ),
        (
            "remote_blocks: [10.42.2.0/24]",
            "x-a: 1",
            "u.yaml:4: peers[0].remote_blocks: expected a list of prefixes such as [10.42.1.0/24]; it is missing\n",
        ),
        (
            "[10.42.2.0/24]",
            "[fd00::/64]",
            "u.yaml:7: peers[0].remote_blocks[0]: our blocks and the peer's are of different address families: nothing can \
             flow\n",
        ),
        (
            "[10.42.2.0/24]",
            "[10.42.2.0/24]\n    local_blocks: [10.42.0.0/16]",
            "u.yaml:8: peers[0].local_blocks[0]: 10.42.0.0/16 is not in overlay.blocks: this host does not own it\n",
        ),
        (
            "[10.42.2.0/24]",
            "[10.42.0.0/16]",
            "u.yaml:7: peers[0].remote_blocks[0]: 10.42.0.0/16 overlaps 10.42.1.0/24, this host's own (line 2)\n",
        ),
        (
            "[10.42.2.0/24]",
            "[192.0.0.0/8]",
            "u.yaml:7: peers[0].remote_blocks[0]: 192.0.0.0/8 holds 192.0.2.2, beta's address (line 5): what is sent there \
             would enter the tunnel again; name the prefixes around it instead\n",
        ),
        (
            "{name: alpha}",
            "{name: alpha, listen: {address: 10.42.1.9}}",
            "u.yaml:2: overlay.blocks[0]: 10.42.1.0/24 holds 10.42.1.9, where this host listens (line 1): what is sent there \
             would enter the tunnel again; name the prefixes around it instead\n",
        ),
        (
            "  - name: beta",
            "    name: beta",
            "u.yaml:4: peers: expected a list (each item begins with `- `), got a section with keys\n",
        ),
    ] {
        assert_eq!(spoiled(from, to), message);
    }
}

#[test]
fn peers_are_checked_against_each_other() {
    let gamma = "  - {name: gamma, address: 192.0.2.3, psk_file: gamma.psk, remote_blocks: [10.42.3.0/24]}";
    assert_eq!(with_peer(gamma), "");
    for (from, to, message) in [
        ("name: gamma", "name: beta", "u.yaml:8: peers[1].name: \"beta\" is the name of peers[0] already (line 4)\n"),
        (
            "name: gamma",
            "name: gamma, remote_id: beta",
            "u.yaml:8: peers[1].remote_id: \"beta\" is the identity of peers[0] already (line 4)\n",
        ),
        ("192.0.2.3", "192.0.2.2", "u.yaml:8: peers[1].address: 192.0.2.2 is the address of peers[0] already (line 5)\n"),
        ("10.42.3.0/24", "10.42.2.0/24", "u.yaml:8: peers[1].remote_blocks[0]: 10.42.2.0/24 is beta's already (line 7)\n"),
        (
            "10.42.3.0/24",
            "10.42.2.64/26",
            "u.yaml:8: peers[1].remote_blocks[0]: 10.42.2.64/26 overlaps 10.42.2.0/24, beta's (line 7)\n",
        ),
        (
            "10.42.3.0/24",
            "10.42.2.0/23",
            "u.yaml:8: peers[1].remote_blocks[0]: 10.42.2.0/23 overlaps 10.42.2.0/24, beta's (line 7)\n",
        ),
        (
            "10.42.3.0/24",
            "10.42.1.0/25",
            "u.yaml:8: peers[1].remote_blocks[0]: 10.42.1.0/25 overlaps 10.42.1.0/24, this host's own (line 2)\n",
        ),
    ] {
        assert_eq!(with_peer(&gamma.replace(from, to)), message);
    }
    // Two hosts behind one NAT, and two peers that come to us, have nothing in common.
    for fine in ["'192.0.2.2:4501'", "'192.0.2.3:4500'"] {
        assert_eq!(with_peer(&gamma.replace("192.0.2.3", fine)), "");
    }
}

/// The naive way to find overlaps, against the one that sorts.
#[test]
fn overlaps_are_found_as_by_comparing_all_pairs() {
    let mut rng = SeededRng::new(11);
    for round in 0..200 {
        let nets: Vec<ipnet::IpNet> = (0..1 + rng.u32() % 6)
            .map(|_| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 | rng.u32() & 0xff);
                ipnet::Ipv4Net::new(address, 24 + (rng.u32() % 9) as u8).unwrap().trunc().into()
            })
            .collect();
        let naive = nets.iter().enumerate().any(|(i, a)| nets[..i].iter().any(|b| a.contains(b) || b.contains(a)));
        let list = nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let messages = read(&format!("overlay: {{blocks: [{list}]}}\n")).1;
        assert_eq!(messages.contains("overlaps") || messages.contains("already"), naive, "{round}: {list}: {messages}");
    }
}

fn key_file(mode: u32, contents: &[u8]) -> KeyFile {
    KeyFile { mode, owned: true, contents: Secret::copy_of(contents) }
}

#[test]
fn key_files_are_read_once_and_judged() {
    let resolve = |file: io::Result<KeyFile>| {
        let (config, mut report) = parse(Path::new("/etc/u.yaml"), GOOD.as_bytes(), &surroundings());
        let mut config = config.unwrap();
        let file = RefCell::new(Some(file));
        resolve_keys(&mut config, &mut report, &|path| {
            assert_eq!(path, Path::new("/etc/beta.psk"));
            file.take().expect("the file is read once")
        });
        (config.peers.remove(0).auth, report.to_string())
    };
    let psk = b"0123456789abcdef0123456789abcdef";
    for line_end in ["", "\n", "\r\n"] {
        let (auth, messages) = resolve(Ok(key_file(0o100_600, &[psk, line_end.as_bytes()].concat())));
        assert_eq!((auth, messages.as_str()), (PeerAuth::Psk(Secret::copy_of(psk)), ""));
    }
    for (file, message) in [
        (
            Ok(key_file(0o640, psk)),
            "expected a key file that only its owner can read, got mode 0640: chmod 600 /etc/beta.psk",
        ),
        (
            Ok(key_file(0o601, psk)),
            "expected a key file that only its owner can read, got mode 0601: chmod 600 /etc/beta.psk",
        ),
        (
            Ok(KeyFile { owned: false, ..key_file(0o600, psk) }),
            "expected a key file of root or of the agent's user: chown root /etc/beta.psk",
        ),
        (
            Ok(key_file(0o600, b"0123456789abcdef0123456789abcde\n")),
            "expected a shared key of 32 to 1024 octets, got 31; make one with `openssl rand -base64 32`, or say \
             allow_short_psk: true where the peer cannot take a longer one",
        ),
        (Ok(key_file(0o600, &[b'x'; 1025])), "expected a shared key of 32 to 1024 octets, got 1025"),
        (
            Err(io::Error::new(io::ErrorKind::NotFound, "not there")),
            "expected a readable key file, got /etc/beta.psk: not there",
        ),
    ] {
        let (auth, messages) = resolve(file);
        assert!(matches!(auth, PeerAuth::PskFile(_)));
        assert_eq!(messages, format!("/etc/u.yaml:6: peers[0].psk_file: {message}\n"));
    }
}

#[cfg(feature = "x509")]
mod certificates {
    use super::*;
    use crate::crypto::x509::authority::{Authority, params};

    const FILES: &str = "{name: alpha, certificate_file: alpha.pem, certificate_key_file: alpha.key}";

    fn certified() -> String {
        GOOD.replacen("{name: alpha}", FILES, 1).replacen("psk_file: beta.psk", "ca_file: ca.pem", 1)
    }

    #[test]
    fn what_certificates_need_is_asked_for() {
        let peer = "u.yaml:6: peers[0].";
        assert_eq!(
            spoiled("psk_file: beta.psk", "ca_file: ca.pem"),
            format!(
                "{peer}ca_file: host.certificate_file is missing: the peer proves itself by a certificate, and so must we\n"
            )
        );
        assert_eq!(
            spoiled("{name: alpha}", "{name: alpha, certificate_file: a}"),
            "u.yaml:1: host.certificate_file: expected certificate_file and certificate_key_file together; the other one is missing\n"
        );
        assert_eq!(
            spoiled("psk_file: beta.psk", "psk_file: beta.psk\n    remote_id: CN=beta"),
            "u.yaml:7: peers[0].remote_id: a distinguished name goes with ca_file, not with psk_file: expected a host name or an \
             address\n"
        );
        assert_eq!(
            spoiled("psk_file: beta.psk", "psk_file: beta.psk\n    ca_file: ca.pem"),
            "u.yaml:7: peers[0].ca_file: expected one of psk, psk_file, public_key or ca_file, got this one besides psk_file\n"
        );
        let named = certified().replacen("ca_file: ca.pem", "ca_file: ca.pem\n    remote_id: 'o=Example,cn=beta'", 1);
        assert_eq!(good(&named).peers[0].remote_id, PeerId::Distinguished("O=Example, CN=beta".to_owned()));
        assert!(read(&named.replacen("cn=beta", "beta", 1)).1.contains("expected a distinguished name such as C=CH"));
    }

    #[test]
    fn certificate_files_are_judged() {
        let root = Authority::new("root", "p256");
        let (chain, key) = root.issue(&params("alpha", false), "p384");
        let (other, other_key) = root.issue(&params("other", false), "p256");
        type Files<'a> = [(u32, &'a str); 3];
        let resolve = |[chain, key, authority]: Files<'_>| {
            let (config, mut report) = parse(Path::new("/etc/u.yaml"), certified().as_bytes(), &surroundings());
            let mut config = config.unwrap();
            resolve_keys(&mut config, &mut report, &|path| {
                let (mode, text) = match path.to_str() {
                    Some("/etc/alpha.pem") => chain,
                    Some("/etc/alpha.key") => key,
                    _ => authority,
                };
                Ok(key_file(mode, text.as_bytes()))
            });
            (config.peers.remove(0).auth, report.to_string())
        };
        let fine: Files<'_> = [(0o644, &chain), (0o600, &key), (0o644, root.pem())];
        let (auth, messages) = resolve(fine);
        assert_eq!((matches!(auth, PeerAuth::Certificate(..)), messages.as_str()), (true, ""));
        let cases: [(Files<'_>, &str); 7] = [
            (
                [fine[0], (0o640, &key), fine[2]],
                "host.certificate_key_file: expected a key file that only its owner can read, got mode 0640",
            ),
            (
                [(0o664, &chain), fine[1], fine[2]],
                "host.certificate_file: expected a file that only its owner can write, got mode 0664",
            ),
            (
                [fine[0], fine[1], (0o666, root.pem())],
                "peers[0].ca_file: expected a file that only its owner can write, got mode 0666",
            ),
            (
                [fine[0], (0o600, &other_key), fine[2]],
                "host.certificate_file: /etc/alpha.pem: the private key is not that of",
            ),
            (
                [(0o644, &other), (0o600, &other_key), fine[2]],
                "host.certificate_file: this host calls itself alpha towards beta, but",
            ),
            (
                [fine[0], fine[1], (0o644, &chain)],
                "peers[0].ca_file: /etc/ca.pem: O=Example, CN=alpha may not issue certificates",
            ),
            ([fine[0], fine[1], (0o644, "")], "peers[0].ca_file: /etc/ca.pem: expected 1 to 8 PEM blocks"),
        ];
        for (files, why) in cases {
            let (auth, messages) = resolve(files);
            assert!(matches!(auth, PeerAuth::CaFile(_)) && messages.contains(why), "{why}: {messages}");
        }
    }
}

#[test]
fn a_list_of_public_keys_is_a_list_of_pins() {
    let keys: Vec<String> =
        (1..=5).map(|seed| crate::crypto::SigningKey::from_seed(&[seed; 32]).verifying_key().to_base64()).collect();
    let with_keys = |keys: &[String]| GOOD.replacen("psk_file: beta.psk", &format!("public_key: [{}]", keys.join(", ")), 1);
    let PeerAuth::PublicKeys(pins) = good(&with_keys(&keys[..2])).peers.remove(0).auth else { panic!("public keys") };
    assert_eq!(pins.iter().map(crate::crypto::VerifyingKey::to_base64).collect::<Vec<_>>(), keys[..2]);
    for (keys, why) in [
        (&[][..], "expected at least one public key"),
        (&[keys[0].clone(), keys[0].clone()], "this key stands twice in the list"),
        (&keys, "at most 4"),
    ] {
        let messages = read(&with_keys(keys)).1;
        assert!(messages.starts_with("u.yaml:6: peers[0].public_key") && messages.contains(why), "{messages}");
    }
}

/// Mutations of good files and plain noise: always messages or a configuration, never a panic, never long.
#[test]
fn garbage_ends_in_messages() {
    let seeds = [
        GOOD.to_owned(),
        "x-a: [1, {b: c}, 'd', \"e\\n\", |\n f\n, >-\n g]\noverlay: {blocks: [10.0.0.0/8]}".to_owned(),
        "host:\n  listen: {address: '::', ike_port: 1}\n  name: |\n   x\nipsec: {suites: [aes128gcm16], dpd: 3s}".to_owned(),
    ];
    let mut rng = SeededRng::new(3);
    for round in 0..3000 {
        let mut octets = seeds[round % seeds.len()].clone().into_bytes();
        for _ in 0..1 + rng.u32() % 5 {
            let at = rng.u32() as usize % octets.len();
            let structural = b":-[]{},&*!|>'\"%@`#?~\n \t"[rng.u32() as usize % 23];
            match rng.u32() % 5 {
                0 => octets[at] = rng.u32() as u8,
                1 => octets[at] = structural,
                2 => octets.insert(at, structural),
                3 => octets.truncate(at + 1),
                _ => {
                    let other = seeds[rng.u32() as usize % seeds.len()].as_bytes();
                    let from = rng.u32() as usize % other.len();
                    octets.splice(at..at, other[from..].iter().take(20).copied());
                }
            }
        }
        let (config, report) = parse(Path::new("u.yaml"), &octets, &surroundings());
        assert_eq!(config.is_none(), report.has_errors());
        assert!(report.messages.len() <= 100);
    }
}

#[test]
fn the_keys_that_there_are_are_listed_once() {
    let (_, report) = read("overlay: {blocks: [10.42.1.0/24]}\nsomething_else: 1\n");
    let expected = "unknown key; expected host, tun, mesh, store, overlay, ipsec, peers, drivers, cni or docker";
    assert!(report.contains(expected), "{report}");
}
