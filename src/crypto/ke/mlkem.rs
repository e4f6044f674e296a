//! ML-KEM-768 (FIPS 203) as IKE uses it: the initiator's KE payload holds an encapsulation key, the responder's a ciphertext.

use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use ml_kem::{B32, Decapsulate, KeyExport, Seed};
use zeroize::Zeroizing;

use crate::crypto::{KeyExchange, KeyExchangeError};
use crate::model::{KeGroup, Rng, Secret};

/// Octets of the seed of a key pair: d and z (FIPS 203 §7.1).
const SEED_LEN: usize = 64;

/// Octets of m, from which a ciphertext is made (FIPS 203 §7.2).
const MESSAGE_LEN: usize = 32;

/// The initiator's half. The decapsulation key wipes itself.
pub(super) struct MlKem768 {
    private: DecapsulationKey,
    public: Box<[u8]>,
}

impl MlKem768 {
    pub(super) fn random(rng: &mut dyn Rng) -> Self {
        let mut seed = Zeroizing::new([0; SEED_LEN]);
        rng.fill(&mut *seed);
        Self::from_seed(&seed)
    }

    pub(super) fn from_seed(seed: &[u8; SEED_LEN]) -> Self {
        let seed = Zeroizing::new(Seed::from(*seed));
        let private = DecapsulationKey::from_seed(*seed);
        let public = private.encapsulation_key().to_bytes().as_slice().into();
        Self { private, public }
    }
}

impl KeyExchange for MlKem768 {
    fn group(&self) -> KeGroup {
        KeGroup::MlKem768
    }

    fn public_value(&self) -> &[u8] {
        &self.public
    }

    /// A ciphertext that was not made for this key gives a secret that its sender does not know (FIPS 203 §6.3), no error.
    fn agree(&self, peer_value: &[u8]) -> Result<Secret, KeyExchangeError> {
        let ciphertext = Ciphertext::try_from(peer_value).map_err(|_| KeyExchangeError::Length)?;
        let shared = Zeroizing::new(self.private.decapsulate(&ciphertext));
        Ok(Secret::copy_of(shared.as_slice()))
    }
}

/// The responder's part: a ciphertext for the peer's encapsulation key, and the secret inside.
pub(super) fn encapsulate(peer_value: &[u8], rng: &mut dyn Rng) -> Result<(Vec<u8>, Secret), KeyExchangeError> {
    let mut message = Zeroizing::new([0; MESSAGE_LEN]);
    rng.fill(&mut *message);
    encapsulate_message(peer_value, &message)
}

pub(super) fn encapsulate_message(
    peer_value: &[u8],
    message: &[u8; MESSAGE_LEN],
) -> Result<(Vec<u8>, Secret), KeyExchangeError> {
    let octets = peer_value.try_into().map_err(|_| KeyExchangeError::Length)?;
    // The modulus check of FIPS 203 §7.2: every coefficient below q.
    let key = EncapsulationKey::new(octets).map_err(|_| KeyExchangeError::NotReduced)?;
    let message = Zeroizing::new(B32::from(*message));
    let (ciphertext, shared) = key.encapsulate_deterministic(&message);
    let shared = Zeroizing::new(shared);
    Ok((ciphertext.to_vec(), Secret::copy_of(shared.as_slice())))
}
