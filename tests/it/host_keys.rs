//! A host key that is changed on a running host, as `docs/configuration.md` says it, under ping.

use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, Proof};
use crate::lab::traffic::{Pinging, wait_until_answered};
use crate::lab::{Lab, wait_for};

/// A reload and what follows from it.
const SOON: Duration = Duration::from_secs(15);

/// What beta says it knows alpha by.
fn known_by(beta: &Agent) -> String {
    beta.peer("alpha").0["ike"]["remote_proof"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_host_key_is_changed_without_losing_a_tunnel() {
    let lab = Lab::direct();
    let [mut alpha, mut beta] = [&lab.alpha, &lab.beta].map(Agent::new);
    let [old, beta_key] = [&alpha, &beta].map(Agent::generate_key);
    let pins = |keys: &[&String]| {
        let keys = keys.iter().map(|&key| key.clone()).collect();
        AgentConfig::new(&lab.beta, &[PeerConfig::at(&lab.alpha).proof(Proof::PublicKeys(keys))])
    };
    alpha.configure(&AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta).proof(Proof::PublicKey(beta_key))]));
    beta.configure(&pins(&[&old]));
    alpha.start();
    beta.start();
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    wait_until_answered(&lab.alpha, &lab.beta, FIRST_CONTACT);
    assert_eq!(known_by(&beta), format!("Ed25519 key {old}"));
    let before = beta.peer("alpha").ike_spis();
    let old_file = std::fs::read(alpha.key_file()).expect("alpha's key");
    let pings = [Pinging::start(&lab.alpha, &lab.beta, 440), Pinging::start(&lab.beta, &lab.alpha, 440)];

    // The next key is made and pinned beside the present one: nothing has to change.
    let new = alpha.rotate_key(&[]);
    beta.configure(&pins(&[&old, &new]));
    beta.signal("HUP");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((beta.peer("alpha").ike_spis(), known_by(&beta)), (before.clone(), format!("Ed25519 key {old}")));

    // It becomes alpha's key.
    assert_eq!(alpha.rotate_key(&["--switch"]), new);
    alpha.signal("HUP");
    let (shown, _) = wait_for("beta to know alpha by its new key", SOON, || {
        Some(known_by(&beta)).filter(|known| *known == format!("Ed25519 key {new}"))
    });
    let page = String::from_utf8(beta.control(&["peers", "alpha"]).stdout).expect("text");
    assert!(page.contains(&format!("it is known by {shown}")), "{page}");
    // The tunnel that the old key proved has gone by itself.
    wait_for("one CHILD_SA", SOON, || (beta.peer("alpha").shared_spis().len() == 1).then_some(()));

    // The old one is forgotten, on both ends: nothing has to change.
    assert_eq!(alpha.rotate_key(&["--finish"]), new);
    alpha.signal("HUP");
    beta.configure(&pins(&[&new]));
    beta.signal("HUP");
    let after = beta.peer("alpha").ike_spis();
    assert_ne!(after, before);
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(beta.peer("alpha").ike_spis(), after);
    assert_eq!(pings.map(|pings| pings.wait().lost()), [0, 0]);
    for (agent, peer) in [(&alpha, "beta"), (&beta, "alpha")] {
        let history = agent.peer(peer).0["history"].to_string();
        assert!(!history.contains("state: down") && !history.contains("retrying"), "{history}");
    }

    // Neither key was ever said.
    let told = [alpha.log(), beta.log(), alpha.status().to_string(), beta.status().to_string()].concat();
    for file in [&old_file, &std::fs::read(alpha.key_file()).expect("alpha's key")] {
        let file = std::str::from_utf8(file).expect("PEM");
        let body = file.lines().nth(1).expect("the key's octets");
        assert!(body.len() == 64 && !told.contains(&body[24..]));
    }

    // Somebody who comes with the old key is refused, and beta says why.
    assert_eq!(alpha.stop("TERM"), Some(0));
    std::fs::write(alpha.key_file(), old_file).expect("the old key");
    alpha.start();
    let refused = format!("the signature is not by the public key that is configured for the peer ({new})");
    wait_for("the refusal", SOON, || beta.log().contains(&refused).then_some(()));
    alpha.wait_for_state("beta", "retrying", SOON);
    assert_ne!(beta.peer("alpha").state(), "up");
}
