//! `underpass demo`: two hosts on this machine, an encrypted tunnel between them, and a look at the wire.
//!
//! ```text
//!          alpha                                        beta
//!   agent, underpass0 10.42.1.1                 agent, underpass0 10.42.2.1
//!        eth0 192.0.2.1 ─────────── wire ─────────── eth0 192.0.2.2
//!                          ↑ the tap
//! ```
//!
//! It needs the kernel and root, nothing else: namespaces, wire and addresses are made by netlink (`lab`), pings and a TCP
//! stream are our own (`lab`, `traffic`), and so is the look at the wire (`wire_tap`). First a ping in clear, to show that the tap
//! would find its text; then the agents, the tunnel, the same ping through it, the stream, and the tap's account of all that.
//! What is claimed at the end was seen: whatever was not makes the whole a failure. However it ends, nothing is left behind.

mod screen;
mod traffic;
mod wire_tap;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::lab::hosts::{AgentOptions, Host, Hosts, WIRE};
use super::lab::ping::{self, Pings, TEXT};
use super::lab::{Failure, Flow, Interrupts, NOT_ROOT, OWN_PROGRAM, Stop};
use super::output::print_json;
use super::{Exit, Places, lab};
use crate::observe::{Status, render_status};
use screen::{Screen, hex_dump};
use traffic::Throughput;
use wire_tap::{EXCHANGES, Sightings, WireTap};

/// Pings each way through the tunnel.
const PINGS: u16 = 5;

/// Between two of them.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// How much of the text the tap looks for: any frame of the stream holds this much in one piece.
const NEEDLE: usize = 24;

/// Lines of a hexadecimal dump.
const DUMP_LINES: usize = 8;

/// Arguments of `underpass demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How many seconds of TCP to send through the tunnel.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// How many queues, and workers, each agent has; as many as cores unless said otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: Option<u16>,
}

/// What `--json` prints. Fields that were not reached are `null`.
#[derive(Debug, Default, Serialize)]
struct Report {
    schema: &'static str,
    /// Everything was seen.
    ok: bool,
    /// Why not.
    failure: Option<String>,
    /// From the agents' start to both saying "up", in seconds.
    up_after_seconds: Option<f64>,
    /// Through the tunnel, each way.
    pings: Option<[Direction; 2]>,
    /// TCP from alpha to beta.
    throughput: Option<Throughput>,
    /// What the tap saw from the agents' start to the end of the stream.
    wire: Option<Sightings>,
    /// What each agent said at the end.
    status: Option<[Status; 2]>,
}

/// The pings of one direction.
#[derive(Debug, Serialize)]
struct Direction {
    from: &'static str,
    to: &'static str,
    #[serde(flatten)]
    pings: Pings,
}

/// Runs the demonstration with this program's own agents: fine only if everything was seen.
pub(super) fn run(places: &Places, arguments: &DemoArgs) -> Exit {
    let mut report = Report { schema: "underpass.demo/1", ..Report::default() };
    let screen = Screen::new(places.json);
    let outcome = Demo::prepare(Path::new(OWN_PROGRAM), arguments, &screen).and_then(|demo| demo.perform(&mut report));
    let exit = outcome.as_ref().map_or_else(Failure::exit, |()| Exit::Fine);
    report.ok = outcome.is_ok();
    report.failure = outcome.as_ref().err().map(ToString::to_string);
    if places.json {
        return print_json(&report, exit);
    }
    match outcome {
        Ok(()) => screen.step("All of it was seen. Nothing is left of it."),
        Err(failure) => screen.step(format_args!("FAILED: {failure}")),
    }
    exit
}

/// The demonstration under way.
struct Demo<'a> {
    program: PathBuf,
    seconds: u64,
    queues: Option<u16>,
    screen: &'a Screen,
    interrupts: Interrupts,
}

