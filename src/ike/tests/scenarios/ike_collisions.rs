//! Both hosts rekey the IKE SA, or one rekeys what the other ends.

use super::{A, ANY, B, ROLES, Scene, everywhere};
use crate::model::{IkeSpi, KeGroup};

/// Both have asked, and nothing has arrived; the IKE SA.
fn both(initiator: usize, nonces: [u8; 4]) -> (Scene, IkeSpi) {
    let mut scene = Scene::classical(initiator, nonces);
    let old = scene.ike(A);
    scene.rekey_ike(A);
    scene.rekey_ike(B);
    (scene, old)
}

/// And both have answered.
fn both_answered(initiator: usize, nonces: [u8; 4]) -> (Scene, IkeSpi) {
    let (mut scene, old) = both(initiator, nonces);
    scene.requests(A);
    (scene, old)
}

#[test]
fn plain() {
    for (initiator, nonces) in everywhere() {
        for first in [A, B] {
            let (mut scene, old) = both_answered(initiator, nonces);
            scene.answer(first);
            scene.answer(1 - first);
            scene.ends_with_ike_of(scene.winner(), old);
        }
    }
}

#[test]
fn multi_ke() {
    for (_, nonces) in everywhere() {
        let mut scene = Scene::hybrid(nonces);
        let old = scene.ike(A);
        scene.rekey_ike(A);
        scene.rekey_ike(B);
        scene.requests(A);
        for host in [A, B] {
            scene.must_have_refused(host, "both ends rekey the IKE SA");
        }
        scene.ends();
        assert_ne!(scene.ike(A), old);
    }
}

/// One rekey is one exchange, the other two: the shorter one is made.
#[test]
fn mixed() {
    for (_, nonces) in everywhere() {
        for (shorter, first) in [(A, A), (A, B), (B, A), (B, B)] {
            let mut scene = Scene::hybrid(nonces);
            let old = scene.ike(A);
            scene.adds_ml_kem(shorter, false);
            scene.rekey_ike(shorter);
            scene.adds_ml_kem(shorter, true);
            scene.rekey_ike(1 - shorter);
            scene.requests(first);
            scene.ends_with_ike_of(shorter, old);
        }
    }
}

/// B's answer is under way while B hears A's and acts on it.
#[test]
fn delayed_response() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both_answered(initiator, nonces);
        let late = scene.hold_answer(B);
        scene.answer(A);
        scene.request(B);
        scene.bring(&late);
        scene.ends_with_ike_of(scene.winner(), old);
    }
}

/// The same, until everything else is said.
#[test]
fn delayed_response_and_delete() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both_answered(initiator, nonces);
        let late = scene.hold_answer(B);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_ike_of(scene.winner(), old);
    }
}

/// The winner's Delete of the old IKE SA, or the loser's of its own, is lost at first.
#[test]
fn deletes_are_lost() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both_answered(initiator, nonces);
        scene.answer(A);
        scene.answer(B);
        drop(scene.hold_request(A));
        drop(scene.hold_request(B));
        scene.ends_with_ike_of(scene.winner(), old);
    }
}

/// A's rekey is done, as far as A knows, when B's request comes.
#[test]
fn delayed_request() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both(initiator, nonces);
        scene.exchange(A);
        scene.request(B);
        scene.ends_with_ike_of(A, old);
    }
}

/// The same, and B has heard A's Delete before.
#[test]
fn delayed_request_and_delete() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both(initiator, nonces);
        let late = scene.hold_request(B);
        scene.exchange(A);
        scene.request(A);
        scene.bring(&late);
        scene.ends_with_ike_of(A, old);
    }
}

/// The same, and everything is said.
#[test]
fn delayed_request_and_more() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both(initiator, nonces);
        let late = scene.hold_request(B);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_ike_of(A, old);
    }
}

/// Each wants another group of the other; what they ask for then collides.
#[test]
fn invalid_ke() {
    for (initiator, nonces) in everywhere() {
        for refused in [&[A][..], &[B], &[A, B]] {
            let (mut scene, old) = both(initiator, nonces);
            for &host in refused {
                scene.other_group(host, KeGroup::EcP256);
            }
            for &host in refused {
                scene.answer(1 - host);
            }
            scene.requests(A);
            scene.ends_with_ike_of(scene.winner(), old);
        }
    }
}

/// The same, but A's second attempt comes when B's is done.
#[test]
fn invalid_ke_and_delayed_retry() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both(initiator, nonces);
        scene.other_group(A, KeGroup::EcP256);
        scene.other_group(B, KeGroup::EcP256);
        scene.answer(B);
        scene.answer(A);
        let late = scene.hold_request(A);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_ike_of(B, old);
    }
}

/// INVALID_KE_PAYLOAD in the middle of a collision: B's request is there and answered when A hears that it must ask again.
#[test]
fn invalid_ke_after_the_others_request() {
    for (initiator, nonces) in everywhere() {
        let (mut scene, old) = both(initiator, nonces);
        scene.request(B);
        scene.other_group(A, KeGroup::EcP256);
        scene.answer(B);
        scene.request(A);
        scene.ends_with_ike_of(scene.winner(), old);
    }
}

// --- one rekeys what the other ends ---

/// One host has asked for a rekey, the other ends the IKE SA; nothing has arrived.
fn rekey_and_delete(rekeys: usize, initiator: usize) -> Scene {
    let mut scene = Scene::classical(initiator, ANY);
    scene.rekey_ike(rekeys);
    scene.close(1 - rekeys);
    scene
}

#[test]
fn delete() {
    for (rekeys, initiator) in ROLES {
        for first in [A, B] {
            let mut scene = rekey_and_delete(rekeys, initiator);
            scene.requests(first);
            scene.ends_with_nothing();
        }
    }
}

#[test]
fn delete_is_lost() {
    for (rekeys, initiator) in ROLES {
        let mut scene = rekey_and_delete(rekeys, initiator);
        drop(scene.hold_request(1 - rekeys));
        scene.request(rekeys);
        scene.ends_with_nothing();
    }
}

#[test]
fn rekey_is_lost() {
    for (rekeys, initiator) in ROLES {
        let mut scene = rekey_and_delete(rekeys, initiator);
        drop(scene.hold_request(rekeys));
        scene.request(1 - rekeys);
        scene.ends_with_nothing();
    }
}

// --- one rekeys it, the other makes or ends a CHILD_SA ---

#[test]
fn child_delete() {
    for (rekeys, initiator) in ROLES {
        for first in [A, B] {
            let mut scene = Scene::classical(initiator, ANY);
            let old = scene.ike(A);
            scene.rekey_ike(rekeys);
            scene.expire_child(1 - rekeys);
            scene.requests(first);
            scene.ends_with_another_child();
            assert_ne!(scene.ike(A), old, "the IKE SA is rekeyed in the end");
        }
    }
}
