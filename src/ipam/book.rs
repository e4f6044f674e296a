//! The book: what the journal's records amount to, and who gets which address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::record::Record;
use super::{About, IpamError, Lease, Owner, Sandbox, Seconds, Source};

/// Seconds that a released address rests before somebody else gets it: longer than neighbours keep an entry that they do not
/// use (base_reachable_time, 30 s, times 1.5 at most) and than resolvers keep a name of ours.
pub const HOLD_DOWN: Seconds = 60;

/// Networks, leases, and addresses that rest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    networks: BTreeMap<String, Network>,
}

/// What is known of one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    blocks: Vec<IpNet>,
    reserved: BTreeSet<IpAddr>,
    source: Source,
    /// Where single addresses may be had from that are in none of the blocks.
    beyond: Vec<IpNet>,
    leases: BTreeMap<Owner, Lease>,
    /// Who has each address.
    holders: BTreeMap<IpAddr, Owner>,
    /// When each resting address was released.
    resting: BTreeMap<IpAddr, Seconds>,
    /// Behind which the round goes on: of IPv4 and of IPv6.
    last: [Option<IpAddr>; 2],
}

/// Who wants what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Of which network.
    pub network: String,
    /// Who asks.
    pub owner: Owner,
    /// Where its interface is.
    pub sandbox: Sandbox,
    /// What it wants.
    pub wish: Wish,
    /// The gateways, as the container will see them: nobody's address.
    pub never: Vec<IpAddr>,
    /// What is written down of the owner besides.
    pub about: About,
}

/// What somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wish {
    /// One address of each family that the network has blocks of.
    Any,
    /// These and no others.
    These(Vec<IpAddr>),
}

/// What became of a network's addresses of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Addresses that containers could have.
    pub total: u128,
    /// Had by somebody.
    pub leased: u64,
    /// Never given.
    pub reserved: u64,
    /// Released a moment ago.
    pub resting: u64,
    /// Seconds until the next of them has rested.
    pub next_in: Option<Seconds>,
}

impl Counts {
    /// Could be given now.
    #[must_use]
    pub const fn free(&self) -> u128 {
        self.total.saturating_sub(self.leased as u128 + self.reserved as u128 + self.resting as u128)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} leased, {} reserved, {} at rest", self.leased, self.total, self.reserved, self.resting)?;
        match self.next_in {
            Some(seconds) => write!(f, " (the next is free in {seconds} s)"),
            None => Ok(()),
        }
    }
}

impl Network {
    fn new() -> Self {
        Self {
            blocks: Vec::new(),
            reserved: BTreeSet::new(),
            source: Source::Netconf,
            beyond: Vec::new(),
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            resting: BTreeMap::new(),
            last: [None; 2],
        }
    }

    /// Whether that is what is known already.
    pub(super) fn is(&self, blocks: &[IpNet], reserved: &[IpAddr], source: Source) -> bool {
        self.blocks == blocks
            && self.reserved.iter().eq(&reserved.iter().copied().collect::<BTreeSet<_>>())
            && self.source == source
    }

    /// This host's blocks of it.
    #[must_use]
    pub fn blocks(&self) -> &[IpNet] {
        &self.blocks
    }

    /// Addresses in them that no container gets.
    #[must_use]
    pub const fn reserved(&self) -> &BTreeSet<IpAddr> {
        &self.reserved
    }

    /// Who said so.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// Subnets of which single addresses may be had beside the blocks, if the agent gets them from the store.
    #[must_use]
    pub fn beyond(&self) -> &[IpNet] {
        &self.beyond
    }

