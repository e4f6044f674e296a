//! Networks of a host whose folders and interfaces are a test's own: no agent runs, and no container does.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use super::*;
use crate::attach::{self, HostNetwork};
use crate::ipam::{About, Owner, Request, Sandbox, Wish};
use crate::sys::netlink::Netlink;
use crate::sys::testing::enter_new_netns;

const EXAMPLE: &str = include_str!("../../network/testdata/rancher-ipsec.yml");

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        enter_new_netns();
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Applies a configuration with these drivers; what was in the way.
    fn apply(&self, drivers: &[(&str, &str)]) -> Vec<String> {
        let mut text =
            "host: {name: alpha, labels: {rack: br-rack}}\noverlay: {blocks: [10.42.1.0/24, 10.50.1.0/24]}\n".to_owned();
        text += "cni: {conf_dir: cni/net.d, bin_dir: bin, cache_dir: cache}\ndrivers:\n";
        for (name, driver) in drivers {
            fs::write(self.path(name), driver).unwrap();
            text += &format!("  - {name}\n");
        }
        fs::write(self.path("u.yaml"), text).unwrap();
        let (config, report) = files::load_config(&self.path("u.yaml")).unwrap();
        let options = Options { config: self.path("u.yaml"), run_dir: self.path("run"), state_dir: self.state() };
        try_apply(&config.unwrap_or_else(|| panic!("{report}")), &options).unwrap()
    }

    fn list(&self) -> List {
        List::read(&self.state()).unwrap()
    }

    fn state_of(&self, name: &str) -> Option<State> {
        self.list().find(name).map(|network| network.state)
    }

    /// A container gets an address out of the journal, as the plugin would take it. It lives as long as its file.
    fn lease(&self, pool: &str, container: &str) -> IpAddr {
        let netns = self.path(container);
        fs::write(&netns, "").unwrap();
        let request = Request {
            network: pool.to_owned(),
            owner: Owner { container: container.to_owned(), interface: "eth0".to_owned(), cni_network: "any".to_owned() },
            sandbox: Sandbox::look(netns.to_str().unwrap()),
            wish: Wish::Any,
            never: Vec::new(),
            about: About::default(),
        };
        Ipam::open(&self.state()).unwrap().lease(request, wall_clock()).unwrap().addresses[0]
    }

    fn blocks(&self, pool: &str) -> Vec<String> {
        let book = Ipam::look(&self.state()).unwrap();
        book.network(pool).map(|pool| pool.blocks().iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    /// Every file, link and folder below the CNI folders.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["cni", "cni/net.d", "cni/ipsec.d", "cni/blue.d", "bin"] {
            for entry in fs::read_dir(self.path(folder)).into_iter().flatten().flatten() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                let link = fs::read_link(entry.path()).ok().filter(|_| folder == "cni");
                found.push(link.map_or(name.clone(), |target| format!("{name} -> {}", target.display())));
            }
        }
        found.sort();
        found
    }
}

/// The example under another name, with another subnet and bridge.
fn blue() -> String {
    EXAMPLE.replace("name: ipsec", "name: blue").replace("10.42.", "10.50.").replace("docker0", "br-blue")
}

#[test]
fn what_did_not_change_is_not_written() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let stamp = || List::stamp(&site.state()).unwrap();
    let first = stamp();
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(stamp(), first, "nobody is to read it again");
    site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);
    assert_ne!(stamp(), first);
}

