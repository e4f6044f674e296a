//! Traffic that proves itself: every octet is known beforehand, every datagram has its number, and a flow is right only if all of
//! it came, whole, once, and in order.
//!
//! Sender and sink are threads of the test, each with sockets in its host's namespace. The sender never has more under way than
//! it is told, which is less than the smallest queue on the way holds: what is missing was lost by somebody's mistake.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::{Range, RangeInclusive};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use underpass::model::{Path, Rng, SeededRng};
use underpass::sys::udp::{Datagram, SendBatch};

use super::Host;

/// Where all content is cut from: a prime, so that no length divides it.
const PATTERN: usize = 1_048_573;

/// The longest piece that is cut.
const PIECE: usize = 1 << 16;

/// Datagrams of one length in a row; the last of them is shorter.
const RUN: u32 = 16;

/// Octets that a sink's socket holds for it, as far as the kernel grants them.
const SINK_BUFFER: usize = 1 << 20;

/// How long a flow may stand still.
const PATIENCE: Duration = Duration::from_secs(10);

/// Headers of hand-made packets.
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// How a flow's octets travel.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A stream of so many octets, with this MSS if any.
    Tcp(u64, Option<u32>),
    /// Datagrams, one system call each.
    Udp(RangeInclusive<usize>),
    /// Datagrams, a whole run per system call (UDP_SEGMENT).
    Trains(RangeInclusive<usize>),
    /// Hand-made IPv4 packets without DF; with a checksum or with zero.
    Raw(RangeInclusive<usize>, bool),
}

/// A place in the overlay: a namespace and an address in it.
#[derive(Clone, Debug)]
pub struct End {
    pub netns: String,
    pub address: IpAddr,
}

impl End {
    pub fn of(host: &Host, address: &str) -> Self {
        Self { netns: host.netns.clone(), address: address.parse().expect("an address") }
    }
}

/// Octets or datagrams from one end to another.
#[derive(Clone, Debug)]
pub struct Flow {
    pub kind: Kind,
    pub from: End,
    pub to: End,
    /// Where it goes to; 0 takes a free port.
    pub port: u16,
    /// So many of them, if it has datagrams.
    pub datagrams: u32,
    /// So many of them under way at most.
    pub window: u32,
}

