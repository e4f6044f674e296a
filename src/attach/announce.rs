//! Telling the link who has an address: gratuitous ARP.

use std::net::Ipv4Addr;

use super::HardwareAddress;

/// An ARP announcement (RFC 5227 §3): a request for the address that it comes from.
pub(super) fn announcement(mac: HardwareAddress, address: Ipv4Addr) -> [u8; 42] {
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
