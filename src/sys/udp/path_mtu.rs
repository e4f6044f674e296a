//! What the kernel knows of the way to another host, without a packet sent.
//!
//! Part of it is hearsay: anybody who guesses two addresses and two ports can forge the ICMP error by which a router says that
//! a link is narrow. It is believed down to [`HEARSAY_FLOOR`]; below that only what this host's own interface and route say.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

use super::read_option;
use crate::sys::netlink::Netlink;

/// What is told of a path is believed down to here: no link that carries IPv6 takes less (RFC 8200 §5), and hardly an IPv4 one
/// does. Where one does, its router cuts our datagrams, which then go without DF.
const HEARSAY_FLOOR: u32 = 1280;

/// The largest packet that the kernel believes to reach `remote` from `local` (or from where it would choose), in octets with
/// its IP header: the MTU of the route or of the interface that it leaves by, or less where a router on the way said so to
/// somebody on this host, down to 1280. It knows nothing of narrower links that nobody ran into.
///
/// # Errors
/// What the kernel said: there is no route, or `local` is no address of this host.
pub fn path_mtu(local: Option<IpAddr>, remote: SocketAddr) -> io::Result<u32> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port()).with_scope_of(remote);
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if let Some(local) = local.map(|local| local.to_canonical()).filter(|local| !local.is_unspecified()) {
        socket.bind(&SocketAddr::new(local, 0).with_scope_of(remote).into())?;
    }
    // Looks the route up and sends nothing.
    socket.connect(&remote.into())?;
    let (level, name) =
        if remote.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mtu = read_option(&socket, level, name)?;
    let mtu = u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if mtu >= HEARSAY_FLOOR {
        return Ok(mtu);
    }
    // If the kernel does not say what it is sure of, hearsay is better than nothing.
    let own = Netlink::open().and_then(|mut netlink| netlink.own_mtu(remote.ip())).unwrap_or(mtu);
    Ok(mtu.max(own.min(HEARSAY_FLOOR)))
}

/// The address that the kernel would send from to `remote`.
///
/// # Errors
/// What the kernel said: there is no route.
pub fn source(remote: SocketAddr) -> io::Result<IpAddr> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port()).with_scope_of(remote);
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.connect(&remote.into())?;
    let local = socket.local_addr()?.as_socket();
    local.map(|local| local.ip()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Link-local addresses mean something on one interface only.
trait WithScope {
    /// The same address on the interface that `other` names.
    fn with_scope_of(self, other: SocketAddr) -> Self;
}

impl WithScope for SocketAddr {
    fn with_scope_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::V6(own), Self::V6(other)) => SocketAddrV6::new(*own.ip(), own.port(), 0, other.scope_id()).into(),
            (own, _) => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Netlink;
    use crate::sys::testing::{in_new_netns, ip};

    #[test]
    fn the_mtu_is_the_routes_or_the_interfaces() {
        in_new_netns(|| {
            ip("link add left mtu 1300 type veth peer name right");
            ip("link set left up");
            ip("link set right up");
            ip("address add 192.0.2.1/24 dev left");
            ip("address add 2001:db8::1/64 dev left nodad");
            ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1000");
            ip("route add 2001:db8:1::/64 via 2001:db8::2 mtu 1290");
            let of = |local: Option<&str>, remote: &str| {
                path_mtu(local.map(|local| local.parse().unwrap()), remote.parse().unwrap()).map_err(|error| error.kind())
            };
            assert_eq!(of(None, "192.0.2.2:4500"), Ok(1300));
            assert_eq!(of(Some("192.0.2.1"), "192.0.2.2:4500"), Ok(1300));
            assert_eq!(of(Some("0.0.0.0"), "[::ffff:192.0.2.2]:4500"), Ok(1300), "as a socket of both families writes it");
            assert_eq!(of(Some("::ffff:192.0.2.1"), "198.51.100.7:4500"), Ok(1000));
            assert_eq!(of(Some("2001:db8::1"), "[2001:db8::2]:4500"), Ok(1300));
            assert_eq!(of(None, "[2001:db8:1::2]:4500"), Ok(1290));
            assert_eq!(of(None, "203.0.113.1:4500"), Err(io::ErrorKind::NetworkUnreachable));
            assert_eq!(of(Some("192.0.2.9"), "192.0.2.2:4500"), Err(io::ErrorKind::AddrNotAvailable));
            ip("link set left mtu 1200");
            assert_eq!(of(None, "192.0.2.2:4500"), Ok(1200), "nothing is remembered");
        });
    }

    #[test]
    fn link_local_peers_have_an_mtu() {
        in_new_netns(|| {
            ip("link add left mtu 1320 type veth peer name right");
            ip("link set left up");
            ip("link set right up");
            ip("address add fe80::1/64 dev left nodad");
            let scope = Netlink::open().unwrap().link_index("left").unwrap();
            let remote = SocketAddrV6::new("fe80::2".parse().unwrap(), 4500, 0, scope);
            assert_eq!(path_mtu(Some("fe80::1".parse().unwrap()), remote.into()).unwrap(), 1320);
        });
    }
}
