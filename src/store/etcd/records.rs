//! What stands in etcd, below `PREFIX/v1/mesh/`:
//!
//! | key | value | who writes it |
//! |---|---|---|
//! | `networks/NETWORK` | subnets, and how they are cut into blocks | the first host |
//! | `hosts/ID` | name, public keys, addresses, version | the host |
//! | `alive/ID` | nothing; with a lease of half a minute | the host: a hint, nothing is ever deleted for it |
//! | `blocks/NETWORK/BLOCK` | the ID of its owner | the owner, in one transaction; for good |
//! | `removed/ID` | nothing | whoever removed the host |
//! | `ips/NETWORK/IP` | a single address that is in no block of its host's: the host, and whether the block's owner lends it | that host, then the owner |
//! | `eps/ID/NETWORK/EP` | a container's interface: addresses, names, labels | the host ID |
//!
//! Values are JSON with a version; a `/` inside of a block is a `_` in its key. An ID is made of the first public key that the host had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::api::{Head, Kv};
use crate::config::PeerRemote;
use crate::crypto::VerifyingKey;
use crate::store::{Endpoint, MAX_HOSTS, Member, Members};

/// The network that this host's blocks are of.
pub(super) const NETWORK: &str = "managed";

/// What endpoints' keys begin with.
const ENDPOINTS: &str = "eps/";

/// Single addresses of one host that are used.
const MAX_SINGLES: usize = 4096;

/// The version of all values.
pub(super) const VERSION: u32 = 1;

/// Addresses of one host that are used: each is called in turn.
const MAX_ADDRESSES: usize = 8;

/// Keys of one host.
const MAX_KEYS: usize = 4;

/// Blocks of one host that are used.
const MAX_BLOCKS: usize = 255;

/// Octets of a host's ID in hexadecimal digits: nobody finds another key with the same first 128 bits.
const ID_OCTETS: usize = 16;

/// A host, as it says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct HostRecord {
    pub v: u32,
    pub name: String,
    pub keys: Vec<String>,
    pub addresses: Vec<String>,
    /// Of underpass.
    pub version: String,
}

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct NetworkRecord {
    pub v: u32,
    pub subnets: Vec<IpNet>,
    /// Prefix length of blocks.
    pub block: u8,
}

/// Whose a block is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct BlockRecord {
    pub v: u32,
    pub owner: String,
}

/// Who has a single address. It is `asked` for while the owner of its block has not answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SingleRecord {
    pub v: u32,
    /// The host.
    pub owner: String,
    /// Its container.
    pub endpoint: String,
    pub state: SingleState,
    /// Why it is refused.
    #[serde(default)]
    pub why: String,
}

/// How far that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SingleState {
    Asked,
    Granted,
    Refused,
}

/// Where records stand.
#[derive(Clone, Debug)]
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}/v1/mesh/"))
    }

    /// What all of them begin with.
    pub(super) fn all(&self) -> &str {
        &self.0
    }

    pub(super) fn network(&self) -> String {
        format!("{}networks/{NETWORK}", self.0)
    }

    pub(super) fn host(&self, id: &str) -> String {
        format!("{}hosts/{id}", self.0)
    }

    pub(super) fn alive(&self, id: &str) -> String {
        format!("{}alive/{id}", self.0)
    }

    pub(super) fn removed(&self, id: &str) -> String {
        format!("{}removed/{id}", self.0)
    }

    pub(super) fn blocks(&self) -> String {
        format!("{}blocks/{NETWORK}/", self.0)
    }

    pub(super) fn singles(&self) -> String {
        format!("{}ips/{NETWORK}/", self.0)
    }

    pub(super) fn single(&self, address: IpAddr) -> String {
        format!("{}{address}", self.singles())
    }

    /// Every endpoint of one host.
    pub(super) fn endpoints(&self, id: &str) -> String {
        format!("{}{ENDPOINTS}{id}/", self.0)
    }

    /// Whether a key is one of those that come and go with containers.
    pub(super) fn is_endpoint(&self, key: &str) -> bool {
        key.strip_prefix(&*self.0).is_some_and(|key| key.starts_with(ENDPOINTS))
    }

    pub(super) fn block(&self, block: IpNet) -> String {
        format!("{}{}", self.blocks(), block.to_string().replace('/', "_"))
    }
}

/// The ID of the host whose first key this is.
#[must_use]
pub fn host_id(key: &VerifyingKey) -> String {
    key.0[..ID_OCTETS].iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Everything that is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Records {
    keys: String,
    pub head: Head,
    /// By key, below [`Keys::all`].
    entries: BTreeMap<String, Entry>,
}

/// One record: what it says, and when it was made and changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::store) struct Entry {
    pub value: String,
    pub created: i64,
    pub modified: i64,
}

