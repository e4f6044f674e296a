//! The layout of an ESP packet (RFC 4303 §2) under an AEAD with an 8-octet IV and a 16-octet ICV (RFC 4106, 7634).
//!
//! ```text
//! | SPI (4) | sequence number (4) | IV (8) | inner packet, padding, pad length, next header | ICV (16) |
//! 0         4                     8        16 |<------------------ text ------------------->|
//! ```
//!
//! With 64-bit sequence numbers only the low half is sent. Everything is a multiple of four octets.

use crate::model::{AeadAlgorithm, DropReason, Spi};

/// Where the SPI stands.
pub const SPI_OFFSET: usize = 0;

/// Where the (low half of the) sequence number stands.
pub const SEQUENCE_OFFSET: usize = 4;

/// Octets of SPI and sequence number.
pub const HEADER_LEN: usize = 8;

/// Where the IV stands.
pub const IV_OFFSET: usize = HEADER_LEN;

/// Where the text starts, which is encrypted.
pub const TEXT_OFFSET: usize = IV_OFFSET + AeadAlgorithm::IV_LEN;

/// Octets of pad length and next header, at the end of the text.
pub const TRAILER_LEN: usize = 2;

/// Octets of ICV behind the text.
pub const ICV_LEN: usize = AeadAlgorithm::ICV_LEN;

/// What a packet's length is a multiple of: the ICV is aligned to four octets (RFC 4303 §2.4), and our ciphers ask no more.
pub const ALIGNMENT: usize = 4;

/// Below this there is no room for an empty inner packet with trailer and ICV.
pub const MIN_LEN: usize = TEXT_OFFSET + TRAILER_LEN + ICV_LEN;

/// Next header: an IPv4 packet.
pub const NEXT_IPV4: u8 = 4;

/// Next header: an IPv6 packet.
pub const NEXT_IPV6: u8 = 41;

/// Next header: a dummy packet, to be dropped without a word (RFC 4303 §2.6).
pub const NEXT_DUMMY: u8 = 59;

/// What can be read of an ESP packet without its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Names the SA.
    pub spi: Spi,
    /// The sequence number, or its low half.
    pub sequence: u32,
}

impl Header {
    /// Reads the header of a packet that fills the datagram.
    ///
    /// # Errors
    /// [`DropReason::Runt`] if it is shorter than [`MIN_LEN`], [`DropReason::ReservedSpi`].
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        match datagram.first_chunk::<HEADER_LEN>() {
            Some(&[s0, s1, s2, s3, n0, n1, n2, n3]) if datagram.len() >= MIN_LEN => {
                let spi = Spi::new(u32::from_be_bytes([s0, s1, s2, s3])).ok_or(DropReason::ReservedSpi)?;
                Ok(Self { spi, sequence: u32::from_be_bytes([n0, n1, n2, n3]) })
            }
            _ => Err(DropReason::Runt),
        }
    }

    /// The header's octets.
    #[must_use]
    pub fn emit(self) -> [u8; HEADER_LEN] {
        let [s0, s1, s2, s3] = self.spi.value().to_be_bytes();
        let [n0, n1, n2, n3] = self.sequence.to_be_bytes();
        [s0, s1, s2, s3, n0, n1, n2, n3]
    }
}

/// Where the text of a datagram that [`Header::parse`] accepted lies.
///
/// # Errors
/// [`DropReason::NotAligned`] if the length is not a multiple of [`ALIGNMENT`], [`DropReason::Runt`].
pub const fn text_range(datagram_len: usize) -> Result<std::ops::Range<usize>, DropReason> {
    if datagram_len < MIN_LEN {
        Err(DropReason::Runt)
    } else if !datagram_len.is_multiple_of(ALIGNMENT) {
        Err(DropReason::NotAligned)
    } else {
        Ok(TEXT_OFFSET..datagram_len - ICV_LEN)
    }
}

/// Octets of padding behind an inner packet of this length: 0 to 3.
#[must_use]
pub const fn pad_len(inner_len: usize) -> usize {
    (inner_len + TRAILER_LEN).next_multiple_of(ALIGNMENT) - inner_len - TRAILER_LEN
}

/// Octets of the ESP packet that carries an inner packet of this length.
#[must_use]
pub const fn sealed_len(inner_len: usize) -> usize {
    TEXT_OFFSET + inner_len + pad_len(inner_len) + TRAILER_LEN + ICV_LEN
}

/// The longest inner packet whose ESP packet is not longer than `datagram_limit` octets; 0 if there is none.
#[must_use]
pub const fn largest_inner(datagram_limit: usize) -> usize {
    let text = datagram_limit.saturating_sub(TEXT_OFFSET + ICV_LEN);
    (text - text % ALIGNMENT).saturating_sub(TRAILER_LEN)
}

