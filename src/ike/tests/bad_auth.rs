//! Bad inputs in IKE_AUTH: from somebody who did the key exchange and has not proved who it is.

use bytes::Bytes;

use super::HOST;
use super::hand::{Hand, alone, counted, errors, must_only_count, own_config};
use crate::ike::auth::id_body;
use crate::ike::simulator::{Proof, Simulator, peer_config};
use crate::ike::{CloseReason, Command, Event, LocalAuth, PeerAuth, PeerConfig};
use crate::model::{DropReason, PeerId, Secret};
use crate::wire::ike::{Auth, AuthMethod, Certificate, ExchangeType, Identification, Notify, NotifyType, Payload};

/// What host 0 said, and the sentence in its log.
struct Verdict {
    errors: Vec<NotifyType>,
    sentence: String,
}

/// Sends IKE_AUTH with these payloads. Whatever happens, nobody is up afterwards.
fn refuse(sim: &mut Simulator, what: &str, payloads: impl FnOnce(&Hand) -> Vec<Payload>) -> Verdict {
    let mut hand = Hand::greet(sim, 5);
    let payloads = payloads(&hand);
    let events = sim.hosts[0].events.len();
    let answer = hand.ask(sim, ExchangeType::IkeAuth, &payloads);
    assert!(answer.auth.is_none() && answer.id_r.is_none(), "{what}: we prove nothing to who proves nothing");
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), "{what}");
    assert!(sim.hosts[0].plane.installs == 0 && sim.hosts[0].plane.reserved.is_empty(), "{what}");
    let sentences: Vec<String> = sim.hosts[0].events[events..]
        .iter()
        .map(|event| match event {
            Event::Refused { reason: CloseReason::WeRefused(sentence), .. } => sentence.clone(),
            other => panic!("{what}: {other:?}"),
        })
        .collect();
    assert_eq!(sentences.len(), 1, "{what}");
    let drops = sim.hosts[0].endpoint.drops();
    let counts = drops.of(DropReason::IkeUnexpected) + drops.of(DropReason::IkeNoPeer) + drops.of(DropReason::IkeMalformed);
    assert_eq!(counts, 1, "{what}: counted once");
    // A retry under the same IKE SA changes nothing any more.
    let again = hand.next(ExchangeType::IkeAuth, &hand.auth_payloads(&own_config(Proof::Psk)));
    hand.inject(sim, &again);
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty(), "{what}");
    sim.run_for(std::time::Duration::from_secs(20));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0, "{what}: nothing is left");
    Verdict { errors: errors(&answer), sentence: sentences[0].clone() }
}

/// The same, where the wire must not say why.
fn refuse_auth(what: &str, payloads: impl FnOnce(&Hand) -> Vec<Payload>) -> String {
    let verdict = refuse(&mut alone(Proof::Psk), what, payloads);
    assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed], "{what}");
    verdict.sentence
}

/// Good payloads with one replaced.
fn with(hand: &Hand, replacement: Payload) -> Vec<Payload> {
    let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let place = payloads.iter().position(|payload| payload.kind() == replacement.kind()).expect("there is one");
    payloads[place] = replacement;
    payloads
}

/// Good payloads without those of one kind.
fn without(hand: &Hand, kind: u8) -> Vec<Payload> {
    let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
    payloads.retain(|payload| payload.kind() != kind);
    payloads
}

fn id(body: Vec<u8>) -> Identification {
    Identification { body: body.into() }
}

const ID_I: u8 = 35;
const ID_R: u8 = 36;
const AUTH: u8 = 39;

fn psk_config(octets: Vec<u8>) -> PeerConfig {
    let mut config = own_config(Proof::Psk);
    config.local_auth = LocalAuth::Psk(Secret::new(octets.clone()));
    config.remote_auth = PeerAuth::Psk(Secret::new(octets));
    config
}

#[test]
fn case_73_a_wrong_or_empty_key() {
    for key in [b"another key that is also long enough".to_vec(), Vec::new()] {
        let sentence = refuse_auth("wrong key", |hand| hand.auth_payloads(&psk_config(key)));
        assert!(sentence.contains("shared key"), "{sentence}");
    }
    // An empty key on our side proves nothing, even if the peer has the same.
    let mut sim = alone(Proof::Psk);
    let mut ours = peer_config(0, 1, Proof::Psk);
    (ours.local_auth, ours.remote_auth) = (LocalAuth::Psk(Secret::new(vec![])), PeerAuth::Psk(Secret::new(vec![])));
    sim.hosts[0].endpoint.upsert_peer(ours);
    let verdict = refuse(&mut sim, "both empty", |hand| hand.auth_payloads(&psk_config(Vec::new())));
    assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed]);
}

