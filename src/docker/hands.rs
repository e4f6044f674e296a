//! What the watch does to containers: an address out of the journal, and an interface by `attach`.
//!
//! A container that Docker has on the network's own bridge gets its address beside Docker's, on the interface that it has, as the
//! documents of the original describe. One without any network of Docker's (`--network none`) gets an interface of its own with a
//! route to everywhere; one on another bridge of Docker's gets a second interface, and keeps its route.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::Container;
use super::names::{self, Names};
use super::plan::Plan;
use super::table::{Hands, Plugged, Refusal, refusal};
use super::{Known, KnownNetwork, RUNTIME, Settings, Source};
use crate::attach::{self, AttachError};
use crate::ipam::{self, About, Beyond, Ipam, IpamError, Lease, Owner, Request, Sandbox, Wish};
use crate::network::Labels;
use crate::network::choice::{self, AddressWish, Attachment, Choices, Place, choose};
use crate::sys::clock::wall_clock;
use crate::sys::netlink::Netlink;
use crate::sys::netns::Namespace;

/// The interface of a container without any other.
const ALONE: &str = "eth0";

/// The interface beside those of Docker, whose names are `eth` and a number.
const SECOND: &str = "managed0";

/// The hands of an agent.
pub(super) struct Overlay {
    settings: Settings,
    source: Source,
    beyond: Box<dyn Beyond + Send>,
    /// The networks and the tunnel's MTU, when they were looked at last.
    seen: Option<(Arc<Known>, Option<u32>)>,
}

impl Overlay {
    pub(super) fn new(settings: Settings, source: Source, beyond: Box<dyn Beyond + Send>) -> Self {
        Self { settings, source, beyond, seen: None }
    }

    fn known(&mut self) -> Result<Arc<Known>, Refusal> {
        (self.source)().map_err(Refusal::Trouble)
    }

    /// What it has, from the journal or from now on.
    fn lease(&self, id: &str, pool: &str, plan: &Plan, wish: &AddressWish) -> Result<(Lease, Vec<IpNet>), Refusal> {
        let mut refused = None;
        for wish in wishes(wish) {
            let mut ipam = Ipam::open(&self.settings.state_dir).map_err(trouble)?;
            let blocks = ipam.book().network(pool).map(|network| network.blocks().to_vec()).unwrap_or_default();
            let held = ipam.book().leases().find(|lease| lease.network == pool && is_of(lease, id)).cloned();
            match held {
                // An agent that was killed has asked for it, and nobody knows the answer.
                Some(lease) if lease.pending => drop(ipam.release(pool, &lease.owner, wall_clock()).map_err(trouble)?),
                Some(lease) => return Ok((lease, blocks)),
                None => {}
            }
            let request = Request {
                network: pool.to_owned(),
                owner: owner(id, ALONE),
                // The address is the container's while Docker has the container, whether it runs or not, also across a boot.
                sandbox: Sandbox::nowhere(),
                wish,
                never: plan.gateways(),
                // Docker says it at any time.
                about: About::default(),
            };
            match ipam::obtain(ipam, &self.settings.state_dir, &request, &*self.beyond, wall_clock()) {
                Ok(lease) => return Ok((lease, blocks)),
                Err(error @ (IpamError::Taken { .. } | IpamError::NotOurs { .. } | IpamError::Unclaimed { .. })) => {
                    refused = Some(error);
                }
                Err(error) => return Err(trouble(error)),
            }
        }
        Err(refused.map_or_else(|| Refusal::Trouble("no address was asked for".to_owned()), trouble))
    }

