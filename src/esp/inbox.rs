//! The receiving side's arena: received datagrams as ranges of the caller's buffer, and what became of them.

use crate::model::{Path, WorkerIndex};

/// A received datagram: a range of the caller's receive buffer that holds one ESP packet, without UDP header.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// First octet: the SPI.
    pub start: u32,
    /// Length in octets.
    pub len: u32,
    /// Between which addresses it came.
    pub path: Path,
    /// The outer ECN bits (0 to 3).
    pub ecn: u8,
}

/// What came out of a batch of datagrams: ranges of the receive buffer that hold inner packets, and strays.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Inner packets, in order: start and length in the receive buffer.
    pub packets: Vec<(u32, u32)>,
    /// Datagrams that belong to another worker, untouched.
    pub strays: Vec<(WorkerIndex, Incoming)>,
    /// Datagrams whose SPI this worker should have, but does not: drain the mailbox and hand them in once more; the second
    /// time they are dropped. Empty when `last_try` was given.
    pub unknown: Vec<Incoming>,
}

impl Inbox {
    /// Forgets everything; keeps the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.strays.clear();
        self.unknown.clear();
    }
}
