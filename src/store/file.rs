//! A list of hosts in a file:
//!
//! ```yaml
//! hosts:
//!   - {name: alpha, addresses: [192.0.2.1], blocks: [10.42.1.0/24], public_key: "…"}
//!   - {name: beta, addresses: [192.0.2.2], blocks: [10.42.2.0/24], public_key: "…"}
//! ```
//!
//! It is looked at every second, and read when it is another file than before. What cannot be used changes nothing.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::{Member, Members};
use crate::config::section::{Field, Section};
use crate::config::{MAX_FILE, PeerRemote, Placed, Report, check, holds_outer, keys, read, scalar, yaml};
use crate::crypto::VerifyingKey;
use crate::model::Secret;
use crate::sys::file;

/// Hosts of one overlay: a full mesh of this size is beyond what one agent is made for, and a bound keeps a bad file cheap.
pub(super) const MAX_HOSTS: usize = 4096;

/// The file as it is looked at.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// What the file was when it was read last; none if it could not be.
    stamp: Option<Stamp>,
    looked: bool,
}

/// What tells one version of a file from another: device, inode, size, and when it was changed.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// What a look found.
#[derive(Debug)]
pub enum Look {
    /// The same file as before.
    Same,
    /// Another list.
    New(Members, Report),
    /// Something that cannot be used, and why.
    Broken(String),
}

impl FileStore {
    /// The file of this name, not looked at yet.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, looked: false }
    }

    /// Its name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the file, and reads it if it is another one than at the last look.
    pub fn look(&mut self) -> Look {
        let stamp = fs::metadata(&self.path).ok().map(|metadata| stamp(&metadata));
        if self.looked && stamp == self.stamp {
            return Look::Same;
        }
        self.looked = true;
        match read_file(&self.path) {
            Ok((read, octets)) => {
                self.stamp = Some(read);
                let (members, report) = parse(&self.path, octets.expose());
                match members {
                    Some(members) => Look::New(members, report),
                    None => Look::Broken(report.to_string()),
                }
            }
            Err(error) => {
                self.stamp = stamp;
                Look::Broken(format!("{}: {error}", self.path.display()))
            }
        }
    }
}

/// The hosts in a file, and what is wrong with it.
///
/// # Errors
/// When the file cannot be read.
pub fn load(path: &Path) -> io::Result<(Option<Members>, Report)> {
    read_file(path).map(|(_, octets)| parse(path, octets.expose()))
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    (metadata.dev(), metadata.ino(), metadata.size(), (metadata.mtime(), metadata.mtime_nsec()), changed)
}

/// What is in an ordinary file, up to a bound, with the stamp of what was opened.
fn read_file(path: &Path) -> io::Result<(Stamp, Secret)> {
    let file = file::open(path)?;
    // Before it is read: what changes meanwhile is another file at the next look.
    let stamp = stamp(&file.metadata()?);
    Ok((stamp, file::read_bounded(&file, MAX_FILE + 1)?))
}

/// One host as it stands in the file.
struct Draft {
    name: Placed<String>,
    keys: Option<Placed<Vec<VerifyingKey>>>,
    addresses: Vec<Placed<PeerRemote>>,
    blocks: Vec<Placed<IpNet>>,
}

/// The hosts in a file, and what is wrong with it. There are none exactly if the report holds an error.
#[must_use]
pub fn parse(file: &Path, octets: &[u8]) -> (Option<Members>, Report) {
    let mut report = Report::new(file);
    let members = yaml::parse(octets, yaml::Duplicates::Refused, &mut report).and_then(|root| hosts(&root, &mut report));
    report.sort();
    (members.filter(|_| !report.has_errors()), report)
}

fn hosts(root: &yaml::Node, report: &mut Report) -> Option<Members> {
    let root = Field { line: root.line, key: String::new(), node: root };
    let mut top = Section::of(&root, report)?;
    let group_key = top.take("psk").and_then(|field| group_key(&field, report));
    let Some(field) = top.take("hosts") else {
        report.error(None, "hosts", "expected a list of hosts; it is missing");
        return None;
    };
    let items = field.list(report, MAX_HOSTS).unwrap_or_default();
    let drafts: Vec<Draft> = items.iter().filter_map(|item| host(item, group_key.is_some(), report)).collect();
    top.finish(report);
    differ(&drafts, report);
    blocks_fit(&drafts, report);
    let member = |draft: Draft| Member {
        id: draft.name.value.clone(),
        name: draft.name.value,
        keys: draft.keys.map(|keys| keys.value).unwrap_or_default(),
        addresses: draft.addresses.into_iter().map(|place| place.value).collect(),
        blocks: draft.blocks.into_iter().map(|block| block.value).collect(),
        seen: true,
    };
    let mut members = Members { hosts: drafts.into_iter().map(member).collect(), group_key, warnings: Vec::new() };
    if !report.has_errors() {
        members.warnings = members.doubts();
    }
    for doubt in &members.warnings {
        report.warning(None, "hosts", doubt);
    }
    Some(members)
}

