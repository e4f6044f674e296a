//! MOBIKE (RFC 4555): ends that move and say so, several places of one peer, and what must not move anything.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::hand::{Hand, alone, counted, errors, must_only_count, own_config, sent};
use super::{HOST, count, must_be_settled, pair, pair_by_hand};
use crate::ike::mobike::MOBIKE_SUPPORTED;
use crate::ike::simulator::{Content, Proof, Simulator, address, peer_config};
use crate::ike::state::{IkeSa, Job};
use crate::ike::{Command, Event, RemoteEndpoint};
use crate::model::{DropReason, IkeSpi, Transport};
use crate::wire::ike::{ExchangeType, Message, Notify, NotifyType, Payload};

fn other(host: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, host])
}

/// The host has another address from now on, and knows it.
fn relocate(sim: &mut Simulator, host: usize, to: IpAddr) {
    let from = std::mem::replace(&mut sim.hosts[host].address, to);
    let moves = vec![(HOST[1 - host], from, to)];
    sim.command(host, Command::Places { addresses: vec![to], moves });
}

/// Both ends of the only IKE SA, and of ESP, as each host sees them: where it sends to.
fn must_meet(sim: &Simulator) {
    for host in 0..2 {
        let (path, there) = (sim.hosts[host].endpoint.ike_sas(HOST[1 - host])[0].path, sim.hosts[1 - host].address);
        assert_eq!((path.remote.ip(), path.remote.port()), (there, 4500), "IKE of host {host}");
        assert_eq!(sim.hosts[host].plane.installed[0].path.remote, path.remote, "ESP of host {host}");
        assert_eq!(path.local.ip(), sim.hosts[host].address, "host {host}'s own end");
    }
    must_be_settled(sim);
}

fn spis(sim: &Simulator) -> IkeSpi {
    sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi
}

fn notify(kind: NotifyType, data: &[u8]) -> Payload {
    Payload::Notify(Notify::new(kind, data.to_vec()))
}

#[test]
fn an_initiator_that_moves_takes_its_sas_along() {
    let mut sim = pair(1);
    let before = spis(&sim);
    relocate(&mut sim, 0, other(1));
    sim.run_for(Duration::from_millis(200));
    must_meet(&sim);
    assert_eq!(spis(&sim), before, "the same IKE SA");
    // And again, and after a rekey of the IKE SA, by either side.
    for (host, place) in [(0, 2), (1, 3)] {
        sim.command(host, Command::RekeyIke(HOST[1 - host]));
        sim.run_for(Duration::from_secs(2));
        relocate(&mut sim, 0, other(place));
        sim.run_for(Duration::from_secs(2));
        must_meet(&sim);
    }
}

#[test]
fn a_responder_that_moves_is_followed_by_its_initiator() {
    let mut sim = pair(1);
    let before = spis(&sim);
    relocate(&mut sim, 1, other(2));
    sim.run_for(Duration::from_millis(200));
    must_meet(&sim);
    assert_eq!(spis(&sim), before);
}

/// ESP goes to a new address only after an answer came from there.
#[test]
fn an_update_is_answered_at_once_and_believed_after_a_check() {
    let mut sim = pair_by_hand(1);
    let before = sim.hosts[1].plane.installed[0].path;
    relocate(&mut sim, 0, other(1));
    sim.deliver(0);
    assert_eq!(sim.hosts[1].plane.installed[0].path, before);
    let answers: Vec<SocketAddr> = sim.waiting.iter().map(|datagram| datagram.path.remote).collect();
    assert!(answers.len() >= 2 && answers.iter().all(|remote| remote.ip() == other(1)), "answer and question: {answers:?}");
    sim.deliver_all();
    must_meet(&sim);
}

#[test]
fn a_move_while_an_update_is_under_way_is_told_by_another_one() {
    let mut sim = pair_by_hand(1);
    relocate(&mut sim, 0, other(1));
    let lost = sim.waiting.remove(0);
    relocate(&mut sim, 0, other(2));
    assert!(!sim.waiting.is_empty(), "the first is sent again from there");
    sim.deliver_all();
    sim.by_hand = false;
    sim.run_for(Duration::from_secs(2));
    must_meet(&sim);
    // The first transmission arrives at last: nothing follows it back.
    sim.deliver_again(&lost);
    sim.run_for(Duration::from_secs(2));
    must_meet(&sim);
}

