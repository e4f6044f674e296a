//! The commands as a user meets them: exit codes, messages that name the place, and refusals instead of half-starts.

use std::path::Path;
use std::process::Output;

use crate::lab::agent::{Agent, AgentConfig, PeerConfig, UNDERPASS};
use crate::lab::command::{said, text};
use crate::lab::{Lab, attempt};

/// A configuration that is fine, in lines that the tests change.
const FINE: &str = "host:
  name: alpha
  advertise: [\"10.9.0.1\"]
overlay: {address: 10.42.1.1/32, blocks: [10.42.1.0/24]}
peers:
  - name: beta
    address: 10.9.0.2
    psk: \"0123456789abcdef0123456789abcdef\"
    remote_blocks: [10.42.2.0/24]
";

/// Writes a configuration that only its owner reads, and checks it.
fn check(folder: &Path, configuration: &str) -> Output {
    use std::os::unix::fs::PermissionsExt;
    let file = folder.join("underpass.yaml");
    std::fs::write(&file, configuration).expect("a file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    attempt(&[UNDERPASS, "config", "check", file.to_str().expect("UTF-8")])
}

#[test]
fn a_fine_configuration_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = check(folder.path(), FINE);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn the_readmes_configuration_passes() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let (_, rest) = readme.split_once("```yaml\n").expect("a configuration in the README");
    let (example, _) = rest.split_once("```").expect("its end");
    let folder = tempfile::tempdir().expect("a folder");
    // A point of the curve (RFC 8032, section 7.1, test 1) where the README has words.
    let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let example = example.replace("<underpass key show, on beta>", key);
    assert!(example.contains(key), "the README's words for a key");
    let output = check(folder.path(), &example);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn a_bad_configuration_names_the_place() {
    let folder = tempfile::tempdir().expect("a folder");
    // What is changed, into what, and what the message must hold.
    let cases = [
        ("  advertise", "  advertize", &["underpass.yaml:3", "advertize", "did you mean", "advertise"][..]),
        ("10.42.2.0/24", "10.42.1.128/25", &["underpass.yaml:9", "overlap"]),
        ("10.42.2.0/24", "10.42.2.0/33", &["underpass.yaml:9"]),
        ("address: 10.9.0.2", "address: 10.9.0.1", &["underpass.yaml:7"]),
        ("address: 10.9.0.2", "address: 10.9.0.2:99999", &["underpass.yaml:7"]),
        ("0123456789abcdef0123456789abcdef", "short", &["underpass.yaml:8", "32"]),
        (
            "peers:\n",
            "peers:\n  - name: beta\n    address: 10.9.0.3\n    psk_file: /nonexistent\n    remote_blocks: [10.42.3.0/24]\n",
            &["beta"],
        ),
        ("name: alpha", "name: [alpha", &["underpass.yaml:"]),
        ("overlay: {", "overlay: {color: red, ", &["underpass.yaml:4", "color"]),
    ];
    for (from, to, wanted) in cases {
        assert!(FINE.contains(from), "{from}");
        let output = check(folder.path(), &FINE.replacen(from, to, 1));
        let message = said(&output);
        assert_eq!(output.status.code(), Some(5), "{to}: {message}");
        for part in wanted {
            assert!(message.contains(part), "no `{part}` in the message for `{to}`:\n{message}");
        }
    }
}

#[test]
fn hostile_configurations_are_refused_quickly() {
    let folder = tempfile::tempdir().expect("a folder");
    let aliases: String = (0..30).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        text + &format!("a{}: &a{} [*a{n}, *a{n}, *a{n}, *a{n}]\n", n + 1, n + 1)
    });
    let deep = format!("host: {}", "[".repeat(100_000));
    let huge = format!("host: {{name: \"{}\"}}\n", "x".repeat(3_000_000));
    let binary = "\u{0}\u{1}\u{2}".to_owned();
    for (name, text) in [("aliases", aliases), ("deep", deep), ("huge", huge), ("binary", binary), ("empty", String::new())]
    {
        let output = check(folder.path(), &text);
        assert_eq!(output.status.code(), Some(5), "{name}: {}", said(&output).chars().take(500).collect::<String>());
    }
}

