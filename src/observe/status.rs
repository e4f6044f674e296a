//! The status model: what `status --json` prints, field by field (schema `underpass.status/1`).
//!
//! A field that is not known is `null`, never left out, so that a reader can tell "unknown" from "an older agent". Fields
//! may be added under the same schema; a change of meaning or a removal takes a new one. SPIs are hexadecimal text, since
//! JSON numbers end at 53 bits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Disconnected, Network};
use crate::model::{self, DropReason};

/// The `schema` of [`Status`].
pub const STATUS_SCHEMA: &str = "underpass.status/1";

/// The `schema` of [`Peers`].
const PEERS_SCHEMA: &str = "underpass.peers/1";

/// Everything about a running agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_SCHEMA`].
    pub schema: String,
    /// The agent's version.
    pub version: String,
    /// The host's name in the overlay.
    pub host: String,
    /// Where other hosts reach this one, as `host.advertise` says; the addresses of the interfaces that it names.
    #[serde(default)]
    pub advertise: Vec<String>,
    /// Where the other hosts are listed; none if peers are listed by hand alone.
    #[serde(default)]
    pub store: Option<Store>,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// The device; none before it is open.
    pub tun: Option<Tun>,
    /// The sockets that ESP travels by; none before they are open.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// What this kernel, or the route of the moment, does not do; packets go another way, which costs time.
    #[serde(default)]
    pub fallbacks: Vec<Remark>,
    /// The workers, by number.
    #[serde(default)]
    pub workers: Vec<Worker>,
    /// Every configured peer, by name.
    pub peers: Vec<Peer>,
    /// Networks of this host.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Containers whose network was removed by force.
    #[serde(default)]
    pub disconnected: Vec<Disconnected>,
    /// Dropped packets by reason: only those that happened.
    pub drops: Drops,
    /// The control socket's own counters.
    pub control: ControlCounters,
    /// What an operator should know and that did not stop the agent, one sentence each.
    pub warnings: Vec<String>,
}

impl Status {
    /// An agent that has only just started.
    #[must_use]
    pub fn new(host: &str) -> Self {
        Self {
            schema: STATUS_SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host.to_owned(),
            advertise: Vec::new(),
            store: None,
            uptime_seconds: 0,
            tun: None,
            sockets: None,
            fallbacks: Vec::new(),
            workers: Vec::new(),
            peers: Vec::new(),
            networks: Vec::new(),
            disconnected: Vec::new(),
            drops: Drops::default(),
            control: ControlCounters::default(),
            warnings: Vec::new(),
        }
    }

    /// Whether some peer does not have the tunnel that it should have, or some container not its network.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        let failed = self.networks.iter().any(|network| network.problem.is_some());
        failed || !self.disconnected.is_empty() || self.peers.iter().any(|peer| !peer.state.is_fine())
    }
}

/// The answer to `peers`: some or all of [`Status::peers`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peers {
    /// `underpass.peers/1`.
    pub schema: String,
    /// The peers asked for.
    pub peers: Vec<Peer>,
}

impl Peers {
    /// Wraps them.
    #[must_use]
    pub fn new(peers: Vec<Peer>) -> Self {
        Self { schema: PEERS_SCHEMA.to_owned(), peers }
    }
}

/// The store of hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Store {
    /// `file` or `etcd`.
    pub kind: String,
    /// The file, or the servers.
    pub place: String,
    /// `full` or `on-demand`: when tunnels to its hosts are made.
    pub mesh: String,
    /// Whether it can be read. If not, everything stays as it said last.
    pub reachable: bool,
    /// Since when it cannot be read.
    pub unreachable_seconds: Option<u64>,
    /// Why.
    pub last_error: Option<String>,
    /// Since it said something new.
    pub changed_seconds: Option<u64>,
    /// The revision of that, in etcd.
    pub revision: Option<u64>,
    /// How many hosts it lists, this one among them; none if it was never read.
    pub hosts: Option<u64>,
    /// Whether one shared key stands for all hosts.
    pub group_key: bool,
}

