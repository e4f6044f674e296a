//! The answers on the control socket: what the node and the workers know, as the status model.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use super::census::Census;
use super::docker::{self, Docker};
use super::membership::View;
use super::wish::Wish;
use super::{drivers, plumbing, preflight};
use crate::control::{Claimed, Counters, Fault, FaultKind, Handler, HostRemoved, RekeyWhat, Rekeyed, Request, Version};
use crate::engine::{Caller, Fallback, Strays, Unreachable};
use crate::ipam::{Beyond, Refusal};
use crate::model::{DropReason, Drops};
use crate::node::{self, ChildView, Node, PeerView, Rekey, WorkerTraffic};
use crate::observe::{
    Change, Child, Container, ContainerState, Containers, Host, Hosts, Ike, Peer, PeerDirection, PeerState, Peers, Remark,
    Sockets, Status, Tun, Worker,
};
use crate::store::{Endpoint, Member, Own};
use crate::sys::udp::Buffers;

/// What the status says of the agent itself.
#[derive(Debug)]
pub(super) struct Facts {
    /// `host.name`.
    pub host: String,
    /// `host.advertise`, its interfaces resolved.
    pub advertise: Vec<String>,
    /// Where each peer is configured to be.
    pub addresses: HashMap<String, String>,
    /// The device.
    pub tun: Tun,
    /// What the sockets were granted.
    pub buffers: Buffers,
    /// Datagrams that leave as one train at most.
    pub train: usize,
    /// What does not work as it should.
    pub fallbacks: Vec<Fallback>,
    /// The guard's table.
    pub table: String,
    /// Docker, if its containers get addresses by their labels.
    pub docker: Option<Docker>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// What an operator should know of addresses that other hosts have out of our blocks.
    pub loan_warnings: Vec<String>,
    /// What an operator should know of networks.
    pub driver_warnings: Vec<String>,
    /// What an operator should know of filters in the way of containers.
    pub barrier_warnings: Vec<String>,
    /// What an operator should know of the kernel's tables of neighbours.
    pub neighbour_warnings: Vec<String>,
    /// The store, if there is one.
    pub store: Option<(View, Own)>,
    /// What an operator should know of what it says.
    pub store_warnings: Vec<String>,
}

impl Facts {
    /// Takes from what is wanted what the status shows.
    pub(super) fn describe(&mut self, wish: &Wish) {
        let config = &wish.config;
        self.store = wish.view();
        self.store_warnings.clone_from(&wish.warnings);
        self.host.clone_from(&config.host.name);
        self.advertise = preflight::advertised(config);
        let address = |peer: &crate::config::Peer| {
            let places: Vec<String> = peer.remotes().map(|remote| remote.to_string()).collect();
            Some((peer.name.value.clone(), places.join(", "))).filter(|_| !places.is_empty())
        };
        self.addresses = config.peers.iter().filter_map(address).collect();
    }
}

/// Answers requests.
pub(super) struct Answers {
    pub caller: Caller<Node>,
    pub census: Arc<Census>,
    pub facts: Arc<Mutex<Facts>>,
    pub started: Instant,
    pub state_dir: PathBuf,
    /// Of the workers and the control thread.
    pub drops: Vec<Arc<Drops>>,
    pub counters: Arc<Counters>,
}

impl Handler for Answers {
    fn handle(&self, request: Request) -> Result<Value, Fault> {
        match request {
            Request::Status {} => value(&self.status()?),
            Request::Peers { name } => value(&self.peers(name)?),
            Request::Rekey { peer, what } => value(&self.rekey(peer, what)?),
            Request::Hosts { name } => value(&self.hosts(name.as_deref())?),
            Request::HostRemove { name, force } => value(&self.remove_host(&name, force)?),
            Request::Containers {} => value(&self.containers()),
            Request::AddressClaim { network, address } => {
                let claimed = self.census.claim(&network, address).map(|()| vec![IpNet::from(address).to_string()]);
                value(&Claimed::new(&network, claimed.map_err(refused)?))
            }
            Request::BlockClaim { network } => {
                let claimed = self
                    .census
                    .next_block(&network)
                    .map(|()| self.census.blocks(&network).iter().map(ToString::to_string).collect());
                value(&Claimed::new(&network, claimed.map_err(refused)?))
            }
            Request::Version {} => value(&Version::own()),
        }
    }
}

