//! Where a datagram goes: to the IKE SA that it names, to a new one, or nowhere.

use std::net::IpAddr;

use super::Event;
use super::contents::Contents;
use super::cookie::Claimant;
use super::endpoint::Endpoint;
use super::exchange::informational::NO_DATA;
use super::limits::{HINT_INTERVAL, MAX_KNOWN_INITS_PER_SOURCE, UNKNOWN_SPI_INTERVAL};
use super::session::Packet;
use super::state::{IkeSa, init_answer_header, respond_to_init};
use super::table::Room;
use crate::model::{DropReason, IkeSpi, Instant, Path, PeerIndex, Transport};
use crate::wire::ike::{ExchangeType, Flags, Header, Message, Notify, NotifyType, ParseError, Payload};

impl Endpoint {
    /// Takes an IKE message (without non-ESP marker) that came by this path.
    pub fn handle_datagram(&mut self, now: Instant, path: Path, transport: Transport, datagram: &[u8]) {
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(ParseError::Version(_)) => return self.shared.drop(DropReason::IkeVersion),
            Err(_) => return self.shared.drop(DropReason::IkeMalformed),
        };
        let packet = Packet { message: &message, datagram, path, transport };
        let header = message.header;
        if header.exchange == ExchangeType::IkeSaInit && !header.flags.response {
            return self.handle_init(now, packet);
        }
        // The I flag says whose SPI is whose (RFC 7296 §3.1).
        let ours = if header.flags.initiator { header.responder_spi } else { header.initiator_spi };
        let Some(spi) = IkeSpi::new(ours) else { return self.shared.drop(DropReason::IkeUnexpected) };
        if message.protected.is_none() && header.exchange != ExchangeType::IkeSaInit {
            return self.handle_hint(now, spi, packet);
        }
        if !self.deliver(now, spi, packet) {
            self.shared.drop(DropReason::IkeUnknownSpi);
            self.answer_unknown(now, packet);
        }
    }

    /// IKE_SA_INIT: nothing about its sender is known, so every path through here is bounded.
    fn handle_init(&mut self, now: Instant, packet: Packet<'_>) {
        let header = packet.message.header;
        let reflected =
            IkeSpi::new(header.initiator_spi).and_then(|spi| self.table.peek(spi)).is_some_and(IkeSa::is_initiating);
        let fits = header.flags.initiator
            && header.responder_spi == 0
            && header.message_id == 0
            && packet.message.protected.is_none();
        if !fits || reflected {
            return self.shared.drop(DropReason::IkeUnexpected);
        }
        let (name, source) = (header.initiator_spi, packet.path.remote);
        // What became of it may be gone: then its sender never got our answer, or begins anew.
        if let Some(known) = self.known_inits.find(now, name, source).filter(|&known| self.table.peek(known).is_some()) {
            return self.repeat_init(known, packet);
        }
        if !self.admits(now, packet) {
            return self.shared.drop(DropReason::IkeHalfOpenLimit);
        }
        let mut answer = respond_to_init(&mut self.shared, now, packet, false);
        if matches!(answer, Err(DropReason::IkeShort)) && self.brings_cookie(now, packet) {
            answer = respond_to_init(&mut self.shared, now, packet, true);
        }
        match answer {
            Ok((response, state)) => {
                self.shared.transmit(packet.path, packet.transport, response);
                match state {
                    Some(state) => {
                        let spi = state.local_spi;
                        self.known_inits.remember(now, name, source, spi);
                        self.insert(spi, IkeSa::HalfOpen(Box::new(state)));
                    }
                    None => self.shared.drop(DropReason::IkeUnexpected),
                }
            }
            Err(reason) => self.shared.drop(reason),
        }
    }

    /// Whether there is room for one more half-open IKE SA.
    fn admits(&mut self, now: Instant, packet: Packet<'_>) -> bool {
        let source = packet.path.remote.ip();
        match self.table.room_for(source) {
            Room::Free => self.may_begin(now, source),
            Room::WithCookie => self.brings_cookie(now, packet) && self.may_begin(now, source),
            Room::None => false,
        }
    }

    /// Whether this source has not begun too many IKE SAs lately.
    fn may_begin(&mut self, now: Instant, source: IpAddr) -> bool {
        self.known_inits.begun_by(now, source) < MAX_KNOWN_INITS_PER_SOURCE
    }

    /// Whether the sender shows that it is where it says. If not, it is sent what it needs for that; the answer is never longer
    /// than the question.
    fn brings_cookie(&mut self, now: Instant, packet: Packet<'_>) -> bool {
        let source = packet.path.remote.ip();
        let contents = Contents::of(packet.message.payloads.clone());
        let Some(nonce) = &contents.nonce else { return false };
        let spi = packet.message.header.initiator_spi;
        let claimant = Claimant { spi, source, nonce };
        let mut cookies = contents.notifies(NotifyType::Cookie);
        if cookies.any(|notify| self.cookies.is_good(now, claimant, &notify.data)) {
            return true;
        }
        let notify = Notify::new(NotifyType::Cookie, self.cookies.bake(now, claimant, &mut *self.shared.rng));
        let answer = Message::emit_clear(&init_answer_header(spi, 0), &[Payload::Notify(notify)]);
        if answer.len() <= packet.datagram.len() {
            self.shared.transmit(packet.path, packet.transport, answer.into());
        }
        false
    }

    /// The same request again gets the same answer; another one under the same name gets none.
    fn repeat_init(&mut self, spi: IkeSpi, packet: Packet<'_>) {
        match self.table.peek(spi) {
            Some(IkeSa::HalfOpen(state)) if state.record.request == packet.datagram => {
                let response = state.record.response.clone();
                self.shared.transmit(packet.path, packet.transport, response);
            }
            _ => self.shared.drop(DropReason::IkeUnexpected),
        }
    }

    /// A message in clear outside IKE_SA_INIT: at most a hint that the sender lost its SAs (RFC 7296 §2.21.4). It changes nothing.
    fn handle_hint(&mut self, now: Instant, spi: IkeSpi, packet: Packet<'_>) {
        self.shared.drop(DropReason::IkeUnexpected);
        let contents = Contents::of(packet.message.payloads.clone());
        let about_ike = contents.notify(NotifyType::InvalidIkeSpi).is_some();
        let about_esp = contents.notify(NotifyType::InvalidSpi).is_some();
        if !about_ike && !about_esp {
            return;
        }
        let from_there = |path: Path| path.remote.ip() == packet.path.remote.ip();
        let peer: Option<PeerIndex> = match self.table.established(spi) {
            Some(state) => Some(state).filter(|state| from_there(state.session.path)).map(|state| state.peer()),
            None if about_esp => {
                self.shared.peers.values().find(|config| config.is_at(packet.path.remote.ip())).map(|config| config.index)
            }
            None => None,
        };
        let Some(peer) = peer else { return };
        let last = self.hinted.get(&peer);
        if last.is_none_or(|&last| now.since(last) >= HINT_INTERVAL) {
            self.hinted.insert(peer, now);
            self.shared.event(Event::Hint { peer });
        }
    }

    /// Tells the sender of a request that we do not have its IKE SA (RFC 7296 §1.5, §2.21.4): in clear, never in answer to an
    /// answer, never longer than what came, and rarely.
    fn answer_unknown(&mut self, now: Instant, packet: Packet<'_>) {
        let header = packet.message.header;
        if header.flags.response || now < self.next_courtesy {
            return;
        }
        let flags = Flags { initiator: !header.flags.initiator, version: false, response: true };
        let notify = Payload::Notify(Notify::new(NotifyType::InvalidIkeSpi, NO_DATA));
        let answer = Message::emit_clear(&Header { flags, ..header }, &[notify]);
        if answer.len() <= packet.datagram.len() {
            self.next_courtesy = now + UNKNOWN_SPI_INTERVAL;
            self.shared.transmit(packet.path, packet.transport, answer.into());
        }
    }
}
