//! UDP sockets that carry IKE and ESP (RFC 3948): set-up, and the reuseport group of port 4500.
//!
//! All sockets of port 4500 form one SO_REUSEPORT group: one per worker, then the control thread's. A classic BPF program
//! reads the first four octets of the UDP payload. Zero is the non-ESP marker and goes to the control thread; anything else is
//! an SPI, whose low eight bits name the worker (`Spi::owner`). The program sees the first segment only of datagrams that the
//! kernel aggregates (UDP_GRO), so readers classify every segment; and a datagram that came between binding and attaching the
//! program may lie anywhere.
//!
//! Choices that hold for every socket:
//! - UDP_GRO, also on the control thread's: one member of a group without it would get aggregates cut by the kernel.
//! - IP_PKTINFO both ways: answers leave from the address that was asked.
//! - No IP_RECVERR: an ICMP error about one peer would fail the next send to another.
//! - Workers' datagrams carry DF (IP_PMTUDISC_DO), so that the kernel hears of narrow links on the way and refuses what is
//!   longer; IKE's do not (IP_PMTUDISC_DONT), so that a host that is wrong about a path can still be told so.

mod address;
mod control_message;
mod path_mtu;
mod receive;
mod send;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

pub use path_mtu::{path_mtu, source};
pub use receive::{Message, ReceiveBatch};
pub use send::{Datagram, SendBatch, SendReport};

/// Receive and send buffers that we ask for, in octets: 3 ms of 10 Gbit/s, the time that a worker may be kept off its core.
const SOCKET_BUFFER: usize = 4 << 20;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Somebody has the port.
    #[error("UDP port {port} on {address} is in use: is another IKE daemon or agent running here?", port = .0.port(), address = .0.ip())]
    InUse(SocketAddr),
    /// The address is not this host's.
    #[error("{} is no address of this host", .0.ip())]
    NotOurs(SocketAddr),
    /// A low port without the right to it.
    #[error("no permission to use UDP port {}: it needs CAP_NET_BIND_SERVICE", .0.port())]
    Denied(SocketAddr),
    /// The kernel does not do what we need.
    #[error("the kernel refused {step} for UDP on {address}: {source}")]
    Refused {
        /// Name of the call or option.
        step: &'static str,
        /// For which address.
        address: SocketAddr,
        /// What it said.
        source: io::Error,
    },
}

impl UdpError {
    /// Whether a right is missing, rather than anything else.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

/// A non-blocking UDP socket. One bound to the IPv6 wildcard address serves IPv4 too.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    /// Whether datagrams leave with DF.
    whole: bool,
    /// Whether the kernel knows UDP_SEGMENT.
    knows_segmentation: bool,
    /// Whether UDP_SEGMENT works on this socket; off once the kernel said that it does not.
    segmentation: AtomicBool,
    /// How many datagrams a train may have.
    max_segments: AtomicUsize,
    /// Datagrams that the kernel threw away because nobody read them in time, as far as it told.
    lost: AtomicU32,
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The sockets of one port: one per worker, and the control thread's. They must be closed together, as closing one alone
/// renumbers the others.
#[derive(Debug)]
pub struct UdpGroup {
    /// Worker n's at place n.
    pub workers: Vec<UdpSocket>,
    /// The last of the group.
    pub control: UdpSocket,
}

impl UdpSocket {
    /// Binds a socket that has its port for itself. Port 0 takes a free one.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn bind(address: SocketAddr) -> Result<Self, UdpError> {
        let socket = prepare(address)?;
        socket.bind(&address.into()).map_err(|error| bind_error(address, error))?;
        Self::finish(socket, address)
    }

    /// The address and port that it is bound to.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether addresses go in and out of the kernel as IPv6 ones, IPv4 mapped into them.
    const fn is_ipv6(&self) -> bool {
        self.local.is_ipv6()
    }

    /// Whether trains leave as one UDP_SEGMENT send.
    #[must_use]
    pub fn segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// Switches UDP_SEGMENT off, or on again (after a change of routes) if the kernel knows it.
    pub fn set_segmentation(&self, on: bool) {
        self.segmentation.store(on && self.knows_segmentation, Ordering::Relaxed);
    }

