//! `underpass ps`: the containers of this host, and of those that a store knows. The agent knows how they are; the journal knows their addresses also without it.

use super::output::{complain, print, print_json};
use super::{Exit, Places};
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
