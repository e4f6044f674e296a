//! The fence: which packets may bear an overlay address, and where. Two nftables tables, both named [`TABLE`].
//!
//! `inet` decides where packets of the network may come from and go to. Trusted is what came out of the tunnel, off `lo`, or in by a
//! bridge with a source of the network that lives on it (the pairs in `inside`). Of everything else,
//! - a source in the network is forged, and dropped before anything looks at the packet: `forged`;
//! - a destination in the network is dropped unless a connection that a container began without NAT gets its answer: `closed`.
//!   What hostNat sent out comes back to this host's own address and is not concerned.
//!
//! In forwarding, a packet reaches a container only by a bridge on which its source's network lives too (so two networks of one host
//! stay apart, also through one tunnel), from behind a foreign gateway's tunnel, by a published port or as an answer; and leaves
//! the network only into the tunnel, or for the outside where hostNat gives it another source. hostNat never touches what is for
//! the network.
//!
//! `bridge` ties each port to its container: the frames that enter by it bear the container's link-layer address, and one of its IP
//! addresses as source, in IP and in ARP alike; nothing but IPv4, IPv6 and ARP enters. By other ports of bridges, overlay sources do not enter
//! at all.
//!
//! The rules are always the same; what they are about stands in sets, which are changed in the same transactions. The tables
//! belong to nobody's process, so they outlive the agent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{AttachError, HardwareAddress, HostNetwork, Publication};
use crate::sys::netlink::Netlink;
use crate::sys::nft::table::{
    Family, Hook, Key, Part, Range, Set, Transaction, address_octets, counted, holds, keys, ranges, remove_table,
};
use crate::sys::nft::{Count, GuardError, Holds, Load, Rule};

/// The tables' name.
pub(super) const TABLE: &str = "underpass-net";

/// `NF_INET_PRE_ROUTING`, `_FORWARD` and `_POST_ROUTING`, and `NF_BR_PRE_ROUTING`, which is the same.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;

/// Before connection tracking (-200), so that forged packets cost no memory; after it, before addresses are changed (-100); where
/// filters are; where sources are changed; before every other chain of bridges (-300).
const RAW: i32 = -300;
const BEFORE_NAT: i32 = -150;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;
const BRIDGE_FIRST: i32 = -310;

/// Counters.
const FORGED: &str = "forged";
const CLOSED: &str = "closed";

/// Sets of the table `inet`.
pub(super) const TUNS: Set = Set { name: "tuns", parts: &[Part::Interface], ranges: false };
pub(super) const INSIDE: [Set; 2] = [
    Set { name: "inside4", parts: &[Part::Interface, Part::Ipv4], ranges: true },
    Set { name: "inside6", parts: &[Part::Interface, Part::Ipv6], ranges: true },
];
pub(super) const NAT: [Set; 2] =
    [Set { name: "nat4", parts: &[Part::Ipv4], ranges: true }, Set { name: "nat6", parts: &[Part::Ipv6], ranges: true }];
pub(super) const PUBLISHED: [Set; 2] = [
    Set { name: "published4", parts: &[Part::Protocol, Part::Ipv4, Part::Port], ranges: false },
    Set { name: "published6", parts: &[Part::Protocol, Part::Ipv6, Part::Port], ranges: false },
];

/// A set of both tables.
pub(super) const SUBNETS: [Set; 2] = [
    Set { name: "subnets4", parts: &[Part::Ipv4], ranges: true },
    Set { name: "subnets6", parts: &[Part::Ipv6], ranges: true },
];

/// Sets of the table `bridge`.
pub(super) const PORTS: Set = Set { name: "ports", parts: &[Part::Interface], ranges: false };
pub(super) const MACS: Set = Set { name: "macs", parts: &[Part::Interface, Part::Ether], ranges: false };
pub(super) const LEASES: [Set; 2] = [
    Set { name: "leases4", parts: &[Part::Interface, Part::Ether, Part::Ipv4], ranges: false },
    Set { name: "leases6", parts: &[Part::Interface, Part::Ether, Part::Ipv6], ranges: false },
];