    /// How many datagrams a train has at most.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.max_segments.load(Ordering::Relaxed)
    }

    /// Whether trains are as long as new kernels take them.
    #[must_use]
    pub fn sends_long_trains(&self) -> bool {
        self.max_segments() > send::OLD_MAX_SEGMENTS
    }

    fn set_max_segments(&self, segments: usize) {
        self.max_segments.store(segments, Ordering::Relaxed);
    }

    /// Whether datagrams leave with DF, unless the kernel refuses one for its length.
    const fn sends_whole(&self) -> bool {
        self.whole
    }

    /// With DF (IP_PMTUDISC_DO) the kernel refuses what it believes to be longer than the path. Without, nothing is refused:
    /// over IPv4 what routers said of the path is not believed either (IP_PMTUDISC_OMIT), and who has a narrower link cuts;
    /// over IPv6 only the sender can cut, so there the kernel does. False if it was refused.
    fn set_whole(&self, whole: bool) -> bool {
        let (v4, v6) = if whole {
            (libc::IP_PMTUDISC_DO, libc::IPV6_PMTUDISC_DO)
        } else {
            (libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_DONT)
        };
        let set = |level, name, value| set_option(&self.socket, level, name, value).is_ok();
        set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4)
            && (!self.is_ipv6() || set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6))
    }

    /// Datagrams leave with DF from now on.
    fn make_whole(&mut self) -> io::Result<()> {
        self.whole = self.set_whole(true);
        if self.whole { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// How much it may hold.
    #[must_use]
    pub fn buffers(&self) -> Buffers {
        // The kernel doubles what it is asked for, for its own bookkeeping, and answers with that.
        let half = |size: io::Result<usize>| size.unwrap_or(0) / 2;
        let (receive, send) = (half(self.socket.recv_buffer_size()), half(self.socket.send_buffer_size()));
        Buffers { wanted: SOCKET_BUFFER, receive, send }
    }

    /// Makes the socket lose datagrams after a few that nobody reads.
    #[cfg(test)]
    pub(crate) fn shrink_receive_buffer(&self, octets: usize) {
        self.socket.set_recv_buffer_size(octets).expect("a smaller buffer is always granted");
    }

    /// Makes the socket full after a few datagrams.
    #[cfg(test)]
    pub(crate) fn shrink_send_buffer(&self, octets: usize) {
        self.socket.set_send_buffer_size(octets).expect("a smaller buffer is always granted");
    }

    fn finish(socket: Socket, address: SocketAddr) -> Result<Self, UdpError> {
        let refused = |step, source| UdpError::Refused { step, address, source };
        let local = socket.local_addr().map_err(|error| refused("getsockname", error))?;
        let local = local.as_socket().ok_or_else(|| refused("getsockname", ErrorKind::InvalidData.into()))?;
        // A kernel that knows the option (4.18) answers 0.
        let knows_segmentation = read_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
        Ok(Self {
            socket,
            local,
            whole: false,
            knows_segmentation,
            segmentation: AtomicBool::new(knows_segmentation),
            max_segments: AtomicUsize::new(send::MAX_SEGMENTS),
            lost: AtomicU32::new(0),
        })
    }
}

impl UdpGroup {
    /// Binds a group for so many workers and steers it by SPI. Port 0 takes a free one.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn bind(address: IpAddr, port: u16, workers: u8) -> Result<Self, UdpError> {
        let wanted = SocketAddr::new(address, port);
        let refused = |step, source| UdpError::Refused { step, address: wanted, source };
        // The first is bound exclusively and shares its port only afterwards. Had it shared from the start, another agent of
        // the same user would join our group, or we its, without an error.
        let first = prepare(wanted)?;
        first.bind(&wanted.into()).map_err(|error| bind_error(wanted, error))?;
        first.set_reuse_port(true).map_err(|error| refused("SO_REUSEPORT", error))?;
        let first = UdpSocket::finish(first, wanted)?;
        let address = first.local();
        let mut sockets = vec![first];
        for _ in 0..workers {
            let socket = prepare(address)?;
            socket.set_reuse_port(true).map_err(|error| refused("SO_REUSEPORT", error))?;
            socket.bind(&address.into()).map_err(|error| bind_error(address, error))?;
            sockets.push(UdpSocket::finish(socket, address)?);
        }
        attach_steering(&sockets[0].socket, workers).map_err(|error| refused("SO_ATTACH_REUSEPORT_CBPF", error))?;
        // Bound in the order workers 0 to n-1, then control: the program's answers are places in that order.
        let control = sockets.remove(usize::from(workers));
        for worker in &mut sockets {
            worker.make_whole().map_err(|error| refused("IP_MTU_DISCOVER", error))?;
        }
        Ok(Self { workers: sockets, control })
    }
}

