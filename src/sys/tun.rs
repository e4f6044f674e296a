//! The TUN device: where inner packets enter and leave the agent.
//!
//! The native backend opens one device with a queue per worker. Its queues carry a virtio-net header in front of every packet.
//! With offloads on, the kernel leaves segmentation and checksums to us: one read brings up to 64 KiB of a flow's packets
//! under one header, and one write takes as much. Which offloads the kernel knows is found by asking: TCP first, then UDP
//! (6.2 and later). The plain backend is the `tun-tap` crate: one queue, bare packets; it is the fallback and the yardstick.
//!
//! A device lives as long as its queues are open. It must be new: attaching to another agent's device by accident would steal
//! a share of its packets.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::model::Gso;
use crate::sys::faults::Fault;

/// Where the kernel offers TUN devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Octets of `struct virtio_net_hdr` (linux/virtio_net.h) without the mergeable-buffers field.
pub const VNET_HEADER_LEN: usize = 10;

/// The largest IP packet, and so the smallest buffer that a read can never truncate.
pub const MAX_PACKET: usize = 65_535;

/// Octets of an interface's name, without the NUL (IFNAMSIZ - 1).
const MAX_NAME: usize = 15;

/// Queues that the kernel gives one device (MAX_TAP_QUEUES).
pub const MAX_QUEUES: usize = 256;

/// Who opens the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TunBackend {
    /// Our own ioctls: several queues, virtio-net headers.
    #[default]
    Offload,
    /// The `tun-tap` crate: one queue, bare packets.
    Plain,
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device file is not there.
    #[error("{CLONE_DEVICE} is missing: load the tun module (modprobe tun), or pass the device into this container")]
    DeviceMissing,
    /// The device file cannot be opened.
    #[error("no permission to open {CLONE_DEVICE}")]
    OpenDenied,
    /// The device may not be made.
    #[error("creating the TUN device {0:?} needs CAP_NET_ADMIN in this network namespace")]
    NotAdmin(String),
    /// There is an interface of that name.
    #[error("an interface named {0:?} exists already: is another agent running here?")]
    NameInUse(String),
    /// The name cannot be an interface's.
    #[error("{0:?} is no name for an interface: 1 to {MAX_NAME} octets, without blanks, '/', ':' and '%'")]
    BadName(String),
    /// More queues than the kernel or the backend has.
    #[error("{0} queues are more than this backend can open")]
    TooManyQueues(usize),
    /// Left out of this build.
    #[error("this build has no plain TUN backend (feature tun-tap)")]
    NotBuilt,
    /// The kernel does not do what we need.
    #[error("the kernel refused {step} for the TUN device: {source}")]
    Refused {
        /// Name of the ioctl or flag.
        step: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl TunError {
    /// Whether a right is missing, rather than anything else.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::OpenDenied | Self::NotAdmin(_))
    }
}

/// Whose packets travel as super-packets between the host's stack and us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// TCP's, both families.
    pub tcp: bool,
    /// UDP's, both families.
    pub udp: bool,
}

/// An open device: its real name and one queue per worker.
pub struct TunDevice {
    /// Its name.
    pub name: String,
    /// What the kernel granted.
    pub offloads: Offloads,
    /// Its queues, in order.
    pub queues: Vec<Box<dyn TunQueue>>,
    /// A second way to the first queue, for whoever tries out what the device takes; the native backend has one.
    pub tester: Option<Box<dyn TunQueue + Sync>>,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunRead {
    /// Octets of the packet.
    pub len: usize,
    /// Whether it is one packet or many.
    pub gso: Gso,
    /// Where a single packet's checksum is still to be computed: where it starts, and where its field stands from there, which
    /// holds the pseudo-header's sum. Those of a super-packet's packets always are.
    pub checksum: Option<(u16, u16)>,
}

/// One queue of a TUN device; non-blocking.
pub trait TunQueue: AsRawFd + Send + Sync {
    /// Reads one whole inner packet or super-packet into `buffer`, which must hold [`MAX_PACKET`] octets.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `InvalidData` if the kernel handed over something that we did not ask for (the packet
    /// is gone); anything else means that the device is.
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<TunRead>;

