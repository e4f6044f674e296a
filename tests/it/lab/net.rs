//! Hosts and what lies between them.
//!
//! ```text
//! direct   alpha 10.9.0.1 ------------------------------------------- 10.9.0.2 beta
//!
//! NAT      alpha 10.9.1.1 --- 10.9.1.254 nat 10.9.0.254 (masquerade) --- 10.9.0.2 beta
//!
//! routed   alpha 10.9.1.1 --- 10.9.1.254 router 10.9.0.254 ------------- 10.9.0.2 beta
//!
//! crowd    alpha 10.9.1.1 -+
//!          gamma 10.9.3.1 -+- nat 10.9.0.254 (masquerade) -------------- 10.9.0.2 beta
//!          delta 10.9.4.1 -+
//! ```
//!
//! Each host owns an overlay block, 10.42.1.0/24 and 10.42.2.0/24, and the first address in it. The underlay's interface is
//! `up0` everywhere. Names are unique to the process and the lab, so labs do not see each other.

use std::fs;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use super::command::{attempt_for, require_root_and_tools};
use super::{attempt, run};

/// The underlay's interface on every host; the NAT's inner one.
pub const UNDERLAY: &str = "up0";

/// The NAT's outer interface.
const NAT_OUTSIDE: &str = "up1";

/// What the names of all namespaces begin with; the process id follows.
const PREFIX: &str = "up";

/// One host: a namespace, its place on the underlay and its part of the overlay.
#[derive(Clone)]
pub struct Host {
    pub name: &'static str,
    pub netns: String,
    /// On the underlay.
    pub address: &'static str,
    /// Of the overlay.
    pub block: &'static str,
    /// The host's own address in its block.
    pub inner: &'static str,
    /// The words before a command that enter the host.
    pub enter: Vec<String>,
}

impl Host {
    /// The arguments in front of a command that runs on this host.
    pub fn on<'a>(&'a self, argv: &[&'a str]) -> Vec<&'a str> {
        self.enter.iter().map(String::as_str).chain(argv.iter().copied()).collect()
    }

    /// Runs a command on this host; panics if it fails.
    pub fn run(&self, argv: &[&str]) -> String {
        run(&self.on(argv))
    }

    /// Runs a command on this host.
    pub fn attempt(&self, argv: &[&str]) -> Output {
        attempt(&self.on(argv))
    }

    /// Runs a command on this host for at most so many seconds.
    #[allow(dead_code, reason = "tests of long transfers use it")]
    pub fn attempt_for(&self, seconds: u32, argv: &[&str]) -> Output {
        attempt_for(seconds, &self.on(argv))
    }

    /// Drops so many percent of the IKE and ESP datagrams that arrive.
    pub fn lose(&self, percent: u8) {
        let random = format!("numgen random mod 100 < {percent} drop");
        self.filter(&format!("udp dport {{ 500, 4500 }} {random}; udp sport 4500 udp dport != {{ 500, 4500 }} {random}"));
    }

    /// Gives it another address on the underlay, in place of this one.
    pub fn readdress(&self, from: &str, to: &str) {
        self.run(&["ip", "address", "del", &format!("{from}/24"), "dev", UNDERLAY]);
        self.run(&["ip", "address", "add", &format!("{to}/24"), "dev", UNDERLAY]);
    }

    /// Drops everything that arrives on the underlay.
    pub fn block(&self) {
        self.filter("drop");
    }

    /// Ends [`lose`](Self::lose) and [`block`](Self::block).
    pub fn pass(&self) {
        self.run(&["nft", "add table inet lab; delete table inet lab"]);
    }

    /// The one table of ours on this host, anew; other tables are the agent's.
    fn filter(&self, rules: &str) {
        self.pass();
        let rules: Vec<String> = rules.split("; ").map(|rule| format!("iifname \"{UNDERLAY}\" {rule};")).collect();
        let chain = format!("chain input {{ type filter hook input priority -300; {} }}", rules.join(" "));
        self.run(&["nft", &format!("table inet lab {{ {chain}; }}")]);
    }
}

fn entering(netns: &str) -> Vec<String> {
    ["ip", "netns", "exec", netns].map(str::to_owned).to_vec()
}

/// The NAT's only rule, with the ports that it maps to.
fn masquerade(ports: &str) -> String {
    let protocol = if ports.is_empty() { "" } else { "meta l4proto udp " };
    format!(
        "table ip nat {{ chain out {{ type nat hook postrouting priority 100; }}; }}; flush chain ip nat out; \
         add rule ip nat out oifname \"{NAT_OUTSIDE}\" {protocol}masquerade{ports}"
    )
}

/// Two hosts that reach each other, directly or through a NAT in front of `alpha`. Removed on drop.
pub struct Lab {
    pub alpha: Host,
    pub beta: Host,
    /// Further hosts behind the NAT.
    pub others: Vec<Host>,
    namespaces: Vec<String>,
}

impl Lab {
    /// Both hosts' underlay interfaces take packets of so many octets.
    pub fn set_underlay_mtu(&self, mtu: u32) {
        for host in [&self.alpha, &self.beta] {
            host.run(&["ip", "link", "set", UNDERLAY, "mtu", &mtu.to_string()]);
        }
    }

