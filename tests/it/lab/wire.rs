//! A look at the wire: every frame of a host's underlay, sorted into what may be there and what may not.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::command::Daemon;
use super::net::UNDERLAY;
use super::{Host, wait_for};

/// Ethernet, the link type of a pcap file from a veth.
const HEADER_ETHERNET: usize = 14;
/// The pcap file's own header, and the one in front of each frame.
const HEADER_FILE: usize = 24;
const HEADER_FRAME: usize = 16;

/// What was seen, in frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// IKE on port 500, or on another port behind the non-ESP marker.
    pub ike: usize,
    /// ESP in UDP.
    pub esp: usize,
    /// NAT keepalives of one octet.
    pub keepalive: usize,
    /// ARP.
    pub arp: usize,
    /// Everything else, which is what must not be there: a line for each.
    pub other: Vec<String>,
}

/// A running capture.
pub struct Capture {
    folder: TempDir,
    tcpdump: Daemon,
    ports: (u16, u16),
}

impl Capture {
    /// Begins on the host's underlay; returns once frames are being written.
    pub fn start(host: &Host) -> Self {
        Self::with_ports(host, (500, 4500))
    }

    /// The same for hosts that use other ports (IKE, NAT-T).
    pub fn with_ports(host: &Host, ports: (u16, u16)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, log) = (folder.path().join("wire.pcap"), folder.path().join("tcpdump.log"));
        let file = file.display().to_string();
        let argv = host.on(&["tcpdump", "-Z", "root", "-i", UNDERLAY, "-n", "-U", "--immediate-mode", "-w", &file]);
        let tcpdump = Daemon::start("tcpdump", &argv, &[], &log);
        wait_for("tcpdump to listen", Duration::from_secs(10), || tcpdump.log().contains("listening on").then_some(()));
        Self { folder, tcpdump, ports }
    }

    /// Ends it and returns every frame.
    fn frames(mut self) -> Vec<Vec<u8>> {
        // What is on its way from the ring to the file.
        std::thread::sleep(Duration::from_millis(300));
        self.tcpdump.stop("INT", Duration::from_secs(10));
        let file = fs::read(self.folder.path().join("wire.pcap")).expect("a capture");
        assert_eq!(file.get(..4), Some(&[0xd4, 0xc3, 0xb2, 0xa1][..]), "not a little-endian pcap file");
        frames(&file[HEADER_FILE..])
    }

    /// Ends it and sorts the frames.
    pub fn stop(self) -> Seen {
        let ports = self.ports;
        sort(&self.frames(), ports)
    }

    /// Ends it, sorts the frames, and asks whether `octets` stand anywhere in them.
    pub fn stop_and_search(self, octets: &[u8]) -> (Seen, bool) {
        let ports = self.ports;
        let frames = self.frames();
        let shows = |frame: &Vec<u8>| frame.windows(octets.len()).any(|window| window == octets);
        (sort(&frames, ports), frames.iter().any(shows))
    }
}

fn frames(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(HEADER_FRAME) {
        let captured = u32::from_le_bytes(header[8..12].try_into().expect("four octets"));
        let Some((frame, after)) = after.split_at_checked(captured as usize) else { break };
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

fn sort(frames: &[Vec<u8>], ports: (u16, u16)) -> Seen {
    let mut seen = Seen::default();
    for frame in frames {
        match kind(frame, ports) {
            Some(Kind::Ike) => seen.ike += 1,
            Some(Kind::Esp) => seen.esp += 1,
            Some(Kind::Keepalive) => seen.keepalive += 1,
            Some(Kind::Arp) => seen.arp += 1,
            None => seen.other.push(frame[HEADER_ETHERNET.min(frame.len())..].iter().map(|o| format!("{o:02x}")).collect()),
        }
    }
    seen
}

enum Kind {
    Ike,
    Esp,
    Keepalive,
    Arp,
}

fn kind(frame: &[u8], (ike_port, natt_port): (u16, u16)) -> Option<Kind> {
    let (ethernet, packet) = frame.split_at_checked(HEADER_ETHERNET)?;
    match ethernet[12..] {
        [0x08, 0x06] => return Some(Kind::Arp),
        [0x08, 0x00] => {}
        _ => return None,
    }
    // More fragments, or an offset: the tunnel is not to make any.
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    if fragment != 0 {
        return None;
    }
    let (header_octets, protocol) = (usize::from(packet.first()? & 0x0f) * 4, *packet.get(9)?);
    let udp = packet.get(header_octets..).filter(|_| protocol == 17)?;
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let ports = [port(0)?, port(2)?];
    let payload = udp.get(8..usize::from(port(4)?))?;
    if ports.contains(&natt_port) {
        return Some(match payload {
            [0xff] => Kind::Keepalive,
            [0, 0, 0, 0, ..] => Kind::Ike,
            _ => Kind::Esp,
        });
    }
    ports.contains(&ike_port).then_some(Kind::Ike)
}

#[test]
fn a_fragment_is_not_taken_for_esp() {
    // Ethernet, IPv4 of 32 octets, UDP from 4500 to 4500 with four octets.
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    frame.extend([0x11, 0x94, 0x11, 0x94, 0, 12, 0, 0, 0xc0, 0, 0, 1]);
    let ports = (500, 4500);
    assert_eq!(sort(&[frame.clone()], ports), Seen { esp: 1, ..Seen::default() });
    for fragment in [[0x20, 0], [0, 1], [0x20, 185]] {
        frame[20..22].copy_from_slice(&fragment);
        assert_eq!(sort(&[frame.clone()], ports).other.len(), 1);
    }
    frame[20] = 0x40;
    frame[21] = 0;
    assert_eq!(sort(&[frame], ports).esp, 1, "DF is fine");
}
