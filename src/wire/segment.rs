//! Cutting super-packets: many TCP segments or UDP datagrams of one flow that the kernel hands over under one header (generic
//! segmentation offload), made into the packets that it would have sent.
//!
//! [`Split::parse`] checks a super-packet once and sums up what its packets share; [`Split::emit`] writes one of them, header
//! and checksums complete, straight to where it is sealed. The header that counts is found by parsing: what the kernel says
//! about its length is a hint that may cover more (a forwarded packet's whole linear part).

use super::checksum::{Sum, checksum};
use super::ip::{self, IpError, Packet, Trailing, Version};
use crate::model::Gso;

/// Octets of a UDP header.
const UDP_HEADER_LEN: usize = 8;

/// Octets of a TCP header without options.
const TCP_HEADER_LEN: usize = 20;

/// Where the sequence number stands in a TCP header.
const TCP_SEQUENCE: usize = 4;

/// Where its length in words stands, in the upper four bits; the flags stand behind it.
const TCP_DATA_OFFSET: usize = 12;

/// Where its flags stand.
const TCP_FLAGS: usize = 13;

/// Where its checksum stands.
pub const TCP_CHECKSUM: usize = 16;

/// Where the length stands in a UDP header.
const UDP_LENGTH: usize = 4;

/// Where its checksum stands.
pub const UDP_CHECKSUM: usize = 6;

/// Flags of the last segment only: the sender is done, the receiver shall hand over what it has (RFC 9293 §3.1).
const FIN_AND_PSH: u8 = 0x01 | 0x08;

/// The flag of the first segment only: one answer to one mark of congestion (RFC 3168 §6.1.2).
const CWR: u8 = 0x80;

/// Why octets are no super-packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SplitError {
    /// It is no packet at all.
    #[error(transparent)]
    Ip(#[from] IpError),
    /// It does not carry what was promised, or only a fragment of it.
    #[error("not a whole packet of the promised protocol")]
    Protocol,
    /// The upper layer's header does not fit into the packet.
    #[error("the upper layer's header is invalid")]
    Header,
}

/// A checked super-packet.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    packet: Packet<'a>,
    /// Octets of all headers.
    header_len: usize,
    /// Where the upper layer starts.
    upper: usize,
    /// Octets of payload per packet.
    size: usize,
    count: usize,
    is_tcp: bool,
    /// The sum over what all IPv4 headers have in common.
    ip_sum: Sum,
    /// The sum over what all pseudo-headers and upper headers have in common.
    upper_sum: Sum,
}

impl<'a> Split<'a> {
    /// Checks a super-packet; none if `gso` says that it is a single packet.
    ///
    /// # Errors
    /// If its headers are not what `gso` says.
    pub fn parse(octets: &'a [u8], gso: Gso) -> Result<Option<Self>, SplitError> {
        let (size, protocol) = match gso {
            Gso::None => return Ok(None),
            Gso::Tcp(size) => (size, ip::TCP),
            Gso::Udp(size) => (size, ip::UDP),
        };
        let packet = Packet::parse(octets, Trailing::Refused)?;
        if packet.protocol() != protocol || packet.is_fragment() {
            return Err(SplitError::Protocol);
        }
        let is_tcp = protocol == ip::TCP;
        let upper = packet.payload();
        let upper_len = match upper.get(TCP_DATA_OFFSET) {
            Some(octet) if is_tcp => usize::from(octet >> 4) * 4,
            None if is_tcp => return Err(SplitError::Header),
            _ => UDP_HEADER_LEN,
        };
        let shortest = if is_tcp { TCP_HEADER_LEN } else { UDP_HEADER_LEN };
        let payload = upper.len().checked_sub(upper_len).filter(|_| upper_len >= shortest).ok_or(SplitError::Header)?;
        let size = usize::from(size.get());
        let mut split = Self {
            packet,
            header_len: octets.len() - payload,
            upper: octets.len() - upper.len(),
            size,
            count: payload.div_ceil(size).max(1),
            is_tcp,
            ip_sum: Sum::default(),
            upper_sum: Sum::default(),
        };
        split.sum_up();
        Ok(Some(split))
    }

