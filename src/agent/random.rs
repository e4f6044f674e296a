//! The operating system's randomness as a [`Rng`].

use crate::model::Rng;

/// getrandom(2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OsRng;

impl Rng for OsRng {
    /// # Panics
    /// If the kernel has no randomness: then there is no key that could be trusted either.
    fn fill(&mut self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the operating system gives random octets");
    }
}
