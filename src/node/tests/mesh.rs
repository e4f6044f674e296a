//! Several hosts that all know each other, and everything that can happen to them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{SECONDS, World, config, packet};
use crate::ike::PeerConfig;
use crate::model::{Rng, SeededRng, WorkerIndex};
use crate::node::{NodeConfig, PeerState, Rekey};

/// Host `number` of a mesh of so many; some do not know where those with higher numbers are.
fn mesh_config(number: u8, hosts: u8, all_know: bool) -> NodeConfig {
    let others = (1..=hosts).filter(|&other| other != number);
    let mut peers: Vec<PeerConfig> = others.flat_map(|other| config(number, other, 2).peers).collect();
    for peer in peers.iter_mut().filter(|peer| !all_know && peer.remote_id > peer.local_id) {
        peer.remote = None;
    }
    NodeConfig { peers, ..config(number, number, 2) }
}

/// Hosts die and return, links break in one direction or both, datagrams are lost, everything is rekeyed. Then it is quiet, and
/// within a minute every pair has one IKE SA, one CHILD_SA to fall back to, and packets of every worker pass.
#[test]
fn a_mesh_recovers_from_whatever_happened() {
    const HOSTS: u8 = 4;
    let address = |number: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, number));
    let seeds = std::env::var("UNDERPASS_SEEDS").map_or(8, |count| count.parse().unwrap());
    for seed in 0..seeds {
        let mut chance = SeededRng::new(seed);
        let mut world = World::new(seed);
        let any = |chance: &mut SeededRng| (chance.u32() % u32::from(HOSTS)) as u8 + 1;
        for number in 1..=HOSTS {
            world.start(address(number), mesh_config(number, HOSTS, seed % 2 == 0));
        }
        for _ in 0..60 {
            let (a, b) = (any(&mut chance), any(&mut chance));
            match chance.u32() % 8 {
                0 => world.start(address(a), mesh_config(a, HOSTS, seed % 2 == 0)),
                1 | 2 => world.cut.push((address(a), address(b))),
                3 => world.cut.extend([(address(a), address(b)), (address(b), address(a))]),
                4 => world.cut.clear(),
                5 => world.loss = f64::from(chance.u32() % 40) / 100.0,
                _ => {
                    let now = world.now;
                    let what = if chance.u32().is_multiple_of(2) { Rekey::Ike } else { Rekey::Child };
                    world.host(address(a)).node.rekey(now, &format!("host{b}"), what);
                }
            }
            world.delay.1 = Duration::from_millis((chance.u32() % 300).into());
            if chance.u32().is_multiple_of(2) {
                let worker = WorkerIndex((chance.u32() % 2) as u8);
                world.send(address(a), worker, &packet([10, 42, a, 7], [10, 42, b, 9], 1));
            }
            let pause = chance.jitter(SECONDS(20));
            world.run_for(pause);
        }
        world.cut.clear();
        world.loss = 0.0;
        world.delay.1 = Duration::ZERO;
        world.run_for(SECONDS(60));
        for a in 1..=HOSTS {
            let now = world.now;
            for peer in world.host(address(a)).node.peers(now) {
                let what = format!("seed {seed}, host{a} and {}: {:?}", peer.name, peer);
                let own = peer.children.iter().filter(|child| child.per_worker).count();
                assert_eq!((peer.state, peer.ike_count, peer.children.len() - own), (PeerState::Up, 1, 1), "{what}");
                assert!(own < 4, "two workers here, two there: {what}");
            }
            for b in (1..=HOSTS).filter(|&b| b != a) {
                world.received(address(b));
                for worker in [0, 1].map(WorkerIndex) {
                    world.send(address(a), worker, &packet([10, 42, a, 7], [10, 42, b, 9], 4711));
                    world.run_for(Duration::from_millis(20));
                    assert_eq!(world.received(address(b)).len(), 1, "seed {seed}: from host{a} to host{b}, {worker:?}");
                }
            }
        }
    }
}
