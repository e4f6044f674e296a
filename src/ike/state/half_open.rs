//! Responder, IKE_SA_INIT answered, the peer not known yet.
//!
//! The answer costs one key generation and the octets of both messages. The key exchange itself is done at the first
//! IKE_INTERMEDIATE or IKE_AUTH with an SK payload: who only floods IKE_SA_INIT with spoofed sources never gets that far. Whatever the sender does, this state
//! ends after [`HALF_OPEN_LIFETIME`], also if its AUTH failed; until then it counts against its source's limit.

use std::sync::Arc;

use bytes::Bytes;

use super::established::{Birth, Established, Lineage, Pair};
use super::{Closed, IkeSa, stay};
use crate::crypto::{self, KeyExchange, Prf};
use crate::ike::auth::Authenticated;
use crate::ike::channel::Channel;
use crate::ike::child::{Child, Phase, Then};
use crate::ike::contents::Contents;
use crate::ike::effect::Effect;
use crate::ike::exchange::auth::{self, FULL_TRANSCRIPT, Record};
use crate::ike::exchange::negotiate::{
    self, FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, Nonces, Refusal, Setting, Source, key_exchange_payload,
};
use crate::ike::intermediate::IntAuth;
use crate::ike::keymat::{self, IkeKeys};
use crate::ike::limits::{AMPLIFICATION, HALF_OPEN_LIFETIME};
use crate::ike::mobike::{self, Mobility};
use crate::ike::nat::{self, Nat};
use crate::ike::proposals::{Chosen, choose_ike};
use crate::ike::session::{Packet, Received, Session, SessionStart};
use crate::ike::shared::Shared;
use crate::ike::{CloseReason, Event, PeerConfig, PostQuantum, ProvedBy};
use crate::model::{AeadAlgorithm, DropReason, IkeSpi, IkeSuite, Instant, KeGroup, Path, PeerId};
use crate::wire::ike::{ExchangeType, Flags, Header, KeyExchangePayload, Message, NotifyType, Payload, Proposal};

/// Octets of a KE payload before its value.
const KE_HEADER_LEN: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct HalfOpen {
    pub local_spi: IkeSpi,
    pub remote_spi: IkeSpi,
    /// Where the request came from.
    pub source: Path,
    /// The request and our answer, and what else AUTH covers.
    pub record: Record,
    pub expires: Instant,
    arrived: Instant,
    suite: IkeSuite,
    nat: Nat,
    fragmentation: bool,
    secret: Secret,
}

/// What the exchange of keys has come to.
enum Secret {
    /// Our half and the peer's value.
    Halves(Box<dyn KeyExchange>, Bytes),
    /// The keys, and the session under them.
    Keyed(Box<Keyed>),
}

/// The keys, and the session under them.
struct Keyed {
    keys: IkeKeys,
    session: Session,
    /// The additional key exchange that IKE_INTERMEDIATE must bring before IKE_AUTH (RFC 9370).
    pending: Option<KeGroup>,
}

impl Keyed {
    /// The keys of IKE_SA_INIT. The session starts where this message came from, which need not be where IKE_SA_INIT came from;
    /// until the peer has proved itself, no verdict about NATs binds it to that path.
    fn new(
        spis: (IkeSpi, IkeSpi),
        suite: IkeSuite,
        secret: &crate::model::Secret,
        record: &Record,
        fragmentation: bool,
        packet: Packet<'_>,
    ) -> Self {
        let keys = keymat::initial(suite, secret, &record.nonce_i, &record.nonce_r, spis.0.value(), spis.1.value());
        let session = Session::new(SessionStart {
            local_spi: spis.1,
            remote_spi: spis.0,
            initiator: false,
            path: packet.path,
            transport: packet.transport,
            nat: Nat::default(),
            fragmentation,
            channel: Channel::new(suite.aead, &keys, false),
            first_id: 1,
        });
        Self { keys, session, pending: suite.additional }
    }

    /// The only exchange that may come next.
    const fn awaited(pending: Option<KeGroup>) -> ExchangeType {
        if pending.is_some() { ExchangeType::IkeIntermediate } else { ExchangeType::IkeAuth }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Halves(..) => "Halves",
            Self::Keyed(_) => "Keyed",
        })
    }
}

