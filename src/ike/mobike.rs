//! Ends that move: MOBIKE (RFC 4555), and what stands in its place where a peer does not speak it.
//!
//! A packet that comes from elsewhere, ESP or IKE, moves nothing, however authentic: its addresses are not covered by the ICV, and
//! who overtakes it with a copy from an address of his own would have our packets. It is a *claim*. Each claim is checked by a
//! request that goes to the claimed address only; once its answer came from there, IKE and ESP move together.
//!
//! ```text
//! peer                                      we
//! ESP, or a request, from a new address  ->
//!                                        <- HDR, SK {N(COOKIE2)}             to the new address
//! HDR, SK {N(COOKIE2)}                   ->                                  from there: everything moves
//! ```
//!
//! With MOBIKE the original initiator says so when it moves, and its responder checks that, too; a responder that moves tells its
//! addresses, and the initiator decides:
//!
//! ```text
//! initiator, from its new address           responder
//! HDR, SK {N(UPDATE_SA_ADDRESSES),
//!          N(NAT_DETECTION_*), N(COOKIE2)} ->
//!                                        <- HDR, SK {N(NAT_DETECTION_*), N(COOKIE2)}
//! ```
//!
//! A path that goes silent is also found out: from the third transmission on an initiator sends its request by every other way that
//! it knows, and an answer by one of them is a claim like the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

use super::contents::Contents;
use super::event::{CloseReason, Event};
use super::limits::{CHECK_PAUSE, CHECK_TRIES, MAX_ADDRESSES, NATT_PORT};
use super::nat::{self, Nat};
use super::session::{Received, is_same_way};
use super::shared::Shared;
use super::state::{Established, IkeSa, Job, Task, stay};
use crate::model::{DropReason, Instant, Path, Spi};
use crate::wire::ike::{ExchangeType, Notify, NotifyType, Payload};

/// MOBIKE_SUPPORTED (RFC 4555 §4.2.1).
pub const MOBIKE_SUPPORTED: Payload = Payload::bare_notify(NotifyType::MobikeSupported);

/// Octets of our COOKIE2 (§4.2.5 allows 8 to 64).
const COOKIE_LEN: usize = 16;

/// Transmissions of one request before it is tried by other ways, too.
const SILENT_AFTER: u32 = 3;

/// What is known of the places of both ends, besides the path that is in use.
#[derive(Debug, Default)]
pub struct Mobility {
    /// Whether both sides said MOBIKE_SUPPORTED.
    pub spoken: bool,
    /// Further addresses of the peer, as it told.
    additional: Vec<IpAddr>,
    /// Further addresses of ours that it was told.
    told: Vec<IpAddr>,
    claim: Option<Claim>,
    next_check: Instant,
    /// When a claim that came too soon is checked.
    pub check_at: Option<Instant>,
    /// The peer's last hash of our address: another one means that a NAT maps us to another place.
    seen_as: Option<Bytes>,
    /// Counts the moves: an answer to an update from before the last one says nothing.
    generation: u32,
}

/// Where the peer may be.
#[derive(Clone, Debug)]
struct Claim {
    way: Path,
    /// Whether the peer said so itself, in a message or by an answer to what we sent there.
    told: bool,
    /// What is known about NATs on this way.
    nat: Option<Nat>,
    tries: u32,
}

impl Mobility {
    /// After IKE_AUTH: what the peer said in it, and what we told it.
    pub fn agreed(shared: &Shared, path: Path, contents: &Contents) -> Self {
        let spoken = contents.notify(NotifyType::MobikeSupported).is_some();
        let told = if spoken { own_addresses(shared, path) } else { Vec::new() };
        Self { spoken, told, additional: addresses_in(contents).unwrap_or_default(), ..Self::default() }
    }

    /// What a successor of the IKE SA takes over: hashes cover its SPIs.
    pub fn inherited(self) -> Self {
        Self { seen_as: None, ..self }
    }
}

/// What IKE_AUTH says of MOBIKE.
pub fn auth_payloads(shared: &Shared, path: Path) -> Vec<Payload> {
    let own = own_addresses(shared, path);
    [MOBIKE_SUPPORTED].into_iter().chain(own.into_iter().map(address_payload)).collect()
}

/// Our addresses besides the one of the path (§3.6).
fn own_addresses(shared: &Shared, path: Path) -> Vec<IpAddr> {
    let own = path.local.ip().to_canonical();
    shared.local_addresses.iter().copied().filter(|&address| address != own).take(MAX_ADDRESSES).collect()
}

