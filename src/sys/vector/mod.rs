//! Vector code: pure functions that are here because calling code for a processor that may be another is unsafe. The Internet
//! checksum's sum, with the widest registers that there are, and AES-GCM in a file of its own.
//!
//! A word of eight octets is added in two halves, each into an accumulator of 64 bits, so nothing overflows below 2^32 words and
//! no carry has to be looked at.

#[cfg(target_arch = "x86_64")]
pub mod aes_gcm;

/// From here on wide registers pay.
#[cfg(target_arch = "x86_64")]
const WIDE_LEN: usize = 64;

/// Sums octets as words of 32 bits in the machine's byte order; the last may be filled up with zeroes.
#[must_use]
#[inline]
pub fn sum(octets: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if octets.len() >= WIDE_LEN {
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

/// The same for any processor, and for what is left behind the last whole register.
#[inline]
fn sum_anywhere(octets: &[u8]) -> u64 {
    let (words, tail) = octets.as_chunks();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    let word = |&octets: &[u8; 4]| u64::from(u32::from_ne_bytes(octets));
    words.iter().map(word).sum::<u64>() + word(&last)
}

fn copy_and_sum_anywhere(from: &[u8], to: &mut [u8]) -> u64 {
    to.copy_from_slice(from);
    sum_anywhere(from)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! By the register: the lower halves of its words into one accumulator, the upper halves into another.

    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_setzero_si256,
        _mm256_srli_epi64, _mm256_storeu_si256, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512,
        _mm512_reduce_add_epi64, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64, _mm512_storeu_si512,
    };

    use super::{copy_and_sum_anywhere, sum_anywhere};

    /// The lower half of a word.
    const LOWER: i64 = 0xffff_ffff;

    /// Two accumulators of 512 bits.
    struct Wide(__m512i, __m512i);

    impl Wide {
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn zero() -> Self {
            Self(_mm512_setzero_si512(), _mm512_setzero_si512())
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn add(&mut self, words: __m512i) {
            self.0 = _mm512_add_epi64(self.0, _mm512_and_si512(words, _mm512_set1_epi64(LOWER)));
            self.1 = _mm512_add_epi64(self.1, _mm512_srli_epi64::<32>(words));
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn finish(self) -> u64 {
            _mm512_reduce_add_epi64(_mm512_add_epi64(self.0, self.1)) as u64
        }
    }

    /// Two accumulators of 256 bits.
    struct Half(__m256i, __m256i);

    impl Half {
        #[target_feature(enable = "avx2")]
        #[inline]
        fn zero() -> Self {
            Self(_mm256_setzero_si256(), _mm256_setzero_si256())
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn add(&mut self, words: __m256i) {
            self.0 = _mm256_add_epi64(self.0, _mm256_and_si256(words, _mm256_set1_epi64x(LOWER)));
            self.1 = _mm256_add_epi64(self.1, _mm256_srli_epi64::<32>(words));
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn finish(self) -> u64 {
            let mut lanes = [0_u64; 4];
            // SAFETY: the array has the 32 octets that are written.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi64(self.0, self.1)) };
            lanes.iter().sum()
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn sum_avx512(octets: &[u8]) -> u64 {
        let (steps, rest) = octets.as_chunks::<64>();
        let mut sums = Wide::zero();
        for step in steps {
            // SAFETY: the reference covers the 64 octets that are read.
            sums.add(unsafe { _mm512_loadu_si512(step.as_ptr().cast()) });
        }
        sums.finish() + sum_anywhere(rest)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn copy_and_sum_avx512(from: &[u8], to: &mut [u8]) -> u64 {
        assert_eq!(from.len(), to.len(), "a copy of another length");
        let ((steps, rest), (places, last)) = (from.as_chunks::<64>(), to.as_chunks_mut::<64>());
        let mut sums = Wide::zero();
        for (step, place) in steps.iter().zip(places) {
            // SAFETY: the reference covers the 64 octets that are read.
            let words = unsafe { _mm512_loadu_si512(step.as_ptr().cast()) };
            // SAFETY: the reference covers the 64 octets that are written.
            unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), words) };
            sums.add(words);
        }
        sums.finish() + copy_and_sum_anywhere(rest, last)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sum_avx2(octets: &[u8]) -> u64 {
        let (steps, rest) = octets.as_chunks::<32>();
        let mut sums = Half::zero();
        for step in steps {
            // SAFETY: the reference covers the 32 octets that are read.
            sums.add(unsafe { _mm256_loadu_si256(step.as_ptr().cast()) });
        }
        sums.finish() + sum_anywhere(rest)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn copy_and_sum_avx2(from: &[u8], to: &mut [u8]) -> u64 {
        assert_eq!(from.len(), to.len(), "a copy of another length");
        let ((steps, rest), (places, last)) = (from.as_chunks::<32>(), to.as_chunks_mut::<32>());
        let mut sums = Half::zero();
        for (step, place) in steps.iter().zip(places) {
            // SAFETY: the reference covers the 32 octets that are read.
            let words = unsafe { _mm256_loadu_si256(step.as_ptr().cast()) };
            // SAFETY: the reference covers the 32 octets that are written.
            unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), words) };
            sums.add(words);
        }
        sums.finish() + copy_and_sum_anywhere(rest, last)
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
    #[should_panic]
    fn lengths_must_agree() {
        let _ = copy_and_sum(&[0; 64], &mut [0; 65]);
    }

    proptest! {
        /// Every variant that this processor can run.
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
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                copy.fill(0);
                // SAFETY: the processor has AVX2, as was just asked.
                let sums = unsafe { [x86::sum_avx2(octets), x86::copy_and_sum_avx2(octets, &mut copy)] };
                prop_assert_eq!(sums, [naive(octets); 2]);
                prop_assert_eq!(&copy, octets);
            }
        }
    }
}
