//! What one side seals, the other opens.

use super::*;

const PROVIDERS: [Provider; 2] = [Provider::Ring, Provider::RustCrypto];

fn suites() -> impl Iterator<Item = ChildSuite> {
    let each = |aead| [true, false].map(|esn| ChildSuite { aead, esn, group: None, additional: None });
    AeadAlgorithm::ALL.into_iter().flat_map(each)
}

#[test]
fn every_suite_and_provider_carries_both_families_at_every_length() {
    for (suite, provider) in suites().flat_map(|suite| PROVIDERS.map(|provider| (suite, provider))) {
        let (mut alpha, mut beta) = pair_of(alpha_child(suite), provider);
        let mut sequence = 0;
        for payload in 0..=64 {
            for packet in [to_beta(payload), v6("fd00:42:1::5", "fd00:42:2::5", payload, 0)] {
                sequence += 1;
                let datagram = alpha.seal(&packet);
                // SPI, sequence number, IV, text in whole words, ICV.
                assert_eq!(datagram[..4], TO_BETA.to_be_bytes());
                assert_eq!(datagram[4..8], (sequence as u32).to_be_bytes());
                assert_eq!(datagram[8..16], u64::to_be_bytes(sequence));
                assert_eq!(datagram.len(), 16 + (packet.len() + 2).next_multiple_of(4) + 16);
                assert_eq!(beta.receive(&datagram), [packet]);
            }
        }
        let back = v4("10.42.2.5", "10.42.1.5", 100, DF, 0);
        let datagram = beta.seal(&back);
        assert_eq!(alpha.receive(&datagram), [back]);
        assert_eq!((alpha.nonzero(), beta.nonzero()), (vec![], vec![]));
    }
}

#[test]
fn datagrams_are_what_an_independent_sealer_makes() {
    for suite in suites() {
        let child = alpha_child(suite);
        let (mut alpha, _) = pair_of(child.clone(), Provider::Ring);
        for sequence in 1..5 {
            let packet = to_beta(sequence as usize);
            assert_eq!(alpha.seal(&packet), forge(&child, sequence, padded(&packet, 4)));
        }
        let packet = v6("fd00:42:1::5", "fd00:42:2::5", 9, 0);
        assert_eq!(alpha.seal(&packet), forge(&child, 5, padded(&packet, 41)));
    }
}

#[test]
fn batches_of_several_sas_keep_their_order() {
    let (mut alpha, mut beta) = pair(SUITE);
    let mut second = alpha_child(SUITE);
    (second.peer, second.inbound_spi, second.outbound_spi) = (PeerIndex(9), spi(0x1000), spi(0x2000));
    second.outbound_key = key(SUITE.aead, 0x77);
    alpha.install_active(second.clone());
    // Beta plays the second peer as well.
    beta.install(mirrored(&second, ALPHA));
    let expected: Vec<_> = (0..90).map(to_beta).collect();
    for (index, packet) in expected.iter().enumerate() {
        assert_eq!(alpha.send(packet), Outcome::Done);
        if index % 3 == 0 {
            assert_eq!(alpha.send(&v4("10.42.1.5", "10.42.3.5", index, DF, 0)), Outcome::Done);
        }
    }
    let datagrams = alpha.flush();
    assert_eq!(datagrams.len(), 120);
    let received = beta.receive_batch(&datagrams, reversed(alpha_path()), 0, true);
    // What was meant for the third host is authentic, but not ours.
    assert_eq!(received, expected);
    assert_eq!(beta.nonzero(), [(DropReason::DestinationNotOurs, (datagrams.len() - expected.len()) as u64)]);
}

#[test]
fn ecn_goes_through_as_rfc_6040_says() {
    use super::super::ecn::{CE, ECT_0, ECT_1, NOT_ECT};
    let (mut alpha, mut beta) = pair(SUITE);
    let mut pass = |inner: u8, outer: Option<u8>, six: bool| {
        let packet =
            if six { v6("fd00:42:1::5", "fd00:42:2::5", 9, inner) } else { v4("10.42.1.5", "10.42.2.5", 9, DF, inner) };
        assert_eq!(alpha.send(&packet), Outcome::Done);
        alpha.plane.seal_pending(&mut alpha.outbox);
        let sealed_as = alpha.outbox.datagrams().0[0].ecn;
        assert_eq!(sealed_as, inner, "the outer bits are the inner ones");
        let datagram = alpha.flush();
        beta.receive_batch(&datagram, reversed(alpha_path()), outer.unwrap_or(sealed_as), true).pop()
    };
    for six in [false, true] {
        let bits = |packet: &[u8]| if six { packet[1] >> 4 & 3 } else { packet[1] & 3 };
        for inner in [NOT_ECT, ECT_0, ECT_1, CE] {
            assert_eq!(bits(&pass(inner, None, six).expect("delivered")), inner);
        }
        for (inner, outer, then) in [(ECT_0, CE, CE), (ECT_1, CE, CE), (ECT_0, ECT_1, ECT_1), (CE, NOT_ECT, CE)] {
            let packet = pass(inner, Some(outer), six).expect("delivered");
            assert_eq!(bits(&packet), then);
            assert!(six || header_sum(&packet[..20]) == 0, "the header checksum was repaired");
        }
        assert_eq!(pass(NOT_ECT, Some(CE), six), None);
    }
    assert_eq!(beta.nonzero(), [(DropReason::EcnInvalid, 2)]);
}

