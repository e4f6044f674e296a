//! A peer that proved itself and then says what a fuzzer makes up, under the right keys.
//!
//! Input is a list of records: one octet that says what to do, two of length, and octets for it. What is said is a chain of
//! payloads: either raw, or cut into payloads with sound headers, so that their bodies are reached, or composed of such as mean
//! something. It travels whole, as fragments in backward order, or as one fragment with the numbers that the input wants; and from
//! elsewhere, or again.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::composed::compose;
use super::hand::{Greeting, Hand, own_config, sent};
use super::{Proof, Simulator, peer_config};
use crate::ike::Command;
use crate::ike::limits::{HALF_OPEN_LIMIT, MAX_CHILDREN, MAX_WORKER_CHILDREN};
use crate::ike::mobike::MOBIKE_SUPPORTED;
use crate::ike::narrow::is_subset;
use crate::model::{Path, PeerIndex, WorkerIndex};
use crate::wire::ike::{ExchangeType, Header, NotifyType, emit_chain};

/// Records of one input; more only make the fuzzer slow.
const MAX_RECORDS: usize = 24;

/// Payload types of RFC 7296, from SA (33) to SKF (53).
const FIRST_TYPE: u8 = 33;
const TYPES: u8 = 21;

/// Bits of a record's first octet: the chain is raw; it is one fragment; it is cut into fragments.
const RAW: u8 = 8;
const FRAGMENT: u8 = 16;
const CUT: u8 = 32;

/// Another bit: IKE_FOLLOWUP_KE in place of CREATE_CHILD_SA, IKE_INTERMEDIATE in place of IKE_AUTH.
const OTHER: u8 = 64;

/// And one: pairs of octets choose payloads that mean something.
const COMPOSED: u8 = 128;

/// Bits of the first octet of all: not proved yet; fragments are spoken; ML-KEM is added; the data plane is slow; MOBIKE is spoken.
const STRANGER: u8 = 1;
const FRAGMENTS: u8 = 2;
const HYBRID: u8 = 4;
const SLOW: u8 = 8;
const MOBILE: u8 = 16;

/// Octets of the fragments into which a chain is cut.
const CUT_TO: usize = 100;

/// The peer of host 0.
const PEER: PeerIndex = PeerIndex(1);

/// The peer, and what it remembers.
struct Speaker {
    sim: Simulator,
    hand: Hand,
    /// What host 0 asked last and was not answered.
    asked: Option<Header>,
    /// The link of its last answer (IKE_FOLLOWUP_KE).
    link: Bytes,
    /// What was said.
    said: Vec<Bytes>,
    home: SocketAddr,
}

