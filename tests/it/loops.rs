//! ESP inside ESP: a tunnel whose own packets are routed into it.

use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::traffic::{answers, wait_until_answered};
use crate::lab::{Lab, wait_for};

/// A block holds the address that a peer calls from, which no configuration could tell: answers would enter the tunnel. The guard
/// keeps the calls out, as it does everything in clear from inside a block. Once the block is put right, the peer comes up.
#[test]
fn a_peer_that_calls_from_inside_a_block_makes_no_loop() {
    let lab = Lab::direct();
    let mut config = AgentConfig::new(&lab.beta, &[PeerConfig::calling(&lab.alpha)]);
    config.peers[0].blocks += &format!(", {}/32", lab.alpha.address);
    let mut beta = Agent::running(&lab.beta, &config);
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    let kept_out = || beta.status()["drops"]["forged_overlay"].as_u64().filter(|&count| count > 1);
    wait_for("calls that are kept out", Duration::from_secs(10), kept_out);
    assert_eq!(alpha.peer("beta").ike_spis(), None);
    let sent = lab.beta.run(&["cat", "/sys/class/net/underpass0/statistics/tx_packets"]);
    assert_eq!(sent, "0\n", "nothing of beta's enters the tunnel device");
    assert!(!answers(&lab.alpha, &lab.beta));

    beta.configure(&AgentConfig::new(&lab.beta, &[PeerConfig::calling(&lab.alpha)]));
    beta.signal("HUP");
    wait_until_answered(&lab.alpha, &lab.beta, Duration::from_secs(15));
    alpha.wait_for_state("beta", "up", Duration::from_secs(15));
}
