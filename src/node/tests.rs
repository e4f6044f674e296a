//! Two hosts and what happens to them: start, traffic, rekeys, a restart, a partition.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::simulation::World;
use super::{NodeConfig, PeerState, Rekey};
use crate::esp::Outcome;
use crate::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, RemoteEndpoint};
use crate::model::{
    AeadAlgorithm, Path, PeerId, PeerIndex, Rng, Secret, SeededRng, TrafficSelector, Transport, WorkerIndex,
};
use crate::wire::ike::{
    ExchangeType, Flags, Header, KeyExchangePayload, Message, Payload, Proposal, Protocol, Transform, TransformType,
};

const ALPHA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const BETA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
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
        },
        workers,
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
            suites: AeadAlgorithm::ALL.to_vec(),
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

/// An IPv4 packet with a UDP header whose payload is `tag`.
fn packet(from: [u8; 4], to: [u8; 4], tag: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34, 0x12, 0x35, 0, 12, 0, 0]);
    packet.extend_from_slice(&tag.to_be_bytes());
    packet
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
        assert_eq!((alpha[0].ike_count, alpha[0].children.len()), (1, 1));
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
            assert_eq!((peer.ike_count, peer.children.len()), (1, 1), "round {round}");
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
    assert_ne!(state(&mut world, BETA), PeerState::Up);
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

/// An IKE_SA_INIT whose only proposal nobody takes: refused, answered and worth a line in the log, but not a thousand.
#[test]
fn strangers_do_not_flood_the_log() {
    let mut world = two_hosts(9, 1);
    world.run_for(SECONDS(3));
    world.host(ALPHA).notices();
    let flags = Flags { initiator: true, version: false, response: false };
    let transforms = vec![Transform { kind: TransformType::Encryption, id: 3, key_length: None, unusable: false }];
    let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: Vec::new().into(), transforms };
    let payloads = [
        Payload::SecurityAssociation(vec![proposal]),
        Payload::KeyExchange(KeyExchangePayload { group: 31, value: vec![9; 32].into() }),
        Payload::Nonce(vec![1; 32].into()),
    ];
    for number in 1..=1000u64 {
        let header =
            Header { initiator_spi: number, responder_spi: 0, exchange: ExchangeType::IkeSaInit, flags, message_id: 0 };
        let path = Path { local: (ALPHA, 500).into(), remote: ([203, 0, 113, 7], number as u16).into() };
        let now = world.now;
        world.host(ALPHA).node.handle_ike(now, path, Transport::Plain, &Message::emit_clear(&header, &payloads));
        world.run_for(Duration::from_millis(10));
    }
    let lines = world.host(ALPHA).notices();
    assert!((5..50).contains(&lines.len()), "{} lines", lines.len());
    let told: usize = lines
        .iter()
        .map(|notice| {
            let more = notice.text.split_once("(and ").and_then(|(_, rest)| rest.split_once(' '));
            1 + more.map_or(0, |(count, _)| count.parse::<usize>().unwrap())
        })
        .sum();
    // All but those of the last second.
    assert!(told > 850, "{told} are accounted for");
}

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
/// within a minute every pair has one IKE SA, one CHILD_SA, and packets pass.
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
                    let what = if chance.u32() % 2 == 0 { Rekey::Ike } else { Rekey::Child };
                    world.host(address(a)).node.rekey(now, &format!("host{b}"), what);
                }
            }
            world.delay.1 = Duration::from_millis((chance.u32() % 300).into());
            if chance.u32() % 2 == 0 {
                world.send(address(a), WorkerIndex(0), &packet([10, 42, a, 7], [10, 42, b, 9], 1));
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
                assert_eq!((peer.state, peer.ike_count, peer.children.len()), (PeerState::Up, 1, 1), "{what}");
            }
            for b in (1..=HOSTS).filter(|&b| b != a) {
                world.received(address(b));
                world.send(address(a), WorkerIndex(0), &packet([10, 42, a, 7], [10, 42, b, 9], 4711));
                world.run_for(Duration::from_millis(20));
                assert_eq!(world.received(address(b)).len(), 1, "seed {seed}: from host{a} to host{b}");
            }
        }
    }
}
