//! The default provider.
//!
//! ring opens `text || icv` and text with a separate ICV by the same code, in place and without allocation, so a train is a
//! plain loop over it here.

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::crypto::{Aead, BadIcv, ICV_LEN, NONCE_LEN};
use crate::model::AeadAlgorithm;

/// The key, expanded. "Less safe" says that nonces are the caller's duty, as the [`Aead`] trait says too.
struct Ring(LessSafeKey);

/// The AEAD under a key of the right length.
pub(super) fn new(algorithm: AeadAlgorithm, key: &[u8]) -> Box<dyn Aead> {
    let algorithm = match algorithm {
        AeadAlgorithm::Aes128Gcm16 => &AES_128_GCM,
        AeadAlgorithm::Aes256Gcm16 => &AES_256_GCM,
        AeadAlgorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    Box::new(Ring(LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the caller checked the key's length"))))
}

impl Aead for Ring {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN] {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), text)
            .expect("only texts above 64 GiB fail");
        tag.as_ref().try_into().expect("all three tags have 16 octets")
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], icv: &[u8; ICV_LEN]) -> Result<(), BadIcv> {
        self.0
            .open_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), (*icv).into(), text, 0..)
            .map(drop)
            .map_err(|_| BadIcv)
    }
}