/// Says it all to host 0.
///
/// # Panics
/// If host 0 holds more than it may, or does not let an honest peer in afterwards.
pub fn speak_nonsense(input: &[u8]) {
    let Some((&stage, mut rest)) = input.split_first() else { return };
    let mut speaker = Speaker::begin(stage);
    for _ in 0..MAX_RECORDS {
        let Some((&[kind, high, low], tail)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (octets, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        speaker.say(kind, octets);
        if stage & SLOW == 0 {
            speaker.sim.finish_installs();
        }
        speaker.listen();
        bounded(&speaker.sim);
    }
    let Speaker { mut sim, .. } = speaker;
    sim.run_for(Duration::from_secs(120));
    sim.finish_installs();
    sent(&mut sim);
    bounded(&sim);
    Hand::establish(&mut sim, 77);
}

impl Speaker {
    fn begin(stage: u8) -> Self {
        let mut sim = Simulator::new(1, 2, Proof::Psk);
        sim.by_hand = true;
        let hand = match (stage & HYBRID, stage & FRAGMENTS) {
            (0, 0) => Hand::greet(&mut sim, 5),
            (0, _) => Hand::greet_with_fragments(&mut sim, 5),
            (_, 0) => Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)),
            (_, _) => Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim),
        };
        let home = hand.source;
        let mut speaker = Self { sim, hand, asked: None, link: Bytes::new(), said: Vec::new(), home };
        // Without IKE_INTERMEDIATE such a peer cannot prove itself.
        if stage & STRANGER == 0 && stage & (HYBRID | FRAGMENTS) != HYBRID {
            let mut payloads = speaker.hand.auth_payloads(&own_config(Proof::Psk));
            payloads.extend((stage & MOBILE != 0).then_some(MOBIKE_SUPPORTED));
            speaker.hand.send(&mut speaker.sim, ExchangeType::IkeAuth, &payloads);
            speaker.sim.finish_installs();
            assert!(speaker.hand.read(&mut speaker.sim).iter().any(|(_, answer)| answer.auth.is_some()));
        }
        speaker
    }

    fn listen(&mut self) {
        for (header, contents) in self.hand.read(&mut self.sim) {
            if !header.flags.response {
                self.asked = Some(header);
            }
            if let Some(link) = contents.notify(NotifyType::AdditionalKeyExchange) {
                self.link = link.data.clone();
            }
        }
    }

    fn inject(&mut self, message: impl Into<Bytes>) {
        let message = message.into();
        self.hand.inject(&mut self.sim, &message);
        self.said.push(message);
    }

    fn say(&mut self, kind: u8, octets: &[u8]) {
        let request = |exchange, hand: &Hand| hand.header(exchange, hand.next_id, false);
        let hand = &self.hand;
        let header = match kind % 8 {
            0 if kind & OTHER != 0 => request(ExchangeType::IkeFollowupKe, hand),
            0 => request(ExchangeType::CreateChildSa, hand),
            1 => request(ExchangeType::Informational, hand),
            2 if kind & OTHER != 0 => request(ExchangeType::IkeIntermediate, hand),
            2 => request(ExchangeType::IkeAuth, hand),
            // The answer to what host 0 asked last.
            3 | 4 => match self.asked.take() {
                Some(asked) => hand.header(asked.exchange, asked.message_id, true),
                None => request(ExchangeType::Informational, hand),
            },
            5 => return command(&mut self.sim, octets),
            6 => return self.sim.run_for(Duration::from_millis(octets.len() as u64 * 20)),
            _ => return self.say_otherwise(kind, octets),
        };
        if kind & FRAGMENT != 0 {
            let Some((&[number, total, first], piece)) = octets.split_first_chunk() else { return };
            // No fragment has this number: it stands for the end of a message.
            self.hand.next_id += u32::from(number == 0);
            let message = self.hand.seal_fragment(&header, number.into(), total.into(), first, piece);
            return self.inject(message);
        }
        let (first, mut text) = if kind & COMPOSED != 0 {
            let payloads = compose(&self.sim, &mut self.hand, &self.link, octets);
            let mut chain = Vec::new();
            (emit_chain(&payloads, &mut chain), chain)
        } else if kind & RAW == 0 {
            structured(octets)
        } else {
            raw(octets)
        };
        if !header.flags.response {
            self.hand.next_id += 1;
        }
        if kind & CUT != 0 {
            let pieces = self.hand.seal_fragments(&header, first, &text, CUT_TO);
            return pieces.into_iter().rev().for_each(|piece| self.inject(piece));
        }
        text.push(0);
        let message = self.hand.seal_octets(&header, first, &text);
        self.inject(message);
    }

    /// A good IKE_AUTH among the bad; from elsewhere from now on, or from home again; something earlier once more.
    fn say_otherwise(&mut self, kind: u8, octets: &[u8]) {
        let number = octets.first().copied().unwrap_or_default();
        if kind & RAW != 0 {
            let elsewhere = SocketAddr::from(([203, 0, 113, number], 4500));
            self.hand.source = if number == 0 { self.home } else { elsewhere };
        } else if kind & OTHER != 0 {
            let earlier = self.said.get(usize::from(number) % self.said.len().max(1)).cloned();
            if let Some(earlier) = earlier {
                self.hand.inject(&mut self.sim, &earlier);
            }
        } else {
            let payloads = self.hand.proof_payloads(&own_config(Proof::Psk));
            let message = self.hand.next(ExchangeType::IkeAuth, &payloads);
            self.inject(message);
        }
    }
}

