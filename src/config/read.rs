//! Sections as a draft of the configuration: every key of the file, its bounds and its default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::drivers::{self, Cni, DriverSource};
use super::message::Report;
use super::scalar::{self, Expected};
use super::section::{Field, Placed, Section};
use super::yaml::Node;
use super::{
    Advertise, Backend, CertificateFiles, Config, Docker, Ipsec, Listen, Mesh, Mtu, PeerAuth, PeerRemote, Queues, Store,
    Surroundings, check, docker, keys, store,
};
use crate::crypto::VerifyingKey;
use crate::model::AeadAlgorithm;

/// Peers: a full mesh of this size is beyond what one agent is made for, and a bound keeps a bad file cheap.
const MAX_PEERS: usize = 4096;

/// Blocks of one list: a TS payload counts its selectors in one octet (RFC 7296 §3.13).
const MAX_BLOCKS: usize = 255;

/// Public keys of one peer: the old one and the new one, and room for a change that was broken off.
const MAX_PINS: usize = 4;

/// Items of `host.advertise`.
const MAX_ADVERTISE: usize = 16;

/// Addresses of one peer: each is waited for in turn, three seconds long.
const MAX_PLACES: usize = 8;

/// Smallest TUN MTU: what every IPv4 host takes (RFC 791 §3.1).
const MIN_MTU: u64 = 576;

/// Largest TUN MTU: jumbo frames.
const MAX_MTU: u64 = 9216;

/// More workers than this do not make one TUN device faster.
const MAX_QUEUES: u64 = 64;

/// Bounds of the replay window in packets: RFC 4303 §3.4.3 wants 32 at least; above, only memory is lost.
const REPLAY_WINDOW: (u64, u64) = (64, 65_536);

/// The window is kept in words of so many bits.
const REPLAY_WORD: u64 = 64;

/// Below this, rekeying is all that happens.
const MIN_REKEY: Duration = Duration::from_secs(10);

/// Above this, a key is older than anybody wants.
const MAX_REKEY: Duration = Duration::from_secs(7 * 86_400);

/// Bounds of the probe interval: a peer is up while a proof is younger than 15 s, so one must come every 10 s.
const DPD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The configuration before it was held against itself. What was wrong is missing, and is in the report.
pub(super) struct Draft {
    pub name: Option<Placed<String>>,
    pub advertise: Vec<Placed<Advertise>>,
    pub listen: Placed<Listen>,
    pub certificate: Option<CertificateFiles>,
    pub tun_name: String,
    pub mtu: Placed<Mtu>,
    pub queues: Placed<Queues>,
    pub pin: bool,
    pub backend: Backend,
    pub offload: bool,
    pub addresses: Vec<Placed<IpAddr>>,
    pub blocks: Vec<Placed<IpNet>>,
    pub ipsec: Ipsec,
    pub peers: Vec<PeerDraft>,
    pub store: Option<Store>,
    pub mesh: Mesh,
    pub drivers: Vec<DriverSource>,
    pub cni: Cni,
    pub docker: Option<Docker>,
    pub labels: BTreeMap<String, String>,
}

/// One peer of the draft.
pub(super) struct PeerDraft {
    /// Line and key of the whole item.
    pub place: Placed<()>,
    pub name: Option<Placed<String>>,
    pub remotes: Vec<Placed<PeerRemote>>,
    pub local_id: Option<Placed<String>>,
    pub remote_id: Option<Placed<String>>,
    pub auth: Option<Placed<PeerAuth>>,
    pub allow_short_psk: bool,
    pub suites: Vec<AeadAlgorithm>,
    pub require_pq: bool,
    pub local_blocks: Vec<Placed<IpNet>>,
    pub remote_blocks: Vec<Placed<IpNet>>,
}

