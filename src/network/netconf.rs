//! `cni_config`: file names and, for each, what a CNI plugin gets as JSON.
//!
//! The keys of our own plugins are known, with their kinds: a value that cannot be one is an error here and not at the first
//! container's start. Other plugins' keys are theirs, and pass as they are.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value as Json};

use super::spec::{BRIDGE_PLUGINS, IPAM_PLUGIN};
use super::{CniFile, DefaultNetwork, read};
use crate::config::Report;
use crate::config::scalar::{self, Expected};
use crate::config::section::{Field, Section, shortened};
use crate::config::yaml::{Node, Style, Value};

/// Files of one driver: a chain of plugins, never a long one.
const MAX_FILES: usize = 16;

/// What a key of our plugins holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A text.
    Text,
    /// True or false.
    Truth,
    /// The text `"true"` or `"false"`, which is how this key was always read; a truth value is taken as well.
    TruthAsText,
    /// A number within bounds.
    Number(u64, u64),
    /// An interface.
    Interface,
    /// A prefix.
    Prefix,
    /// An address, with or without its prefix length.
    Address,
    /// `/` and a prefix length.
    Slash,
    /// A list of `{dst, gw}`.
    Routes,
    /// Another plugin's configuration.
    Ipam,
    /// Anything: CNI itself says what.
    Any,
}

/// Keys of `rancher-bridge`.
const BRIDGE_KEYS: &[(&str, Kind)] = &[
    ("name", Kind::Text),
    ("type", Kind::Text),
    ("cniVersion", Kind::Text),
    ("ipam", Kind::Ipam),
    ("dns", Kind::Any),
    ("capabilities", Kind::Any),
    ("args", Kind::Any),
    ("underpass", Kind::Any),
    ("bridge", Kind::Interface),
    ("bridgeSubnet", Kind::Prefix),
    ("bridgeSubnet6", Kind::Prefix),
    ("bridgeIP", Kind::Address),
    ("useBridgeIPAsGateway", Kind::Truth),
    ("isGateway", Kind::Truth),
    ("isDefaultGateway", Kind::Truth),
    ("ipMasq", Kind::Truth),
    ("hostNat", Kind::Truth),
    ("hairpinMode", Kind::Truth),
    ("promiscMode", Kind::Truth),
    ("skipBridgeConfigureIP", Kind::Truth),
    ("skipFastPath", Kind::Truth),
    ("mtu", Kind::Number(0, 65_535)),
    ("linkMTUOverhead", Kind::Number(0, 65_535)),
    ("logToFile", Kind::Text),
    ("isDebugLevel", Kind::TruthAsText),
];

/// Keys of `rancher-cni-ipam`.
const IPAM_KEYS: &[(&str, Kind)] = &[
    ("type", Kind::Text),
    ("subnetPrefixSize", Kind::Slash),
    ("routes", Kind::Routes),
    ("logToFile", Kind::Text),
    ("isDebugLevel", Kind::TruthAsText),
];

/// The files of `cni_config`, in the order of their names, which is the order in which they run.
pub(super) fn files(field: &Field<'_>, network: Option<&DefaultNetwork>, report: &mut Report) -> Vec<CniFile> {
    let Some(entries) = entries(field, report) else { return Vec::new() };
    if entries.len() > MAX_FILES {
        report.error(field.line, &*field.key, format!("expected at most {MAX_FILES} files, got {}", entries.len()));
        return Vec::new();
    }
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.name;
        let stem = name.strip_suffix(".conf").unwrap_or_default();
        let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
        if stem.is_empty() || stem.starts_with('.') || !stem.bytes().all(fine) {
            let message = "expected the name of a file that ends with .conf, such as 10-rancher.conf";
            report.error(entry.field.line, &*entry.field.key, message);
        }
        let Some(mut netconf) = plugin(&entry.field, network, report) else { continue };
        if let (None, Some(network)) = (netconf.get("name"), network) {
            netconf.insert("name".to_owned(), network.name.clone().into());
        }
        files.push(CniFile { name: name.to_owned(), netconf: Json::Object(netconf) });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

/// A key with its value, both placed.
struct Entry<'n> {
    name: &'n str,
    field: Field<'n>,
}

fn entries<'n>(field: &Field<'n>, report: &mut Report) -> Option<Vec<Entry<'n>>> {
    // As a section only for the message if it is none.
    Section::of(field, report)?;
    let Value::Map(entries) = &field.node.value else { return Some(Vec::new()) };
    let entry = |(key, node): &'n (crate::config::yaml::Key, Node)| Entry {
        name: &key.text,
        field: Field { line: key.line, key: format!("{}.{}", field.key, shortened(&key.text)), node },
    };
    Some(entries.iter().map(entry).collect())
}

