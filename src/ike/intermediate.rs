//! What IKE_INTERMEDIATE adds to AUTH (RFC 9242 §3.3): each side's AUTH covers every octet of the exchanges between IKE_SA_INIT and
//! IKE_AUTH as well.
//!
//! ```text
//! IntAuth_i(n) = prf(SK_pi(n), IntAuth_i(n-1) | IntAuth_iA(n) | IntAuth_iP(n))        and so with r
//! IntAuth      = IntAuth_iN | IntAuth_rN | IKE_AUTH_MID
//! ```
//!
//! SK_pi(n) is the one in use when exchange n begins; A is the message up to and including the generic header of SK, P what stands
//! inside, with the lengths as if nothing were encrypted or in fragments ([`Message::in_clear`](crate::wire::ike::Message::in_clear)).

use super::keymat::IkeKeys;
use crate::crypto::Prf;
use crate::model::Secret;

/// The octets of one exchange's messages that IntAuth is made of: A, then P.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    pub request: Vec<u8>,
    pub response: Vec<u8>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct IntAuth {
    exchanges: u32,
    initiator: Option<Secret>,
    responder: Option<Secret>,
}

impl IntAuth {
    /// Takes in one exchange, which ran under these keys.
    pub fn cover(&mut self, prf: Prf, keys: &IkeKeys, covered: &Covered) {
        let next = |sk_p: &Secret, last: &Option<Secret>, octets: &[u8]| {
            let last = last.as_ref().map_or(&[][..], Secret::expose);
            Some(prf.compute(sk_p.expose(), &[last, octets]))
        };
        self.initiator = next(&keys.sk_pi, &self.initiator, &covered.request);
        self.responder = next(&keys.sk_pr, &self.responder, &covered.response);
        self.exchanges += 1;
    }

    /// IntAuth; nothing if there was no such exchange. IKE_AUTH follows them, so its message ID is one more than their number.
    pub fn octets(&self) -> Vec<u8> {
        match (&self.initiator, &self.responder) {
            (Some(initiator), Some(responder)) => {
                [initiator.expose(), responder.expose(), &(self.exchanges + 1).to_be_bytes()].concat()
            }
            _ => Vec::new(),
        }
    }
}
