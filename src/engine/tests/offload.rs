//! Super-packets between us and the kernel: what it hands over and what it takes back, with offloads on and off at either end.

use std::ops::Range;

use super::hosts::{Host, tunnel};
use super::*;
use crate::engine::coalesce::Coalescer;
use crate::engine::sink::TunSink;
use crate::model::{Drops, Gso};
use crate::sys::testing::in_new_netns;
use crate::sys::tun::{MAX_PACKET, TunDevice};
use crate::sys::udp::{Datagram, SendBatch, UdpSocket as TrainSocket};
use crate::wire::segment::Split;

/// A part of a train.
struct Piece {
    range: Range<usize>,
    path: Path,
}

impl Datagram for Piece {
    fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn path(&self) -> Path {
        self.path
    }

    fn ecn(&self) -> u8 {
        0
    }
}

/// Sends payloads back to back: those of equal length leave as one super-packet (UDP_SEGMENT).
fn send(socket: &TrainSocket, to: SocketAddr, payloads: &[Vec<u8>]) {
    let path = Path { local: socket.local(), remote: to };
    let mut pieces = Vec::new();
    for payload in payloads {
        let start = pieces.last().map_or(0, |piece: &Piece| piece.range.end);
        pieces.push(Piece { range: start..start + payload.len(), path });
    }
    let report = socket.send(&mut SendBatch::default(), &payloads.concat(), &pieces);
    assert_eq!((report.done, report.refused + report.too_large), (payloads.len(), 0));
}

/// So many payloads, each of its own content.
fn payloads(count: usize, len: usize, seed: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| (0..len).map(|at| (at * 5 + number + seed) as u8).collect()).collect()
}

#[test]
fn the_kernel_cuts_what_was_joined_into_what_it_was() {
    in_new_netns(|| {
        let device = TunDevice::open("tun-test", 1, TunBackend::Offload, true).unwrap();
        assert!(device.offloads.tcp && device.offloads.udp, "this kernel is older than 6.2: {:?}", device.offloads);
        ip("addr add 10.42.1.1/24 dev tun-test");
        ip("link set tun-test up");
        let sender = TrainSocket::bind("10.42.1.1:0".parse().unwrap()).unwrap();
        let receiver = UdpSocket::bind("10.42.1.1:4000").unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent = [payloads(20, 1000, 0), payloads(1, 77, 9)].concat();
        send(&sender, "10.42.1.2:4000".parse().unwrap(), &sent);
        let queue = &device.queues[0];
        let mut buffer = vec![0; MAX_PACKET];
        let read = loop {
            match queue.read_packet(&mut buffer) {
                Ok(read) if buffer[0] == 0x45 => break read,
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        };
        assert_eq!(read.gso, Gso::Udp(1000.try_into().unwrap()));
        let split = Split::parse(&buffer[..read.len], read.gso).unwrap().unwrap();
        // Back to where it came from: addresses change places, and no checksum changes.
        let mut arena = Vec::new();
        for index in 0..split.count() {
            let mut packet = vec![0; split.len_of(index)];
            split.emit(index, &mut packet);
            let (source, destination) = ([10, 42, 1, 1], [10, 42, 1, 2]);
            packet[12..16].copy_from_slice(&destination);
            packet[16..20].copy_from_slice(&source);
            arena.push(packet);
        }
        let drops = Drops::default();
        let octets = arena.concat();
        let mut coalescer = Coalescer::new(device.offloads);
        let mut sink = TunSink::new(queue.as_ref(), &drops, &octets);
        let mut start = 0;
        for packet in &arena {
            coalescer.push(&octets, start, packet.len() as u32, &mut sink);
            start += packet.len() as u32;
        }
        coalescer.flush(&octets, &mut sink);
        assert_eq!((sink.refused(), drops.nonzero().count()), (None, 0));
        let mut buffer = [0; 2000];
        for payload in &sent {
            let (len, _) = receive(&receiver, &mut buffer);
            assert_eq!(buffer[..len], *payload);
        }
    });
}

/// Bursts of every length, of several flows at once, arrive as they were sent, in order per flow.
fn bursts(from: &Host, to: &Host) {
    // A tunnel's port among them: what goes there is never joined.
    let ports = [4000, 4789, 4001];
    let receivers: Vec<UdpSocket> =
        inside(&to.namespace, || ports.map(|port| UdpSocket::bind((to.inner(), port)).unwrap()).into());
    let senders: Vec<TrainSocket> =
        inside(&from.namespace, || ports.map(|_| TrainSocket::bind((from.inner(), 0).into()).unwrap()).into());
    let mut buffer = [0; 2000];
    for len in [1, 2, 3, 63, 64, 500, 1371, 1372] {
        let sent: Vec<Vec<Vec<u8>>> =
            (0..ports.len()).map(|flow| [payloads(30, len, flow), payloads(2, 1 + len / 2, flow)].concat()).collect();
        for (flow, sender) in senders.iter().enumerate() {
            send(sender, (to.inner(), ports[flow]).into(), &sent[flow]);
        }
        for (flow, receiver) in receivers.iter().enumerate() {
            receiver.set_read_timeout(Some(PATIENCE)).unwrap();
            for payload in &sent[flow] {
                let (len, source) = receive(receiver, &mut buffer);
                assert_eq!((&buffer[..len], source), (payload.as_slice(), senders[flow].local()));
            }
        }
    }
}

#[test]
fn bursts_arrive_whatever_either_end_offloads() {
    for (near, far) in [(true, true), (true, false), (false, true), (false, false)] {
        for workers in [1, 2] {
            let [near, far] = [near, far].map(|on| Config { tun_offload: on, ..config(workers, TunBackend::Offload) });
            let hosts = tunnel(&[near, far], ["192.0.2.1", "192.0.2.2"]);
            bursts(&hosts[0], &hosts[1]);
            bursts(&hosts[1], &hosts[0]);
            hosts.into_iter().for_each(Host::stop);
        }
    }
}