#[test]
fn a_path_that_goes_silent_is_replaced_by_one_that_works() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    let mut config = peer_config(0, 1, Proof::Psk);
    config.alternatives = vec![RemoteEndpoint::Standard(other(9)), RemoteEndpoint::Standard(other(2))];
    sim.hosts[0].endpoint.upsert_peer(config);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    let before = spis(&sim);
    // Host 1 is at its other place, and does not say so.
    sim.hosts[1].address = other(2);
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_secs(4));
    let path = sim.hosts[0].endpoint.ike_sas(HOST[1])[0].path;
    assert_eq!(path.remote.ip(), other(2));
    assert_eq!(sim.hosts[0].plane.installed[0].path.remote.ip(), other(2));
    assert_eq!(spis(&sim), before, "the same IKE SA");
}

#[test]
fn the_addresses_that_a_responder_told_are_tried_as_well() {
    let mut sim = pair(1);
    sim.command(1, Command::Places { addresses: vec![address(1), other(2)], moves: Vec::new() });
    sim.run_for(Duration::from_secs(1));
    sim.hosts[1].address = other(2);
    sim.command(0, Command::Probe(HOST[1]));
    sim.run_for(Duration::from_secs(4));
    assert_eq!(sim.hosts[0].plane.installed[0].path.remote.ip(), other(2));
}

#[test]
fn the_places_of_a_peer_are_called_in_turn() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    let mut config = peer_config(0, 1, Proof::Psk);
    config.remote = Some(RemoteEndpoint::Standard(other(9)));
    config.alternatives = vec![RemoteEndpoint::Natt((other(8), 4501).into()), RemoteEndpoint::Standard(address(1))];
    sim.hosts[0].endpoint.upsert_peer(config);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(8));
    must_be_settled(&sim);
    assert_eq!(count(&sim, 0, 0, |event| matches!(event, Event::Trouble { .. })), 2, "two places are silent");
    assert_eq!(count(&sim, 0, 0, |event| matches!(event, Event::InitiateFailed { .. })), 0);
    // What was of use is called first the next time.
    sim.restart(1, Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let from = sim.hosts[0].events.len();
    sim.run_for(Duration::from_secs(1));
    assert_eq!(count(&sim, 0, from, |event| matches!(event, Event::IkeUp { .. })), 1);
}

// --- bad input ---

/// A hand-written initiator that speaks MOBIKE with host 0.
fn mobile_hand(sim: &mut Simulator) -> Hand {
    let mut hand = Hand::greet(sim, 5);
    let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
    payloads.push(MOBIKE_SUPPORTED);
    hand.send(sim, ExchangeType::IkeAuth, &payloads);
    sim.finish_installs();
    let (_, answer) = hand.read(sim).pop().expect("host 0 answers IKE_AUTH");
    assert!(answer.notify(NotifyType::MobikeSupported).is_some());
    hand
}

const ELSEWHERE: &str = "203.0.113.9:4500";

fn paths(sim: &Simulator) -> [SocketAddr; 2] {
    [sim.hosts[0].endpoint.ike_sas(HOST[1])[0].path.remote, sim.hosts[0].plane.installed[0].path.remote]
}

/// Asked for an update from elsewhere, host 0 looks for us there; what it asks.
fn update_from_elsewhere(sim: &mut Simulator, hand: &mut Hand) -> (crate::wire::ike::Header, Notify) {
    hand.source = ELSEWHERE.parse().expect("an address");
    hand.send(sim, ExchangeType::Informational, &[notify(NotifyType::UpdateSaAddresses, &[])]);
    let asked = hand.read(sim).into_iter().find(|(header, _)| !header.flags.response);
    let (header, contents) = asked.expect("a question");
    (header, contents.notify(NotifyType::Cookie2).expect("COOKIE2").clone())
}

