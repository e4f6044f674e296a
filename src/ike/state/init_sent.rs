//! Initiator, IKE_SA_INIT sent (RFC 7296 §1.2, §2.6, §2.7, §2.21.1).
//!
//! Nothing that comes back is authenticated. An error is a hint: it is remembered for the reason of the failure, and the request
//! is sent again. COOKIE and INVALID_KE_PAYLOAD are followed a bounded number of times and until an answer makes sense. Which answer
//! is the peer's, AUTH will tell: see `initiating`. After a forged INVALID_KE_PAYLOAD the answer to the earlier request is still good.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::crypto::{self, KeyExchange};
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::effect::Effect;
use crate::ike::exchange::auth::{FULL_TRANSCRIPT, Record, signature_hash_algorithms, uses_signatures};
use crate::ike::exchange::negotiate::{FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, key_exchange_payload, wanted_group};
use crate::ike::keymat;
use crate::ike::limits::{GIVE_UP_INITIATE, IKE_PORT, MAX_COOKIES, MAX_INVALID_KE, NATT_PORT, NEXT_PLACE, SILENCE};
use crate::ike::nat::{self, Nat};
use crate::ike::proposals::{accept_ike, offer_ike};
use crate::ike::retransmit::{Due, Retransmit};
use crate::ike::session::{Packet, Session, SessionStart};
use crate::ike::shared::Shared;
use crate::ike::state::auth_sent::AuthStart;
use crate::ike::{CloseReason, Event, PeerConfig, RemoteEndpoint};
use crate::model::{DropReason, IkeSpi, IkeSuite, Instant, KeGroup, Path, PeerIndex, Secret, Transport};
use crate::wire::ike::{ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, Proposal};

/// See the module.
pub struct InitSent {
    pub local_spi: IkeSpi,
    /// When the initiation began: decides which of two IKE SAs is the newer.
    pub started: Instant,
    /// When somebody last asked for it: who asks while it is open waits for how it ends.
    pub wanted: Instant,
    config: Arc<PeerConfig>,
    /// How many of the peer's places were tried before this one, and with which the first of them began.
    tried: usize,
    first: usize,
    /// How long this one is.
    patience: Duration,
    path: Path,
    transport: Transport,
    proposals: Vec<Proposal>,
    nonce: Bytes,
    cookie: Option<Bytes>,
    cookies_followed: u32,
    /// The requests that were sent, one for each group; the last is repeated.
    asked: Vec<Asked>,
    clock: Retransmit,
    /// The last unauthenticated refusal.
    hint: Option<CloseReason>,
}

impl std::fmt::Debug for InitSent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InitSent({} to {})", self.local_spi, self.path.remote)
    }
}

/// A request with its key exchange.
struct Asked {
    half: Box<dyn KeyExchange>,
    message: Bytes,
}

/// What a usable answer holds.
struct Accepted {
    remote_spi: IkeSpi,
    /// The request that it answers.
    request: Bytes,
    suite: IkeSuite,
    nonce: Bytes,
    secret: Secret,
    nat: Nat,
    fragmentation: bool,
    full_transcript: bool,
}

/// What an answer asks us to do.
enum Verdict {
    Accept(Accepted),
    Again,
    /// Keep waiting for a better one.
    Ignore(DropReason),
    /// The same, and remember why.
    Hint(CloseReason),
}

impl InitSent {
    /// Sends the first IKE_SA_INIT to a peer, if we know a place where it may be. Begins with the place that was of use last;
    /// `tried` of them were not, this time.
    pub fn start(shared: &mut Shared, now: Instant, config: Arc<PeerConfig>, tried: usize, wanted: Instant) -> Option<Self> {
        let remotes: Vec<RemoteEndpoint> = config.remotes().collect();
        let first = shared.places.get(&config.index).copied().unwrap_or(0);
        let remote = *remotes.get((first + tried).checked_rem(remotes.len())?)?;
        let patience = if tried + 1 < remotes.len() { NEXT_PLACE } else { GIVE_UP_INITIATE };
        let (path, transport) = first_path(shared, remote);
        let local_spi = IkeSpi::random(&mut *shared.rng);
        let group = shared.first_group;
        let half = crypto::key_exchange(group, &mut *shared.rng);
        let proposals = offer_ike(&config.suites, group, config.post_quantum, None);
        let mut state = Self {
            local_spi,
            started: now,
            wanted,
            config,
            tried,
            first,
            patience,
            path,
            transport,
            proposals,
            nonce: shared.nonce(),
            cookie: None,
            cookies_followed: 0,
            asked: vec![Asked { half, message: Bytes::new() }],
            clock: Retransmit::start(now, patience, &mut *shared.rng),
            hint: None,
        };
        state.send(shared, now);
        Some(state)
    }

    pub fn peer(&self) -> PeerIndex {
        self.config.index
    }

