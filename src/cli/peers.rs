//! `underpass peers`.

use super::output::{complain, print, print_json};
use super::{Exit, PeersArgs, Places, Rekey};
use crate::control::{Client, ClientError, RekeyWhat, Request};
use crate::observe::{Peers, render_peer};

/// Shows peers, or replaces the keys of one.
pub(super) fn run(places: &Places, arguments: &PeersArgs) -> Exit {
    let client = Client::new(&places.run_dir);
    match (&arguments.name, arguments.rekey) {
        (Some(name), Some(what)) => rekey(places, &client, name, what),
        (name, _) => show(places, &client, name.clone()),
    }
}

fn show(places: &Places, client: &Client, name: Option<String>) -> Exit {
    let answer = match client.ask_raw(&Request::Peers { name }) {
        Ok(answer) => answer,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    let peers: Peers = match serde_json::from_value(answer.clone()) {
        Ok(peers) => peers,
        Err(error) => return complain(ClientError::Protocol(error.to_string()), Exit::Failed),
    };
    let exit = if peers.peers.iter().all(|peer| peer.state.is_fine()) { Exit::Fine } else { Exit::Degraded };
    if places.json {
        return print_json(&answer, exit);
    }
    let texts: Vec<String> = peers.peers.iter().map(render_peer).collect();
    let text = if texts.is_empty() { "no peers are configured\n".to_owned() } else { texts.join("\n") };
    print(&text, exit)
}

fn rekey(places: &Places, client: &Client, name: &str, what: Rekey) -> Exit {
    let (what, sa) = match what {
        Rekey::Child => (RekeyWhat::Child, "CHILD_SA"),
        Rekey::Ike => (RekeyWhat::Ike, "IKE SA"),
    };
    match client.rekey(name, what) {
        Ok(answer) if places.json => print_json(&answer, Exit::Fine),
        Ok(_) => print(&format!("{name}: the {sa} is being replaced\n"), Exit::Fine),
        Err(error) => complain(&error, Exit::from(&error)),
    }
}
