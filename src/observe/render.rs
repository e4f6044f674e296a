//! The status for people: one screen, aligned, states in words.
//!
//! Text that a peer or a kernel chose is escaped before it reaches a terminal.

use std::fmt::Write;

use super::{Change, Child, Drops, Peer, PeerDirection, PeerState, Remark, Status, Store, Tristate, Worker, networks};
use crate::model::DropReason;

/// One screen about an agent and its peers.
#[must_use]
pub fn render_status(status: &Status) -> String {
    let mut out = String::new();
    let uptime = duration_in_words(status.uptime_seconds);
    line(&mut out, format_args!("{}: underpass {}, running for {uptime}", plain(&status.host), plain(&status.version)));
    if !status.advertise.is_empty() {
        let places: Vec<String> = status.advertise.iter().map(|place| plain(place)).collect();
        line(&mut out, format_args!("reached at {}", places.join(", ")));
    }
    if let Some(store) = &status.store {
        line(&mut out, format_args!("{}", store_in_words(store)));
    }
    match &status.tun {
        Some(tun) => line(
            &mut out,
            format_args!(
                "{}: MTU {}, {}, backend {}, offloads {}",
                plain(&tun.name),
                tun.mtu,
                counted(u64::from(tun.queues), "queue"),
                plain(&tun.backend),
                if tun.offloads.is_empty() { "none".into() } else { plain(&tun.offloads.join(" ")) }
            ),
        ),
        None => line(&mut out, format_args!("no TUN device is open")),
    }
    if let Some(queues) = queues_in_words(status) {
        line(&mut out, format_args!("{queues}"));
    }
    line(&mut out, format_args!(""));
    if status.peers.is_empty() {
        line(&mut out, format_args!("no peers are configured"));
    } else {
        peers_table(&mut out, &status.peers);
        for peer in &status.peers {
            peer_remarks(&mut out, peer);
        }
    }
    workers_table(&mut out, &status.workers);
    networks::render(&mut out, status);
    drops(&mut out, status);
    if !status.fallbacks.is_empty() {
        line(&mut out, format_args!("\nfallbacks"));
        let row = |remark: &Remark| [plain(&remark.name), plain(&remark.text)];
        table(&mut out, &status.fallbacks.iter().map(row).collect::<Vec<_>>(), "  ");
    }
    if !status.warnings.is_empty() {
        line(&mut out, format_args!("\nwarnings"));
        for warning in &status.warnings {
            line(&mut out, format_args!("  {}", plain(warning)));
        }
    }
    out
}

/// The store: which, what of it is known, and since when it is away.
fn store_in_words(store: &Store) -> String {
    let hosts = store.hosts.map_or_else(|| "never read".to_owned(), |hosts| counted(hosts, "host"));
    let key = if store.group_key { ", one group key for all" } else { "" };
    let revision = store.revision.map_or_else(String::new, |revision| format!(" (revision {revision})"));
    let changed = store
        .changed_seconds
        .map_or_else(String::new, |seconds| format!(", last change {} ago{revision}", duration_in_words(seconds)));
    let away = store.unreachable_seconds.map_or_else(String::new, |seconds| {
        let why = store.last_error.as_deref().map_or_else(String::new, |why| format!(": {}", plain(why)));
        format!("\n  unreadable for {}, everything stays as it was{why}", duration_in_words(seconds))
    });
    let (kind, place, mesh) = (plain(&store.kind), plain(&store.place), plain(&store.mesh));
    format!("store: {kind} {place}: {hosts}{key}, mesh {mesh}{changed}{away}")
}

/// How much may wait at the device and at the sockets; what was asked for stands beside what was granted if it is more.
fn queues_in_words(status: &Status) -> Option<String> {
    let of = |wanted: Option<String>, granted: String| match wanted {
        Some(wanted) if wanted != granted => format!("{granted} (asked for {wanted})"),
        _ => granted,
    };
    let sockets = status.sockets?;
    let octets = |granted: u64| {
        let wanted = (granted < sockets.wanted_octets).then(|| octets_in_words(sockets.wanted_octets));
        of(wanted, octets_in_words(granted))
    };
    let tun = status.tun.as_ref().and_then(|tun| {
        let wanted = tun.txqueuelen_wanted.map(|wanted| wanted.to_string());
        Some(format!("{} packets at the device, ", of(wanted, tun.txqueuelen?.to_string())))
    });
    let (receive, send) = (octets(sockets.receive_octets), octets(sockets.send_octets));
    let tun = tun.unwrap_or_default();
    Some(format!("queues: {tun}{receive} in, {send} out at each socket; {} per train", counted(sockets.train, "datagram")))
}

