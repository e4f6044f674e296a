//! Replays the committed corpora on every build, and keeps their seeds: small inputs from which a fuzzer starts.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;

use super::*;
use crate::ike::proposals::{PostQuantum, offer_esp, offer_ike};
use crate::model::{IkeSpi, KeGroup, Spi};
use crate::wire::ike::{
    Auth, AuthMethod, Certificate, Delete, ExchangeType, Flags, Header, Identification, KeyExchangePayload, Notify,
    NotifyType, Protocol, emit_chain,
};

/// A small corpus is replayed in no time and read in a review.
const MAX_CORPUS_OCTETS: u64 = 256 * 1024;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Runs a target on everything in its folder.
fn replay(target: &str, body: fn(&[u8])) {
    let folder = corpus(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no inputs", folder.display());
    let mut octets = 0;
    for path in paths {
        eprintln!("{}", path.display());
        let data = fs::read(&path).expect("a readable file");
        octets += data.len() as u64;
        body(&data);
    }
    assert!(octets <= MAX_CORPUS_OCTETS, "the corpus of {target} has {octets} octets");
}

#[test]
fn corpus_natt() {
    replay("natt", natt);
}

#[test]
fn corpus_ip() {
    replay("ip", ip);
}

#[test]
fn corpus_esp_open() {
    replay("esp_open", esp_open);
}

#[test]
fn corpus_ike_message() {
    replay("ike_message", ike_message);
}

#[test]
#[cfg(feature = "x509")]
fn corpus_certificates() {
    replay("certificates", certificates);
}

#[test]
fn corpus_ike_fragments() {
    replay("ike_fragments", ike_fragments);
}

#[test]
fn corpus_ike_protected() {
    replay("ike_protected", ike_protected);
}

#[test]
fn corpus_ike_schedule() {
    replay("ike_schedule", ike_schedule);
}

/// Every seed stands in its corpus as it is made here.
#[test]
fn seeds_are_committed() {
    for (target, name, data) in seeds() {
        let path = corpus(target).join(name);
        let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see write_seeds", path.display()));
        assert_eq!(committed, data, "{}: see write_seeds", path.display());
    }
}

/// `cargo test --lib fuzzing::tests::write_seeds -- --ignored` after a change of [`seeds`].
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_seeds() {
    for (target, name, data) in seeds() {
        fs::create_dir_all(corpus(target)).expect("a writable tree");
        fs::write(corpus(target).join(name), data).expect("a writable tree");
    }
}

/// Target, file name, octets.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    seeds.extend(natt_seeds().into_iter().map(|(name, data)| ("natt", name, data)));
    seeds.extend(ip_seeds().into_iter().map(|(name, data)| ("ip", name, data)));
    seeds.extend(esp_open_seeds().into_iter().map(|(name, data)| ("esp_open", name, data)));
    seeds.extend(ike_fragments_seeds().into_iter().map(|(name, data)| ("ike_fragments", name, data)));
    seeds.extend(ike_protected_seeds().into_iter().map(|(name, data)| ("ike_protected", name, data)));
    #[cfg(feature = "x509")]
    seeds.extend(certificates_seeds().into_iter().map(|(name, data)| ("certificates", name, data)));
    seeds.extend(ike_schedule_seeds().into_iter().map(|(name, data)| ("ike_schedule", name, data)));
    seeds.extend(ike_seeds().into_iter().map(|(name, data)| ("ike_message", name, data)));
    seeds
}

#[cfg(feature = "x509")]
fn certificates_seeds() -> Vec<(&'static str, Vec<u8>)> {
    use super::certificates::{AUTH, BETA, BETWEEN};
    let counted = |octets: &[u8]| [&(octets.len() as u16).to_be_bytes()[..], octets].concat();
    let shown = |kind: u8, chain: &[&[u8]]| {
        let chain: Vec<u8> = chain.iter().flat_map(|certificate| counted(certificate)).collect();
        [&[kind][..], &counted(AUTH), &chain].concat()
    };
    let name = crate::crypto::x509::name_der("C=CH, O=Example, CN=beta").expect("a name");
    vec![
        ("name", shown(0, &[BETA, BETWEEN])),
        ("address", shown(1, &[BETA, BETWEEN])),
        ("distinguished", [shown(2, &[BETA, BETWEEN]), name].concat()),
        ("alone", shown(0, &[BETA])),
        ("somebody-else", shown(3, &[BETA, BETWEEN])),
        ("rfc-4754", shown(4 | 9 << 3, &[BETA, BETWEEN])),
        ("many", shown(0, &[BETA, BETWEEN, BETWEEN, BETA, BETA, BETWEEN])),
        ("none", shown(0, &[])),
    ]
}

