//! The wall clock, for what is written down or holds until a date. Everything else asks a clock that nobody sets.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; before that the clock says nothing.
#[must_use]
pub fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