/// What the fence has thrown away since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets that claimed a source in a network, on their way into the host.
    pub forged: Count,
    /// Packets for or from a network that had no business there.
    pub closed: Count,
    /// Frames of a port that bore another's address.
    pub port_forged: Count,
}

/// What the fence counted; none where there is no fence.
///
/// # Errors
/// [`GuardError`].
pub fn counters() -> Result<Option<Counters>, GuardError> {
    let Some(forged) = counted(Family::Inet, TABLE, FORGED)? else { return Ok(None) };
    let closed = counted(Family::Inet, TABLE, CLOSED)?.unwrap_or_default();
    let port_forged = counted(Family::Bridge, TABLE, FORGED)?.unwrap_or_default();
    Ok(Some(Counters { forged, closed, port_forged }))
}

pub(super) fn of(sets: &[Set; 2], net: IpNet) -> &'static str {
    sets[usize::from(net.addr().is_ipv6())].name
}

/// Puts the fence up around a network, and takes down what stood around [`strangers`].
pub(super) fn raise(network: &HostNetwork, strangers: &[(String, IpNet)]) -> Result<(), AttachError> {
    let mut inet = inet_rules();
    let mut bridge = bridge_rules();
    for &(ref gone, subnet) in strangers {
        inet.delete_prefix(of(&INSIDE, subnet), Key::default().interface(gone), subnet);
        inet.delete_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        bridge.delete_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        if has_nat(subnet)? {
            inet.delete_prefix(of(&NAT, subnet), Key::default(), subnet);
        }
    }
    inet.add(TUNS.name, &Key::default().interface(&network.tun));
    for &subnet in &network.subnets {
        inet.add_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        inet.add_prefix(of(&INSIDE, subnet), Key::default().interface(&network.bridge), subnet);
        if network.host_nat {
            inet.add_prefix(of(&NAT, subnet), Key::default(), subnet);
        } else if has_nat(subnet)? {
            inet.delete_prefix(of(&NAT, subnet), Key::default(), subnet);
        }
        bridge.add_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
    }
    // The ports first: a network that is open to the host while anybody may claim its addresses would be worse than none. Most often
    // all of it stands since the first container, and nothing is said.
    bridge.settle().map_err(|error| overlap(error, network))?;
    inet.settle().map_err(|error| overlap(error, network))
}

