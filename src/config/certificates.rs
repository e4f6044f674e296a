//! Certificate files: what a configuration asks of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::message::Report;
use super::section::Placed;
use super::{Config, KeyFile, PeerAuth, check_key_file};
use crate::crypto::x509::{CertificateError, Credential, TrustAnchors};

/// Mode bits by which somebody else may write.
const FOREIGN_WRITE: u32 = 0o022;

type Read<'r> = &'r dyn Fn(&Path) -> io::Result<KeyFile>;

/// Turns every [`PeerAuth::CaFile`] into [`PeerAuth::Certificate`]. What is wrong goes into the report; its peer stays as it was.
pub(super) fn resolve(config: &mut Config, report: &mut Report, read: Read<'_>) {
    let Some(files) = &config.host.certificate else { return };
    let key = open(&files.key, report, read, |file| check_key_file(&files.key.value, file));
    let chain = open(&files.chain, report, read, |file| check_public(&files.chain.value, file));
    let (Some(key), Some(chain)) = (key, chain) else { return };
    let credential = Credential::from_pem(chain.contents.expose(), key.contents.expose());
    let Some(credential) = said(&files.chain, report, credential) else { return };
    for peer in &mut config.peers {
        let PeerAuth::CaFile(path) = &peer.auth else { continue };
        let Some(file) = open(path, report, read, |file| check_public(&path.value, file)) else { continue };
        let Some(anchors) = said(path, report, TrustAnchors::from_pem(file.contents.expose())) else { continue };
        if let Err(why) = credential.check_identity(&peer.local_id) {
            let to = &peer.name.value;
            let message = format!("this host calls itself {} towards {to}, but {why}; local_id changes that", peer.local_id);
            files.chain.error(report, message);
            continue;
        }
        peer.auth = PeerAuth::Certificate(credential.clone(), Arc::new(anchors));
    }
}

fn open(
    path: &Placed<PathBuf>,
    report: &mut Report,
    read: Read<'_>,
    check: impl Fn(&KeyFile) -> Result<(), String>,
) -> Option<KeyFile> {
    let shown = path.value.display();
    let opened = read(&path.value).map_err(|error| format!("expected a readable file, got {shown}: {error}"));
    match opened.and_then(|file| check(&file).map(|()| file)) {
        Ok(file) => Some(file),
        Err(message) => {
            path.error(report, message);
            None
        }
    }
}

/// A certificate may be read by everybody; but who writes the file of an authority decides who is let in.
fn check_public(path: &Path, file: &KeyFile) -> Result<(), String> {
    let (path, mode) = (path.display(), file.mode & 0o7777);
    if mode & FOREIGN_WRITE != 0 {
        return Err(format!("expected a file that only its owner can write, got mode {mode:04o}: chmod 644 {path}"));
    }
    if !file.owned {
        return Err(format!("expected a file of root or of the agent's user: chown root {path}"));
    }
    Ok(())
}

fn said<T>(path: &Placed<PathBuf>, report: &mut Report, read: Result<T, CertificateError>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            path.error(report, format!("{}: {error}", path.value.display()));
            None
        }
    }
}