#[test]
fn case_73_keys_of_every_length_work() {
    for length in [1, 63, 64, 65, 127, 128, 129] {
        let mut sim = Simulator::new(1, 2, Proof::Psk);
        let key = || Secret::new(vec![0x5a; length]);
        for (of, peer) in [(0, 1), (1, 0)] {
            let mut config = peer_config(of, peer, Proof::Psk);
            (config.local_auth, config.remote_auth) = (LocalAuth::Psk(key()), PeerAuth::Psk(key()));
            sim.hosts[of].endpoint.upsert_peer(config);
        }
        sim.command(0, Command::Initiate(HOST[1]));
        sim.run_for(std::time::Duration::from_secs(1));
        super::must_be_settled(&sim);
    }
}

#[test]
fn case_74_other_methods() {
    for method in [0, 1, 3, 9, 13, 14, 200] {
        let sentence = refuse_auth("method", |hand| {
            let good = hand.auth_payloads(&own_config(Proof::Psk));
            let auth = good.iter().find_map(|payload| match payload {
                Payload::Auth(auth) => Some(auth.data.clone()),
                _ => None,
            });
            with(hand, Payload::Auth(Auth { method: AuthMethod::from_value(method), data: auth.expect("AUTH") }))
        });
        let number = method.to_string();
        assert!(sentence.contains("proves itself by") && sentence.contains(&number), "{sentence}");
    }
}

#[test]
fn case_74_a_shared_key_where_a_host_key_is_demanded() {
    let mut sim = alone(Proof::HostKeys);
    let verdict = refuse(&mut sim, "downgrade", |hand| hand.auth_payloads(&own_config(Proof::Psk)));
    assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed]);
    assert!(verdict.sentence.contains("digital signature"), "{}", verdict.sentence);
}

#[test]
fn case_75_auth_lengths() {
    for length in [0, 1, 31, 33] {
        refuse_auth("length", |hand| {
            with(hand, Payload::Auth(Auth { method: AuthMethod::SharedKey, data: vec![1; length].into() }))
        });
    }
    refuse_auth("no AUTH, as EAP has it", |hand| without(hand, AUTH));
}

#[test]
fn case_76_identities() {
    refuse_auth("no IDi", |hand| without(hand, ID_I));
    let bodies = [
        vec![2, 0, 0, 0],
        vec![0, 0, 0, 0, 1],
        vec![1, 0, 0, 0, 192, 0, 2, 1, 9],
        vec![5, 0, 0, 0, 1, 2, 3],
        [&[2, 0, 0, 0][..], b"host1\0.example"].concat(),
        vec![9, 0, 0, 0, 0x30, 0xff, 0xff],
        vec![2, 0, 0, 0, 0xff, 0xfe],
        [vec![2, 0, 0, 0], vec![b'a'; 60_000]].concat(),
    ];
    for body in bodies {
        let sentence = refuse_auth("identity", |hand| with(hand, Payload::IdInitiator(id(body))));
        assert!(sentence.len() < 70_000 && !sentence.contains('\0'));
    }
    // Shorter than its four fixed octets: the codec refuses the chain, which is authentic.
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let header = hand.header(ExchangeType::IkeAuth, 1, false);
    let message = hand.seal_octets(&header, ID_I, &[0, 0, 0, 6, 1, 2, 0]);
    hand.inject(&mut sim, &message);
    assert_eq!(errors(&hand.read(&mut sim)[0].1), [NotifyType::InvalidSyntax]);
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeMalformed), 1);
}

#[test]
fn reserved_octets_of_an_identity_are_covered_by_auth() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let config = own_config(Proof::Psk);
    let mut body = id_body(&config.local_id);
    body[1..4].copy_from_slice(&[1, 2, 3]);
    // The AUTH of a peer that sends them so.
    let LocalAuth::Psk(_) = &config.local_auth else { panic!("a shared key") };
    let auth = crate::ike::auth::sign(
        crate::crypto::Prf(hand.suite.prf),
        &config.local_auth,
        crate::ike::auth::SignedOctets {
            message: &hand.record.request,
            peer_message: None,
            nonce: &hand.record.nonce_r,
            sk_p: &hand.keys.sk_pi,
            id_body: &body,
            int_auth: &[],
        },
    );
    let mut payloads = with(&hand, Payload::IdInitiator(id(body)));
    let place = payloads.iter().position(|payload| payload.kind() == AUTH).expect("AUTH");
    payloads[place] = Payload::Auth(auth);
    assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some());
}