    /// Builds the request as it is now, and sends it. The deadline of the initiation stays.
    fn send(&mut self, shared: &mut Shared, now: Instant) {
        let mut payloads = Vec::new();
        if let Some(cookie) = &self.cookie {
            payloads.push(Payload::Notify(Notify::new(NotifyType::Cookie, cookie.clone())));
        }
        payloads.push(Payload::SecurityAssociation(self.proposals.clone()));
        let asked = self.asked.last_mut().expect("there is a request from the start");
        payloads.push(key_exchange_payload(asked.half.as_ref()));
        payloads.push(Payload::Nonce(self.nonce.clone()));
        payloads.extend(nat::notifies(&mut *shared.rng, self.local_spi.value(), 0, self.path));
        payloads.extend([FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, FULL_TRANSCRIPT]);
        if uses_signatures(&self.config) {
            payloads.push(signature_hash_algorithms());
        }
        let header = Header {
            initiator_spi: self.local_spi.value(),
            responder_spi: 0,
            exchange: ExchangeType::IkeSaInit,
            flags: Flags { initiator: true, version: false, response: false },
            message_id: 0,
        };
        asked.message = Message::emit_clear(&header, &payloads).into();
        shared.transmit(self.path, self.transport, asked.message.clone());
        let left = self.patience.saturating_sub(now.since(self.started));
        self.clock = Retransmit::start(now, left, &mut *shared.rng);
    }

    /// What IKE_SA_INIT came to by this answer, if to anything. Unless it is the `first`, nothing is asked again.
    pub fn handle(&mut self, shared: &mut Shared, now: Instant, packet: Packet<'_>, first: bool) -> Option<AuthStart> {
        let header = packet.message.header;
        let fits = header.exchange == ExchangeType::IkeSaInit
            && header.flags.response
            && !header.flags.initiator
            && header.message_id == 0
            && packet.message.protected.is_none()
            && packet.path.remote == self.path.remote;
        if !fits {
            shared.drop(DropReason::IkeUnexpected);
            return None;
        }
        let contents = Contents::of(packet.message.payloads.clone());
        match self.judge(shared, header.responder_spi, &contents, packet.path, first) {
            Verdict::Accept(accepted) => return Some(self.proceed(shared, packet, accepted)),
            Verdict::Again => self.send(shared, now),
            Verdict::Ignore(reason) => shared.drop(reason),
            Verdict::Hint(reason) => {
                shared.drop(DropReason::IkeUnexpected);
                self.note(shared, reason);
            }
        }
        None
    }

    fn judge(&mut self, shared: &mut Shared, responder_spi: u64, contents: &Contents, path: Path, first: bool) -> Verdict {
        let asks_again = [NotifyType::Cookie, NotifyType::InvalidKePayload].map(|kind| contents.notify(kind).is_some());
        if !first && asks_again != [false, false] {
            return Verdict::Ignore(DropReason::IkeUnexpected);
        }
        if let Some(cookie) = contents.notify(NotifyType::Cookie) {
            return self.follow_cookie(&cookie.data);
        }
        if let Some(notify) = contents.notify(NotifyType::InvalidKePayload) {
            return self.follow_group(shared, notify);
        }
        if let Some(error) = contents.error() {
            let notify = error.kind.name().into_owned();
            return Verdict::Hint(CloseReason::PeerRefused { notify, authenticated: false });
        }
        match self.check(responder_spi, contents, path) {
            Ok(accepted) => Verdict::Accept(accepted),
            Err(sentence) => Verdict::Hint(CloseReason::WeRefused(sentence)),
        }
    }

    /// COOKIE (RFC 7296 §2.6): the same request with the cookie in front. A repeated one was answered already.
    fn follow_cookie(&mut self, cookie: &Bytes) -> Verdict {
        let legal = (1..=64).contains(&cookie.len());
        if !legal || self.cookie.as_ref() == Some(cookie) || self.cookies_followed == MAX_COOKIES {
            return Verdict::Ignore(DropReason::IkeUnexpected);
        }
        self.cookies_followed += 1;
        self.cookie = Some(cookie.clone());
        Verdict::Again
    }

    /// INVALID_KE_PAYLOAD (§1.3, §2.6.1): the same offer with a KE payload of another group that we offered. Cookie and nonce
    /// stay.
    fn follow_group(&mut self, shared: &mut Shared, notify: &Notify) -> Verdict {
        match wanted_group(notify) {
            Ok(group) if Some(group) != self.group() && self.asked.len() <= MAX_INVALID_KE as usize => {
                self.asked.push(Asked { half: crypto::key_exchange(group, &mut *shared.rng), message: Bytes::new() });
                Verdict::Again
            }
            Ok(_) => Verdict::Ignore(DropReason::IkeUnexpected),
            Err(sentence) => Verdict::Hint(CloseReason::WeRefused(sentence)),
        }
    }

    /// The group of the last request.
    fn group(&self) -> Option<KeGroup> {
        self.asked.last().map(|asked| asked.half.group())
    }