impl Records {
    /// Nothing yet.
    pub(super) fn new(keys: &Keys) -> Self {
        Self { keys: keys.0.clone(), head: Head::default(), entries: BTreeMap::new() }
    }

    /// What was known once.
    pub(super) fn restore(keys: &Keys, head: Head, entries: BTreeMap<String, Entry>) -> Self {
        Self { keys: keys.0.clone(), head, entries }
    }

    /// Takes a whole listing over. If it comes from another store than what was known, as after a loss of all its data, hosts that it
    /// does not list stay, with their blocks: they are there, and will join it. Not so this host, `own`: what it is to write must be seen to
    /// be missing.
    pub(super) fn replace(&mut self, head: Head, kvs: Vec<Kv>, own: &str) {
        let is_same =
            self.head.cluster.is_empty() || (self.head.cluster == head.cluster && self.head.revision <= head.revision);
        let before = std::mem::take(&mut self.entries);
        self.head = head;
        for kv in kvs {
            self.put(kv);
        }
        if !is_same {
            let is_own = |key: &str, entry: &Entry| match serde_json::from_str::<BlockRecord>(&entry.value) {
                Ok(block) => block.owner == own,
                Err(_) => key.strip_prefix("hosts/") == Some(own),
            };
            let kinds = ["hosts/", "blocks/", "ips/"];
            let kept = before.into_iter().filter(|(key, _)| kinds.iter().any(|kind| key.starts_with(kind)));
            for (key, entry) in kept.filter(|(key, entry)| own.is_empty() || !is_own(key, entry)) {
                self.entries.entry(key).or_insert(entry);
            }
        }
    }

    /// Takes one change over.
    pub(super) fn change(&mut self, change: Result<Kv, String>) {
        match change {
            Ok(kv) => self.put(kv),
            Err(key) => {
                if let Some(key) = key.strip_prefix(&*self.keys) {
                    self.entries.remove(key);
                }
            }
        }
    }

    fn put(&mut self, kv: Kv) {
        let Kv { key, value, created, modified } = kv;
        // What is no text is no record of ours.
        if let (Some(key), Ok(value)) = (key.strip_prefix(&*self.keys), String::from_utf8(value)) {
            self.entries.insert(key.to_owned(), Entry { value, created, modified });
        }
    }

