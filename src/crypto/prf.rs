//! HMAC as IKE's PRF, and prf+ (RFC 7296 §2.13).

use crate::model::{PrfAlgorithm, Secret};

/// A pseudorandom function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prf(pub PrfAlgorithm);

impl Prf {
    /// prf(key, data), where data is the concatenation of the parts.
    #[must_use]
    pub fn compute(self, key: &[u8], data: &[&[u8]]) -> Secret {
        todo!("{key:?} {data:?}")
    }

    /// The first `len` octets of prf+(key, seed), where seed is the concatenation of the parts.
    ///
    /// # Panics
    /// Above 255 blocks, which no caller needs.
    #[must_use]
    pub fn expand(self, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
        todo!("{key:?} {seed:?} {len}")
    }
}
