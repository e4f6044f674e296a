//! The configuration held against itself: what each key allows on its own may still not work together.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::message::Report;
use super::read::{Draft, PeerDraft};
use super::section::Placed;
use super::{Advertise, Backend, Config, Host, Listen, Mtu, Overlay, Peer, PeerAuth, PeerRemote, Queues, Tun};
use crate::model::PeerId;

/// Smallest MTU of a link that carries IPv6 (RFC 8200 §5).
const MIN_IPV6_MTU: u16 = 1280;

/// Checks the draft, and makes a configuration of it if nothing is missing. Errors may be in the report all the same.
pub(super) fn finish(draft: Draft, report: &mut Report) -> Option<Config> {
    device(&draft, report);
    names(&draft, report);
    identities(&draft, report);
    own_addresses(&draft, report);
    advertised(&draft, report);
    peer_addresses(&draft, report);
    for block in all_blocks(&draft) {
        usable_block(block.prefix, report);
    }
    overlaps(&draft, report);
    outer_addresses(&draft, report);
    certificates(&draft, report);
    for peer in &draft.peers {
        peer_blocks(&draft, peer, report);
    }
    build(draft)
}

fn device(draft: &Draft, report: &mut Report) {
    let Listen { ike_port, natt_port, .. } = draft.listen.value;
    if ike_port == natt_port {
        draft.listen.error(report, format!("expected two different ports, got {ike_port} as ike_port and as natt_port"));
    }
    if let (Backend::Plain, Queues::Fixed(queues @ 2..)) = (draft.backend, draft.queues.value) {
        draft.queues.error(report, format!("expected 1, as the backend plain has one queue, got {queues}"));
    }
    if let Mtu::Fixed(mtu @ ..MIN_IPV6_MTU) = draft.mtu.value
        && let Some(block) = all_blocks(draft).map(|block| block.prefix).find(|block| block.value.addr().is_ipv6())
    {
        let message = format!("expected at least {MIN_IPV6_MTU}, as {} is IPv6, got {mtu}", block.value);
        draft.mtu.error(report, message);
    }
}

fn names(draft: &Draft, report: &mut Report) {
    let mut seen: HashMap<&str, &Placed<String>> = HashMap::new();
    for name in draft.peers.iter().filter_map(|peer| peer.name.as_ref()) {
        if draft.name.as_ref().is_some_and(|own| own.value == name.value) {
            name.error(report, format!("{:?} is this host's own name", name.value));
        } else if let Some(first) = seen.get(name.value.as_str()) {
            name.error(report, format!("{:?} is the name of {} already{}", name.value, parent(first), on_line(first)));
        } else {
            seen.insert(&name.value, name);
        }
    }
}

/// A peer is found by what it calls itself: two of one identity, or one of ours, cannot be told apart.
fn identities(draft: &Draft, report: &mut Report) {
    let mut seen: HashMap<PeerId, Placed<String>> = HashMap::new();
    for peer in &draft.peers {
        let Some(remote) = peer.remote_id.as_ref().or(peer.name.as_ref()) else { continue };
        let remote_id = PeerId::from_text(&remote.value);
        let local = peer.local_id.as_ref().or(draft.name.as_ref());
        if local.is_some_and(|local| PeerId::from_text(&local.value) == remote_id) {
            // A peer with our own name was refused as such.
            if peer.remote_id.is_some() || peer.local_id.is_some() {
                remote.error(report, format!("{:?} is what this host calls itself towards the peer", remote.value));
            }
        } else if let Some(first) = seen.get(&remote_id) {
            // Equal names were refused as such.
            if peer.remote_id.is_some() || first.key.ends_with("remote_id") {
                let message = format!("{:?} is the identity of {} already{}", remote.value, parent(first), on_line(first));
                remote.error(report, message);
            }
        } else {
            seen.insert(remote_id, remote.clone());
        }
    }
}

/// What only peers with certificates may have, and what they need.
fn certificates(draft: &Draft, report: &mut Report) {
    for peer in &draft.peers {
        match &peer.auth {
            Some(Placed { value: PeerAuth::CaFile(_), .. }) => {
                if let (Some(auth), None) = (&peer.auth, &draft.certificate) {
                    auth.error(
                        report,
                        "host.certificate_file is missing: the peer proves itself by a certificate, and so must we",
                    );
                }
            }
            Some(auth) => {
                let names = [&peer.local_id, &peer.remote_id].into_iter().flatten();
                for name in names.filter(|name| name.value.contains('=')) {
                    let kind = auth.key.rsplit('.').next().unwrap_or_default();
                    name.error(
                        report,
                        format!(
                            "a distinguished name goes with ca_file, not with {kind}: expected a host name or an address"
                        ),
                    );
                }
            }
            None => {}
        }
    }
}

