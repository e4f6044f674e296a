//! The hosts of a store as peers of this one: what the file of configuration says, with the store's hosts joined in.
//!
//! Peers that are listed by hand win over hosts of the store, and what this host has wins over what others claim. A host whose
//! record cannot be used in part is used as far as it can be; what was left out is said.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Mesh, Peer, PeerAuth, PeerRemote, Placed, default_addresses, holds_outer};
use crate::model::PeerId;
use crate::store::{Member, Members, Own};
use crate::sys::netlink::{Netlink, NetlinkError};

/// What this host has on its interfaces, but for the TUN device.
#[derive(Debug, Default)]
pub(super) struct Here {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks of its interfaces.
    pub networks: Vec<(String, IpNet)>,
}

impl Here {
    /// Looks around.
    pub(super) fn look(tun: &str) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let mut here = Self::default();
        for address in netlink.addresses()? {
            let Some(link) = links.iter().find(|link| link.index == address.link_index) else { continue };
            if link.name != tun {
                here.addresses.push(address.address.addr());
                here.networks.push((link.name.clone(), address.address.trunc()));
            }
        }
        Ok(here)
    }
}

/// Joins the store's hosts into a configuration; what is to be said about it comes back, too.
pub(super) fn join(base: &Config, members: &Members, own: &Own, here: &Here) -> (Config, Vec<String>) {
    let mut config = base.clone();
    let mut warnings = members.warnings.clone();
    let Some(member) = members.own(own) else {
        warnings.push(match (&members.group_key, own.keys.first()) {
            (None, Some(key)) => {
                format!("the store does not list this host: none of its hosts has the key {}", key.to_base64())
            }
            _ => format!("the store does not list this host: none of its hosts is called {}", own.name),
        });
        return (config, warnings);
    };
    own_part(&mut config, member, &mut warnings);
    config.overlay.beyond.clone_from(&members.subnets);
    let mut joining = Joining::new(&config, members, here);
    for (label, other) in members.labels().into_iter().zip(&members.hosts) {
        if other.id == member.id {
            continue;
        }
        if joining.names.contains(&label) || joining.names.contains(&other.id) {
            // A peer by hand stands for it.
            continue;
        }
        let addresses = joining.addresses(&label, other, base.host.listen.natt_port, &mut warnings);
        let mut blocks = joining.blocks(&label, other, &mut warnings);
        blocks.extend(joining.singles(&label, other, &mut warnings));
        let auth = match &members.group_key {
            Some(secret) => PeerAuth::Psk(secret.clone()),
            None => PeerAuth::PublicKeys(other.keys.clone()),
        };
        let mut remotes = addresses.into_iter();
        config.peers.push(Peer {
            remote: remotes.next(),
            alternatives: remotes.collect(),
            local_id: PeerId::from_text(&member.id),
            remote_id: PeerId::from_text(&other.id),
            auth,
            allow_short_psk: false,
            suites: base.ipsec.suites.clone(),
            require_pq: base.ipsec.require_pq,
            local_blocks: Vec::new(),
            remote_blocks: blocks,
            from_store: true,
            on_demand: base.mesh == Mesh::OnDemand || !other.seen,
            name: Placed { line: None, key: "store".to_owned(), value: label },
        });
    }
    (config, warnings)
}

/// What this host owns, where the configuration does not say.
fn own_part(config: &mut Config, member: &Member, warnings: &mut Vec<String>) {
    let overlay = &mut config.overlay;
    if overlay.blocks.is_empty() {
        overlay.blocks.clone_from(&member.blocks);
        if overlay.blocks.is_empty() {
            warnings.push("the store has no block for this host: nothing is routed to it".to_owned());
        }
        overlay.addresses.retain(|address| {
            let fits = member.blocks.iter().any(|block| block.contains(address));
            if !fits {
                warnings.push(format!("overlay.address {address} is in no block that the store has for this host"));
            }
            fits
        });
    } else if let Some(block) = overlay.blocks.iter().find(|block| !member.blocks.contains(block)) {
        warnings.push(format!("overlay.blocks says {block}, and the store does not: other hosts do not know of it"));
    }
    if overlay.addresses.is_empty() {
        overlay.addresses = default_addresses(&overlay.blocks);
    }
    // One that is in a block of ours by now is local anyway.
    let is_single = |address: &&IpAddr| !overlay.blocks.iter().any(|block| block.contains(*address));
    overlay.singles = member.singles.iter().filter(is_single).copied().collect();
}

