//! Whole hosts in one process: nodes, their workers' data planes and a wire with virtual time. No thread, socket or clock.
//!
//! Tests and benches drive it: [`World::send`] hands an inner packet to a host, [`World::run_for`] lets time pass, and
//! [`World::received`] has what came out of the tunnels. Loss, delay and partitions are set on the [`World`]; the same seed
//! gives the same run.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Node, NodeConfig, Notice, Recipient};
use crate::crypto::Provider;
use crate::esp::{Config, DataPlane, Inbox, Incoming, Outbox, Outcome};
use crate::model::{Drops, Instant, Path, Rng, SeededRng, Transport, WorkerIndex};

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

enum Content {
    Ike(Transport, Vec<u8>),
    Esp(u8, Vec<u8>),
}

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
    /// Whether every ESP datagram comes twice.
    pub replay: bool,
    /// Pairs (sender, receiver) whose datagrams vanish.
    pub cut: Vec<(IpAddr, IpAddr)>,
    hosts: BTreeMap<IpAddr, Host>,
    wire: BTreeMap<(Instant, u64), Datagram>,
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
            replay: false,
            cut: Vec::new(),
            hosts: BTreeMap::new(),
            wire: BTreeMap::new(),
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
        let node = Node::new(self.now, config, Box::new(first), Box::new(second));
        self.hosts.insert(address, Host { node, address, workers, received: Vec::new(), notices: Vec::new(), strays: 0 });
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
        host.node.handle_places(self.now, vec![to], moves);
        self.hosts.insert(to, host);
        self.pump(to);
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
        let now = self.now;
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
        let now = self.now;
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
        loop {
            let timers = self.hosts.values().filter_map(Host::poll_timeout).min();
            let arrival = self.wire.keys().next().map(|&(at, _)| at);
            let next = [timers, arrival].into_iter().flatten().min().filter(|&at| at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.deliver_due();
            self.fire_timers();
        }
        self.now = end;
    }

    fn deliver_due(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let datagram = entry.remove();
            let address = datagram.path.local.ip();
            if let Some(host) = self.hosts.get_mut(&address) {
                host.take(self.now, datagram);
                self.pump(address);
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
        }
    }

    /// Moves updates, events and datagrams of a host until it is quiet.
    fn pump(&mut self, address: IpAddr) {
        let now = self.now;
        let mut outgoing = VecDeque::new();
        self.host(address).settle(now, &mut outgoing);
        for mut datagram in outgoing {
            if datagram.path.local.ip().is_unspecified() {
                datagram.path.local.set_ip(address);
            }
            self.put_on_wire(datagram);
        }
    }

    fn put_on_wire(&mut self, datagram: Datagram) {
        let lost = f64::from(self.rng.u32()) / f64::from(u32::MAX) < self.loss;
        let ends = (datagram.path.local.ip(), datagram.path.remote.ip());
        if lost || self.cut.contains(&ends) {
            return;
        }
        let at = self.now + self.delay.0 + self.rng.jitter(self.delay.1);
        let path = Path { local: datagram.path.remote, remote: datagram.path.local };
        if self.replay
            && let Content::Esp(ecn, octets) = &datagram.content
        {
            self.sent += 1;
            self.wire.insert((at, self.sent), Datagram { path, content: Content::Esp(*ecn, octets.clone()) });
        }
        self.sent += 1;
        self.wire.insert((at, self.sent), Datagram { path, ..datagram });
    }
}

impl Host {
    /// A worker's drop counters.
    #[must_use]
    pub fn drops(&self, worker: WorkerIndex) -> &Drops {
        &self.workers[usize::from(worker.0)].drops
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

    fn take(&mut self, now: Instant, datagram: Datagram) {
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
        let planes = self.workers.iter().filter_map(|worker| worker.plane.poll_timeout());
        planes.chain(self.node.poll_timeout()).min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.node.handle_timeout(now);
        for worker in &mut self.workers {
            worker.plane.handle_timeout(now);
        }
    }

    fn settle(&mut self, now: Instant, outgoing: &mut VecDeque<Datagram>) {
        loop {
            let mut quiet = true;
            while let Some((recipient, update)) = self.node.poll_update() {
                quiet = false;
                let released = self.apply(now, recipient, update);
                for (path, ecn, octets) in released {
                    self.outer(now, path, ecn, octets);
                }
            }
            for index in 0..self.workers.len() {
                while let Some(event) = self.workers[index].plane.poll_event() {
                    quiet = false;
                    self.node.handle_event(now, event);
                }
            }
            while let Some(transmit) = self.node.poll_transmit() {
                let content = Content::Ike(transmit.transport, transmit.message.to_vec());
                outgoing.push_back(Datagram { path: transmit.path, content });
            }
            if quiet {
                break;
            }
        }
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

    fn apply(&mut self, now: Instant, recipient: Recipient, update: crate::esp::Update) -> Vec<(Path, u8, Vec<u8>)> {
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
