//! Sending: runs of datagrams of one path and size leave as one train (UDP_SEGMENT), trains as one `sendmmsg`.
//!
//! The kernel refuses a train for several reasons. What each errno means and what is done about it stands at
//! [`UdpSocket::refused`]; nothing is lost by a refusal that another way of sending gets round.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use super::UdpSocket;
use super::address::RawAddress;
use super::control_message::{ControlBuffer, Writer};
use crate::model::Path;
use crate::sys::faults::Fault;

/// Trains per call. Each costs about half a kilobyte of scratch memory.
const MAX_TRAINS: usize = 64;

/// Datagrams per train that are tried first: UDP_MAX_SEGMENTS since Linux 6.9.
pub(super) const MAX_SEGMENTS: usize = 128;

/// The same of kernels before.
pub(super) const OLD_MAX_SEGMENTS: usize = 64;

/// Octets per train: 65,535 less the IPv4 and UDP headers.
const MAX_TRAIN_OCTETS: usize = 65_507;

/// A datagram to be sent: a range of a buffer that many share.
pub trait Datagram {
    /// Where it lies.
    fn range(&self) -> Range<usize>;
    /// From where to where. An unspecified local address leaves the choice to the kernel; the local port is the socket's.
    fn path(&self) -> Path;
    /// The outer ECN bits.
    fn ecn(&self) -> u8;
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendReport {
    /// How many datagrams, from the first on, are done with: sent or given up.
    pub done: usize,
    /// Of these: larger than the interface or the path takes (EMSGSIZE).
    pub too_large: usize,
    /// Of these: the host was out of buffers (ENOBUFS, ENOMEM).
    pub no_buffers: usize,
    /// Of these: refused for another reason (no route, filtered, source address gone).
    pub refused: usize,
    /// Whether the socket's buffer is full: hand in the rest once it is writable.
    pub blocked: bool,
    /// The place of a datagram that is longer than the kernel believes its path to be. It left all the same, without DF; the
    /// next ones should be shorter.
    pub narrow: Option<usize>,
}

/// How the rest of a batch is sent, after what the kernel refused of it.
struct Attempt {
    /// Up to here datagrams go one by one, as a train of them was refused.
    alone_until: usize,
    /// A datagram whose train was refused with EINVAL: if it leaves alone, and whole, it was the train's fault.
    suspect: Option<usize>,
    /// Whether datagrams leave with DF.
    whole: bool,
}

/// Memory for one `sendmmsg`, made once.
pub struct SendBatch {
    names: Box<[RawAddress]>,
    controls: Box<[ControlBuffer]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// How many datagrams each header carries.
    counts: [usize; MAX_TRAINS],
}

// SAFETY: the pointers in `iovecs` and `headers` are written before every call and not used after it.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> Self {
        // SAFETY: all zeroes is a valid iovec and a valid mmsghdr: null pointers, zero lengths.
        let (iovec, header) = unsafe { (std::mem::zeroed::<libc::iovec>(), std::mem::zeroed::<libc::mmsghdr>()) };
        Self {
            names: vec![RawAddress::EMPTY; MAX_TRAINS].into_boxed_slice(),
            controls: vec![ControlBuffer::EMPTY; MAX_TRAINS].into_boxed_slice(),
            iovecs: vec![iovec; MAX_TRAINS].into_boxed_slice(),
            headers: vec![header; MAX_TRAINS].into_boxed_slice(),
            counts: [0; MAX_TRAINS],
        }
    }
}

/// How many datagrams from the first on make one train: same path and ECN, back to back, equal lengths, only the last
/// shorter.
fn train_len<D: Datagram>(datagrams: &[D], max_segments: usize) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    let stride = first.range().len();
    let mut octets = stride;
    let mut end = first.range().end;
    for (number, next) in datagrams.iter().enumerate().skip(1) {
        let range = next.range();
        let fits = number < max_segments && octets + range.len() <= MAX_TRAIN_OCTETS;
        let joins = range.start == end && (1..=stride).contains(&range.len());
        if !(fits && joins && next.path() == first.path() && next.ecn() == first.ecn()) {
            return number;
        }
        octets += range.len();
        end = range.end;
        if range.len() < stride {
            return number + 1;
        }
    }
    datagrams.len()
}

