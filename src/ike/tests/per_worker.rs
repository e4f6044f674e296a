//! CHILD_SAs for single workers between our own hosts (RFC 9611).

use std::time::Duration;

use bytes::Bytes;

use super::hand::{Hand, alone, errors, own_config, sent};
use super::{HOST, classical_pair_by_hand, count, pair, script, sender};
use crate::ike::limits::{MAX_WORKER_CHILDREN, NEW_SA_BURST, RETRY_WORKER_CHILD};
use crate::ike::simulator::{Proof, Simulator};
use crate::ike::{Command, Event, nat};
use crate::model::{Path, Spi, WorkerIndex};
use crate::wire::ike::{Delete, ExchangeType, Notify, NotifyType, Payload};

const SECOND: Duration = Duration::from_secs(1);

/// The peers have so many workers from now on.
fn with_workers(mut sim: Simulator, workers: [u8; 2]) -> Simulator {
    for (host, workers) in sim.hosts.iter_mut().zip(workers) {
        host.endpoint.shared.config.workers = workers;
    }
    sim
}

/// A worker of this host asks for an SA of its own.
fn want(sim: &mut Simulator, host: usize, worker: u8) {
    sim.command(host, Command::CreateWorkerChild(HOST[1 - host], WorkerIndex(worker)));
}

/// The SA that this worker sends with and the others do not.
fn own(sim: &Simulator, host: usize, worker: u8) -> Option<Spi> {
    sim.hosts[host].plane.own.get(&(HOST[1 - host], WorkerIndex(worker))).copied()
}

/// For each SA: our worker and the peer's, in order.
fn workers(sim: &Simulator, host: usize) -> Vec<(u8, u8)> {
    let installed = sim.hosts[host].plane.installed.iter();
    let mut workers: Vec<_> = installed.map(|child| (child.inbound_spi.owner().0, child.outbound_spi.owner().0)).collect();
    workers.sort_unstable();
    workers
}

/// Every SA has its twin with the keys crosswise, nothing is parked, and IKE and the data plane hold the same.
fn must_be_consistent(sim: &Simulator) {
    for (us, them) in [(0, 1), (1, 0)] {
        let (here, there) = (&sim.hosts[us].plane, &sim.hosts[them].plane);
        let report = || format!("host {us}: {:?}\n{}", sim.hosts[us].complaints(), sim.hosts[us].standing().join("\n"));
        assert_eq!(here.installed.len(), there.installed.len(), "{}", report());
        assert_eq!(here.installed.len(), sim.hosts[us].endpoint.children(HOST[them]).len(), "{}", report());
        for child in &here.installed {
            let twin = there.receiver(child.outbound_spi).expect("a twin");
            assert!(twin.inbound_key == child.outbound_key && twin.outbound_key == child.inbound_key);
        }
        assert!(here.reserved.is_empty(), "{}", report());
        assert_eq!(sim.hosts[us].endpoint.shared.spi_owners.len(), here.installed.len(), "{}", report());
        let fallback = here.active.get(&HOST[them]).expect("something to fall back to");
        assert!(sim.hosts[us].endpoint.children(HOST[them]).iter().any(|sa| sa.inbound_spi == *fallback && !sa.per_worker));
    }
}

/// Host 1 by hand, with the Vendor ID of one of our own hosts.
fn kin_by_hand(sim: &mut Simulator) -> Hand {
    let mut hand = Hand::greet(sim, 7);
    let mut payloads = hand.auth_payloads(&own_config(Proof::Psk));
    let path = Path { local: hand.source, remote: hand.source };
    payloads.extend(nat::vendor_id(hand.spis, path));
    hand.ask(sim, ExchangeType::IkeAuth, &payloads);
    hand
}

fn resource_info(worker: u8) -> Payload {
    Payload::Notify(Notify::new(NotifyType::SaResourceInfo, vec![worker]))
}

