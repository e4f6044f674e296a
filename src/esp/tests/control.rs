//! SAs come, take over from each other, and go; packets wait for them.

use super::*;

/// The n-th SA between alpha and beta, as alpha sees it, with keys of its own.
fn nth_child(n: u8) -> ChildSaParams {
    let mut child = alpha_child(SUITE);
    child.inbound_spi = spi(TO_ALPHA + (u32::from(n) << 8));
    child.outbound_spi = spi(TO_BETA + (u32::from(n) << 8));
    child.inbound_key = key(SUITE.aead, 0x10 + n);
    child.outbound_key = key(SUITE.aead, 0x80 + n);
    child
}

fn spi_of(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(datagram[..4].try_into().expect("four octets"))
}

/// The SPI that alpha sends with now.
fn sends_with(alpha: &mut Host) -> u32 {
    spi_of(&alpha.seal(&to_beta(1)))
}

#[test]
fn a_rekey_breaks_nothing() {
    let (mut alpha, mut beta) = (Host::alpha(Provider::Ring), Host::beta(Provider::Ring));
    let (old, new) = (nth_child(1), nth_child(2));
    alpha.install_active(old.clone());
    beta.install_active(mirrored(&old, ALPHA));
    // New on both sides, but only received with.
    alpha.install(new.clone());
    beta.install(mirrored(&new, ALPHA));
    assert_eq!(sends_with(&mut alpha), old.outbound_spi.value());
    alpha.update(Update::Activate(new.inbound_spi));
    let with_new = alpha.seal(&to_beta(2));
    assert_eq!(spi_of(&with_new), new.outbound_spi.value());
    assert_eq!(beta.receive(&with_new), [to_beta(2)]);
    // Beta still sends with the old one; alpha retired it and still opens it.
    let back = v4("10.42.2.5", "10.42.1.5", 3, DF, 0);
    let (first, second, third) = (beta.seal(&back), beta.seal(&back), beta.seal(&back));
    alpha.update(Update::Retire { spi: old.inbound_spi, at_once: false });
    assert_eq!(alpha.plane.poll_timeout(), Some(alpha.now + Duration::from_secs(5)));
    assert_eq!(alpha.receive(&first), std::slice::from_ref(&back));
    alpha.now = alpha.now + Duration::from_millis(4999);
    alpha.plane.handle_timeout(alpha.now);
    assert_eq!(alpha.receive(&second), [back]);
    alpha.now = alpha.now + Duration::from_millis(1);
    alpha.plane.handle_timeout(alpha.now);
    alpha.refuse(&third, DropReason::UnknownSpi);
    assert_eq!(sends_with(&mut alpha), new.outbound_spi.value());
    // The end of a retired SA is no news.
    assert!(!alpha.events().iter().any(|event| matches!(event, Event::HardExpired(_))));
}

#[test]
fn retiring_the_active_sa_falls_back_to_the_newest_other() {
    let mut alpha = Host::alpha(Provider::Ring);
    for n in 1..=3 {
        alpha.install(nth_child(n));
    }
    alpha.update(Update::Activate(nth_child(2).inbound_spi));
    assert_eq!(sends_with(&mut alpha), nth_child(2).outbound_spi.value());
    alpha.update(Update::Retire { spi: nth_child(2).inbound_spi, at_once: true });
    assert_eq!(sends_with(&mut alpha), nth_child(3).outbound_spi.value());
    // Retiring one that is not active changes nothing.
    alpha.update(Update::Retire { spi: nth_child(1).inbound_spi, at_once: false });
    assert_eq!(sends_with(&mut alpha), nth_child(3).outbound_spi.value());
    // A retired one cannot be activated again; orders about nobody are ignored.
    alpha.update(Update::Activate(nth_child(1).inbound_spi));
    alpha.update(Update::Activate(nth_child(2).inbound_spi));
    alpha.update(Update::Retire { spi: nth_child(2).inbound_spi, at_once: true });
    alpha.update(Update::PathChanged(nth_child(2).inbound_spi, alpha_path()));
    assert_eq!(sends_with(&mut alpha), nth_child(3).outbound_spi.value());
    alpha.update(Update::Retire { spi: nth_child(3).inbound_spi, at_once: false });
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Done);
    assert!(alpha.flush().is_empty(), "it waits for the next SA");
}

