//! Payloads that mean something to host 0: its SPIs, its links, values that it can compute with. A fuzzer chooses which, and in what
//! order; what comes of them is deeper than what comes of octets.

use bytes::Bytes;

use super::hand::{Hand, own_config};
use super::{Proof, Simulator};
use crate::crypto;
use crate::ike::exchange::negotiate::key_exchange_payload;
use crate::ike::proposals::{PostQuantum, offer_child, offer_esp, offer_ike};
use crate::model::{AeadAlgorithm, IkeSpi, KeGroup, Spi, TrafficSelector};
use crate::wire::ike::{Delete, KeyExchangePayload, Notify, NotifyType, Payload, Protocol};

/// How many kinds there are.
const KINDS: u8 = 22;

/// Payloads as pairs of octets choose them: what it is, and a number for it. `link` is the one that host 0 gave last.
pub fn compose(sim: &Simulator, hand: &mut Hand, link: &Bytes, octets: &[u8]) -> Vec<Payload> {
    let mut payloads: Vec<Payload> = Vec::new();
    for &[what, number] in octets.as_chunks::<2>().0 {
        let payload = payload(sim, hand, link, what % KINDS, number);
        // What may come once comes once, or the codec would end it all.
        let is_repeatable = matches!(payload, Payload::Notify(_) | Payload::Delete(_) | Payload::Unknown { .. });
        if is_repeatable || !payloads.iter().any(|other| other.kind() == payload.kind()) {
            payloads.push(payload);
        }
    }
    payloads
}

/// A SPI that this peer might receive on.
fn fresh(number: u8) -> Spi {
    Spi::new(0x4000_0000 | u32::from(number) << 8).expect("not reserved")
}

/// The SPIs of what host 0 has installed: those that this peer receives on, and after them host 0's own.
fn known(sim: &Simulator, number: u8) -> Spi {
    let installed = &sim.hosts[0].plane.installed;
    let spis: Vec<Spi> =
        installed.iter().map(|sa| sa.outbound_spi).chain(installed.iter().map(|sa| sa.inbound_spi)).collect();
    let place = usize::from(number).checked_rem(spis.len());
    place.and_then(|place| spis.get(place)).copied().unwrap_or_else(|| fresh(number))
}

fn notify(kind: NotifyType, data: impl Into<Bytes>) -> Payload {
    Payload::Notify(Notify::new(kind, data))
}

fn payload(sim: &Simulator, hand: &mut Hand, link: &Bytes, what: u8, number: u8) -> Payload {
    let config = own_config(Proof::Psk);
    let (all, length) = (&AeadAlgorithm::ALL, usize::from(number));
    let group = KeGroup::ALL[length % KeGroup::ALL.len()];
    let ike_spi = IkeSpi::new(0x0102_0304_0506_0000 | (u64::from(number) + 1));
    let selector = |text: &str| vec![TrafficSelector::from_prefix(text.parse().expect("a prefix"))];
    match what {
        0 => Payload::SecurityAssociation(offer_esp(all, &[], fresh(number))),
        1 => Payload::SecurityAssociation(offer_child(all, group, number & 0x80 != 0, fresh(number))),
        2 => Payload::SecurityAssociation(offer_ike(all, group, PostQuantum::No, ike_spi)),
        3 => Payload::SecurityAssociation(offer_ike(all, group, PostQuantum::Preferred, ike_spi)),
        4 => Payload::Nonce(vec![number; 16 + length % 241].into()),
        5 => key_exchange_payload(crypto::key_exchange(group, &mut hand.rng).as_ref()),
        6 => key_exchange_payload(crypto::key_exchange(KeGroup::ADDITIONAL, &mut hand.rng).as_ref()),
        7 => Payload::KeyExchange(KeyExchangePayload { group: group.id(), value: vec![number; group.public_len()].into() }),
        8 => Payload::TsInitiator(config.local_selectors),
        9 => Payload::TsResponder(config.remote_selectors),
        10 if number & 1 == 0 => Payload::TsInitiator(selector("0.0.0.0/0")),
        10 => Payload::TsResponder(selector("10.0.0.0/8")),
        11 => {
            let spi = known(sim, number).value().to_be_bytes().to_vec().into();
            Payload::Notify(Notify { protocol: Protocol::Esp, spi, kind: NotifyType::RekeySa, data: Bytes::new() })
        }
        12 if number < 0x80 => notify(NotifyType::AdditionalKeyExchange, link.clone()),
        12 => notify(NotifyType::AdditionalKeyExchange, vec![number; 16]),
        13 => Payload::Delete(Delete::Esp(vec![known(sim, number)])),
        14 => Payload::Delete(Delete::Ike),
        15 => notify(NotifyType::from_value(16_384 + u16::from(number)), vec![number; 20]),
        16 => notify(NotifyType::from_value(u16::from(number)), vec![0, number]),
        17 => notify(NotifyType::UpdateSaAddresses, Bytes::new()),
        18 => notify(NotifyType::Cookie2, vec![number; length % 70]),
        19 => notify(NotifyType::SaResourceInfo, vec![0, 0, 0, number]),
        20 => notify(NotifyType::AdditionalIp4Address, vec![192, 0, 2, number]),
        _ => Payload::Unknown { kind: 128 | number, critical: number & 1 == 1 },
    }
}