fn own_addresses(draft: &Draft, report: &mut Report) {
    let mut families = [false; 2];
    for address in &draft.addresses {
        let family = &mut families[usize::from(address.value.is_ipv6())];
        if *family {
            address.error(report, "expected at most one IPv4 and one IPv6 address");
        }
        *family = true;
        let Some(block) = draft.blocks.iter().find(|block| block.value.contains(&address.value)) else {
            if !draft.blocks.is_empty() {
                let blocks: Vec<String> = draft.blocks.iter().map(|block| block.value.to_string()).collect();
                let message =
                    format!("expected an address of overlay.blocks ({}), got {}", blocks.join(", "), address.value);
                address.error(report, message);
            }
            continue;
        };
        if let Some(role) = reserved_in(block.value, address.value) {
            address.error(report, format!("{} is the {role} address of {}", address.value, block.value));
        }
    }
}

/// Addresses by which other hosts are unlikely to reach this one.
fn advertised(draft: &Draft, report: &mut Report) {
    for (index, advertise) in draft.advertise.iter().enumerate() {
        if let Advertise::Address(address, _) = advertise.value
            && let Some(doubt) = doubtful(address)
        {
            advertise.warning(report, format!("{address} {doubt}"));
        }
        if let Some(first) = draft.advertise[..index].iter().find(|first| first.value == advertise.value) {
            advertise.warning(report, format!("this stands in the list already{}", on_line(first)));
        }
    }
}

/// What is to be said against an address that other hosts are to use.
#[must_use]
pub fn doubtful(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_loopback() => Some("is a loopback address: no other host reaches this one there"),
        IpAddr::V4(v4) if v4.octets()[..2] == [172, 17] => {
            Some("is of 172.17.0.0/16, where Docker's own bridge is on every host: other hosts hardly reach this one there")
        }
        _ => None,
    }
}

/// Addresses of an IPv4 block that no host can have.
fn reserved_in(block: IpNet, address: IpAddr) -> Option<&'static str> {
    let IpNet::V4(block) = block else { return None };
    match block.prefix_len() {
        31.. => None,
        _ if address == block.network() => Some("network"),
        _ if address == block.broadcast() => Some("broadcast"),
        _ => None,
    }
}

fn peer_addresses(draft: &Draft, report: &mut Report) {
    let Listen { address: listen, natt_port, .. } = draft.listen.value;
    let mut own: Vec<SocketAddr> = Vec::new();
    if !listen.is_unspecified() {
        own.push(SocketAddr::new(listen, natt_port));
    }
    own.extend(draft.advertise.iter().filter_map(|advertise| match advertise.value {
        Advertise::Address(address, port) => Some(SocketAddr::new(address, port.unwrap_or(natt_port))),
        Advertise::Interface(_) => None,
    }));
    let mut seen: HashMap<PeerRemote, &Placed<PeerRemote>> = HashMap::new();
    for remote in draft.peers.iter().flat_map(|peer| &peer.remotes) {
        let endpoint = match remote.value {
            PeerRemote::Standard(address) => SocketAddr::new(address, natt_port),
            PeerRemote::Natt(endpoint) => endpoint,
        };
        let shown = remote.value.to_string();
        if own.contains(&endpoint) {
            remote.error(report, format!("{shown} is this host's own address"));
        } else if let Some(first) = seen.get(&remote.value) {
            remote.error(report, format!("{shown} is the address of {} already{}", parent(first), on_line(first)));
        } else {
            seen.insert(remote.value, remote);
        }
        let family_fits = listen.is_ipv4() == endpoint.is_ipv4() || listen == IpAddr::from([0u16; 8]);
        if !family_fits {
            let family = if listen.is_ipv4() { "IPv4" } else { "IPv6" };
            let message = format!("expected an {family} address, as host.listen.address is {listen}, got {shown}");
            remote.error(report, message);
        }
        if matches!(remote.value, PeerRemote::Natt(endpoint) if endpoint.port() == 500) {
            remote.warning(report, "port 500 is the IKE port; what stands here is the peer's NAT-T port, 4500 as a rule");
        }
    }
}