    /// Beside Docker's address on an interface that is on the network's bridge; none if there is no such interface.
    fn beside(&self, plan: &Plan, wanted: &attach::Attachment, wish: &Attachment) -> Result<Option<Plugged>, Refusal> {
        let links = Namespace::open(&wanted.netns).and_then(|namespace| namespace.run(|| Netlink::open()?.links()));
        let links = links.map_err(|error| failed(&error.into()))?.map_err(|error| failed(&error.into()))?;
        for link in links.iter().filter(|link| link.name != "lo") {
            let here = attach::Attachment { owner: owner(&wanted.owner.container, &link.name), ..wanted.clone() };
            match attach::attach_beside(&plan.network, &here) {
                Ok(_) if wish.mac.is_some_and(|mac| link.hardware_address != mac.0) => {
                    let addresses: Vec<IpAddr> = here.addresses.iter().map(IpNet::addr).collect();
                    let _ = attach::detach_beside(&here.netns, &link.name, &addresses);
                    return Err(Refusal::Wish(format!(
                        "label {}: the interface {} is Docker's; give it that address by `docker run --mac-address`",
                        choice::LABEL_MAC,
                        link.name
                    )));
                }
                Ok(_) => {
                    let addresses = here.addresses.iter().map(IpNet::addr).collect();
                    return Ok(Some(Plugged { addresses, interface: link.name.clone() }));
                }
                Err(AttachError::Elsewhere { .. } | AttachError::Absent(_)) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(None)
    }

    /// By an interface of its own.
    fn alone(&self, plan: &Plan, wanted: &attach::Attachment) -> Result<Plugged, Refusal> {
        match attach::attach(&plan.network, wanted) {
            // From before we were started, or from the last look.
            Err(AttachError::Present(_)) => {
                if let Err(error) = attach::check(&plan.network, wanted) {
                    tracing::info!(
                        "Docker: container {}: connecting it anew: {error}",
                        super::table::short(&wanted.owner.container)
                    );
                    attach::detach(&wanted.owner).map_err(|error| failed(&error))?;
                    attach::attach(&plan.network, wanted).map_err(|error| failed(&error))?;
                } else if let Some(mtu) = wanted.mtu {
                    attach::set_mtu(&wanted.owner, &wanted.netns, mtu).map_err(|error| failed(&error))?;
                }
            }
            other => drop(other.map_err(|error| failed(&error))?),
        }
        let addresses = wanted.addresses.iter().map(IpNet::addr).collect();
        Ok(Plugged { addresses, interface: wanted.owner.interface.clone() })
    }
}

impl Hands for Overlay {
    fn choose(&mut self, mode: &str, labels: &Labels) -> Result<Option<Attachment>, Refusal> {
        let known = self.known()?;
        let there: Vec<&KnownNetwork> = known.networks.iter().filter(|network| network.is_wanted).collect();
        let prefixes: Vec<_> = there.iter().map(|network| network.spec.prefixes()).collect();
        let named = there.iter().zip(&prefixes);
        let networks: Vec<_> =
            named.map(|(network, subnets)| choice::KnownNetwork { name: &network.spec.name, subnets }).collect();
        // What is no word of Docker's own is a network that somebody made with it.
        let made = [mode].into_iter().filter(|mode| !is_word_of_docker(mode)).collect::<Vec<_>>();
        let choices = Choices { networks: &networks, managed: known.managed.as_deref(), docker: &made };
        let choice = choose(mode, labels, &choices).map_err(|error| refusal(&error))?;
        match choice.place {
            Place::Network(attachment) => Ok(Some(attachment)),
            Place::Docker(_) if choice.remarks.is_empty() => Ok(None),
            Place::Docker(_) => Err(Refusal::Wish(choice.remarks.join("; "))),
        }
    }

    fn plug(&mut self, id: &str, namespace: &File, wish: &Attachment) -> Result<Plugged, Refusal> {
        let known = self.known()?;
        let Some(network) = known.networks.iter().find(|network| network.spec.name == wish.network && network.is_wanted)
        else {
            return Err(Refusal::NoNetwork(format!("network {} is gone", wish.network)));
        };
        let plan = Plan::of(&network.spec, &self.settings.tun)?;
        let Some(pool) = &network.pool else {
            let text =
                format!("network {}: this host has no block of it, or another plugin gives its addresses", wish.network);
            return Err(Refusal::NoNetwork(text));
        };
        let prepared = attach::prepare(&plan.network).map_err(|error| failed(&error))?;
        let (lease, blocks) = self.lease(id, pool, &plan, &wish.address)?;
        let said = |address: IpAddr| match wish.address {
            AddressWish::This(this, length) if this == address => length,
            _ => None,
        };
        let seen = lease.addresses.iter().filter_map(|address| plan.seen(*address, &blocks, said(*address)));
        let mut wanted = attach::Attachment {
            owner: owner(id, SECOND),
            netns: PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd())),
            addresses: seen.collect(),
            routes: Vec::new(),
            mac: wish.mac.map(|mac| mac.0),
            mtu: plan.mtu(wish.link_mtu_overhead, prepared.tun_mtu),
            own_overhead: None,
            hairpin: plan.hairpin,
            published: Vec::new(),
        };
        if wish.beside_docker {
            if let Some(plugged) = self.beside(&plan, &wanted, wish)? {
                return Ok(plugged);
            }
        } else {
            wanted.owner = owner(id, ALONE);
            wanted.routes = plan.routes(&wanted.addresses);
        }
        self.alone(&plan, &wanted)
    }

