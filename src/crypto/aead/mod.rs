//! AEADs by provider: ring is the default, RustCrypto the second opinion that the first is tested against.

mod ring;
mod rustcrypto;

use super::{Aead, Provider};
use crate::model::AeadAlgorithm;

/// An AEAD under this key (without salt).
///
/// # Panics
/// If the key's length is not the algorithm's.
#[must_use]
pub fn aead(provider: Provider, algorithm: AeadAlgorithm, key: &[u8]) -> Box<dyn Aead> {
    assert_eq!(key.len(), algorithm.key_len(), "the key has the wrong length for {}", algorithm.name());
    match provider {
        Provider::Ring => ring::new(algorithm, key),
        Provider::RustCrypto => rustcrypto::new(algorithm, key),
    }
}

#[cfg(test)]
mod tests;
