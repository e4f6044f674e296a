//! What must hold between the hosts of a world once it is quiet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Host, World};
use crate::model::{PeerIndex, Spi};
use crate::node::installs::{Installed, Stage};

impl Host {
    fn peer_named(&self, name: &str) -> Option<PeerIndex> {
        self.node.peers.values().find(|peer| peer.config().name == name).map(|peer| peer.index())
    }

    /// How many IKE SAs it has up with this peer.
    #[must_use]
    pub fn ike_sas(&self, name: &str) -> usize {
        self.peer_named(name).map_or(0, |index| self.node.peers[&index].ike.len())
    }

    /// Half-open IKE SAs that this source made.
    #[must_use]
    pub fn half_open(&self, source: IpAddr) -> usize {
        self.node.endpoint.half_open(source)
    }

    /// IKE SAs in any state and inbound SPIs: what is left when everything has settled.
    #[must_use]
    pub fn holds(&self) -> (usize, usize) {
        (self.node.endpoint.ike_sa_count(), self.node.endpoint.inbound_spi_count())
    }

    fn children(&self, index: PeerIndex) -> Vec<(Spi, &Installed)> {
        self.node.installs.of(index).collect()
    }
}

impl World {
    /// Everything that a host has to say of a peer, for messages.
    #[must_use]
    pub fn told_of(&self, address: IpAddr, name: &str) -> String {
        let host = &self.hosts[&address];
        let views = host.node.peers(host.now(self.now));
        views.into_iter().find(|view| view.name == name).map_or_else(String::new, |view| format!("{view:?}"))
    }

    /// Exactly one IKE SA, the same at both ends; one CHILD_SA for everything and one for each pair of workers that has its own; the
    /// same keys crosswise; and each end sends with them (P1, P2). Each host is given with the name that the other has for it.
    ///
    /// # Errors
    /// A sentence that says what does not hold.
    pub fn settled(&self, a: (IpAddr, &str), b: (IpAddr, &str)) -> Result<(), String> {
        for ((here, own_name), (there, name)) in [(a, b), (b, a)] {
            let (host, other) = (&self.hosts[&here], &self.hosts[&there]);
            let (index, back) = (host.peer_named(name), other.peer_named(own_name));
            let (index, back) = index.zip(back).ok_or("P2: the peer is not configured")?;
            let summaries: Vec<_> = host.node.peers[&index].ike.values().collect();
            let [summary] = summaries.as_slice() else {
                return Err(format!("P2: {own_name} has {} IKE SAs with {name}", summaries.len()));
            };
            let is_twin = |twin: &&crate::ike::IkeSummary| {
                (twin.local_spi, twin.remote_spi) == (summary.remote_spi, summary.local_spi)
            };
            if !other.node.peers[&back].ike.values().any(|twin| is_twin(&twin)) {
                return Err(format!("P2: {own_name}'s IKE SA with {name} has no twin"));
            }
            self.children_agree((host, own_name), (other, name), (index, back))?;
        }
        Ok(())
    }

    fn children_agree(
        &self,
        (host, own_name): (&Host, &str),
        (other, name): (&Host, &str),
        (index, back): (PeerIndex, PeerIndex),
    ) -> Result<(), String> {
        let (ours, theirs) = (host.children(index), other.children(back));
        let common = ours.iter().filter(|(_, sa)| !sa.per_worker).count();
        if common != 1 {
            return Err(format!("P2: {own_name} has {common} CHILD_SAs for everything with {name}"));
        }
        let mut workers = BTreeSet::new();
        for (spi, sa) in ours {
            let Some((twin, _)) = theirs.iter().find(|(twin, other)| *twin == sa.outbound_spi && other.outbound_spi == spi)
            else {
                return Err(format!("P1: {own_name}'s CHILD_SA {spi} with {name} has no twin"));
            };
            let (Some(keys), Some(twin)) =
                (self.witness.keys(host.address, host.life, spi), self.witness.keys(other.address, other.life, *twin))
            else {
                return Err(format!("P1: {own_name} or {name} has no keys for {spi}"));
            };
            if keys.inbound != twin.outbound || keys.outbound != twin.inbound {
                return Err(format!("P1: {own_name} and {name} have other keys for {spi}"));
            }
            // One for a single worker waits for a packet of the peer, or of the worker.
            if !sa.per_worker && sa.stage != Stage::Active {
                return Err(format!("P2: {own_name} does not send with {spi} to {name}"));
            }
            if sa.per_worker && !workers.insert((spi.owner(), sa.outbound_spi.owner())) {
                return Err(format!("P2: {own_name} has two CHILD_SAs with {name} for one pair of workers"));
            }
        }
        Ok(())
    }
}
