//! One IKE SA per peer, whatever happened at the start.
//!
//! When a peer proves itself on a second IKE SA, one of the two goes:
//!
//! - **INITIAL_CONTACT** (RFC 7296 §2.4): the peer holds no other. Every IKE SA with it that was up before this one began goes at
//!   once and without a word. It counts only behind AUTH, and only for the same identity.
//! - **One after the other**: the older was up before the newer began, so somebody thought it dead. The newer stays.
//! - **Crossing**: both began before either was up, as when two hosts start at once. The one whose lower nonce is the higher stays;
//!   both ends compute the same.
//!
//! The loser is deleted by its initiator, or by who replaced it, after a short overlap ([`DUPLICATE_OVERLAP`]), so that the winner
//! is up on both ends before. The other end waits longer ([`DUPLICATE_PATIENCE`]), since the two ends may see the order of events
//! differently: the initiator of the newer one knows best. Whatever goes first, the other one is then kept.

use super::auth::Authenticated;
use super::child::Phase;
use super::endpoint::Endpoint;
use super::limits::{DUPLICATE_OVERLAP, DUPLICATE_PATIENCE};
use super::state::{Established, IkeSa, Lineage, Replacement};
use super::{CloseReason, Command, Event};
use crate::model::{IkeSpi, Instant, PeerId, PeerIndex};

/// Which of two goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Verdict {
    /// The older one (by when they began) loses.
    older_loses: bool,
    /// Whether we are the side that deletes soon.
    ours_to_delete: bool,
}

fn judge(older: &Lineage, newer: &Lineage) -> Verdict {
    if older.proved < newer.began {
        return Verdict { older_loses: true, ours_to_delete: newer.initiator };
    }
    let older_loses = older.low_nonce < newer.low_nonce;
    let loser = if older_loses { older } else { newer };
    Verdict { older_loses, ours_to_delete: loser.initiator }
}

impl Endpoint {
    /// A peer proved itself on this IKE SA.
    pub(super) fn settle(&mut self, now: Instant, spi: IkeSpi, initial_contact: bool) {
        let Some(new) = self.table.established(spi) else { return };
        let (peer, proof, lineage) = (new.peer(), new.birth.proof.clone(), new.birth.lineage.clone());
        self.end_initiation(now, peer, &lineage);
        if initial_contact {
            self.forget_older(now, peer, &proof, lineage.began);
        }
        let others: Vec<IkeSpi> =
            self.table.established_of(peer).map(|state| state.session.local_spi).filter(|&other| other != spi).collect();
        // Never more than two: of three, one has been beaten already and goes without waiting.
        if others.len() > 1
            && let Some(&beaten) = others.iter().find(|&&other| self.is_beaten(other))
        {
            self.with(now, beaten, |sa, shared| match sa {
                IkeSa::Established(state) => state.close(shared, now, CloseReason::Replaced),
                sa => Some(sa),
            });
        }
        for other in others {
            self.settle_pair(now, spi, other);
        }
    }

    fn is_beaten(&self, spi: IkeSpi) -> bool {
        self.table.established(spi).is_some_and(|state| state.replacement.is_some())
    }

    /// An IKE_SA_INIT of ours that was not answered yet is not needed any more: the peer's came first. One whose IKE_AUTH left may
    /// be up at the peer already, so it goes on.
    fn end_initiation(&mut self, now: Instant, peer: PeerIndex, lineage: &Lineage) {
        if lineage.initiator {
            return;
        }
        for spi in self.table.of_peer(peer) {
            if matches!(self.table.peek(spi), Some(IkeSa::Initiating(state)) if state.is_unanswered()) {
                self.with(now, spi, |_, _| None);
            }
        }
    }

    /// INITIAL_CONTACT.
    fn forget_older(&mut self, now: Instant, peer: PeerIndex, proof: &Authenticated<PeerId>, began: Instant) {
        for other in self.table.of_peer(peer) {
            let older = self.table.established(other).map(|state| &state.birth);
            if older.is_some_and(|older| older.proof == *proof && older.lineage.proved < began) {
                self.with(now, other, |sa, shared| match sa {
                    IkeSa::Established(state) => state.die(shared, now, CloseReason::Replaced),
                    sa => Some(sa),
                });
            }
        }
    }

