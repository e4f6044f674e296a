//! A block as values: every key, its bounds and its default.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde_json::Map;

use super::{DefaultNetwork, Driver, IPV6_GATEWAY, Subnet, netconf};
use crate::config::Report;
use crate::config::scalar::{self, Expected};
use crate::config::section::{Field, Placed, Section};
use crate::config::yaml::Value;

/// Items of any list in a block.
const MAX_ITEMS: usize = 64;

/// Octets of a name or description.
const MAX_TEXT: usize = 256;

/// The subnet that a `network_address` gets which is left out, as it always was.
const DEFAULT_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 44, 0, 0);

/// The prefix length where neither `cidr_size` nor the address says one.
const DEFAULT_CIDR_SIZES: [u8; 2] = [24, 64];

/// Bounds of a subnet's prefix length, of IPv4 and of IPv6.
const CIDR_SIZES: [(u64, u64); 2] = [(8, 28), (16, 124)];

/// Reads a block.
pub(super) fn driver(service: &str, field: &Field<'_>, report: &mut Report) -> Option<Driver> {
    let mut section = Section::of(field, report)?;
    let name = match section.take("name") {
        Some(field) => field.read(report, title).map(|name| name.value),
        None => {
            report.error(field.line, format!("{}.name", field.key), "expected a name for the driver; it is missing");
            None
        }
    };
    let description = description(&mut section, report);
    let default_network = section.take("default_network").and_then(|field| default_network(&field, report));
    let network_metadata = metadata(section.take("network_metadata"), report);
    let cni_config = match section.take("cni_config") {
        Some(field) => netconf::files(&field, default_network.as_ref(), report),
        None => {
            report.warning(field.line, &*field.key, "no cni_config: no plugin connects containers to this network");
            Vec::new()
        }
    };
    section.finish_leniently(report);
    Some(Driver {
        line: field.line,
        service: service.to_owned(),
        name: name?,
        description,
        default_network,
        cni_config,
        network_metadata,
    })
}

fn default_network(field: &Field<'_>, report: &mut Report) -> Option<DefaultNetwork> {
    let mut section = Section::of(field, report)?;
    let name = match section.take("name") {
        Some(field) => field.read(report, network_name).map(|name| name.value),
        None => {
            report.error(field.line, format!("{}.name", field.key), "expected a name for the network; it is missing");
            None
        }
    };
    let description = description(&mut section, report);
    let host_ports = section.take("host_ports").and_then(|field| field.read(report, truth));
    let items = section.take("subnets").and_then(|field| field.list(report, MAX_ITEMS)).unwrap_or_default();
    let subnets: Vec<Placed<Subnet>> = items.iter().filter_map(|item| subnet(item, report)).collect();
    disjoint(&subnets, report);
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| Expected::new("an address such as 169.254.169.250"));
    let dns = section.take("dns").map(|field| field.read_list(report, MAX_ITEMS, address)).unwrap_or_default();
    let dns_search = section.take("dns_search").map(|field| field.read_list(report, MAX_ITEMS, domain)).unwrap_or_default();
    let metadata = metadata(section.take("metadata"), report);
    section.finish_leniently(report);
    Some(DefaultNetwork {
        name: name?,
        description,
        host_ports: host_ports.is_none_or(|host_ports| host_ports.value),
        subnets: subnets.into_iter().map(|subnet| subnet.value).collect(),
        dns: dns.into_iter().map(|address| address.value).collect(),
        dns_search: dns_search.into_iter().map(|domain| domain.value).collect(),
        metadata,
    })
}

fn subnet(field: &Field<'_>, report: &mut Report) -> Option<Placed<Subnet>> {
    let mut section = Section::of(field, report)?;
    // Known, and without a meaning of their own.
    section.take("name");
    section.take("description");
    let network = section.take("network_address");
    let is_ipv6 = network.as_ref().is_some_and(|field| matches!(&field.node.value, Value::Text(text) if text.contains(':')));
    let (least, most) = CIDR_SIZES[usize::from(is_ipv6)];
    let length = |text: &str| scalar::number(text, least, most).map(|size| size as u8);
    let size = section.take("cidr_size").and_then(|field| field.read(report, length));
    let family = if is_ipv6 { "an IPv6 address" } else { "an IPv4 address" };
    let parse =
        |text: &str| text.parse::<IpAddr>().ok().filter(|it| it.is_ipv6() == is_ipv6).ok_or_else(|| Expected::new(family));
    let mut address = |key: &'static str| section.take(key).and_then(|field| field.read(report, parse));
    let (gateway, start, end) = (address("gateway"), address("start_address"), address("end_address"));
    section.finish_leniently(report);
    let network = network_address(field, network.as_ref(), size.as_ref(), is_ipv6, report)?;
    let whole = Subnet::whole(network);
    let said = |placed: &Option<Placed<IpAddr>>| placed.as_ref().map(|placed| placed.value);
    let subnet = Subnet {
        network,
        gateway: said(&gateway).unwrap_or(whole.gateway),
        start: said(&start).unwrap_or(whole.start),
        end: said(&end).unwrap_or(whole.end),
    };
    if let Some(gateway) = gateway.as_ref().filter(|gateway| is_ipv6 && gateway.value != IPV6_GATEWAY) {
        let message =
            format!("the gateway of IPv6 is {IPV6_GATEWAY} on every host: leave this key out, got {}", gateway.value);
        gateway.error(report, message);
    }
    for placed in [gateway.filter(|_| !is_ipv6), start, end].iter().flatten() {
        // The last address of IPv6 is one like others, the first one is its routers' (RFC 4291 §2.6.1).
        let edge = placed.value == network.network() || (!is_ipv6 && placed.value == network.broadcast());
        if !network.contains(&placed.value) || edge {
            placed.error(report, format!("expected an address of a container in {network}, got {}", placed.value));
        }
    }
    if subnet.start > subnet.end {
        let message = format!("expected start_address before end_address, got {} and {}", subnet.start, subnet.end);
        report.error(field.line, &*field.key, message);
    }
    Some(field.placed(subnet))
}

