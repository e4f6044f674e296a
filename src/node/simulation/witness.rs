//! Watches a world: no nonce is used twice under a key, no clock stands still, no input makes endless work. What it saw is
//! asked for at the end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use super::{Content, Datagram};
use crate::esp::Update;
use crate::model::{Instant, Secret, Spi};
use crate::wire::ike::Header;

/// Rounds between a node and its workers, and datagrams that leave, for one input or one look at the clock: a host with seven peers
/// and two workers has some ten of each to do when a partition heals.
const MOST_WORK: usize = 256;

/// Things that are due at one moment, in a world of some hosts.
const MOST_STEPS: usize = 10_000;

/// Lines of a story.
const LINES: usize = 1000;

/// Keys of a CHILD_SA as one end has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    /// Of what comes in.
    pub inbound: Secret,
    /// Of what goes out.
    pub outbound: Secret,
}

/// A key by a name that is cheap to compare.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum KeyName {
    /// The key itself.
    Esp(Vec<u8>),
    /// SPIs in the order of the header, whether the sender is the original initiator, and whether the keys are those of before
    /// IKE_INTERMEDIATE.
    Ike([u8; 16], bool, bool),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Witness {
    /// What must never happen and did.
    complaints: Vec<String>,
    /// The keys of every SA that was ever installed, by host, its life, and inbound SPI.
    installed: HashMap<(IpAddr, u64, Spi), Keys>,
    /// The key that a host sends with under an outbound SPI.
    senders: HashMap<(u64, u32), Vec<u8>>,
    /// Nonces by key, with what was sealed under them.
    sealed: HashMap<(KeyName, [u8; 8]), u64>,
    /// What happened last, if somebody wants to read it.
    story: Option<VecDeque<String>>,
    steps: usize,
    /// The most of one input.
    most_work: BTreeMap<IpAddr, usize>,
}

impl Witness {
    /// The first thing that must never happen and did.
    #[must_use]
    pub fn complaint(&self) -> Option<&str> {
        self.complaints.first().map(String::as_str)
    }

    /// Writes down from now on what happens.
    pub fn write_down(&mut self) {
        self.story = Some(VecDeque::new());
    }

    /// What was written down, the last lines of it.
    #[must_use]
    pub fn story(&self) -> String {
        self.story.iter().flatten().map(|line| format!("{line}\n")).collect()
    }

    pub(super) fn is_writing(&self) -> bool {
        self.story.is_some()
    }

    pub(super) fn tell(&mut self, now: Instant, line: impl FnOnce() -> String) {
        let Some(story) = &mut self.story else { return };
        if story.len() == LINES {
            story.pop_front();
        }
        story.push_back(format!("{:10.4} {}", now.since_origin().as_secs_f64(), line()));
    }

    /// The keys that a host has for an SA.
    #[must_use]
    pub fn keys(&self, address: IpAddr, life: u64, spi: Spi) -> Option<&Keys> {
        self.installed.get(&(address, life, spi))
    }

    pub(super) fn complain(&mut self, sentence: String) {
        // One is enough; what follows from it is not.
        if self.complaints.len() < 8 {
            self.complaints.push(sentence);
        }
    }

    pub(super) fn note_step(&mut self, now: Instant, next: Instant) {
        self.steps = if next > now { 0 } else { self.steps + 1 };
        if self.steps > MOST_STEPS {
            self.complain("P8: the world does not get any further".to_owned());
        }
    }

    pub(super) fn note_work(&mut self, address: IpAddr, work: usize) {
        let most = self.most_work.entry(address).or_default();
        *most = work.max(*most);
        if work > MOST_WORK {
            self.complain(format!("P8: {work} things to do at {address} for one input"));
        }
    }

    pub(super) fn note_update(&mut self, now: Instant, address: IpAddr, life: u64, update: &Update) {
        self.tell(now, || match update {
            Update::Install { child, .. } => format!("{address} installs {} <- {}", child.inbound_spi, child.outbound_spi),
            Update::Routes(_) => format!("{address} has new routes"),
            other => format!("{address} {other:?}"),
        });
        let Update::Install { child, .. } = update else { return };
        let (inbound, outbound) = (child.inbound_key.keymat.clone(), child.outbound_key.keymat.clone());
        self.senders.insert((life, child.outbound_spi.value()), outbound.expose().to_vec());
        self.installed.insert((address, life, child.inbound_spi), Keys { inbound, outbound });
    }

    /// A datagram leaves a host.
    pub(super) fn note_sent(&mut self, now: Instant, life: u64, datagram: &Datagram) {
        if let Content::Ike(_, octets) = &datagram.content
            && let Ok((header, _)) = Header::parse(octets)
        {
            let (from, to) = (datagram.path.local.ip(), datagram.path.remote.ip());
            let Header { initiator_spi, exchange, flags, message_id, .. } = header;
            let what = if flags.response { "answers" } else { "asks" };
            self.tell(now, || {
                format!("{from} {what} {to}: {exchange} {message_id} of {initiator_spi:016x}, {} octets", octets.len())
            });
        }
        let (name, iv, octets) = match &datagram.content {
            Content::Esp(_, octets) => {
                let Some((spi, rest)) = octets.split_first_chunk::<4>() else { return };
                let key = self.senders.get(&(life, u32::from_be_bytes(*spi)));
                let (Some(key), Some(&iv)) = (key, rest.get(4..).and_then(<[u8]>::first_chunk::<8>)) else {
                    return self.complain("P3: ESP under an SPI without key".to_owned());
                };
                (KeyName::Esp(key.clone()), iv, octets)
            }
            Content::Ike(_, octets) => {
                let Some((spis, rest)) = octets.split_first_chunk::<16>() else { return };
                // Next payload: SK or SKF; the exchange stands two octets further.
                let Some(&[next, _, exchange, flags]) = rest.first_chunk::<4>() else { return };
                let head = match next {
                    46 => 28 + 4,
                    53 => 28 + 4 + 4,
                    _ => return,
                };
                let Some(&iv) = octets.get(head..).and_then(<[u8]>::first_chunk::<8>) else { return };
                const IKE_INTERMEDIATE: u8 = 43;
                (KeyName::Ike(*spis, flags & 8 != 0, exchange == IKE_INTERMEDIATE), iv, octets)
            }
        };
        let print = fingerprint(octets);
        // The same octets again are a retransmission, for IKE; ESP is never sealed twice.
        let is_esp = matches!(name, KeyName::Esp(_));
        if let Some(before) = self.sealed.insert((name, iv), print)
            && (is_esp || before != print)
        {
            self.complain(format!("P3: a nonce is used twice under one key, to {}", datagram.path.remote));
        }
    }
}

/// FNV-1a: enough to tell a retransmission from another message.
fn fingerprint(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3))
}
