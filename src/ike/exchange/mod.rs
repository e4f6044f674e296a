//! One file per exchange, and one for what two of them share.
//!
//! - [`auth`]: the payloads of IKE_AUTH, their making and their checking;
//! - [`create_child`]: CREATE_CHILD_SA for a new or a rekeyed CHILD_SA, as initiator and as responder;
//! - [`rekey_ike`]: CREATE_CHILD_SA for the IKE SA itself;
//! - [`follow_up`]: the additional key exchange of either;
//! - [`informational`]: Delete and liveness;
//! - [`negotiate`]: the payloads that make a CHILD_SA, in IKE_AUTH and in CREATE_CHILD_SA.
//!
//! IKE_SA_INIT has one state on each side and stands there: `state::init_sent`, `state::half_open`.

pub mod auth;
pub mod create_child;
pub mod follow_up;
pub mod informational;
pub mod negotiate;
pub mod rekey_ike;
pub mod worker_child;