#[test]
fn the_first_packets_wait_for_the_first_sa() {
    let (mut alpha, mut beta) = (Host::alpha(Provider::Ring), Host::beta(Provider::Ring));
    let packets: Vec<_> = (0..64).map(to_beta).collect();
    for packet in &packets {
        assert_eq!(alpha.send(packet), Outcome::Done);
    }
    assert_eq!(alpha.events(), [Event::WantSa(BETA)]);
    assert_eq!(alpha.send(&to_beta(99)), Outcome::Dropped(DropReason::NoOutboundSa));
    // Another peer has a waiting room of its own.
    assert_eq!(alpha.send(&v4("10.42.1.5", "10.42.3.5", 1, DF, 0)), Outcome::Done);
    assert_eq!(alpha.events(), [Event::WantSa(PeerIndex(9))]);
    alpha.install(alpha_child(SUITE));
    beta.install(mirrored(&alpha_child(SUITE), ALPHA));
    assert!(alpha.flush().is_empty(), "a standby SA sends nothing");
    alpha.update(Update::Activate(spi(TO_ALPHA)));
    let datagrams = alpha.flush();
    assert_eq!(beta.receive_batch(&datagrams, reversed(alpha_path()), 0, true), packets);
    assert_eq!(alpha.nonzero(), [(DropReason::NoOutboundSa, 1)]);
}

#[test]
fn a_wanted_sa_is_asked_for_once_a_second_while_packets_come() {
    let mut alpha = Host::alpha(Provider::Ring);
    for _ in 0..30 {
        alpha.send(&to_beta(1));
        alpha.now = alpha.now + Duration::from_millis(100);
    }
    assert_eq!(alpha.events(), [Event::WantSa(BETA)], "what was not fetched coalesces");
    alpha.send(&to_beta(1));
    assert_eq!(alpha.events(), [Event::WantSa(BETA)]);
    alpha.send(&to_beta(1));
    assert_eq!(alpha.events(), []);
    alpha.install(alpha_child(SUITE));
    alpha.now = alpha.now + Duration::from_secs(2);
    alpha.send(&to_beta(1));
    assert_eq!(alpha.events(), [Event::Installed(Ticket(1))], "a standby SA is about to be activated");
}

#[test]
fn waiting_packets_leave_in_time_and_with_their_peer() {
    let mut alpha = Host::alpha(Provider::Ring);
    alpha.send(&to_beta(1));
    let deadline = alpha.plane.poll_timeout().expect("somebody waits");
    assert_eq!(deadline, alpha.now + Duration::from_secs(4));
    alpha.now = alpha.now + Duration::from_secs(1);
    alpha.send(&to_beta(2));
    alpha.send(&v4("10.42.1.5", "10.42.3.5", 1, DF, 0));
    alpha.plane.handle_timeout(deadline);
    assert_eq!(alpha.nonzero(), [(DropReason::ParkedTooLong, 1)]);
    assert_eq!(alpha.plane.poll_timeout(), Some(deadline + Duration::from_secs(1)));
    alpha.update(Update::RemovePeer(PeerIndex(9)));
    alpha.install_active(alpha_child(SUITE));
    assert_eq!(alpha.flush().len(), 1);
    alpha.plane.handle_timeout(deadline + Duration::from_secs(1));
    assert_eq!(alpha.nonzero(), [(DropReason::NoRoute, 1), (DropReason::ParkedTooLong, 1)]);
}

#[test]
fn what_waits_and_finds_no_room_goes_on_waiting() {
    let mut alpha = Host::alpha(Provider::Ring);
    alpha.outbox = Outbox::new(10_000, 8);
    for payload in 0..20 {
        assert_eq!(alpha.send(&to_beta(payload)), Outcome::Done);
    }
    alpha.install_active(alpha_child(SUITE));
    let mut lengths = Vec::new();
    loop {
        let datagrams = alpha.flush();
        assert!(!datagrams.is_empty() && datagrams.len() <= 8);
        lengths.extend(datagrams.iter().map(Vec::len));
        if alpha.plane.resume_parked(alpha.now, &mut alpha.outbox) {
            break;
        }
    }
    lengths.extend(alpha.flush().iter().map(Vec::len));
    assert_eq!(lengths.len(), 20);
    assert!(lengths.is_sorted());
    assert_eq!(alpha.nonzero(), []);
}