/// Runs `work` on a thread in a namespace; a socket that it makes stays there.
pub fn in_netns<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let namespace = File::open(format!("/run/netns/{netns}")).expect("a namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sends all flows at once.
///
/// # Panics
///
/// With a line for each flow that did not come as it left.
pub fn carry(flows: &[Flow]) {
    let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let flows: Vec<_> =
            flows.iter().enumerate().map(|(seed, flow)| scope.spawn(move || flow.carry(seed as u64))).collect();
        flows.into_iter().map(|flow| flow.join().unwrap_or_else(|_| Err("its thread panicked".to_owned()))).collect()
    });
    let told = flows.iter().zip(outcomes);
    let wrong: Vec<String> = told.filter_map(|(flow, said)| Some(format!("{flow:?}: {}", said.err()?))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Flow {
    fn carry(&self, seed: u64) -> Result<(), String> {
        match &self.kind {
            Kind::Tcp(octets, mss) => self.carry_stream(seed, *octets, *mss),
            Kind::Udp(lengths) | Kind::Trains(lengths) | Kind::Raw(lengths, _) => {
                self.carry_datagrams(&Content { seed, lengths: lengths.clone() })
            }
        }
    }

    fn carry_stream(&self, seed: u64, octets: u64, mss: Option<u32>) -> Result<(), String> {
        let listener =
            in_netns(&self.to.netns, || TcpListener::bind((self.to.address, self.port))).map_err(said("listen"))?;
        let port = listener.local_addr().map_err(said("listen"))?.port();
        let sender = in_netns(&self.from.netns, || stream_to(self.from.address, (self.to.address, port).into(), mss));
        let mut sender = sender.map_err(said("connect"))?;
        let (mut sink, _) = listener.accept().map_err(said("accept"))?;
        for stream in [&sender, &sink] {
            stream.set_read_timeout(Some(PATIENCE)).map_err(said("set a timeout"))?;
            stream.set_write_timeout(Some(PATIENCE)).map_err(said("set a timeout"))?;
        }
        std::thread::scope(|scope| {
            let sent = scope.spawn(move || write_stream(&mut sender, seed, octets));
            let read = read_stream(&mut sink, seed, octets);
            sent.join().expect("no panic")?;
            read
        })
    }

    fn carry_datagrams(&self, content: &Content) -> Result<(), String> {
        let sink = in_netns(&self.to.netns, || UdpSocket::bind((self.to.address, self.port))).map_err(said("bind"))?;
        sink.set_read_timeout(Some(PATIENCE)).map_err(said("set a timeout"))?;
        SockRef::from(&sink).set_recv_buffer_size(SINK_BUFFER).map_err(said("set a buffer's size"))?;
        let to = sink.local_addr().map_err(said("bind"))?;
        let source = in_netns(&self.from.netns, || Source::new(&self.kind, self.from.address, to)).map_err(said("bind"))?;
        let arrived = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| self.send(source, content, to, &arrived));
            let read = self.receive(&sink, content, &arrived);
            // A sink that gave up tells why; the sender only that nobody listens.
            let sent = sent.join().expect("no panic");
            read.and(sent)
        })
    }

    fn send(&self, mut source: Source, content: &Content, to: SocketAddr, arrived: &AtomicU32) -> Result<(), String> {
        let mut sent = 0;
        while sent < self.datagrams {
            let burst = sent..(sent + self.window.min(RUN)).min(self.datagrams);
            sent = burst.end;
            source.send(content, burst, to)?;
            let next = (sent + self.window.min(RUN)).min(self.datagrams);
            let start = Instant::now();
            while next - arrived.load(Ordering::Relaxed) > self.window {
                std::thread::sleep(Duration::from_micros(50));
                if start.elapsed() > PATIENCE {
                    return Err(format!("{} of {sent} arrived", arrived.load(Ordering::Relaxed)));
                }
            }
        }
        Ok(())
    }

    fn receive(&self, sink: &UdpSocket, content: &Content, arrived: &AtomicU32) -> Result<(), String> {
        let mut buffer = vec![0; 1 << 16];
        let mut wanted = vec![0; 1 << 16];
        for number in 0..self.datagrams {
            let (len, from) = sink.recv_from(&mut buffer).map_err(|error| format!("no datagram {number}: {error}"))?;
            let wanted = content.write(number, &mut wanted);
            if from.ip() != self.from.address || buffer[..len] != *wanted {
                // Whoever waits for this number learns that nobody will count it.
                return Err(content.explain(number, &buffer[..len], from));
            }
            arrived.store(number + 1, Ordering::Relaxed);
        }
        sink.set_read_timeout(Some(Duration::from_millis(1))).map_err(said("set a timeout"))?;
        match sink.recv_from(&mut buffer) {
            Ok((len, from)) => Err(format!("one more than was sent: {len} octets from {from}")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What the datagrams of a flow hold.
struct Content {
    seed: u64,
    lengths: RangeInclusive<usize>,
}

impl Content {
    /// Lengths come in runs, as streams of video or files do; each run ends with a shorter one. In time all lengths come.
    fn len(&self, number: u32) -> usize {
        let (least, most) = (*self.lengths.start(), *self.lengths.end());
        let chance = SeededRng::new(self.seed << 32 | u64::from(number / RUN)).u64() as usize;
        let of_run = least + chance % (most - least + 1);
        if number % RUN == RUN - 1 { least + (chance >> 32) % (of_run - least + 1) } else { of_run }
    }

    /// The number, as far as there is room, and a piece of the pattern of its own.
    fn write<'a>(&self, number: u32, buffer: &'a mut [u8]) -> &'a [u8] {
        let len = self.len(number);
        let place = SeededRng::new(self.seed << 32 | u64::from(number)).u64() as usize % PATTERN;
        buffer[..len].copy_from_slice(&pattern()[place..place + len]);
        let shown = len.min(4);
        buffer[..shown].copy_from_slice(&number.to_be_bytes()[..shown]);
        &buffer[..len]
    }

    fn explain(&self, number: u32, got: &[u8], from: SocketAddr) -> String {
        let mut buffer = vec![0; 1 << 16];
        let near = number.saturating_sub(1000)..number + 1000;
        let other = near.clone().find(|&other| self.write(other, &mut buffer) == got);
        let wanted = self.write(number, &mut buffer);
        match other {
            Some(other) => format!("datagram {other} came when {number} was due"),
            None => {
                let differs = wanted.iter().zip(got).position(|(wanted, got)| wanted != got);
                let (due, len) = (wanted.len(), got.len());
                format!(
                    "{len} octets from {from} that nobody sent, when {number} ({due} octets) was due; first other octet: {differs:?}"
                )
            }
        }
    }
}

fn pattern() -> &'static [u8] {
    static OCTETS: OnceLock<Vec<u8>> = OnceLock::new();
    OCTETS.get_or_init(|| {
        let mut octets = vec![0; PATTERN];
        SeededRng::new(1).fill(&mut octets);
        octets.extend_from_within(..PIECE);
        octets
    })
}

