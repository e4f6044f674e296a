//! The guard: overlay addresses enter this host out of the tunnel only. One nftables table, without the `nft` program.
//!
//! A neighbour on the underlay could otherwise reach an overlay address in clear (the kernel takes a packet for any of its
//! addresses on any interface), or send packets that claim to come from an overlay address. So a chain in `prerouting`, as
//! early as rules run at all, lets everything pass that came out of the TUN, off `lo`, off a bridge of containers or off an
//! interface that the caller allows, and drops what is left if
//! - its source lies in one of the peers' prefixes: counted as `forged_overlay`, or
//! - its destination lies in one of this host's overlay prefixes: counted as `clear_overlay`; unless it came in by the
//!   interface on which that part of the prefix lives (a bridge of containers, the LAN behind a gateway).
//!
//! [`install`] replaces the whole table in one transaction and carries the counts over, so it can be called at every change
//! of the prefixes, and no packet finds the door open in between. It belongs to nobody's process: after a crash of the agent it
//! is still there, and [`remove`] is for a stop on purpose. `nft list table inet underpass` shows it:
//!
//! ```text
//! chain clear {
//!     type filter hook prerouting priority raw; policy accept;
//!     iifname "underpass0" accept
//!     iifname "lo" accept
//!     iifgroup 30064 accept
//!     ip saddr 10.42.2.0/24 counter name "forged_overlay" drop
//!     iifname "br0" ip daddr 10.42.1.0/25 accept
//!     ip daddr 10.42.1.0/24 counter name "clear_overlay" drop
//! }
//! ```

mod compare;
pub mod forward;
mod message;
mod rule;
pub(crate) mod standing;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::NetlinkError;
use super::netlink::socket::{Fault, Socket};
use message::{Attributes, Message, NF_TABLES, attribute};
use rule::{Field, OBJECT_COUNTER};
pub(crate) use rule::{Holds, Load, Rule};

/// Message types of nf_tables.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_OBJECT: u16 = 18;
const LIST_OBJECTS: u16 = 19;

/// Attribute types of those messages, under the kernel's names without `NFTA_`.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_HOOKNUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const OBJ_TABLE: u16 = 1;
const OBJ_NAME: u16 = 2;
const OBJ_TYPE: u16 = 3;
const OBJ_DATA: u16 = 4;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// `NFPROTO_INET`: one table for IPv4 and IPv6.
const FAMILY_INET: u8 = 1;

/// `NF_INET_PRE_ROUTING`: before the kernel decides whether a packet is for this host.
const HOOK_PREROUTING: u32 = 0;

/// `NF_IP_PRI_RAW`: before connection tracking, so that forged packets cost no memory there and no NAT rule changes them.
const PRIORITY_RAW: i32 = -300;

/// What a packet meets that no rule has decided on (`NF_ACCEPT`).
const POLICY_ACCEPT: u32 = 1;

/// The one chain's name.
const CHAIN: &str = "clear";

/// The counters' names.
const CLEAR_OVERLAY: &str = "clear_overlay";
const FORGED_OVERLAY: &str = "forged_overlay";

/// Interface names end at 15 octets (`IFNAMSIZ` less the zero).
const INTERFACE_NAME_LIMIT: usize = 15;

/// The group of interfaces that containers of ours hang on: whoever makes such a bridge puts it there, and from then on the guard
/// lets pass what comes in by it. What may come in by it is fenced where the bridge is made.
pub const CONTAINERS_GROUP: u32 = 0x7570;

/// Names of tables end here (`NFT_NAME_MAXLEN` allows 255; ours are short).
const TABLE_NAME_LIMIT: usize = 64;

/// What the guard is to keep out, and whom it lets pass.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// The table's name; agents that share a network namespace need different ones.
    pub table: &'a str,
    /// The interface that overlay packets do come from.
    pub tun: &'a str,
    /// Further interfaces to trust, such as the containers' bridges; `name*` stands for all that begin so.
    pub allowed: &'a [String],
    /// This host's overlay addresses and blocks.
    pub local: &'a [IpNet],
    /// Parts of `local` that live on another interface of this host, and which: there they are reached in clear.
    pub inside: &'a [(String, IpNet)],
    /// The blocks behind the peers.
    pub remote: &'a [IpNet],
    /// Addresses of the underlay, ours and the peers'. Where a prefix contains one of them (a gateway within the network that
    /// it stands for), that address is left out, else the tunnel would cut itself off.
    pub outer: &'a [IpAddr],
}

/// How much the guard has kept out since its table was first made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuardCounters {
    /// Packets in clear for one of our overlay addresses.
    pub clear_overlay: Count,
    /// Packets in clear that claim an overlay source.
    pub forged_overlay: Count,
}

