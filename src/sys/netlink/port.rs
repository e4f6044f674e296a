//! Bridges and what hangs on them: wires into containers, and what is written on either.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use super::link::{end_attributes, named};
use super::{Netlink, NetlinkError, VethEnd};

/// A link-layer address.
pub type HardwareAddress = [u8; 6];

impl Netlink {
    /// Makes a veth pair, both ends down, with an MTU for both and a link-layer address for the far one. Each ends with its
    /// namespace, and takes the other with it.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: a name is taken (`is_present`), or we may not do this.
    pub fn create_wire(
        &mut self,
        near: &str,
        far: VethEnd<'_>,
        mtu: Option<u32>,
        address: Option<HardwareAddress>,
    ) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = end_attributes(far);
        peer.attributes.extend(mtu.map(LinkAttribute::Mtu));
        peer.attributes.extend(address.map(|address| LinkAttribute::Address(address.to_vec())));
        let mut message = named(near);
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("create the veth pair {near} and {}", far.name)
        })
    }

    /// Gives an interface a link-layer address.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_hardware_address(&mut self, name: &str, address: HardwareAddress) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::Address(address.to_vec());
        self.set_attribute(name, attribute, || format!("set the link-layer address of {name}"))
    }

    /// Writes something on an interface, for whoever lists it later: up to 255 octets.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_alias(&mut self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        self.set_attribute(name, LinkAttribute::IfAlias(alias.to_owned()), || format!("set the alias of {name}"))
    }

    /// Puts an interface into a group, by which rules can know it.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_group(&mut self, name: &str, group: u32) -> Result<(), NetlinkError> {
        self.set_attribute(name, LinkAttribute::Group(group), || format!("set the group of {name}"))
    }

    /// Says whether a bridge's port may send frames back to where they came from.
    ///
    /// # Errors
    /// [`NetlinkError`]; the interface must be a port of a bridge.
    pub fn set_hairpin(&mut self, name: &str, hairpin: bool) -> Result<(), NetlinkError> {
        let data = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(hairpin)]);
        let mut message = named(name);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.change(RouteNetlinkMessage::NewLink(message), 0, || format!("set the hairpin mode of {name}"))
    }

    /// Makes an interface take frames for whomever.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_promiscuous(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.header.flags = LinkFlags::Promisc;
        message.header.change_mask = LinkFlags::Promisc;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("make {name} promiscuous"))
    }
}
