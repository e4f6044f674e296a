//! Engines with real brains: IKE keys the tunnel, and rekeys it under traffic.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use super::hosts::{joined_namespaces, plumb};
use super::*;
use crate::ike::{EndpointConfig, LocalAuth, PeerAuth, PeerConfig, PostQuantum, RemoteEndpoint};
use crate::model::{PeerId, SeededRng};
use crate::node::{Node, NodeConfig, PeerState, Rekey};

/// Overlay host `own`, connected with host `other` by a shared key.
fn node(own: u8, other: u8, workers: u8) -> Node {
    let prefix = |number: u8| format!("10.42.{number}.0/24").parse().unwrap();
    let psk = || Secret::copy_of(b"0123456789abcdef0123456789abcdef");
    let config = NodeConfig {
        ike: EndpointConfig {
            ike_rekey: Duration::from_secs(4 * 3600),
            child_rekey: Duration::from_secs(3600),
            replay_window: 4096,
            ike_port: 500,
            natt_port: 4500,
            workers,
        },
        workers,
        tun_mtu: 1400,
        local_prefixes: vec![prefix(own)],
        probe_interval: Duration::from_secs(10),
        peers: vec![PeerConfig {
            index: PEER,
            name: format!("host{other}"),
            local_id: PeerId::Fqdn(format!("host{own}")),
            remote_id: PeerId::Fqdn(format!("host{other}")),
            local_auth: LocalAuth::Psk(psk()),
            remote_auth: PeerAuth::Psk(psk()),
            remote: Some(RemoteEndpoint::Standard(IpAddr::from([192, 0, 2, other]))),
            alternatives: Vec::new(),
            suites: AeadAlgorithm::ALL.to_vec(),
            post_quantum: PostQuantum::Preferred,
            local_selectors: vec![TrafficSelector::from_prefix(prefix(own))],
            remote_selectors: vec![TrafficSelector::from_prefix(prefix(other))],
            owner: WorkerIndex(0),
        }],
    };
    // No two the same, or a host that starts again would seem to repeat itself.
    static SEED: AtomicU64 = AtomicU64::new(0);
    let rng = || Box::new(SeededRng::new(SEED.fetch_add(1, Ordering::Relaxed)));
    Node::new(Instant::ORIGIN, config, rng(), rng())
}

fn is_up(handle: &Handle<Node>) -> bool {
    handle.ask(|node, now| node.peers(now)[0].state == PeerState::Up).unwrap()
}

/// The SPI that the peer's packets carry to us.
fn child_spi(handle: &Handle<Node>) -> Option<Spi> {
    handle.ask(|node, now| node.peers(now)[0].children.iter().map(|child| child.inbound_spi).max()).unwrap()
}