/// Who plays, then three octets for each step: see [`Schedule`].
fn ike_schedule_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (wait, settle) = ([0, 40, 0], [0, 250, 0]);
    let cast = |lifetimes: u8, workers: u8, keys: u8, lag: u8| [0, lifetimes, workers, keys, lag, 0];
    let of = |cast: [u8; 6], steps: &[[u8; 3]]| [&cast[..], steps.as_flattened()].concat();
    let (child, ike) = (0, 0x80);
    let by_hand = |what: u8| [settle, [53, 0, 0], [38, 0, what], [55, 0, 0], [60, 0, 0], [58, 200, 0], [55, 0, 0], wait];
    vec![
        ("start", of(cast(2, 0, 0, 0), &[[53, 0, 0], wait, [55, 0, 0], [55, 200, 0], [58, 0, 0], wait, [63, 0, 0]])),
        ("child-rekeys-meet", of(cast(2, 0, 0, 2), &by_hand(child))),
        ("ike-rekeys-meet", of(cast(2, 0, 1, 2), &by_hand(ike))),
        ("workers", of(cast(2, 1, 0, 3), &[settle, [46, 0, 0], [46, 1, 1], wait, [42, 0, 0], [38, 1, child], settle])),
        ("bad-network", of(cast(0, 0, 0, 0), &[[17, 30, 20], settle, [38, 0, ike], settle, [33, 1, child], settle])),
        ("garbled", of(cast(2, 0, 1, 0), &[[17, 9, 9], settle, [23, 0, 0], wait])),
        ("crash", of(cast(2, 1, 0, 0), &[settle, [38, 0, child], [25, 1, 0], wait, [28, 0, 0], settle, [29, 0, 0], wait])),
        ("one-way", of(cast(2, 0, 4, 0), &[settle, [21, 0, 0], settle, [33, 1, ike], settle, [23, 0, 0]])),
        (
            "clocks",
            of(cast(1, 0, 0, 0), &[settle, [31, 0, 12], wait, [32, 1, 5], [38, 0, child], settle, [31, 1, 13], wait]),
        ),
        ("reload", of(cast(2, 0, 0, 0), &[settle, [45, 0, 0], [38, 0, child], wait, [50, 20, 0], [51, 30, 1], [52, 0, 90]])),
    ]
}

/// Requests or answers, then four octets for each record: what, number, total, content.
fn ike_fragments_seeds() -> Vec<(&'static str, Vec<u8>)> {
    const REQUESTS: u8 = 0;
    const ANSWERS: u8 = 1;
    let (piece, damaged, other, whole, again) = (0, 4, 5, 6, [7, 1, 0, 0]);
    let (middle, long, longest) = (0x10, 0x20, 0x30);
    let of = |stage: u8, records: &[[u8; 4]]| [&[stage][..], records.as_flattened()].concat();
    let all = |kind: u8, total: u8| (1..=total).map(|number| [kind, number, total, 1]).collect::<Vec<_>>();
    vec![
        ("in-order", of(REQUESTS, &[all(piece, 3), vec![again]].concat())),
        ("backwards", of(ANSWERS, &all(piece, 5).into_iter().rev().collect::<Vec<_>>())),
        ("twice", of(REQUESTS, &[[piece, 2, 3, 1], [piece, 2, 3, 2], [piece, 1, 3, 1], [piece, 3, 3, 1], again])),
        ("grows", of(ANSWERS, &[[piece, 1, 2, 1], [piece, 1, 3, 1], [piece, 2, 2, 1], [piece, 2, 3, 1], [piece, 3, 3, 1]])),
        (
            "out-of-range",
            of(REQUESTS, &[[piece, 0, 0, 0], [piece, 0, 9, 0], [piece, 9, 3, 0], [piece, 1, 65, 0], [piece, 1, 255, 0]]),
        ),
        ("mixed-lengths", of(REQUESTS, &[[middle, 1, 2, 1], [long, 2, 2, 1]])),
        ("too-long", of(REQUESTS, &[all(longest, 40), all(piece, 2)].concat())),
        ("damaged", of(ANSWERS, &[[damaged, 0, 4, 3], [damaged, 3, 200, 1], [piece, 1, 1, 1]])),
        (
            "other-messages",
            of(REQUESTS, &[[other, 0, 0, 0], [piece, 1, 2, 1], [other, 1, 0, 0], [whole, 0, 0, 1], [piece, 2, 2, 1]]),
        ),
        (
            "whole-between",
            of(ANSWERS, &[[piece, 1, 2, 1], [whole, 0, 0, 1], [piece, 2, 2, 1], [7, 0, 200, 0], [piece, 1, 2, 1]]),
        ),
    ]
}