impl Answers {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Whoever panicked left facts that are no less true.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of this host that Docker has, and those of other hosts that the store knows of.
    fn containers(&self) -> Containers {
        let facts = self.facts();
        let mut all = docker::containers(&facts.host, facts.docker.as_ref());
        let view = facts.store.as_ref().map(|(view, _)| (view.asker.clone(), view.members.clone()));
        drop(facts);
        if let Some((Some(asker), Some(members))) = view {
            let labels: HashMap<&str, String> = members.hosts.iter().map(|host| &*host.id).zip(members.labels()).collect();
            for (host, endpoints) in asker.endpoints().unwrap_or_default() {
                // Of a host that nobody knows there is nothing to be said.
                let Some(label) = labels.get(&*host) else { continue };
                all.containers.extend(endpoints.into_iter().map(|endpoint| remote(endpoint, label)));
            }
        }
        all
    }

    fn status(&self) -> Result<Status, Fault> {
        let question = |node: &mut Node, now| {
            let drops: Vec<(DropReason, u64)> = node.drops().nonzero().collect();
            (node.peers(now), drops, node.worker_traffic())
        };
        let (views, ike_drops, traffic) = self.caller.ask(question).map_err(unreachable)?;
        let facts = self.facts();
        let mut status = Status::new(&facts.host);
        status.advertise.clone_from(&facts.advertise);
        status.store = facts.store.as_ref().map(|(view, _)| view.observe());
        status.uptime_seconds = self.started.elapsed().as_secs();
        let offloads = self.caller.offloads();
        let offloads = [(offloads.tcp, "tcp"), (offloads.udp, "udp")];
        let offloads = offloads.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()).collect();
        status.tun = Some(Tun { offloads, ..facts.tun.clone() });
        status.sockets = Some(Sockets {
            wanted_octets: facts.buffers.wanted as u64,
            receive_octets: facts.buffers.receive as u64,
            send_octets: facts.buffers.send as u64,
            train: facts.train as u64,
        });
        let remark = |fallback: &Fallback| Remark { name: fallback.name().to_owned(), text: fallback.sentence().to_owned() };
        status.fallbacks = facts.fallbacks.iter().map(remark).collect();
        status.workers = (0..).zip(traffic).zip(self.caller.strays()).map(worker).collect();
        status.peers = views.into_iter().map(|view| peer(view, &facts.addresses)).collect();
        for drops in &self.drops {
            status.drops.add(drops);
        }
        for (reason, count) in ike_drops {
            status.drops.add_one(reason, count);
        }
        drivers::show(&self.state_dir, &mut status);
        status.control = self.counters.snapshot();
        let lists = [
            &facts.driver_warnings,
            &facts.loan_warnings,
            &facts.barrier_warnings,
            &facts.neighbour_warnings,
            &facts.store_warnings,
        ];
        status.warnings = [&facts.warnings]
            .into_iter()
            .chain(lists)
            .flatten()
            .cloned()
            .chain(docker::complaints(&facts.docker.as_ref().map(Docker::views).unwrap_or_default()))
            .collect();
        let (table, tun) = (facts.table.clone(), facts.tun.name.clone());
        drop(facts);
        let guard = plumbing::guard_counters(&table);
        for (reason, count) in [
            (DropReason::ClearOverlay, guard.clear_overlay.packets),
            (DropReason::ForgedOverlay, guard.forged_overlay.packets),
            (DropReason::DeviceFull, plumbing::device_drops(&tun)),
        ] {
            if count > 0 {
                status.drops.add_one(reason, count);
            }
        }
        Ok(status)
    }

    fn peers(&self, name: Option<String>) -> Result<Peers, Fault> {
        let views = self.caller.ask(|node: &mut Node, now| node.peers(now)).map_err(unreachable)?;
        let facts = self.facts();
        let wanted = views.into_iter().filter(|view| name.as_ref().is_none_or(|name| *name == view.name));
        let peers: Vec<Peer> = wanted.map(|view| peer(view, &facts.addresses)).collect();
        match name {
            Some(name) if peers.is_empty() => Err(no_such_peer(&name)),
            _ => Ok(Peers::new(peers)),
        }
    }

    /// The store's hosts, or those of that name or ID.
    fn hosts(&self, name: Option<&str>) -> Result<Hosts, Fault> {
        let states: HashMap<String, node::PeerState> = self
            .caller
            .ask(|node: &mut Node, now| node.peers(now).into_iter().map(|view| (view.name, view.state)).collect())
            .map_err(unreachable)?;
        let facts = self.facts();
        let Some((view, own)) = &facts.store else {
            return Err(Fault::new(FaultKind::NotFound, "no store is configured: peers are listed by hand"));
        };
        let Some(members) = &view.members else {
            return Err(Fault::new(FaultKind::Failed, "the store was never read: no host is known"));
        };
        let own_id = members.own(own).map(|member| &member.id);
        let one = |(label, member): (String, &Member)| {
            let state = match states.get(&label) {
                _ if own_id == Some(&member.id) => "this host",
                Some(state) => state.name(),
                None => "unused",
            };
            host(label, member, state)
        };
        let hosts: Vec<Host> = members.labels().into_iter().zip(&members.hosts).map(one).collect();
        let wanted = |host: &Host| name.is_none_or(|name| is_called(host, name));
        let hosts: Vec<Host> = hosts.into_iter().filter(wanted).collect();
        match name {
            Some(name) if hosts.is_empty() => Err(no_such_host(name)),
            _ => Ok(Hosts::new(hosts)),
        }
    }

    fn remove_host(&self, name: &str, force: bool) -> Result<HostRemoved, Fault> {
        let failed = |message: String| Fault::new(FaultKind::Failed, message);
        let hosts = self.hosts(Some(name))?.hosts;
        let store = self.facts().store.as_ref().map(|(view, _)| (view.asker.clone(), view.observe().place));
        let (asker, place) = store.unwrap_or_default();
        let Some(asker) = asker else {
            let message = format!("hosts are listed in {place}: take {name} out of it, on every host");
            return Err(failed(message));
        };
        match hosts.as_slice() {
            [host] if host.state == "this host" && !force => {
                Err(failed("this is this host itself; --force removes it all the same".to_owned()))
            }
            [host] => {
                let freed = asker.remove(&host.id, force).map_err(failed)?;
                Ok(HostRemoved::new(&host.name, &host.id, freed.iter().map(ToString::to_string).collect()))
            }
            several => {
                let ids: Vec<&str> = several.iter().map(|host| &*host.id).collect();
                Err(failed(format!("{} hosts are called {name}: say which by its ID: {}", several.len(), ids.join(", "))))
            }
        }
    }

    fn rekey(&self, name: String, what: RekeyWhat) -> Result<Rekeyed, Fault> {
        let kind = match what {
            RekeyWhat::Child => Rekey::Child,
            RekeyWhat::Ike => Rekey::Ike,
        };
        let peer = name.clone();
        let question = move |node: &mut Node, now| {
            let known = node.peers(now).iter().any(|view| view.name == peer);
            known.then(|| node.rekey(now, &peer, kind))
        };
        match self.caller.ask(question).map_err(unreachable)? {
            Some(true) => Ok(Rekeyed::new(&name, what)),
            Some(false) => {
                let sa = if what == RekeyWhat::Ike { "IKE SA" } else { "CHILD_SA" };
                Err(Fault::new(FaultKind::Failed, format!("{name} has no {sa} that could be replaced")))
            }
            None => Err(no_such_peer(&name)),
        }
    }
}

