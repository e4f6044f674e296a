//! The two hosts: namespaces, the wire between them, and an agent on each.
//!
//! Everything lies in one temporary folder and hangs on the two namespaces' descriptors. Dropping [`Hosts`] stops the agents,
//! removes the folder, and with the last descriptor the kernel removes namespaces, wire and TUN devices. An agent also dies
//! with us if we are killed: [`Namespace::spawn`] sees to that.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Failure;
use crate::control::Client;
use crate::model::AeadAlgorithm;
use crate::observe::{PeerState, Status};
use crate::sys::netlink::{Netlink, NetlinkError, VethEnd};
use crate::sys::netns::Namespace;

/// The wire's interface on both hosts.
pub const WIRE: &str = "eth0";

/// The TUN device on both hosts.
pub const TUN: &str = "underpass0";

/// Names and addresses: the wire is TEST-NET-1 (RFC 5737), the overlay the managed network's default.
const PLAN: [(&str, Ipv4Addr, Ipv4Addr, &str); 2] = [
    ("alpha", Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 42, 1, 1), "10.42.1.0/24"),
    ("beta", Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(10, 42, 2, 1), "10.42.2.0/24"),
];

/// How long the agents may take until both say "up"; it takes less than a second unless packets are lost.
const UP_PATIENCE: Duration = Duration::from_secs(20);

/// How long an agent may take to delete its SAs and stop, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// How often we look.
const TICK: Duration = Duration::from_millis(50);

/// How much of an agent's log is shown when it failed.
const LOG_LINES: usize = 20;

/// The environment that would reach into an agent: addresses, directories, the service manager's socket.
const CLEARED_ENVIRONMENT: [&str; 5] =
    ["CATTLE_AGENT_IP", "UNDERPASS_RUN_DIR", "UNDERPASS_STATE_DIR", "NOTIFY_SOCKET", "WATCHDOG_USEC"];

/// What is said in both agents' configurations beyond what is needed.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentOptions {
    /// Workers; as many as cores unless said otherwise.
    pub queues: Option<u16>,
    /// The TUN's MTU, in octets.
    pub mtu: Option<u16>,
    /// `tun.backend: plain`.
    pub is_plain: bool,
    /// The one suite to be used.
    pub suite: Option<AeadAlgorithm>,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its name, which is also its IKE identity.
    pub name: &'static str,
    /// Its address on the wire.
    pub outer: Ipv4Addr,
    /// Its address in the overlay.
    pub overlay: Ipv4Addr,
    /// The block of the overlay that it owns.
    pub block: &'static str,
    /// Where it lives.
    pub namespace: Namespace,
    folder: PathBuf,
    agent: Option<Child>,
}

/// Both hosts; dropping them removes every trace.
#[derive(Debug)]
pub struct Hosts {
    pair: [Host; 2],
    // After the hosts, whose agents use it to the last.
    folder: Folder,
    program: PathBuf,
}

impl Hosts {
    /// Makes the namespaces and the wire. Nothing runs on them yet. `program` is the binary whose agents will;
    /// `purpose` stands in the name of the temporary folder.
    pub fn build(program: &Path, purpose: &str) -> Result<Self, Failure> {
        let folder = Folder::create(purpose).map_err(|error| Failure::failed("make a temporary folder", error))?;
        let host = |(name, outer, overlay, block)| -> Result<Host, Failure> {
            let folder = folder.0.join(name);
            private_folder(&folder).map_err(|error| Failure::failed("make a temporary folder", error))?;
            let namespace = Namespace::create()?;
            Ok(Host { name, outer, overlay, block, namespace, folder, agent: None })
        };
        let pair = [host(PLAN[0])?, host(PLAN[1])?];
        let hosts = Self { pair, folder, program: program.to_owned() };
        hosts.join_by_wire()?;
        Ok(hosts)
    }

    /// The hosts, in order.
    pub fn pair(&self) -> (&Host, &Host) {
        (&self.pair[0], &self.pair[1])
    }

