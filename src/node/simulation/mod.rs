//! Whole hosts in one process: nodes, their workers' data planes and a wire with virtual time. No thread, socket or clock.
//!
//! Tests and benches drive it: [`World::send`] hands an inner packet to a host, [`World::run_for`] lets time pass, and
//! [`World::received`] has what came out of the tunnels. What the wire and the clocks do is set on the [`World`]; the same seed
//! gives the same run. Somebody watches: [`World::witness`] notes what must never happen. [`schedule`] plays random schedules.

mod judge;
mod play;
pub mod schedule;
mod wire;
mod witness;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Node, NodeConfig, Notice, Recipient};
use crate::crypto::Provider;
use crate::esp::{Config, DataPlane, Event, Inbox, Incoming, Outbox, Outcome, Update};
use crate::model::{DropReason, Drops, Instant, Path, Rng, SeededRng, Transport, WorkerIndex};

pub use play::packet;
pub use witness::Witness;

/// Octets of a worker's arenas here.
const ARENA: usize = 1 << 18;

/// Datagrams of a worker's arenas here.
const DATAGRAMS: usize = 256;

/// One host of the world.
pub struct Host {
    /// Its control plane.
    pub node: Node,
    /// Its outer address.
    pub address: IpAddr,
    workers: Vec<Worker>,
    received: Vec<Vec<u8>>,
    notices: Vec<Notice>,
    strays: u64,
    /// Which start of a host this is: no two have the same.
    life: u64,
    clock: Clock,
    /// Until when it sleeps: it hears nothing, and its clock stands.
    asleep: Option<Instant>,
}

/// How a host's clock differs from the world's.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    ahead: Duration,
    behind: Duration,
}

impl Clock {
    fn read(self, now: Instant) -> Instant {
        Instant::from_origin((now.since_origin() + self.ahead).saturating_sub(self.behind))
    }

    /// When it will show that.
    fn when(self, at: Instant) -> Instant {
        Instant::from_origin((at + self.behind).since_origin().saturating_sub(self.ahead))
    }
}

struct Worker {
    plane: DataPlane,
    outbox: Outbox,
    inbox: Inbox,
    drops: Arc<Drops>,
}

/// Memory for a train of datagrams.
#[derive(Debug, Default)]
pub struct Train {
    octets: Vec<u8>,
    datagrams: Vec<Incoming>,
}

#[derive(Clone, Debug)]
enum Content {
    Ike(Transport, Vec<u8>),
    Esp(u8, Vec<u8>),
}

#[derive(Clone, Debug)]
struct Datagram {
    path: Path,
    content: Content,
}

/// Hosts and the wire between them.
pub struct World {
    /// The time.
    pub now: Instant,
    /// How likely a datagram is lost, 0 to 1.
    pub loss: f64,
    /// How long a datagram travels at least, and how much longer at most.
    pub delay: (Duration, Duration),
    /// How likely a datagram comes twice, 0 to 1.
    pub duplication: f64,
    /// How likely one of its bits is another, 0 to 1.
    pub corruption: f64,
    /// How long what a worker says takes to its node.
    pub lag: Duration,
    /// Whether datagrams wait for [`deliver`](Self::deliver).
    pub held: bool,
    /// Pairs (sender, receiver) whose datagrams vanish.
    pub cut: Vec<(IpAddr, IpAddr)>,
    hosts: BTreeMap<IpAddr, Host>,
    /// What must never happen.
    pub witness: Witness,
    wire: BTreeMap<(Instant, u64), Datagram>,
    /// Datagrams that wait by hand.
    waiting: VecDeque<Datagram>,
    /// The last ones that left, for those who replay them.
    recorded: VecDeque<Datagram>,
    /// What workers say, until their nodes hear it.
    news: BTreeMap<(Instant, u64), (IpAddr, u64, Event)>,
    lives: u64,
    sent: u64,
    rng: SeededRng,
}

