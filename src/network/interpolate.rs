//! `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `$NAME` and `$$` in the texts of a block.
//!
//! It happens on the tree and not in the file's text, so a variable's value is one text whatever stands in it. Such a text is
//! never a truth value, but a number if all of it is digits; `netconf.rs` sees by its [`Style`] that it was put in.

use super::Variables;
use crate::config::Report;
use crate::config::yaml::{Node, Style, Value};

/// A copy of the tree with variables put into its texts.
pub(super) fn tree(node: &Node, path: &str, variables: Variables<'_>, report: &mut Report) -> Node {
    let mut style = node.style;
    let value = match &node.value {
        Value::Null => Value::Null,
        Value::Text(text) if text.contains('$') => {
            style = Style::Filled;
            Value::Text(put_in(text, variables, &mut |message| match message {
                Complaint::Warning(text) => report.warning(node.line, path, text),
                Complaint::Error(text) => report.error(node.line, path, text),
            }))
        }
        Value::Text(text) => Value::Text(text.clone()),
        Value::List(nodes) => {
            let items = nodes.iter().enumerate();
            Value::List(items.map(|(index, item)| tree(item, &format!("{path}[{index}]"), variables, report)).collect())
        }
        Value::Map(entries) => {
            let entries = entries.iter();
            let filled =
                entries.map(|(key, node)| (key.clone(), tree(node, &format!("{path}.{}", key.text), variables, report)));
            Value::Map(filled.collect())
        }
    };
    Node { line: node.line, style, value }
}

enum Complaint {
    Warning(String),
    Error(String),
}

fn put_in(text: &str, variables: Variables<'_>, complain: &mut dyn FnMut(Complaint)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (braced, closing) = match after.strip_prefix('{') {
            Some(inner) => (Some(inner), inner.find('}')),
            None => (None, None),
        };
        match (braced, closing) {
            (Some(inner), Some(end)) => {
                out.push_str(&braces(&inner[..end], variables, complain));
                rest = &inner[end + 1..];
            }
            (Some(_), None) => {
                complain(Complaint::Error("`${` without its `}`".to_owned()));
                return out;
            }
            (None, _) => {
                let name = &after[..name_len(after)];
                if name.is_empty() {
                    complain(Complaint::Error("a `$` without a name; `$$` stands for the sign itself".to_owned()));
                } else {
                    out.push_str(&value(name, variables, complain));
                }
                rest = &after[name.len()..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// What stands between the braces.
fn braces(inner: &str, variables: Variables<'_>, complain: &mut dyn FnMut(Complaint)) -> String {
    let (name, rest) = inner.split_at(name_len(inner));
    if name.is_empty() {
        complain(Complaint::Error(format!("expected the name of a variable in `${{{inner}}}`")));
        return String::new();
    }
    if rest.is_empty() {
        return value(name, variables, complain);
    }
    // With the colon an empty value counts as none.
    if let Some(default) = rest.strip_prefix(":-") {
        return variables(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned());
    }
    if let Some(default) = rest.strip_prefix('-') {
        return variables(name).unwrap_or_else(|| default.to_owned());
    }
    complain(Complaint::Error(format!("`${{{inner}}}` is not supported: write `${{NAME}}` or `${{NAME:-default}}`")));
    String::new()
}

fn value(name: &str, variables: Variables<'_>, complain: &mut dyn FnMut(Complaint)) -> String {
    variables(name).unwrap_or_else(|| {
        complain(Complaint::Warning(format!("the variable {name} is not set: nothing stands in for it")));
        String::new()
    })
}

/// Octets of the name at the beginning: a letter or `_`, then digits as well.
fn name_len(text: &str) -> usize {
    let fits =
        |(index, octet): (usize, u8)| octet.is_ascii_alphabetic() || octet == b'_' || (index > 0 && octet.is_ascii_digit());
    text.bytes().enumerate().take_while(|&part| fits(part)).count()
}
