//! Datagrams and packets that must end in one counted drop and change nothing.

use super::*;

/// Two hosts, and the SA with which the test can forge what alpha would send.
fn scene() -> (Host, Host, ChildSaParams) {
    let (alpha, beta) = pair(SUITE);
    (alpha, beta, alpha_child(SUITE))
}

#[test]
fn case_106_reserved_and_unknown_spis() {
    let (mut alpha, mut beta, _) = scene();
    let mut datagram = alpha.seal(&to_beta(10));
    for reserved in 0..256u32 {
        datagram[..4].copy_from_slice(&reserved.to_be_bytes());
        beta.refuse(&datagram, DropReason::ReservedSpi);
    }
    datagram[..4].copy_from_slice(&0x1234_5600u32.to_be_bytes());
    // The first time the mailbox may know better.
    let path = reversed(alpha_path());
    assert!(beta.receive_batch(&[datagram.clone()], path, 0, false).is_empty());
    assert_eq!((beta.inbox.unknown.len(), beta.drops.of(DropReason::UnknownSpi)), (1, 0));
    assert_eq!(beta.events(), []);
    beta.refuse(&datagram, DropReason::UnknownSpi);
    beta.refuse(&datagram, DropReason::UnknownSpi);
    assert!(beta.inbox.unknown.is_empty());
    assert_eq!(beta.events(), [Event::UnknownSpi(path)]);
    // Another worker's.
    datagram[..4].copy_from_slice(&0x1234_5605u32.to_be_bytes());
    assert!(beta.receive(&datagram).is_empty());
    assert_eq!(beta.inbox.strays.len(), 1);
    assert_eq!(beta.inbox.strays[0].0, WorkerIndex(5));
}

#[test]
fn case_107_replays_and_window_edges() {
    let (_, mut beta, child) = scene();
    let packet = padded(&to_beta(10), 4);
    let datagram = |sequence| forge(&child, sequence, packet.clone());
    beta.refuse(&datagram(0), DropReason::ZeroSequence);
    assert_eq!(beta.receive(&datagram(1)).len(), 1);
    beta.refuse(&datagram(1), DropReason::Replay);
    assert_eq!(beta.receive(&datagram(1000)).len(), 1);
    beta.refuse(&datagram(872), DropReason::BadIcv);
    assert_eq!(beta.receive(&datagram(873)).len(), 1);
    beta.refuse(&datagram(873), DropReason::Replay);
    assert_eq!(beta.receive(&datagram(874)).len(), 1);
    // A jump of 2^31 is legal, if it is authentic.
    assert_eq!(beta.receive(&datagram(1 << 31)).len(), 1);
    beta.refuse(&datagram(1000), DropReason::BadIcv);
}

#[test]
fn case_107_a_twin_in_the_same_batch_is_dropped_once() {
    let (mut alpha, mut beta, child) = scene();
    let mut datagrams: Vec<_> = (0..40).map(|payload| alpha.seal(&to_beta(payload))).collect();
    let twin = datagrams[5].clone();
    datagrams.insert(6, twin.clone());
    datagrams.push(twin);
    // A forgery under the sequence number of an honest one, in front of it, takes nothing away.
    let mut forged = forge(&child, 20, padded(&to_beta(19), 4));
    *forged.last_mut().expect("an ICV") ^= 1;
    datagrams.insert(3, forged);
    let received = beta.receive_batch(&datagrams, reversed(alpha_path()), 0, true);
    assert_eq!(received.len(), 40);
    assert_eq!(beta.nonzero(), [(DropReason::Replay, 2), (DropReason::BadIcv, 1)]);
}