/// The prefix that `network_address` and `cidr_size` make; a length in the address counts more.
fn network_address(
    field: &Field<'_>,
    address: Option<&Field<'_>>,
    size: Option<&Placed<u8>>,
    is_ipv6: bool,
    report: &mut Report,
) -> Option<IpNet> {
    let Some(address) = address else {
        let length = size.map_or(16, |size| size.value);
        let message = format!("no network_address: {DEFAULT_NETWORK}/{length} stands in, as it always did");
        report.warning(field.line, &*field.key, message);
        return IpNet::new(DEFAULT_NETWORK.into(), length).ok().map(|net| net.trunc());
    };
    let (least, most) = CIDR_SIZES[usize::from(is_ipv6)];
    let example = if is_ipv6 { "an IPv6 prefix such as fd00:42::/48" } else { "an IPv4 prefix such as 10.42.0.0/16" };
    let what = format!("{example}, of a length from {least} to {most}");
    let parsed = address.read(report, |text| {
        let (base, length) = text.split_once('/').map_or((text, None), |(base, length)| (base, Some(length)));
        let base = base.parse::<IpAddr>().ok().filter(|base| base.is_ipv6() == is_ipv6);
        let base = base.ok_or_else(|| Expected::new(&what))?;
        let length = length.map(|length| scalar::number(length, least, most)).transpose();
        Ok((base, length.map_err(|_| Expected::new(&what))?.map(|length| length as u8)))
    })?;
    let (base, length) = parsed.value;
    if let (Some(length), Some(size)) = (length, size)
        && size.value != length
    {
        size.warning(report, format!("the length /{length} in network_address counts, not this {}", size.value));
    }
    let length = length.or(size.map(|size| size.value)).unwrap_or(DEFAULT_CIDR_SIZES[usize::from(is_ipv6)]);
    let network = IpNet::new(base, length).ok()?;
    if network.trunc() != network {
        parsed.warning(report, format!("{base} is an address in the network {}, which is what counts", network.trunc()));
    }
    Some(network.trunc())
}

/// Subnets of one network must not share addresses, and plugins take one of IPv6.
fn disjoint(subnets: &[Placed<Subnet>], report: &mut Report) {
    for (index, late) in subnets.iter().enumerate() {
        let shared = |early: &&Placed<Subnet>| {
            early.value.network.contains(&late.value.network) || late.value.network.contains(&early.value.network)
        };
        if let Some(early) = subnets[..index].iter().find(shared) {
            let line = early.line.map_or_else(String::new, |line| format!(" (line {line})"));
            late.error(report, format!("{} overlaps {}{line}", late.value.network, early.value.network));
        } else if late.value.is_ipv6()
            && let Some(early) = subnets[..index].iter().find(|early| early.value.is_ipv6())
        {
            let (late_net, early_net) = (late.value.network, early.value.network);
            let message = format!("expected one IPv6 subnet that holds all blocks, got {late_net} beside {early_net}");
            late.error(report, message);
        }
    }
}

fn description(section: &mut Section<'_>, report: &mut Report) -> String {
    let read = section.take("description").and_then(|field| field.read(report, title));
    read.map(|read| read.value).unwrap_or_default()
}

/// A free map.
fn metadata(field: Option<Field<'_>>, report: &mut Report) -> Map<String, serde_json::Value> {
    let Some(field) = field else { return Map::new() };
    match &field.node.value {
        Value::Null => Map::new(),
        Value::Map(entries) => entries.iter().map(|(key, node)| (key.text.clone(), netconf::json(node))).collect(),
        other => {
            report.error(field.node.line, &*field.key, format!("expected a section with keys, got {}", other.kind()));
            Map::new()
        }
    }
}

/// Something for people to read.
fn title(text: &str) -> Result<String, Expected> {
    let fine = text.len() <= MAX_TEXT && !text.trim().is_empty() && !text.chars().any(char::is_control);
    if fine { Ok(text.to_owned()) } else { Err(Expected::new(format!("a text of one line and at most {MAX_TEXT} octets"))) }
}

/// What names a network in labels, in CNI (letters, digits, `_`, `.`, `-`) and in paths.
pub(super) fn network_name(text: &str) -> Result<String, Expected> {
    /// Names that mean something else wherever a network is chosen.
    const TAKEN: [&str; 6] = ["managed", "host", "none", "bridge", "default", "container"];
    if TAKEN.contains(&text) {
        return Err(Expected::new(format!("a name that has no other meaning ({} have)", scalar::listed(&TAKEN, "and"))));
    }
    scalar::name(text)
}

/// A domain to search.
fn domain(text: &str) -> Result<String, Expected> {
    let fine = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_'))
    };
    if text.len() <= 253 && text.trim_end_matches('.').split('.').all(fine) {
        return Ok(text.to_owned());
    }
    Err(Expected::new("a domain such as rancher.internal"))
}

/// `true` or `false`, and what older YAML takes for these.
pub(super) fn truth(text: &str) -> Result<bool, Expected> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err(Expected::new("true or false")),
    }
}

/// An IPv4 prefix with or without host bits.
pub(super) fn any_prefix(text: &str) -> Result<IpNet, Expected> {
    text.parse().map_err(|_| Expected::new("a prefix such as 10.42.0.0/16"))
}
