//! The codec against messages built by hand, against the list of bad inputs, and against itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::{Spi, TrafficSelector};

// ---- messages built by hand ----

/// Reads hexadecimal digits, whatever white space stands between them.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
    let digit = |octet: u8| (octet as char).to_digit(16).expect("a hexadecimal digit") as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// An IKE_SA_INIT request, written down field by field from RFC 7296 §3 and the IANA registry.
const SA_INIT: &str = "
    0011223344556677 0000000000000000 21 20 22 08 00000000 000000f2
    22 00 0038                                  SA, then KE
      00 00 0034 01 01 00 05                    the only proposal: number 1, IKE, no SPI, 5 transforms
        03 00 000c 01 00 0014 800e 0100         ENCR_AES_GCM_16, 256 bits
        03 00 0008 01 00 001c                   ENCR_CHACHA20_POLY1305
        03 00 0008 02 00 0005                   PRF_HMAC_SHA2_256
        03 00 0008 04 00 001f                   Curve25519
        00 00 0008 04 00 0013                   256-bit random ECP
    28 00 0028 001f 0000                        KE, then Nonce
      e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c
    29 00 0024                                  Nonce, then Notify
      000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
    29 00 001c 00 00 4004                       NAT_DETECTION_SOURCE_IP
      a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3
    29 00 001c 00 00 4005                       NAT_DETECTION_DESTINATION_IP
      c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3
    29 00 0008 00 00 402e                       IKEV2_FRAGMENTATION_SUPPORTED
    2b 00 000a 00 00 402f 0005                  SIGNATURE_HASH_ALGORITHMS, then Vendor ID
    00 00 0008 75706173                         Vendor ID, the last
";

/// What stands inside the SK payload of an IKE_AUTH request; it starts with IDi.
const AUTH_INNER: &str = "
    24 00 000d 02 000000 616c706861             IDi: FQDN alpha, then IDr
    27 00 000c 01 000000 c0000202               IDr: 192.0.2.2, then AUTH
    21 00 000c 02 000000 01020304               AUTH: shared key, then SA
    2c 00 002c                                  SA, then TSi
      00 00 0028 01 03 04 03 c0ffee00           ESP, SPI, 3 transforms
        03 00 000c 01 00 0014 800e 0080         ENCR_AES_GCM_16, 128 bits
        03 00 0008 05 00 0001                   ESN
        00 00 0008 05 00 0000                   no ESN
    2d 00 0018 01 000000                        TSi, then TSr
      07 00 0010 0000 ffff 0a2a0100 0a2a01ff    10.42.1.0/24
    29 00 0030 01 000000                        TSr, then Notify
      08 11 0028 1194 1194
      20010db8000000000000000000000000 20010db80000000000000000000000ff
    2a 00 0008 00 00 4000                       INITIAL_CONTACT, then Delete
    00 00 0010 03 04 0002 c0ffee01 000000ff     Delete: two ESP SPIs, of which one is reserved
";

/// Removes the remarks: everything behind two blanks that follow something.
fn annotated(text: &str) -> Vec<u8> {
    let fields = text.lines().map(|line| line.trim_start().split("  ").next().unwrap_or_default());
    hex(&fields.collect::<String>())
}

