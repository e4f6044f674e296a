//! Hosts in one process: endpoints, a wire with virtual time, and for each host a data plane that only writes down what it is told.
//!
//! No thread, socket or clock; the same seed gives the same run. Two ways to drive it: [`Simulator::run_for`] delivers everything by
//! itself, with the [`Faults`] that are set; with [`Simulator::by_hand`] every datagram waits for [`Simulator::deliver`], so that a
//! test can write down who hears what first. Nothing here is used by the agent.

mod composed;
pub(in crate::ike) mod hand;
mod host;
mod nonsense;
mod pieces;
mod plane;
mod reconciler;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

pub use host::{Host, Nat, Proof, address, endpoint_config, peer_config};
pub use nonsense::speak_nonsense;
pub use pieces::piece_together;
pub use plane::Plane;

use super::{Command, Endpoint};
use crate::model::{ChildSaParams, Instant, KeGroup, Path, PeerIndex, Rng, SeededRng, Spi, Transport};

/// What the wire does to datagrams, as probabilities of 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Lost.
    pub loss: f64,
    /// Delivered twice.
    pub duplication: f64,
    /// Held back for up to a second, so that later ones overtake.
    pub reordering: f64,
}

/// A datagram under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// As its sender sees it, with the address that it left from.
    pub path: Path,
    /// The port family.
    pub transport: Transport,
    /// IKE, or an ESP packet of which only the SPI matters.
    pub content: Content,
}

/// What a datagram holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// An IKE message.
    Ike(Bytes),
    /// An authentic ESP packet.
    Esp(Spi),
}

/// See the module.
pub struct Simulator {
    /// The time.
    pub now: Instant,
    /// The hosts; host `i` is everybody's peer `i`.
    pub hosts: Vec<Host>,
    /// What the wire does.
    pub faults: Faults,
    /// Whether datagrams wait for [`deliver`](Self::deliver).
    pub by_hand: bool,
    /// Datagrams that wait, oldest first.
    pub waiting: Vec<Datagram>,
    /// How long the data plane takes.
    pub install_delay: Duration,
    /// Whether every host sends ESP all the time.
    pub traffic: bool,
    /// Packets that met no SA.
    pub lost_packets: usize,
    /// The most IKE SAs with one peer that a host had up at a time.
    pub most_ike_sas: usize,
    wire: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    next_traffic: Instant,
    rng: SeededRng,
}

/// Time that a datagram takes.
const TRIP: Duration = Duration::from_millis(10);

/// Time between ESP packets.
const TRAFFIC_INTERVAL: Duration = Duration::from_millis(50);

impl Simulator {
    /// So many hosts that all know each other.
    #[must_use]
    pub fn new(seed: u64, hosts: usize, proof: Proof) -> Self {
        let mut simulator = Self {
            now: Instant::ORIGIN,
            hosts: Vec::new(),
            faults: Faults::default(),
            by_hand: false,
            waiting: Vec::new(),
            install_delay: Duration::from_millis(2),
            traffic: false,
            lost_packets: 0,
            most_ike_sas: 0,
            wire: BTreeMap::new(),
            sent: 0,
            next_traffic: Instant::ORIGIN,
            rng: SeededRng::new(seed),
        };
        for index in 0..hosts {
            let host = simulator.boot(index, hosts, proof);
            simulator.hosts.push(host);
        }
        simulator
    }

    fn boot(&mut self, index: usize, hosts: usize, proof: Proof) -> Host {
        let mut endpoint = Endpoint::new(endpoint_config(), Box::new(SeededRng::new(self.rng.u64())));
        for peer in (0..hosts).filter(|&peer| peer != index) {
            endpoint.upsert_peer(peer_config(index, peer, proof));
        }
        Host::new(endpoint, address(index))
    }

    /// Ends a host without a word and starts it anew, with nothing but its configuration.
    pub fn restart(&mut self, index: usize, proof: Proof) {
        let hosts = self.hosts.len();
        let mut host = self.boot(index, hosts, proof);
        host.reconciled = self.hosts[index].reconciled;
        host.nat = self.hosts[index].nat.clone();
        self.hosts[index] = host;
    }

    /// Makes every host begin with this key exchange.
    pub fn begin_with(&mut self, group: KeGroup) {
        for host in &mut self.hosts {
            host.endpoint.shared.first_group = group;
        }
    }

    /// Lets every host want its peers, from now on and with a little jitter.
    pub fn reconcile(&mut self) {
        for index in 0..self.hosts.len() {
            self.hosts[index].reconciled = true;
        }
    }