#[test]
fn case_108_the_high_word_is_part_of_the_icv() {
    let (_, mut beta, child) = scene();
    let packet = padded(&to_beta(10), 4);
    assert_eq!(beta.receive(&forge(&child, 0xffff_fff0, packet.clone())).len(), 1);
    assert_eq!(beta.receive(&forge(&child, 0x1_0000_0005, packet.clone())).len(), 1);
    assert_eq!(beta.receive(&forge(&child, 0xffff_fff1, packet.clone())).len(), 1);
    // Two subspaces ahead: the guess is one ahead, and the ICV says no.
    beta.refuse(&forge(&child, 0x3_0000_0005, packet.clone()), DropReason::Replay);
    beta.refuse(&forge(&child, 0x3_0000_0006, packet), DropReason::BadIcv);
}

#[test]
fn case_109_every_length_below_the_smallest_packet() {
    let (_, mut beta, child) = scene();
    let smallest = forge(&child, 1, padded(b"", 59));
    assert_eq!(smallest.len(), 36);
    for len in 0..34 {
        beta.refuse(&smallest[..len], DropReason::Runt);
    }
    for len in 34..36 {
        let before = beta.drops.of(DropReason::NotAligned) + beta.drops.of(DropReason::Runt);
        assert!(beta.receive(&smallest[..len]).is_empty());
        assert_eq!(beta.drops.of(DropReason::NotAligned) + beta.drops.of(DropReason::Runt), before + 1);
    }
    let longer = forge(&child, 1, padded(&to_beta(10), 4));
    for cut in [1, 2, 3] {
        beta.refuse(&longer[..longer.len() - cut], DropReason::NotAligned);
    }
    beta.refuse(&longer[..longer.len() - 4], DropReason::BadIcv);
    assert_eq!(beta.receive(&longer).len(), 1);
}

#[test]
fn case_110_padding_longer_than_the_packet() {
    let (_, mut beta, child) = scene();
    for (sequence, text) in [(1, vec![0, 0, 3, 4]), (2, vec![0, 0, 255, 4]), (3, vec![0, 0, 3, 59])] {
        beta.refuse(&forge(&child, sequence, text), DropReason::BadPadding);
    }
    beta.refuse(&forge(&child, 4, vec![0, 0, 2, 59]), DropReason::Dummy);
    beta.refuse(&forge(&child, 5, vec![0, 0, 2, 4]), DropReason::BadInner);
}

#[test]
fn case_111_next_headers() {
    let (_, mut beta, child) = scene();
    let (four, six) = (to_beta(10), v6("fd00:42:1::5", "fd00:42:2::5", 10, 0));
    for (sequence, next_header) in (1u64..).zip((0..=255).filter(|kind| ![4, 41, 59].contains(kind))) {
        beta.refuse(&forge(&child, sequence, padded(&four, next_header)), DropReason::NextHeader);
    }
    beta.refuse(&forge(&child, 300, padded(&six, 4)), DropReason::BadInner);
    beta.refuse(&forge(&child, 301, padded(&four, 41)), DropReason::BadInner);
    beta.refuse(&forge(&child, 302, padded(&four, 59)), DropReason::Dummy);
    assert_eq!(beta.receive(&forge(&child, 303, padded(&six, 41))), [six]);
}