/// Reads the whole file.
pub(super) fn config(root: &Node, file: &Path, surroundings: &Surroundings, report: &mut Report) -> Option<Config> {
    let root = Field { line: root.line, key: String::new(), node: root };
    let mut top = Section::of(&root, report)?;
    let empty = Node { line: 1, style: super::yaml::Style::Quoted, value: super::yaml::Value::Null };
    let absent = |key: &str| Field { line: 1, key: key.to_owned(), node: &empty };
    let folder = file.parent().unwrap_or(Path::new(""));
    let (name, advertise, listen, certificate) =
        host(&top.take("host").unwrap_or_else(|| absent("host")), folder, surroundings, report).unwrap_or_default();
    let (tun_name, mtu, queues, pin, backend, offload) = tun(&top.take("tun").unwrap_or_else(|| absent("tun")), report)?;
    let mesh = top.take("mesh").and_then(|field| field.read(report, store::mesh)).map_or(Mesh::Full, |mesh| mesh.value);
    let has_store = top.has("store");
    let store = top.take("store").and_then(|field| store::store(&field, folder, report));
    let (addresses, blocks) = match top.take("overlay") {
        Some(field) => overlay(&field, !has_store, report),
        None if has_store => (Vec::new(), Vec::new()),
        None => {
            report.error(
                None,
                "overlay",
                "expected a section with `blocks`, the addresses that this host owns; it is missing",
            );
            (Vec::new(), Vec::new())
        }
    };
    let (ipsec, flags) = ipsec(&top.take("ipsec").unwrap_or_else(|| absent("ipsec")), report)?;
    let defaults = PeerDefaults { folder, suites: &ipsec.suites, flags };
    let items = top.take("peers").and_then(|field| field.list(report, MAX_PEERS)).unwrap_or_default();
    let peers = items.iter().filter_map(|item| peer(item, &defaults, report)).collect();
    let drivers = drivers::drivers(&mut top, folder, report);
    let labels = drivers::labels(top.take("host").as_ref(), report);
    let cni = drivers::cni(&mut top, folder, report);
    let docker = top.take("docker").and_then(|field| docker::read(&field, report));
    top.finish(report);
    let listen = listen.unwrap_or_else(|| absent("host.listen").placed(Listen::default()));
    let draft = Draft {
        name,
        advertise,
        listen,
        certificate,
        tun_name,
        mtu,
        queues,
        pin,
        backend,
        offload,
        addresses,
        blocks,
        ipsec,
        peers,
        store,
        mesh,
        drivers,
        cni,
        docker,
        labels,
    };
    check::finish(draft, report)
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), ike_port: 500, natt_port: 4500 }
    }
}

type HostDraft = (Option<Placed<String>>, Vec<Placed<Advertise>>, Option<Placed<Listen>>, Option<CertificateFiles>);

fn host(field: &Field<'_>, folder: &Path, surroundings: &Surroundings, report: &mut Report) -> Option<HostDraft> {
    let mut section = Section::of(field, report)?;
    let name = match section.take("name") {
        Some(field) => field.read(report, scalar::name),
        None => hostname(surroundings, report),
    };
    let mut advertised =
        section.take("advertise").map(|field| field.read_list(report, MAX_ADVERTISE, advertise)).unwrap_or_default();
    if let Some(text) = surroundings.cattle_agent_ip.as_deref().filter(|text| !text.is_empty()) {
        const KEY: &str = "CATTLE_AGENT_IP";
        match advertise(text) {
            Ok(value) => advertised = vec![Placed { line: None, key: KEY.to_owned(), value }],
            Err(expected) => {
                let got = super::section::shortened(text);
                report.error(None, KEY, format!("expected {} in the environment, got \"{got}\"", expected.what));
            }
        }
    }
    let listen = section.take("listen").and_then(|field| listen(&field, report));
    // Read beside the drivers, which they are for.
    section.take("labels");
    let certificate = certificate(&mut section, folder, report);
    section.finish(report);
    Some((name, advertised, listen, certificate))
}

/// What a build without certificates says to a configuration that wants some.
const NO_CERTIFICATES: &str =
    "this build does not have X.509 certificates: build it with `cargo build --release --features x509`, or remove the key";

