//! Tables that others put together: sets, chains, counters and rules, made or changed in one transaction.
//!
//! Everything is said as it shall be: a table, set or chain that is there already stays, with what is in it, and a chain's rules
//! are replaced. So the same words can be said at any time, by several processes at once: the kernel takes one transaction after
//! the other, and no packet sees half of one.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};

use super::message::{Attributes, Message, NF_TABLES, all_of, attribute};
use super::rule::{OBJECT_COUNTER, Rule};
use super::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, Count, DELETE_TABLE, Fault, GuardError, HOOK_HOOKNUM,
    HOOK_PRIORITY, LIST_OBJECTS, NEW_CHAIN, NEW_OBJECT, NEW_RULE, NEW_TABLE, OBJ_DATA, OBJ_NAME, OBJ_TABLE, OBJ_TYPE,
    POLICY_ACCEPT, RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE, Socket, TABLE_NAME, commit, count, open, text,
};

/// More message types of nf_tables.
pub(super) const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const NEW_ELEMENT: u16 = 12;
const LIST_ELEMENTS: u16 = 13;
const DELETE_ELEMENT: u16 = 14;

/// Their attribute types, under the kernel's names without `NFTA_`.
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;
const SET_DESC_CONCAT: u16 = 2;
const SET_FIELD_LEN: u16 = 1;
const LIST_ELEM: u16 = 1;
const ELEMENT_LIST_TABLE: u16 = 1;
pub(super) const ELEMENT_LIST_SET: u16 = 2;
const ELEMENT_LIST_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;

/// `NFT_SET_INTERVAL` and `NFT_SET_CONCAT`.
const FLAG_INTERVAL: u32 = 0x4;
const FLAG_CONCAT: u32 = 0x80;

/// `NFT_SET_ELEM_INTERVAL_END`: the first that is outside again.
const ELEMENT_INTERVAL_END: u32 = 1;

/// What the `nft` program writes with a set of names, so that it can read them: type 0 (the keys' order), 4 octets, 1 (the machine's).
const NAMES_AS_THEY_ARE: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// Which packets a table sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// IPv4 and IPv6 (`NFPROTO_INET`).
    Inet,
    /// Frames that enter a bridge (`NFPROTO_BRIDGE`).
    Bridge,
}

impl Family {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// A part of a set's keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// An interface's name.
    Interface,
    /// A link-layer address.
    Ether,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A protocol above IP.
    Protocol,
    /// A port.
    Port,
}

impl Part {
    /// Its octets, and the number by which the `nft` program knows how to show it.
    const fn shape(self) -> (usize, u32) {
        match self {
            Self::Interface => (16, 41),
            Self::Ether => (6, 9),
            Self::Ipv4 => (4, 7),
            Self::Ipv6 => (16, 8),
            Self::Protocol => (1, 12),
            Self::Port => (2, 13),
        }
    }
}

/// What a set holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub name: &'static str,
    pub parts: &'static [Part],
    /// Keys are ranges.
    pub ranges: bool,
}

/// Where a chain hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*`, which are the bridge's too.
    pub number: u32,
    pub priority: i32,
}

/// A key under construction: parts side by side, each filled up to four octets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// The next part.
    pub(crate) fn octets(mut self, octets: &[u8]) -> Self {
        self.0.extend_from_slice(octets);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The name of an interface as the next part.
    pub(crate) fn interface(mut self, name: &str) -> Self {
        let mut octets = [0; 16];
        for (octet, value) in octets.iter_mut().zip(name.bytes()) {
            *octet = value;
        }
        self.0.extend_from_slice(&octets);
        self
    }

    /// The key as it is listed.
    pub(crate) fn as_octets(&self) -> &[u8] {
        &self.0
    }
}

/// An address's octets.
pub(crate) fn address_octets(address: std::net::IpAddr) -> Vec<u8> {
    super::rule::octets(address)
}

