//! NAT detection (RFC 7296 §2.23): SHA-1(SPIi | SPIr | address | port).

use std::net::SocketAddr;

/// The hash of one end.
#[must_use]
pub fn hash(spi_i: u64, spi_r: u64, end: SocketAddr) -> [u8; 20] {
    todo!("{spi_i} {spi_r} {end}")
}
