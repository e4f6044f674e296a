//! UDP sockets as tests see them: pairs of them on loopback.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket as StdSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::*;
use crate::model::Path;
use crate::sys::testing::{in_new_netns, ip};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Whatever arrives within a second, at least one message: path, ECN and octets of each datagram, and how many messages.
fn receive(socket: &UdpSocket) -> (usize, Vec<(Path, u8, Vec<u8>)>) {
    let mut batch = ReceiveBatch::new(4);
    let deadline = Instant::now() + Duration::from_secs(1);
    let (mut count, mut all) = (0, Vec::new());
    while Instant::now() < deadline {
        match socket.receive(&mut batch) {
            Ok(_) => {
                let (arena, messages) = batch.parts();
                count += messages.len();
                for message in messages {
                    for (start, len) in message.datagrams() {
                        let octets = arena[start as usize..(start + len) as usize].to_vec();
                        all.push((message.path, message.ecn, octets));
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && count == 0 => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return (count, all);
            }
        }
    }
    panic!("nothing arrived within a second");
}

fn is_empty(socket: &UdpSocket) -> bool {
    socket.receive(&mut ReceiveBatch::new(1)).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

struct Piece {
    range: Range<usize>,
    path: Path,
    ecn: u8,
}

impl Datagram for Piece {
    fn range(&self) -> Range<usize> {
        self.range.clone()
    }
    fn path(&self) -> Path {
        self.path
    }
    fn ecn(&self) -> u8 {
        self.ecn
    }
}

/// So many pieces of `stride` octets, cut from `len` octets, all to `remote`.
fn pieces(len: usize, stride: usize, local: &str, remote: SocketAddr, ecn: u8) -> Vec<Piece> {
    let path = Path { local: local.parse().unwrap(), remote };
    (0..len).step_by(stride).map(|start| Piece { range: start..len.min(start + stride), path, ecn }).collect()
}

/// Each payload in the order of the group: who gets it.
fn steering(address: IpAddr, remote: IpAddr) {
    let group = UdpGroup::bind(address, 0, 3).unwrap();
    let sender = StdSocket::bind((remote, 0)).unwrap();
    let everybody: Vec<&UdpSocket> = group.workers.iter().chain([&group.control]).collect();
    let to = SocketAddr::new(remote, group.control.local().port());
    for (payload, receiver) in [
        (&[0x12, 0x34, 0x56, 0x00, 0, 0, 0, 1][..], 0),
        (&[0x12, 0x34, 0x56, 0x01, 0, 0, 0, 1], 1),
        (&[0x12, 0x34, 0x56, 0x02, 0, 0, 0, 1], 2),
        (&[0, 0, 1, 2, 0, 0, 0, 1], 2),
        (&[0, 0, 0, 0, 1, 2, 3, 4], 3), // the non-ESP marker
        (&[0, 0, 0, 0], 3),
        (&[0, 0, 0, 1], 1),             // a reserved SPI: its worker will say so
        (&[0x12, 0x34, 0x56, 0x03], 0), // no such worker
        (&[0x12, 0x34, 0x56, 0xff], 0),
        (&[0xff], 0), // a keepalive
        (&[0, 0, 0], 0),
        (&[], 0),
    ] {
        sender.send_to(payload, to).unwrap();
        let (_, datagrams) = receive(everybody[receiver]);
        assert_eq!(datagrams.len(), 1, "{payload:x?}");
        let (path, ecn, octets) = &datagrams[0];
        assert_eq!((octets.as_slice(), *ecn), (payload, 0));
        assert_eq!((path.local, path.remote), (to, sender.local_addr().unwrap()));
        assert!(everybody.iter().all(|socket| is_empty(socket)), "{payload:x?}");
    }
}

#[test]
fn an_spi_reaches_its_worker_and_the_marker_control() {
    in_new_netns(|| {
        steering(ANY, LOCALHOST);
        steering(LOCALHOST, LOCALHOST);
        // One dual-stack group, asked in both families.
        steering(Ipv6Addr::UNSPECIFIED.into(), LOCALHOST);
        steering(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into());
    });
}

#[test]
fn each_of_eight_workers_gets_its_own() {
    in_new_netns(|| {
        let group = UdpGroup::bind(ANY, 0, 8).unwrap();
        let sender = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let to = SocketAddr::new(LOCALHOST, group.control.local().port());
        // For each worker a train and a single datagram on SPIs of its own; the control thread gets what bears the marker.
        let esp = |spi: u32| [spi.to_be_bytes().to_vec(), vec![7; 96]].concat();
        let everybody: Vec<&UdpSocket> = group.workers.iter().chain([&group.control]).collect();
        let owners =
            (0..8).flat_map(|owner| [0x0100_0000, 0x89ab_cd00, 0xffff_ff00].map(|spi| (spi | owner, owner as usize)));
        for (spi, receiver) in owners.chain([(0, 8), (0x0100_0008, 0), (0x0100_00ff, 0)]) {
            let datagram = esp(spi);
            for count in [1, 5] {
                let train = datagram.repeat(count);
                let batch = pieces(train.len(), datagram.len(), "127.0.0.1:0", to, 0);
                assert_eq!(sender.send(&mut SendBatch::default(), &train, &batch).done, count);
                let (messages, datagrams) = receive(everybody[receiver]);
                assert_eq!((messages, datagrams.len()), (1, count), "SPI {spi:08x}: the train stays whole");
                assert!(datagrams.iter().all(|(_, _, octets)| *octets == datagram), "SPI {spi:08x}");
                assert!(everybody.iter().all(|socket| is_empty(socket)), "SPI {spi:08x}");
            }
        }
    });
}

#[test]
fn an_answer_leaves_from_the_address_that_was_asked() {
    in_new_netns(|| {
        for any in [ANY, Ipv6Addr::UNSPECIFIED.into()] {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
            let client = StdSocket::bind((LOCALHOST, 0)).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let asked: SocketAddr = format!("127.0.0.7:{}", socket.local().port()).parse().unwrap();
            client.send_to(b"who", asked).unwrap();
            let (path, _, _) = receive(&socket).1.remove(0);
            assert_eq!(path.local, asked);
            let report = socket.send(&mut SendBatch::default(), b"me", &[Piece { range: 0..2, path, ecn: 0 }]);
            assert_eq!(report, SendReport { done: 1, ..SendReport::default() });
            let (len, from) = client.recv_from(&mut [0; 9]).unwrap();
            assert_eq!((len, from), (2, asked));
        }
    });
}

#[test]
fn case_115_a_train_travels_whole_and_is_cut_by_its_stride() {
    in_new_netns(|| {
        for (any, remote) in
            [(ANY, "127.0.0.1"), (Ipv6Addr::UNSPECIFIED.into(), "::1"), (Ipv6Addr::UNSPECIFIED.into(), "127.0.0.1")]
        {
            let sender = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
            let receiver = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
            assert!(sender.segmentation(), "the kernel knows UDP_SEGMENT");
            let remote = SocketAddr::new(remote.parse().unwrap(), receiver.local().port());
            let buffer: Vec<u8> = (0..10_050_u32).map(|number| (number / 100) as u8).collect();
            let train = pieces(buffer.len(), 1000, "0.0.0.0:0", remote, 2);
            let report = sender.send(&mut SendBatch::default(), &buffer, &train);
            assert_eq!(report, SendReport { done: 11, ..SendReport::default() });
            let (messages, datagrams) = receive(&receiver);
            assert_eq!(messages, 1, "the kernel handed the train over in one piece");
            assert_eq!(datagrams.len(), 11);
            for (piece, (path, ecn, octets)) in train.iter().zip(&datagrams) {
                assert_eq!(octets, &buffer[piece.range()]);
                assert_eq!((path.remote.port(), path.local, *ecn), (sender.local().port(), remote, 2));
            }
        }
    });
}

/// The kernel cuts off what does not fit: half a datagram is no datagram, and its neighbours are.
#[test]
fn case_115_what_the_kernel_cut_off_is_counted_and_left_out() {
    in_new_netns(|| {
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let client = StdSocket::bind((LOCALHOST, 0)).unwrap();
        let mut batch = ReceiveBatch::with_slots(8, 100);
        for round in 0..2 {
            for length in [100, 101, 7, 4000, 0, 99] {
                client.send_to(&vec![length as u8; length], receiver.local()).unwrap();
            }
            receiver.receive(&mut batch).unwrap();
            assert_eq!((batch.unusable(), batch.lost()), (2, 0), "round {round}");
            let (arena, messages) = batch.parts();
            let lengths: Vec<u32> = messages.iter().map(|message| message.len).collect();
            assert_eq!(lengths, [100, 7, 0, 99]);
            for message in messages {
                let (start, len) = message.datagrams().next().unwrap();
                assert!(arena[start as usize..(start + len) as usize].iter().all(|&octet| u32::from(octet) == len));
            }
        }
        // What comes next starts from nothing.
        client.send_to(b"whole", receiver.local()).unwrap();
        receiver.receive(&mut batch).unwrap();
        assert_eq!((batch.unusable(), batch.parts().1.len()), (0, 1));
    });
}

#[test]
fn without_segmentation_every_datagram_goes_alone() {
    in_new_netns(|| {
        let sender = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        sender.set_segmentation(false);
        // More than one sendmmsg takes.
        let buffer = vec![7; 150 * 100];
        let train = pieces(buffer.len(), 100, "127.0.0.1:0", receiver.local(), 0);
        assert_eq!(sender.send(&mut SendBatch::default(), &buffer, &train).done, 150);
        let (messages, datagrams) = receive(&receiver);
        assert_eq!((messages, datagrams.len()), (150, 150));
    });
}

#[test]
fn a_train_that_the_kernel_refuses_goes_one_by_one() {
    in_new_netns(|| {
        ip("link set lo mtu 1280");
        let sender = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let buffer: Vec<u8> = (0..6000_u32).map(|number| (number / 100) as u8).collect();
        let train = pieces(buffer.len(), 1400, "127.0.0.1:0", receiver.local(), 0);
        let report = sender.send(&mut SendBatch::default(), &buffer, &train);
        assert_eq!(report, SendReport { done: 5, ..SendReport::default() });
        assert!(sender.segmentation(), "smaller ones may still go together");
        let octets: Vec<u8> = receive(&receiver).1.into_iter().flat_map(|(_, _, octets)| octets).collect();
        assert_eq!(octets, buffer, "fragmented outside, as DF is clear");
    });
}

/// A worker's socket on this address.
fn worker(address: IpAddr) -> UdpSocket {
    UdpGroup::bind(address, 0, 1).unwrap().workers.remove(0)
}

/// What arrives of a train of 1400 octets each that a worker sends to this address, in order.
fn sent_to(remote: &str, any: IpAddr) -> (UdpSocket, SendReport, usize) {
    let remote: IpAddr = remote.parse().unwrap();
    let sender = worker(any);
    let receiver = UdpSocket::bind(SocketAddr::new(remote, 0)).unwrap();
    let buffer: Vec<u8> = (0..6000_u32).map(|number| (number / 100) as u8).collect();
    let local = SocketAddr::new(any, 0).to_string();
    let train = pieces(buffer.len(), 1400, &local, receiver.local(), 0);
    let report = sender.send(&mut SendBatch::default(), &buffer, &train);
    let (messages, datagrams) = receive(&receiver);
    let octets: Vec<u8> = datagrams.into_iter().flat_map(|(_, _, octets)| octets).collect();
    assert_eq!(octets, buffer, "nothing is lost");
    (sender, report, messages)
}

#[test]
fn what_is_longer_than_the_path_leaves_all_the_same_and_is_told() {
    in_new_netns(|| {
        let narrow = SendReport { done: 5, narrow: Some(0), ..SendReport::default() };
        // What routers said: over IPv4 it is the routers' business to cut, so the train leaves whole.
        ip("route replace local 127.0.0.9 dev lo mtu 1000");
        let (sender, report, messages) = sent_to("127.0.0.9", ANY);
        assert_eq!((report, messages), (narrow, 1));
        let buffer = [7; 2000];
        let again = pieces(2000, 1000, "0.0.0.0:0", "127.0.0.9:9".parse().unwrap(), 0);
        let report = sender.send(&mut SendBatch::default(), &buffer, &again);
        assert_eq!(report.narrow, Some(0), "DF is back: the kernel refuses again");
        assert!(sender.segmentation());
        // The interface itself takes less: each is cut here.
        ip("link set lo mtu 1300");
        for (remote, any) in [("127.0.0.1", ANY), ("::1", Ipv6Addr::UNSPECIFIED.into())] {
            let (sender, report, messages) = sent_to(remote, any);
            assert_eq!((report, messages), (narrow, 5), "{remote}");
            assert!(sender.segmentation(), "smaller ones may still go together");
        }
        let sender = worker(ANY);
        let short = pieces(2000, 1000, "0.0.0.0:0", "127.0.0.1:9".parse().unwrap(), 0);
        let report = sender.send(&mut SendBatch::default(), &[7; 2000], &short);
        assert_eq!(report, SendReport { done: 2, ..SendReport::default() }, "what fits is nobody's news");
    });
}

#[test]
fn trains_that_a_socket_cannot_send_are_given_up() {
    in_new_netns(|| {
        let sender = worker(ANY);
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        // The kernel cuts no train without checksums: EINVAL.
        set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let buffer: Vec<u8> = (0..5000_u32).map(|number| (number / 100) as u8).collect();
        let train = pieces(5000, 1000, "0.0.0.0:0", receiver.local(), 0);
        for messages in [5, 5] {
            let report = sender.send(&mut SendBatch::default(), &buffer, &train);
            assert_eq!(report, SendReport { done: 5, ..SendReport::default() });
            // They carry no checksum, so the receiver's kernel joins none either.
            let (count, datagrams) = receive(&receiver);
            assert_eq!(count, messages);
            assert_eq!(datagrams.into_iter().flat_map(|(_, _, octets)| octets).collect::<Vec<_>>(), buffer);
            assert!(!sender.segmentation());
        }
        // Tried again, as after a change of routes.
        set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 0).unwrap();
        sender.set_segmentation(true);
        sender.send(&mut SendBatch::default(), &buffer, &train);
        assert_eq!((receive(&receiver).0, sender.segmentation()), (1, true));
    });
}

#[test]
fn a_train_is_as_long_as_the_kernel_takes() {
    in_new_netns(|| {
        let sender = worker(ANY);
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let buffer: Vec<u8> = (0..20_000_u32).map(|number| (number / 100) as u8).collect();
        let train = pieces(20_000, 100, "0.0.0.0:0", receiver.local(), 0);
        // More than any kernel takes: what is refused goes in shorter trains, at once and from then on.
        sender.set_max_segments(300);
        for trains in [[64, 64, 64, 8], [64, 64, 64, 8]] {
            let report = sender.send(&mut SendBatch::default(), &buffer, &train);
            assert_eq!(report, SendReport { done: 200, ..SendReport::default() });
            let (messages, datagrams) = receive(&receiver);
            assert_eq!((messages, datagrams.len(), sender.max_segments()), (trains.len(), 200, 64));
        }
        assert!(sender.segmentation() && !sender.sends_long_trains());
    });
}

#[test]
fn what_cannot_be_sent_is_counted_and_does_not_hold_up_the_rest() {
    in_new_netns(|| {
        let sender = UdpSocket::bind(SocketAddr::new(ANY, 0)).unwrap();
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let buffer = vec![1; 70_000];
        let local: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let good = Path { local, remote: receiver.local() };
        let piece = |range: Range<usize>, path| Piece { range, path, ecn: 0 };
        let batch = [
            piece(0..65_508, good),                                                // larger than UDP can be
            piece(0..10, Path { remote: "192.0.2.1:9".parse().unwrap(), ..good }), // no route in this namespace
            piece(0..10, Path { remote: "[::1]:9".parse().unwrap(), ..good }),     // another family
            piece(0..10, Path { local: "192.0.2.9:9".parse().unwrap(), ..good }),  // a source that is not ours
            piece(0..11, good),
        ];
        let report = sender.send(&mut SendBatch::default(), &buffer, &batch);
        assert_eq!(report, SendReport { done: 5, too_large: 1, refused: 3, ..SendReport::default() });
        let (_, datagrams) = receive(&receiver);
        assert_eq!(datagrams.iter().map(|(_, _, octets)| octets.len()).collect::<Vec<_>>(), [11]);
    });
}

#[test]
fn a_full_socket_says_where_to_go_on() {
    in_new_netns(|| {
        // Nobody answers ARP on the link: what is sent waits there, on the socket's account.
        ip("link add near type veth peer name far");
        ip("addr add 10.9.0.1/24 dev near");
        ip("link set near up");
        ip("link set far up");
        let sender = UdpSocket::bind(SocketAddr::new(ANY, 0)).unwrap();
        sender.set_segmentation(false);
        sender.shrink_send_buffer(30_000);
        let buffer = vec![7; 100 * 1000];
        let batch = pieces(buffer.len(), 1000, "0.0.0.0:0", "10.9.0.2:9".parse().unwrap(), 0);
        let mut scratch = SendBatch::default();
        let report = sender.send(&mut scratch, &buffer, &batch);
        assert!(report.blocked && report.done > 0 && report.done < 100, "{report:?}");
        ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:01 dev near");
        let again = sender.send(&mut scratch, &buffer, &batch[report.done..]);
        assert!(again.done > 0, "{again:?}");
    });
}

#[test]
fn what_the_kernel_throws_away_is_told() {
    in_new_netns(|| {
        let receiver = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        receiver.shrink_receive_buffer(10_000);
        let sender = StdSocket::bind((LOCALHOST, 0)).unwrap();
        let mut batch = ReceiveBatch::new(128);
        let (mut sent, mut received, mut lost) = (0, 0, 0);
        for _ in 0..3 {
            for _ in 0..50 {
                sent += sender.send_to(&[7; 1000], receiver.local()).unwrap() / 1000;
            }
            receiver.receive(&mut batch).unwrap();
            received += batch.parts().1.len();
            // It is told with the next that fits.
            sent += sender.send_to(&[7; 1000], receiver.local()).unwrap() / 1000;
            receiver.receive(&mut batch).unwrap();
            received += batch.parts().1.len();
            lost += batch.lost();
        }
        assert!(lost > 0);
        assert_eq!((sent, received + lost as usize), (153, 153));
    });
}

#[test]
fn a_port_in_use_is_refused() {
    in_new_netns(|| {
        let group = UdpGroup::bind(ANY, 0, 2).unwrap();
        let taken = group.control.local().port();
        // Also by another group: two agents of one user must not share a port by accident.
        assert!(matches!(UdpGroup::bind(ANY, taken, 2), Err(UdpError::InUse(_))));
        assert!(matches!(UdpGroup::bind(LOCALHOST, taken, 2), Err(UdpError::InUse(_))));
        let error = UdpSocket::bind(SocketAddr::new(ANY, taken)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("UDP port {taken} on 0.0.0.0 is in use")), "{error}");
        let single = UdpSocket::bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        assert!(matches!(UdpGroup::bind(LOCALHOST, single.local().port(), 1), Err(UdpError::InUse(_))));
    });
}

#[test]
fn a_foreign_address_is_refused() {
    in_new_netns(|| {
        let error = UdpGroup::bind("192.0.2.1".parse().unwrap(), 0, 1).unwrap_err();
        assert!(matches!(error, UdpError::NotOurs(_)), "{error}");
    });
}

#[test]
fn a_low_port_needs_a_right() {
    in_new_netns(|| {
        let mut kept = rustix::thread::capabilities(None).unwrap();
        kept.effective.remove(rustix::thread::CapabilitySet::NET_BIND_SERVICE);
        rustix::thread::set_capabilities(None, kept).unwrap();
        let error = UdpSocket::bind(SocketAddr::new(ANY, 500)).unwrap_err();
        assert!(error.is_permission() && error.to_string().contains("CAP_NET_BIND_SERVICE"), "{error}");
    });
}
