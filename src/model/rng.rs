//! Chance as an argument: SPIs, nonces, private keys and jitter come from a generator that the caller hands in.

use std::time::Duration;

/// A source of random octets. The agent passes the operating system's; simulations pass [`SeededRng`].
pub trait Rng {
    /// Fills the whole buffer.
    fn fill(&mut self, buffer: &mut [u8]);

    /// A uniform 32-bit number.
    fn u32(&mut self) -> u32 {
        let mut octets = [0; 4];
        self.fill(&mut octets);
        u32::from_be_bytes(octets)
    }

    /// A uniform 64-bit number.
    fn u64(&mut self) -> u64 {
        let mut octets = [0; 8];
        self.fill(&mut octets);
        u64::from_be_bytes(octets)
    }

    /// A duration between zero and `limit`, for jitter (its slight bias does not matter there).
    fn jitter(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(f64::from(self.u32()) / f64::from(u32::MAX))
    }
}

/// A small reproducible generator (SplitMix64) for simulations, tests and benches. Never for keys that protect anything.
#[derive(Clone, Debug)]
pub struct SeededRng(u64);

impl SeededRng {
    /// The generator that this seed names.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits of SplitMix64 (Steele, Lea and Flood 2014).
    fn step(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Rng for SeededRng {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let octets = self.step().to_be_bytes();
            chunk.copy_from_slice(&octets[..chunk.len()]);
        }
    }
}
