//! The payloads that make a CHILD_SA: SA, Ni/Nr, KE, TSi, TSr (RFC 7296 §1.2, §1.3.1), the same in IKE_AUTH and CREATE_CHILD_SA.
//! The initiator makes an [`Offer`] and [`Offer::accept`]s the answer; the responder [`answer`]s.

use bytes::Bytes;

use crate::crypto::{self, KeyExchange, Prf};
use crate::ike::contents::Contents;
use crate::ike::keymat;
use crate::ike::limits::MAX_INVALID_KE;
use crate::ike::narrow::{is_subset, narrow};
use crate::ike::proposals::{PostQuantum, accept_esp, choose_esp, offer_child, offer_esp};
use crate::ike::shared::Shared;
use crate::ike::{PeerConfig, config::EndpointConfig};
use crate::model::{ChildSaParams, ChildSuite, IkeSpi, KeGroup, Lifetime, Path, Secret, Spi, TrafficSelector, WorkerIndex};
use crate::wire::ike::{KeyExchangePayload, Notify, NotifyType, Payload, Proposal};

/// Why we do not make what the peer asks for: the notify for the peer, the sentence for our log.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub notify: Notify,
    pub sentence: String,
}

impl Refusal {
    pub fn new(kind: NotifyType, sentence: impl Into<String>) -> Self {
        Self { notify: Notify::new(kind, Bytes::new()), sentence: sentence.into() }
    }

    /// INVALID_KE_PAYLOAD: the group that we want instead.
    pub fn other_group(group: KeGroup) -> Self {
        let notify = Notify::new(NotifyType::InvalidKePayload, group.id().to_be_bytes().to_vec());
        Self { notify, sentence: format!("the KE payload is not for {}", group.name()) }
    }

    /// TEMPORARY_FAILURE: the peer asks for SAs without end.
    pub fn too_many() -> Self {
        Self::new(NotifyType::TemporaryFailure, "the peer asked for too many SAs in a short time")
    }

    pub fn payload(&self) -> Payload {
        Payload::Notify(self.notify.clone())
    }
}

/// The keys that a CHILD_SA's keys come from: those of the IKE SA that carries the exchange.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub prf: Prf,
    pub sk_d: &'a Secret,
}

/// What a new CHILD_SA needs to know about its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    pub config: &'a PeerConfig,
    pub path: Path,
    pub replay_window: u32,
    pub lifetime: Lifetime,
}

impl<'a> Setting<'a> {
    pub fn new(shared: &mut Shared, config: &'a PeerConfig, path: Path) -> Self {
        let EndpointConfig { replay_window, .. } = shared.config;
        Self { config, path, replay_window, lifetime: shared.lifetime() }
    }
}

/// A CHILD_SA that both ends agree on and that has no keys: an additional key exchange may still have to follow.
#[derive(Debug)]
pub struct Unkeyed {
    pub inbound_spi: Spi,
    pub outbound_spi: Spi,
    pub suite: ChildSuite,
    pub nonce_i: Bytes,
    pub nonce_r: Bytes,
    /// Whether we asked for it.
    initiator: bool,
    /// Of the exchange's own key exchange.
    secret: Option<Secret>,
    local_selectors: Vec<TrafficSelector>,
    remote_selectors: Vec<TrafficSelector>,
}

impl Unkeyed {
    /// Gives it keys; `additional` is the secret of the additional key exchange that its suite names.
    pub fn keyed(self, setting: Setting<'_>, source: Source<'_>, additional: Option<&Secret>) -> ChildSaParams {
        let secrets = (self.secret.as_ref(), additional);
        let aead = self.suite.aead;
        let (of_initiator, of_responder) =
            keymat::child(source.prf, source.sk_d, secrets, &self.nonce_i, &self.nonce_r, aead);
        let (inbound_key, outbound_key) =
            if self.initiator { (of_responder, of_initiator) } else { (of_initiator, of_responder) };
        ChildSaParams {
            peer: setting.config.index,
            inbound_spi: self.inbound_spi,
            outbound_spi: self.outbound_spi,
            suite: self.suite,
            inbound_key,
            outbound_key,
            local_selectors: self.local_selectors,
            remote_selectors: self.remote_selectors,
            path: setting.path,
            lifetime: setting.lifetime,
            replay_window: setting.replay_window,
        }
    }

    /// The lower nonce: decides collisions (RFC 7296 §2.8.1).
    pub fn low_nonce(&self) -> Bytes {
        self.nonce_i.clone().min(self.nonce_r.clone())
    }
}

/// What we asked for as initiator.
pub struct Offer {
    /// Ours; it is reserved.
    pub spi: Spi,
    pub nonce: Bytes,
    proposals: Vec<Proposal>,
    key_exchange: Option<Box<dyn KeyExchange>>,
    groups_tried: u32,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offer({}, {:?})", self.spi, self.key_exchange.as_ref().map(|half| half.group()))
    }
}

