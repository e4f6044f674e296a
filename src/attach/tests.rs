//! What a container gets, in namespaces of the test.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;
use crate::sys::netlink::{Netlink, VethEnd};
use crate::sys::netns::Namespace;

/// The fence's tables.
const TABLES: &str = "underpass-net";

/// A host with nothing, and containers with nothing.
struct World {
    host: Namespace,
    containers: Vec<Namespace>,
}

fn world(containers: usize) -> World {
    let namespace = || {
        let namespace = Namespace::create().expect("needs root");
        namespace.run(|| Netlink::open().unwrap().set_up("lo").unwrap()).unwrap();
        namespace
    };
    World { host: namespace(), containers: (0..containers).map(|_| namespace()).collect() }
}

fn path(namespace: &Namespace) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()).into()
}

fn network(bridge: &str) -> HostNetwork {
    HostNetwork {
        bridge: bridge.to_owned(),
        gateways: vec!["10.42.0.1/16".parse().unwrap()],
        subnets: vec!["10.42.0.0/16".parse().unwrap(), "fd00:42::/64".parse().unwrap()],
        on_link: Vec::new(),
        tun: TUN.to_owned(),
        host_nat: true,
        promiscuous: false,
    }
}

fn owner(container: usize) -> Owner {
    Owner { container: format!("c{container}"), interface: "eth0".into(), cni_network: "net".into() }
}

impl World {
    fn keep(&self, keeper: &mut Keeper) -> (bool, bool) {
        self.host.run(|| keeper.look()).unwrap().unwrap()
    }

    fn attachment(&self, container: usize) -> Attachment {
        Attachment {
            owner: owner(container),
            netns: path(&self.containers[container]),
            addresses: [format!("10.42.1.{}/16", container + 2), format!("fd00:42::{}/64", container + 2)]
                .map(|address| address.parse().unwrap())
                .into(),
            routes: vec![Route { destination: "0.0.0.0/0".parse().unwrap(), gateway: Some("10.42.0.1".parse().unwrap()) }],
            mac: None,
            mtu: Some(1400),
            own_overhead: None,
            hairpin: false,
            published: Vec::new(),
        }
    }

    fn attach(&self, container: usize) -> Result<Attached, AttachError> {
        let attachment = self.attachment(container);
        self.host.run(|| attach(&network("br-test"), &attachment)).unwrap()
    }

    fn check(&self, container: usize) -> Result<(), AttachError> {
        let attachment = self.attachment(container);
        self.host.run(|| check(&network("br-test"), &attachment)).unwrap()
    }

    fn nft(&self, arguments: &[&str]) -> String {
        run(&self.host, "nft", arguments).1
    }

    /// Everything there is on the host, for comparison.
    fn state(&self) -> String {
        let links = self.host.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let names: Vec<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
            names.join(" ")
        });
        // Counters count what the kernel says by itself.
        let rules = self.nft(&["-s", "list", "ruleset"]);
        let rules: Vec<&str> = rules.lines().filter(|line| !line.contains("packets")).collect();
        format!("{}\n{}", links.unwrap(), rules.join("\n"))
    }

    fn pings(&self, from: usize, address: &str) -> bool {
        run(&self.containers[from], "ping", &["-c", "1", "-W", "1", address]).0
    }
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = namespace.spawn(command).expect("a program").wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn containers_reach_each_other_and_the_gateway() {
    let world = world(2);
    let attached = world.attach(0).unwrap();
    assert_eq!((attached.mac, attached.mtu), ([2, 0, 10, 42, 1, 2], 1400));
    assert_eq!(attached.port, port_of(&owner(0)));
    world.attach(1).unwrap();
    for container in [0, 1] {
        world.check(container).unwrap();
        assert!(world.pings(container, "10.42.0.1"));
        assert!(world.pings(container, &format!("10.42.1.{}", 3 - container)));
        assert!(world.pings(container, &format!("fd00:42::{}", 3 - container)));
    }
    let error = world.attach(0).unwrap_err();
    assert_eq!(error.to_string(), "the container has an interface eth0 already");
    assert!(world.pings(0, "10.42.1.3"), "and it goes on");
    let listed = world.host.run(|| attachments().unwrap()).unwrap();
    let mut owners: Vec<_> = listed.into_iter().filter_map(|port| port.owner).collect();
    owners.sort();
    assert_eq!(owners, [owner(0), owner(1)]);
    let before = world.state();
    assert!(before.contains("10.42.1.2"), "{before}");
    assert!(world.host.run(|| detach(&owner(0)).unwrap()).unwrap());
    assert!(!world.host.run(|| detach(&owner(0)).unwrap()).unwrap());
    assert!(!world.state().contains("10.42.1.2"), "{}", world.state());
    assert!(!world.state().contains("fd00:42::2"), "{}", world.state());
    assert!(matches!(world.check(0), Err(AttachError::Changed(_))));
    assert!(!world.pings(1, "10.42.1.2"));
    world.attach(0).unwrap();
    assert!(world.pings(1, "10.42.1.2"));
    assert_eq!(world.state().lines().count(), before.lines().count());
}

