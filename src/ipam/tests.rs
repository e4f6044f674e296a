//! Who asks for what, and what the journal holds then: also when processes are killed, and against a model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::{Rng, SeededRng};

const NET: &str = "managed";

fn owner(container: &str) -> Owner {
    Owner { container: container.to_owned(), interface: "eth0".to_owned(), cni_network: "net".to_owned() }
}

fn request(container: &str, wish: &[&str]) -> Request {
    let wish = match wish {
        [] => Wish::Any,
        these => Wish::These(these.iter().map(|address| address.parse().unwrap()).collect()),
    };
    Request {
        network: NET.to_owned(),
        owner: owner(container),
        sandbox: Sandbox::look("/proc/self/ns/net"),
        wish,
        never: Vec::new(),
        about: About::default(),
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A state directory with a network of these blocks; 10.42.1.1 is the host's.
struct Host {
    folder: TempDir,
    compact_over: u64,
}

impl Host {
    fn new(blocks: &[&str]) -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap(), compact_over: COMPACT_OVER };
        let reserved = ["10.42.1.1".parse().unwrap()];
        assert!(host.open().set_network(NET, &nets(blocks), &reserved, Source::Agent).unwrap());
        host
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(JOURNAL)
    }

    fn open(&self) -> Ipam {
        Ipam::open_at(&self.path(), self.compact_over).unwrap()
    }

    fn lease(&self, container: &str, wish: &[&str], now: Seconds) -> Result<Vec<String>, String> {
        let lease = self.open().lease(request(container, wish), now).map_err(|error| error.to_string())?;
        Ok(lease.addresses.iter().map(ToString::to_string).collect())
    }

    fn release(&self, container: &str, now: Seconds) -> bool {
        self.open().release(NET, &owner(container), now).unwrap().is_some()
    }

    fn look(&self) -> Book {
        Ipam::look(self.folder.path()).unwrap()
    }
}

#[test]
fn addresses_go_round_and_rest() {
    let host = Host::new(&["10.42.1.0/29"]);
    assert_eq!(host.lease("a", &[], 100).unwrap(), ["10.42.1.2"]);
    assert_eq!(host.lease("b", &[], 100).unwrap(), ["10.42.1.3"]);
    assert!(host.release("a", 110));
    assert!(!host.release("a", 111), "nothing left to release");
    assert_eq!(host.lease("c", &[], 111).unwrap(), ["10.42.1.4"], "not the one that was just released");
    assert_eq!(host.lease("d", &[], 111).unwrap(), ["10.42.1.5"]);
    assert_eq!(host.lease("e", &[], 111).unwrap(), ["10.42.1.6"]);
    assert_eq!(
        host.lease("f", &[], 120).unwrap_err(),
        "network managed: no free IPv4 address in 10.42.1.0/29: 4 of 6 leased, 1 reserved, 1 at rest (the next is free in 50 s)"
    );
    assert_eq!(host.lease("f", &[], 169).unwrap_err().rsplit('(').next(), Some("the next is free in 1 s)"));
    assert_eq!(host.lease("f", &[], 170).unwrap(), ["10.42.1.2"]);
    assert_eq!(
        host.lease("g", &[], 170).unwrap_err(),
        "network managed: no free IPv4 address in 10.42.1.0/29: 5 of 6 leased, 1 reserved, 0 at rest"
    );
    let counts = host.look().network(NET).unwrap().counts(false, &[], 170);
    assert_eq!((counts.total, counts.leased, counts.reserved, counts.resting, counts.free()), (6, 5, 1, 0, 0));
}

/// What nobody uses is taken back, and rests like everything else.
#[test]
fn a_full_block_is_searched_for_what_was_left_behind() {
    let host = Host::new(&["10.42.1.0/29"]);
    let mut gone = request("gone", &[]);
    (gone.sandbox.netns, gone.sandbox.netns_id) = ("/nonexistent".into(), None);
    let address = host.open().lease_or_reclaim(gone, 100).unwrap().addresses;
    for container in ["a", "b", "c", "d"] {
        host.open().lease_or_reclaim(request(container, &[]), 100).unwrap();
    }
    assert_eq!(host.look().leases().count(), 5, "nobody is looked for while there is room");
    let late = |now| host.open().lease_or_reclaim(request("late", &[]), now);
    assert!(matches!(late(200), Err(IpamError::Full { counts, .. }) if (counts.leased, counts.resting) == (4, 1)));
    assert_eq!(late(200 + HOLD_DOWN).unwrap().addresses, address);
}