#[test]
fn a_driver_brings_its_network_once() {
    let site = Site::new();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(
        site.files(),
        [
            "bin/rancher-bridge",
            "bin/rancher-cni-ipam",
            "bin/underpass-cni",
            "cni/ipsec.d",
            "cni/ipsec.d/.underpass",
            "cni/ipsec.d/10-rancher.conf",
            "cni/managed.d -> ipsec.d",
            "cni/net.d",
            "cni/net.d/10-underpass-ipsec.conflist",
            "cni/net.d/10-underpass-managed.conflist",
        ]
    );
    let list: serde_json::Value =
        serde_json::from_slice(&fs::read(site.path("cni/net.d/10-underpass-ipsec.conflist")).unwrap()).unwrap();
    let own = serde_json::json!({
        "runDir": site.path("run"), "stateDir": site.state(), "tun": "underpass0", "network": "managed"
    });
    assert_eq!((&list["name"], &list["plugins"][0]["underpass"]), (&"ipsec".into(), &own));
    assert_eq!(site.blocks("managed"), ["10.42.1.0/24"]);
    let before = site.list();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(site.list(), before, "and no second time");
    // A second one stands beside it, with its own part of this host's addresses.
    assert_eq!(site.apply(&[("b.yml", &blue()), ("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(site.list().managed.as_deref(), Some("ipsec"), "the default network stays what it is");
    assert_eq!((site.blocks("managed"), site.blocks("blue")), (vec!["10.42.1.0/24".into()], vec!["10.50.1.0/24".into()]));
    assert!(site.files().contains(&"cni/blue.d/10-rancher.conf".to_owned()));
    // Without its driver it goes, and the other one becomes the default.
    assert_eq!(site.apply(&[("b.yml", &blue())]), Vec::<String>::new());
    assert_eq!(site.list().managed.as_deref(), Some("blue"));
    let left: Vec<String> = site.files().into_iter().filter(|file| file.contains("ipsec") || file.contains("->")).collect();
    assert_eq!(left, ["cni/managed.d -> blue.d"]);
    assert_eq!(site.apply(&[]), Vec::<String>::new());
    assert_eq!(site.files(), ["bin/rancher-bridge", "bin/rancher-cni-ipam", "bin/underpass-cni", "cni/net.d"]);
}

#[test]
fn the_default_network_stays_what_it_is_while_it_is_there() {
    let site = Site::new();
    let both = [("a.yml", EXAMPLE), ("b.yml", &blue())];
    site.apply(&both);
    assert_eq!(site.list().managed.as_deref(), Some("ipsec"));
    remove(&site.state(), "managed", false).unwrap();
    assert_eq!(site.list().managed.as_deref(), Some("blue"));
    // Also when one comes back that stands before it.
    create(&site.state(), Wanted::Back("ipsec".to_owned())).unwrap();
    site.apply(&both);
    assert_eq!(site.list().managed.as_deref(), Some("blue"));
    assert_eq!(fs::read_link(site.path("cni/managed.d")).unwrap(), Path::new("blue.d"));
}

#[test]
fn labels_of_the_host_stand_in() {
    let site = Site::new();
    site.apply(&[("a.yml", &EXAMPLE.replace("docker0", "'__host_label__: rack'"))]);
    assert_eq!(site.list().find("managed").unwrap().spec.interfaces().collect::<Vec<_>>(), ["br-rack"]);
}

#[test]
fn addresses_are_nobodys_twice_when_networks_come_and_go() {
    let site = Site::new();
    site.apply(&[]);
    assert_eq!(site.blocks("managed"), ["10.42.1.0/24", "10.50.1.0/24"], "without drivers all is the default network's");
    let early = site.lease("managed", "c1");
    site.apply(&[("b.yml", &blue()), ("a.yml", EXAMPLE)]);
    assert_eq!(site.blocks("managed"), ["10.50.1.0/24"], "the first network takes over what was given before");
    assert_eq!(site.blocks("ipsec"), ["10.42.1.0/24"]);
    assert_eq!(early.to_string(), "10.42.1.2");
    assert_eq!(site.lease("ipsec", "c2").to_string(), "10.42.1.3", "c1 still has its address");
}

#[test]
fn a_network_in_use_changes_as_far_as_it_can() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let changed = EXAMPLE.replace("docker0", "br9").replace("- 169.254.169.250", "- 192.0.2.53");
    let bridge = |site: &Site| site.list().find("managed").unwrap().spec.interfaces().next().unwrap().to_owned();
    site.apply(&[("a.yml", &changed)]);
    assert_eq!(bridge(&site), "br9", "nobody was on it");
    site.lease("managed", "c1");
    let warnings = site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(
        warnings,
        [
            "network ipsec: cni_config.10-rancher.conf.bridge cannot be changed while containers use it: stop 1 container: c1 \
          (eth0 10.42.1.2), and reload; or bring it under another name"
        ]
    );
    let list = site.list();
    assert_eq!(
        (bridge(&site).as_str(), list.find("ipsec").unwrap().spec.dns[0].to_string().as_str()),
        ("br9", "169.254.169.250")
    );
    let text = fs::read_to_string(site.path("cni/ipsec.d/10-rancher.conf")).unwrap();
    assert!(text.contains("br9") && text.contains("169.254.169.250"), "{text}");
    fs::remove_file(site.path("c1")).unwrap();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(bridge(&site), "docker0");
}

#[test]
fn a_network_in_use_is_removed_only_by_force() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    site.lease("managed", "c1");
    let error = remove(&site.state(), "ipsec", false).unwrap_err().to_string();
    assert_eq!(
        error,
        "network ipsec is in use by 1 container: c1 (eth0 10.42.1.2): stop them, or remove it by --force, which disconnects them"
    );
    // Its driver taken out of the configuration is refused as well.
    let warnings = site.apply(&[]);
    assert!(warnings[0].contains("it is in use by 1 container: c1 (eth0 10.42.1.2): it stays until"), "{warnings:?}");
    assert_eq!(site.state_of("ipsec"), Some(State::Active));

    let (containers, warnings) = remove(&site.state(), "managed", true).unwrap();
    let shared = "bridge docker0 is not for network ipsec alone: its containers keep their links";
    assert_eq!((containers.len(), warnings), (1, vec![shared.to_owned()]));
    assert_eq!(site.state_of("ipsec"), Some(State::Disconnected));
    assert_eq!(site.blocks("managed"), Vec::<String>::new(), "nobody joins it any more");
    assert!(!site.files().iter().any(|file| file.contains("ipsec") || file.contains("managed")), "{:?}", site.files());
    let mut status = Status::new("alpha");
    show(&site.state(), &mut status);
    let lost = &status.disconnected[0];
    assert_eq!((lost.container.as_str(), lost.addresses[0].as_str()), ("c1", "10.42.1.2"));
    assert!(matches!(remove(&site.state(), "ipsec", true), Err(NetworksError::NotFound(..))));
    // It does not come back by itself, and is forgotten with its containers.
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(site.state_of("ipsec"), Some(State::Disconnected));
    fs::remove_file(site.path("c1")).unwrap();
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(site.state_of("ipsec"), Some(State::Removed));
    let (network, _) = create(&site.state(), Wanted::Back("ipsec".to_owned())).unwrap();
    assert_eq!((network.state, site.blocks("managed")), (State::Active, vec!["10.42.1.0/24".to_owned()]));
    assert!(matches!(create(&site.state(), Wanted::Back("ipsec".to_owned())), Err(NetworksError::Exists(_))));
}

#[test]
fn containers_of_other_plugins_count_as_well() {
    let site = Site::new();
    let plain = "s: {network_driver: {name: Plain, default_network: {name: plain}, cni_config: {
      a.conf: {name: inner, type: bridge, bridge: br7, ipam: {type: host-local, subnet: 10.88.0.0/24}}}}}";
    site.apply(&[("p.yml", plain)]);
    let who = |site: &Site| {
        let list = site.list();
        let network = list.find("plain").unwrap();
        containers(&list, network, &site.state()).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(who(&site), Vec::<String>::new());
    fs::create_dir_all(site.path("cache/networks/inner")).unwrap();
    fs::write(site.path("cache/networks/inner/10.88.0.2"), "c1\r\neth0").unwrap();
    fs::write(site.path("cache/networks/inner/lock"), "").unwrap();
    fs::create_dir_all(site.path("cache/results")).unwrap();
    let note = |network: &str, container: &str| {
        let result = serde_json::json!({"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.3/24"}]});
        let note = serde_json::json!({
            "kind": "cniCacheV1", "containerId": container, "ifName": "eth0", "networkName": network, "result": result,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", format!("web-{container}")]],
        });
        fs::write(site.path(&format!("cache/results/{network}-{container}-eth0")), note.to_string()).unwrap();
    };
    note("plain", "c2");
    note("managed", "c3");
    note("other", "c4");
    fs::write(site.path("cache/results/nonsense"), "{").unwrap();
    assert_eq!(who(&site), ["c1 (eth0 10.88.0.2)", "c2 (eth0 10.88.0.3)", "c3 (eth0 10.88.0.3)"]);
    // As libcni noted it before 0.3.0, as `host-local` calls IPv6 addresses, and what is no note at all.
    let old = serde_json::json!({
        "kind": "cniCacheV1", "containerId": "c5", "ifName": "eth0", "networkName": "plain",
        "result": {"ip4": {"ip": "10.88.0.5/24"}, "ip6": {"ip": "fd00::5/64"}},
    });
    fs::write(site.path("cache/results/plain-c5-eth0"), old.to_string()).unwrap();
    fs::write(site.path("cache/networks/inner/fd00__6"), "c6\n").unwrap();
    fs::create_dir(site.path("cache/networks/inner/10.88.0.7")).unwrap();
    let large = old.to_string().replace("c5", "c8") + &" ".repeat(1024 * 1024);
    fs::write(site.path("cache/results/plain-c8-eth0"), large).unwrap();
    assert_eq!(who(&site)[3..], ["c5 (eth0 10.88.0.5 fd00::5)", "c6 (eth0 fd00::6)"]);
    let members = members(&site.list(), &site.state()).into_iter().map(|it| (it.network, it.container.container));
    assert_eq!(members.take(2).collect::<Vec<_>>(), ["c1", "c2"].map(|id| ("plain".to_owned(), id.to_owned())));
    let names = names(&site.list());
    assert_eq!((names.get("c2").map(String::as_str), names.get("c5")), (Some("web-c2"), None));
    for gone in ["results/plain-c5-eth0", "networks/inner/fd00__6"] {
        fs::remove_file(site.path("cache").join(gone)).unwrap();
    }
    assert!(matches!(remove(&site.state(), "plain", false), Err(NetworksError::InUse { .. })));
    remove(&site.state(), "plain", true).unwrap();
    let mut status = Status::new("alpha");
    show(&site.state(), &mut status);
    assert_eq!(status.disconnected.iter().map(|lost| lost.container.as_str()).collect::<Vec<_>>(), ["c1", "c2", "c3"]);
}

