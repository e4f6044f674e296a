//! What lies between the hosts: it loses, delays, repeats and garbles, keeps what waits for a hand, and remembers what passed for
//! those who replay it.

use std::net::{IpAddr, SocketAddr};

use super::{Content, Datagram, World};
use crate::model::{Path, Rng, Transport};

/// So many datagrams are remembered.
const RECORDED: usize = 512;

impl World {
    /// How many datagrams wait for a hand.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Delivers a datagram that waits.
    pub fn deliver(&mut self, number: usize) {
        if let Some(datagram) = self.waiting.remove(number) {
            self.arrive(datagram);
        }
    }

    /// Loses a datagram that waits.
    pub fn lose(&mut self, number: usize) {
        self.waiting.remove(number);
    }

    /// Delivers a datagram that waits, and lets it wait.
    pub fn deliver_copy(&mut self, number: usize) {
        if let Some(datagram) = self.waiting.get(number).cloned() {
            self.arrive(datagram);
        }
    }

    /// Delivers everything that waits, and lets the wire work by itself.
    pub fn release(&mut self) {
        self.held = false;
        while !self.waiting.is_empty() {
            self.deliver(0);
        }
    }

    /// Somebody sends again what left a host a while ago, if that much did, from another place if one is given.
    pub fn replay(&mut self, ago: usize, from: Option<SocketAddr>) {
        let recorded = ago.checked_rem(self.recorded.len()).and_then(|place| self.recorded.get(place));
        if let Some(mut datagram) = recorded.cloned() {
            if let Some(from) = from {
                datagram.path.remote = from;
            }
            self.arrive(datagram);
        }
    }

    /// Somebody sends an IKE_SA_INIT request of these that passed to a host, under another SPI: nobody wants an answer.
    pub fn flood(&mut self, to: IpAddr, from: SocketAddr, count: usize) {
        let is_init = |datagram: &&Datagram| {
            let Content::Ike(_, octets) = &datagram.content else { return false };
            datagram.path.local.ip() == to && octets.get(16..20) == Some(&[33, 0x20, 34, 8])
        };
        let Some(mut datagram) = self.recorded.iter().find(is_init).cloned() else { return };
        datagram.path.remote = from;
        for _ in 0..count {
            if let Content::Ike(_, octets) = &mut datagram.content {
                self.rng.fill(&mut octets[..8]);
            }
            self.arrive(datagram.clone());
        }
    }

    pub(super) fn deliver_due(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let datagram = entry.remove();
            self.arrive(datagram);
        }
    }

    fn arrive(&mut self, datagram: Datagram) {
        let address = datagram.path.local.ip();
        let now = self.now;
        if let Some(host) = self.hosts.get_mut(&address).filter(|host| host.asleep.is_none()) {
            let written = self.witness.is_writing().then(|| (datagram.content.clone(), host.dropped()));
            host.take(now, datagram);
            if let Some((Content::Esp(_, octets), before)) = written {
                let mut dropped = host.dropped();
                dropped.retain(|count| !before.contains(count));
                if !dropped.is_empty() {
                    let head = &octets[..8.min(octets.len())];
                    self.witness.tell(now, || format!("{address} drops ESP {head:02x?}: {dropped:?}"));
                }
            }
            self.pump(address);
        }
    }

    pub(super) fn put_on_wire(&mut self, datagram: Datagram) {
        let ends = (datagram.path.local.ip(), datagram.path.remote.ip());
        let path = Path { local: datagram.path.remote, remote: datagram.path.local };
        let mut datagram = Datagram { path, ..datagram };
        if self.recorded.len() == RECORDED {
            self.recorded.pop_front();
        }
        self.recorded.push_back(datagram.clone());
        if self.happens(self.loss) || self.cut.contains(&ends) {
            return;
        }
        if self.held {
            return self.waiting.push_back(datagram);
        }
        if self.happens(self.corruption) {
            self.garble(&mut datagram);
        }
        if self.happens(self.duplication) {
            self.travel(datagram.clone());
        }
        self.travel(datagram);
    }

    fn happens(&mut self, probability: f64) -> bool {
        f64::from(self.rng.u32()) / f64::from(u32::MAX) < probability
    }

    fn travel(&mut self, datagram: Datagram) {
        let at = self.now + self.delay.0 + self.rng.jitter(self.delay.1);
        self.sent += 1;
        self.wire.insert((at, self.sent), datagram);
    }

    /// Another bit. What does not look like ESP any more is not taken for it.
    fn garble(&mut self, datagram: &mut Datagram) {
        let (Content::Ike(Transport::Plain | Transport::Natt, octets) | Content::Esp(_, octets)) = &mut datagram.content;
        let place = self.rng.u32() as usize % octets.len().max(1);
        if let Some(octet) = octets.get_mut(place) {
            *octet ^= 1 << (self.rng.u32() % 8);
        }
    }
}
