//! Key files: what a configuration asks of them. Reading them is somebody else's work; judging them is done here.

use std::io;
use std::path::Path;

use super::message::Report;
use super::section::Placed;
use super::{Config, PeerAuth};
use crate::model::Secret;

/// Shorter shared keys can be guessed offline by whoever answers one IKE_AUTH: 32 octets, unless `allow_short_psk`.
pub(super) const MIN_PSK: usize = 32;

/// Longest shared key in octets: beyond any use, and a mistaken file name does not become a key.
const MAX_PSK: usize = 1024;

/// Mode bits of group and others: a key file has none of them.
const FOREIGN_MODE: u32 = 0o077;

/// A key file as it was found.
#[derive(Clone, Debug)]
pub struct KeyFile {
    /// Permission bits.
    pub mode: u32,
    /// Whether it belongs to root or to the user that we run as.
    pub owned: bool,
    /// What is in it.
    pub contents: Secret,
}

/// Whether nobody else could have read or changed it.
///
/// # Errors
/// What was expected and what it is.
pub fn check_key_file(path: &Path, file: &KeyFile) -> Result<(), String> {
    let path = path.display();
    if file.mode & FOREIGN_MODE != 0 {
        let mode = file.mode & 0o7777;
        return Err(format!("expected a key file that only its owner can read, got mode {mode:04o}: chmod 600 {path}"));
    }
    if !file.owned {
        return Err(format!("expected a key file of root or of the agent's user: chown root {path}"));
    }
    Ok(())
}

/// Turns every [`PeerAuth::PskFile`] into [`PeerAuth::Psk`], and reads certificates. What is wrong with a file goes into the report; its peer stays
/// as it was.
pub fn resolve_keys(config: &mut Config, report: &mut Report, read: &dyn Fn(&Path) -> io::Result<KeyFile>) {
    for peer in &mut config.peers {
        let PeerAuth::PskFile(path) = &peer.auth else { continue };
        if let Some(secret) = load(path.as_deref(), peer.allow_short_psk, report, read) {
            peer.auth = PeerAuth::Psk(secret);
        }
    }
    #[cfg(feature = "x509")]
    super::certificates::resolve(config, report, read);
    report.sort();
}

fn load(
    path: Placed<&Path>,
    allow_short_psk: bool,
    report: &mut Report,
    read: &dyn Fn(&Path) -> io::Result<KeyFile>,
) -> Option<Secret> {
    let file = match read(path.value) {
        Ok(file) => file,
        Err(error) => {
            path.error(report, format!("expected a readable key file, got {}: {error}", path.value.display()));
            return None;
        }
    };
    if let Err(message) = check_key_file(path.value, &file) {
        path.error(report, message);
        return None;
    }
    let octets = file.contents.expose();
    // An editor's line end is no part of the key.
    let octets = octets.strip_suffix(b"\n").unwrap_or(octets);
    let octets = octets.strip_suffix(b"\r").unwrap_or(octets);
    check_psk(&path.with(octets), allow_short_psk, report)
}

/// A shared key of a usable length.
pub(crate) fn check_psk(psk: &Placed<&[u8]>, allow_short: bool, report: &mut Report) -> Option<Secret> {
    let len = psk.value.len();
    let min = if allow_short { 1 } else { MIN_PSK };
    if (min..=MAX_PSK).contains(&len) {
        return Some(Secret::copy_of(psk.value));
    }
    let hint = if (1..MIN_PSK).contains(&len) {
        "; make one with `openssl rand -base64 32`, or say allow_short_psk: true where the peer cannot take a longer one"
    } else {
        ""
    };
    psk.error(report, format!("expected a shared key of {min} to {MAX_PSK} octets, got {len}{hint}"));
    None
}

impl Placed<std::path::PathBuf> {
    fn as_deref(&self) -> Placed<&Path> {
        self.with(self.value.as_path())
    }
}
