//! Initiator, IKE_INTERMEDIATE sent: the additional key exchange (RFC 9242, RFC 9370 §2.2.2).
//!
//! ```text
//! initiator                                     responder
//! HDR, SK {KEi(1)}                           ->
//!                                            <- HDR, SK {KEr(1)}
//! SKEYSEED(1) = prf(SK_d(0), SK(1) | Ni | Nr), and all keys anew from that
//! HDR, SK {IDi, AUTH, ...} under the new keys ->
//! ```

use super::auth_sent::{AuthSent, AuthStart};
use super::initiating::{Course, Progress};
use crate::crypto::{self, KeyExchange, Prf};
use crate::ike::CloseReason;
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::intermediate::IntAuth;
use crate::ike::keymat;
use crate::ike::limits::GIVE_UP_INITIATE;
use crate::ike::session::{Packet, Received};
use crate::ike::shared::Shared;
use crate::model::{DropReason, Instant, KeGroup};
use crate::wire::ike::ExchangeType;

/// See the module.
pub struct IntermediateSent {
    start: AuthStart,
    half: Box<dyn KeyExchange>,
}

impl std::fmt::Debug for IntermediateSent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IntermediateSent({}, {:?})", self.start.session.local_spi, self.half.group())
    }
}

impl IntermediateSent {
    /// Sends our half of the additional key exchange.
    pub fn start(shared: &mut Shared, now: Instant, mut start: AuthStart, method: KeGroup) -> Self {
        let half = crypto::key_exchange(method, &mut *shared.rng);
        let payloads = [key_exchange_payload(half.as_ref())];
        let patience = GIVE_UP_INITIATE.saturating_sub(now.since(start.started));
        start.session.request_for(shared, now, ExchangeType::IkeIntermediate, &payloads, patience);
        Self { start, half }
    }

    pub const fn start_data(&self) -> &AuthStart {
        &self.start
    }

    pub fn handle(mut self: Box<Self>, shared: &mut Shared, now: Instant, packet: Packet<'_>) -> Progress {
        match self.start.session.receive(shared, packet, &[]) {
            Received::Nothing | Received::Request(..) => Progress::GoesOn(Course::Intermediate(self)),
            Received::Broken(sentence) => {
                Progress::Failed(CloseReason::WeRefused(format!("malformed IKE_INTERMEDIATE: {sentence}")))
            }
            Received::Response(contents, _) => self.judge(shared, now, &contents),
        }
    }

    fn judge(self: Box<Self>, shared: &mut Shared, now: Instant, response: &Contents) -> Progress {
        if let Some(error) = response.error() {
            let notify = error.kind.name().into_owned();
            return Progress::Failed(CloseReason::PeerRefused { notify, authenticated: true });
        }
        let method = self.half.group();
        let Some(value) = response.key_exchange.as_ref().filter(|value| value.group == method.id()) else {
            let sentence = format!("the answer to IKE_INTERMEDIATE has no KE payload for {}", method.name());
            shared.drop(DropReason::IkeMalformed);
            return Progress::Failed(CloseReason::WeRefused(sentence));
        };
        let Self { mut start, half } = *self;
        let secret = match half.agree(&value.value) {
            Ok(secret) => secret,
            Err(error) => {
                shared.drop(DropReason::IkeMalformed);
                return Progress::Failed(CloseReason::WeRefused(error.to_string()));
            }
        };
        let (prf, spis) = (Prf(start.suite.prf), start.session.spis());
        let mut int_auth = IntAuth::default();
        int_auth.cover(prf, &start.keys, &std::mem::take(&mut start.session.covered));
        let (nonce_i, nonce_r) = (&start.record.nonce_i, &start.record.nonce_r);
        start.keys = keymat::rekeyed(prf, &start.keys.sk_d, start.suite, (&secret, None), nonce_i, nonce_r, spis.0, spis.1);
        start.session.rekey(Channel::new(start.suite.aead, &start.keys, true));
        start.record.int_auth = int_auth.octets();
        Progress::GoesOn(Course::Auth(Box::new(AuthSent::start(shared, now, start))))
    }

    pub fn handle_timeout(mut self: Box<Self>, shared: &mut Shared, now: Instant) -> Progress {
        if self.start.session.handle_timeout(shared, now) {
            return Progress::Failed(self.start.no_answer("IKE_INTERMEDIATE"));
        }
        Progress::GoesOn(Course::Intermediate(self))
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.start.session.poll_timeout()
    }
}
