//! AES-GCM in our own vector code, for processors with AVX-512.

use crate::crypto::{Aead, BadIcv, ICV_LEN, NONCE_LEN, equal};
#[cfg(target_arch = "x86_64")]
use crate::sys::vector::aes_gcm::AesGcm;

/// AES-GCM under a key of 16 or 32 octets; none if the processor lacks something.
#[cfg(target_arch = "x86_64")]
pub(super) fn new(key: &[u8]) -> Option<Box<dyn Aead>> {
    Some(AesGcm::new(key)?)
}

/// There is no such code for other processors.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn new(_key: &[u8]) -> Option<Box<dyn Aead>> {
    None
}

#[cfg(target_arch = "x86_64")]
impl Aead for AesGcm {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN] {
        Self::seal(self, nonce, aad, text)
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], icv: &[u8; ICV_LEN]) -> Result<(), BadIcv> {
        let expected = Self::open(self, nonce, aad, text);
        if equal(&expected, icv) { Ok(()) } else { Err(BadIcv) }
    }
}
