//! What people and programs see of a running agent: the status model, its JSON and its screen, and the log.
//!
//! The agent fills a [`Status`]; the control socket carries it as JSON; `underpass status` prints it as it came (`--json`) or
//! through [`render_status`]. One model for both, so the screen cannot say what the JSON does not.

mod containers;
mod hosts;
mod log;
mod networks;
mod render;
mod status;

pub use containers::{Container, ContainerState, Containers, DockerLink, render_containers};
pub use hosts::{Host, Hosts, render_host, render_hosts};
pub use log::init_log;
pub use networks::{Disconnected, Network};
pub use render::{counted, duration_in_words, plain, render_peer, render_status, table};
pub use status::{
    Change, Child, ControlCounters, Drops, Ike, Peer, PeerDirection, PeerState, Peers, Remark, STATUS_SCHEMA, Sockets,
    Status, Store, Tristate, Tun, Worker,
};
