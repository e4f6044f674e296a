//! Notify payloads (RFC 7296 §3.10).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use super::cursor::Cursor;
use super::{ParseError, Protocol};

/// A notification.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// What about: none, IKE or ESP.
    pub protocol: Protocol,
    /// The SPI it is about; empty for most.
    pub spi: Bytes,
    /// Its type.
    pub kind: NotifyType,
    /// Its data.
    pub data: Bytes,
}

macro_rules! notify_types {
    ($($variant:ident = $value:literal, $name:literal;)*) => {
        /// Notify message types (IANA). Below 16384 they are errors (RFC 7296 §3.10.1).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[allow(missing_docs, reason = "the registry's own names")]
        pub enum NotifyType {
            $($variant,)*
            /// Any other number.
            Other(u16),
        }

        impl NotifyType {
            /// The registry's number.
            #[must_use]
            pub const fn value(self) -> u16 {
                match self { $(Self::$variant => $value,)* Self::Other(value) => value }
            }

            /// The type with that number.
            #[must_use]
            pub const fn from_value(value: u16) -> Self {
                match value { $($value => Self::$variant,)* other => Self::Other(other) }
            }

            /// The registry's name, such as NO_PROPOSAL_CHOSEN; the number of a type that we do not know.
            #[must_use]
            pub fn name(self) -> Cow<'static, str> {
                match self {
                    $(Self::$variant => Cow::Borrowed($name),)*
                    Self::Other(value) => Cow::Owned(format!("notify type {value}")),
                }
            }
        }
    };
}

notify_types! {
    UnsupportedCriticalPayload = 1, "UNSUPPORTED_CRITICAL_PAYLOAD";
    InvalidIkeSpi = 4, "INVALID_IKE_SPI";
    InvalidMajorVersion = 5, "INVALID_MAJOR_VERSION";
    InvalidSyntax = 7, "INVALID_SYNTAX";
    InvalidMessageId = 9, "INVALID_MESSAGE_ID";
    InvalidSpi = 11, "INVALID_SPI";
    NoProposalChosen = 14, "NO_PROPOSAL_CHOSEN";
    InvalidKePayload = 17, "INVALID_KE_PAYLOAD";
    AuthenticationFailed = 24, "AUTHENTICATION_FAILED";
    SinglePairRequired = 34, "SINGLE_PAIR_REQUIRED";
    NoAdditionalSas = 35, "NO_ADDITIONAL_SAS";
    InternalAddressFailure = 36, "INTERNAL_ADDRESS_FAILURE";
    FailedCpRequired = 37, "FAILED_CP_REQUIRED";
    TsUnacceptable = 38, "TS_UNACCEPTABLE";
    InvalidSelectors = 39, "INVALID_SELECTORS";
    UnacceptableAddresses = 40, "UNACCEPTABLE_ADDRESSES";
    UnexpectedNatDetected = 41, "UNEXPECTED_NAT_DETECTED";
    TemporaryFailure = 43, "TEMPORARY_FAILURE";
    ChildSaNotFound = 44, "CHILD_SA_NOT_FOUND";
    StateNotFound = 47, "STATE_NOT_FOUND";
    TsMaxQueue = 48, "TS_MAX_QUEUE";
    InitialContact = 16384, "INITIAL_CONTACT";
    SetWindowSize = 16385, "SET_WINDOW_SIZE";
    AdditionalTsPossible = 16386, "ADDITIONAL_TS_POSSIBLE";
    IpcompSupported = 16387, "IPCOMP_SUPPORTED";
    NatDetectionSourceIp = 16388, "NAT_DETECTION_SOURCE_IP";
    NatDetectionDestinationIp = 16389, "NAT_DETECTION_DESTINATION_IP";
    Cookie = 16390, "COOKIE";
    UseTransportMode = 16391, "USE_TRANSPORT_MODE";
    HttpCertLookupSupported = 16392, "HTTP_CERT_LOOKUP_SUPPORTED";
    RekeySa = 16393, "REKEY_SA";
    EspTfcPaddingNotSupported = 16394, "ESP_TFC_PADDING_NOT_SUPPORTED";
    NonFirstFragmentsAlso = 16395, "NON_FIRST_FRAGMENTS_ALSO";
    MobikeSupported = 16396, "MOBIKE_SUPPORTED";
    AdditionalIp4Address = 16397, "ADDITIONAL_IP4_ADDRESS";
    AdditionalIp6Address = 16398, "ADDITIONAL_IP6_ADDRESS";
    NoAdditionalAddresses = 16399, "NO_ADDITIONAL_ADDRESSES";
    UpdateSaAddresses = 16400, "UPDATE_SA_ADDRESSES";
    Cookie2 = 16401, "COOKIE2";
    NoNatsAllowed = 16402, "NO_NATS_ALLOWED";
    Redirect = 16407, "REDIRECT";
    RedirectSupported = 16406, "REDIRECT_SUPPORTED";
    ChildlessIkev2Supported = 16418, "CHILDLESS_IKEV2_SUPPORTED";
    Ikev2FragmentationSupported = 16430, "IKEV2_FRAGMENTATION_SUPPORTED";
    SignatureHashAlgorithms = 16431, "SIGNATURE_HASH_ALGORITHMS";
    IntermediateExchangeSupported = 16438, "INTERMEDIATE_EXCHANGE_SUPPORTED";
    AdditionalKeyExchange = 16441, "ADDITIONAL_KEY_EXCHANGE";
    SaResourceInfo = 16444, "SA_RESOURCE_INFO";
    IkeSaInitFullTranscriptAuth = 16447, "IKE_SA_INIT_FULL_TRANSCRIPT_AUTH";
}

impl NotifyType {
    /// Whether it reports an error.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.value() < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Notify {
    /// A notification about no SA in particular.
    #[must_use]
    pub fn new(kind: NotifyType, data: impl Into<Bytes>) -> Self {
        Self { protocol: Protocol::None, spi: Bytes::new(), kind, data: data.into() }
    }

    /// Which SPI a notify needs depends on its type: whoever handles that type checks it.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new(body, "Notify payload");
        let protocol = Protocol::from_value(cursor.u8()?);
        let spi_len = cursor.u8()?;
        let kind = NotifyType::from_value(cursor.u16()?);
        let spi = Bytes::copy_from_slice(cursor.take(usize::from(spi_len))?);
        Ok(Self { protocol, spi, kind, data: Bytes::copy_from_slice(cursor.rest()) })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        let spi_len = u8::try_from(self.spi.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[self.protocol.value(), spi_len]);
        out.extend_from_slice(&self.kind.value().to_be_bytes());
        out.extend_from_slice(&self.spi[..usize::from(spi_len)]);
        out.extend_from_slice(&self.data);
    }
}
