//! AES-GCM (NIST SP 800-38D) for processors with AVX-512, VAES and VPCLMULQDQ: four blocks an instruction, sixteen a step.
//!
//! GHASH works on blocks whose octets are reversed, so that the coefficient of x^i is bit 127 - i of an integer. The carry-less
//! product of two such integers stands for a·b·x; the powers of H are therefore kept as H^k·x^-1. A product of 256 bits is
//! reduced from its low end: adding a multiple of p(x) = x^128 + x^7 + x^2 + x + 1 that clears the low 64 bits costs one product
//! with `POLYNOMIAL`, twice. The blocks of a step are multiplied by falling powers of H and reduced once:
//!
//! ```text
//! Y' = (Y + C_1)·H^16 + C_2·H^15 + … + C_16·H
//! ```
//!
//! Nothing here depends on secrets but the contents of registers: no table, no branch.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_aesenc_si128, _mm_aesenclast_si128, _mm_aeskeygenassist_si128, _mm_clmulepi64_si128,
    _mm_cvtsi128_si32, _mm_extract_epi32, _mm_loadu_si128, _mm_set_epi8, _mm_set_epi32, _mm_set_epi64x, _mm_setzero_si128,
    _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128, _mm_xor_si128, _mm512_add_epi32, _mm512_aesenc_epi128,
    _mm512_aesenclast_epi128, _mm512_broadcast_i32x4, _mm512_clmulepi64_epi128, _mm512_extracti32x4_epi32,
    _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_maskz_mov_epi8, _mm512_set_epi32,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
};

use zeroize::ZeroizeOnDrop;

/// Octets of a block.
const BLOCK: usize = 16;

/// Octets of a register.
const WIDE: usize = 64;

/// Registers of a step.
const STEP: usize = 4;

/// Powers of H that a step needs: one for each of its blocks, and one more where the lengths' block follows.
const POWERS: usize = 17;

/// Powers are read four at a time, past the last one too; there the blocks are zero.
const SPARE: usize = 3;

/// (x^128 + p(x)) / x without its constant term and x^127, as the upper half of a reversed block: x^6, x and 1.
const POLYNOMIAL: i64 = 0xc200_0000_0000_0000_u64 as i64;

/// x^127 + x^6 + x + 1, which is x^-1.
const INVERSE_OF_X: u128 = 0xc200_0000_0000_0000_0000_0000_0000_0001;

/// A key, expanded. Wiped when dropped.
#[derive(ZeroizeOnDrop)]
#[repr(C, align(64))]
pub struct AesGcm {
    /// H^17·x^-1 first, H·x^-1 last, then zeroes.
    powers: [u128; POWERS + SPARE],
    round_keys: [[u8; BLOCK]; 15],
    /// 10 or 14.
    rounds: usize,
}

/// Whether the processor has what all of this needs.
#[must_use]
pub fn is_supported() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

