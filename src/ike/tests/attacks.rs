//! What somebody on the wire can do without keys, and what a peer can do that has proved itself and then misbehaves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::crypto;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::narrow::is_subset;
use crate::ike::proposals::{PostQuantum, offer_esp, offer_ike};
use crate::ike::simulator::{Content, Datagram, Proof, Simulator, address, peer_config};
use crate::ike::state::IkeSa;
use crate::ike::{Command, Event, PeerConfig};
use crate::model::{
    AeadAlgorithm, IkeSpi, KeGroup, PeerIndex, Rng, SeededRng, Spi, TrafficSelector, Transport, WorkerIndex,
};
use crate::wire::ike::{
    Delete, ExchangeType, Flags, Header, KeyExchangePayload, Message, Notify, NotifyType, Payload, Protocol,
};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// An IKE_SA_INIT request that differs from any other by its SPI and nonce.
fn init(spi: u64) -> Vec<u8> {
    let half = crypto::key_exchange(KeGroup::X25519, &mut SeededRng::new(spi));
    let payloads = [
        Payload::SecurityAssociation(offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::No, None)),
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

/// What must not change by anything that was heard before.
fn standing(sim: &Simulator) -> Vec<String> {
    let one = |host: usize| {
        let (host, peer) = (&sim.hosts[host], PeerIndex(1 - host as u32));
        let paths: Vec<_> = host.plane.installed.iter().map(|child| (child.inbound_spi, child.path)).collect();
        let (active, installs) = (&host.plane.active, host.plane.installs);
        format!("{:?} {:?} {active:?} {installs} {paths:?}", host.endpoint.ike_sas(peer), host.standing())
    };
    vec![one(0), one(1)]
}

/// Delivers what waits and writes it down.
fn overhear(sim: &mut Simulator, heard: &mut Vec<Datagram>) {
    sim.finish_installs();
    while let Some(datagram) = sim.waiting.first() {
        heard.push(datagram.clone());
        sim.deliver(0);
    }
}

#[test]
fn everything_that_was_ever_said_again_from_here_and_elsewhere_changes_nothing() {
    let mut sim = Simulator::new(5, 2, Proof::HostKeys);
    let mut chance = SeededRng::new(5);
    let mut heard = Vec::new();
    sim.by_hand = true;
    sim.command(0, Command::Initiate(PeerIndex(1)));
    overhear(&mut sim, &mut heard);
    for _ in 0..120 {
        let host = (chance.u32() % 2) as usize;
        let peer = PeerIndex(1 - host as u32);
        let child = sim.hosts[host].plane.active[&peer];
        let commands =
            [Command::RekeyIke(peer), Command::RekeyChild(child), Command::Probe(peer), Command::ChildExpired(child)];
        sim.command(host, commands[chance.u32() as usize % 4].clone());
        overhear(&mut sim, &mut heard);
        sim.run_for(SECONDS(5));
        overhear(&mut sim, &mut heard);
        sim.settled(0, 1).unwrap();
        let before = standing(&sim);
        for _ in 0..40 {
            let mut datagram = heard[chance.u32() as usize % heard.len()].clone();
            if chance.u32().is_multiple_of(2) {
                datagram.path.local = SocketAddr::from(([203, 0, 113, 9], 4500));
            }
            sim.deliver_again(&datagram);
            sim.waiting.clear();
        }
        assert_eq!(standing(&sim), before);
    }
}

/// One payload such as an attacker who has keys might try, with SPIs that mean something.
fn any_payload(sim: &mut Simulator, chance: &mut SeededRng) -> Payload {
    let pick = chance.u32();
    let spis: Vec<Spi> =
        sim.hosts[1].plane.installed.iter().flat_map(|child| [child.inbound_spi, child.outbound_spi]).collect();
    let spi = spis.get(pick as usize % 5).copied().unwrap_or_else(|| Spi::random(chance, WorkerIndex(0)));
    let group = KeGroup::ALL[pick as usize % 3];
    let config = peer_config(1, 0, Proof::Psk);
    let wide = TrafficSelector::from_prefix("0.0.0.0/0".parse().unwrap());
    let octets = |spi: Spi| spi.value().to_be_bytes().to_vec();
    match chance.u32() % 14 {
        0 => Payload::SecurityAssociation(offer_esp(&AeadAlgorithm::ALL, &KeGroup::ALL, spi)),
        1 => Payload::SecurityAssociation(offer_esp(&AeadAlgorithm::ALL, &[], spi)),
        2 => Payload::SecurityAssociation(offer_ike(
            &AeadAlgorithm::ALL,
            group,
            PostQuantum::No,
            Some(IkeSpi::random(chance)),
        )),
        3 => Payload::Nonce(vec![pick as u8; 32].into()),
        4 => key_exchange_payload(crypto::key_exchange(group, chance).as_ref()),
        5 => Payload::KeyExchange(KeyExchangePayload { group: group.id(), value: vec![pick as u8; 64].into() }),
        6 => Payload::TsInitiator(config.local_selectors),
        7 => Payload::TsResponder(config.remote_selectors),
        8 => Payload::TsInitiator(vec![wide]),
        9 => Payload::Notify(Notify {
            protocol: Protocol::Esp,
            spi: octets(spi).into(),
            kind: NotifyType::RekeySa,
            data: Vec::new().into(),
        }),
        10 => Payload::Notify(Notify::new(NotifyType::from_value(pick as u16), octets(spi))),
        11 => Payload::Delete(Delete::Esp(vec![spi, spi])),
        12 if pick.is_multiple_of(8) => Payload::Delete(Delete::Ike),
        12 => Payload::Delete(Delete::Esp(spis)),
        _ => Payload::Unknown { kind: 200, critical: pick.is_multiple_of(8) },
    }
}

/// Host 1 says something on an IKE SA of its that it would never say.
fn misbehave(sim: &mut Simulator, chance: &mut SeededRng) {
    let count = chance.u32() % 7;
    let exchange = [ExchangeType::CreateChildSa, ExchangeType::Informational][(chance.u32() % 3 / 2) as usize];
    let mut payloads: Vec<Payload> = (0..count).map(|_| any_payload(sim, chance)).collect();
    // As the codec would refuse it anyway.
    payloads.sort_by_key(Payload::kind);
    payloads.dedup_by_key(|payload| payload.kind());
    let now = sim.now;
    let host = &mut sim.hosts[1];
    let Some(spi) = host.endpoint.ike_sas(PeerIndex(0)).first().map(|summary| summary.local_spi) else { return };
    let Some(mut sa) = host.endpoint.table.take(spi) else { return };
    if let IkeSa::Established(state) = &mut sa
        && !state.session.is_busy()
    {
        state.session.request(&mut host.endpoint.shared, now, exchange, &payloads);
    }
    host.endpoint.table.put(spi, sa);
}

#[test]
fn a_peer_that_talks_nonsense_under_the_right_keys_harms_only_itself() {
    for seed in 0..25 {
        let mut sim = Simulator::new(seed, 3, Proof::Psk);
        let mut chance = SeededRng::new(!seed);
        sim.reconcile();
        sim.run_for(SECONDS(5));
        let other = sim.hosts[0].endpoint.ike_sas(PeerIndex(2));
        let wanted: Vec<TrafficSelector> = peer_config(0, 1, Proof::Psk).remote_selectors;
        for _ in 0..100 {
            misbehave(&mut sim, &mut chance);
            let pause = chance.jitter(Duration::from_millis(400));
            sim.run_for(pause);
            let host = &sim.hosts[0];
            for child in host.plane.installed.iter().filter(|child| child.peer == PeerIndex(1)) {
                assert!(is_subset(&child.remote_selectors, &wanted), "seed {seed}: {:?}", child.remote_selectors);
            }
            assert!(host.endpoint.ike_sa_count() < 100 && host.plane.installed.len() <= 40, "seed {seed}");
        }
        assert_eq!(sim.hosts[0].endpoint.ike_sas(PeerIndex(2)), other, "seed {seed}");
        sim.restart(1, Proof::Psk);
        sim.run_for(SECONDS(100));
        let complaints = sim.hosts[0].complaints();
        sim.settled(0, 1).unwrap_or_else(|why| panic!("seed {seed}: {why}: {complaints:?} {:?}", sim.hosts[0].standing()));
    }
}

/// A peer that we cannot call is not called, also when it refuses to rekey.
#[test]
fn a_peer_without_address_that_refuses_rekeys_is_left_alone() {
    let mut sim = Simulator::new(7, 2, Proof::Psk);
    sim.hosts[0].endpoint.upsert_peer(PeerConfig { remote: None, ..peer_config(0, 1, Proof::Psk) });
    sim.command(1, Command::Initiate(PeerIndex(0)));
    sim.run_for(SECONDS(1));
    let far = sim.now + SECONDS(1_000_000);
    sim.hosts[1].endpoint.shared.debts.insert(PeerIndex(0), far);
    sim.command(0, Command::RekeyIke(PeerIndex(1)));
    sim.run_for(SECONDS(30));
    assert_eq!(initiations_that_failed(&sim, 0), 0);
    sim.settled(0, 1).unwrap();
}

/// A probe that is asked for while something else stands in the queue is answered by that, or sent after it.
#[test]
fn a_probe_behind_a_job_that_turns_out_needless_is_sent_all_the_same() {
    let mut sim = Simulator::new(8, 2, Proof::Psk);
    sim.command(1, Command::Initiate(PeerIndex(0)));
    sim.run_for(SECONDS(1));
    // Host 0 answers a rekey and is then silent until it hears the other side on the new IKE SA.
    sim.by_hand = true;
    sim.command(1, Command::RekeyIke(PeerIndex(0)));
    sim.deliver(0);
    sim.command(0, Command::CreateChild(PeerIndex(1)));
    sim.command(0, Command::Probe(PeerIndex(1)));
    sim.by_hand = false;
    let answer = sim.waiting.remove(0);
    sim.run_for(SECONDS(4));
    sim.deliver_again(&answer);
    sim.run_for(SECONDS(20));
    let lost = sim.hosts[0].events.iter().any(|event| matches!(event, Event::ProbeLost { .. }));
    assert!(!lost);
}

/// The answers are lost for longer than a half-open IKE SA lives: the request that comes then is as good as new.
#[test]
fn a_request_that_is_repeated_after_its_half_open_ike_sa_ended_is_answered() {
    let mut sim = Simulator::new(9, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(PeerIndex(1)));
    let request = sim.waiting.remove(0);
    sim.deliver_again(&request);
    sim.run_for(SECONDS(16));
    sim.waiting.clear();
    sim.deliver_again(&request);
    sim.deliver_all();
    sim.settled(0, 1).unwrap();
}

/// A KE value that cannot be is noticed when the keys are needed; it does not free the place of its half-open IKE SA.
#[test]
fn an_impossible_ke_value_frees_no_place() {
    let mut sim = Simulator::new(10, 2, Proof::Psk);
    sim.by_hand = true;
    let remote = SocketAddr::new(address(1), 500);
    let mut request = init(77);
    let value = request.windows(4).position(|window| window == [0, 31, 0, 0]).expect("KE payload of X25519") + 4;
    request[value..value + 32].fill(0);
    sim.inject(0, remote, Transport::Plain, &request);
    let Content::Ike(response) = sim.waiting.remove(0).content else { panic!("an IKE message") };
    let responder_spi = Header::parse(&response).unwrap().0.responder_spi;
    let flags = Flags { initiator: true, version: false, response: false };
    let header = Header { initiator_spi: 77, responder_spi, exchange: ExchangeType::IkeAuth, flags, message_id: 1 };
    let auth = Message::emit_protected(&header, &[], |_, _| ([0; 8], [0; 16]));
    sim.inject(0, remote, Transport::Plain, &auth);
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1);
    sim.inject(0, remote, Transport::Plain, &request);
    assert!(sim.waiting.is_empty(), "the same request buys no second key exchange");
    sim.run_for(SECONDS(16));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
}
