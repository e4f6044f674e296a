//! Payload bodies (RFC 7296 §3.2 to §3.15).

use bytes::Bytes;

use super::cursor::Cursor;
use super::{Notify, NotifyType, ParseError, Proposal, proposal, selectors};
use crate::model::{Spi, TrafficSelector};

/// Octets of a nonce that a peer may send (§2.10, §3.9).
const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=256;

/// Type and reserved octets in front of the data of an ID payload (§3.5).
const ID_HEADER_LEN: usize = 4;

/// Octets of an ESP SPI.
pub(super) const ESP_SPI_LEN: usize = 4;

/// Payload types (IANA).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum PayloadType {
    /// SA
    SecurityAssociation = 33,
    /// KE
    KeyExchange = 34,
    /// IDi
    IdInitiator = 35,
    /// IDr
    IdResponder = 36,
    /// CERT
    Certificate = 37,
    /// CERTREQ
    CertificateRequest = 38,
    /// AUTH
    Auth = 39,
    /// Ni, Nr
    Nonce = 40,
    /// N
    Notify = 41,
    /// D
    Delete = 42,
    /// V
    VendorId = 43,
    /// TSi
    TsInitiator = 44,
    /// TSr
    TsResponder = 45,
    /// SK
    Encrypted = 46,
    /// SKF (RFC 7383)
    EncryptedFragment = 53,
}

impl PayloadType {
    const ALL: [PayloadType; 15] = [
        Self::SecurityAssociation,
        Self::KeyExchange,
        Self::IdInitiator,
        Self::IdResponder,
        Self::Certificate,
        Self::CertificateRequest,
        Self::Auth,
        Self::Nonce,
        Self::Notify,
        Self::Delete,
        Self::VendorId,
        Self::TsInitiator,
        Self::TsResponder,
        Self::Encrypted,
        Self::EncryptedFragment,
    ];

    /// The registry's number.
    #[must_use]
    pub const fn value(self) -> u8 {
        self as u8
    }

    /// The type with that number, if we know it.
    #[must_use]
    pub fn from_value(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.value() == value)
    }
}

/// Protocol IDs of proposals, notifies and deletes (RFC 7296 §3.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// 0, where no SPI is meant.
    None,
    /// 1
    Ike,
    /// 3
    Esp,
    /// Any other number.
    Other(u8),
}

impl Protocol {
    /// The registry's number.
    #[must_use]
    pub const fn value(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Ike => 1,
            Self::Esp => 3,
            Self::Other(value) => value,
        }
    }

    /// The protocol with that number.
    #[must_use]
    pub const fn from_value(value: u8) -> Self {
        match value {
            0 => Self::None,
            1 => Self::Ike,
            3 => Self::Esp,
            other => Self::Other(other),
        }
    }
}

/// One payload. SK and SKF are not payloads here but the shape of the message: see [`super::Message`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// SA (§3.3)
    SecurityAssociation(Vec<Proposal>),
    /// KE (§3.4)
    KeyExchange(KeyExchangePayload),
    /// IDi (§3.5)
    IdInitiator(Identification),
    /// IDr (§3.5)
    IdResponder(Identification),
    /// CERT (§3.6)
    Certificate(Certificate),
    /// CERTREQ (§3.7): the body is not looked into.
    CertificateRequest(Bytes),
    /// AUTH (§3.8)
    Auth(Auth),
    /// Ni, Nr (§3.9): 16 to 256 octets.
    Nonce(Bytes),
    /// N (§3.10)
    Notify(Notify),
    /// D (§3.11)
    Delete(Delete),
    /// V (§3.12)
    VendorId(Bytes),
    /// TSi (§3.13)
    TsInitiator(Vec<TrafficSelector>),
    /// TSr (§3.13)
    TsResponder(Vec<TrafficSelector>),
    /// A type that we do not know.
    Unknown {
        /// Its number.
        kind: u8,
        /// Whether the sender insists that we understand it (§2.5).
        critical: bool,
    },
}

