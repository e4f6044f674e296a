//! Messages: where, which key, what was expected and what stands there.

use std::fmt;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but somebody should look at it.
    Warning,
}

impl Severity {
    /// The word, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Error or warning.
    pub severity: Severity,
    /// The file, if it is another one than the report's.
    pub file: Option<PathBuf>,
    /// Line, from 1; none if it is not about one line.
    pub line: Option<usize>,
    /// The key, such as `peers[0].remote_blocks`; empty if it is not about a key.
    pub key: String,
    /// The sentence.
    pub text: String,
}

/// Everything that was found in one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its name.
    pub file: PathBuf,
    /// What was found, in the order of the file.
    pub messages: Vec<Message>,
}

/// Messages that are kept: beyond that a file is not a configuration with mistakes but something else.
const MAX_MESSAGES: usize = 100;

impl Report {
    /// Nothing found yet.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), messages: Vec::new() }
    }

    /// Adds an error.
    pub fn error(&mut self, line: impl Into<Option<usize>>, key: impl Into<String>, text: impl Into<String>) {
        self.push(Severity::Error, line.into(), key.into(), text.into());
    }

    /// Adds a warning.
    pub fn warning(&mut self, line: impl Into<Option<usize>>, key: impl Into<String>, text: impl Into<String>) {
        self.push(Severity::Warning, line.into(), key.into(), text.into());
    }

    fn push(&mut self, severity: Severity, line: Option<usize>, key: String, text: String) {
        // The last place is kept for an error, lest warnings hide that there is one.
        let limit = if self.has_errors() || severity == Severity::Error { MAX_MESSAGES } else { MAX_MESSAGES - 1 };
        if self.messages.len() < limit {
            self.messages.push(Message { severity, file: None, line, key, text });
        }
    }

    /// Whether the configuration cannot be used.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.messages.iter().any(|message| message.severity == Severity::Error)
    }

    /// How many messages there are of that kind.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.messages.iter().filter(|message| message.severity == severity).count()
    }

    /// Turns every warning into an error, for those who want none of either.
    pub(crate) fn harden(&mut self) {
        self.messages.iter_mut().for_each(|message| message.severity = Severity::Error);
    }

    /// In the order of the file; equal lines in the order of discovery. Other files come behind it.
    pub(crate) fn sort(&mut self) {
        self.messages.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
    }

    /// Takes over what was found in another file, which this one names.
    pub fn include(&mut self, other: Self) {
        let Self { file, messages } = other;
        for message in messages {
            let had = self.messages.len();
            self.push(message.severity, message.line, message.key, message.text);
            if let Some(taken) = self.messages.get_mut(had) {
                taken.file = message.file.or_else(|| Some(file.clone()).filter(|file| *file != self.file));
            }
        }
        self.sort();
    }
}

impl Message {
    /// `file:line`, as far as it is known; `file` is the report's.
    #[must_use]
    pub fn place(&self, file: &Path) -> String {
        let file = self.file.as_deref().unwrap_or(file).display();
        self.line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}"))
    }
}

/// One line per message: `file:line: key: sentence`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for message in &self.messages {
            write!(f, "{}:", message.place(&self.file))?;
            if message.severity == Severity::Warning {
                write!(f, " warning:")?;
            }
            if !message.key.is_empty() {
                write!(f, " {}:", message.key)?;
            }
            writeln!(f, " {}", message.text)?;
        }
        Ok(())
    }
}