/// Packets and their octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// How many packets.
    pub packets: u64,
    /// How many octets in them, from the IP header on.
    pub octets: u64,
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel has no nf_tables, or no tables of the family `inet`.
    #[error("{action}: this kernel has no nf_tables (CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, or their modules)")]
    NoNfTables {
        /// What was tried.
        action: String,
    },
    /// A name that the kernel would not take, or would take for something else.
    #[error("\"{0}\" cannot name {1}")]
    BadName(String, &'static str),
    /// The kernel refused; the text says what was tried.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Puts the guard in place in the calling thread's network namespace, instead of one of the same name; its counts go on.
/// Returns the prefixes that could not be guarded because they are everything (`0.0.0.0/0`, `::/0`): dropping those would
/// cut the host off.
///
/// # Errors
/// [`GuardError`]; the old table, if any, is then still in place as it was.
pub fn install(guard: &Guard<'_>) -> Result<Vec<IpNet>, GuardError> {
    check_names(guard)?;
    let action = || format!("install the nftables table inet {}", guard.table);
    let mut socket = open(action)?;
    let before = list_counters(&mut socket, guard.table, action)?.unwrap_or_default();
    let mut messages = vec![
        // Made, so that there is something to delete; deleted, so that nothing old remains; made.
        (table_message(NEW_TABLE, guard.table), NLM_F_CREATE),
        (table_message(DELETE_TABLE, guard.table), 0),
        (table_message(NEW_TABLE, guard.table), NLM_F_CREATE),
        (chain_message(guard.table), NLM_F_CREATE),
        (counter_message(guard.table, CLEAR_OVERLAY, before.clear_overlay), NLM_F_CREATE),
        (counter_message(guard.table, FORGED_OVERLAY, before.forged_overlay), NLM_F_CREATE),
    ];
    // A rule without NLM_F_APPEND would go to the front.
    let flags = NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND;
    messages.extend(rules(guard).into_iter().map(|rule| (rule_message(guard.table, rule), flags)));
    commit(&mut socket, NF_TABLES, messages, action)?;
    Ok(guard.local.iter().chain(guard.remote).filter(|prefix| prefix.prefix_len() == 0).copied().collect())
}

/// Takes the guard away. Returns whether there was one.
///
/// # Errors
/// [`GuardError`].
pub fn remove(table: &str) -> Result<bool, GuardError> {
    let action = || format!("remove the nftables table inet {table}");
    let mut socket = open(action)?;
    match commit(&mut socket, NF_TABLES, vec![(table_message(DELETE_TABLE, table), 0)], action) {
        Ok(()) => Ok(true),
        Err(GuardError::Netlink(error)) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the guard of this name has counted; `None` if it is not there (any more).
///
/// # Errors
/// [`GuardError`].
pub fn counters(table: &str) -> Result<Option<GuardCounters>, GuardError> {
    let action = || format!("read the counters of the nftables table inet {table}");
    list_counters(&mut open(action)?, table, action)
}

/// The rules of the chain, in their order.
fn rules(guard: &Guard<'_>) -> Vec<Rule> {
    let trusted = [guard.tun, "lo"].into_iter().chain(guard.allowed.iter().map(String::as_str));
    let mut rules: Vec<_> = trusted.map(|interface| Rule::default().came_in_by(interface).accept()).collect();
    rules.push(Rule::default().came_in_by_group(CONTAINERS_GROUP).accept());
    rules.extend(drops(guard, Field::Source, guard.remote, FORGED_OVERLAY));
    let inside = guard.inside.iter().map(|(interface, prefix)| {
        Rule::default().came_in_by(interface).address_in(Field::Destination, *prefix, &[]).accept()
    });
    rules.extend(inside);
    rules.extend(drops(guard, Field::Destination, guard.local, CLEAR_OVERLAY));
    rules
}

fn drops(guard: &Guard<'_>, field: Field, prefixes: &[IpNet], counter: &str) -> Vec<Rule> {
    // Neighbouring blocks become one prefix: a fleet's blocks are many rules less.
    let prefixes = IpNet::aggregate(&prefixes.to_vec()).into_iter().filter(|prefix| prefix.prefix_len() > 0);
    let rule = |prefix: IpNet| {
        let except: Vec<_> = guard.outer.iter().filter(|&address| prefix.contains(address)).copied().collect();
        Rule::default().address_in(field, prefix, &except).count(counter).drop()
    };
    prefixes.map(rule).collect()
}

fn table_message(kind: u16, table: &str) -> Message {
    Message::new(kind, FAMILY_INET, Attributes::default().text(TABLE_NAME, table))
}

fn chain_message(table: &str) -> Message {
    let hook =
        Attributes::default().number(HOOK_HOOKNUM, HOOK_PREROUTING).octets(HOOK_PRIORITY, &PRIORITY_RAW.to_be_bytes());
    let attributes = Attributes::default()
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, CHAIN)
        .nested(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, POLICY_ACCEPT)
        .text(CHAIN_TYPE, "filter");
    Message::new(NEW_CHAIN, FAMILY_INET, attributes)
}

fn rule_message(table: &str, rule: Rule) -> Message {
    let attributes = Attributes::default()
        .text(RULE_TABLE, table)
        .text(RULE_CHAIN, CHAIN)
        .nested(RULE_EXPRESSIONS, rule.into_expressions());
    Message::new(NEW_RULE, FAMILY_INET, attributes)
}

fn counter_message(table: &str, name: &str, start: Count) -> Message {
    let counter = Attributes::default().large(COUNTER_BYTES, start.octets).large(COUNTER_PACKETS, start.packets);
    let attributes = Attributes::default()
        .text(OBJ_TABLE, table)
        .text(OBJ_NAME, name)
        .number(OBJ_TYPE, OBJECT_COUNTER)
        .nested(OBJ_DATA, counter);
    Message::new(NEW_OBJECT, FAMILY_INET, attributes)
}

/// Reads the named counters of a table. A table that is not there has none.
fn list_counters(
    socket: &mut Socket,
    table: &str,
    action: impl FnOnce() -> String,
) -> Result<Option<GuardCounters>, GuardError> {
    let filter = Attributes::default().text(OBJ_TABLE, table).number(OBJ_TYPE, OBJECT_COUNTER);
    let message = Message::new(LIST_OBJECTS, FAMILY_INET, filter);
    let objects = match socket.request(message, NLM_F_DUMP) {
        Ok(objects) => objects,
        Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
        Err(fault) => return Err(explain(fault, action)),
    };
    let (mut counters, mut found) = (GuardCounters::default(), false);
    for object in objects {
        // Kernels before 4.14 (and none that we know of since) ignore the filter.
        if text(object.attribute(OBJ_TABLE)) != Some(table.as_bytes()) {
            continue;
        }
        let count = object.attribute(OBJ_DATA).map(count).unwrap_or_default();
        let counter = match text(object.attribute(OBJ_NAME)) {
            Some(name) if name == CLEAR_OVERLAY.as_bytes() => &mut counters.clear_overlay,
            Some(name) if name == FORGED_OVERLAY.as_bytes() => &mut counters.forged_overlay,
            _ => continue,
        };
        (*counter, found) = (count, true);
    }
    Ok(found.then_some(counters))
}

fn count(data: &[u8]) -> Count {
    let number = |kind| attribute(data, kind).and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes);
    Count { packets: number(COUNTER_PACKETS), octets: number(COUNTER_BYTES) }
}

/// A name without the zero that ends it.
fn text(value: Option<&[u8]>) -> Option<&[u8]> {
    value.map(|value| value.strip_suffix(&[0]).unwrap_or(value))
}

fn open(action: impl FnOnce() -> String) -> Result<Socket, GuardError> {
    Socket::open(NETLINK_NETFILTER).map_err(|reason| match reason.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => GuardError::NoNfTables { action: action() },
        _ => GuardError::Netlink(NetlinkError::Open(reason)),
    })
}

