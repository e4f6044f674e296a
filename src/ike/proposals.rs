//! What we propose, and what we choose from what a peer proposes (RFC 7296 §2.7, §3.3).
//!
//! A proposal is matched type by type, in the order ENCR, INTEG, PRF, KE, ADDKE, ESN: each type that the protocol needs must have
//! one transform that we speak, and no type may be there that we do not know (§3.3.6). All our ciphers are AEADs, so INTEG must be
//! absent or NONE (RFC 5282 §8). The first type without a match becomes the sentence that people read.
//!
//! A post-quantum key exchange stands in ADDKE1 (RFC 9370). Peers that do not know that type skip the whole proposal, so a second
//! one without it follows.

use std::fmt::Write as _;

use bytes::Bytes;

pub use super::config::PostQuantum;
use crate::model::{AeadAlgorithm, ChildSuite, IkeSpi, IkeSuite, KeGroup, PrfAlgorithm, Spi};
use crate::wire::ike::{Proposal, Protocol, Transform, TransformType};

/// Transform ID of INTEG and KE: NONE.
const NONE: u16 = 0;

/// Transform ID of ESN: 32-bit sequence numbers.
const NO_ESN: u16 = 0;

/// Transform ID of ESN: 64-bit sequence numbers.
const ESN: u16 = 1;

/// The number of our first proposal.
const FIRST: u8 = 1;

/// The transform types of additional key exchanges.
const ADDITIONAL: [TransformType; 7] = {
    use TransformType::AdditionalKeyExchange as Add;
    [Add(1), Add(2), Add(3), Add(4), Add(5), Add(6), Add(7)]
};

/// Proposals, and transforms of one type, that a sentence lists: it is one line in a log, and a peer chose its length.
const LISTED: usize = 8;

/// Our IKE proposal: the AEADs in order, every PRF and every group, `first_group` first; with an additional key exchange, and then
/// without. `spi` is ours in a rekey, none in IKE_SA_INIT.
#[must_use]
pub fn offer_ike(
    suites: &[AeadAlgorithm],
    first_group: KeGroup,
    post_quantum: PostQuantum,
    spi: Option<IkeSpi>,
) -> Vec<Proposal> {
    let spi = spi.map_or_else(Bytes::new, |spi| Bytes::copy_from_slice(&spi.value().to_be_bytes()));
    let prfs = PrfAlgorithm::ALL.map(|prf| plain(TransformType::Prf, prf.id()));
    let classical: Vec<_> = encryption(suites).chain(prfs).chain(groups(&KeGroup::ALL, first_group)).collect();
    let hybrid = || classical.iter().copied().chain([plain(ADDITIONAL[0], KeGroup::ADDITIONAL.id())]).collect();
    let lists = match post_quantum {
        PostQuantum::No => vec![classical],
        PostQuantum::Preferred => vec![hybrid(), classical],
        PostQuantum::Required => vec![hybrid()],
    };
    let proposal = |(number, transforms)| Proposal { number, protocol: Protocol::Ike, spi: spi.clone(), transforms };
    (FIRST..).zip(lists).map(proposal).collect()
}

/// Our ESP proposal: AEADs in order, ESN and no ESN, and for CREATE_CHILD_SA the groups in order
/// (in IKE_AUTH: `groups` is empty).
#[must_use]
pub fn offer_esp(suites: &[AeadAlgorithm], groups: &[KeGroup], spi: Spi) -> Vec<Proposal> {
    let spi = Bytes::copy_from_slice(&spi.value().to_be_bytes());
    let groups = groups.iter().map(|group| plain(TransformType::KeyExchange, group.id()));
    let sequence_numbers = [ESN, NO_ESN].map(|id| plain(TransformType::SequenceNumbers, id));
    let transforms = encryption(suites).chain(groups).chain(sequence_numbers).collect();
    vec![Proposal { number: FIRST, protocol: Protocol::Esp, spi, transforms }]
}