#[test]
fn a_wish_is_fulfilled_or_fails_with_the_reason() {
    let host = Host::new(&["10.42.1.0/24", "10.42.9.0/30"]);
    assert_eq!(host.lease("a", &["10.42.1.77"], 5).unwrap(), ["10.42.1.77"]);
    for (wish, reason) in [
        ("10.42.1.77", "10.42.1.77 is held by container a (eth0) since 5 (seconds since 1970)"),
        ("10.42.2.1", "10.42.2.1 is in no block of this host; this host gives out 10.42.1.0/24, 10.42.9.0/30"),
        ("10.42.1.1", "10.42.1.1 is reserved for the host"),
        ("10.42.1.0", "10.42.1.0 is the first or last address of a block"),
        ("10.42.9.3", "10.42.9.3 is the first or last address of a block"),
    ] {
        let error = host.lease("b", &[wish], 6).unwrap_err();
        assert!(error.starts_with(&format!("network managed: {reason}")), "{error}");
    }
    let error = host.lease("b", &["10.42.1.78", "10.42.1.77"], 6).unwrap_err();
    assert!(error.contains("10.42.1.77 is held"), "{error}");
    assert_eq!(host.lease("b", &["10.42.1.78"], 6).unwrap(), ["10.42.1.78"], "nothing was given when one wish failed");
    assert!(host.release("a", 10));
    assert_eq!(host.lease("a", &["10.42.1.77"], 11).unwrap(), ["10.42.1.77"], "who asks by name need not wait for its rest");
    assert_eq!(
        host.lease("a", &[], 12).unwrap_err(),
        "network managed: container a (eth0) has 10.42.1.77 already: it must be released first"
    );
    let mut other = request("c", &[]);
    other.network = "blue".to_owned();
    let error = host.open().lease(other, 1).unwrap_err().to_string();
    assert_eq!(error, "network blue: this host has no block of it; known here: managed");
}

#[test]
fn a_gateway_is_given_to_nobody() {
    let host = Host::new(&["10.42.0.0/29"]);
    let asked = |container, wish| Request { never: vec!["10.42.0.1".parse().unwrap()], ..request(container, wish) };
    assert_eq!(host.open().lease(asked("a", &[]), 1).unwrap().addresses, ["10.42.0.2".parse::<IpAddr>().unwrap()]);
    let error = host.open().lease(asked("b", &["10.42.0.1"]), 1).unwrap_err().to_string();
    assert_eq!(error, "network managed: 10.42.0.1 is the gateway; this host gives out 10.42.0.0/29");
    for container in ["c", "d", "e", "f"] {
        host.open().lease(asked(container, &[]), 1).unwrap();
    }
    assert!(matches!(host.open().lease(asked("g", &[]), 1), Err(IpamError::Full { .. })));
}

#[test]
fn both_families_are_given_at_once() {
    let host = Host::new(&["10.42.1.0/30", "fd00:42:1::/64"]);
    assert_eq!(host.lease("a", &[], 1).unwrap(), ["10.42.1.2", "fd00:42:1::1"]);
    assert!(host.lease("b", &[], 1).unwrap_err().contains("no free IPv4 address"), "and no IPv6 address is lost by that");
    assert_eq!(host.lease("b", &["fd00:42:1::2"], 1).unwrap(), ["fd00:42:1::2"]);
    let links = Host::new(&["10.42.8.0/31", "10.42.8.7/32"]);
    assert_eq!(links.lease("a", &[], 1).unwrap(), ["10.42.8.0"]);
    assert_eq!(links.lease("b", &[], 1).unwrap(), ["10.42.8.1"]);
    assert_eq!(links.lease("c", &[], 1).unwrap(), ["10.42.8.7"]);
}