/// Everything about one peer.
#[must_use]
pub fn render_peer(peer: &Peer) -> String {
    let mut out = String::new();
    line(&mut out, format_args!("{}: {}", plain(&peer.name), state_in_words(peer)));
    let mut rows = vec![
        ["configured".to_owned(), peer.configured_address.as_deref().map_or_else(|| "it comes to us".to_owned(), plain)],
        ["seen at".to_owned(), peer.remote.map_or_else(|| "nowhere".to_owned(), |remote| remote.to_string())],
        ["MTU".to_owned(), peer.mtu.map_or_else(|| "not known yet".to_owned(), |mtu| mtu.to_string())],
        ["NAT before us".to_owned(), tristate(peer.local_behind_nat).to_owned()],
        ["NAT before the peer".to_owned(), tristate(peer.remote_behind_nat).to_owned()],
        ["last proof".to_owned(), proof(peer)],
        ["last error".to_owned(), peer.last_error.as_deref().map_or_else(|| "none".to_owned(), plain)],
    ];
    if let Some(seconds) = peer.next_attempt_seconds {
        rows.push(["next attempt".to_owned(), format!("in {}", duration_in_words(seconds))]);
    }
    match &peer.ike {
        None => rows.push(["IKE SA".to_owned(), "none".to_owned()]),
        Some(ike) => {
            let role = if ike.initiator { "initiator" } else { "responder" };
            let rekey = ike.rekey_in_seconds.map_or_else(
                || "not to be rekeyed by us".to_owned(),
                |seconds| format!("rekey in {}", duration_in_words(seconds)),
            );
            rows.push(["IKE SA".to_owned(), plain(&ike.suite)]);
            rows.push(["".to_owned(), format!("post-quantum: {}", if ike.post_quantum { "yes" } else { "no" })]);
            rows.push([
                "".to_owned(),
                format!("SPIs {} (ours), {} (theirs)", plain(&ike.local_spi), plain(&ike.remote_spi)),
            ]);
            for (proof, whose) in [(&ike.remote_proof, "it is known"), (&ike.local_proof, "it knows us")] {
                if let Some(proof) = proof {
                    rows.push(["".to_owned(), format!("{whose} by {}", plain(proof))]);
                }
            }
            rows.push(["".to_owned(), format!("{role}, {} old, {rekey}", duration_in_words(ike.age_seconds))]);
        }
    }
    for child in &peer.children {
        child_rows(&mut rows, child);
    }
    table(&mut out, &rows, "  ");
    if !peer.drops.0.is_empty() {
        line(&mut out, format_args!("  dropped packets"));
        table(&mut out, &drop_rows(&peer.drops), "    ");
    }
    if !peer.history.is_empty() {
        line(&mut out, format_args!("  history"));
        let row = |change: &Change| [format!("{} ago", duration_in_words(change.seconds_ago)), plain(&change.text)];
        table(&mut out, &peer.history.iter().map(row).collect::<Vec<_>>(), "    ");
    }
    out
}

fn child_rows(rows: &mut Vec<[String; 2]>, child: &Child) {
    let joined = |selectors: &[String]| selectors.iter().map(|selector| plain(selector)).collect::<Vec<_>>().join(", ");
    let use_of = if child.active { "in use" } else { "standby or leaving" };
    let owner = if child.per_worker { format!(", worker {} alone", child.worker) } else { String::new() };
    let age = duration_in_words(child.age_seconds);
    rows.push(["CHILD_SA".to_owned(), format!("{}, {use_of}, {age} old{owner}", plain(&child.suite))]);
    rows.push(["".to_owned(), format!("{} (ours) <-> {} (theirs)", joined(&child.local), joined(&child.remote))]);
    for (direction, spi, packets, octets) in [
        ("inbound", &child.inbound_spi, child.inbound_packets, child.inbound_octets),
        ("outbound", &child.outbound_spi, child.outbound_packets, child.outbound_octets),
    ] {
        rows.push([
            "".to_owned(),
            format!("{direction} SPI {}, {}, {}", plain(spi), counted(packets, "packet"), octets_in_words(octets)),
        ]);
    }
}

