//! Control messages (`cmsg(3)`) that travel beside a datagram, written and read as octets, without unsafe code.
//!
//! Each is a header (length, level, type), then its data, then padding to the header's alignment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::map_to_ipv6;

/// Octets of `struct cmsghdr`: a size and two ints.
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// What a header and data are padded to.
const ALIGNMENT: usize = size_of::<usize>();

/// Room for every message that a socket of ours gets or sends: IPV6_PKTINFO (40 octets with its header), IPV6_TCLASS, IP_TOS,
/// UDP_GRO or UDP_SEGMENT, SO_RXQ_OVFL (24 each), and some to spare.
pub(super) const CONTROL_LEN: usize = 192;

/// A buffer of control messages, aligned as the kernel wants it.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub(super) struct ControlBuffer(pub(super) [u8; CONTROL_LEN]);

impl ControlBuffer {
    /// All zeroes.
    pub(super) const EMPTY: Self = Self([0; CONTROL_LEN]);
}

/// Writes messages one behind the other.
pub(super) struct Writer<'a> {
    buffer: &'a mut [u8; CONTROL_LEN],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) const fn new(buffer: &'a mut ControlBuffer) -> Self {
        Self { buffer: &mut buffer.0, len: 0 }
    }

    /// Octets written.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn message(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let end = self.len + (HEADER_LEN + data.len()).next_multiple_of(ALIGNMENT);
        let place = &mut self.buffer[self.len..end];
        place.fill(0);
        let (size, ints) = place.split_at_mut(size_of::<usize>());
        size.copy_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        ints[..4].copy_from_slice(&level.to_ne_bytes());
        ints[4..8].copy_from_slice(&kind.to_ne_bytes());
        ints[8..8 + data.len()].copy_from_slice(data);
        self.len = end;
    }

    /// The source address of a datagram.
    pub(super) fn source(&mut self, address: IpAddr, ipv6: bool) {
        match address {
            IpAddr::V4(address) if !ipv6 => {
                // struct in_pktinfo: interface, ipi_spec_dst (the source when sending), ipi_addr.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&address.octets());
                self.message(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            _ => {
                // struct in6_pktinfo: address, interface.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&map_to_ipv6(address).octets());
                self.message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// The outer TOS or traffic class, by the family of the packet, not of the socket.
    pub(super) fn traffic_class(&mut self, class: u8, ipv4_packet: bool) {
        let data = libc::c_int::from(class).to_ne_bytes();
        if ipv4_packet {
            self.message(libc::IPPROTO_IP, libc::IP_TOS, &data);
        } else {
            self.message(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &data);
        }
    }

    /// Cuts what is sent into datagrams of this size.
    pub(super) fn segment_size(&mut self, octets: u16) {
        self.message(libc::SOL_UDP, libc::UDP_SEGMENT, &octets.to_ne_bytes());
    }
}

/// What the kernel told about a received datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Received {
    /// The address that it was sent to.
    pub(super) local: Option<IpAddr>,
    /// TOS or traffic class.
    pub(super) traffic_class: u8,
    /// Size of the datagrams that were joined into this one, if any were.
    pub(super) segment_size: Option<u16>,
    /// How many datagrams the socket has lost in its life; told once there are any.
    pub(super) lost: Option<u32>,
}

impl Received {
    /// Reads the messages; what we do not know is skipped, what is cut off ends the list.
    pub(super) fn parse(mut octets: &[u8]) -> Self {
        let mut received = Self::default();
        while let Some((size, rest)) = octets.split_first_chunk() {
            let len = usize::from_ne_bytes(*size);
            let Some(data) = octets.get(HEADER_LEN..len) else { break };
            let (Some(level), Some(kind)) = (read_int(rest), read_int(&rest[rest.len().min(4)..])) else { break };
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // ipi_spec_dst: our address; differs from the destination for broadcasts only.
                    received.local =
                        data.get(4..8).and_then(|a| <[u8; 4]>::try_from(a).ok()).map(|a| Ipv4Addr::from(a).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let address = data.first_chunk::<16>().map(|&octets| Ipv6Addr::from(octets));
                    received.local = address.map(|address| IpAddr::from(address).to_canonical());
                }
                // One octet for IPv4, an int for IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) => received.traffic_class = data.first().copied().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    received.traffic_class = read_int(data).unwrap_or(0) as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    received.segment_size =
                        read_int(data).and_then(|size| u16::try_from(size).ok()).filter(|&size| size > 0);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => received.lost = read_int(data).map(libc::c_int::cast_unsigned),
                _ => {}
            }
            octets = octets.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        received
    }
}

fn read_int(octets: &[u8]) -> Option<libc::c_int> {
    octets.first_chunk().map(|&octets| libc::c_int::from_ne_bytes(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (address, ipv6) in [("192.0.2.1", false), ("192.0.2.1", true), ("2001:db8::1", true)] {
            let address: IpAddr = address.parse().unwrap();
            let mut buffer = ControlBuffer::EMPTY;
            let mut writer = Writer::new(&mut buffer);
            writer.source(address, ipv6);
            writer.traffic_class(3, address.is_ipv4());
            writer.segment_size(1400);
            let len = writer.len();
            let received = Received::parse(&buffer.0[..len]);
            assert_eq!((received.local, received.traffic_class), (Some(address), 3));
        }
    }

    #[test]
    fn the_layout_is_that_of_the_c_macros() {
        let mut buffer = ControlBuffer::EMPTY;
        let mut writer = Writer::new(&mut buffer);
        writer.traffic_class(2, true);
        writer.segment_size(7);
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space_int, space_short) = unsafe { (libc::CMSG_SPACE(4), libc::CMSG_SPACE(2)) };
        assert_eq!(writer.len(), (space_int + space_short) as usize);
        // SAFETY: as above.
        assert_eq!(buffer.0[..8], (unsafe { libc::CMSG_LEN(4) } as usize).to_ne_bytes());
    }

    #[test]
    fn damaged_messages_end_the_list() {
        let mut buffer = ControlBuffer::EMPTY;
        let mut writer = Writer::new(&mut buffer);
        writer.traffic_class(3, true);
        let len = writer.len();
        assert_eq!(Received::parse(&buffer.0[..len]).traffic_class, 3);
        for size in [0, 1, HEADER_LEN - 1, CONTROL_LEN + 1, usize::MAX] {
            let mut damaged = buffer;
            damaged.0[..8].copy_from_slice(&size.to_ne_bytes());
            assert_eq!(Received::parse(&damaged.0[..len]), Received::default(), "{size}");
        }
        for cut in 0..len - 7 {
            Received::parse(&buffer.0[..cut]);
        }
    }

    #[test]
    fn a_header_without_data_is_skipped() {
        let mut buffer = ControlBuffer::EMPTY;
        let mut writer = Writer::new(&mut buffer);
        writer.message(libc::SOL_UDP, libc::UDP_GRO, &[]);
        writer.traffic_class(1, true);
        let len = writer.len();
        assert_eq!(Received::parse(&buffer.0[..len]), Received { traffic_class: 1, ..Received::default() });
    }
}
