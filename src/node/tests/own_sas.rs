//! One SA per worker and peer: made at a worker's first packet, rekeyed, refused, asked for by both sides, retired when idle.

use std::time::Duration;

use super::{ALPHA, BETA, SECONDS, World, config, packet, ping, state};
use crate::esp::Update;
use crate::ike::{CloseReason, Event};
use crate::model::{PeerIndex, WorkerIndex};
use crate::node::own_sas::IDLE;
use crate::node::{ChildView, PeerState, Rekey};

const MOMENT: Duration = Duration::from_millis(20);

fn world(seed: u64, workers: [u8; 2]) -> World {
    let mut world = World::new(seed);
    world.start(ALPHA, config(1, 2, workers[0]));
    world.start(BETA, config(2, 1, workers[1]));
    world.run_for(SECONDS(3));
    assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up));
    world
}

/// One packet from a worker to the other host, which must arrive. True if it strayed.
fn send(world: &mut World, from: std::net::IpAddr, worker: u8) -> bool {
    let (to, packet) = if from == ALPHA {
        (BETA, packet([10, 42, 1, 7], [10, 42, 2, 9], 1))
    } else {
        (ALPHA, packet([10, 42, 2, 9], [10, 42, 1, 7], 1))
    };
    let before = world.host(from).strays();
    world.send(from, WorkerIndex(worker), &packet);
    world.run_for(MOMENT);
    assert_eq!(world.received(to).len(), 1, "worker {worker} of {from}");
    world.host(from).strays() > before
}

fn children(world: &mut World, host: std::net::IpAddr) -> Vec<ChildView> {
    let now = world.now;
    world.host(host).node.peers(now)[0].children.clone()
}

/// Which worker here and which there have an SA between them, in order.
fn pairs(world: &mut World, host: std::net::IpAddr) -> Vec<(u8, u8)> {
    let pair = |child: ChildView| (child.inbound_spi.owner().0, child.outbound_spi.owner().0);
    let mut pairs: Vec<_> = children(world, host).into_iter().map(pair).collect();
    pairs.sort_unstable();
    pairs
}

/// One packet from each worker of both hosts at the same moment; all must arrive.
fn send_all(world: &mut World, counts: [u8; 2], tag: u32) {
    for (host, count, packet) in [
        (ALPHA, counts[0], packet([10, 42, 1, 7], [10, 42, 2, 9], tag)),
        (BETA, counts[1], packet([10, 42, 2, 9], [10, 42, 1, 7], tag)),
    ] {
        for worker in (0..count).map(WorkerIndex) {
            world.send(host, worker, &packet);
        }
    }
    world.run_for(MOMENT);
    let received = (world.received(ALPHA).len(), world.received(BETA).len());
    assert_eq!(received, (counts[1].into(), counts[0].into()), "packets {tag}");
}

#[test]
fn four_workers_and_two_have_their_own_after_the_first_packet() {
    let mut world = world(1, [4, 2]);
    assert_eq!(pairs(&mut world, ALPHA), [(0, 0)], "nothing is made for peers that nobody speaks to");
    assert!(!send(&mut world, ALPHA, 0), "worker 0 has the first SA");
    world.run_for(SECONDS(4));
    assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1), (2, 0), (3, 1)], "worker n and worker n modulo 2");
    for round in 0..3 {
        for worker in 0..4 {
            assert!(!send(&mut world, ALPHA, worker), "round {round}, worker {worker}");
        }
        // What the other side made serves the way back.
        for worker in 0..2 {
            assert!(!send(&mut world, BETA, worker), "round {round}, worker {worker}");
        }
    }
    world.run_for(SECONDS(10));
    assert_eq!(pairs(&mut world, BETA), [(0, 0), (0, 2), (1, 1), (1, 3)]);
    let traffic = world.host(ALPHA).node.worker_traffic();
    assert_eq!(traffic.iter().map(|worker| worker.outbound.0).collect::<Vec<_>>(), [4, 3, 3, 3]);
    assert_eq!(traffic.iter().map(|worker| worker.inbound.0).sum::<u64>(), 6);
    assert_eq!(world.host(BETA).node.worker_traffic().iter().map(|worker| worker.inbound.0).sum::<u64>(), 13);
}

#[test]
fn packets_that_come_before_the_own_sa_go_by_the_first() {
    let mut world = world(2, [4, 2]);
    send_all(&mut world, [4, 2], 0);
    assert_eq!(world.host(ALPHA).strays() + world.host(BETA).strays(), 3 + 1);
    let mut tag = 0;
    while !children(&mut world, ALPHA).iter().all(|child| child.active) || tag < 10 {
        tag += 1;
        send_all(&mut world, [4, 2], tag);
        assert!(tag < 200, "{:?}", children(&mut world, ALPHA));
    }
    world.run_for(SECONDS(5));
    let before = (world.host(ALPHA).strays(), world.host(BETA).strays());
    send_all(&mut world, [4, 2], 1000);
    assert_eq!((world.host(ALPHA).strays(), world.host(BETA).strays()), before);
}

