//! What containers and their networks need of the agent while both live: bridges of other plugins that the guard lets pass, an MTU that
//! follows the tunnel's and the network's, a way through Docker's filter (`passage.rs`), and a fence that comes back.
//!
//! Commands change the networks without us, and plugins connect containers without us. So this looks, at every second, whether
//! anything of that is another than before, which costs next to nothing, and does its work only then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::drivers::List;
use super::passage::Passage;
use crate::attach;
use crate::docker;
use crate::ipam::Ipam;
use crate::network::{Spec, interface_of};
use crate::observe::counted;
use crate::sys::file::Stamp;
use crate::sys::netlink::Netlink;

/// How often everything is looked at without a sign of change: a container may be attached in the very moment in which we look.
const NET: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Containers {
    state_dir: PathBuf,
    tun: String,
    seen: Option<Seen>,
    next: Instant,
    passage: Passage,
    keeper: attach::Keeper,
    /// What the log was told last of the fence.
    told: String,
}

/// What containers' MTUs follow from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    networks: Option<Stamp>,
    tun_mtu: Option<u32>,
}

impl Containers {
    pub(super) fn new(state_dir: &Path, tun: &str) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            tun: tun.to_owned(),
            seen: None,
            next: Instant::now(),
            passage: Passage::default(),
            keeper: attach::Keeper::default(),
            told: String::new(),
        }
    }

    /// Looks once; `changed` says that some interface, address or route did. Returns the bridges of other plugins if the networks may be
    /// others than before.
    pub(super) fn look(&mut self, changed: bool) -> Option<Vec<String>> {
        self.passage.look(&self.tun, changed);
        let tun_mtu = Netlink::open().and_then(|mut netlink| netlink.link(&self.tun)).ok().map(|link| link.mtu);
        let seen = Some(Seen { networks: List::stamp(&self.state_dir), tun_mtu });
        let now = Instant::now();
        let news = seen != self.seen;
        if !news && now < self.next {
            return None;
        }
        (self.seen, self.next) = (seen, now + NET);
        self.follow_mtu();
        news.then(|| foreign_bridges(&self.state_dir))
    }

    /// Puts the fence back if somebody took it away. Returns whether any nftables table changed, whosever.
    pub(super) fn keep_fence(&mut self) -> bool {
        let (changed, trouble) = match self.keeper.look() {
            Ok((changed, put_back)) => {
                if put_back {
                    tracing::warn!("somebody removed the nftables tables around the containers' networks: they are back");
                }
                (changed, String::new())
            }
            // The same again is no news.
            Err(error) => (true, format!("the nftables tables around the containers' networks: {error}")),
        };
        if self.told != trouble && !trouble.is_empty() {
            tracing::warn!("{trouble}");
        }
        self.told = trouble;
        changed
    }

    fn follow_mtu(&self) {
        let list = List::read(&self.state_dir).unwrap_or_default();
        let leases = Ipam::look(&self.state_dir);
        let known: Vec<PathBuf> =
            leases.iter().flat_map(|book| book.leases()).map(|it| it.sandbox.netns.clone().into()).collect();
        let said = |port: &attach::Port| match list.find(&port.cni_network) {
            // Whoever watches Docker knows what those containers' labels say.
            _ if port.cni_network == docker::RUNTIME => Some(port.mtu),
            Some(network) => network.spec.mtu(port.own_overhead),
            None => port.said_mtu,
        };
        match attach::follow_mtu(&self.tun, &known, &said) {
            Ok(changed) if changed.is_empty() => {}
            Ok(changed) => tracing::info!("{} got another MTU", counted(changed.len(), "running container")),
            Err(error) => tracing::warn!("the MTU of containers: {error}"),
        }
    }
}

/// The bridges to which plugins that are not ours connect containers with addresses of this host's blocks.
pub(super) fn foreign_bridges(state_dir: &Path) -> Vec<String> {
    let list = List::read(state_dir).unwrap_or_default();
    let blocks = list.host.as_ref().map(|host| host.blocks.as_slice()).unwrap_or_default();
    let concerned = |spec: &Spec| spec.has_our_addresses() || !spec.blocks(blocks).is_empty();
    let named = list.wanted().filter(|it| concerned(&it.spec)).flat_map(|network| network.spec.foreign_bridges());
    let mut bridges: Vec<String> = named.filter(|name| interface_of(name).is_ok()).map(str::to_owned).collect();
    bridges.sort();
    bridges.dedup();
    bridges
}
