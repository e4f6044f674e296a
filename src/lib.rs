//! underpass: a userspace IPsec overlay for container hosts.
//!
//! A host agent reads overlay packets from a TUN device, seals them as ESP in UDP 4500 and sends them to the host that owns
//! the destination; an embedded IKEv2 machine keys the tunnels.
//!
//! ```text
//!   container -> TUN -> [engine: worker n] -> esp::DataPlane (route, SA, seal) -> UDP 4500 -> peer
//!                            ^   |                 ^   |
//!                     orders |   | events          |   | what IKE negotiated, make before break
//!                            |   v                 |   v
//!                       [engine: control] -> node::Node (reconciler, liveness) -> ike::Endpoint
//! ```
//!
//! # Map
//!
//! Imports run downwards only; `tests/tidy.rs` holds every path against the table.
//!
//! | module | pure | what it is |
//! |---|---|---|
//! | [`model`] | yes | the shared vocabulary: SPIs, selectors, suites, paths, secrets, drop reasons |
//! | [`wire`] | yes | octets to values and back, one parser for everything from the network |
//! | [`crypto`] | yes | AEADs, PRF, key exchange, signatures; the only place that names a cryptographic library |
//! | [`esp`] | yes | the data plane of one worker |
//! | [`ike`] | yes | the control plane: IKEv2 |
//! | [`node`] | yes | joins the two for one host, and keeps every peer connected |
//! | [`config`] | yes | the configuration as data, with places for messages |
//! | [`store`] | no | who is in the overlay: a file of hosts, or etcd |
//! | [`network`] | yes | network drivers and networks as data; which network a container gets |
//! | [`ipam`] | no | addresses of containers, in a journal on disk |
//! | [`attach`] | no | a container onto a network: wire, bridge, addresses, routes, and the fence around them |
//! | [`sys`] | no | system calls that no crate gives; the only `unsafe` |
//! | [`engine`] | no | threads, TUN and UDP batches |
//! | [`control`], [`observe`] | no | the control socket; what is shown |
//! | [`cni`] | no | plugins that container runtimes call, by the name of the program |
//! | [`docker`] | no | containers of Docker that get addresses by their labels |
//! | [`agent`], [`cli`] | no | desired state to running state; commands |
//!
//! # Invariants
//!
//! - Below `engine` nobody reads a clock, draws a random number, opens a socket or starts a thread: time and chance are
//!   arguments, so every failure replays from a seed.
//! - Nothing is installed, moved or deleted before the ICV or AUTH that asks for it was verified; a passed check is a value
//!   ([`ike::auth::Authenticated`]), and the replay window advances only behind the ICV.
//! - No end of an SA moves because a packet came from elsewhere: only when the peer has answered there.
//! - No AEAD nonce is used twice: the IV is the sequence number, sequence numbers never repeat, and keys never outlive the
//!   process.
//! - The inbound half of an SA is installed before the message leaves that lets the peer use it.
//! - Each packet that is thrown away is counted under a [`model::DropReason`].
//! - One worker owns an SA (between our own hosts each worker has one with each peer that it sends to); nothing on the packet path locks, allocates or logs.

pub mod agent;
pub mod attach;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod crypto;
pub mod docker;
pub mod engine;
pub mod esp;
#[doc(hidden)]
pub mod fuzzing;
pub mod ike;
pub mod ipam;
pub mod model;
pub mod network;
pub mod node;
pub mod observe;
pub mod store;
pub mod sys;
pub mod wire;
