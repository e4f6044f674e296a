//! `underpass net`: the networks of this host. It works on the list in the state directory: no agent need run, one must have.

use clap::Subcommand;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::agent::drivers::{self, Container, List, Network, NetworksError, Origin, State, Wanted, named};
use crate::network::{Spec, check_name, interface_of};
use crate::observe::table;

/// What is done with networks.
#[derive(Debug, Subcommand)]
pub(super) enum NetCommand {
    /// List them.
    #[command(after_help = "Examples:\n  underpass net ls\n  underpass net ls --json | jq '.networks[] | {name, state}'")]
    Ls,
    /// Show one, with its containers and its CNI configuration.
    Show {
        /// Its name; `managed` is the default one.
        name: String,
    },
    /// Make a network by hand, or bring back one that was removed.
    ///
    /// With --subnet, a network of its own bridge, and of those of this host's blocks (`overlay.blocks`) that are in the subnet.
    /// Other hosts need it as well. Without, the network of a configured driver that was removed.
    #[command(after_help = "Examples:\n  underpass net create blue --subnet 10.50.0.0/16\n  underpass net create ipsec")]
    Create {
        /// Its name.
        name: String,
        /// Its subnet. None of another network or interface of this host may share addresses with it.
        #[arg(long, value_name = "PREFIX")]
        subnet: Option<Ipv4Net>,
        /// Its bridge, made with the first container; by default what its name begins with, and `up-` before it.
        #[arg(long, value_name = "NAME", requires = "subnet")]
        bridge: Option<String>,
        /// Its containers may not publish ports of the host.
        #[arg(long, requires = "subnet")]
        no_host_ports: bool,
    },
    /// Remove a network.
    ///
    /// Refused while containers are on it, with their list. It does not come back while its driver stays configured;
    /// `net create` brings it back.
    Rm {
        /// Its name.
        name: String,
        /// Remove it under its containers. `status` shows them as disconnected until they end.
        #[arg(long)]
        force: bool,
    },
}

/// Does it.
pub(super) fn run(places: &Places, command: NetCommand) -> Exit {
    let done = match command {
        NetCommand::Ls => ls(places),
        NetCommand::Show { name } => show(places, &name),
        NetCommand::Create { name, subnet, bridge, no_host_ports } => {
            match wanted(&name, subnet, bridge.as_deref(), !no_host_ports) {
                Ok(wanted) => create(places, wanted),
                Err(message) => return complain(message, Exit::Usage),
            }
        }
        NetCommand::Rm { name, force } => rm(places, &name, force),
    };
    done.unwrap_or_else(|error| complain(&error, Exit::from(&error)))
}

fn ls(places: &Places) -> Result<Exit, NetworksError> {
    let list = List::read(&places.state_dir)?;
    let failed = list.networks.iter().any(|network| network.state == State::Failed);
    let exit = if failed { Exit::Degraded } else { Exit::Fine };
    let with_containers: Vec<(&Network, Vec<Container>)> =
        list.networks.iter().map(|network| (network, drivers::containers(&list, network, &places.state_dir))).collect();
    if places.json {
        let networks: Vec<Value> =
            with_containers.iter().map(|(network, containers)| summary(&list, network, containers)).collect();
        return Ok(print_json(
            &json!({"schema": "underpass.networks/1", "managed": list.managed, "networks": networks}),
            exit,
        ));
    }
    if list.networks.is_empty() {
        return Ok(print("no networks: no driver has brought one\n", exit));
    }
    let mut rows = vec![["NETWORK", "STATE", "SUBNETS", "HOST PORTS", "CONTAINERS", "DRIVER"].map(str::to_owned)];
    for (network, containers) in &with_containers {
        let managed = if list.is_managed(network) { " (managed)" } else { "" };
        let subnets: Vec<String> = network.spec.prefixes().iter().map(ToString::to_string).collect();
        rows.push([
            format!("{}{managed}", network.spec.name),
            network.state.name().to_owned(),
            if subnets.is_empty() { "-".to_owned() } else { subnets.join(", ") },
            if network.spec.host_ports { "yes" } else { "no" }.to_owned(),
            containers.len().to_string(),
            if network.spec.driver.is_empty() { "-".to_owned() } else { network.spec.driver.clone() },
        ]);
    }
    let mut text = String::new();
    table(&mut text, &rows, "");
    for network in list.networks.iter() {
        if let Some(problem) = &network.problem {
            text.push_str(&format!("  {}: {problem}\n", network.spec.name));
        }
    }
    Ok(print(&text, exit))
}

