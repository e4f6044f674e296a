//! `underpass config check`, for the agent's configuration and for compose files.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::files;
use crate::config::{Config, Placed, Report, Severity, Store};
use crate::network::Driver;
use crate::observe::counted;
use crate::store;

/// Reads the file as the agent would.
pub(super) fn run(places: &Places, file: &Path, strict: bool) -> Exit {
    let octets = match files::read_config(file) {
        Ok(octets) => octets,
        Err(error) => {
            let exit = if error.kind() == ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::BadConfig };
            return complain(format_args!("{}: {error}", file.display()), exit);
        }
    };
    if let Some((drivers, report)) = files::parse_if_compose(file, &octets, strict) {
        let what: Vec<String> = drivers.iter().map(describe).collect();
        return tell(places, &report, false, &what.join("; "), Some(drivers.iter().map(driver_json).collect()));
    }
    let (config, mut report) = files::parse_config(file, &octets);
    let mut what = config.as_ref().map(describe_config).unwrap_or_default();
    if let Some(Store::File(path)) = config.as_ref().and_then(|config| config.store.as_ref()) {
        list_of_hosts(path, &mut report, &mut what);
    }
    tell(places, &report, strict, &what, None)
}

/// Reads the list that a configuration names.
fn list_of_hosts(path: &Placed<PathBuf>, report: &mut Report, what: &mut String) {
    match store::load(&path.value) {
        Ok((members, hosts)) => {
            if let Some(members) = members {
                what.push_str(&format!(", {} in {}", counted(members.hosts.len(), "host"), path.value.display()));
            }
            report.include(hosts);
        }
        Err(error) => {
            report.error(
                path.line,
                &*path.key,
                format!("expected a readable list of hosts, got {}: {error}", path.value.display()),
            );
        }
    }
}

/// Prints what was found. With `strict` a warning is enough to refuse the file.
fn tell(places: &Places, report: &Report, strict: bool, what: &str, drivers: Option<Value>) -> Exit {
    let usable = !report.has_errors() && (!strict || report.messages.is_empty());
    let exit = if usable { Exit::Fine } else { Exit::BadConfig };
    if places.json {
        let mut value = as_json(report, usable);
        if let (Some(object), Some(drivers)) = (value.as_object_mut(), drivers) {
            object.insert("drivers".to_owned(), drivers);
        }
        return print_json(&value, exit);
    }
    print(&format!("{report}{}\n", verdict(report, usable, what)), exit)
}

/// The last line.
fn verdict(report: &Report, usable: bool, what: &str) -> String {
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let warned = if warnings == 0 { String::new() } else { format!(", {}", counted(warnings, "warning")) };
    let file = report.file.display();
    if usable {
        format!("{file}: fine: {what}{warned}")
    } else {
        format!("{file}: cannot be used: {}{warned}", counted(errors, "error"))
    }
}

fn describe_config(config: &Config) -> String {
    let drivers = match config.drivers.len() {
        0 => String::new(),
        sources => format!(", drivers from {}", counted(sources, "place")),
    };
    format!("host {}, {}{drivers}", config.host.name, counted(config.peers.len(), "peer"))
}

fn describe(driver: &Driver) -> String {
    let network = driver.default_network.as_ref().map_or_else(String::new, |network| {
        let subnets: Vec<String> = network.subnets.iter().map(|subnet| subnet.network.to_string()).collect();
        format!(", network {} {}", network.name, subnets.join(" ")).trim_end().to_owned()
    });
    format!("driver {:?}{network}, {}", driver.name, counted(driver.cni_config.len(), "CNI file"))
}

fn driver_json(driver: &Driver) -> Value {
    let network = driver.default_network.as_ref().map(|network| {
        json!({
            "name": network.name,
            "host_ports": network.host_ports,
            "subnets": network.subnets,
            "dns": network.dns,
            "dns_search": network.dns_search,
        })
    });
    json!({
        "service": driver.service,
        "name": driver.name,
        "line": driver.line,
        "default_network": network,
        "cni_config": driver.cni_config,
        "metadata": driver.metadata(),
    })
}

fn as_json(report: &Report, usable: bool) -> Value {
    let messages: Vec<_> = report
        .messages
        .iter()
        .map(|message| {
            let mut value = json!({
                "severity": message.severity.name(),
                "line": message.line,
                "key": message.key,
                "message": message.text,
            });
            if let Some(file) = &message.file {
                value["file"] = json!(file);
            }
            value
        })
        .collect();
    json!({
        "schema": "underpass.config-check/1",
        "file": report.file.display().to_string(),
        "usable": usable,
        "messages": messages,
    })
}