    fn under<'r>(&'r self, folder: &'r str) -> impl Iterator<Item = (&'r str, &'r Entry)> {
        let entries = self.entries.range(folder.to_owned()..);
        entries.map_while(move |(key, entry)| Some((key.strip_prefix(folder)?, entry)))
    }

    fn get<T: for<'d> Deserialize<'d>>(&self, key: &str) -> Option<T> {
        serde_json::from_str(&self.entries.get(key)?.value).ok()
    }

    pub(super) fn network(&self) -> Option<NetworkRecord> {
        self.get(&format!("networks/{NETWORK}"))
    }

    pub(super) fn host(&self, id: &str) -> Option<HostRecord> {
        self.get(&format!("hosts/{id}"))
    }

    pub(super) fn is_removed(&self, id: &str) -> bool {
        self.entries.contains_key(&format!("removed/{id}"))
    }

    pub(super) fn is_alive(&self, id: &str) -> bool {
        self.entries.contains_key(&format!("alive/{id}"))
    }

    /// Every block with its owner.
    pub(super) fn blocks(&self) -> BTreeMap<IpNet, String> {
        let blocks = self.under("blocks/").filter_map(|(key, entry)| {
            let (network, block) = key.split_once('/')?;
            let record: BlockRecord = serde_json::from_str(&entry.value).ok()?;
            Some((block.replacen('_', "/", 1).parse().ok()?, record.owner)).filter(|_| network == NETWORK)
        });
        blocks.collect()
    }

    /// The blocks of one host, in the order in which it got them.
    pub(super) fn blocks_of(&self, id: &str) -> Vec<IpNet> {
        let mut blocks: Vec<IpNet> =
            self.blocks().into_iter().filter(|(_, owner)| owner == id).map(|(block, _)| block).collect();
        blocks.sort_by_key(|block| self.created(*block));
        blocks
    }

    /// When a block was claimed.
    fn created(&self, block: IpNet) -> i64 {
        let key = format!("blocks/{NETWORK}/{}", block.to_string().replace('/', "_"));
        self.entries.get(&key).map_or(0, |entry| entry.created)
    }

    /// Whose the block is that holds an address.
    pub(super) fn block_owner(&self, address: IpAddr) -> Option<String> {
        self.blocks().into_iter().find(|(block, _)| block.contains(&address)).map(|(_, owner)| owner)
    }

    /// Every single address, with who has it or wants it.
    pub(super) fn singles(&self) -> impl Iterator<Item = (IpAddr, SingleRecord)> {
        self.under("ips/").filter_map(|(key, entry)| {
            let (network, address) = key.split_once('/')?;
            let record: SingleRecord = serde_json::from_str(&entry.value).ok()?;
            Some((address.parse().ok()?, record)).filter(|_| network == NETWORK)
        })
    }

    /// What is said of one, and when it was said.
    pub(super) fn single(&self, address: IpAddr) -> Option<(SingleRecord, i64)> {
        let entry = self.entries.get(&format!("ips/{NETWORK}/{address}"))?;
        Some((serde_json::from_str(&entry.value).ok()?, entry.modified))
    }

    /// The endpoints of a host as they were written, by what stands behind its ID in their keys.
    pub(super) fn endpoints_of<'r>(&'r self, id: &str) -> BTreeMap<&'r str, &'r str> {
        let folder = format!("{ENDPOINTS}{id}/");
        let entries = self.entries.range(folder.clone()..);
        entries.map_while(|(key, entry)| Some((key.strip_prefix(&*folder)?, entry.value.as_str()))).collect()
    }

    /// The endpoints of all hosts but one, by host.
    pub(super) fn endpoints_but(&self, id: &str) -> BTreeMap<String, Vec<Endpoint>> {
        let mut endpoints = BTreeMap::<String, Vec<Endpoint>>::new();
        for (key, entry) in self.under(ENDPOINTS) {
            let host = key.split('/').next().unwrap_or_default();
            // What cannot be read says nothing; others wrote it.
            if host != id
                && let Ok(endpoint) = serde_json::from_str(&entry.value)
            {
                endpoints.entry(host.to_owned()).or_default().push(endpoint);
            }
        }
        endpoints
    }

    /// What is worth a write to the disk: endpoints come and go all the time, and are listed anew at a start.
    pub(super) fn lasting(&self) -> BTreeMap<String, Entry> {
        let lasting = self.entries.iter().filter(|(key, _)| !key.starts_with(ENDPOINTS));
        lasting.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// The host that has this key.
    pub(super) fn id_of(&self, keys: &[VerifyingKey]) -> Option<String> {
        let keys: BTreeSet<String> = keys.iter().map(VerifyingKey::to_base64).collect();
        let has_one = |entry: &Entry| {
            let record: Option<HostRecord> = serde_json::from_str(&entry.value).ok();
            record.is_some_and(|record| record.keys.iter().any(|key| keys.contains(key)))
        };
        self.under("hosts/").find(|(_, entry)| has_one(entry)).map(|(id, _)| id.to_owned())
    }

    /// In the words of the agent; who joined first stands first.
    pub(super) fn members(&self) -> Members {
        let mut blocks = BTreeMap::<String, Vec<IpNet>>::new();
        for (block, owner) in self.blocks() {
            blocks.entry(owner).or_default().push(block);
        }
        let mut singles = BTreeMap::<String, Vec<IpAddr>>::new();
        for (address, record) in self.singles().filter(|(_, record)| record.state == SingleState::Granted) {
            singles.entry(record.owner).or_default().push(address);
        }
        let mut warnings = Vec::new();
        let mut hosts = Vec::new();
        for (id, entry) in self.under("hosts/").take(MAX_HOSTS) {
            match member(id, &entry.value) {
                Ok(member) => hosts.push((entry.created, member)),
                Err(why) => warnings.push(format!("the record of host {} is not used: {why}", id.escape_debug())),
            }
        }
        hosts.sort_by(|(first, a), (second, b)| (first, &a.id).cmp(&(second, &b.id)));
        let mut hosts: Vec<Member> = hosts.into_iter().map(|(_, member)| member).collect();
        for host in &mut hosts {
            host.blocks = blocks.remove(&host.id).unwrap_or_default();
            host.blocks.sort_by_key(|block| self.created(*block));
            host.blocks.truncate(MAX_BLOCKS);
            host.singles = singles.remove(&host.id).unwrap_or_default();
            host.singles.truncate(MAX_SINGLES);
            host.seen = self.is_alive(&host.id);
        }
        let subnets = self.network().map(|network| network.subnets).unwrap_or_default();
        let mut members = Members { hosts, group_key: None, warnings, subnets };
        let doubts = members.doubts();
        members.warnings.extend(doubts);
        members
    }
}