/// What the peers so far have.
struct Joining<'h> {
    names: HashSet<String>,
    here: &'h Here,
    /// Addresses of this host, which nobody else has.
    own: Vec<IpAddr>,
    /// Disjoint, by first address, with whose they are.
    taken: BTreeMap<IpAddr, (IpNet, String)>,
    /// Addresses of the underlay, sorted, with whose they are.
    outer: Vec<(IpAddr, String)>,
}

impl<'h> Joining<'h> {
    fn new(config: &Config, members: &Members, here: &'h Here) -> Self {
        let names = config.peers.iter().map(|peer| peer.name.value.clone());
        let ids = config.peers.iter().map(|peer| peer.remote_id.to_string());
        let by_hand = config.peers.iter().flat_map(|peer| peer.remotes().map(|place| (place.address(), &peer.name.value)));
        let listed = members.hosts.iter().flat_map(|host| host.addresses.iter().map(|place| (place.address(), &host.name)));
        let mut outer: Vec<(IpAddr, String)> =
            by_hand.chain(listed).map(|(address, whose)| (address, whose.clone())).collect();
        outer.sort();
        let own = config.overlay.addresses.iter().chain(&config.overlay.singles).copied().collect();
        let mut joining = Self { names: names.chain(ids).collect(), here, own, taken: BTreeMap::new(), outer };
        let own = config.overlay.blocks.iter().map(|block| (*block, "this host's own".to_owned()));
        let theirs = |peer: &Peer| {
            let whose = format!("{}'s", peer.name.value);
            peer.remote_blocks.iter().map(move |block| (*block, whose.clone())).collect::<Vec<_>>()
        };
        for (block, whose) in own.chain(config.peers.iter().flat_map(theirs)) {
            joining.taken.insert(block.network(), (block, whose));
        }
        joining
    }

    /// Where the host is, but for places that are ours: calling them, we would call ourselves.
    fn addresses(&self, label: &str, host: &Member, natt_port: u16, warnings: &mut Vec<String>) -> Vec<PeerRemote> {
        let is_ours = |place: &PeerRemote| match *place {
            PeerRemote::Standard(address) => self.here.addresses.contains(&address),
            PeerRemote::Natt(endpoint) => endpoint.port() == natt_port && self.here.addresses.contains(&endpoint.ip()),
        };
        if let Some(place) = host.addresses.iter().find(|place| is_ours(place)) {
            warnings
                .push(format!("the store has {label} at {place}, which is this host's own address: it is not called there"));
        }
        host.addresses.iter().copied().filter(|place| !is_ours(place)).collect()
    }

