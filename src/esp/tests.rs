//! Tests of the whole data plane: two hosts hand each other datagrams, and a third hand forges some.

mod bad_input;
mod control;
mod outbound;
mod properties;
mod roundtrip;
mod super_packet;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::crypto::{self, Provider};
use crate::model::{AeadAlgorithm, ChildSaParams, ChildSuite, Lifetime, SaKey, Secret, Ticket, TrafficSelector};

const SUITE: ChildSuite = ChildSuite { aead: AeadAlgorithm::Aes256Gcm16, esn: true, group: None, additional: None };
const TUN_MTU: u16 = 1400;

/// The SPI that each side receives on, in the first SA between them. Both belong to worker 0.
const TO_ALPHA: u32 = 0xa1fa_0000;
const TO_BETA: u32 = 0xbe7a_0000;

/// Alpha's and beta's index of the other.
const BETA: PeerIndex = PeerIndex(7);
const ALPHA: PeerIndex = PeerIndex(3);

fn at(milliseconds: u64) -> Instant {
    Instant::from_origin(Duration::from_millis(milliseconds))
}

fn spi(value: u32) -> Spi {
    Spi::new(value).expect("a test's SPI is not reserved")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test's address")
}

fn alpha_path() -> Path {
    Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 4500).into() }
}

fn reversed(path: Path) -> Path {
    Path { local: path.remote, remote: path.local }
}

/// One host's data plane with its arenas.
struct Host {
    plane: DataPlane,
    drops: Arc<Drops>,
    outbox: Outbox,
    inbox: Inbox,
    released: Vec<(Path, u8, Vec<u8>)>,
    counters: Arc<SaCounters>,
    /// How datagrams come in, if a test says nothing else.
    home: Path,
    now: Instant,
}

impl Host {
    fn new(provider: Provider, home: Path, routes: &[(&str, Route)]) -> Self {
        let drops = Arc::new(Drops::default());
        let config = Config { worker: WorkerIndex(0), provider, tun_mtu: TUN_MTU };
        let routes = routes.iter().map(|&(prefix, route)| (prefix.parse().expect("a prefix"), route));
        let mut host = Self {
            plane: DataPlane::new(config, Arc::clone(&drops)),
            drops,
            outbox: Outbox::new(1 << 18, 128),
            inbox: Inbox::default(),
            released: Vec::new(),
            counters: Arc::default(),
            home,
            now: at(1000),
        };
        host.update(Update::Routes(Arc::new(RouteTable::new(routes))));
        host
    }

    fn alpha(provider: Provider) -> Self {
        let peer = Route::Peer { peer: BETA, owner: WorkerIndex(0) };
        Self::new(
            provider,
            alpha_path(),
            &[
                ("10.42.1.0/24", Route::Local),
                ("fd00:42:1::/64", Route::Local),
                ("10.42.2.0/24", peer),
                ("fd00:42:2::/64", peer),
                ("10.42.3.0/24", Route::Peer { peer: PeerIndex(9), owner: WorkerIndex(0) }),
                ("10.42.4.0/24", Route::Peer { peer: PeerIndex(10), owner: WorkerIndex(1) }),
            ],
        )
    }

    fn beta(provider: Provider) -> Self {
        let peer = Route::Peer { peer: ALPHA, owner: WorkerIndex(0) };
        Self::new(
            provider,
            reversed(alpha_path()),
            &[
                ("10.42.2.0/24", Route::Local),
                ("fd00:42:2::/64", Route::Local),
                ("10.42.1.0/24", peer),
                ("fd00:42:1::/64", peer),
                ("10.42.3.0/24", Route::Peer { peer: PeerIndex(9), owner: WorkerIndex(0) }),
            ],
        )
    }

    fn update(&mut self, update: Update) {
        self.plane.handle_update(self.now, update, &mut self.outbox, &mut self.released);
    }

    fn install(&mut self, child: ChildSaParams) {
        let (child, counters) = (Box::new(child), Arc::clone(&self.counters));
        self.update(Update::Install { child, counters, ticket: Ticket(1) });
    }

