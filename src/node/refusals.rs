//! How many refusals the log gets to see. Strangers cause them at will, so they are counted and shown now and then.

use std::time::Duration;

use crate::model::Instant;

/// One line per this time in the long run.
const INTERVAL: Duration = Duration::from_secs(1);

/// So many in a row: a start with a wrong configuration shows all of it.
const BURST: u32 = 10;

/// What was shown and what was not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    /// When all lines that were shown are paid back.
    paid_at: Instant,
    hidden: u64,
}

impl Refusals {
    /// The line for this refusal, if the log is to see it.
    pub fn line(&mut self, now: Instant, text: String) -> Option<String> {
        if self.paid_at.since(now) >= INTERVAL * BURST {
            self.hidden += 1;
            return None;
        }
        self.paid_at = self.paid_at.max(now) + INTERVAL;
        match std::mem::take(&mut self.hidden) {
            0 => Some(text),
            hidden => Some(format!("{text} (and {hidden} refusals before that were not shown)")),
        }
    }
}
