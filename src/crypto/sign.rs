//! Ed25519 host keys (RFC 8032).

use std::sync::Arc;

/// A host's private key. Its seed is wiped with the last clone and never printed.
#[derive(Clone)]
pub struct SigningKey(Arc<ring::signature::Ed25519KeyPair>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({:?})", self.verifying_key())
    }
}

impl SigningKey {
    /// The key that this seed makes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        todo!("{seed:?}")
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        todo!("{:?}", Arc::strong_count(&self.0))
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        todo!("{message:?}")
    }
}

/// A host's public key: 32 octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VerifyingKey(pub [u8; 32]);

impl VerifyingKey {
    /// Whether the signature is the key's owner's. Refuses S >= L and keys of small order.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        todo!("{message:?} {signature:?}")
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.verifying_key() == other.verifying_key()
    }
}
