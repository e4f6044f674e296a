//! Two hosts and what happens to them: start, traffic, rekeys, a restart, a partition.

mod clocks;
mod demand;
mod fifty;
mod host_keys;
mod model;
mod moves;
mod own_sas;
mod path_mtu;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::simulation::{World, packet};
use super::{NodeConfig, PeerState, Rekey};
use crate::esp::Outcome;
use crate::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use crate::model::{AeadAlgorithm, DropReason, PeerId, PeerIndex, Secret, TrafficSelector, WorkerIndex};

const ALPHA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const BETA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const GAMMA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));
const TUN_MTU: u16 = 1400;
const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// A host named by its number, with the block 10.42.N.0/24 and one peer.
fn config(number: u8, peer: u8, workers: u8) -> NodeConfig {
    let prefix = |number: u8| format!("10.42.{number}.0/24").parse().unwrap();
    let psk = || Secret::copy_of(b"0123456789abcdef0123456789abcdef");
    NodeConfig {
        ike: EndpointConfig {
            ike_rekey: SECONDS(4 * 3600),
            child_rekey: SECONDS(3600),
            replay_window: 4096,
            ike_port: 500,
            natt_port: 4500,
            workers,
        },
        workers,
        tun_mtu: TUN_MTU,
        local_prefixes: vec![prefix(number)],
        probe_interval: SECONDS(10),
        peers: vec![PeerConfig {
            index: PeerIndex(0),
            name: format!("host{peer}"),
            local_id: PeerId::Fqdn(format!("host{number}")),
            remote_id: PeerId::Fqdn(format!("host{peer}")),
            local_auth: LocalAuth::Psk(psk()),
            remote_auth: PeerAuth::Psk(psk()),
            remote: Some(RemoteEndpoint::Standard(IpAddr::V4(Ipv4Addr::new(192, 0, 2, peer)))),
            alternatives: Vec::new(),
            suites: AeadAlgorithm::ALL.to_vec(),
            post_quantum: PostQuantum::Preferred,
            local_selectors: vec![TrafficSelector::from_prefix(prefix(number))],
            remote_selectors: vec![TrafficSelector::from_prefix(prefix(peer))],
            owner: WorkerIndex(0),
        }],
    }
}

fn two_hosts(seed: u64, workers: u8) -> World {
    let mut world = World::new(seed);
    world.start(ALPHA, config(1, 2, workers));
    world.start(BETA, config(2, 1, workers));
    world
}

fn ping(world: &mut World, tag: u32) -> bool {
    let outcome = world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], tag));
    assert_eq!(outcome, Outcome::Done);
    world.run_for(Duration::from_millis(20));
    let there = world.received(BETA).iter().any(|got| got.ends_with(&tag.to_be_bytes()));
    world.send(BETA, WorkerIndex(0), &packet([10, 42, 2, 9], [10, 42, 1, 7], tag));
    world.run_for(Duration::from_millis(20));
    there && world.received(ALPHA).iter().any(|got| got.ends_with(&tag.to_be_bytes()))
}

fn state(world: &mut World, host: IpAddr) -> PeerState {
    let now = world.now;
    world.host(host).node.peers(now)[0].state
}

#[test]
fn two_hosts_that_start_at_once_come_up_and_carry_packets() {
    for workers in [1, 2] {
        let mut world = two_hosts(1, workers);
        world.run_for(SECONDS(3));
        assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up));
        assert!(ping(&mut world, 1));
        let now = world.now;
        let (alpha, beta) = (world.host(ALPHA).node.peers(now), world.host(BETA).node.peers(now));
        assert_eq!((alpha[0].ike_count, alpha[0].children.len()), (1, workers.into()), "one for each worker");
        assert_eq!(alpha[0].children[0].inbound_spi, beta[0].children[0].outbound_spi);
        assert_eq!(alpha[0].children[0].outbound.0, 1);
    }
}

#[test]
fn the_first_packet_waits_for_the_tunnel() {
    let mut world = two_hosts(2, 1);
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 77));
    world.run_for(SECONDS(3));
    assert!(world.received(BETA).iter().any(|got| got.ends_with(&77u32.to_be_bytes())));
}

