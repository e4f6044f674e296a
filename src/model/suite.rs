//! The algorithms that there are, with their IANA numbers and the names that configuration uses.

use std::fmt;

/// An AEAD with a 16-octet ICV (RFC 4106, 5282, 7634). All take a 4-octet salt and an 8-octet IV.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AeadAlgorithm {
    /// ENCR_AES_GCM_16 (20) with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_AES_GCM_16 (20) with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_CHACHA20_POLY1305 (28); carries no key length attribute (RFC 7634 §5).
    ChaCha20Poly1305,
}

impl AeadAlgorithm {
    /// Every algorithm, strongest first: the default order of proposals.
    pub const ALL: [AeadAlgorithm; 3] = [Self::Aes256Gcm16, Self::ChaCha20Poly1305, Self::Aes128Gcm16];

    /// Octets of salt that follow the key in the keying material.
    pub const SALT_LEN: usize = 4;

    /// Octets of explicit IV in every packet.
    pub const IV_LEN: usize = 8;

    /// Octets of ICV.
    pub const ICV_LEN: usize = 16;

    /// Octets of key, without the salt.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Octets of keying material for one direction: key, then salt.
    #[must_use]
    pub const fn keymat_len(self) -> usize {
        self.key_len() + Self::SALT_LEN
    }

    /// Transform ID and Key Length attribute (bits) of the IANA registry.
    #[must_use]
    pub const fn transform(self) -> (u16, Option<u16>) {
        match self {
            Self::Aes128Gcm16 => (20, Some(128)),
            Self::Aes256Gcm16 => (20, Some(256)),
            Self::ChaCha20Poly1305 => (28, None),
        }
    }

    /// The inverse of [`transform`](Self::transform): a missing or superfluous key length is no match (RFC 7296 §3.3.5).
    #[must_use]
    pub fn from_transform(id: u16, key_length: Option<u16>) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.transform() == (id, key_length))
    }

    /// The name in configuration and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }

    /// The algorithm of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A pseudorandom function (RFC 4868): its preferred key length is its output length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PrfAlgorithm {
    /// PRF_HMAC_SHA2_256 (5).
    HmacSha2_256,
    /// PRF_HMAC_SHA2_384 (6).
    HmacSha2_384,
    /// PRF_HMAC_SHA2_512 (7).
    HmacSha2_512,
}

impl PrfAlgorithm {
    /// Every function, in the default order of proposals.
    pub const ALL: [PrfAlgorithm; 3] = [Self::HmacSha2_256, Self::HmacSha2_384, Self::HmacSha2_512];

    /// Octets of output and of preferred key.
    #[must_use]
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha2_256 => 32,
            Self::HmacSha2_384 => 48,
            Self::HmacSha2_512 => 64,
        }
    }

    /// Transform ID of the IANA registry.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::HmacSha2_256 => 5,
            Self::HmacSha2_384 => 6,
            Self::HmacSha2_512 => 7,
        }
    }

    /// The function with that transform ID.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|prf| prf.id() == id)
    }

    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha2_256 => "prfsha256",
            Self::HmacSha2_384 => "prfsha384",
            Self::HmacSha2_512 => "prfsha512",
        }
    }
}

/// A key exchange method.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeGroup {
    /// Curve25519 (31, RFC 8031): 32 octets.
    X25519,
    /// 256-bit random ECP group (19, RFC 5903): x and y, 64 octets.
    EcP256,
    /// 384-bit random ECP group (20, RFC 5903): x and y, 96 octets.
    EcP384,
    /// ML-KEM-768 (36, FIPS 203): an encapsulation key of 1184 octets, answered by a ciphertext of 1088. Only beside one of the
    /// others, as an additional key exchange (RFC 9370).
    MlKem768,
}

impl KeGroup {
    /// Every method that an exchange may begin with, in the default order of proposals.
    pub const ALL: [KeGroup; 3] = [Self::X25519, Self::EcP256, Self::EcP384];

    /// The method that may be added to those (RFC 9370).
    pub const ADDITIONAL: KeGroup = Self::MlKem768;

    /// Octets of the initiator's value in a KE payload.
    #[must_use]
    pub const fn public_len(self) -> usize {
        match self {
            Self::X25519 => 32,
            Self::EcP256 => 64,
            Self::EcP384 => 96,
            Self::MlKem768 => 1184,
        }
    }

    /// Transform ID of the IANA registry.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::X25519 => 31,
            Self::EcP256 => 19,
            Self::EcP384 => 20,
            Self::MlKem768 => 36,
        }
    }

    /// The method with that transform ID, of those that an exchange may begin with.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X25519 => "x25519",
            Self::EcP256 => "ecp256",
            Self::EcP384 => "ecp384",
            Self::MlKem768 => "mlkem768",
        }
    }
}

/// What an IKE SA uses: nothing can be missing from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IkeSuite {
    /// Protects the SK payload (RFC 5282).
    pub aead: AeadAlgorithm,
    /// Derives keys and computes AUTH.
    pub prf: PrfAlgorithm,
    /// The key exchange of IKE_SA_INIT or of the rekey.
    pub group: KeGroup,
    /// The key exchange that was added to it (RFC 9370).
    pub additional: Option<KeGroup>,
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.aead.name(), self.prf.name(), self.group.name())?;
        self.additional.map_or(Ok(()), |additional| write!(f, "-ke1_{}", additional.name()))
    }
}

/// What a CHILD_SA uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChildSuite {
    /// Protects the packets.
    pub aead: AeadAlgorithm,
    /// Whether sequence numbers are 64 bits (RFC 4303 §2.2.1).
    pub esn: bool,
    /// The key exchange of the CREATE_CHILD_SA that made it; none for the child of IKE_AUTH.
    pub group: Option<KeGroup>,
    /// The key exchange that was added to it (RFC 9370).
    pub additional: Option<KeGroup>,
}

impl fmt::Display for ChildSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.aead.name())?;
        if let Some(group) = self.group {
            write!(f, "-{}", group.name())?;
        }
        if let Some(additional) = self.additional {
            write!(f, "-ke1_{}", additional.name())?;
        }
        write!(f, "-{}", if self.esn { "esn" } else { "noesn" })
    }
}
