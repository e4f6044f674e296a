//! Ports, NATs and addresses that move.

use std::time::Duration;

use super::hand::{Hand, alone, must_only_count, sent};
use super::{HOST, must_be_settled, pair, pair_by_hand, sender};
use crate::ike::simulator::{Content, Nat, Proof, Simulator, address, peer_config};
use crate::ike::{Command, Event, RemoteEndpoint};
use crate::model::{DropReason, Transport};
use crate::wire::ike::{ExchangeType, Message};

fn behind_nat(sim: &mut Simulator, host: usize) {
    let public = "203.0.113.7".parse().expect("an address");
    sim.hosts[host].nat = Some(Nat { public, ports: Default::default(), next: 20_000 });
}

/// The NAT forgets its ports and takes others.
fn rebind(sim: &mut Simulator, host: usize) {
    let nat = sim.hosts[host].nat.as_mut().expect("a NAT");
    nat.ports.clear();
    nat.next += 1000;
}

#[test]
fn ike_begins_on_500_and_floats_to_4500() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    let ports = |sim: &Simulator| {
        let datagram = &sim.waiting[0];
        (datagram.path.local.port(), datagram.path.remote.port(), datagram.transport)
    };
    assert_eq!(ports(&sim), (500, 500, Transport::Plain));
    sim.deliver(0);
    assert_eq!(ports(&sim), (500, 500, Transport::Plain), "answered where it came from");
    sim.deliver(0);
    assert_eq!(ports(&sim), (4500, 4500, Transport::Natt));
    sim.deliver(0);
    assert_eq!(ports(&sim), (4500, 4500, Transport::Natt));
    sim.deliver_all();
    must_be_settled(&sim);
    let path = sim.hosts[1].plane.installed[0].path;
    assert_eq!((path.local.port(), path.remote.port()), (4500, 4500));
}

#[test]
fn a_peer_with_a_natt_port_of_its_own_is_called_there_and_never_on_500() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    let mut config = peer_config(0, 1, Proof::Psk);
    config.remote = Some(RemoteEndpoint::Natt((address(1), 4500).into()));
    sim.hosts[0].endpoint.upsert_peer(config);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    for _ in 0..4 {
        assert!(sim.waiting.iter().all(|datagram| datagram.transport == Transport::Natt));
        assert!(sim.waiting.iter().all(|datagram| datagram.path.remote.port() == 4500));
        sim.deliver(0);
    }
    sim.deliver_all();
    must_be_settled(&sim);
}

#[test]
fn without_a_nat_our_own_hosts_know_it() {
    let sim = pair(1);
    for host in 0..2 {
        let sa = &sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0];
        assert_eq!((sa.local_behind_nat, sa.remote_behind_nat), (Some(false), Some(false)));
    }
}

#[test]
fn behind_a_nat_both_know_it() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    behind_nat(&mut sim, 0);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
    let inside = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
    assert_eq!((inside.local_behind_nat, inside.remote_behind_nat), (Some(true), Some(false)));
    let outside = &sim.hosts[1].endpoint.ike_sas(HOST[0])[0];
    assert_eq!((outside.local_behind_nat, outside.remote_behind_nat), (Some(false), Some(true)));
    assert_eq!(sim.hosts[1].plane.installed[0].path.remote.ip(), sim.hosts[0].nat.as_ref().expect("a NAT").public);
}

#[test]
fn the_source_hash_never_matches_so_that_everybody_encapsulates() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    let Content::Ike(request) = sim.waiting[0].content.clone() else { panic!("IKE") };
    let message = Message::parse(&request).expect("our own");
    let contents = crate::ike::contents::Contents::of(message.payloads);
    let spi = message.header.initiator_spi;
    let path = sim.waiting[0].path;
    let seen = crate::model::Path { local: path.remote, remote: path.local };
    let nat = crate::ike::nat::Nat::observe(&contents, spi, 0, seen);
    assert_eq!((nat.local, nat.remote), (Some(false), None), "the destination is true, the source is not");
}