/// Changes of one table.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(super) family: Family,
    pub(super) table: &'static str,
    pub(super) messages: Vec<(Message, u16)>,
    sets: u32,
}

impl Transaction {
    /// Of this table, which need not be there.
    pub(crate) fn new(family: Family, table: &'static str) -> Self {
        let mut transaction = Self { family, table, messages: Vec::new(), sets: 0 };
        transaction.push(NEW_TABLE, Attributes::default().text(TABLE_NAME, table), NLM_F_CREATE);
        transaction
    }

    fn push(&mut self, kind: u16, attributes: Attributes, flags: u16) {
        self.messages.push((Message::new(kind, self.family.code(), attributes), flags));
    }

    /// There is such a set.
    pub(crate) fn set(&mut self, set: &Set) {
        self.sets += 1;
        let lengths = set.parts.iter().map(|part| part.shape().0);
        let key_length: usize = lengths.clone().map(|length| length.next_multiple_of(4)).sum();
        let single = set.parts.len() == 1;
        let kind = set.parts.iter().fold(0, |kind, part| kind << 6 | part.shape().1);
        let mut flags = if set.ranges { FLAG_INTERVAL } else { 0 };
        let mut attributes = Attributes::default().text(SET_TABLE, self.table).text(SET_NAME, set.name);
        let length = if single { set.parts[0].shape().0 } else { key_length };
        attributes = attributes.number(SET_KEY_TYPE, kind).number(SET_KEY_LEN, length as u32).number(SET_ID, self.sets);
        if !single {
            flags |= FLAG_CONCAT;
            let field = |length: usize| Attributes::default().number(SET_FIELD_LEN, length as u32);
            let fields = lengths.fold(Attributes::default(), |all, length| all.nested(LIST_ELEM, field(length)));
            attributes = attributes.nested(SET_DESC, Attributes::default().nested(SET_DESC_CONCAT, fields));
        }
        if single && set.parts[0] == Part::Interface {
            attributes = attributes.octets(SET_USERDATA, &NAMES_AS_THEY_ARE);
        }
        self.push(NEW_SET, attributes.number(SET_FLAGS, flags), NLM_F_CREATE);
    }

    /// There is such a counter.
    pub(crate) fn counter(&mut self, name: &str) {
        let attributes = Attributes::default()
            .text(OBJ_TABLE, self.table)
            .text(OBJ_NAME, name)
            .number(OBJ_TYPE, OBJECT_COUNTER)
            .nested(OBJ_DATA, Attributes::default());
        self.push(NEW_OBJECT, attributes, NLM_F_CREATE);
    }

    /// There is such a chain, and these are its rules.
    pub(crate) fn chain(&mut self, name: &str, hook: Option<Hook>, rules: Vec<Rule>) {
        let mut attributes = Attributes::default().text(CHAIN_TABLE, self.table).text(CHAIN_NAME, name);
        if let Some(Hook { kind, number, priority }) = hook {
            let hook = Attributes::default().number(HOOK_HOOKNUM, number).octets(HOOK_PRIORITY, &priority.to_be_bytes());
            attributes = attributes.nested(CHAIN_HOOK, hook).number(CHAIN_POLICY, POLICY_ACCEPT).text(CHAIN_TYPE, kind);
        }
        self.push(NEW_CHAIN, attributes, NLM_F_CREATE);
        let of_chain = Attributes::default().text(RULE_TABLE, self.table).text(RULE_CHAIN, name);
        self.push(DELETE_RULE, of_chain.clone(), 0);
        for rule in rules {
            let attributes = of_chain.clone().nested(RULE_EXPRESSIONS, rule.into_expressions());
            self.push(NEW_RULE, attributes, NLM_F_CREATE | NLM_F_APPEND);
        }
    }

    /// The set holds this key.
    pub(crate) fn add(&mut self, set: &str, key: &Key) {
        let attributes = self.elements(set, Attributes::default().nested(LIST_ELEM, element(ELEMENT_KEY, key)));
        self.push(NEW_ELEMENT, attributes, NLM_F_CREATE);
    }

