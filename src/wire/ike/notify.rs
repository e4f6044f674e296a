//! Notify payloads (RFC 7296 §3.10).

use bytes::Bytes;

use super::Protocol;

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
    ($($variant:ident = $value:literal;)*) => {
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
        }
    };
}

notify_types! {
    UnsupportedCriticalPayload = 1;
    InvalidIkeSpi = 4;
    InvalidMajorVersion = 5;
    InvalidSyntax = 7;
    InvalidMessageId = 9;
    InvalidSpi = 11;
    NoProposalChosen = 14;
    InvalidKePayload = 17;
    AuthenticationFailed = 24;
    SinglePairRequired = 34;
    NoAdditionalSas = 35;
    InternalAddressFailure = 36;
    FailedCpRequired = 37;
    TsUnacceptable = 38;
    InvalidSelectors = 39;
    TemporaryFailure = 43;
    ChildSaNotFound = 44;
    InitialContact = 16384;
    SetWindowSize = 16385;
    AdditionalTsPossible = 16386;
    IpcompSupported = 16387;
    NatDetectionSourceIp = 16388;
    NatDetectionDestinationIp = 16389;
    Cookie = 16390;
    UseTransportMode = 16391;
    HttpCertLookupSupported = 16392;
    RekeySa = 16393;
    EspTfcPaddingNotSupported = 16394;
    NonFirstFragmentsAlso = 16395;
    MobikeSupported = 16396;
    Redirect = 16407;
    RedirectSupported = 16406;
    ChildlessIkev2Supported = 16418;
    Ikev2FragmentationSupported = 16430;
    SignatureHashAlgorithms = 16431;
}

impl NotifyType {
    /// Whether it reports an error.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.value() < 16384
    }
}

impl Notify {
    /// A notification about no SA in particular.
    #[must_use]
    pub fn new(kind: NotifyType, data: impl Into<Bytes>) -> Self {
        Self { protocol: Protocol::None, spi: Bytes::new(), kind, data: data.into() }
    }
}
