//! AUTH (RFC 7296 §2.15) by shared key and by Ed25519 (RFC 7427, 8420), and raw public keys (RFC 7670).
//!
//! [`Authenticated`] is the value of a passed check: only [`verify`] makes one, and nothing can be installed without it.

use bytes::Bytes;

use super::config::{LocalAuth, PeerAuth, ProvedBy};
use crate::crypto::{self, Prf, VerifyingKey};
use crate::model::{PeerId, Secret};
use crate::wire::ike::{Auth, AuthMethod, Certificate};

/// Makes a PRF key of a shared secret (RFC 7296 §2.15): 17 ASCII octets without the closing NUL.
const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// Before an Ed25519 signature in AUTH (RFC 7427 §3, RFC 8420 appendix A.1): the length of the AlgorithmIdentifier, and the
/// AlgorithmIdentifier, which has no parameters.
const ED25519_PREFIX: [u8; 8] = [7, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// ID types (RFC 7296 §3.5).
const ID_IPV4_ADDR: u8 = 1;
const ID_FQDN: u8 = 2;
const ID_IPV6_ADDR: u8 = 5;

/// Proof that a peer's AUTH was verified against the identity within.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authenticated<T>(T);

impl<T> Authenticated<T> {
    /// What was proved.
    pub const fn value(&self) -> &T {
        &self.0
    }
}

/// What one side signs: its own first message, the other side's nonce, the MACed ID, and what IKE_INTERMEDIATE adds (RFC 9242).
///
/// `InitiatorSignedOctets = RealMessage1 | NonceRData | prf(SK_pi, RestOfInitIDPayload) [| IntAuth]`
///
/// If both sides sent IKE_SA_INIT_FULL_TRANSCRIPT_AUTH (draft-ietf-ipsecme-ikev2-downgrade-prevention), both messages are covered,
/// behind eight zero octets, which no message begins with (its first field is an SPI):
///
/// `InitiatorSignedOctets = 00 00 00 00 00 00 00 00 | RealMessage2 | RealMessage1 | NonceRData | ... `
#[derive(Clone, Copy, Debug)]
pub struct SignedOctets<'a> {
    /// The signer's last IKE_SA_INIT message, as it travelled, without non-ESP marker.
    pub message: &'a [u8],
    /// The other side's, if it is covered too.
    pub peer_message: Option<&'a [u8]>,
    /// The other side's nonce data.
    pub nonce: &'a [u8],
    /// The signer's SK_p.
    pub sk_p: &'a Secret,
    /// The signer's ID payload body, as it travelled.
    pub id_body: &'a [u8],
    /// IntAuth; nothing without IKE_INTERMEDIATE.
    pub int_auth: &'a [u8],
}

/// In front of a full transcript.
const ZERO_PREFIX: [u8; 8] = [0; 8];

impl SignedOctets<'_> {
    /// The parts in their order; the caller holds the MACed ID.
    fn parts<'a>(&'a self, maced_id: &'a Secret) -> [&'a [u8]; 6] {
        let (zeros, peer_message) = self.peer_message.map_or((&[][..], &[][..]), |message| (&ZERO_PREFIX, message));
        [zeros, peer_message, self.message, self.nonce, maced_id.expose(), self.int_auth]
    }

    /// prf(SK_p, RestOfIDPayload)
    fn maced_id(&self, prf: Prf) -> Secret {
        prf.compute(self.sk_p.expose(), &[self.id_body])
    }
}

/// Computes our AUTH.
#[must_use]
pub fn sign(prf: Prf, auth: &LocalAuth, octets: SignedOctets<'_>) -> Auth {
    let maced_id = octets.maced_id(prf);
    let parts = octets.parts(&maced_id);
    match auth {
        LocalAuth::Psk(psk) => {
            let mac = psk_mac(prf, psk, &parts);
            Auth { method: AuthMethod::SharedKey, data: Bytes::copy_from_slice(mac.expose()) }
        }
        LocalAuth::HostKeys(keys) => {
            let signature = keys[0].sign(&parts.concat());
            Auth { method: AuthMethod::DigitalSignature, data: [&ED25519_PREFIX[..], &signature].concat().into() }
        }
        #[cfg(feature = "x509")]
        LocalAuth::Certificate(credential) => {
            Auth { method: AuthMethod::DigitalSignature, data: credential.sign(&parts.concat()).into() }
        }
    }
}

/// Checks the peer's AUTH against what its configuration demands. `id` is who the peer must be: the ID payload in `octets` has
/// to name it, so that the result is true whoever calls. `certificates` are the CERT payloads beside AUTH. Besides the proof, it tells what it was made with.
///
/// # Errors
/// A sentence for our log; on the wire every failure is AUTHENTICATION_FAILED.
pub fn verify(
    prf: Prf,
    auth: &PeerAuth,
    octets: SignedOctets<'_>,
    received: &Auth,
    certificates: &[Certificate],
    id: PeerId,
) -> Result<(Authenticated<PeerId>, ProvedBy), String> {
    let named = parse_id(octets.id_body)?;
    if named != id {
        return Err(format!("the peer calls itself by the {}, but the {} is expected", with_kind(&named), with_kind(&id)));
    }
    // Without the feature, the pinned key decides.
    #[cfg(not(feature = "x509"))]
    let _ = certificates;
    let maced_id = octets.maced_id(prf);
    let parts = octets.parts(&maced_id);
    let proved_by = match (auth, received.method) {
        (PeerAuth::Psk(psk), AuthMethod::SharedKey) => verify_psk(prf, psk, &parts, &received.data)?,
        (PeerAuth::HostKeys(pins), AuthMethod::DigitalSignature) => verify_signature(pins, &parts, &received.data)?,
        #[cfg(feature = "x509")]
        (PeerAuth::Certificate(authorities), method) => {
            certificates::verify(authorities, &parts, (method, &received.data), certificates, &id, octets.id_body)?
        }
        (PeerAuth::Psk(_), method) => return Err(wrong_method(method, "a shared key (2)")),
        (PeerAuth::HostKeys(_), method) => return Err(wrong_method(method, "a digital signature (14)")),
    };
    Ok((Authenticated(id), proved_by))
}

