//! Chains of payloads: the generic payload header (RFC 7296 §3.2).
//!
//! ```text
//! | Next Payload | C | RESERVED | Payload Length (with these four octets) | body ...
//! ```
//!
//! One walker reads both kinds of chain: the one in clear, which may end in an SK payload, and the one inside SK, which may not.

use super::cursor::{Cursor, fill_length};
use super::{HEADER_LEN, Payload, PayloadType};

/// Why a message does not parse. The display names the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Shorter than what it announces.
    #[error("{0} is truncated")]
    Truncated(&'static str),
    /// A length, count or number that cannot be.
    #[error("{0} is invalid")]
    Invalid(&'static str),
    /// Another major version than 2.
    #[error("major version {0} is not spoken")]
    Version(u8),
    /// More payloads than [`MAX_PAYLOADS`].
    #[error("too many payloads")]
    TooMany,
}

/// Payloads per message; strongSwan sends fewer than 30 and libreswan drops more (our choice).
pub const MAX_PAYLOADS: usize = 64;

/// Octets of the generic payload header.
pub(super) const GENERIC_HEADER_LEN: usize = 4;

/// The Next Payload value that ends a chain.
const NO_NEXT_PAYLOAD: u8 = 0;

/// C of the generic payload header; the seven bits beside it are reserved.
const CRITICAL: u8 = 0x80;

/// The payload types that a message holds at most once (RFC 7296 §1.2, §1.3: each exchange lists one of each).
const SINGLE: [PayloadType; 8] = [
    PayloadType::SecurityAssociation,
    PayloadType::KeyExchange,
    PayloadType::IdInitiator,
    PayloadType::IdResponder,
    PayloadType::Auth,
    PayloadType::Nonce,
    PayloadType::TsInitiator,
    PayloadType::TsResponder,
];

/// An SK or SKF payload that ended a chain in clear.
pub(super) struct SealedEnd<'a> {
    /// Its Next Payload field: the type of the first payload inside.
    pub(super) first_inner: u8,
    /// Its body, at the end of the chain.
    pub(super) body: &'a [u8],
    /// Whether it is SKF, which holds a fragment (RFC 7383 §2.5).
    pub(super) is_fragment: bool,
}

/// Reads a whole chain, such as what an SK payload held.
///
/// # Errors
/// If any payload is malformed, or octets are left over.
pub fn parse_chain(first: u8, octets: &[u8]) -> Result<Vec<Payload>, ParseError> {
    match walk(first, octets)? {
        (payloads, None) => Ok(payloads),
        (_, Some(_)) => Err(ParseError::Invalid("SK payload inside SK")),
    }
}

/// Reads a chain up to its end or up to an SK or SKF payload, which nothing may follow (§3.14).
pub(super) fn walk(first: u8, octets: &[u8]) -> Result<(Vec<Payload>, Option<SealedEnd<'_>>), ParseError> {
    let mut cursor = Cursor::new(octets, "payload chain");
    let mut payloads = Vec::new();
    let mut seen = [false; SINGLE.len()];
    let mut kind = first;
    while kind != NO_NEXT_PAYLOAD {
        if payloads.len() == MAX_PAYLOADS {
            return Err(ParseError::TooMany);
        }
        let mut payload = cursor.counted(2, GENERIC_HEADER_LEN, "payload")?;
        let [next, flags, _, _] = payload.array()?;
        let body = payload.rest();
        match PayloadType::from_value(kind) {
            Some(sealed @ (PayloadType::Encrypted | PayloadType::EncryptedFragment)) if cursor.is_empty() => {
                let is_fragment = sealed == PayloadType::EncryptedFragment;
                return Ok((payloads, Some(SealedEnd { first_inner: next, body, is_fragment })));
            }
            Some(PayloadType::Encrypted | PayloadType::EncryptedFragment) => {
                return Err(ParseError::Invalid("payload behind SK"));
            }
            Some(known) => {
                if let Some(index) = SINGLE.iter().position(|&single| single == known)
                    && std::mem::replace(&mut seen[index], true)
                {
                    return Err(ParseError::Invalid("second payload of a type that comes once"));
                }
                // C is ignored on payloads that we know (§3.2).
                payloads.push(Payload::parse_body(known, body)?);
            }
            None => payloads.push(Payload::Unknown { kind, critical: flags & CRITICAL != 0 }),
        }
        kind = next;
    }
    cursor.end()?;
    Ok((payloads, None))
}

/// Appends the chain and returns the type of its first payload (0 if there is none).
pub fn emit_chain(payloads: &[Payload], out: &mut Vec<u8>) -> u8 {
    for (index, payload) in payloads.iter().enumerate() {
        let next = payloads.get(index + 1).map_or(NO_NEXT_PAYLOAD, Payload::kind);
        let critical = matches!(payload, Payload::Unknown { critical: true, .. });
        let start = out.len();
        out.extend_from_slice(&[next, if critical { CRITICAL } else { 0 }, 0, 0]);
        payload.emit_body(out);
        fill_length(out, start, 2);
    }
    payloads.first().map_or(NO_NEXT_PAYLOAD, Payload::kind)
}

/// Where the chain in clear begins.
pub(super) fn clear_chain(datagram: &[u8]) -> &[u8] {
    datagram.get(HEADER_LEN..).unwrap_or_default()
}
