//! Against a real etcd of this machine (Debian's etcd-server), which each test starts for itself.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::sync::Barrier;

use serde_json::json;
use tempfile::TempDir;

use super::api::{Api, Guard, Told, Write};
use super::claim::{Claim, ClaimError, claim};
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
                let block = claim(&mut api, &keys, owner, Claim::Any { network, within: &[], without: &[] })
                    .map_err(|error| error.to_string());
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
    let mut any = |owner: &str| claim(&mut api, &keys, owner, Claim::Any { network: &network, within: &[], without: &[] });
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
    assert!(matches!(
        claim(&mut api, &keys, "a", Claim::Any { network: &network, within: &[], without: &[] }),
        Err(ClaimError::Late)
    ));
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

/// More blocks than one transaction of etcd can free.
#[test]
fn a_host_with_hundreds_of_blocks_is_removed_in_pieces() {
    let server = Server::start();
    let beta = Follows::new(&server, "beta", 9);
    let kept = beta.blocks_of(9);
    let alpha = Follows::new(&server, "alpha", 1);
    let network = NetworkRecord { v: VERSION, subnets: vec!["10.42.0.0/16".parse().unwrap()], block: 24 };
    let (mut api, id) = (server.api(), host_id(&key(1)));
    let mut had: BTreeSet<IpNet> = alpha.blocks_of(1).into_iter().collect();
    for _ in 0..239 {
        had.insert(claim(&mut api, &keys(), &id, Claim::Any { network: &network, within: &[], without: &[] }).unwrap());
    }
    let single = keys().single("10.42.250.7".parse().unwrap());
    let record = json!({"v": 1, "owner": id, "state": "granted"}).to_string();
    assert!(api.transact(&[], &[Write::Put(&single, record.into_bytes())]).unwrap());
    beta.wait_for("240 blocks", |snapshot| {
        let hosts = snapshot.members.as_ref()?.hosts.clone();
        (hosts.iter().find(|host| host.id == id)?.blocks.len() == 240).then_some(())
    });
    // Whoever removed it before was killed behind his first transaction: alpha, which runs, claims nothing any more.
    let first = *had.first().unwrap();
    let (block, removed) = (keys().block(first), keys().removed(&id));
    assert!(api.transact(&[], &[Write::Put(&removed, b"{}".to_vec()), Write::Delete(&block)]).unwrap());
    alpha.wait_for("its removal", |snapshot| {
        snapshot.warnings.iter().any(|text| text.contains("removed from the store")).then_some(())
    });
    assert!(matches!(claim(&mut api, &keys(), &id, Claim::Just(first)), Err(ClaimError::Late)));
    assert!(beta.snapshot().members.unwrap().hosts.iter().any(|host| host.id == id), "it can be removed again");

    let before = api.head("/").unwrap().revision;
    let freed: BTreeSet<IpNet> = beta.remove(1, true).unwrap().into_iter().collect();
    had.remove(&first);
    assert_eq!(freed, had, "what was left");
    let transactions = api.head("/").unwrap().revision - before;
    assert!((3..=6).contains(&transactions), "{transactions} transactions for 239 blocks");
    beta.wait_for_hosts(1);
    assert_eq!(beta.blocks_of(9), kept, "others keep theirs");
    let left: Vec<String> = api.list(keys().all()).unwrap().kvs.into_iter().map(|kv| kv.key).collect();
    let of_alpha: Vec<&String> = left.iter().filter(|key| key.contains(&id)).collect();
    assert_eq!(of_alpha, [&removed], "what says that it is gone");
    let any = Claim::Any { network: &network, within: &[first], without: &[] };
    assert_eq!(claim(&mut api, &keys(), &host_id(&key(9)), any).unwrap(), first, "free for others");
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

/// What an agent does for its host, with a journal that is a set of addresses.
struct Keeper {
    taken: BTreeSet<IpAddr>,
}

impl Follows {
    fn asker(&self) -> Asker {
        self.etcd.as_ref().unwrap().asker()
    }

    /// Its containers have these addresses that are in none of its blocks.
    fn uses(&self, singles: &[&str]) {
        let singles = singles.iter().map(|text| (text.parse().unwrap(), "container c1 (eth0)".to_owned())).collect();
        self.asker().set_usage(Usage { singles, ..Usage::default() });
    }

    /// The single addresses of a key's host as this host knows them.
    fn singles_of(&self, seed: u8) -> Vec<String> {
        let members = self.snapshot().members.unwrap();
        let host = members.hosts.iter().find(|host| host.id == host_id(&key(seed)));
        host.map(|host| host.singles.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    fn wait_for_singles(&self, seed: u8, expected: &[&str]) {
        self.wait_for(&format!("{expected:?} of {seed}"), |_| (self.singles_of(seed) == expected).then_some(()));
    }

    /// Answers what others want, once somebody wants something.
    fn keep(&self, keeper: &Keeper) {
        let claims = self.wait_for("a claim", |snapshot| Some(Arc::clone(&snapshot.claims)).filter(|it| !it.is_empty()));
        for claim in claims.iter().filter(|claim| !claim.granted) {
            let is_taken = keeper.taken.contains(&claim.address);
            self.asker().lent(claim, if is_taken { Err("a container has it".to_owned()) } else { Ok(()) });
        }
    }
}

fn single(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_single_address_of_nobodys_block_has_one_host() {
    let server = Server::start();
    let (alpha, beta) = (Follows::new(&server, "alpha", 1), Follows::new(&server, "beta", 2));
    let own = alpha.blocks_of(1);
    beta.blocks_of(1);
    alpha.uses(&["10.42.77.7"]);
    assert_eq!(alpha.asker().claim(single("10.42.77.7")), Ok(()));
    beta.wait_for_singles(1, &["10.42.77.7"]);
    beta.uses(&["10.42.77.7"]);
    let refused = beta.asker().claim(single("10.42.77.7")).unwrap_err();
    assert_eq!((refused.why.as_str(), refused.later), ("host alpha has it", false));
    beta.wait_for("a word about it", |snapshot| {
        snapshot.warnings.iter().any(|text| text.contains("10.42.77.7 here, which is in no block")).then_some(())
    });
    for (address, why) in [
        ("10.43.0.5", "it is in none of the store's subnets"),
        ("10.42.77.0", "it is the first, the last, or the host's own address of 10.42.77.0/24"),
        ("10.42.77.1", "it is the first, the last, or the host's own address of 10.42.77.0/24"),
        ("10.42.0.1", "it is the first, the last, or the host's own address of 10.42.0.0/24"),
    ] {
        beta.uses(&[address]);
        let refused = beta.asker().claim(single(address)).unwrap_err();
        assert!(refused.why.starts_with(why) && !refused.later, "{refused:?}");
    }
    beta.uses(&[]);
    assert!(!beta.asker().claim(single("10.42.77.9")).unwrap_err().later, "what no container has is not claimed");
    // Who gives it up by using it no more makes it free for others.
    alpha.uses(&[]);
    beta.wait_for_singles(1, &[]);
    beta.uses(&["10.42.77.7"]);
    assert_eq!(beta.asker().claim(single("10.42.77.7")), Ok(()));
    alpha.wait_for_singles(2, &["10.42.77.7"]);
    // A block that holds one is nobody's first choice.
    let taken = [own, beta.blocks_of(2)].concat();
    let free = |number: &u8| !taken.contains(&format!("10.42.{number}.0/24").parse().unwrap());
    let next = (1..).find(free).unwrap();
    let address = format!("10.42.{next}.9");
    alpha.uses(&[&address]);
    assert_eq!(alpha.asker().claim(single(&address)), Ok(()));
    let gamma = Follows::new(&server, "gamma", 3);
    let block = gamma.blocks_of(3)[0];
    assert!(!block.contains(&single(&address)), "{block} holds {address}");
}

#[test]
fn an_address_out_of_anothers_block_is_that_hosts_to_give() {
    let mut server = Server::start();
    let (alpha, beta) = (Follows::new(&server, "alpha", 1), Follows::new(&server, "beta", 2));
    let block = alpha.blocks_of(1)[0];
    beta.blocks_of(1);
    let [free, taken, late] = [7, 8, 9].map(|last| block.hosts().nth(last - 1).unwrap());
    let keeper = Keeper { taken: [taken].into() };
    let texts = [free, taken, late].map(|address| address.to_string());
    let claim = |address: IpAddr| {
        let asker = beta.asker();
        thread::spawn(move || asker.claim(address))
    };
    beta.uses(&[&texts[0]]);
    let asked = claim(free);
    assert_eq!(beta.singles_of(2), [""; 0], "it is not his before alpha says so");
    alpha.keep(&keeper);
    assert_eq!(asked.join().unwrap(), Ok(()));
    alpha.wait_for_singles(2, &[&texts[0]]);
    let claimed = Claimed { address: free, host: host_id(&key(2)), granted: true };
    alpha.wait_for("what was given", |snapshot| (*snapshot.claims == [claimed.clone()]).then_some(()));
    assert!(alpha.snapshot().live);

    beta.uses(&[&texts[0], &texts[1]]);
    let asked = claim(taken);
    alpha.wait_for("the second claim", |snapshot| (snapshot.claims.len() == 2).then_some(()));
    alpha.keep(&keeper);
    assert_eq!(asked.join().unwrap(), Err(Refused::never("alpha, in whose block it is, refuses: a container has it")));
    // An owner that does not answer gives nothing, and nobody guesses.
    beta.uses(&[&texts[0], &texts[2]]);
    let refused = claim(late).join().unwrap().unwrap_err();
    assert_eq!((refused.why.as_str(), refused.later), ("alpha, in whose block it is, does not answer", true));
    assert_eq!(beta.singles_of(2), [texts[0].as_str()]);
    // Without the store neither.
    server.kill();
    beta.wait_for("the store to be away", |snapshot| snapshot.trouble.clone());
    let refused = claim(late).join().unwrap().unwrap_err();
    assert!(refused.later && refused.why.starts_with("the store cannot be reached"), "{refused:?}");
    assert_eq!(beta.singles_of(2), [texts[0].as_str()], "what it has it keeps");
    server.run_at(server.port);
    // What ended meanwhile is given back when the store is there, and alpha hears of it.
    beta.uses(&[]);
    alpha.wait_for("its address back", |snapshot| snapshot.claims.is_empty().then_some(()));
    alpha.wait_for_singles(2, &[]);
}

#[test]
fn two_hosts_that_want_one_address_at_once_never_both_have_it() {
    let server = Server::start();
    let hosts = [Follows::new(&server, "alpha", 1), Follows::new(&server, "beta", 2)];
    hosts[0].blocks_of(2);
    hosts[1].blocks_of(1);
    for round in 0..40 {
        let address = single(&format!("10.42.{}.{}", 100 + round / 20, 10 + round % 20));
        let barrier = Barrier::new(2);
        let outcomes = thread::scope(|scope| {
            let claims = hosts.each_ref().map(|host| {
                let barrier = &barrier;
                scope.spawn(move || {
                    host.uses(&[&address.to_string()]);
                    barrier.wait();
                    host.asker().claim(address)
                })
            });
            claims.map(|claim| claim.join().unwrap())
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "round {round}: {outcomes:?}");
    }
}

#[test]
fn a_block_is_claimed_before_the_last_one_is_full() {
    let mut server = Server::start();
    let mut alpha = Follows::stopped(&server, "alpha", 1);
    (alpha.settings.subnets, alpha.settings.block) = (vec!["10.42.0.0/27".parse().unwrap()], 29);
    alpha.start();
    let first = alpha.blocks_of(1);
    let tight = |blocks: &[IpNet]| Usage {
        tight: vec![Tight { network: "managed".into(), within: Vec::new(), blocks: blocks.to_vec() }],
        ..Usage::default()
    };
    alpha.asker().set_usage(tight(&first));
    let two = alpha.wait_for("a second block", |_| Some(alpha.blocks_of(1)).filter(|blocks| blocks.len() == 2));
    assert_eq!(two[0], first[0], "the first one stays the first: it has the host's own address");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(alpha.blocks_of(1), two, "what is not counted yet is not full");
    // Whoever asks for the third gets it at once; there is no fourth, and that is said.
    alpha.asker().set_usage(tight(&two));
    assert_eq!(alpha.asker().next_block("managed"), Ok(()));
    let three = alpha.blocks_of(1);
    assert_eq!(three.len(), 3);
    alpha.asker().set_usage(tight(&three));
    let refused = alpha.asker().next_block("managed").unwrap_err();
    let why = "no block of /29 is free in the store's network: all 3 are owned by hosts";
    assert_eq!(refused, Refused::never(why));
    alpha.wait_for("a warning", |snapshot| {
        snapshot.warnings.contains(&format!("network managed: its addresses run out here, and {why}")).then_some(())
    });
    alpha.asker().set_usage(Usage::default());
    alpha.wait_for("no warning", |snapshot| snapshot.warnings.is_empty().then_some(()));
    server.kill();
    alpha.wait_for("the store to be away", |snapshot| snapshot.trouble.clone());
    assert!(alpha.asker().next_block("managed").unwrap_err().later);
    // The order outlives the agent.
    alpha.etcd = None;
    alpha.start();
    assert_eq!(alpha.blocks_of(1), three);
}

#[test]
fn endpoints_are_written_many_at_once_and_made_right_after_an_absence() {
    let mut server = Server::start();
    let (alpha, mut beta) = (Follows::new(&server, "alpha", 1), Follows::new(&server, "beta", 2));
    alpha.blocks_of(2);
    beta.blocks_of(1);
    let endpoint = |number: u16| {
        let container = format!("c{number}");
        let ips = vec![IpAddr::from([10, 42, (number >> 8) as u8, number as u8])];
        (format!("managed/{container}:eth0:net"), Endpoint { v: 1, container, ips, ..Endpoint::default() })
    };
    let uses = |numbers: std::ops::Range<u16>| {
        let endpoints = numbers.map(endpoint).collect();
        alpha.asker().set_usage(Usage { endpoints, ..Usage::default() });
    };
    let seen = |host: &Follows| {
        let mut all = host.asker().endpoints().unwrap();
        let mut names: Vec<String> =
            all.remove(&host_id(&key(1))).unwrap_or_default().into_iter().map(|endpoint| endpoint.container).collect();
        assert!(all.is_empty(), "nobody else has any: {all:?}");
        names.sort();
        names
    };
    let expected = |numbers: std::ops::Range<u16>| {
        let mut names: Vec<String> = numbers.map(|number| format!("c{number}")).collect();
        names.sort();
        names
    };
    for host in [&alpha, &beta] {
        host.wait_for("all to be seen", |snapshot| snapshot.members.as_ref()?.hosts.iter().all(|it| it.seen).then_some(()));
    }
    let before = server.api().head("/").unwrap().revision;
    let changed = beta.snapshot().changed;
    uses(0..250);
    beta.wait_for("250 endpoints", |_| (seen(&beta) == expected(0..250)).then_some(()));
    let transactions = server.api().head("/").unwrap().revision - before;
    assert!(transactions <= 6, "{transactions} transactions for 250 containers");
    assert_eq!(seen(&alpha), [""; 0], "what is here nobody need be told");
    assert_eq!(beta.snapshot().changed, changed, "no tunnel hangs on containers");
    // The store is away while they change, and a key is there that nobody wrote for us.
    let port = server.port;
    server.kill();
    beta.wait_for("the store to be away", |snapshot| snapshot.trouble.clone());
    uses(100..260);
    assert_eq!(seen(&beta), expected(0..250), "what was known stays known");
    beta.etcd = None;
    beta.start();
    server.run_at(port);
    let stray = format!("{}managed/stray:eth0:net", keys().endpoints(&host_id(&key(1))));
    assert!(server.api().transact(&[], &[Write::Put(&stray, b"{\"v\":1,\"container\":\"stray\"}".to_vec())]).unwrap());
    beta.wait_for("what is true now", |_| (seen(&beta) == expected(100..260)).then_some(()));
    // A host that is removed takes them along.
    beta.remove(1, true).unwrap();
    beta.wait_for("none", |_| seen(&beta).is_empty().then_some(()));
}
