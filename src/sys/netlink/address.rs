//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError};

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The address, with the length of the prefix that is on the link.
    pub address: IpNet,
    /// The number of the interface that has it.
    pub link_index: u32,
}

impl Netlink {
    /// Gives an interface an address. IPv6 addresses are usable at once: no duplicate address detection, since nothing but
    /// the overlay hands them out.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_present` if the interface has the address.
    pub fn add_address(&mut self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        let action = || format!("add address {address} to {link}");
        let message = self.address_message(link, address, action)?;
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Gives an interface an address that it may have already.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn replace_address(&mut self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        let action = || format!("set address {address} on {link}");
        let message = self.address_message(link, address, action)?;
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// [`NetlinkError`]; `is_absent` if the interface does not have it.
    pub fn delete_address(&mut self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        let action = || format!("delete address {address} from {link}");
        let message = self.address_message(link, address, action)?;
        self.change(RouteNetlinkMessage::DelAddress(message), 0, action)
    }

    /// The addresses of one interface.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses_of(&mut self, link: &str) -> Result<Vec<Address>, NetlinkError> {
        let index = self.link_for(link, || format!("list the addresses of {link}"))?.index;
        Ok(self.addresses()?.into_iter().filter(|address| address.link_index == index).collect())
    }

    /// Every address of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answer = self.ask(message, NLM_F_DUMP, || "list the addresses".to_owned())?;
        Ok(answer.into_iter().filter_map(Address::from_message).collect())
    }

    fn address_message(
        &mut self,
        link: &str,
        address: IpNet,
        action: impl Fn() -> String,
    ) -> Result<AddressMessage, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = self.link_for(link, action)?.index;
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        // IFA_ADDRESS would name the other end of a point-to-point link; with none, both hold our address.
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        if address.addr().is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Ok(message)
    }
}

impl Address {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        let (mut local, mut remote) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(address),
                AddressAttribute::Address(address) => remote = Some(address),
                _ => {}
            }
        }
        // IPv6 says IFA_ADDRESS only, IPv4 both; where they differ, ours is IFA_LOCAL.
        let address = IpNet::new(local.or(remote)?, message.header.prefix_len).ok()?;
        Some(Self { address, link_index: message.header.index })
    }
}

/// The family of an address, in netlink's words.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