/// A host's record, checked: others wrote it.
fn member(id: &str, value: &str) -> Result<Member, String> {
    let record: HostRecord = serde_json::from_str(value).map_err(|error| error.to_string())?;
    if record.v != VERSION {
        return Err(format!("it is of version {}", record.v));
    }
    let is_id = id.len() == 2 * ID_OCTETS && id.bytes().all(|octet| octet.is_ascii_hexdigit());
    let name = crate::config::scalar::name(&record.name).ok().filter(|_| is_id);
    let name = name.ok_or_else(|| "a name or an ID that is none".to_owned())?;
    let key = |text: &String| VerifyingKey::from_base64(text).map_err(|error| error.to_string());
    let keys: Vec<VerifyingKey> = record.keys.iter().take(MAX_KEYS).map(key).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("it has no key".to_owned());
    }
    let addresses = record.addresses.iter().filter_map(|text| place(text)).take(MAX_ADDRESSES).collect();
    let (blocks, singles) = (Vec::new(), Vec::new());
    Ok(Member { id: id.to_owned(), name, keys, addresses, blocks, singles, seen: false })
}

/// An address, or an address and a port.
fn place(text: &str) -> Option<PeerRemote> {
    let (address, port) = crate::config::scalar::endpoint(text).ok()?;
    Some(port.map_or(PeerRemote::Standard(address), |port| PeerRemote::Natt(SocketAddr::new(address, port))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SigningKey;

    fn kv(key: &str, value: &str, created: i64) -> Kv {
        Kv { key: format!("/u/v1/mesh/{key}"), value: value.as_bytes().to_vec(), created, modified: created }
    }

    fn host(seed: u8, created: i64) -> Kv {
        let key = SigningKey::from_seed(&[seed; 32]).verifying_key();
        let value = serde_json::json!({
            "v": 1, "name": "alpha", "keys": [key.to_base64()], "addresses": ["192.0.2.1", "192.0.2.1:4501", "nonsense"],
            "version": "9", "added": "later"
        });
        kv(&format!("hosts/{}", host_id(&key)), &value.to_string(), created)
    }

    fn id(seed: u8) -> String {
        host_id(&SigningKey::from_seed(&[seed; 32]).verifying_key())
    }

    fn head(cluster: &str, revision: i64) -> Head {
        Head { cluster: cluster.into(), revision }
    }

    #[test]
    fn records_become_members_in_the_order_of_joining() {
        let mut records = Records::new(&Keys::new("/u"));
        let block =
            |text: &str, owner: &str| kv(&format!("blocks/managed/{text}"), &format!(r#"{{"v":1,"owner":"{owner}"}}"#), 4);
        let kvs = vec![
            host(1, 9),
            host(2, 5),
            block("10.42.1.0_24", &id(1)),
            block("10.42.2.0_24", &id(2)),
            block("fd42::_64", &id(2)),
            kv(&format!("alive/{}", id(2)), "{}", 6),
            kv("hosts/0123", r#"{"v":1,"name":"x","keys":[],"addresses":[],"version":""}"#, 1),
            kv(&format!("hosts/{}", "0".repeat(32)), "}", 1),
        ];
        records.replace(head("c", 9), kvs, "");
        let members = records.members();
        let seen: Vec<_> = members.hosts.iter().map(|host| (host.id.clone(), host.seen, host.blocks.len())).collect();
        assert_eq!(seen, [(id(2), true, 2), (id(1), false, 1)]);
        assert_eq!(members.hosts[0].addresses.len(), 2, "what is no address is left out");
        assert_eq!(members.labels(), ["alpha".to_owned(), format!("alpha-{}", &id(1)[..8])]);
        assert_eq!(members.warnings.iter().filter(|text| text.contains("is not used")).count(), 2, "{:?}", members.warnings);
        assert_eq!(records.id_of(&[SigningKey::from_seed(&[1; 32]).verifying_key()]), Some(id(1)));
        assert_eq!(records.blocks_of(&id(2)).len(), 2);
    }

    #[test]
    fn a_store_that_lost_its_data_takes_no_host_away() {
        let mut records = Records::new(&Keys::new("/u"));
        records.replace(head("c", 9), vec![host(1, 2), host(2, 3), kv(&format!("alive/{}", id(1)), "{}", 4)], "");
        records.replace(head("c", 12), vec![host(2, 3)], "");
        assert_eq!(records.members().hosts.len(), 1, "the same store, and the host is gone");
        records.replace(head("c", 5), Vec::new(), "");
        assert_eq!(records.members().hosts.len(), 1, "an older state of it");
        records.replace(head("d", 50), vec![host(3, 2)], "");
        let members = records.members();
        assert_eq!((members.hosts.len(), members.hosts.iter().any(|host| host.seen)), (2, false));
        records.replace(head("e", 1), vec![host(3, 2)], &id(2));
        assert_eq!(records.members().hosts.len(), 1, "what is this host's own is to be written anew");
        records.replace(head("f", 1), vec![host(2, 2)], "");
        records.change(Err(format!("/u/v1/mesh/hosts/{}", id(2))));
        assert_eq!(records.members().hosts.len(), 1);
    }
}