/// What the answer to an offer means.
#[derive(Debug)]
pub enum Answer {
    /// The CHILD_SA, complete or not: its suite says whether IKE_FOLLOWUP_KE is to come.
    Child(Box<Unkeyed>),
    /// The peer wants another group: ask again.
    OtherGroup(KeGroup),
}

impl Offer {
    /// The offer of IKE_AUTH, which has the exchange's nonces and no key exchange of its own.
    pub fn in_auth(shared: &mut Shared, config: &PeerConfig, ike: IkeSpi, nonce: Bytes) -> Self {
        let spi = shared.reserve_spi(config, config.owner, ike);
        let proposals = offer_esp(&config.suites, &[], spi);
        Self { spi, nonce, proposals, key_exchange: None, groups_tried: 0 }
    }

    /// The offer of CREATE_CHILD_SA; `additional`: with an additional key exchange, if the peer likes.
    pub fn in_create_child_sa(
        shared: &mut Shared,
        config: &PeerConfig,
        owner: WorkerIndex,
        ike: IkeSpi,
        group: KeGroup,
        additional: bool,
    ) -> Self {
        let spi = shared.reserve_spi(config, owner, ike);
        let nonce = shared.nonce();
        let key_exchange = crypto::key_exchange(group, &mut *shared.rng);
        let proposals = offer_child(&config.suites, group, additional, spi);
        Self { spi, nonce, proposals, key_exchange: Some(key_exchange), groups_tried: 0 }
    }

    /// The same offer with the key exchange that the peer asks for; false if it may not ask for that.
    pub fn retry_with(&mut self, shared: &mut Shared, group: KeGroup) -> bool {
        let current = self.key_exchange.as_ref().map(|half| half.group());
        self.groups_tried += 1;
        if current.is_none() || current == Some(group) || self.groups_tried > MAX_INVALID_KE {
            return false;
        }
        self.key_exchange = Some(crypto::key_exchange(group, &mut *shared.rng));
        true
    }

    /// SA, TSi, TSr and in CREATE_CHILD_SA Ni and KEi.
    pub fn payloads(&self, config: &PeerConfig) -> Vec<Payload> {
        let mut payloads = vec![Payload::SecurityAssociation(self.proposals.clone())];
        if let Some(half) = &self.key_exchange {
            payloads.push(Payload::Nonce(self.nonce.clone()));
            payloads.push(key_exchange_payload(half.as_ref()));
        }
        payloads.push(Payload::TsInitiator(config.local_selectors.clone()));
        payloads.push(Payload::TsResponder(config.remote_selectors.clone()));
        payloads
    }

    /// Checks the answer against what was asked for. `nonce_r` is IKE_SA_INIT's in IKE_AUTH, else the answer's own.
    pub fn accept(&mut self, config: &PeerConfig, nonce_r: &Bytes, answer: &Contents) -> Result<Answer, String> {
        if let Some(notify) = answer.notify(NotifyType::InvalidKePayload) {
            return Ok(Answer::OtherGroup(wanted_group(notify)?));
        }
        let proposals = answer.proposals.as_ref().ok_or("the answer has no SA payload")?;
        let chosen = accept_esp(&self.proposals, proposals)?;
        let outbound_spi = esp_spi(&chosen.spi)?;
        let local = answer.ts_i.clone().ok_or("the answer has no TSi payload")?;
        let remote = answer.ts_r.clone().ok_or("the answer has no TSr payload")?;
        let narrowed =
            |ours: &[TrafficSelector], answered: &[TrafficSelector]| !answered.is_empty() && is_subset(answered, ours);
        if !narrowed(&config.local_selectors, &local) || !narrowed(&config.remote_selectors, &remote) {
            return Err("the answer's traffic selectors are wider than what was asked for".to_owned());
        }
        let secret = match chosen.suite.group {
            None => None,
            Some(group) => {
                let value = answer.key_exchange.as_ref().ok_or("the answer has no KE payload")?;
                let half = self.key_exchange.take_if(|half| half.group() == group && value.group == group.id());
                let half = half.ok_or("the answer's KE payload is not for the group that it chose")?;
                Some(half.agree(&value.value).map_err(|error| error.to_string())?)
            }
        };
        Ok(Answer::Child(Box::new(Unkeyed {
            inbound_spi: self.spi,
            outbound_spi,
            suite: chosen.suite,
            nonce_i: self.nonce.clone(),
            nonce_r: nonce_r.clone(),
            initiator: true,
            secret,
            local_selectors: local,
            remote_selectors: remote,
        })))
    }
}

/// The nonces of the exchange, as responder.
#[derive(Clone, Copy, Debug)]
pub struct Nonces<'a> {
    pub initiator: &'a Bytes,
    pub responder: &'a Bytes,
    /// Whether this is IKE_AUTH, where they come from IKE_SA_INIT and there is no key exchange.
    pub in_auth: bool,
}