impl<'a> Demo<'a> {
    /// Looks whether it can be done here. Without root, a user namespace may stand in; this process must not have threads yet.
    fn prepare(program: &Path, arguments: &DemoArgs, screen: &'a Screen) -> Result<Self, Failure> {
        let demo = Self {
            program: program.to_owned(),
            seconds: arguments.seconds,
            queues: arguments.queues,
            screen,
            interrupts: Interrupts::note()?,
        };
        let is_stranger = lab::enter()?;
        screen.line("underpass demo: two hosts on this machine and an encrypted tunnel between them\n");
        if is_stranger {
            screen.step(NOT_ROOT);
        }
        Ok(demo)
    }

    fn stop(&self) -> &Stop {
        &self.interrupts.stop
    }

    /// The whole of it, in the order in which it is told.
    fn perform(&self, report: &mut Report) -> Result<(), Failure> {
        let mut hosts = Hosts::build(&self.program, "demo")?;
        // Whatever failed: if an agent has ended meanwhile, that is why.
        self.act(&mut hosts, report).map_err(|failure| match failure {
            Failure::Interrupted => failure,
            failure => hosts.check_agents().err().unwrap_or(failure),
        })
    }

    fn act(&self, hosts: &mut Hosts, report: &mut Report) -> Result<(), Failure> {
        let tap = self.show_wire(hosts)?;
        self.ping_in_clear(hosts, &tap)?;
        report.up_after_seconds = Some(self.bring_up(hosts)?);
        report.wire = Some(self.take(&tap)?);
        report.pings = Some(self.ping_through_tunnel(hosts)?);
        let example = self.take_example(&tap, report)?;
        report.throughput = Some(self.stream_through_tunnel(hosts)?);
        self.account(&tap, report)?;
        self.compare(&example)?;
        report.status = Some(self.show_statuses(hosts)?);
        hosts.stop_agents()?;
        self.screen.step("Both agents were asked to stop, and did.");
        Ok(())
    }

    fn show_wire(&self, hosts: &Hosts) -> Result<WireTap, Failure> {
        let (alpha, beta) = hosts.pair();
        self.screen.step("Two network namespaces are the hosts; a veth pair is the wire between them.");
        for host in [alpha, beta] {
            self.screen.detail(format_args!("{:<6} on the wire {}, in the overlay {}", host.name, host.outer, host.overlay));
        }
        let index = alpha.netlink(|netlink| netlink.link_index(WIRE))?;
        let start = || WireTap::start(index, &TEXT[..NEEDLE]);
        alpha.namespace.run(start)?.map_err(|error| Failure::io("listen on the wire", &error))
    }

    /// The control experiment: the tap must find the text where nothing hides it.
    fn ping_in_clear(&self, hosts: &Hosts, tap: &WireTap) -> Result<(), Failure> {
        let (alpha, beta) = hosts.pair();
        let pings = self.ping(alpha, beta, [alpha.outer, beta.outer], 1)?;
        let seen = self.take(tap)?;
        if pings.answered != 1 || seen.text_in_clear != 2 {
            let what = format!("{} of 1 answered, the text was seen {} times", pings.answered, seen.text_in_clear);
            return Err(Failure::failed("a ping in clear from alpha to beta", what));
        }
        self.screen
            .step("First without a tunnel: alpha pings beta over the bare wire. The tap reads what it says, both ways:");
        self.screen.detail(format_args!("\"{}\"", String::from_utf8_lossy(TEXT)));
        Ok(())
    }

    fn bring_up(&self, hosts: &mut Hosts) -> Result<f64, Failure> {
        self.screen
            .step("Now an agent on each host. All they know is the other's address, blocks and public key (Ed25519).");
        let started = Instant::now();
        hosts.start_agents(AgentOptions { queues: self.queues, ..AgentOptions::default() })?;
        let changed = |host: &str, peer: &str, state: crate::observe::PeerState| {
            self.screen.step(format_args!("{host} says: {peer} is {}", state.name()));
        };
        hosts.await_up(|| self.stop().check().map_err(|_| Failure::Interrupted), changed)?;
        let seconds = started.elapsed().as_secs_f64();
        self.screen.step(format_args!("The tunnel is up, {seconds:.2} s after the agents were started."));
        Ok(seconds)
    }

