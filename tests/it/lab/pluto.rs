//! libreswan on a host: `pluto`, which knows how to do wrong on purpose, and `whack` to drive it.
//!
//! Its package conflicts with strongSwan's, so `tests/run` unpacks it into a folder. This kernel has no ESP of its own, so each
//! CHILD_SA fails at pluto (TS_UNACCEPTABLE towards us): it is a peer for IKE alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tempfile::TempDir;

use super::command::said;
use super::{Daemon, Host, PSK, attempt, run, wait_for};

/// Where `tests/run` unpacks the package.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/libreswan");

/// The name of the one connection.
const CONNECTION: &str = "overlay";

/// A running pluto. Killed on drop.
pub struct Pluto {
    host: Host,
    /// Before its folder, in which it logs.
    daemon: Daemon,
    folder: TempDir,
}

impl Pluto {
    /// Starts pluto on `host` and tells it of `peer`; it initiates when asked to, and answers.
    pub fn start(host: &Host, peer: &Host) -> Self {
        let program = format!("{ROOT}/usr/libexec/ipsec/pluto");
        assert!(Path::new(&program).exists(), "{program} is missing: tests/run unpacks libreswan there");
        let folder = tempfile::Builder::new().prefix("pluto-").tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["nss", "run", "ipsec.d"] {
            fs::create_dir(path(name)).expect("a folder");
        }
        fs::write(path("ipsec.conf"), configuration(host, peer)).expect("a configuration");
        fs::write(path("ipsec.secrets"), format!("@{} @{} : PSK \"{PSK}\"\n", host.name, peer.name)).expect("a secret");
        fs::set_permissions(path("ipsec.secrets"), fs::Permissions::from_mode(0o600)).expect("a mode");
        run(&["certutil", "-N", "-d", &format!("sql:{}", path("nss")), "--empty-password"]);
        host.run(&["ip", "address", "add", &format!("{}/32", host.inner), "dev", "lo"]);
        // It looks for its helpers in the place that it was built for; `ip netns exec` has made the mounts private already.
        let script = format!(
            "mount --bind {ROOT}/usr/libexec /usr/libexec && exec {program} --nofork --stderrlog --config {} --rundir {} \
             --secretsfile {} --nssdir {} --ipsecdir {} --no-dnssec --nhelpers 0 --use-xfrm",
            path("ipsec.conf"),
            path("run"),
            path("ipsec.secrets"),
            path("nss"),
            path("ipsec.d"),
        );
        let mut daemon = Daemon::start("pluto", &host.on(&["sh", "-c", &script]), &[], &folder.path().join("pluto.log"));
        wait_for("pluto to listen", Duration::from_secs(20), || {
            assert!(daemon.is_running(), "pluto ended: {}", daemon.log());
            daemon.log().contains("loading secrets").then_some(())
        });
        let pluto = Self { host: host.clone(), daemon, folder };
        let addconn = format!("{ROOT}/usr/libexec/ipsec/addconn");
        let (conf, socket) = (pluto.path("ipsec.conf").display().to_string(), pluto.socket());
        pluto.host.run(&[&addconn, "--config", &conf, "--ctlsocket", &socket, CONNECTION]);
        pluto
    }

    /// Does this wrong from now on, in the words of `whack --impair`.
    pub fn impair(&self, fault: &str) {
        let output = self.whack(&["--impair", fault]);
        assert!(output.status.success(), "--impair {fault}: {}", said(&output));
    }

    /// Does everything right from now on.
    pub fn behave(&self) {
        self.impair("none");
    }

    /// Calls, and does not wait.
    pub fn initiate(&self) {
        self.whack(&["--initiate", "--name", CONNECTION, "--asynchronous"]);
    }

    /// Ends what there is, and what it tries.
    pub fn terminate(&self) {
        self.whack(&["--terminate", "--name", CONNECTION]);
    }

    /// Replaces the IKE SA, and does not wait.
    pub fn rekey(&self) {
        self.whack(&["--rekey-ike", "--name", CONNECTION, "--asynchronous"]);
    }

    /// Asks for a sign of life on every IKE SA that is up.
    pub fn probe(&self) {
        for number in self.ike_sas() {
            self.impair(&format!("initiate-v2-liveness:{number}"));
        }
    }

    /// The numbers of its IKE SAs that are up.
    pub fn ike_sas(&self) -> Vec<String> {
        let output = self.whack(&["--showstates"]);
        let states = said(&output);
        let up = states.lines().filter(|line| line.contains("STATE_V2_ESTABLISHED_IKE_SA"));
        let number = |line: &str| line.split_once('#').and_then(|(_, rest)| rest.split_once(':')).map(|(n, _)| n.to_owned());
        up.filter_map(number).collect()
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// It stands still, and says nothing.
    pub fn freeze(&mut self) {
        run(&["kill", "-STOP", &self.daemon.pid().to_string()]);
    }

    /// It goes on.
    pub fn thaw(&mut self) {
        run(&["kill", "-CONT", &self.daemon.pid().to_string()]);
    }

    fn whack(&self, arguments: &[&str]) -> Output {
        let (whack, socket) = (format!("{ROOT}/usr/libexec/ipsec/whack"), self.socket());
        attempt(&self.host.on(&[&[&whack[..], "--ctlsocket", &socket], arguments].concat()))
    }

    fn socket(&self) -> String {
        self.path("run/pluto.ctl").display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn configuration(host: &Host, peer: &Host) -> String {
    format!(
        "config setup
conn {CONNECTION}
	ikev2=insist
	authby=secret
	left={}
	leftid=@{}
	leftsubnet={}
	right={}
	rightid=@{}
	rightsubnet={}
	ike=aes_gcm256-sha2_256;dh31
	esp=aes_gcm256
	encapsulation=yes
	rekey=yes
	auto=ignore
",
        host.address, host.name, host.block, peer.address, peer.name, peer.block
    )
}