fn group_key(field: &Field<'_>, report: &mut Report) -> Option<Secret> {
    let text = field.secret(report)?;
    let secret = keys::check_psk(&text.with(text.value.as_bytes()), false, report)?;
    text.warning(report, "one group key for all hosts: each of them can pass for any other; public keys keep them apart");
    Some(secret)
}

fn host(field: &Field<'_>, has_group_key: bool, report: &mut Report) -> Option<Draft> {
    let mut section = Section::of(field, report)?;
    let name = match section.take("name") {
        Some(field) => field.read(report, scalar::name),
        None => {
            report.error(field.line, format!("{}.name", field.key), "expected a name for the host; it is missing");
            None
        }
    };
    let addresses = section.take("addresses").map(|field| read::places(&field, report)).unwrap_or_default();
    let blocks = read::blocks(&mut section, "blocks", false, report);
    let keys = match section.take("public_key") {
        Some(field) if has_group_key => {
            report.error(field.line, &*field.key, "expected either public_key here or psk for all hosts, got both");
            None
        }
        Some(field) => read::public_keys(&field, report).map(|keys| field.placed(keys)),
        None if has_group_key => None,
        None => {
            let message = "expected what `underpass key show` prints on that host; it is missing";
            report.error(field.line, format!("{}.public_key", field.key), message);
            None
        }
    };
    section.finish(report);
    Some(Draft { name: name?, keys, addresses, blocks })
}

/// Names and keys are there once.
fn differ(drafts: &[Draft], report: &mut Report) {
    let mut names = HashMap::<&str, &Placed<String>>::new();
    let mut keys = HashMap::<String, &str>::new();
    for Draft { name, keys: own, .. } in drafts {
        if let Some(first) = names.insert(&name.value, name) {
            name.error(report, format!("{:?} is the name of another host already{}", name.value, on_line(first)));
        }
        for key in own.iter().flat_map(|own| own.value.iter().map(move |key| own.with(key))) {
            if let Some(first) = keys.insert(key.value.to_base64(), &name.value)
                && first != name.value
            {
                key.error(report, format!("this is the key of {first} already: a host is its key"));
            }
        }
    }
}

/// Blocks belong to one host, and hold nobody's address on the underlay.
fn blocks_fit(drafts: &[Draft], report: &mut Report) {
    let mut blocks: Vec<(&Placed<IpNet>, &str)> =
        drafts.iter().flat_map(|draft| draft.blocks.iter().map(|block| (block, draft.name.value.as_str()))).collect();
    blocks.sort_by_key(|(block, _)| (block.value.network(), block.value.prefix_len()));
    let mut outer: Vec<(IpAddr, &str)> = drafts
        .iter()
        .flat_map(|draft| draft.addresses.iter().map(|place| (place.value.address(), draft.name.value.as_str())))
        .collect();
    outer.sort();
    let mut widest: Option<(&Placed<IpNet>, &str)> = None;
    for (block, name) in blocks {
        check::usable_block(block, report);
        match widest {
            Some((earlier, owner)) if earlier.value.contains(&block.value) => {
                let message = format!("{} overlaps {}, {owner}'s{}", block.value, earlier.value, on_line(earlier));
                block.error(report, message);
            }
            _ => widest = Some((block, name)),
        }
        let first = outer.partition_point(|(address, _)| *address < block.value.network());
        if let Some((address, whose)) = outer.get(first).filter(|(address, _)| block.value.contains(address)) {
            block.error(report, holds_outer(block.value, *address, &format!("{whose}'s address")));
        }
    }
}

