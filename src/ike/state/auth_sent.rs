//! Initiator, IKE_AUTH sent (RFC 7296 §1.2, §2.15, §2.21.2).
//!
//! The answer is authentic in the sense that its sender did the key exchange. Only if its AUTH also proves the identity that we
//! wanted does an IKE SA come to be; otherwise the responder is told so, since it holds one that is of no use.

use std::sync::Arc;

use super::Leaving;
use super::established::{Birth, Established, Lineage, Pair};
use super::initiating::{Course, Progress};
use crate::crypto::Prf;
use crate::ike::auth::Authenticated;
use crate::ike::child::{Child, Phase, Then};
use crate::ike::contents::Contents;
use crate::ike::effect::Effect;
use crate::ike::exchange::auth::{self, Claim, Record};
use crate::ike::exchange::informational::ends_ike;
use crate::ike::exchange::negotiate::{Answer, Offer, Setting};
use crate::ike::keymat::IkeKeys;
use crate::ike::limits::{GIVE_UP_INITIATE, HALF_OPEN_LIFETIME, IKE_PORT};
use crate::ike::mobike::{self, Mobility};
use crate::ike::nat;
use crate::ike::session::{Packet, Received, Session};
use crate::ike::shared::Shared;
use crate::ike::state::established::Job;
use crate::ike::{CloseReason, Event, PeerConfig, ProvedBy, RemoteEndpoint};
use crate::model::{DropReason, IkeSuite, Instant, PeerId, Spi};
use crate::wire::ike::{ExchangeType, NotifyType};

/// What IKE_SA_INIT came to.
#[derive(Debug)]
pub struct AuthStart {
    pub session: Session,
    pub config: Arc<PeerConfig>,
    pub suite: IkeSuite,
    pub keys: IkeKeys,
    /// When the initiation began.
    pub started: Instant,
    pub record: Record,
}