#[test]
fn host_local_is_looked_at_where_it_keeps_its_notes() {
    let site = Site::new();
    let data = site.path("data");
    let plain = format!(
        "s: {{network_driver: {{name: Plain, default_network: {{name: plain}}, cni_config: {{a.conf: {{type: bridge, bridge: br7, ipam: \
         {{type: host-local, subnet: 10.88.0.0/24, dataDir: {}}}}}}}}}}}",
        data.display()
    );
    site.apply(&[("p.yml", &plain)]);
    fs::create_dir_all(data.join("plain")).unwrap();
    fs::write(data.join("plain/10.88.0.2"), "c1\r\neth1").unwrap();
    let list = site.list();
    assert_eq!(named(&containers(&list, list.find("plain").unwrap(), &site.state())), "1 container: c1 (eth1 10.88.0.2)");
}

/// Files are read by root alone, follow the driver, and are not touched if they say the same.
#[test]
fn files_follow_their_driver_and_are_left_alone_else() {
    let site = Site::new();
    let two = EXAMPLE
        .replace("      '10-rancher.conf':", "      20-tune.conf: {type: tuning, mtu: 1400}\n      '10-rancher.conf':");
    assert_eq!(site.apply(&[("a.yml", &two)]), Vec::<String>::new());
    let tune = site.path("cni/ipsec.d/20-tune.conf");
    let conf = site.path("cni/ipsec.d/10-rancher.conf");
    assert!(tune.exists());
    let what = |path: &Path| fs::metadata(path).map(|it| (it.ino(), it.mode() & 0o777)).unwrap();
    let before = [&conf, &site.path("cni/net.d/10-underpass-ipsec.conflist")].map(|path| what(path));
    assert_eq!(before.map(|(_, mode)| mode), [0o600, 0o644]);
    fs::write(site.path("cni/ipsec.d/.10-rancher.conf.4711"), "a draft of one that was killed").unwrap();
    assert_eq!(site.apply(&[("a.yml", &two)]), Vec::<String>::new());
    assert_eq!([&conf, &site.path("cni/net.d/10-underpass-ipsec.conflist")].map(|path| what(path)), before);
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert!(!tune.exists() && !site.path("cni/ipsec.d/.10-rancher.conf.4711").exists());
    let texts = ["cni/ipsec.d/10-rancher.conf", "cni/net.d/10-underpass-ipsec.conflist"]
        .map(|name| fs::read(site.path(name)).unwrap());
    assert!(texts.iter().all(|text| !String::from_utf8_lossy(text).contains("tuning")));
}

