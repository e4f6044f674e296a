//! CREATE_CHILD_SA for the IKE SA itself (RFC 7296 §1.3.2, §2.18), and its collisions (§2.8.2, §2.25).
//!
//! ```text
//! initiator                         responder
//! HDR, SK {SA(spi), Ni, KEi}     ->
//!                                <- HDR, SK {SA(spi), Nr, KEr}      the new IKE SA has every CHILD_SA from here on
//! HDR, SK {D(IKE)}, on the old   ->
//!                                <- HDR, SK {}
//! ```
//!
//! If both ask at once, both answer and wait with the CHILD_SAs; of the four nonces the lowest loses, who made that IKE SA deletes
//! it, and who made the other one deletes the old.
//!
//! With an additional key exchange a second exchange goes between: see `follow_up`. Then there are no collisions to be judged.

use bytes::Bytes;

use super::follow_up::{Asked, Awaited};
use super::negotiate::{Refusal, key_exchange_payload, wanted_group};
use crate::crypto::{self, KeyExchange, Prf};
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::effect::Effect;
use crate::ike::keymat;
use crate::ike::limits::{MAX_INVALID_KE, MAX_REKEY_FAILURES, RETRY_REKEY};
use crate::ike::proposals::{PostQuantum, accept_ike, choose_ike, offer_ike};
use crate::ike::session::{Session, SessionStart};
use crate::ike::shared::Shared;
use crate::ike::state::{Birth, Candidate, Established, IkeSa, Leaving, Task, stay};
use crate::model::{DropReason, IkeSpi, IkeSuite, Instant, KeGroup, Secret};
use crate::wire::ike::{ExchangeType, NotifyType, Payload, Proposal};

/// Our request.
pub struct IkeOffer {
    spi: IkeSpi,
    nonce: Bytes,
    proposals: Vec<Proposal>,
    half: Box<dyn KeyExchange>,
    groups_tried: u32,
    /// The IKE SA that the peer made by rekeying this one meanwhile, and its lower nonce.
    rival: Option<(IkeSpi, Bytes)>,
}

impl std::fmt::Debug for IkeOffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IkeOffer({}, rival {:?})", self.spi, self.rival.as_ref().map(|rival| rival.0))
    }
}

/// The secrets and names of one side's view of a rekey.
pub struct Agreed {
    suite: IkeSuite,
    secret: Secret,
    /// Of the additional key exchange.
    additional: Option<Secret>,
    /// Whether we asked.
    initiator: bool,
    local_spi: IkeSpi,
    remote_spi: IkeSpi,
    nonce_i: Bytes,
    nonce_r: Bytes,
}

impl Established {
    // --- initiator ---

    pub fn start_rekey_ike(&mut self, shared: &mut Shared, now: Instant) -> Task {
        let spi = IkeSpi::random(&mut *shared.rng);
        let group = self.birth.suite.group;
        let offer = IkeOffer {
            spi,
            nonce: shared.nonce(),
            proposals: offer_ike(&self.birth.config.suites, group, self.post_quantum(), Some(spi)),
            half: crypto::key_exchange(group, &mut *shared.rng),
            groups_tried: 0,
            rival: None,
        };
        self.send_ike_offer(shared, now, &offer);
        Task::RekeyIke(Box::new(offer))
    }

    /// Whether a rekey adds a key exchange: if the peer has shown that it speaks one.
    pub fn post_quantum(&self) -> PostQuantum {
        if self.birth.suite.additional.is_some() { self.birth.config.post_quantum } else { PostQuantum::No }
    }

    fn send_ike_offer(&mut self, shared: &mut Shared, now: Instant, offer: &IkeOffer) {
        let payloads = [
            Payload::SecurityAssociation(offer.proposals.clone()),
            Payload::Nonce(offer.nonce.clone()),
            key_exchange_payload(offer.half.as_ref()),
        ];
        self.ask(shared, now, ExchangeType::CreateChildSa, &payloads);
    }