    /// The set does not hold this key any more.
    pub(crate) fn delete(&mut self, set: &str, key: &Key) {
        let attributes = self.elements(set, Attributes::default().nested(LIST_ELEM, element(ELEMENT_KEY, key)));
        self.push(DELETE_ELEMENT, attributes, 0);
    }

    /// The set holds every address of the prefix, behind this start of the key. None of them may be there in another prefix.
    pub(crate) fn add_prefix(&mut self, set: &str, start: Key, prefix: IpNet) {
        let attributes = self.elements(set, range(start, prefix));
        self.push(NEW_ELEMENT, attributes, NLM_F_CREATE);
    }

    /// And does not hold it any more.
    pub(crate) fn delete_prefix(&mut self, set: &str, start: Key, prefix: IpNet) {
        let attributes = self.elements(set, range(start, prefix));
        self.push(DELETE_ELEMENT, attributes, 0);
    }

    fn elements(&self, set: &str, elements: Attributes) -> Attributes {
        Attributes::default()
            .text(ELEMENT_LIST_TABLE, self.table)
            .text(ELEMENT_LIST_SET, set)
            .nested(ELEMENT_LIST_ELEMENTS, elements)
    }

    /// Says all of it to the kernel, in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`GuardError`]; then nothing has changed.
    pub(crate) fn commit(self) -> Result<(), GuardError> {
        let (family, table) = (self.family.name(), self.table);
        let action = || format!("change the nftables table {family} {table}");
        commit(&mut open(action)?, NF_TABLES, self.messages, action)
    }
}

fn element(kind: u16, key: &Key) -> Attributes {
    Attributes::default().nested(kind, Attributes::default().octets(DATA_VALUE, &key.0))
}

/// A prefix as elements: with something in front of it one element with two keys, alone two elements.
fn range(start: Key, prefix: IpNet) -> Attributes {
    let (first, last) = (address_octets(prefix.network()), address_octets(prefix.broadcast()));
    if !start.0.is_empty() {
        let end = start.clone().octets(&last);
        let both = Attributes::default()
            .nested(ELEMENT_KEY, Attributes::default().octets(DATA_VALUE, &start.octets(&first).0))
            .nested(ELEMENT_KEY_END, Attributes::default().octets(DATA_VALUE, &end.0));
        return Attributes::default().nested(LIST_ELEM, both);
    }
    let elements = Attributes::default().nested(LIST_ELEM, element(ELEMENT_KEY, &Key(first)));
    match successor(last) {
        Some(next) => {
            let end = element(ELEMENT_KEY, &Key(next)).number(ELEMENT_FLAGS, ELEMENT_INTERVAL_END);
            elements.nested(LIST_ELEM, end)
        }
        // The range ends with the last address that there is.
        None => elements,
    }
}

/// The next number of as many octets.
fn successor(mut octets: Vec<u8>) -> Option<Vec<u8>> {
    for octet in octets.iter_mut().rev() {
        *octet = octet.wrapping_add(1);
        if *octet != 0 {
            return Some(octets);
        }
    }
    None
}

/// The keys in a set; none if there is no such table or set. Of a range of addresses alone, the first one is a key, and the
/// first that is outside again.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn keys(family: Family, table: &str, set: &str) -> Result<Vec<Vec<u8>>, GuardError> {
    Ok(ranges(family, table, set)?.into_iter().map(|range| range.first).collect())
}

/// A key that is a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub first: Vec<u8>,
    pub last: Vec<u8>,
}

/// The keys in a set whose keys are ranges behind something else: the first and the last.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn ranges(family: Family, table: &str, set: &str) -> Result<Vec<Range>, GuardError> {
    let action = || format!("list the set {set} of the nftables table {} {table}", family.name());
    let listed = list_elements(&mut open(action)?, family, table, set)?;
    Ok(listed
        .into_iter()
        .map(|Element { first, last, .. }| Range { last: last.unwrap_or_else(|| first.clone()), first })
        .collect())
}