    /// Both hosts on one link.
    pub fn direct() -> Self {
        let mut lab = Self::hosts("10.9.0.1");
        lab.link(&[(&lab.alpha.netns.clone(), UNDERLAY, "10.9.0.1/24"), (&lab.beta.netns.clone(), UNDERLAY, "10.9.0.2/24")]);
        lab
    }

    /// `alpha` behind a NAT: `beta` sees 10.9.0.254 and cannot reach `alpha` first.
    pub fn with_nat() -> Self {
        let lab = Self::across();
        lab.middle(&["nft", &masquerade("")]);
        lab
    }

    /// `alpha` and two more hosts behind one NAT.
    pub fn crowd() -> Self {
        let mut lab = Self::with_nat();
        let nat = lab.namespaces.last().expect("a NAT").clone();
        let more = [
            ("gamma", "g", "10.9.3.1", "10.9.3.254", "10.42.3.0/24", "10.42.3.1"),
            ("delta", "d", "10.9.4.1", "10.9.4.254", "10.42.4.0/24", "10.42.4.1"),
        ];
        for (name, letter, address, gateway, block, inner) in more {
            let netns = lab.namespace(letter);
            let inside = format!("in-{letter}");
            let (near, far) = (format!("{address}/24"), format!("{gateway}/24"));
            lab.link(&[(&netns, UNDERLAY, &near), (&nat, &inside, &far)]);
            let host = Host { name, enter: entering(&netns), netns, address, block, inner };
            host.run(&["ip", "route", "add", "default", "via", gateway]);
            lab.others.push(host);
        }
        lab
    }

    /// Five hosts on one switch: alpha, beta, and three others. The switch is a host as well, for servers. Who owns which block is
    /// not said by the laboratory but by a store; what stands here is for lists.
    pub fn switched() -> (Self, Host) {
        let mut lab = Self::hosts("10.9.5.1");
        lab.beta.address = "10.9.5.2";
        let netns = lab.namespace("s");
        run(&["ip", "-n", &netns, "link", "add", "switch", "type", "bridge"]);
        run(&["ip", "-n", &netns, "address", "add", "10.9.5.254/24", "dev", "switch"]);
        run(&["ip", "-n", &netns, "link", "set", "switch", "up"]);
        let switch = Host {
            name: "switch",
            enter: entering(&netns),
            netns: netns.clone(),
            address: "10.9.5.254",
            block: "",
            inner: "",
        };
        let more = [
            ("gamma", "g", "10.9.5.3", "10.42.3.0/24", "10.42.3.1"),
            ("delta", "d", "10.9.5.4", "10.42.4.0/24", "10.42.4.1"),
            ("epsilon", "e", "10.9.5.5", "10.42.5.0/24", "10.42.5.1"),
        ];
        for (name, letter, address, block, inner) in more {
            let netns = lab.namespace(letter);
            lab.others.push(Host { name, enter: entering(&netns), netns, address, block, inner });
        }
        for (number, host) in [&lab.alpha, &lab.beta].into_iter().chain(&lab.others).enumerate() {
            let port = format!("port{number}");
            run(&[
                "ip",
                "link",
                "add",
                UNDERLAY,
                "netns",
                &host.netns,
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &netns,
            ]);
            host.run(&["ip", "link", "set", UNDERLAY, "addrgenmode", "none"]);
            host.run(&["ip", "address", "add", &format!("{}/24", host.address), "dev", UNDERLAY]);
            host.run(&["ip", "link", "set", UNDERLAY, "up"]);
            run(&["ip", "-n", &netns, "link", "set", &port, "master", "switch", "up"]);
        }
        (lab, switch)
    }

    /// A router between the two.
    pub fn routed() -> Self {
        let lab = Self::across();
        lab.beta.run(&["ip", "route", "add", "10.9.1.0/24", "via", "10.9.0.254"]);
        lab
    }

