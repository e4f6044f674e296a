//! Us and strongSwan: every role, suite and number of workers, rekeys without a lost packet, deaths on both sides, NATs.

use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, Proof, public_key_base64, public_key_pem};
use crate::lab::swan::{Auth, Swan, SwanConfig, generate_key};
use crate::lab::traffic::{Pinging, both_answer, wait_until_answered};
use crate::lab::wire::Capture;
use crate::lab::{Lab, wait_for};

/// After whatever death, the tunnel is back in this time by itself.
const BACK: Duration = Duration::from_secs(15);

/// AEAD, PRF and key exchange.
const SUITES: [(&str, &str, &str); 3] = [
    ("aes256gcm16", "prfsha256", "x25519"),
    ("aes128gcm16", "prfsha384", "ecp256"),
    ("chacha20poly1305", "prfsha512", "ecp384"),
];

/// We are alpha, strongSwan is beta and answers.
fn we_call(lab: &Lab, queues: u16) -> (Agent, Swan) {
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]).queues(queues));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    (alpha, beta)
}

/// strongSwan answers, we call.
fn strongswan_responds(queues: u16) {
    for (aead, prf, group) in SUITES {
        eprintln!("--- {aead}-{prf}-{group}");
        let lab = Lab::direct();
        let _beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).suite(aead, prf, group));
        let capture = Capture::start(&lab.beta);
        let peer = PeerConfig::at(&lab.beta).suites(aead);
        let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[peer]).queues(queues));
        alpha.wait_for_state("beta", "up", FIRST_CONTACT);
        both_answer(&lab);
        assert!(alpha.peer("beta").0["ike"]["suite"].as_str().expect("a suite").starts_with(aead));
        let seen = capture.stop();
        assert!(seen.other.is_empty() && seen.esp >= 40, "{seen:?}");
    }
}

/// strongSwan calls, we answer and do not know where it is.
fn strongswan_initiates(queues: u16) {
    for (aead, prf, group) in SUITES {
        eprintln!("--- {aead}-{prf}-{group}");
        let lab = Lab::direct();
        let peer = PeerConfig::calling(&lab.beta).suites(aead);
        let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[peer]).queues(queues));
        let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).suite(aead, prf, group));
        beta.initiate();
        both_answer(&lab);
        alpha.wait_for_state("beta", "up", FIRST_CONTACT);
        let (inbound, outbound) = beta.only_child().expect("one child");
        assert_eq!(alpha.peer("beta").child_spis(), [(outbound, inbound)], "both ends name the same SPIs");
    }
}

#[test]
fn strongswan_responds_to_one_worker() {
    strongswan_responds(1);
}

#[test]
fn strongswan_responds_to_two_workers() {
    strongswan_responds(2);
}

#[test]
fn strongswan_initiates_to_one_worker() {
    strongswan_initiates(1);
}

#[test]
fn strongswan_initiates_to_two_workers() {
    strongswan_initiates(2);
}

/// Pings both ways at 20 a second for six seconds; after one second `rekey` is called, and the SPIs must change.
fn rekey_loses_nothing(queues: u16, what: &str, rekey: impl Fn(&Agent, &Swan)) {
    let lab = Lab::direct();
    let (alpha, beta) = we_call(&lab, queues);
    both_answer(&lab);
    let before = alpha.peer("beta");
    let pings = [Pinging::start(&lab.alpha, &lab.beta, 120), Pinging::start(&lab.beta, &lab.alpha, 120)];
    std::thread::sleep(Duration::from_secs(1));
    rekey(&alpha, &beta);
    let after = || Some(alpha.peer("beta"));
    let renewed = |what: &str| {
        after().filter(|after| match what {
            "ike" => after.ike_spis().is_some() && after.ike_spis() != before.ike_spis(),
            _ => !after.child_spis().is_empty() && after.child_spis() != before.child_spis(),
        })
    };
    wait_for(&format!("other SPIs after --rekey {what}"), Duration::from_secs(5), || renewed(what));
    for (pings, way) in pings.into_iter().zip(["alpha to beta", "beta to alpha"]) {
        assert_eq!(pings.wait().lost(), 0, "{way}");
    }
    both_answer(&lab);
    // The old SAs are gone on both sides, and both name the same new ones.
    let agree = || {
        let (inbound, outbound) = beta.only_child()?;
        (alpha.peer("beta").child_spis() == [(outbound, inbound)]).then_some(())
    };
    wait_for("one CHILD_SA that both ends know", Duration::from_secs(15), agree);
    assert_eq!(alpha.peer("beta").state(), "up");
}