/// A name may look like an address.
fn with_kind(id: &PeerId) -> String {
    match id {
        PeerId::Fqdn(_) => format!("name {id}"),
        #[cfg(feature = "x509")]
        PeerId::Distinguished(_) => format!("distinguished name {id}"),
        PeerId::Ipv4(_) | PeerId::Ipv6(_) => format!("address {id}"),
    }
}

fn verify_psk(prf: Prf, psk: &Secret, parts: &[&[u8]], received: &[u8]) -> Result<ProvedBy, String> {
    if psk.is_empty() {
        return Err("no shared key is configured for the peer: the empty one proves nothing".to_owned());
    }
    if crypto::equal(psk_mac(prf, psk, parts).expose(), received) {
        Ok(ProvedBy::SharedKey)
    } else {
        Err("the AUTH value does not match: the peer has another shared key, or another idea of the exchange".to_owned())
    }
}

fn verify_signature(pins: &[VerifyingKey], parts: &[&[u8]], received: &[u8]) -> Result<ProvedBy, String> {
    let signature = received
        .strip_prefix(&ED25519_PREFIX)
        .ok_or("the signature is not by Ed25519 (its AlgorithmIdentifier is another)")?;
    let message = parts.concat();
    let key = pins.iter().find(|key| key.verify(&message, signature));
    key.copied().map(ProvedBy::HostKey).ok_or_else(|| {
        let pins: Vec<String> = pins.iter().map(VerifyingKey::to_base64).collect();
        format!("the signature is not by the public key that is configured for the peer ({})", pins.join(" or "))
    })
}

fn wrong_method(method: AuthMethod, wanted: &str) -> String {
    let theirs = match method {
        AuthMethod::SharedKey => "a shared key (2)".to_owned(),
        AuthMethod::DigitalSignature => "a digital signature (14)".to_owned(),
        AuthMethod::Other(number) => format!("method {number}"),
    };
    format!("the peer proves itself by {theirs}, but here it is configured with {wanted}")
}

/// AUTH = prf(prf(Shared Secret, "Key Pad for IKEv2"), <SignedOctets>)
fn psk_mac(prf: Prf, psk: &Secret, parts: &[&[u8]]) -> Secret {
    let padded = prf.compute(psk.expose(), &[KEY_PAD]);
    prf.compute(padded.expose(), parts)
}

/// The body of an ID payload for this identity: type, three zero octets, data (RFC 7296 §3.5).
#[must_use]
pub fn id_body(id: &PeerId) -> Vec<u8> {
    match id {
        PeerId::Ipv4(address) => with_id_type(ID_IPV4_ADDR, &address.octets()),
        PeerId::Fqdn(name) => with_id_type(ID_FQDN, name.as_bytes()),
        #[cfg(feature = "x509")]
        PeerId::Distinguished(name) => certificates::id_body(name),
        PeerId::Ipv6(address) => with_id_type(ID_IPV6_ADDR, &address.octets()),
    }
}

fn with_id_type(kind: u8, data: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0], data].concat()
}

/// The identity that an ID payload's body names.
///
/// # Errors
/// A sentence: type not spoken, wrong length for an address, empty name, name that is no UTF-8 or holds a NUL.
pub fn parse_id(body: &[u8]) -> Result<PeerId, String> {
    // The reserved octets are the sender's affair (RFC 7296 §2.5); AUTH covers them as they came.
    let Some(([kind, _, _, _], data)) = body.split_first_chunk() else {
        return Err("the ID payload is shorter than its four fixed octets".to_owned());
    };
    match *kind {
        ID_IPV4_ADDR => Ok(PeerId::Ipv4(<[u8; 4]>::try_from(data).map_err(|_| wrong_length("IPv4", data))?.into())),
        ID_IPV6_ADDR => Ok(PeerId::Ipv6(<[u8; 16]>::try_from(data).map_err(|_| wrong_length("IPv6", data))?.into())),
        ID_FQDN if data.is_empty() => Err("the ID payload holds an empty name".to_owned()),
        ID_FQDN if data.contains(&0) => Err("the name in the ID payload holds a NUL".to_owned()),
        ID_FQDN => {
            let name = str::from_utf8(data).map_err(|_| "the name in the ID payload is not UTF-8")?;
            Ok(PeerId::Fqdn(name.to_owned()))
        }
        #[cfg(feature = "x509")]
        certificates::ID_DER_ASN1_DN => certificates::parse_id(data),
        other => Err(format!("ID type {other} is not spoken here (IPv4 address, FQDN and IPv6 address are)")),
    }
}

fn wrong_length(family: &str, data: &[u8]) -> String {
    format!("the ID payload says {family} address, but holds {} octets", data.len())
}

#[cfg(feature = "x509")]
pub mod certificates;
#[cfg(test)]
mod tests;
