//! IPv4 and IPv6 packets (RFC 791, RFC 8200), looked at where they lie.
//!
//! [`Packet::parse`] checks every length once; after that no accessor can fail. What changes a packet in place
//! ([`set_traffic_class`]) keeps its header checksum right. [`fragment`] cuts what is too long for a path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{checksum, update};

/// Octets of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;

/// Octets of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;

/// Octets of an IPv4 header with as many options as fit.
pub const IPV4_MAX_HEADER_LEN: usize = 60;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;

/// Protocol number of TCP.
pub const TCP: u8 = 6;

/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Other protocols whose header starts with two ports: DCCP, SCTP, UDP-Lite.
const OTHER_WITH_PORTS: [u8; 3] = [33, 132, 136];

/// Extension headers in front of the upper layer: RFC 8200 §4.1 lists seven in their order, destination options twice
/// among them (our choice; a longer chain only hides what it carries).
const MAX_EXTENSION_HEADERS: usize = 8;

/// DF in the octet of IPv4 flags.
const DONT_FRAGMENT: u8 = 0x40;

/// MF in the octet of IPv4 flags.
const MORE_FRAGMENTS: u8 = 0x20;

/// Fragment offsets count in octets of eight.
const FRAGMENT_UNIT: usize = 8;

/// The longest IPv4 packet that fragments can make up.
const MAX_PACKET_LEN: usize = 65_535;

/// The offset of IPv4's traffic class octet; IPv6 has its own in the middle of its first two octets.
const IPV4_TOS: usize = 1;

/// The offset of the IPv4 header checksum.
const IPV4_CHECKSUM: usize = 10;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Why octets are no packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IpError {
    /// The first four bits are neither 4 nor 6, or there are none.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// The header does not fit into the packet, or is shorter than a header can be.
    #[error("the header length is invalid")]
    HeaderLength,
    /// The packet is longer than its octets, or shorter and nothing may follow it.
    #[error("the total length is invalid")]
    TotalLength,
    /// An extension header is truncated, or there are too many.
    #[error("the extension headers are invalid")]
    Extensions,
}

/// Whether octets may follow a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trailing {
    /// The packet fills the buffer.
    Refused,
    /// Octets that follow are not the packet's: traffic flow confidentiality padding (RFC 4303 §2.7).
    Ignored,
}

/// A packet whose lengths are right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// All of it and nothing else.
    octets: &'a [u8],
    version: Version,
    protocol: u8,
    /// Where the upper layer starts, in octets.
    upper: usize,
    /// Place of the payload in the unfragmented one, in octets.
    fragment_offset: u16,
    more_fragments: bool,
}

impl<'a> Packet<'a> {
    /// Checks a packet. Neither IPv4's header checksum nor the options are looked at.
    ///
    /// # Errors
    /// If its lengths contradict each other or the buffer.
    #[inline]
    pub fn parse(octets: &'a [u8], trailing: Trailing) -> Result<Self, IpError> {
        match octets.first().map(|first| first >> 4) {
            Some(4) => Self::parse_ipv4(octets, trailing),
            Some(6) => Self::parse_ipv6(octets, trailing),
            _ => Err(IpError::Version),
        }
    }

    fn parse_ipv4(octets: &'a [u8], trailing: Trailing) -> Result<Self, IpError> {
        let header = octets.first_chunk::<IPV4_HEADER_LEN>().ok_or(IpError::HeaderLength)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let octets = cut(octets, usize::from(u16::from_be_bytes([header[2], header[3]])), trailing)?;
        if header_len < IPV4_HEADER_LEN || header_len > octets.len() {
            return Err(IpError::HeaderLength);
        }
        let flags_and_offset = u16::from_be_bytes([header[6], header[7]]);
        Ok(Self {
            octets,
            version: Version::V4,
            protocol: header[9],
            upper: header_len,
            // Thirteen bits in units of eight are sixteen bits of octets.
            fragment_offset: flags_and_offset << 3,
            more_fragments: header[6] & MORE_FRAGMENTS != 0,
        })
    }

    fn parse_ipv6(octets: &'a [u8], trailing: Trailing) -> Result<Self, IpError> {
        let header = octets.first_chunk::<IPV6_HEADER_LEN>().ok_or(IpError::HeaderLength)?;
        let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let octets = cut(octets, IPV6_HEADER_LEN + payload_len, trailing)?;
        let mut packet = Self {
            octets,
            version: Version::V6,
            protocol: header[6],
            upper: IPV6_HEADER_LEN,
            fragment_offset: 0,
            more_fragments: false,
        };
        packet.skip_extensions()?;
        Ok(packet)
    }