    /// The answer to our request.
    pub fn conclude_rekey_ike(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        mut offer: IkeOffer,
        response: &Contents,
    ) -> Option<IkeSa> {
        if let Some(notify) = response.notify(NotifyType::InvalidKePayload)
            && offer.groups_tried < MAX_INVALID_KE
            && let Ok(group) = wanted_group(notify)
            && group != offer.half.group()
        {
            offer.groups_tried += 1;
            offer.half = crypto::key_exchange(group, &mut *shared.rng);
            self.send_ike_offer(shared, now, &offer);
            self.task = Some(Task::RekeyIke(Box::new(offer)));
            return stay(self, IkeSa::Established);
        }
        let rival = offer.rival.take().filter(|(spi, _)| shared.candidates.remove(spi));
        let agreed = match response.error() {
            Some(error) => Err(error.kind.name().into_owned()),
            None => check_answer(offer, response),
        };
        let agreed = match agreed {
            Ok(agreed)
                if let Some(method) = agreed.suite.additional
                    && rival.is_none() =>
            {
                if self.follow_up(shared, now, Asked::Ike(Box::new(agreed)), method, response).is_err() {
                    shared.drop(DropReason::IkeMalformed);
                    self.rekey_refused(shared, now);
                }
                return stay(self, IkeSa::Established);
            }
            // The peer made one without; it did not want ours that way.
            Ok(agreed) if agreed.suite.additional.is_some() => Err("the additional key exchange is missing".to_owned()),
            agreed => agreed,
        };
        match (agreed, rival) {
            (Ok(agreed), Some((heir, rival))) if agreed.low_nonce() < rival => {
                // Ours loses: we made it, so we delete it; the peer deletes the old one.
                let spi = agreed.local_spi;
                let (session, _) = self.successor(agreed);
                let leaving = Leaving::deleting(shared, now, session, self.peer());
                shared.effects.push_back(Effect::Insert(spi, IkeSa::Leaving(Box::new(leaving))));
                self.bequeath(shared, now, heir, false)
            }
            (Ok(agreed), _) => {
                let heir = agreed.local_spi;
                let candidate = self.candidate(now, agreed);
                shared.effects.push_back(Effect::Insert(heir, IkeSa::Candidate(Box::new(candidate))));
                self.bequeath(shared, now, heir, true)
            }
            // The peer made one, and refuses or garbles ours: then it is the peer's.
            (Err(_), Some((heir, _))) => self.bequeath(shared, now, heir, false),
            (Err(_), None) => {
                shared.drop(DropReason::IkeUnexpected);
                self.rekey_refused(shared, now);
                stay(self, IkeSa::Established)
            }
        }
    }

    /// The answer to IKE_FOLLOWUP_KE, if it has what it takes.
    pub fn conclude_ike(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        mut agreed: Agreed,
        additional: Option<Secret>,
    ) -> Option<IkeSa> {
        if additional.is_none() {
            self.rekey_refused(shared, now);
            return stay(self, IkeSa::Established);
        }
        agreed.additional = additional;
        let heir = agreed.local_spi;
        let candidate = self.candidate(now, agreed);
        shared.effects.push_back(Effect::Insert(heir, IkeSa::Candidate(Box::new(candidate))));
        self.bequeath(shared, now, heir, true)
    }

    fn rekey_refused(&mut self, shared: &mut Shared, now: Instant) {
        self.rekey_at = now + RETRY_REKEY + shared.rng.jitter(RETRY_REKEY);
        self.rekey_failures += 1;
        // One that we cannot call will call us when this IKE SA has expired.
        if self.rekey_failures.is_multiple_of(MAX_REKEY_FAILURES) && self.birth.config.remote.is_some() {
            shared.effects.push_back(Effect::Reinitiate(self.peer()));
        }
    }

    // --- responder ---

