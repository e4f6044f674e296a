//! What every keyed IKE SA has: its channel, its two windows of one message each, and the path that it speaks on.
//!
//! A message passes these doors in this order: flags and SPIs, exchange, message ID, ICV, payloads. Only behind the ICV does
//! anything change. Requests are answered exactly once: a repeated request gets the octets of the first answer, or nothing while
//! that answer waits for the data plane (RFC 7296 §2.1, §2.2). Of a request that came in fragments, the first one stands for it
//! (RFC 7383 §2.6.1).

use std::time::Duration;

use bytes::Bytes;

use super::channel::{Channel, Unusable};
use super::contents::Contents;
use super::fragments::{Collection, Of};
use super::intermediate::Covered;
use super::limits::{GIVE_UP, MAX_MESSAGE_LEN, NATT_PORT};
use super::nat::{self, Nat};
use super::retransmit::{Due, Retransmit};
use super::shared::Shared;
use crate::model::{DropReason, IkeSpi, Instant, Path, Ticket, Transport};
use crate::wire::ike::{
    ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, ProtectedView, emit_chain, parse_chain,
};

/// A received message that parsed, before anything is known about who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub message: &'a Message,
    /// Its octets, without non-ESP marker.
    pub datagram: &'a [u8],
    pub path: Path,
    pub transport: Transport,
}

/// So often a request with a detour goes by that alone.
const DETOUR_ALONE: u32 = 3;

/// Whether two ways are the same, where either may leave the local address open.
pub fn is_same_way(one: Path, other: Path) -> bool {
    let open = |path: Path| path.local.ip().is_unspecified();
    let local = one.local.ip() == other.local.ip() || open(one) || open(other);
    one.remote == other.remote && local && one.local.port() == other.local.port()
}

/// What became of a message.
#[derive(Debug)]
pub enum Received {
    /// It was dropped and counted, or answered from memory.
    Nothing,
    /// A fresh, authentic request. It must be answered, now or later.
    Request(ExchangeType, Contents),
    /// The authentic answer to our request, whose first transmission left at that time.
    Response(Contents, Instant),
    /// Authentic and malformed: the peer is broken, and RFC 7296 §2.21.3 ends the IKE SA. A request was answered.
    Broken(String),
}

/// Our request that waits for its response.
#[derive(Debug)]
struct Outstanding {
    message_id: u32,
    exchange: ExchangeType,
    datagrams: Vec<Bytes>,
    clock: Retransmit,
    /// Another way than the session's path that it goes, too.
    detour: Option<Path>,
    /// How often it was sent; the first [`DETOUR_ALONE`] times by the detour only, if it has one.
    sent: u32,
}

/// The peer's request that was not answered yet.
#[derive(Debug)]
struct Unanswered {
    message_id: u32,
    exchange: ExchangeType,
    request: Bytes,
    path: Path,
    transport: Transport,
    /// The answer, if it only waits for the data plane.
    held: Option<(Ticket, Vec<Bytes>)>,
}

/// A request that was answered, and the datagrams of its answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The request, or its first fragment.
    request: Bytes,
    response: Vec<Bytes>,
}

impl Answered {
    /// Answers this once more, if it is that request.
    pub fn repeat(&self, shared: &mut Shared, packet: Packet<'_>) -> bool {
        let known = self.request == packet.datagram;
        if known {
            shared.transmit_all(packet.path, packet.transport, &self.response);
        }
        known
    }
}

/// A message whose ICV holds, whole.
struct Opened {
    contents: Result<Contents, String>,
    /// By which its repetition is known: the datagram, or that of its first fragment.
    head: Bytes,
}

impl Opened {
    fn new(first: u8, chain: &[u8], head: Bytes) -> Self {
        Self { contents: parse_chain(first, chain).map(Contents::of).map_err(|error| error.to_string()), head }
    }

