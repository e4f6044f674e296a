//! Both hosts rekey the same CHILD_SA, or one rekeys what the other ends.

use super::{A, ANY, B, ROLES, Scene, everywhere};
use crate::model::KeGroup;

/// Both have asked, and nothing has arrived.
fn both(initiator: usize, nonces: [u8; 4]) -> Scene {
    let mut scene = Scene::classical(initiator, nonces);
    scene.rekey_child(A);
    scene.rekey_child(B);
    scene
}

/// And both have answered.
fn both_answered(initiator: usize, nonces: [u8; 4]) -> Scene {
    let mut scene = both(initiator, nonces);
    scene.requests(A);
    scene
}

#[test]
fn plain() {
    for (initiator, nonces) in everywhere() {
        for first in [A, B] {
            let mut scene = both_answered(initiator, nonces);
            scene.answer(first);
            scene.answer(1 - first);
            scene.ends_with_child_of(scene.winner());
        }
    }
}

/// Nothing is judged by nonces: each refuses the other's for now, and both try again after a pause of chance.
#[test]
fn multi_ke() {
    for (_, nonces) in everywhere() {
        let mut scene = Scene::hybrid(nonces);
        scene.rekey_child(A);
        scene.rekey_child(B);
        scene.requests(A);
        for host in [A, B] {
            scene.must_have_refused(host, "both ends rekey the CHILD_SA");
        }
        scene.ends_with_another_child();
    }
}

/// The second exchange of one has begun when the other's request comes.
#[test]
fn multi_ke_in_the_second_exchange() {
    for (_, nonces) in everywhere() {
        let mut scene = Scene::hybrid(nonces);
        scene.rekey_child(A);
        scene.exchange(A);
        // B has answered, and waits for the second exchange: its own has to wait.
        scene.rekey_child(B);
        let late = scene.hold_request(A);
        assert!(scene.sim.waiting.is_empty(), "B asks for nothing meanwhile");
        scene.bring(&late);
        scene.ends_with_child_of(A);
    }
}

/// One rekey is one exchange, the other two: the shorter one is made, whatever the nonces say.
#[test]
fn mixed() {
    for (_, nonces) in everywhere() {
        for (shorter, first) in [(A, A), (A, B), (B, A), (B, B)] {
            let mut scene = Scene::hybrid(nonces);
            scene.adds_ml_kem(shorter, false);
            scene.rekey_child(shorter);
            scene.adds_ml_kem(shorter, true);
            scene.rekey_child(1 - shorter);
            scene.requests(first);
            scene.ends_with_child_of(shorter);
        }
    }
}

/// B's answer is under way while B hears A's and acts on it.
#[test]
fn delayed_response() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both_answered(initiator, nonces);
        let late = scene.hold_answer(B);
        scene.answer(A);
        // Whichever SA lost, its maker's Delete of it or of the old one reaches A now.
        scene.request(B);
        scene.bring(&late);
        scene.ends_with_child_of(scene.winner());
    }
}

/// The same, until everything else is said.
#[test]
fn delayed_response_and_delete() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both_answered(initiator, nonces);
        let late = scene.hold_answer(B);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_child_of(scene.winner());
    }
}

/// A's rekey is answered before B's request is there: A knows of no collision, B of nothing else.
#[test]
fn delayed_request() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both(initiator, nonces);
        scene.exchange(A);
        scene.request(B);
        assert!(scene.refusals(A)[0].contains("successor") || scene.refusals(A)[0].contains("deleted"));
        scene.ends_with_child_of(A);
    }
}

/// The same, and A's Delete is heard before B's request is.
#[test]
fn delayed_request_and_more() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both(initiator, nonces);
        let late = scene.hold_request(B);
        scene.exchange(A);
        scene.request(A);
        scene.bring(&late);
        scene.ends_with_child_of(A);
    }
}

/// The same, and B's answer to the Delete is heard, too: nothing is left to be rekeyed.
#[test]
fn delayed_request_and_delete() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both(initiator, nonces);
        let late = scene.hold_request(B);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.must_have_refused(A, "names no CHILD_SA");
        scene.ends_with_child_of(A);
    }
}

