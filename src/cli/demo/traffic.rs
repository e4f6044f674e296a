//! One TCP stream with its rate.
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

use crate::cli::lab::ping::TEXT;
use crate::cli::lab::{Flow, Stop};

/// How long a TCP stream may stand still before we give it up.
const TCP_PATIENCE: Duration = Duration::from_secs(5);

/// Octets written and read at once: large enough that the system calls do not matter.
const TCP_BLOCK: usize = 5 * 48 * 1024;

/// How often waiting looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

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
    use crate::cli::lab::hosts::tests::two_hosts;

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
