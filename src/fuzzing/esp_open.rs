//! Datagrams at a data plane with one SA: any octets, and any plaintext that its peer could seal.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::crypto::{Provider, aead};
use crate::esp::{Config, DataPlane, Event, Inbox, Incoming, Outbox, Route, RouteTable, SaCounters, Update};
use crate::model::{
    AeadAlgorithm, ChildSaParams, ChildSuite, DropReason, Drops, Instant, Lifetime, Path, PeerIndex, SaKey, Secret, Spi,
    Ticket, TrafficSelector, WorkerIndex,
};
use crate::wire::esp;
use crate::wire::ip::{Packet, Trailing};

/// Input octet 0: the plaintexts that follow are sealed with the right key.
const SEALED: u8 = 0x01;
/// Input octet 0: the octets that follow are met with the SPI of the SA in front.
const AIMED: u8 = 0x02;
/// Input octet 0: sequence numbers have 64 bits.
const ESN: u8 = 0x04;
/// Input octet 0: where the outer ECN bits are.
const ECN_SHIFT: u32 = 4;

const PEER: PeerIndex = PeerIndex(1);
const NOW: Instant = Instant::ORIGIN;

/// Octets of the key and salt.
const KEYMAT: [u8; 20] = [0x42; 20];

/// Octet 0 says how, octets 1 to 4 where sequence numbers start (the low half; the high one is 0 or 1 by the lowest bit); then
/// come datagrams: length, distance of the sequence number, octets.
pub fn esp_open(data: &[u8]) {
    let Some((&[mode, s0, s1, s2, s3], mut rest)) = data.split_first_chunk() else { return };
    let esn = mode & ESN != 0;
    let low = u32::from_be_bytes([s0, s1, s2, s3]);
    let first = u64::from(low) | if esn { u64::from(low & 1) << 32 } else { 0 };
    let mut scene = Scene::new(esn);
    let mut datagrams = Vec::new();
    while let Some((&[len, distance], behind)) = rest.split_first_chunk() {
        let (octets, behind) = behind.split_at(behind.len().min(len.into()));
        let sequence = first.wrapping_add_signed(i64::from(distance as i8));
        datagrams.push(match mode & (SEALED | AIMED) {
            0 => octets.to_vec(),
            AIMED => [&scene.spi.value().to_be_bytes()[..], octets].concat(),
            _ => scene.seal(sequence, octets),
        });
        rest = behind;
    }
    let packets = scene.open(&datagrams, mode >> ECN_SHIFT);
    let accounted = scene.dropped() + packets.len() as u64 + scene.inbox.strays.len() as u64;
    assert_eq!(accounted, datagrams.len() as u64, "each datagram ends in one place");
    for packet in &packets {
        let packet = Packet::parse(packet, Trailing::Refused).expect("what comes out is a packet");
        assert!(scene.remote.contains_address(packet.source()), "a source of the peer's");
        assert!(scene.local.contains_address(packet.destination()), "a destination of ours");
    }
    if mode & SEALED == 0 {
        scene.nothing_happened(&packets);
    }
}

/// A data plane with one SA and what is needed to seal for it.
struct Scene {
    plane: DataPlane,
    drops: Arc<Drops>,
    counters: Arc<SaCounters>,
    inbox: Inbox,
    spi: Spi,
    esn: bool,
    local: TrafficSelector,
    remote: TrafficSelector,
}

