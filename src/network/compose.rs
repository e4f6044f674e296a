//! Where a compose file holds its `network_driver` blocks.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Driver, Variables, interpolate, read};
use crate::config::section::Field;
use crate::config::yaml::{self, Node, Value};
use crate::config::{DriverBlock, Report};

/// The key of the block.
const BLOCK: &str = "network_driver";

/// Whether this is a compose file by its name.
pub(super) fn is_called_so(file: &Path) -> bool {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    stem == "compose" || stem.ends_with("-compose")
}

/// Whether a file may hold a block: only then it is worth to be read for that.
pub(super) fn may_have_block(octets: &[u8]) -> bool {
    octets.windows(BLOCK.len()).any(|part| part == BLOCK.as_bytes())
}

pub(super) fn has_block(root: &Node) -> bool {
    !blocks(root).is_empty()
}

/// A block: the service that it belongs to, its full key and the key's line.
struct Block<'n> {
    service: &'n str,
    key: String,
    line: usize,
    node: &'n Node,
}

/// Every driver of the file. None at all is an error.
pub(super) fn drivers(root: &Node, variables: Variables<'_>, report: &mut Report) -> Vec<Driver> {
    let blocks = blocks(root);
    if blocks.is_empty() {
        report.error(None, "", format!("expected a service with a `{BLOCK}` block; there is none"));
    }
    let defaults = answers(root);
    let variables = |name: &str| variables(name).or_else(|| defaults.get(name).cloned());
    let mut drivers: Vec<Driver> = Vec::new();
    for Block { service, key, line, node } in blocks {
        let node = interpolate::tree(node, &key, &variables, report);
        let Some(driver) = read::driver(service, &Field { line, key: key.clone(), node: &node }, report) else { continue };
        if let Some(first) = drivers.iter().find(|other| same_network(other, &driver)) {
            let message = format!("a network of this name comes with the driver on line {} already", first.line);
            report.error(line, format!("{key}.default_network.name"), message);
        }
        for early in &drivers {
            let (Some(ours), Some(theirs)) = (&driver.default_network, &early.default_network) else { continue };
            if ours.name != theirs.name
                && let Some((prefix, other)) = super::overlap(&ours.subnets, &theirs.subnets)
            {
                let place = format!("line {}", early.line);
                let message = super::overlapping(prefix, &ours.name, other, &theirs.name, &place);
                report.error(line, format!("{key}.default_network.subnets"), message);
            }
        }
        drivers.push(driver);
    }
    drivers
}

/// Everything that is no driver.
pub(super) fn not_taken(root: &Node, report: &mut Report) {
    for (key, node) in entries(root) {
        match key.text.as_str() {
            BLOCK => {}
            ".catalog" | "catalog" => {
                let message = "a catalog's entry: the answers to its questions stand in the drivers already";
                report.warning(key.line, &*key.text, message);
            }
            "version" => report.warning(key.line, &*key.text, "the format of the file: it says nothing of networks"),
            "services" => {
                entries(node).iter().for_each(|(key, node)| service(&format!("services.{}", key.text), key, node, report))
            }
            name => service(name, key, node, report),
        }
    }
}

fn service(path: &str, key: &yaml::Key, node: &Node, report: &mut Report) {
    if member(node, BLOCK).is_none() {
        let message = "no network driver: the agent runs no services, and has no volumes or other networks";
        report.warning(key.line, path, message);
        return;
    }
    for (key, _) in entries(node).iter().filter(|(key, _)| key.text != BLOCK) {
        let message = match key.text.as_str() {
            "environment" => {
                "the agent stands in for this service: what it was told this way is ipsec.ike_rekey, ipsec.child_rekey and \
                 ipsec.replay_window in the agent's configuration"
            }
            _ => "the agent stands in for this service",
        };
        report.warning(key.line, format!("{path}.{}", key.text), message);
    }
}

/// The drivers in a block of the agent's configuration.
pub(super) fn inline(block: &DriverBlock, variables: Variables<'_>, report: &mut Report) -> Vec<Driver> {
    let found = blocks(&block.node);
    let below = |Block { service, key, line, node }| Block { service, key: format!("{}.{key}", block.key), line, node };
    let mut found: Vec<Block<'_>> = found.into_iter().map(below).collect();
    if found.is_empty() {
        found.push(Block { service: "", key: block.key.clone(), line: block.line, node: &block.node });
    }
    let read = |Block { service, key, line, node }: Block<'_>| {
        let node = interpolate::tree(node, &key, variables, report);
        read::driver(service, &Field { line, key, node: &node }, report)
    };
    found.into_iter().filter_map(read).collect()
}

fn same_network(one: &Driver, other: &Driver) -> bool {
    let name = |driver: &Driver| driver.default_network.as_ref().map(|network| network.name.clone());
    name(one).is_some() && name(one) == name(other)
}

/// The blocks at the top, below the top's sections, and below those of `services`.
fn blocks(root: &Node) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    below("", "", root, &mut found);
    for (key, node) in entries(root) {
        below(&key.text, &key.text, node, &mut found);
        if key.text == "services" {
            for (service, node) in entries(node) {
                below(&service.text, &format!("services.{}", service.text), node, &mut found);
            }
        }
    }
    found
}

fn below<'n>(service: &'n str, path: &str, node: &'n Node, found: &mut Vec<Block<'n>>) {
    if let Some((key, node)) = entries(node).iter().find(|(key, _)| key.text == BLOCK) {
        let path = if path.is_empty() { BLOCK.to_owned() } else { format!("{path}.{BLOCK}") };
        found.push(Block { service, key: path, line: key.line, node });
    }
}

fn entries(node: &Node) -> &[(yaml::Key, Node)] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}

fn member<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    entries(node).iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
}

/// The defaults of a catalog's questions, which stand in the same file: what a variable is if nobody answered.
fn answers(root: &Node) -> BTreeMap<String, String> {
    let text = |node: &Node| match &node.value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    let catalog = member(root, ".catalog").or_else(|| member(root, "catalog"));
    let Some(Value::List(questions)) = catalog.and_then(|node| member(node, "questions")).map(|node| &node.value) else {
        return BTreeMap::new();
    };
    let answer = |question: &Node| {
        let variable = text(member(question, "variable")?)?;
        Some((variable, text(member(question, "default")?)?))
    };
    questions.iter().filter_map(answer).collect()
}
