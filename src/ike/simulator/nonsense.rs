//! A peer that proved itself and then says what a fuzzer makes up, under the right keys.
//!
//! Input is a list of records: one octet that says what to do, two of length, and octets for it. What is said is a chain of
//! payloads: either raw, or cut into payloads with sound headers, so that their bodies are reached. It travels whole, as fragments
//! in backward order, or as one fragment with the numbers that the input wants.

use std::time::Duration;

use super::hand::{Greeting, Hand, own_config, sent};
use super::{Proof, Simulator};
use crate::ike::Command;
use crate::ike::limits::{HALF_OPEN_LIMIT, MAX_CHILDREN};
use crate::model::PeerIndex;
use crate::wire::ike::{ExchangeType, Header};

/// Records of one input; more only make the fuzzer slow.
const MAX_RECORDS: usize = 16;

/// Payload types of RFC 7296, from SA (33) to SKF (53).
const FIRST_TYPE: u8 = 33;
const TYPES: u8 = 21;

/// Bits of a record's first octet: the chain is raw; it is one fragment; it is cut into fragments.
const RAW: u8 = 8;
const FRAGMENT: u8 = 16;
const CUT: u8 = 32;

/// Another bit: IKE_FOLLOWUP_KE in place of CREATE_CHILD_SA, IKE_INTERMEDIATE in place of IKE_AUTH.
const OTHER: u8 = 64;

/// Octets of the fragments into which a chain is cut.
const CUT_TO: usize = 100;

/// The peer of host 0.
const PEER: PeerIndex = PeerIndex(1);

/// Says it all to host 0.
///
/// # Panics
/// If host 0 holds more than it may, or does not let an honest peer in afterwards.
pub fn speak_nonsense(input: &[u8]) {
    let Some((&stage, mut rest)) = input.split_first() else { return };
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    // Before AUTH or after it.
    let hand = match (stage & 4, stage & 2) {
        (0, 0) => Hand::greet(&mut sim, 5),
        (0, _) => Hand::greet_with_fragments(&mut sim, 5),
        (_, 0) => Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)),
        (_, _) => Hand::greet_with(&mut sim, 5, Greeting::post_quantum(5)).add_key_exchange(&mut sim),
    };
    // Without IKE_INTERMEDIATE such a peer cannot prove itself.
    let stage = if stage & 6 == 4 { stage | 1 } else { stage };
    let mut hand = if stage & 1 == 0 { hand.prove(&mut sim) } else { hand };
    let mut asked = None;
    for _ in 0..MAX_RECORDS {
        let Some((&[kind, high, low], tail)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (octets, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        say(&mut sim, &mut hand, &mut asked, kind, octets);
        sim.finish_installs();
        asked = hand.read(&mut sim).into_iter().map(|(header, _)| header).rfind(|header| !header.flags.response).or(asked);
        bounded(&sim);
    }
    sim.run_for(Duration::from_secs(120));
    sent(&mut sim);
    bounded(&sim);
    Hand::establish(&mut sim, 77);
}

fn say(sim: &mut Simulator, hand: &mut Hand, asked: &mut Option<Header>, kind: u8, octets: &[u8]) {
    let request = |exchange, hand: &Hand| hand.header(exchange, hand.next_id, false);
    let header = match kind % 8 {
        0 if kind & OTHER != 0 => request(ExchangeType::IkeFollowupKe, hand),
        0 => request(ExchangeType::CreateChildSa, hand),
        1 => request(ExchangeType::Informational, hand),
        2 if kind & OTHER != 0 => request(ExchangeType::IkeIntermediate, hand),
        2 => request(ExchangeType::IkeAuth, hand),
        // The answer to what host 0 asked last.
        3 | 4 => match asked.take() {
            Some(asked) => hand.header(asked.exchange, asked.message_id, true),
            None => request(ExchangeType::Informational, hand),
        },
        5 => return command(sim, octets),
        6 => return sim.run_for(Duration::from_millis(octets.len() as u64 * 20)),
        // A good one among the bad.
        _ => {
            let payloads = hand.proof_payloads(&own_config(Proof::Psk));
            return hand.send(sim, ExchangeType::IkeAuth, &payloads);
        }
    };
    if kind & FRAGMENT != 0 {
        let Some((&[number, total, first], piece)) = octets.split_first_chunk() else { return };
        // No fragment has this number: it stands for the end of a message.
        hand.next_id += u32::from(number == 0);
        let message = hand.seal_fragment(&header, number.into(), total.into(), first, piece);
        return hand.inject(sim, &message);
    }
    let (first, mut text) = if kind & RAW == 0 { structured(octets) } else { raw(octets) };
    if !header.flags.response {
        hand.next_id += 1;
    }
    if kind & CUT != 0 {
        let pieces = hand.seal_fragments(&header, first, &text, CUT_TO);
        return pieces.iter().rev().for_each(|piece| hand.inject(sim, piece));
    }
    text.push(0);
    let message = hand.seal_octets(&header, first, &text);
    hand.inject(sim, &message);
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
    let child = sim.hosts[0].plane.installed.first().map(|child| child.inbound_spi);
    let command = match (octets.first().copied().unwrap_or_default() % 7, child) {
        (0, Some(spi)) => Command::RekeyChild(spi),
        (1, Some(spi)) => Command::ChildExpired(spi),
        (2, Some(spi)) => Command::InboundUsed(spi),
        (3, _) => Command::RekeyIke(PEER),
        (4, _) => Command::CreateChild(PEER),
        (5, _) => Command::Close(PEER),
        _ => Command::Probe(PEER),
    };
    sim.command(0, command);
}

/// One peer, however it behaves, costs no more than this.
fn bounded(sim: &Simulator) {
    let host = &sim.hosts[0];
    assert!(host.endpoint.ike_sa_count() <= HALF_OPEN_LIMIT);
    assert!(host.endpoint.ike_sas(PEER).len() <= 2);
    assert!(host.endpoint.children(PEER).len() <= 2 * MAX_CHILDREN);
    assert!(host.plane.installed.len() <= 2 * MAX_CHILDREN);
}
