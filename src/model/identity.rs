//! Who a peer is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A configured peer's place in the agent's tables. It stays the same as long as the peer stays configured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerIndex(pub u32);

/// An IKE identity (RFC 7296 §3.5): the types that we speak.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerId {
    /// ID_FQDN (2): compared octet by octet, never resolved.
    Fqdn(String),
    /// ID_DER_ASN1_DN (9), of a peer with a certificate: the text of a distinguished name, `C=CH, O=Example, CN=beta`.
    #[cfg(feature = "x509")]
    Distinguished(String),
    /// ID_IPV4_ADDR (1).
    Ipv4(Ipv4Addr),
    /// ID_IPV6_ADDR (5).
    Ipv6(Ipv6Addr),
}

impl PeerId {
    /// An address literal becomes an identity of that type, anything else a name; a distinguished name, which no host name can be taken
    /// for, where there are certificates.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match text.parse() {
            Ok(IpAddr::V4(address)) => Self::Ipv4(address),
            Ok(IpAddr::V6(address)) => Self::Ipv6(address),
            #[cfg(feature = "x509")]
            Err(_) if text.contains('=') => Self::Distinguished(text.to_owned()),
            Err(_) => Self::Fqdn(text.to_owned()),
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A peer chose these octets: nothing in them may steer a terminal.
            Self::Fqdn(name) => write!(f, "{}", name.escape_debug()),
            #[cfg(feature = "x509")]
            Self::Distinguished(name) => write!(f, "{}", name.escape_debug()),
            Self::Ipv4(address) => write!(f, "{address}"),
            Self::Ipv6(address) => write!(f, "{address}"),
        }
    }
}
