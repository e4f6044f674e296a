//! What the agent holds of a running engine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{self, Duration};
use std::{fmt, io, mem};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::exchange::Strays;
use super::{Command, Fallback, Shared, fallback};
use crate::model::{Drops, Instant};
use crate::sys::tun::{Offloads, TunQueue};
use crate::sys::udp::{Buffers, UdpSocket};

/// How long a request may wait for the control thread, which answers within milliseconds unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running engine.
pub struct Handle<B> {
    pub(super) caller: Caller<B>,
    pub(super) tun_name: String,
    pub(super) drops: Vec<Arc<Drops>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) ended: Receiver<Ended>,
    /// What the kernel granted for the device; none if offloads are not wanted.
    pub(super) granted: Option<Offloads>,
    /// A second way to the first queue, to try out what the device takes.
    pub(super) tester: Option<Box<dyn TunQueue + Sync>>,
    /// Kept so that the sockets of a group are closed together: a worker that dies alone must not renumber the others.
    pub(super) sockets: Vec<Arc<UdpSocket>>,
}

/// A way to the brain that can be given to other threads.
pub struct Caller<B> {
    pub(super) commands: Sender<Command<B>>,
    pub(super) shared: Arc<Shared>,
}

/// A thread that is not there any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The thread's name.
    pub thread: String,
    /// Why; none if it was told to stop.
    pub failure: Option<String>,
}

/// The brain did not take a request, or did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreachable {
    /// The control thread ended.
    #[error("the control thread has ended")]
    Ended,
    /// It does not get round to it.
    #[error("the control thread does not answer")]
    Busy,
}

impl<B> Clone for Caller<B> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<B> fmt::Debug for Caller<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({} requests wait)", self.commands.len())
    }
}

impl<B> fmt::Debug for Handle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?}, {} threads)", self.tun_name, self.threads.len())
    }
}

impl<B: 'static> Caller<B> {
    /// Lets the control thread do something with the brain, later.
    ///
    /// # Errors
    /// If it is gone or stuck.
    pub fn call(&self, command: impl FnOnce(&mut B, Instant) + Send + 'static) -> Result<(), Unreachable> {
        self.commands.send_timeout(Box::new(command), PATIENCE).map_err(|error| match error.is_timeout() {
            true => Unreachable::Busy,
            false => Unreachable::Ended,
        })?;
        let exchange = &self.shared.exchange;
        exchange.doorbell(exchange.control()).ring();
        Ok(())
    }

    /// The same, and waits for the answer.
    ///
    /// # Errors
    /// If it is gone or stuck.
    pub fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut B, Instant) -> R + Send + 'static,
    ) -> Result<R, Unreachable> {
        let (sender, receiver) = bounded(1);
        self.call(move |brain, now| {
            // Who asked may have lost patience.
            let _ = sender.send(question(brain, now));
        })?;
        receiver.recv_timeout(PATIENCE).map_err(|error| match error.is_timeout() {
            true => Unreachable::Busy,
            false => Unreachable::Ended,
        })
    }

    /// Which packets travel as super-packets between the host's stack and us, in both directions.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.shared.joined.offloads()
    }

    /// What each worker handed to others.
    #[must_use]
    pub fn strays(&self) -> Vec<Strays> {
        self.shared.exchange.strays()
    }

    /// The time, as the brain and the workers count it.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.now()
    }
}

