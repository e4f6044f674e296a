//! Whole messages, and the SK payload (RFC 7296 §3.14, RFC 5282).
//!
//! ```text
//! | IKE header | payloads in clear | generic header of SK | IV (8) | payloads, padding, pad length | ICV (16) |
//! |<------------------------ AAD ------------------------>|        |<------- encrypted --------->|
//! ```

use super::chain::{GENERIC_HEADER_LEN, clear_chain, emit_chain, walk};
use super::cursor::fill_length;
use super::header::{fill_first_payload, fill_message_length};
use super::{HEADER_LEN, Header, ParseError, Payload, PayloadType};
use crate::model::AeadAlgorithm;

/// Octets of IV in front of the text.
const IV_LEN: usize = AeadAlgorithm::IV_LEN;

/// Octets of ICV behind the text.
const ICV_LEN: usize = AeadAlgorithm::ICV_LEN;

/// The shortest body of an SK payload: no payload, no padding, its pad length.
const MIN_SEALED_LEN: usize = IV_LEN + 1 + ICV_LEN;

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
        let (header, first) = Header::parse(datagram)?;
        let (payloads, sealed) = walk(first, clear_chain(datagram))?;
        let protected = match sealed {
            Some(sealed) if sealed.body_len < MIN_SEALED_LEN => return Err(ParseError::Truncated("SK payload")),
            // Nothing follows SK: its body ends where the datagram ends.
            Some(sealed) => {
                Some(ProtectedView { first_inner: sealed.first_inner, aad_len: datagram.len() - sealed.body_len })
            }
            None => None,
        };
        Ok(Self { header, payloads, protected })
    }

    /// A message without SK payload.
    #[must_use]
    pub fn emit_clear(header: &Header, payloads: &[Payload]) -> Vec<u8> {
        let mut out = Vec::new();
        header.emit(0, &mut out);
        let first = emit_chain(payloads, &mut out);
        fill_first_payload(&mut out, first);
        fill_message_length(&mut out);
        out
    }

    /// A message whose payloads all travel inside SK. `seal(aad, text)` gets everything before the IV, and the padded
    /// plaintext, which it encrypts in place; it returns IV and ICV.
    #[must_use]
    pub fn emit_protected(
        header: &Header,
        payloads: &[Payload],
        seal: impl FnOnce(&[u8], &mut [u8]) -> ([u8; 8], [u8; 16]),
    ) -> Vec<u8> {
        let mut out = Vec::new();
        header.emit(PayloadType::Encrypted.value(), &mut out);
        out.extend_from_slice(&[0; GENERIC_HEADER_LEN + IV_LEN]);
        out[HEADER_LEN] = emit_chain(payloads, &mut out);
        // An AEAD needs no alignment (RFC 5282 §3): no padding, and a pad length that says so.
        out.push(0);
        let text_end = out.len();
        out.extend_from_slice(&[0; ICV_LEN]);
        fill_length(&mut out, HEADER_LEN, 2);
        fill_message_length(&mut out);

        let (aad, body) = out.split_at_mut(HEADER_LEN + GENERIC_HEADER_LEN);
        let (iv, icv) = seal(aad, &mut body[IV_LEN..text_end - HEADER_LEN - GENERIC_HEADER_LEN]);
        body[..IV_LEN].copy_from_slice(&iv);
        out[text_end..].copy_from_slice(&icv);
        out
    }

    /// Opens the SK payload of `datagram`, which `view` was parsed from. `open(iv, aad, text, icv)` decrypts `text` in place
    /// and says whether the ICV holds. The result is the inner chain, still unparsed: its first payload type and octets.
    ///
    /// # Errors
    /// [`OpenError::Icv`] if `open` says so, [`OpenError::Padding`] if the pad length exceeds the plaintext.
    pub fn open(
        view: ProtectedView,
        datagram: &mut [u8],
        open: impl FnOnce(&[u8; 8], &[u8], &mut [u8], &[u8; 16]) -> bool,
    ) -> Result<(u8, &[u8]), OpenError> {
        // The view comes from this datagram, so the pieces are there; if not, it is not what was sealed.
        let (aad, body) = datagram.split_at_mut_checked(view.aad_len).ok_or(OpenError::Icv)?;
        let (iv, body) = body.split_first_chunk_mut::<IV_LEN>().ok_or(OpenError::Icv)?;
        let (text, icv) = body.split_last_chunk_mut::<ICV_LEN>().ok_or(OpenError::Icv)?;
        if !open(iv, aad, text, icv) {
            return Err(OpenError::Icv);
        }
        let (&mut pad_len, padded) = text.split_last_mut().ok_or(OpenError::Padding)?;
        let inner_len = padded.len().checked_sub(usize::from(pad_len)).ok_or(OpenError::Padding)?;
        Ok((view.first_inner, &padded[..inner_len]))
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