    /// Walks to the upper layer's header, or to the data of a fragment that is not the first.
    fn skip_extensions(&mut self) -> Result<(), IpError> {
        for _ in 0..=MAX_EXTENSION_HEADERS {
            // RFC 8200 §4.2 to §4.6, RFC 6275, RFC 7401, RFC 5533: length in units of eight behind the first; RFC 4302: of four.
            let length_of = |octet: u8| match self.protocol {
                0 | 43 | 60 | 135 | 139 | 140 => Some((usize::from(octet) + 1) * 8),
                44 => Some(8),
                51 => Some((usize::from(octet) + 2) * 4),
                _ => None,
            };
            if length_of(0).is_none() {
                return Ok(());
            }
            let &[next, length, high, low] = self.octets[self.upper..].first_chunk::<4>().ok_or(IpError::Extensions)?;
            let is_fragment = self.protocol == 44;
            self.upper += length_of(length).unwrap_or_default();
            if self.upper > self.octets.len() {
                return Err(IpError::Extensions);
            }
            self.protocol = next;
            if is_fragment {
                self.fragment_offset = u16::from_be_bytes([high, low]) & !7;
                self.more_fragments = low & 1 != 0;
                if self.fragment_offset != 0 {
                    return Ok(());
                }
            }
        }
        Err(IpError::Extensions)
    }

    /// The packet's octets, without what followed it.
    #[must_use]
    pub const fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Its source.
    #[must_use]
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self.version {
            Version::V4 => Ipv4Addr::from(self.array::<4>(12)).into(),
            Version::V6 => Ipv6Addr::from(self.array::<16>(8)).into(),
        }
    }

    /// Its destination.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self.version {
            Version::V4 => Ipv4Addr::from(self.array::<4>(16)).into(),
            Version::V6 => Ipv6Addr::from(self.array::<16>(24)).into(),
        }
    }

    /// The upper layer's protocol, behind IPv6's extension headers; 59 if there is none.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// What the packet carries: the upper layer's header and data, or a piece of them.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.octets[self.upper..]
    }

    /// DSCP and ECN.
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        match self.version {
            Version::V4 => self.octets[IPV4_TOS],
            Version::V6 => self.octets[0] << 4 | self.octets[1] >> 4,
        }
    }

    /// The ECN bits, 0 to 3 (RFC 3168 §5).
    #[must_use]
    pub const fn ecn(&self) -> u8 {
        self.traffic_class() & 3
    }

    /// Whether nobody on the way may cut it: DF, and always for IPv6.
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        match self.version {
            Version::V4 => self.octets[6] & DONT_FRAGMENT != 0,
            Version::V6 => true,
        }
    }

    /// Where its payload stood before somebody cut it, in octets.
    #[must_use]
    pub const fn fragment_offset(&self) -> u16 {
        self.fragment_offset
    }

    /// Whether more fragments follow.
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.more_fragments
    }

    /// Whether it is a piece of a packet.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment_offset != 0 || self.more_fragments
    }

    /// Source and destination port as traffic selectors see them: for ICMP and ICMPv6 both are type and code (RFC 7296
    /// §3.13.1). None if the protocol has none, or if they are not in this fragment.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.fragment_offset != 0 {
            return None;
        }
        let upper = self.payload();
        match self.protocol {
            ICMP | ICMPV6 => upper.first_chunk::<2>().map(|&first| u16::from_be_bytes(first)).map(|both| (both, both)),
            protocol if matches!(protocol, TCP | UDP) || OTHER_WITH_PORTS.contains(&protocol) => upper
                .first_chunk::<4>()
                .map(|&[s0, s1, d0, d1]| (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))),
            _ => None,
        }
    }

    /// Whether the header checksum is right; IPv6 has none to be wrong.
    #[must_use]
    pub fn header_checksum_holds(&self) -> bool {
        self.version == Version::V6 || checksum(&self.octets[..self.upper]) == 0
    }

    /// Octets that `parse` found to be there.
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.octets[offset..].first_chunk().copied().unwrap_or([0; N])
    }
}

/// The first `length` octets.
fn cut(octets: &[u8], length: usize, trailing: Trailing) -> Result<&[u8], IpError> {
    match octets.get(..length) {
        Some(packet) if trailing == Trailing::Ignored || packet.len() == octets.len() => Ok(packet),
        _ => Err(IpError::TotalLength),
    }
}

/// Sets DSCP and ECN of a packet that [`Packet::parse`] accepted, and corrects its header checksum (RFC 1624). Octets that
/// cannot be such a packet stay as they are.
pub fn set_traffic_class(packet: &mut [u8], class: u8) {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER_LEN => {
            let old = u16::from_be_bytes([packet[0], packet[IPV4_TOS]]);
            packet[IPV4_TOS] = class;
            let new = u16::from_be_bytes([packet[0], class]);
            let sum = u16::from_be_bytes([packet[IPV4_CHECKSUM], packet[IPV4_CHECKSUM + 1]]);
            packet[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&update(sum, old, new).to_be_bytes());
        }
        Some(6) if packet.len() >= IPV6_HEADER_LEN => {
            packet[0] = packet[0] & 0xf0 | class >> 4;
            packet[1] = packet[1] & 0x0f | class << 4;
        }
        _ => {}
    }
}