#[test]
fn blocks_that_change_leave_leases_alone() {
    let host = Host::new(&["10.42.1.0/24"]);
    assert_eq!(host.lease("a", &[], 1).unwrap(), ["10.42.1.2"]);
    let mut ipam = host.open();
    assert!(!ipam.set_network(NET, &nets(&["10.42.1.0/24"]), &["10.42.1.1".parse().unwrap()], Source::Agent).unwrap());
    assert!(ipam.set_network(NET, &nets(&["10.42.2.0/24"]), &[], Source::Agent).unwrap());
    drop(ipam);
    assert_eq!(host.lease("b", &[], 1).unwrap(), ["10.42.2.1"]);
    let findings = check(host.folder.path(), &Namespaces::look(), 1, false).unwrap();
    assert_eq!(findings.iter().map(Finding::name).collect::<Vec<_>>(), ["outside-of-blocks"]);
    assert_eq!(host.look().network(NET).unwrap().counts(false, &[], 1).leased, 1, "what lies outside does not count");
}

/// Killed at any octet of a write: the journal is what it was before, or after.
#[test]
fn a_record_is_there_whole_or_not_at_all() {
    let host = Host::new(&["10.42.1.0/24"]);
    let mut books = vec![(0, Book::default()), (fs::metadata(host.path()).unwrap().len(), host.look())];
    for step in 0..6 {
        match step {
            0..=3 => drop(host.lease(&format!("c{step}"), &[], step)),
            _ => assert!(host.release(&format!("c{}", step - 4), step)),
        }
        books.push((fs::metadata(host.path()).unwrap().len(), host.look()));
    }
    let octets = fs::read(host.path()).unwrap();
    assert_eq!(octets.len() as u64, books.last().unwrap().0);
    for len in 0..=octets.len() {
        let torn = Host { folder: tempfile::tempdir().unwrap(), compact_over: COMPACT_OVER };
        fs::write(torn.path(), &octets[..len]).unwrap();
        let expected = &books.iter().rev().find(|(end, _)| *end <= len as u64).unwrap().1;
        assert_eq!(&torn.look(), expected, "{len} octets");
        let mut ipam = torn.open();
        assert_eq!(ipam.book(), expected, "{len} octets");
        // Each write waits for the disk: not after every octet.
        if len % 16 != 0 {
            continue;
        }
        // Whatever was torn, the next record follows a whole line.
        ipam.set_network("next", &nets(&["10.9.0.0/24"]), &[], Source::Netconf).unwrap();
        drop(ipam);
        assert!(torn.look().network("next").is_some(), "{len} octets");
    }
}

#[test]
fn damage_is_refused_until_it_is_mended() {
    let host = Host::new(&["10.42.1.0/24"]);
    for container in ["a", "b", "c"] {
        host.lease(container, &[], 1).unwrap();
    }
    let mut octets = fs::read(host.path()).unwrap();
    let at = octets.windows(9).position(|it| it == b"10.42.1.3").unwrap();
    octets[at + 8] = b'9';
    fs::write(host.path(), &octets).unwrap();
    let error = Ipam::open(host.folder.path()).unwrap_err().to_string();
    let path = host.path().display().to_string();
    let message = "the checksum is wrong; `underpass ipam check --repair` keeps what can be read";
    assert_eq!(error, format!("{path}:4: {message}"));
    let namespaces = Namespaces::look();
    let damage = [Finding::Damage { line: 4, what: "the checksum is wrong" }];
    assert_eq!(check(host.folder.path(), &namespaces, 2, false).unwrap(), damage);
    assert!(Ipam::open(host.folder.path()).is_err(), "looking changes nothing");
    assert_eq!(check(host.folder.path(), &namespaces, 2, true).unwrap(), damage);
    assert_eq!(check(host.folder.path(), &namespaces, 2, true).unwrap(), []);
    let left: Vec<String> = host.look().leases().map(|lease| lease.owner.container.clone()).collect();
    assert_eq!(left, ["a", "c"]);

    let octets = fs::read(host.path()).unwrap();
    let beginning = octets.iter().position(|octet| *octet == b'\n').unwrap() + 1;
    fs::write(host.path(), &octets[beginning..]).unwrap();
    let findings = check(host.folder.path(), &namespaces, 2, true).unwrap();
    assert_eq!(findings, [Finding::Damage { line: 1, what: "no beginning" }]);
    assert_eq!(host.look().leases().count(), 2, "and no record was lost by that");

    fs::write(host.path(), record::emit(&record::Record::Journal { version: 2 })).unwrap();
    for repair in [false, true] {
        let error = check(host.folder.path(), &namespaces, 2, repair).unwrap_err().to_string();
        assert_eq!(error, format!("{path}: written by a newer version of underpass"));
    }
}

