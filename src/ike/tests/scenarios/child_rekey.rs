//! One host rekeys the CHILD_SA, and the other does what it likes meanwhile.

use std::time::Duration;

use super::{A, ANY, B, ROLES, Scene};
use crate::ike::Command;
use crate::model::KeGroup;

/// The suite of the only CHILD_SA.
fn suite(scene: &Scene) -> String {
    scene.sim.hosts[A].endpoint.children(super::HOST[B])[0].suite.to_string()
}

#[test]
fn regular() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let other = 1 - asks;
        scene.rekey_child(asks);
        scene.request(asks);
        assert_eq!(scene.sender(other), scene.old[other], "the responder waits for a sign that its answer arrived");
        scene.answer(other);
        assert_eq!(scene.sender(asks), scene.asked_for(asks), "the initiator sends with it at once");
        scene.request(asks);
        assert_ne!(scene.sender(other), scene.old[other], "the Delete is such a sign");
        scene.answer(other);
        assert!(scene.sim.waiting.is_empty());
        scene.ends_with_child_of(asks);
    }
}

#[test]
fn multi_ke() {
    for asks in [A, B] {
        let mut scene = Scene::hybrid(ANY);
        let other = 1 - asks;
        scene.rekey_child(asks);
        for _ in 0..2 {
            assert_eq!(scene.sender(asks), scene.old[asks]);
            scene.request(asks);
            assert_eq!(scene.sender(other), scene.old[other]);
            scene.answer(other);
        }
        assert_eq!(scene.sender(asks), scene.asked_for(asks));
        scene.ends_with_child_of(asks);
        assert_eq!(suite(&scene), "aes256gcm16-x25519-ke1_mlkem768-esn");
    }
}

#[test]
fn invalid_ke() {
    for (asks, initiator) in ROLES {
        for groups in [&[KeGroup::EcP256][..], &[KeGroup::EcP384, KeGroup::EcP256]] {
            let mut scene = Scene::classical(initiator, ANY);
            scene.rekey_child(asks);
            for &group in groups {
                scene.other_group(asks, group);
                scene.answer(1 - asks);
            }
            scene.exchange(asks);
            scene.ends_with_child_of(asks);
            assert!(suite(&scene).contains("ecp256"), "{}", suite(&scene));
        }
    }
}

/// A responder that wants yet another group each time is not followed for ever: the rekey is tried anew later.
#[test]
fn invalid_ke_without_end() {
    let mut scene = Scene::classical(A, ANY);
    scene.rekey_child(A);
    for group in [KeGroup::EcP256, KeGroup::EcP384, KeGroup::EcP256] {
        assert_eq!(scene.sim.waiting.len(), 1);
        scene.other_group(A, group);
        scene.answer(B);
    }
    assert!(scene.sim.waiting.is_empty(), "two other groups are tried");
    assert_eq!(scene.sender(A), scene.old[A]);
    scene.ends_with_another_child();
}

/// The responder's own clock says that it is time to rekey, after it has answered the rekey and before the Delete.
#[test]
fn responder_ignores_its_soft_expiry() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let other = 1 - asks;
        scene.rekey_child(asks);
        scene.request(asks);
        scene.ask(other, Command::RekeyChild(scene.old[other]));
        assert_eq!(scene.sim.waiting.len(), 1, "its answer, and nothing else");
        scene.ends_with_child_of(asks);
    }
}

/// The same, but the old one has expired hard: the Deletes cross.
#[test]
fn responder_handles_its_hard_expiry() {
    for (asks, initiator) in ROLES {
        for its_delete_first in [false, true] {
            let mut scene = Scene::classical(initiator, ANY);
            let other = 1 - asks;
            scene.rekey_child(asks);
            scene.request(asks);
            scene.expire_child(other);
            if its_delete_first {
                scene.request(other);
            }
            scene.answer(other);
            scene.ends_with_child_of(asks);
        }
    }
}

