//! CNI plugins: names by which container runtimes call this binary.
//!
//! A runtime starts a plugin for each thing that it wants, with variables (`CNI_COMMAND`, `CNI_CONTAINERID`, …) and a JSON
//! configuration on standard input, and reads JSON from standard output. `request.rs` makes a request of the one, checked;
//! `result.rs` writes the other as each version of the specification has it, 0.1.0 to 1.1.0; between them stands the plugin:
//!
//! - `rancher-cni-ipam` (`ipam.rs`): addresses out of this host's blocks, for `rancher-bridge`'s configuration as well as for the
//!   reference plugins';
//! - `rancher-bridge` and `underpass-cni` (`bridge.rs`, `conf.rs`): a container's interface on a bridge, with addresses from whichever
//!   plugin the configuration names (`delegate.rs`).

mod bridge;
mod conf;
mod delegate;
mod ipam;
mod request;
mod result;

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::network::{BRIDGE_PLUGINS, IPAM_PLUGIN};
use crate::sys::clock::wall_clock;
use request::Request;
use result::{Fault, Version};

/// Largest configuration in octets: what runtimes send has some thousand.
const MAX_STDIN: u64 = 4 * 1024 * 1024;

/// A plugin in this binary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plugin {
    /// `rancher-cni-ipam`.
    Ipam,
    /// `rancher-bridge`.
    RancherBridge,
    /// `underpass-cni`.
    Underpass,
}

impl Plugin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ipam, Self::RancherBridge, Self::Underpass];

    /// The plugin that a program of this name is.
    #[must_use]
    pub fn of_program(argv0: &OsStr) -> Option<Self> {
        let name = Path::new(argv0).file_name()?;
        Self::ALL.into_iter().find(|plugin| name == plugin.name())
    }

    /// Its name, the `type` in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipam => IPAM_PLUGIN,
            Self::RancherBridge => BRIDGE_PLUGINS[0],
            Self::Underpass => BRIDGE_PLUGINS[1],
        }
    }
}

/// Answers one call of a runtime.
#[must_use]
pub fn main(plugin: Plugin) -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(command) = variable("CNI_COMMAND") else {
        let versions: Vec<&str> = Version::ALL.iter().map(|version| version.text()).collect();
        let about = format!(
            "{} of underpass {}: a CNI plugin, called by container runtimes\nCNI versions: {}\n",
            plugin.name(),
            env!("CARGO_PKG_VERSION"),
            versions.join(", ")
        );
        let _ = io::stderr().lock().write_all(about.as_bytes());
        return ExitCode::SUCCESS;
    };
    if command == "VERSION" {
        return print(&result::versions());
    }
    let mut stdin = Vec::new();
    if let Err(error) = io::stdin().lock().take(MAX_STDIN).read_to_end(&mut stdin) {
        return fail(Version::LATEST, &Fault::io(format!("reading the configuration: {error}")));
    }
    // An answer in the asker's version, as far as it said one.
    let version = request::stated_version(&stdin).unwrap_or(Version::LATEST);
    let answer = Request::parse(&command, &variable, &stdin).and_then(|request| {
        let answer = match plugin {
            Plugin::Ipam => ipam::answer(&request),
            Plugin::RancherBridge | Plugin::Underpass => bridge::answer(plugin, &request),
        };
        log(plugin, &request, || outcome(&answer));
        answer
    });
    match answer {
        Ok(Some(value)) => print(&value),
        Ok(None) => ExitCode::SUCCESS,
        Err(fault) => fail(version, &fault),
    }
}

fn print(value: &Value) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(format!("{value:#}\n").as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Errors go to standard output as well: runtimes look for them there.
fn fail(version: Version, fault: &Fault) -> ExitCode {
    print(&fault.as_json(version));
    ExitCode::FAILURE
}

/// What came of a call, for the log.
fn outcome(answer: &Result<Option<Value>, Fault>) -> String {
    match answer {
        Ok(Some(value)) => format!("answered {value}"),
        Ok(None) => "done".to_owned(),
        Err(fault) => format!("failed: {} ({})", fault.message, fault.code),
    }
}

/// A line in `logToFile`. A log that cannot be written keeps no container from starting.
fn log(plugin: Plugin, request: &Request, outcome: impl FnOnce() -> String) {
    let own = match plugin {
        Plugin::Ipam => request.netconf.get("ipam").and_then(Value::as_object),
        Plugin::RancherBridge | Plugin::Underpass => Some(&request.netconf),
    };
    let key = |key: &str| own.and_then(|own| own.get(key));
    let Some(path) = key("logToFile").and_then(Value::as_str).filter(|path| !path.is_empty()) else { return };
    let outcome = outcome();
    let debug = matches!(key("isDebugLevel"), Some(Value::Bool(true))) || key("isDebugLevel") == Some(&"true".into());
    let asked = if debug { format!(" asked {}:", Value::Object(request.netconf.clone())) } else { String::new() };
    let Request { command, container, interface, .. } = request;
    let now = wall_clock();
    let line = format!("{now} {} {} {container} {interface}:{asked} {outcome}\n", plugin.name(), command.name());
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

#[cfg(test)]
mod tests;