#[test]
fn the_side_with_more_workers_has_one_for_each() {
    for counts in [[1, 3], [3, 1], [5, 2], [3, 4]] {
        let mut world = world(3, counts);
        send(&mut world, ALPHA, 0);
        send(&mut world, BETA, 0);
        world.run_for(SECONDS(10));
        send_all(&mut world, counts, 1);
        assert_eq!(world.host(ALPHA).strays() + world.host(BETA).strays(), 0, "{counts:?}");
        let pairs = pairs(&mut world, ALPHA);
        assert!(pairs.len() < usize::from(counts[0] + counts[1]), "{counts:?}: {pairs:?}");
    }
}

#[test]
fn a_rekey_of_each_loses_nothing() {
    for (host, name) in [(ALPHA, "host2"), (BETA, "host1")] {
        for what in [Rekey::Child, Rekey::Ike] {
            let mut world = world(3, [2, 2]);
            send(&mut world, ALPHA, 1);
            world.run_for(SECONDS(4));
            assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)]);
            let before = children(&mut world, ALPHA);
            let now = world.now;
            assert!(world.host(host).node.rekey(now, name, what));
            for round in 0..100 {
                for worker in 0..2 {
                    assert!(!send(&mut world, ALPHA, worker), "round {round}");
                    assert!(!send(&mut world, BETA, worker), "round {round}");
                }
            }
            world.run_for(SECONDS(6));
            assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)]);
            let after = children(&mut world, ALPHA);
            let kept = after.iter().filter(|sa| before.iter().any(|old| old.inbound_spi == sa.inbound_spi)).count();
            assert_eq!(kept, if what == Rekey::Child { 0 } else { 2 });
        }
    }
}

#[test]
fn both_sides_want_theirs_at_once_and_no_pair_has_two() {
    for seed in 0..20 {
        let mut world = world(100 + seed, [4, 4]);
        for round in 0..6 {
            for worker in 0..4 {
                for (host, packet) in [
                    (ALPHA, packet([10, 42, 1, 7], [10, 42, 2, 9], round)),
                    (BETA, packet([10, 42, 2, 9], [10, 42, 1, 7], round)),
                ] {
                    world.send(host, WorkerIndex(worker), &packet);
                }
            }
            world.run_for(SECONDS(2));
            assert_eq!((world.received(ALPHA).len(), world.received(BETA).len()), (4, 4), "seed {seed}, round {round}");
        }
        let mut pairs = pairs(&mut world, ALPHA);
        assert!(pairs.len() <= 7, "seed {seed}: {pairs:?}");
        pairs.dedup();
        assert_eq!(pairs.len(), children(&mut world, BETA).len(), "seed {seed}: {pairs:?}");
        for worker in 0..4 {
            assert!(!send(&mut world, ALPHA, worker) && !send(&mut world, BETA, worker), "seed {seed}, worker {worker}");
        }
    }
}

#[test]
fn what_nobody_uses_goes_and_comes_back_with_a_packet() {
    let mut world = world(4, [2, 2]);
    send(&mut world, ALPHA, 1);
    world.run_for(SECONDS(4));
    // Used by one side, and by one worker only, both stay.
    for _ in 0..8 {
        world.run_for(IDLE / 4);
        assert!(!send(&mut world, BETA, 1));
    }
    assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)]);
    world.run_for(IDLE + SECONDS(5));
    assert_eq!((pairs(&mut world, ALPHA), pairs(&mut world, BETA)), (vec![(0, 0)], vec![(0, 0)]));
    assert_eq!(state(&mut world, ALPHA), PeerState::Up);
    assert!(ping(&mut world, 1), "the first SA stays whatever happens");
    world.run_for(SECONDS(4));
    assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)]);
    assert!(!send(&mut world, BETA, 1));
    // The counters of what is gone are kept.
    world.run_for(SECONDS(60));
    assert_eq!(world.host(ALPHA).node.worker_traffic()[1].inbound.0, 9, "eight and one");
}

#[test]
fn a_refusal_is_remembered_and_the_packets_go_by_the_first() {
    let mut world = world(5, [2, 2]);
    let now = world.now;
    let notify = "TS_MAX_QUEUE".to_owned();
    let reason = CloseReason::PeerRefused { notify, authenticated: true };
    world.host(ALPHA).node.handle_ike_event(now, Event::WorkerChildRefused { peer: PeerIndex(0), reason });
    let peer = world.host(ALPHA).node.peers(now)[0].clone();
    assert_eq!((peer.state, peer.last_error), (PeerState::Up, None));
    assert!(peer.history.iter().any(|(_, text)| text == "workers share an SA: the peer refused: TS_MAX_QUEUE"));
}