#[test]
fn a_worker_gets_its_own_and_the_peer_places_the_other_half_by_modulo() {
    let mut sim = with_workers(classical_pair_by_hand(1), [4, 2]);
    let fallback = [sender(&sim, 0), sender(&sim, 1)];
    want(&mut sim, 0, 3);
    sim.deliver(0);
    assert_eq!(workers(&sim, 1), [(0, 0), (1, 3)], "worker 3 modulo 2");
    assert_eq!((own(&sim, 0, 3), own(&sim, 1, 1)), (None, None), "the answer is under way");
    sim.deliver(0);
    let ours = own(&sim, 0, 3).expect("worker 3 sends with its own");
    assert_eq!(own(&sim, 1, 1), None, "the peer waits for the first packet");
    let theirs = sim.hosts[0].plane.receiver(ours).expect("installed").outbound_spi;
    sim.command(1, Command::InboundUsed(theirs));
    assert_eq!(own(&sim, 1, 1), Some(theirs));
    assert_eq!([sender(&sim, 0), sender(&sim, 1)], fallback, "the others still fall back to the first");
    must_be_consistent(&sim);
    // Whoever has one does not ask.
    want(&mut sim, 0, 3);
    want(&mut sim, 1, 1);
    want(&mut sim, 1, 0);
    assert!(sim.waiting.is_empty());
}

#[test]
fn a_worker_whose_number_is_taken_there_gets_one_that_is_free() {
    let mut sim = with_workers(pair(2), [2, 2]);
    // The first SA lies with worker 0 here and there; of four workers each gets one, whoever asks.
    want(&mut sim, 0, 1);
    sim.run_for(SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
    let mut sim = with_workers(pair(3), [4, 3]);
    for worker in [3, 1, 2] {
        want(&mut sim, 0, worker);
        sim.run_for(SECOND);
    }
    let mut there: Vec<u8> = workers(&sim, 1).into_iter().map(|(own, _)| own).collect();
    there.dedup();
    assert_eq!(there, [0, 1, 2], "worker 3 modulo 3 is 0, which has the first SA: worker 1 is free");
    must_be_consistent(&sim);
}

#[test]
fn what_the_peer_made_is_used_after_a_while_without_a_first_packet() {
    let mut sim = with_workers(pair(4), [2, 2]);
    want(&mut sim, 0, 1);
    sim.run_for(SECOND / 2);
    want(&mut sim, 1, 1);
    assert_eq!(own(&sim, 1, 1), None, "our answer may still be under way");
    sim.run_for(SECOND);
    want(&mut sim, 1, 1);
    sim.run_for(SECOND);
    assert!(own(&sim, 1, 1).is_some());
    assert_eq!(workers(&sim, 1), [(0, 0), (1, 1)], "no second one");
    must_be_consistent(&sim);
}

#[test]
fn both_ask_at_once_and_one_of_each_pair_stays() {
    for nonces in super::permutations() {
        let mut sim = with_workers(classical_pair_by_hand(5), [2, 2]);
        let [ni_a, nr_b, ni_b, nr_a] = nonces;
        script(&mut sim, 0, &[ni_a, 0, nr_a, 0]);
        script(&mut sim, 1, &[ni_b, 0, nr_b, 0]);
        want(&mut sim, 0, 1);
        want(&mut sim, 1, 1);
        sim.deliver_all();
        assert_eq!(workers(&sim, 0), [(0, 0), (1, 1), (1, 1)]);
        sim.by_hand = false;
        sim.run_for(5 * SECOND);
        assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)], "{nonces:?}");
        assert!(own(&sim, 0, 1).is_some() && own(&sim, 1, 1).is_some());
        must_be_consistent(&sim);
    }
}

#[test]
fn every_worker_of_both_asks_at_once_and_their_number_is_bounded() {
    for (seed, counts) in [(6, [4, 4]), (7, [4, 2]), (8, [3, 5]), (9, [1, 4])] {
        let mut sim = with_workers(pair(seed), counts);
        for round in 0..4 {
            for worker in 0..5 {
                for (host, &count) in counts.iter().enumerate() {
                    // Worker 0 has the first SA.
                    if worker > 0 && worker < count {
                        want(&mut sim, host, worker);
                    }
                }
            }
            sim.run_for(if round == 0 { SECOND / 2 } else { 5 * SECOND });
        }
        must_be_consistent(&sim);
        for host in 0..2 {
            let pairs = workers(&sim, host);
            assert!(pairs.len() < usize::from(counts[0] + counts[1]), "{counts:?}: {pairs:?}");
            for worker in 1..counts[host] {
                assert!(own(&sim, host, worker).is_some(), "{counts:?}: worker {worker} of host {host} in {pairs:?}");
            }
        }
    }
}