fn natt_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let spi = Spi::new(0xc0ff_ee00).expect("not reserved");
    let mut packet = esp::Header { spi, sequence: 1 }.emit().to_vec();
    packet.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1, 0x45, 1, 1, 4]);
    packet.extend_from_slice(&[0xcc; esp::ICV_LEN]);
    vec![
        ("keepalive", natt::KEEPALIVE.to_vec()),
        ("marker", natt::NON_ESP_MARKER.to_vec()),
        ("ike", [&natt::NON_ESP_MARKER[..], &Message::emit_clear(&header(ExchangeType::Informational), &[])].concat()),
        ("esp-reserved-spi", [&[0, 0, 0, 255], &packet[4..]].concat()),
        ("esp-runt", packet[..esp::MIN_LEN - 1].to_vec()),
        ("esp-not-aligned", [&packet[..], &[0]].concat()),
        ("esp", packet),
    ]
}

/// An MTU, and a packet with these fields.
fn ipv4(mtu: u16, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = header.to_vec();
    let length = u16::try_from(header.len() + payload.len()).expect("short");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum::checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    [&mtu.to_be_bytes()[..], &packet, payload].concat()
}

fn ipv6(mtu: u16, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).expect("short").to_be_bytes();
    let first = [0x60, 0, 0, 0, high, low, next_header, 64];
    let address = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
    [&mtu.to_be_bytes()[..], &first, &address(7), &address(9), payload].concat()
}

fn ip_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let udp = [0x12, 0x34, 0x56, 0x78, 0, 72, 0, 0];
    let long = [&udp[..], &[5; 64]].concat();
    let plain = [0x45, 0, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 42, 1, 7, 10, 42, 2, 9];
    let with = |offset: usize, value: u8| {
        let mut header = plain;
        header[offset] = value;
        header
    };
    let options = [&with(0, 0x48)[..], &[7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0]].concat();
    let icmp = with(9, 1);
    let fragment = |low: u8| [&[17, 0, 0, low, 0, 0, 0, 9][..], &udp].concat();
    let chain = [&[43, 0, 1, 4, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0][..], &[128, 0, 0, 0]].concat();
    vec![
        ("ipv4-udp", ipv4(1400, &plain, &long)),
        ("ipv4-to-be-cut", ipv4(52, &plain, &long)),
        ("ipv4-df", ipv4(52, &with(6, 0x40), &long)),
        ("ipv4-options", ipv4(60, &options, &long)),
        ("ipv4-fragment", ipv4(44, &with(6, 0x21), &long)),
        ("ipv4-last-fragment", ipv4(44, &with(7, 0xff), &long)),
        ("ipv4-icmp-echo", ipv4(1400, &icmp, &[8, 0, 0, 0])),
        ("ipv4-icmp-error", ipv4(1400, &icmp, &[3, 4, 0, 0])),
        ("ipv4-padded", [ipv4(1400, &plain, &udp), vec![0; 7]].concat()),
        ("ipv6-udp", ipv6(1280, 17, &long)),
        ("ipv6-extensions", ipv6(1280, 0, &chain)),
        ("ipv6-first-fragment", ipv6(1280, 44, &fragment(1))),
        ("ipv6-later-fragment", ipv6(1280, 44, &fragment(8))),
        ("ipv6-icmp-error", ipv6(1280, 58, &[2, 0, 0, 0])),
    ]
}

