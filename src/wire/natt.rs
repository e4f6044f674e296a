//! What a datagram on the NAT-T port is (RFC 3948 §2): a keepalive, an IKE message behind the non-ESP marker, or ESP.

use super::esp;
use crate::model::{DropReason, Spi};

/// Four octets where ESP has its SPI; zero is no SPI, so an IKE message follows (RFC 3948 §2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The whole of a NAT keepalive (RFC 3948 §2.3).
pub const KEEPALIVE: [u8; 1] = [0xff];

/// One datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Natt<'a> {
    /// To be ignored: its only purpose is to have passed the NAT.
    Keepalive,
    /// An IKE message, without the marker. It may be empty.
    Ike(&'a [u8]),
    /// ESP, long enough to hold an empty packet and its ICV.
    Esp(Spi),
    /// Neither.
    Malformed(DropReason),
}

/// Tells by the first octets what a datagram on the NAT-T port is.
#[must_use]
pub fn classify(datagram: &[u8]) -> Natt<'_> {
    if datagram == KEEPALIVE {
        return Natt::Keepalive;
    }
    if let Some(message) = datagram.strip_prefix(&NON_ESP_MARKER) {
        return Natt::Ike(message);
    }
    match esp::Header::parse(datagram) {
        Ok(header) => Natt::Esp(header.spi),
        Err(reason) => Natt::Malformed(reason),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_01_to_03_runts() {
        for datagram in [&[][..], &[0xfe], &[0], &[0; 2], &[0; 3], &[0xff; 2], &[0xff; 4], &[0xc0; 33]] {
            assert_eq!(classify(datagram), Natt::Malformed(DropReason::Runt), "{datagram:?}");
        }
        assert_eq!(classify(&[0xff]), Natt::Keepalive);
    }

    #[test]
    fn case_07_ike_without_marker() {
        // The first octets of the initiator's SPI are taken for an ESP SPI, which nobody has.
        let message = [&[0x11, 0x22, 0x33, 0x44][..], &[0; 40]].concat();
        assert_eq!(classify(&message), Natt::Esp(Spi::new(0x1122_3344).expect("not reserved")));
    }

    #[test]
    fn case_08_marker_and_nothing() {
        assert_eq!(classify(&NON_ESP_MARKER), Natt::Ike(&[]));
        assert_eq!(classify(&[0, 0, 0, 0, 7]), Natt::Ike(&[7]));
    }

    #[test]
    fn case_106_reserved_spis() {
        for spi in 1..=255 {
            let datagram = [&[0, 0, 0, spi][..], &[9; 40]].concat();
            assert_eq!(classify(&datagram), Natt::Malformed(DropReason::ReservedSpi), "{spi}");
        }
        let datagram = [&[0, 0, 1, 0][..], &[9; 40]].concat();
        assert_eq!(classify(&datagram), Natt::Esp(Spi::new(256).expect("not reserved")));
    }

    proptest! {
        #[test]
        fn every_datagram_is_one_of_them(datagram in vec(prop_oneof![any::<u8>(), Just(0)], 0..64)) {
            let spi = datagram.first_chunk().map(|&first| u32::from_be_bytes(first));
            match classify(&datagram) {
                Natt::Keepalive => prop_assert_eq!(&datagram[..], KEEPALIVE),
                Natt::Ike(message) => prop_assert_eq!([&NON_ESP_MARKER, message].concat(), datagram),
                Natt::Esp(found) => prop_assert!(datagram.len() >= esp::MIN_LEN && spi == Some(found.value())),
                Natt::Malformed(DropReason::Runt) => prop_assert!(datagram.len() < esp::MIN_LEN),
                Natt::Malformed(reason) => {
                    prop_assert_eq!(reason, DropReason::ReservedSpi);
                    prop_assert!(spi.is_some_and(|spi| (1..256).contains(&spi)));
                }
            }
        }
    }
}
