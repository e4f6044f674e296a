//! Whether a peer is there. Only an authenticated answer to something that we asked proves both directions.

use std::time::Duration;

use crate::model::Instant;

/// A peer is up only while its last two-way proof is younger than this (design §4).
pub const PROOF_AGE: Duration = Duration::from_secs(15);

/// Traffic that goes out for so long while nothing comes back asks for a proof ahead of time: a peer that restarted is found
/// while somebody waits for it.
const UNANSWERED_TRAFFIC: Duration = Duration::from_secs(2);

/// Probes ahead of time are at least so far apart.
const EARLY_PROBE_GAP: Duration = Duration::from_secs(3);

/// A lost probe is followed by another so soon: the path may heal under the old IKE SA.
const PROBE_AGAIN: Duration = Duration::from_secs(4);

/// Longer than this after we asked, nothing comes in that left the peer before it could have answered.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// NATs forget a UDP mapping after 30 s and more (RFC 3948 §4 suggests 20 s).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// What is known of a peer's presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Liveness {
    /// When the newest answered question was asked.
    proof: Option<Instant>,
    /// When the newest authenticated message or packet came in.
    heard: Option<Instant>,
    /// When the last probe left.
    probed: Option<Instant>,
    /// Whether a probe is on its way.
    open: bool,
    /// When the first probe left that no answer followed; none once there is an answer.
    unanswered: Option<Instant>,
    /// When something of ours last left towards the peer.
    sent: Option<Instant>,
}

impl Liveness {
    /// The peer answered what we asked at `asked`.
    pub fn proved(&mut self, now: Instant, asked: Instant) {
        self.proof = self.proof.max(Some(asked));
        self.open = false;
        self.unanswered = None;
        self.heard = Some(now);
    }

    /// Something authenticated came in.
    pub fn heard(&mut self, at: Instant) {
        self.heard = self.heard.max(Some(at));
    }

    /// Something of ours left.
    pub fn sent(&mut self, at: Instant) {
        self.sent = self.sent.max(Some(at));
    }

    /// The IKE SA that a probe may have been on is gone or superseded: nobody will answer or miss it.
    pub fn probe_forgotten(&mut self) {
        self.open = false;
    }

    /// A probe stayed unanswered.
    pub fn probe_lost(&mut self) {
        self.open = false;
    }

    /// When the last proven question was asked.
    pub fn last_proof(&self) -> Option<Instant> {
        self.proof
    }

    /// Whether both directions are proved and the proof is young.
    pub fn is_proved(&self, now: Instant) -> bool {
        self.proof.is_some_and(|proof| now.since(proof) < PROOF_AGE)
    }

    /// Whether the peer, which does not answer us, is heard all the same: not only by what it sent before it fell silent.
    pub fn is_heard(&self, now: Instant) -> bool {
        let heard = self.heard.filter(|&heard| now.since(heard) < PROOF_AGE);
        let silent = self.unanswered.map(|asked| asked + UNDER_WAY);
        heard.is_some() && heard > silent
    }

    /// Whether the peer was heard as lately as a peer must be that is alive.
    pub fn was_heard(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.since(heard) < PROOF_AGE)
    }

    /// Whether a probe should leave now. `interval` is the longest time between proofs.
    pub fn wants_probe(&self, now: Instant, interval: Duration) -> bool {
        if self.open {
            return false;
        }
        let since_probe = self.probed.map_or(Duration::MAX, |probed| now.since(probed));
        let since_proof = self.proof.map_or(Duration::MAX, |proof| now.since(proof));
        // A proof by another exchange (a rekey, say) is as good as a probe's.
        let due = since_proof.min(since_probe) >= interval || since_proof >= interval && since_probe >= PROBE_AGAIN;
        due || self.traffic_is_unanswered(now) && since_probe >= EARLY_PROBE_GAP
    }

    fn traffic_is_unanswered(&self, now: Instant) -> bool {
        let Some(sent) = self.sent else { return false };
        let silence = now.since(self.heard.unwrap_or(Instant::ORIGIN));
        now.since(sent) < UNANSWERED_TRAFFIC && silence >= UNANSWERED_TRAFFIC
    }

    /// Whether a probe is on its way.
    pub fn is_awaited(&self) -> bool {
        self.open
    }

    /// A probe left.
    pub fn probing(&mut self, now: Instant) {
        self.open = true;
        self.unanswered.get_or_insert(now);
        self.probed = Some(now);
        self.sent = Some(now);
    }

    /// Whether a NAT on our side is about to forget us.
    pub fn wants_keepalive(&self, now: Instant) -> bool {
        self.sent.is_none_or(|sent| now.since(sent) >= KEEPALIVE_INTERVAL)
    }
}
