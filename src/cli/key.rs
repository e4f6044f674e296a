//! `underpass key`.

use serde_json::json;

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::files::{self, HOST_KEY, HostKeyError};
use crate::crypto::SigningKey;

/// Makes the host's key.
pub(super) fn generate(places: &Places, force: bool) -> Exit {
    report(places, files::generate_host_key(&places.state_dir, force))
}

/// Shows its public half.
pub(super) fn show(places: &Places) -> Exit {
    report(places, files::load_host_key(&places.state_dir))
}

/// Prints the public key and nothing else, for `$(underpass key show)`.
fn report(places: &Places, key: Result<SigningKey, HostKeyError>) -> Exit {
    let public = match key {
        Ok(key) => key.verifying_key().to_base64(),
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    if places.json {
        let file = places.state_dir.join(HOST_KEY).display().to_string();
        let value = json!({"schema": "underpass.key/1", "algorithm": "ed25519", "public_key": public, "file": file});
        return print_json(&value, Exit::Fine);
    }
    print(&(public + "\n"), Exit::Fine)
}
