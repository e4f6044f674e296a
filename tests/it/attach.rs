//! Containers on the managed network: two hosts with their agents, a neighbour on the underlay, and those who forge.
//!
//! ```text
//!   c1, c2 -- bridge -- alpha 10.9.0.1 ------ 10.9.0.2 beta -- bridge -- c1
//!                         | 10.9.7.1
//!                       outside 10.9.7.2
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use serde_json::json;
use underpass::sys::netlink::{Netlink, VethEnd};
use underpass::sys::netns::Namespace;
use underpass::sys::packet::PacketSocket;

use crate::lab::Lab;
use crate::lab::agent::{Agent, FIRST_CONTACT, paired};
use crate::lab::site::{Site, namespace, output, run};

/// Longer than any packet takes that arrives.
const PATIENCE: Duration = Duration::from_millis(800);

/// Two hosts, their agents, and a container on each.
fn two_hosts(lab: &Lab) -> (Agent, Agent, Site, Site) {
    let (alpha, beta) = paired(lab, |config| config);
    let mut sites = (Site::of_agent(&lab.alpha, &alpha), Site::of_agent(&lab.beta, &beta));
    for site in [&mut sites.0, &mut sites.1] {
        site.add("c1");
    }
    (alpha, beta, sites.0, sites.1)
}

pub fn pings(from: &Namespace, address: IpAddr, more: &[&str]) -> bool {
    let address = address.to_string();
    output(from, &[&["ping", "-n", "-c", "3", "-i", "0.1", "-W", "2"], more, &[&address]].concat()).status.success()
}

/// Sends octets by TCP and holds the receiver's against them; who the receiver says has called.
pub fn stream(from: &Namespace, to: &Namespace, address: IpAddr, octets: usize) -> std::io::Result<IpAddr> {
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, caller) = listener.accept()?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got)?;
            if got.is_empty() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            assert!(got.len() == octets && got.iter().enumerate().all(|(at, octet)| *octet == (at % 251) as u8));
            Ok(caller.ip())
        });
        let sent: Vec<u8> = (0..octets).map(|at| (at % 251) as u8).collect();
        let connected = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(5)));
        match connected.unwrap() {
            Ok(mut stream) => stream.write_all(&sent)?,
            Err(error) => {
                // Somebody must call, or the receiver waits for ever.
                to.run(|| TcpStream::connect((address, port)).map(drop)).unwrap()?;
                let _ = receiver.join();
                return Err(error);
            }
        }
        receiver.join().unwrap()
    })
}