#[test]
fn no_packet_is_lost_by_rekeys_of_either_side() {
    let mut world = two_hosts(3, 2);
    world.run_for(SECONDS(3));
    for round in 0..40 {
        let (host, name) = if round % 2 == 0 { (ALPHA, "host2") } else { (BETA, "host1") };
        let what = if round % 4 < 2 { Rekey::Child } else { Rekey::Ike };
        let now = world.now;
        let before = world.host(ALPHA).node.peers(now)[0].clone();
        assert!(world.host(host).node.rekey(now, name, what));
        for burst in 0..10 {
            assert!(ping(&mut world, round * 10 + burst), "round {round}, packet {burst}");
        }
        let now = world.now;
        let after = world.host(ALPHA).node.peers(now)[0].clone();
        match what {
            Rekey::Child => assert_ne!(before.children[0].inbound_spi, after.children[0].inbound_spi, "round {round}"),
            Rekey::Ike => assert_ne!(before.ike.unwrap().local_spi, after.ike.unwrap().local_spi, "round {round}"),
        }
        world.run_for(SECONDS(6));
        let now = world.now;
        for host in [ALPHA, BETA] {
            let peer = &world.host(host).node.peers(now)[0];
            assert_eq!((peer.ike_count, peer.children.len()), (1, 2), "round {round}: one for each worker");
        }
    }
}

#[test]
fn both_sides_rekey_at_once_and_one_sa_remains() {
    for seed in 0..20 {
        let mut world = two_hosts(100 + seed, 1);
        world.run_for(SECONDS(3));
        for what in [Rekey::Child, Rekey::Ike] {
            let now = world.now;
            world.host(ALPHA).node.rekey(now, "host2", what);
            world.host(BETA).node.rekey(now, "host1", what);
            for burst in 0..10 {
                // Both requests are still waiting for their pump; the pings carry them.
                assert!(ping(&mut world, burst), "seed {seed} {what:?}");
            }
            world.run_for(SECONDS(10));
            let now = world.now;
            for host in [ALPHA, BETA] {
                let peer = &world.host(host).node.peers(now)[0];
                assert_eq!((peer.ike_count, peer.children.len()), (1, 1), "seed {seed} {what:?}");
            }
            assert!(ping(&mut world, 99));
        }
    }
}

#[test]
fn a_host_that_restarts_is_back_within_15_seconds() {
    for seed in 0..10 {
        let mut world = two_hosts(200 + seed, 1);
        world.run_for(SECONDS(20 + seed));
        world.kill(BETA);
        world.run_for(SECONDS(3));
        world.start(BETA, config(2, 1, 1));
        world.run_for(SECONDS(15));
        assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up), "seed {seed}");
        assert!(ping(&mut world, 5));
    }
}

/// The restarted side waits to be called, as strongSwan with `start_action = none` does: it is found by unanswered probes.
#[test]
fn a_peer_that_restarted_and_only_waits_is_found_within_15_seconds() {
    for seed in 0..10 {
        let mut world = two_hosts(300 + seed, 1);
        world.run_for(SECONDS(20 + seed));
        world.kill(BETA);
        let mut waiting = config(2, 1, 1);
        waiting.peers[0].remote = None;
        world.start(BETA, waiting);
        world.run_for(SECONDS(15));
        assert_eq!(state(&mut world, ALPHA), PeerState::Up, "seed {seed}");
        assert!(ping(&mut world, 5));
    }
}

#[test]
fn a_dead_peer_is_not_called_up_and_returns_when_the_partition_heals() {
    let mut world = two_hosts(4, 1);
    world.run_for(SECONDS(20));
    world.cut = vec![(ALPHA, BETA), (BETA, ALPHA)];
    world.run_for(SECONDS(16));
    assert_ne!(state(&mut world, ALPHA), PeerState::Up);
    world.run_for(SECONDS(300));
    assert!(matches!(state(&mut world, ALPHA), PeerState::Down | PeerState::Retrying));
    world.cut.clear();
    world.run_for(SECONDS(15));
    assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up));
    assert!(ping(&mut world, 6));
}

#[test]
fn a_tunnel_that_works_in_one_direction_says_so() {
    let mut world = two_hosts(5, 1);
    world.run_for(SECONDS(20));
    // What alpha sends is lost; beta still talks.
    world.cut = vec![(ALPHA, BETA)];
    for _ in 0..20 {
        world.send(BETA, WorkerIndex(0), &packet([10, 42, 2, 9], [10, 42, 1, 7], 1));
        world.run_for(SECONDS(1));
    }
    let now = world.now;
    let peer = world.host(ALPHA).node.peers(now)[0].clone();
    assert_eq!((peer.state, peer.dead_direction), (PeerState::OneWay, Some("outbound")));
    assert_eq!(state(&mut world, BETA), PeerState::Down, "whom it does not hear at all it cannot call one-way");
}

