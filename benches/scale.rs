//! One host with ten thousand peers and a hundred thousand routes: what a look-up, a packet, a peer and a change cost.
//! `cargo bench --bench scale`
//!
//! A plain program that prints a table: most of this is too slow, or too large, to be done a thousand times over. One thread
//! does everything; memory is what the allocator was asked for. With a number behind `--`, so many peers.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{self, Duration};

use ipnet::IpNet;
use underpass::crypto::Provider;
use underpass::esp::{Config, DataPlane, Event, Inbox, Incoming, Outbox, Outcome, Route, RouteTable, Update};
use underpass::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use underpass::model::{
    AeadAlgorithm, ChildSaParams, ChildSuite, Drops, Instant, Lifetime, Path, PeerId, PeerIndex, Rng, SaKey, Secret,
    SeededRng, Spi, Ticket, TrafficSelector, WorkerIndex,
};
use underpass::node::{Node, NodeConfig};
use underpass::sys::allocator::{CountingAllocator, held};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PEERS: u32 = 10_000;
const ROUTES: u32 = 100_000;

const NOW: Instant = Instant::ORIGIN;

/// Packets of one measurement.
const PACKETS: u32 = 200_000;

fn main() {
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    // `cargo test --benches` only wants to know that it runs.
    let few = if std::env::args().any(|argument| argument == "--bench") { PEERS } else { 100 };
    let peers = asked.unwrap_or(few);
    routes();
    for peers in [1, peers] {
        packets(peers);
    }
    changes(peers);
    node(peers);
}

// --- telling ---

fn tell(what: &str, figure: String) {
    println!("{what:<66} {figure:>12}");
}

/// The shortest of five: what the work itself takes.
fn shortest<T>(mut work: impl FnMut() -> T) -> Duration {
    let once = |_| {
        let start = time::Instant::now();
        black_box(work());
        start.elapsed()
    };
    (0..5).map(once).min().expect("five")
}

fn each(total: Duration, count: u32) -> String {
    format!("{:.1} ns", total.as_secs_f64() * 1e9 / f64::from(count))
}

fn octets(octets: i64) -> String {
    if octets < 100_000 { format!("{octets} B") } else { format!("{:.1} MB", octets as f64 / 1e6) }
}

// --- routes ---

/// A /29 of 10.0.0.0/8 for each route; peers have them in turn.
fn prefix(number: u32) -> IpNet {
    IpNet::new(Ipv4Addr::from_bits(0x0a00_0000 + (number << 3)).into(), 29).expect("a length below 33")
}

fn route(number: u32, peers: u32) -> (IpNet, Route) {
    (prefix(number), Route::Peer { peer: PeerIndex(number % peers), owner: WorkerIndex(0) })
}

fn table(peers: u32) -> RouteTable {
    RouteTable::new((0..ROUTES).map(|number| route(number, peers)))
}

fn routes() {
    let before = held();
    let routes = table(PEERS);
    tell(&format!("{ROUTES} routes: memory"), octets(held() - before));
    tell(&format!("{ROUTES} routes: build the table"), format!("{:.1?}", shortest(|| table(PEERS))));
    let mut rng = SeededRng::new(1);
    let probes: Vec<IpAddr> =
        (0..PACKETS).map(|_| Ipv4Addr::from_bits(0x0a00_0000 + rng.u32() % (ROUTES << 3)).into()).collect();
    let look_up = || probes.iter().filter(|&&probe| routes.lookup(probe).is_some()).count();
    assert_eq!(look_up(), probes.len());
    tell(&format!("{ROUTES} routes: look up one at random"), each(shortest(look_up), PACKETS));
}

// --- data plane ---

fn spi(value: u32) -> Spi {
    Spi::new(value).expect("not reserved")
}

/// The SA with a peer, seen from one end (`side` 0) or the other.
fn child(peer: u32, side: u32) -> ChildSaParams {
    let key = |side: u32| SaKey { keymat: Secret::new(vec![side as u8 + 1; AeadAlgorithm::Aes128Gcm16.keymat_len()]) };
    let inbound = |side: u32| spi(0x1000 + (2 * peer + side) * 256);
    let end = |side: u32| SocketAddr::from((Ipv4Addr::from_bits(0xc000_0200 + side * (peer + 1)), 4500));
    let any = || vec![TrafficSelector::from_prefix("8.0.0.0/5".parse().expect("a prefix"))];
    ChildSaParams {
        peer: PeerIndex(peer),
        inbound_spi: inbound(side),
        outbound_spi: inbound(1 - side),
        suite: ChildSuite { aead: AeadAlgorithm::Aes128Gcm16, esn: true, group: None, additional: None },
        inbound_key: key(side),
        outbound_key: key(1 - side),
        local_selectors: any(),
        remote_selectors: any(),
        path: Path { local: end(side), remote: end(1 - side) },
        lifetime: Lifetime {
            soft: Duration::from_secs(3000),
            hard: Duration::from_secs(3600),
            soft_packets: u64::MAX,
            soft_octets: u64::MAX,
        },
        replay_window: 4096,
    }
}