/// Each wants another group of the other; what they ask for then collides.
#[test]
fn invalid_ke() {
    for (initiator, nonces) in everywhere() {
        for refused in [&[A][..], &[B], &[A, B]] {
            let mut scene = both(initiator, nonces);
            for &host in refused {
                scene.other_group(host, KeGroup::EcP256);
            }
            for &host in refused {
                scene.lead(host, nonces[2 * host]);
                scene.answer(1 - host);
            }
            scene.requests(A);
            scene.ends_with_child_of(scene.winner());
        }
    }
}

/// The same, but A's second attempt comes when B's is done.
#[test]
fn invalid_ke_and_delayed_retry() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both(initiator, nonces);
        scene.other_group(A, KeGroup::EcP256);
        scene.other_group(B, KeGroup::EcP256);
        scene.answer(B);
        scene.answer(A);
        let late = scene.hold_request(A);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_child_of(B);
    }
}

/// INVALID_KE_PAYLOAD in the middle of a collision: B's request is there and answered when A hears that it must ask again.
#[test]
fn invalid_ke_after_the_others_request() {
    for (initiator, nonces) in everywhere() {
        let mut scene = both(initiator, nonces);
        scene.request(B);
        scene.other_group(A, KeGroup::EcP256);
        scene.lead(A, nonces[0]);
        scene.answer(B);
        scene.request(A);
        scene.ends_with_child_of(scene.winner());
    }
}

// --- one rekeys what the other ends ---

/// One host has asked for a rekey, the other ends the CHILD_SA; nothing has arrived.
fn rekey_and_delete(rekeys: usize, initiator: usize) -> Scene {
    let mut scene = Scene::classical(initiator, ANY);
    scene.rekey_child(rekeys);
    scene.expire_child(1 - rekeys);
    scene
}

#[test]
fn delete() {
    for (rekeys, initiator) in ROLES {
        for first in [A, B] {
            let mut scene = rekey_and_delete(rekeys, initiator);
            scene.requests(first);
            scene.ends_with_another_child();
        }
    }
}

#[test]
fn delete_is_lost() {
    for (rekeys, initiator) in ROLES {
        let mut scene = rekey_and_delete(rekeys, initiator);
        drop(scene.hold_request(1 - rekeys));
        scene.request(rekeys);
        scene.must_have_refused(1 - rekeys, "is being deleted");
        scene.answer(1 - rekeys);
        scene.ends_with_another_child();
    }
}

#[test]
fn rekey_is_lost() {
    for (rekeys, initiator) in ROLES {
        let mut scene = rekey_and_delete(rekeys, initiator);
        drop(scene.hold_request(rekeys));
        scene.exchange(1 - rekeys);
        scene.ends_with_another_child();
    }
}

/// The refusal of the rekey comes when the Delete is long done.
#[test]
fn delete_and_delayed_response() {
    for (rekeys, initiator) in ROLES {
        let mut scene = rekey_and_delete(rekeys, initiator);
        scene.request(rekeys);
        let late = scene.hold_answer(1 - rekeys);
        scene.sim.deliver_all();
        scene.bring(&late);
        scene.ends_with_another_child();
    }
}

// --- one rekeys it, the other does something to the IKE SA ---

#[test]
fn ike_rekey() {
    for (rekeys, initiator) in ROLES {
        for first in [A, B] {
            let mut scene = Scene::classical(initiator, ANY);
            let ike = scene.ike(A);
            scene.rekey_child(rekeys);
            scene.rekey_ike(1 - rekeys);
            scene.requests(first);
            scene.both_must_have_refused();
            scene.ends_with_another_child();
            assert_ne!(scene.ike(A), ike, "both are done in the end");
        }
    }
}

#[test]
fn ike_delete() {
    for (rekeys, initiator) in ROLES {
        for first in [A, B] {
            let mut scene = Scene::classical(initiator, ANY);
            scene.rekey_child(rekeys);
            scene.close(1 - rekeys);
            scene.requests(first);
            scene.ends_with_nothing();
        }
    }
}
