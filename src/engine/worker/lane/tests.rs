//! A lane by itself, without its thread: a TUN made of two lists, and a UDP socket.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time;

use crossbeam_channel::Sender;
use mio::{Poll, Token, Waker};

use super::*;
use crate::crypto::Provider;
use crate::engine::exchange::{Doorbell, Exchange};
use crate::engine::forward::pool_size;
use crate::engine::tests::{child, install, routes, spi};
use crate::sys::testing::{in_new_netns, ip};

/// What is to be read, and what was written.
#[derive(Default)]
struct Lists {
    inner: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    is_down: bool,
}

#[derive(Clone, Default)]
struct FakeTun(Arc<Mutex<Lists>>);

impl AsRawFd for FakeTun {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl TunQueue for FakeTun {
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.0.lock().unwrap().inner.pop_front().ok_or(ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        let mut lists = self.0.lock().unwrap();
        if lists.is_down {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        lists.written.push(packet.to_vec());
        Ok(())
    }
}

const NOW: Instant = Instant::ORIGIN;

/// A lane of worker 0 of 2, overlay host `number`, and what surrounds it.
struct Bench {
    lane: Lane,
    tun: FakeTun,
    udp: Arc<UdpSocket>,
    orders: Sender<Update>,
    drops: Arc<Drops>,
    _polls: Vec<Poll>,
}

impl Bench {
    fn new(local: IpAddr) -> Self {
        let polls: Vec<Poll> = (0..3).map(|_| Poll::new().unwrap()).collect();
        let doorbell = |poll: &Poll| Doorbell::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let ends = polls.iter().enumerate().map(|(member, poll)| (pool_size(member, 2), doorbell(poll)));
        let exchange = Exchange::new(ends);
        let shared = Arc::new(Shared { origin: time::Instant::now(), stopping: AtomicBool::new(false), exchange });
        let (tun, drops) = (FakeTun::default(), Arc::new(Drops::default()));
        let udp = Arc::new(UdpSocket::bind(SocketAddr::new(local, 4500)).unwrap());
        let (orders, mailbox) = crossbeam_channel::bounded(16);
        let config = Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1400 };
        let lane = Lane::new(config, Box::new(tun.clone()), Arc::clone(&udp), mailbox, Arc::clone(&drops), shared);
        Self { lane, tun, udp, orders, drops, _polls: polls }
    }

    /// Posts what makes it overlay host `own` with an SA to host `other`.
    fn key(&self, own: u8, other: u8, path: Path) {
        let spis = [own, other].map(|host| spi(0x1000_0000 * u32::from(host)));
        let (_, routes) = routes(own, other, WorkerIndex(0));
        self.orders.send(routes).unwrap();
        for (_, update) in install(child(path, spis[0], spis[1]), true) {
            self.orders.send(update).unwrap();
        }
    }

    /// What the other end of the path receives, sealed by a lane of its own.
    fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        assert_eq!(self.lane.plane.handle_inner(NOW, packet, &mut self.lane.outbox), Outcome::Done);
        self.lane.plane.seal_pending(&mut self.lane.outbox);
        let (datagrams, buffer) = self.lane.outbox.datagrams();
        let octets = buffer[datagrams[0].range()].to_vec();
        self.lane.outbox.clear();
        octets
    }
}

/// An IPv4 packet between overlay hosts; nothing here looks at its checksum.
fn packet(from: u8, to: u8, len: u16) -> Vec<u8> {
    let mut packet = vec![0; len.into()];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..20].copy_from_slice(&[10, 42, from, 1, 10, 42, to, 1]);
    packet
}

fn path(local: &str, remote: &str) -> Path {
    Path { local: local.parse().unwrap(), remote: remote.parse().unwrap() }
}

#[test]
fn an_order_that_waits_is_done_before_a_datagram_is_given_up() {
    in_new_netns(|| {
        let (here, there) = ("127.0.0.1:4500", "127.0.0.2:4500");
        let mut bench = Bench::new([127, 0, 0, 1].into());
        let mut peer = Bench::new([127, 0, 0, 2].into());
        peer.key(2, 1, path(there, here));
        peer.lane.take_orders(NOW);
        let mut datagram = peer.sealed(&packet(2, 1, 100));
        // The order was posted after the worker had looked for orders, and before the datagram.
        bench.key(1, 2, path(here, there));
        let incoming = Incoming { start: 0, len: datagram.len() as u32, path: path(here, there), ecn: 0 };
        bench.lane.gather(NOW, spi(0x1000_0000), incoming);
        bench.lane.open(NOW, &mut datagram);
        assert_eq!(bench.tun.0.lock().unwrap().written, [packet(2, 1, 100)]);
        assert_eq!(bench.drops.nonzero().count(), 0);
    });
}

