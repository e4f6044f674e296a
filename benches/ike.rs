//! Whole IKE handshakes in memory, both sides on one core: IKE_SA_INIT and IKE_AUTH with a CHILD_SA; and rekeys.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use underpass::ike::Command;
use underpass::ike::simulator::{Proof, Simulator};
use underpass::model::{KeGroup, PeerIndex};

/// Host 1, as host 0 knows it.
const PEER: PeerIndex = PeerIndex(1);

/// Virtual time between rekeys: a peer that asks for SAs faster than this for long is refused.
const PAUSE: Duration = Duration::from_secs(20);

/// Two hosts that know each other and hold nothing.
fn hosts(group: KeGroup, proof: Proof) -> Simulator {
    let mut sim = Simulator::new(1, 2, proof);
    sim.begin_with(group);
    sim
}

/// From nothing to a CHILD_SA that both send with.
fn connect(sim: &mut Simulator) {
    sim.command(0, Command::Initiate(PEER));
    sim.run_for(Duration::from_millis(100));
}

fn handshake(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("ike/handshake");
    for (name, proof) in [("psk", Proof::Psk), ("host-keys", Proof::HostKeys)] {
        for group in KeGroup::ALL {
            benches.bench_function(BenchmarkId::new(name, group.name()), |bencher| {
                bencher.iter_batched_ref(|| hosts(group, proof), |sim| connect(black_box(sim)), BatchSize::SmallInput);
            });
        }
    }
    benches.finish();
}

fn rekey(criterion: &mut Criterion) {
    let mut sim = hosts(KeGroup::X25519, Proof::Psk);
    connect(&mut sim);
    sim.settled(0, 1).expect("the pair is up");
    criterion.bench_function("ike/rekey-child", |bencher| {
        bencher.iter(|| {
            let old = sim.hosts[0].plane.active[&PEER];
            sim.command(0, Command::RekeyChild(old));
            sim.run_for(PAUSE);
            assert_ne!(sim.hosts[0].plane.active[&PEER], old, "it was rekeyed");
        });
    });
    criterion.bench_function("ike/rekey-ike", |bencher| {
        bencher.iter(|| {
            let old = sim.hosts[0].endpoint.ike_sas(PEER)[0].local_spi;
            sim.command(0, Command::RekeyIke(PEER));
            sim.run_for(PAUSE);
            assert_ne!(sim.hosts[0].endpoint.ike_sas(PEER)[0].local_spi, old, "it was rekeyed");
        });
    });
}

criterion_group!(benches, handshake, rekey);
criterion_main!(benches);
