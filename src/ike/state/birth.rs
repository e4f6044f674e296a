//! How an IKE SA came to be: what its successors by rekey inherit.

use std::sync::Arc;

use bytes::Bytes;

use crate::ike::auth::Authenticated;
use crate::ike::{PeerConfig, ProvedBy};
use crate::model::{IkeSuite, Instant, PeerId, Secret};

/// Where an IKE SA comes from; its successors by rekey inherit it.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Whether we sent the IKE_SA_INIT that it began with.
    pub initiator: bool,
    /// When that was sent or received.
    pub began: Instant,
    /// When the peer proved itself.
    pub proved: Instant,
    /// The lower of its two nonces.
    pub low_nonce: Bytes,
    /// Whether a post-quantum secret went into its SK_d, and so into that of its successors.
    pub post_quantum: bool,
}

/// Something of ours and the same of the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair<T> {
    pub ours: T,
    pub theirs: T,
}

/// What an IKE SA needs besides its session. Nobody can make one without the proof.
#[derive(Clone, Debug)]
pub struct Birth {
    pub proof: Authenticated<PeerId>,
    pub proved_by: Pair<ProvedBy>,
    pub config: Arc<PeerConfig>,
    pub suite: IkeSuite,
    pub sk_d: Secret,
    /// Whether the peer is one of our own hosts: it showed our Vendor ID in IKE_AUTH.
    pub kin: bool,
    pub lineage: Lineage,
}