    fn ping_through_tunnel(&self, hosts: &Hosts) -> Result<[Direction; 2], Failure> {
        let (alpha, beta) = hosts.pair();
        let each_way = |from: &Host, to: &Host| {
            let pings = self.ping(from, to, [from.overlay, to.overlay], PINGS)?;
            self.screen.step(format_args!(
                "{} pings {} ({}) through the tunnel: {} of {} answered, round trip {:.2} / {:.2} / {:.2} ms (min / mean / max)",
                from.name, to.name, to.overlay, pings.answered, pings.sent, pings.min_ms, pings.mean_ms, pings.max_ms
            ));
            if pings.answered == pings.sent {
                return Ok(Direction { from: from.name, to: to.name, pings });
            }
            Err(Failure::Failed(format!("{} of {}'s pings were not answered", pings.sent - pings.answered, from.name)))
        };
        Ok([each_way(alpha, beta)?, each_way(beta, alpha)?])
    }

    fn ping(&self, from: &Host, to: &Host, [source, destination]: [Ipv4Addr; 2], count: u16) -> Result<Pings, Failure> {
        let flow = Flow { from: &from.namespace, source, to: &to.namespace, destination };
        let action = format!("ping from {} to {}", from.name, to.name);
        ping::ping(flow, count, PING_INTERVAL, self.stop()).map_err(|error| Failure::io(&action, &error))
    }

    /// Adds what the tap has seen meanwhile, and hands over one ESP packet of the pings.
    fn take_example(&self, tap: &WireTap, report: &mut Report) -> Result<Vec<u8>, Failure> {
        let mut seen = self.take(tap)?;
        let example = seen.example.take();
        report.wire.get_or_insert_default().merge(seen);
        example.ok_or_else(|| Failure::Failed("the pings were answered, but the tap saw no ESP packet".to_owned()))
    }

    fn stream_through_tunnel(&self, hosts: &Hosts) -> Result<Throughput, Failure> {
        let (alpha, beta) = hosts.pair();
        self.screen.step(format_args!("TCP from alpha to beta through the tunnel for {} s:", self.seconds));
        let (source, destination) = (alpha.overlay, beta.overlay);
        let flow = Flow { from: &alpha.namespace, source, to: &beta.namespace, destination };
        let each_second = |rate| self.screen.detail(format_args!("{rate:8.0} Mbit/s"));
        let throughput = traffic::tcp(flow, Duration::from_secs(self.seconds), self.stop(), each_second)
            .map_err(|error| Failure::io("TCP through the tunnel", &error))?;
        self.screen.step(format_args!(
            "{:.0} Mbit/s: {} MB in {:.1} s, every octet as it was sent. One direction, tap included, {} cores for both hosts.",
            throughput.mbit_per_second,
            throughput.octets / 1_000_000,
            throughput.seconds,
            std::thread::available_parallelism().map_or(1, usize::from)
        ));
        Ok(throughput)
    }

    /// The tap's account, and what it must and must not hold.
    fn account(&self, tap: &WireTap, report: &mut Report) -> Result<(), Failure> {
        let seen = report.wire.get_or_insert_default();
        seen.merge(self.take(tap)?);
        self.screen.step("What was on the wire from the agents' start to here:");
        let row = |name: &str, count: u64| self.screen.detail(format_args!("{count:>10}  {name}"));
        for (_, exchange) in EXCHANGES {
            seen.ike.get(exchange).into_iter().for_each(|&count| row(&format!("IKE, {exchange}"), count));
        }
        row("ESP in UDP", seen.esp);
        for (name, count) in [
            ("NAT keepalives", seen.keepalives),
            ("ARP and IPv6 neighbour discovery", seen.neighbour),
            ("ICMP \"port closed\", before the other agent was there", seen.port_closed),
            ("more of ESP, too fast for the tap to read", seen.esp_missed),
        ] {
            if count > 0 {
                row(name, count);
            }
        }
        row("anything else", seen.other);
        row("packets that could be read", seen.text_in_clear);
        for stranger in &seen.strangers {
            self.screen.detail(hex_dump(stranger, DUMP_LINES));
        }
        check(seen)
    }

