//! Both ends ask for the same at the same time, in every order of arrival and of nonces (RFC 7296 §2.8, §2.25).

use super::{HOST, classical_pair_by_hand, count, must_be_settled, permutations, script, sender};
use crate::ike::simulator::{Content, Datagram, Simulator};
use crate::ike::{Command, Event};
use crate::model::Spi;
use crate::wire::ike::{ExchangeType, Header};

/// What a waiting datagram is, for a test that reads like the wire.
fn header(datagram: &Datagram) -> Header {
    let Content::Ike(message) = &datagram.content else { panic!("IKE only") };
    Header::parse(message).expect("our own message").0
}

/// Delivers the waiting message of this sender that is a request or a response, with all its fragments.
fn deliver_from(sim: &mut Simulator, host: usize, response: bool) {
    let from = sim.hosts[host].address;
    let sent = |datagram: &Datagram| datagram.path.local.ip() == from && header(datagram).flags.response == response;
    let first = sim.waiting.iter().find(|datagram| sent(datagram)).map(header);
    let first =
        first.unwrap_or_else(|| panic!("host {host} has nothing to deliver (response: {response}): {:?}", sim.waiting));
    while let Some(number) = sim.waiting.iter().position(|datagram| sent(datagram) && header(datagram) == first) {
        sim.deliver(number);
    }
}

const REQUEST: bool = false;
const RESPONSE: bool = true;

/// Both hosts ask for something with these nonces: A's request, B's answer to it; B's request, A's answer to it. Every nonce is
/// followed by the private key of the same exchange.
fn both_ask(sim: &mut Simulator, nonces: [u8; 4], commands: [Command; 2]) {
    let [ni_a, nr_b, ni_b, nr_a] = nonces;
    script(sim, 0, &[ni_a, 0, nr_a, 0]);
    script(sim, 1, &[ni_b, 0, nr_b, 0]);
    let [a, b] = commands;
    sim.command(0, a);
    sim.command(1, b);
}

/// As above; a responder of an IKE rekey draws its private key first.
fn both_rekey_ike(sim: &mut Simulator, [ni_a, nr_b, ni_b, nr_a]: [u8; 4]) {
    script(sim, 0, &[ni_a, 0, 0, nr_a]);
    script(sim, 1, &[ni_b, 0, 0, nr_b]);
    sim.command(0, Command::RekeyIke(HOST[1]));
    sim.command(1, Command::RekeyIke(HOST[0]));
}

fn both_rekey_child(sim: &mut Simulator, nonces: [u8; 4]) {
    let commands = [Command::RekeyChild(sender(sim, 0)), Command::RekeyChild(sender(sim, 1))];
    both_ask(sim, nonces, commands);
}

/// Whether A's exchange wins: the one with the lowest of the four nonces loses.
fn a_wins(nonces: [u8; 4]) -> bool {
    nonces[0].min(nonces[1]) > nonces[2].min(nonces[3])
}

/// The SPIs that a host reserved for SAs that it asked for.
fn reserved(sim: &Simulator, host: usize) -> Vec<Spi> {
    let spi = |event: &Event| match event {
        Event::Reserve { spi, .. } => Some(*spi),
        _ => None,
    };
    sim.hosts[host].events.iter().filter_map(spi).collect()
}

/// One SA is left; it is the one that the nonces say.
fn child_winner_is(sim: &Simulator, a: bool) {
    must_be_settled(sim);
    let maker = usize::from(!a);
    let asked = *reserved(sim, maker).last().expect("an SPI was reserved");
    assert_eq!(sender(sim, maker), asked, "the SA that host {maker} asked for must be the one that stays");
}

#[test]
fn child_rekeys_cross() {
    for nonces in permutations() {
        for b_answers_first in [false, true] {
            let mut sim = classical_pair_by_hand(7);
            both_rekey_child(&mut sim, nonces);
            deliver_from(&mut sim, 0, REQUEST);
            deliver_from(&mut sim, 1, REQUEST);
            deliver_from(&mut sim, usize::from(b_answers_first), RESPONSE);
            deliver_from(&mut sim, usize::from(!b_answers_first), RESPONSE);
            sim.deliver_all();
            child_winner_is(&sim, a_wins(nonces));
        }
    }
}

#[test]
fn child_rekeys_cross_and_the_delete_overtakes_the_answer() {
    for nonces in permutations() {
        let mut sim = classical_pair_by_hand(7);
        both_rekey_child(&mut sim, nonces);
        deliver_from(&mut sim, 0, REQUEST);
        deliver_from(&mut sim, 1, REQUEST);
        // B hears A's answer and deletes what lost, be it the old SA or its own new one; its answer to A is still under way.
        deliver_from(&mut sim, 0, RESPONSE);
        deliver_from(&mut sim, 1, REQUEST);
        sim.deliver_all();
        child_winner_is(&sim, a_wins(nonces));
    }
}

