//! Whole messages, the SK payload (RFC 7296 §3.14, RFC 5282), and SKF, which holds one fragment of what SK would (RFC 7383 §2.5).
//!
//! ```text
//! | IKE header | payloads in clear | generic header of SK | IV (8) | payloads, padding, pad length | ICV (16) |
//! |<------------------------ AAD ------------------------>|        |<------- encrypted --------->|
//! | IKE header | ... | generic header of SKF | number (2), total (2) | IV (8) | piece, padding, pad length | ICV (16) |
//! |<------------------------------- AAD ------------------------------>|        |<----- encrypted ---->|
//! ```

use super::chain::{GENERIC_HEADER_LEN, SealedEnd, clear_chain, emit_chain, walk};
use super::cursor::{Cursor, fill_length};
use super::header::{fill_first_payload, fill_message_length};
use super::{HEADER_LEN, Header, ParseError, Payload, PayloadType};
use crate::model::AeadAlgorithm;

/// Octets of IV in front of the text.
const IV_LEN: usize = AeadAlgorithm::IV_LEN;

/// Octets of ICV behind the text.
const ICV_LEN: usize = AeadAlgorithm::ICV_LEN;

/// The shortest body of an SK payload: no payload, no padding, its pad length.
const MIN_SEALED_LEN: usize = IV_LEN + 1 + ICV_LEN;

/// Octets of the fragment's number and of their total, in front of the IV of an SKF payload.
const FRAGMENT_HEADER_LEN: usize = 4;

/// Octets that a message with an SK payload is longer than the payloads inside.
pub const SK_OVERHEAD: usize = HEADER_LEN + GENERIC_HEADER_LEN + MIN_SEALED_LEN;

/// Octets that a message with an SKF payload is longer than the piece inside.
pub const SKF_OVERHEAD: usize = SK_OVERHEAD + FRAGMENT_HEADER_LEN;

/// A received message, as far as it can be read without keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The payloads in clear: all of them in IKE_SA_INIT, those before the SK payload otherwise.
    pub payloads: Vec<Payload>,
    /// Where the SK or SKF payload lies, if there is one.
    pub protected: Option<ProtectedView>,
}

/// An SK or SKF payload's place in the datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtectedView {
    /// Type of the first payload inside; of a fragment, only the first one's counts.
    pub first_inner: u8,
    /// Octets before the IV, all of them AAD: the header, the payloads in clear, the generic header and a fragment's numbers.
    pub aad_len: usize,
    /// Which fragment this is, if it is SKF.
    pub fragment: Option<Fragment>,
}

/// Which of how many fragments: `1 <= number <= total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// From 1.
    pub number: u16,
    /// How many make the message.
    pub total: u16,
}

impl Fragment {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "SKF payload");
        let (number, total) = (cursor.u16()?, cursor.u16()?);
        if number == 0 || number > total {
            return Err(ParseError::Invalid("fragment number"));
        }
        Ok(Self { number, total })
    }
}

impl Message {
    /// Reads a message that fills the datagram (without the non-ESP marker).
    ///
    /// # Errors
    /// If the header, a payload in clear or the frame of the SK or SKF payload is malformed.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        let (header, first) = Header::parse(datagram)?;
        let (payloads, sealed) = walk(first, clear_chain(datagram))?;
        let protected = sealed.map(|sealed| ProtectedView::of(datagram, &sealed)).transpose()?;
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
        let mut chain = Vec::new();
        let first = emit_chain(payloads, &mut chain);
        emit_sealed(header, None, first, &chain, seal)
    }

    /// One fragment of such a message: a piece of its chain. `first` is the type of the message's first payload.
    #[must_use]
    pub fn emit_fragment(
        header: &Header,
        fragment: Fragment,
        first: u8,
        piece: &[u8],
        seal: impl FnOnce(&[u8], &mut [u8]) -> ([u8; 8], [u8; 16]),
    ) -> Vec<u8> {
        // Only the first fragment names a payload (RFC 7383 §2.5).
        emit_sealed(header, Some(fragment), if fragment.number == 1 { first } else { 0 }, piece, seal)
    }

    /// The octets of a message as they would be if nothing in it were encrypted or in fragments (RFC 9242 §3.3.2): `datagram` is
    /// the message or its first fragment, `chain` what its SK payload held.
    #[must_use]
    pub fn in_clear(view: ProtectedView, datagram: &[u8], chain: &[u8]) -> Vec<u8> {
        let numbers_len = if view.fragment.is_some() { FRAGMENT_HEADER_LEN } else { 0 };
        let prefix = datagram.get(..view.aad_len - numbers_len).unwrap_or_default();
        let mut out = [prefix, chain].concat();
        if view.fragment.is_some() && prefix.len() == HEADER_LEN + GENERIC_HEADER_LEN {
            fill_first_payload(&mut out, PayloadType::Encrypted.value());
        }
        if let Some(start) = prefix.len().checked_sub(GENERIC_HEADER_LEN) {
            fill_length(&mut out, start, 2);
            fill_message_length(&mut out);
        }
        out
    }

    /// Opens the SK or SKF payload of `datagram`, which `view` was parsed from. `open(iv, aad, text, icv)` decrypts `text` in place
    /// and says whether the ICV holds. The result is the inner chain, or a piece of it, still unparsed: its first payload type and
    /// octets.
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

impl ProtectedView {
    /// Where the payload lies that ends this datagram. Nothing follows it: its body ends where the datagram ends.
    fn of(datagram: &[u8], sealed: &SealedEnd<'_>) -> Result<Self, ParseError> {
        let fragment = sealed.is_fragment.then(|| Fragment::parse(sealed.body)).transpose()?;
        let before_iv = if sealed.is_fragment { FRAGMENT_HEADER_LEN } else { 0 };
        if sealed.body.len() < before_iv + MIN_SEALED_LEN {
            return Err(ParseError::Truncated("SK payload"));
        }
        Ok(Self { first_inner: sealed.first_inner, aad_len: datagram.len() - sealed.body.len() + before_iv, fragment })
    }
}

/// A message with SK, or with SKF if it is a fragment.
fn emit_sealed(
    header: &Header,
    fragment: Option<Fragment>,
    first: u8,
    text: &[u8],
    seal: impl FnOnce(&[u8], &mut [u8]) -> ([u8; 8], [u8; 16]),
) -> Vec<u8> {
    let kind = if fragment.is_some() { PayloadType::EncryptedFragment } else { PayloadType::Encrypted };
    let mut out = Vec::with_capacity(SKF_OVERHEAD + text.len());
    header.emit(kind.value(), &mut out);
    out.extend_from_slice(&[first, 0, 0, 0]);
    if let Some(Fragment { number, total }) = fragment {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&total.to_be_bytes());
    }
    let aad_len = out.len();
    out.extend_from_slice(&[0; IV_LEN]);
    out.extend_from_slice(text);
    // An AEAD needs no alignment (RFC 5282 §3): no padding, and a pad length that says so.
    out.push(0);
    let text_end = out.len();
    out.extend_from_slice(&[0; ICV_LEN]);
    fill_length(&mut out, HEADER_LEN, 2);
    fill_message_length(&mut out);

    let (aad, body) = out.split_at_mut(aad_len);
    let (iv, icv) = seal(aad, &mut body[IV_LEN..text_end - aad_len]);
    body[..IV_LEN].copy_from_slice(&iv);
    out[text_end..].copy_from_slice(&icv);
    out
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
