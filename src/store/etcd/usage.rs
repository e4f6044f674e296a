//! What containers of this host use, and what follows for its blocks.
//!
//! The agent tells the whole of it whenever it changes; the thread holds it against the store and writes the difference. So what
//! happened while the store was away needs no list of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::claim::{Claim, ClaimError, claim};
use super::session::{End, Follower, TRY_AGAIN};
use crate::store::Endpoint;

/// What is used.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Containers' interfaces, by `NETWORK/EP`.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Addresses of theirs that are in none of this host's blocks, with whose they are.
    pub singles: BTreeMap<IpAddr, String>,
    /// Networks whose blocks are nearly full.
    pub tight: Vec<Tight>,
}

/// A network whose blocks are nearly full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tight {
    /// As the journal of addresses calls it.
    pub network: String,
    /// Where its next block must be; empty for anywhere.
    pub within: Vec<IpNet>,
    /// The blocks that were counted: a newer one is not used yet.
    pub blocks: Vec<IpNet>,
}

/// Why something is not to be had, in words that go on after a comma.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The reason.
    pub why: String,
    /// Whether it may be to be had later.
    pub later: bool,
}

impl Refused {
    pub(super) fn later(why: impl Into<String>) -> Self {
        Self { why: why.into(), later: true }
    }

    pub(super) fn never(why: impl Into<String>) -> Self {
        Self { why: why.into(), later: false }
    }
}

/// What the thread knows of it.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// What was held against the store last.
    usage: Option<Arc<Usage>>,
    /// The store has changed since.
    pub stale: bool,
    /// When there was no block the last time, by network.
    full: BTreeMap<String, Instant>,
    /// What is to be said for as long as it is so.
    pub notes: BTreeMap<String, String>,
}

impl Follower {
    /// What is used now.
    pub(super) fn usage(&self) -> Option<Arc<Usage>> {
        self.shared.usage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Holds what is used against the store, if either has changed.
    pub(super) fn settle(&mut self) -> Result<(), End> {
        let usage = self.usage();
        let is_same = match (&usage, &self.settled.usage) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (now, before) => now.is_none() && before.is_none(),
        };
        if is_same && !self.settled.stale && self.claims.is_empty() {
            return Ok(());
        }
        let id = self.id();
        let before = self.settled.notes.clone();
        if !self.records.is_removed(&id) {
            if let Some(usage) = &usage {
                self.settle_endpoints(&id, usage)?;
                self.settle_blocks(&id, usage)?;
            }
            self.settle_singles(&id, usage.as_deref())?;
        }
        self.settled.stale = false;
        self.settled.usage = usage;
        if self.settled.notes != before {
            self.publish();
        }
        Ok(())
    }

    /// Claims the next block for each network that needs one.
    fn settle_blocks(&mut self, id: &str, usage: &Usage) -> Result<(), End> {
        self.settled.notes.retain(|key, _| {
            key.strip_prefix("block ").is_none_or(|network| usage.tight.iter().any(|tight| tight.network == network))
        });
        for tight in &usage.tight {
            let tried = self.settled.full.get(&tight.network);
            if tried.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
                self.look_again_at(TRY_AGAIN);
                continue;
            }
            // What cannot be had stands among the warnings.
            let _ = self.next_block(id, tight)?;
        }
        Ok(())
    }

    /// Claims the next block of a network, unless there is one that was not counted yet.
    pub(super) fn next_block(&mut self, id: &str, tight: &Tight) -> Result<Result<(), Refused>, End> {
        let Tight { network: name, within, blocks } = tight;
        let is_within = |block: &&IpNet| within.is_empty() || within.iter().any(|prefix| prefix.contains(*block));
        if self.owned.iter().filter(is_within).any(|block| !blocks.contains(block)) {
            return Ok(Ok(()));
        }
        let note = format!("block {name}");
        if !self.profile.blocks.is_empty() {
            let why = "overlay.blocks says which blocks this host has: no other one is claimed".to_owned();
            self.settled.notes.insert(note, format!("network {name}: its addresses run out here, and {why}"));
            return Ok(Err(Refused::never(why)));
        }
        let network = self.records.network().unwrap_or_else(|| self.network.clone());
        let without: Vec<IpAddr> = self.records.singles().map(|(address, _)| address).collect();
        let wanted = Claim::Any { network: &network, within, without: &without };
        match claim(&mut self.api, &self.keys, id, wanted) {
            Ok(block) => {
                tracing::info!("network {name}: {block} is this host's as well, as its other blocks are nearly full");
                self.learn_singles()?;
                self.settled.full.remove(name);
                self.settled.notes.remove(&note);
                self.owned.push(block);
                self.publish();
                Ok(Ok(()))
            }
            Err(ClaimError::Api(error)) => Err(error.into()),
            Err(error) => {
                self.settled.full.insert(name.clone(), Instant::now());
                self.settled.notes.insert(note, format!("network {name}: its addresses run out here, and {error}"));
                self.look_again_at(TRY_AGAIN);
                let later = matches!(error, ClaimError::Late);
                Ok(Err(Refused { why: error.to_string(), later }))
            }
        }
    }

    /// Whoever waits for a next block.
    pub(super) fn next_block_now(&mut self, network: &str) -> Result<Result<(), Refused>, End> {
        let usage = self.usage().unwrap_or_default();
        let id = self.id();
        if self.records.is_removed(&id) {
            return Ok(Err(Refused::never("this host was removed from the store")));
        }
        match usage.tight.iter().find(|tight| tight.network == network) {
            Some(tight) => self.next_block(&id, tight),
            None => Ok(Err(Refused::never("its blocks are not full"))),
        }
    }

    /// Whether the agent has gone.
    pub(super) fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}