#[test]
fn tfc_padding_is_cut_and_dummies_vanish() {
    let child = alpha_child(SUITE);
    let (mut alpha, mut beta) = pair(SUITE);
    let packet = to_beta(10);
    for (sequence, extra) in [(1, 1), (2, 2), (3, 777), (4, 1300)] {
        let stuffed = [&packet[..], &vec![0xab; extra]].concat();
        assert_eq!(beta.receive(&forge(&child, sequence, padded(&stuffed, 4))), std::slice::from_ref(&packet));
    }
    // Padding of any content and of the greatest length.
    let long = [&packet[..], &[0x5a; 252], &[252, 4]].concat();
    assert_eq!(beta.receive(&forge(&child, 5, long)), std::slice::from_ref(&packet));
    beta.refuse(&forge(&child, 6, padded(b"anything", 59)), DropReason::Dummy);
    beta.refuse(&forge(&child, 7, padded(b"", 59)), DropReason::Dummy);
    // A dummy is authentic: it moves the window, and it is no replay.
    beta.refuse(&forge(&child, 7, padded(b"", 59)), DropReason::Replay);
    assert_eq!(beta.counters.inbound_packets.load(Ordering::Relaxed), 5);
    // Ours, of the size asked for or a little less.
    for len in [1472, 1471, 1470, 1469, 600] {
        assert_eq!(alpha.plane.seal_dummy(alpha.now, spi(TO_ALPHA), len, &mut alpha.outbox), Outcome::Done);
        let probe = alpha.flush().remove(0);
        assert_eq!(probe.len(), usize::from(len & !3));
        // Sequence numbers 1 to 5 were forged already.
        beta.refuse(&probe, DropReason::Replay);
    }
    let _ = alpha.seal(&packet);
    let _ = alpha.seal(&packet);
    assert_eq!(alpha.plane.seal_dummy(alpha.now, spi(TO_ALPHA), 1200, &mut alpha.outbox), Outcome::Done);
    let probe = alpha.flush().remove(0);
    beta.refuse(&probe, DropReason::Dummy);
    let dropped = Outcome::Dropped(DropReason::NoOutboundSa);
    assert_eq!(alpha.plane.seal_dummy(alpha.now, spi(0x5000), 1200, &mut alpha.outbox), dropped);
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(octet).collect()
}

/// A host that is worker `spi & 0xff` and receives with this key.
fn receiver(aead: AeadAlgorithm, esn: bool, keymat: &str, inbound: u32, local: &str, remote: &str) -> Host {
    let peer = Route::Peer { peer: BETA, owner: WorkerIndex(0) };
    let mut host = Host::new(Provider::Ring, alpha_path(), &[(local, Route::Local), (remote, peer)]);
    host.plane.config.worker = spi(inbound).owner();
    let mut child = alpha_child(ChildSuite { aead, esn, group: None, additional: None });
    child.inbound_spi = spi(inbound);
    child.inbound_key = SaKey { keymat: Secret::new(hex(keymat)) };
    let any = || vec![TrafficSelector::from_prefix("0.0.0.0/0".parse().expect("a prefix"))];
    (child.local_selectors, child.remote_selectors) = (any(), any());
    host.install(child);
    host
}

#[test]
fn the_packet_of_rfc_7634_appendix_a_opens() {
    let keymat = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3";
    let chacha = AeadAlgorithm::ChaCha20Poly1305;
    let mut host = receiver(chacha, false, keymat, 0x0102_0304, "192.0.2.0/24", "198.51.100.0/24");
    let datagram = hex("01020304 00000005 1011121314151617 24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
         14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da
         9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43");
    let packet = hex("45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f10111213
         1415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637");
    assert_eq!(host.receive(&datagram), [packet]);
    assert_eq!(host.nonzero(), []);
    host.refuse(&datagram, DropReason::Replay);
}

#[test]
fn the_packets_of_mcgrews_gcm_draft_are_authentic() {
    // draft-mcgrew-gcm-test-01: real ESP packets, but with next header 1, which says that their ICV held.
    let cases = [
        (
            AeadAlgorithm::Aes128Gcm16,
            false,
            "feffe9928665731c6d6a8f9467308308cafebabe",
            0xa5f8,
            "0000a5f80000000afacedbaddecaf888 deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c
          3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd183b70d3aa8bc6ee4c309e9d85a41ad4a",
        ),
        (
            AeadAlgorithm::Aes256Gcm16,
            false,
            "abbccddef00112233445566778899aababbccddef00112233445566778899aab11223344",
            0x4a2c_bfe3,
            "4a2cbfe3000000020102030405060708 ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763
          748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c4915956c96",
        ),
        (
            AeadAlgorithm::Aes128Gcm16,
            true,
            "abbccddef00112233445566778899aabdecaf888",
            0x100,
            "0000010000000001cafedebaceface74 18a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1c349c1d2fbec168f
          9190feebaf2cb01984e65863965d7472b79da345e0e780191f0d2f0e0f496c226f2127b27db35724e7845d68651f57e6
          5f354f75ff17015769623436",
        ),
    ];
    for (aead, esn, keymat, inbound, datagram) in cases {
        let datagram = hex(datagram);
        let mut host = receiver(aead, esn, keymat, inbound, "10.0.0.0/8", "192.168.0.0/16");
        host.refuse(&datagram, DropReason::NextHeader);
        let mut host = receiver(aead, !esn, keymat, inbound, "10.0.0.0/8", "192.168.0.0/16");
        host.refuse(&datagram, DropReason::BadIcv);
    }
}
