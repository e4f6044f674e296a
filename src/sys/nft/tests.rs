//! A host with the guard, and a neighbour that tries to get past it: real packets over veth pairs in namespaces.
//!
//! ```text
//!                     wire  192.0.2.2/24 ------ wire 192.0.2.1/24
//! neighbour (outside)                                              host (overlay 10.42.1.1, 2001:db8:1::1)
//!                     tun   198.51.100.2 ------ underpass0           stands for the tunnel: what comes from here is trusted
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::sys::netlink::{Netlink, RouteSpec, VethEnd};
use crate::sys::netns::Namespace;

/// Long enough for a packet over a veth pair, which takes microseconds; shorter than the second after which a neighbour
/// solicitation is repeated, which would be counted too.
const PATIENCE: Duration = Duration::from_millis(500);

const TABLE: &str = "underpass-test";

struct World {
    neighbour: Namespace,
    host: Namespace,
}

fn prefixes(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

fn world() -> World {
    let (neighbour, host) = (Namespace::create().expect("needs root"), Namespace::create().expect("needs root"));
    // Link-local addresses would wait a second for others that might have them, and neighbour discovery for them.
    let hurry = || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    neighbour.run(hurry).unwrap();
    host.run(hurry).unwrap();
    neighbour
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            for (near, far) in [("wire", "wire"), ("tun", "underpass0")] {
                let far = VethEnd { name: far, namespace: Some(host.as_fd()) };
                netlink.create_veth(VethEnd { name: near, namespace: None }, far).unwrap();
            }
        })
        .unwrap();
    configure(&host, &["wire", "underpass0"], &["192.0.2.1/24", "2001:db8::1/64", "10.42.1.1/32", "2001:db8:1::1/128"]);
    // The neighbour owns the addresses that it forges: 10.42.2.5 and its IPv6 twin.
    configure(&neighbour, &["wire", "tun"], &["192.0.2.2/24", "2001:db8::2/64", "10.42.2.5/32", "2001:db8:2::5/128"]);
    // IPv6 answers for an address only on the interface that has it, so both have the overlay's.
    host.run(|| Netlink::open().unwrap().add_address("underpass0", "2001:db8:1::1/128".parse().unwrap()).unwrap()).unwrap();
    // Source validation is switched off, so that nothing but the guard stands in the way.
    host.run(|| {
        for interface in ["all", "default", "wire", "underpass0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        }
    })
    .unwrap();
    let world = World { neighbour, host };
    world.wait_for_links();
    world
}

fn configure(namespace: &Namespace, links: &[&str], addresses: &[&str]) {
    namespace
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            for link in links.iter().chain(&["lo"]) {
                netlink.set_up(link).unwrap();
            }
            for address in addresses {
                netlink.add_address("wire", address.parse().unwrap()).unwrap();
            }
        })
        .unwrap();
}

impl World {
    /// A link that was just set up drops packets until the kernel has noticed its carrier, on a busy machine for a second.
    fn wait_for_links(&self) {
        for (interface, source, destination) in [
            ("wire", "192.0.2.2", "192.0.2.1"),
            ("wire", "2001:db8::2", "2001:db8::1"),
            ("tun", "10.42.2.5", "10.42.1.1"),
            ("tun", "2001:db8:2::5", "2001:db8:1::1"),
        ] {
            assert!((0..20).any(|_| self.arrives(interface, source, destination)), "{interface} stays dead for {source}");
        }
    }

    fn install(&self, allowed: &[&str], outer: &[IpAddr]) -> Vec<IpNet> {
        let allowed: Vec<_> = allowed.iter().map(|&name| name.to_owned()).collect();
        let local = prefixes(&["10.42.1.0/24", "2001:db8:1::/64"]);
        let remote = prefixes(&["10.42.2.0/24", "2001:db8:2::/64"]);
        let guard =
            Guard { table: TABLE, tun: "underpass0", allowed: &allowed, local: &local, inside: &[], remote: &remote, outer };
        self.host.run(|| install(&guard)).unwrap().unwrap()
    }

    fn counters(&self) -> GuardCounters {
        self.host.run(|| counters(TABLE)).unwrap().unwrap().unwrap()
    }

