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
    pub const VERDICT_CHAIN: u16 = 2;
    pub const META_DREG: u16 = 1;
    pub const META_KEY: u16 = 2;
    pub const META_IIFNAME: u32 = 6;
    pub const META_OIFNAME: u32 = 7;
    pub const META_NFPROTO: u32 = 15;
    pub const META_L4PROTO: u32 = 16;
    pub const META_IIFGROUP: u32 = 21;
    pub const CMP_SREG: u16 = 1;
    pub const CMP_OP: u16 = 2;
    pub const CMP_DATA: u16 = 3;
    pub const CMP_EQ: u32 = 0;
    pub const CMP_NEQ: u32 = 1;
    pub const PAYLOAD_DREG: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LEN: u16 = 4;
    pub const PAYLOAD_LINK_HEADER: u32 = 0;
    pub const PAYLOAD_NETWORK_HEADER: u32 = 1;
    pub const PAYLOAD_TRANSPORT_HEADER: u32 = 2;
    pub const BITWISE_SREG: u16 = 1;
    pub const BITWISE_DREG: u16 = 2;
    pub const BITWISE_LEN: u16 = 3;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    pub const OBJREF_IMM_TYPE: u16 = 1;
    pub const OBJREF_IMM_NAME: u16 = 2;
    pub const IMMEDIATE_DREG: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const LOOKUP_SET: u16 = 1;
    pub const LOOKUP_SREG: u16 = 2;
    pub const LOOKUP_FLAGS: u16 = 5;
    pub const LOOKUP_INVERTED: u32 = 1;
    pub const CT_DREG: u16 = 1;
    pub const CT_KEY: u16 = 2;
    pub const CT_STATE: u32 = 0;
    pub const RT_DREG: u16 = 1;
    pub const RT_KEY: u16 = 2;
    pub const RT_TCPMSS: u32 = 3;
    pub const BYTEORDER_SREG: u16 = 1;
    pub const BYTEORDER_DREG: u16 = 2;
    pub const BYTEORDER_OP: u16 = 3;
    pub const BYTEORDER_LEN: u16 = 4;
    pub const BYTEORDER_SIZE: u16 = 5;
    pub const BYTEORDER_HTON: u32 = 1;
    pub const EXTHDR_TYPE: u16 = 2;
    pub const EXTHDR_OFFSET: u16 = 3;
    pub const EXTHDR_LEN: u16 = 4;
    pub const EXTHDR_OP: u16 = 6;
    pub const EXTHDR_SREG: u16 = 7;
    pub const EXTHDR_TCPOPT: u32 = 1;
    pub const REG_VERDICT: u32 = 0;
    pub const REG_1: u32 = 1;
    pub const REG32_0: u32 = 8;
    pub const NF_DROP: u32 = 0;
    pub const NF_ACCEPT: u32 = 1;
    /// NFT_GOTO is -4: goes on in another chain and does not come back.
    pub const GOTO: u32 = 0xffff_fffc;
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

/// Something of a packet that a rule can load: an interface's name, an address, a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// The interface that it came in by.
    InInterface,
    /// The interface that it leaves by.
    OutInterface,
    /// The frame's link-layer source.
    EtherSource,
    /// The frame's type, in network order.
    EtherType,
    /// The IP source.
    Source {
        /// Of IPv6.
        ipv6: bool,
    },
    /// The IP destination.
    Destination {
        /// Of IPv6.
        ipv6: bool,
    },
    /// Whose link-layer address an ARP packet tells (RFC 826: ar$sha).
    ArpSenderEther,
    /// For which IPv4 address (ar$spa).
    ArpSenderAddress,
    /// The first octet of an ICMPv6 message.
    Icmp6Type,
    /// Which address a neighbour advertisement speaks of (RFC 4861 §4.4).
    NeighbourTarget,
    /// The protocol above IP.
    Protocol,
    /// The destination port.
    DestinationPort,
}

impl Load {
    /// Octets that it has.
    const fn length(self) -> usize {
        match self {
            Self::InInterface | Self::OutInterface => INTERFACE_NAME,
            Self::EtherSource | Self::ArpSenderEther => 6,
            Self::Source { ipv6: false } | Self::Destination { ipv6: false } | Self::ArpSenderAddress => 4,
            Self::Source { ipv6: true } | Self::Destination { ipv6: true } | Self::NeighbourTarget => 16,
            Self::EtherType | Self::DestinationPort => 2,
            Self::Protocol | Self::Icmp6Type => 1,
        }
    }

