//! The agent as a service manager meets it: what keeps it from starting, its signals, and what it leaves behind.
//!
//! These tests need root, as the agent does; each agent runs in a network namespace of its own.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use underpass::sys::netlink::{Netlink, RouteSpec, VethEnd};
use underpass::sys::netns::Namespace;
use underpass::sys::nft;

use super::{Seen, folder, parsed, program, run, underpass};

/// Two peers that are waited for: nothing is sent, so nothing else is needed.
pub(super) const CONFIG: &str = "\
host: {name: alpha}
tun: {queues: 2}
overlay: {blocks: [10.42.1.0/24]}
peers:
  - {name: beta, psk_file: psk, remote_blocks: [10.42.2.0/24]}
  - {name: gamma, psk_file: psk, remote_blocks: [10.42.3.0/24, 10.43.0.0/16]}
";

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The user who has no rights.
const NOBODY: u32 = 65_534;

/// A host with a configuration, and perhaps a running agent.
pub(super) struct Host {
    folder: TempDir,
    namespace: Namespace,
}

pub(super) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Host {
    pub(super) fn new(config: &str) -> Self {
        let host = Self { folder: folder(), namespace: Namespace::create().expect("these tests need root") };
        host.namespace.run(|| Netlink::open().unwrap().set_up("lo").unwrap()).unwrap();
        let psk = host.path("psk");
        fs::write(&psk, "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::set_permissions(&psk, fs::Permissions::from_mode(0o600)).unwrap();
        host.configure(config);
        host
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn configure(&self, config: &str) {
        fs::write(self.path("u.yaml"), config).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = underpass(self.folder.path());
        command.args(["agent", "--config", "u.yaml"]);
        command
    }

    /// Starts an agent and waits until it answers.
    pub(super) fn start(&self) -> Agent {
        self.start_as(self.command())
    }

    fn start_as(&self, mut command: Command) -> Agent {
        let log = self.path("log");
        let file = fs::File::create(&log).unwrap();
        command.stdout(Stdio::null()).stderr(file);
        let mut agent = Agent { child: self.namespace.spawn(command).unwrap(), log };
        wait_for("an agent that answers", || {
            assert_eq!(agent.child.try_wait().unwrap(), None, "{}", agent.log());
            (run(self.folder.path(), &["status"]).code != 4).then_some(())
        });
        agent
    }

    /// Runs an agent that is not to start.
    fn fail(&self) -> Seen {
        self.fail_as(self.command())
    }

    fn fail_as(&self, mut command: Command) -> Seen {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        super::seen(self.namespace.spawn(command).unwrap().wait_with_output().unwrap())
    }

    pub(super) fn status(&self) -> Value {
        let seen = run(self.folder.path(), &["status", "--json"]);
        assert!(seen.code == 0 || seen.code == 3, "{}", seen.err);
        parsed(&seen.out)
    }

    fn peers(&self) -> Vec<String> {
        let status = self.status();
        let peer = |peer: &Value| format!("{} {}", peer["name"].as_str().unwrap(), peer["state"].as_str().unwrap());
        status["peers"].as_array().unwrap().iter().map(peer).collect()
    }

    /// Whether a route to this prefix leads into the device, and whether the guard is up.
    fn has_route(&self, prefix: &str) -> bool {
        let prefix: IpNet = prefix.parse().unwrap();
        self.namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                let Ok(link) = netlink.link("underpass0") else { return false };
                netlink.routes_to(prefix).unwrap().iter().any(|route| route.link_index == Some(link.index))
            })
            .unwrap()
    }

    fn addresses(&self) -> Vec<String> {
        let addresses = self.namespace.run(|| Netlink::open().unwrap().addresses_of("underpass0").unwrap()).unwrap();
        addresses.iter().map(|address| address.address.to_string()).collect()
    }

    fn is_guarded(&self) -> bool {
        self.namespace.run(|| nft::counters("underpass").unwrap().is_some()).unwrap()
    }

    fn has_device(&self) -> bool {
        self.namespace.run(|| Netlink::open().unwrap().link("underpass0").is_ok()).unwrap()
    }
}

