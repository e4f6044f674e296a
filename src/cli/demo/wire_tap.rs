//! A tap on the wire between the two hosts: what kinds of packets pass, and whether any carries a known text in clear.
//!
//! Two sockets look at the same interface. One gets everything but ESP in UDP: little traffic, so it misses nothing, and
//! "nothing else was there" can be said for certain. The other gets the ESP packets, which may be too many to read each: the
//! kernel counts those that are missed. Both read headers with code of their own, so that the tap does not share a mistake
//! with the codecs that it watches.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;
use socket2::SockFilter;

use crate::sys::packet::PacketSocket;

/// Header lengths and places in them: Ethernet, IPv4 without options, UDP, ESP (RFC 4303 §2).
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const UDP_PAYLOAD: usize = ETHERNET + IPV4 + UDP;
const SPI: usize = 4;
const ESP_HEADER: usize = 8;
const ETHER_TYPE: usize = 12;
const TOTAL_LENGTH: usize = ETHERNET + 2;
const FRAGMENT: usize = ETHERNET + 6;
const PROTOCOL: usize = ETHERNET + 9;

/// What stands there. Our hosts send neither IP options nor fragments; "more fragments" and an offset are any of 14 bits.
const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
const FRAGMENT_BITS: u16 = 0x3fff;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// UDP ports of IKE (RFC 7296 §2) and of ESP in UDP (RFC 3948 §2).
const IKE_PORT: u16 = 500;
const NATT_PORT: u16 = 4500;

/// How much of an ESP packet is read: enough to find the next segment's header where the kernel hands several over as one.
const ESP_SNAP: usize = 2048;

/// How much of any other packet is read: all of it.
const OTHER_SNAP: usize = 65_536;

/// How much of a packet is searched for the text. It repeats all through the traffic, so it would show at the start.
const SEARCHED: usize = 512;

/// Room for what arrives between two readings.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Between two readings: long enough not to wake for each packet, short enough for the buffer above.
const READING_INTERVAL: Duration = Duration::from_millis(2);

/// A ping's inner packet has 76 octets. What is shorter is something else.
const SHORTEST_EXAMPLE: usize = 76 + ESP_HEADER;

/// How many unexpected packets are kept to be shown.
const KEPT_STRANGERS: usize = 3;

/// IKE's exchanges (RFC 7296 §3.1, RFC 9242, RFC 9370) with their numbers, in the order in which they begin.
pub const EXCHANGES: [(u8, &str); 6] = [
    (34, "IKE_SA_INIT"),
    (43, "IKE_INTERMEDIATE"),
    (35, "IKE_AUTH"),
    (36, "CREATE_CHILD_SA"),
    (44, "IKE_FOLLOWUP_KE"),
    (37, "INFORMATIONAL"),
];

/// What the tap has seen since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sightings {
    /// IKE messages by exchange.
    pub ike: BTreeMap<&'static str, u64>,
    /// ESP packets in UDP.
    pub esp: u64,
    /// NAT keepalives (RFC 3948 §2.3).
    pub keepalives: u64,
    /// ARP, IPv6 neighbour discovery and multicast listener reports: how hosts on one wire find each other.
    pub neighbour: u64,
    /// ICMP "port unreachable" about an IKE or ESP port: the other agent was not there yet.
    pub port_closed: u64,
    /// Everything else.
    pub other: u64,
    /// Packets that held the text in clear.
    pub text_in_clear: u64,
    /// Packets that the tap could not look at because they came too fast: ESP only, else `other_missed`.
    pub esp_missed: u64,
    /// The same for what is not ESP.
    pub other_missed: u64,
    /// One ESP packet that is long enough to hold the text, from its SPI on.
    #[serde(skip)]
    pub example: Option<Vec<u8>>,
    /// The first frames counted as `other`.
    #[serde(skip)]
    pub strangers: Vec<Vec<u8>>,
}