    /// Whether an address is in one of this host's blocks.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.contains(&address))
    }

    /// Its leases, by owner.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Addresses at rest, with the seconds that are left.
    pub fn resting(&self, now: Seconds) -> impl Iterator<Item = (IpAddr, Seconds)> {
        self.resting.iter().filter_map(move |(address, since)| Some((*address, rest_left(*since, now)?)))
    }

    /// Forgets what has rested, lest the list grow for ever.
    fn forget_rested(&mut self, now: Seconds) {
        self.resting.retain(|_, since| rest_left(*since, now).is_some());
    }

    fn blocks_of(&self, ipv6: bool) -> Vec<IpNet> {
        self.blocks.iter().copied().filter(|block| block.addr().is_ipv6() == ipv6).collect()
    }

    /// What became of the addresses of one family, of which `never` are reserved as well. Leases outside of the blocks do not
    /// count.
    #[must_use]
    pub fn counts(&self, ipv6: bool, never: &[IpAddr], now: Seconds) -> Counts {
        let ranges: Vec<(u128, u128)> = self.blocks_of(ipv6).into_iter().map(usable).collect();
        let inside = |address: &IpAddr| {
            let number = number(*address);
            address.is_ipv6() == ipv6 && ranges.iter().any(|(first, last)| (*first..=*last).contains(&number))
        };
        let leased = self.holders.keys().filter(|address| inside(address)).count() as u64;
        let reserved: BTreeSet<&IpAddr> = self.reserved.iter().chain(never).filter(|address| inside(address)).collect();
        let rests: Vec<Seconds> = self
            .resting(now)
            .filter(|(address, _)| inside(address) && !reserved.contains(address))
            .map(|(_, left)| left)
            .collect();
        Counts {
            total: ranges.iter().map(|(first, last)| (last - first).saturating_add(1)).fold(0, u128::saturating_add),
            leased,
            reserved: reserved.iter().filter(|address| !self.holders.contains_key(**address)).count() as u64,
            resting: rests.len() as u64,
            next_in: rests.into_iter().min(),
        }
    }

    /// The next free address of a family, behind the one that was given last.
    fn next_free(&self, ipv6: bool, never: &[IpAddr], now: Seconds) -> Option<IpAddr> {
        let ranges: Vec<(u128, u128)> = self.blocks_of(ipv6).into_iter().map(usable).collect();
        let last = self.last[usize::from(ipv6)].map(number);
        let at = last.and_then(|last| ranges.iter().position(|(first, end)| (*first..=*end).contains(&last)));
        let free = |number: &u128| {
            let address = address(*number, ipv6);
            let rests = self.resting.get(&address).is_some_and(|since| rest_left(*since, now).is_some());
            let given = self.holders.contains_key(&address) || self.reserved.contains(&address) || never.contains(&address);
            !given && !rests
        };
        let (Some(at), Some(last)) = (at, last) else {
            return ranges.iter().find_map(|(first, end)| (*first..=*end).find(free)).map(|number| address(number, ipv6));
        };
        let behind = last.saturating_add(1)..=ranges[at].1;
        let others = ranges[at + 1..].iter().chain(&ranges[..at]).map(|(first, end)| *first..=*end);
        let before = ranges[at].0..=last;
        let mut order = std::iter::once(behind).chain(others).chain(std::iter::once(before));
        order.find_map(|mut range| range.find(free)).map(|number| address(number, ipv6))
    }
}

/// Seconds that an address has still to rest, if it has. A clock that was set is off by anything: what was released in a future
/// further away than the rest has rested.
fn rest_left(since: Seconds, now: Seconds) -> Option<Seconds> {
    let left = (since.saturating_add(HOLD_DOWN)).saturating_sub(now);
    (left > 0 && left <= 2 * HOLD_DOWN).then_some(left)
}

impl Book {
    pub(super) fn replay(records: Vec<Record>) -> Self {
        let mut book = Self::default();
        let mut latest = BTreeMap::<String, Seconds>::new();
        for record in records {
            if let Record::Release { network, at, .. } = &record {
                match latest.get_mut(network) {
                    Some(latest) => *latest = *at,
                    None => drop(latest.insert(network.clone(), *at)),
                }
            }
            book.enter(record);
        }
        // Once, as every release would go through all that rest.
        for (network, at) in latest {
            book.entry(network).forget_rested(at);
        }
        book
    }

