//! `underpass bench` at its shortest: every figure of every way is there, the chart too, and nothing is left behind, also when it
//! is interrupted. What the figures are is nobody's business here.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::UNDERPASS;
use crate::lab::command::{Daemon, attempt_for, require_root_and_tools, said};
use crate::lab::traces::traces;

/// The columns, and which rows they lack.
const WAYS: [(&str, &[&str]); 4] = [("raw", &["cpu", "memory"]), ("ceiling", &[]), ("underpass", &[]), ("plain", &[])];

/// The rows that are a number above zero on any machine; rates under a given loss may be zero on a busy one.
const ALWAYS: [&str; 9] =
    ["tcp-1", "tcp-4", "tcp-16", "tcp-reverse", "tcp-both", "container", "rtt-idle", "rtt-loaded", "memory"];

#[test]
fn it_measures_everything_and_leaves_nothing() {
    require_root_and_tools();
    let before = traces("bench");
    let folder = tempfile::tempdir().expect("a folder");
    let chart = folder.path().join("chart.svg");
    let arguments = ["bench", "--rounds", "1", "--seconds", "0.2", "--json", "--plot", chart.to_str().expect("UTF-8")];
    let output = attempt_for(240, &[&[UNDERPASS], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(traces("bench"), before);

    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["schema"], &report["ok"]), (&"underpass.bench/1".into(), &true.into()));
    assert_eq!(report["settings"]["suite"], "aes256gcm16");
    assert_eq!(report["settings"]["ways"].as_array().expect("ways").len(), WAYS.len());
    assert!(report["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    let figures = report["figures"].as_array().expect("figures");
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().expect("a name")).collect();
    assert_eq!(
        names,
        [
            "tcp-1",
            "tcp-4",
            "tcp-16",
            "tcp-reverse",
            "tcp-both",
            "container",
            "udp-1372",
            "udp-imix",
            "udp-64",
            "flood-64",
            "rtt-idle",
            "rtt-loaded",
            "cpu",
            "memory",
        ]
    );
    for figure in figures {
        let name = figure["name"].as_str().expect("a name");
        for (way, lacks) in WAYS {
            let values = &figure["ways"][way];
            assert_eq!(values.is_null(), lacks.contains(&name), "{name} of {way}: {values}");
            if !values.is_null() {
                assert_eq!(values["rounds"].as_array().map(Vec::len), Some(1));
                let median = values["median"].as_f64().expect("a median");
                assert!(median > 0.0 || !ALWAYS.contains(&name), "{name} of {way}: {values}");
            }
        }
        assert!(figure["to_ceiling"]["ceiling"].is_null() && !figure["to_ceiling"]["underpass"].is_null(), "{figure}");
    }
    for (way, _) in WAYS {
        assert!(report["container_to_host"][way]["median"].as_f64().is_some_and(|ratio| ratio > 0.0), "{way}");
    }
    let chart = std::fs::read_to_string(chart).expect("a chart");
    assert!(chart.starts_with("<svg ") && chart.ends_with("</svg>\n") && chart.contains("TCP, 16 streams"), "{chart}");
    // Not beside the rest: each would see the other's traces.
    interrupted(&before);
}

/// Ctrl-C while a way is built, while it is measured, and while a forwarder runs.
fn interrupted(before: &BTreeSet<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    for (ways, after_ms) in [("raw", 50), ("ceiling", 600), ("ceiling", 2500), ("underpass", 900), ("underpass", 4000)] {
        let log = folder.path().join(format!("{ways}-{after_ms}.log"));
        let arguments = ["bench", "--rounds", "1", "--seconds", "20", "--ways", ways];
        let mut bench = Daemon::start("the benchmark", &[&[UNDERPASS], &arguments[..]].concat(), &[], &log);
        std::thread::sleep(Duration::from_millis(after_ms));
        let code = bench.stop("INT", Duration::from_secs(15));
        assert_ne!(code, Some(0), "{ways}, {after_ms} ms: {}", bench.log());
        assert_eq!(&traces("bench"), before, "{ways}, {after_ms} ms: {}", bench.log());
    }
}