    /// The expression that puts it into a register.
    fn into_register(self, register: u32) -> (&'static str, Attributes) {
        let meta = |key| ("meta", Attributes::default().number(uapi::META_KEY, key).number(uapi::META_DREG, register));
        let payload = |base, offset| {
            let data = Attributes::default()
                .number(uapi::PAYLOAD_DREG, register)
                .number(uapi::PAYLOAD_BASE, base)
                .number(uapi::PAYLOAD_OFFSET, offset)
                .number(uapi::PAYLOAD_LEN, self.length() as u32);
            ("payload", data)
        };
        // Where things stand: RFC 791 §3.1, RFC 8200 §3, RFC 826 with Ethernet and IPv4, RFC 4861 §4.4, Ethernet.
        match self {
            Self::InInterface => meta(uapi::META_IIFNAME),
            Self::OutInterface => meta(uapi::META_OIFNAME),
            Self::Protocol => meta(uapi::META_L4PROTO),
            Self::EtherSource => payload(uapi::PAYLOAD_LINK_HEADER, 6),
            Self::EtherType => payload(uapi::PAYLOAD_LINK_HEADER, 12),
            Self::Source { ipv6: false } => payload(uapi::PAYLOAD_NETWORK_HEADER, 12),
            Self::Destination { ipv6: false } => payload(uapi::PAYLOAD_NETWORK_HEADER, 16),
            Self::Source { ipv6: true } => payload(uapi::PAYLOAD_NETWORK_HEADER, 8),
            Self::Destination { ipv6: true } => payload(uapi::PAYLOAD_NETWORK_HEADER, 24),
            Self::ArpSenderEther => payload(uapi::PAYLOAD_NETWORK_HEADER, 8),
            Self::ArpSenderAddress => payload(uapi::PAYLOAD_NETWORK_HEADER, 14),
            Self::Icmp6Type => payload(uapi::PAYLOAD_TRANSPORT_HEADER, 0),
            Self::NeighbourTarget => payload(uapi::PAYLOAD_TRANSPORT_HEADER, 8),
            Self::DestinationPort => payload(uapi::PAYLOAD_TRANSPORT_HEADER, 2),
        }
    }
}

/// Whether a set must hold what was loaded, or must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holds {
    /// It must.
    Yes,
    /// It must not.
    No,
}

/// A rule's expressions, in the order in which they run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rule(Attributes);

