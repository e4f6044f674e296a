//! Cryptography behind four small traits, and the only place that names a cryptographic library.
//!
//! - [`Aead`]: seals and opens, whole batches at a time ([`aead`], by one of several libraries: [`Provider`]);
//! - [`Prf`]: HMAC, and prf+ over it (RFC 7296 §2.13);
//! - [`KeyExchange`]: X25519 and the ECP groups, with randomness as an argument;
//! - [`SigningKey`] and [`VerifyingKey`]: Ed25519.
//!
//! Everything here is pure: keys and randomness come in as arguments.

use ring::digest;
use subtle::ConstantTimeEq;

use crate::model::{AeadAlgorithm, KeGroup, Secret};

/// Octets of a nonce: four of salt and eight of IV.
pub const NONCE_LEN: usize = 12;

/// Octets of an ICV.
pub const ICV_LEN: usize = AeadAlgorithm::ICV_LEN;

/// Which library computes the AEAD.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Provider {
    /// ring: the default.
    #[default]
    Ring,
    /// AES-GCM in our own vector code, where the processor has AVX-512, VAES and VPCLMULQDQ; what it has not, ring does.
    Vector,
    /// aes-gcm and chacha20poly1305 of the RustCrypto project.
    RustCrypto,
}

impl Provider {
    /// The fastest that this processor allows, having proved that it computes what ring computes.
    #[must_use]
    pub fn fastest() -> Self {
        if aead::vector_code_works() { Self::Vector } else { Self::Ring }
    }
}

/// The ICV did not match. Nothing else is known, and the buffer's content is undefined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the ICV does not match")]
pub struct BadIcv;

/// One packet of a batch: where it lies in the batch's buffer and what goes into its nonce and its AAD.
///
/// For sealing, `start..end` is the plaintext and the ICV is written to the [`ICV_LEN`] octets behind `end`. For opening,
/// `start..end` is the ciphertext and the ICV stands in the [`ICV_LEN`] octets behind `end`.
#[derive(Clone, Copy, Debug)]
pub struct BatchItem {
    /// First octet of the text.
    pub start: u32,
    /// One past the last octet of the text, where the ICV is.
    pub end: u32,
    /// Salt and IV.
    pub nonce: [u8; NONCE_LEN],
    /// SPI and sequence number: 8 octets, or 12 with ESN (RFC 4106 §5).
    pub aad: [u8; 12],
    /// How many octets of `aad` count.
    pub aad_len: u8,
}

/// An AEAD under one key. The same object never seals two texts under one nonce: its callers see to that.
pub trait Aead: Send + Sync {
    /// Encrypts `text` in place and returns the ICV.
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN];

    /// Checks the ICV, then decrypts `text` in place.
    ///
    /// # Errors
    /// [`BadIcv`]; `text` is then undefined.
    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], text: &mut [u8], icv: &[u8; ICV_LEN]) -> Result<(), BadIcv>;

    /// Seals a train of packets that lie in one buffer. A provider that can interleave them overrides this.
    ///
    /// # Panics
    /// If an item does not lie in the buffer with its ICV.
    fn seal_batch(&self, buffer: &mut [u8], items: &[BatchItem]) {
        for item in items {
            let (text, icv) = item.split(buffer);
            *icv = self.seal(&item.nonce, item.aad(), text);
        }
    }

    /// Opens a train of packets that lie in one buffer; `good` gets one verdict per item.
    ///
    /// # Panics
    /// If an item does not lie in the buffer with its ICV, or `good` is shorter than `items`.
    fn open_batch(&self, buffer: &mut [u8], items: &[BatchItem], good: &mut [bool]) {
        for (item, good) in items.iter().zip(&mut good[..items.len()]) {
            let (text, icv) = item.split(buffer);
            *good = self.open(&item.nonce, item.aad(), text, icv).is_ok();
        }
    }
}

impl BatchItem {
    /// The octets of the AAD that count.
    #[must_use]
    pub fn aad(&self) -> &[u8] {
        &self.aad[..usize::from(self.aad_len)]
    }

    /// The text and the ICV behind it.
    fn split<'a>(&self, buffer: &'a mut [u8]) -> (&'a mut [u8], &'a mut [u8; ICV_LEN]) {
        let (text, icv) =
            buffer[self.start as usize..self.end as usize + ICV_LEN].split_at_mut((self.end - self.start) as usize);
        (text, icv.try_into().expect("the slice was cut to this length"))
    }
}

/// Why a peer's KE value was refused (RFC 7296 §3.4, RFC 8031 §2, RFC 6989 §2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyExchangeError {
    /// Another length than the group's.
    #[error("the KE value has the wrong length for its group")]
    Length,
    /// Not a point of the curve, or the point at infinity.
    #[error("the KE value is not a point of its curve")]
    NotOnCurve,
    /// A low-order X25519 value: the shared secret would be zero.
    #[error("the KE value has a low order")]
    LowOrder,
    /// An ML-KEM encapsulation key with a coefficient beyond the modulus (FIPS 203 §7.2).
    #[error("the KE value is not reduced modulo q")]
    NotReduced,
}

/// Our half of a key exchange. It serves one exchange, in which more than one answer may come (RFC 7296 §2.4). Of a KEM, this is the
/// initiator's.
pub trait KeyExchange: Send {
    /// Its group.
    fn group(&self) -> KeGroup;

    /// Our value for the KE payload, in the encoding of the group (RFC 5903 §7: x and y without a prefix).
    fn public_value(&self) -> &[u8];

    /// g^ir from the peer's value (RFC 5903 §9: the x coordinate).
    ///
    /// # Errors
    /// If the value is not one that an honest peer could have sent.
    fn agree(&self, peer_value: &[u8]) -> Result<Secret, KeyExchangeError>;
}

mod aead;
mod ke;
mod prf;
mod sign;
#[cfg(test)]
pub(crate) mod testdata;
#[cfg(feature = "x509")]
pub mod x509;

pub use aead::aead;
#[cfg(test)]
pub(crate) use ke::toy::play_with_toys;
pub use ke::{answer_key_exchange, key_exchange};
pub use prf::Prf;
pub use sign::{KeyFormatError, SigningKey, VerifyingKey};

/// SHA-1, for NAT detection only (RFC 7296 §2.23 demands it).
#[must_use]
pub fn sha1(data: &[&[u8]]) -> [u8; 20] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    for part in data {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-1 has 20 octets")
}

/// Whether both are the same octets, in a time that depends on their lengths only.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::testdata::to_hex;
    use super::*;

    /// FIPS 180-2, appendix A.
    #[test]
    fn sha1_is_sha1() {
        assert_eq!(to_hex(&sha1(&[b"a", b"", b"bc"])), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn equal_compares_length_and_every_octet() {
        assert!(equal(b"", b""));
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abcd"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"\x80bc", b"\x00bc"));
    }
}
