//! `underpass ipam`: the addresses that this host gave out. It reads the journal itself: no agent need run.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::ipam::{self, Book, Finding, Ipam, IpamError, JOURNAL, Lease, Namespaces, Network, Source};
use crate::observe::{duration_in_words, plain, table};
use crate::sys::clock::wall_clock;

/// Shows networks and leases.
pub(super) fn ls(places: &Places, network: Option<&str>) -> Exit {
    let book = match Ipam::look(&places.state_dir) {
        Ok(book) => book,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    if let Some(name) = network.filter(|name| book.network(name).is_none()) {
        return complain(format_args!("no network is called {name:?} here"), Exit::NotFound);
    }
    let shown: Vec<(&str, &Network)> = book.networks().filter(|(name, _)| network.is_none_or(|it| it == *name)).collect();
    if places.json {
        return print_json(&as_json(places, &shown), Exit::Fine);
    }
    print(&as_text(&book, &shown), Exit::Fine)
}

/// Holds the journal against this host, and with `repair` mends it.
pub(super) fn check(places: &Places, repair: bool) -> Exit {
    let findings = match ipam::check(&places.state_dir, &Namespaces::look(), wall_clock(), repair) {
        Ok(findings) => findings,
        Err(error) => return complain(&error, Exit::from(&error)),
    };
    let mended = |finding: &Finding| repair && finding.is_repairable();
    let exit = if findings.iter().all(mended) { Exit::Fine } else { Exit::Degraded };
    if places.json {
        let listed: Vec<Value> = findings.iter().map(|finding| finding_json(finding, mended(finding))).collect();
        let journal = places.state_dir.join(JOURNAL).display().to_string();
        return print_json(&json!({"schema": "underpass.ipam-check/1", "journal": journal, "findings": listed}), exit);
    }
    let mut text = String::new();
    for finding in &findings {
        let outcome = match (finding, mended(finding), finding.is_repairable()) {
            (Finding::Gone(_), true, _) => "released",
            (_, true, _) => "removed",
            (_, false, true) => "--repair mends it",
            (_, false, false) => "ends with the container",
        };
        text.push_str(&format!("{}: {} ({outcome})\n", finding.name(), plain(&sentence(finding))));
    }
    if findings.is_empty() {
        text.push_str("fine: nothing to mend\n");
    }
    print(&text, exit)
}

fn as_text(book: &Book, shown: &[(&str, &Network)]) -> String {
    if book.networks().next().is_none() {
        return "no addresses: no agent has said which blocks are this host's\n".to_owned();
    }
    let now = wall_clock();
    let mut rows = vec![["NETWORK", "ADDRESS", "CONTAINER", "INTERFACE", "SINCE", "NAMESPACE"].map(str::to_owned)];
    let leases = shown.iter().flat_map(|(_, network)| network.leases());
    let mut held: Vec<(IpAddr, &Lease)> =
        leases.flat_map(|lease| lease.addresses.iter().map(move |address| (*address, lease))).collect();
    held.sort_by_key(|(address, lease)| (&lease.network, *address));
    for (address, lease) in held {
        rows.push([
            plain(&lease.network),
            address.to_string(),
            if lease.owner.is_host() {
                format!("host {}", plain(&lease.owner.container))
            } else {
                plain(&lease.owner.container)
            },
            plain(&lease.owner.interface),
            format!("{} ago", duration_in_words(now.saturating_sub(lease.since))),
            plain(&lease.sandbox.netns),
        ]);
    }
    let mut text = String::new();
    if rows.len() > 1 {
        table(&mut text, &rows, "");
        text.push('\n');
    }
    for (name, network) in shown {
        for ipv6 in [false, true] {
            let blocks: Vec<String> =
                network.blocks().iter().filter(|block| block.addr().is_ipv6() == ipv6).map(ToString::to_string).collect();
            if !blocks.is_empty() {
                let counts = network.counts(ipv6, &[], now);
                let (name, blocks) = (plain(name), blocks.join(", "));
                text.push_str(&format!("{name}: {blocks}: {counts}, {} free\n", counts.free()));
            }
        }
    }
    if text.is_empty() {
        let names: Vec<String> = shown.iter().map(|(name, _)| plain(name)).collect();
        text = format!("{}: no addresses: this host owns no block of it\n", names.join(", "));
    }
    text
}

fn sentence(finding: &Finding) -> String {
    let who = |lease: &Lease| {
        let addresses: Vec<String> = lease.addresses.iter().map(ToString::to_string).collect();
        format!("network {}: {} has {}", lease.network, lease.owner, addresses.join(", "))
    };
    match finding {
        Finding::Tail { octets } => format!("{octets} octets of a request whose process was killed before it was answered"),
        Finding::Damage { line, what } => format!("line {line}: {what}; what it said is lost, and with it perhaps a lease"),
        Finding::Draft(path) => format!("{}: a process was killed while it wrote it", path.display()),
        Finding::Gone(lease) => format!("{}, and its network namespace is gone ({})", who(lease), lease.sandbox.netns),
        Finding::Outside(lease, address) => format!("{}, and {address} is in no block of this host any more", who(lease)),
        Finding::Reserved(lease, address) => format!("{}, and {address} is reserved for the host", who(lease)),
    }
}

fn finding_json(finding: &Finding, mended: bool) -> Value {
    json!({
        "kind": finding.name(),
        "message": sentence(finding),
        "repairable": finding.is_repairable(),
        "repaired": mended,
        "lease": finding.lease(),
    })
}

fn as_json(places: &Places, shown: &[(&str, &Network)]) -> Value {
    let now = wall_clock();
    let networks: Vec<Value> = shown
        .iter()
        .map(|(name, network)| {
            let families = [("ipv4", false), ("ipv6", true)].map(|(family, ipv6)| {
                let counts = network.counts(ipv6, &[], now);
                let count = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
                let value = json!({
                    "total": count(counts.total), "leased": counts.leased, "reserved": counts.reserved,
                    "at_rest": counts.resting, "free": count(counts.free()),
                });
                (family.to_owned(), value)
            });
            let at_rest = network.resting(now);
            json!({
                "name": name,
                "source": match network.source() {
                    Source::Agent => "agent",
                    Source::Netconf => "netconf",
                },
                "blocks": network.blocks(),
                "reserved": network.reserved(),
                "counts": Value::Object(families.into_iter().collect()),
                "leases": network.leases().collect::<Vec<_>>(),
                "at_rest": at_rest.map(|(it, left)| json!({"address": it, "seconds_left": left})).collect::<Vec<_>>(),
            })
        })
        .collect();
    let journal = places.state_dir.join(JOURNAL).display().to_string();
    json!({"schema": "underpass.ipam/1", "journal": journal, "networks": networks})
}

impl From<&IpamError> for Exit {
    fn from(error: &IpamError) -> Self {
        match error {
            IpamError::Io(_, error) => match error.kind().into() {
                Self::NotPermitted => Self::NotPermitted,
                _ => Self::Failed,
            },
            IpamError::Locked(_) => Self::Timeout,
            IpamError::Unclaimed { refusal, .. } | IpamError::NoMore { refusal, .. } if refusal.later => Self::Timeout,
            IpamError::NoBlocks { .. } => Self::NotFound,
            IpamError::Full { .. }
            | IpamError::Taken { .. }
            | IpamError::NotOurs { .. }
            | IpamError::Beyond { .. }
            | IpamError::Unclaimed { .. }
            | IpamError::NoMore { .. }
            | IpamError::Already { .. }
            | IpamError::Damaged(..)
            | IpamError::Newer(_) => Self::Failed,
        }
    }
}