fn sa_init() -> Vec<u8> {
    annotated(SA_INIT)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn transform(kind: TransformType, id: u16, key_length: Option<u16>) -> Transform {
    Transform { kind, id, key_length, unusable: false }
}

#[test]
fn ike_sa_init_built_by_hand() {
    let message = Message::parse(&sa_init()).expect("a valid message");
    assert_eq!(message.protected, None);
    let header = Header {
        initiator_spi: 0x0011_2233_4455_6677,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        flags: Flags { initiator: true, ..Flags::default() },
        message_id: 0,
    };
    assert_eq!(message.header, header);
    let proposal = Proposal {
        number: 1,
        protocol: Protocol::Ike,
        spi: Bytes::new(),
        transforms: vec![
            transform(TransformType::Encryption, 20, Some(256)),
            transform(TransformType::Encryption, 28, None),
            transform(TransformType::Prf, 5, None),
            transform(TransformType::KeyExchange, 31, None),
            transform(TransformType::KeyExchange, 19, None),
        ],
    };
    let value = hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
    let payloads = vec![
        Payload::SecurityAssociation(vec![proposal]),
        Payload::KeyExchange(KeyExchangePayload { group: 31, value: value.into() }),
        Payload::Nonce((0..32).collect()),
        Payload::Notify(Notify::new(NotifyType::NatDetectionSourceIp, (0xa0..=0xb3).collect::<Bytes>())),
        Payload::Notify(Notify::new(NotifyType::NatDetectionDestinationIp, (0xc0..=0xd3).collect::<Bytes>())),
        Payload::Notify(Notify::new(NotifyType::Ikev2FragmentationSupported, Bytes::new())),
        Payload::Notify(Notify::new(NotifyType::SignatureHashAlgorithms, vec![0, 5])),
        Payload::VendorId(Bytes::from_static(b"upas")),
    ];
    assert_eq!(message.payloads, payloads);
    assert_eq!(Message::emit_clear(&header, &payloads), sa_init(), "to the octet");
}

#[test]
fn ike_auth_chain_built_by_hand() {
    let octets = annotated(AUTH_INNER);
    let payloads = parse_chain(PayloadType::IdInitiator.value(), &octets).expect("a valid chain");
    let mut udp_4500 = TrafficSelector::new(address("2001:db8::"), address("2001:db8::ff")).expect("a range");
    (udp_4500.protocol, udp_4500.start_port, udp_4500.end_port) = (17, 4500, 4500);
    let expected = vec![
        Payload::IdInitiator(Identification { body: Bytes::from_static(b"\x02\0\0\0alpha") }),
        Payload::IdResponder(Identification { body: Bytes::from_static(&[1, 0, 0, 0, 192, 0, 2, 2]) }),
        Payload::Auth(Auth { method: AuthMethod::SharedKey, data: Bytes::from_static(&[1, 2, 3, 4]) }),
        Payload::SecurityAssociation(vec![Proposal {
            number: 1,
            protocol: Protocol::Esp,
            spi: Bytes::from_static(&[0xc0, 0xff, 0xee, 0]),
            transforms: vec![
                transform(TransformType::Encryption, 20, Some(128)),
                transform(TransformType::SequenceNumbers, 1, None),
                transform(TransformType::SequenceNumbers, 0, None),
            ],
        }]),
        Payload::TsInitiator(vec![TrafficSelector::from_prefix("10.42.1.0/24".parse().expect("a prefix"))]),
        Payload::TsResponder(vec![udp_4500]),
        Payload::Notify(Notify::new(NotifyType::InitialContact, Bytes::new())),
        Payload::Delete(Delete::Esp(vec![Spi::new(0xc0ff_ee01).expect("not reserved")])),
    ];
    assert_eq!(payloads, expected);
    let mut emitted = Vec::new();
    assert_eq!(emit_chain(&payloads, &mut emitted), PayloadType::IdInitiator.value());
    // All but the Delete payload, which lost its reserved SPI.
    assert_eq!(emitted[..emitted.len() - 12], octets[..octets.len() - 16]);
    assert_eq!(emitted[emitted.len() - 12..], hex("00 00 000c 03 04 0001 c0ffee01"));
}

#[test]
fn names_for_people() {
    assert_eq!(NotifyType::NoProposalChosen.name(), "NO_PROPOSAL_CHOSEN");
    assert_eq!(NotifyType::NatDetectionSourceIp.to_string(), "NAT_DETECTION_SOURCE_IP");
    assert_eq!(NotifyType::from_value(8192).to_string(), "notify type 8192");
    assert_eq!(ExchangeType::CreateChildSa.to_string(), "CREATE_CHILD_SA");
    assert_eq!(ExchangeType::Other(43).to_string(), "exchange type 43");
    assert_eq!(ParseError::Truncated("payload").to_string(), "payload is truncated");
}

// ---- bad input: headers and chains ----

/// A message with this chain in clear.
fn message(first: u8, chain: &[u8]) -> Vec<u8> {
    let mut octets = hex("0011223344556677 8899aabbccddeeff 00 20 25 28 00000007 00000000");
    octets[16] = first;
    octets.extend_from_slice(chain);
    let length = u32::try_from(octets.len()).expect("short").to_be_bytes();
    octets[24..28].copy_from_slice(&length);
    octets
}

/// One payload around this body; another of type `next` follows.
fn payload(next: u8, body: &[u8]) -> Vec<u8> {
    let mut octets = vec![next, 0];
    octets.extend_from_slice(&u16::try_from(body.len() + 4).expect("short").to_be_bytes());
    octets.extend_from_slice(body);
    octets
}

/// What a single payload of this type with this body parses to.
fn parse_one(kind: PayloadType, body: &[u8]) -> Result<Payload, ParseError> {
    let mut payloads = parse_chain(kind.value(), &payload(0, body))?;
    assert_eq!(payloads.len(), 1);
    Ok(payloads.remove(0))
}

#[test]
fn case_01_to_03_shorter_than_a_header() {
    for length in 0..HEADER_LEN {
        assert_eq!(Message::parse(&sa_init()[..length]), Err(ParseError::Truncated("IKE header")), "{length} octets");
    }
    for octet in [0xff, 0xfe] {
        assert_eq!(Message::parse(&[octet]), Err(ParseError::Truncated("IKE header")));
    }
}

#[test]
fn case_04_header_only() {
    let parsed = Message::parse(&message(0, &[])).expect("a message without payloads");
    assert!(parsed.payloads.is_empty() && parsed.protected.is_none());
    assert_eq!(Message::parse(&message(33, &[])), Err(ParseError::Truncated("payload")));
}

#[test]
fn case_05_length_field() {
    let valid = sa_init();
    let length = u32::try_from(valid.len()).expect("short");
    for announced in [0, 27, 28, length - 1, length + 1, u32::MAX] {
        let mut octets = valid.clone();
        octets[24..28].copy_from_slice(&announced.to_be_bytes());
        assert_eq!(Message::parse(&octets), Err(ParseError::Invalid("Length field of the IKE header")), "{announced}");
    }
}

#[test]
fn case_06_non_esp_marker_in_front() {
    // On the IKE port nobody strips it: the marker becomes half an SPI and every field moves.
    let octets = [vec![0; 4], sa_init()].concat();
    assert!(Message::parse(&octets).is_err());
}

#[test]
fn case_09_to_11_spis() {
    let mut octets = sa_init();
    octets[..8].fill(0);
    assert_eq!(Message::parse(&octets), Err(ParseError::Invalid("initiator SPI of zero")));
    // Equal SPIs, and a responder SPI in the first request, are for the state machine to judge.
    let mut octets = sa_init();
    octets.copy_within(..8, 8);
    let header = Message::parse(&octets).expect("well-formed").header;
    assert_eq!(header.initiator_spi, header.responder_spi);
}

#[test]
fn case_12_versions() {
    for major in [0, 1, 3, 15] {
        let mut octets = sa_init();
        octets[17] = major << 4;
        assert_eq!(Message::parse(&octets), Err(ParseError::Version(major)));
    }
    let mut octets = sa_init();
    octets[17] = 0x29;
    assert!(Message::parse(&octets).is_ok(), "the minor version is ignored");
}

#[test]
fn case_13_to_14_flags() {
    for octet in 0..=255 {
        let mut octets = sa_init();
        octets[19] = octet;
        let flags = Message::parse(&octets).expect("reserved flags are ignored").header.flags;
        let expected = Flags { initiator: octet & 8 != 0, version: octet & 16 != 0, response: octet & 32 != 0 };
        assert_eq!(flags, expected);
        let emitted = Message::emit_clear(&Header { flags, ..Message::parse(&octets).expect("valid").header }, &[]);
        assert_eq!(emitted[19], octet & 0x38, "reserved flags are sent as zero");
    }
}

#[test]
fn case_15_exchange_types() {
    for value in 0..=255 {
        let mut octets = sa_init();
        octets[18] = value;
        assert_eq!(Message::parse(&octets).expect("well-formed").header.exchange.value(), value);
    }
}

#[test]
fn case_16_largest_datagram() {
    let body = vec![0; 65_507 - HEADER_LEN - 4];
    let octets = message(43, &payload(0, &body));
    assert_eq!(octets.len(), 65_507);
    assert_eq!(Message::parse(&octets).expect("valid").payloads, [Payload::VendorId(body.into())]);
    assert!(Message::parse(&message(0, &vec![0; 65_507 - HEADER_LEN])).is_err());
}

#[test]
fn case_17_payload_length_below_its_header() {
    for length in 0..4 {
        let mut chain = payload(0, &[1, 2, 3, 4]);
        chain[3] = length;
        assert_eq!(parse_chain(43, &chain), Err(ParseError::Invalid("payload")), "{length}");
    }
}

#[test]
fn case_18_payload_length_past_the_end() {
    let mut chain = payload(0, &[1, 2, 3, 4]);
    chain[3] = 9;
    assert_eq!(parse_chain(43, &chain), Err(ParseError::Truncated("payload")));
    chain[2] = 0xff;
    assert_eq!(parse_chain(43, &chain), Err(ParseError::Truncated("payload")));
}

#[test]
fn case_19_last_payload_announces_another() {
    assert_eq!(parse_chain(43, &payload(43, b"x")), Err(ParseError::Truncated("payload")));
}

#[test]
fn case_20_octets_behind_the_chain() {
    assert_eq!(Message::parse(&message(0, &[0])), Err(ParseError::Invalid("payload chain")));
    let chain = [payload(0, b"x"), vec![0]].concat();
    assert_eq!(parse_chain(43, &chain), Err(ParseError::Invalid("payload chain")));
}

#[test]
fn case_21_many_payloads() {
    for kind in [43, 41, 200] {
        let body: &[u8] = if kind == 41 { &[0, 0, 0x40, 0] } else { b"x" };
        let chain = |count: usize| {
            (0..count).flat_map(|index| payload(if index + 1 == count { 0 } else { kind }, body)).collect::<Vec<_>>()
        };
        assert_eq!(parse_chain(kind, &chain(MAX_PAYLOADS)).map(|payloads| payloads.len()), Ok(MAX_PAYLOADS));
        assert_eq!(parse_chain(kind, &chain(MAX_PAYLOADS + 1)), Err(ParseError::TooMany));
        assert_eq!(parse_chain(kind, &chain(300)), Err(ParseError::TooMany));
    }
}

#[test]
fn case_22_unknown_payloads_are_kept() {
    for kind in (1..=255).filter(|&kind| PayloadType::from_value(kind).is_none()) {
        for critical in [false, true] {
            let mut chain = payload(43, b"whatever");
            chain[1] = if critical { 0x80 } else { 0 };
            chain.extend(payload(0, b"x"));
            let payloads = parse_chain(kind, &chain).expect("well-formed");
            assert_eq!(payloads, [Payload::Unknown { kind, critical }, Payload::VendorId(Bytes::from_static(b"x"))]);
        }
    }
}

#[test]
fn case_23_reserved_and_critical_bits_of_known_payloads() {
    for octet in 0..=255 {
        let mut octets = sa_init();
        octets[HEADER_LEN + 1] = octet;
        assert_eq!(Message::parse(&octets), Message::parse(&sa_init()));
    }
}

#[test]
fn case_24_payloads_twice() {
    let message = Message::parse(&sa_init()).expect("valid");
    let inner = parse_chain(35, &annotated(AUTH_INNER)).expect("valid");
    for payload in message.payloads.iter().chain(&inner) {
        let mut chain = Vec::new();
        let first = emit_chain(&[payload.clone(), payload.clone()], &mut chain);
        let repeatable = matches!(payload, Payload::Notify(_) | Payload::VendorId(_) | Payload::Delete(_));
        let expected = Err(ParseError::Invalid("second payload of a type that comes once"));
        let parsed = parse_chain(first, &chain);
        assert!(if repeatable { parsed.is_ok() } else { parsed == expected }, "{payload:?}: {parsed:?}");
    }
}

/// The body of an SK payload: IV, `text`, ICV.
fn sealed(text: &[u8]) -> Vec<u8> {
    [&[1; 8], text, &[2; 16]].concat()
}

#[test]
fn case_25_to_27_places_of_sk() {
    let sk = |next, text: &[u8]| payload(next, &sealed(text));
    let parsed = Message::parse(&message(46, &sk(43, &[0]))).expect("valid");
    assert_eq!(parsed.protected, Some(ProtectedView { first_inner: 43, aad_len: 32, fragment: None }));
    // In front of SK there may be payloads in clear; they are authenticated with it.
    let chain = [payload(46, b"x"), sk(43, &[0])].concat();
    let parsed = Message::parse(&message(43, &chain)).expect("valid");
    assert_eq!(parsed.protected, Some(ProtectedView { first_inner: 43, aad_len: 37, fragment: None }));
    assert_eq!(parsed.payloads, [Payload::VendorId(Bytes::from_static(b"x"))]);

    let chain = [sk(43, &[0]), payload(0, b"x")].concat();
    assert_eq!(Message::parse(&message(46, &chain)), Err(ParseError::Invalid("payload behind SK")));
    assert!(Message::parse(&message(53, &[payload(46, &sealed(&[0])), sk(0, &[0])].concat())).is_err());
    assert!(Message::parse(&message(46, &[sk(53, &[0]), payload(0, &sealed(&[0]))].concat())).is_err());
    assert_eq!(parse_chain(46, &sk(0, &[0])), Err(ParseError::Invalid("SK payload inside SK")));
    assert_eq!(parse_chain(53, &payload(0, &sealed(&[0]))), Err(ParseError::Invalid("SK payload inside SK")));
}

#[test]
fn case_96_numbers_of_fragments() {
    let skf = |number: u16, total: u16| {
        let body = [&number.to_be_bytes()[..], &total.to_be_bytes(), &sealed(&[0])].concat();
        Message::parse(&message(53, &payload(35, &body)))
    };
    for (number, total) in [(1, 1), (1, 2), (2, 2), (65535, 65535)] {
        let view = skf(number, total).expect("valid").protected.expect("SKF");
        assert_eq!(view, ProtectedView { first_inner: 35, aad_len: 36, fragment: Some(Fragment { number, total }) });
    }
    for (number, total) in [(0, 0), (0, 1), (1, 0), (2, 1), (65535, 1), (0, 65535)] {
        assert_eq!(skf(number, total), Err(ParseError::Invalid("fragment number")), "{number} of {total}");
    }
    for length in 0..4 + 25 {
        let body = [&[0, 1, 0, 1][..], &[0; 25]].concat();
        assert!(Message::parse(&message(53, &payload(35, &body[..length]))).is_err(), "{length} octets");
    }
}

#[test]
fn case_101_unknown_payloads_in_clear_before_skf() {
    for count in [29, 30, 31, MAX_PAYLOADS - 1, MAX_PAYLOADS] {
        let mut chain: Vec<u8> = (1..count).flat_map(|_| payload(200, b"x")).collect();
        chain.extend(payload(53, b"x"));
        chain.extend(payload(35, &[&[0, 1, 0, 2][..], &sealed(&[0])].concat()));
        let parsed = Message::parse(&message(200, &chain));
        assert_eq!(parsed.is_ok(), count < MAX_PAYLOADS, "{count} of them");
    }
}

/// RFC 9242 §3.3.2: header and generic header with the lengths that the message would have in clear.
#[test]
fn a_message_as_it_would_be_in_clear() {
    let flags = Flags { initiator: true, ..Flags::default() };
    let header =
        Header { initiator_spi: 1, responder_spi: 2, exchange: ExchangeType::IkeIntermediate, flags, message_id: 1 };
    let payloads = [Payload::VendorId(Bytes::from_static(b"abc"))];
    let expected = hex("0000000000000001 0000000000000002 2e 20 2b 08 00000001 00000027  2b 00 000b  00 00 0007 616263");
    let chain = &expected[32..];
    let seal = |_: &[u8], _: &mut [u8]| ([1; 8], [2; 16]);
    let whole = Message::emit_protected(&header, &payloads, seal);
    let view = |octets: &[u8]| Message::parse(octets).expect("valid").protected.expect("SK or SKF");
    assert_eq!(Message::in_clear(view(&whole), &whole, chain), expected);
    let fragment = Message::emit_fragment(&header, Fragment { number: 1, total: 2 }, 43, &chain[..4], seal);
    assert_eq!(Message::in_clear(view(&fragment), &fragment, chain), expected);
    let empty = Message::emit_protected(&header, &[], seal);
    let expected = hex("0000000000000001 0000000000000002 2e 20 2b 08 00000001 00000020  00 00 0004");
    assert_eq!(Message::in_clear(view(&empty), &empty, &[]), expected);
}

#[test]
fn fragments_are_emitted_as_they_are_parsed() {
    let flags = Flags { initiator: true, ..Flags::default() };
    let header = Header { initiator_spi: 1, responder_spi: 2, exchange: ExchangeType::IkeAuth, flags, message_id: 1 };
    let fragment = Fragment { number: 2, total: 3 };
    let mut seen = Vec::new();
    let mut emitted = Message::emit_fragment(&header, fragment, 35, b"piece", |aad, text| {
        seen = [aad, text].concat();
        ([1; 8], [2; 16])
    });
    assert_eq!(emitted.len(), SKF_OVERHEAD + 5);
    let parsed = Message::parse(&emitted).expect("valid");
    let view = parsed.protected.expect("SKF");
    assert_eq!((parsed.header, view.fragment, view.first_inner), (header, Some(fragment), 0));
    assert_eq!(seen, [&emitted[..36], &emitted[44..50]].concat(), "the numbers are authenticated too");
    let opened = Message::open(view, &mut emitted, |iv, _, _, icv| (iv, icv) == (&[1; 8], &[2; 16]));
    assert_eq!(opened, Ok((0, &b"piece"[..])));
}

// ---- bad input: SA payloads ----

fn proposal(last_substruc: u8, number: u8, protocol: u8, spi: &[u8], transform_count: u8, transforms: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + spi.len() + transforms.len()).expect("short").to_be_bytes();
    let spi_len = u8::try_from(spi.len()).expect("short");
    let header = [last_substruc, 0, length[0], length[1], number, protocol, spi_len, transform_count];
    [&header, spi, transforms].concat()
}