/// Our ESP proposals for CREATE_CHILD_SA: with a key exchange, `first_group` first, and (in a proposal of its own) without, for peers
/// that do none here; before them, if `additional`, one that adds a post-quantum key exchange.
#[must_use]
pub fn offer_child(suites: &[AeadAlgorithm], first_group: KeGroup, additional: bool, spi: Spi) -> Vec<Proposal> {
    let mut all = KeGroup::ALL.to_vec();
    all.sort_by_key(|&group| group != first_group);
    let mut proposals = offer_esp(suites, &all, spi);
    if additional {
        let mut hybrid = proposals[0].clone();
        hybrid.transforms.push(plain(ADDITIONAL[0], KeGroup::ADDITIONAL.id()));
        proposals.insert(0, hybrid);
    }
    proposals.extend(offer_esp(suites, &[], spi));
    for (number, proposal) in (FIRST..).zip(&mut proposals) {
        proposal.number = number;
    }
    proposals
}

/// A transform without attributes.
const fn plain(kind: TransformType, id: u16) -> Transform {
    Transform { kind, id, key_length: None, unusable: false }
}

fn encryption(suites: &[AeadAlgorithm]) -> impl Iterator<Item = Transform> {
    suites.iter().map(|suite| {
        let (id, key_length) = suite.transform();
        Transform { key_length, ..plain(TransformType::Encryption, id) }
    })
}

fn groups(groups: &[KeGroup], first: KeGroup) -> impl Iterator<Item = Transform> {
    let others = groups.iter().copied().filter(move |&group| group != first);
    std::iter::once(first).chain(others).map(|group| plain(TransformType::KeyExchange, group.id()))
}

/// A choice, ready to be sent back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen<S> {
    /// The suite.
    pub suite: S,
    /// The SPI octets of whoever sent the proposal or the answer: nothing or eight octets for IKE, four for ESP, not reserved.
    pub spi: Vec<u8>,
    /// The answer's single proposal: same number, one transform of each type; its SPI is to be set by the caller.
    pub answer: Proposal,
}

/// Chooses as responder for an IKE SA: what adds a post-quantum key exchange comes first, then our order of AEADs decides; the
/// group of the KE payload (`ke_group`) is preferred if we speak it. If the suite's group is another one, the caller answers
/// INVALID_KE_PAYLOAD. `additional`: whether an exchange can follow that carries an additional key exchange.
///
/// # Errors
/// A sentence that says ours, theirs and the first type without a match.
pub fn choose_ike(
    ours: &[AeadAlgorithm],
    theirs: &[Proposal],
    ke_group: Option<u16>,
    additional: bool,
) -> Result<Chosen<IkeSuite>, String> {
    choose(theirs, |proposal| {
        let mut matcher = Matcher::new(proposal, Protocol::Ike, &IKE_TYPES)?;
        let (rank, aead) = matcher.aead(ours)?;
        matcher.no_integrity()?;
        let prf = matcher.prf()?;
        let group = matcher.group(ke_group)?;
        let additional = matcher.additional(additional)?;
        let rank = if additional.is_some() { rank } else { rank + ours.len() };
        Ok((rank, matcher.chosen(IkeSuite { aead, prf, group, additional })))
    })
}

/// Chooses as responder for a CHILD_SA. `ke_group` is the group of the KE payload; without one only proposals that allow none
/// (no KE transform, or NONE among them) match. In IKE_AUTH (`in_auth`) KE transforms are ignored. If the suite has another
/// group than `ke_group`, the caller answers INVALID_KE_PAYLOAD; if it has none, the KE payload is ignored. `additional`: whether
/// IKE_FOLLOWUP_KE can follow; then what adds a post-quantum key exchange comes first, as in [`choose_ike`].
///
/// # Errors
/// As [`choose_ike`].
pub fn choose_esp(
    ours: &[AeadAlgorithm],
    theirs: &[Proposal],
    ke_group: Option<u16>,
    in_auth: bool,
    additional: bool,
) -> Result<Chosen<ChildSuite>, String> {
    choose(theirs, |proposal| {
        let mut matcher = Matcher::new(proposal, Protocol::Esp, &ESP_TYPES)?;
        let (rank, aead) = matcher.aead(ours)?;
        matcher.no_integrity()?;
        let group = match ke_group {
            _ if in_auth => None,
            Some(_) if matcher.offers_a_group() => Some(matcher.group(ke_group)?),
            _ => matcher.no_group()?,
        };
        let additional = if in_auth { None } else { matcher.additional(additional && group.is_some())? };
        let esn = matcher.esn()?;
        let rank = if additional.is_some() { rank } else { rank + ours.len() };
        Ok((rank, matcher.chosen(ChildSuite { aead, esn, group, additional })))
    })
}