#[test]
fn case_112_inner_packets_that_are_none() {
    let (_, mut beta, child) = scene();
    let good = to_beta(10);
    let with = |at: usize, octets: &[u8]| {
        let mut packet = good.clone();
        packet[at..at + octets.len()].copy_from_slice(octets);
        packet[10..12].fill(0);
        let sum = header_sum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    let too_long = (good.len() as u16 + 1).to_be_bytes();
    let broken = [
        with(2, &too_long),
        with(2, &[0, 19]),
        with(2, &[0, 0]),
        with(0, &[0x44]),
        with(0, &[0x40]),
        with(0, &[0x55]),
        with(0, &[0x05]),
        good[..19].to_vec(),
        good[..1].to_vec(),
    ];
    for (sequence, packet) in (1..).zip(broken) {
        // Without room for padding to help out.
        beta.refuse(&forge(&child, sequence, padded(&packet, 4)), DropReason::BadInner);
    }
    let six = v6("fd00:42:1::5", "fd00:42:2::5", 10, 0);
    let mut long = six.clone();
    long[5] += 1;
    for (sequence, packet) in (50..).zip([long, six[..39].to_vec(), vec![]]) {
        beta.refuse(&forge(&child, sequence, padded(&packet, 41)), DropReason::BadInner);
    }
    // A total length below the body is TFC padding; a fragment is a packet like any other.
    let short = with(2, &[0, 28]);
    assert_eq!(beta.receive(&forge(&child, 100, padded(&short, 4))), [short[..28].to_vec()]);
    let fragment = with(6, &[0x20, 0x05]);
    assert_eq!(beta.receive(&forge(&child, 101, padded(&fragment, 4))), [fragment]);
}

#[test]
fn case_113_inner_addresses_must_route() {
    let (_, mut beta, mut child) = scene();
    let send = |source, destination| v4(source, destination, 10, DF, 0);
    let refused = [
        // The selectors allow 10.42.0.0/16; the routes know better.
        (send("10.42.3.5", "10.42.2.5"), DropReason::SourceNotPeers),
        (send("10.42.2.9", "10.42.2.5"), DropReason::SourceNotPeers),
        (send("10.42.77.5", "10.42.2.5"), DropReason::SourceNotPeers),
        (send("10.42.1.5", "10.42.3.5"), DropReason::DestinationNotOurs),
        (send("10.42.1.5", "10.42.1.6"), DropReason::DestinationNotOurs),
        // Our own address on the underlay, where IKE listens.
        (send("10.42.1.5", "192.0.2.2"), DropReason::InboundSelector),
        (send("192.0.2.1", "10.42.2.5"), DropReason::InboundSelector),
        (send("10.42.1.5", "127.0.0.1"), DropReason::InboundSelector),
        (send("10.42.1.5", "255.255.255.255"), DropReason::InboundSelector),
        (send("0.0.0.0", "10.42.2.5"), DropReason::InboundSelector),
    ];
    for (sequence, (packet, reason)) in (1..).zip(refused) {
        beta.refuse(&forge(&child, sequence, padded(&packet, 4)), reason);
    }
    // Selectors that allow everything do not help.
    let any = || vec![TrafficSelector::from_prefix("0.0.0.0/0".parse().expect("a prefix"))];
    (child.local_selectors, child.remote_selectors) = (any(), any());
    (child.inbound_spi, child.outbound_spi) = (spi(0x1000), spi(0x2000));
    beta.install(mirrored(&child, ALPHA));
    let underlay = send("10.42.1.5", "192.0.2.2");
    beta.refuse(&forge(&child, 1, padded(&underlay, 4)), DropReason::DestinationNotOurs);
    let foreign = send("192.0.2.1", "10.42.2.5");
    beta.refuse(&forge(&child, 2, padded(&foreign, 4)), DropReason::SourceNotPeers);
}

#[test]
fn case_114_esp_inside_esp_needs_a_route() {
    let (mut alpha, _, _) = scene();
    // Our own ESP datagram, back at the TUN: its destination is the peer's underlay address, which no route knows.
    let loop_back = v4("192.0.2.1", "192.0.2.2", 100, DF, 0);
    assert_eq!(alpha.send(&loop_back), Outcome::Dropped(DropReason::NoRoute));
    // A peer that called from an address that is routed to it: the answers enter the TUN, and end there, as they come from our
    // underlay address.
    let loop_back = v4("192.0.2.1", "10.42.2.5", 100, DF, 0);
    assert_eq!(alpha.send(&loop_back), Outcome::Dropped(DropReason::SourceNotOurs));
    assert!(alpha.flush().is_empty());
}

/// Forgeries under a known SPI, with every sequence number: each costs one ICV and one count. Nobody is told, and the window stays
/// where it was.
#[test]
fn case_117_a_flood_of_forgeries_tells_nobody_and_moves_nothing() {
    const BATCHES: u32 = 400;
    let (mut alpha, mut beta, _) = scene();
    let mut chance = crate::model::SeededRng::new(1);
    let mut forgery = alpha.seal(&to_beta(10));
    let honest: Vec<_> = (0..BATCHES as usize).map(|number| alpha.seal(&to_beta(number % 1000))).collect();
    for (number, good) in (0..BATCHES).zip(&honest) {
        let mut batch: Vec<Vec<u8>> = (0..63)
            .map(|_| {
                crate::model::Rng::fill(&mut chance, &mut forgery[8..]);
                // Far ahead, as that would move the window most.
                let sequence = 0x7000_0000 + crate::model::Rng::u32(&mut chance) % 0x1000_0000;
                forgery[4..8].copy_from_slice(&sequence.to_be_bytes());
                forgery.clone()
            })
            .collect();
        batch.insert(number as usize % 64, good.clone());
        assert_eq!(beta.receive_batch(&batch, reversed(alpha_path()), 0, true).len(), 1, "the honest one arrives");
        let events = beta.events();
        assert!(events.is_empty() || number == 0 && events == [Event::InboundUsed(spi(TO_BETA))], "{events:?}");
    }
    assert_eq!(beta.nonzero(), [(DropReason::BadIcv, u64::from(BATCHES) * 63)]);
}

#[test]
fn each_flipped_bit_is_noticed_and_changes_nothing() {
    for aead in AeadAlgorithm::ALL {
        for esn in [true, false] {
            let (mut alpha, mut beta) = pair(ChildSuite { aead, esn, group: None, additional: None });
            let packet = to_beta(7);
            let datagram = alpha.seal(&packet);
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(beta.receive(&flipped).is_empty(), "bit {bit}");
            }
            // Most flips break the ICV; those in the SPI miss the SA or the worker.
            let lost = beta.drops.of(DropReason::UnknownSpi) + 8;
            assert_eq!(lost, 32);
            let silent = beta.nonzero().iter().map(|&(_, count)| count).sum::<u64>() + 8;
            assert_eq!(silent, datagram.len() as u64 * 8);
            assert_eq!(beta.events().iter().filter(|event| matches!(event, Event::InboundUsed(_))).count(), 0);
            assert_eq!(beta.receive(&datagram), [packet]);
            assert_eq!(beta.events(), [Event::InboundUsed(spi(TO_BETA))]);
        }
    }
}

