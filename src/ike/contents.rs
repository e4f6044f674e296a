//! The payloads of one message by kind, in whatever order they came (RFC 7296 §2.5: order does not matter to a receiver).

use bytes::Bytes;

use crate::model::TrafficSelector;
use crate::wire::ike::{
    Auth, Certificate, Delete, Identification, KeyExchangePayload, Notify, NotifyType, Payload, Proposal, Protocol,
};

/// What a message holds. The codec refuses a second payload of the kinds that come once.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub proposals: Option<Vec<Proposal>>,
    pub key_exchange: Option<KeyExchangePayload>,
    pub nonce: Option<Bytes>,
    pub id_i: Option<Identification>,
    pub id_r: Option<Identification>,
    pub auth: Option<Auth>,
    pub certificates: Vec<Certificate>,
    pub ts_i: Option<Vec<TrafficSelector>>,
    pub ts_r: Option<Vec<TrafficSelector>>,
    pub notifies: Vec<Notify>,
    pub deletes: Vec<Delete>,
    pub vendor_ids: Vec<Bytes>,
    /// The first payload that we do not know although its sender insists (§2.5).
    pub critical: Option<u8>,
}

impl Contents {
    /// Sorts a chain. CERTREQ is left out: we have one certificate at most, and show it.
    pub fn of(payloads: Vec<Payload>) -> Self {
        let mut contents = Self::default();
        for payload in payloads {
            match payload {
                Payload::SecurityAssociation(proposals) => contents.proposals = Some(proposals),
                Payload::KeyExchange(key_exchange) => contents.key_exchange = Some(key_exchange),
                Payload::Nonce(nonce) => contents.nonce = Some(nonce),
                Payload::IdInitiator(id) => contents.id_i = Some(id),
                Payload::IdResponder(id) => contents.id_r = Some(id),
                Payload::Auth(auth) => contents.auth = Some(auth),
                Payload::TsInitiator(selectors) => contents.ts_i = Some(selectors),
                Payload::TsResponder(selectors) => contents.ts_r = Some(selectors),
                Payload::Notify(notify) => contents.notifies.push(notify),
                Payload::Delete(delete) => contents.deletes.push(delete),
                Payload::VendorId(vendor_id) => contents.vendor_ids.push(vendor_id),
                Payload::Certificate(certificate) => contents.certificates.push(certificate),
                Payload::CertificateRequest(_) => {}
                Payload::Unknown { kind, critical } => {
                    if critical {
                        contents.critical.get_or_insert(kind);
                    }
                }
            }
        }
        contents
    }

    /// The first notification of this kind.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies.iter().find(|notify| notify.kind == kind)
    }

    /// Every notification of this kind.
    pub fn notifies(&self, kind: NotifyType) -> impl Iterator<Item = &Notify> {
        self.notifies.iter().filter(move |notify| notify.kind == kind)
    }

    /// The first notification that reports an error.
    pub fn error(&self) -> Option<&Notify> {
        self.notifies.iter().find(|notify| notify.kind.is_error())
    }

    /// Whether it asks for nothing that concerns CHILD_SAs.
    pub fn spares_children(&self) -> bool {
        self.proposals.is_none() && !self.deletes.iter().any(|delete| matches!(delete, Delete::Esp(_)))
    }

    /// Whether the SA payload is about an IKE SA.
    pub fn is_about_ike(&self) -> bool {
        self.proposals.as_ref().and_then(|proposals| proposals.first()).is_some_and(|first| first.protocol == Protocol::Ike)
    }
}
