//! Plays a [`Schedule`] in three acts and holds what happens against the invariants. The first act is the steps; in the second everything
//! is mended and must settle; in the third, on a network that only delays and repeats, everything is rekeyed under traffic.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::World;
use super::schedule::{Schedule, Step};
use crate::crypto::SigningKey;
use crate::esp::{Event, Update};
use crate::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use crate::model::{AeadAlgorithm, PeerId, PeerIndex, Rng, Secret, SeededRng, TrafficSelector, WorkerIndex};
use crate::node::{NodeConfig, Recipient, Rekey};

/// Packets pass so soon after the network works again: what was garbled at the last moment keeps an initiation busy for 30 s, and
/// the pause before the next one is up to 10 s.
pub const FLOWS_WITHIN: Duration = Duration::from_secs(45);

/// So soon there is nothing left but what should be.
const SETTLES_WITHIN: Duration = Duration::from_secs(75);

/// A rekeyed IKE SA whose Delete never comes is kept for 60 s, and its last answer for another 30.
const LINGER: Duration = Duration::from_secs(95);

/// Half-open IKE SAs of one source that returns no cookies, and those of it that are closed and remembered.
const MOST_HALF_OPEN: usize = 8;

/// Between packets of the last act.
const TRAFFIC_INTERVAL: Duration = Duration::from_millis(20);

/// How long it takes to get everywhere in the last act.
const CALM_DELAY: Duration = Duration::from_millis(100);

/// The address of a host; one more is the impostor.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

/// Where an attacker sits that is nobody's peer.
const STRANGER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), 500);

/// A host that everybody may call himself, but only host 1 is.
const VICTIM: u8 = 1;

fn name(number: u8) -> String {
    format!("host{number}")
}

/// An IPv4 packet with a UDP header whose payload is `tag`.
#[must_use]
pub fn packet(from: [u8; 4], to: [u8; 4], tag: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34, 0x12, 0x35, 0, 12, 0, 0]);
    packet.extend_from_slice(&tag.to_be_bytes());
    packet
}

/// One play.
pub struct Play<'a> {
    schedule: &'a Schedule,
    world: World,
    /// The last tag of a packet.
    tag: u32,
}

impl<'a> Play<'a> {
    pub fn new(schedule: &'a Schedule) -> Self {
        let mut world = World::new(schedule.seed);
        world.lag = schedule.lag;
        let mut play = Self { schedule, world, tag: 0 };
        for number in 1..=schedule.hosts {
            play.start(number);
        }
        if schedule.impostor {
            let config = play.impostor();
            play.world.start(address(schedule.hosts + 1), config);
        }
        play
    }

    /// Writes down from now on what happens.
    pub fn write_down(&mut self) {
        self.world.witness.write_down();
    }

    /// What was written down.
    pub fn told(&self) -> String {
        self.world.witness.story()
    }

    // --- who plays ---

    fn config(&self, number: u8) -> NodeConfig {
        let Schedule { hosts, workers, lifetimes, .. } = *self.schedule;
        let peers = (1..=hosts).filter(|&other| other != number).map(|other| self.peer(number, other)).collect();
        NodeConfig {
            ike: EndpointConfig {
                child_rekey: lifetimes.0,
                ike_rekey: lifetimes.1,
                replay_window: 4096,
                ike_port: 500,
                natt_port: 4500,
                workers,
            },
            workers,
            tun_mtu: 1400,
            local_prefixes: vec![format!("10.42.{number}.0/24").parse().expect("a prefix")],
            probe_interval: Duration::from_secs(10),
            peers,
        }
    }

