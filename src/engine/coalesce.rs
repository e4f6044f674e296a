//! Joining inner packets on their way in: neighbours of one flow become one super-packet, which the host's stack takes in one
//! piece.
//!
//! Only what can be cut again into the very same packets is joined (but for IPv4's identification, which means nothing under
//! DF: RFC 6864 §4.1): equal headers, exactly adjacent octets, equal lengths with a shorter last. Packets of one flow never
//! overtake each other, those of different flows may. A super-packet ends with the batch of datagrams that its packets came
//! in: nothing waits for company that may not come.
//!
//! What is joined gets a new checksum from the kernel. So every checksum is verified first: a packet that was damaged before
//! it entered the tunnel must not come out of it with a right one.

use std::num::NonZeroU16;

use crate::model::Gso;
use crate::sys::tun::Offloads;
use crate::wire::checksum::{Sum, checksum};
use crate::wire::ip;
use crate::wire::segment::{TCP_CHECKSUM, UDP_CHECKSUM};

/// Flows that are joined at the same time. Two that fall into one slot only send each other off early.
const SLOTS: usize = 64;

/// Packets per super-packet, of TCP: 64 KiB at the smallest MSS in use (536) make 122.
const MAX_TCP: usize = 128;

/// The same of UDP: UDP_MAX_SEGMENTS of kernels before 6.9, which refuse more.
const MAX_UDP: usize = 64;

/// Packets per super-packet at most.
pub(super) const MAX_PACKETS: usize = MAX_TCP;

/// The longest super-packet: its length stands in 16 bits.
const MAX_LEN: usize = 65_535;

/// The longest headers that are joined: IPv6, and TCP with all its options.
const MAX_HEADER: usize = 40 + 60;

/// Ports under which UDP carries other packets. Who takes those apart expects one per datagram, and loses what is joined: two
/// VXLAN frames under one UDP header are one frame with rubbish behind it. L2TP, GTP-U, IPsec, VXLAN and its generic extension,
/// GUE, Geneve, Linux's old VXLAN.
const TUNNEL_PORTS: [u16; 9] = [1701, 2152, 500, 4500, 4789, 4790, 6080, 6081, 8472];

/// TCP's flag ACK, which all but the first segment of a connection have.
const ACK: u8 = 0x10;

/// TCP's flag PSH: the last of a run may have it.
const PSH: u8 = 0x08;

/// TCP's flag ECE, which a receiver repeats until its peer has answered: equal over a run, or no run.
const ECE: u8 = 0x40;

/// IPv4's second flags octet with DF and nothing else.
const ONLY_DF: [u8; 2] = [0x40, 0];

/// What takes the packets.
pub(super) trait Sink {
    /// A packet as it came.
    fn packet(&mut self, packet: &[u8]);

    /// Packets of one flow, joined.
    fn super_packet(&mut self, joined: &Joined<'_>);
}

/// A super-packet in pieces.
pub(super) struct Joined<'a> {
    /// Of what kind.
    pub(super) gso: Gso,
    /// Whether it is IPv4.
    pub(super) ipv4: bool,
    /// Where the upper layer starts.
    pub(super) upper: u16,
    /// Where the field of its checksum stands, from there on.
    pub(super) field: u16,
    /// All headers.
    pub(super) header: &'a [u8],
    /// Start and length of each packet's payload in the buffer; its own headers stand in front of it.
    pub(super) payloads: &'a [(u32, u32)],
}

/// A packet that may be joined with others.
struct Candidate {
    is_tcp: bool,
    upper: usize,
    header_len: usize,
    /// Whether nothing may follow.
    is_last: bool,
}

/// A run of packets.
struct Slot {
    is_tcp: bool,
    upper: usize,
    header_len: usize,
    header: [u8; MAX_HEADER],
    payloads: Vec<(u32, u32)>,
    /// Octets of payload of each but the last.
    size: usize,
    /// Octets of payload in all.
    total: usize,
    /// The sequence number that the next must have.
    next: u32,
    is_closed: bool,
}

/// The flows of one batch.
pub(super) struct Coalescer {
    slots: Box<[Slot]>,
    /// Which slots hold something.
    used: u64,
    /// What the host's stack takes.
    offloads: Offloads,
}

impl Coalescer {
    pub(super) fn new(offloads: Offloads) -> Self {
        let slot = || Slot {
            is_tcp: false,
            upper: 0,
            header_len: 0,
            header: [0; MAX_HEADER],
            payloads: Vec::with_capacity(MAX_TCP),
            size: 0,
            total: 0,
            next: 0,
            is_closed: false,
        };
        Self { slots: (0..SLOTS).map(|_| slot()).collect(), used: 0, offloads }
    }