#[test]
fn case_77_whom_it_wants_to_reach() {
    let wanted = |name: &str| Payload::IdResponder(id(id_body(&PeerId::from_text(name))));
    let sentence = refuse_auth("somebody else", |hand| with(hand, wanted("host7")));
    assert!(sentence.contains("host7"), "{sentence}");
    refuse_auth("itself", |hand| with(hand, wanted("host1")));
    // Without IDr anybody will do.
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = without(&hand, ID_R);
    assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some());
}

#[test]
fn case_78_our_own_identity_comes_back() {
    let mut reflected = own_config(Proof::Psk);
    reflected.local_id = PeerId::from_text("host0");
    let sentence = refuse_auth("reflection", |hand| hand.auth_payloads(&reflected));
    assert!(sentence.contains("reflection"), "{sentence}");
}

#[test]
fn case_79_a_good_proof_for_another_identity() {
    // Host 2 is configured, and host 1 claims to be it with its own key.
    let mut sim = Simulator::new(1, 3, Proof::Psk);
    sim.by_hand = true;
    let mut impostor = own_config(Proof::Psk);
    impostor.local_id = PeerId::from_text("host2");
    let verdict = refuse(&mut sim, "impostor", |hand| hand.auth_payloads(&impostor));
    assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed]);
    // The same with host keys.
    let mut sim = Simulator::new(1, 3, Proof::HostKeys);
    sim.by_hand = true;
    let mut impostor = own_config(Proof::HostKeys);
    impostor.local_id = PeerId::from_text("host2");
    let verdict = refuse(&mut sim, "impostor", |hand| hand.auth_payloads(&impostor));
    assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed]);
}

#[test]
fn somebody_who_is_not_configured() {
    let mut stranger = own_config(Proof::Psk);
    stranger.local_id = PeerId::from_text("mallory\u{1b}[2J");
    let sentence = refuse_auth("stranger", |hand| hand.auth_payloads(&stranger));
    assert!(sentence.contains("no peer here has that identity") && !sentence.contains('\u{1b}'), "{sentence}");
}

#[test]
fn case_80_signatures_that_are_none() {
    for damage in [0usize, 3, 8, 71] {
        let mut sim = alone(Proof::HostKeys);
        let verdict = refuse(&mut sim, "signature", |hand| {
            let mut payloads = hand.auth_payloads(&own_config(Proof::HostKeys));
            for payload in &mut payloads {
                if let Payload::Auth(auth) = payload {
                    let mut data = auth.data.to_vec();
                    data[damage] ^= 0x80;
                    auth.data = data.into();
                }
            }
            payloads
        });
        assert_eq!(verdict.errors, [NotifyType::AuthenticationFailed]);
    }
}

#[test]
fn case_81_certificates_are_not_looked_at() {
    let certificate = |encoding, length| Payload::Certificate(Certificate { encoding, data: vec![0x30; length].into() });
    let url = Certificate { encoding: 12, data: b"0123456789abcdefghijhttp://192.0.2.66/cert.der".to_vec().into() };
    let few = [vec![certificate(4, 60_000)], vec![certificate(15, 44); 50], vec![Payload::Certificate(url)]];
    for certificates in few {
        let mut sim = alone(Proof::HostKeys);
        let mut hand = Hand::greet(&mut sim, 5);
        let mut payloads = certificates;
        payloads.extend(hand.auth_payloads(&own_config(Proof::HostKeys)));
        assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some(), "the pinned key decides");
        assert_eq!((sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), counted(&sim)), (1, 0));
        assert!(sim.waiting.iter().all(|datagram| datagram.path.remote.ip() == hand.source.ip()), "nobody else is asked");
    }
    // Two hundred are more payloads than any message has: authentic in the sense of the key exchange, and the end of this one.
    let mut sim = alone(Proof::HostKeys);
    let mut hand = Hand::greet(&mut sim, 5);
    let mut payloads = vec![certificate(4, 100); 200];
    payloads.extend(hand.auth_payloads(&own_config(Proof::HostKeys)));
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert_eq!((errors(&answer), counted(&sim)), (vec![NotifyType::InvalidSyntax], 1));
    assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
}

