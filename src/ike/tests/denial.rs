//! Denial of service: what strangers can make us keep, compute and send before they have shown who they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::hand::{Greeting, Hand, alone, counted, own_config, sent, source};
use crate::ike::Event;
use crate::ike::contents::Contents;
use crate::ike::limits::{
    AMPLIFICATION, HALF_OPEN_CALM, HALF_OPEN_LIFETIME, HALF_OPEN_LIMIT, HALF_OPEN_MAX, HALF_OPEN_PER_SOURCE,
    HALF_OPEN_PER_SOURCE_MAX, KNOWN_INIT_LIFETIME, MAX_KNOWN_INITS, MAX_KNOWN_INITS_PER_SOURCE,
};
use crate::ike::simulator::{Proof, Simulator};
use crate::model::{DropReason, IkeSpi, Rng, SeededRng, Transport};
use crate::wire::ike::{ExchangeType, Header, KeyExchangePayload, Message, Notify, NotifyType, Payload, TransformType};

const MILLIS: fn(u64) -> Duration = Duration::from_millis;

/// An address that nobody else uses.
fn stranger(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + number), 500).into()
}

/// What a stranger gets who sends this: a cookie, something else, or nothing.
#[derive(Clone, PartialEq, Debug)]
enum Got {
    Cookie(Notify),
    Answer,
    Nothing,
}

fn send(sim: &mut Simulator, from: SocketAddr, octets: &[u8]) -> Got {
    sent(sim);
    sim.inject(0, from, Transport::Plain, octets);
    let answers = sent(sim);
    assert!(answers.len() <= 1, "one datagram for one");
    let Some(answer) = answers.first() else { return Got::Nothing };
    let contents = Contents::of(Message::parse(answer).expect("it parses").payloads);
    contents.notify(NotifyType::Cookie).map_or(Got::Answer, |cookie| Got::Cookie(cookie.clone()))
}

/// Requests under any number of names: the key exchange of one, SPIs of their own.
struct Requests(Vec<u8>);

impl Requests {
    fn new() -> Self {
        Self(Greeting::new(1).message())
    }

    fn named(&mut self, number: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&(number + 1).to_be_bytes());
        &self.0
    }
}

/// The same request with the cookie in front.
fn with_cookie(request: &[u8], cookie: &Notify) -> Vec<u8> {
    let message = Message::parse(request).expect("our own");
    let payloads: Vec<Payload> = std::iter::once(Payload::Notify(cookie.clone())).chain(message.payloads).collect();
    Message::emit_clear(&message.header, &payloads)
}

/// Counts what a key exchange, and nothing else but a nonce, draws.
struct Counting(SeededRng, Arc<AtomicUsize>);

impl Rng for Counting {
    fn fill(&mut self, buffer: &mut [u8]) {
        self.1.fetch_add(usize::from(buffer.len() >= 32), Ordering::Relaxed);
        self.0.fill(buffer);
    }
}

fn count_draws(sim: &mut Simulator) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    sim.hosts[0].endpoint.shared.rng = Box::new(Counting(SeededRng::new(9), Arc::clone(&count)));
    count
}

// --- cookies ---

/// Cookies are asked for from the limit on, and until half of the half-open IKE SAs are gone: who looks for the edge finds none.
#[test]
fn cookies_begin_at_the_limit_and_end_at_half_of_it() {
    let mut sim = alone(Proof::Psk);
    let mut requests = Requests::new();
    let limit = HALF_OPEN_LIMIT as u32;
    // One each hundred milliseconds, so that later they expire one by one.
    for number in 0..limit {
        assert_eq!(send(&mut sim, stranger(number), requests.named(number.into())), Got::Answer, "{number}");
        sim.run_for(MILLIS(100));
    }
    let ask = |sim: &mut Simulator, requests: &mut Requests, number: u32| {
        matches!(send(sim, stranger(number), requests.named(number.into())), Got::Cookie(_))
    };
    assert!(ask(&mut sim, &mut requests, limit));
    let mut asked_below_the_limit = false;
    for number in limit + 1.. {
        let held = sim.hosts[0].endpoint.ike_sa_count();
        let wary = held >= HALF_OPEN_LIMIT / HALF_OPEN_CALM;
        assert_eq!(ask(&mut sim, &mut requests, number), wary, "{held} are half-open");
        asked_below_the_limit |= wary && held < HALF_OPEN_LIMIT;
        if !wary {
            break;
        }
        sim.run_for(MILLIS(100));
    }
    assert!(asked_below_the_limit);
    // Calm: the next ones are free again, up to the limit and not to half of it.
    let from = sim.hosts[0].endpoint.ike_sa_count() as u32;
    for number in from..limit {
        assert!(!ask(&mut sim, &mut requests, 10_000 + number), "{number}");
    }
    assert!(ask(&mut sim, &mut requests, 20_000));
}