#[test]
fn a_returned_cookie_moves_and_another_one_closes() {
    for right in [true, false] {
        let mut sim = alone(Proof::Psk);
        let mut hand = mobile_hand(&mut sim);
        let before = paths(&sim);
        let (header, mut cookie) = update_from_elsewhere(&mut sim, &mut hand);
        assert_eq!(paths(&sim), before, "not before the answer");
        assert!((8..=64).contains(&cookie.data.len()));
        if !right {
            cookie.data = vec![0; 16].into();
        }
        hand.respond(&mut sim, header, &[Payload::Notify(cookie)]);
        if right {
            assert_eq!(paths(&sim), [hand.source; 2]);
        } else {
            assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), "RFC 4555 §3.7");
        }
    }
}

/// The right answer to the question, but from where the peer was: it did not reach the new address.
#[test]
fn an_answer_from_the_old_address_moves_nothing() {
    let mut sim = alone(Proof::Psk);
    let mut hand = mobile_hand(&mut sim);
    let (before, source) = (paths(&sim), hand.source);
    let (header, cookie) = update_from_elsewhere(&mut sim, &mut hand);
    hand.source = source;
    hand.respond(&mut sim, header, &[Payload::Notify(cookie)]);
    assert_eq!(paths(&sim), before);
    // It said that it moves, so it is looked for once more.
    sent(&mut sim);
    sim.run_for(Duration::from_millis(1100));
    let asked: Vec<SocketAddr> = sim.waiting.iter().map(|datagram| datagram.path.remote).collect();
    assert!(!asked.is_empty() && asked.iter().all(|remote| remote.to_string() == ELSEWHERE), "{asked:?}");
    assert_eq!(paths(&sim), before);
}

/// What it says of NATs is true of a path that is not in use any more.
#[test]
fn an_answer_to_an_older_update_says_nothing() {
    let mut sim = pair_by_hand(1);
    relocate(&mut sim, 0, other(1));
    sim.deliver(0);
    // Besides it host 1 asks whether we are there.
    let answers = sim.waiting.drain(..).filter_map(|datagram| match datagram.content {
        Content::Ike(octets) => Message::parse(&octets).expect("it parses").header.flags.response.then_some(octets),
        Content::Esp(_) => None,
    });
    let answer = answers.last().expect("an answer");
    relocate(&mut sim, 0, other(2));
    sim.inject(0, (address(1), 4500).into(), Transport::Natt, &answer);
    let sa = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
    assert_eq!((sa.local_behind_nat, sa.remote_behind_nat), (Some(false), Some(false)));
    assert_eq!(sa.path.local.ip(), other(2));
    sim.by_hand = false;
    sim.run_for(Duration::from_secs(10));
    must_meet(&sim);
    let sa = &sim.hosts[1].endpoint.ike_sas(HOST[0])[0];
    assert_eq!((sa.local_behind_nat, sa.remote_behind_nat), (Some(false), Some(false)), "nor did a NAT come up at host 1");
}

#[test]
fn cookies_are_returned_and_nat_detection_is_answered() {
    let mut sim = alone(Proof::Psk);
    let mut hand = mobile_hand(&mut sim);
    let asked = [notify(NotifyType::Cookie2, &[7; 64]), notify(NotifyType::NatDetectionDestinationIp, &[0; 20])];
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &asked);
    assert_eq!(answer.notify(NotifyType::Cookie2).expect("it").data[..], [7; 64]);
    assert!(answer.notify(NotifyType::NatDetectionSourceIp).is_some());
    assert!(answer.notify(NotifyType::NatDetectionDestinationIp).is_some());
    for length in [0, 7, 65] {
        let answer = hand.ask(&mut sim, ExchangeType::Informational, &[notify(NotifyType::Cookie2, &vec![7; length])]);
        assert!(answer.notify(NotifyType::Cookie2).is_none(), "{length} octets");
    }
}

#[test]
fn case_103_an_update_that_was_not_agreed_on() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 5);
    hand.source = ELSEWHERE.parse().expect("an address");
    let update = hand.next(ExchangeType::Informational, &[notify(NotifyType::UpdateSaAddresses, &[])]);
    let before = paths(&sim);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "unasked", |sim| hand.inject(sim, &update));
    let answers = hand.read(&mut sim);
    assert!(answers.iter().any(|(header, contents)| header.flags.response && contents.notifies.is_empty()));
    assert_eq!(paths(&sim), before);
}

