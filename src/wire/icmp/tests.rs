//! The answers as their receivers read them, and the packets that get none.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::ip::{IpError, Trailing, UDP};

const FROM_4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
const FROM_6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xff));

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let offset = (0x4000 | offset).to_be_bytes();
    let header = [0x45, 0, length[0], length[1], 0, 7, offset[0], offset[1], 64, protocol, 0, 0];
    [&header, &source[..], &destination, payload].concat()
}

fn ipv6(source: &str, destination: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short").to_be_bytes();
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    let header = [0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    [&header, &address(source)[..], &address(destination), payload].concat()
}

fn answer(packet: &[u8], from: IpAddr) -> Option<Vec<u8>> {
    let mut buffer = vec![0xee; MAX_ANSWER_LEN];
    let packet = Packet::parse(packet, Trailing::Refused).expect("valid");
    let length = too_big(&packet, 1300, from, &mut buffer)?;
    assert!(buffer[length..].iter().all(|&octet| octet == 0xee), "nothing behind the answer is touched");
    buffer.truncate(length);
    Some(buffer)
}

#[test]
fn fragmentation_needed() {
    for (payload_len, quoted) in [(0, 20), (8, 28), (1400, 548)] {
        let offending = ipv4([10, 42, 1, 7], [10, 42, 2, 9], UDP, 0, &vec![5; payload_len]);
        let octets = answer(&offending, FROM_4).expect("to be answered");
        let packet = Packet::parse(&octets, Trailing::Refused).expect("valid");
        assert!(packet.header_checksum_holds() && octets.len() <= 576);
        assert_eq!((packet.source(), packet.destination()), (FROM_4, IpAddr::from([10, 42, 1, 7])));
        assert_eq!((packet.protocol(), packet.traffic_class()), (ICMP, 0xc0));
        let (header, quote) = packet.payload().split_at(8);
        assert_eq!(checksum(packet.payload()), 0, "the ICMP checksum holds");
        assert_eq!((&header[..2], &header[4..]), (&[3, 4][..], &[0, 0, 0x05, 0x14][..]));
        assert_eq!(quote, &offending[..quoted]);
    }
}

#[test]
fn packet_too_big() {
    for (payload_len, quoted) in [(0, 40), (100, 140), (1400, 1232)] {
        let offending = ipv6("2001:db8::7", "2001:db8:1::9", UDP, &vec![5; payload_len]);
        let octets = answer(&offending, FROM_6).expect("to be answered");
        let packet = Packet::parse(&octets, Trailing::Refused).expect("valid");
        assert!(octets.len() <= 1280);
        assert_eq!((packet.source(), packet.destination().to_string()), (FROM_6, "2001:db8::7".to_owned()));
        assert_eq!((packet.protocol(), packet.traffic_class()), (ICMPV6, 0xc0));
        let (header, quote) = packet.payload().split_at(8);
        assert_eq!((&header[..2], &header[4..]), (&[2, 0][..], &[0, 0, 0x05, 0x14][..]));
        assert_eq!(quote, &offending[..quoted]);
        // RFC 4443 §2.3, written out: addresses, length as 32 bits, three zero octets and 58, then the message.
        let length = u32::try_from(packet.payload().len()).expect("short").to_be_bytes();
        let covered = [&octets[8..40], &length, &[0, 0, 0, 58], packet.payload()].concat();
        assert_eq!(checksum(&covered), 0, "the ICMPv6 checksum holds");
    }
}

#[test]
fn errors_are_not_answered() {
    for kind in 0..=255 {
        let error = [3, 4, 5, 11, 12].contains(&kind);
        let packet = ipv4([10, 42, 1, 7], [10, 42, 2, 9], ICMP, 0, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer(&packet, FROM_4).is_none(), error, "ICMP type {kind}");
        let error = kind < 128 || kind == 137;
        let packet = ipv6("2001:db8::7", "2001:db8:1::9", ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer(&packet, FROM_6).is_none(), error, "ICMPv6 type {kind}");
        // Behind an extension header too.
        let packet = ipv6("2001:db8::7", "2001:db8:1::9", 60, &[ICMPV6, 0, 1, 4, 0, 0, 0, 0, kind, 0, 0, 0]);
        assert_eq!(answer(&packet, FROM_6).is_none(), error, "ICMPv6 type {kind} behind options");
    }
    // An ICMP message too short to tell.
    assert_eq!(answer(&ipv4([10, 42, 1, 7], [10, 42, 2, 9], ICMP, 0, &[]), FROM_4), None);
    assert_eq!(answer(&ipv6("2001:db8::7", "2001:db8:1::9", ICMPV6, &[]), FROM_6), None);
}

#[test]
fn later_fragments() {
    for offset in [1, 0x1fff] {
        assert_eq!(answer(&ipv4([10, 42, 1, 7], [10, 42, 2, 9], UDP, offset, &[5; 100]), FROM_4), None);
    }
    assert!(answer(&ipv4([10, 42, 1, 7], [10, 42, 2, 9], UDP, 0x2000, &[5; 100]), FROM_4).is_some(), "the first");
    let later = |next| ipv6("2001:db8::7", "2001:db8:1::9", 44, &[&[next, 0, 0, 8, 0, 0, 0, 1][..], &[128; 99]].concat());
    assert!(answer(&later(UDP), FROM_6).is_some(), "only the source can make it shorter");
    assert_eq!(answer(&later(ICMPV6), FROM_6), None);
}

#[test]
fn many_senders_or_receivers_are_not_answered() {
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255], [240, 0, 0, 1]] {
        assert_eq!(answer(&ipv4(source, [10, 42, 2, 9], UDP, 0, &[5; 100]), FROM_4), None, "{source:?}");
    }
    for destination in [[224, 0, 0, 1], [239, 1, 2, 3], [255, 255, 255, 255]] {
        assert_eq!(answer(&ipv4([10, 42, 1, 7], destination, UDP, 0, &[5; 100]), FROM_4), None, "{destination:?}");
    }
    for (source, destination) in
        [("::", "2001:db8::9"), ("::1", "2001:db8::9"), ("ff02::1", "2001:db8::9"), ("2001:db8::7", "ff02::1")]
    {
        assert_eq!(answer(&ipv6(source, destination, UDP, &[5; 100]), FROM_6), None, "{source} {destination}");
    }
}