/// The TUN device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tun {
    /// Interface name.
    pub name: String,
    /// In octets.
    pub mtu: u16,
    /// Queues, which is also the number of workers.
    pub queues: u16,
    /// `offload` or `plain`.
    pub backend: String,
    /// What travels as super-packets between the host's stack and the agent: `tcp`, `udp`. What the kernel refuses is missing.
    #[serde(default)]
    pub offloads: Vec<String>,
    /// Packets and super-packets that we asked the kernel to let wait for a queue of the device.
    #[serde(default)]
    pub txqueuelen_wanted: Option<u32>,
    /// What it granted.
    #[serde(default)]
    pub txqueuelen: Option<u32>,
}

/// The sockets that ESP travels by. Where workers differ, the worst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sockets {
    /// Octets that we asked the kernel to hold, each way.
    pub wanted_octets: u64,
    /// What it granted for datagrams that came in.
    pub receive_octets: u64,
    /// And for those that are to leave.
    pub send_octets: u64,
    /// Datagrams that leave with one system call as a train, at most; 1 without UDP_SEGMENT.
    pub train: u64,
}

/// A name for programs and a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remark {
    /// Which one.
    pub name: String,
    /// What it means.
    pub text: String,
}

/// One worker: the thread that owns the TUN queue, the socket and the SAs of its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub worker: u8,
    /// Inner packets that its SAs opened.
    pub inbound_packets: u64,
    /// Their octets.
    pub inbound_octets: u64,
    /// Inner packets that its SAs sealed.
    pub outbound_packets: u64,
    /// Their octets.
    pub outbound_octets: u64,
    /// ESP datagrams that came to its socket and that it handed to the worker whose SPI they bear.
    pub inbound_strays: u64,
    /// What it read from its TUN queue (packets or super-packets) and handed to a worker that has an SA for it.
    pub outbound_strays: u64,
}

/// One peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its name in the configuration.
    pub name: String,
    /// Whether traffic flows.
    pub state: PeerState,
    /// With `one-way`: the direction that is dead, seen from here.
    pub dead_direction: Option<PeerDirection>,
    /// The address, or address and port, that the configuration gives; none if we wait for the peer.
    pub configured_address: Option<String>,
    /// Where it is: the address and port seen last.
    pub remote: Option<SocketAddr>,
    /// The largest inner packet that the path to it carries whole, in octets; none before the path was looked at.
    pub mtu: Option<u16>,
    /// Whether a NAT hides us from it.
    pub local_behind_nat: Tristate,
    /// Whether a NAT hides it from us.
    pub remote_behind_nat: Tristate,
    /// The IKE SA in use.
    pub ike: Option<Ike>,
    /// Its CHILD_SAs.
    pub children: Vec<Child>,
    /// Seconds since the last authenticated proof that both directions work.
    pub last_proof_seconds: Option<u64>,
    /// What went wrong last, until the peer is up again.
    pub last_error: Option<String>,
    /// Until the next attempt, if one is scheduled.
    pub next_attempt_seconds: Option<u64>,
    /// Packets to and from it that were dropped, by reason; they are in the host's counters too.
    // Agents that still run from before an upgrade do not say.
    #[serde(default)]
    pub drops: Drops,
    /// The last changes, oldest first.
    pub history: Vec<Change>,
}

impl Peer {
    /// A configured peer of which nothing is known yet.
    #[must_use]
    pub fn new(name: &str, state: PeerState) -> Self {
        Self {
            name: name.to_owned(),
            state,
            dead_direction: None,
            configured_address: None,
            remote: None,
            mtu: None,
            local_behind_nat: Tristate::Unknown,
            remote_behind_nat: Tristate::Unknown,
            ike: None,
            children: Vec::new(),
            last_proof_seconds: None,
            last_error: None,
            next_attempt_seconds: None,
            drops: Drops::default(),
            history: Vec::new(),
        }
    }
}