    fn peer(&self, own: u8, other: u8) -> PeerConfig {
        let prefix = |number: u8| format!("10.42.{number}.0/24").parse().expect("a prefix");
        // Who is estranged has, for the other, what nobody else has.
        let twist = if self.are_estranged(own, other) { own } else { 0 };
        let psk = || Secret::new(format!("of {} and {}, {twist}, long enough", own.min(other), own.max(other)).into_bytes());
        let key = |number: u8, twist: u8| SigningKey::from_seed(&[number + 16 * twist; 32]);
        let waits = self.schedule.some_wait && own < other;
        let (local_auth, remote_auth) = if self.schedule.host_keys {
            (LocalAuth::HostKeys(vec![key(own, 0)]), PeerAuth::HostKeys(vec![key(other, twist).verifying_key()]))
        } else {
            (LocalAuth::Psk(psk()), PeerAuth::Psk(psk()))
        };
        PeerConfig {
            index: PeerIndex(0),
            name: name(other),
            local_id: PeerId::Fqdn(name(own)),
            remote_id: PeerId::Fqdn(name(other)),
            local_auth,
            remote_auth,
            remote: (!waits).then(|| RemoteEndpoint::Standard(address(other))),
            alternatives: Vec::new(),
            suites: AeadAlgorithm::ALL.to_vec(),
            post_quantum: PostQuantum::Preferred,
            local_selectors: vec![TrafficSelector::from_prefix(prefix(own))],
            remote_selectors: vec![TrafficSelector::from_prefix(prefix(other))],
            owner: WorkerIndex(0),
        }
    }

    /// Says that it is host 1, to everybody else.
    fn impostor(&self) -> NodeConfig {
        let mut config = self.config(VICTIM);
        for peer in &mut config.peers {
            let wrong = || Secret::copy_of(b"what an impostor made up for himself");
            let key = SigningKey::from_seed(&[0xee; 32]);
            if self.schedule.host_keys {
                peer.local_auth = LocalAuth::HostKeys(vec![key]);
            } else {
                (peer.local_auth, peer.remote_auth) = (LocalAuth::Psk(wrong()), PeerAuth::Psk(wrong()));
            }
        }
        config
    }

    fn are_estranged(&self, a: u8, b: u8) -> bool {
        self.schedule.estranged && (a.min(b), a.max(b)) == (1, self.schedule.hosts)
    }

    /// Pairs that may speak with each other, each in one order.
    fn pairs(&self) -> Vec<(u8, u8)> {
        let hosts = 1..=self.schedule.hosts;
        let all = hosts.clone().flat_map(|a| hosts.clone().map(move |b| (a, b)));
        all.filter(|&(a, b)| a < b && !self.are_estranged(a, b)).collect()
    }

    fn start(&mut self, number: u8) {
        let config = self.config(number);
        self.world.start(address(number), config);
    }

    // --- the first act ---

    /// Plays it to the end.
    pub fn run(&mut self) -> Result<(), String> {
        for (number, &step) in self.schedule.steps.iter().enumerate() {
            self.carry_out(step);
            self.always().map_err(|why| format!("after step {number}, {step:?}: {why}"))?;
        }
        self.mend();
        self.must_flow()?;
        self.must_settle("after the storm")?;
        self.must_rekey_without_loss()?;
        self.must_settle("after the rekeys")?;
        self.must_be_tidy()
    }

    fn is_awake(&self, number: u8) -> bool {
        self.world.is_awake(address(number))
    }

