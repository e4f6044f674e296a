//! Blocks: who has one has it for good, and nobody else has it.
//!
//! A claim is one transaction that takes place only if no block was written since the list of blocks was read out of which it chose.
//! So claims of hosts that know nothing of each other cannot overlap, whatever sizes they have; whoever is late reads again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;

use super::api::{Api, ApiError, Guard, Write};
use super::records::{BlockRecord, Keys, NetworkRecord, Records, VERSION};

/// How often a claim that was late is tried again, for now: of those who claim at once one is always in time.
const ATTEMPTS: u32 = 64;

/// Why there is no block.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The store did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Everything is somebody's.
    #[error("no block of /{0} is free in the store's network: all {1} are owned by hosts")]
    Full(u8, usize),
    /// It is somebody else's, or overlaps somebody's.
    #[error("{0} cannot be this host's: {1}")]
    Taken(IpNet, String),
    /// Others were quicker each time.
    #[error("other hosts were quicker, {ATTEMPTS} times")]
    Late,
}

/// What is claimed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim<'n> {
    /// This block.
    Just(IpNet),
    /// Any free one of the network, within these prefixes if there are any; rather one without these addresses, which others have.
    Any { network: &'n NetworkRecord, within: &'n [IpNet], without: &'n [IpAddr] },
}

/// Claims a block for a host.
///
/// # Errors
/// [`ClaimError`]; then there is no block that was not this host's before.
pub(super) fn claim(api: &mut Api, keys: &Keys, owner: &str, claim: Claim<'_>) -> Result<IpNet, ClaimError> {
    for attempt in 0..ATTEMPTS {
        let listing = api.list(&keys.blocks())?;
        let revision = listing.head.revision;
        let mut records = Records::new(keys);
        records.replace(listing.head, listing.kvs, owner);
        let taken = records.blocks();
        let block = match claim {
            Claim::Just(block) => match taken.iter().find(|(other, _)| overlap(**other, block)) {
                Some((other, whose)) if whose == owner && *other == block => return Ok(block),
                Some((other, whose)) => return Err(ClaimError::Taken(block, format!("{other} is of host {whose}"))),
                None => block,
            },
            // Somebody who was late once takes another one than the first, as everybody wants that.
            Claim::Any { network, within, without } => {
                let skip = spread(owner, attempt);
                free(network, within, &taken, &|block| without.iter().any(|address| block.contains(address)), skip)
                    .or_else(|_| free(network, within, &taken, &|_| false, skip))?
            }
        };
        let record = serde_json::to_vec(&BlockRecord { v: VERSION, owner: owner.to_owned() }).unwrap_or_default();
        let (key, removed, blocks) = (keys.block(block), keys.removed(owner), keys.blocks());
        let guards = [Guard::Unchanged(&blocks, revision), Guard::Absent(&key), Guard::Absent(&removed)];
        if api.transact(&guards, &[Write::Put(&key, record)])? {
            return Ok(block);
        }
        thread::sleep(Duration::from_millis(spread(owner, attempt) as u64));
    }
    Err(ClaimError::Late)
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Differs by host and attempt, nothing the first time: below 2 to the power of `attempt`, at most 32.
fn spread(owner: &str, attempt: u32) -> usize {
    let mixed = owner.bytes().fold(attempt, |mixed, octet| mixed.wrapping_mul(31).wrapping_add(octet.into()));
    mixed as usize % (1 << attempt.min(5))
}

/// A free block, so many behind the first one. The first block of a subnet has the address that is every host's gateway (10.42.0.1):
/// nobody owns it.
fn free(
    network: &NetworkRecord,
    within: &[IpNet],
    taken: &BTreeMap<IpNet, String>,
    is_disliked: &dyn Fn(&IpNet) -> bool,
    skip: usize,
) -> Result<IpNet, ClaimError> {
    let of_subnet = |subnet: &IpNet| subnet.subnets(network.block).into_iter().flatten().skip(1);
    let is_within = |block: &IpNet| within.is_empty() || within.iter().any(|prefix| prefix.contains(block));
    let blocks = || network.subnets.iter().flat_map(of_subnet).filter(is_within);
    let is_free = |block: &IpNet| {
        // Blocks do not overlap each other, so only a neighbour in order can overlap this one.
        let before = taken.range(..=IpNet::from(block.network())).next_back();
        let inside = taken.keys().find(|other| block.contains(*other));
        !before.is_some_and(|(other, _)| overlap(*other, *block)) && inside.is_none()
    };
    let mut some = blocks().filter(|block| is_free(block) && !is_disliked(block)).take(skip + 1);
    let first = some.next();
    some.last().or(first).ok_or_else(|| ClaimError::Full(network.block, blocks().count()))
}
