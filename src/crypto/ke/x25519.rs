//! X25519 (RFC 7748) as IKE uses it (RFC 8031).

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::crypto::{KeyExchange, KeyExchangeError};
use crate::model::{KeGroup, Rng, Secret};

/// Octets of private, public and shared values alike.
const LEN: usize = 32;

/// Our half. The private value wipes itself.
pub(super) struct X25519 {
    private: StaticSecret,
    public: PublicKey,
}

impl X25519 {
    pub(super) fn random(rng: &mut dyn Rng) -> Self {
        let mut private = Zeroizing::new([0; LEN]);
        rng.fill(&mut *private);
        Self::from_private(&private)
    }

    /// Any 32 octets are a private value: the function clamps them (RFC 7748 §5).
    pub(super) fn from_private(private: &[u8; LEN]) -> Self {
        let private = StaticSecret::from(*private);
        let public = PublicKey::from(&private);
        Self { private, public }
    }
}

impl KeyExchange for X25519 {
    fn group(&self) -> KeGroup {
        KeGroup::X25519
    }

    fn public_value(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn agree(&self, peer_value: &[u8]) -> Result<Secret, KeyExchangeError> {
        let peer: [u8; LEN] = peer_value.try_into().map_err(|_| KeyExchangeError::Length)?;
        let shared = self.private.diffie_hellman(&PublicKey::from(peer));
        // RFC 8031 §2 demands the check: a peer with a low-order value would choose the secret for both.
        if shared.was_contributory() { Ok(Secret::copy_of(shared.as_bytes())) } else { Err(KeyExchangeError::LowOrder) }
    }
}
