//! Bad inputs in CREATE_CHILD_SA and INFORMATIONAL: from a peer that proved itself and misbehaves.

use bytes::Bytes;

use super::HOST;
use super::hand::{Hand, Snapshot, alone, counted, errors, own_config};
use crate::ike::limits::MAX_CHILDREN;
use crate::ike::simulator::{Proof, Simulator};
use crate::ike::{CloseReason, Command, Event};
use crate::model::{DropReason, Spi, TrafficSelector};
use crate::wire::ike::{Delete, ExchangeType, Notify, NotifyType, Payload, Protocol};

fn established() -> (Simulator, Hand) {
    let mut sim = alone(Proof::Psk);
    let hand = Hand::establish(&mut sim, 5);
    (sim, hand)
}

/// The SPI that the hand-written peer receives on.
const FIRST: u32 = 0x1234_5600;

/// Asks, and expects a refusal that changes nothing and is counted once.
fn refused(sim: &mut Simulator, hand: &mut Hand, payloads: &[Payload], what: &str) -> NotifyType {
    let (before, count) = (Snapshot::of(sim), counted(sim));
    let answer = hand.ask(sim, ExchangeType::CreateChildSa, payloads);
    assert_eq!((Snapshot::of(sim), counted(sim)), (before, count + 1), "{what}");
    let errors = errors(&answer);
    assert_eq!(errors.len(), 1, "{what}: {errors:?}");
    errors[0]
}

fn rekey_sa(protocol: Protocol, spi: &[u8]) -> Payload {
    Payload::Notify(Notify { protocol, spi: Bytes::copy_from_slice(spi), kind: NotifyType::RekeySa, data: Bytes::new() })
}

fn rekey(hand: &mut Hand, old: u32, new: u32) -> Vec<Payload> {
    let mut payloads = hand.create_child(new);
    payloads.insert(0, rekey_sa(Protocol::Esp, &old.to_be_bytes()));
    payloads
}

fn spi(value: u32) -> Spi {
    Spi::new(value).expect("a legal SPI")
}

fn range(start: &str, end: &str) -> TrafficSelector {
    let address = |text: &str| text.parse().expect("an address");
    TrafficSelector::new(address(start), address(end)).expect("in order")
}

/// Replaces TSi and TSr.
fn with_selectors(payloads: &mut Vec<Payload>, ts_i: Vec<TrafficSelector>, ts_r: Vec<TrafficSelector>) {
    payloads.retain(|payload| !matches!(payload, Payload::TsInitiator(_) | Payload::TsResponder(_)));
    payloads.extend([Payload::TsInitiator(ts_i), Payload::TsResponder(ts_r)]);
}

#[test]
fn case_84_selectors_that_do_not_parse_end_the_ike_sa() {
    let bodies: [&[u8]; 5] = [
        &[0, 0, 0, 0],
        &[255, 0, 0, 0],
        &[1, 0, 0, 0, 7, 0, 0, 15, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0],
        &[1, 0, 0, 0, 7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 9, 10, 0, 0, 0],
        &[1, 0, 0, 0, 7, 0, 0, 17, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0, 9, 0],
    ];
    for body in bodies {
        let (mut sim, mut hand) = established();
        let header = hand.header(ExchangeType::CreateChildSa, hand.next_id, false);
        let length = (4 + body.len()) as u16;
        let text = [&[0, 0][..], &length.to_be_bytes(), body, &[0]].concat();
        let message = hand.seal_octets(&header, 44, &text);
        hand.inject(&mut sim, &message);
        let answer = hand.read(&mut sim).pop().expect("an answer").1;
        assert_eq!(errors(&answer), [NotifyType::InvalidSyntax]);
        assert_eq!(counted(&sim), 1);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty() && sim.hosts[0].plane.installed.is_empty());
    }
}

#[test]
fn case_84_and_85_selectors_that_are_not_ours() {
    let (mut sim, mut hand) = established();
    let v6 = range("2001:db8::", "2001:db8::ffff");
    let theirs = range("10.42.1.0", "10.42.1.255");
    let ours = range("10.42.0.0", "10.42.0.255");
    let foreign = range("10.99.0.0", "10.99.0.255");
    for (index, (ts_i, ts_r)) in
        [(v6, v6), (foreign, ours), (theirs, foreign), (theirs, v6), (ours, theirs)].into_iter().enumerate()
    {
        let mut payloads = hand.create_child(0x2222_2200);
        with_selectors(&mut payloads, vec![ts_i], vec![ts_r]);
        let error = refused(&mut sim, &mut hand, &payloads, "selectors");
        assert_eq!(error, NotifyType::TsUnacceptable, "pair {index}");
    }
    // The IKE SA and its CHILD_SA live on, and a good request still succeeds.
    let payloads = hand.create_child(0x2222_2200);
    assert!(hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads).proposals.is_some());
}