/// A running tap. It ends when dropped.
#[derive(Debug)]
pub struct WireTap {
    taps: Arc<Mutex<Taps>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Taps {
    esp: PacketSocket,
    others: PacketSocket,
    text: Vec<u8>,
    buffer: Vec<u8>,
    seen: Sightings,
    missed_before: (u64, u64),
    error: Option<io::Error>,
}

impl WireTap {
    /// Listens on the interface with this number, in the calling thread's network namespace, and looks for this text.
    ///
    /// # Errors
    /// The system's.
    pub fn start(link_index: u32, text: &[u8]) -> io::Result<Self> {
        let taps = Taps {
            esp: PacketSocket::open(link_index, &filter(ESP_SNAP as u32, 0), RECEIVE_BUFFER)?,
            others: PacketSocket::open(link_index, &filter(0, OTHER_SNAP as u32), RECEIVE_BUFFER)?,
            text: text.to_vec(),
            buffer: vec![0; OTHER_SNAP],
            seen: Sightings::default(),
            missed_before: (0, 0),
            error: None,
        };
        let (taps, stop) = (Arc::new(Mutex::new(taps)), Arc::new(AtomicBool::new(false)));
        let (thread_taps, thread_stop) = (Arc::clone(&taps), Arc::clone(&stop));
        let thread = thread::Builder::new().name("wire-tap".to_owned()).spawn(move || {
            while !thread_stop.load(Ordering::Relaxed) {
                lock(&thread_taps).drain();
                thread::sleep(READING_INTERVAL);
            }
        })?;
        Ok(Self { taps, stop, thread: Some(thread) })
    }

    /// Everything up to now, and a fresh start.
    ///
    /// # Errors
    /// What kept the tap from reading, if anything did since it was last asked.
    pub fn take(&self) -> io::Result<Sightings> {
        let mut taps = lock(&self.taps);
        taps.drain();
        if let Some(error) = taps.error.take() {
            return Err(error);
        }
        let missed = (taps.esp.statistics()?.missed, taps.others.statistics()?.missed);
        let mut seen = std::mem::take(&mut taps.seen);
        seen.esp_missed = missed.0 - taps.missed_before.0;
        seen.other_missed = missed.1 - taps.missed_before.1;
        taps.missed_before = missed;
        Ok(seen)
    }
}

impl Drop for WireTap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot be helped if the thread panicked, and nobody may panic here.
            let _ = thread.join();
        }
    }
}

fn lock(taps: &Mutex<Taps>) -> MutexGuard<'_, Taps> {
    taps.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Taps {
    /// Reads all that waits.
    fn drain(&mut self) {
        for esp in [true, false] {
            loop {
                let socket = if esp { &self.esp } else { &self.others };
                match socket.receive(&mut self.buffer) {
                    Ok(Some(length)) => self.seen.add(&self.buffer[..length], &self.text),
                    Ok(None) => break,
                    Err(error) => {
                        self.error.get_or_insert(error);
                        break;
                    }
                }
            }
        }
    }
}

impl Sightings {
    /// Counts one frame.
    fn add(&mut self, frame: &[u8], text: &[u8]) {
        if contains(&frame[..frame.len().min(SEARCHED)], text) {
            self.text_in_clear += 1;
        }
        match classify(frame) {
            Kind::Ike(exchange) => *self.ike.entry(exchange).or_default() += 1,
            Kind::Esp { packets } => {
                self.esp += packets;
                // A single packet is an example; a train of them would have to be cut first.
                let packet = &frame[UDP_PAYLOAD..];
                if packets == 1 && packet.len() >= SHORTEST_EXAMPLE && self.example.is_none() {
                    self.example = Some(packet.to_vec());
                }
            }
            Kind::Keepalive => self.keepalives += 1,
            Kind::Neighbour => self.neighbour += 1,
            Kind::PortClosed => self.port_closed += 1,
            Kind::Other => {
                self.other += 1;
                if self.strangers.len() < KEPT_STRANGERS {
                    self.strangers.push(frame.to_vec());
                }
            }
        }
    }

