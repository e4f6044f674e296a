//! Bad inputs that ask for what is not spoken here, or say what nobody asked for. Numbers are those of the list of bad inputs.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::HOST;
use super::hand::{Greeting, Hand, Snapshot, alone, counted, errors, must_only_count, own_config, sent};
use crate::ike::contents::Contents;
use crate::ike::limits::{COOKIE_EPOCH, HALF_OPEN_LIMIT};
use crate::ike::simulator::{Proof, Simulator};
use crate::model::{DropReason, Transport};
use crate::wire::ike::{ExchangeType, KeyExchangePayload, Message, Notify, NotifyType, Payload, Transform, TransformType};

fn notify(number: u16, data: impl Into<Bytes>) -> Payload {
    Payload::Notify(Notify::new(NotifyType::from_value(number), data))
}

fn answer(sim: &mut Simulator) -> Contents {
    let octets = sent(sim).pop().expect("host 0 answers");
    Contents::of(Message::parse(&octets).expect("it parses").payloads)
}

/// MODP groups are not spoken, so no value of theirs is ever computed with.
#[test]
fn case_47_modp_groups_and_their_values() {
    for group in [1, 2, 5, 14, 15, 16, 17, 18, 22, 23, 24] {
        for (octet, length) in [(0, 256), (1, 256), (0xff, 256), (0xff, 255), (0, 1), (0, 0), (0xff, 1024)] {
            let mut sim = alone(Proof::Psk);
            let mut greeting = Greeting::new(1);
            let Payload::SecurityAssociation(proposals) = &mut greeting.payloads[0] else { panic!("SA comes first") };
            for proposal in proposals {
                proposal.transforms.retain(|transform| transform.kind != TransformType::KeyExchange);
                let kind = TransformType::KeyExchange;
                proposal.transforms.push(Transform { kind, id: group, key_length: None, unusable: false });
            }
            let value = Bytes::from(vec![octet; length]);
            greeting.payloads[1] = Payload::KeyExchange(KeyExchangePayload { group, value });
            let before = Snapshot::of(&sim);
            sim.inject(0, super::hand::source(), Transport::Natt, &greeting.message());
            let answers = sent(&mut sim);
            let refusal = answers.last().map(|octets| Contents::of(Message::parse(octets).expect("it parses").payloads));
            // A value of no octets is no KE payload, and needs no answer.
            assert!(refusal.is_none_or(|refusal| errors(&refusal) == [NotifyType::NoProposalChosen]), "group {group}");
            assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 1), "group {group}, {length} octets");
        }
    }
}

/// An address that nobody else uses.
fn stranger(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + number), 4500).into()
}

#[test]
fn case_51_cookies_of_others() {
    let mut sim = alone(Proof::Psk);
    for number in 0..HALF_OPEN_LIMIT as u32 {
        sim.inject(0, stranger(number), Transport::Natt, &Greeting::new(u64::from(number)).message());
    }
    sent(&mut sim);
    let greeting = Greeting::new(5000);
    let (mine, others) = (stranger(500), stranger(501));
    let full = sim.hosts[0].endpoint.ike_sa_count();
    sim.inject(0, mine, Transport::Natt, &greeting.message());
    let cookie = answer(&mut sim).notify(NotifyType::Cookie).expect("a cookie").clone();
    assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (full, 1), "no state before it comes back");
    let with = |greeting: &Greeting, place: usize, cookie: &Notify| {
        let mut payloads = greeting.payloads.clone();
        payloads.insert(place, Payload::Notify(cookie.clone()));
        Message::emit_clear(&greeting.header(), &payloads)
    };
    // From another address, with another nonce, under another SPI, damaged, cut: as if there were none.
    let mut damaged = cookie.clone();
    damaged.data = damaged.data.iter().map(|octet| octet ^ 1).collect::<Vec<u8>>().into();
    let cut = Notify { data: cookie.data.slice(1..), ..cookie.clone() };
    let attempts = [
        (others, with(&greeting, 0, &cookie)),
        (mine, with(&Greeting::new(5001), 0, &cookie)),
        (mine, with(&greeting, 0, &damaged)),
        (mine, with(&greeting, 0, &cut)),
    ];
    for (from, octets) in attempts {
        let before = counted(&sim);
        sim.inject(0, from, Transport::Natt, &octets);
        assert!(answer(&mut sim).notify(NotifyType::Cookie).is_some());
        assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (full, before + 1));
    }
    // Of no octets, of one too many, and one that was good two minutes ago.
    for length in [0, 65] {
        let before = counted(&sim);
        sim.inject(0, mine, Transport::Natt, &with(&greeting, 0, &Notify::new(NotifyType::Cookie, vec![1; length])));
        assert!(answer(&mut sim).notify(NotifyType::Cookie).is_some(), "{length} octets");
        assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), counted(&sim)), (full, before + 1));
    }
    // As second payload it is as good as in front: order does not matter to a receiver (RFC 7296 §2.5).
    sim.inject(0, mine, Transport::Natt, &with(&greeting, 1, &cookie));
    assert!(answer(&mut sim).nonce.is_some());
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), full + 1);
    // Two minutes later it is stale.
    sim.run_for(2 * COOKIE_EPOCH);
    for number in 0..HALF_OPEN_LIMIT as u32 {
        sim.inject(0, stranger(number), Transport::Natt, &Greeting::new(u64::from(number)).message());
    }
    sent(&mut sim);
    sim.inject(0, mine, Transport::Natt, &with(&greeting, 0, &cookie));
    let fresh = answer(&mut sim).notify(NotifyType::Cookie).expect("another one").clone();
    assert_ne!(fresh, cookie);
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), full);
}