fn peers_table(out: &mut String, peers: &[Peer]) {
    let mut rows = vec![["PEER", "STATE", "REMOTE", "LAST PROOF", "IN", "OUT", "SUITE"].map(str::to_owned)];
    for peer in peers {
        let sum = |octets: fn(&Child) -> u64| octets_in_words(peer.children.iter().map(octets).sum());
        rows.push([
            plain(&peer.name),
            peer.state.name().to_owned(),
            location(peer),
            proof(peer),
            sum(|child| child.inbound_octets),
            sum(|child| child.outbound_octets),
            in_use(peer).map_or_else(|| "-".to_owned(), |child| plain(&child.suite)),
        ]);
    }
    table(out, &rows, "");
}

/// What each worker carried. One alone carries what the peers' table says.
fn workers_table(out: &mut String, workers: &[Worker]) {
    if workers.len() < 2 {
        return;
    }
    line(out, format_args!(""));
    let mut rows = vec![["WORKER", "IN", "", "OUT", "", "STRAYS IN", "STRAYS OUT"].map(str::to_owned)];
    rows.extend(workers.iter().map(|worker| {
        [
            worker.worker.to_string(),
            counted(worker.inbound_packets, "packet"),
            octets_in_words(worker.inbound_octets),
            counted(worker.outbound_packets, "packet"),
            octets_in_words(worker.outbound_octets),
            worker.inbound_strays.to_string(),
            worker.outbound_strays.to_string(),
        ]
    }));
    table(out, &rows, "");
}

/// The SA that we send with, or else any.
fn in_use(peer: &Peer) -> Option<&Child> {
    peer.children.iter().find(|child| child.active).or(peer.children.first())
}

/// Where it was seen, or in brackets where it should be.
fn location(peer: &Peer) -> String {
    match (&peer.remote, &peer.configured_address) {
        (Some(remote), _) => remote.to_string(),
        (None, Some(address)) => format!("({})", plain(address)),
        (None, None) => "-".to_owned(),
    }
}

/// Below the table: what a column cannot hold.
fn peer_remarks(out: &mut String, peer: &Peer) {
    if peer.state.is_fine() && peer.last_error.is_none() {
        return;
    }
    let error = peer.last_error.as_deref().map_or_else(String::new, |error| format!("; last error: {}", plain(error)));
    line(out, format_args!("  {}: {}{error}", plain(&peer.name), state_in_words(peer)));
}

/// Count, name and sentence of each reason.
fn drop_rows(drops: &Drops) -> Vec<[String; 3]> {
    let sentence = |name: &str| {
        let reason = DropReason::ALL.iter().find(|reason| reason.name() == name);
        reason.map_or("", |reason| reason.sentence()).to_owned()
    };
    let width = drops.0.values().map(|count| count.to_string().len()).max().unwrap_or(0);
    drops.0.iter().map(|(name, count)| [format!("{count:>width$}"), plain(name), sentence(name)]).collect()
}

fn drops(out: &mut String, status: &Status) {
    if status.drops.0.is_empty() {
        return;
    }
    line(out, format_args!("\ndropped packets"));
    let rows = drop_rows(&status.drops);
    table(out, &rows, "  ");
}