    fn malformed(sentence: String, datagram: &[u8]) -> Self {
        Self { contents: Err(sentence), head: Bytes::copy_from_slice(datagram) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    pub local_spi: IkeSpi,
    pub remote_spi: IkeSpi,
    /// Whether we are the original initiator of this IKE SA: the I flag of what we send.
    pub initiator: bool,
    pub path: Path,
    pub transport: Transport,
    pub nat: Nat,
    /// Whether the IKE SA is up: then its owner decides about moves, and until then the path follows the peer.
    pub settled: bool,
    /// Where the last authentic, fresh message came from, if that is not the path; the owner takes it.
    pub elsewhere: Option<Path>,
    /// Whether both sides said in IKE_SA_INIT that they reassemble fragments (RFC 7383 §2.3).
    pub fragmentation: bool,
    /// The messages of the last IKE_INTERMEDIATE exchange, as AUTH covers them; the owner takes them.
    pub covered: Covered,
    channel: Channel,
    next_request: u32,
    outstanding: Option<Outstanding>,
    expected: u32,
    unanswered: Option<Unanswered>,
    /// The last request that was answered, and its answer.
    answered: Option<Answered>,
    /// Fragments of the next request.
    requests: Collection,
    /// Fragments of the response to ours.
    responses: Collection,
}

/// How the keys of a session are made known to it.
#[derive(Debug)]
pub struct SessionStart {
    pub local_spi: IkeSpi,
    pub remote_spi: IkeSpi,
    pub initiator: bool,
    pub path: Path,
    pub transport: Transport,
    pub nat: Nat,
    pub fragmentation: bool,
    pub channel: Channel,
    /// The message ID of the first exchange under these keys: 1 after IKE_SA_INIT, 0 after an IKE rekey.
    pub first_id: u32,
}

impl Session {
    pub fn new(start: SessionStart) -> Self {
        // After IKE_SA_INIT the initiator's own counter stands at 1; the responder's requests begin at 0.
        let (next_request, expected) = if start.initiator { (start.first_id, 0) } else { (0, start.first_id) };
        Self {
            local_spi: start.local_spi,
            remote_spi: start.remote_spi,
            initiator: start.initiator,
            path: start.path,
            transport: start.transport,
            nat: start.nat,
            settled: false,
            elsewhere: None,
            fragmentation: start.fragmentation,
            covered: Covered::default(),
            channel: start.channel,
            next_request,
            outstanding: None,
            expected,
            unanswered: None,
            answered: None,
            requests: Collection::default(),
            responses: Collection::default(),
        }
    }

    /// SPIs in the order of the header: initiator's, responder's.
    pub fn spis(&self) -> (u64, u64) {
        nat::spis(self.initiator, self.local_spi, self.remote_spi)
    }

    /// Where ESP travels: as IKE does, but never on the IKE port.
    pub fn esp_path(&self, local_port: u16) -> Path {
        let mut path = self.path;
        if self.transport == Transport::Plain {
            path.local.set_port(local_port);
            path.remote.set_port(NATT_PORT);
        }
        path
    }

    /// Something authentic and fresh of the peer came then, besides the response that we wait for: it is there.
    pub fn heard(&mut self, at: Instant) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.clock.heard(at);
        }
    }