/// One plugin's configuration as JSON.
fn plugin(field: &Field<'_>, network: Option<&DefaultNetwork>, report: &mut Report) -> Option<Map<String, Json>> {
    let entries = entries(field, report)?;
    let kind = entries.iter().find(|entry| entry.name == "type");
    let Some(kind) = kind.and_then(|entry| entry.field.read(report, plugin_name)) else {
        if kind.is_none() {
            report.error(field.line, format!("{}.type", field.key), "expected the name of a CNI plugin; it is missing");
        }
        return None;
    };
    let known = match kind.value.as_str() {
        name if BRIDGE_PLUGINS.contains(&name) => Some(BRIDGE_KEYS),
        IPAM_PLUGIN => Some(IPAM_KEYS),
        _ => None,
    };
    let mut netconf = Map::new();
    for entry in &entries {
        if let Some((name, value)) = member(entry, known, network, report)
            && netconf.insert(name.clone(), value).is_some()
        {
            report.warning(entry.field.line, &*entry.field.key, format!("{name} stands here already, in other letters"));
        }
    }
    if known == Some(BRIDGE_KEYS) {
        bridge_makes_sense(field, &netconf, network, report);
    }
    Some(netconf)
}

/// One key with its value as JSON, under the name by which the plugin knows it.
fn member(
    entry: &Entry<'_>,
    known: Option<&[(&'static str, Kind)]>,
    network: Option<&DefaultNetwork>,
    report: &mut Report,
) -> Option<(String, Json)> {
    let Entry { name, field } = entry;
    let Some(known) = known else {
        if malformed(name) {
            report.warning(field.line, &*field.key, "no plugin has a key with such letters (it is passed on as it is)");
        }
        let value = match (*name, &field.node.value) {
            ("ipam", Value::Map(entries)) if !entries.is_empty() => Json::Object(plugin(field, network, report)?),
            _ => json(field.node),
        };
        return Some(((*name).to_owned(), value));
    };
    if let Some(&(_, kind)) = known.iter().find(|(word, _)| word == name) {
        return Some(((*name).to_owned(), value(kind, field, network, report)?));
    }
    // Plugins of that time took any case.
    if let Some(&(word, kind)) = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(name)) {
        report.warning(field.line, &*field.key, format!("this key is written {word}"));
        return Some((word.to_owned(), value(kind, field, network, report)?));
    }
    let lower: Vec<String> = known.iter().map(|(word, _)| word.to_ascii_lowercase()).collect();
    let words: Vec<&str> = lower.iter().map(String::as_str).collect();
    let meant = scalar::closest(name, &words).and_then(|meant| words.iter().position(|word| *word == meant));
    let hint = meant.map_or_else(String::new, |index| format!("; did you mean {:?}?", known[index].0));
    let what = if malformed(name) { "malformed key" } else { "unknown key" };
    report.warning(field.line, &*field.key, format!("{what}{hint} (it is ignored)"));
    None
}

/// Whether a key holds what only a slip of the hand puts there, such as a quote.
fn malformed(name: &str) -> bool {
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.' | b'/');
    name.is_empty() || !name.bytes().all(fine)
}

/// A value of one of our plugins.
fn value(kind: Kind, field: &Field<'_>, network: Option<&DefaultNetwork>, report: &mut Report) -> Option<Json> {
    let from_label = matches!(&field.node.value, Value::Text(text) if text.starts_with("__host_label__:"));
    if from_label {
        return Some(json(field.node));
    }
    let text = |text: &str| Ok(text.to_owned());
    Some(match kind {
        Kind::Any => json(field.node),
        Kind::Ipam => Json::Object(plugin(field, network, report)?),
        Kind::Text => field.read(report, text)?.value.into(),
        Kind::Truth => field.read(report, read::truth)?.value.into(),
        Kind::TruthAsText => field.read(report, read::truth)?.value.to_string().into(),
        Kind::Number(min, max) => field.read(report, |text| scalar::number(text, min, max))?.value.into(),
        Kind::Interface => field.read(report, scalar::interface)?.value.into(),
        Kind::Prefix => field.read(report, read::any_prefix)?.value.trunc().to_string().into(),
        Kind::Address => field.read(report, |text| address(text).map(|_| text.to_owned()))?.value.into(),
        Kind::Slash => field.read(report, |text| prefix_size(text).map(|_| text.to_owned()))?.value.into(),
        Kind::Routes => routes(field, report)?,
    })
}

fn routes(field: &Field<'_>, report: &mut Report) -> Option<Json> {
    let mut routes = Vec::new();
    for item in field.list(report, MAX_FILES)? {
        let mut section = Section::of(&item, report)?;
        let dst = section.take("dst").and_then(|field| field.read(report, read::any_prefix));
        let gw = section
            .take("gw")
            .filter(|field| field.node.value != Value::Null && field.node.value != Value::Text(String::new()));
        let gw = gw.and_then(|field| {
            field.read(report, |text| text.parse::<IpAddr>().map_err(|_| Expected::new("an address, or nothing")))
        });
        section.finish_leniently(report);
        let Some(dst) = dst else {
            report.error(item.line, &*item.key, "expected a route with `dst`");
            continue;
        };
        let mut route = Map::from_iter([("dst".to_owned(), dst.value.to_string().into())]);
        route.extend(gw.map(|gw| ("gw".to_owned(), gw.value.to_string().into())));
        routes.push(Json::Object(route));
    }
    Some(Json::Array(routes))
}

/// What the keys of `rancher-bridge` say together.
fn bridge_makes_sense(
    field: &Field<'_>,
    netconf: &Map<String, Json>,
    network: Option<&DefaultNetwork>,
    report: &mut Report,
) {
    let is = |key: &str| netconf.get(key).and_then(Json::as_bool).unwrap_or(false);
    let text = |key: &str| netconf.get(key).and_then(Json::as_str);
    let line = |key: &str| match &field.node.value {
        Value::Map(entries) => entries.iter().find(|(entry, _)| entry.text == key).map_or(field.line, |(key, _)| key.line),
        _ => field.line,
    };
    let key = |key: &str| format!("{}.{key}", field.key);
    if is("hairpinMode") && is("promiscMode") {
        let message = "hairpinMode and promiscMode exclude each other: the plugin refuses both together";
        report.error(line("promiscMode"), key("promiscMode"), message);
    }
    let subnets = network.map(|network| network.subnets.as_slice()).unwrap_or_default();
    if let (Some(said), Some(known)) =
        (text("bridgeSubnet6").and_then(|text| text.parse::<IpNet>().ok()), subnets.iter().find(|subnet| subnet.is_ipv6()))
        && said.trunc() != known.network
    {
        let message = format!("expected the network's IPv6 subnet {}, or leave this key out; got {said}", known.network);
        report.error(line("bridgeSubnet6"), key("bridgeSubnet6"), message);
    }
    let Some(subnet) = text("bridgeSubnet").and_then(|text| text.parse::<IpNet>().ok()) else { return };
    if let Some(bridge) = text("bridgeIP").and_then(|text| address(text).ok())
        && !subnet.contains(&bridge)
    {
        report.error(
            line("bridgeIP"),
            key("bridgeIP"),
            format!("expected an address in bridgeSubnet {subnet}, got {bridge}"),
        );
    }
    let size = netconf.get("ipam").and_then(|ipam| ipam.get("subnetPrefixSize")).and_then(Json::as_str);
    if let Some(size) = size.and_then(|size| prefix_size(size).ok()).filter(|size| *size != subnet.prefix_len()) {
        let message =
            format!("/{size} is not the length of bridgeSubnet {subnet}: containers and bridge would not see one network");
        report.warning(line("ipam"), key("ipam.subnetPrefixSize"), message);
    }
    if !subnets.is_empty() && !subnets.iter().any(|known| known.network == subnet) {
        let listed: Vec<String> = subnets.iter().map(|subnet| subnet.network.to_string()).collect();
        let message =
            format!("{subnet} is none of the network's subnets ({}): both must be changed together", listed.join(", "));
        report.warning(line("bridgeSubnet"), key("bridgeSubnet"), message);
    }
}

/// An address with or without a prefix length.
pub(super) fn address(text: &str) -> Result<IpAddr, Expected> {
    let plain = text.parse::<IpAddr>().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()));
    plain.ok_or_else(|| Expected::new("an address, with or without its prefix length"))
}