/// Answers an IKE_SA_INIT request: the answer, and the state that it makes unless it is a refusal. `proven`: its sender has shown that
/// it hears us; if not, the answer is at most [`AMPLIFICATION`] times as long as the request.
///
/// # Errors
/// With a reason to drop the request without an answer; [`DropReason::IkeShort`] if the answer would be too long.
pub fn respond_to_init(
    shared: &mut Shared,
    now: Instant,
    packet: Packet<'_>,
    proven: bool,
) -> Result<(Bytes, Option<HalfOpen>), DropReason> {
    let header = packet.message.header;
    let remote_spi = IkeSpi::new(header.initiator_spi).ok_or(DropReason::IkeMalformed)?;
    let contents = Contents::of(packet.message.payloads.clone());
    let suites = acceptable_suites(shared, packet.path);
    if suites.is_empty() {
        return Err(DropReason::IkeNoPeer);
    }
    let (Some(proposals), Some(value), Some(nonce_i)) =
        (&contents.proposals, &contents.key_exchange, contents.nonce.clone())
    else {
        return Err(DropReason::IkeMalformed);
    };
    let additional = shared.peers.values().any(|config| config.post_quantum != PostQuantum::No);
    let suite = match choose_suite(&suites, additional, proposals, value, &contents) {
        Ok(chosen) => chosen,
        Err(refusal) => {
            if refusal.notify.kind == NotifyType::NoProposalChosen {
                shared.refused(None, packet.path, refusal.sentence.clone());
            }
            let payload = refusal.payload();
            return Ok((Message::emit_clear(&init_answer_header(header.initiator_spi, 0), &[payload]).into(), None));
        }
    };
    let local_spi = spi_other_than(remote_spi, shared);
    let nonce_r = shared.nonce();
    let mut payloads = vec![Payload::SecurityAssociation(vec![suite.answer]), Payload::Nonce(nonce_r.clone())];
    payloads.extend(init_notifies(shared, &contents, (remote_spi, local_spi), packet.path));
    let answer_header = init_answer_header(remote_spi.value(), local_spi.value());
    let length = Message::emit_clear(&answer_header, &payloads).len() + KE_HEADER_LEN + suite.suite.group.public_len();
    if !proven && length > AMPLIFICATION * packet.datagram.len() {
        return Err(DropReason::IkeShort);
    }
    // The first thing that costs more than octets.
    let half = crypto::key_exchange(suite.suite.group, &mut *shared.rng);
    payloads.insert(1, key_exchange_payload(half.as_ref()));
    let response: Bytes = Message::emit_clear(&answer_header, &payloads).into();
    let state = HalfOpen {
        local_spi,
        remote_spi,
        source: packet.path,
        record: Record {
            request: Bytes::copy_from_slice(packet.datagram),
            response: response.clone(),
            nonce_i,
            nonce_r,
            full_transcript: contents.notify(NotifyType::IkeSaInitFullTranscriptAuth).is_some(),
            int_auth: Vec::new(),
        },
        expires: now + HALF_OPEN_LIFETIME,
        arrived: now,
        suite: suite.suite,
        // The request's hashes were made with a responder SPI of zero.
        nat: Nat::observe(&contents, remote_spi.value(), 0, packet.path),
        fragmentation: contents.notify(NotifyType::Ikev2FragmentationSupported).is_some(),
        secret: Secret::Halves(half, value.value.clone()),
    };
    Ok((response, Some(state)))
}

/// What our answer says besides SA, KE and nonce.
fn init_notifies(shared: &mut Shared, request: &Contents, spis: (IkeSpi, IkeSpi), path: Path) -> Vec<Payload> {
    let said = |kind| request.notify(kind).is_some();
    let mut payloads = nat::notifies(&mut *shared.rng, spis.0.value(), spis.1.value(), path).to_vec();
    payloads.extend(said(NotifyType::Ikev2FragmentationSupported).then_some(FRAGMENTATION_SUPPORTED));
    payloads.extend(said(NotifyType::IntermediateExchangeSupported).then_some(INTERMEDIATE_SUPPORTED));
    payloads.extend(said(NotifyType::SignatureHashAlgorithms).then(auth::signature_hash_algorithms));
    payloads.extend(auth::certificate_request(shared.peers.values().map(AsRef::as_ref)));
    // Whether the initiator said it or not: a request without it may have lost it on the way.
    payloads.push(FULL_TRANSCRIPT);
    payloads
}