#[test]
fn what_a_network_needs_is_made_once_and_taken_away() {
    let world = world(0);
    let before = world.state();
    let prepared = world.host.run(|| prepare(&network("br-test")).unwrap()).unwrap();
    assert!(prepared.is_new && prepared.bridge_mac == [2, 0, 10, 42, 0, 1], "{prepared:?}");
    let made = world.state();
    assert!(!world.host.run(|| prepare(&network("br-test")).unwrap()).unwrap().is_new);
    assert_eq!(world.state(), made);
    assert!(run(&world.host, "ip", &["route", "get", "10.42.2.5"]).0);
    world.host.run(|| Netlink::open().unwrap().set_down("br-test").unwrap()).unwrap();
    let leads = run(&world.host, "ip", &["route", "show", "10.42.0.0/16"]).1;
    assert!(leads.starts_with("unreachable 10.42.0.0/16"), "what no bridge takes goes nowhere: {leads}");
    world.host.run(|| prepare(&network("br-test")).unwrap()).unwrap();
    let error = world.host.run(|| prepare(&network("br-other")).unwrap_err()).unwrap();
    assert!(matches!(&error, AttachError::Overlap { other, .. } if other == "br-test"), "{error}");
    for (bridge, subnet) in [("br-other", "10.40.0.0/14"), ("br-other", "10.42.1.0/24"), ("br-test", "10.42.0.0/17")] {
        let other = HostNetwork { subnets: vec![subnet.parse().unwrap()], ..network(bridge) };
        let error = world.host.run(|| prepare(&other).unwrap_err()).unwrap();
        assert!(matches!(&error, AttachError::Overlap { other, .. } if other == "br-test"), "{error}");
    }
    let mut inside = network("br-test");
    inside.gateways = vec!["10.42.0.9/16".parse().unwrap()];
    let error = world.host.run(|| prepare(&inside).unwrap_err()).unwrap();
    assert_eq!(error.to_string(), "the bridge br-test has 10.42.0.1/16, so it cannot be the gateway 10.42.0.9/16");
    let without = HostNetwork { host_nat: false, ..network("br-test") };
    world.host.run(|| prepare(&without).unwrap()).unwrap();
    assert_ne!(world.state(), made);
    world.host.run(|| prepare(&network("br-test")).unwrap()).unwrap();
    assert_eq!(world.state(), made);
    world
        .host
        .run(|| {
            forget(&network("br-test")).unwrap();
            forget(&network("br-test")).unwrap();
        })
        .unwrap();
    assert_eq!(world.state(), before);
}