    /// Gives a host a command.
    pub fn command(&mut self, host: usize, command: Command) {
        let now = self.now;
        self.hosts[host].endpoint.handle_command(now, command);
        self.drain(host);
    }

    /// Hands a datagram to a host, as if it had come from `remote`.
    pub fn inject(&mut self, host: usize, remote: SocketAddr, transport: Transport, message: &[u8]) {
        let port = if transport == Transport::Plain { 500 } else { 4500 };
        let path = Path { local: SocketAddr::new(self.hosts[host].address, port), remote };
        let now = self.now;
        self.hosts[host].endpoint.handle_datagram(now, path, transport, message);
        self.drain(host);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.next_event().filter(|&at| at <= end) {
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
        // What is due at the very end.
        self.step();
    }

    /// Runs until the condition holds; false if it does not within `patience`.
    pub fn run_until(&mut self, patience: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + patience;
        loop {
            if condition(self) {
                return true;
            }
            let Some(next) = self.next_event().filter(|&at| at <= end) else { return false };
            self.now = self.now.max(next);
            self.step();
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let hosts = self.hosts.iter().flat_map(|host| {
            let ticket = host.plane.next_ticket();
            [host.endpoint.poll_timeout(), ticket, host.next_wish(self.now)]
        });
        let traffic = self.traffic.then_some(self.next_traffic);
        let wire = self.wire.keys().next().map(|&(at, _)| at);
        hosts.chain([wire, traffic]).flatten().min()
    }

    /// Does everything that is due now.
    fn step(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let datagram = entry.remove();
            self.arrive(datagram);
        }
        for index in 0..self.hosts.len() {
            self.tick(index);
        }
        if self.traffic && self.now >= self.next_traffic {
            self.next_traffic = self.now + TRAFFIC_INTERVAL;
            self.send_traffic();
        }
    }

    fn tick(&mut self, index: usize) {
        let now = self.now;
        self.hosts[index].plane.grace.retain(|_, until| *until > now);
        self.hosts[index].endpoint.handle_timeout(now);
        self.drain(index);
        while let Some(ticket) = self.hosts[index].plane.take_ticket(now) {
            self.command(index, Command::Installed(ticket));
        }
        let jitter = self.rng.jitter(Duration::from_millis(500));
        for command in self.hosts[index].wishes(now, jitter) {
            self.command(index, command);
        }
    }

    /// Carries out events and puts datagrams on the wire.
    fn drain(&mut self, index: usize) {
        let now = self.now;
        let host = &mut self.hosts[index];
        while let Some(event) = host.endpoint.poll_event() {
            host.note(now, self.install_delay, &event);
            host.events.push(event);
        }
        let peers = host.endpoint.shared.peers.keys();
        let most = peers.map(|&peer| host.endpoint.table.established_of(peer).count()).max().unwrap_or(0);
        self.most_ike_sas = self.most_ike_sas.max(most);
        while let Some(transmit) = self.hosts[index].endpoint.poll_transmit() {
            let content = Content::Ike(transmit.message);
            self.send(index, transmit.path, transmit.transport, content);
        }
    }

    fn send(&mut self, from: usize, mut path: Path, transport: Transport, content: Content) {
        let host = &mut self.hosts[from];
        path.local.set_ip(host.address);
        if let Some(nat) = &mut host.nat {
            path.local = nat.outward(path.local.port());
        }
        let datagram = Datagram { path, transport, content };
        if self.by_hand && matches!(datagram.content, Content::Ike(_)) {
            self.waiting.push(datagram);
            return;
        }
        let chance = |rng: &mut SeededRng, probability: f64| f64::from(rng.u32()) < probability * f64::from(u32::MAX);
        if chance(&mut self.rng, self.faults.loss) {
            return;
        }
        let copies = if chance(&mut self.rng, self.faults.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let held = chance(&mut self.rng, self.faults.reordering);
            let extra = if held { self.rng.jitter(Duration::from_secs(1)) } else { Duration::ZERO };
            self.sent += 1;
            self.wire.insert((self.now + TRIP + extra, self.sent), datagram.clone());
        }
    }

    /// Delivers the waiting datagram with this number.
    ///
    /// # Panics
    /// If none has it.
    pub fn deliver(&mut self, number: usize) {
        let datagram = self.waiting.remove(number);
        self.arrive(datagram);
        self.finish_installs();
    }

    /// Delivers a datagram now, whether it was delivered before or not.
    pub fn deliver_again(&mut self, datagram: &Datagram) {
        self.arrive(datagram.clone());
        self.finish_installs();
    }

    /// Delivers everything that waits, in order, and what comes of it.
    pub fn deliver_all(&mut self) {
        self.finish_installs();
        while !self.waiting.is_empty() {
            self.deliver(0);
        }
    }

    /// Lets the data planes finish, in a test by hand.
    pub fn finish_installs(&mut self) {
        for index in 0..self.hosts.len() {
            while let Some(ticket) = self.hosts[index].plane.take_ticket(Instant::END) {
                self.command(index, Command::Installed(ticket));
            }
        }
    }

    /// The host that a datagram reaches, and the path as that host sees it.
    fn route(&self, path: Path) -> Option<(usize, Path)> {
        self.hosts.iter().enumerate().find_map(|(index, host)| {
            let local = match &host.nat {
                Some(nat) if nat.public == path.remote.ip() => {
                    SocketAddr::new(host.address, *nat.ports.get(&path.remote.port())?)
                }
                None if host.address == path.remote.ip() => path.remote,
                _ => return None,
            };
            Some((index, Path { local, remote: path.local }))
        })
    }

    fn arrive(&mut self, datagram: Datagram) {
        let Some((index, path)) = self.route(datagram.path) else { return };
        let now = self.now;
        match datagram.content {
            Content::Ike(message) => {
                self.hosts[index].endpoint.handle_datagram(now, path, datagram.transport, &message);
                self.drain(index);
            }
            Content::Esp(spi) => {
                let plane = &mut self.hosts[index].plane;
                if !plane.takes(spi) {
                    self.lost_packets += 1;
                } else if plane.note_use(spi) {
                    self.command(index, Command::InboundUsed(spi));
                }
            }
        }
    }

    fn send_traffic(&mut self) {
        for index in 0..self.hosts.len() {
            let senders: Vec<(Path, Spi)> = {
                let plane = &self.hosts[index].plane;
                plane.active.keys().filter_map(|&peer| plane.sender(peer)).map(|sa| (sa.path, sa.outbound_spi)).collect()
            };
            for (path, spi) in senders {
                self.send(index, path, Transport::Natt, Content::Esp(spi));
            }
        }
    }

    /// What must hold between two hosts once everything has settled: one IKE SA, one CHILD_SA, the same keys crosswise, and each
    /// sends with it.
    ///
    /// # Errors
    /// A sentence that says what does not hold.
    pub fn settled(&self, a: usize, b: usize) -> Result<(), String> {
        for (us, them) in [(a, b), (b, a)] {
            let (here, there) = (&self.hosts[us], &self.hosts[them]);
            let (peer, back) = (PeerIndex(them as u32), PeerIndex(us as u32));
            let sas = here.endpoint.ike_sas(peer);
            let [sa] = sas.as_slice() else { return Err(format!("host {us} has {} IKE SAs", sas.len())) };
            let twins = there.endpoint.ike_sas(back);
            if !twins.iter().any(|twin| twin.local_spi == sa.remote_spi && twin.remote_spi == sa.local_spi) {
                return Err(format!("host {us}'s IKE SA has no twin"));
            }
            let children = here.endpoint.children(peer);
            if children.len() != 1 {
                return Err(format!("host {us} has {} CHILD_SAs", children.len()));
            }
            let installed: Vec<&ChildSaParams> = here.plane.installed.iter().filter(|sa| sa.peer == peer).collect();
            let [installed] = installed.as_slice() else {
                return Err(format!("host {us}'s data plane has {} SAs", installed.len()));
            };
            if here.plane.active.get(&peer) != Some(&installed.inbound_spi) {
                return Err(format!("host {us} does not send with its only SA"));
            }
            let twin = there.plane.receiver(installed.outbound_spi).ok_or("the SA has no twin")?;
            if twin.inbound_key != installed.outbound_key || twin.outbound_key != installed.inbound_key {
                return Err("the keys differ".to_owned());
            }
            if !here.plane.reserved.is_empty() {
                return Err(format!("host {us} still parks for {:?}", here.plane.reserved));
            }
        }
        Ok(())
    }

    /// What must hold a while after that: nothing is left of all that went wrong.
    ///
    /// # Errors
    /// A sentence that says what is left over.
    pub fn tidy(&self) -> Result<(), String> {
        for (index, host) in self.hosts.iter().enumerate() {
            let (peers, sas) = (self.hosts.len() - 1, host.endpoint.ike_sa_count());
            let spis = host.endpoint.shared.spi_owners.len();
            if sas != peers || spis != peers {
                return Err(format!("host {index} has {peers} peers, {sas} IKE SAs in some state and {spis} inbound SPIs"));
            }
        }
        Ok(())
    }
}
