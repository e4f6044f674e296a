//! Traffic Selector payloads (RFC 7296 §3.13).
//!
//! ```text
//! | number of TSs | RESERVED (3) |
//! | TS type | protocol | length | start port | end port | starting address | ending address |
//! ```

use std::net::IpAddr;

use super::ParseError;
use super::cursor::Cursor;
use crate::model::TrafficSelector;

/// TS_IPV4_ADDR_RANGE
const IPV4_RANGE: u8 = 7;

/// TS_IPV6_ADDR_RANGE
const IPV6_RANGE: u8 = 8;

/// Octets of a TS_IPV4_ADDR_RANGE.
const IPV4_RANGE_LEN: u16 = 16;

/// Octets of a TS_IPV6_ADDR_RANGE.
const IPV6_RANGE_LEN: u16 = 40;

/// Octets of a selector of any type before what its type says: type, protocol and length.
const SELECTOR_HEADER_LEN: u16 = 4;

/// A TS type that nobody knows (0 is reserved).
const RESERVED_TYPE: u8 = 0;

/// Reads the body of a TSi or TSr payload. Selectors of unknown types are left out: if there are only such, the list is empty.
pub(super) fn parse_selectors(body: &[u8]) -> Result<Vec<TrafficSelector>, ParseError> {
    let mut cursor = Cursor::new(body, "TS payload");
    let [count, _, _, _] = cursor.array()?;
    if count == 0 {
        return Err(ParseError::Invalid("TS payload without selectors"));
    }
    let mut selectors = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        selectors.extend(parse_selector(cursor.counted(2, usize::from(SELECTOR_HEADER_LEN), "traffic selector")?)?);
    }
    cursor.end()?;
    Ok(selectors)
}

/// Reads one selector; none if its type is unknown.
fn parse_selector(mut cursor: Cursor<'_>) -> Result<Option<TrafficSelector>, ParseError> {
    let (kind, protocol, length) = (cursor.u8()?, cursor.u8()?, cursor.u16()?);
    let expected = match kind {
        IPV4_RANGE => IPV4_RANGE_LEN,
        IPV6_RANGE => IPV6_RANGE_LEN,
        _ => return Ok(None),
    };
    if length != expected {
        return Err(ParseError::Invalid("length of a traffic selector"));
    }
    let (start_port, end_port) = (cursor.u16()?, cursor.u16()?);
    let (start, end): (IpAddr, IpAddr) = match kind {
        IPV4_RANGE => (cursor.array::<4>()?.into(), cursor.array::<4>()?.into()),
        _ => (cursor.array::<16>()?.into(), cursor.array::<16>()?.into()),
    };
    let mut selector = TrafficSelector::new(start, end).ok_or(ParseError::Invalid("range of a traffic selector"))?;
    (selector.protocol, selector.start_port, selector.end_port) = (protocol, start_port, end_port);
    Ok(Some(selector))
}

/// Appends the body of a TSi or TSr payload.
pub(super) fn emit_selectors(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
    if selectors.is_empty() {
        // The format has no empty list; one selector that nobody knows means the same.
        let [high, low] = SELECTOR_HEADER_LEN.to_be_bytes();
        out.extend_from_slice(&[1, 0, 0, 0, RESERVED_TYPE, 0, high, low]);
        return;
    }
    let count = u8::try_from(selectors.len()).unwrap_or(u8::MAX);
    out.extend_from_slice(&[count, 0, 0, 0]);
    for selector in &selectors[..usize::from(count)] {
        let (kind, length) =
            if selector.start().is_ipv4() { (IPV4_RANGE, IPV4_RANGE_LEN) } else { (IPV6_RANGE, IPV6_RANGE_LEN) };
        out.extend_from_slice(&[kind, selector.protocol]);
        for field in [length, selector.start_port, selector.end_port] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        for address in [selector.start(), selector.end()] {
            match address {
                IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
            }
        }
    }
}
