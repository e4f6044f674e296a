//! The laboratory: hosts as network namespaces, links, NAT and loss between them, daemons on them, traffic and captures.
//!
//! Everything here panics with the whole story when a step fails: a test that cannot set up its world must not pass.
//! Everything that is made is removed on drop, also when a test panics; what a killed run left is swept by the next one.

pub mod agent;
pub mod command;
pub mod etcd;
pub mod flows;
pub mod net;
pub mod pluto;
pub mod site;
pub mod swan;
pub mod traces;
pub mod traffic;
pub mod vici;
pub mod wire;

use std::time::{Duration, Instant};

pub use command::{Daemon, attempt, run};
pub use net::{Host, Lab};
pub use swan::{Swan, SwanConfig};

/// A shared secret of the least length that is accepted without a warning.
pub const PSK: &str = "0123456789abcdef0123456789abcdef";

/// Asks every 50 ms until there is an answer; how long it took comes back with it.
///
/// # Panics
///
/// When there is none within `limit`: `what` says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return (answer, start.elapsed());
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
