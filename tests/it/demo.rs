//! `underpass demo`: one command, exit 0, within a minute, and nothing left behind, also when it is interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::agent::UNDERPASS;
use crate::lab::command::{Daemon, attempt_for, require_root_and_tools, said};

/// What the demo could leave behind on this machine: links, mounts, processes of its binary, files.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    traces.extend(names("/sys/class/net").into_iter().map(|name| format!("link {name}")));
    traces
        .extend(names("/run/netns").into_iter().filter(|name| !name.starts_with("up")).map(|name| format!("netns {name}")));
    traces.extend(names("/run").into_iter().filter(|name| name.contains("underpass")).map(|name| format!("run {name}")));
    let of_demo = |name: &String| name.contains("underpass") && name.contains("demo");
    traces.extend(names("/tmp").into_iter().filter(of_demo).map(|name| format!("tmp {name}")));
    traces.extend(demo_processes().into_iter().map(|pid| format!("process {pid}")));
    traces
}

/// Processes that descend from a demo: other tests run agents of the same binary, under namespaces named by their lab.
fn demo_processes() -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let ours = |pid: &u32| {
        let command = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.starts_with(UNDERPASS) && command.contains("demo")
    };
    pids.filter(ours).collect()
}

#[test]
fn it_shows_itself_and_leaves_nothing() {
    require_root_and_tools();
    let before = traces();
    let start = Instant::now();
    let output = attempt_for(90, &[UNDERPASS, "demo"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(traces(), before);
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
        assert_eq!(&traces(), before, "after {after_ms} ms: {}", demo.log());
    }
}
