//! One figure after the other, on a way that stands.

use std::thread;
use std::time::{Duration, Instant};

use super::machine;
use super::matrix::{Figure, Way};
use super::packets::Packets;
use super::search;
use super::site::Site;
use super::streams::Streams;
use crate::cli::lab::ping::{self, Pings};
use crate::cli::lab::{Failure, Flow, Stop};

/// Pings of an idle tunnel, at most.
const IDLE_PINGS: u16 = 100;

/// Between two of them.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Between two pings beside a stream: too few to be felt by it.
const LOADED_INTERVAL: Duration = Duration::from_millis(20);

/// Streams run for this part of a measurement's time before it begins, until their windows are open.
const WARM_UP: f64 = 0.2;

/// A trial of the search for a rate takes this part of a measurement's time.
const TRIAL: f64 = 1.0 / 6.0;

/// A flood takes this part of it.
const FLOOD: f64 = 0.5;

/// The search starts this far above what arrives of a flood: a flood may be worse for what it meets than the best rate is.
const HEADROOM: f64 = 1.6;

/// How often waiting looks whether it should stop.
const TICK: Duration = Duration::from_millis(50);

/// How long a figure takes on one way, for the estimate; those that come with another take none.
pub fn expected(figure: Figure, duration: Duration) -> Duration {
    match figure {
        Figure::RttLoaded | Figure::Cpu | Figure::Memory => Duration::ZERO,
        Figure::RttIdle => IDLE_INTERVAL * idle_pings(duration).into(),
        Figure::Udp1372 | Figure::UdpImix | Figure::Udp64 => duration.mul_f64(FLOOD + TRIAL * search::RATES as f64),
        Figure::Flood64 => duration.mul_f64(FLOOD),
        _ => duration.mul_f64(1.0 + WARM_UP),
    }
}

fn idle_pings(duration: Duration) -> u16 {
    // A third of a measurement's time.
    let fitting = duration.as_millis() / (3 * IDLE_INTERVAL.as_millis());
    fitting.clamp(3, IDLE_PINGS.into()) as u16
}

/// Measures on one site.
pub struct Measure<'a> {
    site: &'a Site,
    duration: Duration,
    stop: &'a Stop,
}

/// What a window of TCP showed.
struct Window {
    mbit_per_second: f64,
    cpu_seconds_per_gb: f64,
}

impl<'a> Measure<'a> {
    /// Each figure for so long.
    pub const fn new(site: &'a Site, duration: Duration, stop: &'a Stop) -> Self {
        Self { site, duration, stop }
    }

    /// Measures what was asked for on this way, in an order that leaves the loads apart, and hands over each value.
    pub fn all(&self, way: Way, figures: &[Figure], mut done: impl FnMut(Figure, f64)) -> Result<(), Failure> {
        let wants = |figure: Figure| figures.contains(&figure) && figure.applies(way);
        if wants(Figure::RttIdle) {
            let pings = self.ping(idle_pings(self.duration), IDLE_INTERVAL)?;
            done(Figure::RttIdle, pings.mean_ms * 1000.0);
        }
        if [Figure::Tcp1, Figure::RttLoaded, Figure::Cpu].into_iter().any(wants) {
            let (window, pings) = self.loaded()?;
            done(Figure::Tcp1, window.mbit_per_second);
            done(Figure::RttLoaded, pings.mean_ms * 1000.0);
            if way.has_program() {
                done(Figure::Cpu, window.cpu_seconds_per_gb);
            }
        }
        let (there, back) = (self.site.there(), self.site.back());
        for (figure, flows, count) in [
            (Figure::Tcp4, &[there][..], 4),
            (Figure::Tcp16, &[there], 16),
            (Figure::TcpReverse, &[back], 1),
            (Figure::TcpBoth, &[there, back], 1),
            (Figure::Container, &self.site.contained().map_or(Vec::new(), |flow| vec![flow]), 1),
        ] {
            if wants(figure) {
                done(figure, self.tcp(figure, flows, count)?.mbit_per_second);
            }
        }
        for figure in [Figure::Udp1372, Figure::UdpImix, Figure::Udp64, Figure::Flood64] {
            if wants(figure) {
                done(figure, self.udp(figure)?);
            }
        }
        if wants(Figure::Memory)
            && let Some(peak) = machine::peak_mib(&self.site.processes())
        {
            done(Figure::Memory, peak);
        }
        Ok(())
    }

