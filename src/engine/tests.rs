//! Running engines in network namespaces, their brains scripted: SAs with fixed keys, and a record of what was heard.

mod hosts;
mod life;
mod memory;
mod nodes;
mod offload;
mod strays;
mod tunnel;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{self, Duration};

use bytes::Bytes;

use super::*;
use crate::esp::{Event, Route, RouteTable, SaCounters, Update};
use crate::ike::Transmit;
use crate::model::{
    AeadAlgorithm, ChildSaParams, ChildSuite, DropReason, Instant, Lifetime, Path, PeerIndex, SaKey, Secret, Spi, Ticket,
    TrafficSelector, Transport, WorkerIndex,
};
use crate::node::{Notice, Recipient};
use crate::sys::netns::Namespace;
use crate::sys::testing::ip;
use crate::sys::tun::TunBackend;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our only peer.
pub(in crate::engine) const PEER: PeerIndex = PeerIndex(4);

/// What a scripted brain was told.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Heard {
    Ike(Path, Transport, Vec<u8>),
    Event(WorkerIndex, Event),
    PathMtu(Path, u32),
}

/// A brain that does what the test says and writes down what it hears.
#[derive(Default)]
struct Script {
    updates: VecDeque<(Recipient, Update)>,
    transmits: VecDeque<Transmit>,
    keepalives: VecDeque<Path>,
    heard: Vec<Heard>,
    wake_at: Option<Instant>,
    woken_at: Option<Instant>,
}

impl Brain for Script {
    fn handle_ike(&mut self, _now: Instant, path: Path, transport: Transport, message: &[u8]) {
        self.heard.push(Heard::Ike(path, transport, message.to_vec()));
    }

    fn handle_event(&mut self, _now: Instant, worker: WorkerIndex, event: Event) {
        self.heard.push(Heard::Event(worker, event));
    }

    fn handle_path_mtu(&mut self, _now: Instant, path: Path, mtu: u32) {
        self.heard.push(Heard::PathMtu(path, mtu));
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.wake_at.take_if(|at| *at <= now).is_some() {
            self.woken_at = Some(now);
        }
    }

    fn poll_update(&mut self) -> Option<(Recipient, Update)> {
        self.updates.pop_front()
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    fn poll_keepalive(&mut self) -> Option<Path> {
        self.keepalives.pop_front()
    }

    fn poll_notice(&mut self) -> Option<Notice> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.wake_at
    }
}

/// A configuration on the standard ports.
fn config(workers: u8, tun_backend: TunBackend) -> Config {
    Config {
        listen: [0, 0, 0, 0].into(),
        ike_port: 500,
        natt_port: 4500,
        tun_name: "overlay0".to_owned(),
        tun_backend,
        tun_offload: true,
        tun_mtu: 1400,
        workers,
        pin: false,
        provider: crate::crypto::Provider::Ring,
    }
}

/// Waits until something holds.
#[track_caller]
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(in crate::engine) fn spi(value: u32) -> Spi {
    Spi::new(value).expect("a test's SPI is not reserved")
}

/// Counts over all threads of an engine.
fn dropped(handle: &Handle<Script>, reason: DropReason) -> u64 {
    handle.drops().iter().map(|drops| drops.of(reason)).sum()
}

/// Every drop of an engine, by name.
fn all_drops(handle: &Handle<Script>) -> Vec<(usize, &'static str, u64)> {
    let all = handle.drops().iter().enumerate();
    all.flat_map(|(thread, drops)| drops.nonzero().map(move |(reason, count)| (thread, reason.name(), count))).collect()
}

fn heard(handle: &Handle<Script>) -> Vec<Heard> {
    handle.ask(|script, _| script.heard.clone()).expect("the control thread answers")
}

/// Posts updates; they are in the workers' mailboxes afterwards.
fn update(handle: &Handle<Script>, updates: impl IntoIterator<Item = (Recipient, Update)> + Send + 'static) {
    handle.call(move |script, _| script.updates.extend(updates)).expect("the control thread listens");
    // The brain is drained between two requests.
    handle.ask(|_, _| ()).expect("the control thread answers");
}

/// Both directions of an SA between overlay hosts 1 and 2, as the lower number sees it or as the other does. Keys follow from the
/// SPIs.
pub(in crate::engine) fn child(path: Path, inbound_spi: Spi, outbound_spi: Spi) -> ChildSaParams {
    let key = |spi: Spi| SaKey { keymat: Secret::new((0..36).map(|octet| octet ^ spi.value().to_be_bytes()[0]).collect()) };
    let everywhere = || {
        let prefixes = ["10.42.0.0/16", "fd00:42::/32"];
        prefixes.map(|prefix| TrafficSelector::from_prefix(prefix.parse().unwrap())).to_vec()
    };
    ChildSaParams {
        peer: PEER,
        inbound_spi,
        outbound_spi,
        suite: ChildSuite { aead: AeadAlgorithm::Aes256Gcm16, esn: true, group: None, additional: None },
        inbound_key: key(inbound_spi),
        outbound_key: key(outbound_spi),
        local_selectors: everywhere(),
        remote_selectors: everywhere(),
        path,
        lifetime: Lifetime {
            soft: Duration::from_secs(3000),
            hard: Duration::from_secs(3600),
            soft_packets: u64::MAX,
            soft_octets: u64::MAX,
        },
        replay_window: 4096,
    }
}

/// What makes a host with number `own` send to host `other`, whose SAs `owner` has.
pub(in crate::engine) fn routes(own: u8, other: u8, owner: WorkerIndex) -> (Recipient, Update) {
    let prefix = |host: u8| format!("10.42.{host}.0/24").parse().unwrap();
    let prefix6 = |host: u8| format!("fd00:42:{host}::/64").parse().unwrap();
    let peer = Route::Peer { peer: PEER, owner };
    let routes = [(prefix(own), Route::Local), (prefix6(own), Route::Local), (prefix(other), peer), (prefix6(other), peer)];
    (Recipient::All, Update::Routes(Arc::new(RouteTable::new(routes))))
}

/// The orders that install an SA on its owner; `activate` also sends with it.
pub(in crate::engine) fn install(child: ChildSaParams, activate: bool) -> Vec<(Recipient, Update)> {
    let spi = child.inbound_spi;
    let owner = Recipient::Worker(spi.owner());
    let ticket = Ticket(u64::from(spi.value()));
    let install = Update::Install { child: Box::new(child), counters: Arc::<SaCounters>::default(), ticket };
    let mut updates = vec![(owner, install)];
    if activate {
        updates.push((owner, Update::Activate(spi)));
    }
    updates
}

fn installed(spi: Spi) -> Heard {
    Heard::Event(spi.owner(), Event::Installed(Ticket(u64::from(spi.value()))))
}

/// A message of IKE's, as far as the engine cares.
fn transmit(path: Path, transport: Transport, message: &'static [u8]) -> Transmit {
    Transmit { path, transport, message: Bytes::from_static(message) }
}

/// The next datagram, within the socket's own patience.
#[track_caller]
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(buffer) {
            // A machine that is paused interrupts waits that have an end.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.expect("a datagram arrives"),
        }
    }
}

/// Runs `work` inside, where the calling thread does not live.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    namespace.run(work).expect("these tests need root for network namespaces of their own")
}