/// A bridge as Docker has it, with addresses of its own, on which two networks live one after the other.
#[test]
fn a_bridge_of_somebody_else_is_given_back_as_it_was() {
    let world = world(0);
    let on_host = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        run(&world.host, words[0], &words[1..]).1
    };
    // Without an address that the kernel gives it in its own time.
    let made = ["link add docker0 type bridge", "link set docker0 addrgenmode none"];
    for line in made.into_iter().chain(["address add 172.17.0.1/16 dev docker0", "link set docker0 up"]) {
        on_host(&format!("ip {line}"));
    }
    let state = || {
        let shown = [
            "link show docker0",
            "-4 address show docker0",
            "-6 address show docker0",
            "route show table all",
            "-6 route show table all",
        ];
        let mut all: Vec<String> = shown.map(|line| on_host(&format!("ip {line}"))).into();
        let settings = ["ipv4/conf/docker0/proxy_arp", "ipv4/neigh/docker0/proxy_delay"];
        all.extend(settings.map(|setting| on_host(&format!("cat /proc/sys/net/{setting}"))));
        all.push(world.state());
        // Whether the bridge has a carrier, which it loses in its own time.
        let is_carrier = |word: &&str| word.starts_with('<') || ["UNKNOWN", "DOWN", "UP", "linkdown"].contains(word);
        // And routers' anycast addresses, which come in their own time as well where the host forwards.
        let lines = all.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with("anycast"));
        let words = lines.flat_map(|line| line.split_whitespace().filter(|word| !is_carrier(word)));
        words.collect::<Vec<_>>().join(" ")
    };
    let before = state();
    let on_docker = HostNetwork {
        gateways: ["10.42.0.1/16", "fe80::1/64"].map(|net| net.parse().unwrap()).into(),
        on_link: vec!["fd00:42::/80".parse().unwrap()],
        ..network("docker0")
    };
    world.host.run(|| prepare(&on_docker).unwrap()).unwrap();
    let used = state();
    for there in ["fd00:42::/80 dev docker0", "fe80::1/64", "10.42.0.1/16", "group 30064", "underpass-net"] {
        assert!(used.contains(there), "{there}: {used}");
    }
    assert_eq!(on_host("cat /proc/sys/net/ipv4/conf/docker0/proxy_arp"), "1\n");
    // A network beside it keeps what both need.
    let other = HostNetwork {
        gateways: vec!["10.43.0.1/16".parse().unwrap()],
        subnets: vec!["10.43.0.0/16".parse().unwrap()],
        ..network("docker0")
    };
    world.host.run(|| prepare(&other).unwrap()).unwrap();
    world.host.run(|| forget(&on_docker).unwrap()).unwrap();
    assert!(state().contains("group 30064") && state().contains("10.43.0.1/16"), "{}", state());
    world.host.run(|| prepare(&on_docker).unwrap()).unwrap();
    world.host.run(|| forget_bridge("docker0").unwrap()).unwrap();
    assert_eq!(state(), before);
    // What Docker has of IPv6 stays Docker's.
    on_host("ip address add 2001:db8::1/64 dev docker0 nodad");
    on_host("ip address add fe80::1/64 dev docker0 nodad");
    world.host.run(|| prepare(&on_docker).unwrap()).unwrap();
    world.host.run(|| forget_bridge("docker0").unwrap()).unwrap();
    let addresses = on_host("ip -6 -o address show docker0");
    assert!(addresses.contains("fe80::1/64") && addresses.contains("2001:db8::1/64"), "{addresses}");
    assert_eq!(on_host("ip -6 route show fd00:42::/80"), "");
}

#[test]
fn a_fence_that_stands_is_left_alone_and_a_changed_one_is_mended() {
    let world = world(2);
    world.attach(0).unwrap();
    // Rules that are written again get other handles.
    let handles = || {
        let listing = world.nft(&["-a", "-s", "list", "ruleset"]);
        let handles: Vec<String> =
            listing.lines().filter_map(|line| line.rsplit_once("# handle ")).map(|(_, it)| it.to_owned()).collect();
        assert!(handles.len() > 50, "{listing}");
        handles
    };
    let (made, before) = (handles(), world.state());
    world.attach(1).unwrap();
    assert_eq!(handles(), made, "a second container changes no rule");
    assert!(world.host.run(|| detach(&owner(1)).unwrap()).unwrap());
    assert_eq!((handles(), world.state()), (made, before.clone()));
    let handle_in = |chain: &str| {
        let words: Vec<&str> = "-a list chain".split(' ').chain(chain.split(' ')).collect();
        let listing = world.nft(&words);
        let rules = listing.lines().filter(|line| !line.contains("chain"));
        rules.filter_map(|line| line.split_once(" # handle ")).map(|(_, handle)| handle.to_owned()).next().expect("a rule")
    };
    let changes = [
        ("insert rule inet underpass-net between accept", ""),
        ("add rule bridge underpass-net port accept", ""),
        ("delete rule inet underpass-net closed handle HANDLE", "inet underpass-net closed"),
        ("replace rule bridge underpass-net frames handle HANDLE accept", "bridge underpass-net frames"),
        ("flush chain inet underpass-net hostnat", ""),
        ("chain inet underpass-net between { policy drop; }", ""),
        ("delete element inet underpass-net inside4 { br-test . 10.42.0.0/16 }", ""),
        ("delete element bridge underpass-net subnets6 { fd00:42::/64 }", ""),
        ("flush set inet underpass-net tuns", ""),
    ];
    for (change, chain) in changes {
        let change = if chain.is_empty() { change.to_owned() } else { change.replace("HANDLE", &handle_in(chain)) };
        world.nft(&[&change]);
        assert!(world.state() != before, "{change} changed nothing");
        world.host.run(|| prepare(&network("br-test")).unwrap()).unwrap();
        assert!(world.state() == before, "{change}: {}", world.state());
    }
}