    /// Adds what was seen later.
    pub fn merge(&mut self, later: Self) {
        for (exchange, count) in later.ike {
            *self.ike.entry(exchange).or_default() += count;
        }
        for (count, more) in [
            (&mut self.esp, later.esp),
            (&mut self.keepalives, later.keepalives),
            (&mut self.neighbour, later.neighbour),
            (&mut self.port_closed, later.port_closed),
            (&mut self.other, later.other),
            (&mut self.text_in_clear, later.text_in_clear),
            (&mut self.esp_missed, later.esp_missed),
            (&mut self.other_missed, later.other_missed),
        ] {
            *count += more;
        }
        self.example = self.example.take().or(later.example);
        self.strangers.extend(later.strangers);
        self.strangers.truncate(KEPT_STRANGERS);
    }
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ike(&'static str),
    Esp { packets: u64 },
    Keepalive,
    Neighbour,
    PortClosed,
    Other,
}

fn classify(frame: &[u8]) -> Kind {
    match be16(frame, ETHER_TYPE) {
        Some(TYPE_ARP) => Kind::Neighbour,
        Some(TYPE_IPV6) => classify_ipv6(frame),
        Some(TYPE_IPV4) => classify_ipv4(frame),
        _ => Kind::Other,
    }
}

/// ICMPv6 with a type of neighbour discovery (RFC 4861 §4) or of multicast listeners (RFC 3810 §5, RFC 2710 §3), the latter
/// behind a hop-by-hop header of eight octets.
fn classify_ipv6(frame: &[u8]) -> Kind {
    const NEXT_HEADER: usize = ETHERNET + 6;
    const BEHIND_HEADER: usize = ETHERNET + 40;
    const HOP_BY_HOP: u8 = 0;
    let kind = match (frame.get(NEXT_HEADER), frame.get(BEHIND_HEADER)) {
        (Some(&PROTOCOL_ICMPV6), kind) => kind,
        (Some(&HOP_BY_HOP), Some(&PROTOCOL_ICMPV6)) => frame.get(BEHIND_HEADER + 8),
        _ => None,
    };
    match kind {
        Some(130..=136 | 143) => Kind::Neighbour,
        _ => Kind::Other,
    }
}

fn classify_ipv4(frame: &[u8]) -> Kind {
    let (Some(&IPV4_WITHOUT_OPTIONS), Some(total), Some(fragment)) =
        (frame.get(ETHERNET), be16(frame, TOTAL_LENGTH), be16(frame, FRAGMENT))
    else {
        return Kind::Other;
    };
    if fragment & FRAGMENT_BITS != 0 {
        return Kind::Other;
    }
    match frame.get(PROTOCOL) {
        Some(&PROTOCOL_UDP) => classify_udp(frame, usize::from(total).saturating_sub(IPV4 + UDP)),
        Some(&PROTOCOL_ICMP) => classify_icmp(frame),
        _ => Kind::Other,
    }
}

/// RFC 792: type 3 and code 3 say that a port is closed; eight octets on, the packet that was sent there is quoted.
fn classify_icmp(frame: &[u8]) -> Kind {
    const ICMP: usize = ETHERNET + IPV4;
    const QUOTED_DESTINATION_PORT: usize = ICMP + 8 + IPV4 + 2;
    match (frame.get(ICMP..ICMP + 2), be16(frame, QUOTED_DESTINATION_PORT)) {
        (Some([3, 3]), Some(IKE_PORT | NATT_PORT)) => Kind::PortClosed,
        _ => Kind::Other,
    }
}

/// `length` is the payload's, of which the frame may hold only the beginning.
fn classify_udp(frame: &[u8], length: usize) -> Kind {
    let ports = [be16(frame, ETHERNET + IPV4), be16(frame, ETHERNET + IPV4 + 2)];
    let payload = frame.get(UDP_PAYLOAD..).unwrap_or_default();
    let payload = &payload[..length.min(payload.len())];
    // Nothing between the two hosts changes ports, so IKE and ESP have theirs at both ends.
    if ports == [Some(NATT_PORT); 2] {
        return match payload {
            // RFC 3948 §2.2: an SPI of zero is the non-ESP marker.
            [0, 0, 0, 0, message @ ..] => classify_ike(message, length - SPI),
            [0xff] => Kind::Keepalive,
            [..] if payload.len() >= ESP_HEADER => Kind::Esp { packets: packets_in(payload, length) },
            _ => Kind::Other,
        };
    }
    if ports == [Some(IKE_PORT); 2] { classify_ike(payload, length) } else { Kind::Other }
}

/// RFC 7296 §3.1: the version at octet 17, the exchange at 18, the length of the whole at 24.
fn classify_ike(message: &[u8], length: usize) -> Kind {
    let claimed = message.get(24..28).and_then(|field| field.try_into().ok()).map(u32::from_be_bytes);
    if message.get(17) != Some(&0x20) || claimed != u32::try_from(length).ok() {
        return Kind::Other;
    }
    let exchange = EXCHANGES.iter().find(|(number, _)| message.get(18) == Some(number));
    exchange.map_or(Kind::Other, |(_, name)| Kind::Ike(name))
}

/// How many ESP packets a datagram of this length is. The kernel hands packets of equal length that were sent together over
/// as one long datagram and cuts it later: the next packet begins with the same SPI and the next sequence number.
fn packets_in(payload: &[u8], length: usize) -> u64 {
    let header = &payload[..ESP_HEADER];
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let mut next = header.to_vec();
    next[SPI..].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    let stride =
        (ESP_HEADER..payload.len().saturating_sub(ESP_HEADER)).step_by(4).find(|&at| payload[at..at + ESP_HEADER] == next);
    stride.map_or(1, |stride| length.div_ceil(stride) as u64)
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2).and_then(|field| field.try_into().ok()).map(u16::from_be_bytes)
}

