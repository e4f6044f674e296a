//! A peer that cuts its messages into fragments as a fuzzer likes, and a second opinion about what must come of them (RFC 7383).
//!
//! Input is a list of records of four octets: what to do, and three numbers for it. Whatever is damaged, out of range or of another
//! message is counted once and changes nothing; a message is taken when its last fragment is there, and never twice.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::hand::{Hand, sent};
use super::{Proof, Simulator};
use crate::ike::limits::{MAX_COLLECTED_LEN, MAX_FRAGMENTS};
use crate::ike::{Command, Event};
use crate::model::PeerIndex;
use crate::wire::ike::{ExchangeType, Header, Payload, emit_chain, parse_chain};

/// Records of one input; more only make the fuzzer slow.
const MAX_RECORDS: usize = 400;

const PEER: PeerIndex = PeerIndex(1);

/// The type of the only payload.
const VENDOR_ID: u8 = 43;

/// Octets of a message for each of its fragments. Fragments of different messages do not fit together.
const SCALES: [usize; 4] = [8, 60, 700, 1100];

/// The fragments that are there, as the other side should see them.
#[derive(Default)]
struct Opinion {
    total: u16,
    pieces: BTreeMap<u16, Vec<u8>>,
}

/// What must come of a fragment.
#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    /// It is counted, and nothing changes.
    Dropped,
    /// It is kept.
    Kept,
    /// It was the last: the chain.
    Whole(Vec<u8>),
}

impl Opinion {
    fn hear(&mut self, number: u16, total: u16, piece: &[u8]) -> Verdict {
        if number == 0 || number > total || total > MAX_FRAGMENTS {
            return Verdict::Dropped;
        }
        if !self.pieces.is_empty() && (total < self.total || total == self.total && self.pieces.contains_key(&number)) {
            return Verdict::Dropped;
        }
        if total != self.total {
            self.pieces.clear();
            self.total = total;
        }
        self.pieces.insert(number, piece.to_vec());
        if self.pieces.values().map(Vec::len).sum::<usize>() > MAX_COLLECTED_LEN {
            self.pieces.clear();
            return Verdict::Kept;
        }
        if self.pieces.len() < usize::from(total) {
            return Verdict::Kept;
        }
        let chain = std::mem::take(&mut self.pieces).into_values().collect::<Vec<_>>().concat();
        Verdict::Whole(chain)
    }
}

/// A message that needs so many fragments, cut into them.
fn cut(total: u16, scale: usize, octet: u8) -> Vec<Vec<u8>> {
    let mut chain = Vec::new();
    emit_chain(&[Payload::VendorId(Bytes::from(vec![octet; scale * usize::from(total)]))], &mut chain);
    let size = chain.len().div_ceil(usize::from(total).max(1));
    (0..usize::from(total))
        .map(|piece| chain[(piece * size).min(chain.len())..((piece + 1) * size).min(chain.len())].to_vec())
        .collect()
}

/// What both know.
struct Scene {
    sim: Simulator,
    hand: Hand,
    opinion: Opinion,
    /// The request of host 0 that the fragments answer; without, they are requests.
    asked: Option<Header>,
    /// The last datagram, and whether it was the first fragment of an answered request.
    last: Option<(Bytes, bool)>,
}

/// Sends it all to host 0.
///
/// # Panics
/// If host 0 sees it otherwise, or does not let an honest peer in afterwards.
pub fn piece_together(input: &[u8]) {
    let Some((&stage, mut rest)) = input.split_first() else { return };
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    let hand = Hand::greet_with_fragments(&mut sim, 5).prove(&mut sim);
    sent(&mut sim);
    let mut scene = Scene { sim, hand, opinion: Opinion::default(), asked: None, last: None };
    let answers = stage & 1 != 0;
    for _ in 0..MAX_RECORDS {
        let Some((&[what, a, b, c], tail)) = rest.split_first_chunk() else { break };
        rest = tail;
        if answers && scene.asked.is_none() {
            scene.be_asked();
        }
        scene.play(what, [a, b, c]);
        if scene.sim.hosts[0].endpoint.ike_sas(PEER).is_empty() {
            break;
        }
    }
    scene.sim.run_for(Duration::from_secs(120));
    sent(&mut scene.sim);
    Hand::establish(&mut scene.sim, 77);
}

impl Scene {
    fn be_asked(&mut self) {
        sent(&mut self.sim);
        self.sim.command(0, Command::Probe(PEER));
        self.asked =
            self.hand.read(&mut self.sim).into_iter().map(|(header, _)| header).rfind(|header| !header.flags.response);
        assert!(self.asked.is_some(), "host 0 asks");
        self.opinion = Opinion::default();
    }

    /// The header of what is awaited, or of what is so many messages ahead.
    fn header(&self, ahead: u32) -> Header {
        match self.asked {
            Some(asked) => self.hand.header(asked.exchange, asked.message_id.wrapping_add(ahead), true),
            None => self.hand.header(ExchangeType::Informational, self.hand.next_id.wrapping_add(ahead), false),
        }
    }