/// A block and whose it is: a peer's number, or none for this host's.
#[derive(Clone, Copy)]
struct Block<'d> {
    owner: Option<usize>,
    prefix: &'d Placed<IpNet>,
}

/// Every block that somebody owns: ours, then the peers'.
fn all_blocks(draft: &Draft) -> impl Iterator<Item = Block<'_>> {
    let own = draft.blocks.iter().map(|prefix| Block { owner: None, prefix });
    let theirs = draft
        .peers
        .iter()
        .enumerate()
        .flat_map(|(index, peer)| peer.remote_blocks.iter().map(move |prefix| Block { owner: Some(index), prefix }));
    own.chain(theirs)
}

/// Ranges that never leave a host or a link, so no tunnel can carry them.
pub(crate) fn usable_block(block: &Placed<IpNet>, report: &mut Report) {
    const REFUSED: [(&str, &str); 6] = [
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("::1/128", "loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    ];
    for (range, what) in REFUSED {
        if range.parse::<IpNet>().is_ok_and(|range| range.contains(&block.value)) {
            block.error(report, format!("{} holds {what} addresses, which no tunnel carries", block.value));
        }
    }
}

/// Blocks are nested or disjoint. Sorted by first address, larger first, those that hold a block are on the stack above it.
fn overlaps(draft: &Draft, report: &mut Report) {
    let mut blocks: Vec<Block<'_>> = all_blocks(draft).collect();
    blocks.sort_by_key(|block| (block.prefix.value.network(), block.prefix.value.prefix_len()));
    let mut open: Vec<Block<'_>> = Vec::new();
    for block in blocks {
        while open.last().is_some_and(|outer| !outer.prefix.value.contains(&block.prefix.value)) {
            open.pop();
        }
        if let Some(&outer) = open.last() {
            // The message belongs to the one that was written later.
            let outer_is_later = outer.prefix.line > block.prefix.line;
            let (late, early) = if outer_is_later { (outer, block) } else { (block, outer) };
            let whose = match early.owner {
                None => "this host's own".to_owned(),
                Some(index) => owner_name(&draft.peers[index]),
            };
            let (late, early) = (late.prefix, early.prefix);
            let message = if late.value == early.value {
                format!("{} is {whose} already{}", late.value, on_line(early))
            } else {
                format!("{} overlaps {}, {whose}{}", late.value, early.value, on_line(early))
            };
            late.error(report, message);
        }
        open.push(block);
    }
}

/// Packets to a peer must not themselves be routed into a tunnel.
fn outer_addresses(draft: &Draft, report: &mut Report) {
    let mut outer: Vec<(IpAddr, String)> = Vec::new();
    for peer in &draft.peers {
        for remote in &peer.remotes {
            outer.push((remote.value.address(), format!("{} address{}", owner_name(peer), on_line(remote))));
        }
    }
    for advertise in &draft.advertise {
        if let Advertise::Address(address, _) = advertise.value {
            outer.push((address, format!("an advertised address of this host{}", on_line(advertise))));
        }
    }
    let listen = draft.listen.value.address;
    if !listen.is_unspecified() {
        outer.push((listen, format!("where this host listens{}", on_line(&draft.listen))));
    }
    outer.sort();
    for block in all_blocks(draft) {
        let net = block.prefix.value;
        let first = outer.partition_point(|(address, _)| *address < net.network());
        if let Some((address, what)) = outer.get(first).filter(|(address, _)| net.contains(address)) {
            block.prefix.error(report, holds_outer(net, *address, what));
        }
    }
}

/// The message about a block that holds an address of the underlay, `what` being whose it is.
#[must_use]
pub fn holds_outer(block: IpNet, address: IpAddr, what: &str) -> String {
    format!(
        "{block} holds {address}, {what}: what is sent there would enter the tunnel again; name the prefixes around it instead"
    )
}

fn peer_blocks(draft: &Draft, peer: &PeerDraft, report: &mut Report) {
    for block in &peer.local_blocks {
        let owned = draft.blocks.iter().any(|own| own.value.contains(&block.value));
        if !owned && !draft.blocks.is_empty() {
            block.error(report, format!("{} is not in overlay.blocks: this host does not own it", block.value));
        }
    }
    let local = if peer.local_blocks.is_empty() { &draft.blocks } else { &peer.local_blocks };
    let has = |blocks: &[Placed<IpNet>], ipv6: bool| blocks.iter().any(|block| block.value.addr().is_ipv6() == ipv6);
    let common = [false, true].into_iter().any(|ipv6| has(local, ipv6) && has(&peer.remote_blocks, ipv6));
    if let (false, false, Some(block)) = (common, local.is_empty(), peer.remote_blocks.first()) {
        block.error(report, "our blocks and the peer's are of different address families: nothing can flow");
    }
}

/// `peers[0]` for `peers[0].name`, with its name if it is known.
fn parent(placed: &Placed<impl Sized>) -> &str {
    placed.key.rsplit_once('.').map_or(placed.key.as_str(), |(parent, _)| parent)
}

fn owner_name(peer: &PeerDraft) -> String {
    peer.name.as_ref().map_or_else(|| format!("{}'s", peer.place.key), |name| format!("{}'s", name.value))
}

fn on_line(placed: &Placed<impl Sized>) -> String {
    placed.line.map_or_else(String::new, |line| format!(" (line {line})"))
}

/// The first address of a block that a host can have: in IPv4 not the network address, in IPv6 not the routers' anycast
/// address (RFC 4291 §2.6.1).
fn first_host(block: IpNet) -> IpAddr {
    match block {
        IpNet::V4(net) if net.prefix_len() < 31 => IpAddr::from((u32::from(net.network()) + 1).to_be_bytes()),
        IpNet::V6(net) if net.prefix_len() < 127 => IpAddr::from((u128::from(net.network()) + 1).to_be_bytes()),
        net => net.network(),
    }
}

fn build(draft: Draft) -> Option<Config> {
    let name = draft.name?;
    let blocks: Vec<IpNet> = draft.blocks.iter().map(|block| block.value).collect();
    let mut addresses: Vec<IpAddr> = draft.addresses.iter().map(|address| address.value).collect();
    if addresses.is_empty() {
        addresses = default_addresses(&blocks);
    }
    let mut peers = Vec::new();
    for peer in draft.peers {
        let own = &draft.blocks;
        let local = if peer.local_blocks.is_empty() { own } else { &peer.local_blocks };
        let peer_name = peer.name?;
        let mut remotes = peer.remotes.into_iter().map(|remote| remote.value);
        peers.push(Peer {
            remote: remotes.next(),
            alternatives: remotes.collect(),
            local_id: PeerId::from_text(peer.local_id.as_ref().map_or(&name.value, |id| &id.value)),
            remote_id: PeerId::from_text(peer.remote_id.as_ref().map_or(&peer_name.value, |id| &id.value)),
            auth: peer.auth?.value,
            allow_short_psk: peer.allow_short_psk,
            suites: peer.suites,
            require_pq: peer.require_pq,
            local_blocks: local.iter().map(|block| block.value).collect(),
            remote_blocks: peer.remote_blocks.iter().map(|block| block.value).collect(),
            from_store: false,
            on_demand: false,
            name: peer_name,
        });
    }
    Some(Config {
        host: Host {
            name: name.value,
            advertise: draft.advertise.into_iter().map(|advertise| advertise.value).collect(),
            listen: draft.listen.value,
            certificate: draft.certificate,
        },
        tun: Tun {
            name: draft.tun_name,
            mtu: draft.mtu.value,
            queues: draft.queues.value,
            pin: draft.pin,
            backend: draft.backend,
            offload: draft.offload,
        },
        overlay: Overlay { addresses, blocks, singles: Vec::new(), beyond: Vec::new() },
        ipsec: draft.ipsec,
        peers,
        store: draft.store,
        mesh: draft.mesh,
        drivers: draft.drivers,
        cni: draft.cni,
        docker: draft.docker,
        labels: draft.labels,
    })
}

/// `overlay.address` where it is not given: the first address of the first block of each family.
#[must_use]
pub fn default_addresses(blocks: &[IpNet]) -> Vec<IpAddr> {
    let of_family = |ipv6| blocks.iter().find(|block| block.addr().is_ipv6() == ipv6).map(|block| first_host(*block));
    [false, true].into_iter().filter_map(of_family).collect()
}