/// A mode, a first sequence number, and datagrams with the distances of theirs.
fn esp_open_input(mode: u8, first: u32, datagrams: &[(i8, Vec<u8>)]) -> Vec<u8> {
    let mut data = [&[mode][..], &first.to_be_bytes()].concat();
    for (distance, octets) in datagrams {
        data.extend_from_slice(&[u8::try_from(octets.len()).expect("short"), *distance as u8]);
        data.extend_from_slice(octets);
    }
    data
}

fn esp_open_seeds() -> Vec<(&'static str, Vec<u8>)> {
    // From the peer's 10.42.2.9 to our 10.42.1.7, ECT(0), then the trailer with two octets of padding.
    let inner = ipv4(0, &[0x45, 2, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 42, 2, 9, 10, 42, 1, 7], &[0, 53, 0, 53, 0, 8, 0, 0]);
    let text = |next_header| [&inner[2..], &[1, 2, 2, next_header]].concat();
    let foreign = ipv4(0, &[0x45, 0, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 42, 3, 9, 10, 42, 1, 7], &[]);
    let elsewhere = ipv4(0, &[0x45, 0, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 42, 2, 9, 10, 42, 3, 7], &[]);
    let padded = [&inner[2..], &[0xff; 20], &[0, 4]].concat();
    vec![
        ("sealed", esp_open_input(0x01, 1, &[(0, text(4)), (1, text(4)), (0, text(4))])),
        ("sealed-congested", esp_open_input(0x31, 1, &[(0, text(4))])),
        ("sealed-window", esp_open_input(0x01, 100, &[(0, text(4)), (-63, text(4)), (-64, text(4)), (-63, text(4))])),
        ("sealed-wrap", esp_open_input(0x05, 0xffff_fffe, &[(0, text(4)), (3, text(4)), (1, text(4)), (-70, text(4))])),
        ("sealed-next-headers", esp_open_input(0x01, 1, &[(0, text(41)), (1, text(59)), (2, text(0)), (3, text(97))])),
        ("sealed-foreign", esp_open_input(0x01, 1, &[(0, [&foreign[2..], &[1, 2, 2, 4]].concat())])),
        ("sealed-elsewhere", esp_open_input(0x01, 1, &[(0, [&elsewhere[2..], &[1, 2, 2, 4]].concat())])),
        ("sealed-tfc", esp_open_input(0x01, 1, &[(0, padded)])),
        ("sealed-bad-padding", esp_open_input(0x01, 1, &[(0, vec![0, 0, 9, 4])])),
        ("aimed", esp_open_input(0x02, 0, &[(0, vec![0; 44]), (0, vec![0; 30]), (0, vec![])])),
        ("aimed-ahead", esp_open_input(0x02, 0, &[(0, vec![1; 44])])),
        ("stranger", esp_open_input(0x00, 0, &[(0, vec![0xc0; 48]), (0, vec![0; 48]), (0, vec![])])),
    ]
}

fn header(exchange: ExchangeType) -> Header {
    let flags = Flags { initiator: true, ..Flags::default() };
    Header { initiator_spi: 0x0011_2233_4455_6677, responder_spi: 0, exchange, flags, message_id: 0 }
}

/// A message in clear, and one in which the same payloads stand inside SK as they are.
fn both(exchange: ExchangeType, payloads: &[Payload]) -> [Vec<u8>; 2] {
    let header = header(exchange);
    [Message::emit_clear(&header, payloads), Message::emit_protected(&header, payloads, |_, _| ([1; 8], [2; 16]))]
}

