//! What a rekeyed IKE SA leaves to its successor: everything but its keys and counters.

use std::collections::{BTreeMap, VecDeque};

use super::established::{Established, Job, Replacement, Task};
use crate::ike::child::Child;
use crate::ike::mobike::Mobility;
use crate::ike::nat::Nat;
use crate::ike::shared::Shared;
use crate::model::{IkeSpi, Instant, Path, PeerIndex, Spi, Transport};

/// What a rekeyed IKE SA leaves to its successor.
#[derive(Debug)]
pub struct Estate {
    pub from: IkeSpi,
    pub peer: PeerIndex,
    pub children: BTreeMap<Spi, Child>,
    pub queue: VecDeque<Job>,
    pub child_retry: Option<Instant>,
    pub child_failures: u32,
    pub worker_retry: Option<Instant>,
    pub replacement: Option<Replacement>,
    /// Whether a sign of life was asked for and did not come yet.
    pub probing: bool,
    pub mobility: Mobility,
    /// Where it is by now, and what is known of NATs there.
    pub place: (Path, Transport, Nat),
}

impl Established {
    /// Hands everything over to a successor and takes what remains of the session away.
    pub fn estate(&mut self) -> Box<Estate> {
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(|job| !matches!(job, Job::RekeyIke | Job::Probe));
        // Nobody will hear the answer.
        queue.extend(match self.task {
            Some(Task::Update { .. }) => Some(Job::Update),
            Some(Task::Check { .. }) => Some(Job::Check),
            Some(Task::Tell) => Some(Job::Tell),
            _ => None,
        });
        Box::new(Estate {
            from: self.session.local_spi,
            peer: self.peer(),
            children: std::mem::take(&mut self.children),
            queue,
            child_retry: self.child_retry,
            child_failures: self.child_failures,
            worker_retry: self.worker_retry,
            replacement: self.replacement,
            probing: self.is_probing(),
            mobility: std::mem::take(&mut self.mobility),
            place: (self.session.path, self.session.transport, self.session.nat),
        })
    }

    /// Takes over what a predecessor had.
    pub fn inherit(&mut self, shared: &mut Shared, now: Instant, estate: Estate) {
        for spi in estate.children.keys() {
            shared.spi_owners.insert(*spi, self.session.local_spi);
        }
        self.children.extend(estate.children);
        estate.queue.into_iter().for_each(|job| self.enqueue(job));
        self.child_retry = estate.child_retry;
        self.child_failures = estate.child_failures;
        self.worker_retry = estate.worker_retry;
        self.replacement = estate.replacement;
        self.mobility = estate.mobility.inherited();
        (self.session.path, self.session.transport, self.session.nat) = estate.place;
        if estate.probing {
            self.probe(shared, now);
        }
        self.look_at_nat(shared, now);
    }
}