    pub fn answer_rekey_ike(mut self: Box<Self>, shared: &mut Shared, now: Instant, request: &Contents) -> Option<IkeSa> {
        self.drop_pending(shared);
        match self.make_ike(shared, now, request) {
            Ok((agreed, payloads)) => {
                if let Some(method) = agreed.suite.additional {
                    self.await_follow_up(shared, now, Awaited::Ike(agreed), method, payloads);
                    return stay(self, IkeSa::Established);
                }
                self.session.respond(shared, &payloads);
                let (heir, low_nonce) = (agreed.local_spi, agreed.low_nonce());
                let candidate = self.candidate(now, agreed);
                shared.effects.push_back(Effect::Insert(heir, IkeSa::Candidate(Box::new(candidate))));
                if let Some(Task::RekeyIke(offer)) = &mut self.task {
                    offer.rival = Some((heir, low_nonce));
                    shared.candidates.insert(heir);
                    stay(self, IkeSa::Established)
                } else {
                    self.bequeath(shared, now, heir, false)
                }
            }
            Err(refusal) => {
                shared.drop(DropReason::IkeUnexpected);
                shared.refused(Some(self.peer()), self.session.path, format!("rekey of the IKE SA: {}", refusal.sentence));
                self.session.respond(shared, &[refusal.payload()]);
                stay(self, IkeSa::Established)
            }
        }
    }

    /// IKE_FOLLOWUP_KE was answered.
    pub fn hand_to_candidate(
        self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        mut agreed: Agreed,
        additional: Secret,
    ) -> Option<IkeSa> {
        agreed.additional = Some(additional);
        let heir = agreed.local_spi;
        let candidate = self.candidate(now, agreed);
        shared.effects.push_back(Effect::Insert(heir, IkeSa::Candidate(Box::new(candidate))));
        self.bequeath(shared, now, heir, false)
    }

    fn make_ike(&self, shared: &mut Shared, now: Instant, request: &Contents) -> Result<(Agreed, Vec<Payload>), Refusal> {
        match &self.task {
            Some(Task::Child(_) | Task::DeleteChild(_)) => {
                return Err(Refusal::new(NotifyType::TemporaryFailure, "a CHILD_SA is being made or deleted"));
            }
            Some(Task::FollowUp(_)) if self.child_task().is_some() => {
                return Err(Refusal::new(NotifyType::TemporaryFailure, "a CHILD_SA is being made or deleted"));
            }
            Some(Task::FollowUp(_)) => {
                return Err(Refusal::new(NotifyType::TemporaryFailure, "the IKE SA is being rekeyed already"));
            }
            Some(Task::RekeyIke(offer)) if offer.rival.is_some() => {
                return Err(Refusal::new(NotifyType::TemporaryFailure, "the IKE SA is being rekeyed already"));
            }
            _ if !shared.may_ask_for_sa(now, self.peer()) => return Err(Refusal::too_many()),
            _ => {}
        }
        let missing = |what: &str| Refusal::new(NotifyType::NoProposalChosen, format!("the request has no {what} payload"));
        let proposals = request.proposals.as_ref().ok_or_else(|| missing("SA"))?;
        let value = request.key_exchange.as_ref().ok_or_else(|| missing("KE"))?;
        let nonce_i = request.nonce.clone().ok_or_else(|| missing("nonce"))?;
        let chosen = choose_ike(
            &self.birth.config.suites,
            proposals,
            Some(value.group),
            self.birth.config.post_quantum != PostQuantum::No,
        )
        .map_err(|sentence| Refusal::new(NotifyType::NoProposalChosen, sentence))?;
        let suite = chosen.suite;
        if suite.additional.is_some() && matches!(self.task, Some(Task::RekeyIke(_))) {
            return Err(Refusal::new(NotifyType::TemporaryFailure, "both ends rekey the IKE SA"));
        }
        if suite.group.id() != value.group {
            return Err(Refusal::other_group(suite.group));
        }
        let remote_spi = ike_spi(&chosen.spi).map_err(|sentence| Refusal::new(NotifyType::NoProposalChosen, sentence))?;
        let half = crypto::key_exchange(suite.group, &mut *shared.rng);
        let (local_spi, nonce_r) = (IkeSpi::random(&mut *shared.rng), shared.nonce());
        let mut answer = chosen.answer;
        answer.spi = Bytes::copy_from_slice(&local_spi.value().to_be_bytes());
        let payloads = vec![
            Payload::SecurityAssociation(vec![answer]),
            Payload::Nonce(nonce_r.clone()),
            key_exchange_payload(half.as_ref()),
        ];
        let secret =
            half.agree(&value.value).map_err(|error| Refusal::new(NotifyType::NoProposalChosen, error.to_string()))?;
        Ok((Agreed { suite, secret, additional: None, initiator: false, local_spi, remote_spi, nonce_i, nonce_r }, payloads))
    }