fn ike_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let spi = Spi::new(0xc0ff_ee00).expect("not reserved");
    let notify = |kind, data: &'static [u8]| Payload::Notify(Notify::new(kind, data));
    let suites = AeadAlgorithm::ALL;
    let nonce = || Payload::Nonce((0..32).collect());
    let ke = || Payload::KeyExchange(KeyExchangePayload { group: 31, value: Bytes::from_static(&[9; 32]) });
    let init = [
        Payload::SecurityAssociation(offer_ike(&suites, KeGroup::X25519, PostQuantum::Preferred, None)),
        ke(),
        nonce(),
        notify(NotifyType::NatDetectionSourceIp, &[7; 20]),
        notify(NotifyType::NatDetectionDestinationIp, &[8; 20]),
        notify(NotifyType::SignatureHashAlgorithms, &[0, 5]),
        Payload::VendorId(Bytes::from_static(b"vendor")),
    ];
    let selector = |text: &str| vec![TrafficSelector::from_prefix(text.parse().expect("a prefix"))];
    let auth = [
        Payload::IdInitiator(Identification { body: Bytes::from_static(b"\x02\0\0\0alpha") }),
        Payload::Certificate(Certificate { encoding: 15, data: Bytes::from_static(&[0x30; 44]) }),
        Payload::CertificateRequest(Bytes::from_static(&[15])),
        Payload::IdResponder(Identification { body: Bytes::from_static(b"\x02\0\0\0beta") }),
        Payload::Auth(Auth { method: AuthMethod::SharedKey, data: Bytes::from_static(&[3; 32]) }),
        Payload::SecurityAssociation(offer_esp(&suites, &[], spi)),
        Payload::TsInitiator(selector("10.42.1.0/24")),
        Payload::TsResponder([selector("10.0.0.0/8"), selector("2001:db8::/48")].concat()),
        notify(NotifyType::InitialContact, &[]),
    ];
    let rekey_sa = Notify {
        protocol: Protocol::Esp,
        spi: Bytes::from_static(&[0xc0, 0xff, 0xee, 1]),
        kind: NotifyType::RekeySa,
        data: Bytes::new(),
    };
    let rekey_child = [
        Payload::Notify(rekey_sa),
        Payload::SecurityAssociation(offer_esp(&suites, &KeGroup::ALL, spi)),
        nonce(),
        ke(),
        Payload::TsInitiator(selector("10.42.1.0/24")),
        Payload::TsResponder(selector("10.42.2.0/24")),
    ];
    let new_spi = IkeSpi::new(0x8899_aabb_ccdd_eeff).expect("not zero");
    let rekey_ike =
        [Payload::SecurityAssociation(offer_ike(&suites, KeGroup::EcP256, PostQuantum::No, Some(new_spi))), nonce(), ke()];
    let rest = [
        Payload::Delete(Delete::Esp(vec![spi])),
        Payload::Delete(Delete::Ike),
        notify(NotifyType::Cookie, &[1; 64]),
        notify(NotifyType::InvalidKePayload, &[0, 19]),
        Payload::Unknown { kind: 200, critical: true },
    ];
    let [sa_init, sealed_init] = both(ExchangeType::IkeSaInit, &init);
    let [clear_auth, sealed_auth] = both(ExchangeType::IkeAuth, &auth);
    let [clear_child, sealed_child] = both(ExchangeType::CreateChildSa, &rekey_child);
    let [clear_ike, _] = both(ExchangeType::CreateChildSa, &rekey_ike);
    let [clear_rest, sealed_rest] = both(ExchangeType::Informational, &rest);
    let [empty, sealed_empty] = both(ExchangeType::Informational, &[]);
    vec![
        ("sa-init", sa_init),
        ("sa-init-sealed", sealed_init),
        ("auth", clear_auth),
        ("auth-sealed", sealed_auth),
        ("rekey-child", clear_child),
        ("rekey-child-sealed", sealed_child),
        ("rekey-ike", clear_ike),
        ("informational", clear_rest),
        ("informational-sealed", sealed_rest),
        ("empty", empty),
        ("empty-sealed", sealed_empty),
    ]
}

/// A record of the nonsense: what to do, and a raw chain.
fn record(kind: u8, payloads: &[Payload]) -> Vec<u8> {
    /// Takes the octets as they are.
    const RAW: u8 = 8;
    let mut chain = vec![0];
    chain[0] = emit_chain(payloads, &mut chain);
    let [high, low] = u16::try_from(chain.len()).expect("a short chain").to_be_bytes();
    [&[kind | RAW, high, low], &chain[..]].concat()
}

