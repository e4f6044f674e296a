//! Packets built by hand, packets that are none, and fragments against a naive reassembly.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The worked example of Wikipedia's article on the Internet checksum: UDP, 192.168.0.1 to 192.168.0.199, checksum b861.
const KNOWN_HEADER: [u8; 20] =
    [0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7];

/// An IPv4 packet of UDP from 10.0.0.1:4660 to 10.0.0.2:22136 with a right header checksum.
fn ipv4(options: &[u8], flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4));
    let mut packet = vec![0x45, 0, 0, 0, 0xab, 0xcd, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet[0] += (options.len() / 4) as u8;
    packet.extend_from_slice(options);
    packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
    let sum_end = packet.len();
    packet.extend_from_slice(payload);
    let length = u16::try_from(packet.len()).expect("short").to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    let sum = checksum(&packet[..sum_end]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet
}

const PORTS: [u8; 8] = [0x12, 0x34, 0x56, 0x78, 0, 8, 0, 0];

/// An IPv6 packet from 2001:db8::1 to 2001:db8::2.
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    packet[4..6].copy_from_slice(&u16::try_from(payload.len()).expect("short").to_be_bytes());
    for last in [1, 2] {
        packet.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend_from_slice(payload);
    packet
}

fn parse(octets: &[u8]) -> Result<Packet<'_>, IpError> {
    Packet::parse(octets, Trailing::Refused)
}

#[test]
fn ipv4_by_hand() {
    let octets = [&KNOWN_HEADER[..], &PORTS, &[0; 0x73 - 28]].concat();
    let packet = parse(&octets).expect("valid");
    assert_eq!(packet.version(), Version::V4);
    assert_eq!(packet.source(), IpAddr::from([192, 168, 0, 1]));
    assert_eq!(packet.destination(), IpAddr::from([192, 168, 0, 199]));
    assert_eq!((packet.protocol(), packet.ports()), (UDP, Some((0x1234, 0x5678))));
    assert!(packet.dont_fragment() && !packet.is_fragment());
    assert_eq!(packet.payload().len(), 0x73 - 20);
    assert!(packet.header_checksum_holds());
    let mut broken = octets.clone();
    broken[8] -= 1;
    assert!(!parse(&broken).expect("lengths are right").header_checksum_holds());
}

#[test]
fn ipv6_by_hand() {
    let octets = ipv6(TCP, &PORTS);
    let packet = parse(&octets).expect("valid");
    assert_eq!(packet.version(), Version::V6);
    assert_eq!(packet.source(), "2001:db8::1".parse::<IpAddr>().expect("an address"));
    assert_eq!(packet.destination(), "2001:db8::2".parse::<IpAddr>().expect("an address"));
    assert_eq!((packet.protocol(), packet.ports()), (TCP, Some((0x1234, 0x5678))));
    assert!(packet.dont_fragment() && !packet.is_fragment());
}

#[test]
fn ports_of_other_protocols() {
    let of = |protocol: u8, payload: &[u8]| parse(&ipv6(protocol, payload)).expect("valid").ports();
    assert_eq!(of(ICMPV6, &[128, 3, 0, 0]), Some((0x8003, 0x8003)));
    assert_eq!(of(132, &PORTS), Some((0x1234, 0x5678)));
    assert_eq!(of(47, &PORTS), None);
    assert_eq!(of(UDP, &PORTS[..3]), None);
    assert_eq!(of(59, &[]), None);
}