#[test]
fn a_container_of_another_network_gets_its_address_beside() {
    let world = world(2);
    let link = |netlink: &mut Netlink, port: &str, container: usize| {
        let far = VethEnd { name: "eth0", namespace: Some(world.containers[container].as_fd()) };
        netlink.create_veth(VethEnd { name: port, namespace: None }, far).unwrap();
        netlink.join_bridge(port, "docker0").unwrap();
        netlink.set_up(port).unwrap();
    };
    world
        .host
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.create_bridge("docker0").unwrap();
            netlink.add_address("docker0", "172.17.0.1/16".parse().unwrap()).unwrap();
            netlink.set_up("docker0").unwrap();
            link(&mut netlink, "vethdock0", 0);
            link(&mut netlink, "vethdock1", 1);
        })
        .unwrap();
    for (container, address) in [(0, "172.17.0.2/16"), (1, "172.17.0.3/16")] {
        let inside = || {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_address("eth0", address.parse().unwrap()).unwrap();
            netlink.set_up("eth0").unwrap();
        };
        world.containers[container].run(inside).unwrap();
    }
    let addresses = |container: usize| {
        let listed = world.containers[container].run(|| Netlink::open().unwrap().addresses_of("eth0").unwrap()).unwrap();
        let ipv4 = listed.iter().map(|it| it.address.to_string()).filter(|address| address.contains('.'));
        ipv4.collect::<Vec<_>>()
    };
    let mut attachments = [0, 1].map(|container| Attachment { routes: Vec::new(), ..world.attachment(container) });
    for attachment in &attachments {
        let attached = world.host.run(|| attach_beside(&network("docker0"), attachment).unwrap()).unwrap();
        assert_eq!(attached.mtu, 1400);
    }
    assert_eq!(addresses(0), ["172.17.0.2/16", "10.42.1.2/16"]);
    for address in ["10.42.1.3", "10.42.0.1", "172.17.0.3", "172.17.0.1"] {
        assert!(world.pings(0, address), "{address}");
    }
    let routes = run(&world.containers[0], "ip", &["route"]).1;
    assert!(routes.contains("10.42.0.0/16 dev eth0") && routes.contains("mtu 1400"), "{routes}");
    world.containers[0]
        .run(|| Netlink::open().unwrap().add_address("eth0", "10.42.1.9/16".parse().unwrap()).unwrap())
        .unwrap();
    assert!(!run(&world.containers[0], "ping", &["-c", "1", "-W", "1", "-I", "10.42.1.9", "10.42.1.3"]).0);
    let given: Vec<IpAddr> = ["10.42.1.2", "10.42.1.9", "fd00:42::2"].map(|address| address.parse().unwrap()).into();
    let take = || world.host.run(|| detach_beside(&attachments[0].netns, "eth0", &given).unwrap()).unwrap();
    take();
    take();
    assert_eq!(addresses(0), ["172.17.0.2/16"]);
    assert!(world.pings(0, "172.17.0.3"), "the rest goes on");
    assert!(!world.state().contains("vethdock0\" ."), "{}", world.state());
    attachments[0].owner.interface = "eth1".into();
    let error = world.host.run(|| attach_beside(&network("docker0"), &attachments[0]).unwrap_err()).unwrap();
    assert!(matches!(error, AttachError::Absent(_)), "{error}");
    attachments[0].owner.interface = "eth0".into();
    let elsewhere = HostNetwork {
        gateways: vec!["10.44.0.1/16".parse().unwrap()],
        subnets: vec!["10.44.0.0/16".parse().unwrap()],
        ..network("br-other")
    };
    let error = world.host.run(|| attach_beside(&elsewhere, &attachments[0]).unwrap_err()).unwrap();
    assert!(matches!(error, AttachError::Elsewhere { .. }), "{error}");
}

