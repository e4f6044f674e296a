//! AUTH (RFC 7296 §2.15) by shared key and by Ed25519 (RFC 7427, 8420), and raw public keys (RFC 7670).
//!
//! [`Authenticated`] is the value of a passed check: only [`verify`] makes one, and nothing can be installed without it.

use super::config::{LocalAuth, PeerAuth};
use crate::crypto::Prf;
use crate::model::{PeerId, Secret};
use crate::wire::ike::Auth;

/// Proof that a peer's AUTH was verified against the identity within.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authenticated<T>(T);

impl<T> Authenticated<T> {
    /// What was proved.
    pub const fn value(&self) -> &T {
        &self.0
    }
}

/// What one side signs: its own first message, the other side's nonce, and the MACed ID.
///
/// `InitiatorSignedOctets = RealMessage1 | NonceRData | prf(SK_pi, RestOfInitIDPayload)`
#[derive(Clone, Copy, Debug)]
pub struct SignedOctets<'a> {
    /// The signer's last IKE_SA_INIT message, as it travelled, without non-ESP marker.
    pub message: &'a [u8],
    /// The other side's nonce data.
    pub nonce: &'a [u8],
    /// The signer's SK_p.
    pub sk_p: &'a Secret,
    /// The signer's ID payload body, as it travelled.
    pub id_body: &'a [u8],
}

/// Computes our AUTH.
#[must_use]
pub fn sign(prf: Prf, auth: &LocalAuth, octets: SignedOctets<'_>) -> Auth {
    todo!("{prf:?} {auth:?} {octets:?}")
}

/// Checks the peer's AUTH against what its configuration demands.
///
/// # Errors
/// A sentence for our log; on the wire every failure is AUTHENTICATION_FAILED.
pub fn verify(
    prf: Prf,
    auth: &PeerAuth,
    octets: SignedOctets<'_>,
    received: &Auth,
    id: PeerId,
) -> Result<Authenticated<PeerId>, String> {
    todo!("{prf:?} {auth:?} {octets:?} {received:?} {id}")
}

/// The body of an ID payload for this identity: type, three zero octets, data (RFC 7296 §3.5).
#[must_use]
pub fn id_body(id: &PeerId) -> Vec<u8> {
    todo!("{id}")
}

/// The identity that an ID payload's body names.
///
/// # Errors
/// A sentence: type not spoken, wrong length for an address, empty name, name that is no UTF-8 or holds a NUL.
pub fn parse_id(body: &[u8]) -> Result<PeerId, String> {
    todo!("{body:?}")
}
