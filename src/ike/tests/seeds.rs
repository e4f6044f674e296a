//! Both ends initiate at once on a bad network, then the network heals: one IKE SA and one CHILD_SA remain, whatever the seed.
//!
//! `UNDERPASS_SEEDS=2000 cargo test --lib ike::tests::seeds` is the full run; `UNDERPASS_SEED=n` replays one.

use std::time::Duration;

use crate::ike::Command;
use crate::ike::simulator::{Faults, Proof, Simulator};
use crate::model::{PeerIndex, Rng, SeededRng};

/// Seeds without UNDERPASS_SEEDS.
const SEEDS: u64 = 200;

/// How long the network is bad.
const STORM: Duration = Duration::from_secs(60);

/// How long both ends may take to settle once it is good: the longest wait of a retransmission (4 s), the patience with a duplicate
/// (10 s) and an initiation that began with the last lost datagram (30 s), rounded up.
const CALM: Duration = Duration::from_secs(60);

/// How long closed IKE SAs and lost collisions are remembered.
const LINGER: Duration = Duration::from_secs(70);

/// What a storm does.
const FAULTS: Faults = Faults { loss: 0.2, duplication: 0.2, reordering: 0.2 };

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("UNDERPASS_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("UNDERPASS_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// Runs a scenario for every seed and says how to replay what fails.
fn for_every_seed(test: &str, scenario: impl Fn(u64) -> Result<(), String>) {
    for seed in seeds() {
        if let Err(why) = scenario(seed) {
            panic!(
                "seed {seed}: {why}\nreplay: UNDERPASS_SEED={seed} cargo test --lib ike::tests::seeds::{test} -- --exact"
            );
        }
    }
}

fn check(sim: &mut Simulator) -> Result<(), String> {
    let standing = |host: usize| sim.hosts[host].standing().join("\n");
    sim.settled(0, 1).map_err(|why| format!("{why}\nhost 0:\n{}\nhost 1:\n{}", standing(0), standing(1)))?;
    // What is closed is remembered for a while.
    sim.run_for(LINGER);
    sim.tidy()?;
    // Established ones with one peer, without those that a rekey replaced or that are being deleted.
    if sim.most_ike_sas > 2 {
        return Err(format!("{} IKE SAs with one peer at a time", sim.most_ike_sas));
    }
    Ok(())
}

#[test]
fn both_initiate_in_a_storm() {
    for_every_seed("both_initiate_in_a_storm", |seed| {
        let mut sim = Simulator::new(seed, 2, if seed % 2 == 0 { Proof::Psk } else { Proof::HostKeys });
        sim.faults = FAULTS;
        sim.reconcile();
        sim.run_for(STORM);
        sim.faults = Faults::default();
        sim.run_for(CALM);
        check(&mut sim)
    });
}

#[test]
fn everything_is_rekeyed_in_a_storm() {
    for_every_seed("everything_is_rekeyed_in_a_storm", |seed| {
        let mut sim = Simulator::new(seed, 2, Proof::Psk);
        let mut chance = SeededRng::new(!seed);
        sim.reconcile();
        sim.traffic = true;
        sim.run_for(Duration::from_secs(5));
        sim.faults = FAULTS;
        for _ in 0..40 {
            let (host, other) = if chance.u32().is_multiple_of(2) { (0, 1) } else { (1, 0) };
            let peer = PeerIndex(other);
            let child = sim.hosts[host].plane.active.get(&peer).copied();
            let command = match (chance.u32() % 8, child) {
                (0..=2, _) => Command::RekeyIke(peer),
                (3, Some(spi)) if chance.u32().is_multiple_of(4) => Command::ChildExpired(spi),
                (_, Some(spi)) => Command::RekeyChild(spi),
                (_, None) => Command::CreateChild(peer),
            };
            sim.command(host, command);
            let pause = chance.jitter(Duration::from_secs(2));
            sim.run_for(pause);
        }
        sim.faults = Faults::default();
        sim.run_for(CALM);
        check(&mut sim)
    });
}

#[test]
fn hosts_restart_in_a_storm() {
    for_every_seed("hosts_restart_in_a_storm", |seed| {
        let mut sim = Simulator::new(seed, 2, Proof::Psk);
        let mut chance = SeededRng::new(!seed);
        sim.reconcile();
        sim.faults = FAULTS;
        for _ in 0..6 {
            let pause = Duration::from_secs(1) + chance.jitter(Duration::from_secs(20));
            sim.run_for(pause);
            sim.restart((chance.u32() % 2) as usize, Proof::Psk);
        }
        sim.faults = Faults::default();
        sim.run_for(CALM);
        check(&mut sim)
    });
}