/// Who sends a flow's datagrams.
enum Source {
    Plain(UdpSocket),
    Trains(Box<(underpass::sys::udp::UdpSocket, SendBatch)>),
    Raw { socket: Socket, from: Ipv4Addr, port: u16, checksum: bool },
}

/// A datagram of a train.
struct Car(Range<usize>, Path);

impl Datagram for Car {
    fn range(&self) -> Range<usize> {
        self.0.clone()
    }

    fn path(&self) -> Path {
        self.1
    }

    fn ecn(&self) -> u8 {
        0
    }
}

impl Source {
    fn new(kind: &Kind, from: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        match *kind {
            Kind::Trains(_) => {
                let socket = underpass::sys::udp::UdpSocket::bind((from, 0).into()).map_err(std::io::Error::other)?;
                Ok(Self::Trains(Box::new((socket, SendBatch::default()))))
            }
            Kind::Raw(_, checksum) => {
                let IpAddr::V4(from) = from else { panic!("hand-made packets are IPv4") };
                // Protocol 255: the whole packet is ours.
                let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
                Ok(Self::Raw { socket, from, port: to.port() ^ 1, checksum })
            }
            _ => Ok(Self::Plain(UdpSocket::bind((from, 0))?)),
        }
    }

    fn send(&mut self, content: &Content, run: Range<u32>, to: SocketAddr) -> Result<(), String> {
        let mut buffer = vec![0; RUN as usize * PIECE];
        match self {
            Self::Plain(socket) => {
                for number in run {
                    let octets = content.write(number, &mut buffer);
                    socket.send_to(octets, to).map_err(said("send"))?;
                }
            }
            Self::Trains(parts) => {
                let (socket, batch) = &mut **parts;
                let path = Path { local: socket.local(), remote: to };
                let mut cars = Vec::new();
                let mut start = 0;
                for number in run {
                    let len = content.write(number, &mut buffer[start..]).len();
                    cars.push(Car(start..start + len, path));
                    start += len;
                }
                let report = socket.send(batch, &buffer, &cars);
                let lost = report.too_large + report.no_buffers + report.refused;
                if report.done != cars.len() || lost > 0 {
                    return Err(format!("a train: {report:?}"));
                }
            }
            Self::Raw { socket, from, port, checksum } => {
                let IpAddr::V4(remote) = to.ip() else { panic!("hand-made packets are IPv4") };
                for number in run {
                    let len = content.write(number, &mut buffer[IPV4_HEADER + UDP_HEADER..]).len();
                    let packet = &mut buffer[..IPV4_HEADER + UDP_HEADER + len];
                    write_headers(packet, number, (*from, *port), (remote, to.port()), *checksum);
                    socket.send_to(packet, &to.into()).map_err(said("send"))?;
                }
            }
        }
        Ok(())
    }
}

