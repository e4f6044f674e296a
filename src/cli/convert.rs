//! `underpass config convert`: the network drivers of a compose file as the agent's configuration says them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::files;
use crate::config::{Message, Report};
use crate::network;

/// Prints what the file means, and what of it means nothing here.
pub(super) fn run(places: &Places, file: &Path) -> Exit {
    let octets = match files::read_config(file) {
        Ok(octets) => octets,
        Err(error) => {
            let exit = Exit::from(error.kind());
            return complain(format_args!("{}: {error}", file.display()), exit);
        }
    };
    let (drivers, mut report) = files::parse_compose(file, &octets, false);
    if report.has_errors() {
        return complain(
            format_args!("{} cannot be used\n{}", file.display(), report.to_string().trim_end()),
            Exit::BadConfig,
        );
    }
    report.include(network::not_taken(file, octets.expose()));
    let blocks: Vec<Value> = drivers.iter().map(network::Driver::as_block).collect();
    if places.json {
        return print_json(&as_json(&report, &blocks), Exit::Fine);
    }
    let mut text = format!("# The network drivers of {}, for the agent's configuration.\n", file.display());
    if !report.messages.is_empty() {
        text.push_str("# Not taken over:\n");
        for message in &report.messages {
            text.push_str(&format!("#   {}\n", one_line(&report, message)));
        }
    }
    text.push_str("# Still to be said: host, overlay (which addresses of the subnets this host owns) and peers.\n");
    emit(&json!({"drivers": blocks}), 0, &mut text);
    print(&text, Exit::Fine)
}

fn one_line(report: &Report, message: &Message) -> String {
    format!("{}: {}: {}", message.place(&report.file), message.key, message.text).replace('\n', " ")
}

fn as_json(report: &Report, blocks: &[Value]) -> Value {
    let message = |message: &Message| json!({"line": message.line, "key": message.key, "message": message.text});
    json!({
        "schema": "underpass.config-convert/1",
        "file": report.file.display().to_string(),
        "configuration": {"drivers": blocks},
        "not_taken": report.messages.iter().map(message).collect::<Vec<_>>(),
    })
}

/// A value as YAML, behind so many blanks.
fn emit(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => emit_members(members, indent, out),
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                emit(item, indent + 2, &mut inner);
                // The first line of what is inside stands behind the dash.
                out.push_str(&format!("{:indent$}- {}", "", inner.trim_start()));
            }
        }
        scalar => out.push_str(&format!("{:indent$}{}\n", "", scalar_text(scalar))),
    }
}

fn emit_members(members: &Map<String, Value>, indent: usize, out: &mut String) {
    for (key, value) in members {
        let key = if is_plain(key) { key.clone() } else { json!(key).to_string() };
        let has_lines = match value {
            Value::Object(inner) => !inner.is_empty(),
            Value::Array(inner) => !inner.is_empty(),
            _ => false,
        };
        if has_lines {
            out.push_str(&format!("{:indent$}{key}:\n", ""));
            emit(value, indent + 2, out);
        } else {
            out.push_str(&format!("{:indent$}{key}: {}\n", "", scalar_text(value)));
        }
    }
}

/// Numbers and truth values as they are; texts in quotes where YAML would see something else in them. JSON's quotes are YAML's.
fn scalar_text(value: &Value) -> String {
    match value {
        // A dollar sign begins a variable.
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => json!(text.replace('$', "$$")).to_string(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 8] = ["true", "false", "yes", "no", "on", "off", "null", "nan"];
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-' | b'.' | b'/' | b' ');
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.bytes().all(fine)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}
