//! etcd on a host: one server, its data in memory, and `etcdctl`.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::{Daemon, Host, wait_for};

/// etcd's port for clients.
const PORT: u16 = 2379;

/// A server, or the place of one.
pub struct Etcd {
    host: Host,
    folder: TempDir,
    daemon: Option<Daemon>,
}

impl Etcd {
    /// Starts one, empty.
    pub fn running(host: &Host) -> Self {
        // Whether it survives a power cut is not the question.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let mut etcd = Self { host: host.clone(), folder: folder.expect("a folder"), daemon: None };
        etcd.start();
        etcd
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}:{PORT}", self.host.address)
    }

    /// Starts it with the data that it has, and waits until it answers.
    pub fn start(&mut self) {
        let (url, peer) = (self.url(), "http://127.0.0.1:2380");
        let data = self.folder.path().join("data").display().to_string();
        let (cluster, log) = (format!("default={peer}"), self.folder.path().join("log"));
        let client = ["--listen-client-urls", &url, "--advertise-client-urls", &url];
        let peers = ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", &cluster];
        let argv = [&["etcd", "--data-dir", &data, "--enable-v2=false"][..], &client, &peers].concat();
        self.daemon = Some(Daemon::start("etcd", &self.host.on(&argv), &[("GOMAXPROCS", "1")], &log));
        wait_for("etcd to answer", Duration::from_secs(30), || {
            self.attempt(&["endpoint", "health"]).status.success().then_some(())
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.daemon.take().expect("a server").kill();
    }

    fn attempt(&self, arguments: &[&str]) -> std::process::Output {
        let url = self.url();
        self.host.attempt(&[&["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &url], arguments].concat())
    }

    /// `etcdctl` with a script of transactions or puts on its standard input, by a shell.
    pub fn script(&self, script: &str) -> String {
        let file = self.folder.path().join("script");
        std::fs::write(&file, script).expect("a script");
        let url = self.url();
        let file = file.display().to_string();
        self.host.run(&["env", "ETCDCTL_API=3", &format!("ETCDCTL_ENDPOINTS={url}"), "sh", "-e", &file])
    }
}