fn address_payload(address: IpAddr) -> Payload {
    Payload::Notify(match address.to_canonical() {
        IpAddr::V4(address) => Notify::new(NotifyType::AdditionalIp4Address, address.octets().to_vec()),
        IpAddr::V6(address) => Notify::new(NotifyType::AdditionalIp6Address, address.octets().to_vec()),
    })
}

/// The peer's further addresses, if the message says anything about them; those of a wrong length are left out.
fn addresses_in(contents: &Contents) -> Option<Vec<IpAddr>> {
    let none = contents.notify(NotifyType::NoAdditionalAddresses).map(|_| Vec::new());
    let parse = |notify: &Notify| match notify.kind {
        NotifyType::AdditionalIp4Address => <[u8; 4]>::try_from(&notify.data[..]).ok().map(IpAddr::from),
        NotifyType::AdditionalIp6Address => <[u8; 16]>::try_from(&notify.data[..]).ok().map(IpAddr::from),
        _ => None,
    };
    let some: Vec<IpAddr> = contents.notifies.iter().filter_map(parse).take(MAX_ADDRESSES).collect();
    if some.is_empty() { none } else { Some(some) }
}

/// NO_NATS_ALLOWED (§4.2.6): source and destination address and port, as they left the sender.
fn forbids(notify: &Notify, way: Path) -> bool {
    let mut seen = Vec::new();
    let ends = [way.remote, way.local];
    for end in ends {
        match end.ip().to_canonical() {
            IpAddr::V4(address) => seen.extend(address.octets()),
            IpAddr::V6(address) => seen.extend(address.octets()),
        }
    }
    ends.iter().for_each(|end| seen.extend(end.port().to_be_bytes()));
    notify.data != seen
}

impl Established {
    /// Whether it is for us to say where the SAs go: we are the original initiator, and both speak MOBIKE (§3.5).
    const fn leads(&self) -> bool {
        self.mobility.spoken && self.birth.lineage.initiator
    }

    /// Whether packets to this address would not come back into a tunnel, and can be sent at all.
    fn is_outside(&self, address: SocketAddr) -> bool {
        let config = &self.birth.config;
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let inner = config.local_selectors.iter().chain(&config.remote_selectors);
        port != 0 && !ip.is_unspecified() && !ip.is_multicast() && !inner.into_iter().any(|ts| ts.contains_address(ip))
    }

    /// Every other way to the peer that we know of. What it tells of private networks may be ours as well.
    fn other_ways(&self, shared: &Shared) -> Vec<Path> {
        let path = self.session.path;
        let configured = self.birth.config.remotes().map(|remote| remote.natt(NATT_PORT));
        let told = self.mobility.additional.iter().map(|&address| SocketAddr::new(address, path.remote.port()));
        let mut ways: Vec<Path> = Vec::new();
        for remote in configured.chain(told) {
            let known = remote == path.remote || ways.iter().any(|way| way.remote == remote);
            if !known && self.is_outside(remote) && !shared.local_addresses.contains(&remote.ip()) {
                let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                ways.push(Path { local: SocketAddr::new(any, path.local.port()), remote });
            }
        }
        ways
    }

    // --- claims ---

    /// An authentic, fresh message came by this way, which is not the path.
    pub fn came_by(&mut self, shared: &mut Shared, now: Instant, way: Path, received: &Received) {
        let (path, answer) = (self.session.path, matches!(received, Received::Response(..)));
        let speaks_of_it = match received {
            Received::Request(_, contents) => contents
                .notifies
                .iter()
                .any(|notify| matches!(notify.kind, NotifyType::UpdateSaAddresses | NotifyType::NoNatsAllowed)),
            Received::Response(..) => matches!(self.task, Some(Task::Check { .. })),
            Received::Nothing | Received::Broken(_) => true,
        };
        if speaks_of_it {
            // What it says is judged elsewhere.
            return;
        }
        if way.remote == path.remote && !self.mobility.spoken {
            // Only our own end: the peer calls us at another address, and is answered from there.
            return self.move_to(shared, now, way);
        }
        // An answer that came by a way on which we asked.
        let told = answer && self.leads() && self.other_ways(shared).iter().any(|&known| is_same_way(known, way));
        self.suspect(shared, now, way, told, None);
    }