#[test]
fn packets_that_wait_again_after_a_retirement_do_not_spin() {
    let mut alpha = Host::alpha(Provider::Ring);
    alpha.outbox = Outbox::new(10_000, 2);
    for payload in 0..5 {
        alpha.send(&to_beta(payload));
    }
    alpha.install_active(alpha_child(SUITE));
    alpha.update(Update::Retire { spi: spi(TO_ALPHA), at_once: true });
    assert_eq!(alpha.flush().len(), 2);
    assert_eq!(alpha.send(&to_beta(5)), Outcome::Done);
    assert!(alpha.flush().is_empty());
    alpha.install_active(nth_child(1));
    assert_eq!(alpha.flush().len(), 2);
    assert!(alpha.plane.resume_parked(alpha.now, &mut alpha.outbox));
    assert_eq!(alpha.flush().len(), 2);
}

#[test]
fn datagrams_wait_on_a_reserved_spi() {
    let (mut alpha, mut beta) = (Host::alpha(Provider::Ring), Host::beta(Provider::Ring));
    let child = alpha_child(SUITE);
    alpha.install_active(child.clone());
    beta.update(Update::Reserve(child.outbound_spi));
    let path = reversed(alpha_path());
    let datagrams: Vec<_> = (0..65).map(|payload| alpha.seal(&to_beta(payload))).collect();
    assert!(beta.receive_batch(&datagrams, path, 2, false).is_empty());
    assert!(beta.inbox.unknown.is_empty());
    assert_eq!(beta.nonzero(), [(DropReason::QueueFull, 1)]);
    beta.install(mirrored(&child, ALPHA));
    let released = std::mem::take(&mut beta.released);
    assert_eq!(released.len(), 64);
    for (index, (from, ecn, datagram)) in released.into_iter().enumerate() {
        assert_eq!((from, ecn), (path, 2));
        assert_eq!(beta.receive(&datagram), [to_beta(index)]);
    }
    // Released without a key, or for too long: gone.
    for (number, reason) in [(1, DropReason::UnknownSpi), (2, DropReason::ParkedTooLong)] {
        let child = nth_child(number);
        alpha.install_active(child.clone());
        beta.update(Update::Reserve(child.outbound_spi));
        assert!(beta.receive(&alpha.seal(&to_beta(1))).is_empty());
        if number == 2 {
            beta.now = beta.now + Duration::from_secs(4);
            beta.plane.handle_timeout(beta.now);
        } else {
            beta.update(Update::Release(child.outbound_spi));
        }
        assert_eq!(beta.drops.of(reason), 1);
    }
}

#[test]
fn soft_limits_are_told_once() {
    type Limit = fn(&mut Lifetime);
    let limits: [Limit; 2] = [|lifetime| lifetime.soft_packets = 5, |lifetime| lifetime.soft_octets = 5 * 38];
    for limit in limits {
        let mut child = alpha_child(SUITE);
        limit(&mut child.lifetime);
        let (mut alpha, mut beta) = pair_of(child, Provider::Ring);
        for number in 1..=8 {
            let datagram = alpha.seal(&to_beta(10));
            beta.receive(&datagram);
            let mut expected = if number == 5 { vec![Event::SoftExpired(spi(TO_ALPHA))] } else { vec![] };
            assert_eq!(alpha.events(), expected, "packet {number}");
            expected = if number == 5 { vec![Event::SoftExpired(spi(TO_BETA))] } else { vec![] };
            if number == 1 {
                expected.insert(0, Event::InboundUsed(spi(TO_BETA)));
            }
            assert_eq!(beta.events(), expected, "packet {number}");
        }
    }
}

