//! Certificates in whole exchanges: who is let in by them, and what is said of those who are not.

use std::sync::Arc;
use std::time::Duration;

use rcgen::CertificateParams;

use super::hand::{Hand, alone, errors};
use super::{HOST, must_be_settled};
use crate::crypto::x509::Credential;
use crate::crypto::x509::authority::{Authority, KINDS, NOW, params};
use crate::ike::simulator::{Proof, Simulator, peer_config};
use crate::ike::{Authorities, CloseReason, Command, Event, LocalAuth, PeerAuth, PeerConfig, ProvedBy};
use crate::model::{DropReason, PeerId};
use crate::wire::ike::{Auth, AuthMethod, Certificate, ExchangeType, NotifyType, Payload};

const X509_SIGNATURE: u8 = 4;

/// What host `of` knows about `peer`: certificates of this authority, and its own.
fn certified(of: usize, peer: usize, root: &Authority, credential: &Credential) -> PeerConfig {
    let mut config = peer_config(of, peer, Proof::Psk);
    config.local_auth = LocalAuth::Certificate(credential.clone());
    config.remote_auth = PeerAuth::Certificate(Authorities { anchors: Arc::new(root.anchors()), wall_clock: || NOW });
    config
}

#[test]
fn certified_pairs_come_up() {
    for (seed, kind) in (1..).zip(KINDS) {
        for caller in [0, 1] {
            let root = Authority::new("root", "p384");
            let credentials = [root.credential("host0", kind), root.credential("host1", "p256")];
            let mut sim = Simulator::new(seed, 2, Proof::Psk);
            for (of, peer) in [(0, 1), (1, 0)] {
                sim.hosts[of].endpoint.upsert_peer(certified(of, peer, &root, &credentials[of]));
            }
            sim.command(caller, Command::Initiate(HOST[1 - caller]));
            sim.run_for(Duration::from_secs(1));
            must_be_settled(&sim);
            let summary = &sim.hosts[1].endpoint.ike_sas(HOST[0])[0];
            assert_eq!(summary.remote_proof, ProvedBy::Certificate(credentials[0].describe().to_owned()), "{kind}");
            assert_eq!(summary.local_proof, ProvedBy::Certificate(credentials[1].describe().to_owned()));
        }
    }
}

#[test]
fn distinguished_names_are_identities() {
    let root = Authority::new("root", "p256");
    let credentials = ["host0", "host1"].map(|name| root.credential(name, "p256"));
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    for (of, peer) in [(0, 1), (1, 0)] {
        let mut config = certified(of, peer, &root, &credentials[of]);
        config.local_id = PeerId::from_text(&format!("O=Example, CN=host{of}"));
        config.remote_id = PeerId::from_text(&format!("O=Example, CN=host{peer}"));
        sim.hosts[of].endpoint.upsert_peer(config);
    }
    sim.command(0, Command::Initiate(HOST[1]));
    sim.run_for(Duration::from_secs(1));
    must_be_settled(&sim);
}

/// What host 0 says to IKE_AUTH with what host 1 shows, which has this certificate.
fn said_to(root: &Authority, credential: &Credential, change: impl FnOnce(&mut Vec<Payload>)) -> Result<(), String> {
    let mut sim = alone(Proof::Psk);
    let ours = root.credential("host0", "p256");
    sim.hosts[0].endpoint.upsert_peer(certified(0, 1, root, &ours));
    let mut hand = Hand::greet(&mut sim, 5);
    let mut payloads = hand.auth_payloads(&certified(1, 0, root, credential));
    change(&mut payloads);
    let from = sim.hosts[0].events.len();
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    if answer.auth.is_some() {
        return Ok(());
    }
    assert_eq!(errors(&answer), [NotifyType::AuthenticationFailed]);
    assert!(sim.hosts[0].plane.reserved.is_empty() && sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeUnexpected), 1);
    match &sim.hosts[0].events[from..] {
        [Event::Refused { reason: CloseReason::WeRefused(sentence), .. }] => Err(sentence.clone()),
        other => panic!("{other:?}"),
    }
}

fn certificate(encoding: u8, data: Vec<u8>) -> Payload {
    Payload::Certificate(Certificate { encoding, data: data.into() })
}

