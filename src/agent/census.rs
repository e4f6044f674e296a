//! What containers here use of the overlay, between the journal of addresses and the store.
//!
//! The journal changes without us: plugins write it. So it is looked at, and what it says is told to the store's thread (`Usage`): who is
//! there, which addresses are in none of our blocks, whose blocks are nearly full. The other way, what other hosts want out of our blocks
//! is leased to them in the journal before the store hears of it, so nobody here gets it.
//!
//! Plugins and the watcher of Docker that need what the journal does not have ask by [`Beyond`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::docker::{self, Docker};
use super::drivers::List;
use crate::attach;
use crate::docker::{RUNTIME, View};
use crate::ipam::{
    Beyond, Book, Ipam, IpamError, JOURNAL, Lease, MANAGED, Network, Owner, Refusal, Seconds, Source, listed,
};
use crate::observe::ContainerState;
use crate::store::Endpoint;
use crate::store::etcd::{Asker, Claimed, Refused, Tight, Usage};
use crate::sys::clock::wall_clock;
use crate::sys::file::{Stamp, stamp};

/// From which part of its addresses on a network wants its next block: so many quarters.
const TIGHT_QUARTERS: u128 = 3;

/// How long a new block may take from the store into the journal.
const BLOCK_PATIENCE: Duration = Duration::from_secs(3);

/// The version of an endpoint's record.
const VERSION: u32 = 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Census {
    state_dir: PathBuf,
    /// Without a store that containers are told to, there is nothing to tell.
    asker: Option<Asker>,
    docker: Option<Docker>,
    /// What was told last was made of this.
    told: Mutex<Option<Sources>>,
    /// What others wanted when it was last looked at, and whether the store was known to be read.
    lent: Mutex<Option<(Arc<Vec<Claimed>>, bool)>>,
}

/// What a count is made of: the journal, and what Docker says.
type Sources = (Option<Stamp>, Vec<View>);

impl Census {
    pub(super) fn new(state_dir: &Path, asker: Option<Asker>, docker: Option<Docker>) -> Self {
        Self { state_dir: state_dir.to_owned(), asker, docker, told: Mutex::new(None), lent: Mutex::new(None) }
    }

    /// Tells the store if something has changed.
    pub(super) fn look(&self) {
        if let Err(error) = self.tell(false) {
            tracing::warn!("the store is not told of containers: {error}");
        }
    }

    /// Reads and tells under one lock, so that an older count never replaces a newer one. Returns what was told; none if that was nothing
    /// new, or there is nobody to be told.
    fn tell(&self, again: bool) -> Result<Option<Usage>, IpamError> {
        let Some(asker) = &self.asker else { return Ok(None) };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let views = self.docker.as_ref().map(Docker::views).unwrap_or_default();
        let sources = (stamp(&self.state_dir.join(JOURNAL)), views);
        if !again && told.as_ref() == Some(&sources) {
            return Ok(None);
        }
        let usage = usage(&Ipam::look(&self.state_dir)?, &sources.1, wall_clock());
        asker.set_usage(usage.clone());
        *told = Some(sources);
        Ok(Some(usage))
    }

    /// Leases to other hosts what they have or want out of our blocks, and takes back what they have no more. Returns what cannot be, in
    /// words; none if nothing has changed.
    pub(super) fn lend(&self, claims: &Arc<Vec<Claimed>>, live: bool) -> Option<Vec<String>> {
        let asker = self.asker.as_ref()?;
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = lent.as_ref().is_some_and(|(before, was_live)| Arc::ptr_eq(before, claims) && *was_live == live);
        if is_same && claims.iter().all(|claim| claim.granted) {
            return None;
        }
        match self.try_lend(asker, claims, live) {
            Ok(troubles) => {
                *lent = Some((Arc::clone(claims), live));
                Some(troubles)
            }
            Err(error) => Some(vec![format!("addresses that other hosts want are not given to them yet: {error}")]),
        }
    }

