//! What changes while packets flow: host keys, ours and those that we pin for peers; where a peer is, what is routed to it, and
//! whether it waits for a packet.
//!
//! A peer with a tunnel that works keeps it, wherever it is said to be from now on; if that is another address than the one that its
//! IKE SA goes to, it is called there as well, and what comes of that takes the tunnel's place.
//!
//! A rekey proves nothing anew, so what an IKE SA was proved with stays true for as long as it lives. If that is not what the
//! configuration says any more, a fresh IKE SA is begun beside it, which takes its place without a gap. What hangs on a key that is
//! not pinned any more has [`GRACE`] for that, and then ends.

use std::time::Duration;

use super::peer::Attempt;
use super::{Node, Wanted, reconcile};
use crate::ike::{self, Command, IkeSummary};
use crate::model::{Instant, PeerIndex};

/// How long a peer may keep what it has by a key that was unpinned: time for two attempts with the other one. Such a key is as a
/// rule one that the peer has just replaced.
const GRACE: Duration = Duration::from_secs(10);

impl Node {
    /// Gives a peer a configuration that differs mildly from its present one, or not at all.
    pub(super) fn change(&mut self, now: Instant, index: PeerIndex, wanted: Wanted) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let was_to_be_called = peer.is_to_be_called(now);
        peer.set_blocks(wanted.blocks);
        peer.set_on_demand(wanted.on_demand);
        if !peer.is_configured_as(&wanted.ike) {
            self.change_config(now, index, wanted.ike);
        }
        let Some(peer) = self.peers.get_mut(&index) else { return };
        match (was_to_be_called, peer.is_to_be_called(now)) {
            (false, true) if peer.attempt == Attempt::None && !peer.is_linked() => {
                peer.attempt = Attempt::At(now + reconcile::start_delay(peer.config(), self.rng.as_mut()));
                self.next_tick = now;
            }
            (true, false) if matches!(peer.attempt, Attempt::At(_)) => {
                peer.attempt = Attempt::None;
                peer.succeeded();
            }
            _ => {}
        }
    }

    fn change_config(&mut self, now: Instant, index: PeerIndex, mut config: ike::PeerConfig) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        (config.index, config.owner) = (index, peer.config().owner);
        let unpinned = peer.ike.values().any(|summary| !config.remote_auth.accepts(&summary.remote_proof));
        let ours = config.local_auth.proves_by();
        let outdated = |summary: &IkeSummary| summary.local_proof != ours;
        let moved = config.remotes().ne(peer.config().remotes());
        let elsewhere = |summary: &IkeSummary| moved && !config.is_at(summary.path.remote.ip());
        let renew = unpinned || peer.newest().is_some_and(|summary| outdated(summary) || elsewhere(summary));
        peer.unpinned_until = unpinned.then(|| now + GRACE);
        peer.reconfigure(config.clone());
        self.endpoint.upsert_peer(config);
        if renew {
            self.attempt_now(now, index);
        }
    }

    /// Ends what hangs on a key that is not pinned any more.
    pub(super) fn end_unpinned(&mut self, now: Instant, index: PeerIndex) {
        let due = self.peers.get_mut(&index).and_then(|peer| peer.unpinned_until.take_if(|until| *until <= now));
        if due.is_some() {
            self.endpoint.handle_command(now, Command::Revoke(index));
        }
    }
}
