//! What a command that builds hosts of its own could leave behind on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::agent::UNDERPASS;

/// What commands start their own program by.
const SELF: &str = "/proc/self/exe";

/// Links, named namespaces, files and processes of the command: `demo` or `bench`. Other tests run agents of the same binary,
/// in namespaces that are named by their lab.
pub fn traces(command: &str) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    traces.extend(names("/sys/class/net").into_iter().map(|name| format!("link {name}")));
    traces
        .extend(names("/run/netns").into_iter().filter(|name| !name.starts_with("up")).map(|name| format!("netns {name}")));
    traces.extend(names("/run").into_iter().filter(|name| name.contains("underpass")).map(|name| format!("run {name}")));
    let folder = format!("underpass-{command}-");
    traces.extend(names("/tmp").into_iter().filter(|name| name.starts_with(&folder)).map(|name| format!("tmp {name}")));
    traces.extend(processes(command).into_iter().map(|pid| format!("process {pid}")));
    traces
}

/// The command's own processes and those that it started, whose arguments name it or its folder.
fn processes(command: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let ours = |pid: &u32| {
        let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.starts_with(UNDERPASS) || line.starts_with(SELF)) && line.contains(command)
    };
    pids.filter(ours).collect()
}