    fn try_lend(&self, asker: &Asker, claims: &[Claimed], live: bool) -> Result<Vec<String>, IpamError> {
        let mut troubles = Vec::new();
        let book = Ipam::look(&self.state_dir)?;
        let wanted: BTreeSet<Owner> = claims.iter().map(|claim| Owner::host(&claim.host, claim.address)).collect();
        let idle = |lease: &&Lease| live && lease.owner.is_host() && !wanted.contains(&lease.owner);
        let idle: Vec<Lease> = book.leases().filter(idle).cloned().collect();
        if claims.is_empty() && idle.is_empty() {
            return Ok(troubles);
        }
        let mut ipam = Ipam::open(&self.state_dir)?;
        for lease in idle {
            tracing::info!("network {}: {} came back", lease.network, listed(&lease.addresses));
            ipam.release(&lease.network, &lease.owner, wall_clock())?;
        }
        for claim in claims {
            let verdict = match ipam.lend(&claim.host, claim.address, wall_clock()) {
                Ok(()) => Ok(()),
                Err(error @ (IpamError::Taken { .. } | IpamError::NotOurs { .. })) => Err(error.to_string()),
                Err(error) => {
                    troubles.push(format!("{} is not given to another host yet: {error}", claim.address));
                    continue;
                }
            };
            match verdict {
                Err(why) if claim.granted => {
                    troubles.push(format!("host {} has {} by the store, but here: {why}", claim.host, claim.address));
                }
                verdict if !claim.granted => asker.lent(claim, verdict),
                _ => {}
            }
        }
        Ok(troubles)
    }

    /// Writes down for plugins of which subnets single addresses can be had.
    pub(super) fn tell_plugins(&self, subnets: &[IpNet]) -> Result<(), String> {
        let list = List::read(&self.state_dir).map_err(|error| error.to_string())?;
        let mut ipam = Ipam::open(&self.state_dir).map_err(|error| error.to_string())?;
        let is_ours = |(_, network): &(&str, &Network)| network.source() == Source::Agent;
        let names: Vec<String> = ipam.book().networks().filter(is_ours).map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let network = list.wanted().find(|network| network.pool.as_deref() == Some(&*name));
            let prefixes: Option<Vec<IpNet>> =
                network.map(|network| network.spec.prefixes().into_iter().map(IpNet::V4).collect());
            let beyond = match prefixes {
                Some(prefixes) if !prefixes.is_empty() => common(subnets, &prefixes),
                None if name != MANAGED => Vec::new(),
                _ => subnets.to_vec(),
            };
            ipam.set_beyond(&name, &beyond).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn asker(&self) -> Result<&Asker, Refusal> {
        let why = "this host has no store that could give it: etcd can".to_owned();
        self.asker.as_ref().ok_or(Refusal { why, later: false })
    }

    /// What is used now, told to the store.
    fn count(&self) -> Result<Usage, Refusal> {
        let failed = |error: IpamError| Refusal { why: error.to_string(), later: true };
        Ok(self.tell(true).map_err(failed)?.unwrap_or_default())
    }

    /// This host's blocks of a network, as plugins know them.
    pub(super) fn blocks(&self, network: &str) -> Vec<IpNet> {
        let book = Ipam::look(&self.state_dir).unwrap_or_default();
        book.network(network).map(|network| network.blocks().to_vec()).unwrap_or_default()
    }
}

impl Beyond for Census {
    fn claim(&self, _network: &str, address: IpAddr) -> Result<(), Refusal> {
        let asker = self.asker()?;
        if !self.count()?.singles.contains_key(&address) {
            return Err(Refusal { why: "no container here has a lease of it".to_owned(), later: false });
        }
        asker.claim(address).map_err(refusal)
    }

