//! Wants every peer up, as the agent's reconciler does with more care.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ike::{Command, Event};
use crate::model::{IkeSpi, Instant, PeerIndex};

/// How often it probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A small reconciler, as the agent has a large one: wants every peer up, with backoff, and probes.
#[derive(Debug, Default)]
pub struct Reconciler {
    next: BTreeMap<PeerIndex, Instant>,
    failures: BTreeMap<PeerIndex, u32>,
    open: BTreeSet<PeerIndex>,
    up: BTreeMap<PeerIndex, BTreeSet<IkeSpi>>,
    next_probe: BTreeMap<PeerIndex, Instant>,
}

impl Reconciler {
    fn is_up(&self, peer: PeerIndex) -> bool {
        self.up.get(&peer).is_some_and(|spis| !spis.is_empty())
    }

    pub fn note(&mut self, now: Instant, event: &Event) {
        match event {
            Event::IkeUp { peer, summary } => {
                self.up.entry(*peer).or_default().insert(summary.local_spi);
                self.open.remove(peer);
                self.failures.remove(peer);
                self.next_probe.insert(*peer, now + PROBE_INTERVAL);
                self.next.remove(peer);
            }
            Event::IkeDown { peer, spi, .. } => {
                self.up.entry(*peer).or_default().remove(spi);
            }
            Event::InitiateFailed { peer, .. } => {
                self.open.remove(peer);
                let failures = self.failures.entry(*peer).or_default();
                *failures += 1;
                self.next.insert(*peer, now + Duration::from_secs(1 << (*failures).min(4)));
            }
            Event::ProbeLost { peer } => {
                self.next.insert(*peer, now);
            }
            _ => {}
        }
    }

    /// When it has something to ask for: always at a date that it set before.
    pub fn next_wish(&self, peer: PeerIndex, now: Instant) -> Instant {
        let initiate = self.next.get(&peer).copied().filter(|_| !self.open.contains(&peer));
        let probe = self.next_probe.get(&peer).copied().filter(|_| self.is_up(peer));
        let undated = !self.is_up(peer) && initiate.is_none() && !self.open.contains(&peer);
        if undated {
            return now;
        }
        initiate.into_iter().chain(probe).min().unwrap_or(now + PROBE_INTERVAL)
    }

    pub fn wish(&mut self, peer: PeerIndex, now: Instant, jitter: Duration) -> Option<Command> {
        if !self.open.contains(&peer) {
            let wanted = !self.is_up(peer);
            match self.next.get(&peer) {
                Some(&at) if at <= now => {
                    self.next.remove(&peer);
                    self.open.insert(peer);
                    return Some(Command::Initiate(peer));
                }
                None if wanted => {
                    self.next.insert(peer, now + jitter);
                }
                _ => {}
            }
        }
        if self.is_up(peer) && self.next_probe.get(&peer).is_some_and(|&at| at <= now) {
            self.next_probe.insert(peer, now + PROBE_INTERVAL + jitter);
            return Some(Command::Probe(peer));
        }
        None
    }
}
