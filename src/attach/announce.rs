//! Telling the link who has an address: neighbours that knew it by another link-layer address learn of it at once, and who missed it
//! finds out by asking.
//!
//! The kernel does so for an interface of ours: it announces all of its addresses when it is given its link-layer address, the same one
//! again if need be. A packet socket would do as well, but to close one takes the kernel up to 40 ms. It is for interfaces of somebody
//! else's, whose settings are none of our business.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::HardwareAddress;
use crate::sys::packet::PacketSocket;

/// Makes the kernel announce the addresses of an interface of the calling thread's namespace from now on, whenever its link-layer address
/// is set. Whether it will.
pub(super) fn by_kernel(link: &str, addresses: &[IpNet]) -> bool {
    let families = [(false, "ipv4", "arp_notify"), (true, "ipv6", "ndisc_notify")];
    let has = |ipv6: bool| addresses.iter().any(|address| address.addr().is_ipv6() == ipv6);
    let told = |family: &str, key: &str| fs::write(format!("/proc/sys/net/{family}/conf/{link}/{key}"), "1").is_ok();
    families.into_iter().filter(|(ipv6, ..)| has(*ipv6)).all(|(_, family, key)| told(family, key))
}

/// Announces IPv4 addresses by an interface of the calling thread's namespace.
pub(super) fn by_socket(link_index: u32, mac: HardwareAddress, addresses: &[IpNet]) {
    for address in addresses {
        if let IpAddr::V4(address) = address.addr() {
            let _ = PacketSocket::send_frame(link_index, &announcement(mac, address));
        }
    }
}

/// An ARP announcement (RFC 5227 §3): a request for the address that it comes from.
fn announcement(mac: HardwareAddress, address: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    let (ethernet, arp) = frame.split_at_mut(14);
    ethernet[..6].copy_from_slice(&[0xff; 6]);
    ethernet[6..12].copy_from_slice(&mac);
    ethernet[12..].copy_from_slice(&[0x08, 0x06]);
    // RFC 826: Ethernet (1), IPv4 (0x0800), lengths 6 and 4, request (1); then sender and target.
    arp[..8].copy_from_slice(&[0, 1, 0x08, 0, 6, 4, 0, 1]);
    arp[8..14].copy_from_slice(&mac);
    arp[14..18].copy_from_slice(&address.octets());
    arp[24..28].copy_from_slice(&address.octets());
    frame
}
