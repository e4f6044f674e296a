//! Us and libreswan, as a peer for IKE alone: IKE SAs, their rekeys, signs of life, and the faults that pluto can be told to make.
//! After each fault our agent lives, has counted or said what was wrong, and the next IKE SA comes up.

use std::thread;
use std::time::Duration;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::pluto::Pluto;
use crate::lab::{Lab, wait_for};

/// A handshake on a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// After a fault in an answer our initiation ends in 30 s, and the next one begins after a pause.
const BACK: Duration = Duration::from_secs(60);

/// How a fault shows at our side.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// The drops of this name grow.
    Counted(&'static str),
    /// The log has a line with these words.
    Logged(&'static str),
    /// It does no harm: an IKE SA comes up.
    Harmless,
}
use Sign::{Counted, Harmless, Logged};

/// Faults of a peer that calls us.
const OF_A_CALLER: &[(&str, Sign)] = &[
    ("ke-payload:OMIT", Counted("ike_malformed")),
    ("ke-payload:EMPTY", Logged("the KE value has the wrong length for its group")),
    ("ke-payload:0", Logged("the KE value has a low order")),
    ("ike-initiator-spi:0", Counted("ike_malformed")),
    ("major-version-bump", Counted("ike_version")),
    ("force-v2-auth-method:NULL", Logged("the peer proves itself by method 13")),
    ("ike-key-length-attribute:OMIT", Logged("theirs aesgcm16 without key length")),
    ("ike-key-length-attribute:DUPLICATE", Logged("theirs aes256gcm16 with an unknown attribute")),
    ("ike-key-length-attribute:0", Logged("theirs aesgcm16 with 0 bits")),
    ("v2-proposal-dh:omit", Logged("KE: theirs nothing")),
    ("child-key-length-attribute:0", Logged("no CHILD_SA: no proposal of theirs fits")),
    ("child-key-length-attribute:OMIT", Logged("no CHILD_SA: no proposal of theirs fits")),
    ("minor-version-bump", Harmless),
    ("send-bogus-isakmp-flag", Harmless),
    ("send-bogus-payload-flag", Harmless),
    ("send-nonzero-reserved", Harmless),
    ("send-nonzero-reserved-id", Harmless),
    ("send-no-idr", Harmless),
    ("jacob-two-two", Harmless),
    ("replay-duplicates", Harmless),
    ("replay-forward", Harmless),
    ("add-unknown-v2-payload-to:IKE_SA_INIT", Harmless),
    ("add-unknown-v2-payload-to-sk:IKE_AUTH", Harmless),
    ("ikev2-add-ike-transform:65537", Harmless),
    ("omit-v2-ike-auth-child", Harmless),
];

/// How often this reason was counted.
fn counted(agent: &Agent, reason: &str) -> u64 {
    agent.losses().get(reason).copied().unwrap_or(0)
}

/// Our IKE SA's SPIs are others than these, and there are some.
fn wait_for_another(agent: &Agent, old: &Option<(String, String)>, limit: Duration, what: &str) {
    wait_for(what, limit, || agent.peer("beta").ike_spis().filter(|now| Some(now) != old.as_ref()));
}

fn wait_for_sign(agent: &Agent, sign: Sign, before: u64, log: usize, limit: Duration, what: &str) {
    wait_for(&format!("{what}: {sign:?}"), limit, || match sign {
        Counted(reason) => (counted(agent, reason) > before).then_some(()),
        Logged(words) => agent.log()[log..].contains(words).then_some(()),
        Harmless => agent.log()[log..].contains("INFO IKE SA").then_some(()),
    });
}

/// Beta is libreswan and calls; we answer. Each fault once, then a call without.
#[test]
fn faults_of_a_caller() {
    // Of whom it does not know yet, an agent logs five refusals a minute: each gets eight faults.
    thread::scope(|scope| {
        for faults in OF_A_CALLER.chunks(8) {
            scope.spawn(|| call_with(faults));
        }
    });
}

fn call_with(faults: &[(&str, Sign)]) {
    let lab = Lab::direct();
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::calling(&lab.beta)]));
    let beta = Pluto::start(&lab.beta, &lab.alpha);
    for &(fault, sign) in faults {
        let (log, before) = (alpha.log().len(), if let Counted(reason) = sign { counted(&alpha, reason) } else { 0 });
        beta.impair(fault);
        beta.initiate();
        wait_for_sign(&alpha, sign, before, log, SOON, fault);
        beta.behave();
        beta.terminate();
        assert!(alpha.is_answering(), "{fault}");
        let old = alpha.peer("beta").ike_spis();
        beta.initiate();
        wait_for_another(&alpha, &old, SOON, &format!("an IKE SA after {fault}"));
        beta.terminate();
    }
}