impl Payload {
    /// A notification that says all by its kind: no SPI, no data.
    #[must_use]
    pub const fn bare_notify(kind: NotifyType) -> Self {
        Self::Notify(Notify { protocol: Protocol::None, spi: Bytes::new(), kind, data: Bytes::new() })
    }

    /// The number of its type, as the Next Payload field before it has it.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::SecurityAssociation(_) => PayloadType::SecurityAssociation.value(),
            Self::KeyExchange(_) => PayloadType::KeyExchange.value(),
            Self::IdInitiator(_) => PayloadType::IdInitiator.value(),
            Self::IdResponder(_) => PayloadType::IdResponder.value(),
            Self::Certificate(_) => PayloadType::Certificate.value(),
            Self::CertificateRequest(_) => PayloadType::CertificateRequest.value(),
            Self::Auth(_) => PayloadType::Auth.value(),
            Self::Nonce(_) => PayloadType::Nonce.value(),
            Self::Notify(_) => PayloadType::Notify.value(),
            Self::Delete(_) => PayloadType::Delete.value(),
            Self::VendorId(_) => PayloadType::VendorId.value(),
            Self::TsInitiator(_) => PayloadType::TsInitiator.value(),
            Self::TsResponder(_) => PayloadType::TsResponder.value(),
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Reads the body of a payload of a type that we know. SK and SKF have no body of payloads: the chain handles them.
    pub(super) fn parse_body(kind: PayloadType, body: &[u8]) -> Result<Self, ParseError> {
        Ok(match kind {
            PayloadType::SecurityAssociation => Self::SecurityAssociation(proposal::parse_proposals(body)?),
            PayloadType::KeyExchange => Self::KeyExchange(KeyExchangePayload::parse(body)?),
            PayloadType::IdInitiator => Self::IdInitiator(Identification::parse(body)?),
            PayloadType::IdResponder => Self::IdResponder(Identification::parse(body)?),
            PayloadType::Certificate => Self::Certificate(Certificate::parse(body)?),
            PayloadType::CertificateRequest => Self::CertificateRequest(Bytes::copy_from_slice(body)),
            PayloadType::Auth => Self::Auth(Auth::parse(body)?),
            PayloadType::Nonce if NONCE_LEN.contains(&body.len()) => Self::Nonce(Bytes::copy_from_slice(body)),
            PayloadType::Nonce => return Err(ParseError::Invalid("length of the nonce")),
            PayloadType::Notify => Self::Notify(Notify::parse(body)?),
            PayloadType::Delete => Self::Delete(Delete::parse(body)?),
            PayloadType::VendorId => Self::VendorId(Bytes::copy_from_slice(body)),
            PayloadType::TsInitiator => Self::TsInitiator(selectors::parse_selectors(body)?),
            PayloadType::TsResponder => Self::TsResponder(selectors::parse_selectors(body)?),
            PayloadType::Encrypted | PayloadType::EncryptedFragment => {
                return Err(ParseError::Invalid("place of the SK payload"));
            }
        })
    }

    /// Appends the body. Unknown payloads have none: it was not kept.
    pub(super) fn emit_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::SecurityAssociation(proposals) => proposal::emit_proposals(proposals, out),
            Self::KeyExchange(ke) => {
                out.extend_from_slice(&ke.group.to_be_bytes());
                out.extend_from_slice(&[0; 2]);
                out.extend_from_slice(&ke.value);
            }
            Self::IdInitiator(id) | Self::IdResponder(id) => out.extend_from_slice(&id.body),
            Self::Certificate(certificate) => {
                out.push(certificate.encoding);
                out.extend_from_slice(&certificate.data);
            }
            Self::Auth(auth) => {
                out.extend_from_slice(&[auth.method.value(), 0, 0, 0]);
                out.extend_from_slice(&auth.data);
            }
            Self::CertificateRequest(body) | Self::Nonce(body) | Self::VendorId(body) => out.extend_from_slice(body),
            Self::Notify(notify) => notify.emit(out),
            Self::Delete(delete) => delete.emit(out),
            Self::TsInitiator(selectors) | Self::TsResponder(selectors) => selectors::emit_selectors(selectors, out),
            Self::Unknown { .. } => {}
        }
    }
}