/// The responder ends the new CHILD_SA as soon as it has made it. If its Delete overtakes its answer, the old one goes on and is
/// rekeyed once more.
#[test]
fn responder_deletes_the_new_one() {
    for (asks, initiator) in ROLES {
        for delete_first in [false, true] {
            let mut scene = Scene::classical(initiator, ANY);
            let other = 1 - asks;
            scene.rekey_child(asks);
            scene.request(asks);
            let new = scene.sim.hosts[other].plane.installed.last().expect("it is installed").inbound_spi;
            scene.ask(other, Command::ChildExpired(new));
            if delete_first {
                scene.request(other);
            }
            scene.answer(other);
            scene.ends_with_another_child();
        }
    }
}

/// The responder ends the old one before its initiator does, in the time between its answer and the initiator's Delete.
#[test]
fn responder_deletes_the_old_one_itself() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let other = 1 - asks;
        scene.rekey_child(asks);
        scene.exchange(asks);
        let delete = scene.hold_request(asks);
        scene.expire_child(other);
        scene.exchange(other);
        scene.bring(&delete);
        scene.ends_with_child_of(asks);
    }
}

/// The responder has no such CHILD_SA: CHILD_SA_NOT_FOUND, and a fresh one is made.
#[test]
fn responder_lost_the_sa() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let other = 1 - asks;
        scene.forget_child(other);
        scene.rekey_child(asks);
        scene.request(asks);
        scene.must_have_refused(other, "REKEY_SA names no CHILD_SA");
        scene.answer(other);
        scene.ends();
        assert_ne!(scene.sender(asks), scene.old[asks]);
    }
}

/// The responder says that it deletes what nobody has, in the middle of it all.
#[test]
fn responder_deletes_something_else() {
    for (asks, initiator) in ROLES {
        for stage in 0..3 {
            let mut scene = Scene::classical(initiator, ANY);
            let other = 1 - asks;
            scene.rekey_child(asks);
            if stage > 0 {
                scene.request(asks);
            }
            if stage > 1 {
                scene.answer(other);
            }
            let ike = scene.ike(other);
            let now = scene.sim.now;
            scene.with(other, ike, |state, shared| {
                let nobodys = crate::model::Spi::new(0x7777_7700).expect("a legal SPI");
                let delete = crate::wire::ike::Payload::Delete(crate::wire::ike::Delete::Esp(vec![nobodys]));
                state.session.request(shared, now, crate::wire::ike::ExchangeType::Informational, &[delete]);
            });
            scene.sim.run_for(Duration::ZERO);
            scene.exchange(other);
            scene.ends_with_child_of(asks);
        }
    }
}

/// The Delete is lost for as long as packets may come on the old CHILD_SA: they are taken until it is there, and for some seconds
/// more.
#[test]
fn delete_comes_late() {
    for (asks, initiator) in ROLES {
        let mut scene = Scene::classical(initiator, ANY);
        let other = 1 - asks;
        scene.rekey_child(asks);
        scene.exchange(asks);
        let delete = scene.hold_request(asks);
        scene.sim.run_for(Duration::from_secs(20));
        scene.sim.waiting.clear();
        assert!(scene.sim.hosts[other].plane.takes(scene.old[other]), "the old one still receives");
        scene.bring(&delete);
        assert!(scene.sim.hosts[other].plane.takes(scene.old[other]), "and for a while after the Delete");
        scene.ends_with_child_of(asks);
        assert!(!scene.sim.hosts[other].plane.takes(scene.old[other]));
    }
}

/// The successor is itself replaced and deleted before the Delete of the first one arrives: that one must not come to life again.
#[test]
fn a_successor_that_goes_before_its_predecessor() {
    for initiator in [A, B] {
        let mut scene = Scene::classical(initiator, ANY);
        scene.rekey_child(B);
        scene.exchange(B);
        let delete = scene.hold_request(B);
        let second = scene.sim.hosts[A].plane.installed.last().expect("two").inbound_spi;
        scene.sim.command(A, Command::InboundUsed(second));
        assert_eq!(scene.sender(A), second);
        scene.ask(A, Command::RekeyChild(second));
        scene.exchange(A);
        let third = scene.asked_for(A);
        scene.exchange(A);
        assert_eq!(scene.sender(A), third, "the first one is not sent with again");
        scene.rekey_child(A);
        assert!(scene.sim.waiting.is_empty(), "nor is it rekeyed");
        scene.bring(&delete);
        scene.ends();
        assert_eq!(scene.sender(A), third);
    }
}