/// Both files, or none.
fn certificate(section: &mut Section<'_>, folder: &Path, report: &mut Report) -> Option<CertificateFiles> {
    let keys = ["certificate_file", "certificate_key_file"];
    if !cfg!(feature = "x509") {
        for key in keys {
            section.refuse(key, NO_CERTIFICATES, report);
        }
        return None;
    }
    let [chain, key] = keys.map(|key| section.take(key));
    match (chain, key) {
        (Some(chain), Some(key)) => {
            Some(CertificateFiles { chain: path(&chain, folder, report)?, key: path(&key, folder, report)? })
        }
        (Some(alone), None) | (None, Some(alone)) => {
            let message = "expected certificate_file and certificate_key_file together; the other one is missing";
            report.error(alone.line, &*alone.key, message);
            None
        }
        (None, None) => None,
    }
}

/// The path of a file, from the configuration's folder.
pub(super) fn path(field: &Field<'_>, folder: &Path, report: &mut Report) -> Option<Placed<PathBuf>> {
    field.read(report, |text| match text {
        "" => Err(Expected::new("the path of a file")),
        _ => Ok(folder.join(PathBuf::from(text))),
    })
}

fn hostname(surroundings: &Surroundings, report: &mut Report) -> Option<Placed<String>> {
    let text = surroundings.hostname.as_deref().unwrap_or_default();
    match scalar::name(text) {
        Ok(value) => Some(Placed { line: None, key: "host.name".to_owned(), value }),
        Err(Expected { what, .. }) => {
            let got = super::section::shortened(text);
            report.error(
                None,
                "host.name",
                format!("expected {what}; it is missing, and the hostname \"{got}\" cannot stand in"),
            );
            None
        }
    }
}

fn advertise(text: &str) -> Result<Advertise, Expected> {
    if let Some(name) = text.strip_prefix("iface:") {
        return scalar::interface(name).map(Advertise::Interface);
    }
    match scalar::endpoint(text) {
        Ok((address, port)) => Ok(Advertise::Address(address, port)),
        Err(Expected { suggestion, .. }) => {
            Err(Expected { what: "ADDRESS, ADDRESS:PORT or iface:NAME".to_owned(), suggestion })
        }
    }
}

fn listen(field: &Field<'_>, report: &mut Report) -> Option<Placed<Listen>> {
    let mut section = Section::of(field, report)?;
    let mut listen = Listen::default();
    let address = |text: &str| text.parse().map_err(|_| Expected::new("an address, or 0.0.0.0 for all of them"));
    let port = |text: &str| scalar::number(text, 1, u64::from(u16::MAX)).map(|port| port as u16);
    if let Some(read) = section.take("address").and_then(|field| field.read(report, address)) {
        listen.address = read.value;
    }
    if let Some(read) = section.take("ike_port").and_then(|field| field.read(report, port)) {
        listen.ike_port = read.value;
    }
    if let Some(read) = section.take("natt_port").and_then(|field| field.read(report, port)) {
        listen.natt_port = read.value;
    }
    section.finish(report);
    Some(field.placed(listen))
}

type TunDraft = (String, Placed<Mtu>, Placed<Queues>, bool, Backend, bool);

