//! `underpass demo`: one command, exit 0, within a minute, and nothing left behind, also when it is interrupted.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::lab::agent::UNDERPASS;
use crate::lab::command::{Daemon, attempt_for, require_root_and_tools, said};
use crate::lab::traces::traces;

#[test]
fn it_shows_itself_and_leaves_nothing() {
    require_root_and_tools();
    let before = traces("demo");
    let output = attempt_for(60, &[UNDERPASS, "demo"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(traces("demo"), before);
    interrupted(&before);
}

/// Ctrl-C at several moments.
fn interrupted(before: &BTreeSet<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    for after_ms in [50, 500, 2000, 5000] {
        let log = folder.path().join(format!("{after_ms}.log"));
        let mut demo = Daemon::start("the demo", &[UNDERPASS, "demo"], &[], &log);
        std::thread::sleep(Duration::from_millis(after_ms));
        let code = demo.stop("INT", Duration::from_secs(15));
        assert_ne!(code, Some(0), "after {after_ms} ms: {}", demo.log());
        assert_eq!(&traces("demo"), before, "after {after_ms} ms: {}", demo.log());
    }
}