    // --- both ---

    /// The session of the new IKE SA: counters at zero, path and NAT state as before (RFC 7296 §2.18).
    fn successor(&self, agreed: Agreed) -> (Session, Birth) {
        let Agreed { suite, secret, additional, initiator, local_spi, remote_spi, nonce_i, nonce_r } = agreed;
        let (spi_i, spi_r) = crate::ike::nat::spis(initiator, local_spi, remote_spi);
        let old_prf = Prf(self.birth.suite.prf);
        let secrets = (&secret, additional.as_ref());
        let keys = keymat::rekeyed(old_prf, &self.birth.sk_d, suite, secrets, &nonce_i, &nonce_r, spi_i, spi_r);
        let mut session = Session::new(SessionStart {
            local_spi,
            remote_spi,
            initiator,
            path: self.session.path,
            transport: self.session.transport,
            nat: self.session.nat,
            fragmentation: self.session.fragmentation,
            channel: Channel::new(suite.aead, &keys, initiator),
            first_id: 0,
        });
        session.settled = true;
        let mut birth = Birth { suite, sk_d: keys.sk_d.clone(), ..self.birth.clone() };
        birth.lineage.post_quantum |= suite.additional.is_some();
        (session, birth)
    }

    fn candidate(&self, now: Instant, agreed: Agreed) -> Candidate {
        let (session, birth) = self.successor(agreed);
        Candidate::new(now, session, birth)
    }

    /// The IKE SA that the peer made while our own rekey is undecided.
    pub fn rival_candidate(&self, shared: &Shared) -> Option<IkeSpi> {
        match &self.task {
            Some(Task::RekeyIke(offer)) => {
                offer.rival.as_ref().map(|(spi, _)| *spi).filter(|spi| shared.candidates.contains(spi))
            }
            _ => None,
        }
    }

    /// Leaves everything to a successor.
    pub fn leave_to(&mut self, shared: &mut Shared, heir: IkeSpi) {
        shared.candidates.remove(&heir);
        self.drop_pending(shared);
        let estate = self.estate();
        shared.effects.push_back(Effect::Inherit { heir, estate });
    }

    /// Leaves everything to a successor; what remains of this one ends with a Delete, ours or the peer's.
    pub fn bequeath(mut self: Box<Self>, shared: &mut Shared, now: Instant, heir: IkeSpi, delete: bool) -> Option<IkeSa> {
        self.leave_to(shared, heir);
        let peer = self.peer();
        let leaving = if delete {
            Leaving::deleting(shared, now, self.session, peer)
        } else {
            Leaving::rekeyed(now, self.session, peer, heir)
        };
        stay(Box::new(leaving), IkeSa::Leaving)
    }
}

impl Agreed {
    fn low_nonce(&self) -> Bytes {
        self.nonce_i.clone().min(self.nonce_r.clone())
    }
}

/// Checks the answer against what was asked for.
fn check_answer(offer: IkeOffer, response: &Contents) -> Result<Agreed, String> {
    let proposals = response.proposals.as_ref().ok_or("the answer has no SA payload")?;
    let chosen = accept_ike(&offer.proposals, proposals)?;
    let value = response.key_exchange.as_ref().ok_or("the answer has no KE payload")?;
    let nonce_r = response.nonce.clone().ok_or("the answer has no nonce")?;
    let group: KeGroup = chosen.suite.group;
    if group != offer.half.group() || value.group != group.id() {
        return Err("the answer's KE payload is not for the group that was asked for".to_owned());
    }
    Ok(Agreed {
        suite: chosen.suite,
        remote_spi: ike_spi(&chosen.spi)?,
        secret: offer.half.agree(&value.value).map_err(|error| error.to_string())?,
        additional: None,
        initiator: true,
        local_spi: offer.spi,
        nonce_i: offer.nonce,
        nonce_r,
    })
}

fn ike_spi(octets: &[u8]) -> Result<IkeSpi, String> {
    let value = <[u8; 8]>::try_from(octets).map_err(|_| "the IKE proposal's SPI has not eight octets")?;
    IkeSpi::new(u64::from_be_bytes(value)).ok_or_else(|| "the IKE proposal's SPI is zero".to_owned())
}