#[test]
fn either_side_rekeys_one_and_its_workers_stay() {
    for host in 0..2 {
        let mut sim = with_workers(pair(10), [4, 2]);
        sim.traffic = true;
        want(&mut sim, 0, 3);
        sim.run_for(2 * SECOND);
        want(&mut sim, 1, 1);
        sim.run_for(SECOND);
        let worker = [3, 1][host];
        for _ in 0..3 {
            let old = own(&sim, host, worker).expect("an own SA");
            sim.command(host, Command::RekeyChild(old));
            sim.run_for(SECOND);
            assert_ne!(own(&sim, host, worker), Some(old));
            assert_eq!(workers(&sim, 0), [(0, 0), (3, 1)]);
            assert!(sim.hosts[1 - host].endpoint.children(HOST[host]).iter().filter(|sa| sa.per_worker).count() == 1);
            must_be_consistent(&sim);
        }
        let first = sender(&sim, host);
        sim.command(host, Command::RekeyChild(first));
        sim.command(host, Command::RekeyIke(HOST[1 - host]));
        sim.run_for(5 * SECOND);
        assert_ne!(sender(&sim, host), first);
        assert_eq!(workers(&sim, 0), [(0, 0), (3, 1)]);
        must_be_consistent(&sim);
        assert_eq!(sim.lost_packets, 0);
    }
}

#[test]
fn hours_of_rekeys_keep_them_apart() {
    let mut sim = with_workers(pair(11), [3, 3]);
    sim.reconcile();
    want(&mut sim, 0, 1);
    want(&mut sim, 1, 2);
    sim.run_for(10 * 3600 * SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1), (2, 2)]);
    must_be_consistent(&sim);
    let installs = sim.hosts[0].plane.installs;
    assert!((30..=40).contains(&installs), "{installs} CHILD_SAs in ten hours");
}

