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
                Ok(len) if buffer[0] >> 4 == 4 => return (number, buffer[..len].to_vec()),
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
        let device = TunDevice::open("tun-test", queues, backend).unwrap();
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
        let _first = TunDevice::open("taken", 2, TunBackend::Offload).unwrap();
        for backend in [TunBackend::Offload, TunBackend::Plain] {
            let second = TunDevice::open("taken", 1, backend).err().unwrap();
            if cfg!(feature = "tun-tap") || backend == TunBackend::Offload {
                assert!(matches!(second, TunError::NameInUse(_)), "{second}");
            }
        }
        // Also when the interface is no TUN device at all.
        assert!(matches!(TunDevice::open("lo", 1, TunBackend::Offload), Err(TunError::NameInUse(_))));
    });
}

#[test]
fn a_name_that_no_interface_can_have_is_refused() {
    for name in ["", "sixteen-octets-x", "a b", "a/b", "a:b", "tun%d", ".", ".."] {
        assert!(matches!(TunDevice::open(name, 1, TunBackend::Offload), Err(TunError::BadName(_))), "{name:?}");
    }
}

#[test]
fn queue_numbers_have_limits() {
    assert!(matches!(TunDevice::open("t", 0, TunBackend::Offload), Err(TunError::TooManyQueues(0))));
    assert!(matches!(TunDevice::open("t", 257, TunBackend::Offload), Err(TunError::TooManyQueues(257))));
    if cfg!(feature = "tun-tap") {
        assert!(matches!(TunDevice::open("t", 2, TunBackend::Plain), Err(TunError::TooManyQueues(2))));
    }
}

#[test]
fn without_cap_net_admin_the_error_says_so() {
    in_new_netns(|| {
        let mut kept = rustix::thread::capabilities(None).unwrap();
        kept.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, kept).unwrap();
        for backend in [TunBackend::Offload, TunBackend::Plain] {
            let error = TunDevice::open("denied", 1, backend).err().unwrap();
            if cfg!(feature = "tun-tap") || backend == TunBackend::Offload {
                assert!(error.is_permission(), "{error}");
                assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            }
        }
    });
}

#[test]
fn a_checksum_that_was_left_to_us_is_computed() {
    // RFC 1071 §3: the words 0001 f203 f4f5 f6f7 sum up to ddf2; two octets of field in front of them.
    let mut packet = [0xaa, 0, 0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    let header = VnetHeader { flags: VnetHeader::NEEDS_CSUM, gso_type: 0, csum_start: 1, csum_offset: 0 };
    header.complete(&mut packet).unwrap();
    assert_eq!(packet[1..3], (!0xddf2_u16).to_be_bytes());
}

#[test]
fn headers_that_promise_what_was_not_asked_for_are_refused() {
    let plain = VnetHeader { flags: VnetHeader::NEEDS_CSUM, gso_type: 0, csum_start: 0, csum_offset: 0 };
    for header in [
        VnetHeader { gso_type: 1, ..plain },
        VnetHeader { csum_start: 9, ..plain },
        VnetHeader { csum_start: 4, csum_offset: 3, ..plain },
        VnetHeader { csum_offset: u16::MAX, ..plain },
    ] {
        assert_eq!(header.complete(&mut [0; 8]).unwrap_err().kind(), ErrorKind::InvalidData, "{header:?}");
    }
}
