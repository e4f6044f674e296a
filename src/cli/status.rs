//! `underpass status`.

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::control::{Client, ClientError, Request};
use crate::observe::{STATUS_SCHEMA, Status, render_status};

/// Asks the agent and prints what it says: as it came (a newer agent may say more than we know), or for people.
pub(super) fn run(places: &Places) -> Exit {
    let answer = match Client::new(&places.run_dir).ask_raw(&Request::Status {}) {
        Ok(answer) => answer,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    let status: Status = match serde_json::from_value(answer.clone()) {
        Ok(status) => status,
        Err(error) => return complain(ClientError::Protocol(error.to_string()), Exit::Failed),
    };
    if status.schema != STATUS_SCHEMA {
        let message = format!("the agent's status is {:?}, expected {STATUS_SCHEMA:?}", status.schema);
        return complain(message, Exit::Failed);
    }
    let exit = if status.is_degraded() { Exit::Degraded } else { Exit::Fine };
    if places.json { print_json(&answer, exit) } else { print(&render_status(&status), exit) }
}