fn ike_protected_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (create, inform, auth, answer) = (0, 1, 2, 3);
    let (rekey_child, rekey_ike, wait, good_auth) = ([5, 0, 1, 0], [5, 0, 1, 3], [6, 0, 2, 0, 0], [7, 0, 0]);
    let spi = |value| Spi::new(value).expect("not reserved");
    let selector = |host: u8| vec![TrafficSelector::from_prefix(format!("10.42.{host}.0/24").parse().expect("a prefix"))];
    let child = |value| {
        vec![
            Payload::SecurityAssociation(offer_esp(&[AeadAlgorithm::Aes256Gcm16], &[], spi(value))),
            Payload::Nonce(vec![7; 32].into()),
            Payload::TsInitiator(selector(1)),
            Payload::TsResponder(selector(0)),
        ]
    };
    let rekey = |old: u32, new| {
        let mut payloads = child(new);
        let spi = Bytes::copy_from_slice(&old.to_be_bytes());
        let notify = Notify { protocol: Protocol::Esp, spi, kind: NotifyType::RekeySa, data: Bytes::new() };
        payloads.insert(0, Payload::Notify(notify));
        payloads
    };
    let ike_spi = IkeSpi::new(0x0102_0304_0506_0708).expect("not zero");
    let ike = [
        Payload::SecurityAssociation(offer_ike(
            &[AeadAlgorithm::Aes256Gcm16],
            KeGroup::X25519,
            PostQuantum::No,
            Some(ike_spi),
        )),
        Payload::Nonce(vec![9; 32].into()),
        Payload::KeyExchange(KeyExchangePayload { group: 31, value: vec![9; 32].into() }),
    ];
    let mut hybrid_ike = ike.to_vec();
    let offer = offer_ike(&[AeadAlgorithm::Aes256Gcm16], KeGroup::X25519, PostQuantum::Preferred, Some(ike_spi));
    hybrid_ike[0] = Payload::SecurityAssociation(offer);
    let follow_up = [
        Payload::KeyExchange(KeyExchangePayload { group: 36, value: vec![1; 1184].into() }),
        Payload::Notify(Notify::new(NotifyType::AdditionalKeyExchange, vec![0; 16])),
    ];
    let delete = |spis: &[u32]| [Payload::Delete(Delete::Esp(spis.iter().map(|&value| spi(value)).collect()))];
    let refused = |kind| [Payload::Notify(Notify::new(kind, Bytes::new()))];
    let identity = Payload::IdInitiator(Identification { body: b"\x02\0\0\0host1".to_vec().into() });
    let proof = Payload::Auth(Auth { method: AuthMethod::SharedKey, data: vec![1; 32].into() });
    let up = |records: &[&[u8]]| [&[0][..], &records.concat()].concat();
    let up_in_pieces = |records: &[&[u8]]| [&[2][..], &records.concat()].concat();
    let (piece, cut) = (16, 32);
    let fragment = |number: u8, total: u8, text: &[u8]| {
        let length = u8::try_from(text.len() + 3).expect("short");
        [&[inform | piece, 0, length, number, total, 42][..], text].concat()
    };
    let intermediate = |group: u16, length: usize| {
        record(auth | 64, &[Payload::KeyExchange(KeyExchangePayload { group, value: vec![1; length].into() })])
    };
    let post_quantum = |records: &[&[u8]]| [&[4][..], &records.concat()].concat();
    let halves = [fragment(2, 2, &[0, 0]), fragment(2, 2, &[0, 1]), fragment(1, 2, &[0, 0, 0, 8, 1, 0])].concat();
    let growing =
        [fragment(1, 2, &[0]), fragment(1, 3, &[0]), fragment(2, 2, &[0]), fragment(0, 3, &[]), fragment(9, 3, &[])];
    let before_auth = |records: &[&[u8]]| [&[1][..], &records.concat()].concat();
    // Pairs that choose payloads which mean something; from elsewhere; something earlier once more; a command.
    let composed = |kind: u8, pairs: &[[u8; 2]]| {
        let length = u8::try_from(pairs.len() * 2).expect("short");
        [&[kind | 128, 0, length][..], pairs.as_flattened()].concat()
    };
    let elsewhere = |number: u8| [7 | 8, 0, 1, number];
    let again = |number: u8| [7 | 64, 0, 1, number];
    let command = |what: u8, number: u8| [5, 0, 2, what, number];
    let (slow, mobile, hybrid) = (8, 16, 6);
    let of = |stage: u8, records: &[&[u8]]| [&[stage][..], &records.concat()].concat();
    let whole_child = [[0, 5], [4, 9], [8, 0], [9, 0]];
    let child_with_ke = |kind: u8| [[11, 0], [1, kind], [4, 9], [5, 0], [8, 0], [9, 0]];
    vec![
        ("child", up(&[&record(create, &child(0x2222_2200)), &record(inform, &delete(&[0x2222_2200]))])),
        ("rekey", up(&[&record(create, &rekey(0x1234_5600, 0x2222_2200)), &record(inform, &delete(&[0x1234_5600]))])),
        ("rekey-ike", up(&[&record(create, &ike), &record(inform, &[Payload::Delete(Delete::Ike)])])),
        ("delete-ike", up(&[&record(inform, &[Payload::Delete(Delete::Ike)])])),
        ("answer-child", up(&[&rekey_child, &record(answer, &child(0x2222_2200)), &wait])),
        ("answer-ike", up(&[&rekey_ike, &record(answer, &ike), &wait])),
        (
            "crossing",
            up(&[&rekey_child, &record(create, &rekey(0x1234_5600, 0x2222_2200)), &record(answer, &child(0x3333_3300))]),
        ),
        ("crossing-ike", up(&[&rekey_ike, &record(create, &ike), &record(answer, &ike)])),
        ("temporary-failure", up(&[&rekey_child, &record(answer, &refused(NotifyType::TemporaryFailure)), &wait])),
        ("not-found", up(&[&rekey_child, &record(answer, &refused(NotifyType::ChildSaNotFound)), &wait])),
        ("invalid-ke", up(&[&rekey_child, &record(answer, &refused(NotifyType::InvalidKePayload)), &wait])),
        ("intermediate", post_quantum(&[&intermediate(36, 1184), &good_auth])),
        ("intermediate-short", post_quantum(&[&intermediate(36, 32), &good_auth])),
        ("intermediate-other", post_quantum(&[&record(auth, &[]), &intermediate(31, 32), &intermediate(36, 1184)])),
        (
            "follow-up",
            [&[6][..], &record(create, &hybrid_ike), &record(create | 64, &follow_up), &record(create, &ike)].concat(),
        ),
        ("post-quantum", [&[6][..], &record(create, &ike), &intermediate(36, 1184)].concat()),
        ("cut", up_in_pieces(&[&record(create | cut, &child(0x2222_2200)), &record(inform, &delete(&[0x2222_2200]))])),
        ("cut-unasked", up(&[&record(create | cut, &child(0x2222_2200))])),
        ("fragments", up_in_pieces(&[&halves])),
        ("fragments-grow", up_in_pieces(&[&growing.concat()])),
        ("auth-bad", before_auth(&[&record(auth, &[identity, proof]), &good_auth])),
        ("composed-rekey", up(&[&composed(create, &child_with_ke(7)), &composed(inform, &[[13, 0]]), &again(0)])),
        (
            "composed-follow-up",
            of(hybrid, &[&composed(create, &child_with_ke(0x87)), &composed(create | 64, &[[6, 0], [12, 0]]), &wait]),
        ),
        (
            "composed-follow-up-ike",
            of(hybrid, &[&composed(create, &[[3, 0], [4, 9], [5, 0]]), &composed(create | 64, &[[6, 0], [12, 0]]), &wait]),
        ),
        (
            "composed-answers",
            of(hybrid, &[&command(0, 0), &composed(answer, &child_with_ke(0x87)[1..]), &composed(answer, &[[6, 0]]), &wait]),
        ),
        (
            "moves",
            of(
                mobile,
                &[&elsewhere(9), &composed(inform, &[[17, 0]]), &composed(answer, &[[18, 8]]), &command(9, 3), &wait],
            ),
        ),
        ("slow", of(slow, &[&composed(create, &whole_child), &command(1, 0), &again(0), &command(12, 0), &wait])),
        ("workers", up(&[&command(7, 1), &composed(create, &[[19, 1], [0, 6], [4, 9], [8, 0], [9, 0]]), &command(8, 1)])),
        ("auth-good", before_auth(&[&good_auth, &record(create, &child(0x2222_2200))])),
    ]
}
