//! Against a real etcd of this machine (Debian's etcd-server), which each test starts for itself.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Barrier;

use serde_json::json;
use tempfile::TempDir;

use super::api::{Api, Guard, Told, Write};
use super::claim::{Claim, claim};
use super::records::{Keys, NetworkRecord, VERSION};
use super::*;
use crate::crypto::SigningKey;
use crate::model::Secret;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server; killed on drop.
struct Server {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
    tls: Vec<String>,
}

impl Server {
    fn start() -> Self {
        Self::with(|_| Vec::new())
    }

    fn with(tls: impl FnOnce(&Path) -> Vec<String>) -> Self {
        // Whether it survives a power cut is not the question.
        let memory = Path::new("/dev/shm");
        let folder = if memory.exists() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let tls = tls(folder.path());
        let mut server = Self { folder, port: free_port(), child: None, tls };
        server.run_at(server.port);
        server
    }

    /// The same data, served at this port.
    fn run_at(&mut self, port: u16) {
        self.port = port;
        let scheme = if self.tls.is_empty() { "http" } else { "https" };
        let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        // The kernel ends it with the test, however that ends.
        let mut program = Program::new("setpriv");
        program.args(["--pdeathsig", "KILL", "etcd"]);
        program.env("GOMAXPROCS", "1").args(["--data-dir", self.folder.path().join("data").to_str().unwrap()]);
        program.args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
        program.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        program.args(["--enable-v2=false"]).args(&self.tls);
        program.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(program.spawn().expect("etcd: tests/run installs it"));
        let late = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < late, "{}", fs::read_to_string(self.folder.path().join("log")).unwrap());
            thread::sleep(Duration::from_millis(20));
        }
        // It listens before it answers. With TLS whoever asks first waits.
        while self.tls.is_empty() && self.api().head("/").is_err() {
            assert!(Instant::now() < late, "{}", fs::read_to_string(self.folder.path().join("log")).unwrap());
        }
    }

    /// `kill -9`.
    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn settings(&self) -> EtcdSettings {
        EtcdSettings {
            endpoints: vec![EtcdEndpoint { tls: !self.tls.is_empty(), host: "127.0.0.1".into(), port: self.port }],
            prefix: "/underpass".into(),
            ca_file: None,
            certificate: None,
            login: None,
            subnets: vec!["10.42.0.0/16".parse().unwrap()],
            block: 24,
        }
    }

    fn api(&self) -> Api {
        Api::new(self.settings().endpoints, None, &Credentials::default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn keys() -> Keys {
    Keys::new("/underpass")
}

fn key(seed: u8) -> crate::crypto::VerifyingKey {
    SigningKey::from_seed(&[seed; 32]).verifying_key()
}

fn profile(name: &str, seed: u8) -> Profile {
    let own = Own { name: name.into(), keys: vec![key(seed)] };
    Profile { own, addresses: vec![format!("192.0.2.{seed}")], natt_port: 4500, blocks: Vec::new() }
}

/// A host that follows a store, with a state directory that outlives it.
struct Follows {
    etcd: Option<Etcd>,
    state: TempDir,
    profile: Profile,
    settings: EtcdSettings,
}

impl Follows {
    fn new(server: &Server, name: &str, seed: u8) -> Self {
        let mut host = Self::stopped(server, name, seed);
        host.start();
        host
    }

    fn stopped(server: &Server, name: &str, seed: u8) -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { etcd: None, state, profile: profile(name, seed), settings: server.settings() }
    }

    fn start(&mut self) {
        self.start_with(&Credentials::default());
    }

    fn start_with(&mut self, credentials: &Credentials) {
        let state = self.state.path().to_owned();
        self.etcd = Some(Etcd::start(&self.settings, credentials, self.profile.clone(), state).unwrap());
    }

    fn snapshot(&self) -> Snapshot {
        self.etcd.as_ref().unwrap().snapshot()
    }

    fn wait_for<T>(&self, what: &str, ask: impl Fn(&Snapshot) -> Option<T>) -> T {
        let late = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.snapshot();
            if let Some(answer) = ask(&snapshot) {
                return answer;
            }
            assert!(Instant::now() < late, "{} waits in vain for {what}: {snapshot:#?}", self.profile.own.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The blocks of a key's host, once it has some.
    fn blocks_of(&self, seed: u8) -> Vec<IpNet> {
        let id = host_id(&key(seed));
        self.wait_for(&format!("blocks of {seed}"), |snapshot| {
            let host = snapshot.members.as_ref()?.hosts.iter().find(|host| host.id == id)?.clone();
            (!host.blocks.is_empty()).then_some(host.blocks)
        })
    }

    fn wait_for_hosts(&self, count: usize) {
        let seen = |snapshot: &Snapshot| snapshot.members.as_ref().map_or(0, |members| members.hosts.len());
        self.wait_for(&format!("{count} hosts"), |snapshot| (seen(snapshot) == count).then_some(()));
    }

    fn remove(&self, seed: u8, force: bool) -> Result<Vec<IpNet>, String> {
        self.etcd.as_ref().unwrap().asker().remove(&host_id(&key(seed)), force)
    }
}

#[test]
fn hosts_join_by_themselves_and_own_blocks_for_good() {
    let server = Server::start();
    let mut hosts: Vec<Follows> = (1..=5).map(|seed| Follows::new(&server, &format!("host{seed}"), seed)).collect();
    let mut blocks: Vec<IpNet> = (1..=5).flat_map(|seed| hosts[0].blocks_of(seed)).collect();
    blocks.sort();
    let expected: Vec<IpNet> = (1..=5).map(|number| format!("10.42.{number}.0/24").parse().unwrap()).collect();
    assert!(blocks.windows(2).all(|pair| pair[0] != pair[1]), "{blocks:?}");
    assert_eq!(blocks.len(), expected.len());
    assert!(!blocks.contains(&"10.42.0.0/24".parse().unwrap()), "the gateway's block is nobody's");
    for host in &hosts {
        host.wait_for_hosts(5);
        let all_seen = |snapshot: &Snapshot| snapshot.members.as_ref()?.hosts.iter().all(|host| host.seen).then_some(());
        host.wait_for("all to be seen", all_seen);
        assert_eq!(host.snapshot().members.unwrap().warnings, [""; 0]);
    }
    // Stopped and started again, also without what it knew: the same key has the same block.
    let before = hosts[0].blocks_of(3);
    hosts[2].etcd = None;
    hosts[2].state = tempfile::tempdir().unwrap();
    hosts[2].start();
    assert_eq!(hosts[2].blocks_of(3), before);
}

#[test]
fn a_thousand_claims_at_once_never_give_one_block_twice() {
    let server = Server::start();
    let network = NetworkRecord { v: VERSION, subnets: vec!["10.42.0.0/16".parse().unwrap()], block: 24 };
    let barrier = Barrier::new(2);
    let claimer = |owner: &'static str| {
        let (network, barrier, mut api, keys) = (&network, &barrier, server.api(), keys());
        move || {
            let mut claimed = Vec::new();
            for _ in 0..1000 {
                barrier.wait();
                // Nobody panics here: the other one would wait for ever.
                let block = claim(&mut api, &keys, owner, Claim::Any(network)).map_err(|error| error.to_string());
                // Both have their block; then both give it back, so that they want the same one again.
                barrier.wait();
                if let Ok(block) = &block {
                    let _ = api.transact(&[], &[Write::Delete(&keys.block(*block))]);
                }
                claimed.push(block);
            }
            claimed
        }
    };
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(claimer("one"));
        let other = scope.spawn(claimer("other"));
        (one.join().unwrap(), other.join().unwrap())
    });
    let failed: Vec<_> = one.iter().chain(&other).filter_map(|claimed| claimed.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let twice: Vec<_> = one.iter().zip(&other).enumerate().filter(|(_, (one, other))| one == other).collect();
    assert!(twice.is_empty(), "of one round: {twice:?}");
}

#[test]
fn claims_of_different_sizes_do_not_overlap() {
    let server = Server::start();
    let (mut api, keys) = (server.api(), keys());
    let network = NetworkRecord { v: VERSION, subnets: vec!["10.42.0.0/22".parse().unwrap()], block: 24 };
    let mut any = |owner: &str| claim(&mut api, &keys, owner, Claim::Any(&network));
    assert_eq!(any("a").unwrap().to_string(), "10.42.1.0/24");
    let just = |owner: &str, block: &str| claim(&mut server.api(), &keys, owner, Claim::Just(block.parse().unwrap()));
    assert!(matches!(just("b", "10.42.0.0/16"), Err(ClaimError::Taken(..))));
    assert!(matches!(just("b", "10.42.1.128/25"), Err(ClaimError::Taken(..))));
    assert_eq!(just("b", "10.42.2.128/25").unwrap().to_string(), "10.42.2.128/25");
    assert_eq!(just("b", "10.42.2.128/25").unwrap().to_string(), "10.42.2.128/25", "it has it");
    assert_eq!(any("c").unwrap().to_string(), "10.42.3.0/24");
    let full = any("d").unwrap_err();
    assert!(matches!(full, ClaimError::Full(24, 3)), "{full}");
    // Who was removed claims nothing any more.
    assert!(
        api.transact(
            &[],
            &[Write::Put(&keys.removed("a"), b"{}".to_vec()), Write::Delete(&keys.block("10.42.1.0/24".parse().unwrap()))]
        )
        .unwrap()
    );
    assert!(matches!(claim(&mut api, &keys, "a", Claim::Any(&network)), Err(ClaimError::Late)));
}

#[test]
fn changes_that_the_store_has_forgotten_are_listed() {
    let mut server = Server::start();
    let port = server.port;
    let host = Follows::new(&server, "alpha", 1);
    let other = Follows::new(&server, "beta", 2);
    host.blocks_of(2);
    drop(other);
    server.kill();
    host.wait_for("the store to be away", |snapshot| snapshot.trouble.clone());
    assert_eq!(host.snapshot().members.unwrap().hosts.len(), 2, "everything stays");
    // While it cannot see it: beta goes, gamma comes, and the store forgets all changes up to then.
    server.run_at(free_port());
    let (mut api, keys) = (server.api(), keys());
    let record = json!({"v": 1, "name": "gamma", "keys": [key(3).to_base64()], "addresses": [], "version": "9"});
    let gamma = keys.host(&host_id(&key(3)));
    let beta = keys.host(&host_id(&key(2)));
    let first = api.head(keys.all()).unwrap().revision;
    assert!(api.transact(&[Guard::Absent(&gamma)], &[Write::Put(&gamma, record.to_string().into_bytes())]).unwrap());
    assert!(api.transact(&[], &[Write::Delete(&beta)]).unwrap());
    let head = api.head(keys.all()).unwrap();
    assert!(head.revision >= first + 2);
    api.compact(head.revision).unwrap();
    let mut watch = api.watch(keys.all(), first + 1).unwrap();
    let until = Instant::now() + PATIENCE;
    let told = std::iter::from_fn(|| Some(watch.next(until).unwrap())).find(|told| !matches!(told, Told::Changes(..)));
    assert_eq!(told, Some(Told::Compacted));
    server.kill();
    server.run_at(port);
    host.wait_for("gamma instead of beta", |snapshot| {
        let names: Vec<&str> = snapshot.members.as_ref()?.hosts.iter().map(|host| &*host.name).collect();
        (names == ["alpha", "gamma"] && snapshot.trouble.is_none()).then_some(())
    });
}

#[test]
fn a_wiped_host_with_the_same_name_is_another_host_until_the_old_one_is_removed() {
    let server = Server::start();
    let beta = Follows::new(&server, "beta", 9);
    let old = Follows::new(&server, "alpha", 1);
    let block = beta.blocks_of(1);
    drop(old);
    let new = Follows::new(&server, "alpha", 2);
    assert_ne!(new.blocks_of(2), block, "the old one's block stays the old one's");
    new.wait_for_hosts(3);
    new.wait_for("a word about the name", |snapshot| {
        let warnings = &snapshot.members.as_ref()?.warnings;
        warnings.iter().any(|text| text.contains("2 hosts are called alpha")).then_some(())
    });
    assert!(beta.remove(1, false).unwrap_err().contains("--force"), "it was there half a minute ago");
    assert_eq!(beta.remove(1, true).unwrap(), block);
    new.wait_for_hosts(2);
    // With its key it does not come back.
    let back = Follows::new(&server, "alpha", 1);
    back.wait_for("its removal", |snapshot| {
        snapshot.warnings.iter().any(|text| text.contains("removed from the store")).then_some(())
    });
    assert_eq!(beta.snapshot().members.unwrap().hosts.len(), 2);
    // Its block is free for others.
    let gamma = Follows::new(&server, "gamma", 3);
    assert_eq!(gamma.blocks_of(3), block);
}

#[test]
fn without_the_store_a_host_starts_with_what_it_knew() {
    let mut server = Server::start();
    let mut alpha = Follows::new(&server, "alpha", 1);
    let beta = Follows::new(&server, "beta", 2);
    let block = alpha.blocks_of(2);
    let own = alpha.blocks_of(1);
    let path = alpha.state.path().join("store.json");
    alpha.wait_for("both on disk", |_| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        (text.contains(&host_id(&key(2))) && block.iter().all(|block| text.contains(&block.to_string().replace('/', "_"))))
            .then_some(())
    });
    alpha.etcd = None;
    let port = server.port;
    server.kill();
    alpha.start();
    let snapshot = alpha.snapshot();
    assert_eq!(snapshot.members.unwrap().hosts.len(), 2, "at once");
    assert_eq!((alpha.blocks_of(1), alpha.blocks_of(2)), (own.clone(), block.clone()));
    let (_, why) = alpha.wait_for("the store to be away", |snapshot| snapshot.trouble.clone());
    assert!(why.contains("127.0.0.1"), "{why}");
    assert!(alpha.remove(2, true).unwrap_err().contains("cannot be reached"));
    server.run_at(port);
    alpha.wait_for("the store", |snapshot| snapshot.trouble.is_none().then_some(()));
    // The store loses all its data: nobody loses his peers, and everybody writes himself down again with the block that he had.
    server.kill();
    fs::remove_dir_all(server.folder.path().join("data")).unwrap();
    server.run_at(port);
    let mut api = server.api();
    let late = Instant::now() + PATIENCE;
    while api.list(&keys().blocks()).unwrap().kvs.len() < 2 {
        assert!(Instant::now() < late);
        let members = alpha.snapshot().members.unwrap();
        assert_eq!(members.hosts.len(), 2);
        assert!(members.hosts.iter().all(|host| host.blocks.len() == 1), "{members:?}");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((alpha.blocks_of(1), beta.blocks_of(2)), (own, block));
}

#[test]
fn tls_and_a_password_are_asked_for() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let issue = |name: &str, common_name: Option<&str>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        }
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let server = Server::with(|folder| {
        let (certificate, key) = issue("127.0.0.1", None);
        for (name, text) in [("ca", &ca.pem()), ("cert", &certificate), ("key", &key)] {
            fs::write(folder.join(name), text).unwrap();
        }
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let flags = [("--trusted-ca-file", "ca"), ("--cert-file", "cert"), ("--key-file", "key")];
        let files = flags.iter().flat_map(|(flag, name)| [(*flag).to_owned(), path(name)]);
        files.chain(["--client-cert-auth".to_owned()]).collect()
    });
    let (certificate, client_key) = issue("underpass", None);
    let with = |login: Option<(&str, &str)>| Credentials {
        authorities: Some(ca.pem().into_bytes()),
        certificate: Some((certificate.clone().into_bytes(), Secret::copy_of(client_key.as_bytes()))),
        login: login.map(|(user, password)| (user.to_owned(), Secret::copy_of(password.as_bytes()))),
    };
    let plain = with(None);
    let mut admin = Api::new(server.settings().endpoints, plain.tls().unwrap(), &plain);
    admin.enable_authentication("underpass", "the password", "/underpass/").unwrap();

    let trouble = |credentials: &Credentials| {
        let mut host = Follows::stopped(&server, "stranger", 7);
        host.start_with(credentials);
        host.wait_for("a refusal", |snapshot| snapshot.trouble.clone()).1
    };
    let wrong = trouble(&with(Some(("underpass", "another"))));
    assert!(wrong.contains("authentication failed"), "{wrong}");
    assert!(!wrong.contains("another"), "{wrong}");
    let nobody = trouble(&with(None));
    assert!(nobody.contains("user name is empty") || nobody.contains("permission"), "{nobody}");
    // etcd's gateway would have to ignore that name, and refuses instead.
    let (named, named_key) = issue("underpass", Some("underpass"));
    let named = Some((named.into_bytes(), Secret::copy_of(named_key.as_bytes())));
    let named = trouble(&Credentials { certificate: named, ..with(Some(("underpass", "the password"))) });
    assert!(named.contains("CommonName of client"), "{named}");
    let uncertified = trouble(&Credentials { certificate: None, ..with(Some(("underpass", "the password"))) });
    assert!(uncertified.contains("https://127.0.0.1"), "{uncertified}");
    let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.pem().into_bytes();
    let impostor = trouble(&Credentials { authorities: Some(other), ..with(None) });
    assert!(impostor.contains("invalid peer certificate"), "{impostor}");

    let mut alpha = Follows::stopped(&server, "alpha", 1);
    alpha.start_with(&with(Some(("underpass", "the password"))));
    alpha.blocks_of(1);
    let mut beta = Follows::stopped(&server, "beta", 2);
    beta.start_with(&with(Some(("underpass", "the password"))));
    alpha.blocks_of(2);
}