#[test]
fn strongswan_rekeys_the_child() {
    rekey_loses_nothing(1, "child", |_, beta| beta.rekey("child"));
}

#[test]
fn strongswan_rekeys_the_child_of_two_workers() {
    rekey_loses_nothing(2, "child", |_, beta| beta.rekey("child"));
}

#[test]
fn strongswan_rekeys_ike() {
    rekey_loses_nothing(2, "ike", |_, beta| beta.rekey("ike"));
}

#[test]
fn we_rekey_the_child() {
    rekey_loses_nothing(1, "child", |alpha, _| alpha.rekey("beta", "child"));
}

#[test]
fn we_rekey_the_child_of_two_workers() {
    rekey_loses_nothing(2, "child", |alpha, _| alpha.rekey("beta", "child"));
}

#[test]
fn we_rekey_ike() {
    rekey_loses_nothing(2, "ike", |alpha, _| alpha.rekey("beta", "ike"));
}

/// Both ends rekey at the same moment, ten times over.
#[test]
#[ignore = "long"]
fn rekeys_that_meet() {
    let lab = Lab::direct();
    let (alpha, beta) = we_call(&lab, 2);
    let pings = Pinging::start(&lab.alpha, &lab.beta, 20 * 40);
    for round in 0..10 {
        let what = if round % 2 == 0 { "child" } else { "ike" };
        std::thread::scope(|scope| {
            scope.spawn(|| alpha.control(&["peers", "beta", "--rekey", what]));
            scope.spawn(|| beta.attempt_control(&["--rekey", "--child", "net"]));
        });
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(pings.wait().lost(), 0);
    wait_for("one CHILD_SA", Duration::from_secs(30), || beta.only_child());
    both_answer(&lab);
}

#[test]
fn a_termination_by_strongswan_is_repaired() {
    let lab = Lab::direct();
    let (alpha, beta) = we_call(&lab, 1);
    let old = alpha.peer("beta").ike_spis();
    beta.terminate();
    let took = wait_until_answered(&lab.alpha, &lab.beta, BACK);
    eprintln!("back after {took:?}");
    alpha.wait_for_state("beta", "up", BACK);
    assert_ne!(alpha.peer("beta").ike_spis(), old);
    both_answer(&lab);
}

#[test]
fn a_killed_strongswan_is_found_again() {
    let lab = Lab::direct();
    let (alpha, mut beta) = we_call(&lab, 1);
    beta.kill();
    beta.restart();
    let took = wait_until_answered(&lab.alpha, &lab.beta, BACK);
    eprintln!("back after {took:?}");
    alpha.wait_for_state("beta", "up", BACK);
    both_answer(&lab);
}

#[test]
fn a_strongswan_that_stays_dead_is_reported_and_found_again() {
    let lab = Lab::direct();
    let (alpha, mut beta) = we_call(&lab, 1);
    beta.kill();
    // A proof of at most 15 seconds' age, and a little for the look.
    alpha.wait_for_state("beta", "one-way retrying down connecting", Duration::from_secs(18));
    assert_eq!(alpha.control(&["status"]).status.code(), Some(3), "degraded");
    std::thread::sleep(Duration::from_secs(10));
    assert_ne!(alpha.peer("beta").state(), "up");
    beta.restart();
    let took = wait_until_answered(&lab.alpha, &lab.beta, BACK);
    eprintln!("back after {took:?}");
    alpha.wait_for_state("beta", "up", BACK);
}

#[test]
fn we_die_and_come_back_to_strongswan() {
    let lab = Lab::direct();
    let (mut alpha, beta) = we_call(&lab, 2);
    alpha.kill();
    alpha.start();
    let took = wait_until_answered(&lab.alpha, &lab.beta, BACK);
    eprintln!("back after {took:?}");
    alpha.wait_for_state("beta", "up", BACK);
    both_answer(&lab);
    // INITIAL_CONTACT made strongSwan forget the SAs of our former life.
    let agree = || {
        let (inbound, outbound) = beta.only_child()?;
        (alpha.peer("beta").child_spis() == [(outbound, inbound)]).then_some(())
    };
    wait_for("one CHILD_SA that both ends know", Duration::from_secs(15), agree);
}

#[test]
fn we_are_behind_a_nat() {
    let lab = Lab::with_nat();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).with_anyone());
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]).queues(2));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    both_answer(&lab);
    assert_eq!(alpha.peer("beta").0["local_behind_nat"], "yes");
    let (sa, _) = beta.established().pop().expect("an IKE SA");
    assert_eq!(sa.value("remote-host"), "10.9.0.254");
    let pings = [Pinging::start(&lab.alpha, &lab.beta, 80), Pinging::start(&lab.beta, &lab.alpha, 80)];
    alpha.rekey("beta", "child");
    beta.rekey("ike");
    assert_eq!(pings.map(|pings| pings.wait().lost()), [0, 0]);
}

