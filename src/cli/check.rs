//! `underpass config check`.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::json;

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::files;
use crate::config::{Config, Report, Severity};

/// Reads the configuration as the agent would.
pub(super) fn run(places: &Places, file: &Path) -> Exit {
    let (config, report) = match files::load_config(file) {
        Ok(loaded) => loaded,
        Err(error) => {
            let exit = if error.kind() == ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::BadConfig };
            return complain(format_args!("{}: {error}", file.display()), exit);
        }
    };
    let exit = if config.is_some() { Exit::Fine } else { Exit::BadConfig };
    if places.json {
        return print_json(&as_json(&report), exit);
    }
    print(&format!("{report}{}\n", verdict(file, config.as_ref(), &report)), exit)
}

/// The last line.
fn verdict(file: &Path, config: Option<&Config>, report: &Report) -> String {
    let counted = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let warnings = if warnings == 0 { String::new() } else { format!(", {}", counted(warnings, "warning")) };
    let file = file.display();
    match config {
        Some(config) => {
            format!("{file}: fine: host {}, {}{warnings}", config.host.name, counted(config.peers.len(), "peer"))
        }
        None => format!("{file}: cannot be used: {}{warnings}", counted(errors, "error")),
    }
}

fn as_json(report: &Report) -> serde_json::Value {
    let messages: Vec<_> = report
        .messages
        .iter()
        .map(|message| {
            json!({
                "severity": message.severity.name(),
                "line": message.line,
                "key": message.key,
                "message": message.text,
            })
        })
        .collect();
    json!({
        "schema": "underpass.config-check/1",
        "file": report.file.display().to_string(),
        "usable": !report.has_errors(),
        "messages": messages,
    })
}