#[test]
fn links_of_others_stay_and_those_that_a_network_left_do_not() {
    for (target, is_taken) in [("/elsewhere", false), ("deep/other.d", false), ("other.d", false), ("gone.d", true)] {
        let site = Site::new();
        fs::create_dir_all(site.path("cni/other.d")).unwrap();
        symlink(target, site.path("cni/managed.d")).unwrap();
        let warnings = site.apply(&[("a.yml", EXAMPLE)]);
        let now = fs::read_link(site.path("cni/managed.d")).unwrap();
        if is_taken {
            assert_eq!((now.as_path(), warnings), (Path::new("ipsec.d"), Vec::new()));
        } else {
            assert_eq!(now, Path::new(target));
            assert!(warnings[0].contains("managed.d: not made by underpass (a link of somebody else's)"), "{warnings:?}");
        }
    }
    // An empty folder elsewhere is none of ours because a link leads there.
    let site = Site::new();
    fs::create_dir_all(site.path("cni")).unwrap();
    fs::create_dir_all(site.path("theirs")).unwrap();
    symlink(site.path("theirs"), site.path("cni/ipsec.d")).unwrap();
    let warnings = site.apply(&[("a.yml", EXAMPLE)]);
    assert!(warnings[0].contains("ipsec.d: not made by underpass (a link)"), "{warnings:?}");
    assert_eq!(fs::read_dir(site.path("theirs")).unwrap().count(), 0);
}

