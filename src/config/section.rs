//! Sections: maps whose keys are known, read key by key; whatever nobody asked for is refused at the end.

use super::message::Report;
use super::scalar::{self, Expected};
use super::yaml::{Key, Node, Value};

/// A value and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed<T> {
    /// Line, from 1; none for a value that does not stand in the file.
    pub line: Option<usize>,
    /// The key, such as `peers[0].psk_file`.
    pub key: String,
    /// The value.
    pub value: T,
}

impl<T> Placed<T> {
    /// The same place with another value.
    pub(crate) fn with<U>(&self, value: U) -> Placed<U> {
        Placed { line: self.line, key: self.key.clone(), value }
    }

    /// Adds an error about it.
    pub(crate) fn error(&self, report: &mut Report, text: impl Into<String>) {
        report.error(self.line, &*self.key, text);
    }

    /// Adds a warning about it.
    pub(crate) fn warning(&self, report: &mut Report, text: impl Into<String>) {
        report.warning(self.line, &*self.key, text);
    }
}

/// A map being read.
pub(crate) struct Section<'n> {
    pub line: usize,
    /// Its key, empty for the whole file.
    pub key: String,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
    /// Keys that were refused with a message of their own.
    refused: Vec<&'static str>,
}

impl<'n> Section<'n> {
    /// The node as a section. Nothing at all (`tun:`) is an empty section; anything else is an error.
    pub(crate) fn of(field: &Field<'n>, report: &mut Report) -> Option<Self> {
        let entries = match &field.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            other => {
                report.error(field.node.line, &*field.key, format!("expected a section with keys, got {}", got(other)));
                return None;
            }
        };
        Some(Self { line: field.line, key: field.key.clone(), entries, known: Vec::new(), refused: Vec::new() })
    }

    /// The value of a key that may be there.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Field<'n>> {
        // One that is read twice, for two purposes, is listed once.
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let (found, node) = self.entries.iter().find(|(entry, _)| entry.text == key)?;
        let path = self.path(key);
        Some(Field { line: found.line, key: path, node })
    }

    /// A key of this section as seen from the whole file.
    fn path(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(entry, _)| entry.text == key)
    }

    /// Refuses a key with a message of its own, if it is there.
    pub(crate) fn refuse(&mut self, key: &'static str, message: &str, report: &mut Report) {
        if let Some((found, _)) = self.entries.iter().find(|(entry, _)| entry.text == key) {
            report.error(found.line, self.path(key), message);
            self.refused.push(key);
        }
    }

    /// Refuses every key that was not asked for, but for those that begin with `x-`.
    pub(crate) fn finish(self, report: &mut Report) {
        self.strangers(|line, path, message| report.error(line, path, message));
    }

    /// The same as warnings.
    pub(crate) fn finish_leniently(self, report: &mut Report) {
        self.strangers(|line, path, message| report.warning(line, path, format!("{message} (it is ignored)")));
    }

    fn strangers(self, mut tell: impl FnMut(usize, String, String)) {
        let strangers = self.entries.iter().map(|(key, _)| key).filter(|key| {
            let text = key.text.as_str();
            !text.starts_with("x-") && !self.known.contains(&text) && !self.refused.contains(&text)
        });
        for key in strangers {
            let text = shortened(&key.text);
            let path = self.path(&text);
            let message = match scalar::closest(&key.text, &self.known) {
                Some(meant) => format!("unknown key; did you mean {meant:?}?"),
                None => format!("unknown key; expected {}", scalar::listed(&self.known, "or")),
            };
            tell(key.line, path, message);
        }
    }
}

/// A value being read: the line of its key, its full key, and the node.
pub(crate) struct Field<'n> {
    pub line: usize,
    pub key: String,
    pub node: &'n Node,
}

impl<'n> Field<'n> {
    /// The value where it stands.
    pub(crate) fn placed<T>(&self, value: T) -> Placed<T> {
        Placed { line: Some(self.node.line), key: self.key.clone(), value }
    }

    /// A text as a value of some kind.
    pub(crate) fn read<T>(&self, report: &mut Report, parse: impl FnOnce(&str) -> Result<T, Expected>) -> Option<Placed<T>> {
        let text = match &self.node.value {
            Value::Text(text) => text.as_str(),
            // The parser of the kind knows best what it expects instead.
            _ => "",
        };
        match parse(text) {
            Ok(value) if matches!(self.node.value, Value::Text(_)) => Some(self.placed(value)),
            Ok(_) => {
                self.refuse(report, &Expected::new("a text"));
                None
            }
            Err(expected) => {
                self.refuse(report, &expected);
                None
            }
        }
    }

    /// A text that must not be shown in messages.
    pub(crate) fn secret(&self, report: &mut Report) -> Option<Placed<&'n str>> {
        match &self.node.value {
            Value::Text(text) => Some(self.placed(text.as_str())),
            other => {
                report.error(self.node.line, &*self.key, format!("expected a text, got {}", other.kind()));
                None
            }
        }
    }

    /// The items of a list. Nothing at all is an empty list.
    pub(crate) fn list(&self, report: &mut Report, max: usize) -> Option<Vec<Field<'n>>> {
        let nodes = match &self.node.value {
            Value::List(nodes) => nodes.as_slice(),
            Value::Null => &[],
            Value::Text(text) => {
                let expected = Expected { what: "a list".to_owned(), suggestion: Some(format!("[{}]", shortened(text))) };
                self.refuse(report, &expected);
                return None;
            }
            Value::Map(_) => {
                self.refuse(report, &Expected::new("a list (each item begins with `- `)"));
                return None;
            }
        };
        if nodes.len() > max {
            report.error(self.node.line, &*self.key, format!("expected at most {max} items, got {}", nodes.len()));
            return None;
        }
        let item = |(index, node): (usize, &'n Node)| Field { line: node.line, key: format!("{}[{index}]", self.key), node };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    /// The items of a list, each as a value of some kind; those that are none are left out.
    pub(crate) fn read_list<T>(
        &self,
        report: &mut Report,
        max: usize,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Vec<Placed<T>> {
        let items = self.list(report, max).unwrap_or_default();
        items.iter().filter_map(|item| item.read(report, &parse)).collect()
    }

    /// Adds the error that something else was expected here.
    pub(crate) fn refuse(&self, report: &mut Report, expected: &Expected) {
        let mut text = format!("expected {}, got {}", expected.what, got(&self.node.value));
        if let Some(suggestion) = &expected.suggestion {
            text.push_str(&format!("; did you mean {suggestion}?"));
        }
        report.error(self.node.line, &*self.key, text);
    }
}

/// What stands there, for messages.
fn got(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("\"{}\"", shortened(text)),
        other => other.kind().to_owned(),
    }
}

/// A text that fits into a message and cannot steer a terminal.
pub(crate) fn shortened(text: &str) -> String {
    /// Characters: enough to recognise what it is.
    const MAX: usize = 60;
    let mut short: String = text.chars().take(MAX).collect::<String>().escape_debug().to_string();
    if text.chars().nth(MAX).is_some() {
        short.push('…');
    }
    short
}