    /// Every network by name.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &Network)> {
        self.networks.iter().map(|(name, network)| (name.as_str(), network))
    }

    /// One network.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.get(name)
    }

    /// Every lease.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.networks.values().flat_map(Network::leases)
    }

    /// What somebody has.
    #[must_use]
    pub fn lease_of(&self, network: &str, owner: &Owner) -> Option<&Lease> {
        self.networks.get(network)?.leases.get(owner)
    }

    fn entry(&mut self, name: String) -> &mut Network {
        self.networks.entry(name).or_insert_with(Network::new)
    }

    pub(super) fn apply(&mut self, record: Record) {
        let released = match &record {
            Record::Release { network, at, .. } => Some((network.clone(), *at)),
            _ => None,
        };
        self.enter(record);
        if let Some((network, at)) = released {
            self.entry(network).forget_rested(at);
        }
    }

    fn enter(&mut self, record: Record) {
        match record {
            Record::Journal { .. } => {}
            Record::Network { network: name, blocks, reserved, source } => {
                let network = self.entry(name);
                network.blocks = blocks;
                network.reserved = reserved.into_iter().collect();
                network.source = source;
            }
            Record::Beyond { network: name, subnets } => self.entry(name).beyond = subnets,
            Record::Lease(lease) => {
                let network = self.entry(lease.network.clone());
                for address in &lease.addresses {
                    network.holders.insert(*address, lease.owner.clone());
                    network.resting.remove(address);
                    // What was asked for by name elsewhere is no step of the round.
                    if network.is_own(*address) {
                        network.last[usize::from(address.is_ipv6())] = Some(*address);
                    }
                }
                network.leases.insert(lease.owner.clone(), lease);
            }
            Record::Release { network: name, owner, at } => {
                let network = self.entry(name);
                for address in network.leases.remove(&owner).map(|lease| lease.addresses).unwrap_or_default() {
                    if network.holders.get(&address) == Some(&owner) {
                        network.holders.remove(&address);
                        network.resting.insert(address, at);
                    }
                }
            }
            Record::Rests { network: name, address, since } => {
                self.entry(name).resting.insert(address, since);
            }
            Record::Last { network: name, address } => {
                self.entry(name).last[usize::from(address.is_ipv6())] = Some(address);
            }
        }
    }

    /// About how many records make this book.
    pub(super) fn size(&self) -> usize {
        self.networks.values().map(|network| 1 + network.leases.len() + network.resting.len()).sum()
    }

    /// The records that make this book and no more.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (name, network) in &self.networks {
            let name = || name.clone();
            records.push(Record::Network {
                network: name(),
                blocks: network.blocks.clone(),
                reserved: network.reserved.iter().copied().collect(),
                source: network.source,
            });
            if !network.beyond.is_empty() {
                records.push(Record::Beyond { network: name(), subnets: network.beyond.clone() });
            }
            records.extend(network.leases.values().cloned().map(Record::Lease));
            let rests = network.resting.iter();
            records.extend(rests.map(|(&address, &since)| Record::Rests { network: name(), address, since }));
            records.extend(network.last.into_iter().flatten().map(|address| Record::Last { network: name(), address }));
        }
        records
    }

    /// What somebody would get. An address in none of the blocks is given only with `beyond`: whoever asks so claims it then.
    pub(super) fn choose(&self, request: Request, beyond: bool, now: Seconds) -> Result<Lease, IpamError> {
        let Request { network: name, owner, sandbox, wish, never, about } = request;
        let has_blocks = |network: &&Network| !network.blocks.is_empty();
        let Some(network) = self.networks.get(&name).filter(has_blocks) else {
            let known = self.networks.iter().filter(|(_, network)| has_blocks(network));
            return Err(IpamError::NoBlocks { network: name, known: known.map(|(name, _)| name.clone()).collect() });
        };
        if let Some(lease) = network.leases.get(&owner) {
            return Err(IpamError::Already { network: name, owner, addresses: lease.addresses.clone() });
        }
        let mut addresses = match wish {
            Wish::Any => Vec::new(),
            Wish::These(addresses) => addresses,
        };
        if addresses.is_empty() {
            for ipv6 in [false, true] {
                let blocks = network.blocks_of(ipv6);
                if blocks.is_empty() {
                    continue;
                }
                let Some(address) = network.next_free(ipv6, &never, now) else {
                    return Err(IpamError::Full { network: name, ipv6, blocks, counts: network.counts(ipv6, &never, now) });
                };
                addresses.push(address);
            }
        } else {
            addresses.iter().try_for_each(|address| network.may_have(&name, *address, beyond, &never))?;
            addresses.sort();
            addresses.dedup();
        }
        Ok(Lease { network: name, addresses, owner, sandbox, since: now, pending: false, about })
    }
}