    /// Gives one inner packet to the host's stack.
    ///
    /// # Errors
    /// What the kernel says; EIO while the device is down.
    fn write_packet(&self, packet: &[u8]) -> io::Result<()>;

    /// Gives a super-packet to the host's stack. The first part is a [`VnetHeader`], the others are the packet. Only for what
    /// the device's [`Offloads`] name.
    ///
    /// # Errors
    /// What the kernel says; EIO while the device is down, EINVAL if it does not take such a packet.
    fn write_super_packet(&self, parts: &[IoSlice<'_>]) -> io::Result<()>;
}

impl TunDevice {
    /// Opens a new device with so many queues in the calling thread's network namespace. Offloads are those that the kernel
    /// and the backend know, if they are wanted.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn open(name: &str, queues: usize, backend: TunBackend, offload: bool) -> Result<Self, TunError> {
        check_name(name)?;
        match backend {
            TunBackend::Offload => open_offload(name, queues, offload),
            TunBackend::Plain => open_plain(name, queues),
        }
    }
}

/// What the kernel's dev_valid_name wants, and no '%', which would be filled in with a number.
fn check_name(name: &str) -> Result<(), TunError> {
    let bad = name.is_empty()
        || name.len() > MAX_NAME
        || name == "."
        || name == ".."
        || name.bytes().any(|octet| octet.is_ascii_whitespace() || octet == 0 || b"/:%".contains(&octet));
    if bad { Err(TunError::BadName(name.to_owned())) } else { Ok(()) }
}

fn open_clone_device() -> Result<File, TunError> {
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(CLONE_DEVICE);
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => TunError::DeviceMissing,
        ErrorKind::PermissionDenied => TunError::OpenDenied,
        // ENXIO, ENODEV: the file is there, the driver is not.
        _ if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => TunError::DeviceMissing,
        _ => TunError::Refused { step: "open", source: error },
    })
}

// --- the native backend ---

/// Opens the queues one by one: the first makes the device, exclusively, the others join it.
fn open_offload(name: &str, queues: usize, offload: bool) -> Result<TunDevice, TunError> {
    if queues == 0 || queues > MAX_QUEUES {
        return Err(TunError::TooManyQueues(queues));
    }
    let offloads = Offloads::default();
    let mut device = TunDevice { name: name.to_owned(), offloads, queues: Vec::with_capacity(queues), tester: None };
    for number in 0..queues {
        let file = open_clone_device()?;
        let exclusive = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
        set_interface(&file, name, QUEUE_FLAGS | exclusive)?;
        ioctl_value(&file, libc::TUNSETVNETHDRSZ, "TUNSETVNETHDRSZ", &(VNET_HEADER_LEN as libc::c_int))?;
        // They are the device's, not the queue's: each queue asks for the same and gets the same.
        device.offloads = set_offloads(&file, offload)?;
        if number == 0 {
            let file = file.try_clone().map_err(|source| TunError::Refused { step: "dup", source })?;
            device.tester = Some(Box::new(OffloadQueue { file }));
        }
        device.queues.push(Box::new(OffloadQueue { file }));
    }
    Ok(device)
}

/// What TCP needs: nobody cuts what carries no checksum, and congestion marks must not make the kernel cut.
const TCP_OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// What UDP needs besides; the kernel takes both or none.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Switches on as much as the kernel knows: it refuses flags that it does not.
fn set_offloads(file: &File, wanted: bool) -> Result<Offloads, TunError> {
    let set = |flags: libc::c_uint| {
        let no_udp = flags & UDP_OFFLOADS != 0 && Fault::TunNoUdp.is_on();
        if no_udp || (flags != 0 && Fault::TunNoTcp.is_on()) {
            return Err(TunError::Refused { step: "TUNSETOFFLOAD", source: io::Error::from_raw_os_error(libc::EINVAL) });
        }
        ioctl_plain(file, libc::TUNSETOFFLOAD, "TUNSETOFFLOAD", flags.into())
    };
    if wanted && set(TCP_OFFLOADS | UDP_OFFLOADS).is_ok() {
        return Ok(Offloads { tcp: true, udp: true });
    }
    if wanted && set(TCP_OFFLOADS).is_ok() {
        return Ok(Offloads { tcp: true, udp: false });
    }
    set(0).map(|()| Offloads::default())
}