    /// The data plane saw authentic, fresh ESP from elsewhere.
    pub fn address_seen(&mut self, shared: &mut Shared, now: Instant, spi: Spi, way: Path) {
        if !self.children.contains_key(&spi) {
            return;
        }
        let path = self.session.esp_path(shared.config.natt_port);
        if is_same_way(path, way) {
            // IKE was faster.
            shared.event(Event::PathChanged { spi, path });
        } else {
            self.suspect(shared, now, way, false, None);
        }
    }

    /// The peer may be there. Of a peer that no NAT hides only its own word counts.
    fn suspect(&mut self, shared: &mut Shared, now: Instant, way: Path, told: bool, nat: Option<Nat>) {
        let may = told || self.session.nat.remote != Some(false);
        if !may || self.session.is_path(way) || !self.is_outside(way.remote) {
            return;
        }
        match &mut self.mobility.claim {
            Some(claim) if is_same_way(claim.way, way) => {
                claim.told |= told;
                claim.nat = nat.or(claim.nat);
            }
            Some(claim) if claim.told && !told => return,
            claim => *claim = Some(Claim { way, told, nat, tries: 0 }),
        }
        // What occupies the window may be waiting for an answer from where the peer is not any more.
        self.session.detour(shared, way);
        self.enqueue(Job::Check);
        self.pump(shared, now);
    }

    /// Asks whether the peer is where it seems to be.
    pub fn start_check(&mut self, shared: &mut Shared, now: Instant) -> Option<Task> {
        let way = self.mobility.claim.as_ref()?.way;
        if now < self.mobility.next_check {
            self.mobility.check_at = Some(self.mobility.next_check);
            return None;
        }
        self.mobility.next_check = now + CHECK_PAUSE;
        let cookie = self.cookie(shared);
        let payloads: Vec<Payload> = cookie.iter().map(cookie_payload).collect();
        self.session.request_by(shared, now, way, &payloads);
        Some(Task::Check { way, cookie })
    }

    /// The answer, and the way that it came by.
    pub fn conclude_check(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        (way, cookie): (Path, Option<Bytes>),
        response: &Contents,
        came_by: Path,
    ) -> Option<IkeSa> {
        if !echoes(response, cookie.as_ref()) {
            return self.close_for_cookie(shared, now);
        }
        match self.mobility.claim.take() {
            Some(claim) if is_same_way(claim.way, way) && is_same_way(came_by, way) => {
                self.session.nat = claim.nat.unwrap_or(self.session.nat);
                self.move_to(shared, now, came_by);
            }
            // Meanwhile there is another claim; or the peer said that it moves, and answers from where it was.
            Some(claim) if !is_same_way(claim.way, way) || claim.told && claim.tries < CHECK_TRIES => {
                self.mobility.claim = Some(Claim { tries: claim.tries + 1, ..claim });
                self.enqueue(Job::Check);
            }
            _ => {}
        }
        stay(self, IkeSa::Established)
    }

    /// Sends by this path from now on, ESP too; and says so, if that is for us to say.
    fn move_to(&mut self, shared: &mut Shared, now: Instant, path: Path) {
        self.mobility.claim = None;
        self.mobility.generation += 1;
        self.session.take_path(shared, path);
        self.tell_path(shared);
        let path = self.session.esp_path(shared.config.natt_port);
        for child in self.children.values().filter(|child| child.suite.is_some()) {
            shared.event(Event::PathChanged { spi: child.inbound_spi, path });
        }
        if self.leads() {
            self.enqueue(Job::Update);
            self.pump(shared, now);
        }
    }

    fn tell_path(&self, shared: &mut Shared) {
        shared.event(Event::IkeMoved { peer: self.peer(), summary: Box::new(self.summary()) });
    }

    // --- our own addresses ---

    /// The address that we sent from is gone, and the kernel would send from this one.
    pub fn local_moved(&mut self, shared: &mut Shared, now: Instant, gone: IpAddr, local: IpAddr) {
        let mut path = self.session.path;
        if path.local.ip().to_canonical() != gone || gone == local {
            return;
        }
        path.local.set_ip(local);
        self.move_to(shared, now, path);
        if self.mobility.spoken && !self.leads() {
            self.enqueue(Job::Tell);
        }
        // Whoever does not speak MOBIKE notices by an authentic message; and if it does not answer, that is soon known.
        self.probe(shared, now);
        self.pump(shared, now);
    }

    /// This host has other addresses than before.
    pub fn addresses_changed(&mut self, shared: &mut Shared, now: Instant) {
        if self.mobility.spoken && self.mobility.told != own_addresses(shared, self.session.path) {
            self.enqueue(Job::Tell);
            self.pump(shared, now);
        }
    }

