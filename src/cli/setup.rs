//! `underpass setup`: what a container runtime must be told so that it finds our networks and plugins.
//!
//! Networks themselves are the agent's work. What is written here is written again without harm, and only over what this command
//! wrote before. With `--root` every path is below that folder, while files name paths as the runtime sees them.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::output::{complain, print, print_json};
use super::{CONFIG_FILE, Exit, Places};
use crate::agent::drivers::{CONFLIST_PREFIX, link_plugins, missing_links};
use crate::agent::files;
use crate::config::{Config, Report};
use crate::network::{BRIDGE_PLUGINS, CniFile, Driver, IPAM_PLUGIN, Subnet};
use crate::sys::file::replace;

/// The first line of every file of ours.
const MARK: &str = "# Written by `underpass setup`; what is changed here is lost when it runs again.";

/// Where Docker listens unless it is told otherwise.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Where containerd looks for plugins if nobody told it, and `ctr` always.
const OPT_CNI_BIN: &str = "/opt/cni/bin";

#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    /// Which one.
    runtime: Runtime,
    /// Write nothing, and say what would be written.
    #[arg(long)]
    dry_run: bool,
    /// The agent's configuration: its `cni` and `drivers` count.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// The folder that is the runtime's `/`: everything is written below it.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Container runtimes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Runtime {
    Podman,
    Docker,
    Containerd,
}

impl Runtime {
    const fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Containerd => "containerd",
        }
    }
}

/// What is done, step by step.
struct Setup<'a> {
    arguments: &'a SetupArgs,
    config: &'a Config,
    drivers: &'a [Driver],
    steps: Vec<Step>,
    notes: Vec<String>,
}

/// One file, or one link with where it leads.
struct Step {
    path: PathBuf,
    target: Option<PathBuf>,
    changed: bool,
}

impl Step {
    const fn action(&self) -> &'static str {
        if self.target.is_some() { "link" } else { "write" }
    }
}

/// What is in the way, and the exit code for it.
type Outcome = Result<(), (String, Exit)>;

/// Does it, or says what it would do.
pub(super) fn run(places: &Places, arguments: &SetupArgs) -> Exit {
    let file = &arguments.config;
    let (config, drivers) = match files::load_config(file) {
        Ok((Some(config), _)) => {
            let drivers = files::drivers(&config, &mut Report::new(file));
            (config, drivers)
        }
        Ok((None, report)) => {
            let text = report.to_string();
            return complain(format_args!("the configuration cannot be used\n{}", text.trim_end()), Exit::BadConfig);
        }
        Err(error) => {
            let message =
                format!("{}: {error}: it is the agent's configuration; --config names another file", file.display());
            return complain(message, Exit::BadConfig);
        }
    };
    let mut setup = Setup { arguments, config: &config, drivers: &drivers, steps: Vec::new(), notes: Vec::new() };
    let outcome = match arguments.runtime {
        Runtime::Podman => setup.podman(),
        Runtime::Docker => setup.docker(),
        Runtime::Containerd => setup.containerd(),
    };
    setup.tell(places, outcome)
}