/// Checks a responder's choice against our offer: one proposal, its number and protocol ours, one transform of each type that
/// we offered, none that we did not.
///
/// # Errors
/// A sentence.
pub fn accept_ike(offered: &[Proposal], answer: &[Proposal]) -> Result<Chosen<IkeSuite>, String> {
    let proposal = only_offered(offered, answer)?;
    let mut matcher = Matcher::new(proposal, Protocol::Ike, &IKE_TYPES)?;
    let (_, aead) = matcher.aead(&AeadAlgorithm::ALL)?;
    let (prf, group, additional) = (matcher.prf()?, matcher.group(None)?, matcher.additional(true)?);
    let suite = IkeSuite { aead, prf, group, additional };
    Ok(matcher.chosen(suite))
}

/// As [`accept_ike`], for a CHILD_SA.
///
/// # Errors
/// A sentence.
pub fn accept_esp(offered: &[Proposal], answer: &[Proposal]) -> Result<Chosen<ChildSuite>, String> {
    let proposal = only_offered(offered, answer)?;
    let mut matcher = Matcher::new(proposal, Protocol::Esp, &ESP_TYPES)?;
    let (_, aead) = matcher.aead(&AeadAlgorithm::ALL)?;
    let group = if matcher.offers_a_group() { Some(matcher.group(None)?) } else { None };
    let additional = matcher.additional(group.is_some())?;
    let esn = matcher.esn()?;
    Ok(matcher.chosen(ChildSuite { aead, esn, group, additional }))
}

/// The best match of all proposals: the lowest rank, and of equal ranks the one that the peer named first.
fn choose<S>(
    theirs: &[Proposal],
    try_one: impl Fn(&Proposal) -> Result<(usize, Chosen<S>), String>,
) -> Result<Chosen<S>, String> {
    let mut best: Option<(usize, Chosen<S>)> = None;
    let mut sentence = String::from("no proposal of theirs fits");
    for (index, proposal) in theirs.iter().enumerate() {
        match try_one(proposal) {
            Ok(candidate) if best.as_ref().is_none_or(|(rank, _)| candidate.0 < *rank) => best = Some(candidate),
            Ok(_) => {}
            Err(_) if index > LISTED => {}
            Err(_) if index == LISTED => sentence.push_str("; and so on"),
            Err(reason) => {
                let _ = write!(sentence, "; {}: {reason}", proposal.number);
            }
        }
    }
    best.map(|(_, chosen)| chosen).ok_or(sentence)
}

/// The only proposal of an answer, if it can be made of one of our offers.
fn only_offered<'a>(offered: &[Proposal], answer: &'a [Proposal]) -> Result<&'a Proposal, String> {
    let [proposal] = answer else {
        return Err(format!("the answer holds {} proposals instead of one", answer.len()));
    };
    let offer = offered
        .iter()
        .find(|offer| (offer.number, offer.protocol) == (proposal.number, proposal.protocol))
        .ok_or_else(|| format!("the answer chose proposal {}, which was not offered", proposal.number))?;
    if offer.spi.len() != proposal.spi.len() {
        return Err(format!("the answer's SPI has {} octets instead of {}", proposal.spi.len(), offer.spi.len()));
    }
    if let Some(foreign) = proposal.transforms.iter().find(|transform| !offer.transforms.contains(transform)) {
        return Err(format!("the answer chose {} {}, which was not offered", type_name(foreign.kind), name(foreign)));
    }
    for offered in &offer.transforms {
        let count = proposal.transforms.iter().filter(|transform| transform.kind == offered.kind).count();
        if count != 1 {
            return Err(format!("the answer holds {count} transforms of type {} instead of one", type_name(offered.kind)));
        }
    }
    Ok(proposal)
}