/// Sends the messages as one transaction of this subsystem; the last one is acknowledged.
fn commit(
    socket: &mut Socket,
    subsystem: u16,
    mut messages: Vec<(Message, u16)>,
    action: impl FnOnce() -> String,
) -> Result<(), GuardError> {
    if let Some((_, flags)) = messages.last_mut() {
        *flags |= NLM_F_ACK;
    }
    messages.insert(0, (Message::batch_begin(subsystem), 0));
    messages.push((Message::batch_end(subsystem), 0));
    socket.batch(messages).map_err(|fault| explain(fault, action))
}

/// The kernel's words for "no nf_tables": the subsystem (EOPNOTSUPP) or the family (EAFNOSUPPORT) is not supported.
fn explain(fault: Fault, action: impl FnOnce() -> String) -> GuardError {
    let action = action();
    match fault {
        Fault::Refused { reason, .. } if matches!(reason.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
            GuardError::NoNfTables { action }
        }
        fault => fault.during(action).into(),
    }
}

fn check_names(guard: &Guard<'_>) -> Result<(), GuardError> {
    let printable = |name: &str| !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'"');
    if !printable(guard.table) || guard.table.len() > TABLE_NAME_LIMIT {
        return Err(GuardError::BadName(guard.table.to_owned(), "an nftables table"));
    }
    // A lone `*` would trust every interface, which is to have no guard.
    let allowed = guard.allowed.iter().map(|name| name.strip_suffix('*').unwrap_or(name));
    let inside = guard.inside.iter().map(|(name, _)| name.as_str());
    for name in allowed.chain([guard.tun]).chain(inside) {
        if !printable(name) || name.contains(['*', '/']) || name.len() > INTERFACE_NAME_LIMIT {
            return Err(GuardError::BadName(name.to_owned(), "a network interface"));
        }
    }
    Ok(())
}
