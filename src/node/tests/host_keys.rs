//! Host keys that change: in the order that loses nothing, and in every other.

use super::*;
use crate::crypto::{SigningKey, VerifyingKey};
use crate::ike::ProvedBy;

const PEERS: [(IpAddr, u8, u8); 2] = [(ALPHA, 1, 2), (BETA, 2, 1)];

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn public(seed: u8) -> VerifyingKey {
    key(seed).verifying_key()
}

/// A host that signs with these keys and pins those.
fn keyed(number: u8, peer: u8, ours: &[u8], pins: &[u8]) -> NodeConfig {
    let mut config = config(number, peer, 1);
    config.peers[0].local_auth = LocalAuth::HostKeys(ours.iter().map(|&seed| key(seed)).collect());
    config.peers[0].remote_auth = PeerAuth::HostKeys(pins.iter().map(|&seed| public(seed)).collect());
    config
}

/// alpha has key 10 and beta key 20.
fn two_keyed_hosts(seed: u64) -> World {
    let mut world = World::new(seed);
    world.start(ALPHA, keyed(1, 2, &[10], &[20]));
    world.start(BETA, keyed(2, 1, &[20], &[10]));
    world.run_for(SECONDS(3));
    assert!(ping(&mut world, 0));
    world
}

/// A reload.
fn reload(world: &mut World, host: IpAddr, ours: &[u8], pins: &[u8]) {
    let (_, number, peer) = PEERS.into_iter().find(|(address, ..)| *address == host).expect("one of the two");
    let NodeConfig { local_prefixes, peers, .. } = keyed(number, peer, ours, pins);
    let now = world.now;
    world.host(host).node.reconfigure(now, local_prefixes, peers);
}

/// Pings every 40 ms for some seconds: not one may be lost, and the tunnel is never seen to be anything but up.
fn carries_all(world: &mut World, seconds: u32, what: &str) {
    for tag in 0..seconds * 25 {
        assert!(ping(world, 1000 + tag), "{what}: ping {tag}");
        assert_eq!((state(world, ALPHA), state(world, BETA)), (PeerState::Up, PeerState::Up), "{what}: ping {tag}");
    }
}

/// The key by which beta knows alpha.
fn known_by(world: &mut World) -> ProvedBy {
    let now = world.now;
    let ike = world.host(BETA).node.peers(now)[0].ike.clone().expect("an IKE SA");
    assert_eq!(
        world.host(ALPHA).node.peers(now)[0].ike.as_ref().map(|ike| ike.local_proof.clone()),
        Some(ike.remote_proof.clone())
    );
    ike.remote_proof
}

fn ike_spis(world: &mut World) -> Vec<crate::model::IkeSpi> {
    let now = world.now;
    world.host(BETA).node.peers(now)[0].ike.iter().map(|ike| ike.local_spi).collect()
}

#[test]
fn a_host_key_is_changed_without_losing_a_packet() {
    let mut world = two_keyed_hosts(1);
    let first = ike_spis(&mut world);
    reload(&mut world, BETA, &[20], &[10, 11]);
    carries_all(&mut world, 4, "the new key is pinned beside the old one");
    assert_eq!(ike_spis(&mut world), first, "nothing had to change");

    reload(&mut world, ALPHA, &[11, 10], &[20]);
    carries_all(&mut world, 6, "alpha signs with the new one");
    assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(11)));
    let second = ike_spis(&mut world);
    assert_ne!(second, first);

    reload(&mut world, ALPHA, &[11], &[20]);
    reload(&mut world, BETA, &[20], &[11]);
    carries_all(&mut world, 15, "the old key is gone");
    assert_eq!(ike_spis(&mut world), second);

    // Who still has the old key is nobody.
    world.kill(ALPHA);
    world.start(ALPHA, keyed(1, 2, &[10], &[20]));
    world.run_for(SECONDS(30));
    assert_ne!(state(&mut world, ALPHA), PeerState::Up);
    let wanted = format!("not by the public key that is configured for the peer ({})", public(11).to_base64());
    assert!(world.host(BETA).notices().iter().any(|notice| notice.text.contains(&wanted)));
}

#[test]
fn a_peer_that_was_forgotten_still_gets_the_old_key() {
    let mut world = two_keyed_hosts(2);
    reload(&mut world, ALPHA, &[11, 10], &[20]);
    carries_all(&mut world, 15, "beta refuses the new one");
    assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(10)));

    // It learns of the new key only when it must forget the old one: which is in use.
    reload(&mut world, BETA, &[20], &[11]);
    carries_all(&mut world, 20, "the other one's turn");
    assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(11)));
}

