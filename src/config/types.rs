//! What a configuration says, checked and with every default filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::Docker;
use super::drivers::{Cni, DriverSource};
use super::section::Placed;
use crate::crypto::VerifyingKey;
use crate::model::{AeadAlgorithm, PeerId, Secret};

/// The whole configuration of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// This host.
    pub host: Host,
    /// The TUN device.
    pub tun: Tun,
    /// This host's part of the overlay.
    pub overlay: Overlay,
    /// IKE and ESP.
    pub ipsec: Ipsec,
    /// The peers that are listed by hand; and, once an agent has joined them in, the hosts of the store.
    pub peers: Vec<Peer>,
    /// `store`: where the other hosts are listed, if anywhere.
    pub store: Option<Store>,
    /// `mesh`.
    pub mesh: Mesh,
    /// Where this host's network drivers stand.
    pub drivers: Vec<DriverSource>,
    /// Where container runtimes look.
    pub cni: Cni,
    /// `docker`, if its containers get addresses by their labels.
    pub docker: Option<Docker>,
    /// `host.labels`.
    pub labels: BTreeMap<String, String>,
}

/// `mesh`: when tunnels to hosts of the store are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mesh {
    /// At once, and kept.
    Full,
    /// When there is a packet for the host.
    OnDemand,
}

/// `store`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    /// A list of hosts in a file, the same on every host.
    File(Placed<PathBuf>),
    /// etcd.
    Etcd(Box<EtcdSettings>),
}

/// `store` with `kind: etcd`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdSettings {
    /// `endpoints`, asked in turn. Never empty.
    pub endpoints: Vec<EtcdEndpoint>,
    /// `prefix`: what every key begins with, without a slash at its end.
    pub prefix: String,
    /// `ca_file`: who may have issued the servers' certificates.
    pub ca_file: Option<Placed<PathBuf>>,
    /// `cert_file` and `key_file`: what this host shows the servers.
    pub certificate: Option<CertificateFiles>,
    /// `user` and `password_file`.
    pub login: Option<(String, Placed<PathBuf>)>,
    /// `subnets` of the network that this host makes if there is none in the store.
    pub subnets: Vec<IpNet>,
    /// `block`: the prefix length of a host's IPv4 block in that network.
    pub block: u8,
}

/// A server of etcd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdEndpoint {
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// `host`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// `name`: how this host is called in the overlay, and its IKE identity unless a peer's `local_id` says otherwise.
    pub name: String,
    /// `advertise`: how other hosts reach this one.
    pub advertise: Vec<Advertise>,
    /// `listen`.
    pub listen: Listen,
    /// `certificate_file` and `certificate_key_file`: what foreign peers know this host by.
    pub certificate: Option<CertificateFiles>,
}

/// Where this host's certificate and its private key lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    /// PEM, this host's own first, then those above it.
    pub chain: Placed<PathBuf>,
    /// PKCS#8 in PEM.
    pub key: Placed<PathBuf>,
}

/// One item of `host.advertise`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advertise {
    /// An address with the ordinary ports, or behind a forwarded NAT-T port.
    Address(IpAddr, Option<u16>),
    /// Every address of an interface: `iface:NAME`.
    Interface(String),
}

/// `host.listen`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen {
    /// `address`: unspecified for every address of the host.
    pub address: IpAddr,
    /// `ike_port`.
    pub ike_port: u16,
    /// `natt_port`.
    pub natt_port: u16,
}

/// `tun`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tun {
    /// `name`.
    pub name: String,
    /// `mtu`.
    pub mtu: Mtu,
    /// `queues`.
    pub queues: Queues,
    /// `pin`: whether each worker stays on a core of its own.
    pub pin: bool,
    /// `backend`.
    pub backend: Backend,
    /// `offload`: whether packets travel as super-packets between the host's stack and us, as far as the backend can.
    pub offload: bool,
}

/// `tun.mtu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mtu {
    /// From the path, [`Mtu::UNMEASURED`] until it is measured.
    Auto,
    /// This one, in octets.
    Fixed(u16),
}

impl Mtu {
    /// Octets of inner packet that fit through an Ethernet path of 1500 with room for PPPoE, IPv6 and every suite.
    pub const UNMEASURED: u16 = 1400;

    /// In octets.
    #[must_use]
    pub const fn initial(self) -> u16 {
        match self {
            Self::Auto => Self::UNMEASURED,
            Self::Fixed(mtu) => mtu,
        }
    }
}

/// `tun.queues`: how many workers there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queues {
    /// One per core.
    Auto,
    /// So many.
    Fixed(u8),
}

