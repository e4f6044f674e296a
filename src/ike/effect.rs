//! What the handler of one IKE SA wants done beyond it. The endpoint carries these out once the handler has returned, so no
//! handler ever holds two IKE SAs.

use super::state::{Estate, IkeSa};
use crate::model::{IkeSpi, Instant, PeerIndex};

/// One wish.
#[derive(Debug)]
pub enum Effect {
    /// A new IKE SA, by our SPI.
    Insert(IkeSpi, IkeSa),
    /// The IKE SA with this SPI of ours, a candidate of a rekey, takes the old one's place.
    Inherit {
        /// Our SPI.
        heir: IkeSpi,
        /// What it takes over.
        estate: Box<Estate>,
    },
    /// The peer uses the new IKE SA: we may make requests on it.
    Confirm(IkeSpi),
    /// A peer proved itself on this IKE SA: settle which of several stays.
    Settle {
        /// Our SPI.
        spi: IkeSpi,
        /// Whether the peer said that it holds no other.
        initial_contact: bool,
    },
    /// Make a fresh IKE SA beside one that cannot be rekeyed.
    Reinitiate(PeerIndex),
    /// Nobody answered at this place of the peer's.
    TryNext {
        /// Whose.
        peer: PeerIndex,
        /// How many of its places were tried.
        tried: usize,
        /// When somebody last asked for it.
        wanted: Instant,
    },
}
