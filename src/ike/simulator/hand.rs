//! A peer that is written by hand: it knows the protocol's keys and sends what a test tells it to, as host 1 to host 0.

use std::net::SocketAddr;

use bytes::Bytes;

use super::{Content, Proof, Simulator, address, peer_config};
use crate::crypto::{self, KeyExchange, Prf};
use crate::ike::PeerConfig;
use crate::ike::channel::Channel;
use crate::ike::contents::Contents;
use crate::ike::exchange::auth::{FULL_TRANSCRIPT, Record, initiator_payloads};
use crate::ike::exchange::negotiate::{FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, key_exchange_payload};
use crate::ike::fragments::{Collection, Of};
use crate::ike::intermediate::{Covered, IntAuth};
use crate::ike::keymat::{self, IkeKeys};
use crate::ike::proposals::{PostQuantum, offer_esp, offer_ike};
use crate::model::{AeadAlgorithm, IkeSuite, KeGroup, PrfAlgorithm, Rng, SeededRng, Spi, Transport};
use crate::wire::ike::{ExchangeType, Flags, Fragment, Header, Message, Payload, emit_chain, parse_chain};

/// The hand-written peer. It initiates.
pub struct Hand {
    pub source: SocketAddr,
    pub transport: Transport,
    pub spis: (u64, u64),
    pub record: Record,
    pub suite: IkeSuite,
    pub keys: IkeKeys,
    pub next_id: u32,
    pub rng: SeededRng,
    channel: Channel,
    fragments: Collection,
}

/// What an IKE_SA_INIT request is made of.
pub struct Greeting {
    pub spi: u64,
    pub nonce: Bytes,
    pub half: Box<dyn KeyExchange>,
    pub payloads: Vec<Payload>,
}

impl Greeting {
    pub fn new(seed: u64) -> Self {
        let mut rng = SeededRng::new(seed);
        let mut nonce = vec![0; 32];
        rng.fill(&mut nonce);
        let nonce = Bytes::from(nonce);
        let half = crypto::key_exchange(KeGroup::X25519, &mut rng);
        let payloads = vec![
            Payload::SecurityAssociation(offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::No, None)),
            key_exchange_payload(half.as_ref()),
            Payload::Nonce(nonce.clone()),
        ];
        Self { spi: rng.u64() | 1, nonce, half, payloads }
    }

    /// One that also offers a post-quantum key exchange, and both messages under AUTH.
    pub fn post_quantum(seed: u64) -> Self {
        let mut greeting = Self::new(seed);
        let offer = offer_ike(&AeadAlgorithm::ALL, KeGroup::X25519, PostQuantum::Preferred, None);
        greeting.payloads[0] = Payload::SecurityAssociation(offer);
        greeting.payloads.extend([FRAGMENTATION_SUPPORTED, INTERMEDIATE_SUPPORTED, FULL_TRANSCRIPT]);
        greeting
    }

    pub fn header(&self) -> Header {
        let flags = Flags { initiator: true, version: false, response: false };
        Header { initiator_spi: self.spi, responder_spi: 0, exchange: ExchangeType::IkeSaInit, flags, message_id: 0 }
    }

    pub fn message(&self) -> Vec<u8> {
        Message::emit_clear(&self.header(), &self.payloads)
    }
}

/// The address of host 1 with its NAT-T port: where hand-written messages come from.
pub fn source() -> SocketAddr {
    SocketAddr::new(address(1), 4500)
}

/// Takes what host 0 has sent since the last call.
pub fn sent(sim: &mut Simulator) -> Vec<Bytes> {
    let own = address(0);
    let mut sent = Vec::new();
    sim.waiting.retain(|datagram| match &datagram.content {
        Content::Ike(message) if datagram.path.local.ip() == own => {
            sent.push(message.clone());
            false
        }
        _ => true,
    });
    sent
}

/// The configuration with which host 1 would speak to host 0.
pub fn own_config(proof: Proof) -> PeerConfig {
    peer_config(1, 0, proof)
}

impl Hand {
    /// Does IKE_SA_INIT with host 0.
    pub fn greet(sim: &mut Simulator, seed: u64) -> Self {
        Self::greet_with(sim, seed, Greeting::new(seed))
    }

