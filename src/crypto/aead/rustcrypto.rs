//! The second provider, in pure Rust.

use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::{AeadInOut, Aes128Gcm, Aes256Gcm, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;

use crate::crypto::{Aead, BadIcv, ICV_LEN, NONCE_LEN};
use crate::model::AeadAlgorithm;

/// A cipher of the RustCrypto project under its key, which it wipes when dropped.
struct RustCrypto<C>(C);

/// The AEAD under a key of the right length.
pub(super) fn new(algorithm: AeadAlgorithm, key: &[u8]) -> Box<dyn Aead> {
    match algorithm {
        AeadAlgorithm::Aes128Gcm16 => with_cipher::<Aes128Gcm>(key),
        AeadAlgorithm::Aes256Gcm16 => with_cipher::<Aes256Gcm>(key),
        AeadAlgorithm::ChaCha20Poly1305 => with_cipher::<ChaCha20Poly1305>(key),
    }
}

fn with_cipher<C>(key: &[u8]) -> Box<dyn Aead>
where
    C: AeadInOut<NonceSize = U12, TagSize = U16> + KeyInit + Send + Sync + 'static,
{
    Box::new(RustCrypto(C::new_from_slice(key).expect("the caller checked the key's length")))
}

impl<C: AeadInOut<NonceSize = U12, TagSize = U16> + Send + Sync> Aead for RustCrypto<C> {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN] {
        self.0.encrypt_inout_detached(nonce.into(), aad, text.into()).expect("only texts above 64 GiB fail").into()
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], icv: &[u8; ICV_LEN]) -> Result<(), BadIcv> {
        self.0.decrypt_inout_detached(nonce.into(), aad, text.into(), icv.into()).map_err(|_| BadIcv)
    }
}