#[test]
fn packets_from_the_tun_that_are_not_ours_to_send() {
    let (mut alpha, _, _) = scene();
    let dropped = Outcome::Dropped;
    let mut truncated = to_beta(10);
    truncated.pop();
    let cases = [
        (vec![], dropped(DropReason::InnerMalformed)),
        (vec![0x45; 19], dropped(DropReason::InnerMalformed)),
        (vec![0x60; 39], dropped(DropReason::InnerMalformed)),
        (vec![0; 100], dropped(DropReason::InnerMalformed)),
        (truncated, dropped(DropReason::InnerMalformed)),
        (v4("10.42.1.5", "8.8.8.8", 10, 0, 0), dropped(DropReason::NoRoute)),
        (v4("10.42.1.5", "10.42.1.6", 10, 0, 0), dropped(DropReason::NoRoute)),
        (v4("10.42.9.5", "10.42.2.5", 10, 0, 0), dropped(DropReason::SourceNotOurs)),
        (v4("10.42.2.6", "10.42.2.5", 10, 0, 0), dropped(DropReason::SourceNotOurs)),
        (v6("fe80::1", "fd00:42:2::5", 10, 0), dropped(DropReason::SourceNotOurs)),
        (v6("fd00:42:1::5", "ff02::1", 10, 0), dropped(DropReason::NoRoute)),
        (v4("10.42.1.5", "10.42.4.5", 10, 0, 0), Outcome::Stray(WorkerIndex(1))),
    ];
    for (packet, outcome) in cases {
        assert_eq!(alpha.send(&packet), outcome, "{packet:02x?}");
    }
    assert!(alpha.flush().is_empty());
    assert_eq!(alpha.nonzero().iter().map(|&(_, count)| count).sum::<u64>(), 11);
}
