//! When a request that stays unanswered is sent again (RFC 7296 §2.1): 0.5 s, doubled each time, at most 4 s, each wait shortened
//! by up to a quarter so that many peers do not send in step.

use std::time::Duration;

use super::limits::{HEARD_PATIENCE, HEARD_PATIENCE_MOST, RETRANSMIT_CAP, RETRANSMIT_FIRST};
use crate::model::{Instant, Rng};

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nothing yet.
    Wait,
    /// Another transmission.
    Send,
    /// Nobody is there.
    GiveUp,
}

/// The clock of one request.
#[derive(Clone, Debug)]
pub struct Retransmit {
    /// When the first transmission left.
    pub first_sent: Instant,
    next: Instant,
    interval: Duration,
    give_up: Instant,
    /// Not even a peer that speaks is waited for longer.
    latest: Instant,
}

impl Retransmit {
    /// The request leaves now.
    pub fn start(now: Instant, patience: Duration, rng: &mut dyn Rng) -> Self {
        let give_up = now + patience;
        let latest = give_up + HEARD_PATIENCE_MOST;
        let mut clock = Self { first_sent: now, next: now, interval: RETRANSMIT_FIRST, give_up, latest };
        clock.arm(now, rng);
        clock
    }

    /// The peer was heard then, so it is there: the request is sent once more at least, and its answer waited for, before it is given up.
    pub fn heard(&mut self, at: Instant) {
        self.give_up = self.give_up.max((at + HEARD_PATIENCE).min(self.latest));
    }

    /// When to look again.
    pub fn wake(&self) -> Instant {
        self.next.min(self.give_up)
    }

    /// What is due; counts a transmission if it is one.
    pub fn poll(&mut self, now: Instant, rng: &mut dyn Rng) -> Due {
        if now >= self.give_up {
            return Due::GiveUp;
        }
        if now < self.next {
            return Due::Wait;
        }
        self.interval = (self.interval * 2).min(RETRANSMIT_CAP);
        self.arm(now, rng);
        Due::Send
    }

    fn arm(&mut self, now: Instant, rng: &mut dyn Rng) {
        self.next = now + self.interval.saturating_sub(rng.jitter(self.interval / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SeededRng;

    #[test]
    fn waits_double_up_to_the_cap_and_end() {
        let mut rng = SeededRng::new(1);
        let mut clock = Retransmit::start(Instant::ORIGIN, Duration::from_secs(45), &mut rng);
        let mut last = Instant::ORIGIN;
        let mut waits = Vec::new();
        loop {
            let now = clock.wake();
            match clock.poll(now, &mut rng) {
                Due::Send => waits.push(now.since(last)),
                Due::GiveUp => break assert_eq!(now.since_origin(), Duration::from_secs(45)),
                Due::Wait => panic!("woken too early"),
            }
            last = now;
        }
        for (index, wait) in waits.iter().enumerate() {
            let nominal = (RETRANSMIT_FIRST * (1 << index.min(10))).min(RETRANSMIT_CAP);
            assert!(*wait <= nominal && *wait >= nominal * 3 / 4, "wait {index} is {wait:?}");
        }
        assert!(waits.len() >= 7);
    }
}
