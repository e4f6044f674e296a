//! Commands and daemons: bounded in time, loud when they fail, and gone with the test that started them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::Duration;

/// Every tool that the laboratory calls.
const TOOLS: &[&str] = &[
    "ip",
    "nft",
    "ping",
    "iperf3",
    "tcpdump",
    "swanctl",
    "pki",
    "setpriv",
    "timeout",
    "sysctl",
    "conntrack",
    "ethtool",
    "certutil",
    "podman",
    "containerd",
    "etcd",
    "etcdctl",
];

/// The IKE daemon of the Debian package `charon-systemd`.
pub const CHARON: &str = "/usr/sbin/charon-systemd";

/// No single command takes longer than this, in seconds; long pings and transfers say their own limit.
const COMMAND_SECONDS_MAX: u32 = 60;

/// Fails the test, with the remedy, unless it runs as root and finds every tool.
pub fn require_root_and_tools() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let id = Command::new("id").arg("-u").output().expect("the command id");
        assert_eq!(id.stdout, b"0\n", "the integration tests need root: they make network namespaces");
        let path = std::env::var_os("PATH").expect("a PATH");
        let found = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).exists());
        let missing: Vec<_> = TOOLS.iter().filter(|tool| !found(tool)).collect();
        assert!(missing.is_empty(), "missing tools {missing:?}: tests/run installs them");
        assert!(Path::new(CHARON).exists(), "{CHARON} is missing: tests/run installs it");
        assert!(Path::new("/dev/net/tun").exists(), "/dev/net/tun is missing: load the module tun");
    });
}

/// Runs a command and returns whatever came of it.
pub fn attempt(argv: &[&str]) -> Output {
    attempt_for(COMMAND_SECONDS_MAX, argv)
}

/// [`attempt`] with another limit in seconds; `timeout` then kills it and exits with 124.
pub fn attempt_for(seconds: u32, argv: &[&str]) -> Output {
    let limit = seconds.to_string();
    let mut command = Command::new("timeout");
    command.args(["-k", "2", &limit]).args(argv).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot start {argv:?}: {error}"))
}

/// Runs a command and returns its standard output.
///
/// # Panics
///
/// When it fails, with everything that it said.
pub fn run(argv: &[&str]) -> String {
    let output = attempt(argv);
    assert!(output.status.success(), "{argv:?} failed with {}\n{}", output.status, said(&output));
    text(&output.stdout)
}

/// Both outputs, for messages.
pub fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

pub fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// A process that runs beside the test. It is killed when this is dropped, and by the kernel when the test's thread ends.
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it with both outputs in the file `log`, which is appended to, so that a restart keeps the story.
    pub fn start(name: &str, argv: &[&str], environment: &[(&str, &str)], log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(argv).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.to_owned(), log: log.to_owned(), child }
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|octets| text(&octets)).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop and waits for its exit code, `None` if a signal ended it.
    pub fn stop(&mut self, signal: &str, limit: Duration) -> Option<i32> {
        run(&["kill", &format!("-{signal}"), &self.pid().to_string()]);
        let what = format!("{} to end after SIG{signal}", self.name);
        let (status, _) = super::wait_for(&what, limit, || self.child.try_wait().expect("a child of ours"));
        status.code()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, tail(&self.log(), 60));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
pub fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