/// A data plane and what it writes to.
struct Plane {
    plane: DataPlane,
    outbox: Outbox,
    released: Vec<(Path, u8, Vec<u8>)>,
}

impl Plane {
    fn new() -> Self {
        let config = Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1400 };
        let plane = DataPlane::new(config, Arc::new(Drops::default()));
        Self { plane, outbox: Outbox::new(1 << 18, 256), released: Vec::new() }
    }

    fn update(&mut self, now: Instant, update: Update) {
        self.plane.handle_update(now, update, &mut self.outbox, &mut self.released);
        self.plane.seal_pending(&mut self.outbox);
        self.outbox.clear();
        while self.plane.poll_event().is_some() {}
    }

    fn install(&mut self, now: Instant, child: ChildSaParams) {
        let spi = child.inbound_spi;
        self.update(now, Update::Install { child: Box::new(child), counters: Arc::default(), ticket: Ticket(1) });
        self.update(now, Update::Activate(spi));
    }
}

/// The hub, which is 11.0.0.0/8 and has all the routes to its peers, and one plane for all of them: to the peer *n*, 11.*n*/24 is
/// the hub.
fn planes(peers: u32) -> [Plane; 2] {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let to_peers = (0..ROUTES).map(|number| route(number, peers));
    let to_hub = (0..peers).map(|peer| {
        let net = IpNet::new(Ipv4Addr::from_bits(0x0b00_0000 + (peer << 8)).into(), 24).expect("a length below 33");
        (net, Route::Peer { peer: PeerIndex(peer), owner: WorkerIndex(0) })
    });
    let tables = [
        RouteTable::new(to_peers.chain([(net("11.0.0.0/8"), Route::Local)])),
        RouteTable::new(to_hub.chain([(net("10.0.0.0/8"), Route::Local)])),
    ];
    let mut side = 0;
    tables.map(|table| {
        let mut plane = Plane::new();
        plane.update(NOW, Update::Routes(Arc::new(table)));
        let before = held();
        (0..peers).for_each(|peer| plane.install(NOW, child(peer, side)));
        if side == 0 && peers > 1 {
            tell(
                &format!("{peers} peers: memory of each in a worker, with its SA"),
                octets((held() - before) / i64::from(peers)),
            );
        }
        side += 1;
        plane
    })
}

/// A packet of 64 octets from address to address.
fn packet(source: u32, destination: u32) -> Vec<u8> {
    let mut packet = vec![0; 64];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 64]);
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&source.to_be_bytes());
    packet[16..20].copy_from_slice(&destination.to_be_bytes());
    packet
}

/// Packets to and from peers at random: no cache holds what they need, if there are many.
fn packets(peers: u32) {
    let [mut hub, mut others] = planes(peers);
    let mut rng = SeededRng::new(2);
    let numbers: Vec<u32> = (0..PACKETS).map(|_| rng.u32() % ROUTES).collect();
    let outbound: Vec<Vec<u8>> = numbers.iter().map(|number| packet(0x0b00_0001, 0x0a00_0001 + (number << 3))).collect();
    let start = time::Instant::now();
    for batch in outbound.chunks(64) {
        for packet in batch {
            assert_eq!(hub.plane.handle_inner(NOW, packet, &mut hub.outbox), Outcome::Done);
        }
        hub.plane.seal_pending(&mut hub.outbox);
        hub.outbox.clear();
    }
    tell(&format!("{peers} peers: route, seal a packet of 64 octets to one at random"), each(start.elapsed(), PACKETS));

    let (mut buffer, mut incoming, mut inbox) = (Vec::new(), Vec::new(), Inbox::default());
    let mut took = Duration::ZERO;
    for batch in numbers.chunks(64) {
        for number in batch {
            let packet = packet(0x0a00_0001 + (number << 3), 0x0b00_0001 + ((number % peers) << 8));
            assert_eq!(others.plane.handle_inner(NOW, &packet, &mut others.outbox), Outcome::Done);
        }
        others.plane.seal_pending(&mut others.outbox);
        let (datagrams, octets) = others.outbox.datagrams();
        buffer.clear();
        buffer.extend_from_slice(octets);
        incoming.clear();
        incoming.extend(datagrams.iter().map(|datagram| {
            let path = Path { local: datagram.path.remote, remote: datagram.path.local };
            Incoming { start: datagram.start, len: datagram.len, path, ecn: 0 }
        }));
        let start = time::Instant::now();
        hub.plane.handle_outer(NOW, &mut buffer, &incoming, true, &mut inbox);
        took += start.elapsed();
        assert_eq!(inbox.packets.len(), batch.len());
        others.outbox.clear();
        while hub.plane.poll_event().is_some() {}
    }
    tell(&format!("{peers} peers: open a packet of 64 octets of one at random, check it"), each(took, PACKETS));
}

