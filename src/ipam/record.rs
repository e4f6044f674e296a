//! Records of the journal: one line each, a checksum and JSON.
//!
//! ```text
//! 5f0c66a1 {"record":"lease","network":"managed","addresses":["10.42.1.2"],…}
//! ```
//!
//! The line's end is written last, so a line without one was never finished, and its writer never answered. A line with an end and a
//! wrong checksum is damage by something else.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Seconds;
use crate::model::PortMapping;

/// The version of this format.
pub(super) const VERSION: u32 = 1;

/// Whose an address is: a container's interface, on behalf of one CNI network. Runtimes may try the same interface for two
/// networks and delete it for the one that failed: that must not touch the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The container's id, as the runtime calls it.
    pub container: String,
    /// The interface in it.
    pub interface: String,
    /// The name of the CNI network for which it was asked.
    pub cni_network: String,
}

/// What stands for a CNI network's name where another host has the address: no network can be called so.
const HOST: &str = "/host";

impl Owner {
    /// Another host, which got this one address out of our block.
    #[must_use]
    pub fn host(id: &str, address: IpAddr) -> Self {
        Self { container: id.to_owned(), interface: address.to_string(), cni_network: HOST.to_owned() }
    }

    /// Whether that is another host, and no container of ours.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.cni_network == HOST
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            return write!(f, "a container of host {}", self.container);
        }
        write!(f, "container {} ({})", self.container, self.interface)
    }
}

/// What tells one network namespace from every other that exists at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// A container's network namespace, so that one can tell later whether it is still there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its path, as the runtime named it.
    pub netns: String,
    /// The namespace itself, if it could be looked at.
    pub netns_id: Option<NamespaceId>,
    /// The system's boot in which that was: namespaces do not outlive it. Empty if it is not known.
    pub boot: String,
    /// The process namespace from which that was seen: another one shows other processes.
    pub seen_from: Option<u64>,
}

impl Sandbox {
    /// No namespace of this host: only whoever asked for the address gives it back.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self { netns: String::new(), netns_id: None, boot: String::new(), seen_from: None }
    }
}

/// What else is known of whoever has addresses, for those who ask who that is. Nothing depends on it, and versions that do not know a member
/// of it pass over it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it may be called besides on its network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The ports that are to be reached at its host: `8080->80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
}

/// Octets of a name: the longest that DNS has.
const MAX_NAME: usize = 253;

/// Aliases, and ports or ranges of them, of one interface: the journal is no place for whole documents.
const MAX_LISTED: usize = 64;

impl About {
    /// What is worth to be written down. A container's id is no name; of too many aliases or ports the first ones count.
    #[must_use]
    pub fn new<'t>(id: &str, name: Option<&str>, aliases: impl IntoIterator<Item = &'t str>, ports: &[PortMapping]) -> Self {
        let is_name = |text: &&str| !text.is_empty() && text.len() <= MAX_NAME && *text != id && *text != short(id);
        let mut about = Self { name: name.filter(is_name).map(str::to_owned), ..Self::default() };
        for alias in aliases.into_iter().filter(is_name) {
            let is_known = about.aliases.iter().any(|known| known == alias) || about.name.as_deref() == Some(alias);
            if !is_known && about.aliases.len() < MAX_LISTED {
                about.aliases.push(alias.to_owned());
            }
        }
        about.ports = PortMapping::texts(ports);
        about.ports.truncate(MAX_LISTED);
        about
    }
}

/// An id as runtimes shorten it, which give it as an alias to whoever has it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Addresses that somebody has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The network that they belong to.
    pub network: String,
    /// At most one of each family, unless more were wished.
    pub addresses: Vec<IpAddr>,
    /// Whose they are.
    #[serde(flatten)]
    pub owner: Owner,
    /// Where the container's interface is.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// When it was given.
    pub since: Seconds,
    /// Whether somebody is still being asked for what is in none of this host's blocks: until that is settled nobody may use it, and who
    /// was killed meanwhile never had it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// What else is known of its owner.
    #[serde(flatten)]
    pub about: About,
}

/// Who said which blocks a network has on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The agent, from its configuration.
    Agent,
    /// A CNI configuration.
    Netconf,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(super) enum Record {
    /// The journal begins.
    Journal { version: u32 },
    /// A network's blocks are these.
    Network { network: String, blocks: Vec<IpNet>, reserved: Vec<IpAddr>, source: Source },
    /// Single addresses of these subnets may be had as well, if the agent gets them.
    Beyond { network: String, subnets: Vec<IpNet> },
    /// Addresses were given.
    Lease(Lease),
    /// What an owner had was taken back.
    Release { network: String, owner: Owner, at: Seconds },
    /// An address was taken back then: a release that was compacted.
    Rests { network: String, address: IpAddr, since: Seconds },
    /// The last address that was given: the round goes on behind it.
    Last { network: String, address: IpAddr },
}