    /// ADDITIONAL_*, or NO_ADDITIONAL_ADDRESSES, if the peer does not know yet.
    fn address_payloads(&mut self, shared: &Shared) -> Vec<Payload> {
        let own = own_addresses(shared, self.session.path);
        let payloads = if own.is_empty() {
            vec![Payload::bare_notify(NotifyType::NoAdditionalAddresses)]
        } else {
            own.iter().copied().map(address_payload).collect()
        };
        self.mobility.told = own;
        payloads
    }

    /// Tells our addresses.
    pub fn start_tell(&mut self, shared: &mut Shared, now: Instant) -> Option<Task> {
        let payloads = self.address_payloads(shared);
        self.ask(shared, now, ExchangeType::Informational, &payloads);
        Some(Task::Tell)
    }

    /// Tells where we are.
    pub fn start_update(&mut self, shared: &mut Shared, now: Instant) -> Option<Task> {
        let cookie = self.cookie(shared);
        let mut payloads = vec![Payload::bare_notify(NotifyType::UpdateSaAddresses)];
        payloads.extend(self.nat_payloads(shared, self.session.path));
        payloads.extend(cookie.iter().map(cookie_payload));
        payloads.extend(self.address_payloads(shared));
        self.ask(shared, now, ExchangeType::Informational, &payloads);
        Some(Task::Update { generation: self.mobility.generation, cookie })
    }

    /// The answer to that.
    pub fn conclude_update(
        mut self: Box<Self>,
        shared: &mut Shared,
        now: Instant,
        (generation, cookie): (u32, Option<Bytes>),
        response: &Contents,
    ) -> Option<IkeSa> {
        let refused = response.error().map(|error| error.kind.name());
        if refused.is_none() && !echoes(response, cookie.as_ref()) {
            return self.close_for_cookie(shared, now);
        }
        // If we moved on meanwhile, the next update is queued, and only its answer says where we are.
        if generation == self.mobility.generation {
            match refused {
                Some(name) => {
                    shared.drop(DropReason::IkeUnexpected);
                    let local = self.session.path.local;
                    let sentence = format!("it does not want us at {local}: {name}");
                    shared.refused(Some(self.peer()), self.session.path, sentence);
                }
                None => self.observe_nat(shared, response),
            }
        }
        stay(self, IkeSa::Established)
    }

    // --- signs of life ---

    /// Behind a NAT a sign of life also asks whether the NAT still maps us to the same place (§3.8).
    pub fn start_probe(&mut self, shared: &mut Shared, now: Instant) -> Option<Task> {
        let asks = self.leads() && self.session.nat.local == Some(true);
        let payloads = if asks { self.nat_payloads(shared, self.session.path) } else { Vec::new() };
        self.ask(shared, now, ExchangeType::Informational, &payloads);
        Some(Task::Probe)
    }

    /// The answer to that: the peer, which follows nothing but our word, must know if we are seen elsewhere.
    pub fn conclude_probe(&mut self, shared: &mut Shared, response: &Contents) {
        let before = self.mobility.seen_as.clone();
        self.observe_nat(shared, response);
        if before.is_some() && before != self.mobility.seen_as {
            self.enqueue(Job::Update);
        }
    }

    /// As soon as it is up, behind a NAT: how does the peer see us?
    pub fn look_at_nat(&mut self, shared: &mut Shared, now: Instant) {
        if self.leads() && self.session.nat.local == Some(true) {
            self.probe(shared, now);
        }
    }

    /// From the third transmission on a request goes by every way that there is.
    pub fn try_other_ways(&self, shared: &mut Shared, before: u32) {
        let sent = self.session.transmissions();
        if sent > before && sent >= SILENT_AFTER && self.leads() {
            let ways = self.other_ways(shared);
            self.session.try_ways(shared, &ways);
        }
    }

    /// NAT detection for a message that goes this way; to our own hosts with the true hash of our address.
    fn nat_payloads(&self, shared: &mut Shared, way: Path) -> Vec<Payload> {
        let (spi_i, spi_r) = self.session.spis();
        let mut payloads = nat::notifies(&mut *shared.rng, spi_i, spi_r, way).to_vec();
        payloads.extend(nat::vendor_id((spi_i, spi_r), way).filter(|_| self.birth.kin));
        payloads
    }

