//! Ed25519 host keys (RFC 8032), in memory and as text.
//!
//! A private key is kept as PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it (RFC 8410 §7). A public key is
//! written as base64 of its 32 octets, and travels in CERT payloads as SubjectPublicKeyInfo (RFC 8410 §4, RFC 7670).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use curve25519_dalek::edwards::CompressedEdwardsY;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::model::{Rng, Secret};

/// Octets of a seed and of a public key.
const KEY_LEN: usize = 32;

/// PrivateKeyInfo up to the seed: version 0, id-Ed25519, an OCTET STRING within an OCTET STRING.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// SubjectPublicKeyInfo up to the key: id-Ed25519, a BIT STRING without unused bits.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Octets of the two encodings.
const PKCS8_LEN: usize = PKCS8_PREFIX.len() + KEY_LEN;
const SPKI_LEN: usize = SPKI_PREFIX.len() + KEY_LEN;

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// Why a key could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyFormatError {
    /// The file is something else.
    #[error(
        "no PEM block of type PRIVATE KEY (an unencrypted PKCS#8 key, as `openssl genpkey -algorithm ed25519` writes it)"
    )]
    NoPrivateKey,
    /// Characters, padding or length.
    #[error("not valid base64")]
    Base64,
    /// Another algorithm, or another encoding.
    #[error("not an Ed25519 private key in PKCS#8")]
    NotEd25519,
    /// Neither of the two encodings of a public key.
    #[error("an Ed25519 public key is base64 of 32 octets, or of 44 as SubjectPublicKeyInfo")]
    PublicKey,
    /// A point for which everyone can sign, or no point at all.
    #[error("not a usable Ed25519 public key: it is no point of the curve, or has a small order")]
    WeakPublicKey,
}

/// A host's private key. Its seed is wiped with the last clone and never printed.
#[derive(Clone)]
pub struct SigningKey(Arc<Inner>);

struct Inner {
    seed: Secret,
    public: VerifyingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(public {})", self.verifying_key().to_base64())
    }
}

impl SigningKey {
    /// A new key out of this generator.
    #[must_use]
    pub fn generate(rng: &mut dyn Rng) -> Self {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        rng.fill(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The key that this seed makes.
    #[must_use]
    pub fn from_seed(seed: &[u8; KEY_LEN]) -> Self {
        let public = key_pair(seed).public_key().as_ref().try_into().expect("the public key has 32 octets");
        Self(Arc::new(Inner { seed: Secret::copy_of(seed), public: VerifyingKey(public) }))
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.0.public
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        // ring does not wipe its key pairs, so none outlives the call.
        key_pair(self.0.seed.expose()).sign(message).as_ref().try_into().expect("the signature has 64 octets")
    }

    /// The text of a key file: PKCS#8 in PEM, with the line end.
    #[must_use]
    pub fn to_pkcs8_pem(&self) -> Secret {
        let mut der = Zeroizing::new([0; PKCS8_LEN]);
        der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        der[PKCS8_PREFIX.len()..].copy_from_slice(self.0.seed.expose());
        // 48 octets are 64 characters: exactly the one full line that RFC 7468 §2 asks for.
        let mut line = Zeroizing::new([0; PKCS8_LEN / 3 * 4]);
        BASE64.encode_slice(der.as_slice(), &mut *line).expect("the line has just this length");
        Secret::new([PEM_BEGIN.as_bytes(), &*line, PEM_END.as_bytes(), b""].join(&b'\n'))
    }

    /// Reads a key file; text around the PEM block is left alone (RFC 7468 §2).
    ///
    /// # Errors
    /// If there is no such block in it, or the block holds something else.
    pub fn from_pkcs8_pem(text: &[u8]) -> Result<Self, KeyFormatError> {
        let body = between(text, PEM_BEGIN, PEM_END).ok_or(KeyFormatError::NoPrivateKey)?;
        // A body of another length is another kind of key, if it is a key at all.
        let mut line = Zeroizing::new([0; PKCS8_LEN / 3 * 4]);
        let mut len = 0;
        for octet in body.iter().filter(|octet| !octet.is_ascii_whitespace()) {
            *line.get_mut(len).ok_or(KeyFormatError::NotEd25519)? = *octet;
            len += 1;
        }
        let mut der = Zeroizing::new([0; PKCS8_LEN]);
        let len = BASE64.decode_slice(&line[..len], &mut *der).map_err(|_| KeyFormatError::Base64)?;
        let seed = der[..len].strip_prefix(&PKCS8_PREFIX).ok_or(KeyFormatError::NotEd25519)?;
        Ok(Self::from_seed(seed.try_into().map_err(|_| KeyFormatError::NotEd25519)?))
    }
}

/// ring's form of a key.
fn key_pair(seed: &[u8]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 octets are a seed")
}

/// What stands between two marks.
fn between<'a>(text: &'a [u8], begin: &str, end: &str) -> Option<&'a [u8]> {
    let find = |text: &[u8], mark: &str| text.windows(mark.len()).position(|window| window == mark.as_bytes());
    let text = &text[find(text, begin)? + begin.len()..];
    Some(&text[..find(text, end)?])
}

/// A host's public key: 32 octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VerifyingKey(pub [u8; KEY_LEN]);

impl VerifyingKey {
    /// Whether the signature is the key's owner's. Refuses S >= L and keys of small order.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.is_usable() && UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }

    /// Whether it is a point of the curve whose signatures only its owner can make.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        CompressedEdwardsY(self.0).decompress().is_some_and(|point| !point.is_small_order())
    }

    /// The key as configuration and `key show` have it: base64 of its 32 octets.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// Reads base64 of the 32 octets, or of SubjectPublicKeyInfo as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// If it is neither, or a key that would accept forged signatures.
    pub fn from_base64(text: &str) -> Result<Self, KeyFormatError> {
        // One quantum of base64 more than the longest encoding: the decoder wants room by its own estimate.
        let mut octets = [0; SPKI_LEN + 4];
        if text.len() > SPKI_LEN.div_ceil(3) * 4 {
            return Err(KeyFormatError::PublicKey);
        }
        let len = BASE64.decode_slice(text, &mut octets).map_err(|_| KeyFormatError::Base64)?;
        let octets = &octets[..len];
        let key = octets.try_into().map(Self).or_else(|_| Self::from_spki(octets))?;
        if key.is_usable() { Ok(key) } else { Err(KeyFormatError::WeakPublicKey) }
    }

    /// The key as SubjectPublicKeyInfo.
    #[must_use]
    pub fn to_spki(&self) -> [u8; SPKI_LEN] {
        let mut spki = [0; SPKI_LEN];
        spki[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        spki[SPKI_PREFIX.len()..].copy_from_slice(&self.0);
        spki
    }

    /// Reads a SubjectPublicKeyInfo. DER has one encoding for an Ed25519 key, so anything else is refused.
    ///
    /// # Errors
    /// [`KeyFormatError::PublicKey`].
    pub fn from_spki(spki: &[u8]) -> Result<Self, KeyFormatError> {
        let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok());
        key.map(Self).ok_or(KeyFormatError::PublicKey)
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.verifying_key() == other.verifying_key()
    }
}

#[cfg(test)]
mod tests;
