//! May we do our work here? Asked at start, so that the answer is one clear sentence and not a failure half-way.

use std::fs::OpenOptions;
use std::io;

use super::netlink::{Netlink, NetlinkError};

/// The kernel's door to TUN devices.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// A name that nobody gives to an interface.
const NO_LINK: &str = "underpass?probe";

/// Whether we may change links, addresses, routes and rules in the calling thread's network namespace.
///
/// The effective `CAP_NET_ADMIN` alone would not tell: it counts only in the user namespace that owns the network namespace
/// (`unshare --user` grants it, and still nothing may be changed). So the kernel itself is asked, by a change to an interface
/// that cannot exist: it checks the right first and the name later.
///
/// # Errors
/// [`NetlinkError`] when the kernel cannot be asked.
pub fn may_administer_network() -> Result<bool, NetlinkError> {
    match Netlink::open()?.set_up(NO_LINK) {
        Err(error) if error.is_denied() => Ok(false),
        Err(NetlinkError::Refused { .. }) | Ok(()) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether we may make network namespaces: `CAP_SYS_ADMIN`, which root has unless it was taken away.
#[must_use]
pub fn may_make_namespaces() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// What stands in the way of a TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunDeviceError {
    /// The device node is missing.
    #[error("{TUN_DEVICE} is missing: load the module (modprobe tun), or hand the device into this container")]
    Missing,
    /// The node is there, the driver is not.
    #[error("{TUN_DEVICE} is there, but the kernel has no driver behind it: load the module (modprobe tun)")]
    NoDriver,
    /// We may not open it.
    #[error("{TUN_DEVICE} may not be opened by this user or container")]
    Denied,
    /// Something else.
    #[error("open {TUN_DEVICE}: {0}")]
    Other(#[source] io::Error),
}

/// Whether TUN devices can be had at all: opens the door and closes it again.
///
/// # Errors
/// [`TunDeviceError`] says what is missing.
pub fn check_tun_device() -> Result<(), TunDeviceError> {
    match OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => TunDeviceError::Missing,
            Some(libc::ENODEV | libc::ENXIO) => TunDeviceError::NoDriver,
            Some(libc::EPERM | libc::EACCES) => TunDeviceError::Denied,
            _ => TunDeviceError::Other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::Namespace;

    #[test]
    fn root_may_administer_its_namespace_and_nobody_may_not() {
        let namespace = Namespace::create().expect("needs root");
        assert!(namespace.run(may_administer_network).unwrap().unwrap());
        let without = namespace.run(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
            // Capabilities belong to the thread, and this one ends with the closure.
            rustix::thread::set_capabilities(None, sets).unwrap();
            may_administer_network()
        });
        assert!(!without.unwrap().unwrap());
    }

    #[test]
    fn the_tun_device_is_there() {
        check_tun_device().expect("the tests need /dev/net/tun");
    }
}
