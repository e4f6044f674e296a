//! nfnetlink messages and their attributes, as octets.
//!
//! A message is the netlink header, four octets of `nfgenmsg` (family, version, resource) and attributes. An attribute is
//! its length and type (two octets each, in the machine's order), its value, and padding to four octets. Numbers inside
//! are in network order.

use std::convert::Infallible;

use netlink_packet_core::{NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};

/// The length of `nfgenmsg`.
const GENERIC_HEADER: usize = 4;

/// `NFNETLINK_V0`, the only version there is.
const VERSION: u8 = 0;

/// `NFNL_SUBSYS_NFTABLES`: nf_tables among the subsystems that share nfnetlink.
pub(super) const NF_TABLES: u16 = 10;

/// `NFNL_MSG_BATCH_BEGIN` and `_END`: what stands between them happens together or not at all.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Attributes are aligned to this many octets.
const ALIGNMENT: usize = 4;

/// One nfnetlink message without its netlink header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    kind: u16,
    family: u8,
    resource: u16,
    attributes: Vec<u8>,
}

impl Message {
    /// A message of nf_tables: its type within the subsystem, the family of the table, and its attributes.
    pub(super) fn new(kind: u16, family: u8, attributes: Attributes) -> Self {
        Self { kind: NF_TABLES << 8 | kind, family, resource: 0, attributes: attributes.0 }
    }

    /// Opens a batch for this subsystem.
    pub(super) fn batch_begin(subsystem: u16) -> Self {
        Self { kind: BATCH_BEGIN, family: 0, resource: subsystem, attributes: Vec::new() }
    }

    /// Closes a batch for this subsystem; the kernel commits.
    pub(super) fn batch_end(subsystem: u16) -> Self {
        Self { kind: BATCH_END, ..Self::batch_begin(subsystem) }
    }

    /// Its type within the subsystem.
    pub(super) const fn kind(&self) -> u16 {
        self.kind & 0xff
    }

    /// All of its attributes.
    pub(super) fn attributes(&self) -> &[u8] {
        &self.attributes
    }

    /// The family of the table.
    pub(super) const fn family(&self) -> u8 {
        self.family
    }

    /// The value of the first attribute of this type.
    pub(super) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(&self.attributes, kind)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(GENERIC_HEADER);
        let [high, low] = self.resource.to_be_bytes();
        header.copy_from_slice(&[self.family, VERSION, high, low]);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        // A message too short for its header is one that says nothing.
        let (family, resource) = match payload {
            [family, _, high, low, ..] => (*family, u16::from_be_bytes([*high, *low])),
            _ => (0, 0),
        };
        let attributes = payload.get(GENERIC_HEADER..).unwrap_or_default().to_vec();
        Ok(Self { kind: header.message_type, family, resource, attributes })
    }
}

/// Each attribute: its type, whether it is marked as made of attributes, and its value. What does not parse ends them.
pub(super) fn split(attributes: &[u8]) -> Vec<(u16, bool, &[u8])> {
    let (mut rest, mut parts) = (attributes, Vec::new());
    // NlasIterator checks each length; its own buffers cannot be lent out, so the value is cut here.
    for found in NlasIterator::new(attributes).map_while(Result::ok) {
        let length = usize::from(found.length());
        parts.extend(rest.get(ALIGNMENT..length).map(|value| (found.kind(), found.nested_flag(), value)));
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    parts
}

/// The value of the first attribute of this type among these.
pub(super) fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    split(attributes).into_iter().find(|part| part.0 == kind).map(|part| part.2)
}

/// The values of all attributes of this type among these.
pub(super) fn all_of(attributes: &[u8], kind: u16) -> Vec<&[u8]> {
    split(attributes).into_iter().filter(|part| part.0 == kind).map(|part| part.2).collect()
}

/// Attributes under construction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// An attribute of these octets.
    pub(super) fn octets(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// A name, with the zero octet that ends it.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.octets(kind, &value)
    }

    /// A 32-bit number.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.octets(kind, &value.to_be_bytes())
    }

    /// A 64-bit number.
    pub(super) fn large(self, kind: u16, value: u64) -> Self {
        self.octets(kind, &value.to_be_bytes())
    }

    /// An attribute that consists of attributes.
    pub(super) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.octets(kind | NLA_F_NESTED, &inner.0)
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = ALIGNMENT + value.len();
        // The rules made here are below one kilobyte; the length field holds 64.
        debug_assert!(u16::try_from(length).is_ok());
        self.0.extend_from_slice(&(length as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
    }
}
