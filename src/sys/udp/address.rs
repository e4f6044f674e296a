//! Socket addresses in the kernel's layout (`sockaddr_in`, `sockaddr_in6`), as octets, without unsafe code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Octets of `sockaddr_in`: family, port, address, eight of padding.
const V4_LEN: usize = 16;

/// Octets of `sockaddr_in6`: family, port, flow information, address, scope.
const V6_LEN: usize = 28;

/// A `sockaddr`, aligned as the kernel's are.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub(super) struct RawAddress(pub(super) [u8; 32]);

impl RawAddress {
    /// Room for any address.
    pub(super) const EMPTY: Self = Self([0; 32]);

    /// Writes `address` for a socket of the given family (IPv4 is mapped into IPv6) and returns its length in octets, or none
    /// if an IPv4 socket cannot reach it.
    pub(super) fn emit(&mut self, address: SocketAddr, ipv6: bool) -> Option<usize> {
        match (address, ipv6) {
            (SocketAddr::V4(address), false) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.0[2..4].copy_from_slice(&address.port().to_be_bytes());
                self.0[4..8].copy_from_slice(&address.ip().octets());
                self.0[8..V4_LEN].fill(0);
                Some(V4_LEN)
            }
            (SocketAddr::V6(_), false) => None,
            (address, true) => {
                let scope = match address {
                    SocketAddr::V6(address) => address.scope_id(),
                    SocketAddr::V4(_) => 0,
                };
                self.0[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.0[2..4].copy_from_slice(&address.port().to_be_bytes());
                self.0[4..8].fill(0);
                self.0[8..24].copy_from_slice(&map_to_ipv6(address.ip()).octets());
                self.0[24..V6_LEN].copy_from_slice(&scope.to_ne_bytes());
                Some(V6_LEN)
            }
        }
    }

    /// The address that the kernel wrote; mapped IPv4 becomes IPv4 again.
    pub(super) fn parse(&self) -> Option<SocketAddr> {
        let octets = &self.0;
        let family = i32::from(u16::from_ne_bytes([octets[0], octets[1]]));
        let port = u16::from_be_bytes([octets[2], octets[3]]);
        match family {
            libc::AF_INET => {
                let address: [u8; 4] = octets[4..8].try_into().ok()?;
                Some(SocketAddr::new(Ipv4Addr::from(address).into(), port))
            }
            libc::AF_INET6 => {
                let address: [u8; 16] = octets[8..24].try_into().ok()?;
                let address = Ipv6Addr::from(address);
                let scope = u32::from_ne_bytes(octets[24..V6_LEN].try_into().ok()?);
                Some(match address.to_ipv4_mapped() {
                    Some(address) => SocketAddr::new(address.into(), port),
                    None => SocketAddrV6::new(address, port, 0, scope).into(),
                })
            }
            _ => None,
        }
    }
}

/// The address as an IPv6 socket writes it.
pub(super) const fn map_to_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    /// The same octets as the standard library's conversion gives.
    fn reference(address: SocketAddr) -> Vec<u8> {
        let address = SockAddr::from(address);
        let len = address.len() as usize;
        // SAFETY: a SockAddr holds `len` initialised octets behind its pointer.
        unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), len) }.to_vec()
    }

    #[test]
    fn the_layout_is_the_kernels() {
        for (text, ipv6) in [("192.0.2.1:500", false), ("[2001:db8::1]:4500", true), ("[fe80::1%7]:4500", true)] {
            let address: SocketAddr = text.parse().unwrap();
            let mut raw = RawAddress([0xff; 32]);
            let len = raw.emit(address, ipv6).unwrap();
            assert_eq!(raw.0[..len], reference(address), "{text}");
            assert_eq!(raw.parse(), Some(address));
        }
    }

    #[test]
    fn ipv4_is_mapped_on_an_ipv6_socket_and_back() {
        let address: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let mut raw = RawAddress::EMPTY;
        let len = raw.emit(address, true).unwrap();
        assert_eq!(raw.0[..len], reference("[::ffff:192.0.2.1]:500".parse().unwrap()));
        assert_eq!(raw.parse(), Some(address));
    }

    #[test]
    fn an_ipv4_socket_cannot_reach_ipv6() {
        let mut raw = RawAddress::EMPTY;
        assert_eq!(raw.emit("[2001:db8::1]:1".parse().unwrap(), false), None);
    }

    #[test]
    fn an_unknown_family_is_no_address() {
        assert_eq!(RawAddress::EMPTY.parse(), None);
    }
}