#[test]
fn a_peer_that_is_to_call_is_idle_until_it_did_and_down_when_it_is_gone() {
    let mut world = World::new(9);
    let mut waiting = config(2, 1, 1);
    waiting.peers[0].remote = None;
    world.start(BETA, waiting);
    world.run_for(SECONDS(60));
    assert_eq!(state(&mut world, BETA), PeerState::Idle);
    world.start(ALPHA, config(1, 2, 1));
    world.run_for(SECONDS(5));
    assert_eq!(state(&mut world, BETA), PeerState::Up);
    world.kill(ALPHA);
    world.run_for(SECONDS(120));
    assert_eq!(state(&mut world, BETA), PeerState::Down);
    let now = world.now;
    assert_eq!(world.host(BETA).node.peers(now)[0].last_error.as_deref(), Some("the peer does not answer"));
    world.start(ALPHA, config(1, 2, 1));
    world.run_for(SECONDS(5));
    assert_eq!(state(&mut world, BETA), PeerState::Up);
}

#[test]
fn a_peer_that_fell_silent_is_not_one_way() {
    for seed in 0..10 {
        let mut world = two_hosts(500 + seed, 1);
        world.run_for(SECONDS(20));
        for _ in 0..10 {
            assert!(ping(&mut world, 1));
            world.run_for(Duration::from_millis(500));
        }
        world.kill(BETA);
        for _ in 0..60 {
            world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 1));
            world.run_for(Duration::from_millis(500));
            assert_ne!(state(&mut world, ALPHA), PeerState::OneWay, "seed {seed}");
        }
        assert_eq!(state(&mut world, ALPHA), PeerState::Down, "seed {seed}");
    }
}

#[test]
fn a_peer_that_was_never_there_is_retried_for_ever() {
    let mut world = World::new(6);
    world.start(ALPHA, config(1, 2, 1));
    world.run_for(SECONDS(3600));
    let now = world.now;
    let peer = world.host(ALPHA).node.peers(now)[0].clone();
    assert_eq!(peer.state, PeerState::Retrying);
    assert!(peer.last_error.is_some());
    world.start(BETA, config(2, 1, 1));
    world.run_for(SECONDS(15));
    assert_eq!(state(&mut world, ALPHA), PeerState::Up);
}

fn history(world: &mut World, host: IpAddr) -> Vec<String> {
    let now = world.now;
    world.host(host).node.peers(now)[0].history.iter().map(|(_, text)| text.clone()).collect()
}

#[test]
fn what_lies_between_two_news_of_one_message_is_no_state() {
    let mut world = two_hosts(7, 1);
    world.run_for(SECONDS(3));
    for host in [ALPHA, BETA] {
        let states: Vec<String> = history(&mut world, host).into_iter().filter(|text| text.starts_with("state")).collect();
        assert!(matches!(states.last().map(String::as_str), Some("state: up")), "{states:?}");
        assert!(!states.iter().any(|state| state.contains("down") || state.contains("retrying")), "{states:?}");
    }
    let now = world.now;
    world.host(ALPHA).node.close_all(now);
    world.run_for(SECONDS(1));
    assert!(!history(&mut world, BETA).iter().any(|text| text == "state: down"), "{:?}", history(&mut world, BETA));
}