fn remove_certificates(payloads: &mut Vec<Payload>) {
    payloads.retain(|payload| !matches!(payload, Payload::Certificate(_)));
}

#[test]
fn case_81_certificates_are_bounded_and_nothing_is_fetched() {
    let root = Authority::new("root", "p256");
    let host1 = root.credential("host1", "p256");
    let own = host1.chain().next().expect("a certificate").to_vec();
    assert_eq!(said_to(&root, &host1, |_| {}), Ok(()));
    let said = |certificates: Vec<Payload>| {
        said_to(&root, &host1, |payloads| {
            remove_certificates(payloads);
            payloads.splice(0..0, certificates);
        })
    };
    let url = [&[7; 20][..], b"http://192.0.2.9/certificate"].concat();
    // What is not of our encoding is left alone.
    assert_eq!(
        said(vec![certificate(12, url.clone()), certificate(X509_SIGNATURE, own.clone()), certificate(1, vec![9])]),
        Ok(())
    );
    for (certificates, why) in [
        (vec![], "the peer sent no X.509 certificate"),
        (vec![certificate(1, own.clone()), certificate(200, own.clone())], "the peer sent no X.509 certificate"),
        (vec![certificate(12, url.clone())], "nothing is fetched here"),
        (vec![certificate(13, url)], "nothing is fetched here"),
        (
            vec![certificate(X509_SIGNATURE, own.clone()); 50],
            "expected at most 5 certificates of 16384 octets in all, got 50",
        ),
        (vec![certificate(X509_SIGNATURE, vec![0x30; 60_000])], "expected at most 5 certificates"),
        (vec![certificate(X509_SIGNATURE, vec![])], "cannot be read"),
        (vec![certificate(X509_SIGNATURE, own[1..].to_vec())], "cannot be read"),
        (vec![certificate(15, own.clone())], "the peer sent no X.509 certificate"),
    ] {
        let error = said(certificates).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
    // More payloads than a message may hold.
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let message = hand.next(ExchangeType::IkeAuth, &vec![certificate(X509_SIGNATURE, own); 200]);
    hand.inject(&mut sim, &message);
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeMalformed), 1);
}

#[test]
fn case_74_other_methods_where_a_certificate_is_demanded() {
    let root = Authority::new("root", "p256");
    let host1 = root.credential("host1", "p256");
    for method in [0, 1, 2, 3, 9, 10, 11, 13, 200] {
        let error = said_to(&root, &host1, |payloads| {
            for payload in payloads {
                if let Payload::Auth(auth) = payload {
                    *auth = Auth { method: AuthMethod::from_value(method), data: auth.data.clone() };
                }
            }
        });
        assert!(error.is_err(), "{method}");
    }
    // A shared key, although it would be the right one elsewhere.
    let mut sim = alone(Proof::Psk);
    sim.hosts[0].endpoint.upsert_peer(certified(0, 1, &root, &root.credential("host0", "p256")));
    let mut hand = Hand::greet(&mut sim, 5);
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &hand.auth_payloads(&peer_config(1, 0, Proof::Psk)));
    assert_eq!(errors(&answer), [NotifyType::AuthenticationFailed]);
    assert!(
        sim.hosts[0]
            .complaints()
            .iter()
            .any(|line| line.contains("a shared key (2), but here it is configured with a certificate"))
    );
}

#[test]
fn case_79_a_good_certificate_for_somebody_else() {
    let root = Authority::new("root", "p256");
    let error = said_to(&root, &root.credential("host2", "p256"), |_| {}).unwrap_err();
    assert_eq!(error, "the certificate of O=Example, CN=host2 is not for host1 (it names host2, and addresses if any)");
    let stranger = Authority::new("stranger", "p256");
    let error = said_to(&root, &stranger.credential("host1", "p256"), |_| {}).unwrap_err();
    assert!(
        error.ends_with("issued by O=Example, CN=stranger, does not lead to the pinned authority (O=Example, CN=root)"),
        "{error}"
    );
    let mut old: CertificateParams = params("host1", false);
    old.not_after = rcgen::date_time_ymd(2026, 6, 1);
    let (chain, key) = root.issue(&old, "p256");
    let old = Credential::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let error = said_to(&root, &old, |_| {}).unwrap_err();
    assert_eq!(error, "the certificate of O=Example, CN=host1 expired on 2026-06-01 00:00 UTC");
}