/// Postquantum preshared keys (RFC 8784) are not spoken: who can do without gets the ordinary proof.
#[test]
fn case_82_ppk_offered_and_asked_for() {
    for id in [vec![], vec![2; 1], vec![1, 2, 3, 4], vec![0xff; 300]] {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(5);
        greeting.payloads.push(notify(16435, vec![]));
        let mut hand = Hand::greet_with(&mut sim, 5, greeting);
        let init = Contents::of(Message::parse(&hand.record.response).expect("valid").payloads);
        assert!(init.notify(NotifyType::from_value(16435)).is_none(), "we do not say that we speak it");
        let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
        payloads.extend([notify(16436, id), notify(16437, vec![1; 32])]);
        let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
        assert!(answer.auth.is_some() && answer.notify(NotifyType::from_value(16436)).is_none());
        assert_eq!((sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), counted(&sim)), (1, 0));
    }
}

/// SUPPORTED_AUTH_METHODS (RFC 9593), in whatever form: it announces, and binds nobody.
#[test]
fn case_83_supported_auth_methods_of_any_form() {
    for data in
        [vec![], vec![0], vec![1], vec![2, 2], vec![3, 2, 0], vec![255, 14, 0], vec![4, 14, 0, 0, 9], vec![0xff; 1000]]
    {
        let mut sim = alone(Proof::Psk);
        let mut greeting = Greeting::new(5);
        greeting.payloads.extend([notify(16443, data.clone()), notify(16443, data.clone())]);
        let mut hand = Hand::greet_with(&mut sim, 5, greeting);
        let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
        payloads.push(notify(16443, data));
        assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some());
        assert_eq!((sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), counted(&sim)), (1, 0));
    }
}

/// AUTH_LIFETIME, QCD_TOKEN, message ID and replay counter synchronisation: none was negotiated.
#[test]
fn case_95_lifetimes_tokens_and_synchronisation_that_nobody_asked_for() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 5);
    let before = Snapshot::of(&sim);
    for (number, data) in [
        (16403, vec![0, 0, 0, 0]),
        (16403, vec![]),
        (16419, vec![7; 64]),
        (16422, vec![0; 12]),
        (16422, vec![0xff; 12]),
        (16423, vec![0xff; 8]),
    ] {
        let answer = hand.ask(&mut sim, ExchangeType::Informational, &[notify(number, data)]);
        assert!(answer.notifies.is_empty() && answer.deletes.is_empty(), "{number}");
    }
    assert_eq!((Snapshot::of(&sim), counted(&sim)), (before, 0));
    // With message ID 0, as RFC 6311 has it, it is nothing but too old.
    for data in [vec![0; 12], vec![0xff; 12]] {
        let header = hand.header(ExchangeType::Informational, 0, false);
        let message = hand.seal(&header, &[notify(16422, data)]);
        must_only_count(&mut sim, DropReason::IkeMessageId, "synchronisation", |sim| hand.inject(sim, &message));
        must_only_count(&mut sim, DropReason::IkeMessageId, "again", |sim| hand.inject(sim, &message));
    }
    assert!(sent(&mut sim).is_empty());
    assert!(hand.ask(&mut sim, ExchangeType::Informational, &[]).notifies.is_empty(), "the counters are as they were");
}