    fn nat_in(&self, contents: &Contents, way: Path) -> Option<Nat> {
        contents.notify(NotifyType::NatDetectionDestinationIp)?;
        let spis = self.session.spis();
        let mut nat = Nat::observe(contents, spis.0, spis.1, way);
        if self.birth.kin {
            nat.observe_vendor_id(contents, spis, way);
        }
        Some(nat)
    }

    /// Takes what an answer says about NATs on the path.
    fn observe_nat(&mut self, shared: &mut Shared, response: &Contents) {
        if let Some(nat) = self.nat_in(response, self.session.path) {
            let seen_as = response.notify(NotifyType::NatDetectionDestinationIp).map(|notify| notify.data.clone());
            self.mobility.seen_as = seen_as;
            if std::mem::replace(&mut self.session.nat, nat) != nat {
                self.tell_path(shared);
            }
        }
    }

    // --- responder ---

    /// What an INFORMATIONAL request says about addresses, and what is to be answered to that.
    pub fn answer_mobike(&mut self, shared: &mut Shared, now: Instant, request: &Contents) -> Vec<Payload> {
        let Some(way) = self.session.request_way() else { return Vec::new() };
        let is_cookie = |notify: &&Notify| (8..=64).contains(&notify.data.len());
        let cookie = request.notify(NotifyType::Cookie2).filter(is_cookie).map(|notify| cookie_payload(&notify.data));
        let mut payloads: Vec<Payload> = cookie.into_iter().collect();
        let updates = request.notify(NotifyType::UpdateSaAddresses).is_some();
        if !self.mobility.spoken {
            if updates {
                // It was not agreed on.
                shared.drop(DropReason::IkeUnexpected);
            }
            return payloads;
        }
        if request.notify(NotifyType::NoNatsAllowed).is_some_and(|notify| forbids(notify, way)) {
            shared.drop(DropReason::IkeUnexpected);
            payloads.push(Payload::bare_notify(NotifyType::UnexpectedNatDetected));
            return payloads;
        }
        let told = addresses_in(request);
        let has_told = told.is_some();
        if let Some(addresses) = told {
            self.mobility.additional = addresses;
        }
        let nat = self.nat_in(request, way);
        if nat.is_some() {
            payloads.extend(self.nat_payloads(shared, way));
        }
        if updates {
            payloads.extend(self.answer_update(shared, now, way, nat));
        } else if has_told && self.birth.lineage.initiator {
            // A responder whose address is gone tells its others from one of them (§3.6).
            self.suspect(shared, now, way, true, None);
        }
        payloads
    }

    /// UPDATE_SA_ADDRESSES: the answer goes where it came from, everything else only when the peer was found there.
    fn answer_update(&mut self, shared: &mut Shared, now: Instant, way: Path, nat: Option<Nat>) -> Option<Payload> {
        if self.birth.lineage.initiator {
            // Only the original initiator moves SAs.
            shared.drop(DropReason::IkeUnexpected);
            return None;
        }
        if !self.is_outside(way.remote) {
            shared.drop(DropReason::IkeUnexpected);
            return Some(Payload::bare_notify(NotifyType::UnacceptableAddresses));
        }
        if self.session.is_path(way) {
            self.mobility.claim = None;
            self.session.nat = nat.unwrap_or(self.session.nat);
            self.tell_path(shared);
        } else {
            self.suspect(shared, now, way, true, nat);
        }
        None
    }

    // --- COOKIE2 ---

    /// Goes with what must be answered from where it was sent to. Who does not speak MOBIKE would not return it.
    fn cookie(&self, shared: &mut Shared) -> Option<Bytes> {
        self.mobility.spoken.then(|| {
            let mut cookie = vec![0; COOKIE_LEN];
            shared.rng.fill(&mut cookie);
            cookie.into()
        })
    }

    /// RFC 4555 §3.7: then the IKE SA must be closed.
    fn close_for_cookie(self: Box<Self>, shared: &mut Shared, now: Instant) -> Option<IkeSa> {
        shared.drop(DropReason::IkeUnexpected);
        let reason = CloseReason::WeRefused("the peer did not return the COOKIE2 that was sent to it".to_owned());
        self.close(shared, now, reason)
    }
}

fn cookie_payload(cookie: &Bytes) -> Payload {
    Payload::Notify(Notify::new(NotifyType::Cookie2, cookie.clone()))
}

fn echoes(response: &Contents, cookie: Option<&Bytes>) -> bool {
    let returned = response.notify(NotifyType::Cookie2).map(|notify| &notify.data);
    cookie.is_none() || returned == cookie
}