    fn set_names(&mut self, container: &Container, wish: &Attachment) {
        let Ok(known) = self.known() else { return };
        let Some(network) = known.networks.iter().find(|network| network.spec.name == wish.network) else { return };
        if !wish.dns || container.resolv_conf_path.as_os_str().is_empty() {
            return;
        }
        let has = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let names = Names {
            servers: network.spec.dns.clone(),
            search: network.spec.dns_search.clone(),
            has_servers: has(&container.host_config.dns),
            has_search: has(&container.host_config.dns_search),
        };
        match names::write(&container.resolv_conf_path, &names) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("Docker: container {} asks the name servers of network {}", container.name(), wish.network)
            }
            Err(error) => {
                let path = container.resolv_conf_path.display();
                tracing::warn!("Docker: container {} keeps its name servers: {path}: {error}", container.name());
            }
        }
    }

    fn has_news(&mut self) -> bool {
        // What cannot be read now is read when it has changed back.
        let Ok(known) = self.known() else { return false };
        let tun = Netlink::open().and_then(|mut netlink| netlink.link(&self.settings.tun)).ok().map(|link| link.mtu);
        let now = Some((known, tun));
        let is_new = self.seen.is_some() && self.seen != now;
        self.seen = now;
        is_new
    }

    fn unplug(&mut self, id: &str) {
        // Interfaces went with their namespace; what is left is what the fence knows of them.
        let removed = [ALONE, SECOND].map(|interface| attach::detach(&owner(id, interface)).err());
        for error in removed.into_iter().flatten().chain(attach::sweep().err()) {
            tracing::warn!("Docker: container {}: {error}", super::table::short(id));
        }
    }

    fn release(&mut self, id: &str) -> Result<(), Refusal> {
        let mut ipam = Ipam::open(&self.settings.state_dir).map_err(trouble)?;
        let leases: Vec<Lease> = ipam.book().leases().filter(|lease| is_of(lease, id)).cloned().collect();
        for lease in leases {
            ipam.release(&lease.network, &lease.owner, wall_clock()).map_err(trouble)?;
        }
        Ok(())
    }

    fn held(&mut self) -> Result<BTreeMap<String, Vec<IpAddr>>, Refusal> {
        let book = Ipam::look(&self.settings.state_dir).map_err(trouble)?;
        let ours = book.leases().filter(|lease| lease.owner.cni_network == RUNTIME);
        Ok(ours.map(|lease| (lease.owner.container.clone(), lease.addresses.clone())).collect())
    }
}

fn is_word_of_docker(mode: &str) -> bool {
    matches!(mode, "" | "default" | "bridge" | "host" | "none") || mode.starts_with("container:")
}

fn owner(id: &str, interface: &str) -> Owner {
    Owner { container: id.to_owned(), interface: interface.to_owned(), cni_network: RUNTIME.to_owned() }
}

fn is_of(lease: &Lease, id: &str) -> bool {
    lease.owner.cni_network == RUNTIME && lease.owner.container == id
}

/// One after the other until one can be met.
fn wishes(wish: &AddressWish) -> Vec<Wish> {
    match wish {
        AddressWish::Any => vec![Wish::Any],
        AddressWish::This(address, _) => vec![Wish::These(vec![*address])],
        AddressWish::OneOf(addresses) => addresses.iter().map(|address| Wish::These(vec![*address])).collect(),
    }
}

fn trouble(error: IpamError) -> Refusal {
    match error {
        IpamError::NoBlocks { .. } => Refusal::NoNetwork(error.to_string()),
        _ => Refusal::Trouble(error.to_string()),
    }
}

fn failed(error: &AttachError) -> Refusal {
    Refusal::Trouble(error.to_string())
}
