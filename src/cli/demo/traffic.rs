//! Small senders and receivers: pings with their round-trip times, and one TCP stream with its rate.
//!
//! A socket belongs to the namespace where it was made, so each is made inside and used from here. All that is sent repeats one
//! text, so that the tap on the wire knows what to look for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::Stop;
use crate::sys::netns::Namespace;

/// What every packet carries; 48 octets, so that any frame of TCP holds it whole.
pub const TEXT: &[u8; 48] = b"underpass demo: can anybody on the wire read me?";

/// ICMP (RFC 792): an echo request's header is type, code, checksum, identifier, sequence number.
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_HEADER: usize = 8;

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// An answer that takes longer is a lost one: the whole way is inside one machine.
const PING_PATIENCE: Duration = Duration::from_secs(1);

/// How long a TCP stream may stand still before we give it up.
const TCP_PATIENCE: Duration = Duration::from_secs(5);

/// Octets written and read at once: large enough that the system calls do not matter.
const TCP_BLOCK: usize = 5 * 48 * 1024;

/// How often waiting looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// The pings of one direction.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pings {
    /// Sent.
    pub sent: u32,
    /// Answered with the same content.
    pub answered: u32,
    /// The shortest round trip in milliseconds.
    pub min_ms: f64,
    /// The mean round trip in milliseconds.
    pub mean_ms: f64,
    /// The longest round trip in milliseconds.
    pub max_ms: f64,
}

/// A TCP stream's rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// From the first octet received to the last.
    pub seconds: f64,
    /// Octets received, every one the expected one.
    pub octets: u64,
    /// Payload in megabits (10⁶) per second.
    pub mbit_per_second: f64,
}

/// From where to where.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The sender's namespace.
    pub from: &'a Namespace,
    /// The sender's address.
    pub source: Ipv4Addr,
    /// The receiver's namespace.
    pub to: &'a Namespace,
    /// The receiver's address.
    pub destination: Ipv4Addr,
}

/// Sends `count` pings and waits for each one's answer.
///
/// # Errors
/// The system's; a ping without an answer is no error, but is not counted as answered.
pub fn ping(flow: Flow<'_>, count: u16, stop: &Stop) -> io::Result<Pings> {
    let socket = flow.from.run(|| ping_socket(flow)).map_err(io::Error::other)??;
    let (mut pings, mut round_trips) = (Pings::default(), Vec::new());
    for sequence in 1..=count {
        stop.check()?;
        let started = Instant::now();
        pings.sent += 1;
        match socket.send(&echo_request(sequence)) {
            Ok(_) => round_trips.extend(await_reply(&socket, sequence, started)?),
            // The route or the neighbour may be missing for the moment: lost, as far as the sender is concerned.
            Err(error) if matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {}
            Err(error) => return Err(error),
        }
        if sequence < count {
            thread::sleep(PING_INTERVAL.saturating_sub(started.elapsed()));
        }
    }
    pings.answered = round_trips.len() as u32;
    if !round_trips.is_empty() {
        pings.min_ms = round_trips.iter().copied().fold(f64::INFINITY, f64::min);
        pings.max_ms = round_trips.iter().copied().fold(0.0, f64::max);
        pings.mean_ms = round_trips.iter().sum::<f64>() / round_trips.len() as f64;
    }
    Ok(pings)
}

/// The kernel's ping socket: it fills in identifier and checksum, and hands over our own answers only. Whose group may have
/// one is a setting of the namespace, nobody's at first.
fn ping_socket(flow: Flow<'_>) -> io::Result<Socket> {
    let group = rustix::process::getegid();
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{group} {group}"))?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(flow.source, 0).into())?;
    socket.connect(&SocketAddrV4::new(flow.destination, 0).into())?;
    socket.set_read_timeout(Some(PING_PATIENCE))?;
    Ok(socket)
}

/// An echo request that carries the text.
pub fn echo_request(sequence: u16) -> Vec<u8> {
    let [high, low] = sequence.to_be_bytes();
    let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0, 0, high, low];
    message.extend_from_slice(TEXT);
    message
}

