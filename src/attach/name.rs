//! Names and addresses that follow from others, so that nobody has to remember them.

use std::net::{IpAddr, Ipv6Addr};

use super::HardwareAddress;
use crate::ipam::Owner;

/// How ports' names begin: as Rancher's did.
const PORT_PREFIX: &str = "vethr";

/// Letters of a port's name behind that: ten of five bits fill the fifteen that an interface's name may have.
const PORT_LETTERS: usize = 10;

/// RFC 4648's base32 in small letters.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The port on this host of somebody's interface: always the same, so that it is found when nothing else of the container is left.
#[must_use]
pub fn port_of(owner: &Owner) -> String {
    let mut hash = fnv(&[&owner.cni_network, &owner.container, &owner.interface]);
    let mut name = PORT_PREFIX.to_owned();
    for _ in 0..PORT_LETTERS {
        name.push(ALPHABET[(hash & 31) as usize] as char);
        hash >>= 5;
    }
    name
}

/// FNV-1a of 64 bits (draft-eastlake-fnv, "offset_basis" and "FNV_prime"), folded so that all of it counts in the low bits. Each word
/// ends with a zero octet.
fn fnv(words: &[&str]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET_BASIS;
    for octet in words.iter().flat_map(|word| word.bytes().chain([0])) {
        hash = (hash ^ u64::from(octet)).wrapping_mul(PRIME);
    }
    hash ^ (hash >> 50)
}

/// The link-layer address of whoever has this address: of the range that Rancher gave its containers (02:…), locally
/// administered. An address that moves keeps it, so no neighbour knows a wrong one.
#[must_use]
pub fn mac_of(address: IpAddr) -> HardwareAddress {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [0x02, 0x00, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [0x02, 0x06, a, b, c, d]
        }
    }
}

/// The link-local address that the kernel makes of a link-layer address (RFC 4291, appendix A).
pub(super) fn link_local_of(mac: HardwareAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn owner(cni_network: &str, container: &str, interface: &str) -> Owner {
        Owner { container: container.into(), interface: interface.into(), cni_network: cni_network.into() }
    }

    #[test]
    fn a_port_is_its_owners_alone() {
        let containers: Vec<String> = (0..2000).map(|n| format!("{n:064x}")).collect();
        let ports: BTreeSet<String> = containers.iter().map(|container| port_of(&owner("net", container, "eth0"))).collect();
        assert_eq!(ports.len(), 2000);
        assert!(ports.iter().all(|port| port.len() == 15 && port.starts_with("vethr")));
        let one = owner("net", "c1", "eth0");
        for other in [owner("ne", "tc1", "eth0"), owner("net", "c1", "eth1"), owner("other", "c1", "eth0")] {
            assert_ne!(port_of(&one), port_of(&other));
        }
        assert_eq!(port_of(&one), port_of(&one.clone()));
    }

    #[test]
    fn a_mac_follows_from_the_address() {
        assert_eq!(mac_of("10.42.1.2".parse().unwrap()), [0x02, 0x00, 10, 42, 1, 2]);
        assert_eq!(mac_of("fd00::1:2".parse().unwrap()), [0x02, 0x06, 0, 1, 0, 2]);
        assert_eq!(link_local_of([0x02, 0x00, 10, 42, 1, 5]), "fe80::aff:fe2a:105".parse::<Ipv6Addr>().unwrap());
    }
}
