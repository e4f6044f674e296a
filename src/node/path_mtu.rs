//! How large a packet to each peer may be. The node cannot look: it says which paths are to be looked at
//! ([`Node::path_checks`]), is told what was found ([`Node::set_path_mtu`]), and tells the workers that send to the peer. When
//! the kernel refuses a worker's datagram, nobody waits for the node to ask ([`Node::handle_path_mtu`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::peer::Peer;
use super::{Node, Recipient};
use crate::esp::{InnerMtu, Update};
use crate::model::{Instant, Path, PeerIndex, WorkerIndex};

/// How often a path that did not change is looked at again: as often as an operator who changes an MTU likes to wait.
const RECHECK: Duration = Duration::from_secs(30);

/// The smallest packet, with its header, that is taken for a path's MTU: every IPv4 host takes datagrams of 576 octets (RFC
/// 791 §3.1), and no IPv6 link carries less than 1280 (RFC 8200 §5).
const MIN_MTU: [u32; 2] = [576, 1280];

/// Octets of an IP header without options, of an UDP header.
const IP_HEADER: [u32; 2] = [20, 40];
const UDP_HEADER: u32 = 8;

/// What is known of the path to a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathMtu {
    /// Between which addresses it was looked at last, and when. Ports do not matter.
    checked: Option<(Ends, Instant)>,
    /// Whether that may be wrong, as routes or interfaces changed.
    stale: bool,
    /// What the worker was told: for which peer's address, and the largest UDP payload in octets.
    told: Option<(IpAddr, u16)>,
}

/// The outer addresses: ours and the peer's.
type Ends = (IpAddr, IpAddr);

impl PathMtu {
    /// The longest inner packets that the path carries; none before it was looked at.
    pub fn inner(&self, tun_mtu: u16) -> Option<InnerMtu> {
        self.told.map(|(_, limit)| InnerMtu::new(Some(limit), tun_mtu))
    }

    /// Whether the path is due to be looked at, and since when it was not; none is longest.
    fn due(&self, now: Instant, ends: Ends) -> Option<Option<Instant>> {
        match self.checked {
            Some((checked, at)) if checked == ends => (self.stale || now.since(at) >= RECHECK).then_some(Some(at)),
            _ => Some(None),
        }
    }
}

/// The largest ESP datagram, as UDP payload, that a path of `mtu` octets carries to `remote`.
#[must_use]
pub fn payload_limit(remote: IpAddr, mtu: u32) -> u16 {
    let family = usize::from(remote.is_ipv6());
    let limit = mtu.max(MIN_MTU[family]) - IP_HEADER[family] - UDP_HEADER;
    u16::try_from(limit).unwrap_or(u16::MAX)
}

impl Peer {
    /// The path of the newest IKE SA.
    fn path(&self) -> Option<Path> {
        self.newest().map(|summary| summary.path)
    }
}

fn ends(path: Path) -> Ends {
    (path.local.ip().to_canonical(), path.remote.ip().to_canonical())
}

impl Node {
    /// Up to `max` paths whose MTU should be looked at now: those that are new, then those that were not looked at for long.
    /// They are taken for looked at, so a look that fails is not repeated before the others had theirs.
    pub fn path_checks(&mut self, now: Instant, max: usize) -> Vec<(PeerIndex, Path)> {
        let due = |peer: &Peer| {
            let path = peer.path()?;
            let since = peer.path_mtu.due(now, ends(path))?;
            Some((since, peer.index(), path))
        };
        let mut checks: Vec<_> = self.peers.values().filter_map(due).collect();
        checks.sort_by_key(|&(since, index, _)| (since, index));
        checks.truncate(max);
        for &(_, index, path) in &checks {
            if let Some(peer) = self.peers.get_mut(&index) {
                peer.path_mtu.checked = Some((ends(path), now));
                peer.path_mtu.stale = false;
            }
        }
        checks.into_iter().map(|(_, index, path)| (index, path)).collect()
    }

    /// Routes or interfaces changed: every path is to be looked at again. Each keeps its place in the order, so that all have their
    /// turn where something changes all the time.
    pub fn routes_changed(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.path_mtu.stale = true);
    }

    /// Takes what a look at a path found, whoever is reached by it.
    pub fn handle_path_mtu(&mut self, now: Instant, path: Path, mtu: u32) {
        let same = |peer: &&Peer| peer.path().map(ends) == Some(ends(path));
        let found: Vec<PeerIndex> = self.peers.values().filter(same).map(Peer::index).collect();
        for index in found {
            self.set_path_mtu(now, index, path, mtu);
        }
    }

    /// Tells a worker that has, or is about to have, an SA with the peer.
    pub(super) fn tell_path_limit(&mut self, index: PeerIndex, worker: WorkerIndex) {
        if let Some((_, limit)) = self.peers.get(&index).and_then(|peer| peer.path_mtu.told) {
            self.updates.push_back((Recipient::Worker(worker), Update::PathLimit(index, Some(limit))));
        }
    }

    /// Takes what a look at a path found: the largest packet with its IP header, in octets. Nothing happens if the peer is
    /// reached by another path by now.
    pub fn set_path_mtu(&mut self, now: Instant, index: PeerIndex, path: Path, mtu: u32) {
        let tun_mtu = self.config.tun_mtu;
        let Some(peer) = self.peers.get_mut(&index) else { return };
        if peer.path().map(ends) != Some(ends(path)) {
            return;
        }
        let remote = path.remote.ip().to_canonical();
        let told = (remote, payload_limit(remote, mtu));
        if peer.path_mtu.told == Some(told) {
            return;
        }
        let before = peer.path_mtu.inner(tun_mtu).unwrap_or(InnerMtu::new(None, tun_mtu));
        let inner = InnerMtu::new(Some(told.1), tun_mtu);
        peer.path_mtu.told = Some(told);
        let mut workers = BTreeSet::from([peer.config().owner]);
        workers.extend(self.installs.of(index).map(|(spi, _)| spi.owner()));
        for worker in workers {
            self.tell_path_limit(index, worker);
        }
        if inner != before {
            let text = format!("the path to {remote} takes {mtu} octets: packets of up to {} pass whole", inner.v4);
            self.remember(now, index, text, false);
        }
    }
}