/// Something that happened to a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// How long ago.
    pub seconds_ago: u64,
    /// One sentence.
    pub text: String,
}

/// Whether traffic flows to and from a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// An authenticated two-way proof is younger than 15 seconds.
    Up,
    /// There are SAs, but one direction has stopped.
    OneWay,
    /// An on-demand peer, or one that must call us, that waits.
    Idle,
    /// The first attempt is under way.
    Connecting,
    /// An attempt failed; another one is under way or scheduled.
    Retrying,
    /// There was a tunnel and it is dead, or there is an IKE SA that carries no traffic. It is being mended, or the peer is to
    /// call again.
    Down,
}

impl PeerState {
    /// The word, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::OneWay => "one-way",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Retrying => "retrying",
            Self::Down => "down",
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_fine(self) -> bool {
        matches!(self, Self::Up | Self::Idle)
    }
}

/// A direction, seen from this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerDirection {
    /// From the peer to us.
    Inbound,
    /// From us to the peer.
    Outbound,
}

/// Yes, no or unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tristate {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It cannot be told.
    #[default]
    Unknown,
}

impl From<Option<bool>> for Tristate {
    fn from(value: Option<bool>) -> Self {
        match value {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Unknown,
        }
    }
}

/// An IKE SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ike {
    /// AEAD, PRF and key exchanges, such as `aes256gcm16-prfsha256-x25519-ke1_mlkem768`.
    pub suite: String,
    /// Whether its keys also come from a post-quantum key exchange: its own, or that of an IKE SA that it replaced.
    #[serde(default)]
    pub post_quantum: bool,
    /// What we proved ourselves with: `shared key`, or `Ed25519 key` and the key in base64.
    #[serde(default)]
    pub local_proof: Option<String>,
    /// What the peer proved itself with.
    #[serde(default)]
    pub remote_proof: Option<String>,
    /// Ours, 16 hexadecimal digits.
    pub local_spi: String,
    /// The peer's, 16 hexadecimal digits.
    pub remote_spi: String,
    /// Since it came up.
    pub age_seconds: u64,
    /// Until we replace it; none if we will not.
    pub rekey_in_seconds: Option<u64>,
    /// Whether we began it.
    pub initiator: bool,
}

/// A CHILD_SA, both directions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Child {
    /// Ours, 8 hexadecimal digits.
    pub inbound_spi: String,
    /// The peer's, 8 hexadecimal digits.
    pub outbound_spi: String,
    /// AEAD, key exchange if there was one of its own, `esn` or `noesn`.
    pub suite: String,
    /// Whether we send with it; others are about to take over, or only receive what is still under way.
    pub active: bool,
    /// Our worker that owns it.
    #[serde(default)]
    pub worker: u8,
    /// Whether it is for this worker only; else every worker may fall back to it.
    #[serde(default)]
    pub per_worker: bool,
    /// Since it came up.
    pub age_seconds: u64,
    /// Inner packets that came in.
    pub inbound_packets: u64,
    /// Their octets.
    pub inbound_octets: u64,
    /// Inner packets that went out.
    pub outbound_packets: u64,
    /// Their octets.
    pub outbound_octets: u64,
    /// Traffic selectors on our side.
    pub local: Vec<String>,
    /// Traffic selectors on the peer's side.
    pub remote: Vec<String>,
}

/// Dropped packets: reason and count.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drops(pub BTreeMap<String, u64>);

impl Drops {
    /// Adds the counters of one worker, or of IKE.
    pub fn add(&mut self, counters: &model::Drops) {
        for (reason, count) in counters.nonzero() {
            self.add_one(reason, count);
        }
    }

    /// Adds to one counter.
    pub fn add_one(&mut self, reason: DropReason, count: u64) {
        *self.0.entry(reason.name().to_owned()).or_insert(0) += count;
    }
}

