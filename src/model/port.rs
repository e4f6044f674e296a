//! Ports of containers, as they are published at their host.

use std::fmt;
use std::net::IpAddr;

/// A protocol that has ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// By its name, in whatever letters.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| name.eq_ignore_ascii_case(protocol.name()))
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// IANA's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of a container that others are to reach at its host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address at which it is reached; none for all of them.
    pub address: Option<IpAddr>,
    /// The container's own port.
    pub container: u16,
    /// The host's port, if one was said.
    pub host: Option<u16>,
}

impl PortMapping {
    /// As people read them, in order, each once: `8080->80/tcp`, `127.0.0.1:5353->53/udp`, and `9000-9009->9000-9009/tcp` for those that
    /// follow each other.
    #[must_use]
    pub fn texts(mappings: &[Self]) -> Vec<String> {
        let any = |address: &IpAddr| !address.is_unspecified();
        let mut sorted: Vec<Self> = mappings.iter().map(|it| Self { address: it.address.filter(any), ..*it }).collect();
        sorted.sort();
        sorted.dedup();
        // How many follow the first one.
        let mut runs: Vec<(Self, u16)> = Vec::new();
        for mapping in sorted {
            match runs.last_mut() {
                Some((first, more)) if first.is_followed_by(&mapping, *more) => *more += 1,
                _ => runs.push((mapping, 0)),
            }
        }
        runs.into_iter().map(|(first, more)| Run(first, more).to_string()).collect()
    }

    fn is_followed_by(&self, other: &Self, more: u16) -> bool {
        let next = |port: u16| u32::from(port) + u32::from(more) + 1;
        (self.protocol, self.address) == (other.protocol, other.address)
            && next(self.container) == u32::from(other.container)
            && self.host.map(next) == other.host.map(u32::from)
    }
}

/// A mapping and so many that follow it.
struct Run(PortMapping, u16);

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(PortMapping { protocol, address, container, host }, more) = self;
        let range = |first: u16| match more {
            0 => first.to_string(),
            more => format!("{first}-{}", first + more),
        };
        match (address, host) {
            (Some(IpAddr::V6(address)), Some(host)) => write!(f, "[{address}]:{}->", range(*host))?,
            (Some(IpAddr::V4(address)), Some(host)) => write!(f, "{address}:{}->", range(*host))?,
            (None, Some(host)) => write!(f, "{}->", range(*host))?,
            (_, None) => {}
        }
        write!(f, "{}/{}", range(*container), protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_people_write_them() {
        let mapping = |protocol, address: &str, host: u16, container: u16| PortMapping {
            protocol,
            address: (!address.is_empty()).then(|| address.parse().unwrap()),
            container,
            host: (host > 0).then_some(host),
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let all = [
            mapping(udp, "127.0.0.1", 5353, 53),
            mapping(tcp, "0.0.0.0", 8080, 80),
            mapping(tcp, "::", 8080, 80),
            mapping(tcp, "", 8081, 81),
            mapping(tcp, "", 9001, 9000),
            mapping(tcp, "", 9003, 9001),
            mapping(tcp, "2001:db8::1", 8443, 443),
            mapping(Protocol::Sctp, "", 0, 7),
        ];
        let expected = [
            "8080-8081->80-81/tcp",
            "9001->9000/tcp",
            "9003->9001/tcp",
            "[2001:db8::1]:8443->443/tcp",
            "127.0.0.1:5353->53/udp",
            "7/sctp",
        ];
        assert_eq!(PortMapping::texts(&all), expected);
        let every: Vec<PortMapping> = (1..=u16::MAX).map(|port| mapping(tcp, "", port, port)).collect();
        assert_eq!(PortMapping::texts(&every), ["1-65535->1-65535/tcp"]);
        assert_eq!(Protocol::of_name("UDP"), Some(udp));
        assert_eq!(Protocol::of_name("icmp"), None);
    }
}