/// The same for one source, of whom nobody else notices anything.
#[test]
fn one_source_is_asked_for_cookies_and_others_are_not() {
    let mut sim = alone(Proof::Psk);
    let mut requests = Requests::new();
    for number in 0..HALF_OPEN_PER_SOURCE as u64 {
        assert_eq!(send(&mut sim, stranger(1), requests.named(number)), Got::Answer);
        sim.run_for(MILLIS(500));
    }
    assert!(matches!(send(&mut sim, stranger(1), requests.named(100)), Got::Cookie(_)));
    assert_eq!(send(&mut sim, stranger(2), requests.named(101)), Got::Answer);
    let own = |sim: &Simulator| sim.hosts[0].endpoint.half_open(stranger(1).ip());
    sim.run_for(HALF_OPEN_LIFETIME - MILLIS(4000) + MILLIS(1600));
    while own(&sim) >= HALF_OPEN_PER_SOURCE / HALF_OPEN_CALM {
        assert!(own(&sim) < HALF_OPEN_PER_SOURCE);
        assert!(matches!(send(&mut sim, stranger(1), requests.named(200)), Got::Cookie(_)), "not calm yet");
        sim.run_for(MILLIS(500));
    }
    assert_eq!(send(&mut sim, stranger(1), requests.named(201)), Got::Answer);
}

/// Under load a request without cookie costs a hash: no key exchange, no nonce, no state, and an answer that is not longer.
#[test]
fn no_key_exchange_before_a_good_cookie() {
    let mut sim = alone(Proof::Psk);
    let mut requests = Requests::new();
    for number in 0..HALF_OPEN_LIMIT as u32 {
        send(&mut sim, stranger(number), requests.named(number.into()));
    }
    let draws = count_draws(&mut sim);
    // The cookies' secret is drawn once.
    send(&mut sim, stranger(999), requests.named(999));
    assert_eq!(draws.swap(0, Ordering::Relaxed), 1);
    let held = sim.hosts[0].endpoint.ike_sa_count();
    let mut cookie = None;
    for number in 1000..2000 {
        let request = requests.named(number).to_vec();
        let Got::Cookie(notify) = send(&mut sim, stranger(number as u32), &request) else { panic!("a cookie is wanted") };
        // Bad ones are as none: somebody else's, a damaged one.
        if let Some(others) = cookie.replace(notify.clone()) {
            assert!(matches!(send(&mut sim, stranger(number as u32), &with_cookie(&request, &others)), Got::Cookie(_)));
        }
        let damaged: Vec<u8> = notify.data.iter().map(|octet| octet ^ 0x80).collect();
        let damaged = Notify::new(NotifyType::Cookie, damaged);
        assert!(matches!(send(&mut sim, stranger(number as u32), &with_cookie(&request, &damaged)), Got::Cookie(_)));
    }
    assert_eq!((draws.load(Ordering::Relaxed), sim.hosts[0].endpoint.ike_sa_count()), (0, held));
    // With the right one: a nonce and our half of the key exchange, and something is held.
    let request = requests.named(1999).to_vec();
    let answer = send(&mut sim, stranger(1999), &with_cookie(&request, &cookie.expect("the last one's")));
    assert_eq!((answer, draws.load(Ordering::Relaxed), sim.hosts[0].endpoint.ike_sa_count()), (Got::Answer, 2, held + 1));
}

/// The costly half, agreeing on the secret, waits for somebody who has heard our SPI: no message under another one brings it about.
#[test]
fn the_secret_is_agreed_on_only_when_it_is_needed() {
    let mut sim = alone(Proof::Psk);
    let mut hand = Hand::greet(&mut sim, 5);
    let spi = IkeSpi::new(hand.spis.1).expect("our SPI");
    let state = |sim: &Simulator| format!("{:?}", sim.hosts[0].endpoint.table.peek(spi));
    assert!(state(&sim).contains("Halves"));
    let auth = hand.auth_payloads(&own_config(Proof::Psk));
    let header = hand.header(ExchangeType::IkeAuth, 1, false);
    let guessed = Header { responder_spi: header.responder_spi ^ 1, ..header };
    for header in [guessed, Header { exchange: ExchangeType::CreateChildSa, ..header }] {
        let message = hand.seal(&header, &auth);
        hand.inject(&mut sim, &message);
        assert!(state(&sim).contains("Halves"));
    }
    let mut forged = hand.seal(&header, &auth).to_vec();
    *forged.last_mut().expect("an ICV") ^= 1;
    hand.inject(&mut sim, &forged);
    assert!(state(&sim).contains("Keyed"), "who has our SPI has heard us");
}

// --- memory ---