/// IPv4 without DF and UDP in front of what is there. The kernel adds the header's checksum.
fn write_headers(packet: &mut [u8], number: u32, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), checksum: bool) {
    let len = packet.len() as u16;
    packet[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
    // Identification: never 0, for which the kernel would choose one.
    packet[4..6].copy_from_slice(&((number % 0xffff) as u16 + 1).to_be_bytes());
    packet[6..12].copy_from_slice(&[0, 0, 64, 17, 0, 0]);
    packet[12..16].copy_from_slice(&from.0.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    let udp_len = len - IPV4_HEADER as u16;
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[24..26].copy_from_slice(&udp_len.to_be_bytes());
    packet[26..28].copy_from_slice(&[0, 0]);
    if checksum {
        // RFC 768: the ones' complement sum over addresses, protocol, length and all of the datagram.
        let words = packet[12..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum = words.sum::<u32>() + 17 + u32::from(udp_len);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
    }
}

fn stream_to(from: IpAddr, to: SocketAddr, mss: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    // Little enough that all streams together fill no queue.
    socket.set_send_buffer_size(96 << 10)?;
    if let Some(mss) = mss {
        socket.set_tcp_mss(mss)?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Writes of all sizes; those below a kilobyte leave at once.
fn write_stream(stream: &mut TcpStream, seed: u64, octets: u64) -> Result<(), String> {
    let mut rng = SeededRng::new(seed);
    let mut done = 0;
    while done < octets {
        let chance = rng.u32() as usize;
        let len = if chance.is_multiple_of(4) { 1 + chance / 4 % 1000 } else { 1 + chance / 4 % PIECE };
        let len = len.min((octets - done) as usize);
        stream.set_nodelay(len < 1000).map_err(said("set an option"))?;
        stream.write_all(piece(seed, done, len)).map_err(|error| format!("write at {done} of {octets}: {error}"))?;
        done += len as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).map_err(said("shut down"))
}

fn read_stream(stream: &mut TcpStream, seed: u64, octets: u64) -> Result<(), String> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    loop {
        let len = stream.read(&mut buffer).map_err(|error| format!("read at {done} of {octets}: {error}"))?;
        if len == 0 {
            return if done == octets { Ok(()) } else { Err(format!("{done} octets of {octets} came")) };
        }
        let wanted = piece(seed, done, len);
        if let Some(place) = wanted.iter().zip(&buffer).position(|(wanted, got)| wanted != got) {
            return Err(format!("another octet at {} of {octets}", done + place as u64));
        }
        done += len as u64;
    }
}

/// What stands in a stream at a place.
fn piece(seed: u64, place: u64, len: usize) -> &'static [u8] {
    let place = (seed as usize * 65_537 + place as usize) % PATTERN;
    &pattern()[place..place + len]
}

fn said(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// A datagram of each kind, and a stream, over loopback: whoever finds every fault must find none here.
#[test]
fn a_way_without_faults_has_none() {
    let lab = super::Lab::direct();
    let [from, to] = [&lab.alpha, &lab.beta].map(|host| End::of(host, host.address));
    let lengths = 0..=1472;
    let kinds = [
        Kind::Tcp(1 << 20, Some(536)),
        Kind::Udp(lengths.clone()),
        Kind::Udp(2000..=4000),
        Kind::Trains(1..=1472),
        Kind::Raw(lengths.clone(), true),
        Kind::Raw(lengths, false),
    ];
    let flow = |kind| Flow { kind, from: from.clone(), to: to.clone(), port: 0, datagrams: 500, window: 16 };
    carry(&kinds.map(flow));
}

#[test]
fn a_datagram_out_of_place_is_found() {
    let content = Content { seed: 3, lengths: 0..=1472 };
    let mut buffer = vec![0; PIECE];
    let from = ([192, 0, 2, 1], 9).into();
    let number = (20..).find(|&number| content.len(number) > 100).expect("one of them");
    let got = content.write(number, &mut buffer).to_vec();
    assert_eq!(content.explain(7, &got, from), format!("datagram {number} came when 7 was due"));
    let mut broken = got;
    broken[50] ^= 1;
    assert!(content.explain(number, &broken, from).ends_with("first other octet: Some(50)"));
}