#[test]
fn a_delayed_child_rekey_meets_one_that_is_done() {
    for nonces in permutations() {
        let mut sim = classical_pair_by_hand(7);
        both_rekey_child(&mut sim, nonces);
        deliver_from(&mut sim, 0, REQUEST);
        deliver_from(&mut sim, 1, RESPONSE);
        // A's rekey is done as far as A knows; only now B's request comes. A says TEMPORARY_FAILURE, and B has A's SA already.
        let before = sim.hosts[0].events.len();
        deliver_from(&mut sim, 1, REQUEST);
        assert_eq!(count(&sim, 0, before, |event| matches!(event, Event::Install { .. })), 0);
        sim.deliver_all();
        child_winner_is(&sim, true);
    }
}

#[test]
fn a_delayed_child_rekey_meets_an_sa_that_is_gone() {
    let mut sim = classical_pair_by_hand(7);
    both_rekey_child(&mut sim, [50, 60, 10, 20]);
    let late = sim.waiting.remove(1);
    assert_eq!(header(&late).exchange, ExchangeType::CreateChildSa);
    // A's rekey and its Delete of the old one.
    sim.deliver_all();
    sim.deliver_again(&late);
    // CHILD_SA_NOT_FOUND, and B is content with A's.
    sim.deliver_all();
    child_winner_is(&sim, true);
}

#[test]
fn a_child_rekey_crosses_a_delete() {
    let mut sim = classical_pair_by_hand(7);
    let (rekeyed, expired) = (sender(&sim, 0), sender(&sim, 1));
    both_ask(&mut sim, [10, 20, 30, 40], [Command::RekeyChild(rekeyed), Command::ChildExpired(expired)]);
    // A is told TEMPORARY_FAILURE: B is deleting. B's Delete is answered as always.
    deliver_from(&mut sim, 0, REQUEST);
    deliver_from(&mut sim, 1, REQUEST);
    sim.deliver_all();
    must_be_settled(&sim);
    assert_ne!(sender(&sim, 0), rekeyed);
}

#[test]
fn both_delete_the_same_child() {
    let mut sim = classical_pair_by_hand(7);
    let (a, b) = (sender(&sim, 0), sender(&sim, 1));
    both_ask(&mut sim, [10, 20, 30, 40], [Command::ChildExpired(a), Command::ChildExpired(b)]);
    deliver_from(&mut sim, 0, REQUEST);
    deliver_from(&mut sim, 1, REQUEST);
    sim.deliver_all();
    // Both then ask for a fresh one; of the two the surplus goes.
    sim.by_hand = false;
    sim.run_for(std::time::Duration::from_secs(10));
    must_be_settled(&sim);
    assert!(sender(&sim, 0) != a && sender(&sim, 1) != b);
}

#[test]
fn ike_rekeys_cross() {
    for nonces in permutations() {
        for order in 0..2 {
            let mut sim = classical_pair_by_hand(7);
            both_rekey_ike(&mut sim, nonces);
            deliver_from(&mut sim, 0, REQUEST);
            deliver_from(&mut sim, 1, REQUEST);
            deliver_from(&mut sim, order, RESPONSE);
            deliver_from(&mut sim, 1 - order, RESPONSE);
            sim.deliver_all();
            must_be_settled(&sim);
            let winner = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
            assert_eq!(
                winner.initiator,
                a_wins(nonces),
                "the IKE SA with the lowest of {nonces:?} must be the one that goes"
            );
        }
    }
}

#[test]
fn ike_rekeys_cross_and_the_delete_overtakes_the_answer() {
    for nonces in permutations() {
        let mut sim = classical_pair_by_hand(7);
        both_rekey_ike(&mut sim, nonces);
        deliver_from(&mut sim, 0, REQUEST);
        deliver_from(&mut sim, 1, REQUEST);
        // B knows the outcome; its Delete reaches A before its answer does.
        deliver_from(&mut sim, 0, RESPONSE);
        deliver_from(&mut sim, 1, REQUEST);
        sim.deliver_all();
        must_be_settled(&sim);
        let winner = &sim.hosts[0].endpoint.ike_sas(HOST[1])[0];
        assert_eq!(winner.initiator, a_wins(nonces));
    }
}

#[test]
fn a_delayed_ike_rekey_meets_one_that_is_done() {
    for nonces in permutations() {
        let mut sim = classical_pair_by_hand(7);
        both_rekey_ike(&mut sim, nonces);
        deliver_from(&mut sim, 0, REQUEST);
        deliver_from(&mut sim, 1, RESPONSE);
        // A has moved on; B's request on the old IKE SA is told TEMPORARY_FAILURE, so B moves on too.
        deliver_from(&mut sim, 1, REQUEST);
        sim.deliver_all();
        must_be_settled(&sim);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].initiator);
    }
}

#[test]
fn an_ike_rekey_crosses_a_child_rekey() {
    for child_first in [false, true] {
        let mut sim = classical_pair_by_hand(7);
        let (old_child, old_ike) = (sender(&sim, 1), sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi);
        both_ask(&mut sim, [10, 20, 30, 40], [Command::RekeyIke(HOST[1]), Command::RekeyChild(old_child)]);
        deliver_from(&mut sim, usize::from(child_first), REQUEST);
        deliver_from(&mut sim, usize::from(!child_first), REQUEST);
        // Both are told TEMPORARY_FAILURE and try again later.
        sim.deliver_all();
        must_be_settled(&sim);
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, old_ike);
        sim.by_hand = false;
        sim.run_for(std::time::Duration::from_secs(20));
        must_be_settled(&sim);
        assert_ne!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].local_spi, old_ike);
        assert_ne!(sender(&sim, 1), old_child);
    }
}