impl Network {
    /// Whether somebody may have this address on request. Rest does not matter: who asks for an address by name wants this one,
    /// most often the container that had it a moment ago.
    fn may_have(&self, name: &str, address: IpAddr, beyond: bool, never: &[IpAddr]) -> Result<(), IpamError> {
        let refuse = |why| Err(IpamError::NotOurs { network: name.to_owned(), address, why, blocks: self.blocks.clone() });
        let block = self.blocks.iter().find(|block| block.contains(&address));
        let Some(range) = block.or_else(|| self.beyond.iter().find(|subnet| subnet.contains(&address))) else {
            return refuse("in no block of this host");
        };
        let (first, last) = usable(*range);
        if !(first..=last).contains(&number(address)) {
            return refuse(if block.is_some() {
                "the first or last address of a block"
            } else {
                "the network's first or last"
            });
        }
        if never.contains(&address) {
            return refuse("the gateway");
        }
        if self.reserved.contains(&address) {
            return refuse("reserved for the host");
        }
        match self.holders.get(&address) {
            Some(holder) => Err(IpamError::Taken {
                network: name.to_owned(),
                address,
                holder: holder.clone(),
                since: self.leases.get(holder).map_or(0, |lease| lease.since),
            }),
            None if block.is_none() && !beyond => Err(IpamError::Beyond { network: name.to_owned(), address }),
            None => Ok(()),
        }
    }
}

impl Book {
    /// What another host would get: one address out of our blocks, or what is to be one of them.
    pub(super) fn lend(&self, host: &str, address: IpAddr, now: Seconds) -> Result<Lease, IpamError> {
        let networks = || self.networks.iter();
        let found = networks()
            .find(|(_, network)| network.is_own(address))
            .or_else(|| networks().find(|(_, network)| network.beyond.iter().any(|subnet| subnet.contains(&address))));
        let Some((name, network)) = found else {
            let known = networks().map(|(name, _)| name.clone());
            return Err(IpamError::NoBlocks { network: address.to_string(), known: known.collect() });
        };
        // Whoever has it, under whatever name.
        if let Some(lease) = self.leases().find(|lease| lease.addresses.contains(&address)) {
            let (network, holder, since) = (name.clone(), lease.owner.clone(), lease.since);
            return Err(IpamError::Taken { network, address, holder, since });
        }
        network.may_have(name, address, true, &[])?;
        let (network, owner) = (name.clone(), Owner::host(host, address));
        let (sandbox, about) = (Sandbox::nowhere(), About::default());
        Ok(Lease { network, addresses: vec![address], owner, sandbox, since: now, pending: false, about })
    }
}

/// The first and the last address of a block that containers can have. The network's and the broadcast address are none, nor is the
/// routers' anycast address of IPv6 (RFC 4291 §2.6.1); links of two addresses (RFC 3021, RFC 6164) and single ones have neither.
fn usable(block: IpNet) -> (u128, u128) {
    let (first, last) = (number(block.network()), number(block.broadcast()));
    match block {
        _ if block.max_prefix_len() - block.prefix_len() < 2 => (first, last),
        IpNet::V4(_) => (first + 1, last - 1),
        IpNet::V6(_) => (first + 1, last),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::from(number).into() } else { IpAddr::from((number as u32).to_be_bytes()) }
}