    /// Joins the namespaces by a veth pair and gives both ends their addresses.
    fn join_by_wire(&self) -> Result<(), Failure> {
        let (alpha, beta) = self.pair();
        let near = VethEnd { name: WIRE, namespace: None };
        let far = VethEnd { namespace: Some(beta.namespace.as_fd()), ..near };
        alpha.netlink(|netlink| netlink.create_veth(near, far))?;
        for host in &self.pair {
            host.netlink(|netlink| {
                netlink.set_up("lo")?;
                netlink.add_address(WIRE, ipnet::Ipv4Net::new_assert(host.outer, 24).into())?;
                netlink.set_up(WIRE)
            })?;
        }
        Ok(())
    }

    /// Makes each host's key, writes its configuration and starts its agent.
    pub fn start_agents(&mut self, options: AgentOptions) -> Result<(), Failure> {
        let keys = [self.make_key(&self.pair[0])?, self.make_key(&self.pair[1])?];
        for own in 0..2 {
            let (host, peer, key) = (&self.pair[own], &self.pair[1 - own], &keys[1 - own]);
            let text = configuration(host, peer, key, options);
            let path = host.folder.join("underpass.yaml");
            write_private(&path, &text).map_err(|error| Failure::failed("write a configuration", error))?;
            let mut command = self.command(["agent", "--config"]);
            command.arg(path).arg("--run-dir").arg(host.run_dir()).arg("--state-dir").arg(host.state_dir());
            self.pair[own].agent = Some(self.start(host, command)?);
        }
        Ok(())
    }

    /// Starts our program on each host with these arguments, which depend on the host and its peer, in the agent's place.
    pub fn start_instead(&mut self, arguments: impl Fn(&Host, &Host) -> Vec<String>) -> Result<(), Failure> {
        for own in 0..2 {
            let mut command = self.command([]);
            command.args(arguments(&self.pair[own], &self.pair[1 - own]));
            self.pair[own].agent = Some(self.start(&self.pair[own], command)?);
        }
        Ok(())
    }