impl AesGcm {
    /// Expands a key of 16 or 32 octets. None if the processor lacks something, or for a key of another length.
    ///
    /// It is expanded where it stays: a move would leave a copy behind that nobody wipes.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Box<Self>> {
        if !is_supported() || !matches!(key.len(), 16 | 32) {
            return None;
        }
        let mut gcm = Box::new(Self {
            powers: [0; POWERS + SPARE],
            round_keys: [[0; BLOCK]; 15],
            rounds: if key.len() == 16 { 10 } else { 14 },
        });
        // SAFETY: the processor has every feature, as was just asked.
        unsafe { gcm.expand(key) };
        Some(gcm)
    }

    /// Encrypts `text` in place and returns the tag.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; BLOCK] {
        // SAFETY: there is no such value on a processor that lacks a feature.
        unsafe { self.pass::<true>(nonce, aad, text) }
    }

    /// Decrypts `text` in place and returns the tag that it should have had. The caller compares, and uses nothing of the text
    /// if they differ.
    #[must_use]
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; BLOCK] {
        // SAFETY: there is no such value on a processor that lacks a feature.
        unsafe { self.pass::<false>(nonce, aad, text) }
    }

    /// FIPS 197 §5.2, then the powers of H = E(K, 0).
    #[target_feature(enable = "aes,pclmulqdq,avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    fn expand(&mut self, key: &[u8]) {
        let (words, _) = key.as_chunks::<4>();
        let n_k = words.len();
        let mut expanded = zeroize::Zeroizing::new([0_u32; 60]);
        for (place, &word) in expanded.iter_mut().zip(words) {
            *place = u32::from_le_bytes(word);
        }
        let mut constant = 1_u32;
        for index in n_k..4 * (self.rounds + 1) {
            let mut word = expanded[index - 1];
            if index % n_k == 0 {
                word = substitute(word).1 ^ constant;
                // In GF(2^8), modulo x^8 + x^4 + x^3 + x + 1.
                constant = if constant < 0x80 { constant << 1 } else { constant << 1 ^ 0x11b };
            } else if n_k > 6 && index % n_k == 4 {
                word = substitute(word).0;
            }
            expanded[index] = expanded[index - n_k] ^ word;
        }
        for (place, word) in self.round_keys.as_flattened_mut().as_chunks_mut::<4>().0.iter_mut().zip(expanded.iter()) {
            *place = word.to_le_bytes();
        }
        let h = to_integer(reverse(self.encrypt(_mm_setzero_si128())));
        // Times x^-1: one coefficient down, and the constant term comes in again as x^-1.
        let h = (h << 1) ^ (INVERSE_OF_X & 0_u128.wrapping_sub(h >> 127));
        let mut power = h;
        for place in self.powers[..POWERS].iter_mut().rev() {
            *place = power;
            power = times_x_inverse_free(power, h);
        }
    }

    /// One block.
    #[target_feature(enable = "aes,avx512f")]
    fn encrypt(&self, block: __m128i) -> __m128i {
        let mut block = _mm_xor_si128(block, load(&self.round_keys[0]));
        for key in &self.round_keys[1..self.rounds] {
            block = _mm_aesenc_si128(block, load(key));
        }
        _mm_aesenclast_si128(block, load(&self.round_keys[self.rounds]))
    }

    /// Up to 16 blocks of key stream.
    #[target_feature(enable = "avx512f,vaes")]
    #[inline]
    fn key_stream<const N: usize>(&self, counters: [__m512i; N]) -> [__m512i; N] {
        let mut blocks = counters;
        let first = _mm512_broadcast_i32x4(load(&self.round_keys[0]));
        for block in &mut blocks {
            *block = _mm512_xor_si512(*block, first);
        }
        for key in &self.round_keys[1..self.rounds] {
            let key = _mm512_broadcast_i32x4(load(key));
            for block in &mut blocks {
                *block = _mm512_aesenc_epi128(*block, key);
            }
        }
        let last = _mm512_broadcast_i32x4(load(&self.round_keys[self.rounds]));
        for block in &mut blocks {
            *block = _mm512_aesenclast_epi128(*block, last);
        }
        blocks
    }

    /// Four powers of H from H^`highest` downwards.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn powers_from(&self, highest: usize) -> __m512i {
        let four: &[u128; 4] = self.powers[POWERS - highest..].first_chunk().expect("the table has spare entries");
        // SAFETY: the reference covers the 64 octets that are read.
        unsafe { _mm512_loadu_si512(four.as_ptr().cast()) }
    }

    /// Encrypts or decrypts, and computes the tag over what travels.
    #[target_feature(enable = "aes,pclmulqdq,avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    fn pass<const SEAL: bool>(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; BLOCK] {
        let [n0, n1, n2] = [0, 4, 8].map(|at| i32::from_le_bytes([nonce[at], nonce[at + 1], nonce[at + 2], nonce[at + 3]]));
        // J_0: the nonce and 1. Counters travel as big-endian numbers, which `Counters` sees to.
        let mask = self.encrypt(_mm_set_epi32(1_i32.swap_bytes(), n2, n1, n0));
        let mut counters = Counters::new(n0, n1, n2);
        let mut y = _mm_setzero_si128();
        for block in aad.chunks(BLOCK) {
            let mut whole = [0; BLOCK];
            whole[..block.len()].copy_from_slice(block);
            let mut sums = Sums::zero();
            sums.multiply(_mm512_zextsi128_si512(_mm_xor_si128(y, reverse(load(&whole)))), self.powers_from(1));
            y = sums.reduce();
        }
        let lengths = _mm_set_epi64x(aad.len() as i64 * 8, text.len() as i64 * 8);

        let len = text.len();
        // A whole last step is the last step too: the lengths come with it.
        let steps = len.saturating_sub(1) / (STEP * WIDE);
        let (whole, rest) = text.split_at_mut(steps * STEP * WIDE);
        for step in whole.chunks_exact_mut(STEP * WIDE) {
            y = self.step::<STEP, SEAL>(&mut counters, y, step, STEP * 4).reduce();
        }
        let blocks = rest.len().div_ceil(BLOCK);
        let mut sums = match rest.len().div_ceil(WIDE) {
            0 => {
                let mut sums = Sums::zero();
                sums.multiply(_mm512_zextsi128_si512(_mm_xor_si128(y, lengths)), self.powers_from(1));
                return finish(sums, mask);
            }
            1 => self.step::<1, SEAL>(&mut counters, y, rest, blocks + 1),
            2 => self.step::<2, SEAL>(&mut counters, y, rest, blocks + 1),
            3 => self.step::<3, SEAL>(&mut counters, y, rest, blocks + 1),
            _ => self.step::<4, SEAL>(&mut counters, y, rest, blocks + 1),
        };
        sums.multiply(_mm512_zextsi128_si512(lengths), self.powers_from(1));
        finish(sums, mask)
    }

    /// One step: up to 16 blocks, whose first is multiplied by H^`highest`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")]
    #[inline]
    fn step<const N: usize, const SEAL: bool>(
        &self,
        counters: &mut Counters,
        y: __m128i,
        text: &mut [u8],
        highest: usize,
    ) -> Sums {
        let streams = self.key_stream::<N>(std::array::from_fn(|_| counters.next()));
        let mut sums = Sums::zero();
        let mut carried = _mm512_zextsi128_si512(y);
        for (number, (part, stream)) in text.chunks_mut(WIDE).zip(streams).enumerate() {
            let mask = u64::MAX >> (WIDE - part.len());
            // SAFETY: only the octets under the mask are read: those of the slice.
            let before = unsafe { _mm512_maskz_loadu_epi8(mask, part.as_ptr().cast()) };
            let after = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(before, stream));
            // SAFETY: only the octets under the mask are written: those of the slice.
            unsafe { _mm512_mask_storeu_epi8(part.as_mut_ptr().cast(), mask, after) };
            let cipher = reverse_each(if SEAL { after } else { before });
            sums.multiply(_mm512_xor_si512(carried, cipher), self.powers_from(highest - 4 * number));
            carried = _mm512_setzero_si512();
        }
        sums
    }
}