#[test]
fn a_configuration_payload_is_skipped_and_eap_refused() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
    payloads.push(Payload::Unknown { kind: 47, critical: false });
    assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some());
    let sentence = refuse_auth("EAP", |hand| without(hand, AUTH));
    assert!(sentence.contains("EAP"), "{sentence}");
}

#[test]
fn childless() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.proof_payloads(&own_config(Proof::Psk));
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert!(answer.auth.is_some() && answer.proposals.is_none() && errors(&answer).is_empty());
    assert_eq!((sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), sim.hosts[0].plane.installs), (1, 0));
}

#[test]
fn a_forged_auth_leaves_the_half_open_state_alone() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let good = hand.next(ExchangeType::IkeAuth, &payloads);
    let mut forged = good.to_vec();
    *forged.last_mut().expect("octets") ^= 1;
    must_only_count(&mut sim, DropReason::IkeBadIcv, "forged", |sim| hand.inject(sim, &forged));
    hand.inject(&mut sim, &good);
    sim.finish_installs();
    assert_eq!(hand.read(&mut sim).len(), 1);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
}

#[test]
fn an_initiator_tells_a_responder_that_it_does_not_believe() {
    // Host 1 answers with another key than host 0 expects: host 0 must not come up, and host 1 must not keep what it has.
    let mut sim = Simulator::new(1, 2, Proof::HostKeys);
    let mut config = peer_config(0, 1, Proof::HostKeys);
    config.remote_auth = PeerAuth::HostKeys(vec![crate::crypto::SigningKey::from_seed(&[77; 32]).verifying_key()]);
    sim.hosts[0].endpoint.upsert_peer(config);
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(std::time::Duration::from_secs(2));
    for host in 0..2 {
        assert!(sim.hosts[host].endpoint.ike_sas(HOST[1 - host]).is_empty());
        assert!(sim.hosts[host].plane.installed.is_empty() && sim.hosts[host].plane.reserved.is_empty());
    }
    assert!(sim.hosts[0].complaints().iter().any(|line| line.contains("public key")), "{:?}", sim.hosts[0].complaints());
    let notify = Notify::new(NotifyType::AuthenticationFailed, Bytes::new()).kind.name().into_owned();
    let told = sim.hosts[1].events.iter().any(|event| match event {
        Event::IkeDown { reason: CloseReason::PeerRefused { notify: name, .. }, .. } => *name == notify,
        Event::IkeDown { reason: CloseReason::PeerDeleted, .. } => true,
        _ => false,
    });
    assert!(told);
}

/// Postquantum preshared keys (RFC 8784) are not spoken here: what is said about them changes nothing, least of all who is let in.
#[test]
fn case_82_notifies_about_ppks_prove_nothing() {
    const USE_PPK: u16 = 16435;
    const PPK_IDENTITY: u16 = 16436;
    const NO_PPK_AUTH: u16 = 16437;
    let notify = |kind, data: Bytes| Payload::Notify(Notify::new(NotifyType::from_value(kind), data));
    let good_auth = |hand: &Hand| {
        let payloads = hand.auth_payloads(&own_config(Proof::Psk));
        payloads.into_iter().find_map(|payload| match payload {
            Payload::Auth(auth) => Some(auth.data),
            _ => None,
        })
    };
    // The good AUTH stands where a peer that insists on a PPK puts its second one.
    refuse_auth("NO_PPK_AUTH", |hand| {
        let good = good_auth(hand).expect("AUTH");
        let bad = Auth { method: AuthMethod::SharedKey, data: vec![1; good.len()].into() };
        let mut payloads = with(hand, Payload::Auth(bad));
        payloads.push(notify(PPK_IDENTITY, Bytes::from_static(b"\x02nobody's")));
        payloads.push(notify(NO_PPK_AUTH, good));
        payloads
    });
    for said in [(USE_PPK, &b""[..]), (PPK_IDENTITY, b"\x02nobody's"), (PPK_IDENTITY, b""), (NO_PPK_AUTH, &[7; 300])] {
        let mut sim = alone(Proof::Psk);
        let mut hand = Hand::greet(&mut sim, 5);
        let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
        payloads.insert(0, notify(said.0, Bytes::from_static(said.1)));
        let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
        assert!(answer.auth.is_some() && answer.notify(NotifyType::from_value(PPK_IDENTITY)).is_none(), "{said:?}");
        assert_eq!((sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), counted(&sim)), (1, 0), "{said:?}");
    }
}
