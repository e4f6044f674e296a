//! UDP by the burst, for measurements: a sender and a sink that cost as little as the kernel allows, one system call for many
//! datagrams, without segmentation or aggregation, so that what is between them meets every single datagram.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams per system call.
pub const BURST: usize = 32;

/// Octets of the longest datagram.
pub const MAX_LEN: usize = 2048;

/// Octets of the mark at the head of every datagram.
pub const MARK_LEN: usize = 4;

/// What the sink may hold unread, in octets: it shares the cores with everything that it measures.
const SINK_BUFFER: usize = 4 << 20;

/// The same of the sender, so that it meets what is behind it and not its own limit.
const SENDER_BUFFER: usize = 1 << 20;

/// How long the sink waits for the next datagram before it says that there was none.
const SINK_PATIENCE: Duration = Duration::from_millis(20);

/// Sends datagrams of given lengths, in turn, to one place.
pub struct BurstSender {
    socket: Socket,
    text: Box<[u8]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    lengths: Box<[usize]>,
    /// Where in the lengths the next burst begins.
    turn: usize,
}

/// Receives and counts datagrams.
pub struct BurstSink {
    socket: Socket,
    arena: Box<[u8]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `iovecs` and `headers` are written before every call and not used after it; what they point to is
// owned by the same value.
unsafe impl Send for BurstSender {}
// SAFETY: as above.
unsafe impl Send for BurstSink {}

/// Room for a burst's descriptions.
fn descriptions() -> (Box<[libc::iovec]>, Box<[libc::mmsghdr]>) {
    // SAFETY: all zeroes is a valid iovec and a valid mmsghdr: null pointers, zero lengths.
    let (iovec, header) = unsafe { (std::mem::zeroed::<libc::iovec>(), std::mem::zeroed::<libc::mmsghdr>()) };
    (vec![iovec; BURST].into(), vec![header; BURST].into())
}

impl BurstSender {
    /// A sender in the calling thread's network namespace.
    ///
    /// # Errors
    /// The system's.
    ///
    /// # Panics
    /// If there are no lengths, or one is shorter than a mark or longer than [`MAX_LEN`].
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4, lengths: &[usize]) -> io::Result<Self> {
        assert!(!lengths.is_empty() && lengths.iter().all(|len| (MARK_LEN..=MAX_LEN).contains(len)), "{lengths:?}");
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&source.into())?;
        socket.connect(&destination.into())?;
        socket.set_send_buffer_size(SENDER_BUFFER)?;
        let (iovecs, headers) = descriptions();
        Ok(Self { socket, text: vec![0x55; MAX_LEN].into(), iovecs, headers, lengths: lengths.into(), turn: 0 })
    }

    /// Sends up to so many datagrams, at most [`BURST`], that begin with this mark. Returns how many left.
    ///
    /// # Errors
    /// The system's; a route or neighbour that is missing for the moment is a loss, not an error.
    pub fn send(&mut self, mark: u32, count: usize) -> io::Result<usize> {
        self.text[..MARK_LEN].copy_from_slice(&mark.to_ne_bytes());
        let count = count.min(BURST);
        for number in 0..count {
            let len = self.lengths[(self.turn + number) % self.lengths.len()];
            self.iovecs[number] = libc::iovec { iov_base: self.text.as_mut_ptr().cast(), iov_len: len };
            let header = &mut self.headers[number].msg_hdr;
            header.msg_iov = &raw mut self.iovecs[number];
            header.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers point to live memory of this value, which the kernel only reads.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), self.headers.as_mut_ptr(), count as libc::c_uint, 0) };
        let sent = usize::try_from(sent).or_else(|_| match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(0),
            // What an ICMP error about an earlier datagram left behind.
            error if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(0),
            error => Err(error),
        })?;
        self.turn = (self.turn + sent) % self.lengths.len();
        Ok(sent)
    }
}

impl BurstSink {
    /// A sink in the calling thread's network namespace, with a port of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn new(address: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&address.into())?;
        socket.set_read_timeout(Some(SINK_PATIENCE))?;
        let wanted = SINK_BUFFER as libc::c_int;
        // SAFETY: the kernel reads one int during the call.
        let forced = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const wanted).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if forced != 0 {
            socket.set_recv_buffer_size(SINK_BUFFER)?;
        }
        let (iovecs, headers) = descriptions();
        Ok(Self { socket, arena: vec![0; BURST * MAX_LEN].into(), iovecs, headers })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddrV4> {
        self.socket.local_addr()?.as_socket_ipv4().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Waits for datagrams, a moment at most, and hands over the mark and the length of each that came.
    ///
    /// # Errors
    /// The system's. That none came is no error.
    pub fn receive(&mut self, mut each: impl FnMut(u32, u32)) -> io::Result<()> {
        for (number, slot) in self.arena.chunks_exact_mut(MAX_LEN).enumerate() {
            self.iovecs[number] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: MAX_LEN };
            let header = &mut self.headers[number].msg_hdr;
            header.msg_iov = &raw mut self.iovecs[number];
            header.msg_iovlen = 1;
        }
        // SAFETY: every header points to live memory of this value, which nobody else touches during the call.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BURST as libc::c_uint,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).or_else(|_| match io::Error::last_os_error() {
            error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            error => Err(error),
        })?;
        for (slot, header) in self.arena.chunks_exact(MAX_LEN).zip(&self.headers[..count]) {
            if let Some(&mark) = slot.first_chunk::<MARK_LEN>().filter(|_| header.msg_len as usize >= MARK_LEN) {
                each(u32::from_ne_bytes(mark), header.msg_len);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn what_is_sent_is_counted_by_mark() {
        let here = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let mut sink = BurstSink::new(here).unwrap();
        let mut sender = BurstSender::new(here, sink.address().unwrap(), &[64, 1372, 4]).unwrap();
        assert_eq!(sender.send(1, 4).unwrap(), 4);
        // The lengths go on where the last burst ended.
        assert_eq!(sender.send(2, 2).unwrap(), 2);
        assert_eq!(sender.send(1, BURST + 1).unwrap(), BURST);
        let mut counted = [(0, 0); 3];
        while counted[1].0 < 36 || counted[2].0 < 2 {
            let before = counted;
            let count = |mark, len| {
                let (datagrams, octets) = &mut counted[mark as usize];
                *datagrams += 1;
                *octets += len;
            };
            sink.receive(count).unwrap();
            assert_ne!(counted, before, "something is missing");
        }
        // 64, 1372, 4, 64; then 1372, 4; then 32 from the first length on.
        assert_eq!(counted[1..], [(36, 1504 + 10 * 1440 + 64 + 1372), (2, 1376)]);
        sink.receive(|mark, _| panic!("one more, of {mark}")).unwrap();
    }
}