/// Several rekeys of both kinds, from both sides, while datagrams go to and fro: each arrives.
fn rekeys_lose_nothing(workers: u8) {
    let namespaces = joined_namespaces();
    let handles: Vec<Handle<Node>> = [(1, 2), (2, 1)]
        .iter()
        .zip(&namespaces)
        .map(|(&(own, other), namespace)| {
            inside(namespace, || {
                let handle = Engine::start(&config(workers, TunBackend::Offload), node(own, other, workers)).unwrap();
                plumb(own);
                handle
            })
        })
        .collect();
    await_that("both are up", || handles.iter().all(is_up));
    let sockets = [(0, 1), (1, 2)].map(|(place, number): (usize, u8)| {
        let socket = inside(&namespaces[place], || UdpSocket::bind((IpAddr::from([10, 42, number, 1]), 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    let mut spis = vec![child_spi(&handles[0])];
    for round in 0..120_u8 {
        if round % 20 == 10 {
            let side = usize::from(round / 20) % 2;
            let what = if round % 60 < 40 { Rekey::Child } else { Rekey::Ike };
            let name = format!("host{}", 2 - side);
            assert!(handles[side].ask(move |node, now| node.rekey(now, &name, what)).unwrap());
        }
        for (from, to) in [(0, 1), (1, 0)] {
            sockets[from].send_to(&[round], sockets[to].local_addr().unwrap()).unwrap();
            let mut buffer = [0; 10];
            assert_eq!((receive(&sockets[to], &mut buffer), buffer[0]), ((1, sockets[from].local_addr().unwrap()), round));
        }
        std::thread::sleep(Duration::from_millis(2));
        spis.push(child_spi(&handles[0]));
    }
    spis.dedup();
    assert!(spis.len() > 3, "the SA was replaced: {spis:?}");
    assert!(handles.iter().all(is_up));
    for handle in handles {
        let lost: Vec<_> = handle.drops().iter().flat_map(|drops| drops.nonzero()).collect();
        assert!(lost.iter().all(|(reason, _)| matches!(reason, DropReason::NoRoute | DropReason::Dummy)), "{lost:?}");
        assert_eq!(handle.stop(PATIENCE), Ok(()));
    }
}

/// Many flows, so that both TUN queues of both hosts have some: soon each worker seals and opens its own, and no packet changes
/// hands.
#[test]
fn between_our_own_hosts_nothing_strays() {
    const FLOWS: usize = 32;
    let namespaces = joined_namespaces();
    let handles = [(1, 2), (2, 1)].map(|(own, other): (u8, u8)| {
        inside(&namespaces[usize::from(own) - 1], || {
            let handle = Engine::start(&config(2, TunBackend::Offload), node(own, other, 2)).unwrap();
            plumb(own);
            handle
        })
    });
    await_that("both are up", || handles.iter().all(is_up));
    let open = || {
        [(0, 1), (1, 2)].map(|(place, number): (usize, u8)| {
            let own = IpAddr::from([10, 42, number, 1]);
            let socket = inside(&namespaces[place], || UdpSocket::bind((own, 0)).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    };
    let round = |flows: &[[UdpSocket; 2]], number: u8| {
        for (from, to) in [(0, 1), (1, 0)] {
            for flow in flows {
                flow[from].send_to(&[number], flow[to].local_addr().unwrap()).unwrap();
            }
            for flow in flows {
                let mut buffer = [0; 10];
                assert_eq!(receive(&flow[to], &mut buffer), (1, flow[from].local_addr().unwrap()));
                assert_eq!(buffer[0], number, "no packet is lost or late");
            }
        }
    };
    let strays = || handles.each_ref().map(|handle| handle.caller().strays());
    let traffic = |handle: &Handle<Node>| handle.ask(|node, _| node.worker_traffic()).unwrap();
    // A first flow makes them.
    let first = [open()];
    await_that("each worker has its own", || {
        round(&first, 0);
        let children = |handle: &Handle<Node>| handle.ask(|node, now| node.peers(now)[0].children.clone()).unwrap();
        handles.iter().map(children).all(|children| children.len() == 2 && children.iter().all(|child| child.active))
    });
    // A flow that began by the other worker's SA stays with that worker: those of the first moment are not looked at.
    await_that("both workers of both hosts seal, and nothing strays", || {
        let flows: Vec<_> = (0..FLOWS).map(|_| open()).collect();
        round(&flows, 1);
        let (before, carried) = (strays(), handles.each_ref().map(traffic));
        for number in 2..22 {
            round(&flows, number);
        }
        let mut sealed = carried.iter().zip(handles.each_ref().map(traffic)).map(|(before, after)| {
            let sealed = before.iter().zip(&after).map(|(before, after)| after.outbound.0 - before.outbound.0);
            let sealed: Vec<u64> = sealed.collect();
            assert_eq!(sealed.iter().sum::<u64>(), 20 * FLOWS as u64);
            sealed
        });
        strays() == before && sealed.all(|sealed| sealed.iter().all(|&packets| packets > 0))
    });
    for handle in handles {
        assert_eq!(handle.stop(PATIENCE), Ok(()));
    }
}

#[test]
fn rekeys_lose_nothing_with_one_worker() {
    rekeys_lose_nothing(1);
}

#[test]
fn rekeys_lose_nothing_with_two_workers() {
    rekeys_lose_nothing(2);
}

#[test]
fn a_host_that_was_killed_is_noticed() {
    let namespaces = joined_namespaces();
    let start = |place: usize, own, other| {
        inside(&namespaces[place], || {
            let handle = Engine::start(&config(2, TunBackend::Offload), node(own, other, 2)).unwrap();
            plumb(own);
            handle
        })
    };
    let (first, second) = (start(0, 1, 2), start(1, 2, 1));
    await_that("both are up", || is_up(&first) && is_up(&second));
    // Without a word to the peer: nobody called `close_all`.
    assert_eq!(second.stop(PATIENCE), Ok(()));
    let second = start(1, 2, 1);
    await_that("both are up again", || is_up(&first) && is_up(&second));
    let sockets = [(0, 1), (1, 2)].map(|(place, number): (usize, u8)| {
        inside(&namespaces[place], || UdpSocket::bind((IpAddr::from([10, 42, number, 1]), 0)).unwrap())
    });
    await_that("packets pass both ways", || {
        [(0, 1), (1, 0)].iter().all(|&(from, to): &(usize, usize)| {
            sockets[to].set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let sent = sockets[from].send_to(&[1], sockets[to].local_addr().unwrap());
            sent.is_ok() && sockets[to].recv_from(&mut [0; 10]).is_ok()
        })
    });
    for handle in [first, second] {
        assert_eq!(handle.stop(PATIENCE), Ok(()));
    }
}

/// Forgeries under the SPI that is in use, as fast as one thread can send them: their worker opens nothing else for a while, and
/// control answers, rekeys by both kinds and keeps the tunnel up.
#[test]
fn case_117_a_flood_of_forgeries_leaves_control_alive() {
    let namespaces = joined_namespaces();
    let handles = [(1, 2), (2, 1)].map(|(own, other): (u8, u8)| {
        inside(&namespaces[usize::from(own) - 1], || {
            let handle = Engine::start(&config(1, TunBackend::Offload), node(own, other, 1)).unwrap();
            plumb(own);
            handle
        })
    });
    await_that("both are up", || handles.iter().all(is_up));
    let target = AtomicU32::new(child_spi(&handles[0]).unwrap().value());
    let over = AtomicBool::new(false);
    let bad = || handles[0].drops().iter().map(|drops| drops.of(DropReason::BadIcv)).sum::<u64>();
    let ike =
        |handle: &Handle<Node>| handle.ask(|node, now| node.peers(now)[0].ike.as_ref().map(|ike| ike.local_spi)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = inside(&namespaces[1], || UdpSocket::bind("192.0.2.2:0").unwrap());
            let mut forgery = [0xa5; 200];
            for sequence in 1u32.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                forgery[..4].copy_from_slice(&target.load(Ordering::Relaxed).to_be_bytes());
                forgery[4..8].copy_from_slice(&sequence.to_be_bytes());
                // What does not fit is lost, as on any network.
                let _ = socket.send_to(&forgery, "192.0.2.1:4500");
            }
        });
        // Ends the flood also if something below fails.
        let _end = Ends(&over);
        for what in [Rekey::Child, Rekey::Ike, Rekey::Child] {
            let before = bad();
            await_that("forgeries arrive", || bad() > before + 1000);
            let (old_child, old_ike) = (child_spi(&handles[0]), ike(&handles[0]));
            assert!(handles[0].ask(move |node, now| node.rekey(now, "host2", what)).unwrap());
            await_that("the rekey is done", || match what {
                Rekey::Child => handles[0]
                    .ask(|node, now| node.peers(now)[0].children.len())
                    .is_ok_and(|count| count == 1 && child_spi(&handles[0]) != old_child),
                Rekey::Ike => ike(&handles[0]).is_some_and(|new| Some(new) != old_ike),
            });
            target.store(child_spi(&handles[0]).unwrap().value(), Ordering::Relaxed);
            assert!(handles.iter().all(is_up));
        }
    });
    let sockets = [(0, 1), (1, 2)].map(|(place, number): (usize, u8)| {
        let socket = inside(&namespaces[place], || UdpSocket::bind((IpAddr::from([10, 42, number, 1]), 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    for (from, to) in [(0, 1), (1, 0)] {
        sockets[from].send_to(b"still here", sockets[to].local_addr().unwrap()).unwrap();
        assert_eq!(receive(&sockets[to], &mut [0; 20]).0, 10);
    }
    for handle in handles {
        assert_eq!(handle.stop(PATIENCE), Ok(()));
    }
}

/// Says that it is over when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