    fn next_block(&self, network: &str) -> Result<(), Refusal> {
        let asker = self.asker()?;
        let before = self.blocks(network);
        self.count()?;
        asker.next_block(network).map_err(refusal)?;
        // The agent's loop takes it over like all news of the store.
        let until = Instant::now() + BLOCK_PATIENCE;
        while self.blocks(network) == before {
            if Instant::now() >= until {
                return Err(Refusal { why: "its next block is not in use yet".to_owned(), later: true });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn refusal(refused: Refused) -> Refusal {
    Refusal { why: refused.why, later: refused.later }
}

/// What is in both.
fn common(some: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    let narrower = |one: IpNet, other: IpNet| match (one.contains(&other), other.contains(&one)) {
        (true, _) => Some(other),
        (_, true) => Some(one),
        _ => None,
    };
    some.iter().flat_map(|one| others.iter().filter_map(move |other| narrower(*one, *other))).collect()
}

/// What the journal says is used; of Docker's containers what Docker says they are called.
fn usage(book: &Book, docker: &[View], now: Seconds) -> Usage {
    let mut usage = Usage::default();
    // Without a fence there is no container.
    let macs = attach::admitted().unwrap_or_default();
    for (name, network) in book.networks() {
        for lease in network.leases().filter(|lease| !lease.owner.is_host()) {
            let Owner { container, interface, cni_network } = &lease.owner;
            // None of them has a colon or a slash.
            let key = format!("{name}/{container}:{interface}:{cni_network}");
            if !lease.pending {
                usage.endpoints.insert(key, endpoint(lease, docker, &macs));
            }
            let beyond = |address: &&IpAddr| {
                !network.is_own(**address) && network.beyond().iter().any(|subnet| subnet.contains(*address))
            };
            let singles = lease.addresses.iter().filter(beyond);
            usage.singles.extend(singles.map(|address| (*address, lease.owner.to_string())));
        }
        let counts = network.counts(false, &[], now);
        let used = counts.total - counts.free();
        if !network.beyond().is_empty() && counts.total > 0 && used * 4 >= counts.total * TIGHT_QUARTERS {
            let (within, blocks) = (network.beyond().to_vec(), network.blocks().to_vec());
            usage.tight.push(Tight { network: name.to_owned(), within, blocks });
        }
    }
    usage
}

fn endpoint(lease: &Lease, docker: &[View], macs: &BTreeMap<IpAddr, attach::HardwareAddress>) -> Endpoint {
    let about = &lease.about;
    let is_docker = lease.owner.cni_network == RUNTIME;
    let view = docker.iter().find(|view| is_docker && view.id == lease.owner.container);
    let mac = lease.addresses.iter().find_map(|address| macs.get(address));
    let state = match view {
        Some(view) => docker::state(view.state),
        None if is_docker => ContainerState::Unknown,
        None => ContainerState::Attached,
    };
    Endpoint {
        v: VERSION,
        network: view.and_then(|view| view.network.clone()).unwrap_or_else(|| lease.network.clone()),
        container: lease.owner.container.clone(),
        interface: view.and_then(|view| view.interface.clone()).unwrap_or_else(|| lease.owner.interface.clone()),
        runtime: if is_docker { RUNTIME } else { "cni" }.to_owned(),
        state: state.name().to_owned(),
        ips: lease.addresses.clone(),
        mac: mac.map(|mac| mac.map(|octet| format!("{octet:02x}")).join(":")),
        names: view.map(|view| view.name.clone()).or_else(|| about.name.clone()).into_iter().collect(),
        aliases: view.map_or(&about.aliases, |view| &view.aliases).clone(),
        labels: view.map(|view| view.labels.clone()).unwrap_or_default(),
        ports: view.map_or(&about.ports, |view| &view.ports).clone(),
        since: lease.since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{About, Request, Sandbox, Wish, obtain};

    /// Grants everything.
    struct Granting;

    impl Beyond for Granting {
        fn claim(&self, _: &str, _: IpAddr) -> Result<(), Refusal> {
            Ok(())
        }

        fn next_block(&self, _: &str) -> Result<(), Refusal> {
            unreachable!("nothing is full here")
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn lease(state_dir: &Path, container: &str, wish: Wish) {
        lease_to(state_dir, container, wish, About::default());
    }

    fn lease_to(state_dir: &Path, container: &str, wish: Wish, about: About) {
        let owner = Owner { container: container.into(), interface: "eth0".into(), cni_network: "net".into() };
        let request =
            Request { network: MANAGED.into(), owner, sandbox: Sandbox::nowhere(), wish, never: Vec::new(), about };
        obtain(Ipam::open(state_dir).unwrap(), state_dir, &request, &Granting, 100).unwrap();
    }

    #[test]
    fn what_is_used_follows_from_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let blocks = nets(&["10.42.1.0/29"]);
        let mut ipam = Ipam::open(state).unwrap();
        ipam.set_network(MANAGED, &blocks, &["10.42.1.1".parse().unwrap()], Source::Agent).unwrap();
        drop(ipam);
        let now = || usage(&Ipam::look(state).unwrap(), &[], 100);
        for number in 0..4 {
            lease(state, &format!("c{number}"), Wish::Any);
        }
        assert_eq!(now().tight, [], "without a store there is no next block");
        Ipam::open(state).unwrap().set_beyond(MANAGED, &nets(&["10.42.0.0/16"])).unwrap();
        let tight = Tight { network: MANAGED.into(), within: nets(&["10.42.0.0/16"]), blocks: blocks.clone() };
        assert_eq!(now().tight, [tight], "five of six");
        let owner = Owner { container: "c3".into(), interface: "eth0".into(), cni_network: "net".into() };
        Ipam::open(state).unwrap().release(MANAGED, &owner, 10).unwrap();
        assert_eq!(now().tight, [], "four of six, as the fifth has rested");

        lease(state, "far", Wish::These(vec!["10.42.9.5".parse().unwrap()]));
        Ipam::open(state).unwrap().lend("b0b0", "10.42.1.6".parse().unwrap(), 100).unwrap();
        let used = now();
        let singles: Vec<String> = used.singles.iter().map(|(address, whose)| format!("{address} {whose}")).collect();
        assert_eq!(singles, ["10.42.9.5 container far (eth0)"]);
        let keys: Vec<&str> = used.endpoints.keys().map(String::as_str).collect();
        let expected = ["managed/c0:eth0:net", "managed/c1:eth0:net", "managed/c2:eth0:net", "managed/far:eth0:net"];
        assert_eq!(keys, expected, "another host is no container of ours");
    }

    #[test]
    fn an_endpoint_is_what_its_runtime_says() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let blocks = nets(&["10.42.1.0/24"]);
        Ipam::open(state).unwrap().set_network(MANAGED, &blocks, &[], Source::Agent).unwrap();
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let about = About { name: Some("web".into()), aliases: texts(&["x", "y"]), ports: texts(&["8080->80/tcp"]) };
        lease_to(state, "c1", Wish::Any, about);
        let view = View {
            id: "d1".into(),
            name: "db".into(),
            aliases: texts(&["database"]),
            ports: texts(&["5432->5432/tcp"]),
            labels: BTreeMap::new(),
            network: None,
            addresses: Vec::new(),
            interface: None,
            state: crate::docker::State::Attached,
            why: None,
        };
        let owner = Owner { container: "d1".into(), interface: "eth0".into(), cni_network: RUNTIME.into() };
        let request = Request {
            network: MANAGED.into(),
            owner,
            sandbox: Sandbox::nowhere(),
            wish: Wish::Any,
            never: Vec::new(),
            about: About::default(),
        };
        Ipam::open(state).unwrap().lease(request, 100).unwrap();
        let usage = usage(&Ipam::look(state).unwrap(), &[view], 100);
        let said: Vec<_> = usage.endpoints.values().map(|it| (&it.names, &it.aliases, &it.ports)).collect();
        let (web, db) = ((texts(&["web"]), texts(&["x", "y"])), (texts(&["db"]), texts(&["database"])));
        let (http, sql) = (texts(&["8080->80/tcp"]), texts(&["5432->5432/tcp"]));
        assert_eq!(said, [(&web.0, &web.1, &http), (&db.0, &db.1, &sql)]);
    }

    #[test]
    fn what_two_have_in_common_is_the_narrower() {
        let common = |some: &[&str], others: &[&str]| common(&nets(some), &nets(others));
        assert_eq!(common(&["10.42.0.0/16"], &["10.42.0.0/17", "10.50.0.0/16"]), nets(&["10.42.0.0/17"]));
        assert_eq!(common(&["10.42.4.0/24", "10.43.0.0/16"], &["10.42.0.0/16"]), nets(&["10.42.4.0/24"]));
        assert_eq!(common(&["10.42.0.0/16"], &["10.42.0.0/16"]), nets(&["10.42.0.0/16"]));
    }
}