impl<B: 'static> Handle<B> {
    /// A way to the brain for another thread.
    #[must_use]
    pub fn caller(&self) -> Caller<B> {
        self.caller.clone()
    }

    /// As [`Caller::call`].
    ///
    /// # Errors
    /// If the control thread is gone or stuck.
    pub fn call(&self, command: impl FnOnce(&mut B, Instant) + Send + 'static) -> Result<(), Unreachable> {
        self.caller.call(command)
    }

    /// As [`Caller::ask`].
    ///
    /// # Errors
    /// If the control thread is gone or stuck.
    pub fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut B, Instant) -> R + Send + 'static,
    ) -> Result<R, Unreachable> {
        self.caller.ask(question)
    }

    /// The TUN device's name.
    #[must_use]
    pub fn tun_name(&self) -> &str {
        &self.tun_name
    }

    /// The ports that are bound: IKE's and NAT-T's.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        (self.sockets[0].local().port(), self.sockets[1].local().port())
    }

    /// The sockets that ESP travels by.
    fn worker_sockets(&self) -> &[Arc<UdpSocket>] {
        &self.sockets[2..]
    }

    /// The socket buffers: those of the worker that got least.
    #[must_use]
    pub fn buffers(&self) -> Buffers {
        let all = self.worker_sockets().iter().map(|socket| socket.buffers());
        all.reduce(Buffers::least).unwrap_or_default()
    }

    /// How many datagrams leave as one train at most.
    #[must_use]
    pub fn train(&self) -> usize {
        let of = |socket: &Arc<UdpSocket>| if socket.segmentation() { socket.max_segments() } else { 1 };
        self.worker_sockets().iter().map(of).min().unwrap_or(1)
    }

    /// What does not work as it should at the moment.
    #[must_use]
    pub fn fallbacks(&self) -> Vec<Fallback> {
        let sockets = self.worker_sockets();
        let mut found = Vec::new();
        if let Some(granted) = self.granted {
            let joined = self.caller.offloads();
            found.extend((!granted.tcp).then_some(Fallback::TunTcp));
            found.extend((!granted.udp).then_some(Fallback::TunUdp));
            found.extend((granted.tcp && !joined.tcp).then_some(Fallback::TunWriteTcp));
            found.extend((granted.udp && !joined.udp).then_some(Fallback::TunWriteUdp));
        }
        found.extend(sockets.iter().any(|socket| !socket.segmentation()).then_some(Fallback::Trains));
        found.extend(sockets.iter().any(|socket| !socket.sends_long_trains()).then_some(Fallback::LongTrains));
        found
    }

    /// Tries out which super-packets the device takes. It must be up.
    pub fn test_device(&self) {
        if let (Some(granted), Some(tester)) = (self.granted, &self.tester) {
            self.caller.shared.joined.set(fallback::accepted(tester.as_ref(), granted));
        }
    }

    /// Whether [`Self::give_host`] can do anything: the plain backend has one way to the device alone.
    #[must_use]
    pub const fn can_give_host(&self) -> bool {
        self.tester.is_some()
    }

    /// Gives the host's stack one packet, as if the tunnel had brought it.
    ///
    /// # Errors
    /// What the kernel says; EIO while the device is down.
    pub fn give_host(&self, packet: &[u8]) -> io::Result<()> {
        self.tester.as_ref().map_or(Ok(()), |tester| tester.write_packet(packet))
    }

    /// Tries again what was refused: after a change of routes or interfaces it may work.
    pub fn retry_fallbacks(&self) {
        self.worker_sockets().iter().for_each(|socket| socket.set_segmentation(true));
        if self.granted.is_some_and(|granted| granted != self.caller.offloads()) {
            self.test_device();
        }
    }

    /// The drop counters of each worker, then the control thread's. The brain has its own besides.
    #[must_use]
    pub fn drops(&self) -> &[Arc<Drops>] {
        &self.drops
    }

    /// Tells of each thread that ends, by failure or because it was told to. An engine that lost a thread is to be stopped: the
    /// tunnels of a dead worker do not move to another.
    #[must_use]
    pub const fn ended(&self) -> &Receiver<Ended> {
        &self.ended
    }

    /// Ends all threads. Requests made before are still done, and what the brain sends on them leaves.
    ///
    /// # Errors
    /// What went wrong in each thread that failed, now or before, or did not end in time.
    pub fn stop(mut self, patience: Duration) -> Result<(), Vec<Ended>> {
        self.caller.shared.stop();
        let deadline = time::Instant::now() + patience;
        let mut missing: Vec<String> =
            self.threads.iter().map(|thread| thread.thread().name().unwrap_or_default().to_owned()).collect();
        let mut failed = Vec::new();
        while !missing.is_empty() {
            let Ok(ended) = self.ended.recv_deadline(deadline) else { break };
            missing.retain(|name| *name != ended.thread);
            if ended.failure.is_some() {
                failed.push(ended);
            }
        }
        // A thread that said that it ended is joined at once. One whose end the agent heard of earlier is finished as well.
        for thread in mem::take(&mut self.threads) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.is_finished() || !missing.contains(&name) {
                // Panics were caught within.
                let _ = thread.join();
            } else {
                failed.push(Ended { thread: name, failure: Some("did not end in time".to_owned()) });
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }
}

impl<B> Drop for Handle<B> {
    /// An agent that gives up without [`stop`](Handle::stop) leaves no device and no socket behind for long.
    fn drop(&mut self) {
        self.caller.shared.stop();
    }
}

/// Starts a thread whose end, also by panic, is told.
pub(super) fn spawn<E: fmt::Display>(
    name: String,
    ended: Sender<Ended>,
    body: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.clone()).spawn(move || {
        // Whatever the body broke is dropped with it: nothing of it is seen again.
        let failure = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(format!("panic: {}", panic_text(panic.as_ref()))),
        };
        // The channel holds one message of each thread.
        let _ = ended.send(Ended { thread: name, failure });
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}