impl Setup<'_> {
    fn podman(&mut self) -> Outcome {
        let (conf_dir, bin_dir) = (absolute(&self.config.cni.conf_dir)?, absolute(&self.config.cni.bin_dir)?);
        let mut folders = vec![bin_dir.display().to_string()];
        // Where podman looks by itself.
        folders.extend(["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"].map(str::to_owned));
        let mut seen = Vec::new();
        folders.retain(|folder| {
            !seen.contains(folder) && {
                seen.push(folder.clone());
                true
            }
        });
        // JSON's texts are TOML's.
        let text = format!(
            "{MARK}\n[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = {}\nnetwork_config_dir = {}\n",
            json!(folders),
            json!(conf_dir)
        );
        self.write("/etc/containers/containers.conf.d/50-underpass.conf", &text)?;
        self.plugins(&bin_dir)?;
        self.notes.push("podman run --network managed … (or a network's own name)".to_owned());
        self.notes.push("networks that podman keeps for netavark are not seen with network_backend cni".to_owned());
        self.note_absent_networks(&conf_dir);
        Ok(())
    }

    fn docker(&mut self) -> Outcome {
        let Some(watched) = &self.config.docker else {
            let message = format!(
                "{}: the agent watches no Docker: add `docker: {{socket: {DOCKER_SOCKET}}}`",
                self.arguments.config.display()
            );
            return Err((message, Exit::BadConfig));
        };
        self.docker_daemon(&watched.socket)?;
        let is_ours = |driver: &&Driver| {
            driver.default_network.is_some()
                && driver.cni_config.iter().flat_map(CniFile::plugins).any(|name| BRIDGE_PLUGINS.contains(&name))
        };
        if !self.drivers.iter().any(|driver| is_ours(&driver)) {
            self.notes.push(format!("no driver brings a network with {}: labels find none", BRIDGE_PLUGINS.join(" or ")));
        }
        let text = format!("{MARK}\n[Unit]\nWants=underpass.service\nAfter=underpass.service\n");
        let written = self.write("/etc/systemd/system/docker.service.d/50-underpass.conf", &text)?;
        if written {
            self.notes.push("systemctl daemon-reload makes systemd read it".to_owned());
        }
        self.notes.push("docker run --label io.rancher.container.network=true … asks for the managed network".to_owned());
        if self.config.docker.is_none() {
            let file = self.arguments.config.display();
            self.notes
                .push(format!("the agent asks Docker nothing yet: write `docker: {{}}` into {file} and start it again"));
        }
        Ok(())
    }

    /// Docker gives addresses of its own: they must be others than ours. And it must be where the agent looks for it.
    fn docker_daemon(&mut self, watched: &Path) -> Outcome {
        let path = self.path("/etc/docker/daemon.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err((format!("{}: {error}", path.display()), Exit::from(error.kind()))),
        };
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| (format!("{}: expected JSON: {error}", path.display()), Exit::BadConfig))?;
        let hosts: Vec<&str> =
            value.get("hosts").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let is_there = |host: &&str| host.strip_prefix("unix://").is_some_and(|path| same_socket(Path::new(path), watched));
        if !(hosts.is_empty() || hosts.iter().any(|host| is_there(host) || host.starts_with("fd://"))) {
            let (path, watched) = (path.display(), watched.display());
            self.notes.push(format!("{path}: Docker listens at {}, and docker.socket is {watched}", hosts.join(", ")));
        }
        let pools = value.get("default-address-pools").and_then(Value::as_array).into_iter().flatten();
        let named = ["bip", "fixed-cidr"].into_iter().filter_map(|key| Some((key, value.get(key)?)));
        let pools = pools.filter_map(|pool| Some(("default-address-pools", pool.get("base")?)));
        for (key, prefix) in named.chain(pools) {
            let Some(prefix) = prefix.as_str().and_then(|text| text.parse::<IpNet>().ok()) else { continue };
            let subnets = self.drivers.iter().filter_map(|driver| driver.default_network.as_ref());
            let mut subnets = subnets.flat_map(|network| network.subnets.iter().map(move |subnet| (network, subnet)));
            let shared = |subnet: &Subnet| {
                let subnet = IpNet::V4(subnet.network);
                subnet.contains(&prefix.trunc()) || prefix.trunc().contains(&subnet)
            };
            if let Some((network, subnet)) = subnets.find(|(_, subnet)| shared(subnet)) {
                let message = format!(
                    "{}: {key} {prefix} overlaps {} of network {}: Docker and underpass would give out the same addresses",
                    path.display(),
                    subnet.network,
                    network.name
                );
                return Err((message, Exit::BadConfig));
            }
        }
        Ok(())
    }

    fn containerd(&mut self) -> Outcome {
        let path = self.path("/etc/containerd/config.toml");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let conf_dir = absolute(&self.config.cni.conf_dir)?;
        let told = toml_text(&text, "conf_dir").map_or_else(|| PathBuf::from("/etc/cni/net.d"), PathBuf::from);
        if told != conf_dir {
            let message = format!(
                "{}: containerd reads {}, and networks are in {}: set conf_dir of its CNI section, or cni.conf_dir",
                path.display(),
                told.display(),
                conf_dir.display()
            );
            return Err((message, Exit::BadConfig));
        }
        let bin_dir = absolute(&self.config.cni.bin_dir)?;
        self.plugins(&bin_dir)?;
        let told = toml_text(&text, "bin_dir").map(PathBuf::from).filter(|told| *told != bin_dir);
        for folder in told.into_iter().chain([OPT_CNI_BIN.into()]).filter(|folder| *folder != bin_dir) {
            self.plugins(&folder)?;
            self.foreign_plugins(&bin_dir, &folder)?;
        }
        self.notes.push("ctr run --cni … gets the first network of the folder".to_owned());
        self.note_absent_networks(&conf_dir);
        Ok(())
    }

    /// Who tries a network before the agent has run finds none.
    fn note_absent_networks(&mut self, conf_dir: &Path) {
        let ours = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with(CONFLIST_PREFIX);
        if !fs::read_dir(self.path(conf_dir)).into_iter().flatten().flatten().any(ours) {
            let folder = conf_dir.display();
            self.notes.push(format!("the agent writes the networks into {folder} when it starts; there is none yet"));
        }
    }

    /// Links to other plugins that networks need, where containerd looks.
    fn foreign_plugins(&mut self, bin_dir: &Path, folder: &Path) -> Outcome {
        let files = self.drivers.iter().flat_map(|driver| &driver.cni_config);
        for name in files.flat_map(CniFile::plugins).collect::<BTreeSet<_>>() {
            let (link, target) = (self.path(folder.join(name)), bin_dir.join(name));
            // In a dry run our own are not there yet.
            let is_done = self.steps.iter().any(|step| step.path == link);
            if is_done || link.symlink_metadata().is_ok() || !self.path(&target).exists() {
                continue;
            }
            if !self.arguments.dry_run {
                let made = fs::create_dir_all(self.path(folder)).and_then(|()| std::os::unix::fs::symlink(&target, &link));
                made.map_err(|error| (format!("{}: {error}", link.display()), Exit::from(error.kind())))?;
            }
            self.steps.push(Step { path: link, target: Some(target), changed: true });
        }
        Ok(())
    }

    /// Links to our plugins.
    fn plugins(&mut self, folder: &Path) -> Outcome {
        let failed = |message: String| (message, Exit::Failed);
        let folder = &self.path(folder);
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let missing = missing_links(folder, &program).map_err(failed)?;
        if !self.arguments.dry_run {
            link_plugins(folder, &program).map_err(failed)?;
        }
        let links = BRIDGE_PLUGINS.into_iter().chain([IPAM_PLUGIN]).map(|name| folder.join(name));
        let step = |path: PathBuf| Step { changed: missing.contains(&path), path, target: Some(program.clone()) };
        self.steps.extend(links.map(step));
        Ok(())
    }

    /// A file of ours; whether it was not there like that.
    fn write(&mut self, path: &str, text: &str) -> Result<bool, (String, Exit)> {
        let path = self.path(path);
        let present = match fs::read_to_string(&path) {
            Ok(present) => Some(present),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err((format!("{}: {error}", path.display()), Exit::from(error.kind()))),
        };
        if let Some(present) = present.as_deref().filter(|present| !present.starts_with(MARK)) {
            let what = if present.is_empty() { "an empty file" } else { "it was written by somebody else" };
            return Err((format!("{}: not made by underpass ({what}): move it away", path.display()), Exit::Failed));
        }
        let changed = present.as_deref() != Some(text);
        if changed && !self.arguments.dry_run {
            let folder = path.parent().unwrap_or(Path::new("/"));
            let written = fs::create_dir_all(folder).and_then(|()| replace(&path, text.as_bytes(), 0o644));
            written.map_err(|error| (format!("{}: {error}", path.display()), Exit::from(error.kind())))?;
        }
        self.steps.push(Step { path, target: None, changed });
        Ok(changed)
    }

    /// Where the runtime's path is for us.
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.arguments.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Says what was done, also if something was in the way of the rest.
    fn tell(&self, places: &Places, outcome: Outcome) -> Exit {
        let exit = outcome.as_ref().map_or_else(|(_, exit)| *exit, |()| Exit::Fine);
        if let Err((message, exit)) = &outcome {
            let _ = complain(message, *exit);
        }
        let dry_run = self.arguments.dry_run;
        if places.json {
            let step = |step: &Step| json!({"action": step.action(), "path": step.path, "target": step.target, "changed": step.changed});
            let value = json!({
                "schema": "underpass.setup/1",
                "runtime": self.arguments.runtime.name(),
                "dry_run": dry_run,
                "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
                "notes": self.notes,
            });
            return print_json(&value, exit);
        }
        let mut text = String::new();
        for step in &self.steps {
            let did = match (step.changed, dry_run, &step.target) {
                (false, ..) => "fine already:",
                (true, true, None) => "would write",
                (true, true, Some(_)) => "would link",
                (true, false, None) => "wrote",
                (true, false, Some(_)) => "linked",
            };
            let target = step.target.as_ref().filter(|_| step.changed);
            let target = target.map_or_else(String::new, |target| format!(" -> {}", target.display()));
            text.push_str(&format!("{did} {}{target}\n", step.path.display()));
        }
        if outcome.is_ok() {
            let runtime = self.arguments.runtime.name();
            text.push_str(&match (self.steps.iter().any(|step| step.changed), dry_run) {
                (false, _) => format!("{runtime} is set up already: nothing to do\n"),
                (true, true) => "a dry run: nothing was changed\n".to_owned(),
                (true, false) => format!("{runtime} is set up\n"),
            });
            text.extend(self.notes.iter().map(|note| format!("note: {note}\n")));
        }
        print(&text, exit)
    }
}

/// `/var/run` is `/run` on systems of today.
fn same_socket(one: &Path, other: &Path) -> bool {
    let plain =
        |path: &Path| path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest));
    plain(one) == plain(other)
}

fn absolute(path: &Path) -> Result<PathBuf, (String, Exit)> {
    std::path::absolute(path).map_err(|error| (format!("{}: {error}", path.display()), Exit::Failed))
}

/// The text of the first `key = "text"`: as much TOML as two keys need, which stand in one section of containerd's.
fn toml_text<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        rest[1..].split(quote).next()
    })
}
