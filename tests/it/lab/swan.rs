//! strongSwan on a host: charon with its userspace ESP, and `swanctl` to drive it.
//!
//! To know: swanctl.conf wants one setting a line; the host must own an address inside its traffic selector (it goes on
//! `lo`); the userspace ESP does tunnel mode only, without ESN, on a TUN `ipsec0`, with routes in table 220.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tempfile::TempDir;

use super::command::{CHARON, said};
use super::vici::{Section, ike_sas};
use super::{Daemon, Host, PSK, attempt, run, wait_for};

/// How a host proves who it is.
#[derive(Clone)]
pub enum Auth {
    /// The shared secret [`PSK`].
    Psk,
    /// Ed25519 raw public keys: our private key and the peer's public key, PEM files.
    RawKeys { private: PathBuf, remote_public: PathBuf },
    /// X.509: our private key, our certificate and the authority that both ends trust, PEM files. The last are its words for what we
    /// sign with, such as `rsa/pss-sha256`; `pubkey` for whatever fits the key.
    #[cfg(feature = "x509")]
    Certificate { private: PathBuf, certificate: PathBuf, authority: PathBuf, method: &'static str },
}

/// What one charon is told. Every field has a default that suits the laboratory.
#[derive(Clone)]
pub struct SwanConfig {
    /// IKE proposals in strongSwan's words, in order.
    pub ike: String,
    /// ESP proposals in strongSwan's words, in order.
    pub esp: String,
    /// `none`: only answer; `start`: initiate when loaded.
    pub start_action: &'static str,
    pub auth: Auth,
    pub local_id: String,
    pub remote_id: String,
    /// Where the peer is; `%any` for one that calls.
    pub remote_address: String,
    pub local_ts: String,
    pub remote_ts: String,
    /// Liveness checks, in seconds; 0 for none.
    pub dpd_seconds: u32,
    /// The age in seconds at which it rekeys the IKE SA and the CHILD_SA, each to the second; none: its defaults.
    pub rekey_seconds: Option<(u32, u32)>,
    /// Our ports, 500 and 4500 by default.
    pub ports: (u16, u16),
    /// The peer's IKE port.
    pub remote_port: u16,
    /// The longest IP datagram with an IKE message before it is sent in fragments.
    pub fragment_size: u16,
    /// If there are any: hosts that this charon is instead of one, each with its address on the underlay, its identity and its
    /// block. They prove themselves by the shared secret.
    pub others: Vec<(String, String, String)>,
}

impl SwanConfig {
    /// For charon on `local` towards `remote`, as responder, with the first suite.
    pub fn new(local: &Host, remote: &Host) -> Self {
        Self {
            ike: "aes256gcm16-prfsha256-x25519".to_owned(),
            esp: "aes256gcm16-x25519-noesn".to_owned(),
            start_action: "none",
            auth: Auth::Psk,
            local_id: local.name.to_owned(),
            remote_id: remote.name.to_owned(),
            remote_address: remote.address.to_owned(),
            local_ts: local.block.to_owned(),
            remote_ts: remote.block.to_owned(),
            dpd_seconds: 0,
            rekey_seconds: None,
            ports: (500, 4500),
            remote_port: 500,
            fragment_size: 1280,
            others: Vec::new(),
        }
    }

    /// One AEAD and one key exchange group for IKE and for ESP alike.
    pub fn suite(mut self, aead: &str, prf: &str, group: &str) -> Self {
        self.ike = format!("{aead}-{prf}-{group}");
        self.esp = format!("{aead}-{group}-noesn");
        self
    }

    /// Initiates by itself when loaded.
    pub fn initiating(mut self) -> Self {
        self.start_action = "start";
        self
    }

    /// Accepts the peer from wherever it calls.
    pub fn with_anyone(mut self) -> Self {
        self.remote_address = "%any".to_owned();
        self
    }

    fn swanctl_conf(&self) -> String {
        let (mut connections, mut secrets) = (String::new(), String::new());
        if self.others.is_empty() {
            connections += &self.connection("overlay", "%any");
            secrets += &self.secret("ike-1");
        }
        for (number, (address, id, block)) in self.others.iter().enumerate() {
            let one = Self { local_id: id.clone(), local_ts: block.clone(), others: Vec::new(), ..self.clone() };
            connections += &one.connection(&format!("overlay{number}"), address);
            secrets += &one.secret(&format!("ike-{number}"));
        }
        format!("connections {{\n{connections}}}\nsecrets {{\n{secrets}}}\n")
    }