#[test]
fn case_85_selectors_refused_in_ike_auth() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let mut config = own_config(Proof::Psk);
    config.local_selectors = vec![range("10.99.0.0", "10.99.0.255")];
    let payloads = hand.auth_payloads(&config);
    let answer = hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads);
    assert!(answer.auth.is_some(), "the IKE SA is up");
    assert_eq!(errors(&answer), [NotifyType::TsUnacceptable]);
    assert_eq!(sim.hosts[0].endpoint.ike_sas(HOST[1]).len(), 1);
    let why = sim.hosts[0].events.iter().find_map(|event| match event {
        Event::ChildFailed { reason: CloseReason::WeRefused(sentence), .. } => Some(sentence.clone()),
        _ => None,
    });
    let why = why.expect("ChildFailed");
    assert!(why.contains("10.99.0.0/24") && why.contains("10.42.1.0/24"), "ours and theirs: {why}");
}

#[test]
fn case_86_spis() {
    let (mut sim, mut hand) = established();
    for value in [0u32, 1, 255] {
        let mut payloads = hand.create_child(0x2222_2200);
        if let Payload::SecurityAssociation(proposals) = &mut payloads[0] {
            proposals[0].spi = Bytes::copy_from_slice(&value.to_be_bytes());
        }
        let error = refused(&mut sim, &mut hand, &payloads, "reserved SPI");
        assert_eq!(error, NotifyType::NoProposalChosen, "SPI {value}");
    }
    // One that the peer uses already.
    let payloads = hand.create_child(FIRST);
    assert_eq!(refused(&mut sim, &mut hand, &payloads, "SPI in use"), NotifyType::NoProposalChosen);
    // Our own SPI is as good as any other: each side's SPIs are its own affair.
    let own = sim.hosts[0].plane.installed[0].inbound_spi.value();
    let payloads = hand.create_child(own);
    assert!(hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads).proposals.is_some());
}

#[test]
fn case_87_rekey_sa_that_names_nothing() {
    let (mut sim, mut hand) = established();
    let first = FIRST.to_be_bytes();
    let names: [(Protocol, &[u8]); 7] = [
        (Protocol::None, &first),
        (Protocol::Ike, &first),
        (Protocol::Other(2), &first),
        (Protocol::Esp, &[]),
        (Protocol::Esp, &[0; 8]),
        (Protocol::Esp, &[0; 4]),
        (Protocol::Esp, &[0x99, 0x99, 0x99, 0]),
    ];
    for (protocol, octets) in names {
        let mut payloads = hand.create_child(0x2222_2200);
        payloads.insert(0, rekey_sa(protocol, octets));
        let error = refused(&mut sim, &mut hand, &payloads, "REKEY_SA");
        assert_eq!(error, NotifyType::ChildSaNotFound, "{protocol:?} {octets:?}");
    }
}

#[test]
fn case_88_rekeyed_twice_without_a_delete() {
    let (mut sim, mut hand) = established();
    let payloads = rekey(&mut hand, FIRST, 0x2222_2200);
    assert!(hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads).proposals.is_some());
    let payloads = rekey(&mut hand, FIRST, 0x3333_3300);
    assert_eq!(refused(&mut sim, &mut hand, &payloads, "again"), NotifyType::TemporaryFailure);
    // The successor itself may be rekeyed.
    let payloads = rekey(&mut hand, 0x2222_2200, 0x3333_3300);
    assert!(hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads).proposals.is_some());
    let delete = [Payload::Delete(Delete::Esp(vec![spi(FIRST), spi(0x2222_2200)]))];
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &delete);
    assert!(matches!(&answer.deletes[..], [Delete::Esp(spis)] if spis.len() == 2));
    assert_eq!(sim.hosts[0].plane.installed.len(), 1);
    assert_eq!(sim.hosts[0].plane.sender(HOST[1]).expect("a sender").outbound_spi, spi(0x3333_3300));
}

