//! Another host key, step by step, so that no peer meets a key that it does not know.
//!
//! 1. [`stage`] makes the next key (`host.key.next`), which nobody uses yet; peers are told to pin it beside the present one.
//! 2. [`switch`] makes it the host's key, and keeps the one before it (`host.key.old`) for peers that were forgotten.
//! 3. [`finish`] removes the old one, when every peer is seen to know us by the new one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::files::{self, HOST_KEY, HostKeyError};
use crate::crypto::SigningKey;
use crate::sys::file;

/// The key to come, in the state directory.
pub const HOST_KEY_NEXT: &str = "host.key.next";

/// The key before the present one.
pub const HOST_KEY_OLD: &str = "host.key.old";

/// Reads one of the two, if it is there.
///
/// # Errors
/// See [`HostKeyError`].
pub fn load(state_dir: &Path, name: &str) -> Result<Option<SigningKey>, HostKeyError> {
    match files::load_key(state_dir.join(name)) {
        Ok(key) => Ok(Some(key)),
        Err(HostKeyError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the next key, or reads it if it was made already.
///
/// # Errors
/// If there is no host key, or the last change is not finished.
pub fn stage(state_dir: &Path) -> Result<SigningKey, HostKeyError> {
    files::load_host_key(state_dir)?;
    if load(state_dir, HOST_KEY_OLD)?.is_some() {
        return Err(HostKeyError::Unfinished(state_dir.join(HOST_KEY_OLD)));
    }
    match load(state_dir, HOST_KEY_NEXT)? {
        Some(key) => Ok(key),
        None => files::make_key(state_dir, HOST_KEY_NEXT, false),
    }
}

/// Makes the next key the host's key. There is a host key at every moment; a switch that was broken off is taken up again.
///
/// # Errors
/// If there is no next key, or the last change is not finished.
pub fn switch(state_dir: &Path) -> Result<SigningKey, HostKeyError> {
    let [present, next, old] = [HOST_KEY, HOST_KEY_NEXT, HOST_KEY_OLD].map(|name| state_dir.join(name));
    let key = load(state_dir, HOST_KEY_NEXT)?.ok_or_else(|| HostKeyError::NoNext(next.clone()))?;
    let outgoing = files::load_host_key(state_dir)?;
    match load(state_dir, HOST_KEY_OLD)? {
        None => fs::hard_link(&present, &old).map_err(|error| HostKeyError::Io(old, error))?,
        Some(kept) if kept == outgoing => {}
        Some(_) => return Err(HostKeyError::Unfinished(old)),
    }
    fs::rename(&next, &present).map_err(|error| HostKeyError::Io(next, error))?;
    sync_names(&present)?;
    Ok(key)
}

/// Removes the old key; returns the host's key.
///
/// # Errors
/// If there is no old key.
pub fn finish(state_dir: &Path) -> Result<SigningKey, HostKeyError> {
    let key = files::load_host_key(state_dir)?;
    let old = state_dir.join(HOST_KEY_OLD);
    fs::remove_file(&old).map_err(|error| match error.kind() {
        ErrorKind::NotFound => HostKeyError::Finished(old.clone()),
        _ => HostKeyError::Io(old.clone(), error),
    })?;
    sync_names(&old)?;
    Ok(key)
}

fn sync_names(path: &Path) -> Result<(), HostKeyError> {
    file::sync_names(path).map_err(|error| HostKeyError::Io(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_changed_in_three_steps() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let has = |name: &str| state.join(name).exists();
        assert!(matches!(stage(state), Err(HostKeyError::Missing(_))));
        let first = files::generate_host_key(state, false).unwrap();
        assert!(matches!(switch(state), Err(HostKeyError::NoNext(_))));
        assert!(matches!(finish(state), Err(HostKeyError::Finished(_))));

        let next = stage(state).unwrap();
        assert_eq!(stage(state).unwrap(), next, "told again, not made again");
        assert_ne!(next, first);
        assert_eq!(files::load_host_key(state).unwrap(), first, "nothing uses it yet");

        assert_eq!(switch(state).unwrap(), next);
        assert_eq!(files::load_host_key(state).unwrap(), next);
        assert_eq!(load(state, HOST_KEY_OLD).unwrap(), Some(first));
        assert!(!has(HOST_KEY_NEXT));
        assert!(matches!(stage(state), Err(HostKeyError::Unfinished(_))));
        assert!(matches!(switch(state), Err(HostKeyError::NoNext(_))));

        assert_eq!(finish(state).unwrap(), next);
        assert!(!has(HOST_KEY_OLD));
        assert!(stage(state).is_ok());
    }

    #[test]
    fn keys_that_others_can_read_are_refused_at_every_step() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        files::generate_host_key(state, false).unwrap();
        let loosen = |name: &str, mode| fs::set_permissions(state.join(name), fs::Permissions::from_mode(mode)).unwrap();
        stage(state).unwrap();
        loosen(HOST_KEY_NEXT, 0o604);
        assert!(matches!(stage(state), Err(HostKeyError::Unsafe(_))));
        assert!(matches!(switch(state), Err(HostKeyError::Unsafe(_))));
        loosen(HOST_KEY_NEXT, 0o600);
        switch(state).unwrap();
        loosen(HOST_KEY_OLD, 0o660);
        assert!(matches!(load(state, HOST_KEY_OLD), Err(HostKeyError::Unsafe(_))));
    }

    #[test]
    fn a_switch_that_was_broken_off_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let first = files::generate_host_key(state, false).unwrap();
        let next = stage(state).unwrap();
        fs::hard_link(state.join(HOST_KEY), state.join(HOST_KEY_OLD)).unwrap();
        assert_eq!(switch(state).unwrap(), next);
        assert_eq!(load(state, HOST_KEY_OLD).unwrap(), Some(first));
    }
}
