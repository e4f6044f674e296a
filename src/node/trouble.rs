//! What is said of a peer: why it does not come up, in the peer's `last_error`, its history and the log.
//!
//! Both hosts should be able to tell the reason, but each learns something else: who refuses knows what does not match, who is
//! refused hears only a notify. So a peer has two sentences, ours about our attempts and ours about its attempts, and both are
//! shown until it is up.

use std::time::Duration;

use super::peer::{Attempt, Peer};
use super::{Node, PeerState};
use crate::ike::{CloseReason, LocalAuth, PeerConfig, PostQuantum};
use crate::model::{Instant, Path, PeerIndex, TrafficSelector};

/// Refusals that are logged in one [`REFUSAL_WINDOW`]; anybody can cause them, and a log is not to be filled by strangers.
const MAX_REFUSALS: u32 = 20;

/// See [`MAX_REFUSALS`].
const REFUSAL_WINDOW: Duration = Duration::from_secs(60);

/// How often refusals may be logged.
#[derive(Debug, Default)]
pub struct Refusals {
    since: Instant,
    count: u32,
}

impl Refusals {
    /// Counts one. Whether it may be logged, and how many of the last window were not.
    fn count(&mut self, now: Instant) -> (bool, u32) {
        let mut missed = 0;
        if now.since(self.since) >= REFUSAL_WINDOW {
            missed = self.count.saturating_sub(MAX_REFUSALS);
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        (self.count <= MAX_REFUSALS, missed)
    }
}

/// A reason with our half of the matter: the peer's notify says what kind of thing did not match, and only its own log what
/// it would have liked.
pub(super) fn in_full(config: &PeerConfig, reason: &CloseReason) -> String {
    let CloseReason::PeerRefused { notify, .. } = reason else { return reason.to_string() };
    let ours = match notify.as_str() {
        "NO_PROPOSAL_CHOSEN" => {
            let suites: Vec<&str> = config.suites.iter().map(|suite| suite.name()).collect();
            let always =
                if config.post_quantum == PostQuantum::Required { ", always with mlkem768 (require_pq)" } else { "" };
            format!("we offered {}{always}", suites.join(", "))
        }
        "AUTHENTICATION_FAILED" => {
            let proof = match config.local_auth {
                LocalAuth::Psk(_) => "the shared key",
                LocalAuth::HostKeys(ref keys) if keys.len() > 1 => "one of our host keys; the other one's turn is next",
                LocalAuth::HostKeys(_) => "our host key",
            };
            format!("we are {} with {proof}, and wanted {}", config.local_id, config.remote_id)
        }
        "TS_UNACCEPTABLE" => {
            let texts =
                |selectors: &[TrafficSelector]| selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("we offered {} here and {} there", texts(&config.local_selectors), texts(&config.remote_selectors))
        }
        _ => return reason.to_string(),
    };
    format!("{reason} ({ours}; its log says what does not match)")
}

impl Peer {
    /// Nothing is wrong with a peer that is up.
    pub(super) fn forgive(&mut self, now: Instant) {
        if PeerState::of(self, now) == PeerState::Up {
            self.last_error = None;
            self.refusal = None;
        }
    }
}

impl Node {
    /// We refused what came from there. Without a proven identity the address tells whom it may concern.
    pub(super) fn refused(&mut self, now: Instant, peer: Option<PeerIndex>, path: Path, reason: &CloseReason) {
        let at = |config: &PeerConfig| config.is_at(path.remote.ip());
        let known = peer.or_else(|| self.peers.values().find(|peer| at(peer.config())).map(Peer::index));
        let text = reason.to_string();
        if let Some(peer) = known.and_then(|index| self.peers.get_mut(&index))
            && PeerState::of(peer, now) != PeerState::Up
            && peer.refusal.replace(text.clone()).as_ref() == Some(&text)
        {
            return;
        }
        let (may_log, missed) = self.refusals.count(now);
        if missed > 0 {
            self.notice(true, None, format!("{missed} more refusals were not logged"));
        }
        if may_log {
            self.notice(true, peer, format!("refused {}: {text}", path.remote));
        }
    }

    /// An attempt of ours goes on, but not well.
    pub(super) fn trouble(&mut self, now: Instant, index: PeerIndex, reason: &CloseReason) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let text = in_full(peer.config(), reason);
        if peer.is_failing() {
            self.remember(now, index, format!("could not connect: {text}"), true);
        } else if !peer.is_linked() {
            self.remember(now, index, format!("not connected yet: {text}"), true);
        }
    }

    /// Something happened to a peer. What goes wrong again and again in the same way is no news: a peer that is away for a
    /// week is one line in the log.
    pub(super) fn remember(&mut self, now: Instant, index: PeerIndex, text: String, is_error: bool) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if is_error && peer.last_error.as_ref() == Some(&text) {
            return;
        }
        if is_error {
            peer.last_error = Some(text.clone());
        }
        peer.remember(now, text.clone());
        self.notice(is_error, Some(index), text);
    }

    /// Writes a change of the shown state into the peer's history and the log.
    pub(super) fn note_state(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let state = PeerState::of(peer, now);
        // What an agent that is going tears down is no news.
        if peer.shown == Some(state) || peer.attempt == Attempt::Held {
            return;
        }
        peer.shown = Some(state);
        peer.forgive(now);
        let text = format!("state: {state}");
        peer.remember(now, text.clone());
        self.notice(matches!(state, PeerState::OneWay | PeerState::Down), Some(index), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_fill_the_log() {
        let mut refusals = Refusals::default();
        let at = |seconds| Instant::ORIGIN + Duration::from_secs(seconds);
        let logged = (0..1000).filter(|_| refusals.count(at(100)).0).count();
        assert_eq!(logged, MAX_REFUSALS as usize);
        assert_eq!(refusals.count(at(159)), (false, 0));
        assert_eq!(refusals.count(at(160)), (true, 1001 - MAX_REFUSALS));
        assert_eq!(refusals.count(at(161)), (true, 0));
    }
}