fn on_line(placed: &Placed<impl Sized>) -> String {
    placed.line.map_or_else(String::new, |line| format!(" (line {line})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SigningKey;

    fn key(seed: u8) -> String {
        SigningKey::from_seed(&[seed; 32]).verifying_key().to_base64()
    }

    fn two() -> String {
        format!(
            "hosts:\n  - {{name: alpha, addresses: [192.0.2.1, '192.0.2.1:4501'], blocks: [10.42.1.0/24], public_key: {}}}\n  \
             - {{name: beta, addresses: 192.0.2.2, blocks: [10.42.2.0/24, 'fd42:2::/64'], public_key: [{}, {}]}}\n",
            key(1),
            key(2),
            key(3)
        )
    }

    fn messages(text: &str) -> String {
        let (members, report) = parse(Path::new("h.yaml"), text.as_bytes());
        assert_eq!(members.is_none(), report.has_errors());
        report.to_string()
    }

    #[test]
    fn a_list_becomes_members() {
        let (members, report) = parse(Path::new("h.yaml"), two().as_bytes());
        assert_eq!(report.to_string(), "");
        let members = members.unwrap();
        assert_eq!(members.hosts.iter().map(|host| &*host.name).collect::<Vec<_>>(), ["alpha", "beta"]);
        assert_eq!(members.hosts[0].addresses.len(), 2);
        assert_eq!((members.hosts[1].blocks.len(), members.hosts[1].keys.len()), (2, 2));
        let own = super::super::Own { name: "gamma".into(), keys: vec![SigningKey::from_seed(&[3; 32]).verifying_key()] };
        assert_eq!(members.own(&own).unwrap().name, "beta");
    }

    #[test]
    fn a_group_key_stands_for_all_with_a_warning() {
        let text =
            "psk: 0123456789abcdef0123456789abcdef\nhosts:\n  - {name: alpha}\n  - {name: beta, blocks: [10.42.2.0/24]}\n";
        let (members, report) = parse(Path::new("h.yaml"), text.as_bytes());
        assert!(report.to_string().starts_with("h.yaml:1: warning: psk: one group key"), "{report}");
        assert!(!report.to_string().contains("0123456789"));
        let own = super::super::Own { name: "beta".into(), keys: Vec::new() };
        assert_eq!(members.unwrap().own(&own).unwrap().blocks.len(), 1);
    }

    #[test]
    fn mistakes_have_lines() {
        for (from, to, message) in [
            ("alpha", "beta", "h.yaml:3: hosts[1].name: \"beta\" is the name of another host already (line 2)\n"),
            (
                "10.42.2.0/24",
                "10.42.0.0/16",
                "h.yaml:2: hosts[0].blocks[0]: 10.42.1.0/24 overlaps 10.42.0.0/16, beta's (line 3)\n",
            ),
            (
                "10.42.2.0/24",
                "192.0.2.0/24",
                "h.yaml:3: hosts[1].blocks[0]: 192.0.2.0/24 holds 192.0.2.1, alpha's address: what is sent there would enter the \
                 tunnel again; name the prefixes around it instead\n",
            ),
            (
                "10.42.2.0/24",
                "127.0.0.0/24",
                "h.yaml:3: hosts[1].blocks[0]: 127.0.0.0/24 holds loopback addresses, which no tunnel carries\n",
            ),
            (
                "name: beta",
                "nam: beta",
                "h.yaml:3: hosts[1].name: expected a name for the host; it is missing\nh.yaml:3: hosts[1].nam: unknown key; did you mean \"name\"?\n",
            ),
            ("hosts:", "host:", "h.yaml: hosts: expected a list of hosts; it is missing\n"),
        ] {
            assert_eq!(messages(&two().replacen(from, to, 1)), message, "{to}");
        }
        let twice = messages(&two().replace(&key(3), &key(1)));
        assert_eq!(twice, "h.yaml:3: hosts[1].public_key: this is the key of alpha already: a host is its key\n");
        let shared = messages(&two().replace("192.0.2.2", "192.0.2.1"));
        assert!(shared.starts_with("h.yaml: warning: hosts: alpha and beta have one address, 192.0.2.1"), "{shared}");
        assert!(messages("hosts: []\npsk: short").contains("expected a shared key of 32"));
        assert!(messages("hosts:\n  - {name: a}\n").contains("h.yaml:2: hosts[0].public_key: expected what"));
    }

    #[test]
    fn a_file_is_read_when_it_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.yaml");
        let mut store = FileStore::new(path.clone());
        assert!(matches!(store.look(), Look::Broken(why) if why.contains("No such file")));
        assert!(matches!(store.look(), Look::Same), "said once");
        fs::write(&path, two()).unwrap();
        assert!(matches!(store.look(), Look::New(members, _) if members.hosts.len() == 2));
        assert!(matches!(store.look(), Look::Same));
        // As editors do: another file under the same name.
        let draft = folder.path().join("draft");
        fs::write(&draft, two().replace("beta", "zeta")).unwrap();
        fs::rename(&draft, &path).unwrap();
        assert!(matches!(store.look(), Look::New(members, _) if members.hosts[1].name == "zeta"));
        fs::write(&path, "hosts: 7").unwrap();
        assert!(matches!(store.look(), Look::Broken(why) if why.contains("hosts.yaml:1: hosts:")));
        fs::remove_file(&path).unwrap();
        assert!(matches!(store.look(), Look::Broken(_)));
        assert!(matches!(store.look(), Look::Same));
    }
}
