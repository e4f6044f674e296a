//! Whether the kernel has what a transaction says: then it need not be said again.
//!
//! That is worth a look. Where rules are replaced, whoever closes the socket waits until no packet runs by the old ones any more (a
//! grace period of RCU: 10 ms and more), and so does everybody who closes one meanwhile; to read what stands takes less than one.
//!
//! The kernel lists rules in the words in which they were written, with further ones: so each of ours must be among them. What it would
//! say otherwise is taken for different, and written again.

use std::collections::BTreeMap;

use netlink_packet_core::NLM_F_DUMP;

use super::message::{Attributes, Message, all_of, split};
use super::table::{
    DELETE_RULE, ELEMENT_LIST_SET, Element, Family, NEW_ELEMENT, NEW_SET, Transaction, elements_in, list_elements,
};
use super::{
    CHAIN_NAME, CHAIN_TABLE, Fault, GuardError, NEW_CHAIN, NEW_OBJECT, NEW_RULE, NEW_TABLE, RULE_CHAIN, RULE_EXPRESSIONS,
    RULE_TABLE, Socket, open,
};

/// More message types of nf_tables.
const GET_CHAIN: u16 = 4;
const LIST_RULES: u16 = 7;

impl Transaction {
    /// Says all of it to the kernel, as `commit` does, unless it stands already.
    ///
    /// # Errors
    /// [`GuardError`]; then nothing has changed.
    pub(crate) fn settle(self) -> Result<(), GuardError> {
        if self.stands()? { Ok(()) } else { self.commit() }
    }

    /// Whether the kernel has all of it: chains with these rules and no others, and these elements. Sets and counters are there as long
    /// as rules ask for them. What is to go is not looked for.
    pub(super) fn stands(&self) -> Result<bool, GuardError> {
        let (mut rules, mut elements) = (BTreeMap::<&[u8], Vec<&Message>>::new(), BTreeMap::<&[u8], Vec<Element>>::new());
        let mut chains = Vec::new();
        for (message, _) in &self.messages {
            let named = |kind| message.attribute(kind).unwrap_or_default();
            match message.kind() {
                NEW_TABLE | NEW_SET | NEW_OBJECT => {}
                NEW_CHAIN => chains.push(message),
                // Before a chain's rules.
                DELETE_RULE => drop(rules.entry(named(RULE_CHAIN)).or_default()),
                NEW_RULE => rules.entry(named(RULE_CHAIN)).or_default().push(message),
                NEW_ELEMENT => elements.entry(named(ELEMENT_LIST_SET)).or_default().extend(elements_in(message)),
                _ => return Ok(false),
            }
        }
        let mut kernel = Kernel::open(self.family, self.table)?;
        let listed = kernel.rules()?;
        let is_there = |(name, wanted): (&&[u8], &Vec<&Message>)| {
            let of_chain: Vec<&Message> = listed.iter().filter(|rule| rule.attribute(RULE_CHAIN) == Some(name)).collect();
            let says = |(listed, wanted): (&&Message, &&Message)| {
                let expressions = |rule: &Message| rule.attribute(RULE_EXPRESSIONS).unwrap_or_default().to_vec();
                covers(&expressions(listed), &expressions(wanted))
            };
            of_chain.len() == wanted.len() && of_chain.iter().zip(wanted).all(says)
        };
        if !rules.iter().all(is_there) {
            return Ok(false);
        }
        for chain in chains {
            if !kernel.has_chain(chain)? {
                return Ok(false);
            }
        }
        for (set, wanted) in elements {
            let held = kernel.elements(&String::from_utf8_lossy(set.strip_suffix(&[0]).unwrap_or(set)))?;
            if !wanted.iter().all(|element| held.contains(element)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What the kernel has of one table.
struct Kernel {
    socket: Socket,
    family: Family,
    table: &'static str,
}

impl Kernel {
    fn open(family: Family, table: &'static str) -> Result<Self, GuardError> {
        let socket = open(|| format!("read the nftables table {} {table}", family.name()))?;
        Ok(Self { socket, family, table })
    }

    fn ask(&mut self, kind: u16, attributes: Attributes, flags: u16) -> Result<Vec<Message>, GuardError> {
        match self.socket.request(Message::new(kind, self.family.code(), attributes), flags) {
            Ok(answer) => Ok(answer),
            Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(fault) => {
                Err(super::explain(fault, || format!("read the nftables table {} {}", self.family.name(), self.table)))
            }
        }
    }

    /// In their order within each chain.
    fn rules(&mut self) -> Result<Vec<Message>, GuardError> {
        self.ask(LIST_RULES, Attributes::default().text(RULE_TABLE, self.table), NLM_F_DUMP)
    }

    fn has_chain(&mut self, wanted: &Message) -> Result<bool, GuardError> {
        let name = wanted.attribute(CHAIN_NAME).unwrap_or_default();
        let question = Attributes::default().text(CHAIN_TABLE, self.table).octets(CHAIN_NAME, name);
        let found = self.ask(GET_CHAIN, question, 0)?;
        Ok(found.iter().any(|listed| covers(listed.attributes(), wanted.attributes())))
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Element>, GuardError> {
        list_elements(&mut self.socket, self.family, self.table, set)
    }
}

/// Whether what is listed says all that is wanted: of each type as many attributes, with the same values in the same order.
fn covers(listed: &[u8], wanted: &[u8]) -> bool {
    let kinds: BTreeMap<u16, bool> = split(wanted).into_iter().map(|(kind, is_nested, _)| (kind, is_nested)).collect();
    kinds.into_iter().all(|(kind, is_nested)| {
        let (listed, wanted) = (all_of(listed, kind), all_of(wanted, kind));
        // The kernel does not mark what is nested.
        let says = |(listed, wanted): (&&[u8], &&[u8])| if is_nested { covers(listed, wanted) } else { listed == wanted };
        listed.len() == wanted.len() && listed.iter().zip(&wanted).all(says)
    })
}
