//! `underpass bench`: how fast the tunnel is on this machine, beside what it could be.
//!
//! Two hosts are built as the demo builds them (`site`), once for each way between them and round: the bare wire, a
//! keyless forwarder as the ceiling (`ceiling`), our agents, and our agents without offloads (`matrix` names them). On each
//! the same figures are measured one after the other (`measure`): TCP (`streams`), UDP at the highest rate that hardly loses any
//! (`packets`, `search`), round trips, and what the programs cost (`machine`). Rounds begin with another way each, as machines
//! drift; ratios are taken within a round (`report`). It needs the kernel and root, or user namespaces, and nothing else; however
//! it ends, nothing is left behind.

pub mod ceiling;
mod machine;
mod matrix;
mod measure;
mod packets;
mod plot;
mod report;
mod search;
mod site;
mod streams;
mod table;

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::lab::{self, Failure, Interrupts, NOT_ROOT};
use super::output::{complain, print, print_json};
use super::{Exit, Places};
use crate::model::AeadAlgorithm;
use machine::Machine;
use matrix::{Figure, Way};
use measure::Measure;
use report::{Report, Results, Settings};
use site::{Agents, INNER_MTU, Site};

/// Building a way, keys and the first pings included, and taking it down again.
const SET_UP: Duration = Duration::from_millis(1500);

/// The shortest and the longest that a figure may be measured, in seconds.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=60.0;

/// Arguments of `underpass bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// How often everything is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many seconds each figure is measured.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Only these figures, with commas.
    #[arg(long, value_name = "FIGURES", value_enum, value_delimiter = ',')]
    figures: Vec<Figure>,
    /// Only these ways, with commas.
    #[arg(long, value_name = "WAYS", value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// How the agents seal packets.
    #[arg(long, value_name = "SUITE", default_value = "aes256gcm16",
        value_parser = PossibleValuesParser::new(AeadAlgorithm::ALL.map(AeadAlgorithm::name)))]
    suite: String,
    /// How many queues, and workers, each agent has; as many as cores unless said otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: Option<u16>,
    /// Write a chart (SVG) to this file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if SECONDS.contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("not between {} and {}", SECONDS.start(), SECONDS.end()))
    }
}

/// Measures, and prints the report. What was measured is printed also if it is not all.
pub(super) fn run(places: &Places, arguments: &BenchArgs) -> Exit {
    if let Some(file) = &arguments.plot
        && let Err(error) = fs::OpenOptions::new().append(true).create(true).open(file)
    {
        // Better known now than after all rounds.
        return complain(format_args!("cannot write {}: {error}", file.display()), error.kind().into());
    }
    let bench = Bench::new(arguments);
    let mut results = Results::default();
    let outcome = bench.perform(&mut results);
    let exit = outcome.as_ref().map_or_else(Failure::exit, |()| Exit::Fine);
    let report = bench.report(&results, outcome.as_ref().err());
    let exit = match arguments.plot.as_deref().map(|file| draw(&report, file)) {
        Some(Err(failed)) => failed,
        _ => exit,
    };
    if places.json {
        return print_json(&report, exit);
    }
    let exit = match &outcome {
        Ok(()) => print(&table::render(&report), exit),
        Err(_) if report.is_empty() => exit,
        Err(_) => print(&table::render(&report), exit),
    };
    match outcome {
        Ok(()) => exit,
        Err(failure) => complain(failure, exit),
    }
}

fn draw(report: &Report, file: &Path) -> Result<(), Exit> {
    fs::write(file, plot::svg(report))
        .map_err(|error| complain(format_args!("cannot write {}: {error}", file.display()), error.kind().into()))
}

/// A benchmark under way.
struct Bench {
    rounds: u32,
    duration: Duration,
    figures: Vec<Figure>,
    ways: Vec<Way>,
    agents: Agents,
    started: Instant,
}

impl Bench {
    fn new(arguments: &BenchArgs) -> Self {
        let is_wanted = |figure: &Figure| arguments.figures.is_empty() || arguments.figures.contains(figure);
        let is_built = |way: Way| cfg!(feature = "tun-tap") || way != Way::Plain;
        let ways = Way::ALL
            .into_iter()
            .filter(|way| if arguments.ways.is_empty() { is_built(*way) } else { arguments.ways.contains(way) });
        Self {
            rounds: arguments.rounds,
            duration: Duration::from_secs_f64(arguments.seconds),
            figures: Figure::ALL.into_iter().filter(is_wanted).collect(),
            ways: ways.collect(),
            agents: Agents {
                queues: arguments.queues,
                suite: AeadAlgorithm::from_name(&arguments.suite).unwrap_or(AeadAlgorithm::Aes256Gcm16),
            },
            started: Instant::now(),
        }
    }

