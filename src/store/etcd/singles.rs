//! Single addresses: what a container here asked for by name, or took along from another host, and is in none of this host's blocks.
//!
//! Whoever wants one writes that into the store. In nobody's block it is his by that one transaction, which takes place only if no block
//! was claimed meanwhile. In another host's block he has only asked: that host may have given the address to a container of its own,
//! without the store, so it is the one to say whether it is free. Its agent leases the address to the asker in its journal, which is on
//! disk then, and answers in the store. So two hosts never have one address, whoever is away.
//!
//! ```text
//!   nobody's block      -> granted
//!   another's block     -> asked -> granted | refused     by the block's owner
//!   not used any more   -> deleted                        by whoever had it; the block's owner takes it back
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crossbeam_channel::Sender;
use ipnet::IpNet;

use super::CLAIM_PATIENCE;
use super::api::{Guard, Kv, Write};
use super::records::{Records, SingleRecord, SingleState, VERSION};
use super::session::{End, Follower, TRY_AGAIN};
use super::usage::{Refused, Usage};

/// An address out of one of this host's blocks that another host has, or wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// The address.
    pub address: IpAddr,
    /// The other host's ID.
    pub host: String,
    /// It has it: this host said so.
    pub granted: bool,
}

/// Whoever waits for an address.
#[derive(Debug)]
pub(super) struct Waiter {
    until: Instant,
    answer: Sender<Result<(), Refused>>,
}

/// Everybody who waits, what was refused a moment ago, and what is ours.
#[derive(Debug, Default)]
pub(super) struct Claims {
    waiting: BTreeMap<IpAddr, Vec<Waiter>>,
    refused: BTreeMap<IpAddr, (Instant, String)>,
    /// What this host has, also while the store that lost it does not say so again.
    pub held: BTreeSet<IpAddr>,
}

impl Claims {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Somebody waits from now on, and wants it to be tried again.
    pub(super) fn wait(&mut self, address: IpAddr, answer: Sender<Result<(), Refused>>) {
        self.refused.remove(&address);
        self.waiting.entry(address).or_default().push(Waiter { until: Instant::now() + CLAIM_PATIENCE * 3 / 4, answer });
    }

    fn answer(&mut self, address: IpAddr, outcome: &Result<(), Refused>) {
        for waiter in self.waiting.remove(&address).unwrap_or_default() {
            // Whoever asked may have gone.
            let _ = waiter.answer.send(outcome.clone());
        }
    }

    /// Nobody gets anything for now.
    pub(super) fn fail(&mut self, why: &str) {
        for address in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.answer(address, &Err(Refused::later(why)));
        }
    }
}

impl Follower {
    /// Makes the single addresses of this host those that its containers have.
    pub(super) fn settle_singles(&mut self, id: &str, usage: Option<&Usage>) -> Result<(), End> {
        let wanted = usage.map(|usage| usage.singles.clone()).unwrap_or_default();
        let before: Vec<(IpAddr, SingleRecord)> = self.records.singles().collect();
        for (&address, endpoint) in &wanted {
            let note = format!("single {address}");
            match self.settle_single(id, address, endpoint)? {
                Some(Ok(())) => {
                    self.settled.notes.remove(&note);
                    self.claims.held.insert(address);
                    self.claims.answer(address, &Ok(()));
                }
                Some(Err(refused)) => {
                    let why = &refused.why;
                    let warning = format!("{endpoint} has {address} here, which is in no block of this host, and {why}");
                    self.settled.notes.insert(note, warning);
                    self.claims.held.remove(&address);
                    self.claims.answer(address, &Err(refused));
                }
                None if self.claims.waiting.contains_key(&address) => self.lose_patience(address),
                None => {
                    let why = "the host in whose block it is has not answered yet";
                    self.settled.notes.insert(note, format!("{endpoint} has {address} here, and {why}"));
                }
            }
        }
        self.claims.held.retain(|address| usage.is_none() || wanted.contains_key(address));
        let others: Vec<IpAddr> = self.claims.waiting.keys().filter(|it| !wanted.contains_key(*it)).copied().collect();
        for address in others {
            self.claims.answer(address, &Err(Refused::never("no container here has a lease of it")));
        }
        self.settled.notes.retain(|key, _| {
            let address = key.strip_prefix("single ").and_then(|text| text.parse().ok());
            address.is_none_or(|address| wanted.contains_key(&address))
        });
        self.claims.refused.retain(|address, _| wanted.contains_key(address));
        if usage.is_some() {
            self.release_singles(id, &wanted)?;
        }
        if !self.records.singles().eq(before) {
            self.publish();
        }
        Ok(())
    }

