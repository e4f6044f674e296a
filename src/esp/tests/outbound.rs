//! Sizes: what is cut, what is refused and answered, and what room it takes.

use super::*;

/// The payload that the fragments carry together, each of which must be whole by itself.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let header = usize::from(fragment[0] & 0x0f) * 4;
        let flags = u16::from_be_bytes([fragment[6], fragment[7]]);
        assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
        assert_eq!(header_sum(&fragment[..header]), 0);
        assert_eq!(usize::from(flags & 0x1fff) * 8, payload.len());
        assert_eq!(flags & 0x2000 != 0, index + 1 < fragments.len(), "more fragments");
        payload.extend_from_slice(&fragment[header..]);
    }
    payload
}

#[test]
fn without_df_packets_are_cut_to_the_path() {
    for limit in [548, 600, 1000, 1280, 1400] {
        let (mut alpha, mut beta) = pair(SUITE);
        alpha.update(Update::PathLimit(BETA, Some(limit)));
        let mut with_options = v4("10.42.1.5", "10.42.2.5", 1332, 0, 2);
        with_options.splice(20..20, [7, 39].into_iter().chain([0; 38]));
        with_options[0] = 0x4f;
        with_options[2..4].copy_from_slice(&1400u16.to_be_bytes());
        for packet in [v4("10.42.1.5", "10.42.2.5", 1372, 0, 2), with_options] {
            let header = usize::from(packet[0] & 0x0f) * 4;
            assert_eq!((packet.len(), alpha.send(&packet)), (1400, Outcome::Done));
            alpha.plane.seal_pending(&mut alpha.outbox);
            assert!(alpha.outbox.datagrams().0.iter().all(|datagram| datagram.len <= limit.into() && datagram.ecn == 2));
            let datagrams = alpha.flush();
            assert!(datagrams.len() > 1);
            let fragments = beta.receive_batch(&datagrams, reversed(alpha_path()), 2, true);
            assert_eq!(fragments.len(), datagrams.len());
            assert_eq!(reassemble(&fragments), packet[header..]);
        }
        // The largest that fits passes whole.
        let inner = (usize::from(limit) - 32) / 4 * 4 - 2;
        let packet = v4("10.42.1.5", "10.42.2.5", inner - 28, DF, 0);
        assert_eq!(alpha.seal(&packet).len(), inner + 34);
        assert_eq!(alpha.send(&v4("10.42.1.5", "10.42.2.5", inner - 27, DF, 0)), Outcome::Dropped(DropReason::TooBig));
        assert_eq!(beta.nonzero(), []);
    }
}

#[test]
fn with_df_the_sender_is_told() {
    let (mut alpha, _) = pair(SUITE);
    alpha.update(Update::PathLimit(BETA, Some(1300)));
    let packet = v4("10.42.1.5", "10.42.2.5", 1300, DF, 0);
    assert_eq!(alpha.send(&packet), Outcome::Dropped(DropReason::TooBig));
    let six = v6("fd00:42:1::5", "fd00:42:2::5", 1300, 0);
    assert_eq!(alpha.send(&six), Outcome::Dropped(DropReason::TooBig));
    assert!(alpha.outbox.datagrams().0.is_empty());
    let replies: Vec<_> = alpha.outbox.replies().map(<[u8]>::to_vec).collect();
    let [four, long] = &replies[..] else { panic!("{replies:?}") };
    // ICMP, destination unreachable, fragmentation needed, next-hop MTU 1266; from the destination, to the source.
    assert_eq!((four[9], &four[20..22], &four[26..28]), (1, &[3, 4][..], &1266u16.to_be_bytes()[..]));
    assert_eq!((&four[12..16], &four[16..20]), (&packet[16..20], &packet[12..16]));
    assert_eq!((header_sum(&four[..20]), header_sum(&four[20..])), (0, 0));
    assert_eq!(four[28..], packet[..four.len() - 28]);
    // ICMPv6 packet too big; 1280 is the least that can be asked for.
    assert_eq!((long[6], &long[40..42], &long[44..48]), (58, &[2, 0][..], &1280u32.to_be_bytes()[..]));
    assert_eq!((&long[8..24], &long[24..40]), (&six[24..40], &six[8..24]));
    assert!(long.len() <= 1280);
    alpha.outbox.clear();
    assert_eq!(alpha.outbox.replies().count(), 0);
    // IPv6 of 1280 octets is sealed however narrow the path.
    alpha.update(Update::PathLimit(BETA, Some(600)));
    let least = v6("fd00:42:1::5", "fd00:42:2::5", 1280 - 48, 0);
    assert_eq!(alpha.seal(&least).len(), 16 + 1284 + 16);
    // Without a limit, the TUN's MTU holds.
    alpha.update(Update::PathLimit(BETA, None));
    assert_eq!(alpha.seal(&to_beta(1372)).len(), 16 + 1404 + 16);
    assert_eq!(alpha.send(&to_beta(1373)), Outcome::Dropped(DropReason::TooBig));
}