/// Writes padding (1, 2, 3: RFC 4303 §2.4), pad length and next header behind the inner packet at the start of `text`, and
/// returns the length of the whole text.
///
/// # Panics
/// If `text` is shorter than that.
pub fn emit_trailer(text: &mut [u8], inner_len: usize, next_header: u8) -> usize {
    let padding = pad_len(inner_len);
    let text_len = inner_len + padding + TRAILER_LEN;
    let trailer = &mut text[inner_len..text_len];
    for (octet, value) in trailer.iter_mut().zip(1..=padding as u8) {
        *octet = value;
    }
    trailer[padding..].copy_from_slice(&[padding as u8, next_header]);
    text_len
}

/// The length of what stands before the padding of an opened text, and the next header. What the padding holds does not matter:
/// the ICV covered it, and some peers fill it at random.
///
/// # Errors
/// [`DropReason::BadPadding`] if there is less than the pad length says.
pub fn parse_trailer(text: &[u8]) -> Result<(usize, u8), DropReason> {
    let &[.., pad_len, next_header] = text else { return Err(DropReason::BadPadding) };
    let inner_len = (text.len() - TRAILER_LEN).checked_sub(usize::from(pad_len)).ok_or(DropReason::BadPadding)?;
    Ok((inner_len, next_header))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_7634_appendix_a_layout() {
        // RFC 7634 appendix A: an inner packet of 84 octets (ICMP echo request) makes an ESP packet of 120 octets.
        assert_eq!(sealed_len(84), 120);
        assert_eq!(pad_len(84), 2);
        let mut text = [0xee; 88];
        assert_eq!(emit_trailer(&mut text, 84, NEXT_IPV4), 88);
        assert_eq!(text[84..], [1, 2, 2, 4]);
        assert_eq!(parse_trailer(&text), Ok((84, NEXT_IPV4)));
    }

    #[test]
    fn header_comes_back() {
        let header = Header { spi: Spi::new(0x0102_0304).expect("not reserved"), sequence: 5 };
        let mut datagram = [0; MIN_LEN];
        datagram[..HEADER_LEN].copy_from_slice(&header.emit());
        assert_eq!(datagram[..HEADER_LEN], [1, 2, 3, 4, 0, 0, 0, 5]);
        assert_eq!(Header::parse(&datagram), Ok(header));
    }

    #[test]
    fn case_106_and_109_reserved_spis_and_lengths() {
        for length in 0..MIN_LEN {
            assert_eq!(Header::parse(&vec![0xc0; length]), Err(DropReason::Runt), "{length}");
            assert_eq!(text_range(length), Err(DropReason::Runt), "{length}");
        }
        for spi in 0..=255 {
            let mut datagram = [0; 40];
            datagram[3] = spi;
            assert_eq!(Header::parse(&datagram), Err(DropReason::ReservedSpi), "{spi}");
        }
        for length in [34, 35, 37, 1399] {
            assert_eq!(text_range(length), Err(DropReason::NotAligned));
        }
        assert_eq!(text_range(36), Ok(16..20));
    }

    #[test]
    fn case_110_pad_length() {
        assert_eq!(parse_trailer(&[]), Err(DropReason::BadPadding));
        assert_eq!(parse_trailer(&[0]), Err(DropReason::BadPadding));
        assert_eq!(parse_trailer(&[0, 4]), Ok((0, 4)));
        assert_eq!(parse_trailer(&[1, 4]), Err(DropReason::BadPadding));
        assert_eq!(parse_trailer(&[255, 255, 2, 41]), Ok((0, 41)));
        assert_eq!(parse_trailer(&[7, 9, 9, 3, 41]), Ok((0, 41)));
        assert_eq!(parse_trailer(&[7, 9, 9, 255, 41]), Err(DropReason::BadPadding));
    }

    proptest! {
        #[test]
        fn largest_inner_is_the_inverse(limit in 0..70_000_usize) {
            let inner = largest_inner(limit);
            if limit >= sealed_len(0) {
                prop_assert!(sealed_len(inner) <= limit);
            } else {
                prop_assert_eq!(inner, 0);
            }
            prop_assert!(sealed_len(inner + 1) > limit);
            prop_assert!(sealed_len(inner).is_multiple_of(ALIGNMENT));
        }

        #[test]
        fn trailers_come_back(inner_len in 0..2000_usize, next_header: u8) {
            let mut text = vec![0x55; inner_len + 5];
            let text_len = emit_trailer(&mut text, inner_len, next_header);
            prop_assert_eq!(TEXT_OFFSET + text_len + ICV_LEN, sealed_len(inner_len));
            prop_assert_eq!(text_range(sealed_len(inner_len)), Ok(TEXT_OFFSET..TEXT_OFFSET + text_len));
            prop_assert_eq!(parse_trailer(&text[..text_len]), Ok((inner_len, next_header)));
            prop_assert!(text[text_len..].iter().all(|&octet| octet == 0x55), "nothing behind the trailer is touched");
        }
    }
}