    fn check(&self, responder_spi: u64, contents: &Contents, path: Path) -> Result<Accepted, String> {
        let remote_spi = IkeSpi::new(responder_spi).ok_or("the answer has no responder SPI")?;
        if remote_spi == self.local_spi {
            return Err("the answer's SPI is our own: a reflection".to_owned());
        }
        let proposals = contents.proposals.as_ref().ok_or("the answer has no SA payload")?;
        let suite = accept_ike(&self.proposals, proposals)?.suite;
        let value = contents.key_exchange.as_ref().ok_or("the answer has no KE payload")?;
        let nonce = contents.nonce.clone().ok_or("the answer has no nonce")?;
        let asked = self.asked.iter().rfind(|asked| asked.half.group() == suite.group && value.group == suite.group.id());
        let asked = asked.ok_or("the answer's KE payload is not for the group that was asked for")?;
        if nonce == self.nonce {
            return Err("the answer's nonce is our own: a reflection".to_owned());
        }
        let nat = Nat::observe(contents, self.local_spi.value(), responder_spi, path);
        let said = |kind| contents.notify(kind).is_some();
        if suite.additional.is_some() && !said(NotifyType::IntermediateExchangeSupported) {
            return Err("the answer chose an additional key exchange without speaking IKE_INTERMEDIATE".to_owned());
        }
        Ok(Accepted {
            remote_spi,
            request: asked.message.clone(),
            suite,
            nonce,
            secret: asked.half.agree(&value.value).map_err(|error| error.to_string())?,
            nat,
            fragmentation: said(NotifyType::Ikev2FragmentationSupported),
            full_transcript: said(NotifyType::IkeSaInitFullTranscriptAuth),
        })
    }

    /// Derives the keys; what follows travels on the NAT-T port.
    fn proceed(&self, shared: &mut Shared, packet: Packet<'_>, accepted: Accepted) -> AuthStart {
        let Accepted { remote_spi, request, suite, nonce, secret, nat, fragmentation, full_transcript } = accepted;
        // Somebody is there: the next initiation begins here, too.
        shared.places.insert(self.config.index, self.first + self.tried);
        let spis = (self.local_spi.value(), remote_spi.value());
        let keys = keymat::initial(suite, &secret, &self.nonce, &nonce, spis.0, spis.1);
        let (path, transport) = floated(packet.path, self.transport, shared.config.natt_port);
        let session = Session::new(SessionStart {
            local_spi: self.local_spi,
            remote_spi,
            initiator: true,
            path,
            transport,
            nat,
            fragmentation,
            channel: Channel::new(suite.aead, &keys, true),
            first_id: 1,
        });
        AuthStart {
            session,
            config: Arc::clone(&self.config),
            suite,
            keys,
            started: self.started,
            record: Record {
                request,
                response: Bytes::copy_from_slice(packet.datagram),
                nonce_i: self.nonce.clone(),
                nonce_r: nonce,
                full_transcript,
                int_auth: Vec::new(),
            },
        }
    }

    /// Whether it goes on.
    pub fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) -> bool {
        match self.clock.poll(now, &mut *shared.rng) {
            Due::Wait => true,
            Due::Send => {
                let message = self.asked.last().map(|asked| asked.message.clone()).unwrap_or_default();
                shared.transmit(self.path, self.transport, message);
                if self.hint.is_none() && now.since(self.started) >= SILENCE {
                    let reason = self.no_answer();
                    self.note(shared, reason);
                }
                true
            }
            Due::GiveUp if self.patience < GIVE_UP_INITIATE => {
                if self.hint.is_none() {
                    let reason = self.no_answer();
                    self.note(shared, reason);
                }
                let (peer, tried) = (self.config.index, self.tried + 1);
                shared.effects.push_back(Effect::TryNext { peer, tried, wanted: self.wanted });
                false
            }
            Due::GiveUp => {
                let reason = self.hint.take().unwrap_or_else(|| self.no_answer());
                shared.initiate_failed(self.config.index, self.wanted, reason);
                false
            }
        }
    }

    /// Remembers what seems to be wrong; said once.
    pub fn note(&mut self, shared: &mut Shared, reason: CloseReason) {
        if self.hint.as_ref() != Some(&reason) {
            shared.event(Event::Trouble { peer: self.config.index, reason: reason.clone() });
            self.hint = Some(reason);
        }
    }

    fn no_answer(&self) -> CloseReason {
        CloseReason::NoAnswer { request: "IKE_SA_INIT", remote: self.path.remote, answered_on: None }
    }

    pub fn poll_timeout(&self) -> Instant {
        self.clock.wake()
    }
}

/// Where IKE_SA_INIT goes to. Which address it leaves from is the kernel's choice; the answer tells.
fn first_path(shared: &Shared, remote: RemoteEndpoint) -> (Path, Transport) {
    let (remote, port, transport) = match remote {
        RemoteEndpoint::Standard(address) => (SocketAddr::new(address, IKE_PORT), shared.config.ike_port, Transport::Plain),
        RemoteEndpoint::Natt(address) => (address, shared.config.natt_port, Transport::Natt),
    };
    let unspecified = match remote.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    (Path { local: SocketAddr::new(unspecified, port), remote }, transport)
}

/// Where the rest goes to: from 500 to 4500 (RFC 7296 §2.23), and stay there.
fn floated(mut path: Path, transport: Transport, natt_port: u16) -> (Path, Transport) {
    if transport == Transport::Plain {
        path.local.set_port(natt_port);
        path.remote.set_port(NATT_PORT);
    }
    (path, Transport::Natt)
}
