//! What we propose, and what we choose from what a peer proposes (RFC 7296 §2.7, §3.3).

use crate::model::{AeadAlgorithm, ChildSuite, IkeSpi, IkeSuite, KeGroup, Spi};
use crate::wire::ike::Proposal;

/// Our IKE proposal: one proposal with the AEADs in order, every PRF and every group, `first_group` first.
/// `spi` is ours in a rekey, none in IKE_SA_INIT.
#[must_use]
pub fn offer_ike(suites: &[AeadAlgorithm], first_group: KeGroup, spi: Option<IkeSpi>) -> Vec<Proposal> {
    todo!("{suites:?} {first_group:?} {spi:?}")
}

/// Our ESP proposal: AEADs in order, ESN and no ESN, and for CREATE_CHILD_SA the groups with `first_group` first
/// (in IKE_AUTH: `groups` is empty).
#[must_use]
pub fn offer_esp(suites: &[AeadAlgorithm], groups: &[KeGroup], spi: Spi) -> Vec<Proposal> {
    todo!("{suites:?} {groups:?} {spi:?}")
}

/// A choice, ready to be sent back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen<S> {
    /// The suite.
    pub suite: S,
    /// The proposer's SPI octets.
    pub spi: Vec<u8>,
    /// The answer's single proposal: same number, one transform of each type; its SPI is to be set by the caller.
    pub answer: Proposal,
}

/// Chooses as responder for an IKE SA: our order of AEADs decides; the group of the KE payload (`ke_group`) is preferred if we
/// speak it.
///
/// # Errors
/// A sentence that says ours, theirs and the first type without a match.
pub fn choose_ike(ours: &[AeadAlgorithm], theirs: &[Proposal], ke_group: Option<u16>) -> Result<Chosen<IkeSuite>, String> {
    todo!("{ours:?} {theirs:?} {ke_group:?}")
}

/// Chooses as responder for a CHILD_SA. `ke_group` is the group of the KE payload; without one only proposals that allow none
/// (no KE transform, or NONE among them) match. In IKE_AUTH (`in_auth`) KE transforms are ignored.
///
/// # Errors
/// As [`choose_ike`].
pub fn choose_esp(
    ours: &[AeadAlgorithm],
    theirs: &[Proposal],
    ke_group: Option<u16>,
    in_auth: bool,
) -> Result<Chosen<ChildSuite>, String> {
    todo!("{ours:?} {theirs:?} {ke_group:?} {in_auth}")
}

/// Checks a responder's choice against our offer: one proposal, its number and protocol ours, one transform of each type that
/// we offered, none that we did not.
///
/// # Errors
/// A sentence.
pub fn accept_ike(offered: &[Proposal], answer: &[Proposal]) -> Result<Chosen<IkeSuite>, String> {
    todo!("{offered:?} {answer:?}")
}

/// As [`accept_ike`], for a CHILD_SA.
///
/// # Errors
/// A sentence.
pub fn accept_esp(offered: &[Proposal], answer: &[Proposal]) -> Result<Chosen<ChildSuite>, String> {
    todo!("{offered:?} {answer:?}")
}
