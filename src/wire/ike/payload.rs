//! Payload bodies (RFC 7296 §3.2 to §3.15).

use bytes::Bytes;

use super::{Notify, Proposal};
use crate::model::{Spi, TrafficSelector};

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

/// KE (§3.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyExchangePayload {
    /// Transform ID of the key exchange method; unknown ones included.
    pub group: u16,
    /// The public value.
    pub value: Bytes,
}

/// IDi or IDr (§3.5): kept as it came, since AUTH covers these octets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identification {
    /// The whole payload body: type, three reserved octets, data. At least four octets.
    pub body: Bytes,
}

/// CERT (§3.6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// 15 is a raw public key as SubjectPublicKeyInfo (RFC 7670).
    pub encoding: u8,
    /// The data.
    pub data: Bytes,
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

/// AUTH (§3.8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Method.
    pub method: AuthMethod,
    /// Data.
    pub data: Bytes,
}

/// D (§3.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delete {
    /// The IKE SA that carries the message.
    Ike,
    /// ESP SAs, by the SPIs that their sender receives on. Reserved SPIs are left out by the parser.
    Esp(Vec<Spi>),
}
