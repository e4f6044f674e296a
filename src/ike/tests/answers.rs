//! Case 55 of the list of bad inputs: more than one answer to our IKE_SA_INIT. Only AUTH tells which is the peer's.

use bytes::Bytes;
use std::time::Duration;

use super::hand::{alone, counted, must_only_count, sent, ups};
use super::{HOST, must_be_settled};
use crate::crypto;
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::keymat;
use crate::ike::limits::{CLOSED_LINGER, GIVE_UP_DELETE, MAX_ANSWERS};
use crate::ike::proposals::choose_ike;
use crate::ike::simulator::{Content, Proof, Simulator, address};
use crate::ike::{CloseReason, Command, Event};
use crate::model::{AeadAlgorithm, DropReason, KeGroup, SeededRng, Transport};
use crate::wire::ike::{Auth, AuthMethod, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload};

/// Somebody between the hosts who saw our IKE_SA_INIT and answers it first. It has keys, but no proof.
struct Forger {
    header: Header,
    channel: Channel,
}

impl Forger {
    /// Answers the request without an additional key exchange, under this SPI.
    fn answer(sim: &mut Simulator, request: &[u8], spi: u64) -> Self {
        let request = Message::parse(request).expect("our own");
        let header = request.header;
        let contents = Contents::of(request.payloads);
        let chosen = choose_ike(&AeadAlgorithm::ALL, &contents.proposals.expect("SA"), Some(31), false).expect("ours");
        let half = crypto::key_exchange(KeGroup::X25519, &mut SeededRng::new(spi));
        let (nonce_i, nonce_r) = (contents.nonce.expect("Ni"), Bytes::from(vec![spi as u8; 32]));
        let payloads = [
            Payload::SecurityAssociation(vec![chosen.answer]),
            key_exchange_payload(half.as_ref()),
            Payload::Nonce(nonce_r.clone()),
        ];
        let flags = Flags { initiator: false, version: false, response: true };
        let header = Header { responder_spi: spi, flags, ..header };
        sim.inject(0, (address(1), 500).into(), Transport::Plain, &Message::emit_clear(&header, &payloads));
        let secret = half.agree(&contents.key_exchange.expect("KE").value).expect("an honest value");
        let keys = keymat::initial(chosen.suite, &secret, &nonce_i, &nonce_r, header.initiator_spi, spi);
        Self { header, channel: Channel::new(chosen.suite.aead, &keys, false) }
    }

    /// Answers the IKE_AUTH that came of it.
    fn answer_auth(&mut self, sim: &mut Simulator, payloads: &[Payload]) {
        let header = Header { exchange: ExchangeType::IkeAuth, message_id: 1, ..self.header };
        let message = self.channel.seal(&header, payloads);
        sim.inject(0, (address(1), 4500).into(), Transport::Natt, &message);
    }
}

/// Two hosts; the IKE_SA_INIT of host 0 is there, and the answer of host 1 is under way.
fn answered() -> (Simulator, Vec<u8>) {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.by_hand = true;
    sim.command(0, Command::Initiate(HOST[1]));
    let Content::Ike(request) = &sim.waiting[0].content else { panic!("IKE_SA_INIT") };
    let request = request.to_vec();
    sim.deliver(0);
    (sim, request)
}

/// What waits of host 1 is delivered, and everything that follows; what goes to forgers is lost.
fn let_the_peer_speak(sim: &mut Simulator) {
    sim.by_hand = false;
    while !sim.waiting.is_empty() {
        sim.deliver(0);
    }
    sim.run_for(Duration::from_secs(5));
}

/// The tunnel is up, once, and nothing of the forgeries is left.
fn must_be_up_once(sim: &Simulator) {
    must_be_settled(sim);
    assert_eq!(ups(sim), 1);
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1);
    assert_eq!(sim.hosts[0].endpoint.shared.spi_owners.len(), 1, "the SPIs of the other answers are given back");
    let failed = |event: &Event| matches!(event, Event::InitiateFailed { .. });
    assert!(!sim.hosts[0].events.iter().any(failed), "{:?}", sim.hosts[0].complaints());
    if let Err(why) = sim.tidy() {
        panic!("{why}");
    }
}

