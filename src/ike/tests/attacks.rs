//! What somebody on the wire can do without keys, and what a peer can do that has proved itself and then misbehaves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::crypto;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::proposals::offer_ike;
use crate::ike::simulator::{Proof, Simulator, address};
use crate::ike::{Command, Event};
use crate::model::{AeadAlgorithm, KeGroup, PeerIndex, SeededRng, Transport};
use crate::wire::ike::{ExchangeType, Flags, Header, Message, Payload};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// An IKE_SA_INIT request that differs from any other by its SPI and nonce.
fn init(spi: u64) -> Vec<u8> {
    let half = crypto::key_exchange(KeGroup::X25519, &mut SeededRng::new(spi));
    let payloads = [
        Payload::SecurityAssociation(offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, None)),
        key_exchange_payload(half.as_ref()),
        Payload::Nonce(vec![spi as u8; 32].into()),
    ];
    let flags = Flags { initiator: true, version: false, response: false };
    let header = Header { initiator_spi: spi, responder_spi: 0, exchange: ExchangeType::IkeSaInit, flags, message_id: 0 };
    Message::emit_clear(&header, &payloads)
}

/// Sends host 0 so many requests, each under another source address that cannot answer.
fn flood(sim: &mut Simulator, first: u32, count: u32, source: impl Fn(u32) -> IpAddr) {
    for number in first..first + count {
        let remote = SocketAddr::new(source(number), 500);
        sim.inject(0, remote, Transport::Plain, &init(u64::from(number) + 1));
    }
}

fn initiations_that_failed(sim: &Simulator, host: usize) -> usize {
    sim.hosts[host].events.iter().filter(|event| matches!(event, Event::InitiateFailed { .. })).count()
}

#[test]
fn a_flood_from_forged_addresses_keeps_no_peer_out() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    for second in 0..30 {
        flood(&mut sim, second * 100, 100, |number| Ipv4Addr::from(0x0a00_0000 + number).into());
        if second == 5 {
            sim.command(1, Command::Initiate(PeerIndex(0)));
        }
        sim.run_for(SECONDS(1));
    }
    sim.settled(0, 1).unwrap_or_else(|why| panic!("{why}: {:?}", sim.hosts[1].complaints()));
}

#[test]
fn a_flood_in_the_peers_own_name_keeps_it_not_out() {
    let mut sim = Simulator::new(2, 2, Proof::Psk);
    for second in 0..30 {
        flood(&mut sim, second * 10, 10, |_| address(1));
        if second == 5 {
            sim.command(1, Command::Initiate(PeerIndex(0)));
        }
        sim.run_for(SECONDS(1));
    }
    sim.settled(0, 1).unwrap_or_else(|why| panic!("{why}: {:?}", sim.hosts[1].complaints()));
}

#[test]
fn a_peer_that_rekeys_without_end_fills_no_memory() {
    let mut sim = Simulator::new(3, 2, Proof::Psk);
    sim.command(1, Command::Initiate(PeerIndex(0)));
    sim.run_for(SECONDS(1));
    for _ in 0..2000 {
        sim.command(1, Command::RekeyIke(PeerIndex(0)));
        sim.run_for(Duration::from_millis(60));
    }
    let count = sim.hosts[0].endpoint.ike_sa_count();
    assert!(count < 500, "{count} IKE SAs are remembered");
    sim.run_for(SECONDS(120));
    sim.settled(0, 1).unwrap();
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1);
}

/// Asked twice for an initiation, it must say once how the last one ended, or whoever waits for that waits for ever.
#[test]
fn an_initiation_that_was_asked_for_again_does_not_end_in_silence() {
    let mut sim = Simulator::new(4, 2, Proof::Psk);
    sim.by_hand = true;
    // Host 0's IKE_AUTH is lost; host 1's whole handshake is not.
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.deliver(0);
    sim.deliver(0);
    sim.waiting.clear();
    sim.run_for(SECONDS(1));
    sim.waiting.clear();
    sim.command(1, Command::Initiate(PeerIndex(0)));
    sim.deliver_all();
    assert_eq!(sim.hosts[0].endpoint.ike_sas(PeerIndex(1)).len(), 1);
    // From now on the network is dead. The peer seems dead, so a fresh one is wanted.
    sim.run_for(SECONDS(10));
    sim.waiting.clear();
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.run_for(SECONDS(60));
    assert_eq!(initiations_that_failed(&sim, 0), 1);
}
