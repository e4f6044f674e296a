//! One CHILD_SA as IKE sees it: where it stands between negotiation and deletion. Its keys went to the data plane and are not
//! kept here.
//!
//! ```text
//! Installing -> Standby -> Active -> Superseded -> Deleting -> (gone)
//! ```
//!
//! *Standby* receives and does not send; *Superseded* has a successor that sends and waits for its Delete.

use bytes::Bytes;

use super::shared::Shared;
use super::{ChildSummary, Event};
use crate::model::{ChildSaParams, ChildSuite, Instant, Spi, Ticket, TrafficSelector, WorkerIndex};

/// What happens when the data plane has installed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// We asked for it: use it, and delete the SA that it replaces.
    UseAndDelete(Option<Spi>),
    /// We were asked for it: let the answer go, and use it if there is nothing else.
    Answer,
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The data plane was asked to install it.
    Installing(Ticket, Then),
    /// Inbound works; outbound waits for the peer to use it.
    Standby,
    /// Both work.
    Active,
    /// Another one sends in its place.
    Superseded,
    /// We want it gone: our Delete is queued or on its way.
    Deleting,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Child {
    pub inbound_spi: Spi,
    /// None if the peer's answer could not be read: then it exists at the peer only, and is deleted.
    pub outbound_spi: Option<Spi>,
    pub suite: Option<ChildSuite>,
    pub local_selectors: Vec<TrafficSelector>,
    pub remote_selectors: Vec<TrafficSelector>,
    pub phase: Phase,
    /// Whether it is for the worker that owns it only (RFC 9611); else it is one that every worker may fall back to.
    pub per_worker: bool,
    /// Whether we asked for it.
    pub ours: bool,
    /// The lower of the two nonces of its exchange: decides collisions (RFC 7296 §2.8.1).
    pub low_nonce: Bytes,
    /// When it was agreed on.
    pub since: Instant,
    /// When we rekey it.
    pub soft_at: Instant,
    /// When we end it, replaced or not.
    pub hard_at: Instant,
    /// The SA that replaces it.
    pub successor: Option<Spi>,
}

impl Child {
    /// A negotiated SA that is about to be installed.
    pub fn new(params: &ChildSaParams, phase: Phase, ours: bool, low_nonce: Bytes, now: Instant) -> Self {
        Self {
            inbound_spi: params.inbound_spi,
            outbound_spi: Some(params.outbound_spi),
            suite: Some(params.suite),
            local_selectors: params.local_selectors.clone(),
            remote_selectors: params.remote_selectors.clone(),
            phase,
            per_worker: false,
            ours,
            low_nonce,
            since: now,
            soft_at: now + params.lifetime.soft,
            hard_at: now + params.lifetime.hard,
            successor: None,
        }
    }

    /// One that we asked for and do not want: only its Delete is left to do.
    pub fn unwanted(inbound_spi: Spi, outbound_spi: Option<Spi>, low_nonce: Bytes, now: Instant) -> Self {
        Self {
            inbound_spi,
            outbound_spi,
            suite: None,
            local_selectors: Vec::new(),
            remote_selectors: Vec::new(),
            phase: Phase::Deleting,
            per_worker: false,
            ours: true,
            low_nonce,
            since: now,
            soft_at: now,
            hard_at: now,
            successor: None,
        }
    }

    /// Whether it carries traffic or is about to, with nothing in its place.
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Installing(..) | Phase::Standby | Phase::Active) && self.successor.is_none()
    }

    /// Our worker that owns it.
    pub const fn owner(&self) -> WorkerIndex {
        self.inbound_spi.owner()
    }

    /// What it is for: none is everything, else the worker.
    pub fn purpose(&self) -> Option<WorkerIndex> {
        self.per_worker.then(|| self.owner())
    }

    /// Whether it may be rekeyed.
    pub const fn can_be_rekeyed(&self) -> bool {
        matches!(self.phase, Phase::Standby | Phase::Active) && self.successor.is_none()
    }

    /// Sends with it from now on.
    pub fn activate(&mut self, shared: &mut Shared) {
        if self.phase != Phase::Active {
            self.phase = Phase::Active;
            shared.event(Event::Activate { spi: self.inbound_spi });
        }
    }

    /// Tells the data plane that it is gone.
    pub fn retire(&self, shared: &mut Shared, at_once: bool) {
        if self.suite.is_some() {
            shared.retire_spi(self.inbound_spi, at_once);
        } else {
            shared.release_spi(self.inbound_spi);
        }
    }

    /// For `status`.
    pub fn summary(&self) -> Option<ChildSummary> {
        Some(ChildSummary {
            inbound_spi: self.inbound_spi,
            outbound_spi: self.outbound_spi?,
            suite: self.suite?,
            per_worker: self.per_worker,
            local_selectors: self.local_selectors.clone(),
            remote_selectors: self.remote_selectors.clone(),
        })
    }
}