    /// Its blocks that nobody else has.
    fn blocks(&mut self, label: &str, host: &Member, warnings: &mut Vec<String>) -> Vec<IpNet> {
        let mut blocks = Vec::new();
        for &block in &host.blocks {
            match self.objection(block) {
                Some(objection) => warnings.push(format!("{label}'s block is not used: {objection}")),
                None => {
                    self.taken.insert(block.network(), (block, format!("{label}'s")));
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    /// Its single addresses: they lie in others' blocks, ours among them, and the longest prefix wins.
    fn singles(&self, label: &str, host: &Member, warnings: &mut Vec<String>) -> Vec<IpNet> {
        let is_fine = |address: &&IpAddr| {
            let is_outer = self.outer.iter().any(|(outer, _)| outer == *address) || self.here.addresses.contains(address);
            let is_fine = !is_outer && !self.own.contains(address);
            if !is_fine {
                let whose = if is_outer { "an address of the underlay" } else { "this host's own" };
                warnings.push(format!("{label}'s address {address} is not used: it is {whose}"));
            }
            is_fine
        };
        host.singles.iter().filter(is_fine).copied().map(IpNet::from).collect()
    }

    fn objection(&self, block: IpNet) -> Option<String> {
        let before = self.taken.range(..=block.network()).next_back();
        let after = self.taken.range(block.network()..).next();
        let overlaps = |(other, _): &&(IpNet, String)| other.contains(&block) || block.contains(other);
        if let Some((other, whose)) = [before, after].into_iter().flatten().map(|(_, taken)| taken).find(overlaps) {
            return Some(format!("{block} overlaps {other}, {whose}"));
        }
        let first = self.outer.partition_point(|(address, _)| *address < block.network());
        if let Some((address, whose)) = self.outer.get(first).filter(|(address, _)| block.contains(address)) {
            return Some(holds_outer(block, *address, &format!("{whose}'s address")));
        }
        let (link, _) = self.here.networks.iter().find(|(_, network)| *network == block)?;
        Some(format!("{block} is the network of {link} here"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Surroundings, parse};
    use crate::crypto::SigningKey;

    fn key(seed: u8) -> crate::crypto::VerifyingKey {
        SigningKey::from_seed(&[seed; 32]).verifying_key()
    }

    fn host(name: &str, seed: u8, address: &str, block: &str) -> Member {
        Member {
            id: format!("{name}-id"),
            name: name.to_owned(),
            keys: vec![key(seed)],
            addresses: vec![PeerRemote::Standard(address.parse().unwrap())],
            blocks: vec![block.parse().unwrap()],
            singles: Vec::new(),
            seen: true,
        }
    }

    fn three() -> Members {
        let hosts = vec![
            host("alpha", 1, "192.0.2.1", "10.42.1.0/24"),
            host("beta", 2, "192.0.2.2", "10.42.2.0/24"),
            host("gamma", 3, "192.0.2.3", "10.42.3.0/24"),
        ];
        Members { hosts, ..Members::default() }
    }

    fn base(more: &str) -> Config {
        let text = format!("host: {{name: whatever}}\nstore: {{kind: file, path: h.yaml}}\n{more}");
        let (config, report) = parse(Path::new("u.yaml"), text.as_bytes(), &Surroundings::default());
        config.unwrap_or_else(|| panic!("{report}"))
    }

    fn joined(base: &Config, members: &Members, here: &Here) -> (Config, Vec<String>) {
        join(base, members, &Own { name: "whatever".into(), keys: vec![key(1)] }, here)
    }

    fn peers(config: &Config) -> Vec<String> {
        let one = |peer: &Peer| {
            let blocks: Vec<String> = peer.remote_blocks.iter().map(ToString::to_string).collect();
            let places: Vec<String> = peer.remotes().map(|place| place.to_string()).collect();
            format!("{} at [{}] has [{}]", peer.name.value, places.join(" "), blocks.join(" "))
        };
        config.peers.iter().map(one).collect()
    }

    #[test]
    fn the_others_become_peers() {
        let (config, warnings) = joined(&base("mesh: on-demand"), &three(), &Here::default());
        assert_eq!(warnings, [""; 0]);
        assert_eq!(config.overlay.blocks, ["10.42.1.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(config.overlay.addresses, ["10.42.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(peers(&config), ["beta at [192.0.2.2] has [10.42.2.0/24]", "gamma at [192.0.2.3] has [10.42.3.0/24]"]);
        assert!(config.peers.iter().all(|peer| peer.on_demand && peer.from_store));
        assert_eq!(config.peers[0].local_id.to_string(), "alpha-id");
        assert_eq!(config.peers[0].remote_id.to_string(), "beta-id");
    }

    #[test]
    fn single_addresses_lead_to_who_has_them() {
        let mut members = three();
        members.subnets = vec!["10.42.0.0/16".parse().unwrap()];
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        members.hosts[0].singles = vec![address("10.42.2.9"), address("10.42.1.9")];
        members.hosts[1].singles =
            vec![address("10.42.1.7"), address("10.42.77.7"), address("192.0.2.3"), address("10.42.1.1")];
        let (config, warnings) = joined(&base(""), &members, &Here::default());
        assert_eq!(config.overlay.singles, [address("10.42.2.9")], "the other one is in our block");
        assert_eq!(config.overlay.prefixes(), ["10.42.1.0/24", "10.42.2.9/32"].map(|net| net.parse::<IpNet>().unwrap()));
        assert_eq!(config.overlay.beyond, members.subnets);
        assert_eq!(
            peers(&config)[0],
            "beta at [192.0.2.2] has [10.42.2.0/24 10.42.1.7/32 10.42.77.7/32]",
            "also out of our block and of nobody's"
        );
        assert_eq!(
            warnings,
            [
                "beta's address 192.0.2.3 is not used: it is an address of the underlay",
                "beta's address 10.42.1.1 is not used: it is this host's own"
            ]
        );
    }

    #[test]
    fn a_host_that_the_store_does_not_see_is_not_called_and_stays() {
        let mut members = three();
        members.hosts[1].seen = false;
        let (config, _) = joined(&base(""), &members, &Here::default());
        assert_eq!(config.peers.iter().map(|peer| peer.on_demand).collect::<Vec<_>>(), [true, false]);
        assert_eq!(peers(&config).len(), 2);
    }

    #[test]
    fn who_is_not_listed_is_alone_and_is_told_its_key() {
        let own = Own { name: "alpha".into(), keys: vec![key(9)] };
        let (config, warnings) = join(&base(""), &three(), &own, &Here::default());
        assert_eq!((peers(&config).len(), config.overlay.blocks.len()), (0, 0));
        assert!(warnings[0].contains(&key(9).to_base64()), "{warnings:?}");
    }

    #[test]
    fn what_cannot_be_used_is_left_out_and_said() {
        let mut members = three();
        members.hosts.push(host("delta", 4, "192.0.2.4", "10.42.2.128/25"));
        members.hosts.push(host("epsilon", 5, "192.0.2.5", "192.0.2.0/24"));
        members.hosts.push(host("zeta", 6, "192.0.2.1", "10.42.6.0/24"));
        members.hosts.push(host("eta", 7, "192.0.2.7", "10.42.0.0/16"));
        members.hosts.push(host("theta", 8, "192.0.2.8", "172.16.5.0/24"));
        let here = Here {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            networks: vec![("eth1".into(), "172.16.5.0/24".parse().unwrap())],
        };
        let by_hand = "peers: [{name: gamma, psk: 0123456789abcdef0123456789abcdef, remote_blocks: [10.50.0.0/16]}]";
        let (config, warnings) = joined(&base(by_hand), &members, &here);
        assert_eq!(
            peers(&config),
            [
                "gamma at [] has [10.50.0.0/16]",
                "beta at [192.0.2.2] has [10.42.2.0/24]",
                "delta at [192.0.2.4] has []",
                "epsilon at [192.0.2.5] has []",
                "zeta at [] has [10.42.6.0/24]",
                "eta at [192.0.2.7] has []",
                "theta at [192.0.2.8] has []",
            ]
        );
        let said = |part: &str| assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        said("delta's block is not used: 10.42.2.128/25 overlaps 10.42.2.0/24, beta's");
        said("epsilon's block is not used: 192.0.2.0/24 holds 192.0.2.1");
        said("zeta at 192.0.2.1, which is this host's own address");
        said("eta's block is not used: 10.42.0.0/16 overlaps");
        said("172.16.5.0/24 is the network of eth1 here");
    }

    #[test]
    fn what_the_configuration_says_of_this_host_counts() {
        let given = base("overlay: {address: 10.42.9.7, blocks: [10.42.9.0/24]}");
        let (config, warnings) = joined(&given, &three(), &Here::default());
        assert_eq!(config.overlay, given.overlay);
        assert!(warnings[0].contains("overlay.blocks says 10.42.9.0/24"), "{warnings:?}");
        let (config, warnings) = joined(&base("overlay: {address: 10.42.7.7}"), &three(), &Here::default());
        assert_eq!(config.overlay.addresses, ["10.42.1.1".parse::<IpAddr>().unwrap()]);
        assert!(warnings[0].contains("10.42.7.7 is in no block"), "{warnings:?}");
    }
}