/// Whether somebody may mean this host: by what it is called here, its name, its ID or the beginning of that.
fn is_called(host: &Host, name: &str) -> bool {
    /// Fewer digits of an ID may be anybody's.
    const MIN: usize = 8;
    host.label == name || host.name == name || host.id == name || (name.len() >= MIN && host.id.starts_with(name))
}

/// A container of another host in the words of `underpass ps`.
fn remote(endpoint: Endpoint, host: &str) -> Container {
    let known = [ContainerState::Attached, ContainerState::Waiting, ContainerState::Failed, ContainerState::Disconnected];
    Container {
        id: endpoint.container,
        name: endpoint.names.into_iter().next(),
        aliases: endpoint.aliases,
        ports: endpoint.ports,
        runtime: endpoint.runtime,
        host: Some(host.to_owned()),
        network: Some(endpoint.network).filter(|network| !network.is_empty()),
        addresses: endpoint.ips,
        interface: Some(endpoint.interface).filter(|interface| !interface.is_empty()),
        state: known.into_iter().find(|state| state.name() == endpoint.state).unwrap_or(ContainerState::Unknown),
        why: None,
        since: Some(endpoint.since),
    }
}

fn refused(refusal: Refusal) -> Fault {
    Fault::new(if refusal.later { FaultKind::Away } else { FaultKind::Failed }, refusal.why)
}

