//! HMAC as IKE's PRF, and prf+ (RFC 7296 §2.13).

use ring::hmac;

use crate::model::{PrfAlgorithm, Secret};

/// prf+ numbers its blocks with one octet.
const MAX_BLOCKS: usize = 255;

/// A pseudorandom function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prf(pub PrfAlgorithm);

impl Prf {
    /// prf(key, data), where data is the concatenation of the parts.
    #[must_use]
    pub fn compute(self, key: &[u8], data: &[&[u8]]) -> Secret {
        Secret::copy_of(mac(&self.key(key), data).as_ref())
    }

    /// The first `len` octets of prf+(key, seed), where seed is the concatenation of the parts.
    ///
    /// ```text
    /// prf+ (K,S) = T1 | T2 | T3 | ...
    /// T1 = prf (K, S | 0x01)
    /// Tn = prf (K, Tn-1 | S | n)
    /// ```
    ///
    /// # Panics
    /// Above 255 blocks, which no caller needs.
    #[must_use]
    pub fn expand(self, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
        let blocks = len.div_ceil(self.0.output_len());
        assert!(blocks <= MAX_BLOCKS, "prf+ ends after {MAX_BLOCKS} blocks");
        let key = self.key(key);
        // Room for all blocks at once: a growing vector would leave unwiped copies behind.
        let mut output = Vec::with_capacity(blocks * self.0.output_len());
        for n in 1..=blocks {
            let mut context = hmac::Context::with_key(&key);
            let previous = output.len().saturating_sub(self.0.output_len());
            context.update(&output[previous..]);
            for part in seed {
                context.update(part);
            }
            context.update(&[n as u8]);
            output.extend_from_slice(context.sign().as_ref());
        }
        output.truncate(len);
        Secret::new(output)
    }

    /// HMAC's key schedule. Keys of any length, as HMAC has it.
    fn key(self, key: &[u8]) -> hmac::Key {
        let algorithm = match self.0 {
            PrfAlgorithm::HmacSha2_256 => hmac::HMAC_SHA256,
            PrfAlgorithm::HmacSha2_384 => hmac::HMAC_SHA384,
            PrfAlgorithm::HmacSha2_512 => hmac::HMAC_SHA512,
        };
        hmac::Key::new(algorithm, key)
    }
}

/// The HMAC of the parts in a row.
fn mac(key: &hmac::Key, data: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in data {
        context.update(part);
    }
    context.sign()
}

#[cfg(test)]
mod tests;