fn bind_error(address: SocketAddr, error: io::Error) -> UdpError {
    match error.kind() {
        ErrorKind::AddrInUse => UdpError::InUse(address),
        ErrorKind::AddrNotAvailable => UdpError::NotOurs(address),
        ErrorKind::PermissionDenied => UdpError::Denied(address),
        _ => UdpError::Refused { step: "bind", address, source: error },
    }
}

/// A socket with every option that must be set before it is bound.
fn prepare(address: SocketAddr) -> Result<Socket, UdpError> {
    let refused = |step| move |source| UdpError::Refused { step, address, source };
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP)).map_err(refused("socket"))?;
    let ipv6 = address.is_ipv6();
    if ipv6 {
        // The wildcard serves both families; a definite IPv6 address only its own.
        socket.set_only_v6(!address.ip().is_unspecified()).map_err(refused("IPV6_V6ONLY"))?;
    }
    let mut options = vec![
        ("UDP_GRO", libc::SOL_UDP, libc::UDP_GRO, 1),
        // Says how many datagrams did not fit the receive buffer.
        ("SO_RXQ_OVFL", libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1),
        // On a dual-stack socket the IPv4 options hold for IPv4 datagrams.
        ("IP_RECVTOS", libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        ("IP_MTU_DISCOVER", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
    ];
    if ipv6 {
        options.extend([
            ("IPV6_RECVPKTINFO", libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
            ("IPV6_RECVTCLASS", libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
            ("IPV6_MTU_DISCOVER", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        ]);
    } else {
        options.push(("IP_PKTINFO", libc::IPPROTO_IP, libc::IP_PKTINFO, 1));
    }
    for (step, level, name, value) in options {
        set_option(&socket, level, name, value).map_err(refused(step))?;
    }
    grow_buffers(&socket).map_err(refused("SO_RCVBUF"))?;
    Ok(socket)
}

/// How much a socket may hold, in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Buffers {
    /// What was asked for, each way.
    pub wanted: usize,
    /// What the kernel granted for datagrams that came in.
    pub receive: usize,
    /// And for those that are to leave.
    pub send: usize,
}

impl Buffers {
    /// The smaller of each.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self { wanted: self.wanted, receive: self.receive.min(other.receive), send: self.send.min(other.send) }
    }
}

/// Large buffers: past the host's limit with CAP_NET_ADMIN, up to it without.
fn grow_buffers(socket: &Socket) -> io::Result<()> {
    let wanted = SOCKET_BUFFER as libc::c_int;
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    Ok(())
}

/// Attaches the program that picks the receiver within the group.
fn attach_steering(socket: &Socket, workers: u8) -> io::Result<()> {
    let program = steering_program(workers);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from `filter` during the call and writes nothing; both outlive it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The program: it runs on the UDP payload and answers with a place in the group. A payload under four octets (a keepalive)
/// ends it with 0: worker 0.
fn steering_program(workers: u8) -> [libc::sock_filter; 7] {
    let control = u32::from(workers);
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    [
        // A = the SPI.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        // The non-ESP marker: control.
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, control),
        // A = the SPI's owner.
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0xff),
        // No such worker, so no SPI of ours: worker 0 counts it.
        op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, control),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ]
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_option(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets to `value`, and the length that it wrote to `len`.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
