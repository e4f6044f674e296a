//! Printing. A reader that goes away (`underpass status | head -1`) ends the output, and is no error.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use super::Exit;

/// Prints a text to standard output; `exit` is how the command ends if that works.
pub(super) fn print(text: &str, exit: Exit) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit,
        Err(error) => complain(format_args!("writing to standard output: {error}"), Exit::Failed),
    }
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize, exit: Exit) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n"), exit),
        Err(error) => complain(error, Exit::Failed),
    }
}

/// Says on standard error why the command failed. Nobody can be told if that fails, too.
pub(super) fn complain(message: impl std::fmt::Display, exit: Exit) -> Exit {
    let _ = writeln!(io::stderr().lock(), "underpass: {message}");
    exit
}