#[test]
fn families_and_buffers_must_fit() {
    let offending = ipv4([10, 42, 1, 7], [10, 42, 2, 9], UDP, 0, &[5; 100]);
    assert_eq!(answer(&offending, FROM_6), None);
    assert_eq!(answer(&ipv6("2001:db8::7", "2001:db8:1::9", UDP, &[5; 100]), FROM_4), None);
    let packet = Packet::parse(&offending, Trailing::Refused).expect("valid");
    assert_eq!(too_big(&packet, 1300, FROM_4, &mut [0; 147]), None);
    assert_eq!(too_big(&packet, 1300, FROM_4, &mut [0; 148]), Some(148));
}

proptest! {
    #[test]
    fn no_answer_is_answered(mut octets in vec(any::<u8>(), 20..200), six: bool, mtu: u16) {
        let length = octets.len();
        octets[0] = if six { 0x60 } else { 0x45 };
        let field = if six { [4, 5] } else { [2, 3] };
        octets[field[0]] = 0;
        octets[field[1]] = if six { length.saturating_sub(40) as u8 } else { length as u8 };
        let Ok(packet) = Packet::parse(&octets, Trailing::Refused) else {
            prop_assume!(six);
            return Ok(());
        };
        let mut buffer = [0; MAX_ANSWER_LEN];
        let from = if six { FROM_6 } else { FROM_4 };
        if let Some(length) = too_big(&packet, mtu, from, &mut buffer) {
            let first: Result<_, IpError> = Packet::parse(&buffer[..length], Trailing::Refused);
            let first = first.expect("an answer is a packet");
            prop_assert_eq!(first.destination(), packet.source());
            prop_assert_eq!(too_big(&first, mtu, packet.destination(), &mut [0; MAX_ANSWER_LEN]), None);
        }
    }
}
