//! The data plane in memory: route look-ups, replay window, packets sealed and opened. `cargo bench --bench esp`
//!
//! Packets are counted as inner packets, octets as inner octets; one core does everything.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{self, Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use underpass::crypto::Provider;
use underpass::esp::{Config, DataPlane, Inbox, Incoming, Outbox, Outcome, ReplayWindow, Route, RouteTable, Update};
use underpass::model::{
    AeadAlgorithm, ChildSaParams, ChildSuite, Drops, Instant, Lifetime, Path, PeerIndex, Rng, SaKey, Secret, SeededRng, Spi,
    Ticket, TrafficSelector, WorkerIndex,
};

/// Addresses that are looked up in turn: enough that no branch predictor knows the way.
const PROBES: usize = 1 << 14;

/// Inner packets of an acknowledgement's size and of a full one.
const SIZES: [usize; 2] = [64, 1400];

/// One packet at a time, and what one aggregate of the kernel holds.
const BATCHES: [usize; 2] = [1, 64];

const NOW: Instant = Instant::ORIGIN;

// --- routes ---

/// So many host blocks of 10.0.0.0/8, one in ten with an exception for a moved address, and their like in IPv6.
fn prefixes(count: usize, rng: &mut SeededRng) -> (Vec<IpNet>, Vec<IpNet>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for n in 0..count as u32 {
        let (len, spread) = if count > 1 << 16 { (26, 6) } else { (24, 8) };
        let block = 0x0a00_0000 | n << spread;
        v4.push(IpNet::new(Ipv4Addr::from_bits(block).into(), len).expect("a length below 33"));
        v6.push(IpNet::new(Ipv6Addr::from_bits(0xfd00_0042 << 96 | u128::from(n) << 64).into(), 64).expect("below 129"));
        if n % 10 == 9 {
            v4.push(IpNet::new(Ipv4Addr::from_bits(block | rng.u32() & 0x3f).into(), 32).expect("a length below 33"));
        }
    }
    (v4, v6)
}

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    let mut rng = SeededRng::new(1);
    for count in [10, 10_000, 100_000] {
        let (v4, v6) = prefixes(count, &mut rng);
        let entry =
            |(n, &prefix): (usize, &IpNet)| (prefix, Route::Peer { peer: PeerIndex(n as u32), owner: WorkerIndex(0) });
        let table = RouteTable::new(v4.iter().enumerate().chain(v6.iter().enumerate()).map(entry));
        for (name, prefixes) in [("v4", &v4), ("v6", &v6)] {
            let address = |rng: &mut SeededRng| match prefixes[rng.u32() as usize % prefixes.len()] {
                IpNet::V4(net) => {
                    Ipv4Addr::from_bits(net.network().to_bits() | rng.u32() & !u32::from(net.netmask())).into()
                }
                IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | u128::from(rng.u64())).into(),
            };
            let probes: Vec<IpAddr> = (0..PROBES).map(|_| address(&mut rng)).collect();
            let mut at = 0;
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    at = (at + 1) % PROBES;
                    table.lookup(black_box(probes[at])).expect("every probe lies in a prefix")
                });
            });
        }
        if count == 100_000 {
            group.sample_size(10);
            group.bench_function(BenchmarkId::new("build v4+v6", count), |b| {
                b.iter(|| RouteTable::new(v4.iter().enumerate().chain(v6.iter().enumerate()).map(entry)));
            });
        }
    }
    group.finish();
}

// --- replay window ---

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(1));
    for (name, swap) in [("in order", 0), ("reordered", 37)] {
        group.bench_function(BenchmarkId::new(name, 4096), |b| {
            let mut window = ReplayWindow::new(4096, true);
            let mut next = 0u32;
            b.iter(|| {
                next = next.wrapping_add(1);
                let checked = window.check(black_box(next ^ swap)).ok()?;
                window.accept(checked.authenticate(true).ok()?).ok()
            });
        });
    }
    group.finish();
}

// --- packets ---

fn spi(value: u32) -> Spi {
    Spi::new(value).expect("not reserved")
}

