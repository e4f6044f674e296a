//! Security parameter indexes.

use std::fmt;
use std::num::NonZeroU64;

use super::Rng;

/// A worker's number, 0 to 255: TUN queue, UDP socket and SAs of that number are its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerIndex(pub u8);

/// The SPI of an ESP SA (RFC 4303 §2.1). Values 0 to 255 are reserved and cannot be made.
///
/// The low 8 bits of an SPI that we allocate name the worker that owns the SA, so that the kernel can steer by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(u32);

impl Spi {
    /// The smallest SPI that is not reserved.
    pub const MIN: u32 = 256;

    /// Checks the reserved range.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value >= Self::MIN { Some(Self(value)) } else { None }
    }

    /// A random SPI whose low bits name `owner`.
    pub fn random(rng: &mut dyn Rng, owner: WorkerIndex) -> Self {
        loop {
            if let Some(spi) = Self::new(rng.u32() & !0xff | u32::from(owner.0)) {
                return spi;
            }
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The worker that owns an inbound SA of ours with this SPI.
    #[must_use]
    pub const fn owner(self) -> WorkerIndex {
        WorkerIndex(self.0 as u8)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spi({self})")
    }
}

/// One side's SPI of an IKE SA (RFC 7296 §2.6): eight octets, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSpi(NonZeroU64);

impl IkeSpi {
    /// The smallest, for ranges.
    pub const MIN: IkeSpi = IkeSpi(NonZeroU64::MIN);

    /// The largest, for ranges.
    pub const MAX: IkeSpi = IkeSpi(NonZeroU64::MAX);

    /// Refuses zero, which stands for "not known yet" on the wire.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        match NonZeroU64::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// A random SPI.
    pub fn random(rng: &mut dyn Rng) -> Self {
        loop {
            if let Some(spi) = Self::new(rng.u64()) {
                return spi;
            }
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IkeSpi({self})")
    }
}
