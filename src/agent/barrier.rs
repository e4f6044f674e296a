//! Whether something on this host drops what the tunnel brings for containers.
//!
//! A firewall that drops what is forwarded unless it was told otherwise (ufw, firewalld, Docker, somebody's own rules) is the most frequent
//! reason why a tunnel is up and containers do not hear each other, and no accept of ours can overrule it. So a trial packet is sent
//! through the host now and then, as the tunnel would bring it (`sys/nft/forward.rs`): no guess, whatever the rules look like. It ends behind
//! the last filter, and no container gets it. If one drops it, the status says which, and the command that lets packets pass.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::attach;
use crate::config::Config;
use crate::engine::Handle;
use crate::node::Node;
use crate::sys::nft::forward::{Chain, DISCARD, Trial, UDP, Verdict, chains, probe};
use crate::wire::checksum::{Sum, checksum};

/// Tried again at the soonest after a change of links or routes, while something is in the way, and otherwise.
const AFTER_CHANGE: Duration = Duration::from_secs(3);
const WHILE_BARRED: Duration = Duration::from_secs(5);
const OTHERWISE: Duration = Duration::from_secs(30);

/// Only what is dropped so often in a row is dropped: a filter may do so by chance, or by rate.
const TRIES: usize = 3;

/// Bridges and families that are tried at most.
const MAX_TRIALS: usize = 16;

/// A prefix so short is no network of somebody's: its addresses are of all kinds.
const MIN_PREFIX: u8 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// When it was tried last.
    tried: Option<Instant>,
    /// Something changed since.
    changed: bool,
    /// What is in the way, in words.
    told: Vec<String>,
}

/// A packet to be tried, and whom it seems to come from.
struct Way {
    trial: Trial,
    source: IpAddr,
}

impl Barrier {
    /// Tries it if it is time for that. Returns what is in the way, in words, if that is another answer than before.
    pub(super) fn look(&mut self, config: &Config, engine: &Handle<Node>, changed: bool) -> Option<Vec<String>> {
        self.changed |= changed;
        let pause = match (self.changed, self.told.is_empty()) {
            (true, _) => AFTER_CHANGE,
            (false, false) => WHILE_BARRED,
            (false, true) => OTHERWISE,
        };
        if self.tried.is_some_and(|tried| tried.elapsed() < pause) || !engine.can_give_host() {
            return None;
        }
        (self.tried, self.changed) = (Some(Instant::now()), false);
        let tun = engine.tun_name();
        let found = match ways(config).and_then(|ways| barriers(tun, &ways, |packet| drop(engine.give_host(packet)))) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("whether something drops what the tunnel brings: {error}");
                return None;
            }
        };
        if found == self.told {
            return None;
        }
        found.iter().filter(|text| !self.told.contains(text)).for_each(|text| tracing::warn!("{text}"));
        self.told.iter().filter(|text| !found.contains(text)).for_each(|text| tracing::info!("over: {text}"));
        self.told.clone_from(&found);
        Some(found)
    }
}

/// What could come by the tunnel: for each bridge of containers, a packet from another host to an address of ours on it.
fn ways(config: &Config) -> Result<Vec<Way>, attach::AttachError> {
    let mut ways = Vec::new();
    for bridge in attach::bridges()? {
        let subnets = attach::on_bridge(&bridge.name)?;
        for ipv6 in [false, true] {
            let of_family = |net: &&IpNet| net.addr().is_ipv6() == ipv6 && net.prefix_len() >= MIN_PREFIX;
            let subnet_of = |block: &IpNet| subnets.iter().find(|subnet| subnet.contains(block) || block.contains(*subnet));
            let here = config.overlay.blocks.iter().filter(of_family).find_map(|block| Some((block, subnet_of(block)?)));
            let Some((block, subnet)) = here else { continue };
            let narrower = if block.contains(subnet) { subnet } else { block };
            let is_free = |address: &IpAddr| !config.overlay.addresses.contains(address);
            let mut remote: Vec<&IpNet> =
                config.peers.iter().flat_map(|peer| &peer.remote_blocks).filter(of_family).collect();
            // Whoever is on the same network is let pass first.
            remote.sort_by_key(|block| !subnet.contains(*block));
            let source = remote.first().and_then(|block| block.hosts().next());
            let destination = narrower.hosts().rev().find(is_free);
            if let (Some(source), Some(destination)) = (source, destination) {
                ways.push(Way { trial: Trial { out: bridge.name.clone(), destination }, source });
            }
        }
    }
    ways.truncate(MAX_TRIALS);
    Ok(ways)
}

