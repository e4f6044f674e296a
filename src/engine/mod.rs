//! The threads of the agent: one control thread, and one worker per core, around machines that know none of them.
//!
//! - [`worker`](self) (`worker/`): packets between its TUN queue and its UDP socket, both directions, by its own data plane;
//!   what came in is joined into super-packets where that changes nothing (`coalesce.rs`, `sink.rs`), and what this kernel
//!   does not take goes another way (`fallback.rs`);
//! - control (`control.rs`): IKE's sockets, timers and everything that decides, by the [`Brain`];
//! - between them: orders and news (`mailbox.rs`), and packets that reached the wrong thread (`exchange.rs`, `forward.rs`).
//!
//! No thread shares what it writes to with another, but for rings and counters; none holds a lock. [`Engine::start`] opens what
//! can fail, so that an agent that cannot work says so at once; afterwards it speaks with the brain by closures
//! ([`Handle::call`], [`Handle::ask`]) and hears of a thread that ended ([`Handle::ended`]).

mod brain;
pub mod ceiling;
mod coalesce;
mod control;
mod diary;
mod exchange;
mod fallback;
mod forward;
mod handle;
mod mailbox;
mod narrow;
mod sink;
mod start;
mod stranger;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time;

pub use brain::Brain;
pub use exchange::Strays;
pub use fallback::Fallback;
pub use handle::{Caller, Ended, Handle, Unreachable};
pub use start::{Config, Engine, EngineError};

use crate::model::Instant;
use crate::sys::tun::Offloads;
use exchange::Exchange;

/// A request to the brain, done on the control thread.
pub(crate) type Command<B> = Box<dyn FnOnce(&mut B, Instant) + Send>;

/// What of the inner packets is joined; what the kernel refuses leaves it.
#[derive(Debug, Default)]
pub(crate) struct LiveOffloads {
    tcp: AtomicBool,
    udp: AtomicBool,
}

impl LiveOffloads {
    fn new(offloads: Offloads) -> Self {
        Self { tcp: offloads.tcp.into(), udp: offloads.udp.into() }
    }

    fn set(&self, offloads: Offloads) {
        self.tcp.store(offloads.tcp, Ordering::Relaxed);
        self.udp.store(offloads.udp, Ordering::Relaxed);
    }

    fn offloads(&self) -> Offloads {
        Offloads { tcp: self.tcp.load(Ordering::Relaxed), udp: self.udp.load(Ordering::Relaxed) }
    }
}

/// What all threads see.
pub(crate) struct Shared {
    origin: time::Instant,
    stopping: AtomicBool,
    joined: LiveOffloads,
    exchange: Exchange,
}

impl Shared {
    /// The time, counted from the engine's start.
    fn now(&self) -> Instant {
        Instant::from_origin(self.origin.elapsed())
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Tells every thread to end.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        for member in 0..=self.exchange.workers() {
            self.exchange.doorbell(member).ring();
        }
    }
}