impl Agent {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; its exit code.
    pub(super) fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for("the agent's end", || self.child.try_wait().unwrap());
        (status.code(), self.log())
    }

    pub(super) fn expect_log(&self, part: &str) {
        wait_for(part, || self.log().contains(part).then_some(()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_configuration_that_cannot_work_or_is_missing_is_5() {
    let host = Host::new("host: {name: alpha}\noverlay: {blocks: [10.42.1.5/24]}\nipsek: {}\n");
    let seen = host.fail();
    assert_eq!(
        (seen.code, seen.err.as_str()),
        (
            5,
            "\
underpass: the configuration cannot be used
u.yaml:2: overlay.blocks[0]: expected a prefix without host bits, got \"10.42.1.5/24\"; did you mean \"10.42.1.0/24\"?
u.yaml:3: ipsek: unknown key; did you mean \"ipsec\"?
"
        )
    );
    fs::remove_file(host.path("u.yaml")).unwrap();
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    assert!(seen.err.starts_with("underpass: u.yaml: No such file"), "{}", seen.err);
}

#[test]
fn a_peer_with_an_address_of_this_hosts_interfaces_is_5() {
    let host = Host::new(&CONFIG.replace("name: beta", "name: beta, address: 127.0.0.1"));
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("u.yaml:5: peers[0].address: 127.0.0.1 is this host's own address"), "{}", seen.err);
    host.configure(&CONFIG.replace("name: beta", "name: beta, address: '127.0.0.1:4600'"));
    host.start();
}

/// ESP inside ESP, for ever: a peer, or this host, on the underlay by an address that leads into the tunnel.
#[test]
fn an_outer_address_that_leads_into_the_tunnel_is_5() {
    let host = Host::new(&CONFIG.replace("name: gamma", "name: gamma, address: 10.42.2.7"));
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    let message =
        "u.yaml:5: peers[0].remote_blocks[0]: 10.42.2.0/24 holds 10.42.2.7, gamma's address (line 6): what is sent";
    assert!(seen.err.contains(message), "{}", seen.err);
    // A gateway's own LAN, as site-to-site tunnels like to name it.
    host.configure(&CONFIG.replace("name: beta", "name: beta, address: 10.42.2.7"));
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("10.42.2.0/24 holds 10.42.2.7, beta's address (line 5)"), "{}", seen.err);
    assert!(!host.is_guarded() && !host.has_device(), "nothing was set up");
    // The prefixes around it.
    let around = "10.42.2.0/30, 10.42.2.4/31, 10.42.2.6/32, 10.42.2.8/29, 10.42.2.16/28, 10.42.2.32/27, 10.42.2.64/26";
    host.configure(&CONFIG.replace("name: beta", "name: beta, address: 10.42.2.7").replace("10.42.2.0/24", around));
    drop(host.start());

    host.namespace.run(|| Netlink::open().unwrap().add_address("lo", "10.43.0.9/32".parse().unwrap()).unwrap()).unwrap();
    host.configure(&CONFIG.replace("name: alpha", "name: alpha, advertise: ['iface:lo']"));
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    let message =
        "u.yaml:6: peers[1].remote_blocks: 10.43.0.0/16 holds 10.43.0.9, an address of lo, which host.advertise names";
    assert!(seen.err.contains(message), "{}", seen.err);
}

#[test]
fn a_peers_block_that_is_a_network_of_this_host_is_5() {
    let host = Host::new(&CONFIG.replace("[10.42.2.0/24]", "[10.42.2.0/24, 10.50.7.0/24]"));
    let connect = || {
        let mut netlink = Netlink::open().unwrap();
        let [near, far] = ["lan", "far"].map(|name| VethEnd { name, namespace: None });
        netlink.create_veth(near, far).unwrap();
        netlink.add_address("lan", "10.50.7.1/24".parse().unwrap()).unwrap();
    };
    host.namespace.run(connect).unwrap();
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    let message = "u.yaml:5: peers[0].remote_blocks: 10.50.7.0/24 is the network of lan here";
    assert!(seen.err.contains(message), "{}", seen.err);
}

#[test]
fn a_peer_that_pins_our_own_key_is_5() {
    let host = Host::new(CONFIG);
    let key = run(host.folder.path(), &["key", "generate"]).out;
    let config = CONFIG.replacen("psk_file: psk", &format!("public_key: {}", key.trim()), 1);
    host.configure(&config);
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    assert!(seen.err.contains("u.yaml:5: peers[0].public_key: this is this host's own public key"), "{}", seen.err);
}

#[test]
fn a_port_in_use_is_5() {
    let host = Host::new(CONFIG);
    for port in [500, 4500] {
        let _socket = host.namespace.run(|| UdpSocket::bind(("0.0.0.0", port)).unwrap()).unwrap();
        let seen = host.fail();
        assert_eq!(seen.code, 5, "{}", seen.err);
        assert!(seen.err.contains(&format!("UDP port {port} on 0.0.0.0 is in use")), "{}", seen.err);
        assert!(!host.is_guarded() && !host.has_device(), "what was set up before is taken back");
    }
}

#[test]
fn a_flag_that_would_do_nothing_is_2() {
    let seen = run(folder().path(), &["agent", "--json"]);
    assert_eq!((seen.code, seen.out.as_str()), (2, ""));
}

#[test]
fn without_rights_it_is_6() {
    let host = Host::new(CONFIG);
    // Its program must be where anybody can run it, and its files where anybody can read them.
    let copy = host.path("underpass");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(host.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    host.configure("host: {name: alpha}\noverlay: {blocks: [10.42.1.0/24]}\n");
    let mut command = Command::new(&copy);
    command.args(["agent", "--config", "u.yaml"]).current_dir(host.folder.path()).stdin(Stdio::null());
    command.env("UNDERPASS_RUN_DIR", host.path("run")).uid(NOBODY).gid(NOBODY);
    // In the namespace of the test itself, as nobody could not enter another: it is refused before it changes anything.
    let seen = super::seen(command.output().unwrap());
    assert_eq!(
        (seen.code, seen.err.as_str()),
        (6, "underpass: this needs root: no CAP_NET_ADMIN in this network namespace\n")
    );
}

/// Other users do not reach the socket; and where somebody opened the way, they are not heard.
#[test]
fn other_users_may_not_ask() {
    let host = Host::new(CONFIG);
    let _agent = host.start();
    let copy = host.path("underpass");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(host.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let ask = || {
        let mut command = Command::new(&copy);
        command.args(["status", "--run-dir", "run"]).current_dir(host.folder.path()).uid(NOBODY).gid(NOBODY);
        super::seen(command.output().unwrap())
    };
    let seen = ask();
    assert_eq!(seen.code, 6);
    assert!(seen.err.contains("no permission to talk to the agent at run/control.sock"), "{}", seen.err);
    fs::set_permissions(host.path("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(host.path("run/control.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let seen = ask();
    assert_eq!((seen.code, seen.err.as_str()), (6, "underpass: the control socket is for root and the agent's own user\n"));
    assert_eq!(host.status()["control"]["refused"], 1);
}

#[test]
fn without_a_tun_device_it_is_5() {
    let host = Host::new(CONFIG);
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" agent --config u.yaml";
    command.args(["--mount", "sh", "-c", script, program()]);
    command.current_dir(host.folder.path()).env("UNDERPASS_RUN_DIR", host.path("run"));
    let seen = host.fail_as(command);
    assert_eq!(seen.code, 5, "{}", seen.err);
    assert!(seen.err.contains("/dev/net/tun is missing: load the module"), "{}", seen.err);
}

/// A gateway stands for the LAN behind it, with an address of its own there: it must not cut itself off from that LAN.
#[test]
fn a_host_is_reached_on_the_lan_that_is_its_block() {
    let host = Host::new(&CONFIG.replace("[10.42.1.0/24]", "[10.42.1.0/24, 10.50.0.0/16]"));
    let lan = Namespace::create().unwrap();
    host.namespace
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let far = VethEnd { name: "lan", namespace: Some(lan.as_fd()) };
            netlink.create_veth(VethEnd { name: "lan", namespace: None }, far).unwrap();
            netlink.add_address("lan", "10.50.7.1/24".parse().unwrap()).unwrap();
            netlink.set_up("lan").unwrap();
        })
        .unwrap();
    lan.run(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.add_address("lan", "10.50.7.2/24".parse().unwrap()).unwrap();
        netlink.set_up("lan").unwrap();
        netlink.add_route(RouteSpec::new("10.42.1.1/32".parse().unwrap(), "lan")).unwrap();
    })
    .unwrap();
    let _agent = host.start();
    let reaches = |address: &str| {
        let receiver = host.namespace.run(|| UdpSocket::bind((address, 7)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        lan.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"clear", (address, 7)).unwrap()).unwrap();
        receiver.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(reaches("10.50.7.1"), "the gateway's own address on the LAN");
    assert!(!reaches("10.42.1.1"), "the overlay's addresses only through the tunnel");
}

#[test]
fn a_second_agent_with_the_same_run_directory_is_5() {
    let host = Host::new(CONFIG);
    let agent = host.start();
    let seen = host.fail();
    assert_eq!(seen.code, 5);
    let who = format!("run directory {} (process {})", host.path("run").display(), agent.child.id());
    assert!(seen.err.contains(&who), "{}", seen.err);
    assert_eq!(host.peers(), ["beta idle", "gamma idle"], "the first one is unharmed");
}

#[test]
fn an_agent_that_cannot_start_leaves_the_guard_of_the_running_one_alone() {
    let host = Host::new(CONFIG);
    let _agent = host.start();
    let mut other = host.command();
    other.env("UNDERPASS_RUN_DIR", host.path("other"));
    let seen = host.fail_as(other);
    assert_eq!(seen.code, 5, "{}", seen.err);
    assert!(host.is_guarded() && host.has_route("10.42.2.0/24"));
}

#[test]
fn an_agent_sets_the_host_up_and_takes_everything_back() {
    let host = Host::new(CONFIG);
    let agent = host.start();
    assert_eq!(host.peers(), ["beta idle", "gamma idle"]);
    let status = host.status();
    assert_eq!(
        status["tun"],
        serde_json::json!({
            "name": "underpass0", "mtu": 1400, "queues": 2, "backend": "offload", "offloads": ["tcp", "udp"],
            "txqueuelen_wanted": 1000, "txqueuelen": 1000
        })
    );
    assert_eq!(status["host"], "alpha");
    assert_eq!(host.addresses(), ["10.42.1.1/32"], "and no link-local one");
    assert!(["10.42.2.0/24", "10.42.3.0/24", "10.43.0.0/16"].iter().all(|prefix| host.has_route(prefix)));
    assert!(host.is_guarded());
    let rekey = run(host.folder.path(), &["peers", "beta", "--rekey", "ike"]);
    assert_eq!((rekey.code, rekey.err.as_str()), (1, "underpass: beta has no IKE SA that could be replaced\n"));
    assert_eq!(run(host.folder.path(), &["peers", "delta"]).code, 8);
    agent.signal(Signal::TERM);
    let (code, log) = agent.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("stopping on SIGTERM"), "{log}");
    assert!(!host.has_device() && !host.is_guarded());
    assert!(!host.path("run/control.sock").exists());
    assert_eq!(run(host.folder.path(), &["status"]).code, 4);
}

#[test]
fn a_killed_agent_leaves_the_guard_and_nothing_in_its_successors_way() {
    let host = Host::new(CONFIG);
    let agent = host.start();
    agent.signal(Signal::KILL);
    assert_eq!(agent.end().0, None);
    wait_for("the device to go", || (!host.has_device()).then_some(()));
    assert!(host.is_guarded(), "overlay packets in clear stay out");
    let agent = host.start();
    assert_eq!(host.peers(), ["beta idle", "gamma idle"]);
    agent.signal(Signal::INT);
    assert_eq!(agent.end().0, Some(0));
    assert!(!host.is_guarded());
}

#[test]
fn a_reload_changes_peers_and_blocks_and_says_what_has_to_wait() {
    let host = Host::new(CONFIG);
    let agent = host.start();
    assert_eq!(host.status()["advertise"], serde_json::json!([]));
    let new = CONFIG
        .replace("name: gamma", "name: delta")
        .replace(", 10.43.0.0/16", ", 10.44.0.0/16")
        .replace("[10.42.1.0/24]", "[10.45.0.0/24]")
        .replace("queues: 2", "queues: 1")
        .replace("name: alpha", "name: omega, advertise: [192.0.2.7, '192.0.2.8:4600', 'iface:lo']");
    host.configure(&new);
    agent.signal(Signal::HUP);
    wait_for("the new peers", || (host.peers() == ["beta idle", "delta idle"]).then_some(()));
    agent.expect_log("read the configuration again: 2 peers");
    let status = host.status();
    assert_eq!(status["host"], "omega");
    assert_eq!(status["advertise"], serde_json::json!(["192.0.2.7", "192.0.2.8:4600", "127.0.0.1", "::1"]));
    assert_eq!(status["tun"]["queues"], 2);
    let warning = "tun changed in the configuration: that takes effect when the agent starts next";
    let doubt = |address: &str| {
        format!("host.advertise: iface:lo: {address} is a loopback address: no other host reaches this one there")
    };
    assert_eq!(status["warnings"], serde_json::json!([doubt("127.0.0.1"), doubt("::1"), warning]));
    assert_eq!(host.addresses(), ["10.45.0.1/32"]);
    assert!(["10.42.2.0/24", "10.42.3.0/24", "10.44.0.0/16"].iter().all(|prefix| host.has_route(prefix)));
    assert!(!host.has_route("10.43.0.0/16"));

    host.configure("host: [");
    agent.signal(Signal::HUP);
    agent.expect_log("the configuration stays as it was: ");
    wait_for("a warning", || {
        let warnings = host.status()["warnings"].to_string();
        (warnings.contains(warning) && warnings.contains("the configuration stays as it was: u.yaml:2: ")).then_some(())
    });
    assert_eq!(host.peers(), ["beta idle", "delta idle"]);

    host.configure(CONFIG);
    agent.signal(Signal::HUP);
    wait_for("the old peers", || (host.peers() == ["beta idle", "gamma idle"]).then_some(()));
    wait_for("the old routes", || host.has_route("10.43.0.0/16").then_some(()));
    wait_for("no warnings", || (host.status()["warnings"] == serde_json::json!([])).then_some(()));
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().0, Some(0));
}

/// Two hosts on one wire.
fn joined() -> (Host, Host) {
    let host = |own: &str, n: u8, peer: &str, m: u8| {
        let host = Host::new(&format!(
            "host: {{name: {own}}}\noverlay: {{blocks: [10.42.{n}.0/24]}}\npeers:\n\
             \x20 - {{name: {peer}, address: 192.0.2.{m}, psk_file: psk, remote_blocks: [10.42.{m}.0/24]}}\n"
        ));
        (host, format!("192.0.2.{n}/24"))
    };
    let (alpha, beta) = (host("alpha", 1, "beta", 2), host("beta", 2, "alpha", 1));
    let near = VethEnd { name: "wire", namespace: None };
    let far = VethEnd { namespace: Some(beta.0.namespace.as_fd()), ..near };
    alpha.0.namespace.run(|| Netlink::open().unwrap().create_veth(near, far).unwrap()).unwrap();
    for (host, address) in [&alpha, &beta] {
        let set_up = || {
            let mut netlink = Netlink::open().unwrap();
            netlink.add_address("wire", address.parse().unwrap()).unwrap();
            netlink.set_up("wire").unwrap();
        };
        host.namespace.run(set_up).unwrap();
    }
    (alpha.0, beta.0)
}

#[test]
fn a_reload_leaves_the_tunnels_of_unchanged_peers_alone() {
    let (alpha, beta) = joined();
    let (agent, _other) = (alpha.start(), beta.start());
    wait_for("the tunnel", || (alpha.peers() == ["beta up"] && beta.peers() == ["alpha up"]).then_some(()));
    let spis = |host: &Host| {
        let peer = &host.status()["peers"][0];
        let children: Vec<Value> =
            peer["children"].as_array().unwrap().iter().map(|child| child["inbound_spi"].clone()).collect();
        (peer["ike"]["local_spi"].clone(), children)
    };
    let before = spis(&alpha);
    let gamma = "  - {name: gamma, psk_file: psk, remote_blocks: [10.42.3.0/24]}\n";
    let config = fs::read_to_string(alpha.path("u.yaml")).unwrap();
    alpha.configure(&format!("{config}{gamma}"));
    agent.signal(Signal::HUP);
    wait_for("the new peer", || (alpha.peers() == ["beta up", "gamma idle"]).then_some(()));
    assert_eq!(spis(&alpha), before);
    alpha.configure(&config.replace("name: beta,", "name: beta, suites: [aes128gcm16],"));
    agent.signal(Signal::HUP);
    wait_for("a tunnel of the changed peer", || {
        let changed = alpha.peers() == ["beta up"] && spis(&alpha).0 != before.0;
        changed.then_some(())
    });
    let suite = alpha.status()["peers"][0]["children"][0]["suite"].clone();
    assert!(suite.as_str().unwrap().starts_with("aes128gcm16"), "{suite}");
}

#[test]
fn the_host_key_is_made_when_a_peer_needs_it() {
    let host = Host::new(CONFIG);
    let other = folder();
    let key = run(other.path(), &["key", "generate"]).out;
    host.configure(&CONFIG.replacen("psk_file: psk", &format!("public_key: {}", key.trim()), 1));
    let agent = host.start();
    let own = run(host.folder.path(), &["key", "show"]);
    assert_eq!(own.code, 0, "{}", own.err);
    agent.expect_log(&format!("its public half, for the peers: {}", own.out.trim()));
}

#[test]
fn the_service_manager_is_told() {
    let host = Host::new(CONFIG);
    let socket = UnixDatagram::bind(host.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let mut command = host.command();
    command.env("NOTIFY_SOCKET", host.path("notify"));
    let agent = host.start_as(command);
    assert!(hear().starts_with("READY=1\n"));
    agent.signal(Signal::HUP);
    let reloading = hear();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(hear().starts_with("READY=1"));
    agent.signal(Signal::TERM);
    assert!(hear().starts_with("STOPPING=1"));
    assert_eq!(agent.end().0, Some(0));
}

#[test]
fn the_plain_backend_has_one_queue() {
    let host = Host::new(&CONFIG.replace("queues: 2", "backend: plain"));
    let agent = host.start();
    let tun = &host.status()["tun"];
    assert_eq!((&tun["queues"], &tun["backend"]), (&serde_json::json!(1), &serde_json::json!("plain")));
    agent.signal(Signal::TERM);
    assert_eq!(agent.end().0, Some(0));
}

/// The folder of the binary must not matter, nor where the agent is started.
#[test]
fn relative_paths_are_relative_to_the_file_that_holds_them() {
    let host = Host::new(CONFIG);
    let mut command = underpass(host.folder.path());
    command.args(["config", "check"]).arg(host.path("u.yaml")).current_dir(Path::new("/"));
    assert_eq!(super::seen(command.output().unwrap()).code, 0);
}