/// `/16`.
fn prefix_size(text: &str) -> Result<u8, Expected> {
    let size = text.strip_prefix('/').and_then(|size| scalar::number(size, 1, 32).ok());
    size.map(|size| size as u8).ok_or_else(|| Expected::or("a prefix length such as /16", suggestion(text)))
}

fn suggestion(text: &str) -> Option<String> {
    scalar::number(text, 1, 32).ok().map(|size| format!("/{size}"))
}

/// The name of a plugin's file.
fn plugin_name(text: &str) -> Result<String, Expected> {
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    if !text.is_empty() && !text.starts_with('.') && text.len() <= 64 && text.bytes().all(fine) {
        return Ok(text.to_owned());
    }
    Err(Expected::new("the name of a CNI plugin"))
}

/// A node as JSON: plain texts are numbers and truth values where they look like these, texts with variables whole numbers; what was
/// quoted is a text.
pub(super) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::List(nodes) => nodes.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, node)| (key.text.clone(), json(node))).collect(),
        Value::Text(text) => match node.style {
            Style::Plain => plain(text),
            Style::Filled => whole(text).unwrap_or_else(|| text.clone().into()),
            Style::Quoted => text.clone().into(),
        },
    }
}

/// What a text without quotes is.
fn plain(text: &str) -> Json {
    if let Some(number) = whole(text) {
        return number;
    }
    if let Ok(truth) = read::truth(text) {
        return truth.into();
    }
    let is_number = text.starts_with(|first: char| first.is_ascii_digit() || first == '-')
        && text.ends_with(|last: char| last.is_ascii_digit());
    match text.parse::<f64>().ok().filter(|_| is_number) {
        Some(number) if number.fract() == 0.0 && !text.contains(['.', 'e', 'E']) => (number as i64).into(),
        Some(number) => number.into(),
        None => text.into(),
    }
}

/// A number, if there is nothing but digits.
fn whole(text: &str) -> Option<Json> {
    let digits = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse::<i64>().ok().filter(|_| digits).map(Json::from)
}