#[test]
fn neighbours_learn_where_an_address_is_now() {
    let world = world(2);
    world.attach(0).unwrap();
    let neighbour = |what: &[&str]| {
        let (fine, said) = run(&world.containers[0], "ip", &[&["neigh"], what].concat());
        assert!(fine, "{what:?}");
        said
    };
    let stale = ["replace", "10.42.1.3", "lladdr", "02:99:99:99:99:99", "dev", "eth0", "nud", "reachable"];
    neighbour(&stale);
    world.attach(1).unwrap();
    let late = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !neighbour(&["show", "10.42.1.3"]).contains("02:00:0a:2a:01:03") {
        assert!(std::time::Instant::now() < late, "{}", neighbour(&["show"]));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn an_ipv6_neighbour_that_forges_is_not_believed() {
    let world = world(3);
    for container in 0..3 {
        world.attach(container).unwrap();
    }
    assert!(world.pings(0, "fd00:42::3") && world.pings(2, "fd00:42::3"));
    run(&world.containers[2], "ip", &["address", "add", "fd00:42::3/128", "dev", "lo"]);
    let forged = ["-c", "1", "-W", "1", "-I", "fd00:42::3", "fd00:42::2"];
    let before = world.host.run(|| counters().unwrap().unwrap()).unwrap().port_forged.packets;
    // Who is not found yet is not written to either, and on a busy machine a second may be short for that.
    let late = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.host.run(|| counters().unwrap().unwrap()).unwrap().port_forged.packets == before {
        assert!(std::time::Instant::now() < late, "nothing was thrown away");
        assert!(!run(&world.containers[2], "ping", &forged).0);
    }
    assert!(world.pings(0, "fd00:42::3"), "the true one is where it was");
}

#[test]
fn a_running_container_gets_another_mtu() {
    let world = world(2);
    let ports = [0, 1].map(|container| world.attach(container).unwrap().port);
    for mtu in [1300, 1450] {
        world.host.run(|| set_mtu(&owner(0), &path(&world.containers[0]), mtu).unwrap()).unwrap();
        let mtu_of =
            |namespace: &Namespace, link: &str| namespace.run(|| Netlink::open().unwrap().link(link).unwrap().mtu).unwrap();
        assert_eq!((mtu_of(&world.host, &ports[0]), mtu_of(&world.containers[0], "eth0")), (mtu, mtu));
        assert_eq!(mtu_of(&world.host, &ports[1]), 1400, "nobody else's");
        assert!(world.pings(0, "10.42.1.3"));
    }
    let other = owner(7);
    assert!(world.host.run(|| set_mtu(&other, &path(&world.containers[0]), 1300)).unwrap().is_err());
}

#[test]
fn running_containers_follow_the_tunnel_and_their_network() {
    let world = world(3);
    let wide = |container: usize, own_overhead| Attachment { mtu: Some(1500), own_overhead, ..world.attachment(container) };
    let add = |attachment: &Attachment| world.host.run(|| attach(&network("br-test"), attachment).unwrap().mtu).unwrap();
    // Before there is a tunnel, the network's word counts.
    assert_eq!([add(&wide(0, None)), add(&wide(1, Some(0)))], [1500, 1500]);
    let mtu_of =
        |namespace: &Namespace, link: &str| namespace.run(|| Netlink::open().unwrap().link(link).unwrap().mtu).unwrap();
    let mtus = |container: usize| {
        let port = port_of(&owner(container));
        (mtu_of(&world.host, &port), mtu_of(&world.containers[container], "eth0"))
    };
    let paths: Vec<PathBuf> = world.containers.iter().map(path).collect();
    let follow = |said: &(dyn Fn(&Port) -> Option<u32> + Sync)| {
        world.host.run(|| follow_mtu(TUN, &paths, &|port| said(port)).unwrap().len()).unwrap()
    };
    assert_eq!(follow(&|port| port.said_mtu), 0);
    run(&world.host, "ip", &["link", "add", TUN, "mtu", "1400", "type", "bridge"]);
    assert_eq!(follow(&|port| port.said_mtu), 2);
    assert_eq!([mtus(0), mtus(1)], [(1400, 1400); 2], "never more than the tunnel takes");
    assert_eq!(mtu_of(&world.host, "br-test"), 1400, "the bridge follows its ports");
    assert_eq!(add(&wide(2, None)), 1400, "nor does who comes later have more");
    run(&world.host, "ip", &["link", "set", TUN, "mtu", "1450"]);
    // The network says less than before, and one container has a word of its own.
    let said = |port: &Port| Some(1490 - port.own_overhead.unwrap_or(90));
    assert_eq!(follow(&said), 1);
    assert_eq!([mtus(0), mtus(1), mtus(2)], [(1400, 1400), (1450, 1450), (1400, 1400)]);
    assert!(world.pings(0, "10.42.1.3"));
    run(&world.host, "ip", &["link", "set", TUN, "mtu", "1300"]);
    assert_eq!((follow(&said), follow(&said)), (3, 0));
    assert_eq!([mtus(0), mtus(1), mtus(2)], [(1300, 1300); 3]);
    assert_eq!(mtu_of(&world.host, "br-test"), 1300);
}

#[test]
fn a_fence_that_somebody_took_away_comes_back() {
    let world = world(3);
    let mut keeper = Keeper::default();
    assert_eq!(world.keep(&mut keeper), (true, false), "there is none yet");
    let published = Publication { protocol: 6, port: 80 };
    let with_port = Attachment { published: vec![published], ..world.attachment(0) };
    world.host.run(|| attach(&network("br-test"), &with_port)).unwrap().unwrap();
    world.attach(1).unwrap();
    assert_eq!(world.keep(&mut keeper), (true, false));
    assert_eq!(world.keep(&mut keeper), (false, false), "nothing has changed");
    let before = world.state();
    assert!(before.contains("published4") && before.contains(". 80 }"), "{before}");
    world.nft(&["flush", "ruleset"]);
    assert!(world.check(0).is_err());
    assert_eq!(world.keep(&mut keeper), (true, true));
    assert_eq!(world.state(), before);
    world.check(0).and(world.check(1)).unwrap();
    assert!(world.pings(0, "10.42.1.3"));
    // Somebody comes meanwhile, and somebody goes: the fence is there again, for the one, and the others are to come back.
    world.nft(&["delete", "table", "bridge", TABLES]);
    world.nft(&["delete", "table", "inet", TABLES]);
    world.attach(2).unwrap();
    world.host.run(|| detach(&owner(1))).unwrap().unwrap();
    assert!(world.check(0).is_err(), "the newcomer's fence cut it off");
    assert_eq!(world.keep(&mut keeper), (true, true));
    world.check(0).and(world.check(2)).unwrap();
    let rules = world.nft(&["list", "ruleset"]);
    assert!(!rules.contains("10.42.1.3") && !rules.contains(&port_of(&owner(1))), "{rules}");
    assert_eq!(world.keep(&mut keeper), (false, false));
}

#[test]
fn a_fence_that_was_taken_down_stays_down() {
    let world = world(1);
    let mut keeper = Keeper::default();
    world.attach(0).unwrap();
    assert_eq!(world.keep(&mut keeper), (true, false));
    // The container is still there, as where a network is removed by force.
    world.host.run(|| forget(&network("br-test"))).unwrap().unwrap();
    assert_eq!(world.keep(&mut keeper), (true, false));
    assert_eq!(world.nft(&["list", "tables"]), "");
}

#[test]
fn a_fence_that_is_taken_away_again_and_again_comes_back() {
    let world = world(2);
    let mut keeper = Keeper::default();
    world.attach(0).and(world.attach(1)).unwrap();
    world.keep(&mut keeper);
    // Somebody who is faster than the keeper: what it knows must outlive each of its attempts.
    for _ in 0..30 {
        std::thread::scope(|scope| {
            let flushing = scope.spawn(|| (0..3).for_each(|_| drop(world.nft(&["flush", "ruleset"]))));
            while !flushing.is_finished() {
                let _ = world.host.run(|| keeper.look()).unwrap();
            }
        });
        world.keep(&mut keeper);
        world.check(0).and(world.check(1)).unwrap();
    }
}

#[test]
fn what_the_fence_knows_of_ports_that_are_gone_goes_by_and_by() {
    let world = world(2);
    world.attach(0).and(world.attach(1)).unwrap();
    let sweep = || world.host.run(sweep_patiently).unwrap().unwrap();
    assert_eq!(sweep(), 0);
    world.host.run(|| Netlink::open().unwrap().delete_link(&port_of(&owner(0)))).unwrap().unwrap();
    // Its name, its link-layer address, and three addresses with it: one of IPv4, one of IPv6 and the link-local one.
    assert_eq!((sweep(), sweep()), (5, 0));
    assert!(!world.nft(&["list", "ruleset"]).contains(&port_of(&owner(0))));
    world.check(1).unwrap();
}
