//! The payloads of IKE_AUTH that say who we are, and the check of those that say who the peer is (RFC 7296 §1.2, §2.15).
//!
//! Both sides do the same in this order: the peer's identity must be one that is configured, it must not be our own (a reflected
//! handshake), the identity it wants to reach must be ours, and only then does its AUTH count. A CERT payload is sent for host
//! keys because foreign peers want one (RFC 7670); one that comes from a peer with a pinned key is not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::crypto::{Prf, VerifyingKey};
use crate::ike::auth::{self, Authenticated, SignedOctets, id_body, parse_id};
use crate::ike::contents::Contents;
use crate::ike::{LocalAuth, PeerAuth, PeerConfig, ProvedBy};
use crate::model::{PeerId, PeerIndex, Secret};
use crate::wire::ike::{Auth, Certificate, Identification, Notify, NotifyType, Payload};

/// CERT encoding of a raw public key as SubjectPublicKeyInfo (RFC 7670 §3).
const RAW_PUBLIC_KEY: u8 = 15;

/// DER in front of the 32 octets of an Ed25519 key: SEQUENCE { SEQUENCE { OID 1.3.101.112 } BIT STRING } (RFC 8410 §4).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Hash algorithms of signatures (IANA): "identity" (RFC 8420 §2), as Ed25519 signs the octets themselves; for certificates SHA2-256,
/// SHA2-384 and SHA2-512 besides.
const HASHES: &[u16] = if cfg!(feature = "x509") { &[2, 3, 4, 5] } else { &[5] };

/// SIGNATURE_HASH_ALGORITHMS (RFC 7427 §4): what peers may sign with.
pub fn signature_hash_algorithms() -> Payload {
    let hashes: Vec<u8> = HASHES.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    Payload::Notify(Notify::new(NotifyType::SignatureHashAlgorithms, hashes))
}

/// Whether either side of this peer signs.
pub const fn uses_signatures(config: &PeerConfig) -> bool {
    !matches!((&config.local_auth, &config.remote_auth), (LocalAuth::Psk(_), PeerAuth::Psk(_)))
}

/// CERTREQ for the authorities of these peers.
#[cfg(feature = "x509")]
pub fn certificate_request<'a>(peers: impl Iterator<Item = &'a PeerConfig>) -> Option<Payload> {
    auth::certificates::request(peers.filter_map(|config| match &config.remote_auth {
        PeerAuth::Certificate(authorities) => Some(&*authorities.anchors),
        _ => None,
    }))
}

/// Without certificates, none is asked for.
#[cfg(not(feature = "x509"))]
pub fn certificate_request<'a>(_: impl Iterator<Item = &'a PeerConfig>) -> Option<Payload> {
    None
}

/// What went before IKE_AUTH: both sides' AUTH cover it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Both IKE_SA_INIT messages as they travelled.
    pub request: Bytes,
    pub response: Bytes,
    pub nonce_i: Bytes,
    pub nonce_r: Bytes,
    /// Whether each side covers both messages: both said so.
    pub full_transcript: bool,
    /// What IKE_INTERMEDIATE adds.
    pub int_auth: Vec<u8>,
}

impl Record {
    /// What the initiator's AUTH covers.
    pub fn of_initiator<'a>(&'a self, sk_pi: &'a Secret) -> Transcript<'a> {
        Transcript {
            message: &self.request,
            peer_message: self.full_transcript.then_some(&self.response[..]),
            nonce: &self.nonce_r,
            sk_p: sk_pi,
            int_auth: &self.int_auth,
        }
    }

    /// What the responder's AUTH covers.
    pub fn of_responder<'a>(&'a self, sk_pr: &'a Secret) -> Transcript<'a> {
        Transcript {
            message: &self.response,
            peer_message: self.full_transcript.then_some(&self.request[..]),
            nonce: &self.nonce_i,
            sk_p: sk_pr,
            int_auth: &self.int_auth,
        }
    }

    /// The lower nonce: decides which of two IKE SAs stays (RFC 7296 §2.8.1).
    pub fn low_nonce(&self) -> Bytes {
        self.nonce_i.clone().min(self.nonce_r.clone())
    }
}

/// IKE_SA_INIT_FULL_TRANSCRIPT_AUTH: whoever sends it covers both messages if the other side sends it too.
pub const FULL_TRANSCRIPT: Payload = Payload::bare_notify(NotifyType::IkeSaInitFullTranscriptAuth);

/// What one side's AUTH covers besides its identity.
#[derive(Clone, Copy, Debug)]
pub struct Transcript<'a> {
    /// Its IKE_SA_INIT message.
    pub message: &'a [u8],
    /// The other side's, if it is covered.
    pub peer_message: Option<&'a [u8]>,
    /// The other side's nonce.
    pub nonce: &'a [u8],
    /// Its SK_p.
    pub sk_p: &'a Secret,
    /// IntAuth.
    pub int_auth: &'a [u8],
}

