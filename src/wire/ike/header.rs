//! The IKE header (RFC 7296 §3.1).

/// Octets of the header.
pub const HEADER_LEN: usize = 28;

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
    /// Any other number.
    Other(u8),
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
