//! The bodies of the fuzz targets: octets in, and a panic if a property does not hold.
//!
//! They stand in the library so that the targets in `fuzz/` and the tests run the same code: the targets on inputs that a
//! fuzzer makes up, the tests on the committed corpora in `fuzz/corpus/`. None of this is an interface for anybody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ike::narrow::{is_subset, narrow};
use crate::ike::proposals::{accept_esp, accept_ike, choose_esp, choose_ike};
use crate::model::{AeadAlgorithm, DropReason, TrafficSelector};
use crate::node::simulation::schedule::Schedule;
use crate::wire::icmp;
use crate::wire::ike::{HEADER_LEN, Message, Payload, Proposal, ProtectedView, parse_chain};
use crate::wire::ip::{self, Packet, Trailing};
use crate::wire::natt::{self, Natt};
use crate::wire::{checksum, esp};

#[cfg(feature = "x509")]
mod certificates;
mod esp_open;

#[cfg(feature = "x509")]
pub use certificates::certificates;
pub use esp_open::esp_open;

/// Octets of a schedule; more steps only make the fuzzer slow.
const MAX_SCHEDULE: usize = 6 + 3 * 64;

/// A datagram on the NAT-T port: it is one thing only, and what is taken for ESP has room for a trailer.
pub fn natt(data: &[u8]) {
    match natt::classify(data) {
        Natt::Keepalive => assert_eq!(data, natt::KEEPALIVE),
        Natt::Ike(message) => {
            assert_eq!(data.strip_prefix(&natt::NON_ESP_MARKER), Some(message));
            let _ = Message::parse(message).map_err(|error| error.to_string());
        }
        Natt::Esp(spi) => {
            let header = esp::Header::parse(data).expect("classified as ESP");
            assert_eq!((header.spi, &header.emit()[..]), (spi, &data[..esp::HEADER_LEN]));
            match esp::text_range(data.len()) {
                Ok(range) => esp_text(&data[range]),
                Err(reason) => assert_eq!(reason, DropReason::NotAligned),
            }
        }
        Natt::Malformed(reason) => assert!(matches!(reason, DropReason::Runt | DropReason::ReservedSpi)),
    }
}

/// A peer that proved itself, or at least did the key exchange, and then says what the input makes up under the right keys: the
/// IKE machine holds no more than one peer may cost, and lets an honest peer in afterwards.
pub fn ike_protected(data: &[u8]) {
    crate::ike::simulator::speak_nonsense(data);
}

/// A peer that proved itself and cuts its messages into fragments as the input says: each is kept, dropped or completes its message
/// as a second opinion says.
pub fn ike_fragments(data: &[u8]) {
    crate::ike::simulator::piece_together(data);
}

/// Two hosts, and what happens between them as the input says: the invariants of [`schedule`](crate::node::simulation::schedule)
/// hold.
///
/// # Panics
/// If one does not.
pub fn ike_schedule(data: &[u8]) {
    let schedule = Schedule::of_octets(1, &data[..data.len().min(MAX_SCHEDULE)], 2);
    if let Err(why) = schedule.play() {
        panic!("{why}\n{schedule:#?}");
    }
}

/// The text of an ESP packet, taken as if it had been opened.
fn esp_text(text: &[u8]) {
    if let Ok((inner_len, next_header)) = esp::parse_trailer(text) {
        assert!(inner_len + esp::TRAILER_LEN <= text.len());
        assert_eq!(text.last(), Some(&next_header));
    }
}

/// An IP packet, behind two octets that choose an MTU: no accessor fails, fragments make up the packet, answers are packets that
/// are not answered again.
pub fn ip(data: &[u8]) {
    let Some((&mtu, octets)) = data.split_first_chunk() else { return };
    let mtu = u16::from_be_bytes(mtu);
    let Ok(packet) = Packet::parse(octets, Trailing::Ignored).map_err(|error| error.to_string()) else { return };
    assert!(octets.starts_with(packet.octets()) && packet.octets().ends_with(packet.payload()));
    assert_eq!(Packet::parse(packet.octets(), Trailing::Refused), Ok(packet));
    assert_eq!(packet.source().is_ipv4(), packet.destination().is_ipv4());
    assert!(packet.ports().is_none() || packet.fragment_offset() == 0);
    ip_class(&packet);
    ip_fragments(&packet, mtu);
    ip_answer(&packet, mtu);
}

fn ip_class(packet: &Packet<'_>) {
    let mut changed = packet.octets().to_vec();
    ip::set_ecn(&mut changed, packet.ecn() ^ 3);
    let marked = Packet::parse(&changed, Trailing::Refused).expect("only the class changed");
    assert_eq!(marked.traffic_class(), packet.traffic_class() ^ 3);
    assert_eq!(marked.header_checksum_holds(), packet.header_checksum_holds(), "neither repaired nor broken");
}

