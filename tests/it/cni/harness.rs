//! A container runtime, as far as CNI plugins can tell: it starts them with variables and a configuration, and reads what they say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use underpass::sys::netlink::Netlink;
use underpass::sys::netns::Namespace;

use crate::lab::agent::UNDERPASS;
use crate::lab::site::{link_plugins, namespace, netns_path, output};

/// Where Debian puts the reference plugins.
pub static REFERENCE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from("/usr/lib/cni");
    assert!(folder.join("host-local").exists(), "the reference CNI plugins are missing: tests/run installs them");
    folder
});

/// A plugin, and how it is configured to give out 10.42.1.2 to 10.42.1.6.
pub struct Target {
    /// A path, or the name of a link to our binary.
    pub program: PathBuf,
    pub versions: &'static [&'static str],
    pub newest: &'static str,
    /// What the configuration has besides its name, with a folder of the test's own.
    pub conf: fn(&Path) -> Value,
}

/// For whom something is done.
#[derive(Clone, Copy, Debug)]
pub struct Who<'w> {
    pub container: &'w str,
    pub interface: &'w str,
    /// None for the namespace that the container really has.
    pub netns: Option<&'w str>,
}

impl<'w> Who<'w> {
    pub fn new(container: &'w str) -> Self {
        Self { container, interface: "eth0", netns: None }
    }
}

/// What a plugin said.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
    /// The output as JSON, null if it is none.
    pub json: Value,
}

/// A runtime on a host of its own, with two containers.
pub struct Runtime<'t> {
    target: &'t Target,
    folder: TempDir,
    host: Namespace,
    containers: BTreeMap<&'static str, Namespace>,
}

impl<'t> Runtime<'t> {
    pub fn new(target: &'t Target) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        link_plugins(folder.path());
        std::fs::create_dir(folder.path().join("state")).expect("a folder");
        let containers = ["c1", "c2"].map(|name| (name, namespace()));
        Self { target, folder, host: namespace(), containers: containers.into() }
    }

    /// The plugin's folder.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Where the words stand of what is made to fail; see `src/sys/faults.rs`.
    pub fn faults(&self) -> PathBuf {
        self.folder.path().join("faults")
    }

    /// A plugin of the test's own, in `CNI_PATH`: a shell script.
    pub fn plugin(&self, name: &str, script: &str) {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
    }

    /// The names of the host's interfaces.
    pub fn host_links(&self) -> Vec<String> {
        let list = || Netlink::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
        self.host.run(list).unwrap()
    }

    /// Runs a command on the host that must work.
    pub fn on_host(&self, argv: &[&str]) -> String {
        let output = output(&self.host, argv);
        assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub fn container(&self, name: &str) -> &Namespace {
        self.containers.get(name).unwrap_or(&self.containers["c1"])
    }

    /// The path of a container's namespace.
    pub fn netns(&self, container: &str) -> String {
        netns_path(self.container(container))
    }

    /// The target's configuration of this version.
    pub fn conf(&self, version: &str) -> Value {
        let mut conf = json!({"cniVersion": version, "name": "net", "type": "test"});
        let more = (self.target.conf)(&self.folder());
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    }

    /// Calls the plugin with these variables and no others.
    pub fn bare(&self, variables: &[(&str, &str)], stdin: &str) -> Answer {
        self.start(&self.target.program, variables, stdin)
    }

    pub fn call(&self, command: &str, who: &Who<'_>, args: &str, conf: &Value) -> Answer {
        self.call_program(&self.target.program, command, who, args, conf)
    }

    /// Calls another plugin, which may call the target.
    pub fn call_program(&self, program: &Path, command: &str, who: &Who<'_>, args: &str, conf: &Value) -> Answer {
        self.start(program, &self.variables(command, who, args).each(), &conf.to_string())
    }

    pub fn call_without(&self, missing: &str, command: &str, who: &Who<'_>, conf: &Value) -> Answer {
        let variables = self.variables(command, who, "");
        let left: Vec<(&str, &str)> = variables.each().into_iter().filter(|(name, _)| *name != missing).collect();
        self.start(&self.target.program, &left, &conf.to_string())
    }

    pub fn call_text(&self, command: &str, who: &Who<'_>, stdin: &str) -> Answer {
        self.start(&self.target.program, &self.variables(command, who, "").each(), stdin)
    }

    /// An ADD that must work: the address.
    pub fn add(&self, who: &Who<'_>, args: &str, conf: &Value) -> String {
        let answer = self.call("ADD", who, args, conf);
        assert_eq!(answer.code, 0, "{who:?} {args}: {answer:?}");
        address_in(&answer.json)
    }

    fn variables(&self, command: &str, who: &Who<'_>, args: &str) -> Variables {
        let netns = who.netns.map_or_else(|| self.netns(who.container), str::to_owned);
        let path = format!("{}:{}", self.folder.path().display(), REFERENCE.display());
        let all = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", who.container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", who.interface),
            ("CNI_ARGS", args),
            ("CNI_PATH", &path),
        ];
        Variables(all.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
    }