fn spi_other_than(theirs: IkeSpi, shared: &mut Shared) -> IkeSpi {
    loop {
        let spi = IkeSpi::random(&mut *shared.rng);
        if spi != theirs {
            break spi;
        }
    }
}

/// The suite that we take.
fn choose_suite(
    suites: &[AeadAlgorithm],
    additional: bool,
    proposals: &[Proposal],
    value: &KeyExchangePayload,
    request: &Contents,
) -> Result<Chosen<IkeSuite>, Refusal> {
    if let Some(kind) = request.critical {
        let mut refusal = Refusal::new(NotifyType::UnsupportedCriticalPayload, "");
        refusal.notify.data = Bytes::from(vec![kind]);
        return Err(refusal);
    }
    // An additional key exchange needs IKE_INTERMEDIATE (RFC 9370 §2.2.2).
    let additional = additional && request.notify(NotifyType::IntermediateExchangeSupported).is_some();
    let chosen = choose_ike(suites, proposals, Some(value.group), additional)
        .map_err(|sentence| Refusal::new(NotifyType::NoProposalChosen, sentence))?;
    if chosen.suite.group.id() == value.group { Ok(chosen) } else { Err(Refusal::other_group(chosen.suite.group)) }
}

/// The header of an answer to IKE_SA_INIT.
pub fn init_answer_header(initiator_spi: u64, responder_spi: u64) -> Header {
    let flags = Flags { initiator: false, version: false, response: true };
    Header { initiator_spi, responder_spi, exchange: ExchangeType::IkeSaInit, flags, message_id: 0 }
}

/// The AEADs that any peer may use, those of the peers that are configured at this address first. IKE_AUTH then holds the choice
/// against the one peer that it names.
fn acceptable_suites(shared: &Shared, path: Path) -> Vec<AeadAlgorithm> {
    let (near, far): (Vec<_>, Vec<_>) = shared.peers.values().partition(|config| config.is_at(path.remote.ip()));
    let mut suites = Vec::new();
    for suite in near.iter().chain(&far).flat_map(|config| &config.suites) {
        if !suites.contains(suite) {
            suites.push(*suite);
        }
    }
    suites
}

/// Who the peer turned out to be.
struct Proven {
    config: Arc<PeerConfig>,
    proof: Authenticated<PeerId>,
    proved_by: Pair<ProvedBy>,
    /// Our part of the answer: IDr, CERT, AUTH.
    payloads: Vec<Payload>,
}

impl HalfOpen {
    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Option<IkeSa> {
        let header = packet.message.header;
        let exchanges = match &self.secret {
            Secret::Halves(..) => [Keyed::awaited(self.suite.additional); 2],
            // It may be repeated; the session knows.
            Secret::Keyed(_) => [ExchangeType::IkeIntermediate, ExchangeType::IkeAuth],
        };
        if !exchanges.contains(&header.exchange) || header.flags.response || packet.message.protected.is_none() {
            shared.drop(DropReason::IkeUnexpected);
            return stay(self, IkeSa::HalfOpen);
        }
        let (suite, spis, fragmentation) = (self.suite, (self.remote_spi, self.local_spi), self.fragmentation);
        let keyed = match self.secret {
            Secret::Keyed(keyed) => Ok(keyed),
            Secret::Halves(half, value) => half
                .agree(&value)
                .map(|secret| Box::new(Keyed::new(spis, suite, &secret, &self.record, fragmentation, packet))),
        };
        let mut keyed = match keyed {
            Ok(keyed) => keyed,
            Err(error) => {
                shared.drop(DropReason::IkeMalformed);
                shared.refused(None, packet.path, error.to_string());
                // It counts until it expires, or such values would buy one key exchange after the other.
                let source = Some(self.source.remote.ip());
                return stay(Box::new(Closed { last_answer: None, until: self.expires, source }), IkeSa::Closed);
            }
        };
        let received = keyed.session.receive(shared, packet, &[Keyed::awaited(keyed.pending)]);
        self.secret = Secret::Keyed(keyed);
        match received {
            Received::Request(ExchangeType::IkeIntermediate, contents) => {
                self.add_key_exchange(shared, packet.path, &contents)
            }
            Received::Request(_, contents) => self.authenticate(shared, now, packet.path, &contents),
            Received::Broken(sentence) => {
                shared.refused(None, packet.path, format!("malformed {}: {sentence}", header.exchange));
                self.into_closed()
            }
            Received::Nothing | Received::Response(..) => stay(self, IkeSa::HalfOpen),
        }
    }