impl<'a> Transcript<'a> {
    const fn with(self, id_body: &'a [u8]) -> SignedOctets<'a> {
        let Self { message, peer_message, nonce, sk_p, int_auth } = self;
        SignedOctets { message, peer_message, nonce, sk_p, id_body, int_auth }
    }
}

/// IDi, CERT, CERTREQ, INITIAL_CONTACT, IDr, AUTH.
pub fn initiator_payloads(prf: Prf, config: &PeerConfig, ours: Transcript<'_>, initial_contact: bool) -> Vec<Payload> {
    let own = own_id_body(config);
    let auth = auth::sign(prf, &config.local_auth, ours.with(&own));
    let mut payloads = vec![Payload::IdInitiator(identification(own))];
    payloads.extend(certificates(&config.local_auth));
    payloads.extend(certificate_request(std::iter::once(config)));
    if initial_contact {
        payloads.push(Payload::bare_notify(NotifyType::InitialContact));
    }
    payloads.push(Payload::IdResponder(identification(id_body(&config.remote_id))));
    payloads.push(Payload::Auth(auth));
    payloads
}

/// IDr, CERT, AUTH.
pub fn responder_payloads(prf: Prf, config: &PeerConfig, ours: Transcript<'_>) -> Vec<Payload> {
    let own = own_id_body(config);
    let auth = auth::sign(prf, &config.local_auth, ours.with(&own));
    let mut payloads = vec![Payload::IdResponder(identification(own))];
    payloads.extend(certificates(&config.local_auth));
    payloads.push(Payload::Auth(auth));
    payloads
}

fn identification(body: Vec<u8>) -> Identification {
    Identification { body: body.into() }
}

fn own_id_body(config: &PeerConfig) -> Vec<u8> {
    match &config.local_auth {
        #[cfg(feature = "x509")]
        LocalAuth::Certificate(credential) => auth::certificates::own_id_body(credential, &config.local_id),
        _ => id_body(&config.local_id),
    }
}

fn certificates(auth: &LocalAuth) -> Vec<Payload> {
    match auth {
        LocalAuth::Psk(_) => Vec::new(),
        LocalAuth::HostKeys(keys) => {
            let VerifyingKey(public) = keys[0].verifying_key();
            let data = [&ED25519_SPKI_PREFIX[..], &public].concat();
            vec![Payload::Certificate(Certificate { encoding: RAW_PUBLIC_KEY, data: data.into() })]
        }
        #[cfg(feature = "x509")]
        LocalAuth::Certificate(credential) => auth::certificates::payloads(credential).collect(),
    }
}

/// Who the sender of IKE_AUTH says that it is, and what it offers as proof.
#[derive(Debug)]
pub struct Claim<'a> {
    id: PeerId,
    id_body: &'a [u8],
    /// Whom it wants to reach, if it says so.
    wanted: Option<PeerId>,
    auth: &'a Auth,
    certificates: &'a [Certificate],
}

impl<'a> Claim<'a> {
    /// The claim of an initiator.
    ///
    /// # Errors
    /// A sentence: something is missing or malformed.
    pub fn of_initiator(request: &'a Contents) -> Result<Self, String> {
        let id = request.id_i.as_ref().ok_or("IKE_AUTH has no IDi payload")?;
        let wanted = request.id_r.as_ref().map(|id| parse_id(&id.body)).transpose()?;
        // Without AUTH the peer asks for EAP (RFC 7296 §2.16), which is not spoken here.
        let auth = request.auth.as_ref().ok_or("IKE_AUTH has no AUTH payload: EAP is not spoken here")?;
        Ok(Self { id: parse_id(&id.body)?, id_body: &id.body, wanted, auth, certificates: &request.certificates })
    }

    /// The claim of a responder.
    ///
    /// # Errors
    /// As above.
    pub fn of_responder(response: &'a Contents) -> Result<Self, String> {
        let id = response.id_r.as_ref().ok_or("the IKE_AUTH answer has no IDr payload")?;
        let auth = response.auth.as_ref().ok_or("the IKE_AUTH answer has no AUTH payload")?;
        let certificates = &response.certificates;
        Ok(Self { id: parse_id(&id.body)?, id_body: &id.body, wanted: None, auth, certificates })
    }

    /// The configured peer that an initiator says it is, for the identity of ours that it wants to reach.
    ///
    /// # Errors
    /// A sentence for our log.
    pub fn find_peer(&self, peers: &BTreeMap<PeerIndex, Arc<PeerConfig>>) -> Result<Arc<PeerConfig>, String> {
        let is_wanted = |config: &PeerConfig| self.wanted.as_ref().is_none_or(|wanted| *wanted == config.local_id);
        let named: Vec<_> = peers.values().filter(|config| config.remote_id == self.id).collect();
        if named.is_empty() {
            let own = peers.values().any(|config| config.local_id == self.id);
            let why = if own { "which is our own: a reflection" } else { "and no peer here has that identity" };
            return Err(format!("it calls itself {}, {why}", self.id));
        }
        named.iter().find(|config| is_wanted(config)).map(|&config| Arc::clone(config)).ok_or_else(|| {
            let wanted = self.wanted.as_ref().map(ToString::to_string).unwrap_or_default();
            let ours: Vec<String> = named.iter().map(|config| config.local_id.to_string()).collect();
            format!("{} wants to reach {wanted}, but towards it we are {}", self.id, ours.join(" or "))
        })
    }

    /// Checks identity and AUTH against the peer's configuration.
    ///
    /// # Errors
    /// A sentence for our log.
    pub fn verify(
        &self,
        prf: Prf,
        config: &PeerConfig,
        theirs: Transcript<'_>,
    ) -> Result<(Authenticated<PeerId>, ProvedBy), String> {
        if self.id == config.local_id {
            return Err(format!("the peer calls itself {}, which is our own: a reflection", self.id));
        }
        if self.id != config.remote_id {
            return Err(format!("the peer calls itself {}, but {} was wanted", self.id, config.remote_id));
        }
        let octets = SignedOctets { id_body: self.id_body, ..theirs.with(&[]) };
        auth::verify(prf, &config.remote_auth, octets, self.auth, self.certificates, self.id.clone())
    }
}