/// Why a line is no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadLine {
    /// The octets are those that were written, but this version does not know what they say.
    Unknown,
    /// They are not.
    Damaged,
}

/// A record as a line with its end.
pub(super) fn emit(record: &Record) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("a record has text keys only, and its addresses are texts");
    format!("{:08x} {json}\n", crc32(json.as_bytes())).into_bytes()
}

/// A line without its end.
pub(super) fn parse(line: &[u8]) -> Result<Record, BadLine> {
    let (sum, json) = line.split_at_checked(9).ok_or(BadLine::Damaged)?;
    let stated = std::str::from_utf8(&sum[..8]).ok().and_then(|text| u32::from_str_radix(text, 16).ok());
    if stated != Some(crc32(json)) || sum[8] != b' ' {
        return Err(BadLine::Damaged);
    }
    match serde_json::from_slice(json) {
        Ok(Record::Journal { version }) if version != VERSION => Err(BadLine::Unknown),
        Ok(record) => Ok(record),
        Err(_) => Err(BadLine::Unknown),
    }
}

/// CRC-32 as in Ethernet and gzip (polynomial 0x04c11db7, reflected), an octet at a time: every call reads the whole journal.
fn crc32(octets: &[u8]) -> u32 {
    let step = |crc: u32, octet: &u8| (crc >> 8) ^ CRC_OF_OCTET[usize::from(crc as u8 ^ octet)];
    !octets.iter().fold(u32::MAX, step)
}

/// What each octet adds.
static CRC_OF_OCTET: [u32; 256] = {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < table.len() {
        let (mut crc, mut bit) = (octet as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[octet] = crc;
        octet += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_line_comes_back_and_any_flipped_bit_is_seen() {
        let owner = Owner { container: "c1".into(), interface: "eth0".into(), cni_network: "net".into() };
        let record = Record::Release { network: "managed".into(), owner, at: 7 };
        let line = emit(&record);
        assert_eq!(line.last(), Some(&b'\n'));
        let line = &line[..line.len() - 1];
        assert_eq!(parse(line), Ok(record));
        for bit in 0..line.len() * 8 {
            let mut spoiled = line.to_vec();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            // A hexadecimal digit may become its capital: that says the same.
            if !spoiled.eq_ignore_ascii_case(line) || bit / 8 > 8 {
                assert_eq!(parse(&spoiled), Err(BadLine::Damaged), "bit {bit}");
            }
        }
        for len in 0..line.len() {
            assert_eq!(parse(&line[..len]), Err(BadLine::Damaged));
        }
    }

    #[test]
    fn what_a_later_version_writes_is_not_damage() {
        let line = |json: &str| format!("{:08x} {json}", crc32(json.as_bytes())).into_bytes();
        assert_eq!(parse(&line(r#"{"record":"journal","version":2}"#)), Err(BadLine::Unknown));
        assert_eq!(parse(&line(r#"{"record":"moved","network":"n"}"#)), Err(BadLine::Unknown));
    }

    /// The first version of a lease's record knew nothing of its owner; a later one may know more than this.
    #[test]
    fn what_is_known_of_an_owner_is_read_by_every_version() {
        let line = |more: &str| {
            let lease = r#"{"record":"lease","network":"managed","addresses":["10.42.1.2"],"container":"c1","interface":"eth0","cni_network":"net","netns":"","netns_id":null,"boot":"","seen_from":null,"since":7"#;
            let json = format!("{lease}{more}}}");
            format!("{:08x} {json}\n", crc32(json.as_bytes())).into_bytes()
        };
        let parsed = |line: &[u8]| match parse(&line[..line.len() - 1]) {
            Ok(Record::Lease(lease)) => lease,
            other => panic!("{other:?}"),
        };
        let first = parsed(&line(""));
        assert_eq!(first.about, About::default());
        assert_eq!(
            emit(&Record::Lease(first.clone())),
            line(""),
            "who has nothing to say writes what the first version wrote"
        );
        let about = About { name: Some("web".into()), aliases: vec!["x".into()], ports: vec!["8080->80/tcp".into()] };
        let whole = line(r#","name":"web","aliases":["x"],"ports":["8080->80/tcp"]"#);
        assert_eq!(parsed(&whole), Lease { about, ..first.clone() });
        assert_eq!(emit(&Record::Lease(parsed(&whole))), whole);
        assert_eq!(parsed(&line(r#","colour":{"is":"blue"}"#)), first, "what is not known is no obstacle");
    }
}