    /// Gives back what no container here has any more.
    fn release_singles(&mut self, id: &str, wanted: &BTreeMap<IpAddr, String>) -> Result<(), End> {
        let is_idle = |(address, record): &(IpAddr, SingleRecord)| record.owner == id && !wanted.contains_key(address);
        for (address, _) in self.records.singles().filter(is_idle).collect::<Vec<_>>() {
            tracing::info!("{address} is not this host's any more: no container here has it");
            self.delete_single(address)?;
        }
        Ok(())
    }

    /// Whether an address is this host's; none while that is still to be seen.
    fn settle_single(&mut self, id: &str, address: IpAddr, endpoint: &str) -> Result<Option<Result<(), Refused>>, End> {
        match self.records.single(address) {
            Some((record, revision)) if self.records.is_removed(&record.owner) => {
                self.ask_for(id, address, endpoint, Some(revision))
            }
            Some((record, _)) if record.owner != id => {
                let name = self.records.host(&record.owner).map_or(record.owner, |host| host.name);
                Ok(Some(Err(Refused::never(format!("host {name} has it")))))
            }
            Some((SingleRecord { state: SingleState::Granted, .. }, _)) => Ok(Some(Ok(()))),
            Some((SingleRecord { state: SingleState::Refused, why, .. }, _)) => {
                self.delete_single(address)?;
                let why = format!("{}, in whose block it is, refuses: {why}", self.name_of_owner(address));
                self.claims.refused.insert(address, (Instant::now(), why.clone()));
                self.look_again_at(TRY_AGAIN);
                Ok(Some(Err(Refused::never(why))))
            }
            Some((SingleRecord { state: SingleState::Asked, .. }, revision)) => match self.records.block_owner(address) {
                Some(owner) if owner != id => Ok(None),
                // Its host was removed meanwhile.
                _ => self.ask_for(id, address, endpoint, Some(revision)),
            },
            None => {
                if let Some((_, why)) = self.claims.refused.get(&address).filter(|(at, _)| at.elapsed() < TRY_AGAIN) {
                    return Ok(Some(Err(Refused::never(why.clone()))));
                }
                self.ask_for(id, address, endpoint, None)
            }
        }
    }

    /// Writes that this host wants it, or in nobody's block has it. `known` is when our record was written, if there is one.
    fn ask_for(
        &mut self,
        id: &str,
        address: IpAddr,
        endpoint: &str,
        known: Option<i64>,
    ) -> Result<Option<Result<(), Refused>>, End> {
        let listing = self.api.list(&self.keys.blocks())?;
        let revision = listing.head.revision;
        let mut blocks = Records::new(&self.keys);
        blocks.replace(listing.head, listing.kvs, id);
        let owner = blocks.block_owner(address).filter(|owner| owner != id);
        if let Some(why) = self.unfit(address, owner.is_some()) {
            return Ok(Some(Err(Refused::never(why))));
        }
        let state = if owner.is_some() { SingleState::Asked } else { SingleState::Granted };
        let (owner, endpoint) = (id.to_owned(), endpoint.to_owned());
        let record = SingleRecord { v: VERSION, owner, endpoint, state, why: String::new() };
        let (key, blocks, removed) = (self.keys.single(address), self.keys.blocks(), self.keys.removed(id));
        let ours = known.map_or(Guard::Absent(&key), |known| Guard::Still(&key, known));
        let guards = [ours, Guard::Unchanged(&blocks, revision), Guard::Absent(&removed)];
        let written = self.put_single(&key, &record, &guards)?;
        // Somebody was quicker: the watch says who.
        self.settled.stale |= !written;
        Ok((written && state == SingleState::Granted).then_some(Ok(())))
    }