    /// `kill -9` so long after a call began, if it takes that long. Whether it did.
    pub fn kill_after(&self, pause: Duration, command: &str, who: &Who<'_>, conf: &Value) -> bool {
        let mut child = self.spawn(&self.target.program, &self.variables(command, who, "").each());
        let _ = child.stdin.take().expect("a pipe").write_all(conf.to_string().as_bytes());
        std::thread::sleep(pause);
        let _ = child.kill();
        child.wait().expect("its end").code().is_none()
    }

    fn start(&self, program: &Path, variables: &[(&str, &str)], stdin: &str) -> Answer {
        let mut child = self.spawn(program, variables);
        // One that does not read its input is no error.
        let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
        let output = child.wait_with_output().expect("its end");
        let text = |octets: Vec<u8>| String::from_utf8(octets).expect("UTF-8");
        let out = text(output.stdout);
        let json = serde_json::from_str(&out).unwrap_or_default();
        // A code of its own for one that was killed.
        Answer { code: output.status.code().unwrap_or(-1), out, err: text(output.stderr), json }
    }

    fn spawn(&self, program: &Path, variables: &[(&str, &str)]) -> Child {
        // A path stays what it is.
        let mut command = Command::new(self.folder.path().join(program));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(variables.iter().copied());
        command.env("UNDERPASS_FAULTS", self.faults());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.host.spawn(command).expect("the plugin")
    }

    /// Who has an address, by the command for people who look.
    pub fn leases(&self) -> Vec<String> {
        let mut command = Command::new(UNDERPASS);
        let output = command.args(["ipam", "ls", "--json", "--state-dir"]).arg(self.folder()).output().expect("the binary");
        assert!(output.status.success(), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let leases = value["networks"].as_array().unwrap().iter().flat_map(|network| network["leases"].as_array().unwrap());
        let mut listed: Vec<String> = leases
            .map(|lease| {
                let mut line = String::new();
                let part = |key: &str| lease[key].as_str().unwrap().to_owned();
                write!(line, "{} {}", part("container"), part("interface")).unwrap();
                line
            })
            .collect();
        listed.sort();
        listed
    }

    /// A ping out of a container that must be answered.
    pub fn ping(&self, container: &str, address: &str) {
        let mut command = Command::new("/bin/ping");
        command.args(["-c", "1", "-W", "5", address]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.container(container).spawn(command).expect("ping").wait_with_output().expect("its end");
        assert!(output.status.success(), "{container} to {address}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

struct Variables(Vec<(&'static str, String)>);

impl Variables {
    fn each(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// The first address of a result of any version, without its prefix length.
pub fn address_in(result: &Value) -> String {
    let text = result["ips"][0]["address"].as_str().or_else(|| result["ip4"]["ip"].as_str());
    text.and_then(|text| text.split('/').next()).unwrap_or_else(|| panic!("no address in {result}")).to_owned()
}
