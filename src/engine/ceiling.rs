//! A tunnel without keys, checks or a control plane: how fast a program in user space can carry these packets at all.
//!
//! It is made of the engine's own pieces: super-packets are read from the TUN, cut as ESP must cut them, sent as trains,
//! received as aggregates, joined again and written in one piece. A datagram has the length that ESP's would have. What lies
//! between this and a worker is what the protocol costs. It protects nothing, so it is for benchmarks only.
//!
//! One thread reads the TUN, another the socket; each sleeps only when its source is empty.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::EngineError;
use super::coalesce::Coalescer;
use super::sink::TunSink;
use crate::model::{Drops, Path};
use crate::sys::tun::{MAX_PACKET, Offloads, TunBackend, TunDevice, TunQueue, TunRead};
use crate::sys::udp::{Datagram, ReceiveBatch, SendBatch, UdpSocket};
use crate::wire::esp;
use crate::wire::segment::{Split, complete_checksum};

/// Octets in front of an inner packet, as ESP has SPI, sequence number and IV there; the first two are its length.
const HEAD: usize = 16;

/// Octets that wait to be sent, at most: three super-packets of 64 KiB.
const BATCH_OCTETS: usize = 256 << 10;

/// Datagrams that wait to be sent, at most.
const BATCH_FRAMES: usize = 256;

/// Inner packets that are read before what is there is sent.
const TUN_BATCH: usize = 64;

/// Messages per `recvmmsg`; each may be an aggregate of 64 KiB.
const RECEIVE_BATCH: usize = 16;

/// What a forwarder is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The TUN device's name.
    pub tun_name: String,
    /// The address and port to listen on.
    pub listen: SocketAddr,
    /// Where everything is sent to.
    pub peer: SocketAddr,
}

/// An open forwarder that does not run yet.
pub struct Forwarder {
    tun: Box<dyn TunQueue>,
    offloads: Offloads,
    udp: UdpSocket,
    path: Path,
}

impl Forwarder {
    /// Opens the device and the socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn open(config: &Config) -> Result<Self, EngineError> {
        let udp = UdpSocket::bind(config.listen)?;
        let mut device = TunDevice::open(&config.tun_name, 1, TunBackend::Offload, true)?;
        let tun = device.queues.remove(0);
        let path = Path { local: udp.local(), remote: config.peer };
        Ok(Self { tun, offloads: device.offloads, udp, path })
    }

    /// Carries packets until something breaks.
    ///
    /// # Errors
    /// What broke.
    pub fn run(self) -> io::Result<()> {
        let Self { tun, offloads, udp, path } = &self;
        // The other thread goes with the process.
        thread::scope(|scope| {
            let inbound = scope.spawn(|| Inbound::new(*offloads).run(tun.as_ref(), udp));
            Outbound::new(*path).run(tun.as_ref(), udp)?;
            inbound.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Sleeps until one descriptor has something to read.
struct Doze {
    poll: Poll,
    events: Events,
}

impl Doze {
    fn new(descriptor: RawFd) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(1) })
    }

    fn doze(&mut self) -> io::Result<()> {
        self.poll.poll(&mut self.events, None).or_else(|error| match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        })
    }
}

/// A datagram that waits to be sent.
struct Frame {
    start: usize,
    end: usize,
    path: Path,
}

impl Datagram for Frame {
    fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    fn path(&self) -> Path {
        self.path
    }

    fn ecn(&self) -> u8 {
        0
    }
}

/// From the TUN to the socket.
struct Outbound {
    path: Path,
    packet: Box<[u8]>,
    buffer: Box<[u8]>,
    used: usize,
    frames: Vec<Frame>,
    send: SendBatch,
}

impl Outbound {
    fn new(path: Path) -> Self {
        Self {
            path,
            packet: vec![0; MAX_PACKET].into(),
            buffer: vec![0; BATCH_OCTETS].into(),
            used: 0,
            frames: Vec::with_capacity(BATCH_FRAMES),
            send: SendBatch::default(),
        }
    }