    fn ping(&self, count: u16, interval: Duration) -> Result<Pings, Failure> {
        let pings =
            ping::ping(self.site.there(), count, interval, self.stop).map_err(|error| Failure::io("ping", &error))?;
        if pings.answered == 0 {
            return Err(Failure::Failed(format!("none of {count} pings was answered")));
        }
        Ok(pings)
    }

    /// One stream, and pings beside it.
    fn loaded(&self) -> Result<(Window, Pings), Failure> {
        let count = (self.duration.as_millis() / LOADED_INTERVAL.as_millis()).clamp(3, 1000) as u16;
        thread::scope(|scope| {
            let pings = scope.spawn(|| {
                self.sleep(self.duration.mul_f64(WARM_UP))?;
                self.ping(count, LOADED_INTERVAL)
            });
            let window = self.tcp(Figure::Tcp1, &[self.site.there()], 1);
            let pings = pings.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((window?, pings?))
        })
    }

    fn tcp(&self, figure: Figure, flows: &[Flow<'_>], count: usize) -> Result<Window, Failure> {
        let failed = |error: std::io::Error| Failure::io(figure.label(), &error);
        let streams = Streams::start(flows, count).map_err(failed)?;
        self.sleep(self.duration.mul_f64(WARM_UP))?;
        let processes = self.site.processes();
        let (started, octets, cpu) = (Instant::now(), streams.octets(), machine::cpu_seconds(&processes));
        self.sleep(self.duration)?;
        let (elapsed, octets) = (started.elapsed(), streams.octets() - octets);
        let cpu = machine::cpu_seconds(&processes) - cpu;
        streams.finish().map_err(failed)?;
        if octets == 0 {
            return Err(Failure::Failed(format!("{}: nothing arrived", figure.label())));
        }
        let mbit_per_second = octets as f64 * 8.0 / 1e6 / elapsed.as_secs_f64();
        Ok(Window { mbit_per_second, cpu_seconds_per_gb: cpu / (octets as f64 / 1e9) })
    }

    /// A rate of datagrams, in the figure's unit.
    fn udp(&self, figure: Figure) -> Result<f64, Failure> {
        let failed = |error: std::io::Error| Failure::io(figure.label(), &error);
        let mut packets = Packets::new(self.site.there(), figure.lengths()).map_err(failed)?;
        let flood = packets.send(None, self.duration.mul_f64(FLOOD), self.stop).map_err(failed)?;
        let best = if figure == Figure::Flood64 {
            Some(flood)
        } else {
            let trial = self.duration.mul_f64(TRIAL);
            let attempt = |rate| packets.send(Some(rate), trial, self.stop).map_err(failed);
            search::highest(flood.rate().max(1.0) * HEADROOM, attempt)?
        };
        let value = |best: super::packets::Trial| match figure {
            Figure::Udp1372 => best.mbit_per_second(),
            _ => best.rate() / 1e3,
        };
        Ok(best.map_or(0.0, value))
    }

    fn sleep(&self, duration: Duration) -> Result<(), Failure> {
        let started = Instant::now();
        while started.elapsed() < duration {
            self.stop.check().map_err(|_| Failure::Interrupted)?;
            thread::sleep(TICK.min(duration.saturating_sub(started.elapsed())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_another_figure_costs_no_time() {
        let second = Duration::from_secs(1);
        assert_eq!(expected(Figure::Cpu, second), Duration::ZERO);
        assert_eq!(expected(Figure::Tcp4, second), Duration::from_millis(1200));
        assert_eq!((idle_pings(Duration::from_millis(1)), idle_pings(second), idle_pings(second * 60)), (3, 33, 100));
        assert!(Figure::ALL.into_iter().all(|figure| expected(figure, second) < second * 2));
    }
}
