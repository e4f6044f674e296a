//! `underpass host`: the hosts of the store.

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::control::{Client, ClientError, Request};
use crate::observe::{Hosts, render_host, render_hosts};

/// Lists them, or shows those of one name in full.
pub(super) fn show(places: &Places, name: Option<&str>) -> Exit {
    let answer = match Client::new(&places.run_dir).ask_raw(&Request::Hosts { name: name.map(str::to_owned) }) {
        Ok(answer) => answer,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    if places.json {
        return print_json(&answer, Exit::Fine);
    }
    let hosts: Hosts = match serde_json::from_value(answer) {
        Ok(hosts) => hosts,
        Err(error) => return complain(ClientError::Protocol(error.to_string()), Exit::Failed),
    };
    let text = match name {
        Some(_) => hosts.hosts.iter().map(render_host).collect::<Vec<_>>().join("\n"),
        None => render_hosts(&hosts.hosts),
    };
    print(&text, Exit::Fine)
}

/// Takes one out of the store.
pub(super) fn rm(places: &Places, name: &str, force: bool) -> Exit {
    match Client::new(&places.run_dir).remove_host(name, force) {
        Ok(answer) if places.json => print_json(&answer, Exit::Fine),
        Ok(answer) => {
            let blocks = if answer.blocks.is_empty() { "no block".to_owned() } else { answer.blocks.join(", ") };
            print(&format!("{} ({}) is removed; free again: {blocks}\n", answer.name, answer.id), Exit::Fine)
        }
        Err(error) => complain(&error, Exit::from(&error)),
    }
}
