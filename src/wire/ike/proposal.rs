//! Proposals and transforms (RFC 7296 §3.3).
//!
//! ```text
//! SA payload
//!  +- proposal: | more = 2 | 0 | length | number | protocol | SPI size | transforms | SPI ...
//!  |   +- transform: | more = 3 | 0 | length | type | 0 | ID | attributes ...
//!  |   +- transform: | last = 0 | ...
//!  +- proposal: | last = 0 | ...
//! ```
//!
//! What is malformed is refused here; what is merely not ours (other protocols, transform types, attributes) is kept, so that
//! the rest of the payload can still be chosen from.

use bytes::Bytes;

use super::cursor::{Cursor, fill_length};
use super::payload::ESP_SPI_LEN;
use super::{ParseError, Protocol};

/// Proposals per SA payload: peers send a handful (our choice; the format allows 255).
pub const MAX_PROPOSALS: usize = 64;

/// Transforms per proposal: one for each algorithm in the registry fits (our choice; the format allows 255).
pub const MAX_TRANSFORMS: usize = 128;

/// Octets of a proposal before its SPI.
const PROPOSAL_HEADER_LEN: usize = 8;

/// Octets of a transform before its attributes.
const TRANSFORM_HEADER_LEN: usize = 8;

/// Octets of an IKE SPI, in the rekey of an IKE SA.
const IKE_SPI_LEN: usize = 8;

/// Last Substruc: no structure of this kind follows.
const LAST: u8 = 0;

/// Last Substruc of a proposal that another one follows.
const MORE_PROPOSALS: u8 = 2;

/// Last Substruc of a transform that another one follows.
const MORE_TRANSFORMS: u8 = 3;

/// AF, the top bit of an attribute's type: the two octets behind it are the value, not its length (§3.3.5).
const ATTRIBUTE_IS_SHORT: u16 = 0x8000;

/// Attribute type: Key Length, always in the short form.
const KEY_LENGTH: u16 = 14 | ATTRIBUTE_IS_SHORT;

/// A reserved attribute, which nobody knows: it keeps an unusable transform unusable when that is emitted.
const RESERVED_ATTRIBUTE: u16 = ATTRIBUTE_IS_SHORT;

/// One proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Its number, 1 to 255.
    pub number: u8,
    /// IKE or ESP.
    pub protocol: Protocol,
    /// The sender's SPI: empty in IKE_SA_INIT, 8 octets in an IKE rekey, 4 for ESP.
    pub spi: Bytes,
    /// Its transforms in the order sent.
    pub transforms: Vec<Transform>,
}

/// Transform types (IANA).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TransformType {
    /// 1: ENCR
    Encryption,
    /// 2: PRF
    Prf,
    /// 3: INTEG
    Integrity,
    /// 4: KE
    KeyExchange,
    /// 5: ESN
    SequenceNumbers,
    /// 6 to 12: ADDKE1 to ADDKE7 (RFC 9370), by their own numbers from 1
    AdditionalKeyExchange(u8),
    /// Any other number.
    Other(u8),
}

impl TransformType {
    /// The registry's number.
    #[must_use]
    pub const fn value(self) -> u8 {
        match self {
            Self::Encryption => 1,
            Self::Prf => 2,
            Self::Integrity => 3,
            Self::KeyExchange => 4,
            Self::SequenceNumbers => 5,
            Self::AdditionalKeyExchange(number) => 5 + number,
            Self::Other(value) => value,
        }
    }

    /// The type with that number.
    #[must_use]
    pub const fn from_value(value: u8) -> Self {
        match value {
            1 => Self::Encryption,
            2 => Self::Prf,
            3 => Self::Integrity,
            4 => Self::KeyExchange,
            5 => Self::SequenceNumbers,
            6..=12 => Self::AdditionalKeyExchange(value - 5),
            other => Self::Other(other),
        }
    }
}

/// One transform.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transform {
    /// Type.
    pub kind: TransformType,
    /// Transform ID within its type.
    pub id: u16,
    /// Key Length attribute in bits.
    pub key_length: Option<u16>,
    /// Whether it carried an attribute that we do not know, or one twice: then it cannot be chosen.
    pub unusable: bool,
}

