//! Tunnels that wait for a packet; and peers of which something changes while their tunnel is up.

use ipnet::IpNet;

use super::*;
use crate::node::Wanted;

/// A host and its one peer, as a store has them: everything may be agreed upon, and blocks say what is routed.
fn wanted(number: u8, peer: u8, on_demand: bool, blocks: &[&str]) -> Wanted {
    let mut ike = config(number, peer, 1).peers.remove(0);
    let everything = || vec![TrafficSelector::from_prefix("0.0.0.0/0".parse().unwrap())];
    (ike.local_selectors, ike.remote_selectors) = (everything(), everything());
    Wanted { ike, blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(), on_demand }
}

fn change(world: &mut World, host: IpAddr, wanted: Wanted) {
    let now = world.now;
    let local: Vec<IpNet> = world.host(host).node.config.local_prefixes.clone();
    world.host(host).node.reconfigure(now, local, vec![wanted]);
    world.pump_all();
}

/// Two hosts that know each other by a store.
fn listed(seed: u64, on_demand: bool) -> World {
    let mut world = World::new(seed);
    for (address, number, peer) in [(ALPHA, 1, 2), (BETA, 2, 1)] {
        let mut alone = config(number, peer, 1);
        alone.peers.clear();
        alone.local_prefixes.push(format!("10.43.{number}.0/24").parse().unwrap());
        world.start(address, alone);
        change(&mut world, address, wanted(number, peer, on_demand, &[&format!("10.42.{peer}.0/24")]));
    }
    world
}

fn states(world: &mut World) -> (PeerState, PeerState) {
    (state(world, ALPHA), state(world, BETA))
}

#[test]
fn a_tunnel_on_demand_waits_for_the_first_packet_and_does_not_lose_it() {
    let mut world = listed(700, true);
    world.run_for(SECONDS(120));
    assert_eq!(states(&mut world), (PeerState::Idle, PeerState::Idle));
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 77));
    world.run_for(SECONDS(3));
    assert!(world.received(BETA).iter().any(|got| got.ends_with(&77u32.to_be_bytes())));
    assert_eq!(states(&mut world), (PeerState::Up, PeerState::Up));
    assert!(ping(&mut world, 1));
}

#[test]
fn a_peer_on_demand_that_is_not_there_is_left_alone_after_a_minute() {
    let mut world = listed(701, true);
    world.kill(BETA);
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 1));
    world.run_for(SECONDS(40));
    assert_eq!(state(&mut world, ALPHA), PeerState::Retrying);
    world.run_for(SECONDS(90));
    assert_eq!(state(&mut world, ALPHA), PeerState::Idle);
    // It calls, or there is a packet again: it is as ever.
    let mut alone = config(2, 1, 1);
    alone.peers.clear();
    world.start(BETA, alone);
    change(&mut world, BETA, wanted(2, 1, true, &["10.42.1.0/24"]));
    world.run_for(SECONDS(30));
    assert_eq!(state(&mut world, ALPHA), PeerState::Idle);
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 2));
    world.run_for(SECONDS(5));
    assert_eq!(state(&mut world, ALPHA), PeerState::Up);
}

#[test]
fn demand_and_blocks_change_while_the_tunnel_stays() {
    let mut world = listed(702, false);
    world.run_for(SECONDS(5));
    assert!(ping(&mut world, 1));
    let now = world.now;
    let before = world.host(ALPHA).node.peers(now)[0].children.clone();
    let there = |world: &mut World, tag: u32| {
        world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 43, 2, 9], tag));
        world.run_for(Duration::from_millis(20));
        world.received(BETA).iter().any(|got| got.ends_with(&tag.to_be_bytes()))
    };
    assert!(!there(&mut world, 5), "nobody's block");
    change(&mut world, ALPHA, wanted(1, 2, true, &["10.42.2.0/24", "10.43.2.0/24"]));
    assert!(there(&mut world, 6) && ping(&mut world, 7));
    change(&mut world, ALPHA, wanted(1, 2, false, &["10.43.2.0/24"]));
    assert!(there(&mut world, 8));
    let nobodys = world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 9));
    assert_eq!(nobodys, Outcome::Dropped(DropReason::NoRoute), "it is nobody's again");
    let now = world.now;
    let after = world.host(ALPHA).node.peers(now)[0].children.clone();
    assert_eq!(before[0].inbound_spi, after[0].inbound_spi);
    assert_eq!((before.len(), after.len()), (1, 1));
}

#[test]
fn a_peer_that_is_said_to_be_elsewhere_keeps_its_tunnel() {
    let mut world = listed(703, false);
    world.run_for(SECONDS(5));
    let now = world.now;
    let before = world.host(ALPHA).node.peers(now)[0].children[0].inbound_spi;
    let mut moved = wanted(1, 2, false, &["10.42.2.0/24"]);
    moved.ike.remote = Some(RemoteEndpoint::Standard(GAMMA));
    change(&mut world, ALPHA, moved);
    for tag in 0..500 {
        assert!(ping(&mut world, 100 + tag), "ping {tag}");
        world.run_for(Duration::from_millis(100));
    }
    assert_eq!(state(&mut world, ALPHA), PeerState::Up);
    let now = world.now;
    assert_eq!(world.host(ALPHA).node.peers(now)[0].children[0].inbound_spi, before);
    // A host that is not seen any more is not called, and one that is seen again is.
    change(&mut world, ALPHA, wanted(1, 2, true, &["10.42.2.0/24"]));
    world.kill(BETA);
    world.run_for(SECONDS(300));
    assert_eq!(state(&mut world, ALPHA), PeerState::Idle);
    change(&mut world, ALPHA, wanted(1, 2, false, &["10.42.2.0/24"]));
    world.run_for(SECONDS(10));
    assert_ne!(state(&mut world, ALPHA), PeerState::Idle);
}
