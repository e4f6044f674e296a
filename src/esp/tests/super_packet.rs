//! Super-packets against the same packets handed in one by one.

use std::num::NonZeroU16;

use super::*;
use crate::model::Gso;
use crate::wire::segment::Split;
use crate::wire::testing::Recipe;

/// Every packet of a super-packet.
fn cut(split: &Split<'_>) -> Vec<Vec<u8>> {
    let emit = |index| {
        let mut packet = vec![0; split.len_of(index)];
        split.emit(index, &mut packet);
        packet
    };
    (0..split.count()).map(emit).collect()
}

/// Hands a super-packet in, sends as often as that takes, and says how often.
fn send_split(host: &mut Host, split: &Split<'_>) -> (Vec<Vec<u8>>, usize, Outcome) {
    let (mut datagrams, mut next, mut rounds) = (Vec::new(), 0, 0);
    loop {
        let before = next;
        let outcome = host.plane.handle_split(host.now, split, &mut next, &mut host.outbox);
        datagrams.extend(host.flush());
        rounds += 1;
        if next == split.count() || matches!(outcome, Outcome::Stray(_)) {
            return (datagrams, rounds, outcome);
        }
        assert!(next > before, "an empty outbox always takes some");
    }
}

fn tcp(size: u16) -> Gso {
    Gso::Tcp(NonZeroU16::new(size).unwrap())
}

#[test]
fn a_super_packet_becomes_the_same_datagrams_as_its_packets() {
    for (v6, len, size) in [(false, 10_000, 1348), (true, 10_000, 1328), (false, 122 * 536, 536), (false, 60_001, 1000)] {
        let ((mut alpha, mut beta), (mut other, _)) = (pair(SUITE), pair(SUITE));
        let whole = Recipe::new(v6, true, &(0..len).map(|at| at as u8).collect::<Vec<_>>()).build();
        let split = Split::parse(&whole, tcp(size)).unwrap().unwrap();
        let (datagrams, rounds, outcome) = send_split(&mut alpha, &split);
        assert_eq!((outcome, rounds), (Outcome::Done, 1 + datagrams.len().saturating_sub(1) / 128));
        let expected: Vec<Vec<u8>> = cut(&split).iter().map(|packet| other.seal(packet)).collect();
        assert!(datagrams == expected);
        let received = beta.receive_batch(&datagrams[..64.min(datagrams.len())], reversed(alpha_path()), 0, true);
        assert!(received == cut(&split)[..received.len()] && !received.is_empty());
        let counted = |host: &Host| {
            let [packets, octets] = [&host.counters.outbound_packets, &host.counters.outbound_octets];
            (packets.load(Ordering::Relaxed), octets.load(Ordering::Relaxed))
        };
        assert_eq!(counted(&alpha), counted(&other));
        assert_eq!(alpha.nonzero(), []);
    }
}

#[test]
fn a_super_packet_for_nobody_is_counted_by_its_packets() {
    let (mut alpha, _) = pair(SUITE);
    let mut whole = Recipe::new(false, true, &[0; 3000]).build();
    whole[18] = 77;
    let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
    assert_eq!(send_split(&mut alpha, &split).2, Outcome::Dropped(DropReason::NoRoute));
    whole[18] = 2;
    whole[14] = 9;
    let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
    assert_eq!(send_split(&mut alpha, &split).2, Outcome::Dropped(DropReason::SourceNotOurs));
    assert_eq!(alpha.nonzero(), [(DropReason::NoRoute, 3), (DropReason::SourceNotOurs, 3)]);
}

#[test]
fn a_super_packet_of_another_worker_strays_whole() {
    let (mut alpha, _) = pair(SUITE);
    let mut whole = Recipe::new(false, true, &[0; 3000]).build();
    whole[18] = 4;
    let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
    let (datagrams, _, outcome) = send_split(&mut alpha, &split);
    assert_eq!((datagrams.len(), outcome), (0, Outcome::Stray(WorkerIndex(1))));
    assert_eq!(alpha.nonzero(), []);
}

#[test]
fn packets_of_a_super_packet_wait_for_an_sa() {
    let mut alpha = Host::alpha(Provider::Ring);
    let whole = Recipe::new(false, true, &[3; 3000]).build();
    let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
    assert_eq!(send_split(&mut alpha, &split).2, Outcome::Done);
    alpha.install_active(alpha_child(SUITE));
    assert_eq!(alpha.flush().len(), 3);
}

#[test]
fn a_super_packet_does_not_overtake_what_waited() {
    for datagrams in [128, 2] {
        let (mut alpha, mut beta) = (Host::alpha(Provider::Ring), Host::beta(Provider::Ring));
        alpha.outbox = Outbox::new(1 << 18, datagrams);
        let mut expected: Vec<Vec<u8>> = (1..6).map(to_beta).collect();
        for packet in &expected {
            assert_eq!(alpha.send(packet), Outcome::Done);
        }
        alpha.install(alpha_child(SUITE));
        beta.install_active(mirrored(&alpha_child(SUITE), ALPHA));
        // The peer has it: from here on alpha sends with it, before the control thread says so.
        let from_beta = beta.seal(&v4("10.42.2.5", "10.42.1.5", 1, DF, 0));
        assert_eq!(alpha.receive(&from_beta).len(), 1);
        let whole = Recipe::new(false, true, &[3; 3000]).build();
        let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
        expected.extend(cut(&split));
        let (mut sent, mut next) = (Vec::new(), 0);
        while next < split.count() {
            alpha.plane.handle_split(alpha.now, &split, &mut next, &mut alpha.outbox);
            let some = alpha.flush();
            assert!(!some.is_empty(), "an empty outbox always takes some");
            sent.extend(some);
        }
        assert_eq!(beta.receive_batch(&sent, reversed(alpha_path()), 0, true), expected);
    }
}

#[test]
fn packets_too_large_for_the_path_are_answered_or_cut() {
    for (dont_fragment, expected) in [(true, 0), (false, 6)] {
        let (mut alpha, _) = pair(SUITE);
        alpha.update(Update::PathLimit(BETA, Some(800)));
        let recipe = Recipe { dont_fragment, ..Recipe::new(false, false, &[0; 3000]) };
        let whole = recipe.build();
        let split = Split::parse(&whole, Gso::Udp(NonZeroU16::new(1000).unwrap())).unwrap().unwrap();
        let mut next = 0;
        alpha.plane.handle_split(alpha.now, &split, &mut next, &mut alpha.outbox);
        assert_eq!((next, alpha.outbox.replies().count()), (3, if dont_fragment { 3 } else { 0 }));
        assert_eq!(alpha.flush().len(), expected);
        let drops = if dont_fragment { vec![(DropReason::TooBig, 3)] } else { Vec::new() };
        assert_eq!(alpha.nonzero(), drops);
    }
}

#[test]
fn the_last_sequence_number_ends_a_super_packet() {
    let (mut alpha, _) = pair(ChildSuite { esn: false, ..SUITE });
    let slot = alpha.plane.sas.slot(spi(TO_ALPHA)).unwrap();
    alpha.plane.sas.parts(slot).1.unwrap().skip_to(u64::from(u32::MAX) - 1);
    let whole = Recipe::new(false, true, &[3; 5000]).build();
    let split = Split::parse(&whole, tcp(1000)).unwrap().unwrap();
    let (datagrams, _, _) = send_split(&mut alpha, &split);
    assert_eq!((datagrams.len(), alpha.nonzero()), (2, vec![(DropReason::SequenceExhausted, 3)]));
}