    fn carry_out(&mut self, step: Step) {
        let now = self.world.now;
        self.world.witness.tell(now, || format!("--- {step:?}"));
        let share = |percent: u8| f64::from(percent) / 100.0;
        match step {
            Step::Wait(duration) => self.world.run_for(duration),
            Step::Next => self.world.run_next(),
            Step::Wire { loss, duplication, corruption } => {
                self.world.loss = share(loss);
                self.world.duplication = share(duplication);
                self.world.corruption = share(corruption);
            }
            Step::Delay(most) => self.world.delay.1 = most,
            Step::Cut(a, b) => self.world.cut.push((address(a), address(b))),
            Step::Sever(a, b) => self.world.cut.extend([(address(a), address(b)), (address(b), address(a))]),
            Step::Mend => self.world.cut.clear(),
            Step::Crash(a) => self.start(a),
            Step::Stop(a) => self.world.kill(address(a)),
            Step::Start(a) => {
                if !self.world.hosts.contains_key(&address(a)) {
                    self.start(a);
                }
            }
            Step::Hold => self.world.held = true,
            Step::Release => self.world.release(),
            Step::Replay { ago, elsewhere } => self.world.replay(ago.into(), elsewhere.then_some(STRANGER)),
            Step::Deliver(number) => self.with_waiting(number, World::deliver),
            Step::Lose(number) => self.with_waiting(number, World::lose),
            Step::Twice(number) => self.with_waiting(number, World::deliver_copy),
            Step::Jump(a, ..)
            | Step::Sleep(a, ..)
            | Step::Rekey(a, ..)
            | Step::RekeyBoth(a, ..)
            | Step::Expire(a, ..)
            | Step::Reload(a, ..)
            | Step::Talk(a, ..)
            | Step::Flood(a, ..) => {
                if self.is_awake(a) {
                    self.at_host(step);
                }
            }
        }
    }

    /// Mostly the oldest.
    fn with_waiting(&mut self, number: u8, act: impl FnOnce(&mut World, usize)) {
        let waiting = self.world.waiting();
        let number = if number < 128 { 0 } else { usize::from(number).checked_rem(waiting).unwrap_or(0) };
        act(&mut self.world, number);
    }

    /// What happens at a host that is awake.
    fn at_host(&mut self, step: Step) {
        match step {
            Step::Jump(a, by) => self.world.jump(address(a), by),
            Step::Sleep(a, long) => self.world.suspend(address(a), long),
            Step::Rekey(a, b, what) => self.rekey(a, b, what, true),
            Step::RekeyBoth(a, b, what) => {
                self.rekey(a, b, what, false);
                if self.is_awake(b) {
                    self.rekey(b, a, what, false);
                }
                self.world.pump(address(a));
                if self.is_awake(b) {
                    self.world.pump(address(b));
                }
            }
            Step::Expire(a, b) => {
                let now = self.world.time_at(address(a));
                let node = &self.world.host(address(a)).node;
                let index = node.peers.values().find(|peer| peer.config().name == name(b)).map(|peer| peer.index());
                let active: Vec<_> = index.into_iter().flat_map(|index| node.installs.active_of(index)).collect();
                for spi in active {
                    // As a worker does it: the SA is gone, and it says so.
                    let host = self.world.host(address(a));
                    host.apply(now, Recipient::Worker(spi.owner()), Update::Retire { spi, at_once: true });
                    host.node.handle_event(now, Event::HardExpired(spi));
                }
                self.world.pump(address(a));
            }
            Step::Reload(a, b) => {
                let whole = self.config(a);
                let mut fewer = whole.peers.clone();
                fewer.retain(|peer| peer.name != name(b));
                let now = self.world.time_at(address(a));
                for peers in [fewer, whole.peers] {
                    self.world.host(address(a)).node.reconfigure(now, whole.local_prefixes.clone(), peers);
                    self.world.pump(address(a));
                }
            }
            Step::Talk(a, b, worker) => self.talk(a, b, worker),
            Step::Flood(a, count) => self.world.flood(address(a), STRANGER, count.into()),
            _ => {}
        }
    }

    fn rekey(&mut self, a: u8, b: u8, what: Rekey, at_once: bool) {
        let now = self.world.time_at(address(a));
        self.world.host(address(a)).node.rekey(now, &name(b), what);
        if at_once {
            self.world.pump(address(a));
        }
    }

    fn talk(&mut self, a: u8, b: u8, worker: u8) {
        self.tag += 1;
        let worker = WorkerIndex(worker % self.schedule.workers);
        self.world.send(address(a), worker, &packet([10, 42, a, 7], [10, 42, b, 9], self.tag));
    }

