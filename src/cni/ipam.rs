//! `rancher-cni-ipam`: addresses for whichever plugin makes the interface.
//!
//! The keys below `ipam` are those that Rancher's plugin had: `subnetPrefixSize` is the length that containers see (the whole network
//! looks like one link), `routes` go into the result. That plugin asked a server; this one takes from the journal, so it needs
//! neither agent nor store once the agent has told it this host's blocks. What runtimes cannot pass by the environment stands in an
//! object `underpass` beside `ipam`: `stateDir`, `network`, and `blocks` where no agent runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::request::{Command, Request};
use super::result::{self, Address, Fault, Route, Success};
use crate::config::{RUN_DIR, STATE_DIR};
use crate::control::{self, Client, ClientError, FaultKind};
use crate::ipam::{self, Beyond, Ipam, IpamError, JOURNAL, Lease, MANAGED, Owner, Refusal, Sandbox, Source, Wish};
use crate::network::first_address;
use crate::sys::clock::wall_clock;

/// The prefix length that containers see unless `subnetPrefixSize` says another, as it always was.
const PREFIX_LEN: u8 = 16;

/// Keys that tell a runtime's living attachments: the specification's, and what libcni 1.3 sends besides.
const ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// What may stand in the object `underpass`; `tun` and `runDir` are for plugins that make interfaces.
const OWN_KEYS: [&str; 5] = ["stateDir", "network", "blocks", "tun", "runDir"];

/// What the configuration says to us.
#[derive(Debug)]
struct Conf {
    run_dir: PathBuf,
    state_dir: PathBuf,
    network: String,
    blocks: Vec<IpNet>,
    /// The bridge's own address, where its plugin has one.
    bridge_address: Option<IpAddr>,
    prefix_len: u8,
    routes: Vec<Route>,
}

/// Does what is asked.
pub(super) fn answer(request: &Request) -> Result<Option<Value>, Fault> {
    let conf = Conf::of(request)?;
    match request.command {
        Command::Add => give(request, &conf).map(|success| Some(success.as_json(request.version))),
        Command::Del => del(request, &conf).map(|()| None),
        Command::Check => check(request, &conf).map(|()| None),
        Command::Gc => gc(request, &conf).map(|()| None),
        Command::Status => status(&conf).map(|()| None),
    }
}

/// What ADD answers, for whoever makes the interface in the same process.
pub(super) fn add(request: &Request) -> Result<Success, Fault> {
    give(request, &Conf::of(request)?)
}

fn give(request: &Request, conf: &Conf) -> Result<Success, Fault> {
    let mut ipam = Ipam::open(&conf.state_dir)?;
    conf.tell_blocks(&mut ipam)?;
    let blocks = ipam.book().network(&conf.network).map(|network| network.blocks().to_vec()).unwrap_or_default();
    let wish = match request.wanted.as_slice() {
        [] => Wish::Any,
        wanted => Wish::These(wanted.iter().map(|wanted| wanted.address).collect()),
    };
    let asked = ipam::Request {
        network: conf.network.clone(),
        owner: owner(request),
        sandbox: Sandbox::look(&request.netns),
        wish,
        never: conf.gateways(&blocks),
        about: request.about()?,
    };
    let agent = Agent { run_dir: &conf.run_dir };
    let lease = ipam::obtain(ipam, &conf.state_dir, &asked, &agent, wall_clock())?;
    Ok(conf.success(request, &lease, &blocks))
}

fn del(request: &Request, conf: &Conf) -> Result<(), Fault> {
    if !conf.state_dir.join(JOURNAL).exists() {
        return Ok(());
    }
    Ipam::open(&conf.state_dir)?.release(&conf.network, &owner(request), wall_clock())?;
    Ok(())
}

