//! Situations that IKEv2 daemons are known to have stumbled over, one test each, named after the situation: who sends what, what is
//! delayed or lost, and what is left. Where two rekeys meet, over every order of the four nonces and with either host as the IKE SA's
//! initiator.
//!
//! `collision_table` goes through every order of arrival instead; here a few messages go through a story.

mod child_collisions;
mod child_rekey;
mod childless;
mod deletes;
mod ike_collisions;
mod ike_rekey;

use std::sync::Arc;
use std::time::Duration;

use super::collision_table::{classical, header};
use super::{HOST, Scripted, must_be_settled, pair, permutations, sender};
use crate::ike::exchange::negotiate::Refusal;
use crate::ike::session::{Packet, Received};
use crate::ike::shared::Shared;
use crate::ike::simulator::{Content, Datagram, Simulator};
use crate::ike::state::{Established, IkeSa};
use crate::ike::{Command, Event, PostQuantum};
use crate::model::{IkeSpi, KeGroup, Path, SeededRng, Spi};
use crate::wire::ike::{ExchangeType, Message};

const A: usize = 0;
const B: usize = 1;

/// Where nonces do not matter.
const ANY: [u8; 4] = [10, 60, 110, 160];

/// One message, taken off the wire with all its fragments.
struct Held(Vec<Datagram>);

/// Two hosts with a tunnel, whose messages are delivered by hand.
struct Scene {
    sim: Simulator,
    /// Of A's request, of B's answer to it, of B's request, of A's answer to it.
    nonces: [u8; 4],
    /// What they sent with at the start.
    old: [Spi; 2],
}

/// Every order of the nonces, with either host as the IKE SA's initiator.
fn everywhere() -> impl Iterator<Item = (usize, [u8; 4])> {
    permutations().flat_map(|nonces| [(A, nonces), (B, nonces)])
}

/// Who asks, and who began the IKE SA.
const ROLES: [(usize, usize); 4] = [(A, A), (A, B), (B, A), (B, B)];

impl Scene {
    /// Rekeys are one exchange.
    fn classical(initiator: usize, nonces: [u8; 4]) -> Self {
        Self::of(classical(initiator), nonces)
    }

    /// Rekeys are two exchanges.
    fn hybrid(nonces: [u8; 4]) -> Self {
        let mut sim = pair(7);
        sim.by_hand = true;
        Self::of(sim, nonces)
    }

    fn of(sim: Simulator, nonces: [u8; 4]) -> Self {
        let old = [sender(&sim, A), sender(&sim, B)];
        Self { sim, nonces, old }
    }

    // --- what happens ---

    /// Whatever this host draws next of the length of a nonce begins with this octet.
    fn lead(&mut self, host: usize, octet: u8) {
        let rng = &mut self.sim.hosts[host].endpoint.shared.rng;
        let inner = SeededRng::new(rng.u64());
        *rng = Box::new(Scripted { inner, script: vec![octet; 16] });
    }

    fn ask(&mut self, host: usize, command: Command) {
        self.lead(host, self.nonces[2 * host]);
        self.sim.command(host, command);
    }

    fn rekey_child(&mut self, host: usize) {
        self.ask(host, Command::RekeyChild(self.old[host]));
    }

    fn rekey_ike(&mut self, host: usize) {
        self.ask(host, Command::RekeyIke(HOST[1 - host]));
    }

    fn close(&mut self, host: usize) {
        self.ask(host, Command::Close(HOST[1 - host]));
    }

    /// The host has lost patience with its old CHILD_SA.
    fn expire_child(&mut self, host: usize) {
        self.ask(host, Command::ChildExpired(self.old[host]));
    }

    /// A host's oldest request, or response, is taken off the wire.
    fn hold(&mut self, host: usize, response: bool) -> Held {
        let from = self.sim.hosts[host].address;
        let is_its = |datagram: &Datagram| datagram.path.local.ip() == from && header(datagram).flags.response == response;
        let first = self.sim.waiting.iter().find(|datagram| is_its(datagram)).map(header);
        let first = first.unwrap_or_else(|| panic!("host {host} has sent nothing (response: {response})"));
        let whole = |datagram: &mut Datagram| is_its(datagram) && header(datagram) == first;
        Held(self.sim.waiting.extract_if(.., whole).collect())
    }