/// What a worker does between two batches when something changes: as long as that takes, its packets wait.
fn changes(peers: u32) {
    let [mut hub, _] = planes(peers);
    let table = Arc::new(table(peers));
    let mut tables: Vec<_> = (0..5).map(|_| Arc::new(RouteTable::clone(&table))).collect();
    // The worker is the last to hold the table that goes.
    let taken = shortest(|| hub.update(NOW, Update::Routes(tables.pop().expect("five"))));
    tell(&format!("{peers} peers: take another table of {ROUTES} routes"), format!("{taken:.1?}"));

    let mut number = 0;
    let taken = shortest(|| {
        number += 1;
        hub.update(NOW, Update::PathLimit(PeerIndex(number), Some(1400)));
    });
    tell(&format!("{peers} peers: hear of a path's MTU"), format!("{taken:.1?}"));
    let all = time::Instant::now();
    (0..peers).for_each(|peer| hub.update(NOW, Update::PathLimit(PeerIndex(peer), Some(1450))));
    tell(&format!("{peers} peers: hear of each path's MTU, all together"), format!("{:.1?}", all.elapsed()));

    // A rekey: another SA, the old one retired, and gone after its grace.
    let mut now = NOW;
    let mut fresh = peers;
    let (mut installs, mut ends) = (Vec::new(), Vec::new());
    for peer in 0..5 {
        fresh += 1;
        let renewed = ChildSaParams { peer: PeerIndex(peer), ..child(fresh, 0) };
        let old = child(peer, 0).inbound_spi;
        let start = time::Instant::now();
        hub.install(now, renewed);
        hub.update(now, Update::Retire { spi: old, at_once: false });
        installs.push(start.elapsed());
        now = now + Duration::from_secs(6);
        let start = time::Instant::now();
        hub.plane.handle_timeout(now);
        ends.push(start.elapsed());
    }
    tell(&format!("{peers} peers: take an SA in place of another"), format!("{:.1?}", installs.iter().min().expect("five")));
    tell(&format!("{peers} peers: end the one that was replaced"), format!("{:.1?}", ends.iter().min().expect("five")));
}

// --- control ---

const HUB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The hub's peer, or the hub as that peer's. Each has ten blocks.
fn peer_config(number: u32, peers: u32, at_hub: bool) -> PeerConfig {
    let psk = || Secret::copy_of(b"0123456789abcdef0123456789abcdef");
    let (hub, peer) = (PeerId::Fqdn("hub".to_owned()), PeerId::Fqdn(format!("host{number}")));
    let selectors = || (0..10).map(|block| TrafficSelector::from_prefix(prefix(number + block * peers))).collect();
    let of_hub = || vec![TrafficSelector::from_prefix("11.0.0.0/8".parse().expect("a prefix"))];
    let (local_id, remote_id) = if at_hub { (hub, peer) } else { (peer, hub) };
    PeerConfig {
        index: PeerIndex(0),
        name: format!("host{number}"),
        local_id,
        remote_id,
        local_auth: LocalAuth::Psk(psk()),
        remote_auth: PeerAuth::Psk(psk()),
        remote: (!at_hub).then_some(RemoteEndpoint::Standard(HUB.into())),
        alternatives: Vec::new(),
        suites: vec![AeadAlgorithm::Aes128Gcm16],
        post_quantum: PostQuantum::Preferred,
        local_selectors: if at_hub { of_hub() } else { selectors() },
        remote_selectors: if at_hub { selectors() } else { of_hub() },
        owner: WorkerIndex(0),
    }
}

fn peer_configs(peers: u32, at_hub: bool) -> Vec<PeerConfig> {
    (0..peers).map(|number| peer_config(number, peers, at_hub)).collect()
}

fn start(peers: u32, at_hub: bool) -> Node {
    let config = NodeConfig {
        ike: EndpointConfig {
            workers: 2,
            ike_rekey: Duration::from_secs(4 * 3600),
            child_rekey: Duration::from_secs(3600),
            replay_window: 4096,
            ike_port: 500,
            natt_port: 4500,
        },
        workers: 2,
        tun_mtu: 1400,
        local_prefixes: Vec::new(),
        probe_interval: Duration::from_secs(10),
        peers: peer_configs(peers, at_hub),
    };
    Node::new(NOW, config, Box::new(SeededRng::new(3)), Box::new(SeededRng::new(4)))
}