    /// Why nobody can have an address by name.
    fn unfit(&self, address: IpAddr, is_in_block: bool) -> Option<String> {
        let network = self.records.network().unwrap_or_else(|| self.network.clone());
        if !network.subnets.iter().any(|subnet| subnet.contains(&address)) {
            return Some("it is in none of the store's subnets".to_owned());
        }
        // Whose block it is knows which of its addresses nobody gets.
        let block = IpNet::new(address, network.block).ok().filter(|_| !is_in_block)?.trunc();
        let is_special = [block.network(), block.broadcast()].contains(&address) || block.hosts().next() == Some(address);
        is_special
            .then(|| format!("it is the first, the last, or the host's own address of {block}, a block that a host may get"))
    }

    fn put_single(&mut self, key: &str, record: &SingleRecord, guards: &[Guard<'_>]) -> Result<bool, End> {
        let value = serde_json::to_vec(record).unwrap_or_default();
        let written = self.api.transact_at(guards, &[Write::Put(key, value.clone())])?;
        if let Some(revision) = written {
            self.records.change(Ok(Kv { key: key.to_owned(), value, created: revision, modified: revision }));
        }
        Ok(written.is_some())
    }

    fn delete_single(&mut self, address: IpAddr) -> Result<(), End> {
        let Some((_, revision)) = self.records.single(address) else { return Ok(()) };
        let key = self.keys.single(address);
        if self.api.transact(&[Guard::Still(&key, revision)], &[Write::Delete(&key)])? {
            self.records.change(Err(key));
        } else {
            self.settled.stale = true;
        }
        Ok(())
    }

    /// The block's owner has not answered.
    fn lose_patience(&mut self, address: IpAddr) {
        let now = Instant::now();
        let is_late = self.claims.waiting.get(&address).is_some_and(|it| it.iter().any(|waiter| waiter.until <= now));
        if is_late {
            let name = self.name_of_owner(address);
            self.claims.answer(address, &Err(Refused::later(format!("{name}, in whose block it is, does not answer"))));
        }
    }

    /// What the host is called in whose block an address is.
    fn name_of_owner(&self, address: IpAddr) -> String {
        let owner = self.records.block_owner(address).and_then(|id| self.records.host(&id));
        owner.map_or_else(|| "the host".to_owned(), |host| host.name)
    }

    /// The agent has leased an address to another host, or cannot.
    pub(super) fn lent(&mut self, address: IpAddr, host: &str, verdict: Result<(), String>) -> Result<(), End> {
        let Some((record, revision)) = self.records.single(address) else { return Ok(()) };
        if record.owner != host || record.state != SingleState::Asked {
            return Ok(());
        }
        let (state, why) = match verdict {
            Ok(()) => (SingleState::Granted, String::new()),
            Err(why) => (SingleState::Refused, why),
        };
        let key = self.keys.single(address);
        self.put_single(&key, &SingleRecord { state, why, ..record }, &[Guard::Still(&key, revision)])?;
        self.publish();
        Ok(())
    }

    /// What others have or want of this host's blocks.
    pub(super) fn claims_of_others(&self, id: &str) -> Vec<Claimed> {
        let blocks = self.records.blocks_of(id);
        let is_here = |address: &IpAddr| blocks.iter().chain(&self.owned).any(|block| block.contains(address));
        let others = self.records.singles().filter(|(address, record)| {
            let is_void = record.state == SingleState::Refused || self.records.is_removed(&record.owner);
            record.owner != id && !is_void && is_here(address)
        });
        let claimed = |(address, record): (IpAddr, SingleRecord)| Claimed {
            address,
            host: record.owner,
            granted: record.state == SingleState::Granted,
        };
        others.map(claimed).collect()
    }

    /// Reads which single addresses there are: a block that is this host's from now on may hold some.
    pub(super) fn learn_singles(&mut self) -> Result<(), End> {
        let listing = self.api.list(&self.keys.singles())?;
        listing.kvs.into_iter().for_each(|kv| self.records.change(Ok(kv)));
        Ok(())
    }
}
