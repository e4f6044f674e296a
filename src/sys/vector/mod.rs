//! Vector code: pure functions that are here because calling code for a processor that may be another is unsafe. The Internet
//! checksum's sum, with the widest registers that there are, and AES-GCM in a file of its own.
//!
//! Each variant of the sum is the same loop, compiled for other registers. A word of eight octets is added in two halves, each into an
//! accumulator of 64 bits, so nothing overflows below 2^32 words and no carry has to be looked at.

#[cfg(target_arch = "x86_64")]
pub mod aes_gcm;

/// Words of eight octets that one step takes: the widest register there is.
const LANES: usize = 8;

/// Octets of a step.
const STEP: usize = LANES * 8;

/// Sums octets as words of 32 bits in the machine's byte order; the last may be filled up with zeroes.
#[must_use]
pub fn sum(octets: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { x86::sum_avx512(octets) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            return unsafe { x86::sum_avx2(octets) };
        }
    }
    sum_anywhere(octets)
}

/// Copies `from` to `to` and sums what it copies, in one pass.
///
/// # Panics
/// If they differ in length.
#[must_use]
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just asked.
            return unsafe { x86::copy_and_sum_avx512(from, to) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            return unsafe { x86::copy_and_sum_avx2(from, to) };
        }
    }
    copy_and_sum_anywhere(from, to)
}

/// One accumulator for the lower halves of the words and one for the upper halves, for each word of a step.
#[derive(Default)]
struct Lanes {
    low: [u64; LANES],
    high: [u64; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, step: &[u8; STEP]) {
        let (words, _) = step.as_chunks();
        for lane in 0..LANES {
            let word = u64::from_ne_bytes(words[lane]);
            self.low[lane] += word & 0xffff_ffff;
            self.high[lane] += word >> 32;
        }
    }

    /// The whole sum, with that of the octets behind the last step.
    #[inline(always)]
    fn finish(self, rest: &[u8]) -> u64 {
        let (words, tail) = rest.as_chunks();
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        let word = |&octets: &[u8; 4]| u64::from(u32::from_ne_bytes(octets));
        let lanes = self.low.iter().chain(&self.high).sum::<u64>();
        lanes + words.iter().map(word).sum::<u64>() + word(&last)
    }
}

#[inline(always)]
fn sum_anywhere(octets: &[u8]) -> u64 {
    let (steps, rest) = octets.as_chunks();
    let mut lanes = Lanes::default();
    for step in steps {
        lanes.add(step);
    }
    lanes.finish(rest)
}

#[inline(always)]
fn copy_and_sum_anywhere(from: &[u8], to: &mut [u8]) -> u64 {
    assert_eq!(from.len(), to.len(), "a copy of another length");
    let (steps, rest) = from.as_chunks();
    let (places, rest_place) = to.as_chunks_mut();
    let mut lanes = Lanes::default();
    for (step, place) in steps.iter().zip(places) {
        *place = *step;
        lanes.add(step);
    }
    rest_place.copy_from_slice(rest);
    lanes.finish(rest)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same for processors that are newer than the least that the crate is built for.

    use super::{copy_and_sum_anywhere, sum_anywhere};

    #[target_feature(enable = "avx512f")]
    pub(super) fn sum_avx512(octets: &[u8]) -> u64 {
        sum_anywhere(octets)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sum_avx2(octets: &[u8]) -> u64 {
        sum_anywhere(octets)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn copy_and_sum_avx512(from: &[u8], to: &mut [u8]) -> u64 {
        copy_and_sum_anywhere(from, to)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn copy_and_sum_avx2(from: &[u8], to: &mut [u8]) -> u64 {
        copy_and_sum_anywhere(from, to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn naive(octets: &[u8]) -> u64 {
        let word = |octets: &[u8]| {
            let mut word = [0; 4];
            word[..octets.len()].copy_from_slice(octets);
            u64::from(u32::from_ne_bytes(word))
        };
        octets.chunks(4).map(word).sum()
    }

    #[test]
    fn no_lane_overflows_on_the_longest_packet() {
        assert_eq!(sum(&[0xff; 65_535]), naive(&[0xff; 65_535]));
    }

    #[test]
    #[should_panic = "a copy of another length"]
    fn lengths_must_agree() {
        let _ = copy_and_sum(&[0; 64], &mut [0; 65]);
    }

    proptest! {
        /// Whatever the processor is: the variant for any is always compared, and so is the one that this processor gets.
        #[test]
        fn as_the_naive_sum(octets in vec(any::<u8>(), 0..700), skip in 0_usize..70) {
            let octets = &octets[skip.min(octets.len())..];
            let mut copy = vec![0; octets.len()];
            prop_assert_eq!(sum(octets), naive(octets));
            prop_assert_eq!(sum_anywhere(octets), naive(octets));
            prop_assert_eq!(copy_and_sum(octets, &mut copy), naive(octets));
            prop_assert_eq!(&copy, octets);
            copy.fill(0);
            prop_assert_eq!(copy_and_sum_anywhere(octets, &mut copy), naive(octets));
            prop_assert_eq!(&copy, octets);
        }
    }
}
