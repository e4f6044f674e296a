//! AEADs by provider: ring is the default, our vector code the faster one where the processor has AVX-512, RustCrypto the
//! second opinion that both are tested against.

mod ring;
mod rustcrypto;
mod vector;

use super::{Aead, NONCE_LEN, Provider};
use crate::model::AeadAlgorithm;

/// An AEAD under this key (without salt).
///
/// # Panics
/// If the key's length is not the algorithm's.
#[must_use]
pub fn aead(provider: Provider, algorithm: AeadAlgorithm, key: &[u8]) -> Box<dyn Aead> {
    assert_eq!(key.len(), algorithm.key_len(), "the key has the wrong length for {}", algorithm.name());
    match provider {
        Provider::Vector if algorithm != AeadAlgorithm::ChaCha20Poly1305 => {
            vector::new(key).unwrap_or_else(|| ring::new(algorithm, key))
        }
        Provider::Ring | Provider::Vector => ring::new(algorithm, key),
        Provider::RustCrypto => rustcrypto::new(algorithm, key),
    }
}

/// Whether our vector code runs here and agrees with ring, both ways, on texts around each number of blocks that it treats
/// in its own way.
pub(super) fn vector_code_works() -> bool {
    [AeadAlgorithm::Aes128Gcm16, AeadAlgorithm::Aes256Gcm16].into_iter().all(|algorithm| {
        let key = &[0x42; 32][..algorithm.key_len()];
        let (Some(fast), sure) = (vector::new(key), ring::new(algorithm, key)) else { return false };
        [0, 1, 15, 16, 17, 63, 64, 65, 128, 129, 192, 193, 255, 256, 257, 511, 512, 1400].into_iter().all(|len: usize| {
            let plain: Vec<u8> = (0..len).map(|octet| octet as u8).collect();
            // Those of ESP without and with extended sequence numbers.
            let (nonce, aad) = ([len as u8; NONCE_LEN], &[0xa5; 12][..if len.is_multiple_of(2) { 8 } else { 12 }]);
            let (mut one, mut other) = (plain.clone(), plain.clone());
            let icv = fast.seal(&nonce, aad, &mut one);
            let agree = icv == sure.seal(&nonce, aad, &mut other) && one == other;
            agree && fast.open(&nonce, aad, &mut one, &icv).is_ok() && one == plain
        })
    })
}

#[cfg(test)]
mod tests;