fn tun(field: &Field<'_>, report: &mut Report) -> Option<TunDraft> {
    let mut section = Section::of(field, report)?;
    let name = section.take("name").and_then(|field| field.read(report, scalar::interface)).map(|name| name.value);
    let mtu = section.take("mtu").and_then(|field| {
        field.read(report, |text| match text {
            "auto" => Ok(Mtu::Auto),
            _ => match scalar::number(text, MIN_MTU, MAX_MTU) {
                Ok(mtu) => Ok(Mtu::Fixed(mtu as u16)),
                Err(Expected { what, .. }) => Err(Expected::new(format!("auto or {what}"))),
            },
        })
    });
    let queues = section.take("queues").and_then(|field| {
        field.read(report, |text| match text {
            "auto" => Ok(Queues::Auto),
            _ => match scalar::number(text, 1, MAX_QUEUES) {
                Ok(queues) => Ok(Queues::Fixed(queues as u8)),
                Err(Expected { what, .. }) => Err(Expected::new(format!("auto or {what}"))),
            },
        })
    });
    let pin = |text: &str| scalar::word(text, &[("off", false), ("on", true)]);
    let pin = section.take("pin").and_then(|field| field.read(report, pin)).is_some_and(|pin| pin.value);
    let backend = section.take("backend").and_then(|field| field.read(report, backend)).map(|backend| backend.value);
    let offload = |text: &str| scalar::word(text, &[("off", false), ("on", true)]);
    let offload = section.take("offload").and_then(|field| field.read(report, offload)).is_none_or(|offload| offload.value);
    section.finish(report);
    Some((
        name.unwrap_or_else(|| "underpass0".to_owned()),
        mtu.unwrap_or_else(|| field.placed(Mtu::Auto)),
        queues.unwrap_or_else(|| field.placed(Queues::Auto)),
        pin,
        backend.unwrap_or(Backend::Offload),
        offload,
    ))
}

fn backend(text: &str) -> Result<Backend, Expected> {
    if text == "plain" && !cfg!(feature = "tun-tap") {
        return Err(Expected::new("offload (this build does not have the feature tun-tap)"));
    }
    scalar::word(text, &[("offload", Backend::Offload), ("plain", Backend::Plain)])
}

fn overlay(field: &Field<'_>, needs_blocks: bool, report: &mut Report) -> (Vec<Placed<IpAddr>>, Vec<Placed<IpNet>>) {
    let Some(mut section) = Section::of(field, report) else { return (Vec::new(), Vec::new()) };
    let addresses = match section.take("address") {
        Some(field) if matches!(field.node.value, super::yaml::Value::List(_)) => {
            field.read_list(report, 2, scalar::host_address)
        }
        Some(field) => field.read(report, scalar::host_address).into_iter().collect(),
        None => Vec::new(),
    };
    let blocks = blocks(&mut section, "blocks", needs_blocks, report);
    section.finish(report);
    (addresses, blocks)
}

/// A list of prefixes; an empty one is an error where the key is required.
pub(crate) fn blocks(
    section: &mut Section<'_>,
    key: &'static str,
    required: bool,
    report: &mut Report,
) -> Vec<Placed<IpNet>> {
    let Some(field) = section.take(key) else {
        if required {
            let path = format!("{}.{key}", section.key);
            report.error(section.line, path, "expected a list of prefixes such as [10.42.1.0/24]; it is missing");
        }
        return Vec::new();
    };
    let errors = report.messages.len();
    let blocks = field.read_list(report, MAX_BLOCKS, scalar::prefix);
    if blocks.is_empty() && report.messages.len() == errors {
        field.refuse(report, &Expected::new("at least one prefix such as 10.42.1.0/24"));
    }
    blocks
}

fn ipsec(field: &Field<'_>, report: &mut Report) -> Option<(Ipsec, PeerFlags)> {
    let mut ipsec = Ipsec {
        ike_rekey: Duration::from_secs(4 * 3600),
        child_rekey: Duration::from_secs(3600),
        replay_window: 4096,
        dpd: DPD.1,
        suites: AeadAlgorithm::ALL.to_vec(),
        require_pq: false,
    };
    let mut section = Section::of(field, report)?;
    let rekey = |text: &str| scalar::duration(text, MIN_REKEY, MAX_REKEY);
    if let Some(read) = section.take("ike_rekey").and_then(|field| field.read(report, rekey)) {
        ipsec.ike_rekey = read.value;
    }
    if let Some(read) = section.take("child_rekey").and_then(|field| field.read(report, rekey)) {
        ipsec.child_rekey = read.value;
    }
    if let Some(read) = section.take("replay_window").and_then(|field| field.read(report, replay_window)) {
        ipsec.replay_window = read.value;
    }
    if let Some(read) = section.take("dpd").and_then(|field| field.read(report, |text| scalar::duration(text, DPD.0, DPD.1)))
    {
        ipsec.dpd = read.value;
    }
    if let Some(suites) = suites(&mut section, report) {
        ipsec.suites = suites;
    }
    let flags = PeerFlags::default().read(&mut section, report);
    ipsec.require_pq = flags.require_pq;
    section.finish(report);
    Some((ipsec, flags))
}

