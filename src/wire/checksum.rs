//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624).

use crate::sys::vector;

/// A sum of 16-bit words in one's complement arithmetic, not folded yet. 2^32 words fit.
///
/// Words are taken as the machine reads them: which octet of a word counts more only decides where the folded sum has its two
/// octets (RFC 1071 §2B), and loads that swap nothing suit vector code.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds octets, of which all parts but the last must be even in length.
    #[must_use]
    pub fn with(self, octets: &[u8]) -> Self {
        // 2^16 is 1 modulo 2^16 - 1: words of 32 bits add up to the same folded sum (RFC 1071 §2C).
        Self(self.0 + vector::sum(octets))
    }

    /// Copies octets and adds them, in one pass. Lengths must agree, and be even but for the last part's.
    #[must_use]
    pub fn with_copy(self, from: &[u8], to: &mut [u8]) -> Self {
        Self(self.0 + vector::copy_and_sum(from, to))
    }

    /// Adds a word that stands for itself.
    #[must_use]
    pub const fn with_word(self, word: u16) -> Self {
        Self(self.0 + word.to_be() as u64)
    }

    /// Adds a pseudo-header (RFC 793 §3.1, RFC 8200 §8.1), whose addresses are `addresses`.
    #[must_use]
    pub fn with_pseudo_header(self, addresses: &[u8], protocol: u8, length: u32) -> Self {
        let sum = self.with(addresses).with_word(protocol.into());
        Self(sum.0 + u64::from(length.to_be()))
    }

    /// The folded sum itself: what the kernel wants in the field of a checksum that it is to compute.
    #[must_use]
    pub const fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// What stands in a checksum field: the complement of the folded sum.
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// The checksum of these octets; zero if they hold their own right checksum.
#[must_use]
pub fn checksum(octets: &[u8]) -> u16 {
    Sum::default().with(octets).finish()
}

/// The checksum once a 16-bit word that it covers changed: HC' = ~(~HC + ~m + m') (RFC 1624 §3, equation 3).
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum(0).with_word(!checksum).with_word(!old).with_word(new).finish()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Word by word, as RFC 1071 §4.1 describes it.
    fn naive(octets: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in octets.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        // RFC 1071 §3: the sum of these words is ddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 §4: HC = dd2f, m = 5555, m' = 3285; the right answer is 0000 and not ffff.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn as_the_naive_sum(octets in vec(any::<u8>(), 0..200), cut in 0..100_usize) {
            prop_assert_eq!(checksum(&octets), naive(&octets));
            let (head, tail) = octets.split_at((cut * 2).min(octets.len() & !1));
            prop_assert_eq!(Sum::default().with(head).with(tail).finish(), naive(&octets));
        }

        #[test]
        fn updates_as_if_computed_anew(mut octets in vec(any::<u8>(), 20), new: u16) {
            // Some word of a header is never zero (its version), so there is one zero only.
            octets[0] = 0x45;
            let before = checksum(&octets);
            let old = u16::from_be_bytes([octets[2], octets[3]]);
            octets[2..4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), checksum(&octets));
        }
    }
}
