//! A lane by itself, without its thread: a TUN made of two lists, and a UDP socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time;

use crossbeam_channel::Sender;
use mio::{Poll, Token, Waker};

use super::*;
use crate::crypto::Provider;
use crate::engine::LiveOffloads;
use crate::engine::exchange::{Doorbell, Exchange};
use crate::engine::forward::pool_size;
use crate::engine::tests::{PEER, child, install, routes, spi};
use crate::esp::{Route, RouteTable};
use crate::sys::testing::{allocations, in_new_netns, ip};
use crate::sys::tun::TunRead;
use crate::sys::udp::ReceiveBatch;
use crate::wire::natt::{self, Natt};
use crate::wire::testing::Recipe;

/// What is to be read, and what was written.
#[derive(Default)]
struct Lists {
    inner: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    is_down: bool,
    /// Instead of `inner`: this packet, so many times. Written packets are then counted only.
    endless: Option<(Vec<u8>, usize)>,
    count: usize,
    /// What every packet to be read is.
    gso: Gso,
    /// Whether super-packets are refused.
    refuses: bool,
    /// Packets that were written as parts of super-packets.
    joined: usize,
}

#[derive(Clone, Default)]
struct FakeTun(Arc<Mutex<Lists>>);

impl AsRawFd for FakeTun {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl TunQueue for FakeTun {
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<TunRead> {
        let mut lists = self.0.lock().unwrap();
        let gso = lists.gso;
        if let Some((packet, times)) = &mut lists.endless {
            *times = times.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            buffer[..packet.len()].copy_from_slice(packet);
            return Ok(TunRead { len: packet.len(), gso, checksum: None });
        }
        let packet = lists.inner.pop_front().ok_or(ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(TunRead { len: packet.len(), gso, checksum: None })
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        let mut lists = self.0.lock().unwrap();
        if lists.is_down {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        lists.count += 1;
        if lists.endless.is_none() {
            lists.written.push(packet.to_vec());
        }
        Ok(())
    }

    fn write_super_packet(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut lists = self.0.lock().unwrap();
        if lists.refuses {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        lists.joined += parts.len() - 2;
        Ok(())
    }
}

const NOW: Instant = Instant::ORIGIN;

/// What the device would take.
const BOTH: Offloads = Offloads { tcp: true, udp: true };

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
        let shared = Arc::new(Shared {
            origin: time::Instant::now(),
            stopping: AtomicBool::new(false),
            joined: LiveOffloads::new(BOTH),
            exchange,
        });
        let (tun, drops) = (FakeTun::default(), Arc::new(Drops::default()));
        let udp = Arc::new(UdpSocket::bind(SocketAddr::new(local, 4500)).unwrap());
        let (orders, mailbox) = crossbeam_channel::bounded(16);
        let config = Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1400 };
        let tun_and_offloads: (Box<dyn TunQueue>, _) = (Box::new(tun.clone()), BOTH);
        let lane = Lane::new(config, tun_and_offloads, Arc::clone(&udp), mailbox, Arc::clone(&drops), shared);
        Self { lane, tun, udp, orders, drops, _polls: polls }
    }

    /// Posts what makes it overlay host `own` with an SA to host `other`.
    fn key(&self, own: u8, other: u8, path: Path) {
        let spis = [own, other].map(|host| spi(0x1000_0000 * u32::from(host)));
        let net = |host: u8| format!("10.42.{host}.0/24").parse().unwrap();
        let peer = |owner| Route::Peer { peer: PEER, owner: WorkerIndex(owner) };
        // Host 3 is the other worker's.
        let routes = [(net(own), Route::Local), (net(other), peer(0)), (net(3), peer(1))];
        self.orders.send(Update::Routes(Arc::new(RouteTable::new(routes)))).unwrap();
        for (_, update) in install(child(path, spis[0], spis[1]), true) {
            self.orders.send(update).unwrap();
        }
    }