/// Whether a set of single keys holds this one: one question, however many there are.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn holds(family: Family, table: &str, set: &str, key: &Key) -> Result<bool, GuardError> {
    let action = || format!("look into the set {set} of the nftables table {} {table}", family.name());
    let wanted = Attributes::default()
        .text(ELEMENT_LIST_TABLE, table)
        .text(ELEMENT_LIST_SET, set)
        .nested(ELEMENT_LIST_ELEMENTS, Attributes::default().nested(LIST_ELEM, element(ELEMENT_KEY, key)));
    match open(action)?.request(Message::new(LIST_ELEMENTS, family.code(), wanted), 0) {
        Ok(_) => Ok(true),
        Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(fault) => Err(super::explain(fault, action)),
    }
}

/// What a set holds, as messages say it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Element {
    first: Vec<u8>,
    last: Option<Vec<u8>>,
    /// The first that is outside of a range again.
    is_end: bool,
}

pub(super) fn list_elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &str,
) -> Result<Vec<Element>, GuardError> {
    let filter = Attributes::default().text(ELEMENT_LIST_TABLE, table).text(ELEMENT_LIST_SET, set);
    match socket.request(Message::new(LIST_ELEMENTS, family.code(), filter), NLM_F_DUMP) {
        Ok(answer) => Ok(answer.iter().flat_map(elements_in).collect()),
        Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(fault) => {
            Err(super::explain(fault, || format!("list the set {set} of the nftables table {} {table}", family.name())))
        }
    }
}

/// The elements that a message tells of.
pub(super) fn elements_in(message: &Message) -> Vec<Element> {
    let elements = message.attribute(ELEMENT_LIST_ELEMENTS).unwrap_or_default();
    let one = |element| {
        let value = |kind| Some(attribute(attribute(element, kind)?, DATA_VALUE)?.to_vec());
        let flags = attribute(element, ELEMENT_FLAGS).and_then(|flags| flags.try_into().ok()).map_or(0, u32::from_be_bytes);
        let is_end = flags & ELEMENT_INTERVAL_END != 0;
        Some(Element { first: value(ELEMENT_KEY)?, last: value(ELEMENT_KEY_END), is_end })
    };
    all_of(elements, LIST_ELEM).into_iter().filter_map(one).collect()
}

/// What a counter of a table has counted; none if it is not there.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn counted(family: Family, table: &str, counter: &str) -> Result<Option<Count>, GuardError> {
    let action = || format!("read the counters of the nftables table {} {table}", family.name());
    let filter = Attributes::default().text(OBJ_TABLE, table).number(OBJ_TYPE, OBJECT_COUNTER);
    let mut socket = open(action)?;
    let objects = match socket.request(Message::new(LIST_OBJECTS, family.code(), filter), NLM_F_DUMP) {
        Ok(objects) => objects,
        Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(fault) => return Err(super::explain(fault, action)),
    };
    let ours = |object: &&Message| {
        text(object.attribute(OBJ_TABLE)) == Some(table.as_bytes())
            && text(object.attribute(OBJ_NAME)) == Some(counter.as_bytes())
    };
    Ok(objects.iter().find(ours).map(|object| object.attribute(OBJ_DATA).map(count).unwrap_or_default()))
}

/// Takes a table away. Returns whether there was one.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn remove_table(family: Family, table: &str) -> Result<bool, GuardError> {
    let action = || format!("remove the nftables table {} {table}", family.name());
    let message = Message::new(DELETE_TABLE, family.code(), Attributes::default().text(TABLE_NAME, table));
    match commit(&mut open(action)?, NF_TABLES, vec![(message, 0)], action) {
        Ok(()) => Ok(true),
        Err(GuardError::Netlink(error)) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}
