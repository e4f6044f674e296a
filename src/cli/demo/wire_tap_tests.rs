//! Frames made by hand, and real sockets on a real wire.

use std::net::UdpSocket;

use super::*;
use crate::sys::netlink::{Netlink, VethEnd};
use crate::sys::netns::Namespace;

const TEXT: &[u8] = b"a text to look for";

/// An IPv4 packet of this protocol on Ethernet.
fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame.extend_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend_from_slice(payload);
    frame
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for field in [source, destination, (8 + payload.len()) as u16, 0] {
        datagram.extend_from_slice(&field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    ipv4(17, &datagram)
}

/// An ESP packet of this length.
fn esp(sequence: u32, length: usize) -> Vec<u8> {
    let mut packet = 0xc000_0201u32.to_be_bytes().to_vec();
    packet.extend_from_slice(&sequence.to_be_bytes());
    // Not all equal, so that nothing looks like a header by accident.
    packet.extend((packet.len()..length).map(|at| (at * 7 % 251) as u8));
    packet
}

fn ike(exchange: u8, length: usize) -> Vec<u8> {
    let mut message = vec![1; length];
    message[17] = 0x20;
    message[18] = exchange;
    message[24..28].copy_from_slice(&(length as u32).to_be_bytes());
    message
}

fn with_marker(message: &[u8]) -> Vec<u8> {
    [&[0; 4], message].concat()
}

#[test]
fn ike_and_esp_are_told_apart_by_port_and_marker() {
    assert_eq!(classify(&udp(500, 500, &ike(34, 200))), Kind::Ike("IKE_SA_INIT"));
    assert_eq!(classify(&udp(4500, 4500, &with_marker(&ike(35, 200)))), Kind::Ike("IKE_AUTH"));
    assert_eq!(classify(&udp(4500, 4500, &with_marker(&ike(36, 60)))), Kind::Ike("CREATE_CHILD_SA"));
    assert_eq!(classify(&udp(4500, 4500, &with_marker(&ike(37, 60)))), Kind::Ike("INFORMATIONAL"));
    assert_eq!(classify(&udp(4500, 4500, &with_marker(&ike(43, 60)))), Kind::Ike("IKE_INTERMEDIATE"));
    assert_eq!(classify(&udp(4500, 4500, &with_marker(&ike(44, 60)))), Kind::Ike("IKE_FOLLOWUP_KE"));
    assert_eq!(classify(&udp(4500, 4500, &esp(1, 100))), Kind::Esp { packets: 1 });
    assert_eq!(classify(&udp(4500, 4500, &[0xff])), Kind::Keepalive);
}

#[test]
fn what_only_looks_like_it_is_something_else() {
    let no_marker = classify(&udp(500, 500, &with_marker(&ike(34, 200))));
    let wrong_length = classify(&udp(500, 500, &ike(34, 200)[..199]));
    let mut version_1 = ike(34, 200);
    version_1[17] = 0x10;
    let mut fragment = udp(4500, 4500, &esp(1, 100));
    fragment[20] = 0x20;
    let mut options = udp(4500, 4500, &esp(1, 100));
    options[14] = 0x46;
    for kind in [
        no_marker,
        wrong_length,
        classify(&udp(500, 500, &version_1)),
        classify(&udp(500, 500, &ike(33, 200))),
        classify(&udp(500, 500, &ike(38, 200))),
        classify(&udp(4500, 53, &esp(1, 100))),
        classify(&udp(53, 4500, &esp(1, 100))),
        classify(&udp(500, 4500, &with_marker(&ike(34, 200)))),
        classify(&udp(4500, 4500, &[0xfe])),
        classify(&udp(4500, 4500, &[0; 3])),
        classify(&fragment),
        classify(&options),
        classify(&ipv4(50, &esp(1, 100))),
        classify(&ipv4(1, &[8, 0, 0, 0])),
        classify(&[]),
        classify(&[0; 14]),
    ] {
        assert_eq!(kind, Kind::Other);
    }
}

#[test]
fn no_frame_cut_short_anywhere_is_too_short_to_be_looked_at() {
    let whole = [udp(4500, 4500, &with_marker(&ike(35, 60))), udp(4500, 4500, &esp(1, 60)), ipv4(1, &[3; 60])];
    for frame in whole {
        for length in 0..frame.len() {
            Sightings::default().add(&frame[..length], TEXT);
        }
    }
}

#[test]
fn neighbours_and_closed_ports_have_names() {
    let mut arp = vec![2; 12];
    arp.extend_from_slice(&[0x08, 0x06, 0, 1]);
    assert_eq!(classify(&arp), Kind::Neighbour);
    let ipv6 = |next: u8, rest: &[u8]| {
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, 255]);
        frame.extend_from_slice(&[1; 32]);
        frame.extend_from_slice(rest);
        classify(&frame)
    };
    assert_eq!(ipv6(58, &[135, 0]), Kind::Neighbour);
    assert_eq!(ipv6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0]), Kind::Neighbour);
    assert_eq!(ipv6(58, &[128, 0]), Kind::Other);
    assert_eq!(ipv6(17, &[135, 0]), Kind::Other);
    let unreachable = |code, port| {
        let quoted = udp(500, port, &ike(34, 200));
        classify(&ipv4(1, &[&[3, code, 0, 0, 0, 0, 0, 0], &quoted[ETHERNET..ETHERNET + 28]].concat()))
    };
    assert_eq!(unreachable(3, 500), Kind::PortClosed);
    assert_eq!(unreachable(3, 53), Kind::Other);
    assert_eq!(unreachable(1, 500), Kind::Other);
}

