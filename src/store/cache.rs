//! What etcd said last, in the state directory: with it an agent starts while the store is away.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::etcd::{Entry, Head};
use crate::sys::file;

/// The file's name.
const NAME: &str = "store.json";

/// The `schema` of the file.
const SCHEMA: &str = "underpass.store/1";

/// Largest file that is read, in octets: thousands of hosts are a few megabytes.
const MAX: usize = 64 * 1024 * 1024;

/// What was known.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cached {
    /// Which store, and how far it was.
    pub head: Head,
    /// Blocks of this host.
    pub owned: Vec<IpNet>,
    /// Every record.
    pub entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Page<C> {
    schema: String,
    /// Below which keys the records stand: with another prefix it is another store.
    prefix: String,
    #[serde(flatten)]
    cached: C,
}

/// Reads it; none if there is none of this store.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn load(state_dir: &Path, prefix: &str) -> Result<Option<Cached>, String> {
    let path = state_dir.join(NAME);
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let octets = match file::open(&path).and_then(|file| file::read_bounded(&file, MAX + 1)) {
        Ok(octets) if octets.len() > MAX => return Err(told(&"it is too large")),
        Ok(octets) => octets,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(&error)),
    };
    let page: Page<Cached> = serde_json::from_slice(octets.expose()).map_err(|error| told(&error))?;
    if page.schema != SCHEMA {
        return Err(told(&format!("its schema is {:?}, expected {SCHEMA:?}", page.schema)));
    }
    Ok(Some(page.cached).filter(|_| page.prefix == prefix))
}

/// Writes it: the file is the old one or the new one, whenever the machine stops.
///
/// # Errors
/// What the file system said.
pub(super) fn save(state_dir: &Path, prefix: &str, cached: &Cached) -> std::io::Result<()> {
    let page = Page { schema: SCHEMA.to_owned(), prefix: prefix.to_owned(), cached };
    file::replace(&state_dir.join(NAME), &serde_json::to_vec(&page)?, 0o600)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_known_comes_back_for_the_same_store() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path(), "/u/"), Ok(None));
        let mut cached = Cached { owned: vec!["10.42.1.0/24".parse().unwrap()], ..Cached::default() };
        cached.head = Head { cluster: "c".into(), revision: 7 };
        cached.entries.insert("hosts/x".into(), Entry { value: "{}".into(), created: 3, modified: 4 });
        save(folder.path(), "/u/", &cached).unwrap();
        assert_eq!(load(folder.path(), "/u/"), Ok(Some(cached)));
        assert_eq!(load(folder.path(), "/v/"), Ok(None), "another store");
        fs::write(folder.path().join(NAME), "{").unwrap();
        assert!(load(folder.path(), "/u/").unwrap_err().contains("store.json: "));
    }
}