#[test]
fn leases_of_namespaces_that_are_gone_are_found_and_released() {
    let host = Host::new(&["10.42.1.0/24"]);
    let path = host.folder.path().join("netns");
    fs::write(&path, "").unwrap();
    let netns = path.to_string_lossy().into_owned();
    let with = |container: &str, change: &dyn Fn(&mut Sandbox)| {
        let mut request = request(container, &[]);
        change(&mut request.sandbox);
        host.open().lease(request, 1).unwrap();
    };
    let here = Sandbox::look(&netns);
    let other = here.netns_id.map(|id| NamespaceId { ino: 1, ..id });
    with("lives", &|_| {});
    with("its path is gone, its processes live", &|it| it.netns = "/nonexistent".into());
    with("its path is kept", &|it| *it = here.clone());
    with("unknown, and its path is there", &|it| *it = Sandbox { netns_id: None, ..here.clone() });
    with("seen by others", &|it| (it.netns, it.netns_id, it.seen_from) = ("/nonexistent".into(), None, Some(1)));
    with("seen in an unknown boot", &|it| it.boot = String::new());
    with("gone: another has its path", &|it| *it = Sandbox { netns_id: other, ..here.clone() });
    with("gone: unknown, and no path", &|it| (it.netns, it.netns_id) = ("/nonexistent".into(), None));
    with("gone: of an earlier boot", &|it| it.boot = "earlier".into());
    let mut file = fs::OpenOptions::new().append(true).open(host.path()).unwrap();
    file.write_all(b"5f0c66a1 {\"rec").unwrap();
    let namespaces = Namespaces::look();
    let findings = check(host.folder.path(), &namespaces, 2, false).unwrap();
    let gone = |finding: &Finding| finding.lease().map(|lease| lease.owner.container.clone());
    let found: Vec<Option<String>> = findings.iter().map(gone).collect();
    let expected = ["gone: another has its path", "gone: of an earlier boot", "gone: unknown, and no path"];
    assert_eq!(found, [None, Some(expected[0].into()), Some(expected[1].into()), Some(expected[2].into())]);
    assert_eq!(findings[0], Finding::Tail { octets: 14 });
    assert_eq!(check(host.folder.path(), &namespaces, 2, true).unwrap(), findings);
    assert_eq!(check(host.folder.path(), &namespaces, 2, false).unwrap(), []);
    assert_eq!(host.look().leases().count(), 6);
}

#[test]
fn the_journal_stays_small_and_private() {
    let mut host = Host::new(&["10.42.1.0/24"]);
    host.compact_over = 4096;
    let mut now = 0;
    for round in 0..300 {
        now += 1;
        host.lease(&format!("c{round}"), &[], now).unwrap();
        if round >= 3 {
            assert!(host.release(&format!("c{}", round - 3), now));
        }
        let size = fs::metadata(host.path()).unwrap().len();
        assert!(size < 40_000, "{size} octets at round {round}");
    }
    let before = host.look();
    assert_eq!(before.leases().count(), 3);
    assert_eq!(Book::replay(before.records()), before, "a snapshot says the same");
    assert_eq!(fs::metadata(host.path()).unwrap().mode() & 0o7777, 0o600);
    let names: Vec<_> = fs::read_dir(host.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [JOURNAL], "no draft is left");
}

#[test]
fn no_journal_is_an_empty_book_and_stays_none() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Ipam::look(folder.path()).unwrap(), Book::default());
    assert_eq!(check(folder.path(), &Namespaces::look(), 1, true).unwrap(), []);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::create_dir(folder.path().join(JOURNAL)).unwrap();
    assert!(matches!(Ipam::open(folder.path()), Err(IpamError::Io(..))));
}

// --- against a model ---

/// What a naive model knows: who has what, and when what was released.
#[derive(Default)]
struct Model {
    held: BTreeMap<String, IpAddr>,
    released: HashMap<IpAddr, Seconds>,
}