#[test]
fn a_train_is_as_many_packets_as_it_will_be_cut_into() {
    let stride = 1432;
    let mut train: Vec<u8> = (0..43).flat_map(|n| esp(100 + n, stride)).collect();
    train.extend(esp(143, 300));
    let mut frame = udp(4500, 4500, &train);
    frame.truncate(ESP_SNAP);
    assert_eq!(classify(&frame), Kind::Esp { packets: 44 });
    // Two packets that do not follow each other are no train.
    let strangers = [esp(1, 100), esp(3, 100)].concat();
    assert_eq!(classify(&udp(4500, 4500, &strangers)), Kind::Esp { packets: 1 });
}

/// Two namespaces joined by a wire, and a tap at the near end.
fn tapped_wire() -> (Namespace, Namespace, WireTap) {
    use std::os::fd::AsFd;
    let (near, far) = (Namespace::create().expect("needs root"), Namespace::create().expect("needs root"));
    let configure = |namespace: &Namespace, address: &str| {
        namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink.add_address("wire", address.parse().unwrap()).unwrap();
                netlink.set_up("wire").unwrap();
            })
            .unwrap();
    };
    near.run(|| {
        let end = VethEnd { name: "wire", namespace: None };
        Netlink::open().unwrap().create_veth(end, VethEnd { namespace: Some(far.as_fd()), ..end }).unwrap();
    })
    .unwrap();
    configure(&near, "192.0.2.1/24");
    configure(&far, "192.0.2.2/24");
    let index = near.run(|| Netlink::open().unwrap().link_index("wire").unwrap()).unwrap();
    let tap = near.run(|| WireTap::start(index, TEXT).unwrap()).unwrap();
    (near, far, tap)
}

#[test]
fn the_tap_sees_both_directions_and_reads_what_is_in_clear() {
    let (near, far, tap) = tapped_wire();
    let socket = |namespace: &Namespace, address: &str| namespace.run(|| UdpSocket::bind(address).unwrap()).unwrap();
    let (here, there) = (socket(&near, "192.0.2.1:4500"), socket(&far, "192.0.2.2:4500"));
    here.send_to(&esp(1, 100), "192.0.2.2:4500").unwrap();
    there.send_to(&esp(1, 200), "192.0.2.1:4500").unwrap();
    here.send_to(&with_marker(&ike(35, 60)), "192.0.2.2:4500").unwrap();
    there.send_to(&[0xff], "192.0.2.1:4500").unwrap();
    here.send_to(&[b"..", TEXT, b".."].concat(), "192.0.2.2:9").unwrap();
    let seen = tap.take().unwrap();
    assert_eq!((seen.esp, seen.ike.values().sum::<u64>(), seen.keepalives, seen.text_in_clear), (2, 1, 1, 2), "{seen:?}");
    // The datagram to port 9, and the ICMP error that it brings, text and all.
    assert_eq!((seen.other, seen.port_closed, seen.esp_missed, seen.other_missed), (2, 0, 0, 0), "{seen:?}");
    assert_eq!(seen.example.unwrap(), esp(1, 100));
    assert!(contains(&seen.strangers[0], TEXT));
    assert!(seen.neighbour >= 2, "ARP both ways");
    let again = tap.take().unwrap();
    assert_eq!((again.esp, again.other, again.text_in_clear), (0, 0, 0));
}

#[test]
fn every_frame_reaches_one_of_the_two_sockets() {
    // What one filter leaves to the other must arrive there: nothing may fall between them.
    let (near, _far, tap) = tapped_wire();
    tap.take().unwrap();
    let sender = near.run(|| UdpSocket::bind("192.0.2.1:4500").unwrap()).unwrap();
    let mut sent = 0;
    for length in 0..64 {
        for first in [0, 0xff] {
            sender.send_to(&vec![first; length], "192.0.2.2:4500").unwrap();
            sent += 1;
        }
    }
    let seen = tap.take().unwrap();
    // ICMP errors come back at a limited rate; the neighbour's answers are counted apart.
    let outbound = seen.esp + seen.ike.values().sum::<u64>() + seen.keepalives + seen.other;
    assert_eq!(outbound, sent, "{seen:?}");
}