#[test]
fn case_112_versions_and_lengths() {
    assert_eq!(parse(&[]), Err(IpError::Version));
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        let mut octets = ipv4(&[], 0, &PORTS);
        octets[0] = version << 4 | 5;
        assert_eq!(parse(&octets), Err(IpError::Version), "{version}");
    }
    let valid = ipv4(&[], 0, &PORTS);
    for length in 1..20 {
        assert_eq!(parse(&valid[..length]), Err(IpError::HeaderLength), "{length}");
    }
    for ihl in 0..5 {
        let mut octets = valid.clone();
        octets[0] = 0x40 | ihl;
        assert_eq!(parse(&octets), Err(IpError::HeaderLength), "{ihl}");
    }
    let mut octets = valid.clone();
    octets[0] = 0x48;
    assert_eq!(parse(&octets), Err(IpError::HeaderLength), "options past the end");
    for total in [0_u16, 19, 27, 29, 65_535] {
        let mut octets = valid.clone();
        octets[2..4].copy_from_slice(&total.to_be_bytes());
        assert!(parse(&octets).is_err(), "{total}");
    }
    for length in 1..40 {
        assert_eq!(parse(&ipv6(TCP, &[])[..length]), Err(IpError::HeaderLength), "{length}");
    }
    let mut octets = ipv6(TCP, &PORTS);
    octets[5] += 1;
    assert_eq!(parse(&octets), Err(IpError::TotalLength));
    octets[5] -= 2;
    assert_eq!(parse(&octets), Err(IpError::TotalLength));
}

#[test]
fn octets_behind_the_packet_are_ignored_on_demand() {
    for packet in [ipv4(&[], 0, &PORTS), ipv6(TCP, &PORTS)] {
        let padded = [&packet[..], &[0; 9]].concat();
        assert_eq!(parse(&padded), Err(IpError::TotalLength));
        assert_eq!(Packet::parse(&padded, Trailing::Ignored).expect("padding is allowed").octets(), packet);
        assert_eq!(Packet::parse(&padded[..packet.len() - 1], Trailing::Ignored), Err(IpError::TotalLength));
    }
}