fn parse_sa(body: &[u8]) -> Result<Vec<Proposal>, ParseError> {
    match parse_one(PayloadType::SecurityAssociation, body)? {
        Payload::SecurityAssociation(proposals) => Ok(proposals),
        other => panic!("{other:?}"),
    }
}

/// The only transform of the only proposal, with these attributes.
fn parse_attributes(attributes: &str) -> Result<Transform, ParseError> {
    let mut octets = hex("0000 0000 01 00 0014");
    octets.extend(hex(attributes));
    octets[3] = u8::try_from(octets.len()).expect("short");
    Ok(parse_sa(&proposal(0, 1, 1, &[], 1, &octets))?[0].transforms[0])
}

const PRF: &str = "00 00 0008 02 00 0005";

#[test]
fn case_28_no_proposal() {
    assert_eq!(parse_sa(&[]), Err(ParseError::Truncated("proposal")));
}

#[test]
fn case_29_proposal_numbers() {
    let one = |number| parse_sa(&proposal(0, number, 1, &[], 1, &hex(PRF)));
    assert_eq!(one(0), Err(ParseError::Invalid("proposal number")));
    // An answer repeats the number that was chosen, whichever it was.
    for number in 1..=255 {
        assert_eq!(one(number).expect("valid")[0].number, number);
    }
    let two = |first, second| {
        parse_sa(&[proposal(2, first, 1, &[], 1, &hex(PRF)), proposal(0, second, 1, &[], 1, &hex(PRF))].concat())
    };
    assert!(two(1, 2).is_ok());
    for (first, second) in [(1, 1), (2, 1), (255, 0)] {
        assert_eq!(two(first, second), Err(ParseError::Invalid("proposal number")), "{first} {second}");
    }
}