#[test]
fn an_idle_one_goes_by_who_asked_for_it_and_the_first_never() {
    let mut sim = with_workers(pair(12), [2, 2]);
    want(&mut sim, 0, 1);
    sim.run_for(2 * SECOND);
    want(&mut sim, 1, 1);
    let (first, at_asker, at_other) = (sender(&sim, 0), own(&sim, 0, 1).unwrap(), own(&sim, 1, 1).unwrap());
    sim.command(0, Command::RetireWorkerChild(first));
    sim.command(1, Command::RetireWorkerChild(at_other));
    sim.run_for(SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
    sim.command(0, Command::RetireWorkerChild(at_asker));
    sim.run_for(SECOND);
    assert_eq!((workers(&sim, 0), own(&sim, 0, 1), own(&sim, 1, 1)), (vec![(0, 0)], None, None));
    assert_eq!(sender(&sim, 0), first);
    must_be_consistent(&sim);
    // It is not gone for good.
    want(&mut sim, 1, 1);
    sim.run_for(SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
}

#[test]
fn the_first_one_comes_back_although_others_are_there() {
    for host in 0..2 {
        let mut sim = with_workers(pair(13), [2, 2]);
        want(&mut sim, 0, 1);
        sim.run_for(SECOND);
        let first = sender(&sim, host);
        sim.command(host, Command::ChildExpired(first));
        sim.run_for(SECOND);
        assert_ne!(sender(&sim, host), first);
        assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
        must_be_consistent(&sim);
    }
}

#[test]
fn a_responder_that_has_enough_says_so_and_is_left_alone_for_a_while() {
    let mut sim = with_workers(pair(14), [255, 1]);
    let wanted = MAX_WORKER_CHILDREN as u8 + 1;
    for worker in 1..=wanted {
        want(&mut sim, 0, worker);
        // It grants one new SA a second.
        sim.run_for(SECOND);
    }
    assert_eq!(workers(&sim, 0).len(), MAX_WORKER_CHILDREN + 1);
    assert_eq!(own(&sim, 0, wanted), None);
    let refused = |event: &Event| matches!(event, Event::WorkerChildRefused { reason, .. } if reason.to_string().contains("TS_MAX_QUEUE"));
    assert_eq!(count(&sim, 0, 0, refused), 1);
    assert_eq!(count(&sim, 0, 0, |event| matches!(event, Event::ChildFailed { .. })), 0, "nothing is wrong");
    // Also the successor of the IKE SA remembers.
    sim.command(0, Command::RekeyIke(HOST[1]));
    sim.run_for(SECOND);
    let from = sim.hosts[1].events.len();
    want(&mut sim, 0, wanted);
    sim.run_for(SECOND);
    assert_eq!(count(&sim, 1, from, |_| true), 0, "host 1 hears nothing");
    // There is room again, and the pause is over.
    let idle = own(&sim, 0, 1).unwrap();
    sim.command(0, Command::RetireWorkerChild(idle));
    sim.run_for(RETRY_WORKER_CHILD);
    want(&mut sim, 0, wanted);
    sim.run_for(SECOND);
    assert!(own(&sim, 0, wanted).is_some());
    must_be_consistent(&sim);
}

#[test]
fn a_responder_that_grants_no_more_at_the_moment_is_not_flooded() {
    let mut sim = with_workers(pair(17), [255, 1]);
    let (burst, seconds) = (NEW_SA_BURST as u8, 10);
    let from = sim.hosts[1].events.len();
    for _ in 0..2 * seconds {
        (1..=2 * burst).for_each(|worker| want(&mut sim, 0, worker));
        sim.run_for(SECOND / 2);
    }
    assert!(workers(&sim, 0).len() >= usize::from(burst + seconds), "{:?}", workers(&sim, 0));
    let refused = count(&sim, 1, from, |event| matches!(event, Event::Refused { .. }));
    assert!((1..=2 * usize::from(seconds)).contains(&refused), "{refused} of {burst} more that were wanted");
    must_be_consistent(&sim);
}

#[test]
fn a_foreign_peer_is_not_asked_and_its_wish_is_answered_as_ever() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::establish(&mut sim, 15);
    want(&mut sim, 0, 1);
    assert!(sent(&mut sim).is_empty());
    let mut payloads = hand.create_child(0x7777_0001);
    payloads.insert(0, resource_info(1));
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert!(answer.proposals.is_some() && answer.notify(NotifyType::SaResourceInfo).is_none());
    assert!(sim.hosts[0].endpoint.children(HOST[1]).iter().all(|sa| !sa.per_worker));
}

#[test]
fn one_of_ours_is_answered_with_the_worker_that_took_it() {
    let mut sim = with_workers(alone(Proof::Psk), [4, 1]);
    let mut hand = kin_by_hand(&mut sim);
    let mut payloads = hand.create_child(0x7777_0006);
    payloads.insert(0, resource_info(6));
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(answer.notify(NotifyType::SaResourceInfo).map(|notify| notify.data.clone()), Some(Bytes::from_static(&[2])));
    assert_eq!(workers(&sim, 0), [(0, 0), (2, 6)]);
    // Without the notification it is one more for everything.
    let payloads = hand.create_child(0x7777_0007);
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert!(answer.proposals.is_some() && answer.notify(NotifyType::SaResourceInfo).is_none());
    assert_eq!(workers(&sim, 0), [(0, 0), (0, 7), (2, 6)]);
}

#[test]
fn one_of_ours_that_does_not_know_them_is_asked_once() {
    let mut sim = with_workers(alone(Proof::Psk), [4, 1]);
    let mut hand = kin_by_hand(&mut sim);
    want(&mut sim, 0, 1);
    let (header, request) = hand.read(&mut sim).pop().expect("a request");
    assert_eq!(request.notify(NotifyType::SaResourceInfo).map(|notify| notify.data.clone()), Some(Bytes::from_static(&[1])));
    let mut payloads = hand.child_payloads(&own_config(Proof::Psk), 0x7777_0001);
    payloads.swap(1, 2);
    let mut proposals = request.proposals.expect("proposals");
    let mut chosen = proposals.pop().expect("one without key exchange");
    chosen.transforms.dedup_by_key(|transform| transform.kind);
    chosen.spi = Bytes::from_static(&[0x77, 0x77, 0, 1]);
    payloads[0] = Payload::SecurityAssociation(vec![chosen]);
    payloads.insert(1, hand.nonce());
    hand.respond(&mut sim, header, &payloads);
    let (_, delete) = hand.read(&mut sim).pop().expect("what it made is deleted");
    assert!(matches!(&delete.deletes[..], [Delete::Esp(spis)] if spis.len() == 1), "{:?}", sim.hosts[0].complaints());
    assert_eq!(sim.hosts[0].plane.installed.len(), 1);
    want(&mut sim, 0, 2);
    assert!(sent(&mut sim).is_empty());
    assert_eq!(errors(&delete), []);
}

/// The peer restarted, or only its IKE SA did: what the old one had for single workers must not swallow packets.
#[test]
fn a_newer_ike_sa_takes_the_packets_of_all_workers() {
    for host in 0..2 {
        let mut sim = with_workers(pair(16), [2, 2]);
        sim.traffic = true;
        want(&mut sim, 0, 1);
        sim.run_for(SECOND);
        assert!(own(&sim, 0, 1).is_some());
        sim.command(host, Command::Initiate(HOST[1 - host]));
        sim.run_for(SECOND);
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 2, "they overlap");
        assert_eq!((own(&sim, 0, 1), own(&sim, 1, 1)), (None, None), "host {host}");
        sim.run_for(12 * SECOND);
        super::must_be_settled(&sim);
        want(&mut sim, 0, 1);
        sim.run_for(SECOND);
        assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
        must_be_consistent(&sim);
        assert_eq!(sim.lost_packets, 0);
    }
}