fn notify(kind: NotifyType, data: impl Into<Bytes>) -> Payload {
    Payload::Notify(Notify::new(kind, data))
}

#[test]
fn case_55_the_real_answer_comes_second() {
    for forged in 1..MAX_ANSWERS as u64 {
        let (mut sim, request) = answered();
        let answer = sim.waiting.remove(0);
        for spi in 1..=forged {
            Forger::answer(&mut sim, &request, spi);
            assert_eq!(sent(&mut sim).len(), 1, "each is followed with IKE_AUTH");
        }
        assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (1, 0));
        sim.waiting.push(answer);
        let_the_peer_speak(&mut sim);
        must_be_up_once(&sim);
    }
}

#[test]
fn case_55_the_forger_refuses_before_the_real_answer_is_there() {
    let (proof, syntax) = (NotifyType::AuthenticationFailed, NotifyType::InvalidSyntax);
    let wrong = Payload::Auth(Auth { method: AuthMethod::SharedKey, data: vec![1; 32].into() });
    for payloads in [vec![notify(proof, vec![])], vec![notify(syntax, vec![])], vec![wrong], vec![]] {
        let (mut sim, request) = answered();
        let answer = sim.waiting.remove(0);
        let mut forger = Forger::answer(&mut sim, &request, 7);
        sent(&mut sim);
        forger.answer_auth(&mut sim, &payloads);
        sent(&mut sim);
        assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 1, "the real answer may still come");
        sim.waiting.push(answer);
        let_the_peer_speak(&mut sim);
        must_be_up_once(&sim);
    }
}

#[test]
fn case_55_a_forger_with_the_peers_spi() {
    let (mut sim, request) = answered();
    let Content::Ike(octets) = &sim.waiting[0].content else { panic!("IKE_SA_INIT") };
    let spi = Message::parse(octets).expect("the answer").header.responder_spi;
    let answer = sim.waiting.remove(0);
    Forger::answer(&mut sim, &request, spi);
    sent(&mut sim);
    sim.waiting.push(answer);
    let_the_peer_speak(&mut sim);
    must_be_up_once(&sim);
}

#[test]
fn case_55_the_same_answer_twice_is_one() {
    let (mut sim, _) = answered();
    let answer = sim.waiting.remove(0);
    sim.deliver_again(&answer);
    sent(&mut sim);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "again", |sim| sim.deliver_again(&answer));
    assert!(sent(&mut sim).is_empty());
}

/// A copy of the answer that says something more leads to the same keys: it must not be followed beside it.
#[test]
fn case_55_an_altered_copy_is_not_followed_under_the_same_keys() {
    let (mut sim, _) = answered();
    let answer = sim.waiting.remove(0);
    let Content::Ike(octets) = &answer.content else { panic!("IKE_SA_INIT") };
    let mut message = Message::parse(octets).expect("the answer");
    message.payloads.push(notify(NotifyType::Other(40000), vec![1]));
    let altered = Message::emit_clear(&message.header, &message.payloads);
    sim.deliver_again(&answer);
    assert!(!sent(&mut sim).is_empty());
    must_only_count(&mut sim, DropReason::IkeUnexpected, "a copy", |sim| {
        sim.inject(0, (address(1), 500).into(), Transport::Plain, &altered);
    });
    assert!(sent(&mut sim).is_empty());
}

#[test]
fn case_55_a_few_answers_are_followed_and_no_more() {
    let (mut sim, request) = answered();
    let answer = sim.waiting.remove(0);
    let few = MAX_ANSWERS as u64;
    for spi in 1..=few {
        Forger::answer(&mut sim, &request, spi);
    }
    assert_eq!((sent(&mut sim).len(), sim.hosts[0].endpoint.shared.spi_owners.len()), (MAX_ANSWERS, MAX_ANSWERS));
    must_only_count(&mut sim, DropReason::IkeUnexpected, "one more", |sim| {
        Forger::answer(sim, &request, few + 1);
    });
    must_only_count(&mut sim, DropReason::IkeUnexpected, "the real one", |sim| sim.deliver_again(&answer));
    assert!(sent(&mut sim).is_empty());
    // It ends in time, says so once to us and to who answered, and holds nothing then.
    sim.run_for(Duration::from_secs(31));
    let failed = |event: &&Event| matches!(event, Event::InitiateFailed { .. });
    assert_eq!(sim.hosts[0].events.iter().filter(failed).count(), 1);
    sim.run_for(GIVE_UP_DELETE + CLOSED_LINGER);
    assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), sim.hosts[0].endpoint.shared.spi_owners.len()), (0, 0));
}