#[test]
fn case_88_rekey_of_one_that_is_being_deleted() {
    let (mut sim, mut hand) = established();
    let inbound = sim.hosts[0].plane.installed[0].inbound_spi;
    sim.command(0, Command::ChildExpired(inbound));
    let payloads = rekey(&mut hand, FIRST, 0x2222_2200);
    assert_eq!(refused(&mut sim, &mut hand, &payloads, "deleting"), NotifyType::TemporaryFailure);
}

#[test]
fn case_89_rekeys_that_ask_for_less_or_for_everything() {
    let (mut sim, mut hand) = established();
    let everything = range("0.0.0.0", "255.255.255.255");
    let mut payloads = rekey(&mut hand, FIRST, 0x2222_2200);
    with_selectors(&mut payloads, vec![everything], vec![everything]);
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(answer.ts_i.expect("TSi"), own_config(Proof::Psk).local_selectors, "narrowed to what is configured");
    let half = range("10.42.1.0", "10.42.1.127");
    let mut payloads = rekey(&mut hand, 0x2222_2200, 0x3333_3300);
    with_selectors(&mut payloads, vec![half], own_config(Proof::Psk).remote_selectors);
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert_eq!(answer.ts_i.expect("TSi"), [half]);
}

#[test]
fn case_90_deletes_of_nothing() {
    let (mut sim, mut hand) = established();
    let before = Snapshot::of(&sim);
    let own = sim.hosts[0].plane.installed[0].inbound_spi;
    let many = (0..5000).map(|index| spi(0x7000_0000 + index)).collect();
    for spis in [vec![], vec![spi(0x7777_7700)], vec![own], many] {
        let answer = hand.ask(&mut sim, ExchangeType::Informational, &[Payload::Delete(Delete::Esp(spis))]);
        assert!(answer.deletes.is_empty() && errors(&answer).is_empty());
        assert_eq!(Snapshot::of(&sim), before);
    }
    // Delete of an IKE SA with SPIs, and of ESP with SPIs of eight octets: malformed and authentic.
    for body in [[1, 4, 0, 1, 1, 2, 3, 4], [3, 8, 0, 1, 1, 2, 3, 4]] {
        let (mut sim, mut hand) = established();
        let header = hand.header(ExchangeType::Informational, hand.next_id, false);
        let text = [&[0, 0, 0, 12][..], &body, &[0]].concat();
        let message = hand.seal_octets(&header, 42, &text);
        hand.inject(&mut sim, &message);
        assert_eq!(errors(&hand.read(&mut sim)[0].1), [NotifyType::InvalidSyntax]);
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
        assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeMalformed), 1);
    }
}

#[test]
fn case_90_delete_of_what_we_are_deleting_is_answered_without_delete() {
    let (mut sim, mut hand) = established();
    let inbound = sim.hosts[0].plane.installed[0].inbound_spi;
    sim.command(0, Command::ChildExpired(inbound));
    let (request, asked) = hand.read(&mut sim).pop().expect("a Delete");
    assert_eq!(asked.deletes, [Delete::Esp(vec![inbound])]);
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &[Payload::Delete(Delete::Esp(vec![spi(FIRST)]))]);
    assert!(answer.deletes.is_empty() && errors(&answer).is_empty());
    hand.respond(&mut sim, request, &[]);
    assert!(sim.hosts[0].plane.installed.is_empty());
    let (_, again) = hand.read(&mut sim).pop().expect("host 0 asks for another");
    assert!(again.proposals.is_some());
}

#[test]
fn case_91_delete_of_the_ike_sa_while_we_ask_for_a_child() {
    let (mut sim, mut hand) = established();
    let inbound = sim.hosts[0].plane.installed[0].inbound_spi;
    sim.command(0, Command::RekeyChild(inbound));
    let (request, asked) = hand.read(&mut sim).pop().expect("a rekey");
    let answer = hand.ask(&mut sim, ExchangeType::Informational, &[Payload::Delete(Delete::Ike)]);
    assert!(answer.deletes.is_empty());
    assert!(sim.hosts[0].plane.installed.is_empty() && sim.hosts[0].plane.reserved.is_empty());
    // The answer to the rekey comes too late for anybody.
    let mut payloads = hand.create_child(0x2222_2200);
    payloads.insert(1, Payload::KeyExchange(asked.key_exchange.expect("KE")));
    let count = counted(&sim);
    hand.respond(&mut sim, request, &payloads);
    assert_eq!(counted(&sim), count + 1);
    assert!(sim.hosts[0].plane.installed.is_empty());
}

