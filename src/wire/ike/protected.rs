//! Whole messages, and the SK payload (RFC 7296 §3.14, RFC 5282).

use super::{Header, ParseError, Payload};

/// A received message, as far as it can be read without keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The payloads in clear: all of them in IKE_SA_INIT, those before the SK payload otherwise.
    pub payloads: Vec<Payload>,
    /// Where the SK payload lies, if there is one.
    pub protected: Option<ProtectedView>,
}

/// An SK payload's place in the datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtectedView {
    /// Type of the first payload inside.
    pub first_inner: u8,
    /// Octets before the IV, all of them AAD: the header, the payloads in clear and the SK payload's generic header.
    pub aad_len: usize,
}

impl Message {
    /// Reads a message that fills the datagram (without the non-ESP marker).
    ///
    /// # Errors
    /// If the header, a payload in clear or the SK payload's frame is malformed. SKF payloads are [`ParseError::Invalid`]
    /// until fragmentation is negotiated, which it never is yet.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        todo!("{}", datagram.len())
    }

    /// A message without SK payload.
    #[must_use]
    pub fn emit_clear(header: &Header, payloads: &[Payload]) -> Vec<u8> {
        todo!("{header:?} {}", payloads.len())
    }

    /// A message whose payloads all travel inside SK. `seal(aad, text)` gets everything before the IV, and the padded
    /// plaintext, which it encrypts in place; it returns IV and ICV.
    #[must_use]
    pub fn emit_protected(
        header: &Header,
        payloads: &[Payload],
        seal: impl FnOnce(&[u8], &mut [u8]) -> ([u8; 8], [u8; 16]),
    ) -> Vec<u8> {
        todo!("{header:?} {} {}", payloads.len(), size_of_val(&seal))
    }

    /// Opens the SK payload of `datagram`, which `self` was parsed from. `open(iv, aad, text, icv)` decrypts `text` in place
    /// and says whether the ICV holds. The result is the inner chain, still unparsed: its first payload type and octets.
    ///
    /// # Errors
    /// [`OpenError::Icv`] if `open` says so, [`OpenError::Padding`] if the pad length exceeds the plaintext.
    pub fn open<'a>(
        view: ProtectedView,
        datagram: &'a mut [u8],
        open: impl FnOnce(&[u8; 8], &[u8], &mut [u8], &[u8; 16]) -> bool,
    ) -> Result<(u8, &'a [u8]), OpenError> {
        todo!("{view:?} {} {}", datagram.len(), size_of_val(&open))
    }
}

/// Why an SK payload could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Forged or damaged.
    #[error("the ICV does not match")]
    Icv,
    /// Authentic, but malformed.
    #[error("the pad length is larger than the plaintext")]
    Padding,
}