/// Switches of `ipsec` that each peer may set otherwise.
#[derive(Clone, Copy, Default)]
struct PeerFlags {
    allow_short_psk: bool,
    require_pq: bool,
}

impl PeerFlags {
    /// What the section says, and these where it does not.
    fn read(self, section: &mut Section<'_>, report: &mut Report) -> Self {
        let mut flag = |key: &'static str, default: bool| {
            let read = section.take(key).and_then(|field| field.read(report, scalar::boolean));
            read.map_or(default, |read| read.value)
        };
        Self {
            require_pq: flag("require_pq", self.require_pq),
            allow_short_psk: flag("allow_short_psk", self.allow_short_psk),
        }
    }
}

fn replay_window(text: &str) -> Result<u32, Expected> {
    let (min, max) = REPLAY_WINDOW;
    let expected = || Expected::new(format!("a multiple of {REPLAY_WORD} from {min} to {max}"));
    let window = scalar::number(text, 0, u64::from(u32::MAX)).map_err(|_| expected())?;
    if window.is_multiple_of(REPLAY_WORD) && (min..=max).contains(&window) {
        return Ok(window as u32);
    }
    let nearest = window.next_multiple_of(REPLAY_WORD).clamp(min, max);
    Err(Expected::or(expected().what, Some(nearest.to_string())))
}

/// The suites of a section, if it has any; never an empty list.
fn suites(section: &mut Section<'_>, report: &mut Report) -> Option<Vec<AeadAlgorithm>> {
    let field = section.take("suites")?;
    let names = AeadAlgorithm::ALL.map(|aead| (aead.name(), aead));
    let errors = report.messages.len();
    let placed = field.read_list(report, MAX_BLOCKS, |text| scalar::word(text, &names));
    let mut suites = Vec::new();
    for suite in &placed {
        if suites.contains(&suite.value) {
            suite.error(report, format!("{} stands twice in the list", suite.value.name()));
        } else {
            suites.push(suite.value);
        }
    }
    if suites.is_empty() && report.messages.len() == errors {
        let known: Vec<&str> = names.iter().map(|&(name, _)| name).collect();
        field.refuse(report, &Expected::new(format!("at least one of {}", scalar::listed(&known, "and"))));
    }
    Some(suites).filter(|suites| !suites.is_empty())
}

/// What a peer has that does not say otherwise.
struct PeerDefaults<'c> {
    folder: &'c Path,
    suites: &'c [AeadAlgorithm],
    flags: PeerFlags,
}

fn peer(field: &Field<'_>, defaults: &PeerDefaults<'_>, report: &mut Report) -> Option<PeerDraft> {
    let mut section = Section::of(field, report)?;
    let place = field.placed(());
    let name = match section.take("name") {
        Some(field) => field.read(report, scalar::name),
        None => {
            report.error(field.line, format!("{}.name", field.key), "expected a name for the peer; it is missing");
            None
        }
    };
    let remotes = match section.take("address") {
        Some(field) => places(&field, report),
        None => Vec::new(),
    };
    let local_id = section.take("local_id").and_then(|field| field.read(report, scalar::identity));
    let remote_id = section.take("remote_id").and_then(|field| field.read(report, scalar::identity));
    let PeerFlags { allow_short_psk, require_pq } = defaults.flags.read(&mut section, report);
    let auth = auth(&mut section, &place, defaults.folder, allow_short_psk, report);
    let suites = suites(&mut section, report).unwrap_or_else(|| defaults.suites.to_vec());
    let local_blocks = blocks(&mut section, "local_blocks", false, report);
    let remote_blocks = blocks(&mut section, "remote_blocks", true, report);
    section.finish(report);
    Some(PeerDraft {
        place,
        name,
        remotes,
        local_id,
        remote_id,
        auth,
        allow_short_psk,
        suites,
        require_pq,
        local_blocks,
        remote_blocks,
    })
}