#[test]
fn a_request_that_crosses_a_rekey_of_the_ike_sa_is_made_again() {
    let mut sim = with_workers(classical_pair_by_hand(17), [2, 2]);
    want(&mut sim, 0, 1);
    sim.command(1, Command::RekeyIke(HOST[0]));
    sim.deliver_all();
    sim.by_hand = false;
    sim.run_for(5 * SECOND);
    want(&mut sim, 0, 1);
    sim.run_for(SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
    must_be_consistent(&sim);
}

/// Of two SAs for one pair of workers one is rekeyed, and the peer deletes it before its answer to the rekey arrives: it sends with the
/// successor by then, so what it sends must be opened, although there is another one.
#[test]
fn a_rekey_whose_old_sa_goes_before_the_answer() {
    let mut sim = with_workers(classical_pair_by_hand(5), [2, 2]);
    want(&mut sim, 0, 1);
    want(&mut sim, 1, 1);
    sim.deliver_all();
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1), (1, 1)]);
    let old = own(&sim, 0, 1).expect("an own SA");
    let there = sim.hosts[0].plane.receiver(old).expect("installed").outbound_spi;
    sim.command(0, Command::RekeyChild(old));
    sim.deliver(0);
    let answer = sim.waiting.remove(0);
    sim.command(1, Command::ChildExpired(there));
    sim.deliver_all();
    assert!(sim.hosts[0].plane.receiver(old).is_none(), "it is gone");
    sim.deliver_again(&answer);
    sim.deliver_all();
    let sends = own(&sim, 1, 1).expect("an own SA");
    let opens = sim.hosts[1].plane.receiver(sends).expect("installed").outbound_spi;
    assert!(sim.hosts[0].plane.receiver(opens).is_some(), "what the peer sends is opened");
    sim.by_hand = false;
    sim.run_for(5 * SECOND);
    assert_eq!(workers(&sim, 0), [(0, 0), (1, 1)]);
    must_be_consistent(&sim);
}
