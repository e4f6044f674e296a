//! Key exchange methods. Private values come out of the caller's [`Rng`], are used once and wiped.

mod ecp;
mod mlkem;
#[cfg(test)]
pub(crate) mod toy;
mod x25519;

use p256::NistP256;
use p384::NistP384;

use super::{KeyExchange, KeyExchangeError};
use crate::model::{KeGroup, Rng, Secret};

/// The initiator's half of a key exchange, its private value drawn from `rng`. For groups of points, the responder's half is
/// the same.
#[must_use]
pub fn key_exchange(group: KeGroup, rng: &mut dyn Rng) -> Box<dyn KeyExchange> {
    #[cfg(test)]
    if toy::is_on() {
        return Box::new(toy::Toy::random(group, rng));
    }
    match group {
        KeGroup::X25519 => Box::new(x25519::X25519::random(rng)),
        KeGroup::EcP256 => Box::new(ecp::Ecp::<NistP256>::random(rng)),
        KeGroup::EcP384 => Box::new(ecp::Ecp::<NistP384>::random(rng)),
        KeGroup::MlKem768 => Box::new(mlkem::MlKem768::random(rng)),
    }
}

/// The responder's whole part: its value for the KE payload, and the secret.
///
/// # Errors
/// If the initiator's value is not one that an honest peer could have sent.
pub fn answer_key_exchange(
    group: KeGroup,
    peer_value: &[u8],
    rng: &mut dyn Rng,
) -> Result<(Vec<u8>, Secret), KeyExchangeError> {
    match group {
        KeGroup::X25519 | KeGroup::EcP256 | KeGroup::EcP384 => {
            let half = key_exchange(group, rng);
            let public = half.public_value().to_vec();
            Ok((public, half.agree(peer_value)?))
        }
        #[cfg(test)]
        KeGroup::MlKem768 if toy::is_on() => toy::encapsulate(peer_value, rng),
        KeGroup::MlKem768 => mlkem::encapsulate(peer_value, rng),
    }
}

#[cfg(test)]
mod tests;