/// Four counter blocks and how to go on.
struct Counters {
    /// Big-endian but for the counter, which is a little-endian word so that it can be added to.
    next: __m512i,
}

impl Counters {
    /// Counters 2, 3, 4 and 5: the first is J_0's.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(n0: i32, n1: i32, n2: i32) -> Self {
        Self { next: _mm512_set_epi32(5, n2, n1, n0, 4, n2, n1, n0, 3, n2, n1, n0, 2, n2, n1, n0) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn next(&mut self) -> __m512i {
        let big_endian = _mm512_shuffle_epi8(
            self.next,
            _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)),
        );
        self.next = _mm512_add_epi32(self.next, _mm512_set_epi32(4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0));
        big_endian
    }
}

/// Sums of products that are not reduced yet, in four lanes: the lower 128 bits, those from bit 64 on, those from bit 128 on.
struct Sums {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
}

impl Sums {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Self {
        let zero = _mm512_setzero_si512();
        Self { low: zero, middle: zero, high: zero }
    }

    #[target_feature(enable = "avx512f,vpclmulqdq")]
    #[inline]
    fn multiply(&mut self, blocks: __m512i, powers: __m512i) {
        self.low = _mm512_xor_si512(self.low, _mm512_clmulepi64_epi128::<0x00>(blocks, powers));
        // The sum of three.
        self.middle = _mm512_ternarylogic_epi64::<0x96>(
            self.middle,
            _mm512_clmulepi64_epi128::<0x01>(blocks, powers),
            _mm512_clmulepi64_epi128::<0x10>(blocks, powers),
        );
        self.high = _mm512_xor_si512(self.high, _mm512_clmulepi64_epi128::<0x11>(blocks, powers));
    }

