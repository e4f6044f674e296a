//! ESP for a worker that does not exist: no SPI of ours, as all of ours name one of our workers. It may be a peer's that has not
//! noticed that we started anew, so the control thread hears of it, now and then.

use std::time::Duration;

use crate::esp::Event;
use crate::model::{Instant, Path};

/// Time between two pieces of news: anybody can send such datagrams, but a peer repeats them.
const PAUSE: Duration = Duration::from_secs(1);

/// Who sent such a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stranger {
    seen: Option<Path>,
    next: Instant,
}

impl Stranger {
    /// One came.
    pub(super) fn note(&mut self, now: Instant, path: Path) {
        if now >= self.next {
            self.next = now + PAUSE;
            self.seen = Some(path);
        }
    }

    /// What is to be told.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.seen.take().map(Event::UnknownSpi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_one_piece_of_news_per_pause() {
        let path = |port| Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], port).into() };
        let mut stranger = Stranger::default();
        let told: Vec<Event> = (0..2500_u16)
            .filter_map(|number| {
                stranger.note(Instant::from_origin(Duration::from_millis(number.into())), path(number));
                stranger.poll_event()
            })
            .collect();
        assert_eq!(told, [0, 1000, 2000].map(|number| Event::UnknownSpi(path(number))));
    }
}
