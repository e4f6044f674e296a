//! Packets that reach the wrong thread, and packets that are early: both get to where they belong.
//!
//! One engine, and a peer by hand on loopback: it seals with the same data plane, and sends trains that a real peer would not.

use std::net::{IpAddr, UdpSocket as StdSocket};
use std::ops::Range;

use super::hosts::{Host, natt_path};
use super::*;
use crate::crypto::Provider;
use crate::esp::{DataPlane, Inbox, Incoming, Outbox, Outcome};
use crate::model::Drops;
use crate::sys::udp::{Datagram, SendBatch, UdpSocket};

const ENGINE: &str = "127.0.0.1";
const HAND: &str = "127.0.0.2";

/// The hand's end of one SA: it seals what a peer would send to the engine, and opens the answers.
struct Sealer {
    plane: DataPlane,
    outbox: Outbox,
    now: Instant,
}

impl Sealer {
    /// Sends with `to_engine`, which names the engine's worker, and receives with `to_hand`.
    fn new(to_engine: Spi, to_hand: Spi) -> Self {
        let config = crate::esp::Config { worker: to_hand.owner(), provider: Provider::Ring, tun_mtu: 1400 };
        let mut plane = DataPlane::new(config, Arc::new(Drops::default()));
        let mut outbox = Outbox::new(1 << 16, 16);
        let now = Instant::ORIGIN;
        let (_, routes) = routes(2, 1, to_hand.owner());
        let orders = install(child(natt_path(HAND, ENGINE), to_hand, to_engine), true);
        for update in std::iter::once(routes).chain(orders.into_iter().map(|(_, update)| update)) {
            plane.handle_update(now, update, &mut outbox, &mut Vec::new());
        }
        Self { plane, outbox, now }
    }

    /// An ESP datagram.
    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        assert_eq!(self.plane.handle_inner(self.now, inner, &mut self.outbox), Outcome::Done);
        self.plane.seal_pending(&mut self.outbox);
        let (datagrams, buffer) = self.outbox.datagrams();
        let octets = buffer[datagrams[0].range()].to_vec();
        self.outbox.clear();
        octets
    }

    /// The inner packet of an ESP datagram.
    fn open(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let (mut buffer, mut inbox) = (datagram.to_vec(), Inbox::default());
        let incoming = Incoming { start: 0, len: buffer.len() as u32, path: natt_path(HAND, ENGINE), ecn: 0 };
        self.plane.handle_outer(self.now, &mut buffer, &[incoming], true, &mut inbox);
        let &(start, len) = inbox.packets.first()?;
        Some(buffer[start as usize..(start + len) as usize].to_vec())
    }
}

