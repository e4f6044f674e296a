//! Packets from node to node in memory: route, seal, copy, open and check, without kernel or threads.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use underpass::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use underpass::model::{AeadAlgorithm, PeerId, PeerIndex, Secret, TrafficSelector, WorkerIndex};
use underpass::node::NodeConfig;
use underpass::node::simulation::{Train, World};

const ALPHA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const BETA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Packets of one train: what one UDP_SEGMENT send carries at most.
const TRAIN: usize = 44;

fn config(number: u8, peer: u8, suite: AeadAlgorithm) -> NodeConfig {
    let prefix = |number: u8| format!("10.42.{number}.0/24").parse().expect("a prefix");
    let psk = || Secret::copy_of(b"0123456789abcdef0123456789abcdef");
    NodeConfig {
        ike: EndpointConfig {
            ike_rekey: Duration::from_secs(4 * 3600),
            child_rekey: Duration::from_secs(3600),
            replay_window: 4096,
            ike_port: 500,
            natt_port: 4500,
            workers: 1,
        },
        workers: 1,
        tun_mtu: 1400,
        local_prefixes: vec![prefix(number)],
        probe_interval: Duration::from_secs(10),
        peers: vec![PeerConfig {
            index: PeerIndex(0),
            name: format!("host{peer}"),
            local_id: PeerId::Fqdn(format!("host{number}")),
            remote_id: PeerId::Fqdn(format!("host{peer}")),
            local_auth: LocalAuth::Psk(psk()),
            remote_auth: PeerAuth::Psk(psk()),
            remote: Some(RemoteEndpoint::Standard(IpAddr::V4(Ipv4Addr::new(192, 0, 2, peer)))),
            alternatives: Vec::new(),
            suites: vec![suite],
            post_quantum: PostQuantum::Preferred,
            local_selectors: vec![TrafficSelector::from_prefix(prefix(number))],
            remote_selectors: vec![TrafficSelector::from_prefix(prefix(peer))],
            owner: WorkerIndex(0),
        }],
    }
}

/// An IPv4 packet of `len` octets from alpha's block to beta's.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 42, 1, 7, 10, 42, 2, 9];
    packet.resize(len, 0);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

fn node_to_node(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("node to node");
    group.sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    for suite in AeadAlgorithm::ALL {
        let mut world = World::new(1);
        world.start(ALPHA, config(1, 2, suite));
        world.start(BETA, config(2, 1, suite));
        world.run_for(Duration::from_secs(3));
        let mut wire = Train::default();
        for len in [64, 576, 1400] {
            let packet = packet(len);
            for count in [1, TRAIN] {
                let name = format!("{} {len} octets", suite.name());
                group.throughput(Throughput::Elements(count as u64));
                group.bench_with_input(BenchmarkId::new(name, format!("train of {count}")), &count, |bencher, &count| {
                    bencher.iter(|| {
                        let came_out = world.carry_train(ALPHA, BETA, black_box(&packet), count, &mut wire);
                        assert_eq!(came_out, count);
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, node_to_node);
criterion_main!(benches);
