//! Wants every peer up: starts attempts, counts failures, probes, and takes IKE's news.

use std::time::Duration;

use super::peer::Attempt;
use super::{Node, TICK, trouble};
use crate::ike::{self, CloseReason, Command, PeerConfig};
use crate::model::{Instant, Path, PeerIndex, Rng};

/// First attempts of a host are spread over this time.
const START_SPREAD: Duration = Duration::from_millis(300);

/// The side with the lower identity waits so much longer, so that two hosts that start at once rarely cross. It still starts:
/// the other may be unable to.
const POLITE_PAUSE: Duration = Duration::from_secs(1);

/// A peer that deleted its IKE SA is tried again after this: it may be going, or only replacing it.
const AFTER_DELETE: Duration = Duration::from_secs(1);

/// An IKE SA that the peer deletes within this time was never one to it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// When a peer's first attempt starts.
pub fn start_delay(config: &PeerConfig, rng: &mut dyn Rng) -> Duration {
    let polite = if config.local_id < config.remote_id { POLITE_PAUSE } else { Duration::ZERO };
    polite + rng.jitter(START_SPREAD)
}

impl Node {
    /// Looks at every peer.
    pub(super) fn tick(&mut self, now: Instant) {
        let indexes: Vec<PeerIndex> = self.peers.keys().copied().collect();
        for index in indexes {
            self.watch(now, index);
            self.end_unpinned(now, index);
            self.attempt_if_due(now, index);
            self.note_state(now, index);
        }
    }

    /// Probes and keepalives of a peer that is linked.
    fn watch(&mut self, now: Instant, index: PeerIndex) {
        let (inbound, outbound) = self.installs.last_traffic(index);
        if inbound.is_some_and(|at| now.since(at) < 2 * TICK)
            && let Some((spi, at)) = self.installs.last_inbound(index)
        {
            self.endpoint.handle_command(now, Command::Heard(spi, at));
        }
        let interval = self.config.probe_interval;
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if !peer.is_linked() {
            return;
        }
        if let Some(at) = inbound {
            peer.liveness.heard(at);
        }
        if let Some(at) = outbound {
            peer.liveness.sent(at);
        }
        // Up to a fifth early, so that the two ends and the many peers do not probe in step.
        let early = self.rng.jitter(interval / 5);
        if peer.liveness.wants_probe(now, interval.saturating_sub(early)) {
            peer.liveness.probing(now);
            self.endpoint.handle_command(now, Command::Probe(index));
        } else if peer.liveness.wants_keepalive(now)
            && let Some(summary) = peer.newest()
            && summary.local_behind_nat != Some(false)
        {
            self.keepalives.push_back(summary.path);
            peer.liveness.sent(now);
        }
    }

    fn attempt_if_due(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if matches!(peer.attempt, Attempt::At(at) if at <= now) {
            peer.attempt = Attempt::Open;
            self.endpoint.handle_command(now, Command::Initiate(index));
        }
    }

    /// Starts an attempt as soon as possible, unless one is open.
    pub(super) fn attempt_now(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if peer.config().remote.is_some() && !matches!(peer.attempt, Attempt::Open | Attempt::Held) {
            peer.attempt = Attempt::At(now);
            self.attempt_if_due(now, index);
        }
    }

    /// A packet waits for a peer without SA. One that is being retried keeps its backoff: packets must not defeat it.
    pub(super) fn want(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        peer.want(now);
        if !peer.is_linked() && peer.attempt == Attempt::None {
            self.attempt_now(now, index);
        }
    }

    /// ESP for an SPI of nobody came from there: if that is a peer's address, the peer believes in an SA that we lost.
    pub(super) fn unknown_sender(&mut self, now: Instant, path: Path) {
        let known = self.peers.values().find(|peer| {
            !peer.is_linked()
                && peer.config().remotes().any(|remote| match remote {
                    ike::RemoteEndpoint::Standard(address) => address == path.remote.ip(),
                    ike::RemoteEndpoint::Natt(address) => address == path.remote,
                })
        });
        // Unauthenticated: it may only bring forward what waits for the end of its backoff, and once per pause.
        if let Some(peer) = known
            && !peer.is_failing()
        {
            let index = peer.index();
            self.attempt_now(now, index);
        }
    }