    fn install_active(&mut self, child: ChildSaParams) {
        let spi = child.inbound_spi;
        self.install(child);
        self.update(Update::Activate(spi));
    }

    fn send(&mut self, packet: &[u8]) -> Outcome {
        self.plane.handle_inner(self.now, packet, &mut self.outbox)
    }

    /// Seals and takes everything out.
    fn flush(&mut self) -> Vec<Vec<u8>> {
        self.plane.seal_pending(&mut self.outbox);
        let (datagrams, buffer) = self.outbox.datagrams();
        let octets = |d: &Outgoing| buffer[d.start as usize..(d.start + d.len) as usize].to_vec();
        let datagrams = datagrams.iter().map(octets).collect();
        self.outbox.clear();
        datagrams
    }

    /// One packet that must become one datagram.
    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        assert_eq!(self.send(packet), Outcome::Done);
        let mut datagrams = self.flush();
        assert_eq!(datagrams.len(), 1, "drops: {:?}", self.nonzero());
        datagrams.remove(0)
    }

    /// Hands a batch in and returns the inner packets.
    fn receive_batch(&mut self, datagrams: &[Vec<u8>], path: Path, ecn: u8, last_try: bool) -> Vec<Vec<u8>> {
        let (mut buffer, mut incoming) = (vec![0xee; 3], Vec::new());
        for datagram in datagrams {
            incoming.push(Incoming { start: buffer.len() as u32, len: datagram.len() as u32, path, ecn });
            buffer.extend_from_slice(datagram);
        }
        self.plane.handle_outer(self.now, &mut buffer, &incoming, last_try, &mut self.inbox);
        self.inbox.packets.iter().map(|&(start, len)| buffer[start as usize..(start + len) as usize].to_vec()).collect()
    }

    fn receive(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        self.receive_batch(&[datagram.to_vec()], self.home, 0, true)
    }

    /// A datagram that must be dropped for this reason.
    fn refuse(&mut self, datagram: &[u8], reason: DropReason) {
        let before = self.drops.of(reason);
        assert_eq!(self.receive(datagram), Vec::<Vec<u8>>::new());
        assert_eq!(self.drops.of(reason), before + 1, "expected {}, drops: {:?}", reason.name(), self.nonzero());
    }

    fn nonzero(&self) -> Vec<(DropReason, u64)> {
        self.drops.nonzero().collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.plane.poll_event()).collect()
    }
}

fn key(algorithm: AeadAlgorithm, seed: u8) -> SaKey {
    SaKey { keymat: Secret::new((0..algorithm.keymat_len() as u8).map(|octet| octet ^ seed).collect()) }
}

/// The SA as alpha sees it.
fn alpha_child(suite: ChildSuite) -> ChildSaParams {
    let selectors = |prefixes: [&str; 2]| {
        prefixes.map(|prefix| TrafficSelector::from_prefix(prefix.parse().expect("a prefix"))).to_vec()
    };
    ChildSaParams {
        peer: BETA,
        inbound_spi: spi(TO_ALPHA),
        outbound_spi: spi(TO_BETA),
        suite,
        inbound_key: key(suite.aead, 0x55),
        outbound_key: key(suite.aead, 0xaa),
        local_selectors: selectors(["10.42.0.0/16", "fd00:42::/32"]),
        remote_selectors: selectors(["10.42.0.0/16", "fd00:42::/32"]),
        path: alpha_path(),
        lifetime: Lifetime {
            soft: Duration::from_secs(3000),
            hard: Duration::from_secs(3600),
            soft_packets: u64::MAX,
            soft_octets: u64::MAX,
        },
        replay_window: 128,
    }
}

/// The same SA as the other side sees it.
fn mirrored(child: &ChildSaParams, peer: PeerIndex) -> ChildSaParams {
    ChildSaParams {
        peer,
        inbound_spi: child.outbound_spi,
        outbound_spi: child.inbound_spi,
        inbound_key: child.outbound_key.clone(),
        outbound_key: child.inbound_key.clone(),
        local_selectors: child.remote_selectors.clone(),
        remote_selectors: child.local_selectors.clone(),
        path: reversed(child.path),
        ..child.clone()
    }
}

