//! `underpass ps`: the containers of this host, and of those that a store knows. The agent knows how they are; the journal knows their addresses also without it.

use std::collections::BTreeMap;

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::drivers::{self, List, Member};
use crate::control::{Client, ClientError, Request};
use crate::docker;
use crate::ipam::{Book, Ipam, Lease, Namespaces};
use crate::observe::{Container, ContainerState, Containers, render_containers};

/// Shows them.
pub(super) fn run(places: &Places) -> Exit {
    let (mut shown, away) = match ask(places) {
        Ok(shown) => (shown, None),
        Err(error @ ClientError::NotRunning(_)) => (Containers::new(None), Some(error)),
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    let book = match Ipam::look(&places.state_dir) {
        Ok(book) => book,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    add_leases(&mut shown, &book, &Namespaces::look());
    match List::read(&places.state_dir) {
        Ok(list) => add_members(&mut shown, drivers::members(&list, &places.state_dir), &drivers::names(&list)),
        Err(error) => return complain(&error, Exit::from(&error)),
    }
    shown.sort();
    let fine = shown.containers.iter().all(|container| container.state.is_fine());
    let exit = if fine { Exit::Fine } else { Exit::Degraded };
    if places.json {
        return print_json(&shown, exit);
    }
    let mut text = render_containers(&shown);
    if let Some(error) = away {
        text.push_str(&format!("{error}: this is what the journal of addresses says\n"));
    }
    print(&text, exit)
}

fn ask(places: &Places) -> Result<Containers, ClientError> {
    let answer = Client::new(&places.run_dir).ask_raw(&Request::Containers {})?;
    serde_json::from_value(answer).map_err(|error| ClientError::Protocol(error.to_string()))
}

/// Adds who has an address and was not named by the agent, and since when everybody has his.
fn add_leases(shown: &mut Containers, book: &Book, namespaces: &Namespaces) {
    for lease in book.leases().filter(|lease| !(lease.owner.is_host() || lease.pending)) {
        let known = shown.containers.iter_mut().find(|container| {
            container.host == shown.host
                && container.id == lease.owner.container
                && container.addresses.iter().any(|it| lease.addresses.contains(it))
        });
        match known {
            Some(container) => container.since = Some(lease.since),
            None => shown.containers.push(from_lease(lease, shown.host.clone(), namespaces)),
        }
    }
}

/// Adds who is on a network by other plugins' addresses, what containers are called, and whose network was taken away.
fn add_members(shown: &mut Containers, members: Vec<Member>, names: &BTreeMap<String, String>) {
    for Member { network, container: it, is_disconnected } in members {
        let same = |shown: &Container| {
            shown.id == it.container && shown.addresses.iter().any(|address| it.addresses.contains(address))
        };
        let here = shown.host.clone();
        let index = shown.containers.iter().position(|container| container.host == here && same(container));
        let index = index.unwrap_or_else(|| {
            shown.containers.push(Container {
                id: it.container.clone(),
                name: None,
                aliases: Vec::new(),
                ports: Vec::new(),
                runtime: "cni".to_owned(),
                host: here,
                network: Some(network.clone()),
                addresses: it.addresses.clone(),
                interface: Some(it.interface.clone()),
                state: ContainerState::Attached,
                why: None,
                since: None,
            });
            shown.containers.len() - 1
        });
        let container = &mut shown.containers[index];
        if is_disconnected && container.state.is_fine() {
            container.state = ContainerState::Disconnected;
            container.why = Some(format!("network {network} was removed by force"));
        }
    }
    let here = shown.host.clone();
    for container in shown.containers.iter_mut().filter(|container| container.host == here && container.name.is_none()) {
        container.name = names.get(&container.id).cloned();
    }
}

fn from_lease(lease: &Lease, host: Option<String>, namespaces: &Namespaces) -> Container {
    let by_label = lease.owner.cni_network == docker::RUNTIME;
    let (state, why) = match by_label {
        true if host.is_none() => (ContainerState::Unknown, Some("only the agent asks Docker")),
        true => (ContainerState::Unknown, Some("the agent does not know it: Docker was not asked")),
        false if namespaces.is_gone(lease) => (
            ContainerState::Disconnected,
            Some("its network namespace is gone; `underpass ipam check --repair` releases it"),
        ),
        false => (ContainerState::Attached, None),
    };
    Container {
        id: lease.owner.container.clone(),
        name: lease.about.name.clone(),
        aliases: lease.about.aliases.clone(),
        ports: lease.about.ports.clone(),
        runtime: if by_label { docker::RUNTIME } else { "cni" }.to_owned(),
        host,
        network: Some(lease.network.clone()),
        addresses: lease.addresses.clone(),
        interface: Some(lease.owner.interface.clone()),
        state,
        why: why.map(str::to_owned),
        since: Some(lease.since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{About, Owner, Sandbox};

    #[test]
    fn whoever_is_on_a_network_is_shown_once() {
        let lease = |container: &str, address: &str| Lease {
            network: "managed".to_owned(),
            owner: Owner { container: container.to_owned(), interface: "eth0".to_owned(), cni_network: "ipsec".to_owned() },
            sandbox: Sandbox::nowhere(),
            addresses: vec![address.parse().unwrap()],
            since: 7,
            pending: false,
            about: About::default(),
        };
        let member = |network: &str, container: &str, address: &str, is_disconnected| Member {
            network: network.to_owned(),
            container: drivers::Container {
                container: container.to_owned(),
                interface: "eth0".to_owned(),
                addresses: vec![address.parse().unwrap()],
            },
            is_disconnected,
        };
        let mut shown = Containers::new(Some("alpha".to_owned()));
        let namespaces = Namespaces::look();
        for lease in [lease("c1", "10.42.1.2"), lease("c2", "10.42.1.3")] {
            shown.containers.push(from_lease(&lease, shown.host.clone(), &namespaces));
        }
        let elsewhere = Container { host: Some("beta".to_owned()), ..shown.containers[0].clone() };
        shown.containers.push(elsewhere);
        let plain = member("plain", "c3", "10.88.0.2", false);
        let names = ["c1", "c2", "c3"].map(|id| (id.to_owned(), format!("{id}-name"))).into();
        let members = vec![member("ipsec", "c1", "10.42.1.2", false), member("old", "c2", "10.42.1.3", true), plain];
        add_members(&mut shown, members, &names);
        let row = |it: &Container| {
            let network = it.network.clone().unwrap_or_default();
            format!(
                "{} {} {network} {} {}",
                it.id,
                it.name.clone().unwrap_or_default(),
                it.state.name(),
                it.why.clone().unwrap_or_default()
            )
        };
        let rows: Vec<String> = shown.containers.iter().map(row).collect();
        assert_eq!(
            rows,
            [
                "c1 c1-name managed attached ",
                "c2 c2-name managed disconnected network old was removed by force",
                "c1  managed attached ",
                "c3 c3-name plain attached "
            ]
        );
    }
}