fn state_in_words(peer: &Peer) -> String {
    let words = match (peer.state, peer.dead_direction) {
        (PeerState::Up, _) => "up",
        (PeerState::OneWay, None) => "one-way: only one direction works",
        (PeerState::OneWay, Some(PeerDirection::Inbound)) => "one-way: nothing comes in from the peer",
        (PeerState::OneWay, Some(PeerDirection::Outbound)) => "one-way: we hear the peer, but it does not answer",
        (PeerState::Idle, _) if peer.configured_address.is_none() => "idle: waits for the peer to call",
        (PeerState::Idle, _) => "idle: waits for the peer or for traffic",
        (PeerState::Connecting, _) => "connecting: the first attempt is under way",
        (PeerState::Retrying, _) => match peer.next_attempt_seconds {
            Some(seconds) => return format!("retrying: the next attempt begins in {}", duration_in_words(seconds)),
            None => "retrying: another attempt is under way",
        },
        (PeerState::Down, _) if peer.ike.is_none() => "down: there was a tunnel, the peer is to call again",
        (PeerState::Down, _) if peer.children.is_empty() => "down: there is an IKE SA, but no CHILD_SA to carry traffic",
        (PeerState::Down, _) if peer.configured_address.is_none() => "down: the tunnel is dead until the peer calls",
        (PeerState::Down, _) => "down: the tunnel is dead, a new one is being tried",
    };
    words.to_owned()
}

const fn tristate(value: Tristate) -> &'static str {
    match value {
        Tristate::Yes => "yes",
        Tristate::No => "no",
        Tristate::Unknown => "unknown",
    }
}

fn proof(peer: &Peer) -> String {
    peer.last_proof_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", duration_in_words(seconds)))
}

