//! The protection of one IKE SA's messages: SK payloads by an AEAD (RFC 5282).
//!
//! `nonce = salt | IV`, IV = a counter, AAD = everything up to and including the SK payload's generic header.

use std::fmt;

use bytes::Bytes;

use super::keymat::IkeKeys;
use crate::crypto::{self, Aead, NONCE_LEN, Provider};
use crate::model::{AeadAlgorithm, SaKey};
use crate::wire::ike::{Header, Message, OpenError, Payload, parse_chain};

/// One direction's key.
struct Direction {
    aead: Box<dyn Aead>,
    salt: [u8; AeadAlgorithm::SALT_LEN],
}

impl Direction {
    fn new(algorithm: AeadAlgorithm, key: &SaKey) -> Self {
        let (key, salt) = key.keymat.expose().split_at(algorithm.key_len());
        Self {
            aead: crypto::aead(Provider::default(), algorithm, key),
            salt: salt.try_into().expect("keying material is cut to key and salt"),
        }
    }

    fn nonce(&self, iv: [u8; 8]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..self.salt.len()].copy_from_slice(&self.salt);
        nonce[self.salt.len()..].copy_from_slice(&iv);
        nonce
    }
}

/// Both directions.
pub struct Channel {
    outbound: Direction,
    inbound: Direction,
    next_iv: u64,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel(next IV {})", self.next_iv)
    }
}

/// Why a sealed message cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// Damaged or forged: it says nothing.
    Forged,
    /// The peer itself made it, and it does not parse.
    Malformed(String),
}

impl Channel {
    /// `initiator`: whether we are the original initiator of the IKE SA.
    pub fn new(algorithm: AeadAlgorithm, keys: &IkeKeys, initiator: bool) -> Self {
        let (ours, theirs) = if initiator { (&keys.sk_ei, &keys.sk_er) } else { (&keys.sk_er, &keys.sk_ei) };
        Self { outbound: Direction::new(algorithm, ours), inbound: Direction::new(algorithm, theirs), next_iv: 1 }
    }

    /// A whole message with these payloads inside SK.
    pub fn seal(&mut self, header: &Header, payloads: &[Payload]) -> Bytes {
        let iv = self.next_iv.to_be_bytes();
        self.next_iv += 1;
        Message::emit_protected(header, payloads, |aad, text| {
            (iv, self.outbound.aead.seal(&self.outbound.nonce(iv), aad, text))
        })
        .into()
    }

    /// The payloads inside SK.
    pub fn open(&self, message: &Message, datagram: &[u8]) -> Result<Vec<Payload>, Unusable> {
        let view = message.protected.ok_or(Unusable::Forged)?;
        let mut datagram = datagram.to_vec();
        let opened = Message::open(view, &mut datagram, |iv, aad, text, icv| {
            self.inbound.aead.open(&self.inbound.nonce(*iv), aad, text, icv).is_ok()
        });
        match opened {
            Ok((first, chain)) => parse_chain(first, chain).map_err(|error| Unusable::Malformed(error.to_string())),
            Err(OpenError::Icv) => Err(Unusable::Forged),
            Err(error @ OpenError::Padding) => Err(Unusable::Malformed(error.to_string())),
        }
    }
}