#[test]
fn the_list_has_one_writer_and_one_version() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let lock = ListLock::take(&site.state()).unwrap();
    let other = || fs::File::open(site.state().join("networks.lock")).unwrap();
    assert!(other().try_lock().is_err(), "somebody has it");
    drop(lock);
    other().try_lock().unwrap();
    let path = site.state().join("networks.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("underpass.network-list/1", "underpass.network-list/2")).unwrap();
    assert!(matches!(remove(&site.state(), "ipsec", false), Err(NetworksError::Newer(_))));
    fs::write(&path, "{").unwrap();
    assert!(matches!(remove(&site.state(), "ipsec", false), Err(NetworksError::Damaged(..))));
    let mut status = Status::new("alpha");
    show(&site.state(), &mut status);
    assert!(status.networks.is_empty() && status.warnings[0].contains("networks.json"), "{:?}", status.warnings);
}

#[test]
fn somebody_elses_files_stay() {
    for (name, part) in [
        ("cni/net.d/10-underpass-ipsec.conflist", "not made by underpass (it has no member `underpass`)"),
        ("cni/net.d/10-underpass-managed.conflist", "not made by underpass (it has no member `underpass`)"),
        ("cni/ipsec.d/10-other.conf", "cni/ipsec.d: not made by underpass (it has no .underpass)"),
        ("cni/managed.d", "cni/managed.d: not made by underpass (no link)"),
        ("bin/rancher-bridge", "bin/rancher-bridge: not made by underpass (another program)"),
    ] {
        let site = Site::new();
        fs::create_dir_all(site.path(name).parent().unwrap()).unwrap();
        fs::write(site.path(name), "{}").unwrap();
        let warnings = site.apply(&[("a.yml", EXAMPLE)]);
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{name}: {warnings:?}");
        assert_eq!(fs::read_to_string(site.path(name)).unwrap(), "{}", "{name}");
        assert_eq!(site.state_of("ipsec"), Some(State::Failed), "{name}");
        fs::remove_file(site.path(name)).unwrap();
        assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new(), "{name}");
        assert_eq!(site.state_of("ipsec"), Some(State::Active), "{name}");
    }
    // A link of somebody else's, and one to another place of this program.
    let site = Site::new();
    fs::create_dir_all(site.path("bin")).unwrap();
    symlink("/opt/rancher/rancher-bridge", site.path("bin/rancher-bridge")).unwrap();
    symlink("/opt/old/underpass", site.path("bin/underpass-cni")).unwrap();
    let warnings = site.apply(&[("a.yml", EXAMPLE)]);
    assert!(warnings[0].contains("it leads to /opt/rancher/rancher-bridge"), "{warnings:?}");
    fs::remove_file(site.path("bin/rancher-bridge")).unwrap();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(fs::read_link(site.path("bin/underpass-cni")).unwrap(), std::env::current_exe().unwrap());
    // Another agent's, which has the same folders and another state directory.
    let list = site.list();
    let other = Places { host: list.host.as_ref().unwrap(), state_dir: Path::new("/elsewhere") };
    let error = other.install(list.find("ipsec").unwrap(), false).unwrap_err();
    assert!(error.contains("it belongs to the agent with state directory"), "{error}");
    assert!(other.uninstall("ipsec").is_err());
    assert!(site.path("cni/ipsec.d/10-rancher.conf").exists());
}