impl Scene {
    fn new(esn: bool) -> Self {
        let drops = Arc::new(Drops::default());
        let counters = Arc::new(SaCounters::default());
        let config = Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1400 };
        let mut plane = DataPlane::new(config, Arc::clone(&drops));
        let net = |text: &str| text.parse().expect("a prefix");
        let (ours, theirs) = (net("10.42.1.0/24"), net("10.42.2.0/24"));
        let (local, remote) = (TrafficSelector::from_prefix(ours), TrafficSelector::from_prefix(theirs));
        let spi = Spi::new(0x0042_4200).expect("not reserved");
        let key = || SaKey { keymat: Secret::copy_of(&KEYMAT) };
        let child = ChildSaParams {
            peer: PEER,
            inbound_spi: spi,
            outbound_spi: spi,
            suite: ChildSuite { aead: AeadAlgorithm::Aes128Gcm16, esn, group: None, additional: None },
            inbound_key: key(),
            outbound_key: key(),
            // Wider than the routes, which have the last word.
            local_selectors: vec![TrafficSelector::from_prefix(net("10.42.0.0/16"))],
            remote_selectors: vec![TrafficSelector::from_prefix(net("0.0.0.0/0"))],
            path: Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 4500).into() },
            lifetime: Lifetime { soft: Duration::MAX, hard: Duration::MAX, soft_packets: u64::MAX, soft_octets: u64::MAX },
            replay_window: 64,
        };
        let peer = Route::Peer { peer: PEER, owner: WorkerIndex(0) };
        let routes = Arc::new(RouteTable::new([(ours, Route::Local), (theirs, peer)]));
        let install = Update::Install { child: Box::new(child), counters: Arc::clone(&counters), ticket: Ticket(1) };
        for update in [Update::Routes(routes), install] {
            plane.handle_update(NOW, update, &mut Outbox::new(0, 0), &mut Vec::new());
        }
        assert_eq!(plane.poll_event(), Some(Event::Installed(Ticket(1))));
        Self { plane, drops, counters, inbox: Inbox::default(), spi, esn, local, remote }
    }

    /// What the peer makes of a plaintext, trailer included.
    fn seal(&self, sequence: u64, text: &[u8]) -> Vec<u8> {
        let (key, salt) = KEYMAT.split_at(16);
        let (iv, low) = (sequence.to_be_bytes(), sequence as u32);
        let nonce = [salt, &iv].concat().try_into().expect("four octets and eight");
        let spi = self.spi.value().to_be_bytes();
        let sequence_octets = if self.esn { &iv[..] } else { &iv[4..] };
        let mut text = text.to_vec();
        let sealer = aead(Provider::Ring, AeadAlgorithm::Aes128Gcm16, key);
        let icv = sealer.seal(&nonce, &[&spi, sequence_octets].concat(), &mut text);
        [&esp::Header { spi: self.spi, sequence: low }.emit()[..], &iv, &text, &icv].concat()
    }

    /// All of them in one batch.
    fn open(&mut self, datagrams: &[Vec<u8>], ecn: u8) -> Vec<Vec<u8>> {
        let path = Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 61_000).into() };
        let (mut buffer, mut incoming) = (Vec::new(), Vec::new());
        for datagram in datagrams {
            incoming.push(Incoming { start: buffer.len() as u32, len: datagram.len() as u32, path, ecn });
            buffer.extend_from_slice(datagram);
        }
        self.plane.handle_outer(NOW, &mut buffer, &incoming, true, &mut self.inbox);
        self.inbox.packets.iter().map(|&(start, len)| buffer[start as usize..(start + len) as usize].to_vec()).collect()
    }

    fn dropped(&self) -> u64 {
        self.drops.nonzero().map(|(_, count)| count).sum()
    }

    /// Octets of nobody's left no trace: an authentic packet is still the first.
    fn nothing_happened(&mut self, packets: &[Vec<u8>]) {
        assert!(packets.is_empty(), "nothing opens without the key");
        assert_eq!(self.counters.last_inbound.load(Ordering::Relaxed), 0);
        while let Some(event) = self.plane.poll_event() {
            assert!(matches!(event, Event::UnknownSpi(_)), "{event:?}");
        }
        // A dummy packet: next header 59 and no padding.
        let datagram = self.seal(1, &[1, 2, 0, 59]);
        let before = self.drops.of(DropReason::Dummy);
        assert!(self.open(&[datagram], 0).is_empty());
        assert_eq!(self.drops.of(DropReason::Dummy), before + 1, "the window did not move");
        assert_eq!(self.plane.poll_event(), Some(Event::InboundUsed(self.spi)));
    }
}