    /// Whether a request of ours waits for its response.
    pub fn is_busy(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Does not repeat an answer to IKE_AUTH: whoever has not heard it must not come up with what is being deleted.
    pub fn withhold_auth(&mut self) {
        let is_auth = |answered: &mut Answered| {
            Header::parse(&answered.request).is_ok_and(|(header, _)| header.exchange == ExchangeType::IkeAuth)
        };
        self.answered.take_if(is_auth);
    }

    /// The last exchange, for those who repeat their request after the IKE SA is gone.
    pub fn last_answer(&self) -> Option<Answered> {
        self.answered.clone()
    }

    /// Takes a message of this IKE SA. `exchanges` are those whose requests the state understands.
    pub fn receive(&mut self, shared: &mut Shared, packet: Packet<'_>, exchanges: &[ExchangeType]) -> Received {
        let header = packet.message.header;
        let spis = (header.initiator_spi, header.responder_spi);
        if header.flags.initiator == self.initiator || spis != self.spis() || packet.message.protected.is_none() {
            shared.drop(DropReason::IkeUnexpected);
            return Received::Nothing;
        }
        if header.flags.response {
            self.receive_response(shared, packet)
        } else if !exchanges.contains(&header.exchange) && !self.is_repeated(packet) {
            shared.drop(DropReason::IkeUnexpected);
            Received::Nothing
        } else {
            self.receive_request(shared, packet)
        }
    }

    /// Whether a message was sealed under our keys.
    pub fn opens(&self, packet: Packet<'_>) -> bool {
        let sealed = packet.message.protected.map(|view| self.channel.open_octets(view, packet.datagram));
        sealed.is_some_and(|opened| !matches!(opened, Err(Unusable::Forged)))
    }

    /// What a request holds, without taking it: nothing changes, and it is not answered.
    pub fn peek(&self, packet: Packet<'_>) -> Option<Contents> {
        let header = packet.message.header;
        let fresh = !header.flags.response && header.message_id == self.expected;
        if !fresh {
            return None;
        }
        self.channel.open(packet.message, packet.datagram).ok().map(Contents::of)
    }

    fn receive_response(&mut self, shared: &mut Shared, packet: Packet<'_>) -> Received {
        let header = packet.message.header;
        let Some(outstanding) = &self.outstanding else {
            shared.drop(DropReason::IkeMessageId);
            return Received::Nothing;
        };
        if header.message_id != outstanding.message_id || header.exchange != outstanding.exchange {
            shared.drop(DropReason::IkeMessageId);
            return Received::Nothing;
        }
        let asked = outstanding.clock.first_sent;
        let Some(opened) = self.open(shared, packet) else { return Received::Nothing };
        self.outstanding = None;
        self.responses.clear();
        match opened.contents {
            Ok(contents) => {
                self.follow(packet);
                // A critical payload that we do not know matters in requests only (RFC 7296 §2.5).
                Received::Response(contents, asked)
            }
            Err(sentence) => {
                shared.drop(DropReason::IkeMalformed);
                Received::Broken(sentence)
            }
        }
    }

    /// Opens what passed the doors before the ICV. None if it was dropped and counted, or is a fragment that others are missing to.
    fn open(&mut self, shared: &mut Shared, packet: Packet<'_>) -> Option<Opened> {
        let view = packet.message.protected?;
        if view.fragment.is_some() {
            return self.open_fragment(shared, packet, view);
        }
        match self.channel.open_octets(view, packet.datagram) {
            Ok((first, chain)) => {
                self.cover(packet.message.header, view, packet.datagram, &chain);
                Some(Opened::new(first, &chain, Bytes::copy_from_slice(packet.datagram)))
            }
            Err(unusable) => unopened(shared, packet, unusable),
        }
    }

    fn open_fragment(&mut self, shared: &mut Shared, packet: Packet<'_>, view: ProtectedView) -> Option<Opened> {
        let header = packet.message.header;
        let of = Of { message_id: header.message_id, exchange: header.exchange };
        let collection = if header.flags.response { &mut self.responses } else { &mut self.requests };
        let fragment = view.fragment.filter(|&fragment| self.fragmentation && collection.wants(of, fragment));
        let Some(fragment) = fragment else {
            shared.drop(DropReason::IkeFragment);
            return None;
        };
        match self.channel.open_octets(view, packet.datagram) {
            Ok((first, piece)) => {
                let collected = collection.take(of, fragment, first, &piece, packet.datagram)?;
                // All first fragments look alike.
                self.cover(header, view, &collected.head, &collected.chain);
                Some(Opened::new(collected.first, &collected.chain, collected.head))
            }
            Err(unusable) => unopened(shared, packet, unusable),
        }
    }

    /// Whether this is, octet for octet, the request that was answered last or is being answered.
    fn is_repeated(&self, packet: Packet<'_>) -> bool {
        let answered = self.answered.as_ref().is_some_and(|answered| answered.request == packet.datagram);
        answered || self.unanswered.as_ref().is_some_and(|unanswered| unanswered.request == packet.datagram)
    }

    fn receive_request(&mut self, shared: &mut Shared, packet: Packet<'_>) -> Received {
        let header = packet.message.header;
        if self.answered.as_ref().is_some_and(|answered| answered.repeat(shared, packet)) {
            return Received::Nothing;
        }
        if header.message_id != self.expected || self.unanswered.is_some() {
            shared.drop(DropReason::IkeMessageId);
            return Received::Nothing;
        }
        let Some(opened) = self.open(shared, packet) else { return Received::Nothing };
        self.expected += 1;
        self.requests.clear();
        self.unanswered = Some(Unanswered {
            message_id: header.message_id,
            exchange: header.exchange,
            request: opened.head,
            path: packet.path,
            transport: packet.transport,
            held: None,
        });
        self.follow(packet);
        match opened.contents {
            Ok(contents) => self.screen(shared, header.exchange, contents),
            Err(sentence) => {
                shared.drop(DropReason::IkeMalformed);
                self.respond(shared, &[Payload::bare_notify(NotifyType::InvalidSyntax)]);
                Received::Broken(sentence)
            }
        }
    }

    /// Answers a request that insists on a payload of a kind we do not know; lets others pass.
    fn screen(&mut self, shared: &mut Shared, exchange: ExchangeType, contents: Contents) -> Received {
        match contents.critical {
            Some(kind) => {
                shared.drop(DropReason::IkeUnexpected);
                let notify = Notify::new(NotifyType::UnsupportedCriticalPayload, vec![kind]);
                self.respond(shared, &[Payload::Notify(notify)]);
                Received::Nothing
            }
            None => Received::Request(exchange, contents),
        }
    }

    /// Looks where an authentic, fresh message came from. Before the IKE SA is up the path follows it; later it is for the owner
    /// to judge. Responses go to where their request came from in any case.
    fn follow(&mut self, packet: Packet<'_>) {
        if !self.settled {
            // A peer that no NAT hides stays where it is; our own end may be another.
            if self.nat.remote != Some(false) || packet.path.remote == self.path.remote {
                (self.path, self.transport) = (packet.path, packet.transport);
            }
        } else if !self.is_path(packet.path) {
            self.elsewhere = Some(packet.path);
        } else if self.path.local.ip().is_unspecified() {
            self.path.local = packet.path.local;
        }
    }

    /// Whether this is the way that we go; where the path leaves the local address open, any will do.
    pub fn is_path(&self, way: Path) -> bool {
        is_same_way(self.path, way)
    }

    /// Where the open request came from.
    pub fn request_way(&self) -> Option<Path> {
        self.unanswered.as_ref().map(|unanswered| unanswered.path)
    }

    /// Goes another way from now on, with what waits for an answer, too.
    pub fn take_path(&mut self, shared: &mut Shared, path: Path) {
        (self.path, self.transport) = (path, Transport::Natt);
        self.elsewhere = None;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.detour = None;
            shared.transmit_all(path, Transport::Natt, &outstanding.datagrams);
        }
    }