    fn compare(&self, example: &[u8]) -> Result<(), Failure> {
        self.screen.step("One ping as alpha sent it into the tunnel (ICMP) ...");
        self.screen.detail(hex_dump(&ping::echo_request(1), DUMP_LINES));
        self.screen.step("... and one such packet as it was on the wire (ESP: SPI, sequence number, the rest is sealed)");
        self.screen.detail(hex_dump(example, DUMP_LINES));
        if example.windows(NEEDLE).any(|window| window == &TEXT[..NEEDLE]) {
            return Err(Failure::Failed("the text can be read in an ESP packet".to_owned()));
        }
        Ok(())
    }

    fn show_statuses(&self, hosts: &mut Hosts) -> Result<[Status; 2], Failure> {
        let statuses = hosts.statuses()?;
        for status in &statuses {
            self.screen.step(format_args!("`underpass status` on {}:", status.host));
            self.screen.detail(render_status(status));
        }
        match statuses.iter().find(|status| status.is_degraded()) {
            Some(status) => Err(Failure::Failed(format!("{} says that its peer is not up any more", status.host))),
            None => Ok(statuses),
        }
    }

    fn take(&self, tap: &WireTap) -> Result<Sightings, Failure> {
        tap.take().map_err(|error| Failure::io("listen on the wire", &error))
    }
}

/// Whether the tap saw what it should, and nothing that it should not.
fn check(seen: &Sightings) -> Result<(), Failure> {
    let missing = ["IKE_SA_INIT", "IKE_AUTH"].into_iter().find(|exchange| !seen.ike.contains_key(exchange));
    let what = match missing {
        Some(exchange) => format!("the tap saw no {exchange}"),
        None if seen.esp == 0 => "the tap saw no ESP packet".to_owned(),
        None if seen.text_in_clear > 0 => format!("{} packets could be read on the wire", seen.text_in_clear),
        None if seen.other > 0 => format!("{} packets on the wire were neither IKE nor ESP", seen.other),
        None if seen.other_missed > 0 => format!("the tap missed {} packets that were not ESP", seen.other_missed),
        None => return Ok(()),
    };
    Err(Failure::Failed(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Sightings {
        Sightings { ike: [("IKE_SA_INIT", 2), ("IKE_AUTH", 2)].into(), esp: 20, ..Sightings::default() }
    }

    #[test]
    fn only_ike_and_esp_and_both_is_a_success() {
        assert!(check(&good()).is_ok());
        let harmless = Sightings { neighbour: 4, port_closed: 1, keepalives: 1, esp_missed: 9, ..good() };
        assert!(check(&harmless).is_ok());
        for (bad, part) in [
            (Sightings { ike: [("IKE_AUTH", 2)].into(), ..good() }, "IKE_SA_INIT"),
            (Sightings { esp: 0, ..good() }, "no ESP"),
            (Sightings { other: 1, ..good() }, "neither IKE nor ESP"),
            (Sightings { other_missed: 1, ..good() }, "missed 1"),
            (Sightings { text_in_clear: 1, ..good() }, "could be read"),
        ] {
            let failure = check(&bad).unwrap_err().to_string();
            assert!(failure.contains(part), "{failure}");
        }
    }

    #[test]
    fn a_program_without_agents_fails_and_says_so() {
        let arguments = DemoArgs { seconds: 1, queues: None };
        let screen = Screen::new(true);
        let mut report = Report::default();
        let demo = Demo::prepare(Path::new("/bin/false"), &arguments, &screen).expect("needs root and /dev/net/tun");
        let failure = demo.perform(&mut report).unwrap_err();
        assert!(failure.to_string().starts_with("make a key for alpha"), "{failure}");
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