#[test]
fn an_ike_rekey_crosses_a_delete_of_the_ike_sa() {
    for rekey_first in [false, true] {
        let mut sim = classical_pair_by_hand(7);
        both_ask(&mut sim, [10, 20, 30, 40], [Command::RekeyIke(HOST[1]), Command::Close(HOST[0])]);
        deliver_from(&mut sim, usize::from(!rekey_first), REQUEST);
        deliver_from(&mut sim, usize::from(rekey_first), REQUEST);
        sim.deliver_all();
        for host in 0..2 {
            assert!(sim.hosts[host].endpoint.ike_sas(HOST[1 - host]).is_empty());
            assert!(sim.hosts[host].plane.installed.is_empty() && sim.hosts[host].plane.reserved.is_empty());
        }
    }
}

#[test]
fn both_delete_the_ike_sa() {
    let mut sim = classical_pair_by_hand(7);
    both_ask(&mut sim, [10, 20, 30, 40], [Command::Close(HOST[1]), Command::Close(HOST[0])]);
    deliver_from(&mut sim, 0, REQUEST);
    deliver_from(&mut sim, 1, REQUEST);
    sim.deliver_all();
    sim.by_hand = false;
    sim.run_for(std::time::Duration::from_secs(40));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count() + sim.hosts[1].endpoint.ike_sa_count(), 0);
}

#[test]
fn the_winner_of_an_ike_rekey_deletes_a_child_before_the_loser_knows_the_outcome() {
    let mut sim = classical_pair_by_hand(7);
    let child = sender(&sim, 0);
    both_rekey_ike(&mut sim, [50, 60, 10, 20]);
    deliver_from(&mut sim, 0, REQUEST);
    deliver_from(&mut sim, 1, RESPONSE);
    // A saw no collision and works on the new IKE SA; B still waits for the answer to its own rekey of the old one.
    sim.command(0, Command::ChildExpired(child));
    let delete = sim.waiting.pop().expect("a Delete on the new IKE SA");
    assert_eq!(header(&delete).message_id, 0);
    sim.deliver_again(&delete);
    assert!(
        sim.hosts[1].plane.installed.iter().any(|sa| sa.outbound_spi == child),
        "it waits until B has the CHILD_SAs there"
    );
    sim.deliver_all();
    sim.by_hand = false;
    sim.run_for(std::time::Duration::from_secs(5));
    must_be_settled(&sim);
    assert_ne!(sender(&sim, 0), child);
}

#[test]
fn a_delete_overtakes_the_answer_that_made_the_child() {
    let mut sim = classical_pair_by_hand(7);
    let old = sender(&sim, 0);
    sim.command(0, Command::RekeyChild(old));
    sim.deliver(0);
    let answer = sim.waiting.remove(0);
    // B gives up what it has just made, and A hears of that first.
    let new = sim.hosts[1].plane.installed.last().expect("B installed it").inbound_spi;
    sim.command(1, Command::ChildExpired(new));
    let delete = sim.waiting.remove(0);
    sim.deliver_again(&delete);
    sim.deliver_again(&answer);
    assert!(sim.hosts[0].plane.installed.iter().all(|sa| sa.outbound_spi != new), "A must not come up with a dead SA");
    sim.deliver_all();
    sim.by_hand = false;
    sim.run_for(std::time::Duration::from_secs(20));
    must_be_settled(&sim);
}

#[test]
fn initiations_cross() {
    for nonces in permutations() {
        let mut sim = Simulator::new(3, 2, crate::ike::simulator::Proof::Psk);
        sim.by_hand = true;
        // IKE_SA_INIT draws the private key before the nonce as initiator, after it as responder.
        let [ni_a, nr_b, ni_b, nr_a] = nonces;
        script(&mut sim, 0, &[0, ni_a, nr_a, 0]);
        script(&mut sim, 1, &[0, ni_b, nr_b, 0]);
        sim.command(0, Command::Initiate(HOST[1]));
        sim.command(1, Command::Initiate(HOST[0]));
        for _ in 0..3 {
            // IKE_SA_INIT both ways, then IKE_INTERMEDIATE, then IKE_AUTH.
            deliver_from(&mut sim, 0, REQUEST);
            deliver_from(&mut sim, 1, REQUEST);
            deliver_from(&mut sim, 0, RESPONSE);
            deliver_from(&mut sim, 1, RESPONSE);
        }
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 2, "both are up for a moment");
        // Both send with the winner's CHILD_SA already.
        let winner = usize::from(!a_wins(nonces));
        assert_eq!(sender(&sim, winner), reserved(&sim, winner)[0]);
        sim.by_hand = false;
        sim.run_for(std::time::Duration::from_secs(5));
        must_be_settled(&sim);
        assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1])[0].initiator, winner == 0);
        assert_eq!(sim.most_ike_sas, 2);
    }
}