/// A data plane with one SA, and the other end's.
fn planes(aead: AeadAlgorithm) -> (DataPlane, DataPlane) {
    let key = |fill: u8| SaKey { keymat: Secret::new(vec![fill; aead.keymat_len()]) };
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let any = || vec![TrafficSelector::from_prefix(net("10.42.0.0/16"))];
    let path = Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 4500).into() };
    let child = |ours: (u32, u8), theirs: (u32, u8)| ChildSaParams {
        peer: PeerIndex(1),
        inbound_spi: spi(ours.0),
        outbound_spi: spi(theirs.0),
        suite: ChildSuite { aead, esn: true, group: None, additional: None },
        inbound_key: key(ours.1),
        outbound_key: key(theirs.1),
        local_selectors: any(),
        remote_selectors: any(),
        path,
        lifetime: Lifetime {
            soft: Duration::from_secs(3000),
            hard: Duration::from_secs(3600),
            soft_packets: u64::MAX,
            soft_octets: u64::MAX,
        },
        replay_window: 4096,
    };
    let plane = |child: ChildSaParams, local: &str, remote: &str| {
        let config = Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1500 };
        let mut plane = DataPlane::new(config, Arc::new(Drops::default()));
        let peer = Route::Peer { peer: PeerIndex(1), owner: WorkerIndex(0) };
        let routes = RouteTable::new([(net(local), Route::Local), (net(remote), peer)]);
        let spi = child.inbound_spi;
        let install = Update::Install { child: Box::new(child), counters: Arc::default(), ticket: Ticket(1) };
        let (mut outbox, mut released) = (Outbox::new(1 << 16, 64), Vec::new());
        for update in [Update::Routes(Arc::new(routes)), install, Update::Activate(spi)] {
            plane.handle_update(NOW, update, &mut outbox, &mut released);
        }
        plane
    };
    let (alpha, beta) = ((0x1000, 1), (0x2000, 2));
    (plane(child(alpha, beta), "10.42.1.0/24", "10.42.2.0/24"), plane(child(beta, alpha), "10.42.2.0/24", "10.42.1.0/24"))
}

/// A UDP packet from 10.42.1.5 to 10.42.2.5 (its header checksum is nobody's business here).
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..20].copy_from_slice(&[10, 42, 1, 5, 10, 42, 2, 5]);
    packet
}

/// Takes a batch of packets from the TUN to the sealed datagrams.
fn seal(plane: &mut DataPlane, packet: &[u8], batch: usize, outbox: &mut Outbox) {
    outbox.clear();
    for _ in 0..batch {
        assert_eq!(plane.handle_inner(NOW, packet, outbox), Outcome::Done);
    }
    plane.seal_pending(outbox);
}

fn packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("plane");
    for aead in AeadAlgorithm::ALL {
        for (size, batch) in SIZES.into_iter().flat_map(|size| BATCHES.map(|batch| (size, batch))) {
            let (mut alpha, mut beta) = planes(aead);
            let packet = packet(size);
            let (mut outbox, mut inbox) = (Outbox::new(1 << 17, 64), Inbox::default());
            let (mut buffer, mut incoming) = (vec![0; 1 << 17], Vec::with_capacity(64));
            group.throughput(Throughput::Elements(batch as u64));
            let parameter = format!("{}/{size}x{batch}", aead.name());
            group.bench_function(BenchmarkId::new("seal", &parameter), |b| {
                b.iter(|| seal(&mut alpha, black_box(&packet), batch, &mut outbox));
            });
            // What is opened must be new: sealing and copying stand beside the clock, which costs some 50 ns per batch.
            group.bench_function(BenchmarkId::new("open", &parameter), |b| {
                b.iter_custom(|rounds| {
                    let mut elapsed = Duration::ZERO;
                    for _ in 0..rounds {
                        seal(&mut alpha, &packet, batch, &mut outbox);
                        let (datagrams, octets) = outbox.datagrams();
                        let used = datagrams.last().map_or(0, |last| (last.start + last.len) as usize);
                        buffer[..used].copy_from_slice(&octets[..used]);
                        incoming.clear();
                        incoming.extend(datagrams.iter().map(|datagram| {
                            let path = Path { local: datagram.path.remote, remote: datagram.path.local };
                            Incoming { start: datagram.start, len: datagram.len, path, ecn: 0 }
                        }));
                        let start = time::Instant::now();
                        beta.handle_outer(NOW, &mut buffer, &incoming, true, &mut inbox);
                        elapsed += start.elapsed();
                        assert_eq!(inbox.packets.len(), batch);
                    }
                    elapsed
                });
            });
        }
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = quick(); targets = routes, replay, packets }
criterion_main!(benches);