/// Both ends begin cold, and whoever calls, alpha's first choice is unknown at beta.
#[test]
fn a_cold_start_finds_the_key_that_the_peer_knows() {
    for caller in [ALPHA, BETA] {
        let mut world = World::new(3);
        for (host, number, peer) in PEERS {
            let mut config = if host == ALPHA { keyed(1, 2, &[11, 10], &[20]) } else { keyed(2, 1, &[20], &[10]) };
            assert_eq!(config.peers[0].name, format!("host{peer}"), "{number}");
            config.peers[0].remote = config.peers[0].remote.filter(|_| host == caller);
            world.start(host, config);
        }
        world.run_for(SECONDS(8));
        assert_eq!((state(&mut world, ALPHA), state(&mut world, BETA)), (PeerState::Up, PeerState::Up), "{caller} calls");
        assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(10)));
        assert!(ping(&mut world, 1));
    }
}

/// Also where the host with the new key has no address to call: its peer calls when it must.
#[test]
fn a_host_that_only_answers_changes_its_key_too() {
    let mut world = World::new(4);
    let mut alpha = keyed(1, 2, &[10], &[20]);
    alpha.peers[0].remote = None;
    let quiet = |ours: &[u8]| {
        let mut config = keyed(1, 2, ours, &[20]);
        config.peers[0].remote = None;
        config
    };
    world.start(ALPHA, alpha);
    world.start(BETA, keyed(2, 1, &[20], &[10]));
    world.run_for(SECONDS(3));
    reload(&mut world, BETA, &[20], &[10, 11]);
    let NodeConfig { local_prefixes, peers, .. } = quiet(&[11, 10]);
    let now = world.now;
    world.host(ALPHA).node.reconfigure(now, local_prefixes, peers);
    carries_all(&mut world, 5, "the tunnel stays as it was proved");
    assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(10)));
    reload(&mut world, BETA, &[20], &[11]);
    carries_all(&mut world, 15, "beta calls for a new proof");
    assert_eq!(known_by(&mut world), ProvedBy::HostKey(public(11)));
}

#[test]
fn what_hangs_on_an_unpinned_key_ends() {
    let mut world = two_keyed_hosts(5);
    reload(&mut world, BETA, &[20], &[12]);
    world.run_for(SECONDS(12));
    assert_ne!(state(&mut world, BETA), PeerState::Up);
    assert!(!ping(&mut world, 1));
    let told = world.host(BETA).notices().into_iter().any(|notice| {
        notice.text.contains(&format!("with its Ed25519 key {}, which is not pinned any more", public(10).to_base64()))
    });
    assert!(told);
    // Pinned again, it comes back by itself.
    reload(&mut world, BETA, &[20], &[10]);
    world.run_for(SECONDS(15));
    assert!(ping(&mut world, 2));
}

/// Our own certificate is exchanged for a newer one.
#[test]
#[cfg(feature = "x509")]
fn a_certificate_is_renewed_without_losing_a_packet() {
    use crate::crypto::x509::authority::{Authority, NOW};
    let root = Authority::new("root", "p256");
    let anchors = std::sync::Arc::new(root.anchors());
    let certified = |number: u8, peer: u8, credential: &crate::crypto::x509::Credential| {
        let mut config = config(number, peer, 1);
        config.peers[0].local_auth = LocalAuth::Certificate(credential.clone());
        let authorities = crate::ike::Authorities { anchors: anchors.clone(), wall_clock: || NOW };
        config.peers[0].remote_auth = PeerAuth::Certificate(authorities);
        config
    };
    let [old, new] = ["p256", "p384"].map(|kind| root.credential("host1", kind));
    let mut world = World::new(6);
    world.start(ALPHA, certified(1, 2, &old));
    world.start(BETA, certified(2, 1, &root.credential("host2", "ed25519")));
    world.run_for(SECONDS(3));
    assert_eq!(known_by(&mut world), ProvedBy::Certificate(old.describe().to_owned()));
    let NodeConfig { local_prefixes, peers, .. } = certified(1, 2, &new);
    let now = world.now;
    world.host(ALPHA).node.reconfigure(now, local_prefixes, peers);
    carries_all(&mut world, 15, "a newer certificate");
    assert_eq!(known_by(&mut world), ProvedBy::Certificate(new.describe().to_owned()));
}
