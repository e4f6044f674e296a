//! The IKE header (RFC 7296 §3.1).

use std::fmt;

use super::ParseError;
use super::cursor::Cursor;

/// Octets of the header.
pub const HEADER_LEN: usize = 28;

/// Where the Length field stands; it is filled in once the message is whole.
const LENGTH_OFFSET: usize = 24;

/// The version octet of everything that we send: major 2, minor 0.
const VERSION: u8 = 0x20;

/// Exchange types (IANA). Unknown ones stay what they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExchangeType {
    /// 34
    IkeSaInit,
    /// 35
    IkeAuth,
    /// 36
    CreateChildSa,
    /// 37
    Informational,
    /// 43 (RFC 9242)
    IkeIntermediate,
    /// 44 (RFC 9370)
    IkeFollowupKe,
    /// Any other number.
    Other(u8),
}

impl ExchangeType {
    /// The registry's number.
    #[must_use]
    pub const fn value(self) -> u8 {
        match self {
            Self::IkeSaInit => 34,
            Self::IkeAuth => 35,
            Self::CreateChildSa => 36,
            Self::Informational => 37,
            Self::IkeIntermediate => 43,
            Self::IkeFollowupKe => 44,
            Self::Other(value) => value,
        }
    }

    /// The type with that number.
    #[must_use]
    pub const fn from_value(value: u8) -> Self {
        match value {
            34 => Self::IkeSaInit,
            35 => Self::IkeAuth,
            36 => Self::CreateChildSa,
            37 => Self::Informational,
            43 => Self::IkeIntermediate,
            44 => Self::IkeFollowupKe,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IkeSaInit => write!(f, "IKE_SA_INIT"),
            Self::IkeAuth => write!(f, "IKE_AUTH"),
            Self::CreateChildSa => write!(f, "CREATE_CHILD_SA"),
            Self::Informational => write!(f, "INFORMATIONAL"),
            Self::IkeIntermediate => write!(f, "IKE_INTERMEDIATE"),
            Self::IkeFollowupKe => write!(f, "IKE_FOLLOWUP_KE"),
            Self::Other(value) => write!(f, "exchange type {value}"),
        }
    }
}

/// The flags octet; reserved bits are ignored on receipt and sent as zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flags {
    /// I (0x08): sent by the original initiator of this IKE SA.
    pub initiator: bool,
    /// V (0x10): the sender could speak a higher major version.
    pub version: bool,
    /// R (0x20): a response.
    pub response: bool,
}

impl Flags {
    const INITIATOR: u8 = 0x08;
    const VERSION: u8 = 0x10;
    const RESPONSE: u8 = 0x20;

    const fn from_octet(octet: u8) -> Self {
        Self {
            initiator: octet & Self::INITIATOR != 0,
            version: octet & Self::VERSION != 0,
            response: octet & Self::RESPONSE != 0,
        }
    }

    const fn octet(self) -> u8 {
        (if self.initiator { Self::INITIATOR } else { 0 })
            | (if self.version { Self::VERSION } else { 0 })
            | (if self.response { Self::RESPONSE } else { 0 })
    }
}

/// The header without the Length and Next Payload fields, which follow from the rest of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The initiator's SPI as it stands on the wire; zero is malformed.
    pub initiator_spi: u64,
    /// The responder's SPI; zero in the first IKE_SA_INIT request.
    pub responder_spi: u64,
    /// Exchange.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID.
    pub message_id: u32,
}

impl Header {
    /// Reads the header of a message that fills the datagram; also the type of its first payload.
    ///
    /// # Errors
    /// If the datagram is shorter than a header or not as long as the Length field says, the major version is not 2, or the
    /// initiator's SPI is zero.
    pub fn parse(datagram: &[u8]) -> Result<(Self, u8), ParseError> {
        let mut cursor = Cursor::new(datagram, "IKE header");
        let (initiator_spi, responder_spi) = (cursor.u64()?, cursor.u64()?);
        let first = cursor.u8()?;
        let version = cursor.u8()?;
        let exchange = ExchangeType::from_value(cursor.u8()?);
        let flags = Flags::from_octet(cursor.u8()?);
        let (message_id, length) = (cursor.u32()?, cursor.u32()?);
        // The minor version is ignored (§2.5).
        if version >> 4 != VERSION >> 4 {
            return Err(ParseError::Version(version >> 4));
        }
        if usize::try_from(length) != Ok(datagram.len()) {
            return Err(ParseError::Invalid("Length field of the IKE header"));
        }
        if initiator_spi == 0 {
            return Err(ParseError::Invalid("initiator SPI of zero"));
        }
        Ok((Self { initiator_spi, responder_spi, exchange, flags, message_id }, first))
    }

    /// Appends the header. Its Length field is zero until [`fill_message_length`] is called on the whole message.
    pub(super) fn emit(&self, first: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.initiator_spi.to_be_bytes());
        out.extend_from_slice(&self.responder_spi.to_be_bytes());
        out.extend_from_slice(&[first, VERSION, self.exchange.value(), self.flags.octet()]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
    }
}

/// Sets the Length field of a whole message.
pub(super) fn fill_message_length(message: &mut [u8]) {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[LENGTH_OFFSET..HEADER_LEN].copy_from_slice(&length.to_be_bytes());
}

/// Sets the Next Payload field of a message whose first payload was not known when the header was emitted.
pub(super) fn fill_first_payload(message: &mut [u8], first: u8) {
    message[16] = first;
}