/// What every queue is opened with. All queues of a device must agree.
const QUEUE_FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// TUNSETIFF, verified by TUNGETIFF: old kernels ignore flags that they do not know.
fn set_interface(file: &File, name: &str, flags: libc::c_int) -> Result<(), TunError> {
    // SAFETY: all zeroes is a valid ifreq: an empty name and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, octet) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = octet as libc::c_char;
    }
    // The flags use all 16 bits, the sign bit too.
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EPERM) => TunError::NotAdmin(name.to_owned()),
            Some(libc::EBUSY | libc::EEXIST) => TunError::NameInUse(name.to_owned()),
            Some(libc::E2BIG) => TunError::TooManyQueues(MAX_QUEUES + 1),
            _ => TunError::Refused { step: "TUNSETIFF (multi-queue, virtio-net header)", source: error },
        });
    }
    // SAFETY: TUNGETIFF writes one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if done < 0 {
        return Err(TunError::Refused { step: "TUNGETIFF", source: io::Error::last_os_error() });
    }
    // SAFETY: TUNGETIFF fills in the flags member of the union.
    let got = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16);
    if got & QUEUE_FLAGS != QUEUE_FLAGS {
        let source = io::Error::new(ErrorKind::Unsupported, format!("asked for flags {QUEUE_FLAGS:#x}, got {got:#x}"));
        return Err(TunError::Refused { step: "multi-queue with virtio-net header", source });
    }
    Ok(())
}

/// An ioctl whose argument points to an int.
fn ioctl_value(file: &File, request: libc::Ioctl, step: &'static str, value: &libc::c_int) -> Result<(), TunError> {
    // SAFETY: the request reads one int, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_ref(value)) } {
        -1 => Err(TunError::Refused { step, source: io::Error::last_os_error() }),
        _ => Ok(()),
    }
}

/// An ioctl whose argument is the value itself.
fn ioctl_plain(file: &File, request: libc::Ioctl, step: &'static str, value: libc::c_ulong) -> Result<(), TunError> {
    // SAFETY: the request takes an integer and touches no memory of ours.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, value) } {
        -1 => Err(TunError::Refused { step, source: io::Error::last_os_error() }),
        _ => Ok(()),
    }
}

/// A queue with a virtio-net header in front of every packet.
struct OffloadQueue {
    file: File,
}