impl Rule {
    /// The expressions as the value of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn into_expressions(self) -> Attributes {
        self.0
    }

    /// Goes on only if what was loaded, side by side, is in the set, or is not.
    pub(crate) fn in_set(self, holds: Holds, loads: &[Load], set: &str) -> Self {
        let (mut rule, mut place) = (self, 0);
        for load in loads {
            let (name, data) = load.into_register(register(place));
            rule = rule.expression(name, data);
            place += load.length().div_ceil(4) as u32;
        }
        let mut data = Attributes::default().text(uapi::LOOKUP_SET, set).number(uapi::LOOKUP_SREG, register(0));
        if holds == Holds::No {
            data = data.number(uapi::LOOKUP_FLAGS, uapi::LOOKUP_INVERTED);
        }
        rule.expression("lookup", data)
    }

    /// Goes on only if what was loaded is this.
    pub(crate) fn is(self, load: Load, octets: &[u8]) -> Self {
        let (name, data) = load.into_register(uapi::REG_1);
        self.expression(name, data).compare(uapi::CMP_EQ, octets)
    }

    /// Goes on only for packets of this family of addresses; for tables of both.
    pub(crate) fn of_family(self, ipv6: bool) -> Self {
        let family = if ipv6 { uapi::NFPROTO_IPV6 } else { uapi::NFPROTO_IPV4 };
        self.load_meta(uapi::META_NFPROTO).compare(uapi::CMP_EQ, &[family])
    }

    /// Goes on only for packets that came in by an interface of this group.
    pub(crate) fn came_in_by_group(self, group: u32) -> Self {
        self.load_meta(uapi::META_IIFGROUP).compare(uapi::CMP_EQ, &group.to_ne_bytes())
    }

    /// Goes on only for packets of connections whose answers were seen; with `related` for errors about them, too.
    pub(crate) fn established(self, related: bool) -> Self {
        // NF_CT_STATE_BIT of IP_CT_ESTABLISHED and of IP_CT_RELATED.
        let bits: u32 = if related { 2 | 4 } else { 2 };
        let data = Attributes::default().number(uapi::CT_KEY, uapi::CT_STATE).number(uapi::CT_DREG, uapi::REG_1);
        self.expression("ct", data).mask(&bits.to_ne_bytes()).compare(uapi::CMP_NEQ, &[0; 4])
    }

    /// Lowers the largest segment that a TCP SYN speaks of to what the routes of both directions take.
    pub(crate) fn clamp_segments(self) -> Self {
        /// `IPPROTO_TCP`; where TCP's flags are; the SYN among them; TCP's option 2 with its number at offset 2 (RFC 9293 §3.2).
        const TCP: u8 = 6;
        const FLAGS_OFFSET: u32 = 13;
        const SYN: u8 = 2;
        const OPTION: u8 = 2;
        let flags = Attributes::default()
            .number(uapi::PAYLOAD_DREG, uapi::REG_1)
            .number(uapi::PAYLOAD_BASE, uapi::PAYLOAD_TRANSPORT_HEADER)
            .number(uapi::PAYLOAD_OFFSET, FLAGS_OFFSET)
            .number(uapi::PAYLOAD_LEN, 1);
        let rule = self.is(Load::Protocol, &[TCP]).expression("payload", flags);
        let rule = rule.mask(&[SYN]).compare(uapi::CMP_EQ, &[SYN]);
        let route = Attributes::default().number(uapi::RT_KEY, uapi::RT_TCPMSS).number(uapi::RT_DREG, uapi::REG_1);
        let order = Attributes::default()
            .number(uapi::BYTEORDER_SREG, uapi::REG_1)
            .number(uapi::BYTEORDER_DREG, uapi::REG_1)
            .number(uapi::BYTEORDER_OP, uapi::BYTEORDER_HTON)
            .number(uapi::BYTEORDER_LEN, 2)
            .number(uapi::BYTEORDER_SIZE, 2);
        let write = Attributes::default()
            .number(uapi::EXTHDR_SREG, uapi::REG_1)
            .octets(uapi::EXTHDR_TYPE, &[OPTION])
            .number(uapi::EXTHDR_OFFSET, 2)
            .number(uapi::EXTHDR_LEN, 2)
            .number(uapi::EXTHDR_OP, uapi::EXTHDR_TCPOPT);
        rule.expression("rt", route).expression("byteorder", order).expression("exthdr", write)
    }

    /// Gives the packet, and what belongs to it, the address of the interface that it leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// Goes on in another chain for good.
    pub(crate) fn goto(self, chain: &str) -> Self {
        let verdict = Attributes::default().number(uapi::VERDICT_CODE, uapi::GOTO).text(uapi::VERDICT_CHAIN, chain);
        self.decide(verdict)
    }

    /// Goes on only for packets that came in by this interface; a `*` at the end stands for any rest.
    pub(crate) fn came_in_by(self, interface: &str) -> Self {
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
    pub(crate) fn count(self, counter: &str) -> Self {
        let data = Attributes::default().number(uapi::OBJREF_IMM_TYPE, OBJECT_COUNTER).text(uapi::OBJREF_IMM_NAME, counter);
        self.expression("objref", data)
    }

    /// Ends the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(uapi::NF_DROP)
    }

    /// Ends the chain and lets the packet go on to whatever comes after it.
    pub(crate) fn accept(self) -> Self {
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
        self.decide(Attributes::default().number(uapi::VERDICT_CODE, code))
    }

    fn decide(self, verdict: Attributes) -> Self {
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

/// The register that begins at this place of four octets, by the name that the kernel lists it under: one of the registers of sixteen
/// octets where one begins there.
const fn register(place: u32) -> u32 {
    if place.is_multiple_of(4) { uapi::REG_1 + place / 4 } else { uapi::REG32_0 + place }
}

fn value(octets: &[u8]) -> Attributes {
    Attributes::default().octets(uapi::DATA_VALUE, octets)
}

/// An address's octets.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