#[test]
fn case_30_many_proposals_and_transforms() {
    let proposals = |count: u8| {
        let octets =
            (1..=count).flat_map(|number| proposal(if number == count { 0 } else { 2 }, number, 1, &[], 1, &hex(PRF)));
        parse_sa(&octets.collect::<Vec<_>>()).map(|proposals| proposals.len())
    };
    let most = u8::try_from(MAX_PROPOSALS).expect("a count of one octet");
    assert_eq!(proposals(most), Ok(MAX_PROPOSALS));
    assert_eq!(proposals(most + 1), Err(ParseError::Invalid("number of proposals")));
    assert_eq!(proposals(255), Err(ParseError::Invalid("number of proposals")));

    let transforms = |count: u8| {
        let octets = (1..=count).flat_map(|number| hex(if number == count { PRF } else { "03 00 0008 02 00 0005" }));
        parse_sa(&proposal(0, 1, 1, &[], count, &octets.collect::<Vec<_>>())).map(|proposals| proposals[0].transforms.len())
    };
    let most = u8::try_from(MAX_TRANSFORMS).expect("a count of one octet");
    assert_eq!(transforms(most), Ok(MAX_TRANSFORMS));
    assert_eq!(transforms(255), Err(ParseError::Invalid("number of transforms")));
}