    /// The neighbour sends one datagram by this interface; does the host get it?
    fn arrives(&self, interface: &str, source: &str, destination: &str) -> bool {
        let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let receiver = self.host.run(|| UdpSocket::bind(SocketAddr::new(destination, 0)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        self.neighbour
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink.replace_route(RouteSpec::new(destination.into(), interface)).unwrap();
                let sender = UdpSocket::bind(SocketAddr::new(source, 0)).unwrap();
                sender.send_to(b"clear", receiver.local_addr().unwrap()).unwrap();
            })
            .unwrap();
        let mut buffer = [0; 16];
        // A signal for another test's child may end the wait.
        let received = loop {
            match receiver.recv_from(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok((length, from)) => {
                assert_eq!((&buffer[..length], from.ip()), (&b"clear"[..], source));
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                false
            }
        }
    }
}

#[test]
fn without_the_guard_a_neighbour_reaches_overlay_addresses_in_clear() {
    // The reason why there is a guard, and the proof that the other tests would see a packet that gets past it.
    let world = world();
    assert!(world.arrives("wire", "192.0.2.2", "10.42.1.1"));
    assert!(world.arrives("wire", "2001:db8::2", "2001:db8:1::1"));
    assert!(world.arrives("wire", "10.42.2.5", "192.0.2.1"));
    assert!(world.arrives("wire", "2001:db8:2::5", "2001:db8::1"));
}

#[test]
fn a_packet_in_clear_for_an_overlay_address_does_not_get_in() {
    let world = world();
    assert!(world.install(&[], &[]).is_empty());
    assert!(!world.arrives("wire", "192.0.2.2", "10.42.1.1"));
    assert!(!world.arrives("wire", "2001:db8::2", "2001:db8:1::1"));
    let counters = world.counters();
    assert_eq!(counters.clear_overlay, Count { packets: 2, octets: (20 + 8 + 5) + (40 + 8 + 5) });
    assert_eq!(counters.forged_overlay, Count::default());
}

#[test]
fn a_packet_in_clear_with_an_overlay_source_does_not_get_in() {
    let world = world();
    world.install(&[], &[]);
    assert!(!world.arrives("wire", "10.42.2.5", "192.0.2.1"));
    assert!(!world.arrives("wire", "2001:db8:2::5", "2001:db8::1"));
    let counters = world.counters();
    assert_eq!(counters.clear_overlay.packets, 0);
    // At least: the kernel asks for a neighbour with the same source, and again after a second.
    assert!(counters.forged_overlay.packets >= 2, "{counters:?}");
}

#[test]
fn the_tunnel_and_the_underlay_are_left_alone() {
    let world = world();
    world.install(&[], &[]);
    assert!(world.arrives("tun", "10.42.2.5", "10.42.1.1"));
    assert!(world.arrives("tun", "2001:db8:2::5", "2001:db8:1::1"));
    assert!(world.arrives("wire", "192.0.2.2", "192.0.2.1"));
    assert!(world.arrives("wire", "2001:db8::2", "2001:db8::1"));
    assert_eq!(world.counters(), GuardCounters::default());
}

#[test]
fn allowed_interfaces_pass_by_name_or_by_the_start_of_their_name() {
    let world = world();
    for allowed in ["wire", "wi*"] {
        world.install(&[allowed], &[]);
        assert!(world.arrives("wire", "192.0.2.2", "10.42.1.1"), "{allowed}");
    }
    for other in ["wir", "wires", "ire*"] {
        world.install(&[other], &[]);
        assert!(!world.arrives("wire", "192.0.2.2", "10.42.1.1"), "{other}");
    }
}

#[test]
fn an_outer_address_inside_a_guarded_prefix_stays_reachable() {
    let world = world();
    world.install(&[], &["10.42.2.5".parse().unwrap(), "10.42.1.1".parse().unwrap()]);
    assert!(world.arrives("wire", "10.42.2.5", "192.0.2.1"), "the peer's own address");
    assert!(world.arrives("wire", "192.0.2.2", "10.42.1.1"), "our own address");
    world.install(&[], &["10.42.2.6".parse().unwrap()]);
    assert!(!world.arrives("wire", "10.42.2.5", "192.0.2.1"));
}

#[test]
fn what_lives_on_an_interface_is_reached_by_that_interface_only() {
    let world = world();
    let install = |interface: &str| {
        let (local, remote) = (prefixes(&["10.42.1.0/24"]), prefixes(&["10.42.2.0/24"]));
        let inside = [(interface.to_owned(), "10.42.1.0/30".parse().unwrap())];
        let guard = Guard {
            table: TABLE,
            tun: "underpass0",
            allowed: &[],
            local: &local,
            inside: &inside,
            remote: &remote,
            outer: &[],
        };
        world.host.run(|| super::install(&guard)).unwrap().unwrap();
    };
    install("wire");
    assert!(world.arrives("wire", "192.0.2.2", "10.42.1.1"));
    assert!(!world.arrives("wire", "10.42.2.5", "10.42.1.1"), "a forged source is one there, too");
    install("other0");
    assert!(!world.arrives("wire", "192.0.2.2", "10.42.1.1"));
}

#[test]
fn counts_go_on_when_the_guard_is_installed_again_and_end_with_it() {
    let world = world();
    world.install(&[], &[]);
    assert!(!world.arrives("wire", "192.0.2.2", "10.42.1.1"));
    world.install(&["other0"], &[]);
    assert!(!world.arrives("wire", "192.0.2.2", "10.42.1.1"));
    assert_eq!(world.counters().clear_overlay.packets, 2);
    world
        .host
        .run(|| {
            assert!(remove(TABLE).unwrap());
            assert!(!remove(TABLE).unwrap(), "it is gone already");
            assert_eq!(counters(TABLE).unwrap(), None);
        })
        .unwrap();
    assert!(world.arrives("wire", "192.0.2.2", "10.42.1.1"));
}

#[test]
fn everything_is_no_prefix_to_guard() {
    let world = world();
    let all = prefixes(&["0.0.0.0/0", "::/0"]);
    let guard = Guard { table: TABLE, tun: "underpass0", allowed: &[], local: &[], inside: &[], remote: &all, outer: &[] };
    assert_eq!(world.host.run(|| install(&guard)).unwrap().unwrap(), all);
    assert!(world.arrives("wire", "192.0.2.2", "192.0.2.1"));
}

#[test]
fn a_thousand_blocks_are_one_transaction() {
    let host = Namespace::create().expect("needs root");
    // Every second /24, so that nothing can be merged.
    let remote: Vec<_> = (0..1000u32).map(|n| format!("{}.{}.{}.0/24", 10 + n / 500, n / 100, n % 100 * 2)).collect();
    let remote: Vec<IpNet> = remote.iter().map(|prefix| prefix.parse().unwrap()).collect();
    let guard =
        Guard { table: TABLE, tun: "underpass0", allowed: &[], local: &[], inside: &[], remote: &remote, outer: &[] };
    host.run(|| install(&guard)).unwrap().unwrap();
    let listing = nft(&host, &["list", "table", "inet", TABLE]);
    assert_eq!(listing.matches("ip saddr").count(), 1000);
}

#[test]
fn nft_reads_the_table_as_it_was_meant() {
    let world = world();
    world.install(&["podman*"], &["10.42.2.9".parse().unwrap()]);
    let listing = nft(&world.host, &["list", "ruleset"]);
    let lines: Vec<_> = listing.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}").collect();
    assert_eq!(
        lines,
        [
            "table inet underpass-test {",
            "counter clear_overlay {",
            "packets 0 bytes 0",
            "counter forged_overlay {",
            "packets 0 bytes 0",
            "chain clear {",
            "type filter hook prerouting priority raw; policy accept;",
            "iifname \"underpass0\" accept",
            "iifname \"lo\" accept",
            "iifname \"podman*\" accept",
            "iifgroup 30064 accept",
            "ip saddr 10.42.2.0/24 ip saddr != 10.42.2.9 counter name \"forged_overlay\" drop",
            "ip6 saddr 2001:db8:2::/64 counter name \"forged_overlay\" drop",
            "ip daddr 10.42.1.0/24 counter name \"clear_overlay\" drop",
            "ip6 daddr 2001:db8:1::/64 counter name \"clear_overlay\" drop",
        ]
    );
}

