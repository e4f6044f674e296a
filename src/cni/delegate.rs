//! Other plugins: found in `CNI_PATH`, called as a runtime would call them. Our own for addresses is called without a process.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use serde_json::{Map, Value};

use super::request::{Command, Request};
use super::result::{ENVIRONMENT, Fault, INCOMPATIBLE, Success, Version};
use super::{Plugin, ipam, log, outcome};

/// Which plugin gives addresses.
fn name(request: &Request) -> Result<&str, Fault> {
    let kind = request.netconf.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
    kind.filter(|kind| !kind.is_empty()).ok_or_else(|| Fault::configuration("ipam.type: expected the name of a plugin"))
}

/// Whether our own plugin gives them.
pub(super) fn gives_ours(request: &Request) -> bool {
    name(request).is_ok_and(is_ours)
}

fn is_ours(name: &str) -> bool {
    name == Plugin::Ipam.name()
}

/// Our own plugin does something that has no answer, and logs it as it would in a process of its own.
fn ours(request: &Request) -> Result<(), Fault> {
    let answer = ipam::answer(request);
    log(Plugin::Ipam, request, || outcome(&answer));
    answer.map(drop)
}

/// Asks for addresses.
pub(super) fn add(request: &Request) -> Result<Success, Fault> {
    let name = name(request)?;
    if is_ours(name) {
        let given = ipam::add(request);
        log(Plugin::Ipam, request, || {
            outcome(&given.as_ref().map(|given| Some(given.as_json(request.version))).map_err(Clone::clone))
        });
        return given;
    }
    let told = run_somehow(request, name, request.command).inspect_err(|_| {
        // Whatever it did half is taken back; that it could not would only hide why.
        let _ = run(request, name, Command::Del, request.version);
    })?;
    let success =
        Success::parse(&told).ok_or_else(|| Fault::decode(format!("{name}: its result makes no sense: {told}")))?;
    if success.addresses.is_empty() {
        del(request)?;
        return Err(Fault::configuration(format!("{name} gave no address")));
    }
    Ok(success)
}

/// Gives addresses back.
pub(super) fn del(request: &Request) -> Result<(), Fault> {
    let name = name(request)?;
    if is_ours(name) {
        return ours(&Request { command: Command::Del, ..request.clone() });
    }
    run_somehow(request, name, Command::Del).map(drop)
}

/// Passes CHECK, GC or STATUS on. A plugin that is older than the command has nothing to say.
pub(super) fn pass_on(request: &Request) -> Result<(), Fault> {
    let name = name(request)?;
    if is_ours(name) {
        return ours(request);
    }
    match run(request, name, request.command, request.version) {
        Err(fault) if request.command.is_new() && matches!(fault.code, INCOMPATIBLE | ENVIRONMENT) => Ok(()),
        Err(fault) if fault.code == INCOMPATIBLE => run(request, name, request.command, Version::V1_0_0).map(drop),
        other => other.map(drop),
    }
}

/// In our version of the specification, or else in the one that Debian's plugins know.
fn run_somehow(request: &Request, name: &str, command: Command) -> Result<Value, Fault> {
    match run(request, name, command, request.version) {
        Err(fault) if fault.code == INCOMPATIBLE && request.version > Version::V1_0_0 => {
            run(request, name, command, Version::V1_0_0)
        }
        other => other,
    }
}

fn run(request: &Request, name: &str, command: Command, version: Version) -> Result<Value, Fault> {
    let program = find(&request.path, name)?;
    let mut netconf: Map<String, Value> = request.netconf.clone();
    netconf.insert("cniVersion".to_owned(), version.text().into());
    if version != request.version
        && let Some(previous) = netconf.get("prevResult").and_then(Success::parse)
    {
        // Plugins read it as a result of the version that they are asked in.
        netconf.insert("prevResult".to_owned(), previous.as_json(version));
    }
    let failed = |error: std::io::Error| Fault::io(format!("{}: {error}", program.display()));
    let mut process = Process::new(&program);
    process.env("CNI_COMMAND", command.name());
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says why itself.
        let _ = stdin.write_all(Value::Object(netconf).to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let told = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if output.status.success() {
        return Ok(told);
    }
    let code = told.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
    let message = told.get("msg").and_then(Value::as_str).unwrap_or("it failed without a word");
    let details = told.get("details").and_then(Value::as_str).filter(|text| !text.is_empty());
    let message = format!("{name}: {message}{}", details.map(|text| format!("; {text}")).unwrap_or_default());
    Err(code.map_or_else(|| Fault::io(message.clone()), |code| Fault::new(code, message.clone())))
}

fn find(path: &str, name: &str) -> Result<PathBuf, Fault> {
    if name.contains('/') {
        return Err(Fault::configuration(format!("{name:?} is no plugin's name")));
    }
    let found = std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file());
    found.ok_or_else(|| Fault::configuration(format!("there is no plugin {name} in CNI_PATH ({path})")))
}
