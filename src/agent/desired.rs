//! The configuration in the words of the engine and the node.

use std::thread::available_parallelism;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Backend, Config, Peer, PeerAuth, PeerRemote, Queues, Report};
use crate::crypto::{Provider, SigningKey};
use crate::engine;
use crate::ike::{self, EndpointConfig, LocalAuth, PostQuantum, RemoteEndpoint};
use crate::model::{PeerIndex, TrafficSelector, WorkerIndex};
use crate::node::{NodeConfig, Wanted};
use crate::sys::tun::TunBackend;

/// More workers than this do not make one TUN device faster, however many cores there are.
const MAX_AUTO_WORKERS: usize = 64;

/// Whether some peer is to know us by our host key, or a store.
pub(super) fn wants_host_key(config: &Config) -> bool {
    config.store.is_some() || config.peers.iter().any(|peer| matches!(peer.auth, PeerAuth::PublicKeys(_)))
}

/// How many workers there are.
pub(super) fn workers(config: &Config) -> u8 {
    match (config.tun.backend, config.tun.queues) {
        (Backend::Plain, _) => 1,
        (Backend::Offload, Queues::Fixed(queues)) => queues,
        (Backend::Offload, Queues::Auto) => {
            available_parallelism().map_or(1, |cores| cores.get().min(MAX_AUTO_WORKERS)) as u8
        }
    }
}

/// What the engine is to be.
pub(super) fn engine(config: &Config, tun_mtu: u16) -> engine::Config {
    let listen = config.host.listen;
    engine::Config {
        listen: listen.address,
        ike_port: listen.ike_port,
        natt_port: listen.natt_port,
        tun_name: config.tun.name.clone(),
        tun_offload: config.tun.offload,
        tun_backend: match config.tun.backend {
            Backend::Offload => TunBackend::Offload,
            Backend::Plain => TunBackend::Plain,
        },
        tun_mtu,
        workers: workers(config),
        pin: config.tun.pin,
        provider: Provider::fastest(),
    }
}

/// What the node is to be, without its [`peers`].
pub(super) fn node(config: &Config, tun_mtu: u16) -> NodeConfig {
    NodeConfig {
        ike: EndpointConfig {
            ike_rekey: config.ipsec.ike_rekey,
            child_rekey: config.ipsec.child_rekey,
            replay_window: config.ipsec.replay_window,
            ike_port: config.host.listen.ike_port,
            natt_port: config.host.listen.natt_port,
            workers: workers(config),
        },
        workers: workers(config),
        tun_mtu,
        local_prefixes: config.overlay.prefixes(),
        probe_interval: config.ipsec.dpd,
        peers: Vec::new(),
    }
}

/// The peers. One that pins a key is left out if there is no host key to answer with; [`wants_host_key`] said so before.
pub(super) fn peers(config: &Config, host_keys: &[SigningKey]) -> Vec<Wanted> {
    let wanted = |peer: &Peer| {
        let ike = one_peer(config, peer, host_keys)?;
        Some(Wanted { ike, blocks: peer.remote_blocks.clone(), on_demand: peer.on_demand })
    };
    config.peers.iter().filter_map(wanted).collect()
}

fn one_peer(config: &Config, peer: &Peer, host_keys: &[SigningKey]) -> Option<ike::PeerConfig> {
    let (local_auth, remote_auth) = match &peer.auth {
        PeerAuth::Psk(secret) => (LocalAuth::Psk(secret.clone()), ike::PeerAuth::Psk(secret.clone())),
        PeerAuth::PublicKeys(_) if host_keys.is_empty() => return None,
        PeerAuth::PublicKeys(pins) => (LocalAuth::HostKeys(host_keys.to_vec()), ike::PeerAuth::HostKeys(pins.clone())),
        #[cfg(feature = "x509")]
        PeerAuth::Certificate(credential, anchors) => (
            LocalAuth::Certificate(credential.clone()),
            ike::PeerAuth::Certificate(ike::Authorities {
                anchors: anchors.clone(),
                wall_clock: crate::sys::clock::wall_clock,
            }),
        ),
        // Key files were read with the configuration.
        PeerAuth::PskFile(_) | PeerAuth::CaFile(_) => return None,
    };
    let selectors = |blocks: &[IpNet]| blocks.iter().copied().map(TrafficSelector::from_prefix).collect();
    let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let (local, remote) = match peer.from_store {
        true => (&everything[..], &everything[..]),
        false if peer.local_blocks.is_empty() => (&config.overlay.blocks[..], &peer.remote_blocks[..]),
        false => (&peer.local_blocks[..], &peer.remote_blocks[..]),
    };
    // Nothing can be agreed upon for no addresses at all.
    if local.is_empty() {
        return None;
    }
    Some(ike::PeerConfig {
        // The node gives the real ones.
        index: PeerIndex(0),
        owner: WorkerIndex(0),
        name: peer.name.value.clone(),
        local_id: peer.local_id.clone(),
        remote_id: peer.remote_id.clone(),
        local_auth,
        remote_auth,
        remote: peer.remote.map(endpoint),
        alternatives: peer.alternatives.iter().copied().map(endpoint).collect(),
        suites: peer.suites.clone(),
        post_quantum: if peer.require_pq { PostQuantum::Required } else { PostQuantum::Preferred },
        local_selectors: selectors(local),
        remote_selectors: selectors(remote),
    })
}

fn endpoint(remote: PeerRemote) -> RemoteEndpoint {
    match remote {
        PeerRemote::Standard(address) => RemoteEndpoint::Standard(address),
        PeerRemote::Natt(endpoint) => RemoteEndpoint::Natt(endpoint),
    }
}

/// A peer that pins our own key is a copy of somebody's mistake: whoever has that key is us.
pub(super) fn check_host_keys(config: &Config, host_keys: &[SigningKey], report: &mut Report) {
    for peer in &config.peers {
        let PeerAuth::PublicKeys(pins) = &peer.auth else { continue };
        if host_keys.iter().any(|key| pins.contains(&key.verifying_key())) {
            let key = peer.name.key.replace(".name", ".public_key");
            report.error(peer.name.line, key, "this is this host's own public key; the peer's is what it prints there");
        }
    }
}

/// Takes over from a new configuration what can be changed while packets flow. The rest stays as it is running; its keys are
/// returned.
pub(super) fn keep_running_parts(running: &Config, new: &mut Config) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |changed: bool, key: &'static str| {
        if changed {
            kept.push(key);
        }
    };
    keep(running.host.listen != new.host.listen, "host.listen");
    keep(running.tun != new.tun, "tun");
    keep(running.store != new.store, "store");
    let (old, now) = (&running.ipsec, &new.ipsec);
    keep(old.ike_rekey != now.ike_rekey, "ipsec.ike_rekey");
    keep(old.child_rekey != now.child_rekey, "ipsec.child_rekey");
    keep(old.replay_window != now.replay_window, "ipsec.replay_window");
    keep(old.dpd != now.dpd, "ipsec.dpd");
    keep(running.docker != new.docker, "docker");
    new.host.listen = running.host.listen;
    new.tun = running.tun.clone();
    new.docker.clone_from(&running.docker);
    new.store.clone_from(&running.store);
    let (suites, require_pq) = (std::mem::take(&mut new.ipsec.suites), new.ipsec.require_pq);
    new.ipsec = crate::config::Ipsec { suites, require_pq, ..running.ipsec.clone() };
    kept
}
