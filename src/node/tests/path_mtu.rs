//! Which paths are looked at, and what the workers are told of them.

use super::*;
use crate::esp::Update;
use crate::model::Path;
use crate::node::{Node, Recipient};

/// What a node wants its workers to know of paths.
fn limits(node: &mut Node) -> Vec<(Recipient, PeerIndex, Option<u16>)> {
    let updates = std::iter::from_fn(|| node.poll_update());
    let limit = |(to, update)| match update {
        Update::PathLimit(peer, limit) => Some((to, peer, limit)),
        _ => None,
    };
    updates.filter_map(limit).collect()
}

fn mtu(world: &mut World) -> Option<u16> {
    let now = world.now;
    world.host(ALPHA).node.peers(now)[0].mtu
}

#[test]
fn a_path_is_looked_at_when_it_is_new_and_now_and_then() {
    let mut world = two_hosts(7, 1);
    let now = world.now;
    assert_eq!(world.host(ALPHA).node.path_checks(now, 10), [], "there is no path yet");
    world.run_for(SECONDS(3));
    let checks = |world: &mut World, max| {
        let now = world.now;
        world.host(ALPHA).node.path_checks(now, max)
    };
    assert_eq!(checks(&mut world, 0), []);
    let [(index, path)] = checks(&mut world, 10)[..] else { panic!("one peer, one path") };
    assert_eq!((index, path.remote.ip()), (PeerIndex(0), BETA));
    assert_eq!(checks(&mut world, 10), [], "whatever came of it");
    world.run_for(SECONDS(29));
    assert_eq!(checks(&mut world, 10), []);
    world.run_for(SECONDS(1));
    assert_eq!(checks(&mut world, 10).len(), 1);
    // The peer is somewhere else now.
    world.kill(BETA);
    world.start(GAMMA, config(2, 1, 1));
    world.run_for(SECONDS(5));
    let [(index, path)] = checks(&mut world, 10)[..] else { panic!("the same peer, another path") };
    assert_eq!((index, path.remote.ip()), (PeerIndex(0), GAMMA));
}

#[test]
fn the_longest_unwatched_paths_come_first() {
    let mut world = World::new(8);
    let mut alpha = config(1, 2, 1);
    alpha.peers.extend(config(1, 3, 1).peers);
    world.start(ALPHA, alpha);
    world.start(GAMMA, config(3, 1, 1));
    world.run_for(SECONDS(3));
    let next = |world: &mut World| {
        let now = world.now;
        world.host(ALPHA).node.path_checks(now, 1).first().map(|&(_, path)| path.remote.ip())
    };
    assert_eq!(next(&mut world), Some(GAMMA));
    world.run_for(SECONDS(10));
    world.start(BETA, config(2, 1, 1));
    world.run_for(SECONDS(10));
    assert_eq!(next(&mut world), Some(BETA), "new");
    world.run_for(SECONDS(40));
    assert_eq!([(); 3].map(|()| next(&mut world)), [Some(GAMMA), Some(BETA), None]);
}

#[test]
fn every_path_is_looked_at_where_routes_change_all_the_time() {
    let mut world = World::new(13);
    let mut alpha = config(1, 2, 1);
    alpha.peers.extend(config(1, 3, 1).peers);
    world.start(ALPHA, alpha);
    world.start(BETA, config(2, 1, 1));
    world.start(GAMMA, config(3, 1, 1));
    world.run_for(SECONDS(3));
    let looked = [(); 4].map(|()| {
        world.run_for(SECONDS(1));
        let now = world.now;
        let node = &mut world.host(ALPHA).node;
        node.routes_changed();
        node.path_checks(now, 1)[0].1.remote.ip()
    });
    assert_eq!(looked, [BETA, GAMMA, BETA, GAMMA]);
}

