//! Hosts at full speed: segments of all sizes, keys that change under way, both workers at work, and fifty strangers at once.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::agent::{Agent, AgentConfig, PeerConfig, paired};
use crate::lab::traffic::{Iperf, Pinging};
use crate::lab::{Host, Lab, Swan, SwanConfig, wait_for};

fn pair(lab: &Lab, mtu: &str) -> (Agent, Agent) {
    paired(lab, |config| AgentConfig { mtu: mtu.to_owned(), queues: 2, ..config })
}

/// Neither of the two lost a packet.
fn assert_nothing_was_lost(alpha: &Agent, beta: &Agent) {
    assert_eq!([alpha.losses(), beta.losses()], [BTreeMap::new(), BTreeMap::new()]);
}

/// Segments of 536 octets: a super-packet of the kernel is cut into more than one train holds.
#[test]
fn the_smallest_segments_in_use_are_carried() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "auto");
    for (from, to) in [(&lab.alpha, &lab.beta), (&lab.beta, &lab.alpha)] {
        let report = Iperf::start(from, to, &["-t", "2", "-M", "536"]).wait();
        assert!(report.bits_per_second() > 5e6, "{:.0}", report.bits_per_second());
        let mss = report.0["start"]["tcp_mss"].as_u64().expect("an MSS");
        assert!(mss <= 536, "{mss}");
    }
    assert_nothing_was_lost(&alpha, &beta);
}

#[test]
fn jumbo_frames_are_used_where_the_underlay_has_them() {
    for (mtu, inner) in [("auto", 1400), ("8900", 8900)] {
        let lab = Lab::direct();
        lab.set_underlay_mtu(9000);
        let (alpha, beta) = pair(&lab, mtu);
        assert_eq!(alpha.status()["tun"]["mtu"], inner);
        let report = Iperf::start(&lab.alpha, &lab.beta, &["-t", "2"]).wait();
        let report_back = Iperf::start(&lab.beta, &lab.alpha, &["-t", "2"]).wait();
        assert!(report.bits_per_second().min(report_back.bits_per_second()) > 5e6);
        let payload = (inner - 28).to_string();
        let whole = ["-M", "do", "-s", &payload, "-I", lab.alpha.inner, lab.beta.inner];
        assert_eq!(Pinging::burst(&lab.alpha, 5, &whole).wait().lost(), 0);
        let cut = ["-M", "dont", "-s", "20000", "-I", lab.beta.inner, lab.alpha.inner];
        assert_eq!(Pinging::burst(&lab.beta, 5, &cut).wait().lost(), 0);
        assert_nothing_was_lost(&alpha, &beta);
    }
}

/// TCP at full rate while the keys change: nothing is dropped by us.
#[test]
fn rekeys_at_full_rate_drop_nothing() {
    let figures = rekeys_at_full_rate(30, 3);
    assert!(figures.rekeys.len() >= 8, "{} rekeys", figures.rekeys.len());
}

/// Ten minutes with a rekey every ten seconds, and how deep throughput dips at them. Alone on the machine:
/// `cargo test --release --test it -- --ignored --nocapture dips`
#[test]
#[ignore = "long"]
fn throughput_hardly_dips_at_rekeys_for_ten_minutes() {
    let figures = rekeys_at_full_rate(600, 10);
    // What a process costs that asks the agent for something else, in the middle between two rekeys.
    let (rekeys, asks) = (figures.dips(&figures.rekeys), figures.dips(&figures.asks));
    eprintln!("{} rekeys, mean {:.0} Mbit/s, {} retransmissions", rekeys.len(), figures.mean() / 1e6, figures.retransmits);
    eprintln!("dip in the second of a rekey: mean {:.1} %, median {:.1} %", mean(&rekeys), median(&rekeys));
    eprintln!("dip in the second of another request: mean {:.1} %, median {:.1} %", mean(&asks), median(&asks));
    assert!(median(&rekeys) <= 5.0);
}

/// How long one figure of a transfer is.
const STEP: f64 = 0.2;

/// A transfer and what happened meanwhile, in seconds from its start.
struct Figures {
    /// Bits per second in each [`STEP`].
    steps: Vec<f64>,
    rekeys: Vec<f64>,
    asks: Vec<f64>,
    retransmits: u64,
}

impl Figures {
    fn mean(&self) -> f64 {
        mean(&self.steps)
    }

    /// Of each moment: by how many percent the second behind it lies below the three seconds around that one.
    fn dips(&self, moments: &[f64]) -> Vec<f64> {
        let of = |from: f64, to: f64| {
            let place = |at: f64| ((at / STEP).max(0.0) as usize).min(self.steps.len());
            mean(&self.steps[place(from)..place(to)])
        };
        let inside = moments.iter().filter(|&&at| at > 4.0 && at + 5.0 < self.steps.len() as f64 * STEP);
        inside.map(|&at| 100.0 * (1.0 - of(at, at + 1.0) / of(at - 3.0, at).midpoint(of(at + 1.0, at + 4.0)))).collect()
    }
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len() as f64
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// TCP from alpha to beta for so many seconds, with a rekey by each side in turn every so many.
fn rekeys_at_full_rate(seconds: u32, pause: u32) -> Figures {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "auto");
    let transfer = Iperf::start(&lab.alpha, &lab.beta, &["-t", &seconds.to_string(), "-i", &STEP.to_string()]);
    let start = Instant::now();
    let half = Duration::from_secs(pause.into()) / 2;
    let (mut rekeys, mut asks) = (Vec::new(), Vec::new());
    for round in 1..seconds / pause {
        sleep(half);
        asks.push(start.elapsed().as_secs_f64());
        let before = alpha.peer("beta").child_spis();
        assert!(!before.is_empty());
        sleep((Duration::from_secs(pause.into()) * round).saturating_sub(start.elapsed()));
        rekeys.push(start.elapsed().as_secs_f64());
        if round % 2 == 0 {
            alpha.rekey("beta", "child");
        } else {
            beta.rekey("alpha", "child");
        }
        sleep(Duration::from_secs(1));
        let renewed = || (alpha.peer("beta").child_spis() != before).then_some(());
        wait_for("other SPIs", Duration::from_secs(5), renewed);
    }
    let report = transfer.wait();
    assert_nothing_was_lost(&alpha, &beta);
    Figures { steps: report.steps(), rekeys, asks, retransmits: report.retransmits() }
}