/// Faults of a peer that answers our calls. Each has a laboratory of its own, as our initiation takes its time to fail.
const OF_AN_ANSWERER: &[(&str, Sign)] = &[
    ("bad-ikev2-auth-xchg", Counted("ike_message_id")),
    ("ke-payload:OMIT", Logged("the answer has no KE payload")),
    ("ke-payload:EMPTY", Logged("the KE value has the wrong length for its group")),
    ("ke-payload:0", Logged("the KE value has a low order")),
    ("ike-responder-spi:0", Logged("the answer has no responder SPI")),
    ("major-version-bump", Counted("ike_version")),
    ("force-v2-auth-method:NULL", Logged("the peer proves itself by method 13")),
    ("ike-key-length-attribute:OMIT", Logged("which was not offered")),
];

/// Beta is libreswan and answers; we call, and call again until all is well.
#[test]
fn faults_of_an_answerer() {
    let one = |(fault, sign): (&str, Sign)| {
        let lab = Lab::direct();
        let beta = Pluto::start(&lab.beta, &lab.alpha);
        beta.impair(fault);
        let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
        wait_for_sign(&alpha, sign, 0, 0, SOON, fault);
        assert_eq!(alpha.peer("beta").ike_spis(), None, "{fault}");
        beta.behave();
        wait_for_another(&alpha, &None, BACK, &format!("an IKE SA after {fault}"));
    };
    thread::scope(|scope| {
        for &case in OF_AN_ANSWERER {
            scope.spawn(move || one(case));
        }
    });
}

/// Faults of a peer that rekeys the IKE SA.
const OF_A_REKEY: &[(&str, Sign)] = &[
    ("ke-payload:OMIT", Logged("rekey of the IKE SA: the request has no KE payload")),
    ("ke-payload:EMPTY", Logged("rekey of the IKE SA: the KE value has the wrong length for its group")),
    ("ke-payload:0", Logged("rekey of the IKE SA: the KE value has a low order")),
    ("ike-key-length-attribute:OMIT", Logged("rekey of the IKE SA: no proposal of theirs fits")),
    ("v2-proposal-dh:omit", Logged("rekey of the IKE SA: no proposal of theirs fits")),
    ("jacob-two-two", Harmless),
    ("replay-forward", Harmless),
    ("replay-backward", Harmless),
    ("send-no-delete", Harmless),
    ("add-unknown-v2-payload-to-sk:CREATE_CHILD_SA", Harmless),
];

/// Both rekey the IKE SA, with faults and without.
#[test]
fn rekeys_and_their_faults() {
    let lab = Lab::direct();
    let beta = Pluto::start(&lab.beta, &lab.alpha);
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    wait_for_another(&alpha, &None, SOON, "an IKE SA");
    assert!(alpha.log().contains("no CHILD_SA: the peer refused: TS_UNACCEPTABLE"), "its kernel has no ESP");
    let rekey = |rekey: &dyn Fn(), what: &str| {
        let old = alpha.peer("beta").ike_spis();
        rekey();
        wait_for_another(&alpha, &old, BACK, &format!("another IKE SA after {what}"));
    };
    rekey(&|| beta.rekey(), "libreswan's rekey");
    rekey(&|| alpha.rekey("beta", "ike"), "our rekey");
    assert!(!alpha.log().contains("ended: "), "a rekey replaces, nothing ends:\n{}", alpha.log());
    for &(fault, sign) in OF_A_REKEY {
        let log = alpha.log().len();
        beta.impair(fault);
        beta.rekey();
        wait_for_sign(&alpha, sign, 0, log, SOON, fault);
        beta.behave();
        assert!(alpha.is_answering() && alpha.peer("beta").ike_spis().is_some(), "{fault}");
        // After a rekey that was refused libreswan does not ask again; a new one brings everything back.
        match sign {
            Harmless => rekey(&|| beta.rekey(), fault),
            Counted(_) | Logged(_) => rekey(&|| beta.terminate(), fault),
        }
    }
}

/// Each end asks the other for signs of life. One that is silent is missed, and found again.
#[test]
fn signs_of_life() {
    let lab = Lab::direct();
    let mut beta = Pluto::start(&lab.beta, &lab.alpha);
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    wait_for_another(&alpha, &None, SOON, "an IKE SA");
    let unanswered = |beta: &Pluto| beta.log().matches("retransmission").count();
    beta.probe();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(unanswered(&beta), 0, "we answer at once:\n{}", beta.log());
    lab.alpha.block();
    beta.probe();
    wait_for("libreswan to miss us", SOON, || (unanswered(&beta) > 0).then_some(()));
    lab.alpha.pass();
    let old = alpha.peer("beta").ike_spis();
    beta.freeze();
    wait_for("us to miss libreswan", Duration::from_secs(30), || {
        alpha.log().contains("the peer does not answer").then_some(())
    });
    beta.thaw();
    wait_for_another(&alpha, &old, BACK, "an IKE SA with libreswan, which is awake again");
}