#[test]
fn strongswan_is_behind_a_nat() {
    let lab = Lab::with_nat();
    let peer = PeerConfig::calling(&lab.alpha);
    let beta = Agent::running(&lab.beta, &AgentConfig::new(&lab.beta, &[peer]).queues(2));
    let alpha = Swan::start(&lab.alpha, &SwanConfig::new(&lab.alpha, &lab.beta));
    alpha.initiate();
    both_answer(&lab);
    beta.wait_for_state("alpha", "up", FIRST_CONTACT);
    let peer = beta.peer("alpha");
    assert_eq!(peer.0["local_behind_nat"], "no");
    assert_ne!(peer.0["remote_behind_nat"], "no");
    assert!(peer.0["remote"].as_str().expect("an address").starts_with("10.9.0.254:"), "{peer:?}");
    let pings = [Pinging::start(&lab.alpha, &lab.beta, 80), Pinging::start(&lab.beta, &lab.alpha, 80)];
    alpha.rekey("child");
    beta.rekey("alpha", "ike");
    assert_eq!(pings.map(|pings| pings.wait().lost()), [0, 0]);
}

/// strongSwan's own liveness checks, every two seconds, keep the IKE SA that there is.
#[test]
fn liveness_checks_are_answered() {
    let lab = Lab::direct();
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    config.dpd_seconds = 2;
    let beta = Swan::start(&lab.beta, &config);
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    let before = alpha.peer("beta").ike_spis();
    std::thread::sleep(Duration::from_secs(10));
    let checks = beta.log().matches("sending DPD request").count();
    assert!(checks >= 2, "{checks} checks");
    assert_eq!(beta.log().matches("retransmit").count(), 0);
    assert_eq!(alpha.peer("beta").ike_spis(), before);
    assert_eq!(alpha.peer("beta").state(), "up");
}

/// strongSwan and we call at the same moment: whatever came up, one tunnel remains.
#[test]
fn starts_that_meet_leave_one_tunnel() {
    let lab = Lab::direct();
    let mut alpha = Agent::new(&lab.alpha);
    alpha.configure(&AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    alpha.spawn();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).initiating());
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    let agree = || {
        let (inbound, outbound) = beta.only_child()?;
        (alpha.peer("beta").child_spis() == [(outbound, inbound)]).then_some(())
    };
    wait_for("one CHILD_SA that both ends know", Duration::from_secs(30), agree);
    both_answer(&lab);
}

