//! The IKE_SA_INIT requests that were answered a short while ago: who sends one again gets the same answer and makes no second state.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::limits::{KNOWN_INIT_LIFETIME, MAX_KNOWN_INITS};
use super::table::block;
use crate::model::{IkeSpi, Instant};

/// What names a request: the initiator's SPI and where it came from.
type Name = (u64, SocketAddr);

/// See the module.
#[derive(Debug, Default)]
pub struct KnownInits {
    ours: BTreeMap<Name, IkeSpi>,
    /// In the order of arrival, with the time of forgetting.
    order: VecDeque<(Instant, Name)>,
    /// How many there are of each source.
    per_source: BTreeMap<IpAddr, usize>,
}

impl KnownInits {
    /// Our SPI of the IKE SA that this request made.
    pub fn find(&mut self, now: Instant, spi: u64, source: SocketAddr) -> Option<IkeSpi> {
        self.forget_old(now);
        self.ours.get(&(spi, source)).copied()
    }

    /// How many IKE SAs this source began lately.
    pub fn begun_by(&mut self, now: Instant, source: IpAddr) -> usize {
        self.forget_old(now);
        self.per_source.get(&block(source)).copied().unwrap_or(0)
    }

    /// Remembers a request. If there are too many, the oldest is forgotten.
    pub fn remember(&mut self, now: Instant, spi: u64, source: SocketAddr, ours: IkeSpi) {
        if self.order.len() >= MAX_KNOWN_INITS {
            self.forget_oldest();
        }
        if self.ours.insert((spi, source), ours).is_none() {
            self.order.push_back((now + KNOWN_INIT_LIFETIME, (spi, source)));
            *self.per_source.entry(block(source.ip())).or_default() += 1;
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, name)) = self.order.pop_front() else { return };
        self.ours.remove(&name);
        let source = block(name.1.ip());
        if let Some(count) = self.per_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&source);
            }
        }
    }
}
