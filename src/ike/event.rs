//! What goes in and out of the endpoint besides datagrams.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::ProvedBy;
use crate::model::{
    ChildSaParams, ChildSuite, IkeSpi, IkeSuite, Instant, Path, PeerIndex, Spi, Ticket, TrafficSelector, Transport,
    WorkerIndex,
};

/// A datagram to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// From where to where.
    pub path: Path,
    /// Whether the non-ESP marker goes in front (it is not in `message`).
    pub transport: Transport,
    /// The IKE message.
    pub message: Bytes,
}

/// What the endpoint is asked to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Start an IKE_SA_INIT with this peer, beside whatever there is already. While an initiation of ours is open, this asks
    /// for that one: how it ends is told again.
    Initiate(PeerIndex),
    /// Ask whether the peer is there: an empty INFORMATIONAL on its IKE SA (none: nothing happens). Ends in
    /// [`Event::Proof`], or in [`Event::ProbeLost`] once three transmissions stayed unanswered for about five seconds.
    Probe(PeerIndex),
    /// Replace the IKE SA now.
    RekeyIke(PeerIndex),
    /// Ask for a CHILD_SA now if the peer's IKE SA has none. It would do so by itself, after a pause that grows with each failure.
    CreateChild(PeerIndex),
    /// This worker has packets for the peer and no CHILD_SA of its own: ask for one (RFC 9611), unless the peer is foreign, does
    /// not want more, or made one for it meanwhile.
    CreateWorkerChild(PeerIndex, WorkerIndex),
    /// The CHILD_SA for a single worker that we receive on with this SPI is idle: delete it, if it was we who asked for it.
    RetireWorkerChild(Spi),
    /// Replace the CHILD_SA that we receive on with this SPI, now.
    RekeyChild(Spi),
    /// The CHILD_SA that we receive on with this SPI ended hard: no sequence number is left, or it was never replaced in time.
    /// Delete it and make a new one.
    ChildExpired(Spi),
    /// The first authenticated packet came in on this SPI: its outbound twin may be used.
    InboundUsed(Spi),
    /// The newest authenticated, fresh packet of the peer came in on this SPI, then: it lives (RFC 7296 §2.4).
    Heard(Spi, Instant),
    /// The data plane did what the event with this ticket asked for.
    Installed(Ticket),
    /// An authenticated, fresh ESP packet of the peer came from here.
    AddressSeen(Spi, Path),
    /// Where this host is.
    Places {
        /// The addresses that it can be reached at.
        addresses: Vec<IpAddr>,
        /// Of these peers, the first address, which our messages to them leave from, is gone; the kernel would send from the
        /// second.
        moves: Vec<(PeerIndex, IpAddr, IpAddr)>,
    },
    /// Delete every SA of the peer, telling it; its configuration stays.
    Close(PeerIndex),
    /// Delete those IKE SAs of the peer that it proved itself for with something that its configuration does not accept any more.
    Revoke(PeerIndex),
}

/// What the data plane and the reconciler must do or know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An inbound SPI is spoken for but has no key yet: park what arrives on it.
    Reserve {
        /// Ours.
        spi: Spi,
        /// Whose.
        peer: PeerIndex,
    },
    /// A reserved SPI will not get a key: forget what was parked.
    Release {
        /// Ours.
        spi: Spi,
    },
    /// Install the inbound half, then answer with [`Command::Installed`]. The outbound half is kept as standby.
    Install {
        /// Both halves.
        child: Box<ChildSaParams>,
        /// Whether it is for the worker that owns it only; else every worker may fall back to it (RFC 9611).
        per_worker: bool,
        /// What to answer with.
        ticket: Ticket,
    },
    /// Send with the outbound half of this SA from now on.
    Activate {
        /// Names the SA by our inbound SPI.
        spi: Spi,
    },
    /// The SA was replaced or deleted. Its outbound half ends now (if it was active, the newest standby takes over), its
    /// inbound half after the grace time, so that packets under way still get in.
    Retire {
        /// Names the SA by our inbound SPI.
        spi: Spi,
        /// True: also the inbound half ends now.
        at_once: bool,
    },
    /// The peer's SAs send to a new path.
    PathChanged {
        /// Names the SA by our inbound SPI.
        spi: Spi,
        /// The new one.
        path: Path,
    },
    /// An IKE SA with the peer came up, or replaced one (also by rekey).
    IkeUp {
        /// Who.
        peer: PeerIndex,
        /// What.
        summary: Box<IkeSummary>,
    },
    /// One of its ends was found elsewhere and the IKE SA went there, or there is other news about NATs on its path.
    IkeMoved {
        /// Who.
        peer: PeerIndex,
        /// As it is from now on.
        summary: Box<IkeSummary>,
    },
    /// An IKE SA is gone. The peer may have others.
    IkeDown {
        /// Who.
        peer: PeerIndex,
        /// Which, by our SPI.
        spi: IkeSpi,
        /// Why.
        reason: CloseReason,
    },
    /// An initiation of ours failed; the reconciler decides when to try again.
    InitiateFailed {
        /// Who.
        peer: PeerIndex,
        /// Why.
        reason: CloseReason,
    },
    /// An initiation of ours meets trouble and goes on. For people only: nobody proved it.
    Trouble {
        /// Who.
        peer: PeerIndex,
        /// What.
        reason: CloseReason,
    },
    /// The IKE SA is up, but has no CHILD_SA because of this.
    ChildFailed {
        /// Who.
        peer: PeerIndex,
        /// Why.
        reason: CloseReason,
    },
    /// The peer makes no more CHILD_SAs for single workers because of this; those that have none fall back to the first.
    WorkerChildRefused {
        /// Who.
        peer: PeerIndex,
        /// Why.
        reason: CloseReason,
    },
    /// The peer answered a request of ours that was sent at `asked`: authenticated proof of both directions.
    Proof {
        /// Who.
        peer: PeerIndex,
        /// When the answered transmission left at the earliest.
        asked: Instant,
    },
    /// An authenticated request of the peer arrived: proof of the inbound direction only.
    Heard {
        /// Who.
        peer: PeerIndex,
    },
    /// A probe stayed unanswered.
    ProbeLost {
        /// Who.
        peer: PeerIndex,
    },
    /// Somebody at the peer's address says, without proof, that it does not know our IKE SA or SPI.
    Hint {
        /// Who.
        peer: PeerIndex,
    },
    /// A line for the log: what was refused and why, with ours, theirs and the first thing that does not match.
    Refused {
        /// Who, if that is known.
        peer: Option<PeerIndex>,
        /// From where.
        path: Path,
        /// The sentence.
        reason: CloseReason,
    },
}