impl AsRawFd for OffloadQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl TunQueue for OffloadQueue {
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<TunRead> {
        let mut header = [0; VNET_HEADER_LEN];
        // Past the C library, whose calls are cancellation points and pay for that on both sides of the kernel.
        let read = rustix::io::readv(&self.file, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let len = read.checked_sub(VNET_HEADER_LEN).ok_or(ErrorKind::InvalidData)?;
        VnetHeader::parse(header).describe(len)
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        // All zeroes: no segmentation, and no checksum is left to be computed.
        let header = [0; VNET_HEADER_LEN];
        self.write_super_packet(&[IoSlice::new(&header), IoSlice::new(packet)])
    }

    fn write_super_packet(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if is_refused_in_test(parts) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let written = rustix::io::writev(&self.file, parts)?;
        if written == parts.iter().map(|part| part.len()).sum::<usize>() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }
}

/// Whether a test wants the kernel to refuse such a super-packet.
fn is_refused_in_test(parts: &[IoSlice<'_>]) -> bool {
    match parts.first().and_then(|header| header.get(1)).map(|kind| kind & !VnetHeader::GSO_ECN) {
        Some(VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6) => Fault::TunWriteTcp.is_on(),
        Some(VnetHeader::GSO_UDP_L4) => Fault::TunWriteUdp.is_on(),
        _ => false,
    }
}

/// `struct virtio_net_hdr`; numbers in the host's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    /// A hint, and no more: what was read may claim a header as long as the kernel's first buffer.
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl VnetHeader {
    /// The checksum field holds the pseudo-header's sum only.
    const NEEDS_CSUM: u8 = 1;
    /// One packet, not several in a row.
    const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    const GSO_TCPV6: u8 = 4;
    /// UDP, either family.
    const GSO_UDP_L4: u8 = 5;
    /// Besides the type: the first segment answers a congestion mark.
    const GSO_ECN: u8 = 0x80;

    /// Describes a super-packet whose upper layer starts at `upper` and whose payload starts at `payload`. The field of its
    /// checksum, at `field` from the upper layer on, holds the pseudo-header's sum.
    #[must_use]
    pub const fn super_packet(gso: Gso, ipv4: bool, upper: u16, payload: u16, field: u16) -> Self {
        let (gso_type, gso_size) = match gso {
            Gso::None => (Self::GSO_NONE, 0),
            Gso::Tcp(size) if ipv4 => (Self::GSO_TCPV4, size.get()),
            Gso::Tcp(size) => (Self::GSO_TCPV6, size.get()),
            Gso::Udp(size) => (Self::GSO_UDP_L4, size.get()),
        };
        Self { flags: Self::NEEDS_CSUM, gso_type, header_len: payload, gso_size, csum_start: upper, csum_offset: field }
    }

    /// Its octets.
    #[must_use]
    pub const fn emit(self) -> [u8; VNET_HEADER_LEN] {
        let [l0, l1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, l0, l1, g0, g1, s0, s1, o0, o1]
    }

    const fn parse(octets: [u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, l0, l1, g0, g1, s0, s1, o0, o1] = octets;
        Self {
            flags,
            gso_type,
            header_len: u16::from_ne_bytes([l0, l1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// What it says about a packet of `len` octets.
    fn describe(self, len: usize) -> io::Result<TunRead> {
        let size = || NonZeroU16::new(self.gso_size).ok_or(ErrorKind::InvalidData);
        let gso = match self.gso_type & !Self::GSO_ECN {
            Self::GSO_NONE => Gso::None,
            Self::GSO_TCPV4 | Self::GSO_TCPV6 => Gso::Tcp(size()?),
            Self::GSO_UDP_L4 => Gso::Udp(size()?),
            // UFO and what comes after us: nobody asked for it.
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let unfinished = self.flags & Self::NEEDS_CSUM != 0 && gso == Gso::None;
        Ok(TunRead { len, gso, checksum: unfinished.then_some((self.csum_start, self.csum_offset)) })
    }
}

// --- the plain backend ---

#[cfg(feature = "tun-tap")]
fn open_plain(name: &str, queues: usize) -> Result<TunDevice, TunError> {
    if queues != 1 {
        return Err(TunError::TooManyQueues(queues));
    }
    // The crate tells neither an open from an ioctl that failed nor a missing file: look first.
    drop(open_clone_device()?);
    let iface =
        tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => TunError::NotAdmin(name.to_owned()),
            // EINVAL: an interface of that name that is no single-queue TUN device.
            Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => TunError::NameInUse(name.to_owned()),
            _ => TunError::Refused { step: "TUNSETIFF", source: error },
        })?;
    iface.set_non_blocking().map_err(|source| TunError::Refused { step: "FIONBIO", source })?;
    let name = iface.name().to_owned();
    let queues: Vec<Box<dyn TunQueue>> = vec![Box::new(PlainQueue { iface })];
    Ok(TunDevice { name, offloads: Offloads::default(), queues, tester: None })
}

#[cfg(not(feature = "tun-tap"))]
fn open_plain(_name: &str, _queues: usize) -> Result<TunDevice, TunError> {
    Err(TunError::NotBuilt)
}

/// The single queue of the plain backend.
#[cfg(feature = "tun-tap")]
struct PlainQueue {
    iface: tun_tap::Iface,
}

#[cfg(feature = "tun-tap")]
impl AsRawFd for PlainQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.iface.as_raw_fd()
    }
}

#[cfg(feature = "tun-tap")]
impl TunQueue for PlainQueue {
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<TunRead> {
        self.iface.recv(buffer).map(|len| TunRead { len, gso: Gso::None, checksum: None })
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        if self.iface.send(packet)? == packet.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    fn write_super_packet(&self, _parts: &[IoSlice<'_>]) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests;
