//! Key exchange methods. Private values come out of the caller's [`Rng`], are used once and wiped.

mod ecp;
mod x25519;

use p256::NistP256;
use p384::NistP384;

use super::KeyExchange;
use crate::model::{KeGroup, Rng};

/// Our half of a key exchange, its private value drawn from `rng`.
#[must_use]
pub fn key_exchange(group: KeGroup, rng: &mut dyn Rng) -> Box<dyn KeyExchange> {
    match group {
        KeGroup::X25519 => Box::new(x25519::X25519::random(rng)),
        KeGroup::EcP256 => Box::new(ecp::Ecp::<NistP256>::random(rng)),
        KeGroup::EcP384 => Box::new(ecp::Ecp::<NistP384>::random(rng)),
    }
}

#[cfg(test)]
mod tests;