#[test]
fn exit_codes_mean_what_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let run_dir = folder.path().join("run").display().to_string();
    let missing = folder.path().join("missing.yaml").display().to_string();
    let code = |arguments: &[&str]| attempt(&[&[UNDERPASS], arguments].concat()).status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["status", "--no-such-flag"]), Some(2));
    assert_eq!(code(&["--run-dir", &run_dir, "status"]), Some(4));
    assert_eq!(code(&["--run-dir", &run_dir, "peers", "--json"]), Some(4));
    assert_eq!(code(&["config", "check", &missing]), Some(5));
}

#[test]
fn an_unknown_peer_is_not_found() {
    let lab = Lab::direct();
    let agent = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]));
    assert_eq!(agent.control(&["peers", "nobody"]).status.code(), Some(8));
    assert_eq!(agent.control(&["peers", "nobody", "--rekey", "ike"]).status.code(), Some(8));
    let output = agent.control(&["peers", "--json"]);
    let peers: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(peers["schema"], "underpass.peers/1");
    assert_eq!(peers["peers"][0]["name"], "beta");
    // Nobody answers there: for people it says so, and with which exit code.
    let output = agent.control(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("beta"));
}

/// The exit code and the words of an agent that cannot start.
fn refused(lab: &Lab, config: &AgentConfig, wrap: &[&str]) -> (Option<i32>, String) {
    let agent = Agent::new(&lab.alpha);
    agent.configure(config);
    let output = agent.run_in_front(wrap);
    (output.status.code(), said(&output))
}

#[test]
fn an_agent_that_cannot_work_does_not_start() {
    let lab = Lab::direct();
    let fine = AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]);

    let mut overlapping = fine.clone();
    overlapping.peers[0].blocks = "10.42.1.64/26".to_owned();
    let (code, message) = refused(&lab, &overlapping, &[]);
    assert_eq!(code, Some(5), "{message}");

    let mut itself = fine.clone();
    itself.peers[0].address = Some(lab.alpha.address.to_owned());
    let (code, message) = refused(&lab, &itself, &[]);
    assert_eq!(code, Some(5), "{message}");

    let (code, message) = refused(&lab, &fine, &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("CAP_NET_ADMIN"), "{message}");

    let without_tun = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let (code, message) = refused(&lab, &fine, &["sh", "-c", without_tun, "sh"]);
    assert!(matches!(code, Some(5 | 6)), "{code:?} {message}");
    assert!(message.contains("/dev/net/tun"), "{message}");

    let first = Agent::running(&lab.alpha, &fine);
    let (code, message) = refused(&lab, &fine, &[]);
    assert_eq!(code, Some(5), "{message}");
    assert!(message.contains("500"), "the port is named: {message}");
    assert!(first.is_answering(), "the first one did not notice");
    assert!(!lab.alpha.run(&["ip", "link"]).contains("underpass1"));
}

#[test]
fn a_bad_reload_changes_nothing() {
    let lab = Lab::direct();
    let fine = AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]);
    let mut agent = Agent::running(&lab.alpha, &fine);
    let mut bad = fine.clone();
    bad.more = "nonsense: true\n".to_owned();
    agent.configure(&bad);
    agent.signal("HUP");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(agent.peer("beta").0["name"], "beta");
    assert!(agent.daemon().log().contains("nonsense"), "{}", agent.daemon().log());
    let mut renamed = fine.clone();
    renamed.peers[0].name = "gamma".to_owned();
    agent.configure(&renamed);
    agent.signal("HUP");
    let gone = || (agent.status()["peers"][0]["name"] == "gamma").then_some(());
    crate::lab::wait_for("the renamed peer", std::time::Duration::from_secs(5), gone);
}