    fn settle_pair(&mut self, now: Instant, a: IkeSpi, b: IkeSpi) {
        let (Some(first), Some(second)) = (self.table.established(a), self.table.established(b)) else { return };
        let (older, newer) =
            if first.birth.lineage.began <= second.birth.lineage.began { (first, second) } else { (second, first) };
        let verdict = judge(&older.birth.lineage, &newer.birth.lineage);
        let (loser, winner) = if verdict.older_loses { (older, newer) } else { (newer, older) };
        let (loser, winner) = (loser.session.local_spi, winner.session.local_spi);
        let pause = if verdict.ours_to_delete { DUPLICATE_OVERLAP } else { DUPLICATE_PATIENCE };
        self.with(now, loser, |sa, _| match sa {
            IkeSa::Established(mut state) => {
                state.replacement = Some(Replacement { by: winner, at: now + pause });
                Some(IkeSa::Established(state))
            }
            sa => Some(sa),
        });
        self.prefer_winner(loser);
    }

    /// The winner's CHILD_SA carries the traffic, if it can already, and all of it: what the loser had for single workers goes.
    pub(super) fn prefer_winner(&mut self, loser: IkeSpi) {
        let winner = self
            .table
            .established(loser)
            .and_then(|state| state.replacement)
            .and_then(|replacement| self.table.established(replacement.by));
        let Some(active) = winner.and_then(active_child) else { return };
        self.shared.event(Event::Activate { spi: active });
        if let Some(IkeSa::Established(mut state)) = self.table.take(loser) {
            state.give_up_worker_children(&mut self.shared);
            self.table.put(loser, IkeSa::Established(state));
        }
    }

    /// An IKE SA of this peer is gone: what it had beaten stays after all, and is asked for the sign of life that it owed.
    pub(super) fn survive(&mut self, now: Instant, peer: PeerIndex, gone: IkeSpi, probing: bool) {
        self.change_winner(peer, gone, None);
        if probing {
            self.handle_command(now, Command::Probe(peer));
        }
    }

    /// The winner was rekeyed.
    pub(super) fn rename_winner(&mut self, from: IkeSpi, to: IkeSpi, peer: PeerIndex) {
        self.change_winner(peer, from, Some(to));
    }

    fn change_winner(&mut self, peer: PeerIndex, from: IkeSpi, to: Option<IkeSpi>) {
        for spi in self.table.of_peer(peer) {
            let concerned = self
                .table
                .established(spi)
                .is_some_and(|state| state.replacement.is_some_and(|replacement| replacement.by == from));
            if !concerned {
                continue;
            }
            if let Some(IkeSa::Established(mut state)) = self.table.take(spi) {
                state.replacement =
                    state.replacement.and_then(|replacement| to.map(|by| Replacement { by, at: replacement.at }));
                self.table.put(spi, IkeSa::Established(state));
            }
        }
    }
}

fn active_child(state: &Established) -> Option<crate::model::Spi> {
    state
        .children
        .values()
        .find(|child| child.phase == Phase::Active && child.successor.is_none() && !child.per_worker)
        .map(|child| child.inbound_spi)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn lineage(initiator: bool, began: u64, proved: u64, nonce: u8) -> Lineage {
        let at = |millis| Instant::from_origin(std::time::Duration::from_millis(millis));
        Lineage {
            initiator,
            began: at(began),
            proved: at(proved),
            low_nonce: Bytes::from(vec![nonce; 32]),
            post_quantum: false,
        }
    }

    #[test]
    fn the_newer_of_two_in_a_row_stays_whatever_the_nonces() {
        for nonce in [0, 9] {
            let verdict = judge(&lineage(true, 0, 10, nonce), &lineage(false, 20, 30, 5));
            assert_eq!(verdict, Verdict { older_loses: true, ours_to_delete: false });
        }
    }

    #[test]
    fn crossing_ones_are_judged_by_nonce_and_deleted_by_their_initiator() {
        let (ours, theirs) = (lineage(true, 0, 25, 3), lineage(false, 20, 30, 5));
        assert_eq!(judge(&ours, &theirs), Verdict { older_loses: true, ours_to_delete: true });
        let stronger = lineage(true, 0, 25, 7);
        assert_eq!(judge(&stronger, &theirs), Verdict { older_loses: false, ours_to_delete: false });
    }
}
