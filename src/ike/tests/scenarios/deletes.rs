//! CHILD_SAs and IKE SAs that end.

use super::{A, ANY, B, ROLES, Scene, everywhere};

/// One host ends the CHILD_SA; it asks for another one afterwards.
#[test]
fn child_regular() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        scene.expire_child(asks);
        scene.request(asks);
        assert!(scene.sim.hosts[1 - asks].plane.installed.is_empty(), "gone at once");
        scene.answer(1 - asks);
        scene.ends_with_another_child();
    }
}

/// Both end it: each answers without a Delete of its own, and of what they ask for afterwards one remains.
#[test]
fn child_collision() {
    for (initiator, nonces) in everywhere() {
        for first in [A, B] {
            let mut scene = Scene::classical(initiator, nonces);
            scene.expire_child(A);
            scene.expire_child(B);
            scene.requests(first);
            assert!(scene.sim.hosts.iter().all(|host| host.plane.installed.is_empty()));
            scene.ends_with_another_child();
        }
    }
}

#[test]
fn child_collision_and_a_lost_delete() {
    for (lost, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        scene.expire_child(A);
        scene.expire_child(B);
        drop(scene.hold_request(lost));
        scene.exchange(1 - lost);
        scene.ends_with_another_child();
    }
}

#[test]
fn ike_regular() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        scene.close(asks);
        scene.request(asks);
        assert!(scene.sim.hosts[1 - asks].plane.installed.is_empty(), "the CHILD_SAs go with it");
        scene.answer(1 - asks);
        assert!(scene.sim.waiting.is_empty());
        scene.ends_with_nothing();
    }
}

#[test]
fn ike_collision() {
    for initiator in [A, B] {
        for first in [A, B] {
            let mut scene = Scene::classical(initiator, ANY);
            scene.close(A);
            scene.close(B);
            scene.requests(first);
            scene.ends_with_nothing();
        }
    }
}