#[test]
fn case_31_transform_count_lies() {
    assert_eq!(parse_sa(&proposal(0, 1, 1, &[], 0, &hex(PRF))), Err(ParseError::Invalid("proposal")));
    assert_eq!(parse_sa(&proposal(0, 1, 1, &[], 2, &hex("03 00 0008 02 00 0005"))), Err(ParseError::Truncated("transform")));
    assert!(parse_sa(&proposal(0, 1, 1, &[], 255, &hex(PRF))).is_err());
}

#[test]
fn case_32_last_substruc() {
    for value in (0..=255).filter(|&value| value != 0) {
        let refused = Err(ParseError::Invalid("Last Substruc of a proposal"));
        assert_eq!(parse_sa(&proposal(value, 1, 1, &[], 1, &hex(PRF))), refused, "{value}");
        let mut transform = hex(PRF);
        transform[0] = value;
        let refused = Err(ParseError::Invalid("Last Substruc of a transform"));
        assert_eq!(parse_sa(&proposal(0, 1, 1, &[], 1, &transform)), refused, "{value}");
    }
    for value in [0, 3] {
        let octets = [proposal(value, 1, 1, &[], 1, &hex(PRF)), proposal(0, 2, 1, &[], 1, &hex(PRF))].concat();
        assert_eq!(parse_sa(&octets), Err(ParseError::Invalid("Last Substruc of a proposal")), "{value}");
    }
    let first_is_last = [hex(PRF), hex(PRF)].concat();
    assert!(parse_sa(&proposal(0, 1, 1, &[], 2, &first_is_last)).is_err());
}

#[test]
fn case_33_transform_length() {
    for length in 0..8 {
        let mut transform = hex(PRF);
        transform[3] = length;
        assert_eq!(parse_sa(&proposal(0, 1, 1, &[], 1, &transform)), Err(ParseError::Invalid("transform")), "{length}");
    }
    let mut transform = hex(PRF);
    transform[3] = 9;
    assert_eq!(parse_sa(&proposal(0, 1, 1, &[], 1, &transform)), Err(ParseError::Truncated("transform")));
}

#[test]
fn case_34_spi_sizes() {
    for (protocol, allowed) in [(1, &[0, 8][..]), (3, &[4])] {
        for size in [0, 3, 4, 5, 8, 255] {
            let parsed = parse_sa(&proposal(0, 1, protocol, &vec![7; size], 1, &hex(PRF)));
            if allowed.contains(&size) {
                assert_eq!(parsed.expect("valid")[0].spi, vec![7; size]);
            } else {
                assert_eq!(parsed, Err(ParseError::Invalid("SPI size of a proposal")), "protocol {protocol}, {size}");
            }
        }
    }
    // An SPI size that reaches behind the proposal.
    let mut octets = proposal(0, 1, 3, &[7; 4], 1, &hex(PRF));
    octets[6] = 255;
    assert_eq!(parse_sa(&octets), Err(ParseError::Truncated("proposal")));
}

#[test]
fn case_35_other_protocols_are_kept() {
    for protocol in [0, 2, 4, 200] {
        let proposals = parse_sa(&proposal(0, 1, protocol, &[7; 4], 1, &hex(PRF))).expect("to be skipped");
        assert_eq!(proposals[0].protocol.value(), protocol);
    }
}

#[test]
fn case_38_attributes() {
    let of = |key_length, unusable| Ok(Transform { kind: TransformType::Encryption, id: 20, key_length, unusable });
    assert_eq!(parse_attributes(""), of(None, false));
    for (attribute, bits) in [("800e 0000", 0), ("800e 0001", 1), ("800e 007f", 127), ("800e ffff", 65_535)] {
        assert_eq!(parse_attributes(attribute), of(Some(bits), false));
    }
    assert_eq!(parse_attributes("800e 0100 800e 0080"), of(Some(256), true), "twice");
    assert_eq!(parse_attributes("000e 0002 0100"), of(None, true), "the long form");
    assert_eq!(parse_attributes("800d 0100"), of(None, true), "an unknown attribute");
    assert_eq!(parse_attributes("000d 0000"), of(None, true), "an unknown attribute without value");
    for truncated in ["80", "800e 01", "000e 0003 0100", "000e ffff 0100"] {
        assert_eq!(parse_attributes(truncated), Err(ParseError::Truncated("transform")), "{truncated}");
    }
}

#[test]
fn case_40_unknown_transforms_are_kept() {
    let transforms = hex("03 00 0008 fa 00 03ff  03 00 0008 01 00 ffff  00 00 0008 00 00 0001");
    let proposals = parse_sa(&proposal(0, 1, 1, &[], 3, &transforms)).expect("well-formed");
    let expected = [
        transform(TransformType::Other(250), 1023, None),
        transform(TransformType::Encryption, 65_535, None),
        transform(TransformType::Other(0), 1, None),
    ];
    assert_eq!(proposals[0].transforms, expected);
}

// ---- bad input: the other bodies ----

#[test]
fn case_43_to_44_ke_values_of_any_group_and_length() {
    for length in [0, 31, 32, 33, 600] {
        let body = [vec![0xff, 0xff, 0, 0], vec![9; length]].concat();
        let expected = KeyExchangePayload { group: 65_535, value: vec![9; length].into() };
        assert_eq!(parse_one(PayloadType::KeyExchange, &body), Ok(Payload::KeyExchange(expected)));
    }
    for length in 0..4 {
        assert_eq!(parse_one(PayloadType::KeyExchange, &vec![0; length]), Err(ParseError::Truncated("KE payload")));
    }
}