impl AuthStart {
    /// The first exchange may have travelled on another port, which firewalls know better than 4500.
    pub fn no_answer(&self, request: &'static str) -> CloseReason {
        let answered_on = match self.config.remote {
            Some(RemoteEndpoint::Standard(_)) => Some(IKE_PORT),
            Some(RemoteEndpoint::Natt(_)) | None => None,
        };
        CloseReason::NoAnswer { request, remote: self.session.path.remote, answered_on }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AuthSent {
    start: AuthStart,
    offer: Offer,
}

impl AuthSent {
    /// Sends IKE_AUTH: who we are, the proof, and the CHILD_SA that we want.
    pub fn start(shared: &mut Shared, now: Instant, mut start: AuthStart) -> Self {
        let AuthStart { config, suite, keys, session, .. } = &start;
        let ours = start.record.of_initiator(&keys.sk_pi);
        let holds_no_other = !shared.holds_proven(config.index);
        let mut payloads = auth::initiator_payloads(Prf(suite.prf), config, ours, holds_no_other);
        let offer = Offer::in_auth(shared, config, session.local_spi, start.record.nonce_i.clone());
        payloads.extend(offer.payloads(config));
        payloads.extend(nat::vendor_id(session.spis(), session.path));
        payloads.extend(mobike::auth_payloads(shared, session.path));
        // However late it leaves, the responder can take it as long as its half-open IKE SA lives, and then counts on us.
        let patience = GIVE_UP_INITIATE.saturating_sub(now.since(start.started)).max(HALF_OPEN_LIFETIME);
        start.session.request_for(shared, now, ExchangeType::IkeAuth, &payloads, patience);
        Self { start, offer }
    }

    pub const fn start_data(&self) -> &AuthStart {
        &self.start
    }

    /// The SPI that was reserved for the CHILD_SA.
    pub fn child_spi(&self) -> Spi {
        self.offer.spi
    }

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Progress {
        // The responder deletes what we have not heard of yet: nothing comes of it any more.
        let is_delete = self.start.session.peek(packet).is_some_and(|request| ends_ike(&request).is_some());
        let exchanges: &[ExchangeType] = if is_delete { &[ExchangeType::Informational] } else { &[] };
        match self.start.session.receive(shared, packet, exchanges) {
            Received::Nothing => Progress::GoesOn(Course::Auth(self)),
            Received::Request(..) => {
                self.start.session.respond(shared, &[]);
                self.fail(shared, CloseReason::PeerDeleted)
            }
            Received::Broken(sentence) => {
                self.fail(shared, CloseReason::WeRefused(format!("malformed IKE_AUTH: {sentence}")))
            }
            Received::Response(contents, asked) => self.judge(shared, now, &contents, asked),
        }
    }

    fn judge(self: Box<Self>, shared: &mut Shared, now: Instant, response: &Contents, asked: Instant) -> Progress {
        // An error without AUTH refuses the IKE SA; beside AUTH it is about the CHILD_SA.
        if let (Some(error), None) = (response.error(), &response.auth) {
            if error.kind == NotifyType::AuthenticationFailed {
                shared.key_refused(self.start.config.index, &self.start.config.local_auth.proves_by());
            }
            let notify = error.kind.name().into_owned();
            return self.fail(shared, CloseReason::PeerRefused { notify, authenticated: true });
        }
        let AuthStart { config, suite, keys, .. } = &self.start;
        let theirs = self.start.record.of_responder(&keys.sk_pr);
        let proof = Claim::of_responder(response).and_then(|claim| claim.verify(Prf(suite.prf), config, theirs));
        match proof {
            Ok(proof) => self.establish(shared, now, response, proof, asked),
            Err(sentence) => self.refuse(shared, now, sentence),
        }
    }

    /// The responder believes in an IKE SA that we do not want: tell it.
    fn refuse(self: Box<Self>, shared: &mut Shared, now: Instant, sentence: String) -> Progress {
        shared.drop(DropReason::IkeUnexpected);
        shared.release_spi(self.offer.spi);
        let peer = self.start.config.index;
        shared.refused(Some(peer), self.start.session.path, sentence.clone());
        let leaving = Leaving::unauthenticated(shared, now, self.start.session, peer);
        Progress::Refused(CloseReason::WeRefused(sentence), Box::new(leaving))
    }

    fn fail(self: Box<Self>, shared: &mut Shared, reason: CloseReason) -> Progress {
        shared.release_spi(self.offer.spi);
        Progress::Failed(reason)
    }

    fn establish(
        self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        response: &Contents,
        (proof, theirs): (Authenticated<PeerId>, ProvedBy),
        asked: Instant,
    ) -> Progress {
        let AuthSent { start, mut offer } = *self;
        let AuthStart { mut session, config, suite, keys, started, record, .. } = start;
        let spis = session.spis();
        let kin = session.nat.observe_vendor_id(response, spis, session.path);
        let low_nonce = record.low_nonce();
        let esp_path = session.esp_path(shared.config.natt_port);
        let setting_config = Arc::clone(&config);
        let setting = Setting::new(shared, &setting_config, esp_path);
        let answer = match response.error() {
            Some(error) => Err(refused(error.kind)),
            None => offer.accept(&config, &record.nonce_r, response).map_err(CloseReason::WeRefused),
        };
        let (peer, spi) = (config.index, session.local_spi);
        let birth = Birth {
            proof,
            proved_by: Pair { ours: config.local_auth.proves_by(), theirs },
            config,
            suite,
            sk_d: keys.sk_d.clone(),
            kin,
            lineage: Lineage {
                initiator: true,
                began: started,
                proved: now,
                low_nonce: low_nonce.clone(),
                post_quantum: suite.additional.is_some(),
            },
        };
        let mobility = Mobility::agreed(shared, session.path, response);
        let mut state = Established::new(shared, now, session, birth);
        state.mobility = mobility;
        state.announce(shared);
        shared.event(Event::Proof { peer, asked });
        match answer {
            Ok(Answer::Child(child)) => {
                // IKE_AUTH has no key exchange of its own, so nothing follows.
                let params = child.keyed(setting, state.source(), None);
                let mut child = Child::new(&params, Phase::Standby, true, low_nonce, now);
                let ticket = shared.install(params);
                child.phase = Phase::Installing(ticket, Then::UseAndDelete(None));
                state.adopt_child(child);
            }
            Ok(Answer::OtherGroup(_)) => {
                state.child_failed(shared, now, offer.spi, refused(NotifyType::InvalidKePayload));
            }
            Err(reason) => {
                // If the peer made one all the same, it must go.
                if response.proposals.is_some() {
                    state.adopt_child(Child::unwanted(offer.spi, None, low_nonce, now));
                    state.enqueue(Job::DeleteChild(offer.spi));
                }
                state.child_failed(shared, now, offer.spi, reason);
            }
        }
        state.look_at_nat(shared, now);
        state.pump(shared, now);
        shared.effects.push_back(Effect::Settle { spi, initial_contact: false });
        Progress::Up(Box::new(state))
    }

    pub fn handle_timeout(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Progress {
        if self.start.session.handle_timeout(shared, now) {
            let reason = self.start.no_answer("IKE_AUTH");
            return Progress::Refused(reason, Box::new(self.leave(shared, now)));
        }
        Progress::GoesOn(Course::Auth(self))
    }

    /// Ends it. The responder may believe in an IKE SA, and only its answers were lost: tell it.
    pub fn leave(self: Box<Self>, shared: &mut Shared, now: Instant) -> Leaving {
        shared.release_spi(self.offer.spi);
        let AuthStart { mut session, config, .. } = self.start;
        session.forget_request();
        Leaving::deleting(shared, now, session, config.index)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.start.session.poll_timeout()
    }
}

/// The peer's answer was this error, under an ICV.
fn refused(kind: NotifyType) -> CloseReason {
    CloseReason::PeerRefused { notify: kind.name().into_owned(), authenticated: true }
}
