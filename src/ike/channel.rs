//! The protection of one IKE SA's messages: SK and SKF payloads by an AEAD (RFC 5282, RFC 7383).
//!
//! `nonce = salt | IV`, IV = a counter, AAD = everything up to and including the SK payload's generic header.

use std::fmt;

use bytes::Bytes;

use super::keymat::IkeKeys;
use crate::crypto::{self, Aead, NONCE_LEN, Provider};
use crate::model::{AeadAlgorithm, SaKey};
use crate::wire::ike::{
    Fragment, Header, Message, OpenError, Payload, ProtectedView, SK_OVERHEAD, SKF_OVERHEAD, emit_chain, parse_chain,
};

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

    /// Leaves out the IVs that went before: of another channel, or of another course of the same initiation.
    pub const fn go_on_from(&mut self, iv: u64) {
        self.next_iv = iv;
    }

    /// The IV of the next message.
    pub const fn next_iv(&self) -> u64 {
        self.next_iv
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

    /// The same as one datagram or, if that would be longer than `most`, in fragments that are not (RFC 7383 §2.5).
    pub fn seal_in_pieces(&mut self, header: &Header, payloads: &[Payload], most: usize) -> Vec<Bytes> {
        let mut chain = Vec::new();
        let first = emit_chain(payloads, &mut chain);
        if SK_OVERHEAD + chain.len() <= most {
            return vec![self.seal(header, payloads)];
        }
        self.seal_fragments(header, first, &chain, most)
    }

    /// A chain, whose first payload has that type, in fragments that are no longer than `most`.
    pub fn seal_fragments(&mut self, header: &Header, first: u8, chain: &[u8], most: usize) -> Vec<Bytes> {
        let pieces = chain.chunks(most.saturating_sub(SKF_OVERHEAD).max(1));
        let total = u16::try_from(pieces.len()).unwrap_or(u16::MAX);
        let numbered = (1..=total).zip(pieces);
        numbered.map(|(number, piece)| self.seal_fragment(header, Fragment { number, total }, first, piece)).collect()
    }

    /// One fragment: a piece of the chain whose first payload has that type.
    pub fn seal_fragment(&mut self, header: &Header, fragment: Fragment, first: u8, piece: &[u8]) -> Bytes {
        let iv = self.next_iv.to_be_bytes();
        self.next_iv += 1;
        let seal = |aad: &[u8], text: &mut [u8]| (iv, self.outbound.aead.seal(&self.outbound.nonce(iv), aad, text));
        Message::emit_fragment(header, fragment, first, piece, seal).into()
    }

    /// The payloads inside SK.
    pub fn open(&self, message: &Message, datagram: &[u8]) -> Result<Vec<Payload>, Unusable> {
        let view = message.protected.filter(|view| view.fragment.is_none()).ok_or(Unusable::Forged)?;
        let (first, chain) = self.open_octets(view, datagram)?;
        parse_chain(first, &chain).map_err(|error| Unusable::Malformed(error.to_string()))
    }

    /// What stands inside SK or SKF: the type of the first payload, and the chain or a piece of it.
    pub fn open_octets(&self, view: ProtectedView, datagram: &[u8]) -> Result<(u8, Vec<u8>), Unusable> {
        let mut datagram = datagram.to_vec();
        let opened = Message::open(view, &mut datagram, |iv, aad, text, icv| {
            self.inbound.aead.open(&self.inbound.nonce(*iv), aad, text, icv).is_ok()
        });
        match opened {
            Ok((first, chain)) => Ok((first, chain.to_vec())),
            Err(OpenError::Icv) => Err(Unusable::Forged),
            Err(error @ OpenError::Padding) => Err(Unusable::Malformed(error.to_string())),
        }
    }
}