#[test]
fn raw_keys_authenticate_both_ways() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().expect("a folder");
    let (private, public) = generate_key(folder.path(), "beta");
    let mut alpha = Agent::new(&lab.alpha);
    let ours = folder.path().join("alpha.pub");
    std::fs::write(&ours, public_key_pem(&alpha.generate_key())).expect("a key file");
    let theirs = public_key_base64(&std::fs::read_to_string(public).expect("a key file"));
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    config.auth = Auth::RawKeys { private, remote_public: ours };
    let beta = Swan::start(&lab.beta, &config);
    alpha.configure(&AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta).proof(Proof::PublicKey(theirs))]));
    alpha.start();
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    both_answer(&lab);
    // And with the roles exchanged: it calls, we answer.
    beta.terminate();
    alpha.wait_for_state("beta", "up", BACK);
    both_answer(&lab);
}

/// IKE_AUTH travels in fragments both ways, whoever begins: strongSwan cuts small, and we ask for many traffic selectors.
#[test]
fn long_messages_travel_in_fragments() {
    let many = (1..=70).map(|number| format!(", 10.77.{number}.0/24")).collect::<String>();
    for we_call in [true, false] {
        eprintln!("--- we call: {we_call}");
        let lab = Lab::direct();
        let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
        config.fragment_size = 200;
        config.remote_ts = format!("{}{many}", lab.alpha.block);
        let peer = if we_call { PeerConfig::at(&lab.beta) } else { PeerConfig::calling(&lab.beta) };
        let mut ours = AgentConfig::new(&lab.alpha, &[peer]);
        ours.blocks.push_str(&many);
        let beta = Swan::start(&lab.beta, &config);
        let alpha = Agent::running(&lab.alpha, &ours);
        if !we_call {
            beta.initiate();
        }
        alpha.wait_for_state("beta", "up", FIRST_CONTACT);
        both_answer(&lab);
        let log = beta.log();
        assert!(log.contains("received fragment #1 of 2"), "we sent fragments:\n{log}");
        assert!(log.contains("splitting IKE message"), "strongSwan sent fragments:\n{log}");
        let ike = alpha.peer("beta").0["ike"].clone();
        assert_eq!((ike["post_quantum"].as_bool(), ike["initiator"].as_bool()), (Some(false), Some(we_call)));
    }
}

/// strongSwan 5.9 knows no additional key exchanges.
#[test]
fn a_peer_that_must_be_post_quantum_and_is_not_is_refused() {
    let lab = Lab::direct();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
    let mut peer = PeerConfig::at(&lab.beta);
    peer.more = "    require_pq: true\n".to_owned();
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[peer]));
    let complaint = |alpha: &Agent| {
        let error = alpha.peer("beta").0["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains("require_pq").then_some(error)
    };
    let (error, _) = wait_for("the refusal", Duration::from_secs(45), || complaint(&alpha));
    assert!(error.contains("NO_PROPOSAL_CHOSEN"), "{error}");
    // It calls us, and we refuse it in its turn.
    assert!(!beta.attempt_control(&["--initiate", "--child", "net", "--timeout", "15"]).status.success());
    assert!(beta.log().contains("AUTHENTICATION_FAILED"), "{}", beta.log());
}

#[test]
fn ids_may_be_addresses() {
    let lab = Lab::direct();
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    (config.local_id, config.remote_id) = ("10.9.0.2".to_owned(), "10.9.0.1".to_owned());
    let _beta = Swan::start(&lab.beta, &config);
    let mut config = AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]);
    config.peers[0].more = "    local_id: 10.9.0.1\n    remote_id: 10.9.0.2\n".to_owned();
    let alpha = Agent::running(&lab.alpha, &config);
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    both_answer(&lab);
}

#[test]
fn a_wrong_secret_is_named_and_repaired_by_a_reload() {
    let lab = Lab::direct();
    let _beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
    let wrong = PeerConfig::at(&lab.beta).proof(Proof::WrongPsk);
    let mut alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[wrong]));
    alpha.wait_for_state("beta", "retrying", FIRST_CONTACT);
    let error = alpha.peer("beta").0["last_error"].as_str().expect("an error").to_owned();
    assert!(error.to_lowercase().contains("authentication"), "{error}");
    alpha.configure(&AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    alpha.signal("HUP");
    alpha.wait_for_state("beta", "up", FIRST_CONTACT + BACK);
    both_answer(&lab);
}