impl World {
    /// An empty world with a wire of one millisecond.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            now: Instant::ORIGIN,
            loss: 0.0,
            delay: (Duration::from_millis(1), Duration::ZERO),
            duplication: 0.0,
            corruption: 0.0,
            lag: Duration::ZERO,
            held: false,
            cut: Vec::new(),
            hosts: BTreeMap::new(),
            witness: Witness::default(),
            wire: BTreeMap::new(),
            waiting: VecDeque::new(),
            recorded: VecDeque::new(),
            news: BTreeMap::new(),
            lives: 0,
            sent: 0,
            rng: SeededRng::new(seed),
        }
    }

    /// Starts a host; one that had the address is gone without a word.
    pub fn start(&mut self, address: IpAddr, config: NodeConfig) {
        let tun_mtu = config.tun_mtu;
        let workers = (0..config.workers)
            .map(|index| {
                let drops = Arc::new(Drops::default());
                let config = Config { worker: WorkerIndex(index), provider: Provider::Ring, tun_mtu };
                Worker {
                    plane: DataPlane::new(config, Arc::clone(&drops)),
                    outbox: Outbox::new(ARENA, DATAGRAMS),
                    inbox: Inbox::default(),
                    drops,
                }
            })
            .collect();
        let (first, second) = (SeededRng::new(self.rng.u64()), SeededRng::new(self.rng.u64()));
        // A machine keeps its clock when its agent restarts. If it slept, it is awake, and what it did not sleep is not missing.
        let clock = self.hosts.get(&address).map(|host| {
            let unslept =
                host.asleep.filter(|&until| until < Instant::END).map_or(Duration::ZERO, |until| until.since(self.now));
            Clock { behind: host.clock.behind.saturating_sub(unslept), ..host.clock }
        });
        let clock = clock.unwrap_or_default();
        let node = Node::new(clock.read(self.now), config, Box::new(first), Box::new(second));
        self.lives += 1;
        let host = Host {
            node,
            address,
            workers,
            received: Vec::new(),
            notices: Vec::new(),
            strays: 0,
            life: self.lives,
            clock,
            asleep: None,
        };
        self.hosts.insert(address, host);
        self.pump(address);
    }

    /// Ends a host without a word.
    pub fn kill(&mut self, address: IpAddr) {
        self.hosts.remove(&address);
    }

    /// Gives a host another address, of which it knows at once. What is under way to the old one is lost.
    ///
    /// # Panics
    /// If there is none with this address.
    pub fn relocate(&mut self, from: IpAddr, to: IpAddr) {
        let mut host = self.hosts.remove(&from).expect("the host runs");
        host.address = to;
        let moves = host.node.ways().into_iter().map(|(peer, path)| (peer, path.local.ip(), to)).collect();
        let now = host.now(self.now);
        host.node.handle_places(now, vec![to], moves);
        self.hosts.insert(to, host);
        self.pump(to);
    }

    /// Whether there is a host with this address, and awake.
    #[must_use]
    pub fn is_awake(&self, address: IpAddr) -> bool {
        self.hosts.get(&address).is_some_and(|host| host.asleep.is_none())
    }

    /// What a host's clock shows.
    pub fn time_at(&mut self, address: IpAddr) -> Instant {
        let now = self.now;
        self.host(address).now(now)
    }

    /// Moves a host's clock forwards: the machine was stopped for so long, and its clock was not.
    pub fn jump(&mut self, address: IpAddr, by: Duration) {
        self.host(address).clock.ahead += by;
    }

    /// Lets a host sleep for so long, clock and all; what comes meanwhile is lost.
    pub fn suspend(&mut self, address: IpAddr, for_long: Duration) {
        let until = self.now + for_long;
        self.host(address).asleep = Some(until);
        self.host(address).clock.behind += for_long;
    }

    /// A host.
    ///
    /// # Panics
    /// If there is none with this address.
    pub fn host(&mut self, address: IpAddr) -> &mut Host {
        self.hosts.get_mut(&address).expect("the host runs")
    }

    /// Hands an inner packet to a host's TUN, on that worker's queue, and puts what comes of it on the wire.
    pub fn send(&mut self, address: IpAddr, worker: WorkerIndex, packet: &[u8]) -> Outcome {
        let now = self.time_at(address);
        let host = self.host(address);
        let mut outcome = host.inner(now, worker, packet);
        if let Outcome::Stray(owner) = outcome {
            host.strays += 1;
            outcome = host.inner(now, owner, packet);
        }
        self.pump(address);
        outcome
    }

    /// Carries copies of a packet from one host's worker 0 to another's as one train, without the wire's clock and ordering,
    /// and says how many came out. `wire` is the memory that the train is copied to, as a kernel would. For benches: it does
    /// not allocate.
    pub fn carry_train(&mut self, from: IpAddr, to: IpAddr, packet: &[u8], count: usize, wire: &mut Train) -> usize {
        let now = self.time_at(from);
        let worker = &mut self.host(from).workers[0];
        for _ in 0..count {
            worker.plane.handle_inner(now, packet, &mut worker.outbox);
        }
        worker.plane.seal_pending(&mut worker.outbox);
        let (datagrams, buffer) = worker.outbox.datagrams();
        wire.datagrams.clear();
        wire.octets.clear();
        for datagram in datagrams {
            let path = Path { local: datagram.path.remote, remote: SocketAddr::new(from, datagram.path.local.port()) };
            let start = wire.octets.len() as u32;
            wire.octets.extend_from_slice(&buffer[datagram.start as usize..(datagram.start + datagram.len) as usize]);
            wire.datagrams.push(Incoming { start, len: datagram.len, path, ecn: datagram.ecn });
        }
        worker.outbox.clear();
        let worker = &mut self.host(to).workers[0];
        worker.plane.handle_outer(now, &mut wire.octets, &wire.datagrams, true, &mut worker.inbox);
        worker.inbox.packets.len()
    }

    /// What came out of the tunnels at a host since the last call.
    pub fn received(&mut self, address: IpAddr) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.host(address).received)
    }

    /// Lets time pass, delivering what is due.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.next_event().filter(|&at| at <= end) {
            self.witness.note_step(self.now, next);
            self.now = self.now.max(next);
            self.wake_up();
            self.deliver_due();
            self.fire_timers();
            self.pass_news();
        }
        self.now = end;
    }

    fn next_event(&self) -> Option<Instant> {
        let timers = self.hosts.values().filter_map(Host::poll_timeout).min();
        let arrival = self.wire.keys().next().map(|&(at, _)| at);
        let news = self.news.keys().next().map(|&(at, _)| at);
        [timers, arrival, news].into_iter().flatten().min()
    }

    /// Does the next thing that waits for its time, and nothing else.
    pub fn run_next(&mut self) {
        if let Some(next) = self.next_event() {
            let wait = next.since(self.now);
            self.run_for(wait);
        }
    }

    fn wake_up(&mut self) {
        for host in self.hosts.values_mut() {
            host.asleep.take_if(|until| *until <= self.now);
        }
    }

    /// Lets nodes hear what their workers said.
    fn pass_news(&mut self) {
        while let Some(entry) = self.news.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let number = entry.key().1;
            let (address, life, event) = entry.remove();
            let now = self.now;
            let Some(host) = self.hosts.get_mut(&address).filter(|host| host.life == life) else { continue };
            match host.asleep {
                Some(until) => drop(self.news.insert((until, number), (address, life, event))),
                None => {
                    let now = host.now(now);
                    host.node.handle_event(now, event);
                    self.pump(address);
                }
            }
        }
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        let due: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.poll_timeout().is_some_and(|at| at <= now))
            .map(|(&address, _)| address)
            .collect();
        for address in due {
            self.host(address).handle_timeout(now);
            self.pump(address);
            if self.host(address).poll_timeout().is_some_and(|at| at <= now) {
                self.witness.complain(format!("P8: a clock of {address} does not advance"));
                self.host(address).asleep = Some(Instant::END);
            }
        }
    }

    /// Carries out what hosts were told directly.
    pub fn pump_all(&mut self) {
        let addresses: Vec<IpAddr> = self.hosts.keys().copied().collect();
        addresses.into_iter().for_each(|address| self.pump(address));
    }

    /// Moves updates, events and datagrams of a host until it is quiet.
    fn pump(&mut self, address: IpAddr) {
        let (now, lag) = (self.now, self.lag);
        let Self { hosts, witness, news, sent, .. } = self;
        let host = hosts.get_mut(&address).expect("the host runs");
        let mut outgoing = VecDeque::new();
        let mut said = Vec::new();
        host.settle(now, lag.is_zero(), &mut outgoing, &mut said, witness);
        let life = host.life;
        for event in said {
            *sent += 1;
            news.insert((now + lag, *sent), (address, life, event));
        }
        for mut datagram in outgoing {
            if datagram.path.local.ip().is_unspecified() {
                datagram.path.local.set_ip(address);
            }
            self.witness.note_sent(now, life, &datagram);
            self.put_on_wire(datagram);
        }
    }
}

