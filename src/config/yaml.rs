//! YAML as a tree of nodes that know their lines and keep their texts.
//!
//! Built from the parser's events and not from a ready-made tree: such a tree would turn the name `010` into a number, and stop
//! at the first key that stands twice. Of YAML we take what a configuration needs. Anchors, aliases, tags, keys that are not
//! texts, and several documents in one file are refused, so nothing in the tree is larger than it looks in the file.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::MAX_FILE;
use super::message::Report;
use super::section::shortened;

/// Levels of nesting. The configuration needs four; a bound keeps every walk over the tree off the stack's end.
const MAX_DEPTH: usize = 16;

/// A node and its line, from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub line: usize,
    pub style: Style,
    pub value: Value,
}

/// How a text came to be; of no meaning for other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// Without quotes: elsewhere such texts may be numbers or truth values.
    Plain,
    /// In quotes, or as a block.
    Quoted,
    /// Variables were put into it.
    Filled,
}

/// What a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A text, as it stands in the file but for quotes and escapes.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in the order of the file.
    Map(Vec<(Key, Node)>),
}

impl Value {
    /// What it is, for "got …".
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a section with keys",
        }
    }
}

/// A key of a map and its line, from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub line: usize,
    pub text: String,
}

/// What becomes of a key that stands twice in a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duplicates {
    /// An error.
    Refused,
    /// A warning; the later one stays, as everywhere that compose files were read.
    LastWins,
}

/// The tree in a file, or none and an error in the report. An empty file is an empty map.
pub(crate) fn parse(octets: &[u8], duplicates: Duplicates, report: &mut Report) -> Option<Node> {
    if octets.len() > MAX_FILE {
        report.error(None, "", format!("expected a file of at most {MAX_FILE} octets, and this one is larger"));
        return None;
    }
    let text = match std::str::from_utf8(octets) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + octets[..error.valid_up_to()].iter().filter(|&&octet| octet == b'\n').count();
            report.error(line, "", "expected UTF-8, got an octet that is none");
            return None;
        }
    };
    match Builder::new(duplicates, report).build(text) {
        Ok(root) if !report.has_errors() => Some(root),
        Ok(_) => None,
        Err(Refusal { line, text }) => {
            report.error(line, "", text);
            None
        }
    }
}

/// Why a file cannot be read further.
struct Refusal {
    line: usize,
    text: String,
}

impl Refusal {
    fn new(line: usize, text: impl Into<String>) -> Self {
        Self { line, text: text.into() }
    }
}

impl From<ScanError> for Refusal {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker().line(), format!("not valid YAML: {}", error.info()))
    }
}

/// A list or map whose end has not come yet.
struct Open {
    line: usize,
    container: Container,
}

enum Container {
    List(Vec<Node>),
    Map(OpenMap),
}

#[derive(Default)]
struct OpenMap {
    entries: Vec<(Key, Node)>,
    /// The key whose value is awaited.
    key: Option<Key>,
    /// The entry that this value replaces.
    replaces: Option<usize>,
    /// On which line each key stood first, and which entry it has.
    first: HashMap<String, (usize, usize)>,
}

struct Builder<'r> {
    duplicates: Duplicates,
    report: &'r mut Report,
    open: Vec<Open>,
    root: Option<Node>,
}

impl<'r> Builder<'r> {
    fn new(duplicates: Duplicates, report: &'r mut Report) -> Self {
        Self { duplicates, report, open: Vec::new(), root: None }
    }

    fn build(mut self, text: &str) -> Result<Node, Refusal> {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event?;
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    return Err(Refusal::new(span.start.line(), "expected one YAML document, got a second one (`---`)"));
                }
            }
            self.handle(event, span)?;
        }
        let empty = Node { line: 1, style: Style::Quoted, value: Value::Map(Vec::new()) };
        Ok(self.root.filter(|root| root.value != Value::Null).unwrap_or(empty))
    }

    fn handle(&mut self, event: Event<'_>, span: Span) -> Result<(), Refusal> {
        let line = span.start.line();
        match event {
            Event::Alias(_) => Err(Refusal::new(line, "aliases (`*name`) are not supported: write the value out")),
            Event::Scalar(_, _, anchor, tag) if anchor != 0 || tag.is_some() => Err(decorated(line)),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) if anchor != 0 || tag.is_some() => {
                Err(decorated(line))
            }
            Event::Scalar(text, style, ..) => self.scalar(line, text.into_owned(), style),
            Event::SequenceStart(..) => self.enter(line, Container::List(Vec::new())),
            Event::MappingStart(..) => self.enter(line, Container::Map(OpenMap::default())),
            Event::SequenceEnd | Event::MappingEnd => self.leave(line),
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, line: usize, text: String, style: ScalarStyle) -> Result<(), Refusal> {
        if let Some(Open { container: Container::Map(map @ OpenMap { key: None, .. }), .. }) = self.open.last_mut() {
            if let Some(&(first, entry)) = map.first.get(&text) {
                let message = format!("this key stands twice; it was first on line {first}");
                if self.duplicates == Duplicates::LastWins {
                    self.report.warning(line, shortened(&text), format!("{message}, and this one counts"));
                    map.replaces = Some(entry);
                } else {
                    self.report.error(line, shortened(&text), message);
                }
            } else {
                map.first.insert(text.clone(), (line, map.entries.len()));
            }
            map.key = Some(Key { line, text });
            return Ok(());
        }
        let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
        let null = style == Style::Plain && matches!(text.as_str(), "" | "~" | "null");
        let value = if null { Value::Null } else { Value::Text(text) };
        self.place(Node { line, style, value })
    }

    fn enter(&mut self, line: usize, container: Container) -> Result<(), Refusal> {
        if self.open.len() == MAX_DEPTH {
            return Err(Refusal::new(line, format!("expected at most {MAX_DEPTH} levels of nesting")));
        }
        if let Some(Open { container: Container::Map(OpenMap { key: None, .. }), .. }) = self.open.last() {
            return Err(Refusal::new(line, "expected a text as key, got a list or section"));
        }
        self.open.push(Open { line, container });
        Ok(())
    }

    fn leave(&mut self, line: usize) -> Result<(), Refusal> {
        let Some(Open { line, container }) = self.open.pop() else {
            return Err(Refusal::new(line, "not valid YAML: an end without a beginning"));
        };
        let value = match container {
            Container::List(nodes) => Value::List(nodes),
            Container::Map(map) => Value::Map(map.entries),
        };
        self.place(Node { line, style: Style::Quoted, value })
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node) -> Result<(), Refusal> {
        match self.open.last_mut().map(|open| &mut open.container) {
            None => self.root = Some(node),
            Some(Container::List(nodes)) => nodes.push(node),
            Some(Container::Map(OpenMap { entries, key, replaces, .. })) => {
                let Some(key) = key.take() else {
                    return Err(Refusal::new(node.line, "not valid YAML: a value without a key"));
                };
                match replaces.take() {
                    Some(entry) => entries[entry] = (key, node),
                    None => entries.push((key, node)),
                }
            }
        }
        Ok(())
    }
}

fn decorated(line: usize) -> Refusal {
    Refusal::new(line, "anchors (`&name`) and tags (`!tag`) are not supported: write the plain value")
}