#[derive(Clone, Debug)]
enum Step {
    Lease(u8),
    Wish(u8, u8),
    Release(u8),
    Wait(u8),
    /// A killed process leaves the beginning of a record.
    Tear(u8),
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..24).prop_map(Step::Lease),
        2 => (0u8..24, 0u8..18).prop_map(|(who, what)| Step::Wish(who, what)),
        3 => (0u8..24).prop_map(Step::Release),
        2 => (0u8..70).prop_map(Step::Wait),
        1 => any::<u8>().prop_map(Step::Tear),
        1 => Just(Step::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_address_is_had_twice(steps in proptest::collection::vec(step(), 1..60)) {
        let mut host = Host::new(&["10.42.1.0/28"]);
        host.compact_over = 1500;
        let mut model = Model::default();
        let mut now = 1000;
        for step in steps {
            match step {
                Step::Lease(who) => {
                    let who = format!("c{who}");
                    let got = host.lease(&who, &[], now);
                    let rests = |address: &IpAddr| model.released.get(address).is_some_and(|at| now < at + HOLD_DOWN);
                    let free: BTreeSet<IpAddr> = (2..15u8)
                        .map(|last| IpAddr::from([10, 42, 1, last]))
                        .filter(|address| !model.held.values().any(|held| held == address) && !rests(address))
                        .collect();
                    match got {
                        Ok(addresses) => {
                            let address: IpAddr = addresses[0].parse().unwrap();
                            prop_assert!(free.contains(&address), "{address} is not free");
                            prop_assert!(model.held.insert(who, address).is_none());
                        }
                        Err(error) if error.contains("already") => prop_assert!(model.held.contains_key(&who)),
                        Err(error) => prop_assert!(free.is_empty() && !model.held.contains_key(&who), "{error}"),
                    }
                }
                Step::Wish(who, last) => {
                    let address = IpAddr::from([10, 42, 1, last]);
                    let may = (2..15).contains(&last)
                        && !model.held.values().any(|held| *held == address)
                        && !model.held.contains_key(&format!("c{who}"));
                    let got = host.lease(&format!("c{who}"), &[&address.to_string()], now);
                    prop_assert_eq!(got.is_ok(), may, "{:?}", got);
                    if may {
                        model.held.insert(format!("c{who}"), address);
                    }
                }
                Step::Release(who) => {
                    let had = model.held.remove(&format!("c{who}"));
                    prop_assert_eq!(host.release(&format!("c{who}"), now), had.is_some());
                    model.released.extend(had.map(|address| (address, now)));
                }
                Step::Wait(seconds) => now += Seconds::from(seconds),
                Step::Tear(len) => {
                    let line = record::emit(&record::Record::Lease(Lease {
                        network: NET.into(), addresses: vec![IpAddr::from([10, 42, 1, 9])], owner: owner("torn"),
                        sandbox: Sandbox::look(""), since: now, pending: false, about: About::default(),
                    }));
                    let mut file = fs::OpenOptions::new().append(true).open(host.path()).unwrap();
                    file.write_all(&line[..usize::from(len) % line.len()]).unwrap();
                }
                Step::Check => drop(check(host.folder.path(), &Namespaces::look(), now, true).unwrap()),
            }
            let book = host.look();
            let held: BTreeMap<String, IpAddr> =
                book.leases().map(|lease| (lease.owner.container.clone(), lease.addresses[0])).collect();
            prop_assert_eq!(&held, &model.held);
        }
    }
}

// --- processes ---

/// What the child of the tests below is told: its journal, its name, and how often it goes round.
const CHILD: &str = "UNDERPASS_IPAM_TEST_CHILD";

/// Not a test: the process that the tests below start. It leases and releases, and says each time what it was answered.
#[test]
fn child() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let [path, name, rounds] = orders.split('|').collect::<Vec<_>>()[..] else { panic!("{orders}") };
    let path = Path::new(path);
    let mut out = std::io::stderr().lock();
    let mut mine: Vec<String> = Vec::new();
    for round in 0..rounds.parse::<u64>().unwrap() {
        // Time flies, so that released addresses come back soon.
        let now = 1000 + 100 * round;
        let container = format!("{name}-{round}");
        let line = match Ipam::open_at(path, 3000).unwrap().lease(request(&container, &[]), now) {
            Ok(lease) => {
                mine.push(container.clone());
                format!("lease {container} {}\n", lease.addresses[0])
            }
            Err(IpamError::Full { .. }) => "full\n".to_owned(),
            Err(error) => panic!("{error}"),
        };
        out.write_all(line.as_bytes()).unwrap();
        if mine.len() > 3 {
            let oldest = mine.remove(0);
            out.write_all(format!("releasing {oldest}\n").as_bytes()).unwrap();
            Ipam::open_at(path, 3000).unwrap().release(NET, &owner(&oldest), now).unwrap();
            out.write_all(format!("released {oldest}\n").as_bytes()).unwrap();
        }
    }
    out.write_all(b"done\n").unwrap();
}