#[test]
fn a_changed_path_mtu_is_told_once() {
    let mut world = two_hosts(9, 2);
    world.run_for(SECONDS(3));
    assert_eq!(mtu(&mut world), None, "nobody looked");
    let now = world.now;
    let node = &mut world.host(ALPHA).node;
    let (index, path) = node.path_checks(now, 1)[0];
    let to = Recipient::Worker(WorkerIndex(0));
    // 20 octets of IPv4, 8 of UDP; then 16 in front of the inner packet and 2 and 16 behind it, in steps of 4.
    for (outer, limit, inner) in
        [(1500, 1472, TUN_MTU), (1300, 1272, 1238), (1301, 1273, 1238), (576, 548, 514), (9000, 8972, TUN_MTU)]
    {
        node.set_path_mtu(now, index, path, outer);
        assert_eq!(limits(node), [(to, index, Some(limit))], "{outer}");
        assert_eq!(node.peers(now)[0].mtu, Some(inner), "{outer}");
        node.set_path_mtu(now, index, path, outer);
        assert_eq!(limits(node), [], "the same again");
    }
    let said = |node: &Node| node.peers(now)[0].history.iter().filter(|(_, text)| text.contains("pass whole")).count();
    assert_eq!(said(node), 3, "what made no difference is not worth a word");
    // Nobody takes less than the least, or more than a datagram has.
    for (outer, limit) in [(0, 548), (u32::MAX, u16::MAX)] {
        node.set_path_mtu(now, index, path, outer);
        assert_eq!(limits(node), [(to, index, Some(limit))]);
    }
    // What was found out about another path, or of nobody.
    let elsewhere = Path { remote: (GAMMA, 4500).into(), ..path };
    node.set_path_mtu(now, index, elsewhere, 1300);
    node.set_path_mtu(now, PeerIndex(7), path, 1300);
    assert_eq!(limits(node), []);
}

#[test]
fn a_path_that_a_worker_found_narrow_is_held_for_the_peer_that_it_leads_to() {
    let mut world = two_hosts(12, 1);
    world.run_for(SECONDS(3));
    let now = world.now;
    let node = &mut world.host(ALPHA).node;
    let (index, path) = node.path_checks(now, 1)[0];
    // Another port of the same host is the same path.
    let other_port = Path { remote: (BETA, 4711).into(), ..path };
    node.handle_path_mtu(now, other_port, 1300);
    assert_eq!(limits(node), [(Recipient::Worker(WorkerIndex(0)), index, Some(1272))]);
    node.handle_path_mtu(now, Path { remote: (GAMMA, 4500).into(), ..path }, 1200);
    assert_eq!(limits(node), [], "nobody is there");
    assert_eq!(node.path_checks(now, 1), []);
    node.routes_changed();
    assert_eq!(node.path_checks(now, 1), [(index, path)], "whatever was known may be wrong");
}

#[test]
fn a_peer_that_moves_is_told_of_again() {
    let mut world = two_hosts(10, 1);
    let look = |world: &mut World, outer| {
        let now = world.now;
        let node = &mut world.host(ALPHA).node;
        let (index, path) = node.path_checks(now, 1)[0];
        node.set_path_mtu(now, index, path, outer);
        limits(node)
    };
    world.run_for(SECONDS(3));
    let told = [(Recipient::Worker(WorkerIndex(0)), PeerIndex(0), Some(1272))];
    assert_eq!(look(&mut world, 1300), told);
    world.kill(BETA);
    world.start(GAMMA, config(2, 1, 1));
    world.run_for(SECONDS(5));
    assert_eq!(look(&mut world, 1300), told, "the same limit, of another path");
    let v6 = |number| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number]);
    world.kill(GAMMA);
    world.kill(ALPHA);
    let reach = |mut config: NodeConfig, to| {
        config.peers[0].remote = Some(RemoteEndpoint::Standard(to));
        config
    };
    world.start(v6(1), reach(config(1, 2, 1), v6(2)));
    world.start(v6(2), reach(config(2, 1, 1), v6(1)));
    world.run_for(SECONDS(3));
    let now = world.now;
    let node = &mut world.host(v6(1)).node;
    let (index, path) = node.path_checks(now, 1)[0];
    for (outer, limit) in [(1500, 1452), (600, 1232)] {
        node.set_path_mtu(now, index, path, outer);
        assert_eq!(limits(node)[0].2, Some(limit), "an IPv6 header is longer, and no link carries less than 1280");
    }
}

#[test]
fn the_worker_holds_packets_to_the_path() {
    let mut world = two_hosts(11, 1);
    world.run_for(SECONDS(3));
    let now = world.now;
    let node = &mut world.host(ALPHA).node;
    let (index, path) = node.path_checks(now, 1)[0];
    node.set_path_mtu(now, index, path, 1300);
    world.run_for(SECONDS(1));
    // A packet with DF, and its length and header checksum put right.
    let of_length = |len: u16| {
        let mut packet = packet([10, 42, 1, 7], [10, 42, 2, 9], 1);
        packet.resize(len.into(), 0);
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[10..12].fill(0);
        let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        packet[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
        packet
    };
    let mtu = mtu(&mut world).unwrap();
    assert_eq!(world.send(ALPHA, WorkerIndex(0), &of_length(mtu)), Outcome::Done);
    assert_eq!(world.send(ALPHA, WorkerIndex(0), &of_length(mtu + 1)), Outcome::Dropped(DropReason::TooBig));
    world.run_for(SECONDS(1));
    assert_eq!(world.received(BETA).iter().map(Vec::len).collect::<Vec<_>>(), [usize::from(mtu)]);
}