    /// What is joined.
    #[cfg(test)]
    pub(super) const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Joins only that from now on.
    pub(super) const fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    /// Takes the packet that lies in `buffer` from `start` on. The buffer must stay as it is until the next flush.
    pub(super) fn push(&mut self, buffer: &[u8], start: u32, len: u32, sink: &mut impl Sink) {
        let packet = &buffer[start as usize..(start + len) as usize];
        let Some(number) = slot_of(packet) else {
            // A fragment belongs to a flow that it does not tell.
            if is_piece(packet) {
                self.flush(buffer, sink);
            }
            return sink.packet(packet);
        };
        let Some(candidate) = self.candidate(packet) else {
            self.flush_slot(number, buffer, sink);
            return sink.packet(packet);
        };
        let payload = (start + candidate.header_len as u32, len - candidate.header_len as u32);
        if !self.slots[number].accepts(packet, &candidate) {
            self.flush_slot(number, buffer, sink);
            self.slots[number].open(packet, &candidate);
            self.used |= 1 << number;
        }
        self.slots[number].append(packet, payload, &candidate);
    }

    /// Hands over what is left of the batch.
    pub(super) fn flush(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        while self.used != 0 {
            self.flush_slot(self.used.trailing_zeros() as usize, buffer, sink);
        }
    }

    fn flush_slot(&mut self, number: usize, buffer: &[u8], sink: &mut impl Sink) {
        if self.used & 1 << number != 0 {
            self.used &= !(1 << number);
            let slot = &mut self.slots[number];
            slot.hand_over(buffer, sink);
            slot.payloads.clear();
        }
    }

    /// Whether a packet of a flow can be joined at all, by itself.
    fn candidate(&self, packet: &[u8]) -> Option<Candidate> {
        let (upper, protocol) = upper_of(packet)?;
        let header = &packet[..upper];
        if upper == ip::IPV4_HEADER_LEN && (header[6..8] != ONLY_DF || checksum(header) != 0) {
            return None;
        }
        let text = &packet[upper..];
        let is_tcp = protocol == ip::TCP;
        let (header_len, is_last) = if is_tcp { whole_tcp(text)? } else { whole_udp(text)? };
        let wanted = if is_tcp { self.offloads.tcp } else { self.offloads.udp };
        let addresses = if upper == ip::IPV4_HEADER_LEN { &header[12..] } else { &header[8..] };
        let sum = Sum::default().with_pseudo_header(addresses, protocol, text.len() as u32);
        let holds = || sum.with(text).finish() == 0;
        (wanted && holds()).then_some(Candidate { is_tcp, upper, header_len: upper + header_len, is_last })
    }
}

/// Where TCP or UDP starts in an IPv4 packet without options or an IPv6 packet without extensions, neither of them a fragment.
fn upper_of(packet: &[u8]) -> Option<(usize, u8)> {
    let (upper, protocol) = match packet.first()? {
        0x45 if packet.len() >= ip::IPV4_HEADER_LEN && !is_piece(packet) => (ip::IPV4_HEADER_LEN, packet[9]),
        first if first >> 4 == 6 && packet.len() >= ip::IPV6_HEADER_LEN => (ip::IPV6_HEADER_LEN, packet[6]),
        _ => return None,
    };
    matches!(protocol, ip::TCP | ip::UDP).then_some((upper, protocol))
}

/// Whether it is a fragment, or may be one.
fn is_piece(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(6..8).is_none_or(|octets| octets[0] & 0x3f != 0 || octets[1] != 0),
        // Behind an extension header there may be anything.
        _ => !packet.get(6).is_some_and(|protocol| [ip::TCP, ip::UDP, ip::ICMPV6].contains(protocol)),
    }
}

/// The slot of a packet's flow; none if it tells no ports.
fn slot_of(packet: &[u8]) -> Option<usize> {
    let (upper, _) = upper_of(packet)?;
    let ports = packet[upper..].first_chunk::<4>().map(|&octets| u32::from_ne_bytes(octets))?;
    // The last octets of both addresses: what differs within an overlay.
    let word = |at: usize| packet[at..].first_chunk::<4>().map_or(0, |&octets| u32::from_ne_bytes(octets));
    let (source, destination) = if upper == ip::IPV4_HEADER_LEN { (word(12), word(16)) } else { (word(20), word(36)) };
    let mixed = u64::from(ports ^ source.rotate_left(7) ^ destination.rotate_left(19)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some((mixed >> (u64::BITS - SLOTS.ilog2())) as usize)
}

/// The header's length, and whether the segment ends its run. None for what changes more than the sequence number: the ends of
/// a connection, urgent data, answers to congestion, and segments without data.
fn whole_tcp(text: &[u8]) -> Option<(usize, bool)> {
    let &[offset, flags] = text.get(12..14)?.first_chunk()?;
    let header_len = usize::from(offset >> 4) * 4;
    let fits = header_len >= 20 && header_len < text.len();
    (fits && flags & !(PSH | ECE) == ACK).then_some((header_len, flags & PSH != 0))
}

/// The same of a datagram: one with a checksum and data that is no tunnel's.
fn whole_udp(text: &[u8]) -> Option<(usize, bool)> {
    let word = |at: usize| text.get(at..at + 2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]));
    let is_tunnel = TUNNEL_PORTS.contains(&word(0)?) || TUNNEL_PORTS.contains(&word(2)?);
    let is_whole = usize::from(word(4)?) == text.len() && text.len() > 8 && word(6)? != 0;
    (is_whole && !is_tunnel).then_some((8, false))
}