/// An IPv4 UDP packet between inner addresses, without UDP checksum.
fn inner_packet(source: [u8; 4], destination: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(9_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

struct Piece(Range<usize>);

impl Datagram for Piece {
    fn range(&self) -> Range<usize> {
        self.0.clone()
    }
    fn path(&self) -> Path {
        natt_path(HAND, ENGINE)
    }
    fn ecn(&self) -> u8 {
        0
    }
}

/// The engine as overlay host 1 and the hand's outer socket.
struct Scene {
    host: Host,
    hand: UdpSocket,
    /// At the engine's inner address: what the tunnel delivers.
    inner: StdSocket,
}

impl Scene {
    fn new(workers: u8) -> Self {
        let namespace = Namespace::create().expect("these tests need root for network namespaces");
        inside(&namespace, || ip("link set lo up"));
        let config = Config { listen: ENGINE.parse().unwrap(), ..config(workers, TunBackend::Offload) };
        let host = Host::start(namespace, 1, &config);
        let (hand, inner) = inside(&host.namespace, || {
            let hand = UdpSocket::bind(SocketAddr::new(HAND.parse().unwrap(), 4500)).unwrap();
            (hand, StdSocket::bind((host.inner(), 0)).unwrap())
        });
        inner.set_read_timeout(Some(PATIENCE)).unwrap();
        update(&host.handle, [routes(1, 2, WorkerIndex(workers - 1))]);
        Self { host, hand, inner }
    }

    /// Keys an SA with worker `owner`.
    fn sealer(&self, owner: u8) -> Sealer {
        let (to_engine, to_hand) = (spi(0x5000_0000 | u32::from(owner)), spi(0x6000_0000 | u32::from(owner) << 8));
        update(&self.host.handle, install(child(natt_path(ENGINE, HAND), to_engine, to_hand), true));
        await_that("the SA is installed", || heard(&self.host.handle).contains(&installed(to_engine)));
        Sealer::new(to_engine, to_hand)
    }

    /// An inner packet for `inner` with this payload.
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        inner_packet([10, 42, 2, 1], [10, 42, 1, 1], self.inner.local_addr().unwrap().port(), payload)
    }

    /// Sends datagrams as one train: all of the first's length, but the last.
    fn send_train(&self, datagrams: &[Vec<u8>]) {
        let buffer = datagrams.concat();
        let mut pieces = Vec::new();
        for datagram in datagrams {
            let start = pieces.last().map_or(0, |piece: &Piece| piece.0.end);
            pieces.push(Piece(start..start + datagram.len()));
        }
        let equal = datagrams.iter().rev().skip(1).all(|datagram| datagram.len() == datagrams[0].len());
        assert!(equal && self.hand.segmentation(), "the kernel aggregates only such trains");
        let report = self.hand.send(&mut SendBatch::default(), &buffer, &pieces);
        assert_eq!(report.done, datagrams.len());
    }

    fn send(&self, datagram: &[u8]) {
        self.send_train(&[datagram.to_vec()]);
    }

    /// The first octets of so many payloads that came out of the tunnel.
    fn delivered(&self, count: usize) -> Vec<u8> {
        let mut buffer = [0; 2000];
        let mut first = || {
            let (len, _) = receive(&self.inner, &mut buffer);
            assert_eq!(len, 200);
            buffer[0]
        };
        (0..count).map(|_| first()).collect()
    }
}

/// An IKE message behind the marker, as long as the other datagrams of its train.
fn marked(len: usize) -> Vec<u8> {
    let mut datagram = vec![0x77; len];
    datagram[..4].fill(0);
    datagram
}

fn ike_heard(handle: &Handle<Script>) -> Vec<Heard> {
    heard(handle).into_iter().filter(|heard| matches!(heard, Heard::Ike(..))).collect()
}

#[test]
fn a_train_of_mixed_spis_is_taken_apart() {
    let scene = Scene::new(3);
    let mut sealers = [0, 1, 2].map(|owner| scene.sealer(owner));
    // The kernel sees the first SPI only and gives all to worker 1.
    let mut train: Vec<Vec<u8>> = [(1, 10), (0, 20), (1, 11), (2, 30), (2, 31), (0, 21), (1, 12), (2, 32)]
        .iter()
        .map(|&(owner, mark): &(usize, u8)| sealers[owner].seal(&scene.packet(&[mark; 200])))
        .collect();
    train.insert(3, marked(train[0].len()));
    train.push(vec![0xff]);
    scene.send_train(&train);
    let delivered = scene.delivered(8);
    for (owner, marks) in [(1, [10, 11, 12].as_slice()), (0, &[20, 21]), (2, &[30, 31, 32])] {
        let order: Vec<u8> = delivered.iter().copied().filter(|mark| marks.contains(mark)).collect();
        assert_eq!(order, marks, "worker {owner}'s packets came in order");
    }
    let message = vec![0x77; train[0].len() - 4];
    await_that("the IKE message reaches the control thread", || !ike_heard(&scene.host.handle).is_empty());
    assert_eq!(ike_heard(&scene.host.handle), [Heard::Ike(natt_path(ENGINE, HAND), Transport::Natt, message)]);
    assert_eq!(scene.host.handle.drops()[1].of(DropReason::Keepalive), 1, "all came as one aggregate to worker 1");
    scene.host.stop();
}

#[test]
fn esp_behind_an_ike_message_reaches_its_workers() {
    let scene = Scene::new(2);
    let mut sealers = [0, 1].map(|owner| scene.sealer(owner));
    let mut train: Vec<Vec<u8>> = [(0, 20), (0, 21), (1, 10), (0, 22), (1, 11)]
        .iter()
        .map(|&(owner, mark): &(usize, u8)| sealers[owner].seal(&scene.packet(&[mark; 200])))
        .collect();
    train.insert(0, marked(train[0].len()));
    train.push(vec![0xff]);
    scene.send_train(&train);
    let delivered = scene.delivered(5);
    for marks in [[20, 21, 22].as_slice(), &[10, 11]] {
        let order: Vec<u8> = delivered.iter().copied().filter(|mark| marks.contains(mark)).collect();
        assert_eq!(order, marks);
    }
    let control = scene.host.handle.drops().last().unwrap();
    await_that("the keepalive is counted where the aggregate came", || control.of(DropReason::Keepalive) == 1);
    assert_eq!(ike_heard(&scene.host.handle).len(), 1);
    scene.host.stop();
}

#[test]
fn a_long_stray_train_needs_few_buffers() {
    let scene = Scene::new(2);
    let mut sealer = scene.sealer(1);
    // More datagrams than the control thread has buffers, twenty times: equal ones share a buffer, and buffers come home.
    for round in 0..20_u8 {
        let mut train: Vec<Vec<u8>> = (0..60_u8).map(|number| sealer.seal(&scene.packet(&[number; 200]))).collect();
        train.insert(0, marked(train[0].len()));
        scene.send_train(&train);
        assert_eq!(scene.delivered(60), (0..60).collect::<Vec<u8>>(), "round {round}");
    }
    assert_eq!(dropped(&scene.host.handle, DropReason::QueueFull), 0);
    scene.host.stop();
}

#[test]
fn an_spi_of_nobody_is_news_and_so_is_one_of_no_worker() {
    let scene = Scene::new(2);
    let mut sealer = scene.sealer(1);
    let mut datagram = sealer.seal(&scene.packet(&[1; 200]));
    for (spi, worker) in [(0x5555_0001_u32, 1), (0x5555_0000, 0), (0x5555_0077, 0)] {
        datagram[..4].copy_from_slice(&spi.to_be_bytes());
        let before = heard(&scene.host.handle).len();
        let unknown = Heard::Event(WorkerIndex(worker), Event::UnknownSpi(natt_path(ENGINE, HAND)));
        scene.send(&datagram);
        await_that("the control thread hears of it", || heard(&scene.host.handle)[before..].contains(&unknown));
    }
    assert_eq!(dropped(&scene.host.handle, DropReason::UnknownSpi), 3);
    scene.host.stop();
}

#[test]
fn what_is_no_esp_is_counted() {
    let scene = Scene::new(2);
    let strange: [(&[u8], DropReason); 4] = [
        (&[], DropReason::Runt),
        (&[1, 2, 3], DropReason::Runt),
        (&[0, 0, 0, 9, 0, 0, 0, 1], DropReason::Runt),
        (&[0xff], DropReason::Keepalive),
    ];
    for (datagram, reason) in strange {
        let before = dropped(&scene.host.handle, reason);
        scene.send(datagram);
        await_that(reason.name(), || dropped(&scene.host.handle, reason) == before + 1);
    }
    let mut reserved = vec![0; 64];
    reserved[3] = 9;
    scene.send(&reserved);
    await_that("reserved", || dropped(&scene.host.handle, DropReason::ReservedSpi) == 1);
    scene.host.stop();
}

#[test]
fn esp_on_a_reserved_spi_waits_for_its_key() {
    let scene = Scene::new(2);
    let (to_engine, to_hand) = (spi(0x5100_0001), spi(0x6100_0001));
    let mut sealer = Sealer::new(to_engine, to_hand);
    update(&scene.host.handle, [(Recipient::Worker(to_engine.owner()), Update::Reserve(to_engine))]);
    for mark in 0..5 {
        scene.send(&sealer.seal(&scene.packet(&[mark; 200])));
    }
    // Nothing can be seen of parked packets; the worker has them once it has counted this.
    scene.send(&[0x51, 0, 0, 1]);
    await_that("the runt behind them", || scene.host.handle.drops()[1].of(DropReason::Runt) == 1);
    update(&scene.host.handle, install(child(natt_path(ENGINE, HAND), to_engine, to_hand), false));
    assert_eq!(scene.delivered(5), [0, 1, 2, 3, 4]);
    await_that("told", || {
        let heard = heard(&scene.host.handle);
        heard.contains(&installed(to_engine)) && heard.contains(&Heard::Event(WorkerIndex(1), Event::InboundUsed(to_engine)))
    });
    scene.host.stop();
}

/// The next ESP datagrams that the hand gets, and where they came from.
fn next_esp(hand: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = crate::sys::udp::ReceiveBatch::new(1);
    let mut all = Vec::new();
    await_that("as many datagrams", || {
        if hand.receive(&mut batch).is_ok() {
            let (arena, messages) = batch.parts();
            let message = messages[0];
            let octets = |(start, len)| arena[start as usize..(start + len) as usize].to_vec();
            all.extend(message.datagrams().map(|range| (message.path.remote, octets(range))));
        }
        all.len() >= count
    });
    all
}

#[test]
fn the_first_packets_to_a_peer_wait_for_an_sa() {
    let scene = Scene::new(2);
    let to: IpAddr = [10, 42, 2, 1].into();
    // Of these flows some come to worker 0 and stray.
    let senders: Vec<StdSocket> =
        (0..20).map(|_| inside(&scene.host.namespace, || StdSocket::bind((scene.host.inner(), 0)).unwrap())).collect();
    for (number, sender) in senders.iter().enumerate() {
        sender.send_to(&[number as u8; 200], (to, 7)).unwrap();
    }
    let wanted = Heard::Event(WorkerIndex(1), Event::WantSa(PEER));
    await_that("an SA is wanted", || heard(&scene.host.handle).contains(&wanted));
    let mut sealer = scene.sealer(1);
    let open = |(from, datagram): (SocketAddr, Vec<u8>)| {
        assert_eq!(from, natt_path(ENGINE, HAND).local);
        sealer.open(&datagram).expect("sealed for us")[28]
    };
    let mut seen: Vec<u8> = next_esp(&scene.hand, 20).into_iter().map(open).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<u8>>());
    scene.host.stop();
}
