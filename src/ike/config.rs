//! What the endpoint must know about this host and its peers.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

#[cfg(feature = "x509")]
use crate::crypto::x509::{Credential, TrustAnchors};
use crate::crypto::{SigningKey, VerifyingKey};
use crate::model::{AeadAlgorithm, PeerId, PeerIndex, Secret, TrafficSelector, WorkerIndex};

/// Settings of the whole endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Age at which an IKE SA is rekeyed, before jitter (up to a tenth earlier).
    pub ike_rekey: Duration,
    /// Age at which a CHILD_SA is rekeyed, before jitter (up to a tenth earlier); it ends hard a tenth later.
    pub child_rekey: Duration,
    /// Replay window in packets.
    pub replay_window: u32,
    /// Our IKE and NAT-T ports, for local addresses of paths.
    pub ike_port: u16,
    /// See `ike_port`.
    pub natt_port: u16,
    /// How many workers there are, at least one: where a CHILD_SA for one of the peer's workers may be placed.
    pub workers: u8,
}

/// One peer.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerConfig {
    /// Its place in the tables.
    pub index: PeerIndex,
    /// Its name in configuration and messages.
    pub name: String,
    /// How we call ourselves towards it.
    pub local_id: PeerId,
    /// What it must call itself.
    pub remote_id: PeerId,
    /// How we prove ourselves.
    pub local_auth: LocalAuth,
    /// How it must prove itself.
    pub remote_auth: PeerAuth,
    /// Where it is; none if we wait for it.
    pub remote: Option<RemoteEndpoint>,
    /// Where else it may be: tried in turn.
    pub alternatives: Vec<RemoteEndpoint>,
    /// AEADs for IKE and ESP, most wanted first; never empty.
    pub suites: Vec<AeadAlgorithm>,
    /// Whether IKE SAs add a post-quantum key exchange.
    pub post_quantum: PostQuantum,
    /// Inner addresses on our side.
    pub local_selectors: Vec<TrafficSelector>,
    /// Inner addresses on its side.
    pub remote_selectors: Vec<TrafficSelector>,
    /// The worker that owns its first CHILD_SA, which every other worker falls back to.
    pub owner: WorkerIndex,
}

impl PeerConfig {
    /// Every place where it may be, most wanted first.
    pub fn remotes(&self) -> impl Iterator<Item = RemoteEndpoint> {
        self.remote.into_iter().chain(self.alternatives.iter().copied())
    }

    /// Whether the other configuration is the same but for what can be changed while its tunnel stays: where the peer is, host keys, or our
    /// certificate. `index` and `owner` do not count.
    #[must_use]
    pub fn differs_mildly(&self, other: &Self) -> bool {
        let is_keyed = match (&self.remote_auth, &other.remote_auth) {
            (PeerAuth::HostKeys(_), PeerAuth::HostKeys(_)) => true,
            #[cfg(feature = "x509")]
            (PeerAuth::Certificate(ours), PeerAuth::Certificate(others)) => ours == others,
            _ => false,
        };
        let mut rest = Self {
            index: self.index,
            owner: self.owner,
            remote: self.remote,
            alternatives: self.alternatives.clone(),
            ..other.clone()
        };
        if is_keyed {
            rest.local_auth = self.local_auth.clone();
            rest.remote_auth = self.remote_auth.clone();
        }
        rest == *self
    }

    /// Whether the peer is configured at this address.
    #[must_use]
    pub fn is_at(&self, address: std::net::IpAddr) -> bool {
        self.remotes().any(|remote| remote.natt(0).ip() == address)
    }
}

/// Whether a post-quantum key exchange is added to the first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PostQuantum {
    /// Never.
    No,
    /// If both ends speak one.
    Preferred,
    /// Always, or nothing comes to be.
    Required,
}

/// Where a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemoteEndpoint {
    /// IKE_SA_INIT goes to the IKE port (500), the rest to 4500.
    Standard(std::net::IpAddr),
    /// Everything goes to this NAT-T port, with the marker; the IKE port is not used.
    Natt(SocketAddr),
}

impl RemoteEndpoint {
    /// Where its NAT-T port is; `port` if it is the standard one.
    #[must_use]
    pub const fn natt(self, port: u16) -> SocketAddr {
        match self {
            Self::Standard(address) => SocketAddr::new(address, port),
            Self::Natt(endpoint) => endpoint,
        }
    }
}

/// How we prove ourselves to one peer.
#[derive(Clone, PartialEq, Debug)]
pub enum LocalAuth {
    /// Shared key.
    Psk(Secret),
    /// Our Ed25519 host keys, never none: we sign with the first. While the key is being changed, the one before it follows, and
    /// a peer that refuses the first has the next one tried.
    HostKeys(Vec<SigningKey>),
    /// Our certificate.
    #[cfg(feature = "x509")]
    Certificate(Credential),
}

/// How one peer must prove itself.
#[derive(Clone, PartialEq, Debug)]
pub enum PeerAuth {
    /// Shared key.
    Psk(Secret),
    /// Its pinned Ed25519 keys: any of them will do.
    HostKeys(Vec<VerifyingKey>),
    /// A certificate for its identity.
    #[cfg(feature = "x509")]
    Certificate(Authorities),
}

/// Whose certificates are believed from a peer, and the clock that their validity times are held against.
#[cfg(feature = "x509")]
#[derive(Clone, Debug)]
pub struct Authorities {
    /// The pinned ones.
    pub anchors: std::sync::Arc<TrustAnchors>,
    /// Seconds since 1970. Asked when a certificate is checked, since the time of day may be set while we run.
    pub wall_clock: fn() -> u64,
}

#[cfg(feature = "x509")]
impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.anchors == other.anchors
    }
}

/// What one end of an IKE SA proved itself with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProvedBy {
    /// The shared key.
    SharedKey,
    /// This Ed25519 key.
    HostKey(VerifyingKey),
    /// This certificate: its subject and fingerprint.
    #[cfg(feature = "x509")]
    Certificate(String),
}

impl fmt::Display for ProvedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedKey => f.write_str("shared key"),
            Self::HostKey(key) => write!(f, "Ed25519 key {}", key.to_base64()),
            #[cfg(feature = "x509")]
            Self::Certificate(description) => f.write_str(description),
        }
    }
}

impl LocalAuth {
    /// What our next AUTH is made with.
    #[must_use]
    pub fn proves_by(&self) -> ProvedBy {
        match self {
            Self::Psk(_) => ProvedBy::SharedKey,
            Self::HostKeys(keys) => ProvedBy::HostKey(keys[0].verifying_key()),
            #[cfg(feature = "x509")]
            Self::Certificate(credential) => ProvedBy::Certificate(credential.describe().to_owned()),
        }
    }

    /// The peer refused what we prove ourselves with: the next one's turn, if there is one and nobody took it already.
    pub(super) fn refused(&mut self, proof: &ProvedBy) {
        if self.proves_by() == *proof
            && let Self::HostKeys(keys) = self
        {
            keys.rotate_left(1);
        }
    }
}

impl PeerAuth {
    /// Whether what a peer once proved itself with still counts.
    #[must_use]
    pub fn accepts(&self, proof: &ProvedBy) -> bool {
        match (self, proof) {
            (Self::Psk(_), ProvedBy::SharedKey) => true,
            (Self::HostKeys(pins), ProvedBy::HostKey(key)) => pins.contains(key),
            #[cfg(feature = "x509")]
            (Self::Certificate(_), ProvedBy::Certificate(_)) => true,
            _ => false,
        }
    }
}