#[test]
fn networks_that_share_addresses_are_refused() {
    let site = Site::new();
    let spec = |name: &str, prefix: &str| Box::new(Spec::by_hand(name, prefix.parse().unwrap(), "up-x", true));
    assert!(matches!(create(&site.state(), Wanted::New(spec("x", "10.60.0.0/16"))), Err(NetworksError::NoHost(_))));
    site.apply(&[("a.yml", EXAMPLE)]);
    let error = create(&site.state(), Wanted::New(spec("x", "10.42.7.0/24"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "10.42.7.0/24 of network x overlaps 10.42.0.0/16 of network ipsec: on one host they cannot be told apart"
    );
    let error = create(&site.state(), Wanted::New(spec("x", "127.0.0.0/24"))).unwrap_err().to_string();
    assert!(error.ends_with("overlaps 127.0.0.0/8, the network of lo here"), "{error}");
    let (network, warnings) = create(&site.state(), Wanted::New(spec("x", "10.50.0.0/16"))).unwrap();
    assert_eq!((network.pool.as_deref(), network.state), (Some("x"), State::Active), "{warnings:?}");
    assert_eq!(site.blocks("x"), ["10.50.1.0/24"]);
    // A driver that comes later finds the place taken; what was made by hand outlives reloads.
    let warnings = site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);
    assert!(warnings[0].contains("10.50.0.0/16 of network blue overlaps 10.50.0.0/16 of network x"), "{warnings:?}");
    assert_eq!((site.state_of("blue"), site.state_of("x")), (None, Some(State::Active)));
    remove(&site.state(), "x", false).unwrap();
    assert_eq!(site.state_of("x"), None, "nobody would bring it back");
    assert_eq!(site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]), Vec::<String>::new());
}

#[test]
fn networks_that_share_a_bridge_are_refused() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let shared = blue().replace("br-blue", "docker0");
    let warnings = site.apply(&[("a.yml", EXAMPLE), ("b.yml", &shared)]);
    let why = "network blue: its bridge docker0 is that of network ipsec: on one bridge they cannot be kept apart";
    assert_eq!((warnings, site.state_of("blue")), (vec![format!("driver Rancher IPsec: {why}")], None));
    let spec = |bridge: &str| Box::new(Spec::by_hand("x", "10.50.0.0/16".parse().unwrap(), bridge, true));
    let error = create(&site.state(), Wanted::New(spec("docker0"))).unwrap_err();
    assert!(error.to_string().starts_with("network x: its bridge docker0 is that of network ipsec"), "{error}");
    let error = create(&site.state(), Wanted::New(spec("lo"))).unwrap_err();
    assert_eq!(error.to_string(), "network x: its bridge would be lo, which is no bridge");
    // Other plugins' networks are theirs to keep apart.
    let plain =
        "s: {network_driver: {name: P, default_network: {name: N}, cni_config: {a.conf: {type: bridge, bridge: br7}}}}";
    let (one, other) = (plain.replace('N', "one"), plain.replace('N', "other"));
    assert_eq!(site.apply(&[("a.yml", EXAMPLE), ("b.yml", &one), ("c.yml", &other)]), Vec::<String>::new());
}

