//! What somebody on the wire can do without keys, and what a peer can do that has proved itself and then misbehaves.

use std::time::Duration;

use crate::ike::simulator::{Proof, Simulator};
use crate::ike::{Command, Event};
use crate::model::PeerIndex;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn initiations_that_failed(sim: &Simulator, host: usize) -> usize {
    sim.hosts[host].events.iter().filter(|event| matches!(event, Event::InitiateFailed { .. })).count()
}

/// Asked twice for an initiation, it must say once how the last one ended, or whoever waits for that waits for ever.
#[test]
fn an_initiation_that_was_asked_for_again_does_not_end_in_silence() {
    let mut sim = Simulator::new(4, 2, Proof::Psk);
    sim.by_hand = true;
    // Host 0's IKE_AUTH is lost; host 1's whole handshake is not.
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.deliver(0);
    sim.deliver(0);
    sim.waiting.clear();
    sim.run_for(SECONDS(1));
    sim.waiting.clear();
    sim.command(1, Command::Initiate(PeerIndex(0)));
    sim.deliver_all();
    assert_eq!(sim.hosts[0].endpoint.ike_sas(PeerIndex(1)).len(), 1);
    // From now on the network is dead. The peer seems dead, so a fresh one is wanted.
    sim.run_for(SECONDS(10));
    sim.waiting.clear();
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.run_for(SECONDS(60));
    assert_eq!(initiations_that_failed(&sim, 0), 1);
}