#[test]
fn case_49_nonce_lengths() {
    for length in [0, 15, 257] {
        let refused = Err(ParseError::Invalid("length of the nonce"));
        assert_eq!(parse_one(PayloadType::Nonce, &vec![1; length]), refused, "{length}");
    }
    for length in [16, 32, 256] {
        assert!(parse_one(PayloadType::Nonce, &vec![1; length]).is_ok(), "{length}");
    }
}

#[test]
fn case_53_and_59_notify_data_of_any_length() {
    for kind in [NotifyType::InvalidKePayload, NotifyType::NatDetectionSourceIp, NotifyType::Cookie] {
        for length in [0, 2, 3, 19, 20, 21, 65] {
            let notify = Notify::new(kind, vec![7; length]);
            let mut chain = Vec::new();
            assert_eq!(emit_chain(&[Payload::Notify(notify.clone())], &mut chain), 41);
            assert_eq!(parse_chain(41, &chain), Ok(vec![Payload::Notify(notify)]));
        }
    }
    for body in ["", "00", "00 00", "00 00 40", "03 04 4009", "03 04 4009 000000", "03 ff 4009 00000000"] {
        assert_eq!(parse_one(PayloadType::Notify, &hex(body)), Err(ParseError::Truncated("Notify payload")), "{body}");
    }
}

#[test]
fn case_63_sk_too_short() {
    for length in 0..25 {
        let octets = message(46, &payload(0, &vec![0; length]));
        assert_eq!(Message::parse(&octets), Err(ParseError::Truncated("SK payload")), "{length}");
    }
}

#[test]
fn case_64_pad_length() {
    for (text, expected) in [
        (&[255][..], Err(OpenError::Padding)),
        (&[1], Err(OpenError::Padding)),
        (&[0], Ok((43, &[][..]))),
        (&[9, 9, 2], Ok((43, &[]))),
        (&[9, 9, 3], Err(OpenError::Padding)),
        (&[5, 9, 9, 2], Ok((43, &[5]))),
    ] {
        let mut octets = message(46, &payload(43, &sealed(text)));
        let view = Message::parse(&octets).expect("valid").protected.expect("an SK payload");
        assert_eq!(Message::open(view, &mut octets, |_, _, _, _| true), expected, "{text:?}");
        assert_eq!(Message::open(view, &mut octets, |_, _, _, _| false), Err(OpenError::Icv));
    }
}

#[test]
fn case_75_auth_lengths() {
    for length in 0..4 {
        assert_eq!(parse_one(PayloadType::Auth, &vec![2; length]), Err(ParseError::Truncated("AUTH payload")));
    }
    for length in [0, 1, 31, 33] {
        let expected = Auth { method: AuthMethod::SharedKey, data: vec![7; length].into() };
        let body = [vec![2, 0, 0, 0], vec![7; length]].concat();
        assert_eq!(parse_one(PayloadType::Auth, &body), Ok(Payload::Auth(expected)));
    }
}

#[test]
fn case_76_id_lengths() {
    for length in 0..4 {
        assert_eq!(parse_one(PayloadType::IdInitiator, &vec![2; length]), Err(ParseError::Truncated("ID payload")));
    }
    // Kept to the octet, reserved ones included: AUTH covers them.
    for length in [4, 9, 65_531] {
        let expected = Identification { body: vec![0xee; length].into() };
        assert_eq!(parse_one(PayloadType::IdResponder, &vec![0xee; length]), Ok(Payload::IdResponder(expected)));
    }
}

const V4_SELECTOR: &str = "07 00 0010 0000 ffff 0a2a0100 0a2a01ff";

fn parse_ts(body: &str) -> Result<Vec<TrafficSelector>, ParseError> {
    match parse_one(PayloadType::TsInitiator, &hex(body))? {
        Payload::TsInitiator(selectors) => Ok(selectors),
        other => panic!("{other:?}"),
    }
}

#[test]
fn case_84_traffic_selectors() {
    assert_eq!(parse_ts("00 000000"), Err(ParseError::Invalid("TS payload without selectors")));
    assert_eq!(parse_ts(&format!("00 000000 {V4_SELECTOR}")), Err(ParseError::Invalid("TS payload without selectors")));
    for count in ["02", "ff"] {
        assert_eq!(parse_ts(&format!("{count} 000000 {V4_SELECTOR}")), Err(ParseError::Truncated("traffic selector")));
    }
    assert_eq!(parse_ts(&format!("01 000000 {V4_SELECTOR} {V4_SELECTOR}")), Err(ParseError::Invalid("TS payload")));
    let many = V4_SELECTOR.repeat(255);
    assert_eq!(parse_ts(&format!("ff 000000 {many}")).map(|selectors| selectors.len()), Ok(255));

    let reversed = "01 000000 07 00 0010 0000 ffff 0a2a01ff 0a2a0100";
    assert_eq!(parse_ts(reversed), Err(ParseError::Invalid("range of a traffic selector")));
    for (selector, error) in [
        ("07 00 000f 0000 ffff 0a2a0100 0a2a01", ParseError::Invalid("length of a traffic selector")),
        ("07 00 0011 0000 ffff 0a2a0100 0a2a01ff 00", ParseError::Invalid("length of a traffic selector")),
        ("08 00 0010 0000 ffff 0a2a0100 0a2a01ff", ParseError::Invalid("length of a traffic selector")),
        ("07 00 0003", ParseError::Invalid("traffic selector")),
        ("07 00 0010 0000", ParseError::Truncated("traffic selector")),
    ] {
        assert_eq!(parse_ts(&format!("01 000000 {selector}")), Err(error), "{selector}");
    }

    // Unknown types are skipped by their length, and count.
    let mixed = format!("03 000000 09 00 0006 beef {V4_SELECTOR} {V4_SELECTOR}");
    assert_eq!(parse_ts(&mixed).map(|selectors| selectors.len()), Ok(2));
    assert_eq!(parse_ts("01 000000 09 00 0004"), Ok(vec![]));

    let six = "08 3a 0028 8000 8001 20010db8000000000000000000000001 20010db8000000000000000000000002";
    let both = parse_ts(&format!("02 000000 {V4_SELECTOR} {six}")).expect("mixed families are valid");
    assert_eq!((both[1].protocol, both[1].start_port, both[1].end_port), (58, 0x8000, 0x8001));
    // OPAQUE, and ports without a protocol, are kept as they came.
    let opaque = parse_ts("01 000000 07 00 0010 ffff 0000 0a2a0100 0a2a01ff").expect("valid");
    assert_eq!((opaque[0].start_port, opaque[0].end_port), (65_535, 0));
}