/// One address, or a list of them.
pub(crate) fn places(field: &Field<'_>, report: &mut Report) -> Vec<Placed<PeerRemote>> {
    match &field.node.value {
        super::yaml::Value::List(items) if items.is_empty() => {
            field.refuse(report, &Expected::new("at least one address (without the key the peer calls us)"));
            Vec::new()
        }
        super::yaml::Value::List(_) => field.read_list(report, MAX_PLACES, peer_remote),
        _ => field.read(report, peer_remote).into_iter().collect(),
    }
}

fn peer_remote(text: &str) -> Result<PeerRemote, Expected> {
    let (address, port) = scalar::endpoint(text)?;
    Ok(port.map_or(PeerRemote::Standard(address), |port| PeerRemote::Natt(SocketAddr::new(address, port))))
}

/// How a peer may be known.
const PROOFS: &str =
    if cfg!(feature = "x509") { "psk, psk_file, public_key or ca_file" } else { "psk, psk_file or public_key" };

/// One public key, or a list of some: while the peer changes its key, it is known by the old one and the new one.
pub(crate) fn public_keys(field: &Field<'_>, report: &mut Report) -> Option<Vec<VerifyingKey>> {
    let key = |text: &str| {
        VerifyingKey::from_base64(text).map_err(|error| {
            Expected::new(format!("the peer's public key as `underpass key show` prints it there ({error})"))
        })
    };
    if !matches!(field.node.value, super::yaml::Value::List(_)) {
        return field.read(report, key).map(|key| vec![key.value]);
    }
    let errors = report.messages.len();
    let placed = field.read_list(report, MAX_PINS, key);
    let mut keys = Vec::new();
    for key in &placed {
        if keys.contains(&key.value) {
            key.error(report, "this key stands twice in the list");
        } else {
            keys.push(key.value);
        }
    }
    if keys.is_empty() && report.messages.len() == errors {
        field.refuse(report, &Expected::new("at least one public key"));
    }
    Some(keys).filter(|keys| !keys.is_empty())
}

/// Exactly one of `psk`, `psk_file`, `public_key` and `ca_file`.
fn auth(
    section: &mut Section<'_>,
    place: &Placed<()>,
    folder: &Path,
    allow_short_psk: bool,
    report: &mut Report,
) -> Option<Placed<PeerAuth>> {
    if !cfg!(feature = "x509") && section.has("ca_file") {
        section.refuse("ca_file", NO_CERTIFICATES, report);
        return None;
    }
    let fields = ["psk", "psk_file", "public_key", "ca_file"].map(|key| section.take(key));
    let given: Vec<&Field<'_>> = fields.iter().flatten().collect();
    match given.as_slice() {
        [] => {
            place.error(report, format!("expected one of {PROOFS}: without a key the peer cannot prove itself"));
            return None;
        }
        [_] => {}
        [first, second, ..] => {
            let first = first.key.rsplit('.').next().unwrap_or_default();
            let message = format!("expected one of {PROOFS}, got this one besides {first}");
            report.error(second.line, &*second.key, message);
            return None;
        }
    }
    match fields {
        [Some(psk), ..] => {
            let text = psk.secret(report)?;
            let secret = keys::check_psk(&text.with(text.value.as_bytes()), allow_short_psk, report)?;
            text.warning(report, "a key that stands here is seen by everybody who sees the file: psk_file keeps it apart");
            Some(text.with(PeerAuth::Psk(secret)))
        }
        [_, Some(file), ..] => {
            let path = path(&file, folder, report)?;
            Some(path.with(PeerAuth::PskFile(path.clone())))
        }
        [.., Some(file)] => {
            let path = path(&file, folder, report)?;
            Some(path.with(PeerAuth::CaFile(path.clone())))
        }
        [_, _, Some(key), _] => Some(key.placed(PeerAuth::PublicKeys(public_keys(&key, report)?))),
        [None, None, None, None] => None,
    }
}