    /// Sends the outstanding request by another way as well, now and whenever it is repeated.
    pub fn detour(&mut self, shared: &mut Shared, way: Path) {
        if let Some(outstanding) = &mut self.outstanding
            && outstanding.detour != Some(way)
        {
            outstanding.detour = Some(way);
            outstanding.sent = outstanding.sent.max(DETOUR_ALONE);
            shared.transmit_all(way, Transport::Natt, &outstanding.datagrams);
        }
    }

    /// Sends the outstanding request by these ways as well, once.
    pub fn try_ways(&self, shared: &mut Shared, ways: &[Path]) {
        if let Some(outstanding) = &self.outstanding {
            for &way in ways {
                shared.transmit_all(way, Transport::Natt, &outstanding.datagrams);
            }
        }
    }

    /// How often the outstanding request was sent; zero if there is none.
    pub fn transmissions(&self) -> u32 {
        self.outstanding.as_ref().map_or(0, |outstanding| outstanding.sent)
    }

    fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        let (initiator_spi, responder_spi) = self.spis();
        let flags = Flags { initiator: self.initiator, version: false, response };
        Header { initiator_spi, responder_spi, exchange, flags, message_id }
    }

    /// Answers the open request at once, to where it came from.
    pub fn respond(&mut self, shared: &mut Shared, payloads: &[Payload]) {
        let Some(response) = self.seal_response(payloads) else { return };
        self.send_response(shared, response);
    }

    /// Answers the open request as soon as the data plane has done what the ticket stands for.
    pub fn respond_after(&mut self, ticket: Ticket, payloads: &[Payload]) {
        let Some(response) = self.seal_response(payloads) else { return };
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.held = Some((ticket, response));
        }
    }

    /// The data plane is done: lets the answer go that waited for this ticket.
    pub fn release(&mut self, shared: &mut Shared, ticket: Ticket) {
        let held = self.unanswered.as_mut().and_then(|unanswered| unanswered.held.take_if(|held| held.0 == ticket));
        if let Some((_, response)) = held {
            self.send_response(shared, response);
        }
    }

    fn seal_response(&mut self, payloads: &[Payload]) -> Option<Vec<Bytes>> {
        let unanswered = self.unanswered.as_ref()?;
        let header = self.header(unanswered.exchange, unanswered.message_id, true);
        Some(self.seal(&header, payloads))
    }

    /// The datagrams of a message: one, or its fragments if it is long and the peer reassembles them.
    fn seal(&mut self, header: &Header, payloads: &[Payload]) -> Vec<Bytes> {
        let most = if self.fragmentation { MAX_MESSAGE_LEN } else { usize::MAX };
        let datagrams = self.channel.seal_in_pieces(header, payloads, most);
        if header.exchange == ExchangeType::IkeIntermediate
            && let Some(Ok(Message { protected: Some(view), .. })) = datagrams.first().map(|first| Message::parse(first))
        {
            let mut chain = Vec::new();
            emit_chain(payloads, &mut chain);
            self.cover(*header, view, &datagrams[0], &chain);
        }
        datagrams
    }

    /// Remembers a message that AUTH will cover.
    fn cover(&mut self, header: Header, view: ProtectedView, head: &[u8], chain: &[u8]) {
        if header.exchange == ExchangeType::IkeIntermediate {
            let octets = Message::in_clear(view, head, chain);
            *(if header.flags.response { &mut self.covered.response } else { &mut self.covered.request }) = octets;
        }
    }

    /// Speaks under other keys from now on. What was sent already is repeated as it was.
    pub fn rekey(&mut self, mut channel: Channel) {
        channel.go_on_from(self.channel.next_iv());
        self.channel = channel;
    }

    /// Keeps to IVs of its own: several answers to one IKE_SA_INIT may come under one pair of SPIs.
    pub const fn take_ivs(&mut self, number: u64) {
        self.channel.go_on_from((number << 32) + 1);
    }

    fn send_response(&mut self, shared: &mut Shared, response: Vec<Bytes>) {
        if let Some(unanswered) = self.unanswered.take() {
            shared.transmit_all(unanswered.path, unanswered.transport, &response);
            self.answered = Some(Answered { request: unanswered.request, response });
        }
    }

    /// Sends a request. The window is one: nothing may be outstanding.
    pub fn request(&mut self, shared: &mut Shared, now: Instant, exchange: ExchangeType, payloads: &[Payload]) {
        self.request_for(shared, now, exchange, payloads, GIVE_UP);
    }

    /// Sends a request that is given up after `patience`.
    pub fn request_for(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        exchange: ExchangeType,
        payloads: &[Payload],
        patience: Duration,
    ) {
        self.begin(shared, now, exchange, payloads, (patience, None));
    }

    /// Sends a request by another way than the path, which is the second choice.
    pub fn request_by(&mut self, shared: &mut Shared, now: Instant, way: Path, payloads: &[Payload]) {
        self.begin(shared, now, ExchangeType::Informational, payloads, (GIVE_UP, Some(way)));
    }

    fn begin(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        exchange: ExchangeType,
        payloads: &[Payload],
        (patience, detour): (Duration, Option<Path>),
    ) {
        debug_assert!(self.outstanding.is_none(), "the window of requests is one");
        let message_id = self.next_request;
        self.next_request += 1;
        let header = self.header(exchange, message_id, false);
        let datagrams = self.seal(&header, payloads);
        let clock = Retransmit::start(now, patience, &mut *shared.rng);
        self.outstanding = Some(Outstanding { message_id, exchange, datagrams, clock, detour, sent: 0 });
        self.transmit(shared);
    }

    fn transmit(&mut self, shared: &mut Shared) {
        let Some(outstanding) = &mut self.outstanding else { return };
        outstanding.sent = outstanding.sent.saturating_add(1);
        if let Some(way) = outstanding.detour {
            shared.transmit_all(way, Transport::Natt, &outstanding.datagrams);
        }
        if outstanding.detour.is_none() || outstanding.sent > DETOUR_ALONE {
            shared.transmit_all(self.path, self.transport, &outstanding.datagrams);
        }
    }

    /// Retransmits what is due; true if the peer is given up.
    pub fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let Some(outstanding) = &mut self.outstanding else { return false };
        match outstanding.clock.poll(now, &mut *shared.rng) {
            Due::Wait => false,
            Due::Send => {
                self.transmit(shared);
                false
            }
            Due::GiveUp => true,
        }
    }

    /// Does without the answer to what was asked.
    pub fn forget_request(&mut self) {
        self.outstanding = None;
    }

    /// When `handle_timeout` has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|outstanding| outstanding.clock.wake())
    }
}

/// What becomes of a datagram that could not be opened: nothing, unless the peer itself made it.
fn unopened(shared: &mut Shared, packet: Packet<'_>, unusable: Unusable) -> Option<Opened> {
    match unusable {
        Unusable::Forged => {
            shared.drop(DropReason::IkeBadIcv);
            None
        }
        Unusable::Malformed(sentence) => Some(Opened::malformed(sentence, packet.datagram)),
    }
}