/// Whether one datagram arrives, and from whom it says it is.
pub fn datagram(from: &Namespace, source: IpAddr, to: &Namespace, address: IpAddr) -> Option<IpAddr> {
    let receiver = to.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let place = receiver.local_addr().unwrap();
    from.run(|| {
        let sender = UdpSocket::bind((source, 0)).expect("the forger has this address");
        // What the kernel refuses does not arrive either.
        let _ = sender.send_to(b"hello", place);
    })
    .unwrap();
    let mut buffer = [0; 16];
    loop {
        match receiver.recv_from(&mut buffer) {
            Ok((_, from)) => return Some(from.ip()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[test]
fn containers_reach_each_other_across_hosts() {
    let lab = Lab::direct();
    let (alpha, _beta, mut near, far) = two_hosts(&lab);
    near.add("c2");
    let mtu = near.inside("c1").run(|| Netlink::open().unwrap().link("eth0").unwrap().mtu).unwrap();
    assert!((1280..1500).contains(&mtu), "{mtu}: what the tunnel takes");
    let device = near.namespace.run(|| Netlink::open().unwrap().link("underpass0").unwrap().mtu).unwrap();
    assert_eq!(mtu, device);
    let whole = (mtu - 28).to_string();
    for (from, to) in [(&near, &far), (&far, &near)] {
        assert!(pings(from.inside("c1"), to.address("c1"), &[]));
        assert!(pings(from.inside("c1"), to.address("c1"), &["-M", "do", "-s", &whole]), "a packet of {mtu} octets");
        let caller = stream(from.inside("c1"), to.inside("c1"), to.address("c1"), 20_000_000).unwrap();
        assert_eq!(caller, from.address("c1"), "nobody changes addresses within the network");
        assert!(pings(&from.namespace, to.address("c1"), &[]), "from the host itself");
    }
    let carried = || {
        let status = alpha.status();
        let workers = status["workers"].as_array().unwrap().iter();
        workers.map(|worker| worker["outbound_packets"].as_u64().unwrap()).sum::<u64>()
    };
    let before = carried();
    stream(near.inside("c1"), near.inside("c2"), near.address("c2"), 20_000_000).unwrap();
    let after = carried();
    assert!(after - before < 20, "local traffic stays out of the engine: {before} to {after}");
}

/// Containers that believe in 1500 octets open connections that fit through the tunnel all the same.
#[test]
fn segments_fit_through_the_tunnel() {
    let lab = Lab::direct();
    let (_alpha, _beta, mut near, mut far) = two_hosts(&lab);
    let device = near.namespace.run(|| Netlink::open().unwrap().link("underpass0").unwrap().mtu).unwrap();
    for site in [&mut near, &mut far] {
        site.add("wide");
        // Nobody gives a container more than the tunnel takes; this one takes it.
        for namespace in [&site.namespace, site.inside("wide")] {
            let is_host = std::ptr::eq(namespace, &site.namespace);
            let link = if is_host { site.containers["wide"].port.as_str() } else { "eth0" };
            namespace.run(|| Netlink::open().unwrap().set_mtu(link, 1500).unwrap()).unwrap();
        }
    }
    let address = far.address("wide");
    let listener = far.inside("wide").run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
    let place = listener.local_addr().unwrap();
    let (from, to) = (near.inside("wide"), far.inside("wide"));
    assert_eq!(from.run(|| Netlink::open().unwrap().link("eth0").unwrap().mtu).unwrap(), 1500);
    let near_end = from.run(|| TcpStream::connect_timeout(&place, Duration::from_secs(5)).unwrap()).unwrap();
    let (far_end, _) = to.run(|| listener.accept().unwrap()).unwrap();
    for end in [near_end, far_end] {
        let largest = socket2::SockRef::from(&end).tcp_mss().unwrap();
        // IPv4 and TCP without options have 40 octets.
        assert!((1000..=device - 40).contains(&largest), "{largest} through {device}");
    }
}

/// With Debian's `portmap` behind ours: the mapping is its own, and the fence lets pass what it lets in.
#[test]
fn a_published_port_is_reached_from_outside() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::new(&lab.alpha, folder.path());
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let mut conf = site.conf();
    conf["runtimeConfig"] = json!({"portMappings": mappings});
    site.add_with("c1", &conf);
    let (outside, _) = outside(&site);
    let inside: SocketAddr = (site.address("c1"), 80).into();
    let listener = site.inside("c1").run(|| TcpListener::bind(inside).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let connects = |place: &str| {
        let place: SocketAddr = place.parse().unwrap();
        outside.run(|| TcpStream::connect_timeout(&place, Duration::from_secs(2)).is_ok()).unwrap()
    };
    run(&outside, "ip route add 10.42.0.0/16 via 10.9.7.1");
    assert!(!connects("10.9.7.1:8080"), "nobody maps it yet");
    assert!(!connects(&inside.to_string()), "nor by its own address");
    let chained = json!({
        "cniVersion": "1.0.0", "name": "managed", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mappings},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/proc/self/ns/net"}],
            "ips": [{"address": format!("{}/16", site.address("c1")), "gateway": "10.42.0.1", "interface": 0}],
        },
    });
    symlink("/usr/lib/cni/portmap", site.folder.path().join("portmap")).unwrap();
    site.call("ADD", "c1", site.inside("c1"), &chained);
    assert!(connects("10.9.7.1:8080"), "mapped, and let through");
    assert_eq!(listener.accept().unwrap().1.ip(), "10.9.7.2".parse::<IpAddr>().unwrap(), "its caller is seen as he is");
    assert!(!connects(&inside.to_string()), "still not by its own address");
    site.call("DEL", "c1", site.inside("c1"), &chained);
    assert!(!connects("10.9.7.1:8080"));
    site.del("c1");
    assert!(!run(&site.namespace, "nft list set inet underpass-net published4").contains("10.42."), "nothing is left");
}

/// A network behind alpha's second interface: `(namespace, its address)`.
pub fn outside(site: &Site) -> (Namespace, IpAddr) {
    let outside = namespace();
    site.namespace
        .run(|| {
            let far = VethEnd { name: "lan0", namespace: Some(outside.as_fd()) };
            let mut netlink = Netlink::open().unwrap();
            netlink.create_veth(VethEnd { name: "lan0", namespace: None }, far).unwrap();
            netlink.set_up("lan0").unwrap();
            netlink.add_address("lan0", "10.9.7.1/24".parse().unwrap()).unwrap();
        })
        .unwrap();
    for line in ["ip link set lan0 up", "ip address add 10.9.7.2/24 dev lan0"] {
        run(&outside, line);
    }
    let address = "10.9.7.2".parse().unwrap();
    assert!((0..10).any(|_| pings(&site.namespace, address, &[])), "the link works");
    (outside, address)
}

#[test]
fn the_outside_sees_the_host() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::new(&lab.alpha, folder.path());
    site.add("c1");
    let (outside, address) = outside(&site);
    assert_eq!(stream(site.inside("c1"), &outside, address, 100_000).unwrap(), "10.9.7.1".parse::<IpAddr>().unwrap());
    assert!(stream(&outside, site.inside("c1"), site.address("c1"), 1000).is_err(), "nobody gets in by himself");
    run(&outside, "ip route add 10.42.0.0/16 via 10.9.7.1");
    assert!(stream(&outside, site.inside("c1"), site.address("c1"), 1000).is_err(), "even if he knows the way");
    let mut without = site.conf();
    without["hostNat"] = json!(false);
    site.add_with("c2", &without);
    assert!(stream(site.inside("c1"), &outside, address, 1000).is_err(), "without hostNat nobody gets out");
    assert!(pings(site.inside("c1"), site.address("c2"), &[]));
}

/// A neighbour who sends from his own address, from others' and from overlay addresses, with the way to the overlay by us.
fn forger(site: &Site) -> Namespace {
    let (neighbour, _) = outside(site);
    for address in ["10.9.7.77/32", "10.42.2.9/32", "10.42.1.200/32"] {
        run(&neighbour, &format!("ip address add {address} dev lo"));
    }
    run(&neighbour, "ip route add 10.42.0.0/16 via 10.9.7.1");
    neighbour
}

const FORGED: [&str; 4] = ["10.9.7.2", "10.9.7.77", "10.42.2.9", "10.42.1.200"];

/// The host on the neighbour's link, and as the containers' gateway.
const HOST: &str = "10.9.7.1";
const GATEWAY: &str = "10.42.0.1";

fn set_rp_filter(site: &Site, value: u8) {
    for scope in ["all", "default", "lan0", "up0", "managed0"] {
        run(&site.namespace, &format!("sysctl -qw net.ipv4.conf.{scope}.rp_filter={value}"));
    }
}

fn nobody_gets_in(site: &Site, neighbour: &Namespace, when: &str) {
    for rp_filter in [0, 1, 2] {
        set_rp_filter(site, rp_filter);
        for source in FORGED {
            let source = source.parse().unwrap();
            let got = datagram(neighbour, source, site.inside("c1"), site.address("c1"));
            assert_eq!(got, None, "{when}, rp_filter {rp_filter}, from {source}");
        }
        for (source, address) in [("10.42.2.9", HOST), ("10.9.7.2", GATEWAY)] {
            let got = reaches_host(site, neighbour, source, address);
            assert!(!got, "{when}, rp_filter {rp_filter}, from {source} to the host's {address}");
        }
    }
    set_rp_filter(site, 0);
}

fn reaches_host(site: &Site, neighbour: &Namespace, source: &str, address: &str) -> bool {
    datagram(neighbour, source.parse().unwrap(), &site.namespace, address.parse().unwrap()).is_some()
}

#[test]
fn a_neighbour_who_forges_reaches_no_container() {
    let lab = Lab::direct();
    let (mut alpha, _beta, mut near, far) = two_hosts(&lab);
    let neighbour = forger(&near);
    nobody_gets_in(&near, &neighbour, "with the agent");
    alpha.kill();
    nobody_gets_in(&near, &neighbour, "with the agent killed");
    alpha.start();
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    assert!(pings(near.inside("c1"), far.address("c1"), &[]));
    assert_eq!(alpha.stop("TERM"), Some(0));
    nobody_gets_in(&near, &neighbour, "with the agent stopped");
    // Nothing leaves in clear either: what is for the network stays here.
    run(&near.namespace, "ip route add default via 10.9.7.2");
    assert!(!pings(near.inside("c1"), far.address("c1"), &["-c", "1"]));
    near.add("c2");
    assert!(pings(near.inside("c2"), near.address("c1"), &[]), "the rest goes on");
    // Part by part without the fence, what it keeps out arrives: the test sees what gets past.
    run(&near.namespace, "nft flush chain inet underpass-net source");
    assert!(reaches_host(&near, &neighbour, "10.42.2.9", HOST));
    run(&near.namespace, "nft flush chain inet underpass-net destination");
    assert!(reaches_host(&near, &neighbour, "10.9.7.2", GATEWAY));
    run(&near.namespace, "nft flush ruleset");
    for source in ["10.9.7.2", "10.42.2.9"] {
        let source = source.parse().unwrap();
        assert_eq!(datagram(&neighbour, source, near.inside("c1"), near.address("c1")), Some(source));
    }
}

#[test]
fn a_container_that_forges_reaches_nobody() {
    let lab = Lab::direct();
    let (_alpha, _beta, mut near, far) = two_hosts(&lab);
    near.add("forger");
    near.add("victim");
    let (forger, victim) = (near.inside("forger"), near.address("victim"));
    let own = near.address("forger");
    assert!(pings(forger, near.address("c1"), &[]) && pings(near.inside("victim"), near.address("c1"), &[]));
    let everybody = [(near.inside("c1"), near.address("c1")), (far.inside("c1"), far.address("c1"))];
    for (to, address) in everybody {
        assert_eq!(datagram(forger, own, to, address), Some(own), "as itself");
    }
    // Others' addresses: a neighbour's, one of the other host, one of nobody, the host's.
    for source in [victim.to_string(), far.address("c1").to_string(), "10.42.9.9".into(), "10.42.0.1".into()] {
        run(forger, &format!("ip address add {source}/32 dev lo"));
        for (to, address) in everybody {
            let source: IpAddr = source.parse().unwrap();
            if source != address {
                assert_eq!(datagram(forger, source, to, address), None, "from {source} to {address}");
            }
        }
        run(forger, &format!("ip address del {source}/32 dev lo"));
    }
    // Another's place in the neighbours' tables, by a gratuitous ARP with the forger's own link-layer address.
    let before = run(near.inside("c1"), "ip neigh show");
    assert!(before.contains(&victim.to_string()), "{before}");
    let (IpAddr::V4(stolen), IpAddr::V4(own4)) = (victim, own) else { panic!("IPv4") };
    let mac = |address: std::net::Ipv4Addr| [[2, 0].as_slice(), &address.octets()].concat();
    let send = |frame: &[u8]| {
        let send = || {
            let index = Netlink::open().unwrap().link_index("eth0").unwrap();
            PacketSocket::send_frame(index, frame).unwrap();
        };
        forger.run(send).unwrap();
    };
    let announce = |mac: &[u8]| {
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], mac, &stolen.octets(), &[0; 6], &stolen.octets()].concat();
        send(&[&[0xff; 6], mac, &[8, 6], &arp].concat());
    };
    announce(&mac(own4));
    announce(&mac(stolen));
    thread::sleep(Duration::from_millis(200));
    let lines = |text: &str| {
        let words = |line: &str| line.split(' ').filter(|word| word.contains([':', '.'])).collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = text.lines().map(words).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&run(near.inside("c1"), "ip neigh show")), lines(&before));
    assert!(pings(near.inside("c1"), victim, &[]), "the victim is where it was");
    // Another's place in the bridge's table, by a frame that is honest but for where it comes from.
    let misplace = || {
        let own = own4.octets();
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], &mac(own4)[..], &own, &[0; 6], &own].concat();
        send(&[&[0xff; 6], &mac(stolen)[..], &[8, 6], &arp].concat());
        thread::sleep(Duration::from_millis(200));
        let table = run(&near.namespace, "bridge fdb show br managed0");
        let stolen = mac(stolen).iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
        let line = table.lines().find(|line| line.starts_with(&stolen)).unwrap_or_else(|| panic!("{stolen}: {table}"));
        ["victim", "forger"].into_iter().find(|name| line.contains(&near.containers[*name].port))
    };
    assert_eq!(misplace(), Some("victim"));
    // Another's link-layer address.
    run(forger, "ip link set eth0 down");
    run(
        forger,
        &format!(
            "ip link set eth0 address {}",
            mac(stolen).iter().map(|o| format!("{o:02x}")).collect::<Vec<_>>().join(":")
        ),
    );
    run(forger, "ip link set eth0 up");
    for (to, address) in everybody {
        assert_eq!(datagram(forger, own, to, address), None, "with another's link-layer address");
    }
    assert!(pings(near.inside("c1"), victim, &[]));
    let counted = run(&near.namespace, "nft list table bridge underpass-net");
    let line = counted.lines().find(|line| line.contains("packets")).unwrap();
    assert!(!line.contains("packets 0 "), "{line}");
    run(&near.namespace, "nft flush chain bridge underpass-net port");
    assert_eq!(misplace(), Some("forger"), "the test sees what the fence keeps out");
}

