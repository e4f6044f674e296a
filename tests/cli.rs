//! The binary as a person or a script meets it: exit codes, messages, and what goes to which stream.

#[path = "cli/agent.rs"]
mod agent;
#[path = "cli/drivers.rs"]
mod drivers;
#[path = "cli/network.rs"]
mod network;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The binary under test: another build of it, with the default features, if the environment names one.
fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let other = std::env::var("UNDERPASS_PROGRAM");
        other.unwrap_or_else(|_| env!("CARGO_BIN_EXE_underpass").to_owned())
    });
    &PROGRAM
}

/// The binary with folders of its own, and nothing of ours in its environment.
fn underpass(folder: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .env("UNDERPASS_RUN_DIR", folder.join("run"))
        .env("UNDERPASS_STATE_DIR", folder.join("state"))
        .env_remove("CATTLE_AGENT_IP")
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

struct Seen {
    code: i32,
    out: String,
    err: String,
}

fn run(folder: &Path, arguments: &[&str]) -> Seen {
    seen(underpass(folder).args(arguments).output().unwrap())
}

fn seen(output: Output) -> Seen {
    Seen {
        code: output.status.code().expect("it was not killed"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// An agent's socket that gives each asker the next of these answers.
fn fake_agent(folder: &Path, answers: Vec<String>) -> std::thread::JoinHandle<Vec<Value>> {
    let run_dir = folder.join("run");
    fs::create_dir_all(&run_dir).unwrap();
    let listener = UnixListener::bind(run_dir.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        let answer = |answer: String| {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            (&stream).write_all(format!("{answer}\n").as_bytes()).unwrap();
            parsed(&request)
        };
        answers.into_iter().map(answer).collect()
    })
}

fn result(value: &Value) -> String {
    json!({"schema": "underpass.control/1", "result": value}).to_string()
}

fn fault(kind: &str, message: &str) -> String {
    json!({"schema": "underpass.control/1", "error": {"kind": kind, "message": message}}).to_string()
}

fn peer(name: &str, state: &str) -> Value {
    json!({
        "name": name, "state": state, "dead_direction": null, "configured_address": "192.0.2.2", "remote": "192.0.2.2:4500", "local_behind_nat": "no",
        "remote_behind_nat": "unknown", "ike": null, "children": [], "last_proof_seconds": 3, "last_error": null,
        "next_attempt_seconds": null, "history": [],
    })
}

fn status(peers: &[Value]) -> Value {
    json!({
        "schema": "underpass.status/1", "version": "0.1.0", "host": "alpha", "uptime_seconds": 61, "tun": null,
        "peers": peers, "drops": {"replay": 2}, "control": {"requests": 1, "malformed": 0, "refused": 0}, "warnings": [],
        "from_a_newer_agent": 1,
    })
}

#[test]
fn help_and_version_are_no_errors() {
    let folder = folder();
    let help = run(folder.path(), &["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for word in [
        "agent",
        "status",
        "peers",
        "demo",
        "bench",
        "config",
        "key",
        "host",
        "ipam",
        "net",
        "setup",
        "--run-dir",
        "--state-dir",
        "Exit codes",
    ] {
        assert!(help.out.contains(word), "{word}");
    }
    let version = run(folder.path(), &["--version"]);
    assert_eq!((version.code, version.out), (0, format!("underpass {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn bad_usage_is_2() {
    let folder = folder();
    for arguments in
        [&[][..], &["stauts"], &["status", "--bogus"], &["peers", "--rekey", "child"], &["peers", "b", "--rekey", "x"]]
    {
        let seen = run(folder.path(), arguments);
        assert_eq!((seen.code, seen.out.as_str()), (2, ""), "{arguments:?}: {}", seen.err);
        assert!(!seen.err.is_empty());
    }
    assert!(run(folder.path(), &["stauts"]).err.contains("'status'"), "did you mean");
}

#[test]
fn bench_says_what_it_can_measure_and_takes_nothing_else() {
    let folder = folder();
    let help = run(folder.path(), &["bench", "--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for word in [
        "--rounds <N>",
        "[default: 3]",
        "--seconds <S>",
        "--figures <FIGURES>",
        "tcp-16",
        "udp-imix",
        "container",
        "--ways <WAYS>",
        "- raw: ",
        "- ceiling: ",
        "- underpass: ",
        "- plain: ",
        "--suite <SUITE>",
        "[default: aes256gcm16]",
        "--queues <N>",
        "--plot <FILE>",
        "--json",
    ] {
        assert!(help.out.contains(word), "{word}: {}", help.out);
    }
    // The forwarder is nobody's command.
    assert!(!run(folder.path(), &["--help"]).out.contains("bench-ceiling"));
    for (arguments, reason) in [
        (["--rounds", "0"], "0 is not in 1..=100"),
        (["--seconds", "61"], "not between 0.1 and 60"),
        (["--seconds", "long"], "not a number"),
        (["--figures", "tcp-2"], "tcp-1"),
        (["--ways", "raw,wireguard"], "invalid value 'wireguard'"),
        (["--suite", "aes256"], "aes256gcm16"),
        (["--queues", "65"], "65 is not in 1..=64"),
    ] {
        let seen = run(folder.path(), &[&["bench"], &arguments[..]].concat());
        assert_eq!((seen.code, seen.out.as_str()), (2, ""), "{arguments:?}: {}", seen.err);
        assert!(seen.err.contains(reason), "{arguments:?}: {}", seen.err);
    }
}

#[test]
fn a_chart_that_cannot_be_written_is_known_before_anything_is_measured() {
    let folder = folder();
    let seen = run(folder.path(), &["bench", "--plot", "nowhere/chart.svg"]);
    assert_eq!((seen.code, seen.out.as_str()), (8, ""), "{}", seen.err);
    assert!(seen.err.starts_with("underpass: cannot write nowhere/chart.svg: "), "{}", seen.err);
}

#[test]
fn no_agent_is_4() {
    let folder = folder();
    for arguments in [&["status"][..], &["status", "--json"], &["peers"], &["peers", "beta", "--rekey", "ike"]] {
        let seen = run(folder.path(), arguments);
        let run_dir = folder.path().join("run");
        assert_eq!((seen.code, seen.out.as_str()), (4, ""));
        assert_eq!(seen.err, format!("underpass: no agent is running with run directory {}\n", run_dir.display()));
    }
}

#[test]
fn an_agent_that_hangs_is_7() {
    let folder = folder();
    fs::create_dir(folder.path().join("run")).unwrap();
    let _listener = UnixListener::bind(folder.path().join("run/control.sock")).unwrap();
    let seen = run(folder.path(), &["status"]);
    assert_eq!(seen.code, 7);
    assert!(seen.err.contains("did not answer within 5 s"), "{}", seen.err);
}

#[test]
fn status_is_0_or_3() {
    let folder = folder();
    let (fine, bad) = (status(&[peer("beta", "up"), peer("gamma", "idle")]), status(&[peer("beta", "retrying")]));
    let agent = fake_agent(folder.path(), vec![result(&fine), result(&bad), result(&bad)]);
    let seen = run(folder.path(), &["status"]);
    assert_eq!((seen.code, seen.err.as_str()), (0, ""));
    assert_eq!(
        seen.out,
        "\
alpha: underpass 0.1.0, running for 1 min 1 s
no TUN device is open

PEER   STATE  REMOTE          LAST PROOF  IN   OUT  SUITE
beta   up     192.0.2.2:4500  3 s ago     0 B  0 B  -
gamma  idle   192.0.2.2:4500  3 s ago     0 B  0 B  -

dropped packets
  2  replay  the sequence number was seen before
"
    );
    let seen = run(folder.path(), &["status"]);
    assert_eq!(seen.code, 3);
    assert!(seen.out.contains("beta: retrying: another attempt is under way"), "{}", seen.out);
    let seen = run(folder.path(), &["status", "--json"]);
    assert_eq!((seen.code, parsed(&seen.out)), (3, bad), "what a newer agent says besides is kept");
    assert_eq!(agent.join().unwrap(), vec![json!({"command": "status"}); 3]);
}

#[test]
fn answers_that_make_no_sense_are_1() {
    let folder = folder();
    let mut other = status(&[]);
    other["schema"] = json!("underpass.status/2");
    let agent = fake_agent(folder.path(), vec!["hello".into(), result(&json!({"schema": "x"})), result(&other)]);
    for _ in 0..3 {
        let seen = run(folder.path(), &["status"]);
        assert_eq!((seen.code, seen.out.as_str()), (1, ""), "{}", seen.err);
        assert!(seen.err.starts_with("underpass: the agent's "), "{}", seen.err);
    }
    agent.join().unwrap();
}

#[test]
fn peers_are_shown_rekeyed_or_not_found() {
    let folder = folder();
    let one = json!({"schema": "underpass.peers/1", "peers": [peer("beta", "up")]});
    let rekeyed = json!({"schema": "underpass.rekey/1", "peer": "beta", "what": "child"});
    let answers = vec![
        result(&one),
        fault("not-found", "no peer is called \"delta\""),
        result(&rekeyed),
        fault("not-permitted", "the control socket is for root and the agent's own user"),
        result(&one),
    ];
    let agent = fake_agent(folder.path(), answers);
    let seen = run(folder.path(), &["peers", "beta"]);
    assert_eq!(seen.code, 0, "{}", seen.err);
    assert!(
        seen.out.starts_with("beta: up\n  configured           192.0.2.2\n  seen at              192.0.2.2:4500\n"),
        "{}",
        seen.out
    );
    let seen = run(folder.path(), &["peers", "delta"]);
    assert_eq!((seen.code, seen.err.as_str()), (8, "underpass: no peer is called \"delta\"\n"));
    let seen = run(folder.path(), &["peers", "beta", "--rekey", "child"]);
    assert_eq!((seen.code, seen.out.as_str()), (0, "beta: the CHILD_SA is being replaced\n"));
    assert_eq!(run(folder.path(), &["peers"]).code, 6);
    assert_eq!(parsed(&run(folder.path(), &["--json", "peers"]).out), one);
    assert_eq!(
        agent.join().unwrap(),
        [
            json!({"command": "peers", "name": "beta"}),
            json!({"command": "peers", "name": "delta"}),
            json!({"command": "rekey", "peer": "beta", "what": "child"}),
            json!({"command": "peers"}),
            json!({"command": "peers"}),
        ]
    );
}

#[test]
fn run_dir_is_an_option_as_well() {
    let folder = folder();
    let seen = run(folder.path(), &["status", "--run-dir", "/nonexistent/run"]);
    assert_eq!((seen.code, seen.err.as_str()), (4, "underpass: no agent is running with run directory /nonexistent/run\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = folder();
    let peers: Vec<Value> = (0..5000).map(|n| peer(&format!("peer-{n}"), "up")).collect();
    let agent = fake_agent(folder.path(), vec![result(&status(&peers))]);
    let mut child = underpass(folder.path()).arg("status").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    agent.join().unwrap();
}

#[test]
fn config_check_says_what_is_wrong_and_where() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("good.yaml", "host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\n");
    let seen = run(folder.path(), &["config", "check", "good.yaml"]);
    assert_eq!((seen.code, seen.out.as_str(), seen.err.as_str()), (0, "good.yaml: fine: host alpha, 0 peers\n", ""));
    write("bad.yaml", "host: {name: alpha}\noverlay: {blocks: [10.42.1.5/24]}\nipsek: {}\n");
    let seen = run(folder.path(), &["config", "check", "bad.yaml"]);
    assert_eq!(
        (seen.code, seen.out.as_str()),
        (
            5,
            "\
bad.yaml:2: overlay.blocks[0]: expected a prefix without host bits, got \"10.42.1.5/24\"; did you mean \"10.42.1.0/24\"?
bad.yaml:3: ipsek: unknown key; did you mean \"ipsec\"?
bad.yaml: cannot be used: 2 errors
"
        )
    );
    let seen = run(folder.path(), &["config", "check", "bad.yaml", "--json"]);
    let value = parsed(&seen.out);
    assert_eq!(seen.code, 5);
    assert_eq!((&value["schema"], &value["usable"]), (&json!("underpass.config-check/1"), &json!(false)));
    assert_eq!(
        value["messages"][1],
        json!({"severity": "error", "line": 3, "key": "ipsek", "message": "unknown key; did you mean \"ipsec\"?"})
    );
    let seen = run(folder.path(), &["config", "check", "missing.yaml"]);
    assert_eq!(seen.code, 5, "{}", seen.err);
    assert!(seen.err.starts_with("underpass: missing.yaml: No such file"), "{}", seen.err);
}

/// Without the feature `x509` a build says of each key that wants certificates that it has none.
#[test]
fn certificates_need_a_build_that_has_them() {
    let folder = folder();
    let text = "host: {name: alpha, certificate_file: a, certificate_key_file: b}\noverlay: {blocks: [10.42.1.0/24]}\n\
        peers:\n  - {name: beta, ca_file: ca.pem, remote_blocks: [10.42.2.0/24]}\n";
    fs::write(folder.path().join("u.yaml"), text).unwrap();
    let seen = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(seen.code, 5, "{}", seen.out);
    let how = "this build does not have X.509 certificates: build it with `cargo build --release --features x509`, or remove the key";
    let keys = ["1: host.certificate_file", "1: host.certificate_key_file", "4: peers[0].ca_file"];
    let refused = keys.map(|key| seen.out.contains(&format!("u.yaml:{key}: {how}\n")));
    let has_them = cfg!(feature = "x509") && program() == env!("CARGO_BIN_EXE_underpass");
    assert_eq!(refused, [!has_them; 3], "{}", seen.out);
}

#[test]
fn config_check_reads_key_files() {
    let folder = folder();
    let text = "host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\n\
        peers:\n  - {name: beta, psk_file: beta.psk, remote_blocks: [10.42.2.0/24]}\n";
    fs::write(folder.path().join("u.yaml"), text).unwrap();
    let check = || run(folder.path(), &["config", "check", "u.yaml"]);
    let seen = check();
    assert_eq!(seen.code, 5);
    assert!(
        seen.out.starts_with("u.yaml:4: peers[0].psk_file: expected a readable key file, got beta.psk: No such"),
        "{}",
        seen.out
    );
    let psk = folder.path().join("beta.psk");
    fs::write(&psk, "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::set_permissions(&psk, fs::Permissions::from_mode(0o644)).unwrap();
    let seen = check();
    assert_eq!(seen.code, 5);
    assert!(seen.out.contains("got mode 0644: chmod 600 beta.psk"), "{}", seen.out);
    fs::set_permissions(&psk, fs::Permissions::from_mode(0o600)).unwrap();
    let seen = check();
    assert_eq!((seen.code, seen.out.as_str()), (0, "u.yaml: fine: host alpha, 1 peer\n"));
}

#[test]
fn a_key_is_made_once_and_shown() {
    let folder = folder();
    assert_eq!(run(folder.path(), &["key", "show"]).code, 8);
    let made = run(folder.path(), &["key", "generate"]);
    assert_eq!((made.code, made.err.as_str()), (0, ""));
    assert_eq!(made.out.trim_end().len(), 44, "base64 of 32 octets");
    let path = folder.path().join("state/host.key");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert_eq!(run(folder.path(), &["key", "show"]).out, made.out);
    let value = parsed(&run(folder.path(), &["key", "show", "--json"]).out);
    assert_eq!((&value["schema"], value["public_key"].as_str()), (&json!("underpass.key/1"), Some(made.out.trim_end())));
    let again = run(folder.path(), &["key", "generate"]);
    assert_eq!((again.code, again.out.as_str()), (1, ""));
    assert!(again.err.contains("--force replaces it"), "{}", again.err);
    let forced = run(folder.path(), &["key", "generate", "--force"]);
    assert_eq!(forced.code, 0);
    assert_ne!(forced.out, made.out);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let loose = run(folder.path(), &["key", "show"]);
    assert_eq!(loose.code, 5);
    assert!(loose.err.contains("chmod 600"), "{}", loose.err);
}

#[test]
fn a_key_is_changed_in_steps() {
    let folder = folder();
    let key = |step: &[&str]| run(folder.path(), &[&["key"], step].concat());
    assert_eq!(key(&["rotate"]).code, 8, "there is none");
    let first = key(&["generate"]).out;
    assert_eq!((key(&["rotate", "--switch"]).code, key(&["rotate", "--finish"]).code), (8, 8));
    let next = key(&["rotate"]).out;
    assert_eq!((next.len(), key(&["show"]).out.as_str()), (45, first.as_str()));
    let shown = parsed(&key(&["show", "--json"]).out);
    assert_eq!((shown["next"].as_str(), shown["old"].as_str()), (Some(next.trim_end()), None));
    assert_eq!(key(&["rotate", "--switch"]).out, next);
    let shown = parsed(&key(&["show", "--json"]).out);
    assert_eq!((shown["public_key"].as_str(), shown["old"].as_str()), (Some(next.trim_end()), Some(first.trim_end())));
    let early = key(&["rotate"]);
    assert_eq!((early.code, early.err.contains("key rotate --finish")), (1, true), "{}", early.err);
    assert_eq!((key(&["rotate", "--finish"]).out, key(&["show"]).out), (next.clone(), next));
    assert_eq!(fs::read_dir(folder.path().join("state")).unwrap().count(), 1);
}

#[test]
fn hosts_of_the_store_are_listed_shown_and_removed() {
    let folder = folder();
    let hosts = json!({"schema": "underpass.hosts/1", "hosts": [
        {"label": "alpha", "name": "alpha", "id": "0102030405060708090a", "state": "this host", "seen": true,
         "addresses": ["192.0.2.1"], "blocks": ["10.42.1.0/24"], "keys": ["AA=="], "from_a_newer_agent": 1},
    ]});
    let removed = json!({"schema": "underpass.host-removed/1", "name": "beta", "id": "0b", "blocks": ["10.42.2.0/24"]});
    let answers = vec![
        result(&hosts),
        result(&hosts),
        result(&hosts),
        result(&removed),
        result(&removed),
        fault("not-found", "no host of the store is called \"gamma\""),
    ];
    let agent = fake_agent(folder.path(), answers);
    let ls = run(folder.path(), &["host", "ls"]);
    assert_eq!(ls.code, 0, "{}", ls.err);
    assert!(ls.out.contains("alpha  this host  seen   192.0.2.1  10.42.1.0/24  0102030405060708"), "{}", ls.out);
    assert_eq!(parsed(&run(folder.path(), &["host", "ls", "--json"]).out), hosts, "as it came");
    let show = run(folder.path(), &["host", "show", "alpha"]);
    assert!(show.out.starts_with("alpha: this host\n") && show.out.contains("AA=="), "{}", show.out);
    let rm = run(folder.path(), &["host", "rm", "beta"]);
    assert_eq!((rm.code, rm.out.as_str()), (0, "beta (0b) is removed; free again: 10.42.2.0/24\n"));
    assert_eq!(parsed(&run(folder.path(), &["host", "rm", "beta", "--force", "--json"]).out), removed);
    assert_eq!(run(folder.path(), &["host", "show", "gamma"]).code, 8);
    let asked = agent.join().unwrap();
    assert_eq!(asked[2], json!({"command": "hosts", "name": "alpha"}));
    assert_eq!(asked[4], json!({"command": "host-remove", "name": "beta", "force": true}));
    assert_eq!(run(folder.path(), &["host", "ls"]).code, 4);
}

#[test]
fn a_configuration_is_checked_with_its_list_of_hosts() {
    let folder = folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("u.yaml", "host: {name: alpha}\nstore: {kind: file, path: hosts.yaml}\n");
    let missing = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(missing.code, 5);
    assert!(missing.out.contains("u.yaml:2: store.path: expected a readable list of hosts"), "{}", missing.out);
    write("hosts.yaml", "psk: 0123456789abcdef0123456789abcdef\nhosts:\n  - {name: alpha}\n  - {name: beta}\n");
    let fine = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(fine.code, 0, "{}", fine.out);
    assert!(fine.out.starts_with("hosts.yaml:1: warning: psk: one group key"), "{}", fine.out);
    assert!(fine.out.contains("host alpha, 0 peers, 2 hosts in hosts.yaml, 1 warning"), "{}", fine.out);
    assert_eq!(run(folder.path(), &["config", "check", "--strict", "u.yaml"]).code, 5);
    write("hosts.yaml", "hosts:\n  - {name: alpha, blocks: [10.42.1.0/33]}\n");
    let broken = run(folder.path(), &["config", "check", "u.yaml"]);
    assert_eq!(broken.code, 5);
    assert!(broken.out.contains("hosts.yaml:2: hosts[0].blocks[0]: expected a prefix"), "{}", broken.out);
    let json = parsed(&run(folder.path(), &["config", "check", "--json", "u.yaml"]).out);
    assert_eq!((json["usable"].as_bool(), json["messages"].as_array().unwrap().len()), (Some(false), 2), "{json}");
}