#[test]
fn case_92_a_thousand_children() {
    let (mut sim, mut hand) = established();
    let mut refusals = 0;
    for index in 0..1000 {
        let payloads = hand.create_child(0x2222_0000 + index * 256);
        let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
        refusals += usize::from(errors(&answer) == [NotifyType::NoAdditionalSas]);
    }
    assert_eq!(refusals, 1001 - MAX_CHILDREN);
    assert_eq!(sim.hosts[0].plane.installed.len(), MAX_CHILDREN);
}

#[test]
fn case_93_notifies_that_nobody_asked_for() {
    let (mut sim, mut hand) = established();
    let mut payloads = rekey(&mut hand, FIRST, 0x2222_2200);
    for (kind, data) in [
        (NotifyType::UseTransportMode, vec![]),
        (NotifyType::IpcompSupported, vec![0, 7, 3]),
        (NotifyType::EspTfcPaddingNotSupported, vec![]),
        (NotifyType::SetWindowSize, vec![0, 0, 0, 200]),
        (NotifyType::Other(16442), vec![0; 4]),
        (NotifyType::Other(40000), vec![1]),
    ] {
        payloads.push(Payload::Notify(Notify::new(kind, data)));
    }
    let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
    assert!(answer.proposals.is_some() && answer.notifies.is_empty(), "tunnel mode, as if nothing had been said");
    assert_eq!(sim.hosts[0].plane.installed.len(), 2);
}

#[test]
fn a_child_without_its_payloads_ends_the_ike_sa() {
    for kind in [33, 40, 44, 45] {
        let (mut sim, mut hand) = established();
        let mut payloads = hand.create_child(0x2222_2200);
        payloads.retain(|payload| payload.kind() != kind);
        let answer = hand.ask(&mut sim, ExchangeType::CreateChildSa, &payloads);
        assert_eq!(errors(&answer), [NotifyType::InvalidSyntax], "without {kind}");
        assert!(sim.hosts[0].endpoint.ike_sas(HOST[1]).is_empty());
    }
}

#[test]
fn answers_that_make_no_sense_leave_the_old_child_alone() {
    let nonsense: [fn(&mut Vec<Payload>); 4] = [
        |payloads| payloads.retain(|payload| !matches!(payload, Payload::SecurityAssociation(_))),
        |payloads| payloads.retain(|payload| !matches!(payload, Payload::Nonce(_))),
        |payloads| with_selectors(payloads, vec![range("0.0.0.0", "9.0.0.0")], vec![range("0.0.0.0", "9.0.0.0")]),
        |payloads| payloads.retain(|payload| !matches!(payload, Payload::TsInitiator(_))),
    ];
    for spoil in nonsense {
        let (mut sim, mut hand) = established();
        let old = sim.hosts[0].plane.installed[0].inbound_spi;
        sim.command(0, Command::RekeyChild(old));
        let (request, asked) = hand.read(&mut sim).pop().expect("a rekey");
        let mut payloads = hand.create_child(0x2222_2200);
        // Choose the proposal without a key exchange.
        let offered = asked.proposals.expect("SA");
        let mut chosen = offered.last().expect("a proposal").clone();
        chosen.spi = Bytes::copy_from_slice(&0x2222_2200u32.to_be_bytes());
        let first = |kind: u8| chosen.transforms.iter().find(|transform| transform.kind.value() == kind).copied();
        let transforms = [first(1), first(5)].into_iter().flatten().collect();
        chosen.transforms = transforms;
        payloads[0] = Payload::SecurityAssociation(vec![chosen]);
        (payloads[2], payloads[3]) = (
            Payload::TsInitiator(own_config(Proof::Psk).remote_selectors),
            Payload::TsResponder(own_config(Proof::Psk).local_selectors),
        );
        spoil(&mut payloads);
        hand.respond(&mut sim, request, &payloads);
        sim.finish_installs();
        assert_eq!(sim.hosts[0].plane.installed.len(), 1);
        assert_eq!(sim.hosts[0].plane.sender(HOST[1]).expect("a sender").inbound_spi, old);
        assert_eq!(counted(&sim), 1);
        // What the peer may have made goes: a Delete with the SPI that we offered.
        let (_, delete) = hand.read(&mut sim).pop().expect("a Delete");
        assert!(matches!(&delete.deletes[..], [Delete::Esp(spis)] if spis.len() == 1 && spis[0] != old));
    }
}