fn show(places: &Places, name: &str) -> Result<Exit, NetworksError> {
    let list = List::read(&places.state_dir)?;
    let Some(network) = list.find(name) else {
        let names: Vec<&str> = list.networks.iter().map(|network| network.spec.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(NetworksError::NotFound(name.to_owned(), names));
    };
    let exit = if network.state == State::Failed { Exit::Degraded } else { Exit::Fine };
    let containers = drivers::containers(&list, network, &places.state_dir);
    if places.json {
        return Ok(print_json(&in_full(&list, network, &containers), exit));
    }
    let spec = &network.spec;
    let joined = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let texts = |items: &[std::net::IpAddr]| joined(&items.iter().map(ToString::to_string).collect::<Vec<_>>());
    let subnet = |subnet: &crate::network::Subnet| {
        format!("{} (gateway {}, {} to {})", subnet.network, subnet.gateway, subnet.start, subnet.end)
    };
    let plugins: Vec<String> = spec.plugins().into_iter().map(str::to_owned).collect();
    let mut rows = vec![
        ["state".to_owned(), network.state.name().to_owned()],
        ["managed".to_owned(), if list.is_managed(network) { "yes" } else { "no" }.to_owned()],
        ["driver".to_owned(), if spec.driver.is_empty() { "made by hand".to_owned() } else { spec.driver.clone() }],
        ["subnets".to_owned(), joined(&spec.subnets.iter().map(subnet).collect::<Vec<_>>())],
        ["name servers".to_owned(), texts(&spec.dns)],
        ["searched domains".to_owned(), joined(&spec.dns_search)],
        ["host ports".to_owned(), if spec.host_ports { "yes" } else { "no" }.to_owned()],
        ["plugins".to_owned(), joined(&plugins)],
        ["addresses".to_owned(), network.pool.clone().map_or("its plugins'".to_owned(), |pool| format!("ipam ls {pool}"))],
    ];
    rows.extend(network.problem.iter().map(|problem| ["problem".to_owned(), problem.clone()]));
    for (index, container) in containers.iter().enumerate() {
        rows.push([if index == 0 { "containers" } else { "" }.to_owned(), container.to_string()]);
    }
    let mut text = format!("{}\n", spec.name);
    table(&mut text, &rows, "  ");
    Ok(print(&text, exit))
}

/// What `net create` is to make.
fn wanted(name: &str, subnet: Option<Ipv4Net>, bridge: Option<&str>, host_ports: bool) -> Result<Wanted, String> {
    let name = check_name(name)?;
    let Some(subnet) = subnet else { return Ok(Wanted::Back(name)) };
    if subnet.trunc() != subnet || !(8..=28).contains(&subnet.prefix_len()) {
        return Err(format!("expected a prefix of a length from 8 to 28, without host bits, got {subnet}"));
    }
    let bridge = match bridge {
        Some(bridge) => bridge.to_owned(),
        None => own_bridge(&name),
    };
    let bridge = interface_of(&bridge)?;
    Ok(Wanted::New(Box::new(Spec::by_hand(&name, subnet, &bridge, host_ports))))
}

/// The bridge of a network that names none. The end of a long name counts as well: no two networks have one bridge.
fn own_bridge(name: &str) -> String {
    /// The longest name that an interface can have.
    const LIMIT: usize = 15;
    let whole = format!("up-{name}");
    if whole.len() <= LIMIT {
        return whole;
    }
    let sum = name.bytes().fold(0u32, |sum, octet| sum.wrapping_mul(31).wrapping_add(octet.into()));
    let start: String = whole.chars().take(LIMIT - 5).collect();
    format!("{start}-{:04x}", sum & 0xffff)
}

fn create(places: &Places, wanted: Wanted) -> Result<Exit, NetworksError> {
    let (network, warnings) = drivers::create(&places.state_dir, wanted)?;
    tell(&network.spec.name, &warnings);
    let exit = if network.state == State::Failed { Exit::Failed } else { Exit::Fine };
    if places.json {
        let list = List::read(&places.state_dir)?;
        return Ok(print_json(&in_full(&list, &network, &[]), exit));
    }
    Ok(print(&format!("network {} is {}\n", network.spec.name, network.state.name()), exit))
}

fn rm(places: &Places, name: &str, force: bool) -> Result<Exit, NetworksError> {
    // `managed` is another network's name a moment later.
    let name = &List::read(&places.state_dir)?.find(name).map_or_else(|| name.to_owned(), |it| it.spec.name.clone());
    let (containers, warnings) = drivers::remove(&places.state_dir, name, force)?;
    tell(name, &warnings);
    if places.json {
        let value = json!({"schema": "underpass.network-removed/1", "network": name, "disconnected": containers});
        return Ok(print_json(&value, Exit::Fine));
    }
    let lost = if containers.is_empty() { String::new() } else { format!("; disconnected {}", named(&containers)) };
    Ok(print(&format!("network {name} is removed{lost}\n"), Exit::Fine))
}

/// Says what is in the way. What is in other networks' way stands in `status`.
fn tell(name: &str, warnings: &[String]) {
    let own = format!("network {name}: ");
    for warning in warnings.iter().filter(|warning| !warning.starts_with("network ") || warning.starts_with(&own)) {
        let _ = complain(warning, Exit::Fine);
    }
}

fn summary(list: &List, network: &Network, containers: &[Container]) -> Value {
    json!({
        "name": network.spec.name,
        "managed": list.is_managed(network),
        "driver": network.spec.driver,
        "origin": match network.origin {
            Origin::Driver => "driver",
            Origin::Command => "command",
        },
        "state": network.state.name(),
        "problem": network.problem,
        "subnets": network.spec.subnets,
        "host_ports": network.spec.host_ports,
        "pool": network.pool,
        "containers": containers.len(),
    })
}

fn in_full(list: &List, network: &Network, containers: &[Container]) -> Value {
    let mut value = summary(list, network, containers);
    if let Some(object) = value.as_object_mut() {
        object.shift_insert(0, "schema".to_owned(), "underpass.network/1".into());
        object.insert("containers".to_owned(), json!(containers));
        object.insert("dns".to_owned(), json!(network.spec.dns));
        object.insert("dns_search".to_owned(), json!(network.spec.dns_search));
        object.insert("metadata".to_owned(), json!(network.spec.metadata));
        object.insert("since".to_owned(), json!(network.since));
        object.insert("removed".to_owned(), json!(network.removed));
        let file = |file: &crate::network::CniFile| (file.name.clone(), file.netconf.clone());
        object.insert("cni_config".to_owned(), Value::Object(network.spec.cni_config.iter().map(file).collect()));
    }
    value
}

impl From<&NetworksError> for Exit {
    fn from(error: &NetworksError) -> Self {
        match error {
            NetworksError::Io(_, error) => match error.kind().into() {
                Self::NotPermitted => Self::NotPermitted,
                _ => Self::Failed,
            },
            NetworksError::Locked(_) => Self::Timeout,
            NetworksError::NoHost(_) => Self::NotRunning,
            NetworksError::NotFound(..) => Self::NotFound,
            NetworksError::Overlaps(_) => Self::BadConfig,
            NetworksError::Exists(_)
            | NetworksError::InUse { .. }
            | NetworksError::Damaged(..)
            | NetworksError::Newer(_) => Self::Failed,
        }
    }
}
