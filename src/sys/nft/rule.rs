//! Rules, as the little programs that nf_tables runs: load into a register, compare, decide.
//!
//! A rule is a list of expressions. Each is a name and its attributes, and each may end the rule (a comparison that does not
//! hold) or the chain (a verdict). Register 1 holds whatever was loaded last; register 0 holds the verdict.

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::Attributes;

/// Attribute types, verdicts and registers of nf_tables, under the kernel's names without `NFT_` and `NFTA_`
/// (linux/netfilter/nf_tables.h).
mod uapi {
    pub const LIST_ELEM: u16 = 1;
    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const META_DREG: u16 = 1;
    pub const META_KEY: u16 = 2;
    pub const META_IIFNAME: u32 = 6;
    pub const META_NFPROTO: u32 = 15;
    pub const CMP_SREG: u16 = 1;
    pub const CMP_OP: u16 = 2;
    pub const CMP_DATA: u16 = 3;
    pub const CMP_EQ: u32 = 0;
    pub const CMP_NEQ: u32 = 1;
    pub const PAYLOAD_DREG: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LEN: u16 = 4;
    pub const PAYLOAD_NETWORK_HEADER: u32 = 1;
    pub const BITWISE_SREG: u16 = 1;
    pub const BITWISE_DREG: u16 = 2;
    pub const BITWISE_LEN: u16 = 3;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    pub const OBJREF_IMM_TYPE: u16 = 1;
    pub const OBJREF_IMM_NAME: u16 = 2;
    pub const IMMEDIATE_DREG: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const REG_VERDICT: u32 = 0;
    pub const REG_1: u32 = 1;
    pub const NF_DROP: u32 = 0;
    pub const NF_ACCEPT: u32 = 1;
    pub const NFPROTO_IPV4: u8 = 2;
    pub const NFPROTO_IPV6: u8 = 10;
}

/// `NFT_OBJECT_COUNTER`: the type of a counter that has a name.
pub(super) const OBJECT_COUNTER: u32 = 1;

/// Interface names are compared as 16 octets, filled up with zeros (`IFNAMSIZ`).
const INTERFACE_NAME: usize = 16;

/// Which address of the IP header a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    Source,
    Destination,
}

/// A rule's expressions, in the order in which they run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Rule(Attributes);

impl Rule {
    /// The expressions as the value of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn into_expressions(self) -> Attributes {
        self.0
    }

    /// Goes on only for packets that came in by this interface; a `*` at the end stands for any rest.
    pub(super) fn came_in_by(self, interface: &str) -> Self {
        let mut name = [0; INTERFACE_NAME];
        let (compared, length) = match interface.strip_suffix('*') {
            Some(start) => (start, start.len().min(INTERFACE_NAME)),
            None => (interface, INTERFACE_NAME),
        };
        for (octet, value) in name.iter_mut().zip(compared.bytes()) {
            *octet = value;
        }
        self.load_meta(uapi::META_IIFNAME).compare(uapi::CMP_EQ, &name[..length])
    }

    /// Goes on only for packets whose address lies in the prefix, but is none of `except`.
    pub(super) fn address_in(self, field: Field, prefix: IpNet, except: &[IpAddr]) -> Self {
        let family = if prefix.addr().is_ipv4() { uapi::NFPROTO_IPV4 } else { uapi::NFPROTO_IPV6 };
        let network = octets(prefix.network());
        let mut rule = self.load_meta(uapi::META_NFPROTO).compare(uapi::CMP_EQ, &[family]);
        rule = rule.load_address(field, network.len());
        if prefix.prefix_len() < prefix.max_prefix_len() {
            rule = rule.mask(&octets(prefix.netmask()));
        }
        rule = rule.compare(uapi::CMP_EQ, &network);
        for &address in except {
            rule = rule.load_address(field, network.len()).compare(uapi::CMP_NEQ, &octets(address));
        }
        rule
    }

    /// Counts the packet with the table's counter of this name.
    pub(super) fn count(self, counter: &str) -> Self {
        let data = Attributes::default().number(uapi::OBJREF_IMM_TYPE, OBJECT_COUNTER).text(uapi::OBJREF_IMM_NAME, counter);
        self.expression("objref", data)
    }

    /// Ends the packet.
    pub(super) fn drop(self) -> Self {
        self.verdict(uapi::NF_DROP)
    }

    /// Ends the chain and lets the packet go on to whatever comes after it.
    pub(super) fn accept(self) -> Self {
        self.verdict(uapi::NF_ACCEPT)
    }

    fn load_meta(self, key: u32) -> Self {
        self.expression("meta", Attributes::default().number(uapi::META_KEY, key).number(uapi::META_DREG, uapi::REG_1))
    }

    fn load_address(self, field: Field, length: usize) -> Self {
        // RFC 791 §3.1 and RFC 8200 §3: where the addresses stand in the header.
        let offset = match (field, length) {
            (Field::Source, 4) => 12,
            (Field::Destination, 4) => 16,
            (Field::Source, _) => 8,
            (Field::Destination, _) => 24,
        };
        let data = Attributes::default()
            .number(uapi::PAYLOAD_DREG, uapi::REG_1)
            .number(uapi::PAYLOAD_BASE, uapi::PAYLOAD_NETWORK_HEADER)
            .number(uapi::PAYLOAD_OFFSET, offset)
            .number(uapi::PAYLOAD_LEN, length as u32);
        self.expression("payload", data)
    }

    fn mask(self, mask: &[u8]) -> Self {
        let nothing = [0; 16];
        let data = Attributes::default()
            .number(uapi::BITWISE_SREG, uapi::REG_1)
            .number(uapi::BITWISE_DREG, uapi::REG_1)
            .number(uapi::BITWISE_LEN, mask.len() as u32)
            .nested(uapi::BITWISE_MASK, value(mask))
            .nested(uapi::BITWISE_XOR, value(&nothing[..mask.len()]));
        self.expression("bitwise", data)
    }

    fn compare(self, operation: u32, octets: &[u8]) -> Self {
        let data = Attributes::default()
            .number(uapi::CMP_SREG, uapi::REG_1)
            .number(uapi::CMP_OP, operation)
            .nested(uapi::CMP_DATA, value(octets));
        self.expression("cmp", data)
    }

    fn verdict(self, code: u32) -> Self {
        let verdict = Attributes::default().number(uapi::VERDICT_CODE, code);
        let data = Attributes::default()
            .number(uapi::IMMEDIATE_DREG, uapi::REG_VERDICT)
            .nested(uapi::IMMEDIATE_DATA, Attributes::default().nested(uapi::DATA_VERDICT, verdict));
        self.expression("immediate", data)
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::default().text(uapi::EXPR_NAME, name).nested(uapi::EXPR_DATA, data);
        Self(self.0.nested(uapi::LIST_ELEM, expression))
    }
}

fn value(octets: &[u8]) -> Attributes {
    Attributes::default().octets(uapi::DATA_VALUE, octets)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
