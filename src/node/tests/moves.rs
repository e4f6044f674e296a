//! Hosts that get other addresses: the tunnel stays, with every worker's SAs.

use super::*;

/// A packet each way between the overlay addresses, wherever the hosts are.
fn both_ways(world: &mut World, alpha: IpAddr, beta: IpAddr, tag: u32) -> bool {
    let ends = [(alpha, beta, [10, 42, 1, 7], [10, 42, 2, 9]), (beta, alpha, [10, 42, 2, 9], [10, 42, 1, 7])];
    ends.into_iter().all(|(from, to, source, destination)| {
        let worker = WorkerIndex(0);
        assert_eq!(world.send(from, worker, &packet(source, destination, tag)), Outcome::Done);
        world.run_for(Duration::from_millis(20));
        world.received(to).iter().any(|got| got.ends_with(&tag.to_be_bytes()))
    })
}

#[test]
fn a_host_that_moves_keeps_its_tunnel() {
    for workers in [1, 2] {
        for alpha_moves in [true, false] {
            let mut world = two_hosts(7, workers);
            world.run_for(SECONDS(3));
            assert!(ping(&mut world, 1));
            world.run_for(SECONDS(1));
            let sas = |world: &mut World, host| {
                let now = world.now;
                let view = world.host(host).node.peers(now).remove(0);
                let children: Vec<_> = view.children.iter().map(|child| child.inbound_spi).collect();
                (view.ike_count, children)
            };
            let before = sas(&mut world, ALPHA);
            let elsewhere = IpAddr::from([198, 51, 100, 7]);
            let (alpha, beta) = if alpha_moves { (elsewhere, BETA) } else { (ALPHA, elsewhere) };
            world.relocate(if alpha_moves { ALPHA } else { BETA }, elsewhere);
            world.run_for(Duration::from_millis(100));
            for tag in 2..20 {
                assert!(both_ways(&mut world, alpha, beta, tag), "packet {tag}, {workers} workers");
            }
            world.run_for(SECONDS(60));
            assert_eq!(sas(&mut world, alpha), before, "the same SAs");
            assert_eq!((state(&mut world, alpha), state(&mut world, beta)), (PeerState::Up, PeerState::Up));
            let remote = |world: &mut World, host: IpAddr| world.host(host).node.ways()[0].1.remote.ip();
            assert_eq!((remote(&mut world, alpha), remote(&mut world, beta)), (beta, alpha));
        }
    }
}

/// Two addresses are tried in turn, and the second one answers.
#[test]
fn the_second_address_of_a_peer_is_called_when_the_first_is_silent() {
    let mut world = World::new(8);
    let mut alpha = config(1, 2, 1);
    alpha.peers[0].remote = Some(RemoteEndpoint::Standard(IpAddr::from([198, 51, 100, 9])));
    alpha.peers[0].alternatives = vec![RemoteEndpoint::Standard(BETA)];
    let mut beta = config(2, 1, 1);
    beta.peers[0].remote = None;
    world.start(ALPHA, alpha);
    world.start(BETA, beta);
    world.run_for(SECONDS(8));
    assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up));
    assert!(ping(&mut world, 1));
}
