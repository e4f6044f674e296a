//! What the control thread drives: a [`Node`], or in tests a script.

use crate::esp::{Event, Update};
use crate::ike::Transmit;
use crate::model::{Instant, Path, Transport, WorkerIndex};
use crate::node::{Node, Notice, Recipient};

/// A machine that decides, without sockets, clock or threads of its own. After each `handle_*` and each command the control
/// thread drains the `poll_*`: updates first, as a message may announce what an update installs.
pub trait Brain: Send + 'static {
    /// Takes an IKE message, without non-ESP marker.
    fn handle_ike(&mut self, now: Instant, path: Path, transport: Transport, message: &[u8]);
    /// Takes a worker's news.
    fn handle_event(&mut self, now: Instant, worker: WorkerIndex, event: Event);
    /// Learns what the path takes that a worker found narrow: the largest packet with its IP header, in octets.
    fn handle_path_mtu(&mut self, now: Instant, path: Path, mtu: u32);
    /// Lets time pass.
    fn handle_timeout(&mut self, now: Instant);
    /// The next update for workers.
    fn poll_update(&mut self) -> Option<(Recipient, Update)>;
    /// The next IKE message to be sent.
    fn poll_transmit(&mut self) -> Option<Transmit>;
    /// The next path that wants a NAT keepalive (RFC 3948 §2.3).
    fn poll_keepalive(&mut self) -> Option<Path>;
    /// The next sentence for the log.
    fn poll_notice(&mut self) -> Option<Notice>;
    /// When `handle_timeout` wants to be called next.
    fn poll_timeout(&self) -> Option<Instant>;
}

impl Brain for Node {
    fn handle_ike(&mut self, now: Instant, path: Path, transport: Transport, message: &[u8]) {
        self.handle_ike(now, path, transport, message);
    }

    fn handle_event(&mut self, now: Instant, _worker: WorkerIndex, event: Event) {
        self.handle_event(now, event);
    }

    fn handle_path_mtu(&mut self, now: Instant, path: Path, mtu: u32) {
        self.handle_path_mtu(now, path, mtu);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_update(&mut self) -> Option<(Recipient, Update)> {
        self.poll_update()
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.poll_transmit()
    }

    fn poll_keepalive(&mut self) -> Option<Path> {
        self.poll_keepalive()
    }

    fn poll_notice(&mut self) -> Option<Notice> {
        self.poll_notice()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
}