/// Agrees on the CHILD_SA that the peer asks for, and makes the payloads that say so. Takes an SPI only if nothing is refused.
pub fn answer(
    shared: &mut Shared,
    ike: IkeSpi,
    config: &PeerConfig,
    owner: WorkerIndex,
    nonces: Nonces<'_>,
    request: &Contents,
) -> Result<(Unkeyed, Vec<Payload>), Refusal> {
    let syntax = |what: &str| Refusal::new(NotifyType::InvalidSyntax, format!("the request has no {what} payload"));
    let proposals = request.proposals.as_ref().ok_or_else(|| syntax("SA"))?;
    let ts_i = request.ts_i.as_ref().ok_or_else(|| syntax("TSi"))?;
    let ts_r = request.ts_r.as_ref().ok_or_else(|| syntax("TSr"))?;
    let ke_group = request.key_exchange.as_ref().map(|value| value.group);
    let additional = config.post_quantum != PostQuantum::No;
    let chosen = choose_esp(&config.suites, proposals, ke_group, nonces.in_auth, additional)
        .map_err(|sentence| Refusal::new(NotifyType::NoProposalChosen, sentence))?;
    let outbound_spi = esp_spi(&chosen.spi).map_err(|sentence| Refusal::new(NotifyType::NoProposalChosen, sentence))?;
    let remote = narrow(ts_i, &config.remote_selectors);
    let local = narrow(ts_r, &config.local_selectors);
    if local.is_empty() || remote.is_empty() {
        let sentence = format!(
            "traffic selectors: ours are {} and {}, theirs {} and {}",
            list(&config.local_selectors),
            list(&config.remote_selectors),
            list(ts_r),
            list(ts_i)
        );
        return Err(Refusal::new(NotifyType::TsUnacceptable, sentence));
    }
    let mut payloads = Vec::new();
    let secret = match chosen.suite.group {
        None => None,
        Some(group) => {
            let value = request.key_exchange.as_ref().filter(|value| value.group == group.id());
            let value = value.ok_or_else(|| Refusal::other_group(group))?;
            let half = crypto::key_exchange(group, &mut *shared.rng);
            payloads.push(key_exchange_payload(half.as_ref()));
            let agreed = half.agree(&value.value);
            Some(agreed.map_err(|error| Refusal::new(NotifyType::InvalidSyntax, error.to_string()))?)
        }
    };
    let inbound_spi = shared.allocate_spi(owner, ike);
    let mut answer = chosen.answer;
    answer.spi = Bytes::copy_from_slice(&inbound_spi.value().to_be_bytes());
    payloads.insert(0, Payload::SecurityAssociation(vec![answer]));
    if !nonces.in_auth {
        payloads.insert(1, Payload::Nonce(nonces.responder.clone()));
    }
    payloads.push(Payload::TsInitiator(remote.clone()));
    payloads.push(Payload::TsResponder(local.clone()));
    let unkeyed = Unkeyed {
        inbound_spi,
        outbound_spi,
        suite: chosen.suite,
        nonce_i: nonces.initiator.clone(),
        nonce_r: nonces.responder.clone(),
        initiator: false,
        secret,
        local_selectors: local,
        remote_selectors: remote,
    };
    Ok((unkeyed, payloads))
}

/// We reassemble fragments (RFC 7383 §2.3).
pub const FRAGMENTATION_SUPPORTED: Payload = Payload::bare_notify(NotifyType::Ikev2FragmentationSupported);

/// We speak IKE_INTERMEDIATE (RFC 9242 §3.1).
pub const INTERMEDIATE_SUPPORTED: Payload = Payload::bare_notify(NotifyType::IntermediateExchangeSupported);

/// The KE payload of our half.
pub fn key_exchange_payload(half: &dyn KeyExchange) -> Payload {
    let value = Bytes::copy_from_slice(half.public_value());
    Payload::KeyExchange(KeyExchangePayload { group: half.group().id(), value })
}

/// The group that an INVALID_KE_PAYLOAD asks for, if it is one of those that we offer (we always offer all).
pub fn wanted_group(notify: &Notify) -> Result<KeGroup, String> {
    let id = <[u8; 2]>::try_from(&notify.data[..]).map_err(|_| "INVALID_KE_PAYLOAD without a group number")?;
    let id = u16::from_be_bytes(id);
    KeGroup::from_id(id).ok_or_else(|| format!("INVALID_KE_PAYLOAD asks for group {id}, which was not offered"))
}

fn esp_spi(octets: &[u8]) -> Result<Spi, String> {
    let value = <[u8; 4]>::try_from(octets).map_err(|_| "the ESP proposal's SPI has not four octets")?;
    Spi::new(u32::from_be_bytes(value)).ok_or_else(|| "the ESP proposal's SPI is a reserved one".to_owned())
}

fn list(selectors: &[TrafficSelector]) -> String {
    selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