impl SendBatch {
    /// Describes trains from the first datagram on. Returns how many there are; zero if the first datagram cannot be sent by
    /// this socket at all. `alone` datagrams from the first on go without company.
    fn fill<D: Datagram>(&mut self, buffer: &[u8], datagrams: &[D], alone: usize, socket: &UdpSocket) -> usize {
        let mut done = 0;
        for number in 0..MAX_TRAINS {
            let rest = &datagrams[done..];
            let Some(first) = rest.first() else { return number };
            let count = if done < alone || !socket.segmentation() { 1 } else { train_len(rest, socket.max_segments()) };
            let octets = &buffer[first.range().start..rest[count - 1].range().end];
            let path = first.path();
            let Some(name_len) = self.names[number].emit(path.remote, socket.is_ipv6()) else { return number };
            let mut control = Writer::new(&mut self.controls[number]);
            let ipv4 = path.remote.is_ipv4();
            if !path.local.ip().is_unspecified() && path.local.is_ipv4() == ipv4 {
                control.source(path.local.ip(), socket.is_ipv6());
            }
            if first.ecn() != 0 {
                control.traffic_class(first.ecn(), ipv4);
            }
            if count > 1 {
                control.segment_size(first.range().len() as u16);
            }
            let control_len = control.len();
            // The kernel only reads through this pointer.
            self.iovecs[number] = libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
            let header = &mut self.headers[number].msg_hdr;
            header.msg_name = (&raw mut self.names[number]).cast();
            header.msg_namelen = name_len as libc::socklen_t;
            header.msg_iov = &raw mut self.iovecs[number];
            header.msg_iovlen = 1;
            header.msg_control = if control_len == 0 { ptr::null_mut() } else { (&raw mut self.controls[number]).cast() };
            header.msg_controllen = control_len as _;
            header.msg_flags = 0;
            self.counts[number] = count;
            done += count;
        }
        MAX_TRAINS
    }
}

impl UdpSocket {
    /// Sends datagrams that lie in `buffer`, in order, until all are done with or the socket's buffer is full.
    ///
    /// # Panics
    /// If a datagram does not lie in the buffer.
    pub fn send<D: Datagram>(&self, batch: &mut SendBatch, buffer: &[u8], datagrams: &[D]) -> SendReport {
        let mut attempt = Attempt { alone_until: 0, suspect: None, whole: self.sends_whole() };
        let mut report = SendReport::default();
        while report.done < datagrams.len() && !report.blocked {
            let rest = &datagrams[report.done..];
            let trains = batch.fill(buffer, rest, attempt.alone_until.saturating_sub(report.done), self);
            if trains == 0 {
                report.refused += 1;
                report.done += 1;
                continue;
            }
            match self.send_trains(batch, trains) {
                Ok(sent) => {
                    report.done += batch.counts[..sent].iter().sum::<usize>();
                    if attempt.suspect.take_if(|at| *at < report.done).is_some() && attempt.whole {
                        self.set_segmentation(false);
                    }
                }
                // The first train's: had another failed, the call would have returned how many left before it.
                Err(error) => self.refused(error, batch.counts[0], &mut attempt, &mut report),
            }
        }
        if self.sends_whole() && !attempt.whole {
            self.set_whole(true);
        }
        report
    }