#[test]
fn answers_are_bounded_in_rate_and_in_number() {
    let (mut alpha, _) = pair(SUITE);
    alpha.update(Update::PathLimit(BETA, Some(1300)));
    let mut answers = 0;
    for _ in 0..1000 {
        assert_eq!(alpha.send(&to_beta(1372)), Outcome::Dropped(DropReason::TooBig));
        answers += alpha.outbox.replies().count();
        alpha.outbox.clear();
        alpha.now = alpha.now + Duration::from_millis(1);
    }
    assert!((100..=120).contains(&answers), "{answers}");
    alpha.now = alpha.now + Duration::from_secs(1);
    for _ in 0..100 {
        alpha.send(&to_beta(1372));
    }
    assert_eq!(alpha.outbox.replies().count(), 16);
    assert_eq!(alpha.drops.of(DropReason::TooBig), 1100);
}

#[test]
fn errors_are_not_answered() {
    let (mut alpha, _) = pair(SUITE);
    let mut error = v4("10.42.1.5", "10.42.2.5", 1400, DF, 0);
    (error[9], error[20]) = (1, 3);
    let later_fragment = v4("10.42.1.5", "10.42.2.5", 1400, DF | 5, 0);
    for packet in [error, later_fragment] {
        assert_eq!(alpha.send(&packet), Outcome::Dropped(DropReason::TooBig));
    }
    assert_eq!(alpha.outbox.replies().count(), 0);
}

#[test]
fn sizes_hold_for_packets_that_wait() {
    let mut alpha = Host::alpha(Provider::Ring);
    alpha.update(Update::PathLimit(BETA, Some(1300)));
    assert_eq!(alpha.send(&to_beta(1372)), Outcome::Dropped(DropReason::TooBig));
    assert_eq!(alpha.outbox.replies().count(), 1);
    let (uncut, whole) = (v4("10.42.1.5", "10.42.2.5", 1372, 0, 0), to_beta(1200));
    assert_eq!((alpha.send(&uncut), alpha.send(&whole)), (Outcome::Done, Outcome::Done));
    alpha.outbox.clear();
    // The path narrows while they wait.
    alpha.update(Update::PathLimit(BETA, Some(1000)));
    alpha.install_active(alpha_child(SUITE));
    assert_eq!(alpha.outbox.replies().count(), 1);
    assert_eq!(alpha.flush().len(), 2);
    assert_eq!(alpha.nonzero(), [(DropReason::TooBig, 2)]);
}

#[test]
fn an_outbox_with_room_takes_any_packet_of_the_tun() {
    for (octets, datagrams, limit) in
        [(1 << 16, 64, None), (1 << 16, 64, Some(600)), (20_000, 64, Some(1400)), (1 << 16, 9, Some(700))]
    {
        let (mut alpha, _) = pair(SUITE);
        alpha.outbox = Outbox::new(octets, datagrams);
        alpha.update(Update::PathLimit(BETA, limit));
        let (mut rounds, mut taken) = (0, 0);
        while rounds < 4 {
            if !alpha.outbox.has_room() {
                assert!(alpha.flush().len() <= datagrams);
                rounds += 1;
            }
            assert_eq!(alpha.send(&v4("10.42.1.5", "10.42.2.5", 1372, 0, 0)), Outcome::Done);
            taken += 1;
        }
        assert!(taken > 8);
        assert_eq!(alpha.nonzero(), []);
    }
    // One that is not asked beforehand drops, and counts.
    let (mut alpha, _) = pair(SUITE);
    alpha.outbox = Outbox::new(4000, 64);
    let outcomes = [0; 4].map(|_| alpha.send(&to_beta(1300)));
    assert_eq!(
        outcomes,
        [Outcome::Done, Outcome::Done, Outcome::Dropped(DropReason::QueueFull), Outcome::Dropped(DropReason::QueueFull)]
    );
    assert_eq!(alpha.flush().len(), 2);
}

#[test]
fn selectors_with_protocol_and_ports_bind_both_ways() {
    let mut child = alpha_child(SUITE);
    let dns = |prefix: &str, start, end| {
        let mut selector = TrafficSelector::from_prefix(prefix.parse().expect("a prefix"));
        (selector.protocol, selector.start_port, selector.end_port) = (17, start, end);
        selector
    };
    child.local_selectors = vec![dns("10.42.1.0/24", 0, 65_535)];
    child.remote_selectors = vec![dns("10.42.2.0/24", 53, 53)];
    let (mut alpha, mut beta) = pair_of(child.clone(), Provider::Ring);
    let packet = to_beta(10);
    let mut other_port = packet.clone();
    other_port[23] = 54;
    let mut tcp = packet.clone();
    tcp[9] = 6;
    let fragment = v4("10.42.1.5", "10.42.2.5", 10, 0x0005, 0);
    let refused = [other_port, tcp, fragment, v4("10.42.1.5", "10.42.2.5", 10, 0, 0)[..21].to_vec()];
    for (sequence, packet) in (1..).zip(&refused[..3]) {
        assert_eq!(alpha.send(packet), Outcome::Dropped(DropReason::OutboundSelector));
        beta.refuse(&forge(&child, sequence, padded(packet, 4)), DropReason::InboundSelector);
    }
    assert_eq!(beta.receive(&forge(&child, 9, padded(&packet, 4))), [packet]);
    // OPAQUE is for what has no ports to be seen.
    child.remote_selectors = vec![dns("10.42.2.0/24", 65_535, 0)];
    let (mut alpha, _) = pair_of(child, Provider::Ring);
    assert_eq!(alpha.send(&refused[2]), Outcome::Done);
    assert_eq!(alpha.send(&to_beta(10)), Outcome::Dropped(DropReason::OutboundSelector));
}
