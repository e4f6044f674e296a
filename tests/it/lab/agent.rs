//! Our own agent on a host: its configuration, its life and death, and what `underpass status --json` says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tempfile::TempDir;

use super::command::{said, tail, text};
use super::{Daemon, Host, Lab, PSK, attempt, wait_for};

/// The binary under test.
pub const UNDERPASS: &str = env!("CARGO_BIN_EXE_underpass");

/// What agents and plugins run: another build of it, if the environment names one.
pub static PROGRAM: LazyLock<String> =
    LazyLock::new(|| std::env::var("UNDERPASS_PROGRAM").unwrap_or_else(|_| UNDERPASS.to_owned()));

/// An Ed25519 public key as X.509 writes it: this, then the 32 octets (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A first contact: the agents' start, one handshake, and patience for a busy machine.
pub const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// A configuration for each of the two hosts: they call each other and share a secret.
pub fn mirrored(lab: &Lab) -> [AgentConfig; 2] {
    [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)].map(|(host, peer)| AgentConfig::new(host, &[PeerConfig::at(peer)]))
}

/// The same, but beta waits for alpha's call.
pub fn alpha_calls(lab: &Lab) -> [AgentConfig; 2] {
    let [alpha, _] = mirrored(lab);
    [alpha, AgentConfig::new(&lab.beta, &[PeerConfig::calling(&lab.alpha)])]
}

/// An agent on each of the two hosts, which call each other: with what `change` makes of each configuration, and both up.
pub fn paired(lab: &Lab, change: impl Fn(AgentConfig) -> AgentConfig) -> (Agent, Agent) {
    let [alpha, beta] = mirrored(lab).map(change);
    started(lab, &alpha, &beta)
}

/// An agent on each of the two hosts, both up.
pub fn started(lab: &Lab, alpha: &AgentConfig, beta: &AgentConfig) -> (Agent, Agent) {
    let (alpha, beta) = (Agent::running(&lab.alpha, alpha), Agent::running(&lab.beta, beta));
    both_up(&alpha, &beta);
    (alpha, beta)
}

/// Waits until each calls the other `up`.
pub fn both_up(alpha: &Agent, beta: &Agent) {
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    beta.wait_for_state("alpha", "up", FIRST_CONTACT);
}

/// How a peer is known.
#[derive(Clone)]
pub enum Proof {
    /// [`PSK`], from a file that only root reads.
    Psk,
    /// Another secret than [`PSK`].
    WrongPsk,
    /// Its Ed25519 key, base64.
    PublicKey(String),
    /// Any of these.
    PublicKeys(Vec<String>),
    /// A certificate by the authority in this file.
    #[cfg(feature = "x509")]
    Certificate(PathBuf),
}

/// One entry of `peers`.
#[derive(Clone)]
pub struct PeerConfig {
    pub name: String,
    /// `None`: wait for the peer to call.
    pub address: Option<String>,
    pub proof: Proof,
    pub suites: Option<String>,
    pub blocks: String,
    /// Further lines of the entry, indented by four.
    pub more: String,
}

impl PeerConfig {
    /// A peer at its host's address, known by the shared secret.
    pub fn at(host: &Host) -> Self {
        Self {
            name: host.name.to_owned(),
            address: Some(host.address.to_owned()),
            proof: Proof::Psk,
            suites: None,
            blocks: host.block.to_owned(),
            more: String::new(),
        }
    }

    /// A peer that calls us.
    pub fn calling(host: &Host) -> Self {
        Self { address: None, ..Self::at(host) }
    }

    pub fn suites(mut self, suites: &str) -> Self {
        self.suites = Some(suites.to_owned());
        self
    }

    pub fn proof(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }
}

/// The agent's configuration; what is not said here keeps its default.
#[derive(Clone)]
pub struct AgentConfig {
    pub name: String,
    pub advertise: String,
    pub ports: (u16, u16),
    pub queues: u16,
    pub backend: &'static str,
    /// `auto`, or so many octets.
    pub mtu: String,
    pub overlay: String,
    /// Blocks of this host, comma separated.
    pub blocks: String,
    /// Further lines of `host`, indented by two.
    pub host: String,
    /// Further lines, such as a whole `ipsec` section.
    pub more: String,
    pub peers: Vec<PeerConfig>,
}