    /// IKE_INTERMEDIATE (RFC 9242, RFC 9370 §2.2.2): answered under the old keys, followed by new ones.
    fn add_key_exchange(mut self: Box<Self>, shared: &mut Shared, path: Path, request: &Contents) -> Option<IkeSa> {
        let Secret::Keyed(keyed) = &mut self.secret else { return None };
        let Keyed { keys, session, pending } = keyed.as_mut();
        let Some(method) = pending.take() else { return stay(self, IkeSa::HalfOpen) };
        let value = request.key_exchange.as_ref().filter(|value| value.group == method.id());
        let answer =
            value.ok_or_else(|| format!("IKE_INTERMEDIATE has no KE payload for {}", method.name())).and_then(|value| {
                crypto::answer_key_exchange(method, &value.value, &mut *shared.rng).map_err(|error| error.to_string())
            });
        let (value, secret) = match answer {
            Ok(answer) => answer,
            Err(sentence) => {
                shared.drop(DropReason::IkeMalformed);
                shared.refused(None, path, sentence);
                session.respond(shared, &[Payload::bare_notify(NotifyType::InvalidSyntax)]);
                return self.into_closed();
            }
        };
        session.respond(shared, &[Payload::KeyExchange(KeyExchangePayload { group: method.id(), value: value.into() })]);
        let (prf, (spi_i, spi_r)) = (Prf(self.suite.prf), session.spis());
        let mut int_auth = IntAuth::default();
        int_auth.cover(prf, keys, &std::mem::take(&mut session.covered));
        self.record.int_auth = int_auth.octets();
        let (nonce_i, nonce_r) = (&self.record.nonce_i, &self.record.nonce_r);
        *keys = keymat::rekeyed(prf, &keys.sk_d, self.suite, (&secret, None), nonce_i, nonce_r, spi_i, spi_r);
        session.rekey(Channel::new(self.suite.aead, keys, false));
        stay(self, IkeSa::HalfOpen)
    }

    /// IKE_AUTH is authentic in the sense that the sender did the key exchange. Who it is, stands here.
    fn authenticate(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        path: Path,
        request: &Contents,
    ) -> Option<IkeSa> {
        match self.prove(shared, request) {
            Ok(proven) => self.establish(shared, now, request, proven),
            Err((config, sentence)) => {
                let peer = config.map(|config| config.index);
                let reason = if peer.is_some() { DropReason::IkeUnexpected } else { DropReason::IkeNoPeer };
                shared.drop(reason);
                shared.refused(peer, path, sentence);
                // The wire says no more than this (RFC 7296 §2.21.2); the log does.
                if let Secret::Keyed(keyed) = &mut self.secret {
                    keyed.session.respond(shared, &[Payload::bare_notify(NotifyType::AuthenticationFailed)]);
                }
                self.into_closed()
            }
        }
    }

    /// Finds the configured peer by the identities and checks its AUTH.
    fn prove(&self, shared: &Shared, request: &Contents) -> Result<Proven, (Option<Arc<PeerConfig>>, String)> {
        let claim = auth::Claim::of_initiator(request).map_err(|sentence| (None, sentence))?;
        let config = claim.find_peer(&shared.peers).map_err(|sentence| (None, sentence))?;
        let fail = |sentence: String| (Some(Arc::clone(&config)), sentence);
        if !config.suites.contains(&self.suite.aead) {
            return Err(fail(format!("{} may not use {}", config.name, self.suite.aead.name())));
        }
        if config.post_quantum == PostQuantum::Required && self.suite.additional.is_none() {
            let (name, suite) = (&config.name, self.suite);
            return Err(fail(format!("{name} must add a post-quantum key exchange (require_pq), but agreed on {suite}")));
        }
        let Secret::Keyed(keyed) = &self.secret else {
            return Err(fail("no keys".to_owned()));
        };
        let keys = &keyed.keys;
        let prf = Prf(self.suite.prf);
        let (proof, theirs) = claim.verify(prf, &config, self.record.of_initiator(&keys.sk_pi)).map_err(fail)?;
        let payloads = auth::responder_payloads(prf, &config, self.record.of_responder(&keys.sk_pr));
        let proved_by = Pair { ours: config.local_auth.proves_by(), theirs };
        Ok(Proven { config, proof, proved_by, payloads })
    }