    /// What holds at any time (P3, P4, P6, P8).
    fn always(&mut self) -> Result<(), String> {
        if let Some(complaint) = self.world.witness.complaint() {
            return Err(complaint.to_owned());
        }
        let hosts = self.schedule.hosts;
        for own in 1..=hosts {
            let Some(host) = self.world.hosts.get(&address(own)) else { continue };
            if host.half_open(STRANGER.ip()) > MOST_HALF_OPEN {
                return Err(format!("P6: {} half-open IKE SAs of one stranger", host.half_open(STRANGER.ip())));
            }
            for other in (1..=hosts).filter(|&other| other != own) {
                let count = host.ike_sas(&name(other));
                if count > 0 && self.are_estranged(own, other) {
                    return Err(format!("P4: host{own} has an IKE SA with host{other}, whose key it does not know"));
                }
                // Two that crossed, and for a moment a successor of one.
                if count > 2 {
                    return Err(format!("P2: host{own} has {count} IKE SAs with host{other}"));
                }
            }
        }
        let Some(impostor) = self.world.hosts.get(&address(hosts + 1)) else { return Ok(()) };
        match (2..=hosts).find(|&other| impostor.ike_sas(&name(other)) > 0) {
            Some(other) => Err(format!("P4: the impostor has an IKE SA with host{other}")),
            None => Ok(()),
        }
    }

    // --- the second act ---

    /// Everything works again.
    fn mend(&mut self) {
        let world = &mut self.world;
        (world.loss, world.duplication, world.corruption, world.delay.1) = (0.0, 0.0, 0.0, Duration::ZERO);
        world.cut.clear();
        world.release();
        for number in 1..=self.schedule.hosts {
            if !self.world.hosts.contains_key(&address(number)) {
                self.start(number);
            }
        }
        // Who sleeps is woken.
        let asleep = self.world.hosts.values().filter_map(|host| host.asleep).max();
        let longest = asleep.map_or(Duration::ZERO, |until| until.since(self.world.now));
        self.world.run_for(longest);
    }

    /// Packets pass between any two, in both directions (P7).
    fn must_flow(&mut self) -> Result<(), String> {
        let pairs = self.pairs();
        let end = self.world.now + FLOWS_WITHIN;
        let workers = 0..self.schedule.workers;
        let both = pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
        let mut missing: BTreeSet<(u8, u8, u8)> =
            both.flat_map(|(a, b)| workers.clone().map(move |worker| (a, b, worker))).collect();
        while self.world.now < end {
            let sent: Vec<_> = missing.iter().map(|&way| (way, self.tag_of(way))).collect();
            self.world.run_for(Duration::from_millis(500));
            let arrived = self.received();
            missing = sent.into_iter().filter(|(_, tag)| !arrived.contains(tag)).map(|(way, _)| way).collect();
            self.always()?;
            if missing.is_empty() {
                return Ok(());
            }
        }
        // Keys that do not agree say more than that nothing passes.
        if let Err(why) = self.settled()
            && why.starts_with("P1")
        {
            return Err(why);
        }
        let &(a, b, _) = missing.first().expect("something is missing");
        let (there, here) = (self.world.told_of(address(a), &name(b)), self.world.told_of(address(b), &name(a)));
        Err(format!("P7: after {FLOWS_WITHIN:?} nothing passes from host{a} to host{b}\n{there}\n{here}"))
    }

    /// Sends a packet; its tag.
    fn tag_of(&mut self, (a, b, worker): (u8, u8, u8)) -> u32 {
        self.talk(a, b, worker);
        self.tag
    }

    /// The tags of what came out of all tunnels.
    fn received(&mut self) -> Vec<u32> {
        let hosts = 1..=self.schedule.hosts;
        let packets = hosts.flat_map(|number| self.world.received(address(number))).collect::<Vec<_>>();
        packets.iter().filter_map(|packet| packet.last_chunk::<4>()).map(|tag| u32::from_be_bytes(*tag)).collect()
    }

    fn settled(&self) -> Result<(), String> {
        for (a, b) in self.pairs() {
            let (first, second) = (name(a), name(b));
            self.world.settled((address(a), &first), (address(b), &second)).map_err(|why| {
                let (there, here) = (self.world.told_of(address(a), &second), self.world.told_of(address(b), &first));
                format!("{why}\n{there}\n{here}")
            })?;
        }
        Ok(())
    }

