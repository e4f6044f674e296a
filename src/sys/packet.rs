//! A look at a wire: every frame that an interface sends or receives, as far as a filter lets it through.
//!
//! A [`PacketSocket`] (AF_PACKET) reads without blocking. What comes faster than it is read is counted by the kernel as missed,
//! so that whoever says "nothing else was on the wire" can know whether that is so.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;

use socket2::{Domain, SockFilter, Socket, Type};

/// A socket that reads an interface's frames, its own host's included.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    statistics: PacketStatistics,
}

/// How many frames passed the filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketStatistics {
    /// All of them, those that were missed included.
    pub frames: u64,
    /// Those that found the socket's buffer full.
    pub missed: u64,
}

impl PacketSocket {
    /// Opens a socket on the interface with this number in the calling thread's network namespace. The classic BPF program
    /// decides, from the Ethernet header on, how many octets of a frame are kept; none means that it is not for this socket.
    ///
    /// # Errors
    /// The system's; needs `CAP_NET_RAW`.
    pub fn open(link_index: u32, filter: &[SockFilter], receive_buffer: usize) -> io::Result<Self> {
        // Without a protocol nothing arrives yet: no frame can slip in before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None)?;
        socket.attach_filter(filter)?;
        // More than the system-wide limit where we may have it; the limit where we may not.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer).is_err() {
            socket.set_recv_buffer_size(receive_buffer)?;
        }
        bind(&socket, link_index)?;
        Ok(Self { socket, statistics: PacketStatistics::default() })
    }

    /// The next frame, cut to the buffer: how many octets were written. `None` when no frame waits.
    ///
    /// # Errors
    /// The system's, such as ENETDOWN when the interface is switched off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.socket, &mut *buffer, rustix::net::RecvFlags::empty()) {
                Ok((length, _)) => return Ok(Some(length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a frame, its Ethernet header included, by an interface.
    ///
    /// # Errors
    /// The system's; needs `CAP_NET_RAW`.
    pub fn send_frame(link_index: u32, frame: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None)?;
        bind(&socket, link_index)?;
        socket.send(frame).map(drop)
    }

    /// How many frames passed the filter since the socket was opened.
    ///
    /// # Errors
    /// The system's.
    pub fn statistics(&mut self) -> io::Result<PacketStatistics> {
        // SAFETY: all-zero is a value of this struct of two numbers.
        let mut counts: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `counts`, which lives across the call; the kernel writes no more.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // Each reading starts the kernel's counts again.
        self.statistics.frames += u64::from(counts.tp_packets);
        self.statistics.missed += u64::from(counts.tp_drops);
        Ok(self.statistics)
    }
}

/// Starts the flow: every protocol, on one interface.
fn bind(socket: &Socket, link_index: u32) -> io::Result<()> {
    // SAFETY: all-zero is a value of this plain struct.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(link_index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `address`, which lives across the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::sys::netlink::Netlink;
    use crate::sys::netns::Namespace;

    /// The classic BPF program "keep this many octets of everything".
    fn keep(octets: u32) -> [SockFilter; 1] {
        [SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, octets)]
    }

    #[test]
    fn frames_are_cut_as_the_filter_says_and_missed_ones_are_counted() {
        let namespace = Namespace::create().expect("needs root");
        let tap = |buffer, octets| {
            namespace
                .run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    netlink.set_up("lo").unwrap();
                    PacketSocket::open(netlink.link_index("lo").unwrap(), &keep(octets), buffer).unwrap()
                })
                .unwrap()
        };
        let (mut roomy, mut tight, mut closed) = (tap(1 << 20, 50), tap(1, 50), tap(1 << 20, 0));
        let sender = namespace.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        for _ in 0..10 {
            sender.send_to(&[7; 1000], sender.local_addr().unwrap()).unwrap();
        }
        let mut buffer = [0; 2000];
        let mut lengths = Vec::new();
        while let Some(length) = roomy.receive(&mut buffer).unwrap() {
            lengths.push(length);
        }
        // On lo each datagram is seen on its way out and on its way in.
        assert_eq!(lengths, [50; 20]);
        assert_eq!(roomy.statistics().unwrap(), PacketStatistics { frames: 20, missed: 0 });
        let statistics = tight.statistics().unwrap();
        assert!(statistics.frames == 20 && statistics.missed > 0, "{statistics:?}");
        assert_eq!(closed.statistics().unwrap(), PacketStatistics::default());
        assert_eq!(closed.receive(&mut buffer).unwrap(), None);
    }
}