    /// Sends what waits in the TUN, batch by batch, as far as the socket takes it.
    fn send_all(&mut self, now: Instant) {
        while self.lane.is_clear() {
            let read = (0..BATCH).take_while(|_| self.lane.make_room(now) && self.lane.read_inner(now).is_ok()).count();
            self.lane.flush(now);
            if read == 0 {
                break;
            }
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
fn what_waits_for_an_sa_leaves_once_the_peer_has_sent_on_it() {
    in_new_netns(|| {
        let (here, there) = ("127.0.0.1:4500", "127.0.0.2:4500");
        let mut bench = Bench::new([127, 0, 0, 1].into());
        let mut peer = Bench::new([127, 0, 0, 2].into());
        peer.key(2, 1, path(there, here));
        peer.lane.take_orders(NOW);
        let mut datagram = peer.sealed(&packet(2, 1, 100));
        bench.udp.set_segmentation(false);
        // More than the outbox holds: it is shorter than usual.
        bench.lane.outbox = Outbox::new(OUTBOX_OCTETS, 8);
        bench.key(1, 2, path(here, there));
        let orders: Vec<Update> = bench.lane.mailbox.try_iter().collect();
        let [routes, install, _activate] = <[Update; 3]>::try_from(orders).expect("three orders");
        bench.orders.send(routes).unwrap();
        bench.lane.take_orders(NOW);
        bench.tun.0.lock().unwrap().inner.extend((0..30).map(|_| packet(1, 2, 100)));
        bench.send_all(NOW);
        bench.orders.send(install).unwrap();
        bench.lane.take_orders(NOW);
        assert_eq!(datagrams_sent(), 0, "the peer may not have it yet");
        let incoming = Incoming { start: 0, len: datagram.len() as u32, path: path(here, there), ecn: 0 };
        bench.lane.gather(NOW, spi(0x1000_0000), incoming);
        bench.lane.open(NOW, &mut datagram);
        // The next turn, although there is no order and nothing to be read.
        bench.lane.take_orders(NOW);
        bench.lane.take_parcels(NOW);
        assert_eq!((datagrams_sent(), bench.drops.nonzero().count()), (30, 0));
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

/// Inner packets that are to be sent over a link that does not take them at first.
const PACKETS: usize = 100;

/// Inner packets that are read before they are sent.
const BATCH: usize = 16;

/// A lane whose socket is full: nobody answers ARP for its peer. Says how many datagrams of the last batch are gone.
fn stuck() -> (Bench, usize) {
    ip("link add near type veth peer name far");
    ip("addr add 192.0.2.1/24 dev near");
    ip("link set near up");
    ip("link set far up");
    let mut bench = Bench::new([192, 0, 2, 1].into());
    bench.udp.shrink_send_buffer(20_000);
    bench.key(1, 2, path("192.0.2.1:4500", "192.0.2.2:4500"));
    bench.lane.take_orders(NOW);
    bench.udp.set_segmentation(false);
    bench.tun.0.lock().unwrap().inner.extend((0..PACKETS).map(|_| packet(1, 2, 1300)));
    bench.send_all(NOW);
    let done = bench.lane.backlog.expect("the socket is full").done;
    assert!(done < BATCH);
    let waiting = bench.tun.0.lock().unwrap().inner.len();
    assert!((1..PACKETS).contains(&waiting), "the TUN keeps what there is no room for: {waiting}");
    (bench, done)
}

/// UDP datagrams that left this namespace's sockets.
fn datagrams_sent() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "OutDatagrams").unwrap().1.parse().unwrap()
}

#[test]
fn a_full_socket_holds_the_tun_back_and_goes_on_where_it_stopped() {
    in_new_netns(|| {
        let (mut bench, _) = stuck();
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
        bench.send_all(soon);
        assert_eq!((bench.lane.is_clear(), datagrams_sent()), (true, PACKETS), "each was sent, and only once");
        assert_eq!(bench.drops.nonzero().collect::<Vec<_>>(), []);
    });
}

#[test]
fn what_waits_too_long_for_a_full_socket_is_dropped_and_counted() {
    in_new_netns(|| {
        let (mut bench, done) = stuck();
        assert!(bench.lane.retry(NOW + BACKLOG_PATIENCE), "nothing is held up any longer");
        let lost = (BATCH - done) as u64;
        assert_eq!(bench.drops.nonzero().collect::<Vec<_>>(), [(DropReason::SendFailed, lost)]);
    });
}

#[test]
fn the_rest_of_a_super_packet_goes_first_once_the_socket_takes_it() {
    in_new_netns(|| {
        let (mut bench, _) = stuck();
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:01 dev near");
        assert!(bench.lane.retry(NOW));
        bench.send_all(NOW);
        ip("neigh del 192.0.2.2 dev near");
        let before = datagrams_sent();
        // Packets of 200 octets: a super-packet needs the outbox more than once.
        let whole = Recipe::new(false, true, &[7; 60_000]).build();
        let gso = Gso::Tcp(std::num::NonZeroU16::new(148).unwrap());
        {
            let mut lists = bench.tun.0.lock().unwrap();
            lists.gso = gso;
            lists.inner.extend([whole.clone(), whole]);
        }
        bench.send_all(NOW);
        assert!(bench.lane.rest.is_some() && !bench.lane.is_clear(), "the outbox is full, and so is the socket");
        assert_eq!(bench.tun.0.lock().unwrap().inner.len(), 1, "the next one stays in the device");
        ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:01 dev near");
        while !bench.lane.retry(NOW) {}
        bench.send_all(NOW);
        assert_eq!(datagrams_sent() - before, 2 * 60_000_usize.div_ceil(148));
        assert_eq!(bench.drops.nonzero().collect::<Vec<_>>(), []);
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

#[test]
fn packets_on_their_way_ask_for_no_memory() {
    in_new_netns(|| {
        let (here, there) = ("127.0.0.1:4500", "127.0.0.2:4500");
        let mut sender = Bench::new([127, 0, 0, 1].into());
        let mut receiver = Bench::new([127, 0, 0, 2].into());
        sender.key(1, 2, path(here, there));
        receiver.key(2, 1, path(there, here));
        receiver.tun.0.lock().unwrap().endless = Some((Vec::new(), 0));
        sender.lane.take_orders(NOW);
        receiver.lane.take_orders(NOW);
        let mut batch = ReceiveBatch::new(4);
        let mut send_round = |len, stray: bool| {
            // The second of two workers gets nothing done here: its packets pass through its ring, and come home.
            let to = if stray { 3 } else { 2 };
            sender.tun.0.lock().unwrap().endless = Some((packet(1, to, len), 100));
            let before = allocations();
            sender.send_all(NOW);
            while let Some(parcel) = sender.lane.shared.exchange.receive(1) {
                sender.lane.shared.exchange.give_back(parcel);
            }
            while receiver.udp.receive(&mut batch).is_ok() {
                let (arena, messages) = batch.parts();
                for message in messages {
                    for (start, len) in message.datagrams() {
                        let Natt::Esp(spi) = natt::classify(&arena[start as usize..(start + len) as usize]) else {
                            continue;
                        };
                        let incoming = Incoming { start, len, path: message.path, ecn: message.ecn };
                        receiver.lane.gather(NOW, spi, incoming);
                    }
                }
                receiver.lane.open(NOW, arena);
            }
            allocations() - before
        };
        // The lists grow to their size.
        for len in [1400, 100] {
            send_round(len, false);
            send_round(len, true);
        }
        let asked: Vec<u64> =
            [(1400, false), (100, false), (1400, true)].map(|(len, stray)| send_round(len, stray)).to_vec();
        assert_eq!(receiver.tun.0.lock().unwrap().count, 400, "they did arrive");
        assert_eq!(asked, [0, 0, 0]);
    });
}

/// Super-packets through two lanes: how often the second asked for memory, and what its TUN got.
fn super_packets(refuses: bool, rounds: usize) -> (u64, usize, usize, Offloads) {
    let (here, there) = ("127.0.0.1:4500", "127.0.0.2:4500");
    let mut sender = Bench::new([127, 0, 0, 1].into());
    let mut receiver = Bench::new([127, 0, 0, 2].into());
    sender.key(1, 2, path(here, there));
    receiver.key(2, 1, path(there, here));
    sender.lane.take_orders(NOW);
    receiver.lane.take_orders(NOW);
    {
        let mut lists = receiver.tun.0.lock().unwrap();
        lists.endless = Some((Vec::new(), 0));
        lists.refuses = refuses;
    }
    let whole = Recipe::new(false, true, &[9; 47 * 1348]).build();
    sender.tun.0.lock().unwrap().gso = Gso::Tcp(std::num::NonZeroU16::new(1348).unwrap());
    let mut batch = ReceiveBatch::new(4);
    let mut asked = 0;
    for _ in 0..rounds {
        sender.tun.0.lock().unwrap().endless = Some((whole.clone(), 10));
        let before = allocations();
        sender.send_all(NOW);
        while receiver.udp.receive(&mut batch).is_ok() {
            let (arena, messages) = batch.parts();
            for message in messages {
                for (start, len) in message.datagrams() {
                    let incoming = Incoming { start, len, path: message.path, ecn: message.ecn };
                    receiver.lane.gather(NOW, spi(0x2000_0000), incoming);
                }
            }
            receiver.lane.open(NOW, arena);
        }
        asked = allocations() - before;
    }
    let lists = receiver.tun.0.lock().unwrap();
    assert_eq!(receiver.drops.nonzero().chain(sender.drops.nonzero()).collect::<Vec<_>>(), []);
    assert_eq!(receiver.lane.shared.joined.offloads(), receiver.lane.coalescer.offloads(), "what is shown");
    (asked, lists.joined, lists.count, receiver.lane.coalescer.offloads())
}

#[test]
fn super_packets_on_their_way_ask_for_no_memory() {
    in_new_netns(|| {
        let (asked, joined, alone, offloads) = super_packets(false, 3);
        assert_eq!((asked, joined + alone, offloads), (0, 3 * 470, BOTH));
        assert!(alone < joined / 10, "{alone} of {joined} came out alone");
    });
}

#[test]
fn a_kernel_that_refuses_super_packets_gets_single_ones() {
    in_new_netns(|| {
        let (_, joined, alone, offloads) = super_packets(true, 2);
        assert_eq!((joined, alone, offloads), (0, 2 * 470, Offloads { tcp: false, udp: true }));
    });
}
