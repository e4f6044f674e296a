//! AES-GCM for processors with AVX-512: four blocks an instruction, and hardly any cost per call.

use graviola::aead::AesGcm;

use crate::crypto::{Aead, BadIcv, ICV_LEN, NONCE_LEN};

/// The key, expanded; wiped when dropped.
struct Graviola(AesGcm);

/// Whether the processor has what the library needs and what makes it faster than ring.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_fast_here() -> bool {
    // What it needs at all, ...
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("adx")
        // ... and what its wide path needs.
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// Elsewhere ring is as fast.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const fn is_fast_here() -> bool {
    false
}

/// AES-GCM under a key of 16 or 32 octets.
pub(super) fn new(key: &[u8]) -> Box<dyn Aead> {
    Box::new(Graviola(AesGcm::new(key)))
}

impl Aead for Graviola {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN] {
        let mut icv = [0; ICV_LEN];
        self.0.encrypt(nonce, aad, text, &mut icv);
        icv
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], icv: &[u8; ICV_LEN]) -> Result<(), BadIcv> {
        self.0.decrypt(nonce, aad, text, icv).map_err(|_| BadIcv)
    }
}