fn check(request: &Request, conf: &Conf) -> Result<(), Fault> {
    let book = Ipam::look(&conf.state_dir)?;
    let owner = owner(request);
    let Some(lease) = book.lease_of(&conf.network, &owner) else {
        return Err(Fault::new(result::LEASE, format!("network {}: {owner} has no address", conf.network)));
    };
    let Some(previous) = request.netconf.get("prevResult") else {
        return Err(Fault::configuration("CHECK needs prevResult"));
    };
    let told = result::addresses_in(previous);
    match lease.addresses.iter().find(|address| !told.contains(address)) {
        None => Ok(()),
        Some(address) => Err(Fault::new(
            result::LEASE,
            format!("network {}: {owner} has {address}, which is not in prevResult", conf.network),
        )),
    }
}

fn gc(request: &Request, conf: &Conf) -> Result<(), Fault> {
    let living = living(request)?;
    if !conf.state_dir.join(JOURNAL).exists() {
        return Ok(());
    }
    let mut ipam = Ipam::open(&conf.state_dir)?;
    let ours = |lease: &&Lease| lease.network == conf.network && lease.owner.cni_network == request.network;
    let dead = ipam.book().leases().filter(ours).map(|lease| lease.owner.clone()).filter(|owner| !living.contains(owner));
    for owner in dead.collect::<Vec<_>>() {
        ipam.release(&conf.network, &owner, wall_clock())?;
    }
    Ok(())
}

/// Whose attachments live, as the runtime says to GC.
pub(super) fn living(request: &Request) -> Result<Vec<Owner>, Fault> {
    let listed = ATTACHMENTS.into_iter().find_map(|key| request.netconf.get(key)).and_then(Value::as_array);
    let Some(listed) = listed else {
        // Taking nothing for "nobody lives" would disconnect everybody.
        return Err(Fault::configuration(format!("GC needs {}", ATTACHMENTS[0])));
    };
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
    let living: Option<Vec<Owner>> = listed
        .iter()
        .map(|item| {
            let (container, interface) = (text(item, "containerID")?, text(item, "ifname")?);
            Some(Owner { container, interface, cni_network: request.network.clone() })
        })
        .collect();
    living.ok_or_else(|| Fault::configuration(format!("{}: expected containerID and ifname", ATTACHMENTS[0])))
}

fn status(conf: &Conf) -> Result<(), Fault> {
    let book = Ipam::look(&conf.state_dir).map_err(|error| Fault::unavailable(error.to_string()))?;
    let network = book.network(&conf.network);
    let blocks = network.map(|network| network.blocks()).unwrap_or_default();
    if blocks.is_empty() && conf.blocks.is_empty() {
        let message = format!("network {}: this host has no block of it; has an agent run here?", conf.network);
        return Err(Fault::unavailable(message));
    }
    let Some(network) = network else { return Ok(()) };
    for ipv6 in [false, true] {
        let counts = network.counts(ipv6, &conf.gateways(blocks), wall_clock());
        if blocks.iter().any(|block| block.addr().is_ipv6() == ipv6) && counts.free() == 0 {
            return Err(Fault::unavailable(format!("network {}: no free address: {counts}", conf.network)));
        }
    }
    Ok(())
}

/// The agent of this host: it alone speaks to the store.
struct Agent<'c> {
    run_dir: &'c Path,
}

/// How long the agent may take: it may have to ask another host's agent, by the store.
const AGENT_PATIENCE: Duration = Duration::from_secs(8);

/// When it has too many connections it is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

impl Agent<'_> {
    fn ask(&self, request: &control::Request) -> Result<(), Refusal> {
        let refusal = |error: ClientError| match error {
            ClientError::Fault(control::Fault { kind, message }) => {
                Refusal { why: message, later: matches!(kind, FaultKind::Timeout | FaultKind::Busy | FaultKind::Away) }
            }
            error => Refusal { why: error.to_string(), later: true },
        };
        let client = Client::new(self.run_dir).with_timeout(AGENT_PATIENCE);
        let until = Instant::now() + AGENT_PATIENCE;
        loop {
            match client.ask_raw(request) {
                // Many containers may come at once.
                Err(ClientError::Fault(fault)) if fault.kind == FaultKind::Busy && Instant::now() < until => {
                    thread::sleep(BUSY_PAUSE);
                }
                other => return other.map(drop).map_err(refusal),
            }
        }
    }
}

