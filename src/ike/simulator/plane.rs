//! A data plane that only writes down what it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::ike::Event;
use crate::model::{ChildSaParams, Instant, PeerIndex, Spi, Ticket, WorkerIndex};

/// What a data plane of one host was told.
#[derive(Debug, Default)]
pub struct Plane {
    /// Installed, by inbound SPI, in the order of installation.
    pub installed: Vec<ChildSaParams>,
    /// Parked.
    pub reserved: BTreeSet<Spi>,
    /// Who sends, by peer: what every worker falls back to.
    pub active: BTreeMap<PeerIndex, Spi>,
    /// The SAs for single workers that are sent with.
    pub own: BTreeMap<(PeerIndex, WorkerIndex), Spi>,
    per_worker: BTreeSet<Spi>,
    /// Retired, still open inbound until then.
    pub grace: BTreeMap<Spi, Instant>,
    /// How many SAs were ever installed.
    pub installs: usize,
    used: BTreeSet<Spi>,
    pending: VecDeque<(Instant, Ticket)>,
}

/// How long a retired SA still receives.
const GRACE: Duration = Duration::from_secs(5);

impl Plane {
    /// The SA that is sent with.
    pub fn sender(&self, peer: PeerIndex) -> Option<&ChildSaParams> {
        let spi = self.active.get(&peer)?;
        self.installed.iter().find(|child| child.inbound_spi == *spi)
    }

    /// The installed SA with this inbound SPI.
    pub fn receiver(&self, spi: Spi) -> Option<&ChildSaParams> {
        self.installed.iter().find(|child| child.inbound_spi == spi)
    }

    /// Whether a packet on this SPI would not be lost.
    pub fn takes(&self, spi: Spi) -> bool {
        self.receiver(spi).is_some() || self.reserved.contains(&spi) || self.grace.contains_key(&spi)
    }

    /// When the next installation is done.
    pub fn next_ticket(&self) -> Option<Instant> {
        self.pending.front().map(|&(at, _)| at)
    }

    /// The ticket of an installation that is done by then.
    pub fn take_ticket(&mut self, now: Instant) -> Option<Ticket> {
        let due = self.next_ticket().is_some_and(|at| at <= now);
        if due { self.pending.pop_front().map(|(_, ticket)| ticket) } else { None }
    }

    /// A packet came in; true if it is the first on this SPI.
    pub fn note_use(&mut self, spi: Spi) -> bool {
        self.receiver(spi).is_some() && self.used.insert(spi)
    }

    /// Does what an event says; false if it is not about the data plane.
    pub fn note(&mut self, now: Instant, install_delay: Duration, event: &Event) -> bool {
        match event {
            Event::Reserve { spi, .. } => {
                self.reserved.insert(*spi);
            }
            Event::Release { spi } => {
                self.reserved.remove(spi);
            }
            Event::Install { child, per_worker, ticket } => {
                if *per_worker {
                    self.per_worker.insert(child.inbound_spi);
                }
                self.reserved.remove(&child.inbound_spi);
                self.installed.push((**child).clone());
                self.installs += 1;
                self.pending.push_back((now + install_delay, *ticket));
            }
            Event::Activate { spi } => {
                let peer = self.receiver(*spi).map(|child| child.peer);
                match peer {
                    Some(peer) if self.per_worker.contains(spi) => drop(self.own.insert((peer, spi.owner()), *spi)),
                    Some(peer) => drop(self.active.insert(peer, *spi)),
                    None => {}
                }
            }
            Event::Retire { spi, at_once } => self.retire(now, *spi, *at_once),
            Event::PathChanged { spi, path } => {
                if let Some(child) = self.installed.iter_mut().find(|child| child.inbound_spi == *spi) {
                    child.path = *path;
                }
            }
            _ => return false,
        }
        true
    }

    fn retire(&mut self, now: Instant, spi: Spi, at_once: bool) {
        let Some(index) = self.installed.iter().position(|child| child.inbound_spi == spi) else { return };
        let gone = self.installed.remove(index);
        if !at_once {
            self.grace.insert(spi, now + GRACE);
        }
        if self.own.get(&(gone.peer, spi.owner())) == Some(&spi) {
            self.own.remove(&(gone.peer, spi.owner()));
        }
        if self.active.get(&gone.peer) == Some(&spi) {
            // The newest standby takes over.
            let falls_back =
                |child: &&ChildSaParams| child.peer == gone.peer && !self.per_worker.contains(&child.inbound_spi);
            match self.installed.iter().rfind(falls_back) {
                Some(heir) => self.active.insert(gone.peer, heir.inbound_spi),
                None => self.active.remove(&gone.peer),
            };
        }
    }
}