/// Four streams over two workers: each of them seals at one end and opens at the other.
#[test]
fn streams_spread_over_the_workers() {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab, "auto");
    let packets = |agent: &Agent, direction: &str| -> Vec<u64> {
        let status = agent.status();
        let workers = status["workers"].as_array().expect("a list");
        workers.iter().map(|worker| worker[direction].as_u64().expect("a number")).collect()
    };
    // The kernel chooses the queue of each flow by its ports: one transfer in eight has all four on one.
    let spread = (0..6).any(|_| {
        let before = [packets(&alpha, "outbound_packets"), packets(&beta, "inbound_packets")];
        Iperf::start(&lab.alpha, &lab.beta, &["-t", "2", "-P", "4"]).wait();
        let after = [packets(&alpha, "outbound_packets"), packets(&beta, "inbound_packets")];
        let carried: Vec<u64> =
            after.iter().flatten().zip(before.iter().flatten()).map(|(after, before)| after - before).collect();
        assert_eq!(carried.len(), 4, "two workers at each end");
        eprintln!("sealed by alpha's workers, opened by beta's: {carried:?}");
        // A stream is a quarter of it; acknowledgements go the other way.
        carried.chunks(2).all(|workers| workers[0].min(workers[1]) * 8 > workers.iter().sum::<u64>())
    });
    assert!(spread, "one worker did all the work, six times in a row");
}

/// How many strongSwan peers one agent has here.
const STRANGERS: u32 = 50;

/// The addresses of a stranger: on the underlay, its block, and the first of that.
fn stranger(number: u32) -> [String; 3] {
    [format!("10.9.0.{}", 100 + number), format!("10.43.{number}.0/24"), format!("10.43.{number}.1")]
}

/// One charon that is fifty hosts: each with an address, an identity and a block of its own.
fn fifty_strangers(lab: &Lab) -> Swan {
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    for number in 0..STRANGERS {
        let [address, block, inner] = stranger(number);
        lab.beta.run(&["ip", "address", "add", &format!("{address}/24"), "dev", "up0"]);
        lab.beta.run(&["ip", "address", "add", &format!("{inner}/32"), "dev", "lo"]);
        config.others.push((address, format!("swan{number}"), block));
    }
    Swan::start(&lab.beta, &config)
}

/// Answers of one host to another, by addresses.
fn ping_all(pairs: &[(&Host, String, String)]) {
    let pings: Vec<Pinging> =
        pairs.iter().map(|(from, source, to)| Pinging::paced(from, 5, "0.2", &["-I", source, to])).collect();
    for ((from, source, to), pings) in pairs.iter().zip(pings) {
        let pings = pings.wait();
        // strongSwan alone loses one now and then on a busy machine.
        assert!(pings.received >= 4, "{} {source} to {to}: {pings:?}", from.name);
    }
}

#[test]
fn fifty_strangers_are_served_at_once() {
    let lab = Lab::direct();
    let _strangers = fifty_strangers(&lab);
    let peers: Vec<PeerConfig> = (0..STRANGERS)
        .map(|number| {
            let [address, blocks, _] = stranger(number);
            PeerConfig { name: format!("swan{number}"), address: Some(address), blocks, ..PeerConfig::at(&lab.beta) }
        })
        .collect();
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &peers).queues(2));
    let up = || {
        let status = alpha.status();
        let up = status["peers"].as_array().expect("a list").iter().filter(|peer| peer["state"] == "up").count();
        (up == STRANGERS as usize).then_some(())
    };
    let (_, took) = wait_for("fifty peers", Duration::from_secs(60), up);
    eprintln!("all up after {took:?}");
    for numbers in [0..STRANGERS / 2, STRANGERS / 2..STRANGERS] {
        let pairs = numbers.flat_map(|number| {
            let [_, _, inner] = stranger(number);
            let there = (&lab.alpha, lab.alpha.inner.to_owned(), inner.clone());
            [there, (&lab.beta, inner, lab.alpha.inner.to_owned())]
        });
        ping_all(&pairs.collect::<Vec<_>>());
    }
    let owners: Vec<String> =
        (0..STRANGERS).flat_map(|n| alpha.peer(&format!("swan{n}")).child_spis()).map(|spis| spis.0).collect();
    assert_eq!(owners.len(), STRANGERS as usize, "one CHILD_SA each");
    // The low bits of an inbound SPI name the worker.
    let of_second = owners.iter().filter(|spi| spi.ends_with("01")).count();
    assert_eq!(of_second, STRANGERS as usize / 2, "half of them on each worker: {owners:?}");
    assert_eq!(alpha.losses(), BTreeMap::new());
}