/// The transform types of an IKE proposal (§3.3.3).
const IKE_TYPES: [TransformType; 4] =
    [TransformType::Encryption, TransformType::Integrity, TransformType::Prf, TransformType::KeyExchange];

/// The transform types of an ESP proposal (§3.3.3).
const ESP_TYPES: [TransformType; 4] =
    [TransformType::Encryption, TransformType::Integrity, TransformType::KeyExchange, TransformType::SequenceNumbers];

/// One proposal, and the transforms that were chosen from it so far.
struct Matcher<'a> {
    proposal: &'a Proposal,
    chosen: Vec<Transform>,
}

impl<'a> Matcher<'a> {
    /// Refuses what no choice of transforms could mend: protocol, SPI, types that we do not know.
    fn new(proposal: &'a Proposal, protocol: Protocol, types: &[TransformType]) -> Result<Self, String> {
        if proposal.protocol != protocol {
            return Err(format!("theirs is for protocol {}, ours for {}", proposal.protocol.value(), protocol.value()));
        }
        if protocol == Protocol::Esp && esp_spi(&proposal.spi).is_none() {
            return Err("their SPI is reserved".to_owned());
        }
        let known = |kind| types.contains(&kind) || ADDITIONAL.contains(&kind);
        if let Some(foreign) = proposal.transforms.iter().find(|transform| !known(transform.kind)) {
            return Err(format!("theirs holds {}, which we do not speak there", type_name(foreign.kind)));
        }
        Ok(Self { proposal, chosen: Vec::new() })
    }

    /// The transforms of one type, in their order.
    fn of(&self, kind: TransformType) -> impl Iterator<Item = &'a Transform> + use<'a> {
        self.proposal.transforms.iter().filter(move |transform| transform.kind == kind)
    }

    /// The transforms of one type that `known` knows, in their order.
    fn known<T>(
        &self,
        kind: TransformType,
        known: impl Fn(&Transform) -> Option<T>,
    ) -> impl Iterator<Item = (T, Transform)> {
        self.of(kind)
            .filter(|transform| !transform.unusable)
            .filter_map(move |transform| known(transform).map(|value| (value, *transform)))
    }

    /// Keeps the first candidate for the answer, or says why there is none.
    fn take<T>(
        &mut self,
        kind: TransformType,
        candidate: Option<(T, Transform)>,
        ours: impl IntoIterator<Item = &'static str>,
    ) -> Result<T, String> {
        let (value, transform) = candidate.ok_or_else(|| self.mismatch(kind, ours))?;
        self.chosen.push(transform);
        Ok(value)
    }

    /// "KE: theirs modp2048, ours x25519, ecp256"
    fn mismatch(&self, kind: TransformType, ours: impl IntoIterator<Item = &'static str>) -> String {
        let count = self.of(kind).count();
        let mut theirs: Vec<String> = self.of(kind).take(LISTED).map(name).collect();
        match count {
            0 => theirs.push("nothing".to_owned()),
            1..=LISTED => {}
            _ => theirs.push("more".to_owned()),
        }
        let ours: Vec<&str> = ours.into_iter().collect();
        format!("{}: theirs {}, ours {}", type_name(kind), theirs.join(", "), ours.join(", "))
    }

    /// The first of ours that they propose, and its place among ours.
    fn aead(&mut self, ours: &[AeadAlgorithm]) -> Result<(usize, AeadAlgorithm), String> {
        let kind = TransformType::Encryption;
        let candidate = self
            .known(kind, |transform| {
                let aead = AeadAlgorithm::from_transform(transform.id, transform.key_length)?;
                ours.iter().position(|&our| our == aead).map(|rank| (rank, aead))
            })
            .min_by_key(|&((rank, _), _)| rank);
        self.take(kind, candidate, ours.iter().map(|aead| aead.name()))
    }

