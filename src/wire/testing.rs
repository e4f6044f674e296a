//! Packets for tests, built and checked word by word, by nothing that the code under test uses.

use super::ip;

/// What a TCP segment or UDP datagram is made of. `flags` and what follows count for TCP only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Recipe {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    pub(crate) class: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) ports: [u16; 2],
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    /// A multiple of four octets.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Recipe {
    /// A plain one, with DF.
    pub(crate) fn new(v6: bool, tcp: bool, payload: &[u8]) -> Self {
        Self {
            v6,
            tcp,
            class: 0,
            ttl: 64,
            id: 7,
            dont_fragment: true,
            ports: [40_000, 443],
            flags: 0x10,
            sequence: 1000,
            ack: 2000,
            window: 500,
            options: if tcp { vec![1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6] } else { Vec::new() },
            payload: payload.to_vec(),
        }
    }

    /// Octets of its headers.
    pub(crate) fn header_len(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet, all checksums complete. Overlay host 1 sends to overlay host 2.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut upper = [self.ports[0].to_be_bytes(), self.ports[1].to_be_bytes()].concat();
        if self.tcp {
            upper.extend(self.sequence.to_be_bytes());
            upper.extend(self.ack.to_be_bytes());
            upper.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            upper.extend(self.window.to_be_bytes());
            upper.extend([0; 4]);
            upper.extend(&self.options);
        } else {
            upper.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            upper.extend([0; 2]);
        }
        upper.extend(&self.payload);
        let (protocol, field) = if self.tcp { (ip::TCP, 16) } else { (ip::UDP, 6) };
        let mut packet = if self.v6 {
            let mut header = vec![0x60 | self.class >> 4, self.class << 4, 0, 9];
            header.extend((upper.len() as u16).to_be_bytes());
            header.extend([protocol, self.ttl]);
            for host in [1, 2] {
                header.extend([0xfd, 0, 0, 0x42, 0, host, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            }
            header
        } else {
            let mut header = vec![0x45, self.class];
            header.extend(((20 + upper.len()) as u16).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            header.extend([10, 42, 1, 1, 10, 42, 2, 1]);
            let sum = naive_checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        };
        let addresses = if self.v6 { &packet[8..40] } else { &packet[12..20] };
        let sum = match naive_checksum(&pseudo(addresses, protocol, &upper)) {
            0 if !self.tcp => 0xffff,
            sum => sum,
        };
        upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet.extend(upper);
        packet
    }
}

/// The upper layer behind its pseudo-header.
fn pseudo(addresses: &[u8], protocol: u8, upper: &[u8]) -> Vec<u8> {
    [addresses, &[0, protocol], &(upper.len() as u16).to_be_bytes(), upper].concat()
}

/// Word by word, as RFC 1071 §4.1 describes it.
pub(crate) fn naive_checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in octets.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