/// Sets the ECN bits (0 to 3) and leaves DSCP as it is; see [`set_traffic_class`].
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    let class = match packet {
        [first, class, ..] if *first >> 4 == 4 => *class,
        [first, second, ..] => *first << 4 | *second >> 4,
        _ => return,
    };
    set_traffic_class(packet, class & !3 | ecn & 3);
}

/// Why a packet was not cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FragmentError {
    /// DF is set, or it is IPv6: its sender must be told instead.
    #[error("the packet must not be fragmented")]
    Forbidden,
    /// Not even a header and eight octets fit.
    #[error("the MTU leaves no room for a fragment")]
    Mtu,
    /// Its last octet would lie behind the longest packet that there is.
    #[error("the fragment lies beyond 65535 octets")]
    Offset,
    /// `buffer` is shorter than the MTU.
    #[error("the buffer is too short")]
    Buffer,
}

/// Cuts a packet into fragments of at most `mtu` octets (RFC 791 §3.2), builds each in `buffer` and hands it to `sink`, in order.
/// A packet that fits is handed over as it is. Fragments may be cut again.
///
/// # Errors
/// If the packet must not or cannot be cut; `sink` was not called then.
pub fn fragment(
    packet: &Packet<'_>,
    mtu: usize,
    buffer: &mut [u8],
    mut sink: impl FnMut(&[u8]),
) -> Result<(), FragmentError> {
    if packet.octets.len() <= mtu {
        sink(packet.octets);
        return Ok(());
    }
    if packet.dont_fragment() {
        return Err(FragmentError::Forbidden);
    }
    let (header, payload) = packet.octets.split_at(packet.upper);
    let mut later = [0; IPV4_MAX_HEADER_LEN];
    let later = copied_header(header, &mut later);
    // `later` is never longer than `header`, so what holds for the first fragment holds for all.
    if mtu < header.len() + FRAGMENT_UNIT {
        return Err(FragmentError::Mtu);
    }
    let first_offset = usize::from(packet.fragment_offset);
    if header.len() + first_offset + payload.len() > MAX_PACKET_LEN {
        return Err(FragmentError::Offset);
    }
    let buffer = buffer.get_mut(..mtu).ok_or(FragmentError::Buffer)?;

    let mut done = 0;
    while done < payload.len() {
        let header = if done == 0 { header } else { later };
        let left = payload.len() - done;
        let room = mtu - header.len();
        let taken = if left <= room { left } else { room - room % FRAGMENT_UNIT };
        let is_last = taken == left;

        let fragment = &mut buffer[..header.len() + taken];
        fragment[..header.len()].copy_from_slice(header);
        fragment[header.len()..].copy_from_slice(&payload[done..done + taken]);
        finish_header(fragment, header.len(), first_offset + done, !is_last || packet.more_fragments);
        sink(fragment);
        done += taken;
    }
    Ok(())
}

/// Sets the fields in which a fragment's header differs from its packet's: length, MF, offset and checksum.
fn finish_header(fragment: &mut [u8], header_len: usize, offset: usize, more_fragments: bool) {
    // Both were checked against MAX_PACKET_LEN.
    let units = (offset / FRAGMENT_UNIT) as u16;
    let flags = if more_fragments { u16::from(MORE_FRAGMENTS) << 8 } else { 0 };
    let length = fragment.len() as u16;
    fragment[2..4].copy_from_slice(&length.to_be_bytes());
    fragment[6..8].copy_from_slice(&(flags | units).to_be_bytes());
    fragment[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].fill(0);
    let sum = checksum(&fragment[..header_len]);
    fragment[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The header of the second and later fragments: only options whose copied flag is set (RFC 791 §3.1), up to the first
/// malformed one, padded to a multiple of four with end-of-options octets.
fn copied_header<'a>(header: &[u8], out: &'a mut [u8; IPV4_MAX_HEADER_LEN]) -> &'a [u8] {
    let (fixed, mut options) = header.split_at(IPV4_HEADER_LEN);
    out[..IPV4_HEADER_LEN].copy_from_slice(fixed);
    let mut length = IPV4_HEADER_LEN;
    while let &[kind, ref rest @ ..] = options {
        let option_len = match (kind, rest.first()) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(&option_len)) if (2..=options.len()).contains(&usize::from(option_len)) => usize::from(option_len),
            _ => break,
        };
        let (option, behind) = options.split_at(option_len);
        if kind & 0x80 != 0 {
            out[length..length + option_len].copy_from_slice(option);
            length += option_len;
        }
        options = behind;
    }
    let padded = length.next_multiple_of(4);
    out[length..padded].fill(0);
    out[0] = 0x40 | (padded / 4) as u8;
    &out[..padded]
}

#[cfg(test)]
mod tests;