    /// Does IKE_SA_INIT with this request.
    pub fn greet_with(sim: &mut Simulator, seed: u64, greeting: Greeting) -> Self {
        let request = Bytes::from(greeting.message());
        sim.inject(0, source(), Transport::Natt, &request);
        let response = sent(sim).pop().expect("host 0 answers IKE_SA_INIT");
        let message = Message::parse(&response).expect("the answer parses");
        let contents = Contents::of(message.payloads);
        let full_transcript = greeting.payloads.contains(&FULL_TRANSCRIPT);
        let suite = IkeSuite {
            aead: AeadAlgorithm::Aes256Gcm16,
            prf: PrfAlgorithm::HmacSha2_256,
            group: KeGroup::X25519,
            additional: None,
        };
        let spis = (greeting.spi, message.header.responder_spi);
        let nonces = (greeting.nonce, contents.nonce.expect("a nonce"));
        let secret = greeting.half.agree(&contents.key_exchange.expect("a KE payload").value).expect("an honest value");
        let keys = keymat::initial(suite, &secret, &nonces.0, &nonces.1, spis.0, spis.1);
        let channel = Channel::new(suite.aead, &keys, true);
        let rng = SeededRng::new(seed + 1);
        Self {
            source: source(),
            transport: Transport::Natt,
            spis,
            record: Record {
                request: request.clone(),
                response,
                nonce_i: nonces.0.clone(),
                nonce_r: nonces.1.clone(),
                full_transcript,
                int_auth: Vec::new(),
            },
            suite,
            keys,
            next_id: 1,
            rng,
            channel,
            fragments: Collection::default(),
        }
    }

    /// The payloads of an IKE_AUTH that host 0 accepts, with a CHILD_SA.
    pub fn auth_payloads(&self, config: &PeerConfig) -> Vec<Payload> {
        let mut payloads = self.proof_payloads(config);
        payloads.extend(self.child_payloads(config, 0x1234_5600));
        payloads
    }

    /// Its part without CHILD_SA: IDi, CERT, IDr, AUTH.
    pub fn proof_payloads(&self, config: &PeerConfig) -> Vec<Payload> {
        initiator_payloads(Prf(self.suite.prf), config, self.record.of_initiator(&self.keys.sk_pi), false)
    }

    /// SA, TSi and TSr with this SPI.
    pub fn child_payloads(&self, config: &PeerConfig, spi: u32) -> Vec<Payload> {
        let spi = Spi::new(spi).expect("a legal SPI");
        vec![
            Payload::SecurityAssociation(offer_esp(&config.suites, &[], spi)),
            Payload::TsInitiator(config.local_selectors.clone()),
            Payload::TsResponder(config.remote_selectors.clone()),
        ]
    }

    /// A whole tunnel with host 0.
    pub fn establish(sim: &mut Simulator, seed: u64) -> Self {
        Self::greet(sim, seed).prove(sim)
    }

    /// Does IKE_SA_INIT with host 0; both reassemble fragments.
    pub fn greet_with_fragments(sim: &mut Simulator, seed: u64) -> Self {
        let mut greeting = Greeting::new(seed);
        greeting.payloads.push(FRAGMENTATION_SUPPORTED);
        Self::greet_with(sim, seed, greeting)
    }

    /// Does IKE_INTERMEDIATE: the additional key exchange.
    pub fn add_key_exchange(mut self, sim: &mut Simulator) -> Self {
        let half = crypto::key_exchange(KeGroup::ADDITIONAL, &mut self.rng);
        let payloads = [key_exchange_payload(half.as_ref())];
        let request = self.next(ExchangeType::IkeIntermediate, &payloads);
        self.inject(sim, &request);
        let response = sent(sim).pop().expect("host 0 answers IKE_INTERMEDIATE");
        let mut covered = Covered::default();
        let mut value = Bytes::new();
        // Its own request in clear: the same prefix with other lengths, and what it sealed.
        let parsed = Message::parse(&request).expect("our own");
        let mut chain = Vec::new();
        emit_chain(&payloads, &mut chain);
        covered.request = Message::in_clear(parsed.protected.expect("SK"), &request, &chain);
        let parsed = Message::parse(&response).expect("the answer parses");
        let view = parsed.protected.expect("SK");
        let (first, chain) = self.channel.open_octets(view, &response).expect("host 0 has the keys");
        covered.response = Message::in_clear(view, &response, &chain);
        for payload in parse_chain(first, &chain).expect("it parses") {
            if let Payload::KeyExchange(answer) = payload {
                value = answer.value;
            }
        }
        let secret = half.agree(&value).expect("a ciphertext");
        let prf = Prf(self.suite.prf);
        let mut int_auth = IntAuth::default();
        int_auth.cover(prf, &self.keys, &covered);
        self.record.int_auth = int_auth.octets();
        let (spi_i, spi_r) = self.spis;
        let (nonce_i, nonce_r) = (&self.record.nonce_i, &self.record.nonce_r);
        self.keys = keymat::rekeyed(prf, &self.keys.sk_d, self.suite, (&secret, None), nonce_i, nonce_r, spi_i, spi_r);
        self.channel = Channel::new(self.suite.aead, &self.keys, true);
        self
    }