fn start_child(path: &Path, name: &str, rounds: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ipam::tests::child", "--nocapture", "--quiet"])
        .env(CHILD, format!("{}|{name}|{rounds}", path.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a child was answered before it ended: what it had, and what it was releasing then.
fn answers(child: &mut std::process::Child) -> (BTreeMap<String, IpAddr>, Option<String>, bool) {
    let (mut had, mut releasing, mut done) = (BTreeMap::new(), None, false);
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    for line in said.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["lease", container, address] => drop(had.insert(container.to_owned(), address.parse().unwrap())),
            ["releasing", container] => releasing = Some(container.to_owned()),
            ["released", container] => {
                had.remove(container);
                releasing = None;
            }
            ["done"] => done = true,
            ["full"] => {}
            _ => panic!("{said}"),
        }
    }
    (had, releasing, done)
}

/// Everybody's answers against the journal: whoever was answered has it, and nobody else has the same.
fn everybody_has_what_it_was_answered(host: &Host, everybody: &[(BTreeMap<String, IpAddr>, Option<String>, bool)]) {
    let book = host.open().book().clone();
    let mut holders: HashMap<IpAddr, &Owner> = HashMap::new();
    for lease in book.leases() {
        for address in &lease.addresses {
            assert_eq!(holders.insert(*address, &lease.owner), None, "{address} is had twice");
        }
    }
    for (had, releasing, _) in everybody {
        for (container, address) in had {
            match book.lease_of(NET, &owner(container)) {
                Some(lease) => assert_eq!(lease.addresses, [*address], "{container}"),
                None => assert_eq!(releasing.as_ref(), Some(container), "{container} lost {address}"),
            }
        }
    }
}

#[test]
fn a_process_killed_at_any_point_leaves_no_address_to_two() {
    let host = Host::new(&["10.42.1.0/24"]);
    let mut random = SeededRng::new(42);
    let mut everybody = Vec::new();
    let end = Instant::now() + Duration::from_secs(6);
    let (mut kills, mut answered) = (0, 0);
    while kills < 60 && (Instant::now() < end || answered <= 10) {
        let mut pair = [0, 1].map(|side| start_child(&host.path(), &format!("k{kills}-{side}"), u64::MAX));
        let mut octets = [0; 2];
        random.fill(&mut octets);
        // A child needs some milliseconds until it asks for the first time.
        std::thread::sleep(Duration::from_micros(15_000 + u64::from(u16::from_ne_bytes(octets)) / 2));
        for child in &mut pair {
            child.kill().unwrap();
            let answered = answers(child);
            child.wait().unwrap();
            everybody.push(answered);
        }
        kills += 1;
        everybody_has_what_it_was_answered(&host, &everybody);
        // Room for the next: what they left is released.
        let mut ipam = host.open();
        let owners: Vec<Owner> = ipam.book().leases().map(|lease| lease.owner.clone()).collect();
        for owner in owners {
            ipam.release(NET, &owner, 0).unwrap();
        }
        answered += everybody.drain(..).map(|(had, ..)| had.len()).sum::<usize>();
    }
    assert!(kills > 5 && answered > 10, "{kills} rounds, {answered} leases");
}

#[test]
fn many_processes_at_once_get_different_addresses() {
    let host = Host::new(&["10.42.1.0/26"]);
    let mut children: Vec<_> = (0..6).map(|n| start_child(&host.path(), &format!("p{n}"), 40)).collect();
    let everybody: Vec<_> = children.iter_mut().map(answers).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(everybody.iter().all(|(_, _, done)| *done));
    assert_eq!(everybody.iter().map(|(had, ..)| had.len()).sum::<usize>(), 18);
    everybody_has_what_it_was_answered(&host, &everybody);
    assert_eq!(host.look().leases().count(), 18);
}

/// An agent that grants what it is told to, or refuses.
struct Grants<'h> {
    host: &'h Host,
    claims: Result<(), Refusal>,
    blocks: std::cell::RefCell<Vec<&'static str>>,
}