fn ip_fragments(packet: &Packet<'_>, mtu: u16) {
    let mtu = usize::from(mtu);
    let mut buffer = vec![0; mtu];
    let mut made_up = Vec::new();
    let mut last_has_more = packet.more_fragments();
    let cut = ip::fragment(packet, mtu, &mut buffer, |octets| {
        assert!(octets.len() <= mtu);
        let piece = Packet::parse(octets, Trailing::Refused).expect("a fragment is a packet");
        assert!(octets == packet.octets() || piece.header_checksum_holds());
        let offset = usize::from(piece.fragment_offset()) - usize::from(packet.fragment_offset());
        assert_eq!(offset, made_up.len(), "no gap and no overlap");
        made_up.extend_from_slice(piece.payload());
        last_has_more = piece.more_fragments();
    });
    match cut {
        Ok(()) => assert_eq!((&made_up[..], last_has_more), (packet.payload(), packet.more_fragments())),
        Err(error) => assert!(made_up.is_empty() && !error.to_string().is_empty()),
    }
}

fn ip_answer(packet: &Packet<'_>, mtu: u16) {
    let from = match packet.source() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    };
    let mut buffer = [0; icmp::MAX_ANSWER_LEN];
    let Some(length) = icmp::too_big(packet, mtu, from, &mut buffer) else { return };
    let answer = Packet::parse(&buffer[..length], Trailing::Refused).expect("an answer is a packet");
    assert_eq!((answer.source(), answer.destination()), (from, packet.source()));
    assert!(answer.header_checksum_holds());
    assert!(answer.source().is_ipv6() || checksum::checksum(answer.payload()) == 0);
    assert_eq!(icmp::too_big(&answer, mtu, packet.source(), &mut [0; icmp::MAX_ANSWER_LEN]), None);
}

/// An IKE message without its marker. What parses is emitted as no more octets that parse to the same, in clear or in SK
/// (whose ICV is taken for good); what can be chosen from its SA payload, its proposer would accept.
///
/// The same octets are tried with a right Length field too: what a fuzzer inserts would seldom get past it otherwise.
pub fn ike_message(data: &[u8]) {
    ike_datagram(data);
    let mut data = data.to_vec();
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    if let Some(field) = data.get_mut(HEADER_LEN - 4..HEADER_LEN) {
        field.copy_from_slice(&length.to_be_bytes());
        ike_datagram(&data);
    }
}

fn ike_datagram(data: &[u8]) {
    let Ok(message) = Message::parse(data).map_err(|error| error.to_string()) else { return };
    assert!(!format!("{message:?}").is_empty());
    ike_payloads(&message.payloads);
    match message.protected {
        None => {
            let emitted = Message::emit_clear(&message.header, &message.payloads);
            assert!(emitted.len() <= data.len());
            assert_eq!(Message::parse(&emitted), Ok(message));
        }
        Some(view) => {
            let Some(inner) = ike_opened(view, data) else { return };
            ike_payloads(&inner);
            let emitted = Message::emit_protected(&message.header, &inner, |_, _| ([0; 8], [0; 16]));
            let view = Message::parse(&emitted).expect("what we emit parses").protected.expect("an SK payload");
            assert_eq!(ike_opened(view, &emitted), Some(inner));
        }
    }
}

/// The chain inside SK, if what stands there is taken for the plaintext.
fn ike_opened(view: ProtectedView, datagram: &[u8]) -> Option<Vec<Payload>> {
    let mut datagram = datagram.to_vec();
    let (first, chain) = Message::open(view, &mut datagram, |_, _, _, _| true).ok()?;
    parse_chain(first, chain).ok()
}

fn ike_payloads(payloads: &[Payload]) {
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(proposals) => ike_proposals(proposals),
            Payload::TsInitiator(selectors) | Payload::TsResponder(selectors) => ike_selectors(selectors),
            _ => {}
        }
    }
}

fn ike_proposals(theirs: &[Proposal]) {
    for ke_group in [None, Some(31), Some(14)] {
        if let Ok(mut chosen) = choose_ike(&AeadAlgorithm::ALL, theirs, ke_group, ke_group.is_some()) {
            chosen.answer.spi = chosen.spi.clone().into();
            let accepted = accept_ike(theirs, std::slice::from_ref(&chosen.answer)).expect("what was proposed");
            assert_eq!((accepted.suite, accepted.spi), (chosen.suite, chosen.spi));
        }
        if let Ok(mut chosen) = choose_esp(&AeadAlgorithm::ALL, theirs, ke_group, false, true) {
            chosen.answer.spi = chosen.spi.clone().into();
            let accepted = accept_esp(theirs, std::slice::from_ref(&chosen.answer)).expect("what was proposed");
            assert_eq!((accepted.suite, accepted.spi), (chosen.suite, chosen.spi));
        }
        let _ = choose_esp(&AeadAlgorithm::ALL, theirs, ke_group, true, true);
    }
}

fn ike_selectors(theirs: &[TrafficSelector]) {
    let prefix = |text: &str| TrafficSelector::from_prefix(text.parse().expect("a prefix"));
    let ours = [prefix("10.42.0.0/16"), prefix("2001:db8::/32")];
    let narrowed = narrow(theirs, &ours);
    assert!(narrowed.is_empty() || is_subset(&narrowed, theirs) && is_subset(&narrowed, &ours));
    assert!(narrowed.iter().all(|selector| !selector.to_string().is_empty()));
}

#[cfg(test)]
mod tests;
