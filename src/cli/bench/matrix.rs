//! What is measured, and between what: the rows and the columns of the table.

use clap::ValueEnum;
use serde::Serialize;

/// A way from host to host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The bare wire, without any tunnel.
    Raw,
    /// A tunnel without keys and checks: what the kernel allows.
    Ceiling,
    /// An agent on each host.
    Underpass,
    /// The same with `tun.backend: plain`: packet by packet.
    Plain,
}

impl Way {
    /// All of them, in the order of the columns.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Ceiling, Self::Underpass, Self::Plain];

    /// As it is shown, and called in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ceiling => "ceiling",
            Self::Underpass => "underpass",
            Self::Plain => "plain",
        }
    }

    /// What it is, in a line.
    pub const fn story(self) -> &'static str {
        match self {
            Self::Raw => "the bare veth pair, no tunnel",
            Self::Ceiling => "a tunnel with the same offloads, but no keys, no checks, no IKE: what the kernel allows",
            Self::Underpass => "an agent on each host",
            Self::Plain => "the same with tun.backend: plain, packet by packet",
        }
    }

    /// Whether a program works for it, whose time and memory can be told.
    pub const fn has_program(self) -> bool {
        !matches!(self, Self::Raw)
    }
}

/// Something that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum)]
pub enum Figure {
    /// One TCP stream.
    #[value(name = "tcp-1")]
    Tcp1,
    /// Four TCP streams.
    #[value(name = "tcp-4")]
    Tcp4,
    /// Sixteen TCP streams.
    #[value(name = "tcp-16")]
    Tcp16,
    /// One TCP stream, the other way.
    TcpReverse,
    /// One TCP stream each way at the same time.
    TcpBoth,
    /// One TCP stream from a container to a container.
    Container,
    /// UDP of full size: the highest rate at which less than 1 % is lost.
    #[value(name = "udp-1372")]
    Udp1372,
    /// The same of a mix of sizes.
    UdpImix,
    /// The same of 64 octets.
    #[value(name = "udp-64")]
    Udp64,
    /// What arrives when 64 octets are sent as fast as it goes.
    #[value(name = "flood-64")]
    Flood64,
    /// Round trips when nothing else happens.
    RttIdle,
    /// Round trips beside one TCP stream.
    RttLoaded,
    /// Processor time of the programs on both hosts, under one TCP stream.
    Cpu,
    /// Memory of the larger of the two programs, at its highest.
    Memory,
}

/// Octets of UDP payload: seven packets of 40 octets with their headers, four of 576 and one that fills the tunnel (1400; on
/// Ethernet it would be 1500), the mix that vendors of routers call "simple IMIX".
const IMIX: [usize; 12] = [12, 548, 12, 12, 548, 12, 1372, 12, 548, 12, 548, 12];

impl Figure {
    /// All of them, in the order of the rows.
    pub const ALL: [Self; 14] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Tcp16,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Container,
        Self::Udp1372,
        Self::UdpImix,
        Self::Udp64,
        Self::Flood64,
        Self::RttIdle,
        Self::RttLoaded,
        Self::Cpu,
        Self::Memory,
    ];

    /// As it is called in arguments and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp-1",
            Self::Tcp4 => "tcp-4",
            Self::Tcp16 => "tcp-16",
            Self::TcpReverse => "tcp-reverse",
            Self::TcpBoth => "tcp-both",
            Self::Container => "container",
            Self::Udp1372 => "udp-1372",
            Self::UdpImix => "udp-imix",
            Self::Udp64 => "udp-64",
            Self::Flood64 => "flood-64",
            Self::RttIdle => "rtt-idle",
            Self::RttLoaded => "rtt-loaded",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    /// As it is shown.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp4 => "TCP, 4 streams",
            Self::Tcp16 => "TCP, 16 streams",
            Self::TcpReverse => "TCP, the other way",
            Self::TcpBoth => "TCP, 1 each way",
            Self::Container => "TCP, containers",
            Self::Udp1372 => "UDP 1372, loss < 1 %",
            Self::UdpImix => "UDP IMIX, loss < 1 %",
            Self::Udp64 => "UDP 64, loss < 1 %",
            Self::Flood64 => "UDP 64, flood",
            Self::RttIdle => "round trip, idle",
            Self::RttLoaded => "round trip, TCP 1",
            Self::Cpu => "CPU, both hosts",
            Self::Memory => "memory, peak",
        }
    }

    /// Of its values.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Udp64 | Self::Flood64 | Self::UdpImix => "kpps",
            Self::RttIdle | Self::RttLoaded => "µs",
            Self::Cpu => "s/GB",
            Self::Memory => "MiB",
            _ => "Mbit/s",
        }
    }

    /// Whether more is better; else less is.
    pub const fn is_rate(self) -> bool {
        !matches!(self, Self::RttIdle | Self::RttLoaded | Self::Cpu | Self::Memory)
    }

    /// Whether the way can be asked for it.
    pub const fn applies(self, way: Way) -> bool {
        !matches!(self, Self::Cpu | Self::Memory) || way.has_program()
    }

    /// Octets of UDP payload of the datagrams that are sent in turn, where it is about those.
    pub const fn lengths(self) -> &'static [usize] {
        match self {
            Self::Udp1372 => &[1372],
            Self::UdpImix => &IMIX,
            Self::Udp64 | Self::Flood64 => &[64],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_arguments() {
        for figure in Figure::ALL {
            assert_eq!(figure.to_possible_value().unwrap().get_name(), figure.name());
        }
        for way in Way::ALL {
            assert_eq!(way.to_possible_value().unwrap().get_name(), way.name());
        }
        assert_eq!(Figure::ALL.len(), Figure::value_variants().len());
        assert_eq!(Way::ALL.len(), Way::value_variants().len());
    }

    #[test]
    fn the_mix_is_seven_four_and_one() {
        let count = |len| IMIX.iter().filter(|&&other| other == len).count();
        assert_eq!([12, 548, 1372].map(count), [7, 4, 1]);
    }
}
