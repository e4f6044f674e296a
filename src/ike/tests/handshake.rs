//! From nothing to one CHILD_SA.

use std::time::Duration;

use crate::ike::Command;
use crate::ike::simulator::{Proof, Simulator};
use crate::model::PeerIndex;

#[test]
fn a_pair_with_a_shared_key_comes_up() {
    let mut sim = Simulator::new(1, 2, Proof::Psk);
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.run_for(Duration::from_secs(1));
    sim.settled(0, 1).unwrap_or_else(|why| panic!("{why}: {:?} {:?}", sim.hosts[0].complaints(), sim.hosts[1].complaints()));
}

#[test]
fn a_pair_with_host_keys_comes_up() {
    let mut sim = Simulator::new(1, 2, Proof::HostKeys);
    sim.command(0, Command::Initiate(PeerIndex(1)));
    sim.run_for(Duration::from_secs(1));
    sim.settled(0, 1).unwrap_or_else(|why| panic!("{why}: {:?} {:?}", sim.hosts[0].complaints(), sim.hosts[1].complaints()));
}