    /// One block: the lanes' sum modulo p(x).
    #[target_feature(enable = "avx512f,pclmulqdq")]
    #[inline]
    fn reduce(&self) -> __m128i {
        reduce(add_lanes(self.low), add_lanes(self.middle), add_lanes(self.high))
    }
}

/// The sum of the four lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_lanes(lanes: __m512i) -> __m128i {
    let (a, b) = (_mm512_extracti32x4_epi32::<0>(lanes), _mm512_extracti32x4_epi32::<1>(lanes));
    let (c, d) = (_mm512_extracti32x4_epi32::<2>(lanes), _mm512_extracti32x4_epi32::<3>(lanes));
    _mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d))
}

/// Clears the lowest 64 bits, then the next: each by a multiple of p(x), whose two outer terms are the swap of the halves.
#[target_feature(enable = "avx512f,pclmulqdq")]
#[inline]
fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, POLYNOMIAL);
    let fold = |low: __m128i, high: __m128i| {
        let product = _mm_clmulepi64_si128::<0x00>(low, polynomial);
        _mm_xor_si128(_mm_xor_si128(high, product), _mm_shuffle_epi32::<0x4e>(low))
    };
    fold(fold(low, middle), high)
}

/// The tag: GHASH and E(K, J_0).
#[target_feature(enable = "avx512f,pclmulqdq")]
#[inline]
fn finish(sums: Sums, mask: __m128i) -> [u8; BLOCK] {
    let mut tag = [0; BLOCK];
    let block = _mm_xor_si128(reverse(sums.reduce()), mask);
    // SAFETY: the array has the 16 octets that are written.
    unsafe { _mm_storeu_si128(tag.as_mut_ptr().cast(), block) };
    tag
}

/// The product of two values that are kept as a·x^-1 and b·x^-1, kept so again.
#[target_feature(enable = "avx512f,pclmulqdq")]
fn times_x_inverse_free(a: u128, b: u128) -> u128 {
    let (a, b) = (from_integer(a), from_integer(b));
    let middle = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
    to_integer(reduce(_mm_clmulepi64_si128::<0x00>(a, b), middle, _mm_clmulepi64_si128::<0x11>(a, b)))
}

/// SubWord, and RotWord of it (FIPS 197 §5.2).
#[target_feature(enable = "aes,avx512f")]
fn substitute(word: u32) -> (u32, u32) {
    let result = _mm_aeskeygenassist_si128::<0>(_mm_set_epi32(0, 0, word as i32, 0));
    (_mm_cvtsi128_si32(result) as u32, _mm_extract_epi32::<1>(result) as u32)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(block: &[u8; BLOCK]) -> __m128i {
    // SAFETY: the reference covers the 16 octets that are read.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

/// Octets the other way round.
#[target_feature(enable = "avx512f")]
#[inline]
fn reverse(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
}

/// The same in each lane.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn reverse_each(blocks: __m512i) -> __m512i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(order))
}

#[target_feature(enable = "avx512f")]
fn to_integer(block: __m128i) -> u128 {
    let mut octets = [0; BLOCK];
    // SAFETY: the array has the 16 octets that are written.
    unsafe { _mm_storeu_si128(octets.as_mut_ptr().cast(), block) };
    u128::from_le_bytes(octets)
}

#[target_feature(enable = "avx512f")]
fn from_integer(integer: u128) -> __m128i {
    load(&integer.to_le_bytes())
}