/// What the control socket counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ControlCounters {
    /// Requests answered.
    pub requests: u64,
    /// Requests that made no sense.
    pub malformed: u64,
    /// Connections turned away: not root and not the agent's user, or too many at once.
    pub refused: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise of `underpass.status/1`, written out: whoever changes this breaks somebody's monitoring.
    #[test]
    fn json_is_what_the_schema_says() {
        let mut status = Status::new("alpha");
        status.tun = Some(Tun {
            name: "underpass0".into(),
            mtu: 1400,
            queues: 2,
            backend: "offload".into(),
            offloads: vec!["tcp".into(), "udp".into()],
            txqueuelen_wanted: Some(1000),
            txqueuelen: Some(500),
        });
        status.sockets =
            Some(Sockets { wanted_octets: 4_194_304, receive_octets: 212_992, send_octets: 4_194_304, train: 128 });
        status.store = Some(Store {
            kind: "etcd".into(),
            place: "http://127.0.0.1:2379".into(),
            mesh: "full".into(),
            reachable: false,
            unreachable_seconds: Some(7),
            last_error: Some("refused".into()),
            changed_seconds: Some(9),
            revision: Some(12),
            hosts: Some(3),
            group_key: false,
        });
        status.fallbacks.push(Remark { name: "trains".into(), text: "one by one".into() });
        status.workers.push(Worker { worker: 0, inbound_packets: 1, inbound_octets: 84, ..Worker::default() });
        let mut peer = Peer::new("beta", PeerState::OneWay);
        peer.dead_direction = Some(PeerDirection::Inbound);
        peer.remote = Some("192.0.2.2:4500".parse().unwrap());
        peer.mtu = Some(1238);
        peer.local_behind_nat = Some(true).into();
        peer.remote_behind_nat = None.into();
        peer.ike = Some(Ike {
            suite: "aes256gcm16-prfsha256-x25519-ke1_mlkem768".into(),
            post_quantum: true,
            local_proof: None,
            remote_proof: None,
            local_spi: "0123456789abcdef".into(),
            remote_spi: "fedcba9876543210".into(),
            age_seconds: 61,
            rekey_in_seconds: Some(14000),
            initiator: true,
        });
        peer.children.push(Child {
            inbound_spi: "c0000100".into(),
            outbound_spi: "c0000201".into(),
            suite: "aes256gcm16-esn".into(),
            active: true,
            worker: 1,
            per_worker: true,
            age_seconds: 60,
            inbound_packets: 1,
            inbound_octets: 84,
            outbound_packets: 2,
            outbound_octets: 168,
            local: vec!["10.42.1.0/24".into()],
            remote: vec!["10.42.2.0/24".into()],
        });
        peer.last_proof_seconds = Some(16);
        peer.last_error = Some("no answer".into());
        peer.configured_address = Some("192.0.2.2".into());
        peer.next_attempt_seconds = Some(7);
        peer.history.push(Change { seconds_ago: 9, text: "up".into() });
        status.peers.push(peer);
        status.peers.push(Peer::new("gamma", PeerState::Idle));
        status.networks.push(Network {
            name: "ipsec".into(),
            managed: true,
            driver: "Rancher IPsec".into(),
            state: "failed".into(),
            subnets: vec!["10.42.0.0/16".into()],
            problem: Some("a file".into()),
        });
        status.disconnected.push(Disconnected {
            network: "blue".into(),
            container: "c1".into(),
            interface: "eth0".into(),
            addresses: vec!["10.43.1.2".into()],
            seconds_ago: 7,
        });
        status.drops.add_one(DropReason::Replay, 3);
        let expected = serde_json::json!({
            "schema": "underpass.status/1",
            "version": env!("CARGO_PKG_VERSION"),
            "host": "alpha",
            "advertise": [],
            "store": {
                "kind": "etcd", "place": "http://127.0.0.1:2379", "mesh": "full", "reachable": false, "unreachable_seconds": 7,
                "last_error": "refused", "changed_seconds": 9, "revision": 12, "hosts": 3, "group_key": false
            },
            "uptime_seconds": 0,
            "tun": {
                "name": "underpass0", "mtu": 1400, "queues": 2, "backend": "offload", "offloads": ["tcp", "udp"],
                "txqueuelen_wanted": 1000, "txqueuelen": 500
            },
            "sockets": {"wanted_octets": 4_194_304, "receive_octets": 212_992, "send_octets": 4_194_304, "train": 128},
            "fallbacks": [{"name": "trains", "text": "one by one"}],
            "workers": [{
                "worker": 0, "inbound_packets": 1, "inbound_octets": 84, "outbound_packets": 0, "outbound_octets": 0,
                "inbound_strays": 0, "outbound_strays": 0
            }],
            "peers": [
                {
                    "name": "beta", "state": "one-way", "dead_direction": "inbound", "configured_address": "192.0.2.2", "remote": "192.0.2.2:4500",
                    "mtu": 1238,
                    "local_behind_nat": "yes", "remote_behind_nat": "unknown",
                    "ike": {
                        "suite": "aes256gcm16-prfsha256-x25519-ke1_mlkem768", "post_quantum": true,
                        "local_proof": null, "remote_proof": null,
                        "local_spi": "0123456789abcdef",
                        "remote_spi": "fedcba9876543210", "age_seconds": 61, "rekey_in_seconds": 14000, "initiator": true
                    },
                    "children": [{
                        "inbound_spi": "c0000100", "outbound_spi": "c0000201", "suite": "aes256gcm16-esn",
                        "active": true, "worker": 1, "per_worker": true, "age_seconds": 60,
                        "inbound_packets": 1, "inbound_octets": 84, "outbound_packets": 2, "outbound_octets": 168,
                        "local": ["10.42.1.0/24"], "remote": ["10.42.2.0/24"]
                    }],
                    "last_proof_seconds": 16, "last_error": "no answer", "next_attempt_seconds": 7,
                    "drops": {}, "history": [{"seconds_ago": 9, "text": "up"}]
                },
                {
                    "name": "gamma", "state": "idle", "dead_direction": null, "configured_address": null, "remote": null,
                    "mtu": null,
                    "local_behind_nat": "unknown", "remote_behind_nat": "unknown", "ike": null, "children": [],
                    "last_proof_seconds": null, "last_error": null, "next_attempt_seconds": null,
                    "drops": {}, "history": []
                }
            ],
            "networks": [{
                "name": "ipsec", "managed": true, "driver": "Rancher IPsec", "state": "failed", "subnets": ["10.42.0.0/16"],
                "problem": "a file"
            }],
            "disconnected": [{
                "network": "blue", "container": "c1", "interface": "eth0", "addresses": ["10.43.1.2"], "seconds_ago": 7
            }],
            "drops": {"replay": 3},
            "control": {"requests": 0, "malformed": 0, "refused": 0},
            "warnings": []
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }

    #[test]
    fn every_state_is_named_in_json_as_in_words() {
        use PeerState::{Connecting, Down, Idle, OneWay, Retrying, Up};
        for (state, word) in [
            (Up, "up"),
            (OneWay, "one-way"),
            (Idle, "idle"),
            (Connecting, "connecting"),
            (Retrying, "retrying"),
            (Down, "down"),
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), word);
            assert_eq!(state.name(), word);
        }
    }

    #[test]
    fn only_up_and_idle_peers_are_fine() {
        let mut status = Status::new("alpha");
        assert!(!status.is_degraded());
        status.peers.push(Peer::new("beta", PeerState::Idle));
        status.peers.push(Peer::new("gamma", PeerState::Up));
        assert!(!status.is_degraded());
        for state in [PeerState::OneWay, PeerState::Connecting, PeerState::Retrying, PeerState::Down] {
            status.peers[1].state = state;
            assert!(status.is_degraded(), "{}", state.name());
        }
    }
}
