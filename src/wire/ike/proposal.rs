//! Proposals and transforms (RFC 7296 §3.3).

use bytes::Bytes;

use super::Protocol;

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
    /// Any other number.
    Other(u8),
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