    /// The router's link to `beta`, at both ends, takes packets of so many octets.
    pub fn set_far_mtu(&self, mtu: u32) {
        let mtu = mtu.to_string();
        self.middle(&["ip", "link", "set", NAT_OUTSIDE, "mtu", &mtu]);
        self.beta.run(&["ip", "link", "set", UNDERLAY, "mtu", &mtu]);
    }

    /// Runs a command on the NAT or router.
    fn middle(&self, argv: &[&str]) -> String {
        let netns = self.namespaces.last().expect("a NAT or a router");
        run(&[&["ip", "netns", "exec", netns], argv].concat())
    }

    /// Two links, and who forwards between them.
    fn across() -> Self {
        let mut lab = Self::hosts("10.9.1.1");
        let nat = lab.namespace("n");
        lab.link(&[(&lab.alpha.netns.clone(), UNDERLAY, "10.9.1.1/24"), (&nat, UNDERLAY, "10.9.1.254/24")]);
        lab.link(&[(&nat, NAT_OUTSIDE, "10.9.0.254/24"), (&lab.beta.netns.clone(), UNDERLAY, "10.9.0.2/24")]);
        lab.alpha.run(&["ip", "route", "add", "default", "via", "10.9.1.254"]);
        run(&["ip", "netns", "exec", &nat, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        lab
    }

    /// The NAT forgets its mappings and maps to other ports from now on, as a rebooted router would.
    pub fn remap_nat(&self) {
        self.middle(&["nft", &masquerade(" to :20000-20100")]);
        self.middle(&["conntrack", "-F"]);
    }

    /// The NAT maps every new flow to a port of chance.
    pub fn scatter_nat(&self) {
        self.middle(&["nft", &masquerade(" to :20000-40000 random")]);
        self.forget_nat();
    }

    /// The NAT forgets its mappings.
    pub fn forget_nat(&self) {
        self.middle(&["conntrack", "-F"]);
    }

    fn hosts(alpha_address: &'static str) -> Self {
        require_root_and_tools();
        sweep();
        static LABS: AtomicU32 = AtomicU32::new(0);
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let netns = |letter| format!("{PREFIX}{}-{lab}{letter}", std::process::id());
        let host = |name, letter, address, block, inner| {
            let netns = netns(letter);
            Host { name, enter: entering(&netns), netns, address, block, inner }
        };
        let alpha = host("alpha", "a", alpha_address, "10.42.1.0/24", "10.42.1.1");
        let beta = host("beta", "b", "10.9.0.2", "10.42.2.0/24", "10.42.2.1");
        let mut lab = Self { alpha, beta, others: Vec::new(), namespaces: Vec::new() };
        lab.add(lab.alpha.netns.clone());
        lab.add(lab.beta.netns.clone());
        lab
    }

    /// One more namespace, named like the others with another letter.
    fn namespace(&mut self, letter: &str) -> String {
        let name = format!("{}{letter}", self.alpha.netns.trim_end_matches('a'));
        self.add(name.clone());
        name
    }

    fn add(&mut self, name: String) {
        run(&["ip", "netns", "add", &name]);
        // The strictest case for the tests: the kernel does not help against forged sources.
        for scope in ["all", "default"] {
            run(&["ip", "netns", "exec", &name, "sysctl", "-qw", &format!("net.ipv4.conf.{scope}.rp_filter=0")]);
        }
        run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        self.namespaces.push(name);
    }

    /// Joins two namespaces by a veth pair: (namespace, interface, address with prefix length).
    fn link(&mut self, ends: &[(&str, &str, &str); 2]) {
        let [(left, left_name, _), (right, right_name, _)] = ends;
        run(&["ip", "link", "add", left_name, "netns", left, "type", "veth", "peer", "name", right_name, "netns", right]);
        for (netns, name, address) in ends {
            // No IPv6 neighbour talk of the kernel's own on the wire that tests look at.
            run(&["ip", "-n", netns, "link", "set", name, "addrgenmode", "none"]);
            run(&["ip", "-n", netns, "address", "add", address, "dev", name]);
            run(&["ip", "-n", netns, "link", "set", name, "up"]);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = attempt(&["ip", "netns", "del", name]);
        }
    }
}

/// Removes the namespaces of test runs that were killed: those whose process is gone.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        let ours = owner.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|digit| digit.is_ascii_digit()));
        if ours && !owner.is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = attempt(&["ip", "netns", "del", &name]);
        }
    }
}
