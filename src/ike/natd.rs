//! NAT detection (RFC 7296 §2.23): SHA-1(SPIi | SPIr | address | port).

use std::net::{IpAddr, SocketAddr};

use crate::crypto::sha1;

/// The hash of one end. An IPv4 address that a socket shows mapped into IPv6 counts as the IPv4 address that it is on the wire.
#[must_use]
pub fn hash(spi_i: u64, spi_r: u64, end: SocketAddr) -> [u8; 20] {
    let (v4, v6);
    let address: &[u8] = match end.ip().to_canonical() {
        IpAddr::V4(address) => {
            v4 = address.octets();
            &v4
        }
        IpAddr::V6(address) => {
            v6 = address.octets();
            &v6
        }
    };
    sha1(&[&spi_i.to_be_bytes(), &spi_r.to_be_bytes(), address, &end.port().to_be_bytes()])
}