impl AgentConfig {
    /// For this host, with one worker and these peers.
    pub fn new(host: &Host, peers: &[PeerConfig]) -> Self {
        Self {
            name: host.name.to_owned(),
            advertise: host.address.to_owned(),
            ports: (500, 4500),
            queues: 1,
            backend: "offload",
            mtu: "auto".to_owned(),
            overlay: format!("{}/32", host.inner),
            blocks: host.block.to_owned(),
            host: String::new(),
            more: String::new(),
            peers: peers.to_vec(),
        }
    }

    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    fn yaml(&self, folder: &std::path::Path) -> String {
        let (ike_port, natt_port) = self.ports;
        let mut yaml = format!(
            "host:
  name: {}
  advertise: [\"{}\"]
  listen: {{address: 0.0.0.0, ike_port: {ike_port}, natt_port: {natt_port}}}
{}tun: {{name: underpass0, mtu: {}, queues: {}, backend: {}}}
overlay: {{address: {}, blocks: [{}]}}
{}peers:{}
",
            self.name,
            self.advertise,
            self.host,
            self.mtu,
            self.queues,
            self.backend,
            self.overlay,
            self.blocks,
            self.more,
            if self.peers.is_empty() { " []" } else { "" },
        );
        for peer in &self.peers {
            yaml += &format!("  - name: {}\n", peer.name);
            if let Some(address) = &peer.address {
                yaml += &format!("    address: {address}\n");
            }
            match &peer.proof {
                Proof::Psk => yaml += &format!("    psk_file: {}\n", secret(folder, "psk", PSK)),
                Proof::WrongPsk => yaml += &format!("    psk_file: {}\n", secret(folder, "wrong", &PSK.replace('0', "x"))),
                Proof::PublicKey(key) => yaml += &format!("    public_key: \"{key}\"\n"),
                #[cfg(feature = "x509")]
                Proof::Certificate(authority) => yaml += &format!("    ca_file: {}\n", authority.display()),
                Proof::PublicKeys(keys) => yaml += &format!("    public_key: [{}]\n", keys.join(", ")),
            }
            if let Some(suites) = &peer.suites {
                yaml += &format!("    suites: [{suites}]\n");
            }
            yaml += &format!("    remote_blocks: [{}]\n{}", peer.blocks, peer.more);
        }
        yaml
    }
}

fn secret(folder: &std::path::Path, name: &str, secret: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, secret).expect("a secret's file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    path.display().to_string()
}

/// The place of an agent on a host, with its folders and its identity. The agent runs from [`start`](Self::start) on.
pub struct Agent {
    host: Host,
    /// Before the folder: it tells its log.
    daemon: Option<Daemon>,
    folder: TempDir,
}

impl Agent {
    /// Folders only: nothing runs yet.
    pub fn new(host: &Host) -> Self {
        let folder = tempfile::Builder::new().prefix("underpass-").tempdir().expect("a folder");
        for name in ["run", "state"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o700)).expect("a mode");
        }
        Self { host: host.clone(), folder, daemon: None }
    }

    /// Folders, configuration and a running agent.
    pub fn running(host: &Host, config: &AgentConfig) -> Self {
        let mut agent = Self::new(host);
        agent.configure(config);
        agent.start();
        agent
    }

    /// Runs it in the foreground behind the words of `wrap`, for a start that is expected to fail; at most a minute.
    pub fn run_in_front(&self, wrap: &[&str]) -> Output {
        let config = self.config().display().to_string();
        let environment: Vec<String> = self.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
        attempt(&self.host.on(&[&["env"], &environment[..], wrap, &[&PROGRAM, "agent", "--config", &config]].concat()))
    }

    /// Whether it answers `status`.
    pub fn is_answering(&self) -> bool {
        matches!(self.control(&["status", "--json"]).status.code(), Some(0 | 3))
    }

    /// The running agent's process.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the agent was started").pid()
    }

    /// Writes the configuration; a running agent reads it on SIGHUP.
    pub fn configure(&self, config: &AgentConfig) {
        fs::write(self.config(), config.yaml(self.folder.path())).expect("a configuration");
    }

    /// Writes a configuration of other words than [`AgentConfig`] has.
    pub fn configure_as(&self, yaml: &str) {
        fs::write(self.config(), yaml).expect("a configuration");
    }

    /// Starts it and waits until it answers `status`.
    pub fn start(&mut self) {
        self.spawn();
        let mut daemon = self.daemon.take().expect("a daemon");
        wait_for("the agent to answer", Duration::from_secs(10), || {
            assert!(daemon.is_running(), "the agent ended:\n{}", daemon.log());
            self.is_answering().then_some(())
        });
        self.daemon = Some(daemon);
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self) {
        let config = self.config().display().to_string();
        let environment = self.environment();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let log = self.folder.path().join("agent.log");
        let argv = self.host.on(&[&PROGRAM, "agent", "--config", &config]);
        self.daemon = Some(Daemon::start(&format!("the agent on {}", self.host.name), &argv, &environment, &log));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.daemon().kill();
    }

    /// Asks it to stop; its exit code.
    pub fn stop(&mut self, signal: &str) -> Option<i32> {
        self.daemon().stop(signal, Duration::from_secs(10))
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: &str) {
        super::run(&["kill", &format!("-{signal}"), &self.daemon().pid().to_string()]);
    }

    /// The running agent.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the agent was started")
    }

    /// Runs `underpass` with these arguments against this agent.
    pub fn control(&self, arguments: &[&str]) -> Output {
        let environment: Vec<String> = self.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let environment = environment.iter().map(String::as_str);
        let argv: Vec<&str> =
            ["env"].into_iter().chain(environment).chain([&**PROGRAM]).chain(arguments.iter().copied()).collect();
        attempt(&self.host.on(&argv))
    }

    /// `status --json`, whatever the peers' states are (0 and 3 are both answers).
    pub fn status(&self) -> Value {
        let output = self.control(&["status", "--json"]);
        assert!(matches!(output.status.code(), Some(0 | 3)), "status: {}\n{}", output.status, said(&output));
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["schema"], "underpass.status/1");
        status
    }

    /// How many packets it dropped, by reason. Dummies announce an SA, keepalives keep a NAT's mapping: they carry nothing, and
    /// go no further.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let status = self.status();
        let drops = status["drops"].as_object().expect("counters").iter();
        let counted = drops.map(|(reason, count)| (reason.clone(), count.as_u64().expect("a number")));
        counted.filter(|(reason, _)| !["dummy", "keepalive"].contains(&&**reason)).collect()
    }

    /// What `status --json` says of one peer.
    pub fn peer(&self, name: &str) -> Peer {
        let status = self.status();
        let peers = status["peers"].as_array().expect("a list of peers");
        Peer(peers.iter().find(|peer| peer["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}")).clone())
    }

    /// Waits until a peer is in one of these states (words, separated by blanks); how long that took.
    pub fn wait_for_state(&self, peer: &str, states: &str, limit: Duration) -> Duration {
        let mut last = Value::Null;
        let (_, took) = wait_for(&format!("{peer} to be {states} on {}", self.host.name), limit, || {
            let now = self.peer(peer);
            if now.0["state"] != last["state"] {
                eprintln!("{}: {peer} is {} ({})", self.host.name, now.0["state"], now.0["last_error"]);
            }
            let reached = states.split(' ').any(|state| now.state() == state);
            last = now.0;
            reached.then_some(())
        });
        took
    }

    /// `peers NAME --rekey child|ike`.
    pub fn rekey(&self, peer: &str, what: &str) {
        let output = self.control(&["peers", peer, "--rekey", what]);
        assert!(output.status.success(), "--rekey {what}: {}\n{}", output.status, said(&output));
    }

    /// Makes this host's identity and returns its public key, base64 of the 32 octets.
    pub fn generate_key(&self) -> String {
        let output = self.control(&["key", "generate"]);
        assert!(output.status.success(), "key generate: {}", said(&output));
        self.public_key()
    }

    /// One step of `key rotate`; the public key that it prints.
    pub fn rotate_key(&self, step: &[&str]) -> String {
        let output = self.control(&[&["key", "rotate"], step].concat());
        assert!(output.status.success(), "key rotate {step:?}: {}", said(&output));
        text(&output.stdout).trim().to_owned()
    }

    /// Its own key file.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("state/host.key")
    }

    /// `key show`.
    pub fn public_key(&self) -> String {
        let output = self.control(&["key", "show"]);
        assert!(output.status.success(), "key show: {}", said(&output));
        let shown = text(&output.stdout);
        let is_key = |word: &&str| BASE64.decode(word).is_ok_and(|octets| octets.len() == 32);
        shown.split_whitespace().find(is_key).unwrap_or_else(|| panic!("no key in: {shown}")).to_owned()
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("underpass.yaml")
    }

    /// What its kernel refuses from now on, in the words of `src/sys/faults.rs`; nothing: all is well. Before the first start: a
    /// later one finds no file to read.
    pub fn set_faults(&self, words: &str) {
        fs::write(self.folder.path().join("faults"), words).expect("a file");
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).expect("a log")
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut environment = vec![("UNDERPASS_RUN_DIR", path("run")), ("UNDERPASS_STATE_DIR", path("state"))];
        if self.folder.path().join("faults").exists() {
            environment.push(("UNDERPASS_FAULTS", path("faults")));
        }
        environment
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.control(&["status", "--json"]);
            eprintln!("--- status on {}:\n{}", self.host.name, tail(&said(&output), 120));
        }
    }
}

