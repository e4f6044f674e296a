//! Files for container runtimes: written whole or not at all, and never over somebody else's.
//!
//! ```text
//! /etc/cni/ipsec.d/10-rancher.conf                  a network's files, one by one; `.underpass` says whose the folder is
//! /etc/cni/managed.d -> ipsec.d                     the default network's
//! /etc/cni/net.d/10-underpass-ipsec.conflist        the same for runtimes; its member `underpass` says whose it is
//! /etc/cni/net.d/10-underpass-managed.conflist      the default network once more, under that name
//! /usr/lib/cni/rancher-bridge -> .../underpass      plugins: links to this program
//! ```
//!
//! The first folder stands beside `cni.conf_dir`, so agents with different ones do not meet.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::list::{HostFacts, Network};
use crate::model::MANAGED;
use crate::network::{BRIDGE_PLUGINS, IPAM_PLUGIN};
use crate::sys::file::{make_folder, relink, replace};

/// The file that makes a folder ours; it holds the state directory of the agent that made it.
const MARK: &str = ".underpass";

/// How the names of lists begin that are ours.
pub const CONFLIST_PREFIX: &str = "10-underpass-";

/// The name of this program, to which links of ours lead.
const PROGRAM: &str = "underpass";

/// Where a host's files go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'h> {
    pub host: &'h HostFacts,
    pub state_dir: &'h Path,
}

/// What is in the way, in words.
type Outcome = Result<(), String>;

impl Places<'_> {
    /// The folder in which each network has one.
    fn base(&self) -> &Path {
        self.host.conf_dir.parent().unwrap_or(Path::new("/"))
    }

    fn network_dir(&self, name: &str) -> PathBuf {
        self.base().join(format!("{name}.d"))
    }

    fn conflist(&self, name: &str) -> PathBuf {
        self.host.conf_dir.join(format!("{CONFLIST_PREFIX}{name}.conflist"))
    }

    /// Writes what runtimes need for a network.
    pub(super) fn install(&self, network: &Network, is_managed: bool) -> Outcome {
        let name = &network.spec.name;
        let on_host = network.on_host(self.host, self.state_dir);
        let folder = self.network_dir(name);
        self.own_folder(&folder)?;
        let files = network.spec.files(&on_host);
        for file in &files {
            write(&folder.join(&file.name), &file.netconf, 0o600)?;
        }
        let known = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            name == MARK || files.iter().any(|file| name == file.name.as_str())
        };
        for stale in fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| !known(entry)) {
            remove(&stale.path())?;
        }
        let lists = [Some(name.as_str()), is_managed.then_some(MANAGED)];
        for name in lists.into_iter().flatten() {
            if files.is_empty() {
                // Runtimes complain of a list without plugins at every container.
                self.remove_conflist(name)?;
            } else {
                self.write_conflist(name, &network.spec.conflist(name, &on_host))?;
            }
        }
        if is_managed {
            self.link_managed(Some(name))?;
        }
        Ok(())
    }

    /// Takes back what was written for a network. What is not ours stays.
    pub(super) fn uninstall(&self, name: &str) -> Outcome {
        self.remove_conflist(name)?;
        let folder = self.network_dir(name);
        if self.is_our_folder(&folder)? {
            // The mark goes last: a removal that is broken off can be taken up again.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten().filter(|entry| entry.file_name() != MARK) {
                remove(&entry.path())?;
            }
            remove(&folder.join(MARK))?;
            fs::remove_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(())
    }

    /// Takes back what was written for the default network.
    pub(super) fn uninstall_managed(&self) -> Outcome {
        self.remove_conflist(MANAGED)?;
        self.link_managed(None)
    }

    fn link_managed(&self, name: Option<&str>) -> Outcome {
        let link = self.network_dir(MANAGED);
        let wanted = name.map(|name| PathBuf::from(format!("{name}.d")));
        match fs::read_link(&link) {
            Ok(target) if Some(&target) == wanted.as_ref() => return Ok(()),
            Ok(target) => {
                let folder = self.base().join(&target);
                // One that leads nowhere is what a removed network left.
                let is_plain = target.components().count() == 1 && target.extension().is_some_and(|end| end == "d");
                if !is_plain || (folder.exists() && !self.is_our_folder(&folder)?) {
                    return if name.is_none() { Ok(()) } else { Err(foreign(&link, "a link of somebody else's")) };
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) if name.is_none() => return Ok(()),
            Err(_) => return Err(foreign(&link, "no link")),
        }
        match wanted {
            Some(target) => relink(&link, &target).map_err(|error| format!("{}: {error}", link.display())),
            None => remove(&link),
        }
    }

    fn write_conflist(&self, name: &str, list: &Value) -> Outcome {
        let path = self.conflist(name);
        make_folder(&self.host.conf_dir, 0o755).map_err(|error| format!("{}: {error}", self.host.conf_dir.display()))?;
        if path.symlink_metadata().is_ok() && !self.is_our_conflist(&path)? {
            return Err(foreign(&path, "it has no member `underpass`"));
        }
        write(&path, list, 0o644)
    }

    fn remove_conflist(&self, name: &str) -> Outcome {
        let path = self.conflist(name);
        if self.is_our_conflist(&path)? { remove(&path) } else { Ok(()) }
    }

    /// Whether a list is ours. One of another agent's is an error.
    fn is_our_conflist(&self, path: &Path) -> Result<bool, String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => return Ok(false),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        match list.get("underpass").and_then(|own| own.get("stateDir")).and_then(Value::as_str) {
            None => Ok(false),
            Some(state_dir) => self.is_our_state_dir(path, state_dir),
        }
    }

    fn is_our_folder(&self, folder: &Path) -> Result<bool, String> {
        match fs::read_to_string(folder.join(MARK)) {
            Ok(state_dir) => self.is_our_state_dir(folder, state_dir.trim()),
            Err(_) => Ok(false),
        }
    }

    fn is_our_state_dir(&self, path: &Path, state_dir: &str) -> Result<bool, String> {
        if Path::new(state_dir) == self.state_dir {
            return Ok(true);
        }
        Err(format!(
            "{}: it belongs to the agent with state directory {state_dir}: give this one another cni.conf_dir",
            path.display()
        ))
    }

    /// Makes a folder ours. An empty one may be there already.
    fn own_folder(&self, folder: &Path) -> Outcome {
        let failed = |error: io::Error| format!("{}: {error}", folder.display());
        if self.is_our_folder(folder)? {
            return Ok(());
        }
        make_folder(folder, 0o755).map_err(failed)?;
        if folder.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(foreign(folder, "a link"));
        }
        if fs::read_dir(folder).map_err(failed)?.next().is_some() {
            return Err(foreign(folder, &format!("it has no {MARK}")));
        }
        let text = format!("{}\n", self.state_dir.display());
        replace(&folder.join(MARK), text.as_bytes(), 0o644).map_err(failed)
    }

    /// Makes the plugins' links.
    pub(super) fn link_plugins(&self) -> Outcome {
        let program = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
        link_plugins(&self.host.bin_dir, &program).map(|_| ())
    }
}