impl Host {
    /// A worker's drop counters.
    #[must_use]
    pub fn drops(&self, worker: WorkerIndex) -> &Drops {
        &self.workers[usize::from(worker.0)].drops
    }

    /// What its workers dropped.
    fn dropped(&self) -> Vec<(DropReason, u64)> {
        self.workers.iter().flat_map(|worker| worker.drops.nonzero()).collect()
    }

    /// How many inner packets one worker had to hand to another.
    #[must_use]
    pub const fn strays(&self) -> u64 {
        self.strays
    }

    /// Sentences for the log since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn inner(&mut self, now: Instant, worker: WorkerIndex, packet: &[u8]) -> Outcome {
        let worker = &mut self.workers[usize::from(worker.0)];
        worker.plane.handle_inner(now, packet, &mut worker.outbox)
    }

    /// What its clock shows.
    fn now(&self, now: Instant) -> Instant {
        self.clock.read(now)
    }

    fn take(&mut self, now: Instant, datagram: Datagram) {
        let now = self.now(now);
        match datagram.content {
            Content::Ike(transport, message) => self.node.handle_ike(now, datagram.path, transport, &message),
            Content::Esp(ecn, octets) => self.outer(now, datagram.path, ecn, octets),
        }
    }

    fn outer(&mut self, now: Instant, path: Path, ecn: u8, mut octets: Vec<u8>) {
        let Some(spi) = octets.first_chunk::<4>().map(|spi| u32::from_be_bytes(*spi)) else { return };
        let owner = usize::from(spi as u8).min(self.workers.len() - 1);
        let worker = &mut self.workers[owner];
        let incoming = Incoming { start: 0, len: octets.len() as u32, path, ecn };
        worker.plane.handle_outer(now, &mut octets, &[incoming], true, &mut worker.inbox);
        for &(start, len) in &worker.inbox.packets {
            self.received.push(octets[start as usize..(start + len) as usize].to_vec());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        if let Some(until) = self.asleep {
            return Some(until).filter(|&until| until < Instant::END);
        }
        let planes = self.workers.iter().filter_map(|worker| worker.plane.poll_timeout());
        planes.chain(self.node.poll_timeout()).min().map(|at| self.clock.when(at))
    }

    fn handle_timeout(&mut self, now: Instant) {
        let now = self.now(now);
        self.node.handle_timeout(now);
        for worker in &mut self.workers {
            worker.plane.handle_timeout(now);
        }
    }

    /// `at_once`: nodes hear at once what workers say; else it is left in `said`.
    fn settle(
        &mut self,
        now: Instant,
        at_once: bool,
        outgoing: &mut VecDeque<Datagram>,
        said: &mut Vec<Event>,
        witness: &mut Witness,
    ) {
        let (world_now, now) = (now, self.now(now));
        let mut rounds = 0;
        loop {
            let mut quiet = true;
            while let Some((recipient, update)) = self.node.poll_update() {
                quiet = false;
                witness.note_update(world_now, self.address, self.life, &update);
                let released = self.apply(now, recipient, update);
                for (path, ecn, octets) in released {
                    self.outer(now, path, ecn, octets);
                }
            }
            for index in 0..self.workers.len() {
                while let Some(event) = self.workers[index].plane.poll_event() {
                    if at_once {
                        quiet = false;
                        self.node.handle_event(now, event);
                    } else {
                        said.push(event);
                    }
                }
            }
            while let Some(transmit) = self.node.poll_transmit() {
                let content = Content::Ike(transmit.transport, transmit.message.to_vec());
                outgoing.push_back(Datagram { path: transmit.path, content });
            }
            rounds += 1;
            if quiet {
                break;
            }
        }
        witness.note_work(self.address, rounds + outgoing.len());
        while self.node.poll_keepalive().is_some() {}
        while let Some(notice) = self.node.poll_notice() {
            self.notices.push(notice);
        }
        for worker in &mut self.workers {
            worker.plane.seal_pending(&mut worker.outbox);
            let (datagrams, buffer) = worker.outbox.datagrams();
            for datagram in datagrams {
                let octets = buffer[datagram.start as usize..(datagram.start + datagram.len) as usize].to_vec();
                outgoing.push_back(Datagram { path: datagram.path, content: Content::Esp(datagram.ecn, octets) });
            }
            self.received.extend(worker.outbox.replies().map(<[u8]>::to_vec));
            worker.outbox.clear();
        }
    }

    fn apply(&mut self, now: Instant, recipient: Recipient, update: Update) -> Vec<(Path, u8, Vec<u8>)> {
        let mut released = Vec::new();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let meant = match recipient {
                Recipient::All => true,
                Recipient::Worker(WorkerIndex(owner)) => usize::from(owner) == index,
            };
            if meant {
                worker.plane.handle_update(now, update.clone(), &mut worker.outbox, &mut released);
            }
        }
        released
    }
}
