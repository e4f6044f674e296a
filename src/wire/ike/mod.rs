//! IKEv2 messages (RFC 7296 §3).
//!
//! Two stages: [`Message::parse`] reads the header and the payloads that travel in clear; [`parse_chain`] reads the chain
//! inside an SK payload once its ICV held. Parsed messages own their contents: IKE is not the packet path.
//!
//! Emission cannot fail and cannot express an invalid message; `parse(emit(m)) == m`.

mod chain;
mod cursor;
mod header;
mod notify;
mod payload;
mod proposal;
mod protected;
mod selectors;

pub use chain::{MAX_PAYLOADS, ParseError, emit_chain, parse_chain};
pub use header::{ExchangeType, Flags, HEADER_LEN, Header};
pub use notify::{Notify, NotifyType};
pub use payload::{
    Auth, AuthMethod, Certificate, Delete, Identification, KeyExchangePayload, Payload, PayloadType, Protocol,
};
pub use proposal::{MAX_PROPOSALS, MAX_TRANSFORMS, Proposal, Transform, TransformType};
pub use protected::{Fragment, Message, OpenError, ProtectedView, SK_OVERHEAD, SKF_OVERHEAD};

#[cfg(test)]
mod tests;
