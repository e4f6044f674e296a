//! Fifty hosts that start at the same instant, and all call each other at once.

use std::net::{IpAddr, Ipv4Addr};

use super::{SECONDS, World, config, packet};
use crate::ike::{Command, PeerConfig, PostQuantum};
use crate::model::WorkerIndex;
use crate::node::{NodeConfig, PeerState};

const HOSTS: u8 = 50;

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

/// Key exchanges are as short as they get: there are thousands.
fn one_of_fifty(number: u8) -> NodeConfig {
    let others = (1..=HOSTS).filter(|&other| other != number);
    let mut peers: Vec<PeerConfig> = others.flat_map(|other| config(number, other, 1).peers).collect();
    peers.iter_mut().for_each(|peer| peer.post_quantum = PostQuantum::No);
    NodeConfig { peers, ..config(number, number, 1) }
}

/// Nobody is polite: each pair crosses. Without loss it takes seconds, with loss a minute; then each has one IKE SA and one CHILD_SA
/// with each other one, at no time more than two, and packets pass.
#[test]
fn fifty_hosts_that_start_at_once_have_one_ike_sa_a_pair() {
    for (loss, within) in [(0.0, 20), (0.1, 90)] {
        let mut world = World::new(50);
        world.loss = loss;
        for number in 1..=HOSTS {
            world.start(address(number), one_of_fifty(number));
        }
        for number in 1..=HOSTS {
            let now = world.now;
            let node = &mut world.host(address(number)).node;
            for index in node.peers.keys().copied().collect::<Vec<_>>() {
                node.endpoint.handle_command(now, Command::Initiate(index));
            }
            world.pump_all();
        }
        for _ in 0..within * 2 {
            world.run_for(SECONDS(1) / 2);
            for number in 1..=HOSTS {
                let most = world.host(address(number)).node.peers.values().map(|peer| peer.ike.len()).max();
                assert!(most <= Some(2), "loss {loss}: {most:?} IKE SAs with one peer");
            }
        }
        world.loss = 0.0;
        world.run_for(SECONDS(if loss > 0.0 { 60 } else { 0 }));
        for a in 1..=HOSTS {
            let now = world.now;
            for peer in world.host(address(a)).node.peers(now) {
                let sas = (peer.state, peer.ike_count, peer.children.len());
                assert_eq!(sas, (PeerState::Up, 1, 1), "loss {loss}: host{a} and {}: {:?}", peer.name, peer.history);
            }
            for b in (1..=HOSTS).filter(|&b| b != a) {
                let names = (format!("host{a}"), format!("host{b}"));
                world.settled((address(a), &names.0), (address(b), &names.1)).unwrap_or_else(|why| panic!("{why}"));
            }
            let b = a % HOSTS + 1;
            world.send(address(a), WorkerIndex(0), &packet([10, 42, a, 7], [10, 42, b, 9], 1));
            world.run_for(SECONDS(1));
            assert_eq!(world.received(address(b)).len(), 1);
        }
        assert_eq!(world.witness.complaint(), None);
    }
}