impl Beyond for Agent<'_> {
    fn claim(&self, network: &str, address: IpAddr) -> Result<(), Refusal> {
        self.ask(&control::Request::AddressClaim { network: network.to_owned(), address })
    }

    fn next_block(&self, network: &str) -> Result<(), Refusal> {
        self.ask(&control::Request::BlockClaim { network: network.to_owned() })
    }
}

/// Whose this call is.
pub(super) fn owner(request: &Request) -> Owner {
    Owner {
        container: request.container.clone(),
        interface: request.interface.clone(),
        cni_network: request.network.clone(),
    }
}

impl Conf {
    fn of(request: &Request) -> Result<Self, Fault> {
        let empty = Map::new();
        let section = |key: &str| match request.netconf.get(key) {
            None | Some(Value::Null) => Ok(&empty),
            Some(Value::Object(section)) => Ok(section),
            Some(_) => Err(Fault::configuration(format!("{key}: expected an object"))),
        };
        let (ours, own) = (section("ipam")?, section("underpass")?);
        if let Some(key) = own.keys().find(|key| !OWN_KEYS.contains(&key.as_str())) {
            let expected = OWN_KEYS.join(", ");
            return Err(Fault::configuration(format!("underpass.{key}: unknown key; expected one of {expected}")));
        }
        let state_dir = text(own, "underpass", "stateDir")?.or(request.state_dir.as_deref()).unwrap_or(STATE_DIR);
        if !Path::new(state_dir).is_absolute() {
            return Err(Fault::configuration("the state directory: expected an absolute path"));
        }
        let run_dir = text(own, "underpass", "runDir")?.or(request.run_dir.as_deref()).unwrap_or(RUN_DIR);
        let prefix_len = match text(ours, "ipam", "subnetPrefixSize")?.filter(|text| !text.is_empty()) {
            None => PREFIX_LEN,
            Some(text) => text
                .strip_prefix('/')
                .and_then(|length| length.parse().ok())
                .filter(|length| (1..=32).contains(length))
                .ok_or_else(|| Fault::configuration(format!("ipam.subnetPrefixSize: expected /1 to /32, got {text:?}")))?,
        };
        Ok(Self {
            run_dir: PathBuf::from(run_dir),
            state_dir: PathBuf::from(state_dir),
            network: text(own, "underpass", "network")?.unwrap_or(MANAGED).to_owned(),
            blocks: blocks(own)?,
            bridge_address: request.netconf.get("bridgeIP").and_then(Value::as_str).and_then(bridge_address),
            prefix_len,
            routes: routes(ours)?,
        })
    }

