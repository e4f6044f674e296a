//! The TUN device: where inner packets enter and leave the agent.
//!
//! The native backend opens one device with a queue per worker. Its queues carry a virtio-net header in front of every packet,
//! so that segmentation offloads can be switched on without opening the device anew; they are off until then
//! (`TUNSETOFFLOAD 0`), and the kernel cuts segments and computes checksums before we read. The plain backend is the
//! `tun-tap` crate: one queue, bare packets; it is the fallback and the yardstick.
//!
//! A device lives as long as its queues are open. It must be new: attaching to another agent's device by accident would steal
//! a share of its packets.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where the kernel offers TUN devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Octets of `struct virtio_net_hdr` (linux/virtio_net.h) without the mergeable-buffers field.
const VNET_HEADER_LEN: usize = 10;

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

/// An open device: its real name and one queue per worker.
pub struct TunDevice {
    /// Its name.
    pub name: String,
    /// Its queues, in order.
    pub queues: Vec<Box<dyn TunQueue>>,
}

/// One queue of a TUN device; non-blocking.
pub trait TunQueue: AsRawFd + Send {
    /// Reads one whole inner packet, its checksums computed, into `buffer`, which must hold [`MAX_PACKET`] octets. Returns its
    /// length.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `InvalidData` if the kernel handed over something that we did not ask for (the packet
    /// is gone); anything else means that the device is.
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Gives one inner packet to the host's stack.
    ///
    /// # Errors
    /// What the kernel says; EIO while the device is down.
    fn write_packet(&self, packet: &[u8]) -> io::Result<()>;
}

impl TunDevice {
    /// Opens a new device with so many queues in the calling thread's network namespace.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn open(name: &str, queues: usize, backend: TunBackend) -> Result<Self, TunError> {
        check_name(name)?;
        match backend {
            TunBackend::Offload => open_offload(name, queues),
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
fn open_offload(name: &str, queues: usize) -> Result<TunDevice, TunError> {
    if queues == 0 || queues > MAX_QUEUES {
        return Err(TunError::TooManyQueues(queues));
    }
    let mut device = TunDevice { name: name.to_owned(), queues: Vec::with_capacity(queues) };
    for number in 0..queues {
        let file = open_clone_device()?;
        let exclusive = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
        set_interface(&file, name, QUEUE_FLAGS | exclusive)?;
        ioctl_value(&file, libc::TUNSETVNETHDRSZ, "TUNSETVNETHDRSZ", &(VNET_HEADER_LEN as libc::c_int))?;
        ioctl_plain(&file, libc::TUNSETOFFLOAD, "TUNSETOFFLOAD", 0)?;
        device.queues.push(Box::new(OffloadQueue { file }));
    }
    Ok(device)
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
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut header = [0; VNET_HEADER_LEN];
        let read = (&self.file).read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let len = read.checked_sub(VNET_HEADER_LEN).ok_or(ErrorKind::InvalidData)?;
        VnetHeader::parse(header).complete(&mut buffer[..len])?;
        Ok(len)
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        // All zeroes: no segmentation, and no checksum is left to be computed.
        let header = [0; VNET_HEADER_LEN];
        let written = (&self.file).write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])?;
        if written == VNET_HEADER_LEN + packet.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }
}

/// `struct virtio_net_hdr`, as far as it matters with offloads off; numbers in the host's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct VnetHeader {
    flags: u8,
    gso_type: u8,
    csum_start: u16,
    csum_offset: u16,
}

impl VnetHeader {
    /// The checksum field holds the pseudo-header's sum only.
    const NEEDS_CSUM: u8 = 1;
    /// One packet, not several in a row.
    const GSO_NONE: u8 = 0;

    const fn parse(octets: [u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, _, _, _, _, start_0, start_1, offset_0, offset_1] = octets;
        let csum_start = u16::from_ne_bytes([start_0, start_1]);
        let csum_offset = u16::from_ne_bytes([offset_0, offset_1]);
        Self { flags, gso_type, csum_start, csum_offset }
    }

    /// Finishes what the kernel left to us. With offloads off it leaves nothing; another opener of a shared device may have
    /// switched them on, though.
    fn complete(self, packet: &mut [u8]) -> io::Result<()> {
        if self.gso_type != Self::GSO_NONE {
            return Err(ErrorKind::InvalidData.into());
        }
        if self.flags & Self::NEEDS_CSUM == 0 {
            return Ok(());
        }
        let text = packet.get_mut(usize::from(self.csum_start)..).ok_or(ErrorKind::InvalidData)?;
        let sum = internet_checksum(text);
        let offset = usize::from(self.csum_offset);
        let field = text.get_mut(offset..offset + 2).ok_or(ErrorKind::InvalidData)?;
        // RFC 768: a computed zero travels as all ones. In TCP both mean the same.
        let sum = if sum == 0 { 0xffff } else { sum };
        field.copy_from_slice(&sum.to_be_bytes());
        Ok(())
    }
}

/// RFC 1071: the complement of the ones' complement sum of 16-bit words. A pseudo-header's sum that stands in the checksum
/// field takes part.
fn internet_checksum(octets: &[u8]) -> u16 {
    let (words, rest) = octets.as_chunks::<2>();
    let tail = rest.first().map_or(0, |&octet| u64::from(octet) << 8);
    let mut sum: u64 = words.iter().map(|&word| u64::from(u16::from_be_bytes(word))).sum::<u64>() + tail;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
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
    Ok(TunDevice { name: iface.name().to_owned(), queues: vec![Box::new(PlainQueue { iface })] })
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
    fn read_packet(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.iface.recv(buffer)
    }

    fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        if self.iface.send(packet)? == packet.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
mod tests;