#[test]
fn a_network_gets_another_name_at_once() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(site.apply(&[("a.yml", &EXAMPLE.replace("name: ipsec", "name: vpn"))]), Vec::<String>::new());
    let list = site.list();
    assert_eq!((list.managed.as_deref(), site.state_of("ipsec"), site.blocks("managed").len()), (Some("vpn"), None, 1));
}

#[test]
fn a_change_that_clashes_says_with_what() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);
    Netlink::open().unwrap().create_bridge("br-other").unwrap();
    prepare("br-other", "10.77.0.0/16");
    let changed = blue().replace("10.50.", "10.77.");
    let warnings = site.apply(&[("a.yml", EXAMPLE), ("b.yml", &changed)]);
    assert_eq!(
        warnings[0],
        "network blue: default_network.subnets, cni_config.10-rancher.conf.bridgeSubnet cannot be changed: 10.77.0.0/16 of \
         network blue overlaps 10.77.0.0/16, the network of br-other here"
    );
    // Its own bridge, with its own addresses on it, is in nobody's way while containers are.
    Netlink::open().unwrap().create_bridge("docker0").unwrap();
    prepare("docker0", "10.42.0.0/16");
    site.lease("managed", "c1");
    let warnings = site.apply(&[("a.yml", &EXAMPLE.replace("docker0", "br9")), ("b.yml", &blue())]);
    assert!(warnings[0].contains("bridge cannot be changed while containers use it: stop 1 container: c1"), "{warnings:?}");
}

#[test]
fn a_network_without_plugins_is_no_list_of_runtimes() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let bare = EXAMPLE.split("    cni_config").next().unwrap();
    assert_eq!(site.apply(&[("a.yml", bare)]), Vec::<String>::new());
    let lists: Vec<String> = site.files().into_iter().filter(|file| file.ends_with(".conflist")).collect();
    assert_eq!((site.state_of("ipsec"), lists), (Some(State::Active), Vec::new()));
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(site.files().iter().filter(|file| file.ends_with(".conflist")).count(), 2);
}

#[test]
fn folders_that_change_are_left_clean() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE)]);
    let text = fs::read_to_string(site.path("u.yaml")).unwrap().replace("cni/net.d", "other/net.d");
    fs::write(site.path("u.yaml"), text).unwrap();
    let (config, _) = files::load_config(&site.path("u.yaml")).unwrap();
    let options = Options { config: site.path("u.yaml"), run_dir: site.path("run"), state_dir: site.state() };
    assert_eq!(try_apply(&config.unwrap(), &options).unwrap(), Vec::<String>::new());
    let links = ["bin/rancher-bridge", "bin/rancher-cni-ipam", "bin/underpass-cni", "cni/net.d"];
    assert_eq!(site.files(), links);
    assert!(site.path("other/ipsec.d/10-rancher.conf").exists());
}

/// What a first container's coming makes of a network on this host.
fn prepare(bridge: &str, subnet: &str) {
    let subnet: IpNet = subnet.parse().unwrap();
    let gateway = subnet.hosts().next().unwrap();
    let network = HostNetwork {
        bridge: bridge.to_owned(),
        gateways: vec![IpNet::new(gateway, subnet.prefix_len()).unwrap()],
        subnets: vec![subnet],
        tun: attach::TUN.to_owned(),
        host_nat: true,
        promiscuous: false,
        on_link: Vec::new(),
    };
    attach::prepare(&network).unwrap();
}