/// A host with more workers than the other one makes SAs for: those without keep falling back.
#[test]
fn beyond_the_bound_of_the_peer_workers_fall_back() {
    let mut world = world(6, [70, 1]);
    for round in 0..3 {
        for worker in 0..70 {
            send(&mut world, ALPHA, worker);
            // The peer grants one SA a second.
            world.run_for(SECONDS(1));
        }
        let now = world.now;
        let count = children(&mut world, ALPHA).len();
        assert_eq!(count, 65, "round {round}: the first and 64 of workers");
        let history = world.host(ALPHA).node.peers(now)[0].history.clone();
        let refused = history.iter().filter(|(_, text)| text.contains("TS_MAX_QUEUE")).count();
        assert_eq!(refused, 1, "round {round}: {history:?}");
    }
    let strayed = (0..70).filter(|&worker| send(&mut world, ALPHA, worker)).count();
    assert_eq!(strayed, 70 - 65);
}

#[test]
fn workers_learn_the_path_mtu_with_their_own_sa() {
    let mut world = world(7, [2, 2]);
    let now = world.now;
    let node = &mut world.host(ALPHA).node;
    let (index, path) = node.path_checks(now, 1)[0];
    node.set_path_mtu(now, index, path, 900);
    world.run_for(SECONDS(1));
    // Too large for the path, and not to be fragmented: who sends it hears of it from its own worker.
    let mut large = packet([10, 42, 1, 7], [10, 42, 2, 9], 1);
    large.resize(1200, 0);
    large[2..4].copy_from_slice(&1200u16.to_be_bytes());
    large[10..12].fill(0);
    let sum: u32 = large[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    large[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    for round in 0..2 {
        world.send(ALPHA, WorkerIndex(1), &large);
        world.run_for(SECONDS(1));
        assert!(world.received(BETA).is_empty(), "round {round}");
        assert_eq!(world.received(ALPHA).len(), 1, "round {round}: ICMP");
    }
    assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)]);
    assert!(!send(&mut world, ALPHA, 1));
    let node = &mut world.host(ALPHA).node;
    node.set_path_mtu(now, index, path, 1500);
    world.run_for(SECONDS(1));
    world.send(ALPHA, WorkerIndex(1), &large);
    world.run_for(MOMENT);
    assert_eq!(world.received(BETA).len(), 1, "a new figure reaches all that send");
}

/// The peer is gone without a word and back: what workers had with it swallows nothing for long.
#[test]
fn a_restarted_peer_gets_the_packets_of_all_workers() {
    for seed in 0..10 {
        for waits in [false, true] {
            let mut world = world(200 + seed, [2, 2]);
            send(&mut world, ALPHA, 1);
            send(&mut world, ALPHA, 1);
            world.kill(BETA);
            world.run_for(SECONDS(1 + seed % 3));
            let mut beta = config(2, 1, 2);
            if waits {
                beta.peers[0].remote = None;
            }
            world.start(BETA, beta);
            let up = world.now + SECONDS(15);
            while world.now < up {
                world.send(ALPHA, WorkerIndex(1), &packet([10, 42, 1, 7], [10, 42, 2, 9], 1));
                world.run_for(Duration::from_millis(500));
            }
            world.received(BETA);
            assert_eq!(state(&mut world, ALPHA), PeerState::Up, "seed {seed}");
            assert!(!send(&mut world, ALPHA, 1), "seed {seed}");
            assert!(!send(&mut world, ALPHA, 0), "seed {seed}");
            world.run_for(SECONDS(20));
            assert_eq!(pairs(&mut world, ALPHA), [(0, 0), (1, 1)], "seed {seed}");
        }
    }
}

/// What came after would stay with a worker for ever.
#[test]
fn the_last_that_workers_hear_of_a_peer_is_that_it_is_gone() {
    let mut world = world(21, [4, 4]);
    send(&mut world, ALPHA, 0);
    world.run_for(SECONDS(4));
    assert_eq!(pairs(&mut world, ALPHA).len(), 4);
    let now = world.now;
    let node = &mut world.host(ALPHA).node;
    let local = vec!["10.42.1.0/24".parse().unwrap()];
    let (index, path) = node.path_checks(now, 1)[0];
    node.set_path_mtu(now, index, path, 1300);
    node.reconfigure(now, local, Vec::<crate::ike::PeerConfig>::new());
    node.set_path_mtu(now, index, path, 1280);
    let updates: Vec<Update> = std::iter::from_fn(|| node.poll_update()).map(|(_, update)| update).collect();
    let gone = updates.iter().position(|update| matches!(update, Update::RemovePeer(_))).expect("it is removed");
    assert_eq!(updates[..gone].iter().filter(|update| matches!(update, Update::Retire { .. })).count(), 4);
    assert!(updates[gone + 1..].iter().all(|update| matches!(update, Update::Routes(_))), "{updates:?}");
}
