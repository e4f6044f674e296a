//! TUN devices as tests see them.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::testing::{in_new_netns, ip};

/// Waits for the next IPv4 packet; the kernel also sends IPv6 router solicitations of its own accord.
fn next_ipv4(queues: &[Box<dyn TunQueue>]) -> (usize, Vec<u8>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut buffer = vec![0; MAX_PACKET];
    while Instant::now() < deadline {
        for (number, queue) in queues.iter().enumerate() {
            match queue.read_packet(&mut buffer) {
                Ok(read) if buffer[0] >> 4 == 4 => {
                    assert_eq!((read.gso, read.checksum), (Gso::None, None), "offloads are off");
                    return (number, buffer[..read.len].to_vec());
                }
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("no packet within five seconds");
}

/// Swaps source and destination of an IPv4 UDP packet: no checksum changes.
fn turn_round(packet: &mut [u8]) {
    for offset in 0..4 {
        packet.swap(12 + offset, 16 + offset);
    }
    for offset in 0..2 {
        packet.swap(20 + offset, 22 + offset);
    }
}

fn round_trip(backend: TunBackend, queues: usize) {
    in_new_netns(move || {
        let device = TunDevice::open("tun-test", queues, backend, false).unwrap();
        assert_eq!((device.name.as_str(), device.queues.len()), ("tun-test", queues));
        ip("addr add 10.9.0.1/24 dev tun-test");
        ip("link set tun-test up");
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"outward", "10.9.0.2:7").unwrap();
        let (number, mut packet) = next_ipv4(&device.queues);
        assert_eq!(&packet[28..], b"outward");
        // Offloads are off: the header's and the datagram's checksums are complete.
        assert_eq!(internet_checksum(&packet[..20]), 0);
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend(&packet[24..26]);
        pseudo.extend(&packet[20..]);
        assert_eq!(internet_checksum(&pseudo), 0);
        turn_round(&mut packet);
        device.queues[number].write_packet(&packet).unwrap();
        let mut answer = [0; 64];
        let (len, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..len], from.to_string().as_str()), (&b"outward"[..], "10.9.0.2:7"));
    });
}

#[test]
fn a_packet_goes_out_and_comes_back() {
    round_trip(TunBackend::Offload, 1);
}

#[test]
fn a_packet_goes_out_and_comes_back_on_one_of_two_queues() {
    round_trip(TunBackend::Offload, 2);
}

#[cfg(feature = "tun-tap")]
#[test]
fn a_packet_goes_out_and_comes_back_by_the_plain_backend() {
    round_trip(TunBackend::Plain, 1);
}

#[test]
fn a_taken_name_is_refused() {
    in_new_netns(|| {
        let _first = TunDevice::open("taken", 2, TunBackend::Offload, false).unwrap();
        for backend in [TunBackend::Offload, TunBackend::Plain] {
            let second = TunDevice::open("taken", 1, backend, false).err().unwrap();
            if cfg!(feature = "tun-tap") || backend == TunBackend::Offload {
                assert!(matches!(second, TunError::NameInUse(_)), "{second}");
            }
        }
        // Also when the interface is no TUN device at all.
        assert!(matches!(TunDevice::open("lo", 1, TunBackend::Offload, false), Err(TunError::NameInUse(_))));
    });
}

#[test]
fn a_name_that_no_interface_can_have_is_refused() {
    for name in ["", "sixteen-octets-x", "a b", "a/b", "a:b", "tun%d", ".", ".."] {
        assert!(matches!(TunDevice::open(name, 1, TunBackend::Offload, false), Err(TunError::BadName(_))), "{name:?}");
    }
}

#[test]
fn queue_numbers_have_limits() {
    assert!(matches!(TunDevice::open("t", 0, TunBackend::Offload, false), Err(TunError::TooManyQueues(0))));
    assert!(matches!(TunDevice::open("t", 257, TunBackend::Offload, false), Err(TunError::TooManyQueues(257))));
    if cfg!(feature = "tun-tap") {
        assert!(matches!(TunDevice::open("t", 2, TunBackend::Plain, false), Err(TunError::TooManyQueues(2))));
    }
}

#[test]
fn without_cap_net_admin_the_error_says_so() {
    in_new_netns(|| {
        let mut kept = rustix::thread::capabilities(None).unwrap();
        kept.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, kept).unwrap();
        for backend in [TunBackend::Offload, TunBackend::Plain] {
            let error = TunDevice::open("denied", 1, backend, false).err().unwrap();
            if cfg!(feature = "tun-tap") || backend == TunBackend::Offload {
                assert!(error.is_permission(), "{error}");
                assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            }
        }
    });
}

/// RFC 1071, word by word: zero if the octets hold their own right checksum.
fn internet_checksum(octets: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let add = |sum: u32, word: u32| ((sum + word) & 0xffff) + ((sum + word) >> 16);
    !octets.chunks(2).map(word).fold(0, add) as u16
}

#[test]
fn a_header_that_is_written_is_read() {
    let size = NonZeroU16::new(1300).unwrap();
    for (gso, ipv4, gso_type) in
        [(Gso::Tcp(size), true, 1), (Gso::Tcp(size), false, 4), (Gso::Udp(size), true, 5), (Gso::Udp(size), false, 5)]
    {
        let octets = VnetHeader::super_packet(gso, ipv4, 20, 52, 16).emit();
        assert_eq!(octets[..2], [1, gso_type]);
        assert_eq!(octets[2..], [52, 1300, 20, 16].map(u16::to_ne_bytes).concat());
        assert_eq!(VnetHeader::parse(octets).describe(5000).unwrap(), TunRead { len: 5000, gso, checksum: None });
        let mut marked = octets;
        marked[1] |= 0x80;
        assert_eq!(VnetHeader::parse(marked).describe(5000).unwrap().gso, gso, "congestion marks change no type");
    }
    let single = VnetHeader { flags: 1, csum_start: 20, csum_offset: 6, ..VnetHeader::default() };
    assert_eq!(single.describe(60).unwrap(), TunRead { len: 60, gso: Gso::None, checksum: Some((20, 6)) });
}

#[test]
fn headers_that_promise_what_was_not_asked_for_are_refused() {
    let plain = VnetHeader { gso_size: 100, ..VnetHeader::default() };
    // UFO; something newer; no size.
    for header in [
        VnetHeader { gso_type: 3, ..plain },
        VnetHeader { gso_type: 6, ..plain },
        VnetHeader { gso_type: 1, gso_size: 0, ..plain },
        VnetHeader { gso_type: 0x85, gso_size: 0, ..plain },
    ] {
        assert_eq!(header.describe(1000).unwrap_err().kind(), ErrorKind::InvalidData, "{header:?}");
    }
}
