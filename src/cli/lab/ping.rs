//! Pings with their round-trip times.
//!
//! A socket belongs to the namespace where it was made, so each is made inside and used from here. All that is sent repeats one
//! text, so that a tap on the wire knows what to look for.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Flow, Stop};

/// What every packet carries; 48 octets, so that any frame of TCP holds it whole.
pub const TEXT: &[u8; 48] = b"underpass demo: can anybody on the wire read me?";

/// ICMP (RFC 792): an echo request's header is type, code, checksum, identifier, sequence number.
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_HEADER: usize = 8;

/// An answer that takes longer is a lost one: the whole way is inside one machine.
const PING_PATIENCE: Duration = Duration::from_secs(1);

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

/// Sends `count` pings, one per `interval`, and waits for each one's answer before the next.
///
/// # Errors
/// The system's; a ping without an answer is no error, but is not counted as answered.
pub fn ping(flow: Flow<'_>, count: u16, interval: Duration, stop: &Stop) -> io::Result<Pings> {
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
            thread::sleep(interval.saturating_sub(started.elapsed()));
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::cli::lab::hosts::tests::two_hosts;

    #[test]
    fn every_ping_over_a_plain_wire_is_answered() {
        let hosts = two_hosts();
        let flow = Flow {
            from: &hosts[0],
            source: Ipv4Addr::new(192, 0, 2, 1),
            to: &hosts[1],
            destination: Ipv4Addr::new(192, 0, 2, 2),
        };
        let pings = ping(flow, 3, Duration::from_millis(1), &Stop::never()).unwrap();
        assert_eq!((pings.sent, pings.answered), (3, 3));
        assert!(0.0 < pings.min_ms && pings.min_ms <= pings.mean_ms && pings.mean_ms <= pings.max_ms, "{pings:?}");
        // Nobody has that address.
        let nobody = Flow { destination: Ipv4Addr::new(192, 0, 2, 3), ..flow };
        assert_eq!(ping(nobody, 1, Duration::ZERO, &Stop::never()).unwrap().answered, 0);
    }
}