impl Slot {
    /// Begins a run with the headers of its first packet.
    fn open(&mut self, packet: &[u8], candidate: &Candidate) {
        self.is_tcp = candidate.is_tcp;
        self.upper = candidate.upper;
        self.header_len = candidate.header_len;
        self.header[..candidate.header_len].copy_from_slice(&packet[..candidate.header_len]);
        self.size = packet.len() - candidate.header_len;
        self.total = 0;
        self.is_closed = false;
    }

    fn append(&mut self, packet: &[u8], payload: (u32, u32), candidate: &Candidate) {
        let len = payload.1 as usize;
        self.payloads.push(payload);
        self.total += len;
        self.is_closed = candidate.is_last || len < self.size;
        if candidate.is_tcp {
            self.next = sequence(&packet[candidate.upper..]).wrapping_add(payload.1);
            // What the last has, the cut gives back to the last.
            self.header[candidate.upper + 13] |= packet[candidate.upper + 13] & PSH;
        }
    }

    /// Whether the packet continues the run.
    fn accepts(&self, packet: &[u8], candidate: &Candidate) -> bool {
        let len = packet.len() - candidate.header_len;
        let max = if self.is_tcp { MAX_TCP } else { MAX_UDP };
        !self.payloads.is_empty()
            && !self.is_closed
            && (self.is_tcp, self.header_len, self.upper) == (candidate.is_tcp, candidate.header_len, candidate.upper)
            && self.payloads.len() < max
            && len <= self.size
            && self.header_len + self.total + len <= MAX_LEN
            && self.same_ip(packet)
            && self.same_upper(&packet[self.upper..self.header_len])
    }

    /// Equal but for length, identification and checksum: traffic class with ECN, TTL, addresses, flow label.
    fn same_ip(&self, packet: &[u8]) -> bool {
        let ours = &self.header;
        if self.upper == ip::IPV4_HEADER_LEN {
            ours[..2] == packet[..2] && ours[6..10] == packet[6..10] && ours[12..20] == packet[12..20]
        } else {
            ours[..4] == packet[..4] && ours[6..40] == packet[6..40]
        }
    }

    /// Equal ports; of TCP also everything but sequence number, PSH and checksum, with all options (timestamps), and the
    /// next octets in a row.
    fn same_upper(&self, header: &[u8]) -> bool {
        let ours = &self.header[self.upper..self.header_len];
        if !self.is_tcp {
            return ours[..4] == header[..4];
        }
        sequence(header) == self.next
            && ours[..4] == header[..4]
            && ours[8..13] == header[8..13]
            && (ours[13] ^ header[13]) & !PSH == 0
            && ours[14..16] == header[14..16]
            && ours[18..] == header[18..]
    }

    fn hand_over(&mut self, buffer: &[u8], sink: &mut impl Sink) {
        if let &[(start, len)] = self.payloads.as_slice() {
            return sink.packet(&buffer[start as usize - self.header_len..(start + len) as usize]);
        }
        // Not longer than MAX_LEN, and never empty.
        let len = (self.header_len + self.total) as u16;
        let Some(size) = NonZeroU16::new(self.size as u16) else { return };
        let (header, upper) = self.header[..self.header_len].split_at_mut(self.upper);
        let ipv4 = self.upper == ip::IPV4_HEADER_LEN;
        if ipv4 {
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&(len - ip::IPV6_HEADER_LEN as u16).to_be_bytes());
        }
        let (protocol, field) = if self.is_tcp { (ip::TCP, TCP_CHECKSUM) } else { (ip::UDP, UDP_CHECKSUM) };
        let addresses = if ipv4 { &header[12..] } else { &header[8..] };
        let upper_len = len - self.upper as u16;
        if !self.is_tcp {
            upper[4..6].copy_from_slice(&upper_len.to_be_bytes());
        }
        let sum = Sum::default().with_pseudo_header(addresses, protocol, upper_len.into()).fold();
        upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        sink.super_packet(&Joined {
            gso: if self.is_tcp { Gso::Tcp(size) } else { Gso::Udp(size) },
            ipv4,
            upper: self.upper as u16,
            field: field as u16,
            header: &self.header[..self.header_len],
            payloads: &self.payloads,
        });
    }
}

/// TCP's sequence number.
fn sequence(header: &[u8]) -> u32 {
    header.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |&octets| u32::from_be_bytes(octets))
}

#[cfg(test)]
mod tests;