    /// What a refusal of the next train, or of the next datagram alone, means for the rest.
    fn refused(&self, error: i32, count: usize, attempt: &mut Attempt, report: &mut SendReport) {
        match error {
            libc::EINTR => {}
            libc::EAGAIN => report.blocked = true,
            // The route's interface computes no checksums, or a policy wants to transform the packet: not before the routes
            // change.
            libc::EIO if count > 1 => self.set_segmentation(false),
            // More datagrams than a kernel before 6.9 takes.
            libc::EINVAL if count > OLD_MAX_SEGMENTS => self.set_max_segments(OLD_MAX_SEGMENTS),
            // Older kernels say so of datagrams that are too long; or trains do not work here. Alone, they show which it is.
            libc::EINVAL if count > 1 => {
                attempt.suspect = Some(report.done);
                attempt.alone_until = report.done + count;
            }
            // Longer than the path, as far as the kernel knows: it may be cut on the way this once.
            libc::EMSGSIZE if attempt.whole && self.set_whole(false) => {
                report.narrow = report.narrow.or(Some(report.done));
                attempt.whole = false;
                attempt.suspect = None;
            }
            // Longer than the interface takes in one piece: only a single datagram is cut by the kernel.
            libc::EMSGSIZE if count > 1 => attempt.alone_until = report.done + count,
            error => {
                let counter = match error {
                    libc::EMSGSIZE => &mut report.too_large,
                    libc::ENOBUFS | libc::ENOMEM => &mut report.no_buffers,
                    _ => &mut report.refused,
                };
                *counter += count;
                report.done += count;
            }
        }
    }

    /// Sends so many trains of the batch; returns how many left, or the first one's errno.
    fn send_trains(&self, batch: &mut SendBatch, trains: usize) -> Result<usize, i32> {
        if batch.counts[0] > 1
            && let Some(error) = injected(batch.counts[0])
        {
            return Err(error);
        }
        // Past the C library, as in `receive`.
        // SAFETY: `fill` pointed the first `trains` headers at live memory of the batch and of the caller's buffer, which
        // outlives this call and which the kernel only reads.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_sendmmsg,
                self.as_raw_fd(),
                batch.headers.as_mut_ptr(),
                trains as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

/// What a test wants the kernel to say about a train of so many datagrams.
fn injected(count: usize) -> Option<i32> {
    if Fault::TrainEio.is_on() {
        Some(libc::EIO)
    } else if Fault::TrainEinval.is_on() || (count > OLD_MAX_SEGMENTS && Fault::Train64.is_on()) {
        Some(libc::EINVAL)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Piece(Range<usize>, &'static str, u8);

    impl Datagram for Piece {
        fn range(&self) -> Range<usize> {
            self.0.clone()
        }
        fn path(&self) -> Path {
            Path { local: "0.0.0.0:4500".parse().unwrap(), remote: self.1.parse().unwrap() }
        }
        fn ecn(&self) -> u8 {
            self.2
        }
    }

    const A: &str = "192.0.2.1:4500";
    const B: &str = "192.0.2.2:4500";

    #[test]
    fn a_train_is_of_one_size_and_path_and_ends_with_a_shorter_one() {
        let same = |n: usize| Piece(n * 10..n * 10 + 10, A, 0);
        assert_eq!(train_len(&[same(0)], 64), 1);
        assert_eq!(train_len(&[same(0), same(1), same(2)], 64), 3);
        assert_eq!(train_len(&[same(0), Piece(10..19, A, 0), Piece(19..29, A, 0)], 64), 2, "a shorter one closes");
        assert_eq!(train_len(&[same(0), Piece(10..21, A, 0)], 64), 1, "a longer one does not join");
        assert_eq!(train_len(&[same(0), Piece(11..21, A, 0)], 64), 1, "a gap");
        assert_eq!(train_len(&[same(0), Piece(10..20, B, 0)], 64), 1, "another peer");
        assert_eq!(train_len(&[same(0), Piece(10..20, A, 2)], 64), 1, "other ECN bits");
        assert_eq!(train_len(&[same(0), Piece(10..10, A, 0)], 64), 1, "an empty one cannot be in a train");
        assert_eq!(train_len::<Piece>(&[], 64), 0);
    }

    #[test]
    fn a_train_has_limits() {
        let many: Vec<_> = (0..100).map(|n| Piece(n * 10..n * 10 + 10, A, 0)).collect();
        assert_eq!([64, MAX_SEGMENTS].map(|max| train_len(&many, max)), [64, 100]);
        let large: Vec<_> = (0..60).map(|n| Piece(n * 1472..n * 1472 + 1472, A, 0)).collect();
        assert_eq!(train_len(&large, 64), 44, "44 of 1472 octets fit into 65,507");
    }
}
