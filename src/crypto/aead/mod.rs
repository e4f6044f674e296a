//! AEADs by provider: ring is the default, graviola the faster one where the processor has AVX-512, RustCrypto the second
//! opinion that both are tested against.

mod graviola;
mod ring;
mod rustcrypto;

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
        Provider::Graviola if algorithm != AeadAlgorithm::ChaCha20Poly1305 => graviola::new(key),
        Provider::Ring | Provider::Graviola => ring::new(algorithm, key),
        Provider::RustCrypto => rustcrypto::new(algorithm, key),
    }
}

/// Whether graviola's fast path runs here and agrees with ring, both ways, on texts around every size of block that it knows.
pub(super) fn graviola_works() -> bool {
    graviola::is_fast_here()
        && [AeadAlgorithm::Aes128Gcm16, AeadAlgorithm::Aes256Gcm16].into_iter().all(|algorithm| {
            let key = &[0x42; 32][..algorithm.key_len()];
            let [fast, sure] = [Provider::Graviola, Provider::Ring].map(|provider| aead(provider, algorithm, key));
            [0, 1, 15, 16, 17, 63, 64, 127, 255, 256, 257, 511, 1400, 1500].into_iter().all(|len: usize| {
                let plain: Vec<u8> = (0..len).map(|octet| octet as u8).collect();
                let (nonce, aad) = ([len as u8; NONCE_LEN], [0xa5; 8]);
                let (mut one, mut other) = (plain.clone(), plain.clone());
                let icv = fast.seal(&nonce, &aad, &mut one);
                let agree = icv == sure.seal(&nonce, &aad, &mut other) && one == other;
                agree && fast.open(&nonce, &aad, &mut one, &icv).is_ok() && one == plain
            })
        })
}

#[cfg(test)]
mod tests;