/// What the `nft` program says inside the namespace.
fn nft(namespace: &Namespace, arguments: &[&str]) -> String {
    let mut command = Command::new("nft");
    command.args(arguments).stdout(Stdio::piped());
    let output = namespace.spawn(command).expect("needs nft (Debian package nftables)").wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn names_that_mean_something_else_are_refused() {
    let guard = |table, tun, allowed| Guard { table, tun, allowed, local: &[], inside: &[], remote: &[], outer: &[] };
    let everything = ["*".to_owned()];
    let long = "a".repeat(16);
    for bad in [
        guard("", "underpass0", &[]),
        guard("under pass", "underpass0", &[]),
        guard(TABLE, "", &[]),
        guard(TABLE, &long, &[]),
        guard(TABLE, "under*", &[]),
        guard(TABLE, "underpass0", &everything),
    ] {
        assert!(matches!(install(&bad), Err(GuardError::BadName(..))), "{bad:?}");
    }
}

#[test]
fn a_kernel_without_the_subsystem_is_told_apart() {
    // No kernel has a subsystem 9 (NFNL_SUBSYS_CTHELPER) that takes batches; to us it looks as a missing nf_tables does.
    const NO_BATCHES: u16 = 9;
    let namespace = Namespace::create().expect("needs root");
    let error = namespace
        .run(|| {
            let mut socket = open(String::new).unwrap();
            commit(&mut socket, NO_BATCHES, vec![(table_message(NEW_TABLE, TABLE), NLM_F_CREATE)], || "try".to_owned())
        })
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, GuardError::NoNfTables { .. }), "{error}");
}

#[test]
fn without_the_right_to_it_the_kernel_says_no() {
    let namespace = Namespace::create().expect("needs root");
    let outcome = namespace.run(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
        remove(TABLE)
    });
    let error = outcome.unwrap().unwrap_err();
    assert!(matches!(&error, GuardError::Netlink(error) if error.is_denied()), "{error}");
    assert!(error.to_string().starts_with("remove the nftables table inet underpass-test: "), "{error}");
}
