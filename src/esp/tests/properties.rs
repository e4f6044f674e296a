//! Whatever comes in.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Octets that look like packets now and then.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let bent = |base: Vec<u8>| {
        let len = base.len();
        prop::collection::vec((0..len, any::<u8>()), 0..4).prop_map(move |changes| {
            let mut packet = base.clone();
            for (at, octet) in changes {
                packet[at] = octet;
            }
            packet
        })
    };
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        bent(v4("10.42.1.5", "10.42.2.5", 40, 0, 1)),
        bent(v6("fd00:42:1::5", "fd00:42:2::5", 40, 1)),
        bent(v4("10.42.1.5", "10.42.2.5", 1372, 0, 1)),
    ]
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_advance_the_window(
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..80),
        hit in any::<bool>(),
        last_try in any::<bool>(),
    ) {
        let (mut alpha, mut beta) = pair(SUITE);
        let aimed: Vec<_> = datagrams.into_iter().map(|mut datagram| {
            if hit && datagram.len() >= 4 {
                datagram[..4].copy_from_slice(&TO_BETA.to_be_bytes());
            }
            datagram
        }).collect();
        prop_assert!(beta.receive_batch(&aimed, alpha_path(), 3, last_try).is_empty());
        let events = beta.events();
        prop_assert!(events.iter().all(|event| matches!(event, Event::UnknownSpi(_))));
        let slot = beta.plane.sas.slot(spi(TO_BETA)).unwrap();
        let shown = format!("{:?}", beta.plane.sas.parts(slot).0.unwrap());
        prop_assert!(shown.contains("top 0"), "{}", shown);
        let datagram = alpha.seal(&to_beta(1));
        prop_assert_eq!(beta.receive(&datagram), vec![to_beta(1)]);
    }

    #[test]
    fn arbitrary_plaintext_is_delivered_only_if_it_may_be(
        payload in packets(),
        next_header in prop_oneof![Just(4u8), Just(41), any::<u8>()],
        pad in prop_oneof![3 => Just(None), 1 => any::<u8>().prop_map(Some)],
        ecn in 0u8..4,
    ) {
        let (_, mut beta) = pair(SUITE);
        let mut text = padded(&payload, next_header);
        if let Some(pad) = pad {
            let at = text.len() - 2;
            text[at] = pad;
        }
        let datagram = forge(&alpha_child(SUITE), 1, text);
        let received = beta.receive_batch(&[datagram], alpha_path(), ecn, true);
        let dropped: u64 = beta.nonzero().iter().map(|&(_, count)| count).sum();
        prop_assert_eq!(received.len() as u64 + dropped, 1);
        for packet in received {
            let from = match packet[0] >> 4 {
                4 => ip(&format!("{}.{}.{}.{}", packet[12], packet[13], packet[14], packet[15])),
                _ => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()).into(),
            };
            let net4: ipnet::IpNet = "10.42.1.0/24".parse().unwrap();
            let net6: ipnet::IpNet = "fd00:42:1::/64".parse().unwrap();
            prop_assert!(net4.contains(&from) || net6.contains(&from));
            prop_assert!(payload.len() >= packet.len());
        }
    }

    #[test]
    fn arbitrary_packets_from_the_tun_come_out_as_they_were(
        packets in prop::collection::vec(packets(), 1..60),
        limit in prop_oneof![Just(None), (0u16..2000).prop_map(Some)],
    ) {
        let (mut alpha, mut beta) = pair(SUITE);
        alpha.update(Update::PathLimit(BETA, limit));
        let mut sent = Vec::new();
        for packet in &packets {
            let before = alpha.outbox.datagrams().0.len();
            let outcome = alpha.send(packet);
            alpha.plane.seal_pending(&mut alpha.outbox);
            let count = alpha.outbox.datagrams().0.len() - before;
            match outcome {
                Outcome::Done if count == 1 => sent.push(packet.clone()),
                Outcome::Done if count > 1 => {}
                // A bent destination may be the host that has no SA yet: then it waits.
                Outcome::Done => prop_assert_eq!(&packet[16..19], &[10, 42, 3][..]),
                _ => prop_assert_eq!(count, 0),
            }
            if !alpha.outbox.has_room() {
                break;
            }
        }
        let datagrams = alpha.flush();
        let received = beta.receive_batch(&datagrams, reversed(alpha_path()), 0, true);
        let mut fragments_left = received.iter();
        for packet in &sent {
            prop_assert!(fragments_left.any(|other| other == packet), "{:02x?}", packet);
        }
    }

    #[test]
    fn batches_are_as_good_as_single_datagrams(
        order in prop::collection::vec(0usize..300, 1..200),
        broken in prop::collection::btree_set(0usize..200, 0..20),
        cuts in prop::collection::vec(1usize..90, 1..10),
    ) {
        // Sequence numbers in any order, with twins and forgeries, in batches of any size: what a set says is delivered.
        let child = alpha_child(SUITE);
        let (_, mut beta) = pair(SUITE);
        let mut delivered = Vec::new();
        let mut expected = Vec::new();
        let (mut seen, mut top) = (BTreeSet::new(), 0);
        let mut datagrams = Vec::new();
        for (index, &number) in order.iter().enumerate() {
            let mut datagram = forge(&child, number as u64 + 1, padded(&to_beta(number), 4));
            if broken.contains(&index) {
                datagram[16] ^= 0x80;
            } else {
                let sequence = number + 1;
                if sequence + 128 > top && seen.insert(sequence) {
                    top = top.max(sequence);
                    expected.push(to_beta(number));
                }
            }
            datagrams.push(datagram);
        }
        let mut rest = &datagrams[..];
        for cut in cuts.iter().cycle() {
            let (batch, behind) = rest.split_at((*cut).min(rest.len()));
            delivered.extend(beta.receive_batch(batch, reversed(alpha_path()), 0, true));
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(delivered, expected);
        let dropped: u64 = beta.nonzero().iter().map(|&(_, count)| count).sum();
        prop_assert_eq!(dropped as usize + beta.counters.inbound_packets.load(Ordering::Relaxed) as usize, order.len());
    }
}