    /// Does IKE_AUTH, with a CHILD_SA.
    pub fn prove(self, sim: &mut Simulator) -> Self {
        let mut hand = self;
        let payloads = hand.auth_payloads(&own_config(Proof::Psk));
        hand.send(sim, ExchangeType::IkeAuth, &payloads);
        sim.finish_installs();
        let answer = hand.read(sim).pop().expect("host 0 answers IKE_AUTH");
        assert!(answer.1.auth.is_some(), "{:?} {:?}", answer.1.notifies, sim.hosts[0].complaints());
        assert!(answer.1.proposals.is_some(), "with a CHILD_SA");
        hand
    }

    pub fn header(&self, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
        let flags = Flags { initiator: true, version: false, response };
        Header { initiator_spi: self.spis.0, responder_spi: self.spis.1, exchange, flags, message_id }
    }

    /// A sealed message with any header.
    pub fn seal(&mut self, header: &Header, payloads: &[Payload]) -> Bytes {
        self.channel.seal(header, payloads)
    }

    /// A chain of payloads in fragments, so that none is longer than `most`.
    pub fn seal_fragments(&mut self, header: &Header, first: u8, chain: &[u8], most: usize) -> Vec<Bytes> {
        self.channel.seal_fragments(header, first, chain, most)
    }

    /// One fragment with any header, numbers and content.
    pub fn seal_fragment(&mut self, header: &Header, number: u16, total: u16, first: u8, piece: &[u8]) -> Bytes {
        self.channel.seal_fragment(header, Fragment { number, total }, first, piece)
    }

    /// A sealed message whose plaintext, padding and pad length included, is these octets.
    pub fn seal_octets(&mut self, header: &Header, first_inner: u8, text: &[u8]) -> Vec<u8> {
        self.seal_behind(header, &[], None, first_inner, text)
    }

    /// The same behind payloads in clear of these types, each with one octet, which the ICV covers; as a fragment, if it has numbers.
    pub fn seal_behind(
        &mut self,
        header: &Header,
        clear: &[u8],
        fragment: Option<Fragment>,
        first_inner: u8,
        text: &[u8],
    ) -> Vec<u8> {
        let (key, salt) = self.keys.sk_ei.keymat.expose().split_at(self.suite.aead.key_len());
        let mut nonce = [0xff; 12];
        nonce[..4].copy_from_slice(salt);
        self.rng.fill(&mut nonce[8..]);
        let (sk, skf) = (46, 53);
        let last = if fragment.is_some() { skf } else { sk };
        let mut message = Message::emit_clear(header, &[]);
        message[16] = clear.first().copied().unwrap_or(last);
        for (place, kind) in clear.iter().enumerate() {
            message.extend_from_slice(&[clear.get(place + 1).copied().unwrap_or(last), 0, 0, 5, *kind]);
        }
        let numbers = fragment.map(|Fragment { number, total }| [number.to_be_bytes(), total.to_be_bytes()].concat());
        let numbers = numbers.unwrap_or_default();
        let body = 4 + numbers.len() + 8 + text.len() + 16;
        let length = u32::try_from(message.len() + body).expect("a short text");
        message[24..28].copy_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&[first_inner, 0]);
        message.extend_from_slice(&u16::try_from(body).expect("a short text").to_be_bytes());
        message.extend_from_slice(&numbers);
        let mut text = text.to_vec();
        let icv = crypto::aead(crypto::Provider::default(), self.suite.aead, key).seal(&nonce, &message, &mut text);
        message.extend_from_slice(&nonce[4..]);
        message.extend_from_slice(&text);
        message.extend_from_slice(&icv);
        message
    }

    /// The next request.
    pub fn next(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> Bytes {
        let header = self.header(exchange, self.next_id, false);
        self.next_id += 1;
        self.seal(&header, payloads)
    }

    /// Sends the next request.
    pub fn send(&mut self, sim: &mut Simulator, exchange: ExchangeType, payloads: &[Payload]) {
        let message = self.next(exchange, payloads);
        self.inject(sim, &message);
    }

    /// Sends octets.
    pub fn inject(&self, sim: &mut Simulator, message: &[u8]) {
        sim.inject(0, self.source, self.transport, message);
    }

    /// What host 0 sent on this IKE SA.
    pub fn read(&mut self, sim: &mut Simulator) -> Vec<(Header, Contents)> {
        let mut read = Vec::new();
        for octets in sent(sim) {
            let Message { header, protected, .. } = Message::parse(&octets).expect("host 0 sends what parses");
            let Some((view, Ok((first, chain)))) = protected.map(|view| (view, self.channel.open_octets(view, &octets)))
            else {
                continue;
            };
            let of = Of { message_id: header.message_id, exchange: header.exchange };
            let whole = match view.fragment {
                None => Some((first, chain)),
                Some(fragment) => {
                    self.fragments.take(of, fragment, first, &chain, &octets).map(|whole| (whole.first, whole.chain))
                }
            };
            if let Some(Ok(payloads)) = whole.map(|(first, chain)| parse_chain(first, &chain)) {
                read.push((header, Contents::of(payloads)));
            }
        }
        read
    }
}