/// The two largest units of a span: `3 d 4 h`, `59 s`.
#[must_use]
pub fn duration_in_words(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn octets_in_words(octets: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if octets < 1024 {
        return format!("{octets} B");
    }
    let mut value = octets as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 peer`, `2 peers`.
#[must_use]
pub fn counted<N: std::fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Left-aligned columns, two spaces apart; no spaces at the ends of lines.
pub fn table<R: AsRef<[String]>>(out: &mut String, rows: &[R], indent: &str) {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column));
        cells.map(|cell: &String| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    for row in rows {
        let mut text = indent.to_owned();
        for (cell, &width) in row.as_ref().iter().zip(&widths) {
            // Writing into a String cannot fail.
            let _ = write!(text, "{cell:<width$}  ");
        }
        line(out, format_args!("{}", text.trim_end()));
    }
}

pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "{text}");
}

/// Nothing in a foreign text may steer a terminal.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{ControlCounters, Drops, Ike, Sockets, Tun};

    fn beta() -> Peer {
        let mut peer = Peer::new("beta", PeerState::Up);
        peer.configured_address = Some("192.0.2.2".into());
        peer.remote = Some("192.0.2.2:4501".parse().unwrap());
        peer.mtu = Some(1238);
        peer.remote_behind_nat = Tristate::Yes;
        peer.local_behind_nat = Tristate::No;
        peer.last_proof_seconds = Some(4);
        peer.ike = Some(Ike {
            suite: "aes256gcm16-prfsha256-x25519-ke1_mlkem768".into(),
            post_quantum: true,
            local_proof: Some("shared key".into()),
            remote_proof: Some("Ed25519 key DRIj=".into()),
            local_spi: "0123456789abcdef".into(),
            remote_spi: "fedcba9876543210".into(),
            age_seconds: 3_700,
            rekey_in_seconds: Some(10_000),
            initiator: true,
        });
        peer.children.push(Child {
            inbound_spi: "c0000100".into(),
            outbound_spi: "c0000201".into(),
            suite: "aes256gcm16-esn".into(),
            active: true,
            worker: 1,
            per_worker: true,
            age_seconds: 100,
            inbound_packets: 1,
            inbound_octets: 84,
            outbound_packets: 2_000,
            outbound_octets: 3_000_000,
            local: vec!["10.42.1.0/24".into()],
            remote: vec!["10.42.2.0/24".into(), "10.43.0.0/16".into()],
        });
        peer.history.push(Change { seconds_ago: 90_000, text: "up".into() });
        peer
    }

    fn gamma() -> Peer {
        let mut peer = Peer::new("gamma", PeerState::OneWay);
        peer.dead_direction = Some(PeerDirection::Outbound);
        peer.configured_address = Some("192.0.2.3:4600".into());
        peer.last_error = Some("the peer refused: \u{1b}[2JNO".into());
        peer.next_attempt_seconds = Some(61);
        peer
    }

    #[test]
    fn a_status_is_one_screen() {
        let mut status = Status {
            version: "1.2.3".into(),
            advertise: vec!["192.0.2.1".into()],
            uptime_seconds: 7_322,
            tun: Some(Tun {
                name: "underpass0".into(),
                mtu: 1400,
                queues: 1,
                backend: "offload".into(),
                offloads: vec!["tcp".into(), "udp".into()],
                txqueuelen_wanted: Some(1000),
                txqueuelen: Some(500),
            }),
            sockets: Some(Sockets { wanted_octets: 4_194_304, receive_octets: 212_992, send_octets: 4_194_304, train: 64 }),
            fallbacks: vec![Remark { name: "long_trains".into(), text: "the kernel takes 64".into() }],
            workers: vec![
                Worker { worker: 0, outbound_packets: 1, outbound_octets: 84, outbound_strays: 7, ..Worker::default() },
                Worker { worker: 1, inbound_packets: 20, inbound_octets: 2_000, inbound_strays: 3, ..Worker::default() },
            ],
            peers: vec![beta(), gamma(), Peer::new("delta", PeerState::Idle)],
            control: ControlCounters::default(),
            warnings: vec!["peers[0].psk: a key".into()],
            ..Status::new("alpha")
        };
        status.drops = Drops([("replay".to_owned(), 7), ("no_route".to_owned(), 1_234)].into());
        assert_eq!(
            render_status(&status),
            "\
alpha: underpass 1.2.3, running for 2 h 2 min
reached at 192.0.2.1
underpass0: MTU 1400, 1 queue, backend offload, offloads tcp udp
queues: 500 (asked for 1000) packets at the device, 208.0 KiB (asked for 4.0 MiB) in, 4.0 MiB out at each socket; 64 datagrams per train

PEER   STATE    REMOTE            LAST PROOF  IN    OUT      SUITE
beta   up       192.0.2.2:4501    4 s ago     84 B  2.9 MiB  aes256gcm16-esn
gamma  one-way  (192.0.2.3:4600)  never       0 B   0 B      -
delta  idle     -                 never       0 B   0 B      -
  gamma: one-way: we hear the peer, but it does not answer; last error: the peer refused: \\u{1b}[2JNO

WORKER  IN                   OUT              STRAYS IN  STRAYS OUT
0       0 packets   0 B      1 packet   84 B  0          7
1       20 packets  2.0 KiB  0 packets  0 B   3          0

dropped packets
  1234  no_route  no peer owns the destination
     7  replay    the sequence number was seen before

fallbacks
  long_trains  the kernel takes 64

warnings
  peers[0].psk: a key
"
        );
    }

    #[test]
    fn a_peer_is_told_in_full() {
        assert_eq!(
            render_peer(&beta()),
            "\
beta: up
  configured           192.0.2.2
  seen at              192.0.2.2:4501
  MTU                  1238
  NAT before us        no
  NAT before the peer  yes
  last proof           4 s ago
  last error           none
  IKE SA               aes256gcm16-prfsha256-x25519-ke1_mlkem768
                       post-quantum: yes
                       SPIs 0123456789abcdef (ours), fedcba9876543210 (theirs)
                       it is known by Ed25519 key DRIj=
                       it knows us by shared key
                       initiator, 1 h 1 min old, rekey in 2 h 46 min
  CHILD_SA             aes256gcm16-esn, in use, 1 min 40 s old, worker 1 alone
                       10.42.1.0/24 (ours) <-> 10.42.2.0/24, 10.43.0.0/16 (theirs)
                       inbound SPI c0000100, 1 packet, 84 B
                       outbound SPI c0000201, 2000 packets, 2.9 MiB
  history
    1 d 1 h ago  up
"
        );
        let gamma = render_peer(&gamma());
        assert!(gamma.starts_with("gamma: one-way: we hear the peer, but it does not answer\n"), "{gamma}");
        assert!(gamma.contains("next attempt         in 1 min 1 s\n"), "{gamma}");
        assert!(!gamma.contains('\u{1b}'), "nothing in a peer's words steers a terminal");
    }

    #[test]
    fn units_change_where_they_should() {
        for (octets, text) in
            [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(octets_in_words(octets), text);
        }
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3_599, "59 min 59 s"), (3_600, "1 h 0 min"), (86_400, "1 d 0 h")]
        {
            assert_eq!(duration_in_words(seconds), text);
        }
    }
}