/// However much one source sends, and whatever it returns, no more of it is kept than this.
#[test]
fn what_one_source_can_make_us_keep() {
    let v6 = |number: u64| {
        let address = 0x2001_0db8_0000_0007_u128 << 64 | u128::from(number);
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from_bits(address)), 500)
    };
    // Its ports, or its addresses in one /64, are no further sources.
    let v4 = |number: u64| SocketAddr::new(stranger(7).ip(), 1024 + (number % 60_000) as u16);
    for (place, of) in [(v4 as fn(u64) -> SocketAddr, "IPv4"), (v6, "IPv6")] {
        for returns_cookies in [false, true] {
            let mut sim = alone(Proof::Psk);
            let mut requests = Requests::new();
            let most = if returns_cookies { HALF_OPEN_PER_SOURCE_MAX } else { HALF_OPEN_PER_SOURCE };
            for number in 0..5000 {
                let request = requests.named(number).to_vec();
                if let Got::Cookie(cookie) = send(&mut sim, place(number), &request)
                    && returns_cookies
                {
                    send(&mut sim, place(number), &with_cookie(&request, &cookie));
                }
                assert!(sim.hosts[0].endpoint.ike_sa_count() <= most, "{of}");
                if number % 100 == 0 {
                    sim.run_for(MILLIS(200));
                }
            }
            let endpoint = &sim.hosts[0].endpoint;
            assert_eq!(endpoint.ike_sa_count(), most, "{of}");
            assert!(endpoint.known_inits.len() <= MAX_KNOWN_INITS_PER_SOURCE, "{of}: {}", endpoint.known_inits.len());
            assert!(sim.hosts[0].events.len() <= 5000, "one line at most for each");
        }
    }
}

/// Who has proved itself and then begins one IKE SA after the other is let in so often and no more, until a minute has passed.
#[test]
fn a_peer_that_begins_without_end_has_to_wait() {
    let mut sim = alone(Proof::Psk);
    for number in 0..MAX_KNOWN_INITS_PER_SOURCE as u64 {
        let mut hand = Hand::greet(&mut sim, 1000 + 2 * number);
        let payloads = hand.auth_payloads(&own_config(Proof::Psk));
        assert!(hand.ask(&mut sim, ExchangeType::IkeAuth, &payloads).auth.is_some());
        sim.run_for(MILLIS(10));
    }
    let before = sim.hosts[0].endpoint.drops().of(DropReason::IkeHalfOpenLimit);
    assert_eq!(send(&mut sim, source(), &Greeting::new(1).message()), Got::Nothing, "no more in this minute");
    assert_eq!(sim.hosts[0].endpoint.drops().of(DropReason::IkeHalfOpenLimit), before + 1);
    sim.run_for(KNOWN_INIT_LIFETIME);
    assert_eq!(send(&mut sim, source(), &Greeting::new(1).message()), Got::Answer);
}

/// A hundred thousand sources that return no cookies leave what 64 do; those that do, what 512 do.
#[test]
fn case_58_a_hundred_thousand_half_open_from_forged_sources() {
    let mut sim = alone(Proof::Psk);
    let mut requests = Requests::new();
    let (mut answers, mut cookies, mut lengths) = (0, 0, (0, 0));
    for number in 0..100_000 {
        let request = requests.named(number).to_vec();
        sim.inject(0, stranger(number as u32), Transport::Plain, &request);
        for answer in sent(&mut sim) {
            lengths = (lengths.0 + request.len(), lengths.1 + answer.len());
            let is_cookie = answer.len() < 100;
            (answers, cookies) = (answers + usize::from(!is_cookie), cookies + usize::from(is_cookie));
        }
    }
    let endpoint = &sim.hosts[0].endpoint;
    assert_eq!((answers, cookies), (HALF_OPEN_LIMIT, 100_000 - HALF_OPEN_LIMIT));
    assert!(lengths.1 < lengths.0, "{lengths:?} octets in and out");
    assert_eq!(endpoint.ike_sa_count(), HALF_OPEN_LIMIT);
    assert_eq!(endpoint.drops().of(DropReason::IkeHalfOpenLimit), (100_000 - HALF_OPEN_LIMIT) as u64, "one event each");
    assert_eq!(counted(&sim), (100_000 - HALF_OPEN_LIMIT) as u64);
    assert!(endpoint.known_inits.len() <= MAX_KNOWN_INITS);
    // Sources that can answer, as a botnet can.
    for number in 0..5000 {
        let request = requests.named(number).to_vec();
        if let Got::Cookie(cookie) = send(&mut sim, stranger(500_000 + number as u32), &request) {
            send(&mut sim, stranger(500_000 + number as u32), &with_cookie(&request, &cookie));
        }
    }
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), HALF_OPEN_MAX);
    // And all of it goes away.
    sim.run_for(HALF_OPEN_LIFETIME + MILLIS(100));
    assert_eq!(sim.hosts[0].endpoint.ike_sa_count(), 0);
}

