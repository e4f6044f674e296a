//! What this kernel, or the route of the moment, does not do, and what is done instead. None of it loses a packet; all of it
//! costs time, so it is shown. One table makes names and sentences.
//!
//! What a write or a send was refused for is found by trying, by the worker that meets it, and tried again when routes or
//! interfaces changed ([`Handle::retry_fallbacks`](super::Handle::retry_fallbacks)). The device is tried at the start too, by two
//! super-packets that the host throws away ([`accepted`]).

use std::io::{self, IoSlice};
use std::num::NonZeroU16;

use crate::model::Gso;
use crate::sys::tun::{Offloads, TunQueue, VnetHeader};

macro_rules! fallbacks {
    ($($variant:ident, $name:literal, $sentence:literal;)*) => {
        /// Something that does not work here, and what is done instead.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Fallback {
            $(#[doc = $sentence] $variant,)*
        }

        impl Fallback {
            /// Its name in `status --json`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

fallbacks! {
    TunTcp, "tun_tcp", "the kernel has no TCP offload for TUN devices: the host cuts TCP into packets";
    TunUdp, "tun_udp", "the kernel has no UDP offload for TUN devices (Linux 6.2 has): the host cuts UDP into packets";
    TunWriteTcp, "tun_write_tcp", "the kernel refuses joined TCP packets on the TUN device: they are written one by one";
    TunWriteUdp, "tun_write_udp", "the kernel refuses joined UDP packets on the TUN device: they are written one by one";
    Trains, "trains", "the kernel refuses trains of datagrams (UDP_SEGMENT) on this route: they are sent one by one";
    LongTrains, "long_trains", "the kernel takes trains of 64 datagrams, not of 128 (Linux 6.9 does): more system calls";
}

/// The segment of the super-packets that are tried.
const SEGMENT: NonZeroU16 = NonZeroU16::new(8).expect("it is not zero");

/// Octets of an IPv4 header without options.
const IPV4: usize = 20;

/// Which of `granted` the device takes in fact: one super-packet of each is written. The device must be up; nothing can be
/// said of one that is down, so `granted` stays.
pub(super) fn accepted(queue: &dyn TunQueue, granted: Offloads) -> Offloads {
    // Two segments; and, as kernels failed at that, two of which the last is shorter.
    let tcp = || try_out(queue, Gso::Tcp(SEGMENT), &super_packet::<{ IPV4 + 20 + 16 }>(6, 12, 0x50), IPV4 + 20, 16);
    let udp = || try_out(queue, Gso::Udp(SEGMENT), &super_packet::<{ IPV4 + 8 + 11 }>(17, 5, 19), IPV4 + 8, 6);
    Offloads { tcp: granted.tcp && tcp(), udp: granted.udp && udp() }
}

/// Whether the kernel takes it. The checksum's field stands at `field` from the upper layer on.
fn try_out(queue: &dyn TunQueue, gso: Gso, packet: &[u8], payload: usize, field: u16) -> bool {
    let header = VnetHeader::super_packet(gso, true, IPV4 as u16, payload as u16, field).emit();
    let written = queue.write_super_packet(&[IoSlice::new(&header), IoSlice::new(packet)]);
    !written.is_err_and(|error| is_refusal(&error))
}

/// Whether the kernel does not take such a super-packet, rather than any packet now.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// An IPv4 packet of this protocol that the host's stack throws away at the first look: its header has no checksum. Besides,
/// nobody can have the address 0.0.0.1 that it is for. One octet of the upper header matters: TCP's length, UDP's length.
fn super_packet<const LEN: usize>(protocol: u8, at: usize, octet: u8) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = 0x45;
    packet[3] = LEN as u8;
    // DF.
    packet[6] = 0x40;
    packet[8] = 1;
    packet[9] = protocol;
    packet[15] = 1;
    packet[19] = 1;
    packet[IPV4 + at] = octet;
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_new_netns, ip};
    use crate::sys::tun::{TunBackend, TunDevice, TunRead};
    use std::os::fd::{AsRawFd, RawFd};

    const BOTH: Offloads = Offloads { tcp: true, udp: true };

    /// A device that answers super-packets of either kind with this error.
    struct Answers {
        tcp: Option<i32>,
        udp: Option<i32>,
    }

    impl AsRawFd for Answers {
        fn as_raw_fd(&self) -> RawFd {
            -1
        }
    }

    impl TunQueue for Answers {
        fn read_packet(&self, _: &mut [u8]) -> io::Result<TunRead> {
            unreachable!("nobody reads")
        }

        fn write_packet(&self, _: &[u8]) -> io::Result<()> {
            unreachable!("only super-packets are tried")
        }

        fn write_super_packet(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
            let error = if parts[1][9] == 6 { self.tcp } else { self.udp };
            error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
        }
    }

    #[test]
    fn what_the_device_refuses_is_left_out() {
        for (tcp, udp, expected) in [
            (None, None, BOTH),
            (Some(libc::EINVAL), None, Offloads { tcp: false, udp: true }),
            (None, Some(libc::EINVAL), Offloads { tcp: true, udp: false }),
            (Some(libc::EINVAL), Some(libc::EINVAL), Offloads::default()),
            // Down: it says nothing about super-packets.
            (Some(libc::EIO), Some(libc::EIO), BOTH),
        ] {
            assert_eq!(accepted(&Answers { tcp, udp }, BOTH), expected, "{tcp:?} {udp:?}");
        }
        assert_eq!(accepted(&Answers { tcp: None, udp: None }, Offloads::default()), Offloads::default());
    }

    #[test]
    fn the_kernel_takes_what_is_tried_and_throws_it_away() {
        in_new_netns(|| {
            let device = TunDevice::open("tun-test", 1, TunBackend::Offload, true).unwrap();
            ip("addr add 10.42.1.1/24 dev tun-test");
            ip("link set tun-test up");
            assert_eq!(device.offloads, BOTH, "this kernel is older than 6.2");
            assert_eq!(accepted(device.queues[0].as_ref(), BOTH), BOTH);
            // Not that everything is taken: a segment of no octets is nothing.
            let nothing = [IoSlice::new(&[1, 1, 0, 0, 0, 0, 20, 0, 16, 0]), IoSlice::new(&[0x45; 60])];
            assert!(is_refusal(&device.queues[0].write_super_packet(&nothing).unwrap_err()));
            // Two lines of "Ip:", names and numbers.
            let counters = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut lines = counters.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
            let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
            let of = |name: &str| names.clone().zip(numbers.clone()).find(|(known, _)| *known == name).unwrap().1;
            assert_eq!(["InReceives", "InDelivers", "ForwDatagrams"].map(of), ["2", "0", "0"], "{counters}");
        });
    }
}