    fn must_settle(&mut self, when: &str) -> Result<(), String> {
        let end = self.world.now + SETTLES_WITHIN;
        loop {
            self.always().map_err(|why| format!("{when}: {why}"))?;
            match self.settled() {
                Ok(()) => return Ok(()),
                // Short lifetimes: something is always under way, but not for long.
                Err(why) if self.world.now >= end => return Err(format!("{when}, {SETTLES_WITHIN:?}: {why}")),
                Err(_) => self.world.run_for(Duration::from_millis(250)),
            }
        }
    }

    // --- the third act ---

    /// A network that only delays and repeats: rekeys of all kinds, by one end or both, lose no packet (P5).
    fn must_rekey_without_loss(&mut self) -> Result<(), String> {
        let mut rng = SeededRng::new(!self.schedule.seed);
        let pairs = self.pairs();
        self.world.delay.1 = if rng.u32().is_multiple_of(2) { CALM_DELAY } else { Duration::ZERO };
        self.world.duplication = 0.1;
        self.received();
        let first = self.tag + 1;
        for round in 0..60 {
            let (a, b) = pairs[rng.u32() as usize % pairs.len()];
            let (a, b) = if rng.u32().is_multiple_of(2) { (a, b) } else { (b, a) };
            let what = if rng.u32().is_multiple_of(2) { Rekey::Child } else { Rekey::Ike };
            match rng.u32() % 12 {
                0 => self.carry_out(Step::Rekey(a, b, what)),
                1 => self.carry_out(Step::RekeyBoth(a, b, what)),
                _ => {}
            }
            for (a, b) in [(a, b), (b, a)] {
                self.talk(a, b, round);
            }
            self.world.run_for(TRAFFIC_INTERVAL);
        }
        self.world.run_for(Duration::from_secs(1));
        self.always()?;
        (self.world.delay.1, self.world.duplication) = (Duration::ZERO, 0.0);
        let mut arrived = self.received();
        // One of the second act may have waited for its SA.
        arrived.retain(|&tag| tag >= first);
        arrived.sort_unstable();
        let sent: Vec<u32> = (first..=self.tag).collect();
        if arrived == sent {
            return Ok(());
        }
        let lost: Vec<_> = sent.iter().filter(|tag| arrived.binary_search(tag).is_err()).collect();
        let counts = (1..=self.schedule.hosts).map(|number| {
            let host = self.world.host(address(number));
            let drops: Vec<String> = (0..self.schedule.workers)
                .flat_map(|worker| host.drops(WorkerIndex(worker)).nonzero().collect::<Vec<_>>())
                .map(|(reason, count)| format!("{} {count}", reason.name()))
                .collect();
            format!("host{number}: {drops:?}")
        });
        let counts: Vec<String> = counts.collect();
        Err(format!("P5: of {} packets {} arrived, lost are {lost:?}; {counts:?}", sent.len(), arrived.len()))
    }

    /// Nothing is left of what went wrong. Where a stranger goes on trying, something always is.
    fn must_be_tidy(&mut self) -> Result<(), String> {
        let Schedule { estranged, impostor, hosts, lifetimes, .. } = *self.schedule;
        if estranged || impostor || lifetimes.0 < LINGER {
            return Ok(());
        }
        self.world.run_for(LINGER);
        self.must_settle("at the end")?;
        for number in 1..=hosts {
            let host = self.world.host(address(number));
            let (sas, spis) = host.holds();
            let peers = usize::from(hosts) - 1;
            let children = host.node.peers.keys().map(|&index| host.node.installs.of(index).count()).sum::<usize>();
            if sas != peers || spis != children {
                return Err(format!(
                    "P6: host{number} has {peers} peers and {children} CHILD_SAs, but {sas} IKE SAs in some state and {spis} \
                     inbound SPIs"
                ));
            }
        }
        Ok(())
    }
}