// --- amplification ---

/// A request of any shape that strangers may try: fewer transforms, fewer payloads, other lengths.
fn any_request(chance: &mut SeededRng) -> Vec<u8> {
    let mut greeting =
        if chance.u32().is_multiple_of(2) { Greeting::new(chance.u64()) } else { Greeting::post_quantum(chance.u64()) };
    let keep = chance.u32() % 4;
    if let Payload::SecurityAssociation(proposals) = &mut greeting.payloads[0] {
        proposals.truncate(1 + chance.u32() as usize % 2);
        for proposal in proposals {
            let mut seen = Vec::new();
            proposal.transforms.retain(|transform| {
                let is_first = !seen.contains(&transform.kind);
                seen.push(transform.kind);
                is_first || keep == 0
            });
            if keep == 1 {
                proposal.transforms.retain(|transform| !matches!(transform.kind, TransformType::AdditionalKeyExchange(_)));
            }
        }
    }
    let group = [31, 19, 20, 14][chance.u32() as usize % 4];
    if chance.u32().is_multiple_of(3) {
        let value = Bytes::from(vec![9; [0, 1, 32, 64, 96][chance.u32() as usize % 5]]);
        greeting.payloads[1] = Payload::KeyExchange(KeyExchangePayload { group, value });
    }
    greeting.payloads[2] = Payload::Nonce(vec![7; 16 + chance.u32() as usize % 3 * 16].into());
    if chance.u32().is_multiple_of(4) {
        greeting.payloads.push(Payload::Unknown { kind: 200, critical: chance.u32().is_multiple_of(2) });
    }
    if chance.u32().is_multiple_of(4) {
        greeting.payloads.remove(chance.u32() as usize % greeting.payloads.len());
    }
    greeting.message()
}

/// Whoever's address stands on it: the answer to a request is one datagram, at most twice as long, and so is each repetition.
#[test]
fn no_answer_is_much_longer_than_its_request() {
    let mut chance = SeededRng::new(4);
    let (mut answered, mut longest) = (0, 0.0);
    for number in 0..3000 {
        let mut sim = alone(if number % 2 == 0 { Proof::Psk } else { Proof::HostKeys });
        let request = any_request(&mut chance);
        for _ in 0..3 {
            sim.inject(0, stranger(number), Transport::Plain, &request);
            let answers = sent(&mut sim);
            assert!(answers.len() <= 1);
            let length = answers.first().map_or(0, Bytes::len);
            assert!(length <= AMPLIFICATION * request.len(), "{length} octets for {}", request.len());
            answered += usize::from(length > 100);
            longest = f64::max(longest, length as f64 / request.len() as f64);
        }
    }
    assert!(answered > 1000 && longest > 1.2, "{answered} of them were answered, at most {longest} times as long");
}

/// What is too short for its answer gets a cookie, which is not longer than it is; with the cookie it gets the answer.
#[test]
fn a_request_that_is_too_short_for_its_answer_has_to_return_a_cookie() {
    let mut sim = alone(Proof::Psk);
    let mut greeting = Greeting::new(1);
    if let Payload::SecurityAssociation(proposals) = &mut greeting.payloads[0] {
        for proposal in proposals.iter_mut() {
            let mut seen = Vec::new();
            proposal.transforms.retain(|transform| {
                !seen.contains(&transform.kind) && {
                    seen.push(transform.kind);
                    true
                }
            });
        }
    }
    greeting.payloads[1] = Payload::KeyExchange(KeyExchangePayload { group: 31, value: Bytes::new() });
    greeting.payloads[2] = Payload::Nonce(vec![7; 16].into());
    let request = greeting.message();
    let draws = count_draws(&mut sim);
    sim.inject(0, stranger(1), Transport::Plain, &request);
    let answer = sent(&mut sim).pop().expect("a cookie");
    assert!(answer.len() <= request.len());
    assert_eq!((sim.hosts[0].endpoint.ike_sa_count(), sim.hosts[0].endpoint.drops().of(DropReason::IkeShort)), (0, 1));
    assert_eq!(draws.load(Ordering::Relaxed), 2, "a nonce and the secret of cookies, but no key exchange");
    let Got::Cookie(cookie) = send(&mut sim, stranger(1), &request) else { panic!("a cookie") };
    let answer = send(&mut sim, stranger(1), &with_cookie(&request, &cookie));
    assert_eq!((answer, sim.hosts[0].endpoint.ike_sa_count()), (Got::Answer, 1));
    assert!(!sim.hosts[0].events.iter().any(|event| matches!(event, Event::IkeUp { .. })));
}
