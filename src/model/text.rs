//! Values as people write them.

use std::fmt;

/// `a, b, c`, or `none`.
#[must_use]
pub fn listed(items: &[impl fmt::Display]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Reads one: six groups of one or two digits with colons or hyphens between them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |group: &&str| matches!(group.len(), 1 | 2) && group.bytes().all(|digit| digit.is_ascii_hexdigit());
        let mut groups = text.split([':', '-']);
        let mut octets = [0; 6];
        for octet in &mut octets {
            *octet = groups.next().filter(digits).and_then(|group| u8::from_str_radix(group, 16).ok())?;
        }
        // The lowest bit of the first octet means "many": no interface has such an address.
        let is_unicast = octets[0] & 1 == 0 && octets != [0; 6];
        (groups.next().is_none() && is_unicast).then_some(Self(octets))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_interface_are_read() {
        for (text, read) in [
            ("02:42:0a:2a:01:07", Some("02:42:0a:2a:01:07")),
            ("2-42-A-2a-1-7", Some("02:42:0a:2a:01:07")),
            ("03:42:0a:2a:01:07", None),
            ("00:00:00:00:00:00", None),
            ("02:42:0a:2a:01", None),
            ("02:42:0a:2a:01:07:08", None),
            ("02:42:0a:2a:01:+7", None),
            ("02:42:0a:2a:01:", None),
            ("02:42:0a:2a:01:007", None),
            ("", None),
        ] {
            assert_eq!(MacAddress::parse(text).map(|mac| mac.to_string()).as_deref(), read, "{text}");
        }
    }
}
