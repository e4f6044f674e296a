//! Scenarios between whole endpoints: who sends what, then what each side holds.

mod answers;
mod attacks;
mod bad_auth;
mod bad_child;
mod bad_init;
mod bad_protected;
#[cfg(feature = "x509")]
mod certificates;
mod collision_table;
mod collisions;
mod denial;
mod duplicates;
mod followed_children;
mod fragments;
mod hand;
mod handshake;
mod mobike;
mod moves;
mod per_worker;
mod post_quantum;
mod rekey;
mod scenarios;
mod unasked;

use std::sync::Arc;
use std::time::Duration;

use super::simulator::{Proof, Simulator};
use super::{Command, Event, PostQuantum};
use crate::model::{PeerIndex, Rng, SeededRng, Spi};

/// Host 0 as seen by host 1, and the other way round.
const HOST: [PeerIndex; 2] = [PeerIndex(0), PeerIndex(1)];

/// Two hosts with a tunnel that host 0 initiated.
fn pair(seed: u64) -> Simulator {
    let mut sim = Simulator::new(seed, 2, Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    sim
}

/// Two hosts with a tunnel, whose datagrams from now on wait to be delivered by hand.
fn pair_by_hand(seed: u64) -> Simulator {
    let mut sim = pair(seed);
    sim.by_hand = true;
    sim
}

/// The same without additional key exchanges, so that each rekey is one exchange.
fn classical_pair_by_hand(seed: u64) -> Simulator {
    let mut sim = Simulator::new(seed, 2, Proof::Psk);
    for host in &mut sim.hosts {
        for config in host.endpoint.shared.peers.values_mut() {
            Arc::make_mut(config).post_quantum = PostQuantum::No;
        }
    }
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    sim.by_hand = true;
    sim
}

fn must_be_settled(sim: &Simulator) {
    if let Err(why) = sim.settled(0, 1) {
        let report = |host: usize| format!("{:?}\n{}", sim.hosts[host].complaints(), sim.hosts[host].standing().join("\n"));
        panic!("{why}\nhost 0: {}\nhost 1: {}", report(0), report(1));
    }
}

/// The SA that a host sends with.
fn sender(sim: &Simulator, host: usize) -> Spi {
    *sim.hosts[host].plane.active.values().next().expect("the host sends with an SA")
}

/// Events since `from` that match.
fn count(sim: &Simulator, host: usize, from: usize, matches: impl Fn(&Event) -> bool) -> usize {
    sim.hosts[host].events[from..].iter().filter(|event| matches(event)).count()
}

/// A generator whose 32-octet draws (nonces, and private keys, which do not mind) begin with the octets of a script.
struct Scripted {
    inner: SeededRng,
    script: Vec<u8>,
}

impl Rng for Scripted {
    fn fill(&mut self, buffer: &mut [u8]) {
        self.inner.fill(buffer);
        if buffer.len() == 32
            && let Some(first) = self.script.pop()
        {
            buffer[0] = first;
        }
    }
}

/// Makes the next 32-octet draws of a host begin with these octets.
fn script(sim: &mut Simulator, host: usize, octets: &[u8]) {
    let script = octets.iter().rev().copied().collect();
    sim.hosts[host].endpoint.shared.rng = Box::new(Scripted { inner: SeededRng::new(host as u64 + 99), script });
}

/// Every order of four nonces.
fn permutations() -> impl Iterator<Item = [u8; 4]> {
    let all = (0..256u32).map(|code| [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6]);
    all.filter(|order| (0..4).all(|value| order.contains(&value))).map(|order| order.map(|value| value as u8 * 50 + 10))
}
