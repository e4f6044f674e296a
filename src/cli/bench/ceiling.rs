//! `underpass bench-ceiling`: the keyless forwarder as a program, for `underpass bench` alone.

use std::net::{Ipv4Addr, SocketAddrV4};

use clap::Args;
use ipnet::Ipv4Net;

use crate::cli::Exit;
use crate::cli::lab::hosts::{Host, TUN};
use crate::cli::output::complain;
use crate::engine::ceiling::{Config, Forwarder};
use crate::sys::netlink::{Netlink, NetlinkError, RouteSpec};

/// Packets that may wait for the device, as an agent has it.
const TX_QUEUE: u32 = 1000;

/// The port on both hosts: "discard", as nobody but us knows what it carries.
const PORT: u16 = 9;

/// Arguments of `underpass bench-ceiling`.
#[derive(Clone, Debug, Args)]
pub struct CeilingArgs {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddrV4,
    /// The other end.
    #[arg(long)]
    peer: SocketAddrV4,
    /// The TUN device's name.
    #[arg(long)]
    tun: String,
    /// Its MTU.
    #[arg(long)]
    mtu: u16,
    /// Its address.
    #[arg(long)]
    address: Ipv4Addr,
    /// What is routed into it.
    #[arg(long)]
    block: Ipv4Net,
}

/// The arguments that make a forwarder for `host` and its peer.
pub fn arguments(host: &Host, peer: &Host, mtu: u16) -> Vec<String> {
    let mut arguments = vec!["bench-ceiling".to_owned()];
    for (name, value) in [
        ("--listen", SocketAddrV4::new(host.outer, PORT).to_string()),
        ("--peer", SocketAddrV4::new(peer.outer, PORT).to_string()),
        ("--tun", TUN.to_owned()),
        ("--mtu", mtu.to_string()),
        ("--address", host.overlay.to_string()),
        ("--block", peer.block.to_owned()),
    ] {
        arguments.extend([name.to_owned(), value]);
    }
    arguments
}

/// Carries packets until it is killed.
pub fn run(arguments: &CeilingArgs) -> Exit {
    let config = Config { tun_name: arguments.tun.clone(), listen: arguments.listen.into(), peer: arguments.peer.into() };
    let forwarder = match Forwarder::open(&config) {
        Ok(forwarder) => forwarder,
        Err(error) => return complain(&error, if error.is_permission() { Exit::NotPermitted } else { Exit::Failed }),
    };
    if let Err(error) = configure(arguments) {
        return complain(&error, if error.is_denied() { Exit::NotPermitted } else { Exit::Failed });
    }
    match forwarder.run() {
        Ok(()) => Exit::Fine,
        Err(error) => complain(error, Exit::Failed),
    }
}

/// Gives the device what an agent would give it.
fn configure(arguments: &CeilingArgs) -> Result<(), NetlinkError> {
    let (tun, address) = (arguments.tun.as_str(), arguments.address);
    let mut netlink = Netlink::open()?;
    netlink.set_mtu(tun, arguments.mtu.into())?;
    netlink.set_txqueuelen(tun, TX_QUEUE)?;
    netlink.replace_address(tun, Ipv4Net::from(address).into())?;
    netlink.set_up(tun)?;
    netlink.add_route(RouteSpec { source: Some(address.into()), ..RouteSpec::new(arguments.block.into(), tun) })
}