/// KE (§3.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyExchangePayload {
    /// Transform ID of the key exchange method; unknown ones included.
    pub group: u16,
    /// The public value.
    pub value: Bytes,
}

impl KeyExchangePayload {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "KE payload");
        let (group, _reserved) = (cursor.u16()?, cursor.u16()?);
        Ok(Self { group, value: Bytes::copy_from_slice(cursor.rest()) })
    }
}

/// IDi or IDr (§3.5): kept as it came, since AUTH covers these octets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identification {
    /// The whole payload body: type, three reserved octets, data. At least four octets.
    pub body: Bytes,
}

impl Identification {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        if body.len() < ID_HEADER_LEN {
            return Err(ParseError::Truncated("ID payload"));
        }
        Ok(Self { body: Bytes::copy_from_slice(body) })
    }
}

/// CERT (§3.6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// 15 is a raw public key as SubjectPublicKeyInfo (RFC 7670).
    pub encoding: u8,
    /// The data.
    pub data: Bytes,
}

impl Certificate {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "CERT payload");
        Ok(Self { encoding: cursor.u8()?, data: Bytes::copy_from_slice(cursor.rest()) })
    }
}

/// Authentication methods (IANA).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AuthMethod {
    /// 2: shared key message integrity code.
    SharedKey,
    /// 14: digital signature (RFC 7427).
    DigitalSignature,
    /// Any other number.
    Other(u8),
}

impl AuthMethod {
    /// The registry's number.
    #[must_use]
    pub const fn value(self) -> u8 {
        match self {
            Self::SharedKey => 2,
            Self::DigitalSignature => 14,
            Self::Other(value) => value,
        }
    }

    /// The method with that number.
    #[must_use]
    pub const fn from_value(value: u8) -> Self {
        match value {
            2 => Self::SharedKey,
            14 => Self::DigitalSignature,
            other => Self::Other(other),
        }
    }
}

/// AUTH (§3.8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Method.
    pub method: AuthMethod,
    /// Data.
    pub data: Bytes,
}

impl Auth {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "AUTH payload");
        let [method, _, _, _] = cursor.array()?;
        Ok(Self { method: AuthMethod::from_value(method), data: Bytes::copy_from_slice(cursor.rest()) })
    }
}

/// D (§3.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delete {
    /// The IKE SA that carries the message.
    Ike,
    /// ESP SAs, by the SPIs that their sender receives on. Reserved SPIs are left out by the parser.
    Esp(Vec<Spi>),
}

impl Delete {
    fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "Delete payload");
        let (protocol, spi_len, count) = (cursor.u8()?, cursor.u8()?, cursor.u16()?);
        match (Protocol::from_value(protocol), usize::from(spi_len), usize::from(count)) {
            // The IKE SA is named by the message's header (§3.11).
            (Protocol::Ike, 0, 0) => {
                cursor.end()?;
                Ok(Self::Ike)
            }
            (Protocol::Esp, ESP_SPI_LEN, count) => {
                let mut spis = Cursor::new(cursor.take(count * ESP_SPI_LEN)?, "Delete payload");
                cursor.end()?;
                let mut named = Vec::with_capacity(count);
                while !spis.is_empty() {
                    named.extend(Spi::new(spis.u32()?));
                }
                Ok(Self::Esp(named))
            }
            _ => Err(ParseError::Invalid("protocol, SPI size or count of a Delete payload")),
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ike => out.extend_from_slice(&[Protocol::Ike.value(), 0, 0, 0]),
            Self::Esp(spis) => {
                out.extend_from_slice(&[Protocol::Esp.value(), ESP_SPI_LEN as u8]);
                out.extend_from_slice(&u16::try_from(spis.len()).unwrap_or(u16::MAX).to_be_bytes());
                out.extend(spis.iter().flat_map(|spi| spi.value().to_be_bytes()));
            }
        }
    }
}
