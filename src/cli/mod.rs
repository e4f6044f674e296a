//! The command line: arguments in, output and an exit code out.
//!
//! One file per command. Results go to standard output, messages to standard error; `--json` makes the result one JSON value
//! with a `schema` field. What a command found goes into its [`Exit`] code, so that scripts need not read texts.

mod agent;
mod bench;
mod check;
mod convert;
mod demo;
mod exit;
mod host;
mod ipam;
mod key;
mod lab;
mod net;
mod output;
mod peers;
mod ps;
mod setup;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::STATE_DIR;
pub use exit::Exit;

/// Where the configuration is unless something else is said.
const CONFIG_FILE: &str = "/etc/underpass/underpass.yaml";

const EXIT_CODES: &str = "\
Exit codes:
  0  fine                     5  bad configuration
  1  failed                   6  no permission
  2  bad usage                7  no answer in time
  3  degraded                 8  not found
  4  no agent is running";

/// A userspace IPsec overlay for container hosts.
///
/// An agent on each host seals what containers send to other hosts as ESP in UDP port 4500, keyed by IKEv2. `underpass
/// demo` shows it on this machine alone.
#[derive(Debug, Parser)]
#[command(name = "underpass", version, after_help = EXIT_CODES, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Which agent is meant, and how to print.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Folder of the control socket; one per agent.
    #[arg(long, global = true, value_name = "DIR", env = "UNDERPASS_RUN_DIR", default_value = "/run/underpass")]
    pub run_dir: PathBuf,
    /// Folder of what must survive: the host's key.
    #[arg(long, global = true, value_name = "DIR", env = "UNDERPASS_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Print one JSON value instead of text.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the host agent in the foreground.
    ///
    /// It needs root (CAP_NET_ADMIN) and /dev/net/tun. SIGTERM and SIGINT stop it cleanly: peers are told, routes and rules
    /// are removed. SIGHUP reads the configuration again. Under systemd use Type=notify-reload.
    #[command(after_help = "Example:\n  underpass agent --config /etc/underpass/underpass.yaml")]
    Agent(AgentArgs),
    /// Show this host and its peers on one screen.
    ///
    /// Exits with 0 if every peer is up or idle, with 3 if not, with 4 if no agent is running.
    #[command(after_help = "Examples:\n  underpass status\n  underpass status --json | jq '.peers[] | {name, state}'")]
    Status,
    /// Show the containers of this host: their addresses, networks and states.
    ///
    /// With a store in etcd, those of the other hosts as well, with where they are.
    /// States: attached, waiting (it does not run, its address stays its own), failed and disconnected (and why). Without a running
    /// agent, what the journal of addresses says is shown. Exits with 3 if a container is failed or disconnected.
    #[command(
        after_help = "Examples:\n  underpass ps\n  underpass ps --json | jq '.containers[] | {name, addresses, state}'"
    )]
    Ps,
    /// Show peers in detail, or replace their keys.
    #[command(after_help = "Examples:\n  underpass peers\n  underpass peers beta\n  underpass peers beta --rekey child")]
    Peers(PeersArgs),
    /// Show an encrypted tunnel between two hosts, on this machine alone.
    ///
    /// The hosts are network namespaces, with an agent on each: pings and TCP through the tunnel, and a look at the wire between
    /// them. It needs root or user namespaces, takes half a minute at most and leaves nothing behind. Exits with 0 only if all
    /// that it shows was seen.
    #[command(after_help = "Examples:\n  underpass demo\n  underpass demo --seconds 20 --json | jq .throughput")]
    Demo(demo::DemoArgs),
    /// Measure how fast the tunnel is on this machine.
    ///
    /// Two hosts as the demo has them, and between them in turn: the bare wire, a forwarder without keys as the ceiling, our
    /// agents, and our agents without offloads. TCP, UDP, round trips, processor time and memory of each, round by round, and what
    /// the agents reach of the ceiling. It needs root or user namespaces, says how long it takes and leaves nothing behind.
    #[command(
        after_help = "Examples:\n  underpass bench --plot bench.svg\n  underpass bench --figures tcp-1,container --rounds 5\n  \
                            underpass bench --json | jq '.figures[] | {name, to_ceiling: .to_ceiling.underpass.median}'"
    )]
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    BenchCeiling(bench::ceiling::CeilingArgs),
    /// Work with the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with the host's Ed25519 key, by which its peers know it.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Show the hosts of the store, or end one.
    #[command(subcommand)]
    Host(HostCommand),
    /// Show and check the addresses that this host gave to containers.
    #[command(subcommand)]
    Ipam(IpamCommand),
    /// Show, make and remove the networks of this host.
    #[command(subcommand)]
    Net(net::NetCommand),
    /// Tell a container runtime where our networks and plugins are.
    ///
    /// It writes what is needed and says what it did; a second time there is nothing to do. Files that somebody else wrote stay.
    #[command(after_help = "Examples:\n  underpass setup podman --dry-run\n  underpass setup containerd")]
    Setup(setup::SetupArgs),
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    /// How much to log to standard error: from debug on every IKE message and SA, but never a key.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LogLevel,
}

/// Log levels.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Args)]
struct PeersArgs {
    /// Only this one.
    name: Option<String>,
    /// Replace its ESP keys (child) or its IKE SA (ike) now. No packet is lost.
    #[arg(long, value_name = "WHAT", requires = "name")]
    rekey: Option<Rekey>,
}

