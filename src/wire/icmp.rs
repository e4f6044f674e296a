//! Telling a sender that its packet is too big (RFC 1191 §4, RFC 4443 §3.2), as whole packets in the caller's buffer.
//!
//! The rules of when not to: RFC 1812 §4.3.2.7 and RFC 4443 §2.4(e). Packet Too Big may answer multicast too (RFC 4443 §3.2);
//! we do not, as the overlay carries none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, checksum};
use super::ip::{ICMP, ICMPV6, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Packet, Version};

/// The longest answer: RFC 4443 §3.2 quotes as much as fits the smallest MTU of IPv6.
pub const MAX_ANSWER_LEN: usize = IPV6_MAX_ANSWER_LEN;

/// The longest answer to IPv4 (RFC 1812 §4.3.2.3).
const IPV4_MAX_ANSWER_LEN: usize = 576;

/// The longest answer to IPv6 (RFC 4443 §2.4(c)).
const IPV6_MAX_ANSWER_LEN: usize = 1280;

/// Octets of the ICMP header of both answers: type, code, checksum and what holds the MTU.
const ICMP_HEADER_LEN: usize = 8;

/// Destination Unreachable, fragmentation needed and DF set (RFC 792, RFC 1191).
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];

/// Packet Too Big (RFC 4443 §3.2).
const PACKET_TOO_BIG: [u8; 2] = [2, 0];

/// Errors among ICMP's types: destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122
/// §3.2.2).
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// ICMPv6 types below this are errors (RFC 4443 §2.1).
const FIRST_ICMPV6_QUERY: u8 = 128;

/// ICMPv6 Redirect, which is not answered either (RFC 4443 §2.4(e.2)).
const ICMPV6_REDIRECT: u8 = 137;

/// Internetwork control, as routers send ICMP errors with (RFC 1812 §4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;

/// Hops that an answer may take.
const TTL: u8 = 64;

/// Writes the answer to `packet`, which needs an MTU of more than `mtu` octets, into `buffer`. It comes from `from`, an
/// address of the packet's family, and goes to the packet's source. Returns the answer's length, or none if the packet must not
/// be answered or the buffer is shorter than the answer ([`MAX_ANSWER_LEN`] always suffices).
pub fn too_big(packet: &Packet<'_>, mtu: u16, from: IpAddr, buffer: &mut [u8]) -> Option<usize> {
    if !may_be_answered(packet) {
        return None;
    }
    match (from, packet.source()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => fragmentation_needed(packet.octets(), mtu, from, to, buffer),
        (IpAddr::V6(from), IpAddr::V6(to)) => packet_too_big(packet.octets(), mtu, from, to, buffer),
        _ => None,
    }
}

/// Whether an error may be sent in answer to this packet: to one sender, about one receiver, and never about an error.
fn may_be_answered(packet: &Packet<'_>) -> bool {
    let one_node = match packet.source() {
        // 240.0.0.0/4 is reserved and holds the limited broadcast address.
        IpAddr::V4(source) => !source.is_unspecified() && !source.is_loopback() && source.octets()[0] < 224,
        IpAddr::V6(source) => !source.is_unspecified() && !source.is_loopback() && !source.is_multicast(),
    };
    let unicast = match packet.destination() {
        IpAddr::V4(destination) => !destination.is_multicast() && !destination.is_broadcast(),
        IpAddr::V6(destination) => !destination.is_multicast(),
    };
    let kind = packet.payload().first().copied();
    let first = packet.fragment_offset() == 0;
    let no_error = match (packet.version(), packet.protocol()) {
        // Later fragments are never answered in IPv4.
        (Version::V4, _) if !first => false,
        (Version::V4, ICMP) => kind.is_some_and(|kind| !ICMP_ERRORS.contains(&kind)),
        // In IPv6 they are, as only their sender can cut them shorter; but of ICMPv6 nobody sees whether it is an error.
        (Version::V6, ICMPV6) => first && kind.is_some_and(|kind| kind >= FIRST_ICMPV6_QUERY && kind != ICMPV6_REDIRECT),
        _ => true,
    };
    one_node && unicast && no_error
}

fn fragmentation_needed(quoted: &[u8], mtu: u16, from: Ipv4Addr, to: Ipv4Addr, buffer: &mut [u8]) -> Option<usize> {
    let quoted = &quoted[..quoted.len().min(IPV4_MAX_ANSWER_LEN - IPV4_HEADER_LEN - ICMP_HEADER_LEN)];
    let length = IPV4_HEADER_LEN + ICMP_HEADER_LEN + quoted.len();
    let (header, message) = buffer.get_mut(..length)?.split_at_mut(IPV4_HEADER_LEN);

    let [length_high, length_low] = (length as u16).to_be_bytes();
    // DF is set and the answer is whole, so its identification says nothing (RFC 6864 §4.1).
    header[..12].copy_from_slice(&[0x45, TRAFFIC_CLASS, length_high, length_low, 0, 0, 0x40, 0, TTL, ICMP, 0, 0]);
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());

    emit_message(message, FRAGMENTATION_NEEDED, mtu, quoted);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(length)
}

fn packet_too_big(quoted: &[u8], mtu: u16, from: Ipv6Addr, to: Ipv6Addr, buffer: &mut [u8]) -> Option<usize> {
    let quoted = &quoted[..quoted.len().min(IPV6_MAX_ANSWER_LEN - IPV6_HEADER_LEN - ICMP_HEADER_LEN)];
    let message_len = ICMP_HEADER_LEN + quoted.len();
    let length = IPV6_HEADER_LEN + message_len;
    let (header, message) = buffer.get_mut(..length)?.split_at_mut(IPV6_HEADER_LEN);

    let [length_high, length_low] = (message_len as u16).to_be_bytes();
    let first = [0x60 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4, 0, 0, length_high, length_low, ICMPV6, TTL];
    header[..8].copy_from_slice(&first);
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());

    emit_message(message, PACKET_TOO_BIG, mtu, quoted);
    let pseudo_header = Sum::default().with_pseudo_header(&header[8..], ICMPV6, message_len as u32);
    let sum = pseudo_header.with(message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(length)
}

/// Type, code, zero for the checksum, the MTU in the low half of the second word (both families have it there), the quote.
fn emit_message(message: &mut [u8], type_and_code: [u8; 2], mtu: u16, quoted: &[u8]) {
    let (header, body) = message.split_at_mut(ICMP_HEADER_LEN);
    header.fill(0);
    header[..2].copy_from_slice(&type_and_code);
    header[6..].copy_from_slice(&mtu.to_be_bytes());
    body.copy_from_slice(quoted);
}

#[cfg(test)]
mod tests;
