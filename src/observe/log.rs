//! The log: one line per event on standard error, in the shape that journald and a terminal both take.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

/// Sends log events to standard error. Under systemd (`JOURNAL_STREAM` is set) lines carry no time: the journal has its own.
///
/// The level is `level`; repeated calls do nothing, so that tests and `demo` may call it too.
pub fn init_log(level: LevelFilter) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second subscriber cannot be installed, and need not be.
    let _ = if journal { builder.without_time().try_init() } else { builder.try_init() };
}
