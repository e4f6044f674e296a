//! strongSwan on both hosts: proof that the laboratory itself works, before it judges us.

use std::time::Duration;

use crate::lab::swan::{Auth, generate_key};
use crate::lab::traffic::{Pinging, both_answer, ping, tcp_bits_per_second};
use crate::lab::wire::Capture;
use crate::lab::{Lab, Swan, SwanConfig, wait_for};

#[test]
fn three_suites_carry_pings_both_ways() {
    for (aead, group) in [("aes256gcm16", "x25519"), ("aes128gcm16", "ecp256"), ("chacha20poly1305", "ecp384")] {
        let lab = Lab::direct();
        let config = |local, remote| SwanConfig::new(local, remote).suite(aead, "prfsha256", group);
        let _beta = Swan::start(&lab.beta, &config(&lab.beta, &lab.alpha));
        let alpha = Swan::start(&lab.alpha, &config(&lab.alpha, &lab.beta));
        let capture = Capture::start(&lab.alpha);
        alpha.initiate();
        assert!(alpha.only_child().is_some(), "{:?}", alpha.ike_sas());
        both_answer(&lab);
        let seen = capture.stop();
        assert!(seen.other.is_empty(), "{seen:?}");
        assert!(seen.ike >= 4 && seen.esp >= 40, "{seen:?}");
    }
}

#[test]
fn raw_keys_authenticate() {
    let lab = Lab::direct();
    let folder = tempfile::tempdir().expect("a folder");
    let (alpha_key, beta_key) = (generate_key(folder.path(), "alpha"), generate_key(folder.path(), "beta"));
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    config.auth = Auth::RawKeys { private: beta_key.0, remote_public: alpha_key.1 };
    let _beta = Swan::start(&lab.beta, &config);
    let mut config = SwanConfig::new(&lab.alpha, &lab.beta);
    config.auth = Auth::RawKeys { private: alpha_key.0, remote_public: beta_key.1 };
    let alpha = Swan::start(&lab.alpha, &config);
    alpha.initiate();
    both_answer(&lab);
}

#[test]
fn a_nat_is_crossed_and_seen() {
    let lab = Lab::with_nat();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).with_anyone());
    let alpha = Swan::start(&lab.alpha, &SwanConfig::new(&lab.alpha, &lab.beta));
    alpha.initiate();
    both_answer(&lab);
    let (sa, _) = beta.established().pop().expect("an IKE SA");
    assert_eq!(sa.value("remote-host"), "10.9.0.254");
}

#[test]
fn rekeys_and_terminations_are_driven() {
    let lab = Lab::direct();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
    let alpha = Swan::start(&lab.alpha, &SwanConfig::new(&lab.alpha, &lab.beta));
    alpha.initiate();
    let first = alpha.only_child().expect("a child");
    let pings = Pinging::start(&lab.alpha, &lab.beta, 100);
    beta.rekey("child");
    let changed = || alpha.only_child().filter(|child| *child != first);
    wait_for("another child", Duration::from_secs(10), changed);
    beta.rekey("ike");
    assert!(pings.wait().received > 90);
    beta.terminate();
    wait_for("no IKE SA", Duration::from_secs(10), || alpha.ike_sas().is_empty().then_some(()));
}

#[test]
fn loss_blocks_and_tcp_do_what_they_say() {
    let lab = Lab::direct();
    let mut beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha));
    let alpha = Swan::start(&lab.alpha, &SwanConfig::new(&lab.alpha, &lab.beta));
    alpha.initiate();
    both_answer(&lab);
    assert!(tcp_bits_per_second(&lab.alpha, &lab.beta, 1) > 1e6);
    lab.beta.lose(20);
    let lost = ping(&lab.alpha, &lab.beta, 100).lost();
    assert!((5..45).contains(&lost), "lost {lost} of 100");
    lab.beta.pass();
    lab.beta.block();
    assert_eq!(ping(&lab.alpha, &lab.beta, 5).received, 0);
    lab.beta.pass();
    both_answer(&lab);
    beta.kill();
    assert_eq!(ping(&lab.alpha, &lab.beta, 5).received, 0);
    beta.restart();
    beta.initiate();
    both_answer(&lab);
}

/// What the test of forged packets stands on: without us, a neighbour's packet in clear does get in.
#[test]
fn clear_text_reaches_a_host_that_nobody_guards() {
    let lab = Lab::direct();
    for (host, other) in [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)] {
        host.run(&["ip", "address", "add", &format!("{}/32", host.inner), "dev", "lo"]);
        host.run(&["ip", "route", "add", other.block, "via", other.address, "dev", "up0"]);
    }
    let capture = Capture::start(&lab.beta);
    assert_eq!(ping(&lab.alpha, &lab.beta, 5).lost(), 0);
    assert_eq!(capture.stop().other.len(), 10, "five pings and their answers");
}

/// The NAT that forgets really maps to other ports.
#[test]
fn a_nat_that_forgets_maps_elsewhere() {
    let lab = Lab::with_nat();
    let beta = Swan::start(&lab.beta, &SwanConfig::new(&lab.beta, &lab.alpha).with_anyone());
    let alpha = Swan::start(&lab.alpha, &SwanConfig::new(&lab.alpha, &lab.beta));
    lab.remap_nat();
    alpha.initiate();
    both_answer(&lab);
    let (sa, _) = beta.established().pop().expect("an IKE SA");
    assert!(sa.value("remote-port").starts_with("20"), "{sa:?}");
}