/// The first octet is the type of the first payload, the rest the chain.
fn raw(octets: &[u8]) -> (u8, Vec<u8>) {
    octets.split_first().map_or((0, Vec::new()), |(&first, chain)| (first, chain.to_vec()))
}

/// Pieces of (type, length, body), given sound generic headers.
fn structured(mut octets: &[u8]) -> (u8, Vec<u8>) {
    let mut pieces = Vec::new();
    while let Some((&[kind, length], tail)) = octets.split_first_chunk() {
        let (body, tail) = tail.split_at(usize::from(length).min(tail.len()));
        pieces.push((FIRST_TYPE + kind % TYPES, body));
        octets = tail;
    }
    let mut chain = Vec::new();
    for (index, (_, body)) in pieces.iter().enumerate() {
        let next = pieces.get(index + 1).map_or(0, |(kind, _)| *kind);
        chain.extend_from_slice(&[next, 0]);
        chain.extend_from_slice(&u16::try_from(body.len() + 4).unwrap_or(u16::MAX).to_be_bytes());
        chain.extend_from_slice(body);
    }
    (pieces.first().map_or(0, |(kind, _)| *kind), chain)
}

fn command(sim: &mut Simulator, octets: &[u8]) {
    let number = octets.get(1).copied().unwrap_or_default();
    let installed = &sim.hosts[0].plane.installed;
    let child = usize::from(number).checked_rem(installed.len()).and_then(|place| installed.get(place));
    let child = child.map(|child| (child.inbound_spi, child.path));
    let worker = WorkerIndex(number % 4);
    let command = match (octets.first().copied().unwrap_or_default() % 14, child) {
        (0, Some((spi, _))) => Command::RekeyChild(spi),
        (1, Some((spi, _))) => Command::ChildExpired(spi),
        (2, Some((spi, _))) => Command::InboundUsed(spi),
        (3, _) => Command::RekeyIke(PEER),
        (4, _) => Command::CreateChild(PEER),
        (5, _) => Command::Close(PEER),
        (7, _) => Command::CreateWorkerChild(PEER, worker),
        (8, Some((spi, _))) => Command::RetireWorkerChild(spi),
        (9, Some((spi, path))) => {
            let remote = SocketAddr::from(([203, 0, 113, number], 4500));
            Command::AddressSeen(spi, Path { remote, ..path })
        }
        (10, _) => {
            let (gone, local) = (sim.hosts[0].address, [198, 51, 100, number].into());
            Command::Places { addresses: vec![local], moves: vec![(PEER, gone, local)] }
        }
        (11, _) => Command::Revoke(PEER),
        (12, _) => return sim.finish_installs(),
        (13, _) => Command::Initiate(PEER),
        _ => Command::Probe(PEER),
    };
    sim.command(0, command);
}

/// One peer, however it behaves, costs no more than this, and carries nothing but its own.
fn bounded(sim: &Simulator) {
    let host = &sim.hosts[0];
    let most = 2 * (MAX_CHILDREN + MAX_WORKER_CHILDREN);
    assert!(host.endpoint.ike_sa_count() <= HALF_OPEN_LIMIT);
    assert!(host.endpoint.ike_sas(PEER).len() <= 2);
    assert!(host.endpoint.children(PEER).len() <= most);
    assert!(host.plane.installed.len() <= most);
    assert!(host.endpoint.inbound_spi_count() <= 2 * most);
    let config = peer_config(0, 1, Proof::Psk);
    for child in &host.plane.installed {
        assert!(is_subset(&child.remote_selectors, &config.remote_selectors));
        assert!(is_subset(&child.local_selectors, &config.local_selectors));
    }
}
