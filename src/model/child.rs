//! What IKE negotiated for one CHILD_SA and the data plane needs to carry packets.

use std::time::Duration;

use super::{AeadAlgorithm, ChildSuite, Path, PeerIndex, Secret, Spi, TrafficSelector};

/// Names one request to the data plane whose completion IKE waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Key and salt of one direction (RFC 4106 §8.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaKey {
    /// `key_len` octets of key, then four of salt.
    pub keymat: Secret,
}

/// When an SA is to be replaced and when it ends (RFC 7296 §2.8). The earliest limit wins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// Age at which we rekey; jitter is already in it.
    pub soft: Duration,
    /// Age at which the SA is removed, replaced or not.
    pub hard: Duration,
    /// Packets after which we rekey.
    pub soft_packets: u64,
    /// Octets of inner packets after which we rekey.
    pub soft_octets: u64,
}

/// One CHILD_SA, both directions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildSaParams {
    /// Whose packets it carries.
    pub peer: PeerIndex,
    /// Ours: the peer puts it into what it sends. Its low bits name the worker that owns the SA.
    pub inbound_spi: Spi,
    /// The peer's.
    pub outbound_spi: Spi,
    /// AEAD, sequence number size.
    pub suite: ChildSuite,
    /// Opens what the peer seals.
    pub inbound_key: SaKey,
    /// Seals what we send.
    pub outbound_key: SaKey,
    /// Inner addresses on our side.
    pub local_selectors: Vec<TrafficSelector>,
    /// Inner addresses on the peer's side.
    pub remote_selectors: Vec<TrafficSelector>,
    /// Where to send to.
    pub path: Path,
    /// When to replace it.
    pub lifetime: Lifetime,
    /// Replay window in packets.
    pub replay_window: u32,
}

impl ChildSaParams {
    /// Shorthand for the AEAD.
    #[must_use]
    pub const fn aead(&self) -> AeadAlgorithm {
        self.suite.aead
    }
}
