//! Datagrams that the kernel refused for their length: the path takes less than the worker was told. They left all the same, in
//! a way that costs more, so the control thread hears of the path at once and asks what it takes.

use std::time::Duration;

use crate::esp::Event;
use crate::model::{Instant, Path};

/// Time between two pieces of news: the answer may be that nothing can be done, as shorter packets could not be asked for.
const PAUSE: Duration = Duration::from_millis(50);

/// The path of such a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Narrow {
    seen: Option<Path>,
    next: Instant,
}

impl Narrow {
    /// One was refused. Whoever comes in a pause comes again.
    pub(super) fn note(&mut self, now: Instant, path: Path) {
        if now >= self.next {
            self.next = now + PAUSE;
            self.seen = Some(path);
        }
    }

    /// What is to be told.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.seen.take().map(Event::PathNarrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_a_flood_now_and_then() {
        let path = |port| Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], port).into() };
        let mut narrow = Narrow::default();
        let told: Vec<Event> = (0..120_u16)
            .filter_map(|number| {
                narrow.note(Instant::from_origin(Duration::from_millis(number.into())), path(number));
                narrow.poll_event()
            })
            .collect();
        assert_eq!(told, [0, 50, 100].map(|number| Event::PathNarrow(path(number))));
    }
}