/// The kernel says this of ranges that overlap in part, which only somebody can have put there who was faster than us.
fn overlap(error: GuardError, network: &HostNetwork) -> AttachError {
    match (&error, network.subnets.first()) {
        (GuardError::Netlink(refused), Some(&subnet)) if matches!(refused.errno(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
            AttachError::Overlap { subnet, other: "another bridge".to_owned() }
        }
        _ => error.into(),
    }
}

/// What stands in the sets for bridges that are gone, and would overlap; one that is there is an error, and so is a subnet of the
/// network's own bridge that is another than before.
pub(super) fn strangers(network: &HostNetwork, netlink: &mut Netlink) -> Result<Vec<(String, IpNet)>, AttachError> {
    let mut gone = Vec::new();
    for set in &INSIDE {
        for Range { first, last } in ranges(Family::Inet, TABLE, set.name)? {
            let other = name_of(&first);
            let Some(known) = prefix(first.get(16..), last.get(16..)) else { continue };
            let overlaps = |subnet: &&IpNet| subnet.contains(&known) || known.contains(*subnet);
            let Some(&subnet) = network.subnets.iter().find(overlaps) else { continue };
            if other == network.bridge && known == subnet.trunc() {
                continue;
            }
            match netlink.link(&other) {
                Ok(_) => return Err(AttachError::Overlap { subnet, other }),
                Err(error) if error.is_absent() => gone.push((other, known)),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(gone)
}

/// The subnets that live on a bridge.
///
/// # Errors
/// [`GuardError`].
pub fn on_bridge(bridge: &str) -> Result<Vec<IpNet>, GuardError> {
    let mut found = Vec::new();
    for set in &INSIDE {
        let ranges = ranges(Family::Inet, TABLE, set.name)?.into_iter().filter(|range| name_of(&range.first) == bridge);
        found.extend(ranges.filter_map(|range| prefix(range.first.get(16..), range.last.get(16..))));
    }
    Ok(found)
}

/// The prefix from the first address to the last, both as octets.
pub(super) fn prefix(first: Option<&[u8]>, last: Option<&[u8]>) -> Option<IpNet> {
    let address = |octets: &[u8]| -> Option<IpAddr> {
        let ipv4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        ipv4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
    };
    let (first, last) = (first?, last?);
    let same = first.iter().zip(last).map(|(one, other)| (one ^ other).leading_zeros() as u8);
    let mut length = 0;
    for bits in same {
        length += bits;
        if bits < 8 {
            break;
        }
    }
    IpNet::new(address(first)?, length).ok()
}

pub(super) fn has_nat(subnet: IpNet) -> Result<bool, GuardError> {
    let first = address_octets(subnet.network());
    Ok(keys(Family::Inet, TABLE, of(&NAT, subnet))?.contains(&first))
}

/// Takes the fence around one network down; the tables go with the last one.
pub(super) fn lower(network: &HostNetwork) -> Result<(), AttachError> {
    let subnets = |ipv6: bool| keys(Family::Inet, TABLE, SUBNETS[usize::from(ipv6)].name);
    let mut inet = Transaction::new(Family::Inet, TABLE);
    let mut bridge = Transaction::new(Family::Bridge, TABLE);
    let known = [subnets(false)?, subnets(true)?].concat();
    let ours = |subnet: &&IpNet| known.contains(&address_octets(subnet.network()));
    let mut found = 0;
    for &subnet in network.subnets.iter().filter(ours) {
        found += 1;
        inet.delete_prefix(of(&INSIDE, subnet), Key::default().interface(&network.bridge), subnet);
        inet.delete_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        bridge.delete_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        if has_nat(subnet)? {
            inet.delete_prefix(of(&NAT, subnet), Key::default(), subnet);
        }
    }
    if found > 0 {
        inet.commit()?;
        bridge.commit()?;
    }
    // The end of a range is listed as well, so that one network has up to two.
    if subnets(false)?.is_empty() && subnets(true)?.is_empty() {
        remove_table(Family::Inet, TABLE)?;
        remove_table(Family::Bridge, TABLE)?;
    }
    Ok(())
}

/// What a port may say from now on: these addresses, by this link-layer address.
pub(super) fn admit(port: &str, mac: HardwareAddress, addresses: &[IpAddr]) -> Result<(), GuardError> {
    let mut bridge = Transaction::new(Family::Bridge, TABLE);
    bridge.add(PORTS.name, &Key::default().interface(port));
    let start = Key::default().interface(port).octets(&mac);
    bridge.add(MACS.name, &start);
    for &address in addresses {
        let set = &LEASES[usize::from(address.is_ipv6())];
        bridge.add(set.name, &start.clone().octets(&address_octets(address)));
    }
    bridge.commit()
}

/// By which link-layer address each container speaks.
///
/// # Errors
/// [`GuardError`].
pub fn admitted() -> Result<BTreeMap<IpAddr, HardwareAddress>, GuardError> {
    let mut admitted = BTreeMap::new();
    for set in &LEASES {
        for key in keys(Family::Bridge, TABLE, set.name)? {
            // Behind the port's name; what follows begins at a multiple of four octets.
            let mac = key.get(16..22).and_then(|octets| HardwareAddress::try_from(octets).ok());
            let address = key.get(24..).and_then(|octets| {
                let ipv4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
                ipv4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
            });
            admitted.extend(address.zip(mac));
        }
    }
    Ok(admitted)
}

/// Lets others reach these ports of whoever has the addresses.
pub(super) fn publish(addresses: &[IpNet], published: &[Publication]) -> Result<(), GuardError> {
    if published.is_empty() {
        return Ok(());
    }
    let mut inet = Transaction::new(Family::Inet, TABLE);
    for address in addresses {
        for Publication { protocol, port } in published {
            let octets = address_octets(address.addr());
            let key = Key::default().octets(&[*protocol]).octets(&octets).octets(&port.to_be_bytes());
            inet.add(of(&PUBLISHED, *address), &key);
        }
    }
    inet.commit()
}

/// Ends that for these addresses, as octets.
fn unpublish(addresses: &[Vec<u8>]) -> Result<(), GuardError> {
    let mut inet = Transaction::new(Family::Inet, TABLE);
    let mut count = 0;
    for set in &PUBLISHED {
        for key in keys(Family::Inet, TABLE, set.name)? {
            // Behind the protocol, which fills four octets, and before the port.
            let address = key.get(4..key.len().saturating_sub(4));
            if addresses.iter().any(|gone| Some(gone.as_slice()) == address) {
                inet.delete(set.name, &Key::default().octets(&key));
                count += 1;
            }
        }
    }
    if count > 0 { inet.commit() } else { Ok(()) }
}

/// Forgets what one port may say. Returns how many entries went.
pub(super) fn expel_port(port: &str) -> Result<usize, GuardError> {
    // Whatever else is known of a port came with this entry and goes with it: without it the other sets need not be read.
    match holds(Family::Bridge, TABLE, PORTS.name, &Key::default().interface(port))? {
        true => expel(|name| name == port),
        false => Ok(0),
    }
}

/// Forgets what ports may say, of those that are chosen by name. A port that is not known may say nothing with an overlay address.
pub(super) fn expel(chosen: impl Fn(&str) -> bool) -> Result<usize, GuardError> {
    /// Somebody else may forget the same ports meanwhile.
    const ATTEMPTS: usize = 5;
    let mut attempt = 1;
    loop {
        match try_expel(&chosen) {
            Err(GuardError::Netlink(error)) if error.is_absent() && attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

fn try_expel(chosen: impl Fn(&str) -> bool) -> Result<usize, GuardError> {
    let mut bridge = Transaction::new(Family::Bridge, TABLE);
    let (mut count, mut addresses) = (0, Vec::new());
    for set in LEASES.iter().chain([&MACS, &PORTS]) {
        for key in keys(Family::Bridge, TABLE, set.name)? {
            if chosen(&name_of(&key)) {
                bridge.delete(set.name, &Key::default().octets(&key));
                // Behind the port's name and the link-layer address: only leases are so long.
                addresses.extend(key.get(24..).filter(|address| !address.is_empty()).map(<[u8]>::to_vec));
                count += 1;
            }
        }
    }
    if count > 0 {
        unpublish(&addresses)?;
        bridge.commit()?;
    }
    Ok(count)
}

/// Whether a port may say exactly this.
pub(super) fn admits(port: &str, mac: HardwareAddress, addresses: &[IpAddr]) -> Result<bool, GuardError> {
    let start = Key::default().interface(port).octets(&mac);
    for set in &LEASES {
        let mut listed = keys(Family::Bridge, TABLE, set.name)?;
        listed.retain(|key| name_of(key) == port);
        let ipv6 = set.name == LEASES[1].name;
        let of_family = addresses.iter().filter(|address| address.is_ipv6() == ipv6);
        let wanted: Vec<Vec<u8>> =
            of_family.map(|&address| start.clone().octets(&address_octets(address)).as_octets().to_vec()).collect();
        if !wanted.iter().all(|key| listed.contains(key)) {
            return Ok(false);
        }
    }
    Ok(keys(Family::Bridge, TABLE, PORTS.name)?.iter().any(|key| name_of(key) == port))
}

/// The interface's name at the start of a key.
pub(super) fn name_of(key: &[u8]) -> String {
    let name = key.get(..16).unwrap_or(key);
    String::from_utf8_lossy(name.split(|&octet| octet == 0).next().unwrap_or_default()).into_owned()
}

pub(super) fn inet_rules() -> Transaction {
    let mut table = Transaction::new(Family::Inet, TABLE);
    for set in [TUNS].iter().chain(&INSIDE).chain(&SUBNETS).chain(&NAT).chain(&PUBLISHED) {
        table.set(set);
    }
    table.counter(FORGED);
    table.counter(CLOSED);
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    // Most packets have nothing to do with a network: they are asked one question in each chain.
    let concerned = |load: fn(bool) -> Load, chain: &str| {
        let one = |ipv6: bool| {
            let set = SUBNETS[usize::from(ipv6)].name;
            Rule::default().of_family(ipv6).in_set(Holds::Yes, &[load(ipv6)], set).goto(chain)
        };
        [false, true].map(one).to_vec()
    };
    let drop = |rules: Vec<Rule>, counter| [rules, vec![Rule::default().count(counter).drop()]].concat();
    table.chain("source", None, drop(trusted(), FORGED));
    table.chain("forged", hook("filter", PREROUTING, RAW), concerned(|ipv6| Load::Source { ipv6 }, "source"));
    let answers = [trusted(), vec![Rule::default().established(false).accept()]].concat();
    table.chain("destination", None, drop(answers, CLOSED));
    let to = concerned(|ipv6| Load::Destination { ipv6 }, "destination");
    table.chain("closed", hook("filter", PREROUTING, BEFORE_NAT), to);
    table.chain("between", hook("filter", FORWARD, FILTER), between());
    table.chain("hostnat", hook("nat", POSTROUTING, SOURCE_NAT), host_nat());
    table
}

/// What nothing more is asked of, on its way into the host.
fn trusted() -> Vec<Rule> {
    let mut rules = vec![
        Rule::default().came_in_by("lo").accept(),
        Rule::default().in_set(Holds::Yes, &[Load::InInterface], TUNS.name).accept(),
    ];
    rules.extend([false, true].map(|ipv6| {
        let pair = [Load::InInterface, Load::Source { ipv6 }];
        Rule::default().of_family(ipv6).in_set(Holds::Yes, &pair, INSIDE[usize::from(ipv6)].name).accept()
    }));
    rules
}

/// Forwarding.
fn between() -> Vec<Rule> {
    let by_tun = |load| Rule::default().in_set(Holds::Yes, &[load], TUNS.name);
    let mut rules = vec![
        by_tun(Load::OutInterface).clamp_segments(),
        by_tun(Load::InInterface).clamp_segments(),
        Rule::default().established(true).accept(),
    ];
    for ipv6 in [false, true] {
        let family = usize::from(ipv6);
        let (source, destination) = (Load::Source { ipv6 }, Load::Destination { ipv6 });
        let to = || Rule::default().of_family(ipv6).in_set(Holds::Yes, &[destination], SUBNETS[family].name);
        let from = || Rule::default().of_family(ipv6).in_set(Holds::Yes, &[source], SUBNETS[family].name);
        let published = [Load::Protocol, destination, Load::DestinationPort];
        rules.extend([
            to().in_set(Holds::Yes, &[Load::OutInterface], TUNS.name).accept(),
            to().in_set(Holds::Yes, &[Load::OutInterface, source], INSIDE[family].name).accept(),
            to().in_set(Holds::Yes, &[Load::InInterface], TUNS.name)
                .in_set(Holds::No, &[source], SUBNETS[family].name)
                .accept(),
            to().in_set(Holds::Yes, &published, PUBLISHED[family].name).accept(),
            to().count(CLOSED).drop(),
            from().in_set(Holds::Yes, &[Load::OutInterface], TUNS.name).accept(),
            from().in_set(Holds::Yes, &[source], NAT[family].name).accept(),
            from().count(CLOSED).drop(),
        ]);
    }
    rules
}

fn host_nat() -> Vec<Rule> {
    let mut rules = vec![Rule::default().in_set(Holds::Yes, &[Load::OutInterface], TUNS.name).accept()];
    for ipv6 in [false, true] {
        let family = usize::from(ipv6);
        let (source, destination) = (Load::Source { ipv6 }, Load::Destination { ipv6 });
        let rule = || Rule::default().of_family(ipv6);
        rules.extend([
            // What stays on the bridge is no outside.
            rule().in_set(Holds::Yes, &[Load::OutInterface, source], INSIDE[family].name).accept(),
            rule()
                .in_set(Holds::Yes, &[source], NAT[family].name)
                .in_set(Holds::No, &[destination], SUBNETS[family].name)
                .masquerade(),
        ]);
    }
    rules
}

pub(super) fn bridge_rules() -> Transaction {
    /// Ethernet's types.
    const IPV4: [u8; 2] = [0x08, 0x00];
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    /// ICMPv6, and those of its messages that tell others where an address is (RFC 4861 §4).
    const ICMP6: u8 = 58;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    let mut table = Transaction::new(Family::Bridge, TABLE);
    for set in [PORTS, MACS].iter().chain(&LEASES).chain(&SUBNETS) {
        table.set(set);
    }
    table.counter(FORGED);
    let of_type = |kind: &[u8; 2]| Rule::default().is(Load::EtherType, kind);
    let neighbours = |kind: u8| of_type(&IPV6).is(Load::Protocol, &[ICMP6]).is(Load::Icmp6Type, &[kind]);
    let own = [Load::InInterface, Load::EtherSource];
    let forged = |rule: Rule| rule.count(FORGED).drop();
    let unspecified = [0; 4];
    let port = vec![
        forged(Rule::default().in_set(Holds::No, &own, MACS.name)),
        of_type(&IPV4).in_set(Holds::Yes, &[own[0], own[1], Load::Source { ipv6: false }], LEASES[0].name).accept(),
        of_type(&ARP)
            .in_set(Holds::Yes, &[Load::InInterface, Load::ArpSenderEther, Load::ArpSenderAddress], LEASES[0].name)
            .accept(),
        // A probe (RFC 5227 §1.1) claims no address.
        of_type(&ARP)
            .is(Load::ArpSenderAddress, &unspecified)
            .in_set(Holds::Yes, &[Load::InInterface, Load::ArpSenderEther], MACS.name)
            .accept(),
        forged(neighbours(ROUTER_ADVERTISEMENT)),
        forged(neighbours(REDIRECT)),
        neighbours(NEIGHBOUR_ADVERTISEMENT)
            .in_set(Holds::Yes, &[own[0], own[1], Load::NeighbourTarget], LEASES[1].name)
            .accept(),
        forged(neighbours(NEIGHBOUR_ADVERTISEMENT)),
        of_type(&IPV6).in_set(Holds::Yes, &[own[0], own[1], Load::Source { ipv6: true }], LEASES[1].name).accept(),
        forged(Rule::default()),
    ];
    table.chain("port", None, port);
    let first = vec![
        Rule::default().in_set(Holds::Yes, &[Load::InInterface], PORTS.name).goto("port"),
        forged(of_type(&IPV4).in_set(Holds::Yes, &[Load::Source { ipv6: false }], SUBNETS[0].name)),
        forged(of_type(&ARP).in_set(Holds::Yes, &[Load::ArpSenderAddress], SUBNETS[0].name)),
        forged(of_type(&IPV6).in_set(Holds::Yes, &[Load::Source { ipv6: true }], SUBNETS[1].name)),
    ];
    let hook = Hook { kind: "filter", number: PREROUTING, priority: BRIDGE_FIRST };
    table.chain("frames", Some(hook), first);
    table
}