/// Each of the two hosts says why, as far as it can know: its half of what was refused, or what did not match.
#[test]
fn both_sides_say_why_a_peer_does_not_come_up() {
    type Spoil = fn(&mut PeerConfig);
    let other_psk: Spoil = |peer| {
        let psk = || Secret::copy_of(b"another key of thirty-two octets");
        (peer.local_auth, peer.remote_auth) = (LocalAuth::Psk(psk()), PeerAuth::Psk(psk()));
    };
    let cases: [(Spoil, PeerState, [&str; 2], [&str; 2]); 4] = [
        (other_psk, PeerState::Retrying, ["we are host1", "AUTH value does not"], ["we are host2", "AUTH value does not"]),
        (
            |peer| peer.remote_id = PeerId::Fqdn("gamma".to_owned()),
            PeerState::Retrying,
            ["and wanted gamma", "it calls itself host2, and no peer"],
            ["we are host2", "host1 wants to reach gamma, but towards it we are host2"],
        ),
        (
            |peer| peer.suites = vec![AeadAlgorithm::Aes128Gcm16],
            PeerState::Connecting,
            ["we offered aes128gcm16", "theirs chacha20poly1305, ours aes128gcm16"],
            ["we offered chacha20poly1305", "theirs aes128gcm16, ours chacha20poly1305"],
        ),
        (
            |peer| peer.remote_selectors = vec![TrafficSelector::from_prefix("10.42.9.0/24".parse().unwrap())],
            PeerState::Down,
            ["10.42.9.0/24", "10.42.2.0/24"],
            ["10.42.1.0/24", "10.42.2.0/24"],
        ),
    ];
    for (number, (spoil, state, at_alpha, at_beta)) in cases.into_iter().enumerate() {
        let (mut alpha, mut beta) = (config(1, 2, 1), config(2, 1, 1));
        beta.peers[0].suites = vec![AeadAlgorithm::ChaCha20Poly1305];
        alpha.peers[0].suites = beta.peers[0].suites.clone();
        spoil(&mut alpha.peers[0]);
        let mut world = World::new(400 + number as u64);
        world.start(ALPHA, alpha);
        world.start(BETA, beta);
        world.run_for(SECONDS(8));
        let now = world.now;
        for (host, parts) in [(ALPHA, at_alpha), (BETA, at_beta)] {
            let peer = world.host(host).node.peers(now)[0].clone();
            assert_eq!(peer.state, state, "case {number}: {:?}", peer.last_error);
            let error = peer.last_error.unwrap_or_default();
            assert!(parts.iter().all(|part| error.contains(part)), "case {number}, {host}: {error}");
        }
    }
}

#[test]
fn a_peer_that_does_not_answer_is_said_not_to_within_seconds() {
    let mut world = World::new(8);
    world.start(ALPHA, config(1, 2, 1));
    world.run_for(SECONDS(6));
    let now = world.now;
    let peer = world.host(ALPHA).node.peers(now)[0].clone();
    assert_eq!(peer.state, PeerState::Connecting);
    assert_eq!(peer.last_error.as_deref(), Some("not connected yet: no answer to IKE_SA_INIT from 192.0.2.2:500"));
}

#[test]
fn drops_are_shown_with_the_peer_whose_packets_they_were() {
    let mut world = two_hosts(7, 1);
    world.run_for(SECONDS(3));
    // Routed to the peer, but from an address that is not ours: no SA is to blame. Then from ours to where no selector leads.
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 9, 7], [10, 42, 2, 9], 1));
    world.duplication = 1.0;
    world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], 2));
    world.run_for(SECONDS(1));
    let now = world.now;
    assert!(world.host(ALPHA).node.peers(now)[0].drops.is_empty());
    assert_eq!(world.host(BETA).node.peers(now)[0].drops, [(DropReason::Replay, 1)].into());
    assert_eq!(world.received(BETA).len(), 1);

    // The counters outlive the SA.
    world.duplication = 0.0;
    assert!(world.host(ALPHA).node.rekey(now, "host2", Rekey::Child));
    world.run_for(SECONDS(60));
    let now = world.now;
    assert_eq!(world.host(BETA).node.peers(now)[0].drops, [(DropReason::Replay, 1)].into());
}

/// A partition of one direction ends just before a rekey that met it is given up. The peer was heard by its packets only, and none of them
/// is lost.
#[test]
fn a_peer_that_is_heard_by_its_packets_is_not_given_up() {
    for seed in 0..8 {
        let mut world = two_hosts(seed, 1);
        world.run_for(SECONDS(3));
        world.cut = vec![(ALPHA, BETA)];
        let now = world.now;
        assert!(world.host(BETA).node.rekey(now, "host1", Rekey::Child));
        world.run_for(Duration::from_millis(44_400));
        world.cut.clear();
        for tag in 0..200 {
            world.send(ALPHA, WorkerIndex(0), &packet([10, 42, 1, 7], [10, 42, 2, 9], tag));
            world.run_for(Duration::from_millis(20));
        }
        assert_eq!(world.received(BETA).len(), 200, "seed {seed}");
    }
}
