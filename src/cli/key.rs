//! `underpass key`.

use serde_json::json;

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::files::{self, HOST_KEY, HostKeyError};
use crate::agent::rotation::{self, HOST_KEY_NEXT, HOST_KEY_OLD};
use crate::crypto::SigningKey;

/// Makes the host's key.
pub(super) fn generate(places: &Places, force: bool) -> Exit {
    report(places, HOST_KEY, files::generate_host_key(&places.state_dir, force))
}

/// Shows its public half.
pub(super) fn show(places: &Places) -> Exit {
    report(places, HOST_KEY, files::load_host_key(&places.state_dir))
}

/// One step of changing it. Prints the public half of the key that the host has from then on, or of the one that is to come.
pub(super) fn rotate(places: &Places, switch: bool, finish: bool) -> Exit {
    let state_dir = &places.state_dir;
    match (switch, finish) {
        (true, _) => report(places, HOST_KEY, rotation::switch(state_dir)),
        (_, true) => report(places, HOST_KEY, rotation::finish(state_dir)),
        _ => report(places, HOST_KEY_NEXT, rotation::stage(state_dir)),
    }
}

/// Prints the public key and nothing else, for `$(underpass key show)`.
fn report(places: &Places, name: &str, key: Result<SigningKey, HostKeyError>) -> Exit {
    let public = match key {
        Ok(key) => key.verifying_key().to_base64(),
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    if places.json {
        let file = places.state_dir.join(name).display().to_string();
        let others = [HOST_KEY_NEXT, HOST_KEY_OLD].map(|name| rotation::load(&places.state_dir, name));
        let [next, old] = others.map(|key| key.ok().flatten().map(|key| key.verifying_key().to_base64()));
        let value = json!({
            "schema": "underpass.key/1",
            "algorithm": "ed25519",
            "public_key": public,
            "file": file,
            "next": next,
            "old": old,
        });
        return print_json(&value, Exit::Fine);
    }
    print(&(public + "\n"), Exit::Fine)
}
