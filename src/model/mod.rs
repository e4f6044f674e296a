//! The shared vocabulary: what every module of the data plane and the control plane says in the same words.
//!
//! Nothing here does IO, reads a clock or draws a random number. Values are small, checked once when they are made, and
//! named as the RFCs name them: [`Spi`], [`TrafficSelector`], [`ChildSaParams`], [`PeerId`], [`Path`].

mod child;
mod drop;
mod gso;
mod identity;
mod path;
mod port;
mod rng;
mod secret;
mod selector;
mod spi;
mod suite;
mod time;

pub use child::{ChildSaParams, Lifetime, SaKey, Ticket};
pub use drop::{DropReason, Drops};
pub use gso::Gso;
pub use identity::{PeerId, PeerIndex};
pub use path::{Path, Transport};
pub use port::{PortMapping, Protocol};
pub use rng::{Rng, SeededRng};
pub use secret::Secret;
pub use selector::TrafficSelector;
pub use spi::{IkeSpi, Spi, WorkerIndex};
pub use suite::{AeadAlgorithm, ChildSuite, IkeSuite, KeGroup, PrfAlgorithm};
pub use time::Instant;

/// By this name containers choose the default network, whatever its own name is.
pub const MANAGED: &str = "managed";
