//! One host rekeys the IKE SA.

use super::{A, ANY, B, ROLES, Scene};
use crate::ike::Command;
use crate::model::KeGroup;

#[test]
fn regular() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let old = scene.ike(A);
        scene.rekey_ike(asks);
        scene.exchange(asks);
        scene.exchange(asks);
        assert!(scene.sim.waiting.is_empty(), "one exchange, and the Delete of the old one");
        scene.ends_with_ike_of(asks, old);
        assert_eq!([scene.sender(A), scene.sender(B)], scene.old, "the CHILD_SA moved as it is");
    }
}

#[test]
fn multi_ke() {
    for asks in [A, B] {
        let mut scene = Scene::hybrid(ANY);
        let old = scene.ike(A);
        scene.rekey_ike(asks);
        for _ in 0..2 {
            assert_eq!(scene.ike(A), old);
            scene.exchange(asks);
        }
        scene.ends_with_ike_of(asks, old);
        assert_eq!([scene.sender(A), scene.sender(B)], scene.old);
    }
}

#[test]
fn invalid_ke() {
    for (asks, initiator) in ROLES {
        for groups in [&[KeGroup::EcP256][..], &[KeGroup::EcP384, KeGroup::EcP256]] {
            let mut scene = Scene::classical(initiator, ANY);
            let old = scene.ike(A);
            scene.rekey_ike(asks);
            for &group in groups {
                scene.other_group(asks, group);
                scene.answer(1 - asks);
            }
            scene.exchange(asks);
            scene.ends_with_ike_of(asks, old);
            let suite = scene.sim.hosts[A].endpoint.ike_sas(super::HOST[B])[0].suite.to_string();
            assert!(suite.contains("ecp256"), "{suite}");
        }
    }
}

#[test]
fn invalid_ke_without_end() {
    let mut scene = Scene::classical(A, ANY);
    let old = scene.ike(A);
    scene.rekey_ike(A);
    for group in [KeGroup::EcP256, KeGroup::EcP384, KeGroup::EcP256] {
        assert_eq!(scene.sim.waiting.len(), 1);
        scene.other_group(A, group);
        scene.answer(B);
    }
    assert!(scene.sim.waiting.is_empty(), "two other groups are tried");
    assert_eq!(scene.ike(A), old);
    scene.ends();
    assert_ne!(scene.ike(A), old, "and later all of it once more");
}

/// While the old IKE SA waits for its Delete, the new one works: the responder of the rekey may rekey a CHILD_SA on it.
#[test]
fn delete_comes_late() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let old = scene.ike(A);
        scene.rekey_ike(asks);
        scene.exchange(asks);
        let delete = scene.hold_request(asks);
        scene.ask(asks, Command::RekeyChild(scene.old[asks]));
        scene.exchange(asks);
        scene.bring(&delete);
        scene.ends_with_ike_of(asks, old);
        assert_ne!(scene.sender(A), scene.old[A]);
    }
}
