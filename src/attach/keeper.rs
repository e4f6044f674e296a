//! The fence comes back when somebody takes it away: whoever restarts the service nftables, or flushes the rules by hand, takes every
//! table with them. Containers would lose their way outside, everybody could reach them, and with the next container's fence
//! the others would be cut off.
//!
//! What the fence holds stands nowhere but in the kernel, so whoever keeps it looks after each change of any table, and takes a copy. A table
//! that is another than before was taken away, and what the copy says is said again: of networks that this host still has (the
//! `unreachable` route stays where rules go), and of ports that are still the same. A fence that is taken down with its last network stays
//! down, as that route has gone with it.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::fence::{
    INSIDE, LEASES, MACS, NAT, PORTS, PUBLISHED, SUBNETS, TABLE, TUNS, bridge_rules, has_nat, inet_rules, name_of, of,
    prefix,
};
use super::{AttachError, GuardError};
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::nft::standing;
use crate::sys::nft::table::{Family, Key, Set, keys, ranges};

/// Where the address stands in a lease: behind the port's name and the link-layer address.
const LEASED: usize = 24;

/// Sees to it that the fence stands.
#[derive(Debug, Default)]
pub struct Keeper {
    /// The last change of any table that was looked at.
    generation: Option<u32>,
    copy: Contents,
}

/// What the fence held.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Contents {
    /// Which tables it was, `inet` and `bridge`.
    tables: [Option<u64>; 2],
    tuns: Vec<Vec<u8>>,
    /// Bridge, subnet, and whether hostNat is for it.
    networks: Vec<(String, IpNet, bool)>,
    published: Vec<(&'static str, Vec<u8>)>,
    /// Of each port its number, and what it may say.
    ports: BTreeMap<String, (u32, Vec<(&'static str, Vec<u8>)>)>,
}

impl Keeper {
    /// Looks once. Returns whether a table has changed since the last look, whosever, and whether the fence had to be put back.
    ///
    /// # Errors
    /// What the kernel refused; it is tried again at the next look.
    pub fn look(&mut self) -> Result<(bool, bool), AttachError> {
        let generation = standing::generation()?;
        if self.generation == Some(generation) {
            return Ok((false, false));
        }
        let tables = tables()?;
        let was_taken = self.copy.tables.iter().zip(tables).any(|(before, now)| before.is_some() && *before != now);
        let put_back = was_taken && self.copy.put_back()?;
        let generation = if put_back { standing::generation()? } else { generation };
        self.copy = Contents::take()?;
        // Whoever is faster than this is seen at the next look.
        self.generation = Some(generation);
        Ok((true, put_back))
    }
}

fn tables() -> Result<[Option<u64>; 2], GuardError> {
    Ok([standing::handle(Family::Inet, TABLE)?, standing::handle(Family::Bridge, TABLE)?])
}

fn entries(family: Family, sets: &[Set]) -> Result<Vec<(&'static str, Vec<u8>)>, GuardError> {
    let mut found = Vec::new();
    for set in sets {
        found.extend(keys(family, TABLE, set.name)?.into_iter().map(|key| (set.name, key)));
    }
    Ok(found)
}

impl Contents {
    fn take() -> Result<Self, AttachError> {
        let mut copy = Self { tables: tables()?, ..Self::default() };
        if copy.tables == [None, None] {
            return Ok(copy);
        }
        copy.tuns = keys(Family::Inet, TABLE, TUNS.name)?;
        for set in &INSIDE {
            for range in ranges(Family::Inet, TABLE, set.name)? {
                let subnet = prefix(range.first.get(16..), range.last.get(16..));
                let Some(subnet) = subnet else { continue };
                copy.networks.push((name_of(&range.first), subnet, has_nat(subnet)?));
            }
        }
        copy.published = entries(Family::Inet, &PUBLISHED)?;
        let numbers: BTreeMap<String, u32> =
            Netlink::open()?.links()?.into_iter().map(|link| (link.name, link.index)).collect();
        for (set, key) in entries(Family::Bridge, &[PORTS, MACS, LEASES[0], LEASES[1]])? {
            let name = name_of(&key);
            // One that is gone needs no place here.
            let Some(number) = numbers.get(&name) else { continue };
            copy.ports.entry(name).or_insert((*number, Vec::new())).1.push((set, key));
        }
        Ok(copy)
    }

    /// Says again what still holds. Returns whether there was anything.
    fn put_back(&self) -> Result<bool, AttachError> {
        let mut netlink = Netlink::open()?;
        let mut wanted = Vec::new();
        for (bridge, subnet, nat) in &self.networks {
            if is_here(&mut netlink, *subnet)? {
                wanted.push((bridge, *subnet, *nat));
            }
        }
        if wanted.is_empty() {
            return Ok(false);
        }
        let (mut inet, mut bridge) = (inet_rules(), bridge_rules());
        // Somebody else may have put a part of it back already.
        let there: Vec<IpNet> = Self::take()?.networks.into_iter().map(|(_, subnet, _)| subnet).collect();
        for (name, subnet, nat) in wanted.into_iter().filter(|(_, subnet, _)| !there.contains(subnet)) {
            inet.add_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
            inet.add_prefix(of(&INSIDE, subnet), Key::default().interface(name), subnet);
            if nat {
                inet.add_prefix(of(&NAT, subnet), Key::default(), subnet);
            }
            bridge.add_prefix(of(&SUBNETS, subnet), Key::default(), subnet);
        }
        for tun in &self.tuns {
            inet.add(TUNS.name, &Key::default().octets(tun));
        }
        let links = netlink.links()?;
        let is_same = |name: &str, number| links.iter().any(|link| link.name == name && link.index == number);
        let same = self.ports.iter().filter(|(name, (number, _))| is_same(name, *number));
        let mut addresses = Vec::new();
        for (set, key) in same.flat_map(|(_, (_, entries))| entries) {
            bridge.add(set, &Key::default().octets(key));
            addresses.extend(key.get(LEASED..));
        }
        // Behind the protocol, which fills four octets, and before the port.
        let address = |key: &Vec<u8>| key.get(4..key.len().saturating_sub(4)).map(<[u8]>::to_vec);
        for (set, key) in self.published.iter().filter(|(_, key)| address(key).is_some_and(|it| addresses.contains(&&*it))) {
            inet.add(set, &Key::default().octets(key));
        }
        // In the order in which it was put up.
        bridge.commit()?;
        inet.commit()?;
        Ok(true)
    }
}

/// Whether this host still has a network: the route that makes it unreachable is there.
fn is_here(netlink: &mut Netlink, subnet: IpNet) -> Result<bool, NetlinkError> {
    /// The number of `lo` in every namespace: the kernel hangs IPv6 routes on it that lead nowhere.
    const LOOPBACK: u32 = 1;
    let routes = netlink.routes_to(subnet)?;
    Ok(routes.iter().any(|route| route.link_index.is_none_or(|index| index == LOOPBACK)))
}