/// What `--rekey` replaces.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rekey {
    Child,
    Ike,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a configuration as the agent would, and say what is wrong with it.
    ///
    /// Each message begins with file:line. Key files are read too, except the host's own. Exits with 0 if the agent would take it,
    /// with 5 if not. Nothing is asked of this machine: whether ports are free and whose addresses a peer has, the agent finds
    /// out.
    ///
    /// A docker-compose or rancher-compose file is read for its `network_driver` blocks, with the environment's variables.
    #[command(after_help = "Examples:\n  underpass config check ./underpass.yaml\n  \
                            underpass config check --strict ./rancher-compose.yml\n  \
                            underpass config check --json ./rancher-compose.yml | jq '.drivers[].cni_config'")]
    Check {
        /// The configuration, or a compose file with a `network_driver` block.
        #[arg(value_name = "FILE", default_value = CONFIG_FILE)]
        file: PathBuf,
        /// Take warnings for errors.
        #[arg(long)]
        strict: bool,
    },
    /// Print the network drivers of a docker-compose or rancher-compose file as the agent's configuration.
    ///
    /// What the file holds besides is listed with the reason why it is left out.
    #[command(after_help = "Example:\n  underpass config convert rancher-compose.yml >> /etc/underpass/underpass.yaml")]
    Convert {
        /// The compose file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make the host's key and print its public half.
    ///
    /// The key goes to host.key in the state directory. The agent makes one itself when a peer needs it.
    Generate {
        /// Replace the key that is there. Peers that pin it refuse this host until they are told the new one.
        #[arg(long)]
        force: bool,
    },
    /// Print the public half of the host's key: what peers write as `public_key`.
    Show,
    /// Change the host's key without losing a tunnel: three steps.
    ///
    /// Without an option, makes the next key and prints its public half; let every peer pin it beside the present one
    /// (`public_key: [PRESENT, NEXT]`) and reload. With --switch, the next key becomes the host's key; reload this agent, and look in
    /// `underpass peers` on the peers by which key they know this host. With --finish, the old key is removed; reload, and let the
    /// peers unpin it.
    #[command(
        after_help = "Example:\n  underpass key rotate\n  underpass key rotate --switch && systemctl reload underpass\n  \
                            underpass key rotate --finish && systemctl reload underpass"
    )]
    Rotate {
        /// Use the next key from the agent's next reload on. Peers that refuse it still get the old one.
        #[arg(long, conflicts_with = "finish")]
        switch: bool,
        /// Remove the old key.
        #[arg(long)]
        finish: bool,
    },
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    /// List the hosts that the store knows, and how this one stands with each.
    #[command(
        after_help = "Examples:\n  underpass host ls\n  underpass host ls --json | jq '.hosts[] | {name, state, blocks}'"
    )]
    Ls,
    /// Show one host in full.
    Show {
        /// Its name, or its ID or the first eight digits of that.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Take a host out of the store for good: its tunnels end everywhere, and its blocks are free again.
    ///
    /// It comes back only with another host key. Hosts that are listed in a file are taken out of the file instead.
    Rm {
        /// Its name, or its ID or the first eight digits of that.
        #[arg(value_name = "NAME")]
        name: String,
        /// Also if the store has heard of it within the last half minute.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum IpamCommand {
    /// List networks, blocks and leases.
    ///
    /// It reads the journal in the state directory; no agent need run.
    #[command(
        after_help = "Examples:\n  underpass ipam ls\n  underpass ipam ls --json | jq '.networks[].leases[].addresses'"
    )]
    Ls {
        /// Only this network.
        #[arg(value_name = "NETWORK")]
        network: Option<String>,
    },
    /// Hold the leases against this host's blocks and network namespaces.
    ///
    /// It finds leases whose namespace is gone, leases outside of this host's blocks, and what killed processes and failing disks
    /// left in the journal. Exits with 0 if there is nothing to mend or all was mended, with 3 if not.
    #[command(after_help = "Examples:\n  underpass ipam check\n  underpass ipam check --repair")]
    Check {
        /// Release leases whose namespace is gone, and remove from the journal what cannot be read.
        #[arg(long)]
        repair: bool,
    },
}

/// Runs the command that these arguments name (the first is the program's own name).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; if nobody reads them any more, nothing is lost.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Fine }.into();
        }
    };
    let places = cli.places;
    match cli.command {
        Command::Agent(arguments) => agent::run(&places, &arguments),
        Command::Status => status::run(&places),
        Command::Ps => ps::run(&places),
        Command::Peers(arguments) => peers::run(&places, &arguments),
        Command::Demo(arguments) => demo::run(&places, &arguments),
        Command::Bench(arguments) => bench::run(&places, &arguments),
        Command::BenchCeiling(arguments) => bench::ceiling::run(&arguments),
        Command::Config(ConfigCommand::Check { file, strict }) => check::run(&places, &file, strict),
        Command::Config(ConfigCommand::Convert { file }) => convert::run(&places, &file),
        Command::Key(KeyCommand::Generate { force }) => key::generate(&places, force),
        Command::Key(KeyCommand::Show) => key::show(&places),
        Command::Key(KeyCommand::Rotate { switch, finish }) => key::rotate(&places, switch, finish),
        Command::Host(HostCommand::Ls) => host::show(&places, None),
        Command::Host(HostCommand::Show { name }) => host::show(&places, Some(&name)),
        Command::Host(HostCommand::Rm { name, force }) => host::rm(&places, &name, force),
        Command::Ipam(IpamCommand::Ls { network }) => ipam::ls(&places, network.as_deref()),
        Command::Ipam(IpamCommand::Check { repair }) => ipam::check(&places, repair),
        Command::Net(command) => net::run(&places, command),
        Command::Setup(arguments) => setup::run(&places, &arguments),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_hold_together() {
        Cli::command().debug_assert();
    }
}