#[test]
fn extension_headers() {
    // Hop-by-hop (8 octets), routing (16), authentication (12: RFC 4302 counts in fours), then UDP.
    let chain = [&[43, 0, 0, 0, 0, 0, 0, 0][..], &[51, 1], &[0; 14], &[UDP, 1], &[0; 10], &PORTS].concat();
    let octets = ipv6(0, &chain);
    let packet = parse(&octets).expect("valid");
    assert_eq!((packet.protocol(), packet.ports()), (UDP, Some((0x1234, 0x5678))));
    assert_eq!(packet.payload(), PORTS);
    for length in 1..chain.len() - PORTS.len() {
        assert_eq!(parse(&ipv6(0, &chain[..length])), Err(IpError::Extensions), "{length}");
    }

    let destination_options = |count: usize| {
        let options = (1..=count).flat_map(|place| [if place == count { UDP } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        ipv6(60, &options.chain(PORTS).collect::<Vec<_>>())
    };
    assert_eq!(parse(&destination_options(MAX_EXTENSION_HEADERS)).map(|packet| packet.protocol()), Ok(UDP));
    assert_eq!(parse(&destination_options(MAX_EXTENSION_HEADERS + 1)), Err(IpError::Extensions));
    assert_eq!(parse(&destination_options(8000)), Err(IpError::Extensions));
    // Nothing hides behind ESP and behind "no next header".
    assert_eq!(parse(&ipv6(50, &[60, 0])).map(|packet| packet.protocol()), Ok(50));
    assert_eq!(parse(&ipv6(59, &[60, 0])).map(|packet| packet.protocol()), Ok(59));
}

#[test]
fn ipv6_fragments() {
    let first = ipv6(44, &[&[UDP, 0, 0, 1, 0, 0, 0, 9][..], &PORTS].concat());
    let packet = parse(&first).expect("valid");
    assert_eq!((packet.protocol(), packet.ports()), (UDP, Some((0x1234, 0x5678))));
    assert!(packet.is_fragment() && packet.more_fragments() && packet.fragment_offset() == 0);

    let later = ipv6(44, &[&[UDP, 0, 0x05, 0xa8, 0, 0, 0, 9][..], &PORTS].concat());
    let packet = parse(&later).expect("valid");
    assert_eq!((packet.protocol(), packet.ports()), (UDP, None));
    assert!(packet.is_fragment() && !packet.more_fragments());
    assert_eq!(packet.fragment_offset(), 1448);

    // What follows the fragment header of a later fragment is data, even if it looks like another header.
    let later = ipv6(44, &[60, 0, 0x05, 0xa8, 0, 0, 0, 9, 1]);
    assert_eq!(parse(&later).expect("valid").payload(), [1]);
}

#[test]
fn ipv4_fragments() {
    let octets = ipv4(&[], 0x2000, &PORTS);
    let packet = parse(&octets).expect("valid");
    assert!(packet.more_fragments() && packet.ports().is_some() && !packet.dont_fragment());
    let octets = ipv4(&[], 0x1fff, &PORTS);
    let packet = parse(&octets).expect("valid");
    assert_eq!((packet.fragment_offset(), packet.ports()), (65_528, None));
}

#[test]
fn ecn_leaves_dscp_alone() {
    for mut octets in [ipv4(&[], 0, &PORTS), ipv6(TCP, &PORTS)] {
        set_traffic_class(&mut octets, 0xb8);
        set_ecn(&mut octets, 3);
        let packet = parse(&octets).expect("valid");
        assert_eq!((packet.traffic_class(), packet.ecn()), (0xbb, 3));
        assert!(packet.header_checksum_holds());
    }
    // The flow label stays.
    let mut octets = ipv6(TCP, &PORTS);
    octets[1..4].copy_from_slice(&[0x0a, 0xbc, 0xde]);
    set_traffic_class(&mut octets, 0xff);
    assert_eq!(octets[..4], [0x6f, 0xfa, 0xbc, 0xde]);
    for mut other in [vec![], vec![0x45], vec![0x60; 39], vec![0; 40]] {
        let before = other.clone();
        set_ecn(&mut other, 3);
        assert_eq!(other, before);
    }
}

fn cut_up(octets: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
    let mut fragments = Vec::new();
    fragment(&parse(octets).expect("valid"), mtu, &mut vec![0; mtu], |fragment| fragments.push(fragment.to_vec()))?;
    Ok(fragments)
}

#[test]
fn fragments_by_hand() {
    // RFC 791 §3.2, example: 20 octets of header, 452 of data, an MTU of 280 leaves 256 and 196 octets of data.
    let payload: Vec<u8> = (0..=255).cycle().take(452).collect();
    let fragments = cut_up(&ipv4(&[], 0, &payload), 280).expect("DF is not set");
    assert_eq!(fragments, [ipv4(&[], 0x2000, &payload[..256]), ipv4(&[], 32, &payload[256..])]);
    // A fragment in the middle stays one: MF and offset are kept.
    let fragments = cut_up(&ipv4(&[], 0x2000 + 32, &payload[..448]), 280).expect("DF is not set");
    assert_eq!(fragments, [ipv4(&[], 0x2000 + 32, &payload[..256]), ipv4(&[], 0x2000 + 64, &payload[256..448])]);
}

#[test]
fn only_copied_options_follow() {
    // Record route (not copied), no operation, router alert (copied), end of options, an octet behind it.
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0, 0, 0xff, 0xff, 0xff];
    let fragments = cut_up(&ipv4(&options, 0, &[9; 100]), 92).expect("DF is not set");
    assert_eq!(fragments[0], ipv4(&options, 0x2000, &[9; 56]));
    assert_eq!(fragments[1..], [ipv4(&[0x94, 4, 0, 0], 7, &[9; 44])]);
    // Padding to four octets, and options that lie about their length.
    let fragments = cut_up(&ipv4(&[0x82, 3, 5, 0x94, 9, 0, 0, 0], 0, &[9; 100]), 92).expect("DF is not set");
    assert_eq!(fragments[1..], [ipv4(&[0x82, 3, 5, 0], 8, &[9; 36])]);
    for lie in [0, 1, 41] {
        let fragments = cut_up(&ipv4(&[0x82, lie, 5, 5], 0, &[9; 100]), 92).expect("DF is not set");
        assert_eq!(fragments[1..], [ipv4(&[], 8, &[9; 36])]);
    }
}

#[test]
fn what_cannot_be_cut() {
    assert_eq!(cut_up(&ipv4(&[], 0x4000, &[9; 100]), 80), Err(FragmentError::Forbidden));
    assert_eq!(cut_up(&ipv6(UDP, &[9; 100]), 80), Err(FragmentError::Forbidden));
    assert_eq!(cut_up(&ipv4(&[], 0, &[9; 100]), 27), Err(FragmentError::Mtu));
    assert_eq!(cut_up(&ipv4(&[], 0x1fff, &[9; 100]), 80), Err(FragmentError::Offset));
    let octets = ipv4(&[], 0, &[9; 100]);
    let packet = parse(&octets).expect("valid");
    assert_eq!(fragment(&packet, 80, &mut [0; 79], |_| panic!("no fragment")), Err(FragmentError::Buffer));
    // What fits is not touched, whatever DF says.
    assert_eq!(cut_up(&ipv4(&[], 0x4000, &[9; 100]), 120), Ok(vec![ipv4(&[], 0x4000, &[9; 100])]));
}

/// Puts pieces where their offsets say; checks that every octet comes once, and returns MF of the last.
fn reassemble(fragments: &[Vec<u8>]) -> (u16, Vec<u8>, bool) {
    let mut pieces: Vec<_> = fragments.iter().map(|octets| parse(octets).expect("valid")).collect();
    assert!(pieces.iter().all(Packet::header_checksum_holds));
    pieces.sort_by_key(Packet::fragment_offset);
    let first = pieces[0].fragment_offset();
    let mut payload = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        assert_eq!(usize::from(piece.fragment_offset() - first), payload.len(), "no gap and no overlap");
        assert!(piece.more_fragments() || index + 1 == pieces.len());
        payload.extend_from_slice(piece.payload());
    }
    (first, payload, pieces.last().is_some_and(Packet::more_fragments))
}

