//! Chains of payloads: the generic payload header (RFC 7296 §3.2).

use super::{Payload, PayloadType};

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

/// Reads a whole chain, such as what an SK payload held.
///
/// # Errors
/// If any payload is malformed, or octets are left over.
pub fn parse_chain(first: u8, octets: &[u8]) -> Result<Vec<Payload>, ParseError> {
    todo!("{first} {}", octets.len())
}

/// Appends the chain and returns the type of its first payload (0 if there is none).
pub fn emit_chain(payloads: &[Payload], out: &mut Vec<u8>) -> u8 {
    todo!("{} {} {:?}", payloads.len(), out.len(), PayloadType::Nonce)
}