/// Two hosts with one SA that both send with; the events of getting there are fetched.
fn pair(suite: ChildSuite) -> (Host, Host) {
    pair_of(alpha_child(suite), Provider::Ring)
}

fn pair_of(child: ChildSaParams, provider: Provider) -> (Host, Host) {
    let (mut alpha, mut beta) = (Host::alpha(provider), Host::beta(Provider::Ring));
    beta.install_active(mirrored(&child, ALPHA));
    alpha.install_active(child);
    assert_eq!(alpha.events(), [Event::Installed(Ticket(1))]);
    assert_eq!(beta.events(), [Event::Installed(Ticket(1))]);
    (alpha, beta)
}

/// An IPv4 packet by hand: UDP without a checksum, then a payload that counts up.
fn v4(source: &str, destination: &str, payload: usize, flags: u16, ecn: u8) -> Vec<u8> {
    let mut packet = vec![0x45, ecn];
    packet.extend_from_slice(&(28 + payload as u16).to_be_bytes());
    packet.extend_from_slice(&0x1234u16.to_be_bytes());
    packet.extend_from_slice(&flags.to_be_bytes());
    packet.extend_from_slice(&[64, 17, 0, 0]);
    for address in [source, destination] {
        packet.extend_from_slice(&address.parse::<std::net::Ipv4Addr>().expect("IPv4").octets());
    }
    let sum = header_sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&[0x30, 0x39, 0, 53]);
    packet.extend_from_slice(&(8 + payload as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend((0..payload).map(|octet| octet as u8));
    packet
}

const DF: u16 = 0x4000;

/// An IPv6 packet by hand, likewise.
fn v6(source: &str, destination: &str, payload: usize, ecn: u8) -> Vec<u8> {
    let mut packet = vec![0x60, ecn << 4, 0, 0];
    packet.extend_from_slice(&(8 + payload as u16).to_be_bytes());
    packet.extend_from_slice(&[17, 64]);
    for address in [source, destination] {
        packet.extend_from_slice(&address.parse::<std::net::Ipv6Addr>().expect("IPv6").octets());
    }
    packet.extend_from_slice(&[0x30, 0x39, 0, 53]);
    packet.extend_from_slice(&(8 + payload as u16).to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34]);
    packet.extend((0..payload).map(|octet| octet as u8));
    packet
}

/// A packet from alpha's network to beta's.
fn to_beta(payload: usize) -> Vec<u8> {
    v4("10.42.1.5", "10.42.2.5", payload, DF, 0)
}

/// RFC 1071 §1, the long way.
fn header_sum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Seals any plaintext (trailer included) as the peer of this SA could: with the right key, whatever is in it.
fn forge(child: &ChildSaParams, sequence: u64, mut text: Vec<u8>) -> Vec<u8> {
    let (key, salt) = child.outbound_key.keymat.expose().split_at(child.aead().key_len());
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(salt);
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    let mut aad = child.outbound_spi.value().to_be_bytes().to_vec();
    let (whole, low) = (sequence.to_be_bytes(), (sequence as u32).to_be_bytes());
    aad.extend_from_slice(if child.suite.esn { &whole } else { &low });
    let icv = crypto::aead(Provider::RustCrypto, child.aead(), key).seal(&nonce, &aad, &mut text);
    let spi = child.outbound_spi.value().to_be_bytes();
    [&spi[..], &low, &sequence.to_be_bytes(), &text, &icv].concat()
}

/// A plaintext with the padding that its length asks for.
fn padded(payload: &[u8], next_header: u8) -> Vec<u8> {
    let mut text = payload.to_vec();
    let pad = (4 - (text.len() + 2) % 4) % 4;
    text.extend(1..=pad as u8);
    text.extend_from_slice(&[pad as u8, next_header]);
    text
}