    /// One of them, from this local address.
    fn connection(&self, name: &str, local_address: &str) -> String {
        let (local_auth, remote_auth) = match &self.auth {
            Auth::Psk => ("auth = psk".to_owned(), "auth = psk"),
            Auth::RawKeys { .. } => {
                ("auth = pubkey\n      pubkeys = local.pem".to_owned(), "auth = pubkey\n      pubkeys = remote.pem")
            }
            #[cfg(feature = "x509")]
            Auth::Certificate { method, .. } => {
                (format!("auth = {method}\n      certs = local.pem"), "auth = pubkey\n      cacerts = authority.pem")
            }
        };
        let lifetime = |seconds: u32, what: &str| format!("rekey_time = {seconds}s\n    rand_time = 0s\n    {what} = 60s");
        let (ike_lifetime, child_lifetime) = self
            .rekey_seconds
            .map_or_else(Default::default, |(ike, child)| (lifetime(ike, "over_time"), lifetime(child, "life_time")));
        format!(
            "  {name} {{
    version = 2
    {ike_lifetime}
    local_addrs = {local_address}
    remote_addrs = {remote_address}
    remote_port = {remote_port}
    encap = yes
    dpd_delay = {dpd}s
    proposals = {ike}
    local {{
      {local_auth}
      id = {local_id}
    }}
    remote {{
      {remote_auth}
      id = {remote_id}
    }}
    children {{
      net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
        {child_lifetime}
        mode = tunnel
        start_action = {start_action}
      }}
    }}
  }}
",
            remote_address = self.remote_address,
            remote_port = self.remote_port,
            dpd = self.dpd_seconds,
            ike = self.ike,
            local_id = self.local_id,
            remote_id = self.remote_id,
            local_ts = self.local_ts,
            remote_ts = self.remote_ts,
            esp = self.esp,
            start_action = self.start_action,
        )
    }

    /// Raw keys lie in files of their own.
    fn secret(&self, name: &str) -> String {
        let (local, remote) = (&self.local_id, &self.remote_id);
        match self.auth {
            Auth::Psk => format!("  {name} {{\n    id-1 = {local}\n    id-2 = {remote}\n    secret = \"{PSK}\"\n  }}\n"),
            Auth::RawKeys { .. } => String::new(),
            #[cfg(feature = "x509")]
            Auth::Certificate { .. } => String::new(),
        }
    }
}

/// A running charon. Killed on drop.
pub struct Swan {
    host: Host,
    folder: TempDir,
    daemon: Daemon,
}

impl Swan {
    /// Starts charon on the host and loads the configuration.
    pub fn start(host: &Host, config: &SwanConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("swan-").tempdir().expect("a folder");
        write_configuration(folder.path(), config);
        if !host.run(&["ip", "address", "show", "dev", "lo"]).contains(host.inner) {
            host.run(&["ip", "address", "add", &format!("{}/32", host.inner), "dev", "lo"]);
        }
        let daemon = start_charon(host, folder.path());
        let mut swan = Self { host: host.clone(), folder, daemon };
        swan.load();
        swan
    }

    /// `kill -9`: the peer hears nothing.
    pub fn kill(&mut self) {
        self.daemon.kill();
        let _ = fs::remove_file(self.vici());
        // The kernel removes the TUN with its process; the rule that points to table 220 stays, as in life.
    }

    /// Starts it anew after [`kill`](Self::kill), with the same configuration and no memory.
    pub fn restart(&mut self) {
        self.daemon = start_charon(&self.host, self.folder.path());
        self.load();
    }