#[test]
fn case_103_an_update_by_the_responder() {
    let mut sim = pair_by_hand(1);
    let before = paths(&sim);
    let spi = sim.hosts[1].endpoint.ike_sas(HOST[0])[0].local_spi;
    let now = sim.now;
    sim.hosts[1].endpoint.with(now, spi, |sa, shared| match sa {
        IkeSa::Established(mut state) => {
            state.enqueue(Job::Update);
            state.pump(shared, now);
            Some(IkeSa::Established(state))
        }
        other => Some(other),
    });
    sim.command(1, Command::Probe(HOST[0]));
    let Content::Ike(update) = sim.waiting.remove(0).content else { panic!("IKE") };
    let elsewhere = ELSEWHERE.parse().expect("an address");
    // Its addresses beside it would be followed: this host tells them on its own.
    must_only_count(&mut sim, DropReason::IkeUnexpected, "by the responder", |sim| {
        sim.inject(0, elsewhere, Transport::Natt, &update);
    });
    assert_eq!(paths(&sim), before);
}

#[test]
fn case_103_nats_that_are_not_allowed() {
    let mut sim = alone(Proof::Psk);
    let mut hand = mobile_hand(&mut sim);
    let before = paths(&sim);
    let own = hand.source;
    hand.source = ELSEWHERE.parse().expect("an address");
    // Source and destination address and port: as before the NAT, cut short, too long.
    let ends = |source: [u8; 4]| [&source[..], &[192, 0, 2, 1], &4500_u16.to_be_bytes(), &4500_u16.to_be_bytes()].concat();
    let forbidden =
        [ends([192, 0, 2, 2]), ends([203, 0, 113, 9])[..11].to_vec(), [ends([203, 0, 113, 9]), vec![0]].concat()];
    for data in forbidden {
        let payloads = [notify(NotifyType::UpdateSaAddresses, &[]), notify(NotifyType::NoNatsAllowed, &data)];
        let update = hand.next(ExchangeType::Informational, &payloads);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "a NAT", |sim| hand.inject(sim, &update));
        let (_, answer) = hand.read(&mut sim).pop().expect("an answer");
        assert_eq!(errors(&answer), [NotifyType::UnexpectedNatDetected]);
        assert_eq!(paths(&sim), before);
    }
    // Without a NAT it is like any other.
    let payloads = [notify(NotifyType::UpdateSaAddresses, &[]), notify(NotifyType::NoNatsAllowed, &ends([203, 0, 113, 9]))];
    let all = counted(&sim);
    hand.send(&mut sim, ExchangeType::Informational, &payloads);
    assert_eq!(counted(&sim), all);
    assert_ne!(hand.source, own);
    assert!(hand.read(&mut sim).iter().any(|(header, _)| !header.flags.response), "host 0 looks for us there");
}

/// Nobody is sent into his own tunnel.
#[test]
fn case_103_addresses_inside_the_overlay() {
    let mut sim = alone(Proof::Psk);
    let mut hand = mobile_hand(&mut sim);
    let before = paths(&sim);
    hand.source = "10.42.1.7:4500".parse().expect("an address");
    let update = hand.next(ExchangeType::Informational, &[notify(NotifyType::UpdateSaAddresses, &[])]);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "an inner address", |sim| hand.inject(sim, &update));
    let (_, answer) = hand.read(&mut sim).pop().expect("an answer");
    assert_eq!(errors(&answer), [NotifyType::UnacceptableAddresses]);
    assert_eq!(paths(&sim), before);
}

#[test]
fn case_104_a_request_that_is_sent_again_from_elsewhere_moves_nothing() {
    let mut sim = alone(Proof::Psk);
    let mut hand = mobile_hand(&mut sim);
    let before = paths(&sim);
    let update = hand.next(ExchangeType::Informational, &[notify(NotifyType::UpdateSaAddresses, &[])]);
    hand.inject(&mut sim, &update);
    sent(&mut sim);
    for _ in 0..100 {
        let elsewhere = ELSEWHERE.parse().expect("an address");
        sim.inject(0, elsewhere, Transport::Natt, &update);
        let answers = sent(&mut sim);
        assert_eq!(answers.len(), 1, "the same answer, and no question");
    }
    assert_eq!(paths(&sim), before);
}
