//! Our own certificate and its private key.
//!
//! ECDSA signatures are deterministic (RFC 6979). RSA is the exception to the rule that chance is an argument: ring salts PSS by the
//! operating system's randomness, and takes none from us.

use std::fmt;
use std::sync::Arc;

use p256::ecdsa::signature::Signer as _;
use pkcs8::DecodePrivateKey as _;
use pki_types::CertificateDer;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use webpki::EndEntityCert;

use super::chain::{self, Claimed};
use super::{CERTIFICATE, CertificateError, MAX_CHAIN, MAX_CHAIN_LEN, der, name_text, pem_blocks, scheme};
use crate::crypto::SigningKey;
use crate::model::{PeerId, Secret};

const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Shortest RSA modulus in octets, as for peers: 2048 bits.
const MIN_RSA: usize = 256;

/// A certificate with those above it, and the private key, which is wiped with the last clone and never printed.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

struct Inner {
    chain: Vec<CertificateDer<'static>>,
    key: Key,
    subject: Vec<u8>,
    description: String,
}

enum Key {
    Ed25519(SigningKey),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    /// PKCS#8: ring does not wipe its key pairs, so none outlives a signature.
    Rsa(Secret),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.describe())
    }
}

/// The key belongs to the certificate, so the certificate says it all.
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.0.chain == other.0.chain
    }
}

impl Eq for Credential {}

impl Credential {
    /// Reads a file of certificates, our own first, and a file with the private key as PKCS#8.
    ///
    /// # Errors
    /// A sentence.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<CertificateDer<'static>> =
            pem_blocks(chain, CERTIFICATE)?.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let len = chain.iter().map(|certificate| certificate.len()).sum::<usize>();
        if chain.is_empty() || chain.len() > MAX_CHAIN || len > MAX_CHAIN_LEN {
            let sentence = format!(
                "expected 1 to {MAX_CHAIN} PEM blocks of type CERTIFICATE of {MAX_CHAIN_LEN} octets in all, got {} of {len}",
                chain.len()
            );
            return Err(sentence.into());
        }
        let key = Key::from_pem(key)?;
        let leaf =
            EndEntityCert::try_from(&chain[0]).map_err(|error| format!("the first certificate cannot be read: {error}"))?;
        if !der::key_usage(&chain[0]).is_some_and(|usage| usage.may_sign()) {
            return Err("the first certificate is not for signatures (key usage)".into());
        }
        let (identifier, signature) = key.sign(b"ours")?;
        let (verifiers, _) = scheme::cut(&scheme::prefix(&identifier))?;
        if !verifiers.into_iter().any(|verifier| leaf.verify_signature(verifier, b"ours", &signature).is_ok()) {
            return Err("the private key is not that of the first certificate".into());
        }
        let subject = der::wrap(der::SEQUENCE, leaf.subject());
        let description = chain::describe(&leaf, &chain[0]);
        Ok(Self(Arc::new(Inner { chain, key, subject, description })))
    }

    /// The certificates for CERT payloads, our own first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.0.chain.iter().map(|certificate| certificate.as_ref())
    }

    /// Our distinguished name, encoded.
    #[must_use]
    pub fn subject(&self) -> &[u8] {
        &self.0.subject
    }

    /// Whether we may call ourselves so.
    ///
    /// # Errors
    /// A sentence that says what the certificate does name.
    pub fn check_identity(&self, id: &PeerId) -> Result<(), CertificateError> {
        if let PeerId::Distinguished(name) = id {
            let own = name_text(&self.0.subject).unwrap_or_default();
            return if own == *name { Ok(()) } else { Err(format!("the certificate is of {own}").into()) };
        }
        let leaf = EndEntityCert::try_from(&self.0.chain[0]).map_err(|error| error.to_string())?;
        chain::bound_to(&leaf, Claimed::of(id, &[]))
    }

    /// The data of an AUTH payload of method 14.
    ///
    /// # Panics
    /// If the operating system has no randomness for RSA.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let (identifier, signature) = self.0.key.sign(message).expect("the same key signed when it was read");
        [scheme::prefix(&identifier), signature].concat()
    }

    /// For people: its subject and fingerprint.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.0.description
    }
}

/// The seed in a PKCS#8 key of Ed25519. Unlike for host keys, the public half may follow (RFC 5958): tools for certificates write it.
fn ed25519_seed(der: &[u8]) -> Option<&[u8; 32]> {
    /// After the length and the version: id-Ed25519, an OCTET STRING within an OCTET STRING.
    const KIND: [u8; 11] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let seed = der.get(5..)?.strip_prefix(&KIND)?.first_chunk()?;
    ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(|_| seed)
}

impl Key {
    fn from_pem(text: &[u8]) -> Result<Self, CertificateError> {
        let mut blocks = pem_blocks(text, PRIVATE_KEY)?;
        let Some(der) = blocks.pop() else {
            let form = "expected a PEM block of type PRIVATE KEY (PKCS#8; `openssl pkcs8 -topk8 -nocrypt` turns other kinds into it)";
            return Err(form.into());
        };
        if let Some(seed) = ed25519_seed(&der) {
            return Ok(Self::Ed25519(SigningKey::from_seed(seed)));
        }
        if let Ok(key) = p256::ecdsa::SigningKey::from_pkcs8_der(&der) {
            return Ok(Self::P256(key));
        }
        if let Ok(key) = p384::ecdsa::SigningKey::from_pkcs8_der(&der) {
            return Ok(Self::P384(key));
        }
        match RsaKeyPair::from_pkcs8(&der) {
            Ok(pair) if pair.public().modulus_len() >= MIN_RSA => Ok(Self::Rsa(Secret::copy_of(&der))),
            _ => Err("expected a key of Ed25519, P-256, P-384, or RSA with 2048 bits or more".into()),
        }
    }

    /// AlgorithmIdentifier and signature.
    fn sign(&self, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
        Ok(match self {
            Self::Ed25519(key) => (scheme::ID_ED25519.to_vec(), key.sign(message).to_vec()),
            Self::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.sign(message);
                (scheme::ID_ECDSA_SHA256.to_vec(), signature.as_bytes().to_vec())
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.sign(message);
                (scheme::ID_ECDSA_SHA384.to_vec(), signature.as_bytes().to_vec())
            }
            Self::Rsa(der) => {
                let pair = RsaKeyPair::from_pkcs8(der.expose()).map_err(|_| "not an RSA key any more")?;
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature);
                signed.map_err(|_| "the operating system has no randomness")?;
                (scheme::own_pss_identifier(), signature)
            }
        })
    }
}