#[test]
fn a_nat_that_rebinds_is_followed_by_ike_and_esp() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    behind_nat(&mut sim, 0);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    let before = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path;
    rebind(&mut sim, 0);
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    let after = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path;
    assert_ne!(after.remote.port(), before.remote.port());
    assert_eq!(sim.hosts[1].plane.installed[0].path, after, "ESP follows IKE");
    // And the outside can ask again.
    let from = sim.hosts[1].events.len();
    sim.command(1, Command::Probe(HOST[0]));
    sim.run_for(Duration::from_secs(1));
    assert!(sim.hosts[1].events[from..].iter().any(|event| matches!(event, Event::Proof { .. })));
}

/// Host 1 sees ESP of host 0, which is behind a NAT, from this port.
fn esp_from(sim: &mut Simulator, port: u16) -> crate::model::Path {
    let spi = sender(sim, 1);
    let mut path = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path;
    path.remote.set_port(port);
    sim.command(1, Command::AddressSeen(spi, path));
    path
}

#[test]
fn esp_from_elsewhere_moves_everything_as_soon_as_the_peer_answers_there() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    behind_nat(&mut sim, 0);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    rebind(&mut sim, 0);
    let port = sim.hosts[0].nat.as_mut().expect("a NAT").outward(4500).port();
    let path = esp_from(&mut sim, port);
    assert_ne!(sim.hosts[1].plane.installed[0].path, path, "not yet");
    sim.run_for(Duration::from_millis(100));
    assert_eq!(sim.hosts[1].plane.installed[0].path, path);
    assert_eq!(sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path, path, "IKE went there, too");
}

/// Who overtakes one ESP packet with a copy from an address of his own gets one small question, and no ESP.
#[test]
fn esp_from_where_the_peer_is_not_moves_nothing() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    behind_nat(&mut sim, 0);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    sim.by_hand = true;
    let before = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path;
    let from = sim.hosts[1].events.len();
    for _ in 0..20 {
        let path = esp_from(&mut sim, 31_000);
        assert_eq!(sim.waiting.len(), 1, "one question");
        assert_eq!(sim.waiting[0].path.remote, path.remote);
    }
    sim.by_hand = false;
    sim.waiting.clear();
    sim.run_for(Duration::from_secs(30));
    assert_eq!(sim.hosts[1].plane.installed[0].path, before);
    assert_eq!(sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path, before);
    assert!(sim.hosts[1].events[from..].iter().any(|event| matches!(event, Event::Proof { .. })), "asked where it is");
    must_be_settled(&sim);
}

#[test]
fn a_peer_that_no_nat_hides_is_not_followed() {
    let mut sim = pair_by_hand(1);
    sim.command(0, Command::Probe(HOST[1]));
    let before = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path;
    let Content::Ike(request) = sim.waiting.remove(0).content else { panic!("IKE") };
    let elsewhere = "203.0.113.9:4500".parse().expect("an address");
    sim.inject(1, elsewhere, Transport::Natt, &request);
    assert_eq!(sim.waiting[0].path.remote, elsewhere, "answered where it came from");
    assert_eq!(sim.hosts[1].endpoint.ike_sas(HOST[0])[0].path, before, "and not followed");
}

#[test]
fn case_104_replayed_and_forged_packets_from_elsewhere_move_nothing() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 5);
    let path = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].path;
    let probe = hand.next(ExchangeType::Informational, &[]);
    hand.inject(&mut sim, &probe);
    sent(&mut sim);
    let elsewhere = "203.0.113.9:4500".parse().expect("an address");
    sim.inject(0, elsewhere, Transport::Natt, &probe);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].path, path, "a replay");
    let mut forged = hand.next(ExchangeType::Informational, &[]).to_vec();
    *forged.last_mut().expect("octets") ^= 1;
    must_only_count(&mut sim, DropReason::IkeBadIcv, "forged", |sim| {
        sim.inject(0, elsewhere, Transport::Natt, &forged);
    });
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].path, path, "a forgery");
}

#[test]
fn a_path_change_is_told_once() {
    let sim = pair(9);
    assert!(!sim.hosts.iter().any(|host| host.events.iter().any(|event| matches!(event, Event::PathChanged { .. }))));
}
