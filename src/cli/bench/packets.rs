//! UDP at a rate: a generator and a sink in one process, so that what was lost is known exactly.
//!
//! Every datagram bears the number of its trial. What comes late belongs to the trial that sent it.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cli::lab::{Flow, Stop};
use crate::sys::burst::{BURST, BurstSender, BurstSink};

/// Trials that are told apart; a later one takes an earlier one's place.
const TRIALS: usize = 64;

/// How long the generator sleeps when nothing is due: at 300,000 packets per second, a burst.
const NAP: Duration = Duration::from_micros(50);

/// No datagram is on its way for longer than this without another one arriving.
const SILENCE: Duration = Duration::from_millis(100);

/// How long after the end of a trial its datagrams are waited for, at most.
const DRAIN: Duration = Duration::from_secs(1);

/// What became of the datagrams of one trial.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trial {
    /// Handed to the kernel.
    pub sent: u64,
    /// Arrived.
    pub received: u64,
    /// Octets of these.
    pub octets: u64,
    /// How long was sent.
    pub seconds: f64,
}

impl Trial {
    /// Datagrams sent per second.
    pub fn sent_rate(&self) -> f64 {
        self.sent as f64 / self.seconds
    }

    /// Datagrams received per second.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.seconds
    }

    /// Received megabits (10⁶) of payload per second.
    pub fn mbit_per_second(&self) -> f64 {
        self.octets as f64 * 8.0 / 1e6 / self.seconds
    }

    /// The part that was lost.
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }
}

/// Datagrams and octets that arrived of one trial.
#[derive(Default)]
struct Count {
    datagrams: AtomicU64,
    octets: AtomicU64,
}

/// What the sink's thread shares with us.
struct Shared {
    counts: [Count; TRIALS],
    is_over: AtomicBool,
}

/// A generator and its sink.
pub struct Packets {
    sender: BurstSender,
    shared: Arc<Shared>,
    sink: Option<JoinHandle<io::Result<()>>>,
    trial: u32,
}

impl Packets {
    /// Makes both, for datagrams of these lengths in turn.
    pub fn new(flow: Flow<'_>, lengths: &[usize]) -> io::Result<Self> {
        let make = || BurstSink::new(SocketAddrV4::new(flow.destination, 0));
        let mut sink = flow.to.run(make).map_err(io::Error::other)??;
        let address = sink.address()?;
        let make = || BurstSender::new(SocketAddrV4::new(flow.source, 0), address, lengths);
        let sender = flow.from.run(make).map_err(io::Error::other)??;
        let counts = std::array::from_fn(|_| Count::default());
        let shared = Arc::new(Shared { counts, is_over: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        let count = move || {
            while !theirs.is_over.load(Ordering::Relaxed) {
                sink.receive(|mark, len| {
                    let count = &theirs.counts[mark as usize % TRIALS];
                    count.datagrams.fetch_add(1, Ordering::Relaxed);
                    count.octets.fetch_add(len.into(), Ordering::Relaxed);
                })?;
            }
            Ok(())
        };
        let sink = thread::Builder::new().name("sink".to_owned()).spawn(count)?;
        Ok(Self { sender, shared, sink: Some(sink), trial: 0 })
    }

    /// Sends for this long, at so many datagrams per second or as fast as it goes, and waits for the last to arrive.
    pub fn send(&mut self, rate: Option<f64>, duration: Duration, stop: &Stop) -> io::Result<Trial> {
        self.trial += 1;
        let count = &self.shared.counts[self.trial as usize % TRIALS];
        count.datagrams.store(0, Ordering::Relaxed);
        count.octets.store(0, Ordering::Relaxed);
        let (started, mut sent) = (Instant::now(), 0);
        let elapsed = loop {
            let elapsed = started.elapsed();
            if elapsed >= duration {
                break elapsed;
            }
            let due = rate.map_or(sent + BURST as u64, |rate| (elapsed.as_secs_f64() * rate) as u64);
            if due > sent {
                sent += self.sender.send(self.trial, (due - sent) as usize)? as u64;
            } else {
                stop.check()?;
                thread::sleep(NAP);
            }
            if rate.is_none() {
                stop.check()?;
            }
        };
        self.drain(sent);
        let count = &self.shared.counts[self.trial as usize % TRIALS];
        Ok(Trial {
            sent,
            received: count.datagrams.load(Ordering::Relaxed),
            octets: count.octets.load(Ordering::Relaxed),
            seconds: elapsed.as_secs_f64(),
        })
    }

    /// Waits until all have arrived, or none arrives any more.
    fn drain(&self, sent: u64) {
        let count = &self.shared.counts[self.trial as usize % TRIALS].datagrams;
        let (started, mut last, mut last_at) = (Instant::now(), 0, Instant::now());
        while started.elapsed() < DRAIN && last_at.elapsed() < SILENCE {
            let seen = count.load(Ordering::Relaxed);
            if seen >= sent {
                break;
            }
            if seen != last {
                (last, last_at) = (seen, Instant::now());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = self.sink.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::cli::lab::hosts::tests::two_hosts;

    #[test]
    fn every_datagram_of_a_slow_trial_arrives_and_is_counted() {
        let hosts = two_hosts();
        let [alpha, beta] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let flow = Flow { from: &hosts[0], source: alpha, to: &hosts[1], destination: beta };
        let mut packets = Packets::new(flow, &[64, 128]).unwrap();
        // The first finds the neighbour.
        packets.send(Some(100.0), Duration::from_millis(50), &Stop::never()).unwrap();
        let trial = packets.send(Some(2000.0), Duration::from_millis(200), &Stop::never()).unwrap();
        assert!(trial.sent > 0 && trial.sent <= 401, "{trial:?}");
        assert_eq!(trial.received, trial.sent);
        assert!(trial.octets.abs_diff(trial.sent * 96) <= 64, "{trial:?}");
        assert_eq!(trial.loss(), 0.0);
        let stopped = Stop::never();
        stopped.now();
        let error = packets.send(None, Duration::from_secs(60), &stopped).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