    fn hold_request(&mut self, of: usize) -> Held {
        self.hold(of, false)
    }

    fn hold_answer(&mut self, of: usize) -> Held {
        self.hold(of, true)
    }

    /// What was held back arrives.
    fn bring(&mut self, Held(datagrams): &Held) {
        for datagram in datagrams {
            let to = usize::from(datagram.path.local.ip() == self.sim.hosts[A].address);
            // The answer to A's request has the second nonce, that to B's the fourth.
            if !header(datagram).flags.response {
                self.lead(to, self.nonces[3 - 2 * to]);
            }
            self.sim.deliver_again(datagram);
        }
    }

    /// A host's oldest request reaches the other.
    fn request(&mut self, of: usize) {
        let held = self.hold_request(of);
        self.bring(&held);
    }

    /// A host's oldest answer reaches the other.
    fn answer(&mut self, of: usize) {
        let held = self.hold_answer(of);
        self.bring(&held);
    }

    /// The oldest requests of both arrive, that of `first` first.
    fn requests(&mut self, first: usize) {
        self.request(first);
        self.request(1 - first);
    }

    /// A host's oldest request reaches the other, and the oldest answer of that one comes back.
    fn exchange(&mut self, of: usize) {
        self.request(of);
        self.answer(1 - of);
    }

    /// A host's oldest request is answered as by somebody who wants another group.
    fn other_group(&mut self, of: usize, group: KeGroup) {
        let Held(datagrams) = self.hold_request(of);
        let at = 1 - of;
        let spi = self.sim.hosts[at].endpoint.ike_sas(HOST[of])[0].local_spi;
        for datagram in datagrams {
            let Content::Ike(octets) = &datagram.content else { panic!("IKE only") };
            let message = Message::parse(octets).expect("our own message");
            let path = Path { local: datagram.path.remote, remote: datagram.path.local };
            let packet = Packet { message: &message, datagram: octets, path, transport: datagram.transport };
            self.with(at, spi, |state, shared| {
                let received = state.session.receive(shared, packet, &[ExchangeType::CreateChildSa]);
                assert!(matches!(received, Received::Request(..)), "{received:?}");
                state.session.respond(shared, &[Refusal::other_group(group).payload()]);
            });
        }
        self.sim.run_for(Duration::ZERO);
    }

    /// Lays hands on an IKE SA.
    fn with(&mut self, host: usize, spi: IkeSpi, act: impl FnOnce(&mut Established, &mut Shared)) {
        let endpoint = &mut self.sim.hosts[host].endpoint;
        let Some(IkeSa::Established(mut state)) = endpoint.table.take(spi) else { panic!("it is up") };
        act(&mut state, &mut endpoint.shared);
        endpoint.table.put(spi, IkeSa::Established(state));
    }

    /// A host loses its CHILD_SA without a word.
    fn forget_child(&mut self, host: usize) {
        let (spi, ike) = (self.old[host], self.ike(host));
        self.with(host, ike, |state, shared| {
            let child = state.children.remove(&spi).expect("its only one");
            child.retire(shared, true);
        });
        self.sim.run_for(Duration::ZERO);
    }

    /// Both lose it.
    fn forget_children(&mut self) {
        self.forget_child(A);
        self.forget_child(B);
        self.sim.waiting.clear();
    }

    /// Whether this host adds ML-KEM to what it asks for from now on; it is taken of who asks in any case.
    fn adds_ml_kem(&mut self, host: usize, does: bool) {
        let spi = self.ike(host);
        let post_quantum = if does { PostQuantum::Preferred } else { PostQuantum::No };
        self.with(host, spi, |state, _| Arc::make_mut(&mut state.birth.config).post_quantum = post_quantum);
    }

