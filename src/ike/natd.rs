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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testdata::to_hex;

    /// What `xxd -r -p | openssl sha1` says of the same octets.
    #[test]
    fn the_hash_covers_spis_address_and_port_as_they_travel() {
        let request = hash(0x0102_0304_0506_0708, 0, "192.0.2.1:500".parse().unwrap());
        assert_eq!(to_hex(&request), "644b4575455bd6fcc1efe2be8162a9218e448e5f");
        let v6 = hash(0x0102_0304_0506_0708, 0x1112_1314_1516_1718, "[2001:db8::1]:4500".parse().unwrap());
        assert_eq!(to_hex(&v6), "1ee24423bf8f59515e0265c6d0f08be3d038f7e5");
    }

    #[test]
    fn an_ipv4_mapped_address_is_an_ipv4_address() {
        let plain = hash(1, 2, "192.0.2.1:4500".parse().unwrap());
        assert_eq!(hash(1, 2, "[::ffff:192.0.2.1]:4500".parse().unwrap()), plain);
        for other in ["192.0.2.1:4501", "192.0.2.2:4500", "[::192.0.2.1]:4500"] {
            assert_ne!(hash(1, 2, other.parse().unwrap()), plain);
        }
        assert_ne!(hash(2, 1, "192.0.2.1:4500".parse().unwrap()), plain);
    }
}