    fn counted(&self) -> u64 {
        self.sim.hosts[0].endpoint.drops().nonzero().map(|(_, count)| count).sum()
    }

    /// How often a request of host 0 was answered.
    fn proofs(&self) -> usize {
        self.sim.hosts[0].events.iter().filter(|event| matches!(event, Event::Proof { .. })).count()
    }

    fn inject(&mut self, datagram: &Bytes) {
        sent(&mut self.sim);
        self.hand.inject(&mut self.sim, datagram);
        self.last = Some((datagram.clone(), false));
    }

    /// It must be counted once, and change nothing.
    fn inject_in_vain(&mut self, datagram: &Bytes) {
        let (before, proofs) = (self.counted(), self.proofs());
        self.inject(datagram);
        assert_eq!((self.counted(), self.proofs()), (before + 1, proofs));
        assert!(self.hand.read(&mut self.sim).iter().all(|(header, _)| !header.flags.response));
    }

    fn play(&mut self, what: u8, [a, b, c]: [u8; 3]) {
        let scale = SCALES[usize::from(what >> 4) % SCALES.len()];
        match what % 8 {
            0..=3 => self.fragment(a.into(), b.into(), scale, c),
            // One bit is wrong.
            4 => {
                let (number, total) = (u16::from(a % 8) + 1, 8);
                let piece = cut(total, scale, c).swap_remove(usize::from(number) - 1);
                let first = if number == 1 { VENDOR_ID } else { 0 };
                let mut datagram = self.hand.seal_fragment(&self.header(0), number, total, first, &piece).to_vec();
                let place = (usize::from(b) * 8 + usize::from(c)) % (datagram.len() * 8);
                datagram[place / 8] ^= 1 << (place % 8);
                // The version flag and the reserved bits mean nothing, but the ICV covers them: only the lengths are checked before.
                self.inject_in_vain(&datagram.into());
            }
            // Of another message.
            5 => {
                let header = self.header(1 + u32::from(a) % 3);
                let datagram = self.hand.seal_fragment(&header, 1, 1, VENDOR_ID, &cut(1, scale, c).concat());
                self.inject_in_vain(&datagram);
            }
            // Whole.
            6 => {
                let mut chain = cut(1, scale, c).concat();
                chain.push(0);
                let datagram = self.hand.seal_octets(&self.header(0), VENDOR_ID, &chain).into();
                let proofs = self.proofs();
                self.inject(&datagram);
                self.must_be_taken(proofs, true);
            }
            _ if a % 2 == 0 => self.sim.run_for(Duration::from_millis(u64::from(b) * 20)),
            // Once more.
            _ => {
                let Some((datagram, repeats)) = self.last.take() else { return };
                if repeats && self.asked.is_none() {
                    self.inject(&datagram);
                    assert_eq!(self.hand.read(&mut self.sim).len(), 1, "the answer once more");
                    self.last = Some((datagram, true));
                }
            }
        }
    }

    fn fragment(&mut self, number: u16, total: u16, scale: usize, octet: u8) {
        // Of those that are out of range, the text does not matter.
        let pieces = cut(total.clamp(1, MAX_FRAGMENTS), scale, octet);
        let piece = pieces.get(usize::from(number).wrapping_sub(1)).cloned().unwrap_or_default();
        let first = if number == 1 { VENDOR_ID } else { octet };
        let datagram = self.hand.seal_fragment(&self.header(0), number, total, first, &piece);
        let proofs = self.proofs();
        match self.opinion.hear(number, total, &piece) {
            Verdict::Dropped => self.inject_in_vain(&datagram),
            Verdict::Kept => {
                let before = self.counted();
                self.inject(&datagram);
                assert_eq!((self.counted(), self.proofs()), (before, proofs));
            }
            Verdict::Whole(chain) => {
                self.inject(&datagram);
                let is_sound = parse_chain(VENDOR_ID, &chain).is_ok();
                self.must_be_taken(proofs, is_sound);
                // By its first fragment a request is known again.
                self.last = Some((datagram, number == 1));
            }
        }
    }

    /// The message that is awaited was taken: a request was answered, or an answer was believed. What is authentic and malformed
    /// ends the IKE SA.
    fn must_be_taken(&mut self, proofs: usize, is_sound: bool) {
        self.opinion = Opinion::default();
        let up = !self.sim.hosts[0].endpoint.ike_sas(PEER).is_empty();
        assert_eq!(up, is_sound, "authentic and malformed ends the IKE SA, and nothing else does");
        if self.asked.take().is_some() {
            assert_eq!(self.proofs(), proofs + usize::from(is_sound));
        } else {
            self.hand.next_id += 1;
            let answers = self.hand.read(&mut self.sim);
            assert_eq!(answers.iter().filter(|(header, _)| header.flags.response).count(), 1);
        }
    }
}