proptest! {
    #[test]
    fn fragments_make_up_the_packet(
        options in vec(prop_oneof![any::<u8>(), Just(1), Just(0x82), Just(4)], 0..=40),
        payload in vec(any::<u8>(), 0..3000),
        offset in 0..4096_u16,
        more: bool,
        mtu in 68..1500_usize,
        second_mtu in 68..1500_usize,
    ) {
        let options = &options[..options.len() & !3];
        let packet = ipv4(options, offset | if more { 0x2000 } else { 0 }, &payload);
        let fragments = cut_up(&packet, mtu).expect("DF is not set");
        prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
        prop_assert_eq!(reassemble(&fragments), (offset * 8, payload.clone(), more));
        let again: Vec<_> =
            fragments.iter().flat_map(|fragment| cut_up(fragment, second_mtu).expect("DF is not set")).collect();
        prop_assert!(again.iter().all(|fragment| fragment.len() <= second_mtu));
        prop_assert_eq!(reassemble(&again), (offset * 8, payload, more));
    }

    #[test]
    fn arbitrary_octets_never_panic(mut octets in vec(any::<u8>(), 0..120), version in 4..=6_u8, ihl in 0..16_u8, mtu in 0..90_usize) {
        if let [first, ..] = octets.as_mut_slice() {
            *first = version << 4 | ihl;
        }
        if let [_, _, high, low, ..] = octets.as_mut_slice() {
            (*high, *low) = (0, *low % 128);
        }
        for trailing in [Trailing::Refused, Trailing::Ignored] {
            if let Ok(packet) = Packet::parse(&octets, trailing) {
                prop_assert!(octets.starts_with(packet.octets()));
                prop_assert!(packet.octets().ends_with(packet.payload()));
                let _ = (packet.source(), packet.destination(), packet.ports(), packet.header_checksum_holds());
                let _ = fragment(&packet, mtu, &mut [0; 90], |fragment| assert!(fragment.len() <= mtu));
            }
        }
    }

    #[test]
    fn every_class_keeps_the_checksum(class: u8, before: u8, ecn in 0..4_u8) {
        let mut octets = ipv4(&[], 0, &PORTS);
        set_traffic_class(&mut octets, before);
        set_traffic_class(&mut octets, class);
        prop_assert!(parse(&octets).expect("valid").header_checksum_holds());
        set_ecn(&mut octets, ecn);
        let packet = parse(&octets).expect("valid");
        prop_assert!(packet.header_checksum_holds());
        prop_assert_eq!(packet.traffic_class(), class & !3 | ecn);
    }
}