    /// Takes IKE's news that are not about the data plane.
    pub(super) fn handle_ike_event(&mut self, now: Instant, event: ike::Event) {
        match event {
            ike::Event::IkeUp { peer, summary } => self.ike_up(now, peer, *summary),
            ike::Event::IkeMoved { peer, summary } => self.ike_moved(now, peer, *summary),
            ike::Event::IkeDown { peer, spi, reason } => self.ike_down(now, peer, spi, &reason),
            ike::Event::InitiateFailed { peer, reason } => self.initiate_failed(now, peer, &reason),
            ike::Event::ChildFailed { peer, reason } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.child_refused = true;
                    let text = trouble::in_full(state.config(), &reason);
                    self.remember(now, peer, format!("no CHILD_SA: {text}"), true);
                }
            }
            ike::Event::WorkerChildRefused { peer, reason } => self.own_sa_refused(now, peer, &reason),
            ike::Event::Proof { peer, asked } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.liveness.proved(now, asked);
                    peer.forgive(now);
                }
                self.changed.insert(peer);
            }
            ike::Event::Heard { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.liveness.heard(now);
                }
            }
            ike::Event::ProbeLost { peer } => self.probe_lost(now, peer),
            ike::Event::Hint { peer } => self.hinted(now, peer),
            ike::Event::Refused { peer, path, reason } => self.refused(now, peer, path, &reason),
            ike::Event::Trouble { peer, reason } => self.trouble(now, peer, &reason),
            // Handled by the caller.
            ike::Event::Reserve { .. }
            | ike::Event::Release { .. }
            | ike::Event::Install { .. }
            | ike::Event::Activate { .. }
            | ike::Event::Retire { .. }
            | ike::Event::PathChanged { .. } => {}
        }
    }

    fn ike_up(&mut self, now: Instant, index: PeerIndex, summary: ike::IkeSummary) {
        let text = format!("IKE SA {} with {} ({})", summary.local_spi, summary.path.remote, summary.suite);
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.ike.insert(summary.local_spi, summary);
            peer.succeeded();
            if peer.attempt != Attempt::Held {
                peer.attempt = Attempt::None;
            }
            peer.remember(now, text.clone());
            peer.liveness.probe_forgotten();
        }
        self.notice(false, Some(index), text);
        self.changed.insert(index);
    }

    fn ike_moved(&mut self, now: Instant, index: PeerIndex, summary: ike::IkeSummary) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let Some(known) = peer.ike.get_mut(&summary.local_spi) else { return };
        let (spi, to) = (summary.local_spi, summary.path);
        let from = std::mem::replace(known, summary).path;
        self.changed.insert(index);
        if from.remote != to.remote {
            self.remember(now, index, format!("IKE SA {spi} moved from {} to {}", from.remote, to.remote), false);
        } else if from.local.ip() != to.local.ip() {
            self.remember(now, index, format!("IKE SA {spi} leaves from {}, not {}", to.local.ip(), from.local.ip()), false);
        }
    }

    fn ike_down(&mut self, now: Instant, index: PeerIndex, spi: crate::model::IkeSpi, reason: &CloseReason) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let summary = peer.ike.remove(&spi);
        peer.liveness.probe_forgotten();
        let was_new = summary.is_some_and(|summary| now.since(summary.established) < AT_ONCE);
        // RFC 7296 has no other way for an initiator that does not believe its responder.
        let hint = if was_new && *reason == CloseReason::PeerDeleted && !peer.is_linked() {
            " as soon as it was made: it may not accept our key or our identity, its log says why"
        } else {
            ""
        };
        if *reason != CloseReason::Replaced {
            let text = format!("IKE SA {spi} ended: {reason}{hint}");
            self.remember(now, index, text, *reason != CloseReason::Closed);
        }
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if !peer.is_linked() && peer.is_to_be_called(now) && peer.attempt == Attempt::None {
            peer.attempt = Attempt::At(now + AFTER_DELETE + self.rng.jitter(AFTER_DELETE / 2));
        }
        self.changed.insert(index);
    }

    fn initiate_failed(&mut self, now: Instant, index: PeerIndex, reason: &CloseReason) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let pause = peer.failed(self.rng.as_mut());
        if peer.attempt != Attempt::Held {
            peer.attempt =
                if peer.is_to_be_called(now) || peer.is_linked() { Attempt::At(now + pause) } else { Attempt::None };
        }
        if peer.attempt == Attempt::None {
            // Nobody tries: it is not being retried, either.
            peer.succeeded();
        }
        if *reason == CloseReason::Closed {
            return;
        }
        let reason = trouble::in_full(peer.config(), reason);
        // Said once is enough.
        peer.refusal.take_if(|refusal| *refusal == reason);
        self.remember(now, index, format!("could not connect: {reason}"), true);
    }

    /// The peer does not answer on its IKE SA: a fresh one beside it is the only way to learn whether the peer restarted.
    fn probe_lost(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        peer.liveness.probe_lost();
        let unreachable = peer.config().remote.is_none();
        if unreachable && !peer.liveness.was_heard(now) {
            // We cannot call it; it will call us. What it had is of no use to anybody. One that was heard a moment ago may be behind
            // a NAT that forgot it: its next sign of life, which comes within ten seconds, shows where it is.
            self.endpoint.handle_command(now, Command::Close(index));
        }
        self.remember(now, index, "the peer does not answer".to_owned(), true);
        self.attempt_now(now, index);
    }

    /// Somebody says that the peer forgot our SA. Asked for proof now rather than at the end of the interval.
    fn hinted(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if peer.is_linked() && peer.liveness.wants_probe(now, Duration::from_secs(1)) {
            peer.liveness.probing(now);
            self.endpoint.handle_command(now, Command::Probe(index));
        }
    }

    /// The peer's set of usable CHILD_SAs changed.
    pub(super) fn child_changed(&mut self, now: Instant, index: PeerIndex) {
        let has_child = self.installs.active_of(index).next().is_some();
        if let Some(peer) = self.peers.get_mut(&index) {
            let is_first = has_child && !peer.has_child;
            peer.has_child = has_child;
            peer.child_refused &= !has_child;
            // The answer to IKE_AUTH proves both directions to the initiator only; the responder asks as soon as it has
            // answered.
            if is_first && peer.newest().is_some_and(|summary| !summary.initiator) {
                peer.liveness.probing(now);
                self.endpoint.handle_command(now, Command::Probe(index));
            }
        }
        self.changed.insert(index);
    }
}
