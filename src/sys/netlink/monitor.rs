//! Whether links, addresses or routes of the namespace changed, without asking for all of them again.

use std::fmt;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::NetlinkError;

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR and RTMGRP_IPV6_ROUTE (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Messages per look; a flood of them is one change, too.
const MAX_MESSAGES: usize = 256;

/// A socket that hears of every change in the namespace where it was opened.
pub struct Monitor {
    socket: Socket,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Listens from now on, in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`], with the system's reason.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok(Self { socket })
        };
        open().map_err(NetlinkError::Open)
    }

    /// Whether something changed since the last call. Never waits.
    pub fn has_changed(&self) -> bool {
        let mut changed = false;
        for _ in 0..MAX_MESSAGES {
            // What it says does not matter: a datagram that is cut off is as good.
            match self.socket.recv(&mut &mut [0; 16][..], 0) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: more than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => break,
            }
        }
        changed
    }
}
