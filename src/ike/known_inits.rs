//! The IKE_SA_INIT requests that were answered a short while ago: who sends one again gets the same answer and makes no second state.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::limits::{HALF_OPEN_LIFETIME, MAX_KNOWN_INITS};
use crate::model::{IkeSpi, Instant};

/// What names a request: the initiator's SPI and where it came from.
type Name = (u64, SocketAddr);

/// See the module.
#[derive(Debug, Default)]
pub struct KnownInits {
    ours: BTreeMap<Name, IkeSpi>,
    /// In the order of arrival, with the time of forgetting.
    order: VecDeque<(Instant, Name)>,
}

impl KnownInits {
    /// Our SPI of the IKE SA that this request made.
    pub fn find(&mut self, now: Instant, spi: u64, source: SocketAddr) -> Option<IkeSpi> {
        while let Some((_, name)) = self.order.pop_front_if(|(until, _)| *until <= now) {
            self.ours.remove(&name);
        }
        self.ours.get(&(spi, source)).copied()
    }

    /// Remembers a request for as long as its IKE SA may be half-open.
    pub fn remember(&mut self, now: Instant, spi: u64, source: SocketAddr, ours: IkeSpi) {
        if self.order.len() < MAX_KNOWN_INITS {
            self.ours.insert((spi, source), ours);
            self.order.push_back((now + HALF_OPEN_LIFETIME, (spi, source)));
        }
    }
}
