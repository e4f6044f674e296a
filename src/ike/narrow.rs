//! Narrowing of traffic selectors (RFC 7296 §2.9).

use crate::model::TrafficSelector;

/// The part of `proposed` that `allowed` holds, as the responder answers it; empty means TS_UNACCEPTABLE. A first selector
/// that is a single packet's (RFC 7296 §2.9) only asks that the result contain it.
#[must_use]
pub fn narrow(proposed: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    todo!("{proposed:?} {allowed:?}")
}

/// Whether every selector of `inner` lies within one of `outer`: what an initiator demands of the answer.
#[must_use]
pub fn is_subset(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    todo!("{inner:?} {outer:?}")
}
