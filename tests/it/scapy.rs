//! An independent codec as peer: scapy asks us and reads our answers, then sends malformed messages. Each of those is counted, and
//! a tunnel works afterwards.

use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::traffic::ten_are_answered;
use crate::lab::{Lab, wait_for};

/// Debian's own: another one in the path may have no scapy.
const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scripts/scapy_peer.py");

/// The requests of its honest half that are refused and so counted as well.
const REFUSED: u64 = 2;

#[test]
fn scapy_understands_us_and_cannot_harm_us() {
    let lab = Lab::direct();
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::calling(&lab.beta)]));
    let said = lab.beta.run(&[PYTHON, "-W", "ignore", SCRIPT, lab.beta.address, lab.alpha.address]);
    let sent = said.lines().last().and_then(|line| line.strip_prefix("sent ")).and_then(|count| count.parse::<u64>().ok());
    let sent = sent.unwrap_or_else(|| panic!("no count in: {said}"));
    assert!(sent >= 100, "{said}");
    let counted = || alpha.losses().values().sum::<u64>();
    wait_for("every message to be counted", Duration::from_secs(5), || (counted() >= sent + REFUSED).then_some(()));
    assert_eq!(counted(), sent + REFUSED, "once each: {:?}", alpha.losses());
    // The same host, now with a peer that means it.
    let beta = Agent::running(&lab.beta, &AgentConfig::new(&lab.beta, &[PeerConfig::at(&lab.alpha)]));
    beta.wait_for_state("alpha", "up", Duration::from_secs(15));
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
    assert!(ten_are_answered(&lab.alpha, &lab.beta) && ten_are_answered(&lab.beta, &lab.alpha));
}