    /// The blocks of the configuration count where no agent has said others.
    fn tell_blocks(&self, ipam: &mut Ipam) -> Result<(), Fault> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let known = ipam.book().network(&self.network);
        if let Some(known) = known.filter(|known| known.source() == Source::Agent && !known.blocks().is_empty()) {
            if known.blocks() == self.blocks {
                return Ok(());
            }
            let message = "underpass.blocks: the agent's configuration says other blocks, and counts: leave this key out";
            return Err(Fault::configuration(message));
        }
        ipam.set_network(&self.network, &self.blocks, &[], Source::Netconf)?;
        Ok(())
    }

    /// The gateways of this host's blocks: nobody else's addresses.
    fn gateways(&self, blocks: &[IpNet]) -> Vec<IpAddr> {
        let seen = |block: &IpNet| IpNet::new(block.addr(), self.prefix_len).ok();
        blocks.iter().filter_map(|block| first_address(seen(block)?)).chain(self.bridge_address).collect()
    }

    fn success(&self, request: &Request, lease: &Lease, blocks: &[IpNet]) -> Success {
        let seen = |address: IpAddr| {
            let said = request.wanted.iter().find(|wanted| wanted.address == address).and_then(|wanted| wanted.prefix_len);
            let of_block = || blocks.iter().find(|block| block.contains(&address)).map(|block| block.prefix_len());
            match address {
                IpAddr::V4(_) => said.unwrap_or(self.prefix_len),
                IpAddr::V6(_) => said.or_else(of_block).unwrap_or(128),
            }
        };
        let addresses: Vec<Address> = lease
            .addresses
            .iter()
            .filter_map(|&address| {
                let net = IpNet::new(address, seen(address)).ok()?;
                Some(Address { address: net, gateway: first_address(net), interface: None })
            })
            .collect();
        let gateway = addresses.iter().find_map(|address| address.gateway);
        let with_gateway = |route: &Route| {
            let own = gateway.filter(|gateway| gateway.is_ipv4() == route.dst.addr().is_ipv4());
            Route { dst: route.dst, gw: route.gw.or(own) }
        };
        let routes = self.routes.iter().map(with_gateway).collect();
        Success { addresses, routes, ..Success::default() }
    }
}

fn text<'c>(section: &'c Map<String, Value>, name: &str, key: &str) -> Result<Option<&'c str>, Fault> {
    match section.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Fault::configuration(format!("{name}.{key}: expected a text, got {other}"))),
    }
}

fn blocks(own: &Map<String, Value>) -> Result<Vec<IpNet>, Fault> {
    let wrong = || Fault::configuration("underpass.blocks: expected a list of prefixes such as [\"10.42.1.0/24\"]");
    match own.get("blocks") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().and_then(|text| text.parse::<IpNet>().ok()).filter(|net| net.trunc() == *net))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong),
        Some(_) => Err(wrong()),
    }
}

/// An address, with or without the length of a prefix; the bridge's plugin complains of anything else.
fn bridge_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| Some(text.parse::<IpNet>().ok()?.addr()))
}

fn routes(ours: &Map<String, Value>) -> Result<Vec<Route>, Fault> {
    let wrong = |item: &Value| Fault::configuration(format!("ipam.routes: expected {{dst, gw}}, got {item}"));
    let items = match ours.get("routes") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(other)),
    };
    items.iter().map(|item| Route::parse(item).ok_or_else(|| wrong(item))).collect()
}

impl From<IpamError> for Fault {
    fn from(error: IpamError) -> Self {
        let message = error.to_string();
        match error {
            IpamError::NoBlocks { .. } => Self::configuration(format!("{message}; has an agent run here?")),
            // An address at rest will be free in a minute.
            IpamError::Full { counts, .. } if counts.resting > 0 => Self::new(result::TRY_LATER, message),
            IpamError::NoMore { refusal, .. } | IpamError::Unclaimed { refusal, .. } if refusal.later => {
                Self::new(result::TRY_LATER, message)
            }
            IpamError::NoMore { full, .. } if matches!(*full, IpamError::Full { counts, .. } if counts.resting > 0) => {
                Self::new(result::TRY_LATER, message)
            }
            IpamError::Full { .. } | IpamError::NoMore { .. } => Self::new(result::EXHAUSTED, message),
            IpamError::Taken { .. } | IpamError::NotOurs { .. } | IpamError::Beyond { .. } | IpamError::Unclaimed { .. } => {
                Self::new(result::NOT_TO_BE_HAD, message)
            }
            IpamError::Already { .. } => Self::new(result::LEASE, message),
            IpamError::Locked(_) => Self::new(result::TRY_LATER, message),
            IpamError::Damaged(..) | IpamError::Newer(_) => Self::new(result::DAMAGED, message),
            IpamError::Io(..) => Self::io(message),
        }
    }
}