/// What is in the way, in words. `give` hands the host a packet that came by the tunnel.
fn barriers(tun: &str, ways: &[Way], give: impl Fn(&[u8])) -> Result<Vec<String>, attach::AttachError> {
    let trials: Vec<Trial> = ways.iter().map(|way| way.trial.clone()).collect();
    if trials.is_empty() {
        return Ok(Vec::new());
    }
    let send = |trial: &Trial| {
        let way = ways.iter().find(|way| way.trial == *trial);
        let packet = way.and_then(|way| packet(way.source, trial.destination));
        packet.iter().for_each(|packet| give(packet));
    };
    let mut verdicts = probe(tun, &trials, send)?;
    for _ in 1..TRIES {
        if !verdicts.iter().any(|verdict| matches!(verdict, Verdict::Dropped(_))) {
            break;
        }
        let again = probe(tun, &trials, send)?;
        verdicts
            .iter_mut()
            .zip(again)
            .filter(|(_, again)| !matches!(again, Verdict::Dropped(_)))
            .for_each(|(it, again)| *it = again);
    }
    let chains = if verdicts.iter().any(|it| matches!(it, Verdict::Dropped(_))) { chains()? } else { Vec::new() };
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    let text = |(trial, verdict): (&Trial, Verdict)| match verdict {
        Verdict::Dropped(priority) => Some(barred(tun, trial, priority, &chains, &legacy)),
        Verdict::Absent => unforwarded(trial),
        Verdict::Passed => None,
    };
    Ok(trials.iter().zip(verdicts).filter_map(text).collect())
}

/// A host that forwards nothing at all.
fn unforwarded(trial: &Trial) -> Option<String> {
    let (path, key) = match trial.destination {
        IpAddr::V4(_) => ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        IpAddr::V6(_) => ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    };
    let is_off = std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
    let out = &trial.out;
    is_off.then(|| {
        format!("this host does not forward what the tunnel brings for containers on {out}: let it by `sysctl -w {key}=1`")
    })
}

/// Who drops it, and what helps.
fn barred(tun: &str, trial: &Trial, priority: i32, chains: &[Chain], legacy: &str) -> String {
    let (out, ipv6) = (&trial.out, trial.destination.is_ipv6());
    let what = format!("what the tunnel brings for containers on {out} is dropped on this host");
    let is_concerned = |chain: &&Chain| {
        let is_ours = chain.table.starts_with("underpass");
        chain.forward == Some(priority) && !is_ours && chain.family != if ipv6 { "ip" } else { "ip6" }
    };
    let mut suspects: Vec<&Chain> = chains.iter().filter(is_concerned).collect();
    if suspects.iter().any(|chain| chain.drops) {
        suspects.retain(|chain| chain.drops);
    }
    let iptables = if ipv6 { "ip6tables" } else { "iptables" };
    let both = |command: &str| format!("`{command} -i {tun} -o {out} -j ACCEPT; {command} -i {out} -o {tun} -j ACCEPT`");
    let Some(first) = suspects.first() else {
        if legacy.lines().any(|table| table == "filter") {
            let command = both(&format!("{iptables}-legacy -I FORWARD"));
            return format!("{what}, by the chain FORWARD of legacy iptables: let it pass by {command}");
        }
        return format!("{what}, by something that filters forwarded packets at priority {priority}");
    };
    let name = |chain: &&Chain| {
        let why = if chain.drops { " (its policy)" } else { "" };
        format!("the chain {} of the nftables table {} {}{why}", chain.name, chain.family, chain.table)
    };
    let names = suspects.iter().map(name).collect::<Vec<_>>().join(" or ");
    let has_ufw = chains.iter().any(|chain| chain.table == first.table && chain.name.starts_with("ufw"));
    let command = match (first.table.as_str(), first.name.as_str()) {
        ("firewalld", _) => {
            let both = format!("--change-interface={tun} --change-interface={out}");
            format!("`firewall-cmd --permanent --zone=trusted {both}; firewall-cmd --reload`")
        }
        (_, "FORWARD") if has_ufw => {
            format!("`ufw route allow in on {tun} out on {out}; ufw route allow in on {out} out on {tun}`")
        }
        ("filter", "FORWARD") if first.family != "inet" => both(&format!("{iptables} -I FORWARD")),
        (table, "FORWARD") if first.family != "inet" => both(&format!("{iptables} -t {table} -I FORWARD")),
        (table, chain) => {
            let insert = format!("nft insert rule {} {table} {chain}", first.family);
            format!("`{insert} iifname {tun} oifname {out} accept; {insert} iifname {out} oifname {tun} accept`")
        }
    };
    format!("{what}, by {names}: let it pass by {command}")
}