fn contains(octets: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && octets.windows(text.len()).any(|window| window == text)
}

/// The classic BPF program that tells ESP in UDP over IPv4 from everything else: how many octets to keep of each.
fn filter(keep_esp: u32, keep_other: u32) -> Vec<SockFilter> {
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LEN, BPF_RET, BPF_W};
    let load = |size, mode, at: usize| SockFilter::new((BPF_LD | size | mode) as u16, 0, 0, at as u32);
    let jump = |test, value, yes, no| SockFilter::new((BPF_JMP | test | BPF_K) as u16, yes, no, value);
    let keep = |octets| SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, octets);
    vec![
        // A load beyond the end would drop the frame in both filters, and keepalives are that short.
        load(BPF_W, BPF_LEN, 0),
        jump(BPF_JGE, (UDP_PAYLOAD + SPI) as u32, 0, 14),
        load(BPF_H, BPF_ABS, ETHER_TYPE),
        jump(BPF_JEQ, u32::from(TYPE_IPV4), 0, 12),
        load(BPF_B, BPF_ABS, ETHERNET),
        jump(BPF_JEQ, u32::from(IPV4_WITHOUT_OPTIONS), 0, 10),
        load(BPF_B, BPF_ABS, PROTOCOL),
        jump(BPF_JEQ, u32::from(PROTOCOL_UDP), 0, 8),
        load(BPF_H, BPF_ABS, FRAGMENT),
        jump(BPF_JSET, u32::from(FRAGMENT_BITS), 6, 0),
        load(BPF_H, BPF_ABS, ETHERNET + IPV4),
        jump(BPF_JEQ, u32::from(NATT_PORT), 0, 4),
        load(BPF_H, BPF_ABS, ETHERNET + IPV4 + 2),
        jump(BPF_JEQ, u32::from(NATT_PORT), 0, 2),
        load(BPF_W, BPF_ABS, UDP_PAYLOAD),
        jump(BPF_JEQ, 0, 0, 1),
        keep(keep_other),
        keep(keep_esp),
    ]
}

#[cfg(test)]
#[path = "wire_tap_tests.rs"]
mod tests;