impl Beyond for Grants<'_> {
    fn claim(&self, network: &str, address: IpAddr) -> Result<(), Refusal> {
        let book = self.host.look();
        let has_lease = book.leases().any(|lease| lease.network == network && lease.addresses.contains(&address));
        assert!(has_lease, "the lease is on disk before the claim, and the journal is not held");
        self.claims.clone()
    }

    fn next_block(&self, network: &str) -> Result<(), Refusal> {
        let next = self.blocks.borrow_mut().pop();
        let Some(next) = next else { return Err(Refusal { why: "there is none".into(), later: false }) };
        let mut blocks = self.host.look().network(network).unwrap().blocks().to_vec();
        blocks.extend(nets(&[next]));
        self.host.open().set_network(network, &blocks, &[], Source::Agent).unwrap();
        Ok(())
    }
}

impl Host {
    fn obtain(&self, agent: &Grants<'_>, container: &str, wish: &[&str]) -> Result<String, IpamError> {
        let lease = obtain(self.open(), self.folder.path(), &request(container, wish), agent, 100)?;
        Ok(lease.addresses[0].to_string())
    }
}

#[test]
fn an_address_of_no_block_is_had_by_a_claim_alone() {
    let host = Host::new(&["10.42.1.0/24"]);
    let later = Refusal { why: "the store is away".into(), later: true };
    let mut agent = Grants { host: &host, claims: Err(later.clone()), blocks: Vec::new().into() };
    let refused = host.obtain(&agent, "a", &["10.42.9.5"]).unwrap_err();
    assert!(matches!(refused, IpamError::NotOurs { .. }), "without a store nobody is asked: {refused}");
    host.open().set_beyond(NET, &nets(&["10.42.0.0/16"])).unwrap();
    let refused = host.obtain(&agent, "a", &["10.42.9.5"]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "network managed: 10.42.9.5 is in no block of this host, and the store is away: try again later"
    );
    assert_eq!(host.look().leases().count(), 0, "nothing is left of it");
    agent.claims = Ok(());
    assert_eq!(host.obtain(&agent, "a", &["10.42.9.5"]).unwrap(), "10.42.9.5");
    assert!(!host.look().leases().next().unwrap().pending);
    let taken = host.obtain(&agent, "b", &["10.42.9.5"]).unwrap_err();
    assert!(matches!(taken, IpamError::Taken { .. }), "{taken}");
    assert!(
        host.obtain(&agent, "b", &["10.43.0.5"]).unwrap_err().to_string().contains("in no block of this host; this host")
    );
    assert!(host.obtain(&agent, "b", &["10.42.255.255"]).unwrap_err().to_string().contains("the network's first or last"));
    assert_eq!(host.lease("b", &[], 100).unwrap(), ["10.42.1.2"], "the round goes on where it was");
    // The audit knows that such leases are right, and compaction keeps them.
    let findings = check(host.folder.path(), &Namespaces::look(), 200, false).unwrap();
    assert_eq!(findings, []);
    let book = Book::replay(host.look().records());
    assert_eq!(book, host.look());
}

/// Whoever is asked finds the lease, and gives it back or not.
struct Witness<'h> {
    host: &'h Host,
    gives_back: bool,
}

impl Beyond for Witness<'_> {
    fn claim(&self, network: &str, _: IpAddr) -> Result<(), Refusal> {
        let lease = self.host.look().leases().next().cloned().expect("a lease");
        assert!(lease.pending, "nobody may use it yet");
        if self.gives_back {
            self.host.open().release(network, &lease.owner, 100).unwrap();
        }
        Ok(())
    }

    fn next_block(&self, _: &str) -> Result<(), Refusal> {
        unreachable!("nothing is full here")
    }
}

#[test]
fn a_lease_is_pending_while_somebody_is_asked() {
    let host = Host::new(&["10.42.1.0/24"]);
    host.open().set_beyond(NET, &nets(&["10.42.0.0/16"])).unwrap();
    let asked = |gives_back| {
        let witness = Witness { host: &host, gives_back };
        obtain(host.open(), host.folder.path(), &request("a", &["10.42.9.5"]), &witness, 100)
    };
    let gone = asked(true).unwrap_err().to_string();
    assert!(gone.ends_with("it was given back while it was asked for: try again later"), "{gone}");
    assert_eq!(host.look().leases().count(), 0);
    assert!(!asked(false).unwrap().pending);
    assert_eq!(host.look().leases().map(|lease| lease.pending).collect::<Vec<_>>(), [false]);
    assert_eq!(Book::replay(host.look().records()), host.look());
}