/// Makes links to the program under the names of our plugins; returns those that were not there yet.
///
/// # Errors
/// What is in the way, in words.
pub fn link_plugins(bin_dir: &Path, program: &Path) -> Result<Vec<PathBuf>, String> {
    missing_links(bin_dir, program)?
        .into_iter()
        .map(|link| {
            make_folder(bin_dir, 0o755).map_err(|error| format!("{}: {error}", bin_dir.display()))?;
            relink(&link, program).map_err(|error| format!("{}: {error}", link.display()))?;
            Ok(link)
        })
        .collect()
}

/// The links that [`link_plugins`] would make.
///
/// # Errors
/// What is in the way, in words.
pub fn missing_links(bin_dir: &Path, program: &Path) -> Result<Vec<PathBuf>, String> {
    // A program whose file was replaced while it ran has no name any more; the link that is there leads to the new one.
    if !program.exists() {
        return Ok(Vec::new());
    }
    let mut missing = Vec::new();
    for name in BRIDGE_PLUGINS.into_iter().chain([IPAM_PLUGIN]) {
        let link = bin_dir.join(name);
        match fs::read_link(&link) {
            Ok(target) if target == program => {}
            Ok(target) if target.file_name().is_some_and(|name| name == PROGRAM) => missing.push(link),
            Ok(target) => return Err(foreign(&link, &format!("it leads to {}", target.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(link),
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(foreign(&link, "another program")),
            Err(error) => return Err(format!("{}: {error}", link.display())),
        }
    }
    Ok(missing)
}

fn foreign(path: &Path, what: &str) -> String {
    format!(
        "{}: not made by underpass ({what}): move it away, or choose another cni.conf_dir or cni.bin_dir",
        path.display()
    )
}

fn write(path: &Path, value: &Value, mode: u32) -> Outcome {
    let text = format!("{value:#}\n");
    // Who watches the folder is not told of nothing.
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    replace(path, text.as_bytes(), mode).map_err(|error| format!("{}: {error}", path.display()))
}

fn remove(path: &Path) -> Outcome {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
