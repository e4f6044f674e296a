//! Host keys that change while packets flow: ours, and those that we pin for peers.
//!
//! A rekey proves nothing anew, so what an IKE SA was proved with stays true for as long as it lives. If that is not what the
//! configuration says any more, a fresh IKE SA is begun beside it, which takes its place without a gap. What hangs on a key that is
//! not pinned any more has [`GRACE`] for that, and then ends.

use std::time::Duration;

use super::Node;
use crate::ike::{self, Command, IkeSummary};
use crate::model::{Instant, PeerIndex};

/// How long a peer may keep what it has by a key that was unpinned: time for two attempts with the other one. Such a key is as a
/// rule one that the peer has just replaced.
const GRACE: Duration = Duration::from_secs(10);

impl Node {
    /// Gives a peer a configuration that differs from its present one by host keys only.
    pub(super) fn change_host_keys(&mut self, now: Instant, index: PeerIndex, mut config: ike::PeerConfig) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        (config.index, config.owner) = (index, peer.config().owner);
        let unpinned = peer.ike.values().any(|summary| !config.remote_auth.accepts(&summary.remote_proof));
        let ours = config.local_auth.proves_by();
        let outdated = |summary: &IkeSummary| summary.local_proof != ours;
        let renew = unpinned || peer.newest().is_some_and(outdated);
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