    /// Answers, with a CHILD_SA if the peer asks for one that we can make.
    fn establish(self: Box<Self>, shared: &mut Shared, now: Instant, request: &Contents, proven: Proven) -> Option<IkeSa> {
        let Secret::Keyed(keyed) = self.secret else { return None };
        let Keyed { keys, mut session, .. } = *keyed;
        let Proven { config, proof, proved_by, mut payloads } = proven;
        session.nat = self.nat;
        let spis = session.spis();
        let kin = session.nat.observe_vendor_id(request, spis, session.path);
        let source = Source { prf: Prf(self.suite.prf), sk_d: &keys.sk_d };
        let nonces = Nonces { initiator: &self.record.nonce_i, responder: &self.record.nonce_r, in_auth: true };
        // Without SA payload it is a childless IKE SA (RFC 6023), which is fine.
        let child = request.proposals.is_some().then(|| {
            let esp_path = session.esp_path(shared.config.natt_port);
            let setting = Setting::new(shared, &config, esp_path);
            negotiate::answer(shared, self.local_spi, &config, config.owner, nonces, request)
                .map(|(child, payloads)| (child.keyed(setting, source, None), payloads))
        });
        let low_nonce = self.record.low_nonce();
        let birth = Birth {
            proof,
            proved_by,
            config: Arc::clone(&config),
            suite: self.suite,
            sk_d: keys.sk_d.clone(),
            kin,
            lineage: Lineage {
                initiator: false,
                began: self.arrived,
                proved: now,
                low_nonce: low_nonce.clone(),
                post_quantum: self.suite.additional.is_some(),
            },
        };
        payloads.extend(nat::vendor_id(spis, session.path));
        let mobility = Mobility::agreed(shared, session.path, request);
        if mobility.spoken {
            payloads.extend(mobike::auth_payloads(shared, session.path));
        }
        // Its AUTH covers our nonce, so our answer to IKE_SA_INIT arrived: both directions are proved.
        shared.event(Event::Proof { peer: config.index, asked: self.arrived });
        let (mut failure, mut answered) = (None, None);
        match child {
            Some(Ok((params, child_payloads))) => {
                payloads.extend(child_payloads);
                let mut child = Child::new(&params, Phase::Standby, false, low_nonce, now);
                let ticket = shared.install(params);
                child.phase = Phase::Installing(ticket, Then::Answer);
                session.respond_after(ticket, &payloads);
                answered = Some(child);
            }
            Some(Err(refusal)) => {
                payloads.push(refusal.payload());
                session.respond(shared, &payloads);
                failure = Some(refusal.sentence);
            }
            None => session.respond(shared, &payloads),
        }
        let mut state = Established::new(shared, now, session, birth);
        state.mobility = mobility;
        state.announce(shared);
        if let Some(sentence) = failure {
            shared.event(Event::ChildFailed { peer: config.index, reason: CloseReason::WeRefused(sentence) });
        }
        match answered {
            Some(child) => state.adopt_child(child),
            None => state.want_child(shared, now, false),
        }
        let initial_contact = request.notify(NotifyType::InitialContact).is_some();
        shared.effects.push_back(Effect::Settle { spi: self.local_spi, initial_contact });
        stay(Box::new(state), IkeSa::Established)
    }

    /// Nothing more can come of it; its answer is repeated until it expires.
    fn into_closed(self: Box<Self>) -> Option<IkeSa> {
        let Secret::Keyed(keyed) = self.secret else { return None };
        let source = Some(self.source.remote.ip());
        stay(Box::new(Closed { last_answer: keyed.session.last_answer(), until: self.expires, source }), IkeSa::Closed)
    }

    pub fn handle_timeout(self: Box<Self>, now: Instant) -> Option<IkeSa> {
        if now < self.expires { stay(self, IkeSa::HalfOpen) } else { None }
    }
}