/// `tun.backend`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// The native one, with offloads where the kernel has them.
    Offload,
    /// The crate `tun-tap`: one queue, no offloads.
    Plain,
}

impl Backend {
    /// The word in configuration and `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Plain => "plain",
        }
    }
}

/// `overlay`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overlay {
    /// `address`: what the TUN device gets. At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `blocks`: the inner addresses that this host owns. Empty only where a store is to say them.
    pub blocks: Vec<IpNet>,
    /// Single addresses of containers here that are in none of the blocks: a store says them.
    pub singles: Vec<IpAddr>,
    /// Subnets of which a store has further single addresses, on request.
    pub beyond: Vec<IpNet>,
}

impl Overlay {
    /// Everything that is delivered on this host.
    pub fn prefixes(&self) -> Vec<IpNet> {
        self.blocks.iter().copied().chain(self.singles.iter().copied().map(IpNet::from)).collect()
    }
}

/// `ipsec`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ipsec {
    /// `ike_rekey`: age at which an IKE SA is replaced.
    pub ike_rekey: Duration,
    /// `child_rekey`: age at which a CHILD_SA is replaced.
    pub child_rekey: Duration,
    /// `replay_window`, in packets.
    pub replay_window: u32,
    /// `dpd`: the longest time without a two-way proof before one is asked for.
    pub dpd: Duration,
    /// `suites`, most wanted first: what peers have that do not say otherwise. Never empty.
    pub suites: Vec<AeadAlgorithm>,
    /// `require_pq`: what peers have that do not say otherwise.
    pub require_pq: bool,
}

/// One of `peers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// `name`, and where it stands.
    pub name: Placed<String>,
    /// `address`, or the first of them; none: we wait for it.
    pub remote: Option<PeerRemote>,
    /// Where else it may be: the other ones of `address`, most wanted first.
    pub alternatives: Vec<PeerRemote>,
    /// `local_id`.
    pub local_id: PeerId,
    /// `remote_id`.
    pub remote_id: PeerId,
    /// `psk`, `psk_file`, `public_key` or `ca_file`.
    pub auth: PeerAuth,
    /// Whether a shared key may have fewer octets than are asked for otherwise (32).
    pub allow_short_psk: bool,
    /// `suites`, most wanted first. Never empty.
    pub suites: Vec<AeadAlgorithm>,
    /// `require_pq`: whether a tunnel without post-quantum key exchange is refused.
    pub require_pq: bool,
    /// `local_blocks`: traffic selectors on our side. Empty: whatever this host owns.
    pub local_blocks: Vec<IpNet>,
    /// `remote_blocks`: what is routed to it, and traffic selectors on the peer's side. Empty only for a host of the store that has
    /// none yet.
    pub remote_blocks: Vec<IpNet>,
    /// Whether it is a host of the store. Then traffic selectors let everything pass and only routes say what may flow: blocks come
    /// and go, and tunnels stay.
    pub from_store: bool,
    /// Whether its tunnel waits for the first packet.
    pub on_demand: bool,
}

impl Peer {
    /// Every place where it may be, most wanted first.
    pub fn remotes(&self) -> impl Iterator<Item = PeerRemote> {
        self.remote.into_iter().chain(self.alternatives.iter().copied())
    }
}

/// Where a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PeerRemote {
    /// IKE begins at port 500, ESP goes to 4500.
    Standard(IpAddr),
    /// Everything goes to this NAT-T port.
    Natt(SocketAddr),
}

impl PeerRemote {
    /// Its address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        match self {
            Self::Standard(address) => *address,
            Self::Natt(endpoint) => endpoint.ip(),
        }
    }
}

impl fmt::Display for PeerRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(address) => address.fmt(f),
            Self::Natt(endpoint) => endpoint.fmt(f),
        }
    }
}

/// How a peer and this host prove themselves to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerAuth {
    /// A shared key.
    Psk(Secret),
    /// A shared key that is still in a file: [`resolve_keys`](super::resolve_keys) turns it into `Psk`.
    PskFile(Placed<PathBuf>),
    /// Ed25519 keys: ours from the state directory, the peer's is one of these. Never empty.
    PublicKeys(Vec<VerifyingKey>),
    /// Certificates: ours from `host.certificate_file`, the peer's by an authority in this file. [`resolve_keys`](super::resolve_keys)
    /// turns it into `Certificate`.
    CaFile(Placed<PathBuf>),
    /// Certificates: ours, and the authorities of the peer's.
    #[cfg(feature = "x509")]
    Certificate(crate::crypto::x509::Credential, std::sync::Arc<crate::crypto::x509::TrustAnchors>),
}
