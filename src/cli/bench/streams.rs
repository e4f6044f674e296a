//! TCP streams that run until they are told to stop, and count what arrives.
//!
//! Each has a thread at either end. What they send means nothing and nobody compares it: the kernel's part is to be measured.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::cli::lab::{Flow, Stop};

/// Octets per system call, as `iperf3` has it.
const BLOCK: usize = 128 << 10;

/// How often a thread that waits looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Streams under way; dropping them stops them.
pub struct Streams {
    received: Arc<AtomicU64>,
    stop: Stop,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Streams {
    /// Connects so many streams for each flow and lets them run.
    pub fn start(flows: &[Flow<'_>], count: usize) -> io::Result<Self> {
        let mut streams = Self { received: Arc::default(), stop: Stop::never(), threads: Vec::new() };
        for flow in flows {
            let bind = || TcpListener::bind(SocketAddrV4::new(flow.destination, 0));
            let listener = flow.to.run(bind).map_err(io::Error::other)??;
            let address = listener.local_addr()?;
            for _ in 0..count {
                let sender = flow.from.run(|| connect(flow.source, address)).map_err(io::Error::other)??;
                // The connection is established, so it waits here already.
                let (receiver, _) = listener.accept()?;
                streams.launch(sender, receiver)?;
            }
        }
        Ok(streams)
    }

    fn launch(&mut self, sender: TcpStream, receiver: TcpStream) -> io::Result<()> {
        sender.set_write_timeout(Some(TICK))?;
        receiver.set_read_timeout(Some(TICK))?;
        let stop = self.stop.clone();
        self.threads.push(spawn(move || send(sender, &stop))?);
        let (stop, received) = (self.stop.clone(), Arc::clone(&self.received));
        self.threads.push(spawn(move || receive(receiver, &received, &stop))?);
        Ok(())
    }

    /// Octets that have arrived so far, of all streams.
    pub fn octets(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops them all. The error is one that ended a stream before.
    pub fn finish(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        self.stop.now();
        let ends: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        ends.into_iter().try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn spawn(body: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name("stream".to_owned()).spawn(body)
}

fn connect(source: Ipv4Addr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    socket.connect_timeout(&address.into(), CONNECT_PATIENCE)?;
    Ok(socket.into())
}

/// Whether the other end has gone: it was told to stop first.
fn is_farewell(error: &io::Error, stop: &Stop) -> bool {
    stop.check().is_err() && matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn send(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
    let block = vec![0x55; BLOCK];
    while stop.check().is_ok() {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) if is_farewell(&error, stop) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(mut stream: TcpStream, received: &AtomicU64, stop: &Stop) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    while stop.check().is_ok() {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(octets) => drop(received.fetch_add(octets as u64, Ordering::Relaxed)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) if is_farewell(&error, stop) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::lab::hosts::tests::two_hosts;

    #[test]
    fn streams_run_both_ways_until_they_are_stopped() {
        let hosts = two_hosts();
        let [alpha, beta] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let there = Flow { from: &hosts[0], source: alpha, to: &hosts[1], destination: beta };
        let back = Flow { from: &hosts[1], source: beta, to: &hosts[0], destination: alpha };
        let streams = Streams::start(&[there, back], 2).unwrap();
        assert_eq!(streams.threads.len(), 8, "two streams each way, two threads each");
        while streams.octets() < 1 << 20 {
            thread::yield_now();
        }
        streams.finish().unwrap();
    }

    #[test]
    fn nobody_there_is_an_error() {
        let hosts = two_hosts();
        let [alpha, nobody] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 3)];
        let flow = Flow { from: &hosts[0], source: alpha, to: &hosts[1], destination: nobody };
        assert_eq!(Streams::start(&[flow], 1).err().unwrap().kind(), ErrorKind::AddrNotAvailable);
    }
}
