//! What tests with the hand-written peer share: what host 0 holds, and what it may do when it is told nonsense.

pub use crate::ike::simulator::hand::{Greeting, Hand, own_config, sent, source};

use crate::ike::Event;
use crate::ike::contents::Contents;
use crate::ike::simulator::{Proof, Simulator};
use crate::model::{DropReason, Rng, Spi};
use crate::wire::ike::{ExchangeType, Flags, Header, NotifyType, Payload};

/// What host 0 holds, without what is only counted or logged.
#[derive(PartialEq, Eq, Debug)]
pub struct Snapshot {
    standing: Vec<String>,
    installed: Vec<Spi>,
    sas: usize,
}

impl Snapshot {
    pub fn of(sim: &Simulator) -> Self {
        let host = &sim.hosts[0];
        Self {
            standing: host.standing(),
            installed: host.plane.installed.iter().map(|child| child.inbound_spi).collect(),
            sas: host.endpoint.ike_sa_count(),
        }
    }
}

/// How often host 0 counted anything.
pub fn counted(sim: &Simulator) -> u64 {
    sim.hosts[0].endpoint.drops().nonzero().map(|(_, count)| count).sum()
}

/// Does something that must change nothing at host 0 but count this reason once.
pub fn must_only_count(sim: &mut Simulator, reason: DropReason, what: &str, act: impl FnOnce(&mut Simulator)) {
    let (before, all, these) = (Snapshot::of(sim), counted(sim), sim.hosts[0].endpoint.drops().of(reason));
    act(sim);
    let names: Vec<&str> = sim.hosts[0].endpoint.drops().nonzero().map(|(reason, _)| reason.name()).collect();
    assert_eq!(sim.hosts[0].endpoint.drops().of(reason), these + 1, "{what}: counted under {names:?}");
    assert_eq!(counted(sim), all + 1, "{what}: counted once");
    assert_eq!(Snapshot::of(sim), before, "{what}");
}

/// One host that is driven by hand and knows host 1; nothing of host 1 runs.
pub fn alone(proof: Proof) -> Simulator {
    let mut sim = Simulator::new(1, 2, proof);
    sim.by_hand = true;
    sim
}

/// The kinds of the error notifications in a message.
pub fn errors(contents: &Contents) -> Vec<NotifyType> {
    contents.notifies.iter().map(|notify| notify.kind).filter(|kind| kind.is_error()).collect()
}

/// How many IKE SAs came up at host 0.
pub fn ups(sim: &Simulator) -> usize {
    sim.hosts[0].events.iter().filter(|event| matches!(event, Event::IkeUp { .. })).count()
}

impl Hand {
    /// Sends a request, lets the data plane finish, and reads the answer.
    pub fn ask(&mut self, sim: &mut Simulator, exchange: ExchangeType, payloads: &[Payload]) -> Contents {
        sent(sim);
        self.send(sim, exchange, payloads);
        sim.finish_installs();
        let (header, contents) = self.read(sim).pop().expect("host 0 answers");
        assert!(header.flags.response && header.message_id + 1 == self.next_id, "{header:?}");
        contents
    }

    /// Answers a request of host 0.
    pub fn respond(&mut self, sim: &mut Simulator, request: Header, payloads: &[Payload]) {
        let flags = Flags { initiator: true, version: false, response: true };
        let message = self.seal(&Header { flags, ..request }, payloads);
        self.inject(sim, &message);
    }

    /// A nonce.
    pub fn nonce(&mut self) -> Payload {
        let mut nonce = vec![0; 32];
        self.rng.fill(&mut nonce);
        Payload::Nonce(nonce.into())
    }

    /// The payloads of a CREATE_CHILD_SA request without key exchange.
    pub fn create_child(&mut self, spi: u32) -> Vec<Payload> {
        let config = own_config(Proof::Psk);
        let mut payloads = self.child_payloads(&config, spi);
        payloads.insert(1, self.nonce());
        payloads
    }
}
