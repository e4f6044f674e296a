//! What is said of a peer: why it does not come up, in the peer's `last_error`, its history and the log.
//!
//! Both hosts should be able to tell the reason, but each learns something else: who refuses knows what does not match, who is
//! refused hears only a notify. So a peer has two sentences, ours about our attempts and ours about its attempts, and both are
//! shown until it is up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::peer::{Attempt, Peer};
use super::{Node, PeerState};
use crate::ike::{CloseReason, LocalAuth, PeerConfig, PostQuantum};
use crate::model::{Instant, Path, PeerIndex, TrafficSelector};

/// Refusals of one stranger that are logged in one [`REFUSAL_WINDOW`]: what is wrong stands in the first.
const MAX_PER_SOURCE: u32 = 5;

/// The same, of one configured peer: it may be wrong in many ways.
const MAX_PER_PEER: u32 = 20;

/// The same, of all strangers together: anybody can be one, and a log is not to be filled by strangers.
const MAX_OF_STRANGERS: u32 = 20;

/// The same, of everything that comes from addresses of configured peers. Addresses are forged, so that is bounded too, but no
/// stranger uses it up who does not know them.
const MAX_AT_PEERS: u32 = 60;

/// Strangers of one window that are told apart; others are one.
const MAX_SOURCES: usize = 256;

/// See [`MAX_PER_SOURCE`].
const REFUSAL_WINDOW: Duration = Duration::from_secs(60);

/// Who is refused, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Refused {
    /// A peer with an IKE SA: nobody can say this for it.
    Proven(PeerIndex),
    /// Somebody at a peer's address, or with its name.
    Claimed(PeerIndex),
    /// Somebody in this /24 or /64.
    Stranger(Option<IpAddr>),
}

impl Refused {
    fn stranger(address: IpAddr) -> Self {
        Self::Stranger(Some(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::from(Ipv4Addr::from_bits(address.to_bits() & !0xff)),
            IpAddr::V6(address) => IpAddr::from(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        }))
    }
}

/// How often refusals may be logged.
#[derive(Debug, Default)]
pub struct Refusals {
    since: Instant,
    missed: u32,
    of_strangers: u32,
    at_peers: u32,
    of_source: BTreeMap<Refused, u32>,
}

impl Refusals {
    /// Counts one. Whether it may be logged, and how many of the last window were not.
    fn count(&mut self, now: Instant, mut who: Refused) -> (bool, u32) {
        let mut missed = 0;
        if now.since(self.since) >= REFUSAL_WINDOW {
            missed = self.missed;
            *self = Self { since: now, ..Self::default() };
        }
        if matches!(who, Refused::Stranger(_)) && self.of_source.len() >= MAX_SOURCES && !self.of_source.contains_key(&who) {
            who = Refused::Stranger(None);
        }
        let (all, limit, own_limit) = match who {
            Refused::Proven(_) => (&mut 0, u32::MAX, MAX_PER_PEER),
            Refused::Claimed(_) => (&mut self.at_peers, MAX_AT_PEERS, MAX_PER_PEER),
            Refused::Stranger(_) => (&mut self.of_strangers, MAX_OF_STRANGERS, MAX_PER_SOURCE),
        };
        let own = self.of_source.entry(who).or_default();
        let logged = *own < own_limit && *all < limit;
        if logged {
            *own += 1;
            *all += 1;
        } else {
            self.missed = self.missed.saturating_add(1);
        }
        (logged, missed)
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
                #[cfg(feature = "x509")]
                LocalAuth::Certificate(_) => "our certificate",
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
        let who = match (peer, known) {
            (Some(index), _) if self.peers.get(&index).is_some_and(Peer::is_linked) => Refused::Proven(index),
            (_, Some(index)) => Refused::Claimed(index),
            (_, None) => Refused::stranger(path.remote.ip()),
        };
        if let Some(peer) = known.and_then(|index| self.peers.get_mut(&index))
            && PeerState::of(peer, now) != PeerState::Up
            && peer.refusal.replace(text.clone()).as_ref() == Some(&text)
        {
            return;
        }
        let (may_log, missed) = self.refusals.count(now, who);
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

    fn at(seconds: u64) -> Instant {
        Instant::ORIGIN + Duration::from_secs(seconds)
    }

    fn logged(refusals: &mut Refusals, count: u32, who: impl Fn(u32) -> Refused) -> u32 {
        (0..count).filter(|&number| refusals.count(at(100), who(number)).0).count() as u32
    }

    #[test]
    fn strangers_fill_neither_the_log_nor_the_budget_of_peers() {
        let mut refusals = Refusals::default();
        let stranger = |number: u32| Refused::stranger(Ipv4Addr::from_bits(0x0a00_0000 + (number << 8)).into());
        assert_eq!(logged(&mut refusals, 1000, |_| stranger(1)), MAX_PER_SOURCE, "one");
        assert_eq!(logged(&mut refusals, 100_000, stranger), MAX_OF_STRANGERS - MAX_PER_SOURCE, "all of them");
        assert!(refusals.of_source.len() <= MAX_SOURCES + 1, "bounded");
        // Who is at a peer's address, and who proved to be one.
        assert_eq!(logged(&mut refusals, 10_000, |number| Refused::Claimed(PeerIndex(number % 100))), MAX_AT_PEERS);
        assert_eq!(logged(&mut refusals, 1000, |number| Refused::Proven(PeerIndex(number % 10))), 10 * MAX_PER_PEER);
        // The next window, and what was missed in this one.
        let missed = refusals.missed;
        assert_eq!(refusals.count(at(159), stranger(1)), (false, 0));
        assert_eq!(refusals.count(at(160), stranger(1)), (true, missed + 1));
        assert_eq!(refusals.count(at(161), stranger(1)), (true, 0));
    }

    #[test]
    fn a_source_is_a_network() {
        let of = |text: &str| Refused::stranger(text.parse().expect("an address"));
        assert_eq!(of("203.0.113.1"), of("203.0.113.200"));
        assert_ne!(of("203.0.113.1"), of("203.0.112.1"));
        assert_eq!(of("::ffff:203.0.113.1"), of("203.0.113.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3:4:5"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