/// The round trip in milliseconds, or `None` when no answer came in time. Late answers to earlier pings are passed over.
fn await_reply(mut socket: &Socket, sequence: u16, started: Instant) -> io::Result<Option<f64>> {
    let mut buffer = [0; ECHO_HEADER + TEXT.len() + 1];
    while started.elapsed() < PING_PATIENCE {
        match socket.read(&mut buffer) {
            Ok(length) => {
                let expected = buffer.first() == Some(&ECHO_REPLY) && buffer[6..ECHO_HEADER] == sequence.to_be_bytes();
                if expected && buffer[ECHO_HEADER..length.max(ECHO_HEADER)] == TEXT[..] {
                    return Ok(Some(started.elapsed().as_secs_f64() * 1000.0));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Sends TCP for this long and reports the rate of every second as it goes.
///
/// # Errors
/// The system's; `InvalidData` when something else arrives than was sent; `TimedOut` when nothing arrives any more.
pub fn tcp(flow: Flow<'_>, duration: Duration, stop: &Stop, mut each_second: impl FnMut(f64)) -> io::Result<Throughput> {
    let listener = flow.to.run(|| TcpListener::bind(SocketAddrV4::new(flow.destination, 0))).map_err(io::Error::other)??;
    let address = listener.local_addr()?;
    let sender = flow.from.run(|| connect(flow.source, address)).map_err(io::Error::other)??;
    // The connection is established, so it waits here already.
    let (receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(TCP_PATIENCE))?;
    sender.set_write_timeout(Some(TICK))?;
    let (received, given_up) = (AtomicU64::new(0), Stop::never());
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, duration, || stop.check().and_then(|()| given_up.check())));
        let receiving = scope.spawn(|| receive(receiver, &received).inspect_err(|_| given_up.now()));
        let (mut last, mut last_octets) = (Instant::now(), 0);
        while !receiving.is_finished() {
            thread::sleep(TICK);
            if last.elapsed() >= Duration::from_secs(1) && !sending.is_finished() {
                let octets = received.load(Ordering::Relaxed);
                each_second(mbit_per_second(octets - last_octets, last.elapsed()));
                (last, last_octets) = (Instant::now(), octets);
            }
        }
        let sent = sending.join().unwrap_or_else(|panic| resume_unwind(panic));
        let throughput = receiving.join().unwrap_or_else(|panic| resume_unwind(panic));
        match (sent, throughput) {
            (Ok(sent), Ok(throughput)) if throughput.octets == sent => Ok(throughput),
            (Ok(sent), Ok(throughput)) => {
                let what = format!("{sent} octets were sent and {} arrived", throughput.octets);
                Err(io::Error::new(ErrorKind::InvalidData, what))
            }
            // A receiver that gave up knows why; the sender knows only that.
            (_, Err(error)) if stop.check().is_ok() => Err(error),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    })
}

fn connect(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.connect_timeout(&address.into(), TCP_PATIENCE)?;
    Ok(socket.into())
}

/// Writes the text again and again; returns how many octets.
fn send(mut stream: TcpStream, duration: Duration, check: impl Fn() -> io::Result<()>) -> io::Result<u64> {
    let block = TEXT.repeat(TCP_BLOCK / TEXT.len());
    let (started, mut sent) = (Instant::now(), 0u64);
    while started.elapsed() < duration {
        check()?;
        // Go on where the last write ended, which may be anywhere in the text.
        let phase = (sent % block.len() as u64) as usize;
        match stream.write(&block[phase..]) {
            Ok(length) => sent += length as u64,
            // A full buffer for a tick: whether that is too long is the receiver's to say.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

/// Reads to the end and compares every octet.
fn receive(mut stream: TcpStream, received: &AtomicU64) -> io::Result<Throughput> {
    // One repetition more than is read at once, so that it can be compared from any point of the text.
    let expected = TEXT.repeat(TCP_BLOCK / TEXT.len() + 1);
    let mut buffer = vec![0; TCP_BLOCK];
    let (mut started, mut octets) = (None, 0u64);
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::new(ErrorKind::TimedOut, "the stream stands still"));
            }
            Err(error) => return Err(error),
        };
        started.get_or_insert_with(Instant::now);
        let phase = (octets % TEXT.len() as u64) as usize;
        if buffer[..length] != expected[phase..phase + length] {
            return Err(io::Error::new(ErrorKind::InvalidData, "something else arrived than was sent"));
        }
        octets += length as u64;
        received.store(octets, Ordering::Relaxed);
    }
    let elapsed = started.map_or(Duration::ZERO, |started| started.elapsed());
    Ok(Throughput { seconds: elapsed.as_secs_f64(), octets, mbit_per_second: mbit_per_second(octets, elapsed) })
}

fn mbit_per_second(octets: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { octets as f64 * 8.0 / 1e6 / elapsed.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::hosts::tests::two_hosts;

    #[test]
    fn every_ping_over_a_plain_wire_is_answered() {
        let hosts = two_hosts();
        let flow = Flow {
            from: &hosts[0],
            source: Ipv4Addr::new(192, 0, 2, 1),
            to: &hosts[1],
            destination: Ipv4Addr::new(192, 0, 2, 2),
        };
        let pings = ping(flow, 3, &Stop::never()).unwrap();
        assert_eq!((pings.sent, pings.answered), (3, 3));
        assert!(0.0 < pings.min_ms && pings.min_ms <= pings.mean_ms && pings.mean_ms <= pings.max_ms, "{pings:?}");
        // Nobody has that address.
        let nobody = Flow { destination: Ipv4Addr::new(192, 0, 2, 3), ..flow };
        assert_eq!(ping(nobody, 1, &Stop::never()).unwrap().answered, 0);
    }

    #[test]
    fn a_tcp_stream_is_measured_and_compared() {
        let hosts = two_hosts();
        let flow = Flow {
            from: &hosts[0],
            source: Ipv4Addr::new(192, 0, 2, 1),
            to: &hosts[1],
            destination: Ipv4Addr::new(192, 0, 2, 2),
        };
        let throughput = tcp(flow, Duration::from_millis(300), &Stop::never(), |_| {}).unwrap();
        assert!(throughput.octets > 0, "{throughput:?}");
        assert!(throughput.mbit_per_second > 1.0, "{throughput:?}");
        let stopped = Stop::never();
        stopped.now();
        assert_eq!(tcp(flow, Duration::from_secs(60), &stopped, |_| {}).unwrap_err().kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn a_wrong_octet_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut octets = TEXT.repeat(3);
        octets[100] ^= 1;
        sender.write_all(&octets).unwrap();
        drop(sender);
        let error = receive(listener.accept().unwrap().0, &AtomicU64::new(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