    fn perform(&self, results: &mut Results) -> Result<(), Failure> {
        let interrupts = Interrupts::note()?;
        if lab::enter()? {
            say(format_args!("{NOT_ROOT}\n"));
        }
        let ways = self.ways.len();
        say(format_args!(
            "underpass bench: {} figures, {ways} ways, rounds: {}; takes about {}. Interrupt it at any time.\n",
            self.figures.len(),
            self.rounds,
            in_words(self.estimate())
        ));
        for round in 0..self.rounds as usize {
            for place in 0..ways {
                interrupts.stop.check().map_err(|_| Failure::Interrupted)?;
                self.measure(round, self.ways[(round + place) % ways], &interrupts, results)?;
            }
        }
        Ok(())
    }

    /// All figures of one way in one round.
    fn measure(&self, round: usize, way: Way, interrupts: &Interrupts, results: &mut Results) -> Result<(), Failure> {
        let seconds = self.started.elapsed().as_secs();
        say(format_args!("[{seconds:4} s] round {} of {}, {}:", round + 1, self.rounds, way.name()));
        let with_containers = self.figures.contains(&Figure::Container);
        let stop = &interrupts.stop;
        let outcome = Site::build(way, self.agents, with_containers, stop).and_then(|mut site| {
            let note = |figure: Figure, value| {
                if self.figures.contains(&figure) {
                    say(format_args!(" {} {}", figure.name(), table::number(figure, value)));
                    results.note(round, figure, way, value);
                }
            };
            let outcome = Measure::new(&site, self.duration, stop).all(way, &self.figures, note);
            outcome.map_err(|failure| site.explain(failure))
        });
        say("\n");
        outcome.map_err(|failure| match failure {
            Failure::Failed(what) => Failure::Failed(format!("{}: {what}", way.name())),
            Failure::Timeout(what) => Failure::Timeout(format!("{}: {what}", way.name())),
            other => other,
        })
    }

    /// How long it takes.
    fn estimate(&self) -> Duration {
        let figures: Duration = self.figures.iter().map(|&figure| measure::expected(figure, self.duration)).sum();
        (SET_UP + figures) * (self.ways.len() as u32) * self.rounds
    }

    fn report(&self, results: &Results, failure: Option<&Failure>) -> Report {
        Report {
            schema: "underpass.bench/1",
            ok: failure.is_none(),
            failure: failure.map(ToString::to_string),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::here(),
            settings: Settings {
                rounds: self.rounds,
                seconds: self.duration.as_secs_f64(),
                suite: self.agents.suite.name(),
                queues: self.agents.queues,
                inner_mtu: INNER_MTU,
                ways: self.ways.clone(),
            },
            elapsed_seconds: self.started.elapsed().as_secs_f64(),
            figures: results.rows(&self.figures, &self.ways),
            container_to_host: results.container_to_host(&self.ways),
        }
    }
}

/// A time for people.
fn in_words(time: Duration) -> String {
    match time.as_secs() + 1 {
        seconds @ ..=90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

/// Progress, for people who wait: standard output is for the result.
fn say(text: impl Display) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(arguments: &[&str]) -> Bench {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            arguments: BenchArgs,
        }
        let all = ["bench"].iter().chain(arguments);
        Bench::new(&<Only as clap::Parser>::try_parse_from(all).unwrap().arguments)
    }

    #[test]
    fn all_of_it_takes_some_minutes_and_a_part_of_it_less() {
        let all = bench(&[]);
        assert_eq!((all.figures.len(), all.rounds), (14, 3));
        assert!((240..900).contains(&all.estimate().as_secs()), "{:?}", all.estimate());
        let part = bench(&["--figures", "cpu,tcp-1", "--ways", "plain,raw", "--rounds", "1", "--seconds", "0.5"]);
        assert_eq!(part.figures, [Figure::Tcp1, Figure::Cpu], "in the table's order");
        assert_eq!(part.ways, [Way::Raw, Way::Plain]);
        assert!(part.estimate() < Duration::from_secs(5), "{:?}", part.estimate());
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        assert_eq!(
            [0.2, 89.0, 90.0, 505.0].map(|seconds| in_words(Duration::from_secs_f64(seconds))),
            ["1 s", "90 s", "2 min", "8 min"]
        );
    }

    #[test]
    fn seconds_have_limits() {
        assert_eq!(parse_seconds("0.1"), Ok(0.1));
        for bad in ["0", "61", "NaN", "-1", "x"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