/// Reads the body of an SA payload.
pub(super) fn parse_proposals(body: &[u8]) -> Result<Vec<Proposal>, ParseError> {
    let mut cursor = Cursor::new(body, "SA payload");
    let mut proposals: Vec<Proposal> = Vec::new();
    loop {
        if proposals.len() == MAX_PROPOSALS {
            return Err(ParseError::Invalid("number of proposals"));
        }
        let (last_substruc, proposal) = parse_proposal(cursor.counted(2, PROPOSAL_HEADER_LEN, "proposal")?)?;
        // A request counts from 1, and an answer repeats the number that it chose (§3.3.1).
        if proposal.number <= proposals.last().map_or(0, |before| before.number) {
            return Err(ParseError::Invalid("proposal number"));
        }
        proposals.push(proposal);
        match (last_substruc, cursor.is_empty()) {
            (LAST, true) => return Ok(proposals),
            (MORE_PROPOSALS, false) => {}
            _ => return Err(ParseError::Invalid("Last Substruc of a proposal")),
        }
    }
}

/// Reads one proposal; also its Last Substruc field.
fn parse_proposal(mut cursor: Cursor<'_>) -> Result<(u8, Proposal), ParseError> {
    let [last_substruc, _, _, _] = cursor.array()?;
    let [number, protocol, spi_len, transform_count] = cursor.array()?;
    let protocol = Protocol::from_value(protocol);
    let spi = Bytes::copy_from_slice(cursor.take(usize::from(spi_len))?);
    let fits = match protocol {
        Protocol::Ike => spi.is_empty() || spi.len() == IKE_SPI_LEN,
        Protocol::Esp => spi.len() == ESP_SPI_LEN,
        // Skipped as a whole, whatever its SPIs look like.
        Protocol::None | Protocol::Other(_) => true,
    };
    if !fits {
        return Err(ParseError::Invalid("SPI size of a proposal"));
    }
    if usize::from(transform_count) > MAX_TRANSFORMS {
        return Err(ParseError::Invalid("number of transforms"));
    }
    let mut transforms = Vec::with_capacity(usize::from(transform_count));
    for left in (0..transform_count).rev() {
        let (last_substruc, transform) = parse_transform(cursor.counted(2, TRANSFORM_HEADER_LEN, "transform")?)?;
        if last_substruc != (if left == 0 { LAST } else { MORE_TRANSFORMS }) {
            return Err(ParseError::Invalid("Last Substruc of a transform"));
        }
        transforms.push(transform);
    }
    cursor.end()?;
    Ok((last_substruc, Proposal { number, protocol, spi, transforms }))
}

/// Reads one transform; also its Last Substruc field.
fn parse_transform(mut cursor: Cursor<'_>) -> Result<(u8, Transform), ParseError> {
    let [last_substruc, _, _, _] = cursor.array()?;
    let (kind, _reserved) = (TransformType::from_value(cursor.u8()?), cursor.u8()?);
    let mut transform = Transform { kind, id: cursor.u16()?, key_length: None, unusable: false };
    while !cursor.is_empty() {
        let (attribute, value) = (cursor.u16()?, cursor.u16()?);
        if attribute & ATTRIBUTE_IS_SHORT == 0 {
            cursor.take(usize::from(value))?;
        }
        if attribute == KEY_LENGTH && transform.key_length.is_none() {
            transform.key_length = Some(value);
        } else {
            transform.unusable = true;
        }
    }
    Ok((last_substruc, transform))
}

/// Appends the body of an SA payload.
pub(super) fn emit_proposals(proposals: &[Proposal], out: &mut Vec<u8>) {
    for (index, proposal) in proposals.iter().enumerate() {
        let start = out.len();
        let spi_len = u8::try_from(proposal.spi.len()).unwrap_or(u8::MAX);
        let transform_count = u8::try_from(proposal.transforms.len()).unwrap_or(u8::MAX);
        let last_substruc = if index + 1 == proposals.len() { LAST } else { MORE_PROPOSALS };
        out.extend_from_slice(&[last_substruc, 0, 0, 0]);
        out.extend_from_slice(&[proposal.number, proposal.protocol.value(), spi_len, transform_count]);
        out.extend_from_slice(&proposal.spi[..usize::from(spi_len)]);
        emit_transforms(&proposal.transforms[..usize::from(transform_count)], out);
        fill_length(out, start, 2);
    }
}

fn emit_transforms(transforms: &[Transform], out: &mut Vec<u8>) {
    for (index, transform) in transforms.iter().enumerate() {
        let start = out.len();
        let last_substruc = if index + 1 == transforms.len() { LAST } else { MORE_TRANSFORMS };
        out.extend_from_slice(&[last_substruc, 0, 0, 0, transform.kind.value(), 0]);
        out.extend_from_slice(&transform.id.to_be_bytes());
        let key_length = transform.key_length.map(|bits| (KEY_LENGTH, bits));
        let unusable = transform.unusable.then_some((RESERVED_ATTRIBUTE, 0));
        for (attribute, value) in key_length.into_iter().chain(unusable) {
            out.extend_from_slice(&attribute.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        fill_length(out, start, 2);
    }
}
