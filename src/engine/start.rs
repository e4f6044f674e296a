//! Opening devices and sockets, and starting the threads over them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time;

use crossbeam_channel::bounded;
use mio::{Poll, Waker};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::brain::Brain;
use super::control::{self, Control};
use super::exchange::{Doorbell, Exchange};
use super::forward::pool_size;
use super::handle::{Caller, Ended, Handle, spawn};
use super::worker::{self, WAKER, Worker};
use super::{LiveOffloads, Shared, mailbox};
use crate::crypto::Provider;
use crate::esp;
use crate::model::{Drops, WorkerIndex};
use crate::sys::tun::{TunBackend, TunDevice, TunError};
use crate::sys::udp::{UdpError, UdpGroup, UdpSocket};

/// Requests that wait for the control thread.
const COMMANDS: usize = 64;

/// What an engine is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; the IPv6 wildcard serves both families.
    pub listen: IpAddr,
    /// IKE's port (500). 0 takes a free one.
    pub ike_port: u16,
    /// The NAT-T port (4500). 0 takes a free one.
    pub natt_port: u16,
    /// The TUN device's name.
    pub tun_name: String,
    /// Who opens it. The plain backend has one queue, so one worker.
    pub tun_backend: TunBackend,
    /// Whether packets travel as super-packets between the host's stack and us, as far as the kernel and the backend can.
    pub tun_offload: bool,
    /// Its MTU, in octets. The agent sets it on the device.
    pub tun_mtu: u16,
    /// How many workers: at least one.
    pub workers: u8,
    /// Whether each worker stays on a core of its own. Where several agents share a machine that costs a third of the
    /// throughput, so it is not the default.
    pub pin: bool,
    /// AEAD library.
    pub provider: Provider,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The sockets.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// Threads, event queues.
    #[error("starting the threads: {0}")]
    Threads(#[from] io::Error),
}

impl EngineError {
    /// Whether a right is missing, rather than anything else.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        match self {
            Self::Tun(error) => error.is_permission(),
            Self::Udp(error) => error.is_permission(),
            Self::Threads(_) => false,
        }
    }
}

/// The threads. What is running is held by its [`Handle`].
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Opens the device and the sockets in the calling thread's network namespace and starts the threads. The brain's time
    /// begins now.
    ///
    /// # Errors
    /// What is missing, in words. Nothing is left behind.
    pub fn start<B: Brain>(config: &Config, brain: B) -> Result<Handle<B>, EngineError> {
        let workers = config.workers.max(1);
        // Sockets first: a port in use is what goes wrong most often, and the device would flash up.
        let ike = Arc::new(UdpSocket::bind(SocketAddr::new(config.listen, config.ike_port))?);
        let group = UdpGroup::bind(config.listen, config.natt_port, workers)?;
        let mut tun = TunDevice::open(&config.tun_name, workers.into(), config.tun_backend, config.tun_offload)?;

        let polls = (0..=workers).map(|_| Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let mut ends = Vec::with_capacity(polls.len());
        for (member, poll) in polls.iter().enumerate() {
            let doorbell = Doorbell::new(Waker::new(poll.registry(), WAKER)?);
            ends.push((pool_size(member, workers.into()), doorbell));
        }
        let exchange = Exchange::new(ends);
        let shared = Arc::new(Shared {
            origin: time::Instant::now(),
            stopping: AtomicBool::new(false),
            joined: LiveOffloads::new(tun.offloads),
            exchange,
        });
        let (commands, command_receiver) = bounded(COMMANDS);
        let (ended, ended_receiver) = bounded(polls.len());
        let mut handle = Handle {
            caller: Caller { commands, shared: Arc::clone(&shared) },
            tun_name: tun.name.clone(),
            drops: (0..=workers).map(|_| Arc::new(Drops::default())).collect(),
            threads: Vec::with_capacity(polls.len()),
            ended: ended_receiver,
            granted: (config.tun_offload && config.tun_backend == TunBackend::Offload).then_some(tun.offloads),
            tester: tun.tester.take(),
            sockets: vec![ike, Arc::new(group.control)],
        };
        handle.sockets.extend(group.workers.into_iter().map(Arc::new));

        let parts = Parts { config, tun, polls, shared: Arc::clone(&shared), ended };
        match parts.start(&mut handle, brain, command_receiver) {
            Ok(()) => Ok(handle),
            Err(error) => {
                // Those that run already end, and the device goes with them.
                shared.stop();
                std::mem::take(&mut handle.threads).into_iter().for_each(|thread| drop(thread.join()));
                Err(error.into())
            }
        }
    }
}

/// What the threads are made of.
struct Parts<'a> {
    config: &'a Config,
    tun: TunDevice,
    polls: Vec<Poll>,
    shared: Arc<Shared>,
    ended: crossbeam_channel::Sender<Ended>,
}

impl Parts<'_> {
    fn start<B: Brain>(
        mut self,
        handle: &mut Handle<B>,
        brain: B,
        commands: crossbeam_channel::Receiver<super::Command<B>>,
    ) -> io::Result<()> {
        let cores = if self.config.pin { own_cores()? } else { Vec::new() };
        let control_poll = self.polls.pop().expect("one per worker and one for the control thread");
        let workers = self.polls.len() as u8;
        let (news, news_receiver) = mailbox::news(workers);
        let mut mailboxes = Vec::with_capacity(self.polls.len());
        let queues = self.tun.queues.into_iter().zip(self.polls).zip(news);
        for (number, ((tun, poll), news)) in queues.enumerate() {
            let (outgoing, mailbox) = mailbox::mailbox();
            mailboxes.push(outgoing);
            let config = esp::Config {
                worker: WorkerIndex(number as u8),
                provider: self.config.provider,
                tun_mtu: self.config.tun_mtu,
            };
            let setup = worker::Setup {
                config,
                tun,
                offloads: self.tun.offloads,
                udp: Arc::clone(&handle.sockets[number + 2]),
                poll,
                mailbox,
                news,
                drops: Arc::clone(&handle.drops[number]),
                shared: Arc::clone(&self.shared),
            };
            let worker = Worker::new(setup)?;
            let core = cores.get(number % cores.len().max(1)).copied();
            let body = move || {
                // A core may go away; an unpinned worker works as well.
                let _ = core.map(pin_to);
                worker.run()
            };
            handle.threads.push(spawn(format!("underpass-w{number}"), self.ended.clone(), body)?);
        }
        let setup = control::Setup {
            brain,
            ike: Arc::clone(&handle.sockets[0]),
            natt: Arc::clone(&handle.sockets[1]),
            poll: control_poll,
            commands,
            news: news_receiver,
            mailboxes,
            drops: Arc::clone(&handle.drops[usize::from(workers)]),
            shared: Arc::clone(&self.shared),
        };
        let control = Control::new(setup)?;
        handle.threads.push(spawn("underpass-ctl".to_owned(), self.ended, move || control.run())?);
        Ok(())
    }
}

/// The cores that this process may use.
fn own_cores() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect())
}

/// Keeps the calling thread on one core.
fn pin_to(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}