#[test]
fn case_116_the_sequence_number_never_wraps() {
    let (mut alpha, mut beta) = pair(ChildSuite { esn: false, ..SUITE });
    let slot = alpha.plane.sas.slot(spi(TO_ALPHA)).expect("installed");
    let skip_to = |alpha: &mut Host, next| alpha.plane.sas.parts(slot).1.expect("an outbound half").skip_to(next);
    skip_to(&mut alpha, 0xbfff_fffe);
    let before = alpha.seal(&to_beta(1));
    beta.receive(&before);
    assert_eq!((alpha.events(), beta.events()), (vec![], vec![Event::InboundUsed(spi(TO_BETA))]));
    for _ in 0..3 {
        let datagram = alpha.seal(&to_beta(1));
        beta.receive(&datagram);
    }
    assert_eq!(alpha.events(), [Event::SoftExpired(spi(TO_ALPHA))], "at three quarters");
    assert_eq!(beta.events(), [Event::SoftExpired(spi(TO_BETA))], "on both sides");
    skip_to(&mut alpha, 0xffff_ffff);
    let last = alpha.seal(&to_beta(2));
    assert_eq!(beta.receive(&last), [to_beta(2)]);
    for _ in 0..3 {
        assert_eq!(alpha.send(&to_beta(3)), Outcome::Dropped(DropReason::SequenceExhausted));
        let dummy = alpha.plane.seal_dummy(alpha.now, spi(TO_ALPHA), 100, &mut alpha.outbox);
        assert_eq!(dummy, Outcome::Dropped(DropReason::SequenceExhausted));
    }
    assert!(alpha.flush().is_empty());
    assert_eq!(alpha.events(), [Event::HardExpired(spi(TO_ALPHA))], "once");
    // With ESN that many packets are nothing special, and the counter itself does not overflow.
    let (mut alpha, _) = pair(SUITE);
    skip_to(&mut alpha, 0xffff_ffff);
    let (low, high) = (alpha.seal(&to_beta(1)), alpha.seal(&to_beta(1)));
    assert_eq!((&low[4..8], &high[4..8]), (&[0xff; 4][..], &[0; 4][..]));
    skip_to(&mut alpha, u64::MAX - 1);
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Done);
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Dropped(DropReason::SequenceExhausted));
    assert_eq!(alpha.events(), [Event::HardExpired(spi(TO_ALPHA))]);
}

#[test]
fn a_hard_lifetime_ends_the_sa_and_a_standby_takes_over() {
    let (mut alpha, mut beta) = pair(SUITE);
    let mut next = nth_child(1);
    next.lifetime.hard = Duration::from_secs(9000);
    alpha.install(next.clone());
    alpha.events();
    let back = v4("10.42.2.5", "10.42.1.5", 3, DF, 0);
    let (early, late) = (beta.seal(&back), beta.seal(&back));
    let end = alpha.now + Duration::from_secs(3600);
    assert_eq!(alpha.plane.poll_timeout(), Some(end));
    alpha.now = end;
    assert_eq!(alpha.receive(&early), [back]);
    // A packet that was taken but not sealed when its SA ends is lost, and never goes out in clear.
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Done);
    alpha.plane.handle_timeout(end);
    assert!(alpha.flush().is_empty());
    assert_eq!(alpha.drops.of(DropReason::NoOutboundSa), 1);
    alpha.refuse(&late, DropReason::UnknownSpi);
    assert_eq!(alpha.events()[..2], [Event::InboundUsed(spi(TO_ALPHA)), Event::HardExpired(spi(TO_ALPHA))]);
    assert_eq!(sends_with(&mut alpha), next.outbound_spi.value());
}

#[test]
fn a_slot_that_is_used_again_seals_nothing_for_its_predecessor() {
    let (mut alpha, _) = pair(SUITE);
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Done);
    let mut other = Outbox::new(10_000, 10);
    std::mem::swap(&mut other, &mut alpha.outbox);
    // The orders come with another outbox, so that the pending packet stays pending.
    alpha.update(Update::Retire { spi: spi(TO_ALPHA), at_once: true });
    alpha.install_active(nth_child(1));
    std::mem::swap(&mut other, &mut alpha.outbox);
    assert!(alpha.flush().is_empty());
    assert_eq!(alpha.nonzero(), [(DropReason::NoOutboundSa, 1)]);
    assert_eq!(sends_with(&mut alpha), nth_child(1).outbound_spi.value());
}