#[test]
fn what_a_device_refuses_is_counted() {
    in_new_netns(|| {
        let (here, there) = ("127.0.0.1:4500", "127.0.0.2:4500");
        let mut bench = Bench::new([127, 0, 0, 1].into());
        let mut peer = Bench::new([127, 0, 0, 2].into());
        peer.key(2, 1, path(there, here));
        peer.lane.take_orders(NOW);
        bench.key(1, 2, path(here, there));
        bench.tun.0.lock().unwrap().is_down = true;
        let mut datagram = peer.sealed(&packet(2, 1, 100));
        let incoming = Incoming { start: 0, len: datagram.len() as u32, path: path(here, there), ecn: 0 };
        bench.lane.gather(NOW, spi(0x1000_0000), incoming);
        bench.lane.open(NOW, &mut datagram);
        assert_eq!(bench.drops.of(DropReason::TunWriteFailed), 1);
    });
}

/// A lane whose socket is full: nobody answers ARP for its peer. Says how many inner packets wait in the TUN.
fn stuck() -> (Bench, usize) {
    ip("link add near type veth peer name far");
    ip("addr add 192.0.2.1/24 dev near");
    ip("link set near up");
    ip("link set far up");
    let mut bench = Bench::new([192, 0, 2, 1].into());
    bench.udp.shrink_send_buffer(20_000);
    bench.key(1, 2, path("192.0.2.1:4500", "192.0.2.2:4500"));
    bench.lane.take_orders(NOW);
    bench.tun.0.lock().unwrap().inner.extend((0..100).map(|number| packet(1, 2, 1300 - number)));
    while bench.lane.make_room(NOW) && bench.lane.read_inner(NOW).is_ok() {
        // One by one: what is flushed at once is one batch, whatever the socket takes of it.
        bench.lane.flush(NOW);
    }
    assert!(!bench.lane.is_clear(), "the socket is full");
    let waiting = bench.tun.0.lock().unwrap().inner.len();
    assert!((1..100).contains(&waiting), "the TUN keeps what there is no room for: {waiting}");
    (bench, waiting)
}

#[test]
fn a_full_socket_holds_the_tun_back_and_goes_on_where_it_stopped() {
    in_new_netns(|| {
        let (mut bench, waiting) = stuck();
        // Orders wait too: what they set free would find no room.
        bench.orders.send(Update::Activate(spi(0x1000_0000))).unwrap();
        bench.lane.take_orders(NOW);
        assert_eq!(bench.orders.len(), 1);
        let soon = NOW + BACKLOG_PATIENCE / 2;
        assert!(!bench.lane.retry(soon) && !bench.lane.make_room(soon));
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:01 dev near");
        assert!(bench.lane.retry(soon), "the link takes packets now");
        bench.lane.take_orders(soon);
        assert_eq!(bench.orders.len(), 0);
        while bench.lane.make_room(soon) && bench.lane.read_inner(soon).is_ok() {
            bench.lane.flush(soon);
        }
        assert!(bench.lane.is_clear() && waiting > 0);
        assert_eq!(bench.drops.nonzero().collect::<Vec<_>>(), []);
    });
}

#[test]
fn what_waits_too_long_for_a_full_socket_is_dropped_and_counted() {
    in_new_netns(|| {
        let (mut bench, _) = stuck();
        assert!(bench.lane.retry(NOW + BACKLOG_PATIENCE), "nothing is held up any longer");
        assert_eq!(bench.drops.nonzero().collect::<Vec<_>>(), [(DropReason::SendFailed, 1)]);
    });
}

#[test]
fn a_stray_for_nobody_is_counted() {
    in_new_netns(|| {
        let mut bench = Bench::new([127, 0, 0, 1].into());
        let (_, routes) = routes(1, 2, WorkerIndex(7));
        bench.orders.send(routes).unwrap();
        bench.lane.take_orders(NOW);
        bench.tun.0.lock().unwrap().inner.push_back(packet(1, 2, 100));
        bench.lane.read_inner(NOW).unwrap();
        assert_eq!(bench.drops.of(DropReason::NoRoute), 1);
    });
}