#[test]
fn two_networks_on_one_host_stay_apart() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::new(&lab.alpha, folder.path());
    site.add("c1");
    let mut blue = site.conf();
    blue["name"] = json!("blue");
    blue["bridge"] = json!("blue0");
    blue["ipam"] = json!({"type": "host-local", "dataDir": folder.path(), "ranges": [[{"subnet": "10.43.1.0/24"}]]});
    site.add_with("b1", &blue);
    site.add_with("b2", &blue);
    assert!(pings(site.inside("b1"), site.address("b2"), &[]));
    for (from, to) in [("c1", "b1"), ("b1", "c1")] {
        let got = datagram(site.inside(from), site.address(from), site.inside(to), site.address(to));
        assert_eq!(got, None, "{from} to {to}");
    }
}

#[test]
fn what_is_deleted_is_gone_whatever_else_is() {
    let lab = Lab::direct();
    let (mut alpha, _beta, mut near, _far) = two_hosts(&lab);
    let ports = |site: &Site| run(&site.namespace, "ip -o link").matches("vethr").count();
    near.add("c2");
    alpha.kill();
    near.del("c2");
    assert_eq!(ports(&near), 1);
    // The namespace ended first: the port went with it, the rest with DEL.
    let gone = near.containers.remove("c1").unwrap();
    let port = gone.port.clone();
    drop(gone);
    let late = std::time::Instant::now() + Duration::from_secs(10);
    while ports(&near) > 0 {
        assert!(std::time::Instant::now() < late, "the kernel takes a namespace's interfaces away");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(run(&near.namespace, "nft list ruleset").contains(&port));
    let other = namespace();
    near.call("DEL", "c1", &other, &near.conf());
    near.call("DEL", "c1", &other, &near.conf());
    assert!(!run(&near.namespace, "nft list ruleset").contains(&port));
}
