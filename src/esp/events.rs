//! News for the control thread: a queue that may coalesce and never grows with traffic.
//!
//! What happens once per SA or per update is queued as it is. What a peer or a stranger can repeat at will is merged with
//! what is queued already, and bounded in rate by those who report it.

use std::collections::VecDeque;
use std::time::Duration;

use super::Event;
use crate::model::{Instant, Path, Spi};

/// How often a stranger's SPI is reported: a restarted peer is noticed by the first one, a flood costs ten events a second.
const UNKNOWN_SPI_PAUSE: Duration = Duration::from_millis(100);

/// How many strangers may be queued at once.
const UNKNOWN_SPI_QUEUED: usize = 16;

/// The events that were not fetched yet, oldest first.
#[derive(Debug, Default)]
pub struct Events {
    queue: VecDeque<Event>,
    next_unknown: Instant,
}

impl Events {
    /// Queues what happens once.
    pub fn push(&mut self, event: Event) {
        self.queue.push_back(event);
    }

    /// Queues what is the same news as long as nobody fetched it.
    pub fn want(&mut self, wish: Event) {
        if !self.queue.contains(&wish) {
            self.queue.push_back(wish);
        }
    }

    /// The newest path of an SA replaces an older one.
    pub fn address_seen(&mut self, spi: Spi, path: Path) {
        let same = |event: &&mut Event| matches!(event, Event::AddressSeen(other, _) if *other == spi);
        match self.queue.iter_mut().find(same) {
            Some(event) => *event = Event::AddressSeen(spi, path),
            None => self.queue.push_back(Event::AddressSeen(spi, path)),
        }
    }

    /// Bounded in rate and number: anybody can send these.
    pub fn unknown_spi(&mut self, now: Instant, path: Path) {
        if now < self.next_unknown {
            return;
        }
        self.next_unknown = now + UNKNOWN_SPI_PAUSE;
        let queued = self.queue.iter().filter(|event| matches!(event, Event::UnknownSpi(_))).count();
        if queued < UNKNOWN_SPI_QUEUED && !self.queue.contains(&Event::UnknownSpi(path)) {
            self.queue.push_back(Event::UnknownSpi(path));
        }
    }

    /// The oldest.
    pub fn poll(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PeerIndex, Ticket};

    fn path(port: u16) -> Path {
        Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], port).into() }
    }

    fn drain(events: &mut Events) -> Vec<Event> {
        std::iter::from_fn(|| events.poll()).collect()
    }

    #[test]
    fn repeated_news_merge_and_keep_their_place() {
        let mut events = Events::default();
        let spi = Spi::new(0x1000).expect("not reserved");
        events.want(Event::WantSa(PeerIndex(1)));
        events.address_seen(spi, path(1));
        events.push(Event::Installed(Ticket(1)));
        events.want(Event::WantSa(PeerIndex(1)));
        events.address_seen(spi, path(2));
        let expected = [Event::WantSa(PeerIndex(1)), Event::AddressSeen(spi, path(2)), Event::Installed(Ticket(1))];
        assert_eq!(drain(&mut events), expected);
        events.want(Event::WantSa(PeerIndex(1)));
        assert_eq!(drain(&mut events), [Event::WantSa(PeerIndex(1))]);
    }

    #[test]
    fn strangers_are_bounded_in_rate_and_number() {
        let mut events = Events::default();
        for milliseconds in 0..10_000u64 {
            let now = Instant::from_origin(Duration::from_millis(milliseconds));
            events.unknown_spi(now, path(milliseconds as u16));
        }
        assert_eq!(drain(&mut events).len(), UNKNOWN_SPI_QUEUED);
        events.unknown_spi(Instant::from_origin(Duration::from_secs(20)), path(1));
        events.unknown_spi(Instant::from_origin(Duration::from_secs(21)), path(1));
        events.unknown_spi(Instant::from_origin(Duration::from_secs(22)), path(2));
        assert_eq!(drain(&mut events), [Event::UnknownSpi(path(1)), Event::UnknownSpi(path(2))]);
    }
}