    fn start(&self, host: &Host, mut command: Command) -> Result<Child, Failure> {
        let log = File::create(host.log()).map_err(|error| Failure::failed("make a log file", error))?;
        let log_too = log.try_clone().map_err(|error| Failure::failed("make a log file", error))?;
        // Its own process group: an interrupt from the terminal is for us, and we stop the agents in order.
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).process_group(0);
        Ok(host.namespace.spawn(command)?)
    }

    /// Lets the program make a host key and returns its public half.
    fn make_key(&self, host: &Host) -> Result<String, Failure> {
        let action = || format!("make a key for {}", host.name);
        let mut command = self.command(["key", "generate", "--json"]);
        command.arg("--state-dir").arg(host.state_dir()).stdin(Stdio::null());
        let output = command.output().map_err(|error| Failure::failed(action(), error))?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match answer.get("public_key").and_then(serde_json::Value::as_str) {
            Some(key) if output.status.success() => Ok(key.to_owned()),
            _ => Err(Failure::failed(action(), String::from_utf8_lossy(&output.stderr).trim())),
        }
    }

    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        for variable in CLEARED_ENVIRONMENT {
            command.env_remove(variable);
        }
        command
    }

    /// Waits until each agent says that the other is up, and calls `changed` for every state on the way.
    pub fn await_up(
        &mut self,
        mut check: impl FnMut() -> Result<(), Failure>,
        mut changed: impl FnMut(&str, &str, PeerState),
    ) -> Result<(), Failure> {
        let (deadline, mut states) = (Instant::now() + UP_PATIENCE, [None; 2]);
        while states != [Some(PeerState::Up); 2] {
            check()?;
            for (host, known) in self.pair.iter_mut().zip(&mut states) {
                host.check_alive()?;
                let Ok(status) = host.client().status() else { continue };
                for peer in &status.peers {
                    if known.replace(peer.state) != Some(peer.state) {
                        changed(host.name, &peer.name, peer.state);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::Timeout(format!(
                    "the tunnel did not come up within {} s\n{}\n{}",
                    UP_PATIENCE.as_secs(),
                    self.pair[0].log_tail(),
                    self.pair[1].log_tail()
                )));
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    /// What each agent says of itself.
    pub fn statuses(&mut self) -> Result<[Status; 2], Failure> {
        let status = |host: &mut Host| {
            host.check_alive()?;
            let action = || format!("ask {} for its status", host.name);
            host.client().status().map_err(|error| Failure::failed(action(), error))
        };
        let [alpha, beta] = &mut self.pair;
        Ok([status(alpha)?, status(beta)?])
    }

    /// Whether both agents still run.
    pub fn check_agents(&mut self) -> Result<(), Failure> {
        self.pair.iter_mut().try_for_each(Host::check_alive)
    }

    /// Stops both agents as a service manager would and waits for them. An agent that does not stop, or that says it failed,
    /// is a failure; by then it is gone all the same.
    pub fn stop_agents(&mut self) -> Result<(), Failure> {
        // Both at once: neither waits for the other's farewell.
        for host in &self.pair {
            host.ask_to_stop();
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        let outcomes = self.pair.each_mut().map(|host| host.await_stop(deadline));
        outcomes.into_iter().collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // A failure has been reported already, or we are on the way out because of another one.
        let _ = self.stop_agents();
        let _ = fs::remove_dir_all(&self.folder.0);
    }
}

impl Host {
    /// Its agent's process, if there is one.
    pub fn process(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Does something with the links, addresses and routes of the host.
    pub fn netlink<T: Send>(&self, work: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send) -> Result<T, Failure> {
        Ok(self.namespace.run(|| Netlink::open().and_then(|mut netlink| work(&mut netlink)))??)
    }

    fn client(&self) -> Client {
        Client::new(&self.run_dir())
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The end of the agent's log, indented, under a heading.
    fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("    {line}\n"));
        format!("  the end of {}'s log:\n{}", self.name, tail.collect::<String>())
    }

    fn check_alive(&mut self) -> Result<(), Failure> {
        match self.agent.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(self.ended(status)),
            _ => Ok(()),
        }
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        let what = format!("the agent of {} ended: {status}\n{}", self.name, self.log_tail());
        // The agent's own exit code says it best: 6 no permission, for one.
        match status.code() {
            Some(6) => Failure::NotPermitted(what),
            _ => Failure::Failed(what),
        }
    }

    fn ask_to_stop(&self) {
        if let Some(agent) = &self.agent {
            // Not reaped yet, so the number is still that child's; if it has ended, the signal has no effect.
            if let Some(pid) = i32::try_from(agent.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }

    fn await_stop(&mut self, deadline: Instant) -> Result<(), Failure> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        loop {
            match agent.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.ended(status)),
                Ok(None) if Instant::now() < deadline => thread::sleep(TICK),
                Ok(None) | Err(_) => {
                    let _ = agent.kill();
                    let _ = agent.wait();
                    let seconds = STOP_PATIENCE.as_secs();
                    return Err(Failure::Timeout(format!("the agent of {} did not stop within {seconds} s", self.name)));
                }
            }
        }
    }
}

/// A host's configuration: exactly what a person would write.
fn configuration(host: &Host, peer: &Host, peer_key: &str, options: AgentOptions) -> String {
    let queues = options.queues.map_or_else(|| "auto".to_owned(), |queues| queues.to_string());
    let mtu = options.mtu.map_or_else(String::new, |mtu| format!(", mtu: {mtu}"));
    let backend = if options.is_plain { ", backend: plain" } else { "" };
    let ipsec = options.suite.map_or_else(String::new, |suite| format!("ipsec: {{suites: [{}]}}\n", suite.name()));
    format!(
        "host: {{name: {name}, advertise: [\"{outer}\"]}}\n\
         tun: {{name: {TUN}, queues: {queues}{mtu}{backend}}}\n\
         overlay: {{address: {overlay}/32, blocks: [{block}]}}\n\
         {ipsec}\
         peers:\n\
         \x20 - name: {peer}\n\
         \x20   address: {peer_outer}\n\
         \x20   public_key: \"{peer_key}\"\n\
         \x20   remote_blocks: [{peer_block}]\n",
        name = host.name,
        outer = host.outer,
        overlay = host.overlay,
        block = host.block,
        peer = peer.name,
        peer_outer = peer.outer,
        peer_block = peer.block,
    )
}

/// A folder that nobody else may look into.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    /// Makes one with a name that nobody could have guessed, and taken, before.
    fn create(purpose: &str) -> io::Result<Self> {
        // A Unix socket's path has 107 octets; a long TMPDIR would not leave enough for the control sockets.
        const LONGEST_BASE: usize = 60;
        let base = Some(std::env::temp_dir()).filter(|base| base.as_os_str().len() <= LONGEST_BASE);
        let path = base.unwrap_or_else(|| PathBuf::from("/tmp")).join(format!("underpass-{purpose}-{:016x}", random()?));
        private_folder(&path)?;
        Ok(Self(path))
    }
}

fn random() -> io::Result<u64> {
    let mut octets = [0; 8];
    getrandom::fill(&mut octets).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(octets))
}

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;

    /// The bare hosts: two namespaces and the wire, without agents.
    pub(in crate::cli) fn two_hosts() -> [Namespace; 2] {
        let hosts = Hosts::build(Path::new("/nonexistent"), "test").expect("needs root");
        let copy = |host: &Host| host.namespace.run(|| Namespace::current().unwrap()).unwrap();
        [copy(&hosts.pair[0]), copy(&hosts.pair[1])]
    }

    /// A program in the agent's place, as a shell script: `$1` is the command, and so on.
    fn stand_in(script: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        (folder, path)
    }

    const KEY: &str = r#"[ "$1" = key ] && { echo '{"public_key": "AAAA"}'; exit 0; }"#;

    #[test]
    fn the_configuration_is_one_that_a_person_would_write_and_an_agent_takes() {
        let hosts = Hosts::build(Path::new("/nonexistent"), "test").expect("needs root");
        let (alpha, beta) = hosts.pair();
        let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
        let text = configuration(alpha, beta, key, AgentOptions::default());
        let (config, report) = crate::config::parse(Path::new("underpass.yaml"), text.as_bytes(), &Default::default());
        assert!(config.is_some() && !report.has_errors(), "{report:?}");
        assert_eq!(
            configuration(alpha, beta, "KEY=", AgentOptions { queues: Some(2), ..AgentOptions::default() }),
            "host: {name: alpha, advertise: [\"192.0.2.1\"]}\n\
             tun: {name: underpass0, queues: 2}\n\
             overlay: {address: 10.42.1.1/32, blocks: [10.42.1.0/24]}\n\
             peers:\n  \
               - name: beta\n    \
                 address: 192.0.2.2\n    \
                 public_key: \"KEY=\"\n    \
                 remote_blocks: [10.42.2.0/24]\n"
        );
    }

    #[test]
    fn nothing_is_left_when_the_hosts_are_gone() {
        // An agent that stops when it is asked, as it should.
        let (_keep, program) = stand_in(&format!("{KEY}\nexec sleep 60"));
        let mut hosts = Hosts::build(&program, "test").expect("needs root");
        let folder = hosts.folder.0.clone();
        hosts.start_agents(AgentOptions::default()).unwrap();
        let pids = hosts.pair.each_ref().map(|host| host.agent.as_ref().unwrap().id());
        assert!(folder.join("alpha/underpass.yaml").exists());
        assert!(pids.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists()));
        drop(hosts);
        assert!(!folder.exists());
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    }

    #[test]
    fn an_agent_that_does_not_stop_is_killed() {
        let (_keep, program) = stand_in(&format!("{KEY}\ntrap '' TERM\nwhile :; do sleep 0.1; done"));
        let mut hosts = Hosts::build(&program, "test").expect("needs root");
        hosts.start_agents(AgentOptions::default()).unwrap();
        // The shell needs a moment until it ignores the signal.
        thread::sleep(Duration::from_millis(300));
        assert!(matches!(hosts.stop_agents(), Err(Failure::Timeout(what)) if what.contains("did not stop")));
        assert!(hosts.pair.iter().all(|host| host.agent.is_none()));
    }

    #[test]
    fn an_agent_that_ends_early_shows_its_log() {
        let (_keep, program) = stand_in(&format!("{KEY}\necho 'no such luck' >&2; exit 6"));
        let mut hosts = Hosts::build(&program, "test").expect("needs root");
        hosts.start_agents(AgentOptions::default()).unwrap();
        let failure = hosts.await_up(|| Ok(()), |_, _, _| {}).unwrap_err();
        assert!(matches!(&failure, Failure::NotPermitted(what) if what.contains("no such luck")), "{failure}");
    }

    #[test]
    fn a_program_that_makes_no_key_is_a_failure() {
        let (_keep, program) = stand_in("echo broken >&2; exit 1");
        let mut hosts = Hosts::build(&program, "test").expect("needs root");
        let failure = hosts.start_agents(AgentOptions::default()).unwrap_err();
        assert_eq!(failure.to_string(), "make a key for alpha: broken");
    }
}