#[test]
fn a_full_network_asks_for_its_next_block() {
    let host = Host::new(&["10.42.1.0/30"]);
    let agent = Grants { host: &host, claims: Ok(()), blocks: vec!["10.42.7.0/30"].into() };
    assert_eq!(host.obtain(&agent, "a", &[]).unwrap(), "10.42.1.2");
    assert!(matches!(host.obtain(&agent, "b", &[]), Err(IpamError::Full { .. })), "without a store nobody is asked");
    host.open().set_beyond(NET, &nets(&["10.42.0.0/16"])).unwrap();
    assert_eq!(host.obtain(&agent, "b", &[]).unwrap(), "10.42.7.1");
    assert_eq!(host.obtain(&agent, "c", &[]).unwrap(), "10.42.7.2");
    assert_eq!(host.obtain(&agent, "d", &[]).unwrap(), "10.42.1.1", "no longer reserved");
    let full = host.obtain(&agent, "e", &[]).unwrap_err().to_string();
    assert!(full.ends_with("4 of 4 leased, 0 reserved, 0 at rest; there is none"), "{full}");
}

#[test]
fn what_another_host_has_of_our_block_nobody_gets_here() {
    let host = Host::new(&["10.42.1.0/29"]);
    host.lease("a", &["10.42.1.3"], 1).unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let lend = |text: &str| host.open().lend("b0b0", address(text), 2);
    assert!(matches!(lend("10.42.1.3"), Err(IpamError::Taken { .. })), "a container has it");
    assert!(matches!(lend("10.42.1.1"), Err(IpamError::NotOurs { .. })), "the host's own");
    lend("10.42.1.4").unwrap();
    lend("10.42.1.4").unwrap();
    assert_eq!(host.look().leases().count(), 2, "once is enough");
    let refused = host.lease("b", &["10.42.1.4"], 3).unwrap_err();
    assert!(refused.contains("10.42.1.4 is held by a container of host b0b0"), "{refused}");
    let given: Vec<String> = ["b", "c", "d"].iter().map(|it| host.lease(it, &[], 3).unwrap().remove(0)).collect();
    assert_eq!(given, ["10.42.1.5", "10.42.1.6", "10.42.1.2"], "round it");
    assert!(!host.open().release_gone(&Namespaces::look(), 4).unwrap().iter().any(|lease| lease.owner.is_host()));
    assert_eq!(check(host.folder.path(), &Namespaces::look(), 4, true).unwrap(), []);
    host.open().release(NET, &Owner::host("b0b0", address("10.42.1.4")), 5).unwrap().unwrap();
    assert_eq!(host.lease("e", &["10.42.1.4"], 6).unwrap(), ["10.42.1.4"]);
}

#[test]
fn what_killed_processes_left_beside_the_journal_is_found_and_removed() {
    let host = Host::new(&["10.42.1.0/24"]);
    let state = host.folder.path();
    host.lease("a", &[], 100).unwrap();
    let [key, young, own] = [".host.key.77", ".networks.json.78", "ipam.journal.new"].map(|name| state.join(name));
    for path in [&key, &young, &own] {
        fs::write(path, "half").unwrap();
    }
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(&key).unwrap().set_modified(old).unwrap();
    let left = [Finding::Draft(key.clone()), Finding::Draft(own.clone())];
    let namespaces = Namespaces::look();
    assert_eq!(check(state, &namespaces, 100, false).unwrap(), left);
    assert!(key.exists() && own.exists(), "a look changes nothing");
    assert_eq!(check(state, &namespaces, 100, true).unwrap(), left);
    assert!(!key.exists() && !own.exists() && young.exists(), "its writer may live");
    assert_eq!(check(state, &namespaces, 100, true).unwrap(), []);
    assert_eq!(host.look().leases().count(), 1);
    // Also where no journal is.
    let folder = tempfile::tempdir().unwrap();
    fs::rename(&young, folder.path().join(".store.json.9")).unwrap();
    let path = folder.path().join(".store.json.9");
    fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert_eq!(check(folder.path(), &namespaces, 100, false).unwrap(), [Finding::Draft(path)]);
    assert_eq!(check(&folder.path().join("none"), &namespaces, 100, true).unwrap(), []);
}