    /// INTEG is absent or NONE; NONE that was proposed is answered (§2.7: one transform of each type).
    fn no_integrity(&mut self) -> Result<(), String> {
        let kind = TransformType::Integrity;
        if self.of(kind).any(|&transform| transform != plain(kind, NONE)) {
            return Err(self.mismatch(kind, ["none, as our ciphers are AEADs"]));
        }
        self.chosen.extend(self.of(kind).next());
        Ok(())
    }

    /// The first of ours that they propose.
    fn prf(&mut self) -> Result<PrfAlgorithm, String> {
        let kind = TransformType::Prf;
        let rank = |prf| PrfAlgorithm::ALL.iter().position(|&our| our == prf);
        let candidate = self
            .known(kind, |transform| PrfAlgorithm::from_id(transform.id).filter(|_| transform.key_length.is_none()))
            .min_by_key(|&(prf, _)| rank(prf));
        self.take(kind, candidate, PrfAlgorithm::ALL.map(PrfAlgorithm::name))
    }

    /// The wanted group if they propose it and we speak it, else the first of theirs that we speak.
    fn group(&mut self, wanted: Option<u16>) -> Result<KeGroup, String> {
        let kind = TransformType::KeyExchange;
        let candidates: Vec<_> = self
            .known(kind, |transform| KeGroup::from_id(transform.id).filter(|_| transform.key_length.is_none()))
            .collect();
        let preferred = candidates.iter().find(|(group, _)| Some(group.id()) == wanted).or(candidates.first());
        self.take(kind, preferred.copied(), KeGroup::ALL.map(KeGroup::name))
    }

    /// One additional key exchange at most (`may`): the first type that allows ours has it, and every other one that is there must
    /// allow NONE.
    fn additional(&mut self, may: bool) -> Result<Option<KeGroup>, String> {
        let mut method = None;
        let proposal = self.proposal;
        let is_there = |kind: &TransformType| proposal.transforms.iter().any(|transform| transform.kind == *kind);
        for kind in ADDITIONAL.into_iter().filter(is_there) {
            let ours = plain(kind, KeGroup::ADDITIONAL.id());
            let ours = self.of(kind).find(|&&transform| may && method.is_none() && transform == ours);
            if ours.is_some() {
                method = Some(KeGroup::ADDITIONAL);
            }
            let taken = ours.or_else(|| self.of(kind).find(|&&transform| transform == plain(kind, NONE)));
            let we = if may { KeGroup::ADDITIONAL.name() } else { "none, as no exchange can follow" };
            self.take(kind, taken.map(|&transform| ((), transform)), [we])?;
        }
        Ok(method)
    }

    /// Whether any KE transform but NONE is there.
    fn offers_a_group(&self) -> bool {
        self.of(TransformType::KeyExchange).any(|transform| transform.id != NONE)
    }

    /// KE is absent, or NONE is among what they propose.
    fn no_group(&mut self) -> Result<Option<KeGroup>, String> {
        let kind = TransformType::KeyExchange;
        let none = self.of(kind).find(|&&transform| transform == plain(kind, NONE));
        if none.is_none() && self.of(kind).next().is_some() {
            return Err(self.mismatch(kind, ["none, as there is no KE payload"]));
        }
        self.chosen.extend(none);
        Ok(None)
    }

    /// 64-bit sequence numbers if they propose them, else 32-bit ones. A proposal without this type is malformed (§3.3.3).
    fn esn(&mut self) -> Result<bool, String> {
        let kind = TransformType::SequenceNumbers;
        let candidate = [ESN, NO_ESN].into_iter().find_map(|id| {
            self.of(kind).find(|&&transform| transform == plain(kind, id)).map(|&transform| (id == ESN, transform))
        });
        self.take(kind, candidate, ["esn", "noesn"])
    }