#[test]
fn case_86_reserved_spis() {
    // In a proposal the octets are kept: who chooses refuses them. In a Delete they name nothing.
    for spi in [[0, 0, 0, 0], [0, 0, 0, 255]] {
        assert_eq!(parse_sa(&proposal(0, 1, 3, &spi, 1, &hex(PRF))).expect("well-formed")[0].spi, spi.to_vec());
        let body = [&[3, 4, 0, 1], &spi[..]].concat();
        assert_eq!(parse_one(PayloadType::Delete, &body), Ok(Payload::Delete(Delete::Esp(vec![]))));
    }
}

#[test]
fn case_90_delete() {
    assert_eq!(parse_one(PayloadType::Delete, &hex("01 00 0000")), Ok(Payload::Delete(Delete::Ike)));
    assert_eq!(parse_one(PayloadType::Delete, &hex("03 04 0000")), Ok(Payload::Delete(Delete::Esp(vec![]))));
    for body in [
        "01 04 0001 c0ffee01",         // SPIs for IKE
        "01 08 0001 0011223344556677", //
        "01 00 ffff",                  // a count without SPIs
        "01 00 0000 00",               // octets left over
        "03 04 ffff c0ffee01",         // a count that lies
        "03 04 0002 c0ffee01",         //
        "03 04 0000 c0ffee01",         //
        "03 04 0001 c0ffee01 00",      //
        "03 00 0001",                  // SPI sizes
        "03 08 0001 c0ffee01c0ffee01", //
        "02 04 0001 c0ffee01",         // AH
        "00 00 0000",                  //
        "03 04 00",                    // truncated
    ] {
        assert!(parse_one(PayloadType::Delete, &hex(body)).is_err(), "{body}");
    }
}

#[test]
fn case_93_notifies_that_nobody_asked_for_are_kept() {
    for value in [16_391, 16_387, 16_442, 40_000] {
        let body = [&[0, 0][..], &u16::to_be_bytes(value)].concat();
        let expected = Notify::new(NotifyType::from_value(value), Bytes::new());
        assert_eq!(parse_one(PayloadType::Notify, &body), Ok(Payload::Notify(expected)));
    }
}

// ---- the SK payload ----

/// A cipher that a test can compute by hand: the text is inverted, and the ICV is the sum of the AAD and of the text.
fn toy_icv(iv: &[u8; 8], aad: &[u8], text: &[u8]) -> [u8; 16] {
    let sum = |octets: &[u8]| octets.iter().fold(7_u64, |sum, &octet| sum.wrapping_mul(31).wrapping_add(u64::from(octet)));
    let mut icv = [0; 16];
    icv[..8].copy_from_slice(&sum(aad).to_be_bytes());
    icv[8..].copy_from_slice(&(sum(text) ^ u64::from_be_bytes(*iv)).to_be_bytes());
    icv
}

fn toy_seal(aad: &[u8], text: &mut [u8]) -> ([u8; 8], [u8; 16]) {
    let iv = [0, 0, 0, 0, 0, 0, 0, 9];
    text.iter_mut().for_each(|octet| *octet = !*octet);
    (iv, toy_icv(&iv, aad, text))
}

fn toy_open(iv: &[u8; 8], aad: &[u8], text: &mut [u8], icv: &[u8; 16]) -> bool {
    let good = toy_icv(iv, aad, text) == *icv;
    text.iter_mut().for_each(|octet| *octet = !*octet);
    good
}

#[test]
fn sealed_layout() {
    let header = Message::parse(&sa_init()).expect("valid").header;
    let octets = Message::emit_protected(&header, &[Payload::VendorId(Bytes::from_static(b"x"))], |aad, text| {
        // RFC 5282 §5.1: the AAD ends with the generic header of SK, lengths included.
        assert_eq!(aad, hex("0011223344556677 0000000000000000 2e 20 22 08 00000000 0000003e 2b 00 0022"));
        assert_eq!(text, hex("00 00 0005 78 00"));
        text.fill(0xcc);
        ([0xaa; 8], [0xbb; 16])
    });
    assert_eq!(octets.len(), 0x3e);
    assert_eq!(octets[32..], [vec![0xaa; 8], vec![0xcc; 6], vec![0xbb; 16]].concat());
}

#[test]
fn case_61_every_bit_of_a_protected_message_flipped() {
    let header = Message::parse(&sa_init()).expect("valid").header;
    let octets = Message::emit_protected(&header, &[Payload::Delete(Delete::Ike)], toy_seal);
    for bit in 0..octets.len() * 8 {
        let mut flipped = octets.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(Message { protected: Some(view), .. }) = Message::parse(&flipped) else { continue };
        assert_eq!(Message::open(view, &mut flipped, toy_open), Err(OpenError::Icv), "bit {bit}");
    }
}

#[test]
fn a_view_of_another_datagram_opens_nothing() {
    for aad_len in [0, 1, 30, usize::MAX] {
        let view = ProtectedView { first_inner: 0, aad_len, fragment: None };
        assert_eq!(Message::open(view, &mut [0; 20], |_, _, _, _| true), Err(OpenError::Icv));
    }
}

// ---- arbitrary messages ----

fn octets(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), length).prop_map(Bytes::from)
}

fn headers() -> impl Strategy<Value = Header> {
    (1_u64.., any::<u64>(), any::<u8>(), any::<[bool; 3]>(), any::<u32>()).prop_map(
        |(initiator_spi, responder_spi, exchange, [initiator, version, response], message_id)| Header {
            initiator_spi,
            responder_spi,
            exchange: ExchangeType::from_value(exchange),
            flags: Flags { initiator, version, response },
            message_id,
        },
    )
}

fn transforms() -> impl Strategy<Value = Transform> {
    (any::<u8>(), any::<u16>(), any::<Option<u16>>(), any::<bool>()).prop_map(|(kind, id, key_length, unusable)| Transform {
        kind: TransformType::from_value(kind),
        id,
        key_length,
        unusable,
    })
}