/// One peer of `status --json`.
#[derive(Clone, Debug)]
pub struct Peer(pub Value);

impl Peer {
    pub fn state(&self) -> &str {
        self.0["state"].as_str().expect("a state")
    }

    /// The IKE SA's SPIs, ours first; `None` without an IKE SA.
    pub fn ike_spis(&self) -> Option<(String, String)> {
        let spi = |name: &str| self.0["ike"][name].as_str().map(str::to_owned);
        Some((spi("local_spi")?, spi("remote_spi")?))
    }

    /// The SPIs of each CHILD_SA, inbound first.
    pub fn child_spis(&self) -> Vec<(String, String)> {
        self.spis_of(|_| true)
    }

    /// The same, without those that are for single workers.
    pub fn shared_spis(&self) -> Vec<(String, String)> {
        self.spis_of(|child| !child["per_worker"].as_bool().expect("whether it is for one worker"))
    }

    fn spis_of(&self, wanted: impl Fn(&Value) -> bool) -> Vec<(String, String)> {
        let spi = |child: &Value, name: &str| child[name].as_str().expect("an SPI").to_owned();
        let children = self.0["children"].as_array().expect("a list of children").iter().filter(|child| wanted(child));
        children.map(|child| (spi(child, "inbound_spi"), spi(child, "outbound_spi"))).collect()
    }
}

/// base64 of the 32 octets -> a PEM file's text, as strongSwan reads it.
pub fn public_key_pem(key: &str) -> String {
    let octets = BASE64.decode(key).expect("base64");
    let spki = BASE64.encode([&SPKI_PREFIX[..], &octets].concat());
    format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n")
}

/// A PEM file's text -> base64 of the 32 octets, as our configuration reads it.
pub fn public_key_base64(pem: &str) -> String {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let spki = BASE64.decode(body).expect("base64");
    BASE64.encode(spki.strip_prefix(&SPKI_PREFIX[..]).expect("an Ed25519 key"))
}

#[test]
fn public_keys_change_their_clothes() {
    let key = BASE64.encode([7; 32]);
    assert_eq!(public_key_base64(&public_key_pem(&key)), key);
}