/// A host of the store in the words of the status.
fn host(label: String, member: &Member, state: &str) -> Host {
    Host {
        label,
        name: member.name.clone(),
        id: member.id.clone(),
        state: state.to_owned(),
        seen: member.seen,
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
        blocks: member.blocks.iter().map(ToString::to_string).collect(),
        keys: member.keys.iter().map(|key| key.to_base64()).collect(),
    }
}

fn no_such_host(name: &str) -> Fault {
    Fault::new(FaultKind::NotFound, format!("no host of the store is called {name:?}"))
}

fn no_such_peer(name: &str) -> Fault {
    Fault::new(FaultKind::NotFound, format!("no peer is called {name:?}"))
}

fn unreachable(error: Unreachable) -> Fault {
    let kind = match error {
        Unreachable::Busy => FaultKind::Timeout,
        Unreachable::Ended => FaultKind::Failed,
    };
    Fault::new(kind, error.to_string())
}

fn value(answer: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(answer).map_err(|error| Fault::new(FaultKind::Failed, error.to_string()))
}

/// A peer of the node in the words of the status.
fn peer(view: PeerView, addresses: &HashMap<String, String>) -> Peer {
    let mut peer = Peer::new(&view.name, state(view.state));
    peer.dead_direction = match view.dead_direction {
        Some("outbound") => Some(PeerDirection::Outbound),
        Some(_) => Some(PeerDirection::Inbound),
        None => None,
    };
    peer.configured_address = addresses.get(&view.name).cloned();
    peer.remote = view.remote;
    peer.mtu = view.mtu;
    peer.local_behind_nat = view.local_behind_nat.into();
    peer.remote_behind_nat = view.remote_behind_nat.into();
    peer.ike = view.ike.map(|ike| Ike {
        suite: ike.suite.to_string(),
        post_quantum: ike.post_quantum,
        local_proof: Some(ike.local_proof.to_string()),
        remote_proof: Some(ike.remote_proof.to_string()),
        local_spi: ike.local_spi.to_string(),
        remote_spi: ike.remote_spi.to_string(),
        age_seconds: ike.age.as_secs(),
        rekey_in_seconds: Some(ike.rekey_in.as_secs()),
        initiator: ike.initiator,
    });
    peer.children = view.children.into_iter().map(child).collect();
    peer.last_proof_seconds = view.last_proof.as_ref().map(Duration::as_secs);
    peer.last_error = view.last_error;
    peer.next_attempt_seconds = view.next_attempt.as_ref().map(Duration::as_secs);
    for (reason, count) in view.drops {
        peer.drops.add_one(reason, count);
    }
    let change = |(age, text): (Duration, String)| Change { seconds_ago: age.as_secs(), text };
    peer.history = view.history.into_iter().map(change).collect();
    peer
}

const fn state(state: node::PeerState) -> PeerState {
    match state {
        node::PeerState::Up => PeerState::Up,
        node::PeerState::OneWay => PeerState::OneWay,
        node::PeerState::Idle => PeerState::Idle,
        node::PeerState::Connecting => PeerState::Connecting,
        node::PeerState::Retrying => PeerState::Retrying,
        node::PeerState::Down => PeerState::Down,
    }
}

fn worker(((worker, traffic), strays): ((u8, WorkerTraffic), Strays)) -> Worker {
    Worker {
        worker,
        inbound_packets: traffic.inbound.0,
        inbound_octets: traffic.inbound.1,
        outbound_packets: traffic.outbound.0,
        outbound_octets: traffic.outbound.1,
        inbound_strays: strays.outer,
        outbound_strays: strays.inner,
    }
}

fn child(view: ChildView) -> Child {
    let texts = |selectors: &[crate::model::TrafficSelector]| selectors.iter().map(ToString::to_string).collect();
    Child {
        inbound_spi: view.inbound_spi.to_string(),
        outbound_spi: view.outbound_spi.to_string(),
        suite: view.suite.to_string(),
        active: view.active,
        worker: view.inbound_spi.owner().0,
        per_worker: view.per_worker,
        age_seconds: view.age.as_secs(),
        inbound_packets: view.inbound.0,
        inbound_octets: view.inbound.1,
        outbound_packets: view.outbound.0,
        outbound_octets: view.outbound.1,
        local: texts(&view.local_selectors),
        remote: texts(&view.remote_selectors),
    }
}