    /// Sums what no packet changes: in IPv4's header all but length, identification and checksum; of the rest all but
    /// sequence number, flags, length and checksum.
    fn sum_up(&mut self) {
        let octets = self.packet.octets();
        let (header, upper) = octets[..self.header_len].split_at(self.upper);
        let addresses = match self.packet.version() {
            Version::V4 => {
                self.ip_sum = Sum::default().with(&header[..2]).with(&header[6..10]).with(&header[12..]);
                &header[12..20]
            }
            // The last 32 octets of the fixed header. Routing headers would name another destination; Linux sends no
            // super-packets with them, and a sum over the wrong address fails at the receiver and nowhere else.
            Version::V6 => &header[8..40],
        };
        let sum =
            Sum::default().with_pseudo_header(addresses, if self.is_tcp { ip::TCP } else { ip::UDP }, 0).with(&upper[..4]);
        self.upper_sum = if self.is_tcp { sum.with(&upper[8..12]).with(&upper[14..16]).with(&upper[18..]) } else { sum };
    }

    /// The super-packet as a packet: what all packets have in common can be asked from it, and the payload cannot.
    #[must_use]
    pub const fn packet(&self) -> &Packet<'a> {
        &self.packet
    }

    /// How many packets it makes: at least one.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Octets of each packet but the last, which is not longer.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.packet.octets().len().min(self.header_len + self.size)
    }

    /// Octets of packet `index`; zero if there is none.
    #[must_use]
    pub fn len_of(&self, index: usize) -> usize {
        if index >= self.count {
            return 0;
        }
        self.packet.octets().len().min(self.header_len + (index + 1) * self.size) - index * self.size
    }

    /// Writes packet `index` into `space`, which is as long as [`len_of`](Self::len_of) says.
    ///
    /// # Panics
    /// If it is not, or if there is no such packet.
    pub fn emit(&self, index: usize, space: &mut [u8]) {
        let octets = self.packet.octets();
        let start = self.header_len + index * self.size;
        let payload = &octets[start..octets.len().min(start + self.size)];
        let (header, rest) = space.split_at_mut(self.header_len);
        // The only pass over the payload.
        let sum = self.upper_sum.with_copy(payload, rest);
        header.copy_from_slice(&octets[..self.header_len]);
        let len = self.header_len + payload.len();
        self.finish_ip(index, len, &mut header[..self.upper]);
        let upper_len = (len - self.upper) as u16;
        self.finish_upper(index, upper_len, sum, &mut header[self.upper..]);
    }

    /// Length, identification (one more per packet, RFC 6864 §4.2) and header checksum.
    fn finish_ip(&self, index: usize, len: usize, header: &mut [u8]) {
        match self.packet.version() {
            Version::V4 => {
                let len = len as u16;
                let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(index as u16);
                header[2..4].copy_from_slice(&len.to_be_bytes());
                header[4..6].copy_from_slice(&id.to_be_bytes());
                let sum = self.ip_sum.with_word(len).with_word(id).finish();
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Version::V6 => header[4..6].copy_from_slice(&((len - ip::IPV6_HEADER_LEN) as u16).to_be_bytes()),
        }
    }

    fn finish_upper(&self, index: usize, upper_len: u16, sum: Sum, header: &mut [u8]) {
        let sum = sum.with_word(upper_len);
        if !self.is_tcp {
            header[UDP_LENGTH..UDP_CHECKSUM].copy_from_slice(&upper_len.to_be_bytes());
            let sum = sum.with_word(upper_len);
            return header[UDP_CHECKSUM..].copy_from_slice(&udp_checksum(sum.finish()).to_be_bytes());
        }
        let sequence = header[TCP_SEQUENCE..].first_chunk().map_or(0, |&octets| u32::from_be_bytes(octets));
        let sequence = sequence.wrapping_add((index * self.size) as u32).to_be_bytes();
        header[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence);
        if index > 0 {
            header[TCP_FLAGS] &= !CWR;
        }
        if index + 1 < self.count {
            header[TCP_FLAGS] &= !FIN_AND_PSH;
        }
        let sum = sum.with(&sequence).with(&header[TCP_DATA_OFFSET..=TCP_FLAGS]).finish();
        header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 768: a computed zero travels as all ones, since zero says that there is no checksum.
const fn udp_checksum(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// Computes the checksum that the kernel left to us: over all from `start` on, whose field at `start + offset` holds the
/// pseudo-header's sum so far.
///
/// # Errors
/// If the field does not lie in the packet.
pub fn complete_checksum(packet: &mut [u8], start: u16, offset: u16) -> Result<(), SplitError> {
    let text = packet.get_mut(start.into()..).ok_or(SplitError::Header)?;
    let sum = checksum(text);
    let offset = usize::from(offset);
    let field = text.get_mut(offset..offset + 2).ok_or(SplitError::Header)?;
    // In TCP zero and all ones mean the same.
    field.copy_from_slice(&udp_checksum(sum).to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