/// Takes what a node has for its workers, which do all at once; true if there was anything.
fn obey(node: &mut Node, now: Instant) -> bool {
    let mut any = false;
    while let Some((_, update)) = node.poll_update() {
        any = true;
        if let Update::Install { ticket, .. } = update {
            node.handle_event(now, Event::Installed(ticket));
        }
    }
    while node.poll_notice().is_some() || node.poll_keepalive().is_some() {}
    any
}

/// Carries messages until there are none. All peers are one node here, and stand for hosts of their own: the initiator's SPI is
/// where a message comes from. Says how long the hub worked.
fn talk(hub: &mut Node, others: &mut Node, now: Instant) -> Duration {
    let mut worked = Duration::ZERO;
    let mut count = |work: &mut dyn FnMut()| {
        let start = time::Instant::now();
        work();
        worked += start.elapsed();
    };
    // What came last goes first: one handshake after the other, or the hub would ask for cookies.
    let mut waiting = Vec::new();
    loop {
        count(&mut || {
            obey(hub, now);
        });
        obey(others, now);
        while let Some(answer) = hub.poll_transmit() {
            let path = Path { local: answer.path.remote, remote: (HUB, answer.path.local.port()).into() };
            others.handle_ike(now, path, answer.transport, &answer.message);
            obey(others, now);
        }
        waiting.extend(std::iter::from_fn(|| others.poll_transmit()));
        let Some(transmit) = waiting.pop() else { return worked };
        let spi = u32::from_be_bytes(*transmit.message.first_chunk().expect("a header"));
        let remote = SocketAddr::from((Ipv4Addr::from_bits(0x6400_0000 + (spi >> 8)), transmit.path.local.port()));
        let path = Path { local: (HUB, transmit.path.remote.port()).into(), remote };
        count(&mut || hub.handle_ike(now, path, transmit.transport, &transmit.message));
    }
}

fn node(peers: u32) {
    let began = time::Instant::now();
    let before = held();
    let mut hub = start(peers, true);
    tell(&format!("{peers} peers: start of the control plane"), format!("{:.1?}", began.elapsed()));
    tell(&format!("{peers} peers: memory of each that is not up"), octets((held() - before) / i64::from(peers)));
    let mut others = start(peers, false);
    let mut now = NOW;
    let began = time::Instant::now();
    let before = held();
    let mut at_hub = Duration::ZERO;
    for _ in 0..40 {
        others.handle_timeout(now);
        hub.handle_timeout(now);
        at_hub += talk(&mut hub, &mut others, now);
        now = now + Duration::from_millis(100);
    }
    let up = hub.peers(now).iter().filter(|peer| peer.state.name() == "up").count();
    tell(&format!("{up} of {peers} peers came up, both ends on one core, in"), format!("{:.1?}", began.elapsed()));
    let both = f64::from(peers) / began.elapsed().as_secs_f64();
    tell(&format!("{peers} peers: full handshakes per second on one core, both ends"), format!("{both:.0}"));
    let one = f64::from(peers) / at_hub.as_secs_f64();
    tell(&format!("{peers} peers: the same, the responder's end alone"), format!("{one:.0}"));
    let own = (held() - before) / i64::from(2 * peers);
    tell(&format!("{peers} peers: memory of each that is up, besides, half of both ends"), octets(own));

    let (mut longest, mut sum) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..20 {
        now = now + Duration::from_millis(500);
        let start = time::Instant::now();
        hub.handle_timeout(now);
        longest = longest.max(start.elapsed());
        sum += start.elapsed();
        talk(&mut hub, &mut others, now);
    }
    tell(
        &format!("{peers} peers: a look at each (every 500 ms), mean and longest"),
        format!("{:.1?} {longest:.1?}", sum / 20),
    );
    tell(&format!("{peers} peers: what status shows"), format!("{:.1?}", shortest(|| hub.peers(now).len())));

    let mut wanted = peer_configs(peers, true);
    let same = wanted.clone();
    let start = time::Instant::now();
    hub.reconfigure(now, Vec::new(), same);
    tell(&format!("{peers} peers: the same configuration again"), format!("{:.1?}", start.elapsed()));
    wanted.pop();
    let start = time::Instant::now();
    hub.reconfigure(now, Vec::new(), wanted);
    tell(&format!("{peers} peers: one less"), format!("{:.1?}", start.elapsed()));
}