    // --- what is ---

    /// The only IKE SA of a host.
    fn ike(&self, host: usize) -> IkeSpi {
        let sas = self.sim.hosts[host].endpoint.ike_sas(HOST[1 - host]);
        let [sa] = sas.as_slice() else { panic!("host {host} has {} IKE SAs", sas.len()) };
        sa.local_spi
    }

    fn sender(&self, host: usize) -> Spi {
        sender(&self.sim, host)
    }

    /// How often a host refused something, and why.
    fn refusals(&self, host: usize) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Refused { reason, .. } => Some(reason.to_string()),
            _ => None,
        };
        self.sim.hosts[host].events.iter().filter_map(text).collect()
    }

    /// What a host refused first, it refused for this reason.
    fn must_have_refused(&self, host: usize, reason: &str) {
        let refusals = self.refusals(host);
        assert!(refusals[0].contains(reason), "host {host}: {refusals:?}");
    }

    /// Each refused what the other asked for.
    fn both_must_have_refused(&self) {
        assert!(!self.refusals(A).is_empty() && !self.refusals(B).is_empty(), "each has to wait for the other");
    }

    /// Whether A's exchange wins: the one with the lowest of the four nonces loses.
    fn a_wins(&self) -> bool {
        let [ni_a, nr_b, ni_b, nr_a] = self.nonces;
        ni_a.min(nr_b) > ni_b.min(nr_a)
    }

    /// By the nonces.
    fn winner(&self) -> usize {
        usize::from(!self.a_wins())
    }

    /// The SPI of the last SA that a host asked for.
    fn asked_for(&self, host: usize) -> Spi {
        let spi = |event: &Event| match event {
            Event::Reserve { spi, .. } => Some(*spi),
            _ => None,
        };
        self.sim.hosts[host].events.iter().rev().find_map(spi).expect("the host asked for an SA")
    }

    // --- how it ends ---

    /// Everything that waits arrives, then the network is good and time passes: one IKE SA and one CHILD_SA, and nothing is left over.
    fn ends(&mut self) {
        self.sim.deliver_all();
        self.sim.by_hand = false;
        self.sim.run_for(Duration::from_secs(30));
        must_be_settled(&self.sim);
        self.sim.run_for(Duration::from_secs(95));
        self.sim.tidy().unwrap_or_else(|why| panic!("nonces {:?}: {why}", self.nonces));
    }

    /// That, and the CHILD_SA is the one that this host asked for first; nobody had to try again.
    fn ends_with_child_of(&mut self, maker: usize) {
        let asked = self.asked_for(maker);
        self.ends();
        assert_eq!(self.sender(maker), asked, "nonces {:?}: the SA that host {maker} asked for", self.nonces);
    }

    /// That, and the IKE SA is the one that this host made by its rekey.
    fn ends_with_ike_of(&mut self, maker: usize, old: IkeSpi) {
        self.ends();
        let sa = &self.sim.hosts[A].endpoint.ike_sas(HOST[B])[0];
        assert_ne!(sa.local_spi, old, "the IKE SA was rekeyed");
        assert_eq!(sa.initiator, maker == A, "nonces {:?}: the IKE SA of host {maker}", self.nonces);
    }

    /// That, and another CHILD_SA than at the start.
    fn ends_with_another_child(&mut self) {
        self.ends();
        for host in [A, B] {
            assert_ne!(self.sender(host), self.old[host], "nonces {:?}", self.nonces);
        }
    }

    /// Everything that waits arrives: nothing is left at either end.
    fn ends_with_nothing(&mut self) {
        self.sim.deliver_all();
        self.sim.by_hand = false;
        self.sim.run_for(Duration::from_secs(100));
        for host in &self.sim.hosts {
            assert!(host.plane.installed.is_empty() && host.plane.reserved.is_empty());
            assert_eq!((host.endpoint.ike_sa_count(), host.endpoint.inbound_spi_count()), (0, 0));
        }
    }
}