    fn run(mut self, tun: &dyn TunQueue, udp: &UdpSocket) -> io::Result<()> {
        let mut doze = Doze::new(tun.as_raw_fd())?;
        let mut packet = std::mem::take(&mut self.packet);
        loop {
            let mut is_empty = false;
            for _ in 0..TUN_BATCH {
                match tun.read_packet(&mut packet) {
                    Ok(read) => self.admit(&mut packet[..read.len], read, udp),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        is_empty = true;
                        break;
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::InvalidData) => {}
                    Err(error) => return Err(error),
                }
            }
            self.flush(udp);
            if is_empty {
                doze.doze()?;
            }
        }
    }

    /// Takes a packet or super-packet. What is none is dropped.
    fn admit(&mut self, packet: &mut [u8], read: TunRead, udp: &UdpSocket) {
        if let Some((start, offset)) = read.checksum
            && complete_checksum(packet, start, offset).is_err()
        {
            return;
        }
        match Split::parse(packet, read.gso) {
            Ok(None) => self.frame(packet.len(), udp).copy_from_slice(packet),
            Ok(Some(split)) => (0..split.count()).for_each(|index| split.emit(index, self.frame(split.len_of(index), udp))),
            Err(_) => {}
        }
    }

    /// Makes room for an inner packet of `len` octets, and sends what is there if there is none.
    fn frame(&mut self, len: usize, udp: &UdpSocket) -> &mut [u8] {
        let whole = esp::sealed_len(len);
        if self.used + whole > self.buffer.len() || self.frames.len() == BATCH_FRAMES {
            self.flush(udp);
        }
        let (start, end) = (self.used, self.used + whole);
        self.used = end;
        self.frames.push(Frame { start, end, path: self.path });
        let (head, text) = self.buffer[start..end].split_at_mut(HEAD);
        head[..2].copy_from_slice(&(len as u16).to_ne_bytes());
        &mut text[..len]
    }

    /// Sends what is there. A full socket is tried again at once: there is nothing else to do.
    fn flush(&mut self, udp: &UdpSocket) {
        let mut done = 0;
        while done < self.frames.len() {
            let report = udp.send(&mut self.send, &self.buffer, &self.frames[done..]);
            done += report.done;
            if report.blocked {
                thread::yield_now();
            }
        }
        self.frames.clear();
        self.used = 0;
    }
}

/// From the socket to the TUN.
struct Inbound {
    receive: ReceiveBatch,
    coalescer: Coalescer,
    drops: Drops,
}

impl Inbound {
    fn new(offloads: Offloads) -> Self {
        Self { receive: ReceiveBatch::new(RECEIVE_BATCH), coalescer: Coalescer::new(offloads), drops: Drops::default() }
    }

    fn run(mut self, tun: &dyn TunQueue, udp: &UdpSocket) -> io::Result<()> {
        let mut doze = Doze::new(udp.as_raw_fd())?;
        loop {
            match udp.receive(&mut self.receive) {
                Ok(may_have_more) => {
                    self.deliver(tun);
                    if may_have_more {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            doze.doze()?;
        }
    }

    fn deliver(&mut self, tun: &dyn TunQueue) {
        let (arena, messages) = self.receive.parts();
        let mut sink = TunSink::new(tun, &self.drops, arena);
        for (start, whole) in messages.iter().flat_map(|message| message.datagrams()) {
            let datagram = &arena[start as usize..(start + whole) as usize];
            let len = datagram.first_chunk().map_or(0, |&octets| usize::from(u16::from_ne_bytes(octets)));
            if len > 0 && datagram.len() == esp::sealed_len(len) {
                self.coalescer.push(arena, start + HEAD as u32, len as u32, &mut sink);
            }
        }
        self.coalescer.flush(arena, &mut sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_long_as_a_sealed_packet_and_tells_its_own_length() {
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let path = Path { local: udp.local(), remote: udp.local() };
        let mut outbound = Outbound::new(path);
        for len in [20, 21, 1400] {
            outbound.frame(len, &udp).fill(7);
        }
        let lengths: Vec<_> = outbound.frames.iter().map(|frame| frame.range().len()).collect();
        assert_eq!(lengths, [20, 21, 1400].map(esp::sealed_len));
        outbound.flush(&udp);
        let mut batch = ReceiveBatch::new(4);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            if udp.receive(&mut batch).is_err() {
                thread::yield_now();
                continue;
            }
            let (arena, messages) = batch.parts();
            for (start, _) in messages.iter().flat_map(|message| message.datagrams()) {
                let head = &arena[start as usize..];
                let len = u16::from_ne_bytes([head[0], head[1]]);
                assert!(head[HEAD..HEAD + usize::from(len)].iter().all(|&octet| octet == 7));
                seen.push(len);
            }
        }
        assert_eq!(seen, [20, 21, 1400]);
    }

    #[test]
    fn a_full_buffer_is_sent_and_begun_again() {
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut outbound = Outbound::new(Path { local: udp.local(), remote: udp.local() });
        for _ in 0..BATCH_FRAMES {
            outbound.frame(20, &udp);
        }
        assert_eq!(outbound.frames.len(), BATCH_FRAMES);
        outbound.frame(20, &udp);
        assert_eq!((outbound.frames.len(), outbound.used), (1, esp::sealed_len(20)));
    }
}