/// The interfaces, routes and tables of this host.
fn on_host() -> String {
    let shown = |argv: &[&str]| {
        let output = Command::new(argv[0]).args(&argv[1..]).output().unwrap();
        assert!(output.status.success(), "{argv:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let names = |text: &str| text.lines().filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>().join(" ");
    let links = names(&shown(&["ip", "-br", "link"]));
    let addresses = shown(&["ip", "-o", "-4", "address"]);
    // Whether a bridge without ports has a carrier shows in its own time.
    let routes = shown(&["ip", "route"]).replace("linkdown", "");
    let nft = shown(&["nft", "list", "ruleset"]);
    let sets: String = nft.lines().filter(|line| line.starts_with("table") || line.contains("elements")).collect();
    [links, addresses, routes, sets].map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).join("\n")
}

#[test]
fn what_a_network_left_on_this_host_goes_with_it() {
    let site = Site::new();
    site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);
    let empty = on_host();
    let docker = Netlink::open().and_then(|mut netlink| {
        netlink.create_bridge("docker0")?;
        netlink.add_address("docker0", "172.17.0.1/16".parse().unwrap())?;
        netlink.set_up("docker0")
    });
    docker.unwrap();
    let dockers = on_host();
    prepare("docker0", "10.42.0.0/16");
    let with_ipsec = on_host();
    assert!(with_ipsec.contains("underpass-net") && with_ipsec.contains("unreachable 10.42.0.0/16"), "{with_ipsec}");
    let ours = || prepare("br-blue", "10.50.0.0/16");

    // One of two networks goes, by command; the other one stays fenced.
    ours();
    assert_ne!(on_host(), with_ipsec);
    assert_eq!(remove(&site.state(), "blue", false).unwrap().1, Vec::<String>::new());
    assert_eq!(on_host(), with_ipsec);
    create(&site.state(), Wanted::Back("blue".to_owned())).unwrap();

    // With its driver.
    ours();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE)]), Vec::<String>::new());
    assert_eq!(on_host(), with_ipsec);
    site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);

    // By a change of what nobody uses: the old bridge is not what the network is on.
    ours();
    assert_eq!(site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue().replace("br-blue", "br-new"))]), Vec::<String>::new());
    assert_eq!(on_host(), with_ipsec);
    site.apply(&[("a.yml", EXAMPLE), ("b.yml", &blue())]);

    // By force: the bridge goes down, and away when its last container ends.
    ours();
    site.lease("blue", "c1");
    remove(&site.state(), "blue", true).unwrap();
    assert!(on_host().contains("br-blue"), "{}", on_host());
    assert!(!Netlink::open().unwrap().link("br-blue").unwrap().up);
    fs::remove_file(site.path("c1")).unwrap();
    site.apply(&[("a.yml", EXAMPLE)]);
    assert_eq!(on_host(), with_ipsec);

    // A bridge of somebody else's keeps what it had, and the last network takes the fence with it.
    assert_eq!(remove(&site.state(), "ipsec", false).unwrap().1, Vec::<String>::new());
    assert_eq!(on_host(), dockers);
    Netlink::open().unwrap().delete_link("docker0").unwrap();
    assert_eq!(on_host(), empty);
}

/// Plugins that are told no bridge have one all the same.
#[test]
fn a_bridge_that_nobody_named_is_the_networks_too() {
    let site = Site::new();
    let short = "s: {network_driver: {name: S, default_network: {name: s, subnets: [{network_address: 10.42.0.0/16}]},
      cni_config: {a.conf: {type: underpass-cni}}}}";
    assert_eq!(site.apply(&[("s.yml", short)]), Vec::<String>::new());
    let empty = on_host();
    prepare("managed0", "10.42.0.0/16");
    assert_eq!(site.apply(&[("s.yml", short)]), Vec::<String>::new(), "its own bridge is in nobody's way");
    remove(&site.state(), "s", false).unwrap();
    assert_eq!(on_host(), empty);
    prepare("managed0", "10.42.0.0/16");
    let (network, warnings) = create(&site.state(), Wanted::Back("s".to_owned())).unwrap();
    assert_eq!((network.state, warnings), (State::Active, Vec::new()));
}