    fn chosen<S>(self, suite: S) -> Chosen<S> {
        let Self { proposal, chosen: transforms } = self;
        let answer = Proposal { number: proposal.number, protocol: proposal.protocol, spi: Bytes::new(), transforms };
        Chosen { suite, spi: proposal.spi.to_vec(), answer }
    }
}

/// The SPI of an ESP proposal; none if it is reserved or not four octets long.
fn esp_spi(octets: &[u8]) -> Option<Spi> {
    octets.try_into().ok().map(u32::from_be_bytes).and_then(Spi::new)
}

/// What the RFCs call this type.
fn type_name(kind: TransformType) -> String {
    match kind {
        TransformType::Encryption => "ENCR".to_owned(),
        TransformType::Prf => "PRF".to_owned(),
        TransformType::Integrity => "INTEG".to_owned(),
        TransformType::KeyExchange => "KE".to_owned(),
        TransformType::SequenceNumbers => "ESN".to_owned(),
        TransformType::AdditionalKeyExchange(number) => format!("ADDKE{number}"),
        TransformType::Other(value) => format!("transform type {value}"),
    }
}

/// A transform as configurations of IPsec peers call it, or its number.
fn name(transform: &Transform) -> String {
    let Transform { kind, id, key_length, unusable } = *transform;
    let aead = AeadAlgorithm::from_transform(id, key_length).filter(|_| kind == TransformType::Encryption);
    let known = match (kind, id) {
        _ if aead.is_some() => aead.map(AeadAlgorithm::name),
        (TransformType::Encryption, 3) => Some("3des"),
        (TransformType::Encryption, 12) => Some("aescbc"),
        (TransformType::Encryption, 13) => Some("aesctr"),
        (TransformType::Encryption, 18) => Some("aesgcm8"),
        (TransformType::Encryption, 19) => Some("aesgcm12"),
        (TransformType::Encryption, 20) => Some("aesgcm16"),
        (TransformType::Encryption, 28) => Some("chacha20poly1305"),
        (TransformType::Prf, 2) => Some("prfsha1"),
        (TransformType::Prf, _) => PrfAlgorithm::from_id(id).map(PrfAlgorithm::name),
        (TransformType::Integrity | TransformType::KeyExchange | TransformType::AdditionalKeyExchange(_), NONE) => {
            Some("none")
        }
        (TransformType::AdditionalKeyExchange(_), 35) => Some("mlkem512"),
        (TransformType::AdditionalKeyExchange(_), 36) => Some("mlkem768"),
        (TransformType::AdditionalKeyExchange(_), 37) => Some("mlkem1024"),
        (TransformType::Integrity, 2) => Some("sha1"),
        (TransformType::Integrity, 12) => Some("sha256"),
        (TransformType::Integrity, 13) => Some("sha384"),
        (TransformType::Integrity, 14) => Some("sha512"),
        (TransformType::KeyExchange, 2) => Some("modp1024"),
        (TransformType::KeyExchange, 5) => Some("modp1536"),
        (TransformType::KeyExchange, 14) => Some("modp2048"),
        (TransformType::KeyExchange, 15) => Some("modp3072"),
        (TransformType::KeyExchange, 16) => Some("modp4096"),
        (TransformType::KeyExchange, 21) => Some("ecp521"),
        (TransformType::KeyExchange, _) => KeGroup::from_id(id).map(KeGroup::name),
        (TransformType::SequenceNumbers, NO_ESN) => Some("noesn"),
        (TransformType::SequenceNumbers, ESN) => Some("esn"),
        _ => None,
    };
    let mut text = known.map_or_else(|| format!("number {id}"), str::to_owned);
    match key_length.filter(|_| aead.is_none()) {
        Some(bits) => {
            let _ = write!(text, " with {bits} bits");
        }
        None if kind == TransformType::Encryption && aead.is_none() && matches!(id, 12 | 13 | 18..=20) => {
            text.push_str(" without key length")
        }
        None => {}
    }
    if unusable {
        text.push_str(" with an unknown attribute");
    }
    text
}

#[cfg(test)]
mod tests;