#[test]
fn case_55_a_refusal_is_told_when_no_better_answer_came() {
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let request = sent(&mut sim).pop().expect("IKE_SA_INIT");
    let mut forger = Forger::answer(&mut sim, &request, 7);
    sent(&mut sim);
    forger.answer_auth(&mut sim, &[notify(NotifyType::AuthenticationFailed, vec![])]);
    let reason = CloseReason::PeerRefused { notify: "AUTHENTICATION_FAILED".to_owned(), authenticated: true };
    let trouble = Event::Trouble { peer: HOST[1], reason: reason.clone() };
    let failed = Event::InitiateFailed { peer: HOST[1], reason };
    assert!(sim.hosts[0].events.contains(&trouble), "the reason is known at once");
    assert!(!sim.hosts[0].events.contains(&failed));
    sim.run_for(Duration::from_millis(2100));
    assert!(sim.hosts[0].events.contains(&failed));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
    assert!(sent(&mut sim).is_empty(), "nothing is sent meanwhile");
}

#[test]
fn case_55_cookies_and_groups_are_not_followed_behind_an_answer() {
    let mut sim = alone(Proof::Psk);
    sim.command(0, Command::Initiate(HOST[1]));
    let request = sent(&mut sim).pop().expect("IKE_SA_INIT");
    let forger = Forger::answer(&mut sim, &request, 7);
    sent(&mut sim);
    for (kind, data) in [(NotifyType::Cookie, vec![1; 8]), (NotifyType::InvalidKePayload, vec![0, 19])] {
        let octets = Message::emit_clear(&Header { responder_spi: 0, ..forger.header }, &[notify(kind, data)]);
        must_only_count(&mut sim, DropReason::IkeUnexpected, "asks again", |sim| {
            sim.inject(0, (address(1), 500).into(), Transport::Plain, &octets);
        });
        assert!(sent(&mut sim).is_empty());
    }
}

#[test]
fn case_53_after_a_forged_invalid_ke_the_first_request_is_still_answered() {
    let (mut sim, request) = answered();
    let answer = sim.waiting.remove(0);
    let header = Message::parse(&request).expect("our own").header;
    let flags = Flags { initiator: false, version: false, response: true };
    let forged = Message::emit_clear(&Header { flags, ..header }, &[notify(NotifyType::InvalidKePayload, vec![0, 19])]);
    sim.inject(0, (address(1), 500).into(), Transport::Plain, &forged);
    assert_eq!(sent(&mut sim).len(), 1, "asked again");
    sim.waiting.push(answer);
    let_the_peer_speak(&mut sim);
    must_be_up_once(&sim);
}

#[test]
fn case_45_a_value_of_low_order_does_not_end_the_initiation() {
    let (mut sim, _) = answered();
    let answer = sim.waiting.remove(0);
    let Content::Ike(octets) = &answer.content else { panic!("IKE_SA_INIT") };
    let mut message = Message::parse(octets).expect("the answer");
    for payload in &mut message.payloads {
        if let Payload::KeyExchange(value) = payload {
            value.value = vec![0; 32].into();
        }
    }
    let forged = Message::emit_clear(&message.header, &message.payloads);
    must_only_count(&mut sim, DropReason::IkeUnexpected, "low order", |sim| {
        sim.inject(0, (address(1), 500).into(), Transport::Plain, &forged);
    });
    sim.waiting.push(answer);
    let_the_peer_speak(&mut sim);
    must_be_up_once(&sim);
}