/// A UDP packet without contents, of one family.
fn packet(source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
    /// Octets of a UDP header (RFC 768); routers on the way, of which there is one.
    const UDP_HEADER: u8 = 8;
    const HOPS: u8 = 8;
    let (mut packet, addresses) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x45, 0, 0, 20 + UDP_HEADER, 0, 0, 0, 0, HOPS, UDP, 0, 0];
            header.extend(&addresses);
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            (header, addresses)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x60, 0, 0, 0, 0, UDP_HEADER, UDP, HOPS];
            header.extend(&addresses);
            (header, addresses)
        }
        _ => return None,
    };
    let [high, low] = DISCARD.to_be_bytes();
    let mut udp = [high, low, high, low, 0, UDP_HEADER, 0, 0];
    let sum = Sum::default().with_pseudo_header(&addresses, UDP, UDP_HEADER.into()).with(&udp).finish();
    // A sum of zero is written as its other form (RFC 768).
    udp[6..].copy_from_slice(&if sum == 0 { u16::MAX } else { sum }.to_be_bytes());
    packet.extend(udp);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::{Packet, Trailing};

    fn chain(family: &'static str, table: &str, name: &str, forward: Option<i32>, drops: bool) -> Chain {
        Chain { family, table: table.to_owned(), name: name.to_owned(), forward, drops }
    }

    fn command(chains: &[Chain], priority: i32, destination: &str, legacy: &str) -> String {
        let trial = Trial { out: "b0".to_owned(), destination: destination.parse().unwrap() };
        let text = barred("t0", &trial, priority, chains, legacy);
        assert!(text.starts_with("what the tunnel brings for containers on b0 is dropped on this host, by "), "{text}");
        text.split('`').nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn each_firewall_is_told_in_its_own_words() {
        let ours = chain("inet", "underpass-net", "between", Some(0), false);
        let iptables = [
            ours.clone(),
            chain("ip", "filter", "FORWARD", Some(0), true),
            chain("ip6", "filter", "FORWARD", Some(0), true),
        ];
        let both = "-I FORWARD -i t0 -o b0 -j ACCEPT; ";
        assert!(command(&iptables, 0, "10.42.1.9", "").starts_with(&format!("iptables {both}")));
        assert!(command(&iptables, 0, "fd00::9", "").starts_with(&format!("ip6tables {both}")));
        let ufw = [&iptables[..], &[chain("ip", "filter", "ufw-before-forward", None, false)]].concat();
        let expected = "ufw route allow in on t0 out on b0; ufw route allow in on b0 out on t0";
        assert_eq!(command(&ufw, 0, "10.42.1.9", ""), expected);
        let firewalld = [ours.clone(), chain("inet", "firewalld", "filter_FORWARD", Some(10), true)];
        let expected =
            "firewall-cmd --permanent --zone=trusted --change-interface=t0 --change-interface=b0; firewall-cmd --reload";
        assert_eq!(command(&firewalld, 10, "10.42.1.9", ""), expected);
        // Of two at one place the one whose policy it is; of none, the one that nobody lists.
        let two = [chain("inet", "a", "x", Some(0), false), chain("inet", "b", "y", Some(0), true)];
        assert!(command(&two, 0, "10.42.1.9", "").starts_with("nft insert rule inet b y iifname t0 oifname b0 accept; "));
        assert!(
            command(std::slice::from_ref(&ours), 0, "10.42.1.9", "nat\nfilter\n").starts_with("iptables-legacy -I FORWARD ")
        );
        assert_eq!(command(&[ours], 0, "10.42.1.9", "nat\n"), "", "nobody knows");
    }

    #[test]
    fn the_trial_is_a_packet_as_any_other() {
        for (source, destination) in [("10.42.2.1", "10.42.1.254"), ("fd00:2::1", "fd00:1::ffff")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let octets = packet(source, destination).unwrap();
            let parsed = Packet::parse(&octets, Trailing::Refused).unwrap();
            assert_eq!((parsed.source(), parsed.destination()), (source, destination));
            assert_eq!(parsed.ports(), Some((DISCARD, DISCARD)));
            assert!(parsed.header_checksum_holds());
            let addresses = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
                (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
                _ => unreachable!(),
            };
            let udp = parsed.payload();
            let sum = Sum::default().with_pseudo_header(&addresses, UDP, udp.len() as u32).with(udp);
            assert_eq!(sum.finish(), 0, "the checksum holds");
        }
        assert_eq!(packet("10.42.2.1".parse().unwrap(), "fd00::1".parse().unwrap()), None);
    }
}