    /// Both the daemon's own log and what it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("charon.log")).unwrap_or_default()
    }

    /// `swanctl` with these arguments; panics if it fails.
    pub fn control(&self, arguments: &[&str]) -> String {
        let output = self.attempt_control(arguments);
        assert!(output.status.success(), "swanctl {arguments:?}: {}\n{}\n{}", output.status, said(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `swanctl` with these arguments.
    pub fn attempt_control(&self, arguments: &[&str]) -> Output {
        let configuration = format!("STRONGSWAN_CONF={}/strongswan.conf", self.folder.path().display());
        let folder = format!("SWANCTL_DIR={}", self.folder.path().display());
        let uri = format!("unix://{}", self.vici().display());
        let argv = [&["env", &configuration, &folder, "swanctl"], arguments, &["--uri", &uri]].concat();
        attempt(&argv)
    }

    /// Brings the tunnel up; returns once it is, or panics.
    pub fn initiate(&self) {
        self.control(&["--initiate", "--child", "net", "--timeout", "15"]);
    }

    /// Replaces the CHILD_SA (`child`) or the IKE SA (`ike`).
    pub fn rekey(&self, what: &str) {
        let name = if what == "ike" { "overlay" } else { "net" };
        self.control(&["--rekey", &format!("--{what}"), name]);
    }

    /// Deletes the IKE SA, politely.
    pub fn terminate(&self) {
        self.control(&["--terminate", "--ike", "overlay", "--timeout", "10"]);
    }

    /// Every IKE SA it holds, whatever its state.
    pub fn ike_sas(&self) -> Vec<Section> {
        ike_sas(&self.control(&["--list-sas", "--raw"]))
    }

    /// The established IKE SAs and, under each, the installed CHILD_SAs.
    pub fn established(&self) -> Vec<(Section, Vec<Section>)> {
        let established = self.ike_sas().into_iter().filter(|sa| sa.value("state") == "ESTABLISHED");
        let children = |sa: &mut Section| {
            let all = sa.sections.remove("child-sas").unwrap_or_default().sections;
            all.into_values().filter(|child| child.value("state") == "INSTALLED").collect()
        };
        established.map(|mut sa| (children(&mut sa), sa)).map(|(children, sa)| (sa, children)).collect()
    }

    /// SPIs of the one CHILD_SA under the one IKE SA, inbound and outbound seen from here; `None` while there is not
    /// exactly one of each.
    pub fn only_child(&self) -> Option<(String, String)> {
        match self.established().as_slice() {
            [(_, children)] => match children.as_slice() {
                [child] => Some((child.value("spi-in").to_owned(), child.value("spi-out").to_owned())),
                _ => None,
            },
            _ => None,
        }
    }

    fn load(&mut self) {
        let vici = self.vici();
        wait_for("charon's control socket", Duration::from_secs(10), || {
            assert!(self.daemon.is_running(), "charon ended: {}\n{}", self.daemon.log(), self.log());
            vici.exists().then_some(())
        });
        let file = format!("{}/swanctl.conf", self.folder.path().display());
        self.control(&["--load-all", "--file", &file]);
    }

    fn vici(&self) -> PathBuf {
        self.folder.path().join("vici")
    }
}

impl Drop for Swan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- charon on {} logged:\n{}", self.host.name, super::command::tail(&self.log(), 60));
        }
    }
}

/// Makes an Ed25519 key pair in a folder: the files of the private and the public key, PEM.
pub fn generate_key(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (private, public) = (folder.join(name), folder.join(format!("{name}.pub")));
    fs::write(&private, run(&["pki", "--gen", "--type", "ed25519", "--outform", "pem"])).expect("a key file");
    fs::write(&public, public_key(&private)).expect("a key file");
    (private, public)
}

fn public_key(private: &Path) -> String {
    run(&["pki", "--pub", "--type", "priv", "--in", &private.display().to_string(), "--outform", "pem"])
}

fn start_charon(host: &Host, folder: &Path) -> Daemon {
    // charon writes its pid under /run: each gets one of its own. `ip netns exec` has made the mounts private already.
    let script = format!("mount -t tmpfs none /run && mkdir -p /run/strongswan && exec {CHARON}");
    let configuration = folder.join("strongswan.conf").display().to_string();
    let log = folder.join("charon.out");
    Daemon::start("charon", &host.on(&["sh", "-c", &script]), &[("STRONGSWAN_CONF", &configuration)], &log)
}

fn write_configuration(folder: &Path, config: &SwanConfig) {
    for name in
        ["x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa", "ecdsa", "pkcs8", "pkcs12"]
    {
        fs::create_dir(folder.join(name)).expect("a folder");
    }
    if let Auth::RawKeys { private, remote_public } = &config.auth {
        fs::copy(private, folder.join("private/local.pem")).expect("the private key");
        fs::copy(remote_public, folder.join("pubkey/remote.pem")).expect("the peer's public key");
        fs::write(folder.join("pubkey/local.pem"), public_key(private)).expect("a public key");
    }
    #[cfg(feature = "x509")]
    if let Auth::Certificate { private, certificate, authority, .. } = &config.auth {
        for (file, place) in
            [(private, "private/local.pem"), (certificate, "x509/local.pem"), (authority, "x509ca/authority.pem")]
        {
            fs::copy(file, folder.join(place)).expect("a file of X.509");
        }
    }
    fs::write(folder.join("swanctl.conf"), config.swanctl_conf()).expect("a configuration");
    fs::write(folder.join("strongswan.conf"), strongswan_conf(folder, config.ports, config.fragment_size))
        .expect("a configuration");
}

fn strongswan_conf(folder: &Path, (port, natt_port): (u16, u16), fragment_size: u16) -> String {
    let folder = folder.display();
    format!(
        "charon-systemd {{
  load = random nonce aes sha1 sha2 hmac kdf gcm chapoly openssl pem pkcs1 pkcs8 pubkey x509 constraints curve25519 vici kernel-libipsec kernel-netlink socket-default
  port = {port}
  port_nat_t = {natt_port}
  retransmit_tries = 3
  fragment_size = {fragment_size}
  filelog {{
    log {{
      path = {folder}/charon.log
      default = 1
      ike = 2
      flush_line = yes
    }}
  }}
  plugins {{
    vici {{
      socket = unix://{folder}/vici
    }}
  }}
}}
swanctl {{
  load = pem pkcs1 pkcs8 pubkey x509 openssl curve25519 random
}}
"
    )
}
