//! Two engines with a tunnel between them carry real traffic of the kernel's, both ways.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::hosts::{Host, tunnel};
use super::*;

/// How many flows: enough that two TUN queues both get some.
const FLOWS: usize = 48;

/// Octets of the TCP transfer each way.
const TRANSFER: usize = 4 << 20;

/// A UDP socket at a host's inner address.
fn socket(host: &Host) -> UdpSocket {
    let socket = inside(&host.namespace, || UdpSocket::bind((host.inner(), 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One datagram per flow to the other side and back.
fn echo(from: &Host, to: &Host) {
    let server = socket(to);
    let clients: Vec<UdpSocket> = (0..FLOWS).map(|_| socket(from)).collect();
    let mut buffer = [0; 2000];
    for round in 0..3_u8 {
        for (number, client) in clients.iter().enumerate() {
            let payload = vec![round ^ number as u8; 1 + number * 25];
            client.send_to(&payload, server.local_addr().unwrap()).unwrap();
            let (len, source) = receive(&server, &mut buffer);
            assert_eq!((&buffer[..len], source), (payload.as_slice(), client.local_addr().unwrap()));
            server.send_to(&buffer[..len], source).unwrap();
            let (len, source) = receive(client, &mut buffer);
            assert_eq!((&buffer[..len], source), (payload.as_slice(), server.local_addr().unwrap()));
        }
    }
}

/// A TCP connection that carries a known pattern in both directions at once.
fn transfer(from: &Host, to: &Host) {
    let listener = inside(&to.namespace, || TcpListener::bind((to.inner(), 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let client = inside(&from.namespace, || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    let (server, _) = listener.accept().unwrap();
    let pattern: Vec<u8> = (0..TRANSFER).map(|number| (number.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    std::thread::scope(|scope| {
        for stream in [client, server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut sender = stream.try_clone().unwrap();
            let mut receiver = stream;
            let pattern = &pattern;
            scope.spawn(move || sender.write_all(pattern).unwrap());
            scope.spawn(move || {
                let mut received = vec![0; TRANSFER];
                receiver.read_exact(&mut received).unwrap();
                assert!(received == *pattern);
            });
        }
    });
}

/// Everything passes, and nothing is dropped but what the kernel sends of its own accord (router solicitations).
fn carries(configs: &[Config; 2], outer: [&str; 2]) {
    let hosts = tunnel(configs, outer);
    echo(&hosts[0], &hosts[1]);
    echo(&hosts[1], &hosts[0]);
    transfer(&hosts[0], &hosts[1]);
    for host in &hosts {
        let drops: Vec<_> = all_drops(&host.handle).into_iter().filter(|(_, name, _)| *name != "no_route").collect();
        assert_eq!(drops, []);
    }
    hosts.into_iter().for_each(Host::stop);
}

#[test]
fn one_worker_at_each_end() {
    let one = config(1, TunBackend::Offload);
    carries(&[one.clone(), one], ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn two_workers_at_each_end() {
    // The SA belongs to worker 1, so what the TUN gives to worker 0 strays.
    let two = config(2, TunBackend::Offload);
    carries(&[two.clone(), two], ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn four_pinned_workers_against_one() {
    let four = Config { pin: true, ..config(4, TunBackend::Offload) };
    carries(&[four, config(1, TunBackend::Offload)], ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn without_offloads_at_one_end_or_both() {
    let on = config(1, TunBackend::Offload);
    let off = Config { tun_offload: false, ..on.clone() };
    carries(&[on, off.clone()], ["192.0.2.1", "192.0.2.2"]);
    carries(&[off.clone(), off], ["192.0.2.1", "192.0.2.2"]);
}

#[cfg(feature = "tun-tap")]
#[test]
fn the_plain_backend_against_the_native_one() {
    carries(&[config(1, TunBackend::Plain), config(2, TunBackend::Offload)], ["192.0.2.1", "192.0.2.2"]);
}

#[cfg(feature = "tun-tap")]
#[test]
fn the_plain_backend_at_each_end() {
    let plain = config(1, TunBackend::Plain);
    carries(&[plain.clone(), plain], ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn over_ipv6() {
    let any = Config { listen: std::net::Ipv6Addr::UNSPECIFIED.into(), ..config(2, TunBackend::Offload) };
    carries(&[any.clone(), any], ["2001:db8::1", "2001:db8::2"]);
}

#[test]
fn over_ipv4_on_dual_stack_sockets() {
    let any = Config { listen: std::net::Ipv6Addr::UNSPECIFIED.into(), ..config(2, TunBackend::Offload) };
    carries(&[any, config(1, TunBackend::Offload)], ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn fragments_of_the_kernels_pass() {
    let one = config(1, TunBackend::Offload);
    let hosts = tunnel(&[one.clone(), one], ["192.0.2.1", "192.0.2.2"]);
    let (client, server) = (socket(&hosts[0]), socket(&hosts[1]));
    // The first may be refused: only then does the socket know the route's MTU.
    let payload = vec![7; 3000];
    client.send_to(&payload, server.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 4000];
    assert_eq!(receive(&server, &mut buffer).0, 3000);
    hosts.into_iter().for_each(Host::stop);
}
