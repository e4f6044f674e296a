//! The way to the host's stack: packets and super-packets into a TUN queue, gathered from where they lie.

use std::io::{self, ErrorKind, IoSlice};

use super::coalesce::{Joined, MAX_PACKETS, Sink};
use super::fallback::is_refusal;
use crate::model::{DropReason, Drops, Gso};
use crate::sys::tun::{TunQueue, VnetHeader};

/// Writes what the coalescer hands over.
pub(super) struct TunSink<'a> {
    tun: &'a dyn TunQueue,
    drops: &'a Drops,
    buffer: &'a [u8],
    /// A super-packet of a kind that the kernel does not take.
    refused: Option<Gso>,
}

impl<'a> TunSink<'a> {
    /// For packets that lie in `buffer`.
    pub(super) fn new(tun: &'a dyn TunQueue, drops: &'a Drops, buffer: &'a [u8]) -> Self {
        Self { tun, drops, buffer, refused: None }
    }

    /// What the kernel refused: its packets went one by one.
    pub(super) const fn refused(&self) -> Option<Gso> {
        self.refused
    }
}

impl Sink for TunSink<'_> {
    fn packet(&mut self, packet: &[u8]) {
        write_to_tun(self.drops, 1, || self.tun.write_packet(packet));
    }

    fn super_packet(&mut self, joined: &Joined<'_>) {
        let Joined { gso, ipv4, upper, field, header, payloads } = *joined;
        let vnet = VnetHeader::super_packet(gso, ipv4, upper, header.len() as u16, field).emit();
        let mut parts = [IoSlice::new(&[]); 2 + MAX_PACKETS];
        parts[0] = IoSlice::new(&vnet);
        parts[1] = IoSlice::new(header);
        let payload = |&(start, len): &(u32, u32)| &self.buffer[start as usize..(start + len) as usize];
        for (part, range) in parts[2..].iter_mut().zip(payloads) {
            *part = IoSlice::new(payload(range));
        }
        let parts = &parts[..2 + payloads.len()];
        if self.refused != Some(gso) {
            let mut is_refused = false;
            write_to_tun(self.drops, payloads.len() as u64, || {
                let written = self.tun.write_super_packet(parts);
                is_refused = written.as_ref().is_err_and(is_refusal);
                if is_refused { Ok(()) } else { written }
            });
            if !is_refused {
                return;
            }
            self.refused = Some(gso);
        }
        for &(start, len) in payloads {
            self.packet(&self.buffer[start as usize - header.len()..(start + len) as usize]);
        }
    }
}

/// Gives so many inner packets to the host. A device that is down (EIO) or gone refuses them; reading tells which.
pub(super) fn write_to_tun(drops: &Drops, packets: u64, mut write: impl FnMut() -> io::Result<()>) {
    loop {
        match write() {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return drops.add(DropReason::TunWriteFailed, packets),
        }
    }
}