#[test]
fn orders_seal_what_was_taken_before_them() {
    let (mut alpha, mut beta) = pair(SUITE);
    assert_eq!(alpha.send(&to_beta(1)), Outcome::Done);
    assert!(alpha.outbox.datagrams().0.is_empty(), "plaintext is not for sending");
    alpha.update(Update::Retire { spi: spi(TO_ALPHA), at_once: true });
    let datagrams = alpha.flush();
    assert_eq!(beta.receive(&datagrams[0]), [to_beta(1)]);
}

#[test]
fn a_new_address_is_told_when_an_authentic_newest_datagram_came_from_it() {
    let (mut alpha, mut beta) = pair(SUITE);
    let datagrams: Vec<_> = (0..8).map(|payload| alpha.seal(&to_beta(payload))).collect();
    let mut moved = reversed(alpha_path());
    moved.remote.set_port(61_000);
    let mut further = moved;
    further.remote.set_port(61_001);
    let home = reversed(alpha_path());
    let at = |beta: &mut Host, index: usize, path| {
        assert_eq!(beta.receive_batch(&datagrams[index..=index], path, 0, true), [to_beta(index)]);
        beta.now = beta.now + Duration::from_millis(60);
        beta.events()
    };
    assert_eq!(at(&mut beta, 0, home), [Event::InboundUsed(spi(TO_BETA))]);
    assert_eq!(at(&mut beta, 3, moved), [Event::AddressSeen(spi(TO_BETA), moved)]);
    // Neither an old datagram nor a forged one says anything; news come at most ten times a second.
    beta.now = beta.now + Duration::from_millis(100);
    assert_eq!(at(&mut beta, 2, further), []);
    let mut forged = datagrams[7].clone();
    forged[20] ^= 1;
    assert!(beta.receive_batch(&[forged], further, 0, true).is_empty());
    assert_eq!(beta.events(), []);
    assert_eq!(at(&mut beta, 4, further), [Event::AddressSeen(spi(TO_BETA), further)]);
    assert_eq!(at(&mut beta, 5, further), []);
    beta.update(Update::PathChanged(spi(TO_BETA), further));
    assert_eq!(at(&mut beta, 6, further), []);
    // It sends there too.
    let back = v4("10.42.2.5", "10.42.1.5", 3, DF, 0);
    assert_eq!(beta.send(&back), Outcome::Done);
    beta.plane.seal_pending(&mut beta.outbox);
    assert_eq!(beta.outbox.datagrams().0[0].path, further);
}

#[test]
fn an_open_local_address_is_no_other_path() {
    let mut child = mirrored(&alpha_child(SUITE), ALPHA);
    child.path.local.set_ip(ip("0.0.0.0"));
    let (mut alpha, _) = pair(SUITE);
    let mut beta = Host::beta(Provider::Ring);
    beta.install(child);
    let datagram = alpha.seal(&to_beta(1));
    beta.receive(&datagram);
    assert_eq!(beta.events(), [Event::Installed(Ticket(1)), Event::InboundUsed(spi(TO_BETA))]);
}

#[test]
fn counters_tell_what_passed() {
    let (mut alpha, mut beta) = pair(SUITE);
    for payload in 0..10 {
        let datagram = alpha.seal(&to_beta(payload));
        beta.receive(&datagram);
    }
    let octets = (0..10).map(|payload| to_beta(payload).len() as u64).sum::<u64>();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((load(&alpha.counters.outbound_packets), load(&alpha.counters.outbound_octets)), (10, octets));
    assert_eq!((load(&beta.counters.inbound_packets), load(&beta.counters.inbound_octets)), (10, octets));
    assert_eq!((load(&alpha.counters.inbound_packets), load(&alpha.counters.last_inbound)), (0, 0));
    assert_eq!((load(&alpha.counters.last_outbound), load(&beta.counters.last_inbound)), (1_000_000_000, 1_000_000_000));
}
