//! Interfaces: made, found, changed, moved, removed.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Netlink, NetlinkError};

/// What the kernel says of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name in this namespace.
    pub name: String,
    /// Its number in this namespace; never reused while the namespace lives, unlike the name.
    pub index: u32,
    /// The largest IP packet that it takes, in octets.
    pub mtu: u32,
    /// Packets that may wait for the device.
    pub txqueuelen: u32,
    /// The administrator wants it up.
    pub up: bool,
    /// It is up and its other end is there.
    pub running: bool,
    /// The link-layer address; empty for a TUN device.
    pub hardware_address: Vec<u8>,
    /// It is a bridge.
    pub is_bridge: bool,
    /// It is one end of a veth pair.
    pub is_veth: bool,
    /// The number of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// The number of a veth's other end, in that one's namespace.
    pub other_end: Option<u32>,
    /// The group that somebody put it into; 0 if nobody did.
    pub group: u32,
    /// What somebody wrote on it.
    pub alias: String,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// The interface's name, up to 15 octets.
    pub name: &'a str,
    /// The network namespace that it appears in; `None` is the socket's own.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// Keeps the kernel from giving an interface a link-local address of IPv6, and from asking for routers there. Where there is no IPv6 there is
/// nothing to do.
pub fn without_link_local_address(name: &str) {
    const NONE: &str = "1";
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), NONE);
}

impl Netlink {
    /// Makes two interfaces that are joined by a wire, both down.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: a name is taken (`is_present`), or we may not do this.
    pub fn create_veth(&mut self, near: VethEnd<'_>, far: VethEnd<'_>) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = end_attributes(far);
        let mut message = LinkMessage::default();
        message.attributes = end_attributes(near);
        let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("create the veth pair {} and {}", near.name, far.name)
        })
    }

    /// Makes a bridge, down and without ports.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`]: the name is taken (`is_present`), or we may not do this.
    pub fn create_bridge(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || format!("create the bridge {name}"))
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] if there is no such bridge; else what the kernel refused.
    pub fn join_bridge(&mut self, name: &str, bridge: &str) -> Result<(), NetlinkError> {
        let action = || format!("put {name} into the bridge {bridge}");
        let index = self.link_for(bridge, action)?.index;
        self.set_attribute(name, LinkAttribute::Controller(index), action)
    }

    /// Removes an interface, and a veth's other end with it.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_absent` when there is no such interface.
    pub fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message = named(name);
        self.change(RouteNetlinkMessage::DelLink(message), 0, || format!("delete the interface {name}"))
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_up(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("set {name} up"))
    }

    /// Switches an interface off.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_down(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("set {name} down"))
    }

    /// Sets the largest IP packet that the interface takes, in octets.
    ///
    /// # Errors
    /// [`NetlinkError`]; the device's driver may refuse the value.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.set_attribute(name, LinkAttribute::Mtu(mtu), || format!("set the MTU of {name} to {mtu}"))
    }

    /// Sets how many packets may wait for the device.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_txqueuelen(&mut self, name: &str, packets: u32) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::TxQueueLen(packets);
        self.set_attribute(name, attribute, || format!("set the transmit queue of {name} to {packets} packets"))
    }

    /// Moves an interface into another network namespace. Its addresses and routes are lost on the way.
    ///
    /// # Errors
    /// [`NetlinkError`]; some devices cannot be moved.
    pub fn move_link(&mut self, name: &str, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::NetNsFd(namespace.as_raw_fd());
        self.set_attribute(name, attribute, || format!("move {name} into another network namespace"))
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        let answer = self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_DUMP, || "list the interfaces".to_owned())?;
        Ok(answer.into_iter().filter_map(Link::from_message).collect())
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] if there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.link_for(name, || format!("look up the interface {name}"))
    }

    /// The interface of this number; none if there is none.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(without_statistics());
        match self.ask(RouteNetlinkMessage::GetLink(message), 0, || format!("look up the interface with number {index}")) {
            Ok(answer) => Ok(answer.into_iter().find_map(Link::from_message)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many packets the kernel gave to this interface and nobody took.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_absent` when there is no such interface.
    pub fn dropped_outbound(&mut self, name: &str) -> Result<u64, NetlinkError> {
        let action = || format!("read the counters of {name}");
        let answer = self.ask(RouteNetlinkMessage::GetLink(named(name)), 0, action)?;
        let dropped = |message| {
            let RouteNetlinkMessage::NewLink(LinkMessage { attributes, .. }) = message else { return None };
            attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(counters) => Some(counters.tx_dropped),
                _ => None,
            })
        };
        let malformed = || NetlinkError::Malformed { action: action(), what: "an interface without counters".to_owned() };
        answer.into_iter().find_map(dropped).ok_or_else(malformed)
    }

    /// The number of the interface of this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] if there is none.
    pub fn link_index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        self.link(name).map(|link| link.index)
    }

    /// The interface of this name, looked up as a part of `action`.
    pub(super) fn link_for(&mut self, name: &str, action: impl Fn() -> String) -> Result<Link, NetlinkError> {
        let mut message = named(name);
        message.attributes.push(without_statistics());
        let answer = self.ask(RouteNetlinkMessage::GetLink(message), 0, &action);
        match answer {
            Ok(answer) => answer
                .into_iter()
                .find_map(Link::from_message)
                .ok_or_else(|| NetlinkError::Malformed { action: action(), what: "an interface without a name".to_owned() }),
            Err(error) if error.errno() == Some(libc::ENODEV) => {
                Err(NetlinkError::NoSuchLink { action: action(), link: name.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn set_attribute(
        &mut self,
        name: &str,
        attribute: LinkAttribute,
        action: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let mut message = named(name);
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), 0, action)
    }
}

impl Link {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            mtu: 0,
            txqueuelen: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            running: message.header.flags.contains(LinkFlags::Running),
            hardware_address: Vec::new(),
            is_bridge: false,
            is_veth: false,
            controller: None,
            other_end: None,
            group: 0,
            alias: String::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(packets) => link.txqueuelen = packets,
                LinkAttribute::Address(address) => link.hardware_address = address,
                LinkAttribute::Controller(index) => link.controller = Some(index).filter(|&index| index != 0),
                LinkAttribute::Link(index) => link.other_end = Some(index),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(info) => {
                    link.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

pub(super) fn end_attributes(end: VethEnd<'_>) -> Vec<LinkAttribute> {
    let mut attributes = vec![LinkAttribute::IfName(end.name.to_owned())];
    attributes.extend(end.namespace.map(|namespace| LinkAttribute::NetNsFd(namespace.as_raw_fd())));
    attributes
}

/// A message about the interface of this name; with index zero, the kernel goes by the name.
pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// The counters of an interface are half a kilobyte that nobody here reads.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}