fn proposals() -> impl Strategy<Value = Vec<Proposal>> {
    let protocol_and_spi = prop_oneof![
        (Just(1), prop_oneof![octets(0), octets(8)]),
        (Just(3), octets(4)),
        (prop_oneof![Just(0), Just(2), 4_u8..], octets(0..=255)),
    ];
    let proposal = (protocol_and_spi, vec(transforms(), 0..6));
    (vec(proposal, 1..5), 0..=250_u8).prop_map(|(proposals, skipped)| {
        let numbered = (skipped + 1..).zip(proposals);
        let build = |(number, ((protocol, spi), transforms))| Proposal {
            number,
            protocol: Protocol::from_value(protocol),
            spi,
            transforms,
        };
        numbered.map(build).collect()
    })
}

fn selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
    let four = any::<[u32; 2]>().prop_map(|ends| ends.map(|end| IpAddr::V4(Ipv4Addr::from(end))));
    let six = any::<[u128; 2]>().prop_map(|ends| ends.map(|end| IpAddr::V6(Ipv6Addr::from(end))));
    let selector = (prop_oneof![four, six], any::<(u8, u16, u16)>()).prop_map(|([a, b], (protocol, start, end))| {
        let mut selector = TrafficSelector::new(a.min(b), a.max(b)).expect("ordered");
        (selector.protocol, selector.start_port, selector.end_port) = (protocol, start, end);
        selector
    });
    vec(selector, 0..5)
}

fn payloads() -> impl Strategy<Value = Payload> {
    let spi = (Spi::MIN..).prop_map(|value| Spi::new(value).expect("not reserved"));
    let unknown = any::<u8>().prop_filter("known", |&kind| kind != 0 && PayloadType::from_value(kind).is_none());
    prop_oneof![
        proposals().prop_map(Payload::SecurityAssociation),
        (any::<u16>(), octets(0..100)).prop_map(|(group, value)| Payload::KeyExchange(KeyExchangePayload { group, value })),
        octets(4..40).prop_map(|body| Payload::IdInitiator(Identification { body })),
        octets(4..40).prop_map(|body| Payload::IdResponder(Identification { body })),
        (any::<u8>(), octets(0..40)).prop_map(|(encoding, data)| Payload::Certificate(Certificate { encoding, data })),
        octets(0..40).prop_map(Payload::CertificateRequest),
        (any::<u8>(), octets(0..40))
            .prop_map(|(method, data)| Payload::Auth(Auth { method: AuthMethod::from_value(method), data })),
        octets(16..=256).prop_map(Payload::Nonce),
        (any::<u8>(), octets(0..=255), any::<u16>(), octets(0..70)).prop_map(|(protocol, spi, kind, data)| {
            let (protocol, kind) = (Protocol::from_value(protocol), NotifyType::from_value(kind));
            Payload::Notify(Notify { protocol, spi, kind, data })
        }),
        Just(Payload::Delete(Delete::Ike)),
        vec(spi, 0..5).prop_map(|spis| Payload::Delete(Delete::Esp(spis))),
        octets(0..40).prop_map(Payload::VendorId),
        selectors().prop_map(Payload::TsInitiator),
        selectors().prop_map(Payload::TsResponder),
        (unknown, any::<bool>()).prop_map(|(kind, critical)| Payload::Unknown { kind, critical }),
    ]
}

/// A chain in which what may come once comes once.
fn chains() -> impl Strategy<Value = Vec<Payload>> {
    vec(payloads(), 0..10).prop_map(|payloads| {
        let mut seen = Vec::new();
        let mut first_of_its_kind = |payload: &Payload| {
            let repeatable = [37, 38, 41, 42, 43];
            let fresh = !seen.contains(&payload.kind());
            seen.push(payload.kind());
            fresh || repeatable.contains(&payload.kind()) || matches!(payload, Payload::Unknown { .. })
        };
        payloads.into_iter().filter(&mut first_of_its_kind).collect()
    })
}

/// Whatever parses is emitted as something that parses to the same.
fn check_any(datagram: &mut [u8]) {
    let Ok(message) = Message::parse(datagram) else { return };
    match message.protected {
        None => {
            let emitted = Message::emit_clear(&message.header, &message.payloads);
            assert!(emitted.len() <= datagram.len(), "emission does not amplify");
            assert_eq!(Message::parse(&emitted), Ok(message));
        }
        Some(view) => {
            let Ok((first, inner)) = Message::open(view, datagram, |_, _, _, _| true) else { return };
            let _ = parse_chain(first, inner);
        }
    }
}

proptest! {
    #[test]
    fn clear_messages_come_back(header in headers(), payloads in chains()) {
        let octets = Message::emit_clear(&header, &payloads);
        prop_assert_eq!(Message::parse(&octets), Ok(Message { header, payloads, protected: None }));
    }

    #[test]
    fn protected_messages_come_back(header in headers(), payloads in chains()) {
        let mut octets = Message::emit_protected(&header, &payloads, toy_seal);
        let message = Message::parse(&octets).expect("valid");
        prop_assert_eq!(message.header, header);
        prop_assert!(message.payloads.is_empty());
        let view = message.protected.expect("an SK payload");
        let (first, inner) = Message::open(view, &mut octets, toy_open).expect("the ICV holds");
        prop_assert_eq!(parse_chain(first, inner), Ok(payloads));
    }

    #[test]
    fn arbitrary_octets_never_panic(mut octets in vec(any::<u8>(), 0..300)) {
        check_any(&mut octets);
        // The same behind a header that fits, so that the payloads are reached.
        let first = octets.first().copied().unwrap_or_default();
        check_any(&mut message(33 + first % 21, &octets));
    }

    #[test]
    fn mutated_messages_never_panic(
        header in headers(),
        payloads in chains(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut octets = Message::emit_clear(&header, &payloads);
        for (place, value) in changes {
            let place = place.index(octets.len());
            octets[place] = value;
        }
        if !whole {
            octets.truncate(cut.index(octets.len()));
        }
        if octets.len() >= HEADER_LEN {
            let length = u32::try_from(octets.len()).expect("short").to_be_bytes();
            octets[24..28].copy_from_slice(&length);
        }
        check_any(&mut octets);
    }
}
