//! Receiving: one `recvmmsg` fills an arena with datagrams, or with trains of them that the kernel joined (UDP_GRO).

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::Ordering;

use super::UdpSocket;
use super::address::RawAddress;
use super::control_message::{ControlBuffer, Received};
use crate::model::Path;

/// Octets for each message: the largest that UDP_GRO can make.
const SLOT: usize = 65_536;

/// Octets that one call should not bring more of: with the packets on their way out they fit into the second-level cache.
const MUCH: usize = 256 << 10;

/// Memory for one `recvmmsg`, made once.
pub struct ReceiveBatch {
    arena: Box<[u8]>,
    /// Octets of it for each message.
    slot: usize,
    names: Box<[RawAddress]>,
    controls: Box<[ControlBuffer]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    messages: Vec<Message>,
    /// How many messages the next call takes.
    limit: usize,
    /// How many headers the kernel has written to since they were prepared.
    used: usize,
    lost: u32,
    unusable: u32,
}

// SAFETY: the pointers in `iovecs` and `headers` are used during a call only; everything that they point to is owned by this
// value, on the heap, and stays where it is when this value moves.
unsafe impl Send for ReceiveBatch {}

/// One received message: a range of the arena that holds one datagram or a train of datagrams of one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// First octet in the arena.
    pub start: u32,
    /// Length in octets.
    pub len: u32,
    /// Length of every datagram but the last, which may be shorter.
    pub stride: u32,
    /// From whom to which of our addresses.
    pub path: Path,
    /// The outer ECN bits; those of every datagram of a train.
    pub ecn: u8,
}

impl Message {
    /// The datagrams: first octet in the arena, and length. An empty datagram is one too.
    pub fn datagrams(self) -> impl Iterator<Item = (u32, u32)> {
        let stride = self.stride.max(1);
        let end = self.start + self.len;
        (0..self.len.div_ceil(stride).max(1)).map(move |number| {
            let start = self.start + number * stride;
            (start, stride.min(end - start))
        })
    }
}

impl ReceiveBatch {
    /// Memory for so many messages of up to 64 KiB.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        Self::with_slots(messages, SLOT)
    }

    /// The same for messages of up to so many octets.
    pub(super) fn with_slots(messages: usize, slot: usize) -> Self {
        // SAFETY: all zeroes is a valid iovec and a valid mmsghdr: null pointers, zero lengths.
        let (iovec, header) = unsafe { (std::mem::zeroed::<libc::iovec>(), std::mem::zeroed::<libc::mmsghdr>()) };
        Self {
            arena: vec![0; messages * slot].into_boxed_slice(),
            slot,
            names: vec![RawAddress::EMPTY; messages].into_boxed_slice(),
            controls: vec![ControlBuffer::EMPTY; messages].into_boxed_slice(),
            iovecs: vec![iovec; messages].into_boxed_slice(),
            headers: vec![header; messages].into_boxed_slice(),
            messages: Vec::with_capacity(messages),
            limit: messages,
            used: messages,
            lost: 0,
            unusable: 0,
        }
    }

    /// The arena and what the last receive left in it.
    pub fn parts(&mut self) -> (&mut [u8], &[Message]) {
        (&mut self.arena, &self.messages)
    }

    /// Few large messages or many small ones: what a call brings shall be in the cache when it is opened.
    fn adapt(&mut self, was_full: bool, octets: usize) {
        if octets > MUCH {
            self.limit = (self.limit / 2).max(1);
        } else if was_full {
            self.limit = (self.limit * 2).min(self.headers.len());
        }
    }

    /// How many datagrams the kernel is known to have thrown away before those that the last receive left, because the socket's
    /// buffer was full.
    #[must_use]
    pub const fn lost(&self) -> u32 {
        self.lost
    }

    /// How many messages of the last receive are left out, as the kernel cut them off or did not say who sent them.
    #[must_use]
    pub const fn unusable(&self) -> u32 {
        self.unusable
    }

    /// Points headers at their slots, names and control buffers: those that the last call has used, as the others still are.
    fn prepare(&mut self) {
        for (number, slot) in self.arena.chunks_exact_mut(self.slot).enumerate().take(self.used) {
            self.iovecs[number] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: self.slot };
            let name = &mut self.names[number];
            let control = &mut self.controls[number];
            let header = &mut self.headers[number].msg_hdr;
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovecs[number];
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(control).cast();
            header.msg_controllen = size_of::<ControlBuffer>() as _;
            header.msg_flags = 0;
        }
    }
}

impl UdpSocket {
    /// Receives what there is, up to what the batch holds. Returns whether there may be more: fewer messages (not datagrams) than
    /// were asked for say that there is not.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing.
    pub fn receive(&self, batch: &mut ReceiveBatch) -> io::Result<bool> {
        batch.messages.clear();
        (batch.lost, batch.unusable) = (0, 0);
        batch.prepare();
        batch.used = 0;
        // Past the C library, whose call is a cancellation point and pays for that on both sides of the kernel.
        // SAFETY: `prepare`, now or before an earlier call, pointed every header at memory of the batch, which lives as long as
        // the batch does, and which nobody else touches during the call.
        let count = unsafe {
            libc::syscall(
                libc::SYS_recvmmsg,
                self.as_raw_fd(),
                batch.headers.as_mut_ptr(),
                batch.limit as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut::<libc::timespec>(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        batch.used = count;
        for number in 0..count {
            let header = &batch.headers[number];
            // Slots are as large as a message can be, and no datagram comes without a sender: neither is known to happen.
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let Some(remote) = batch.names[number].parse().filter(|_| !truncated) else {
                batch.unusable += 1;
                continue;
            };
            let control_len = header.msg_hdr.msg_controllen.min(batch.controls[number].0.len());
            let received = Received::parse(&batch.controls[number].0[..control_len]);
            if let Some(lost) = received.lost {
                // A running total, which wraps.
                batch.lost += lost.wrapping_sub(self.lost.swap(lost, Ordering::Relaxed));
            }
            let mut local = self.local();
            if let Some(address) = received.local {
                local.set_ip(address);
            }
            batch.messages.push(Message {
                start: (number * batch.slot) as u32,
                len: header.msg_len,
                stride: received.segment_size.map_or(header.msg_len, u32::from),
                path: Path { local, remote },
                ecn: received.traffic_class & 0b11,
            });
        }
        let was_full = count == batch.limit;
        batch.adapt(was_full, batch.headers[..count].iter().map(|header| header.msg_len as usize).sum());
        Ok(was_full)
    }
}