/// Why something ended or was refused. The display is one line for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// Nobody answered.
    Timeout,
    /// An initiation was not answered.
    NoAnswer {
        /// The exchange, such as IKE_AUTH.
        request: &'static str,
        /// Where it went.
        remote: SocketAddr,
        /// The port on which the peer did answer before.
        answered_on: Option<u16>,
    },
    /// The peer's answer was this error notify; `authenticated` says whether it could be forged.
    PeerRefused {
        /// Name of the notify, such as NO_PROPOSAL_CHOSEN.
        notify: String,
        /// Whether an ICV covered it.
        authenticated: bool,
    },
    /// We refused; the sentence says ours, theirs and what does not match.
    WeRefused(String),
    /// The peer deleted it.
    PeerDeleted,
    /// We were told to close it.
    Closed,
    /// Another SA with the same peer took its place.
    Replaced,
    /// Its lifetime ended.
    Expired,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => write!(f, "no answer"),
            Self::NoAnswer { request, remote, answered_on: None } => write!(f, "no answer to {request} from {remote}"),
            Self::NoAnswer { request, remote, answered_on: Some(other) } => {
                let port = remote.port();
                write!(f, "no answer to {request} from {remote}, which did answer on port {other}: ")?;
                write!(f, "does a firewall stop UDP port {port}?")
            }
            Self::PeerRefused { notify, authenticated: true } => write!(f, "the peer refused: {notify}"),
            Self::PeerRefused { notify, authenticated: false } => write!(f, "the peer refused (unauthenticated): {notify}"),
            Self::WeRefused(sentence) => write!(f, "{sentence}"),
            Self::PeerDeleted => write!(f, "the peer deleted it"),
            Self::Closed => write!(f, "closed"),
            Self::Replaced => write!(f, "another SA took its place"),
            Self::Expired => write!(f, "its lifetime ended"),
        }
    }
}

/// An IKE SA, for `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeSummary {
    /// Our SPI.
    pub local_spi: IkeSpi,
    /// The peer's SPI.
    pub remote_spi: IkeSpi,
    /// Whether we are its original initiator.
    pub initiator: bool,
    /// Whether the peer is one of our own hosts.
    pub kin: bool,
    /// Suite.
    pub suite: IkeSuite,
    /// Whether its keys also come from a post-quantum key exchange, its own or that of an IKE SA that it replaced.
    pub post_quantum: bool,
    /// What we proved ourselves with.
    pub local_proof: ProvedBy,
    /// What the peer proved itself with.
    pub remote_proof: ProvedBy,
    /// When it came up.
    pub established: Instant,
    /// When it will be rekeyed by us.
    pub rekey_at: Instant,
    /// Where its messages travel.
    pub path: Path,
    /// IKE port or NAT-T port.
    pub transport: Transport,
    /// Whether a NAT hides us: from the peer's destination hash.
    pub local_behind_nat: Option<bool>,
    /// Whether a NAT hides the peer; none if it may have faked its source hash (forced encapsulation).
    pub remote_behind_nat: Option<bool>,
}

/// A CHILD_SA, for `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildSummary {
    /// Ours.
    pub inbound_spi: Spi,
    /// The peer's.
    pub outbound_spi: Spi,
    /// Suite.
    pub suite: ChildSuite,
    /// Whether it is for the worker that owns it only.
    pub per_worker: bool,
    /// What may flow, on our side.
    pub local_selectors: Vec<TrafficSelector>,
    /// What may flow, on the peer's side.
    pub remote_selectors: Vec<TrafficSelector>,
}
