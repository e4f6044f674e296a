//! Trouble without end: loss, deaths, and keys that change every few seconds. The short versions always run; the long ones are what
//! the requirement says.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use underpass::model::{Rng, SeededRng};

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, paired};
use crate::lab::swan::{Swan, SwanConfig};
use crate::lab::traffic::{Iperf, ping, wait_until_answered};
use crate::lab::{Lab, wait_for};

/// After whatever death, the tunnel is back in this time by itself.
const BACK: Duration = Duration::from_secs(15);

/// When a path is well again, so is the tunnel in this time.
const WELL_AGAIN: Duration = Duration::from_secs(5);

fn pair(lab: &Lab) -> (Agent, Agent) {
    paired(lab, |config| config.queues(2))
}

fn both_up(alpha: &Agent, beta: &Agent, limit: Duration) {
    let start = Instant::now();
    alpha.wait_for_state("beta", "up", limit);
    beta.wait_for_state("alpha", "up", limit.saturating_sub(start.elapsed()));
}

/// 30 % of what arrives at either end is lost, and that ends.
fn loss_that_ends(seconds: u64) {
    let lab = Lab::direct();
    let (alpha, beta) = pair(&lab);
    lab.alpha.lose(30);
    lab.beta.lose(30);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut looks, mut up) = (0, 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(500));
        looks += 2;
        up += [(&alpha, "beta"), (&beta, "alpha")].iter().filter(|(agent, peer)| agent.peer(peer).state() == "up").count();
    }
    eprintln!("up at {up} of {looks} looks while 30 % were lost");
    lab.alpha.pass();
    lab.beta.pass();
    let start = Instant::now();
    both_up(&alpha, &beta, WELL_AGAIN);
    wait_until_answered(&lab.alpha, &lab.beta, WELL_AGAIN.saturating_sub(start.elapsed()));
    eprintln!("well again after {:?}", start.elapsed());
    assert_eq!(ping(&lab.alpha, &lab.beta, 20).lost(), 0);
}

#[test]
fn loss_that_ends_is_over() {
    loss_that_ends(20);
}

#[test]
#[ignore = "long"]
fn loss_that_ends_after_two_minutes_is_over() {
    loss_that_ends(120);
}

/// `kill -9` of either side by chance, after a pause by chance; each time the tunnel comes back.
fn deaths(rounds: u32) {
    let lab = Lab::direct();
    let (mut alpha, mut beta) = pair(&lab);
    let mut rng = SeededRng::new(u64::from(std::process::id()));
    let mut times = Vec::new();
    for round in 1..=rounds {
        sleep(rng.jitter(Duration::from_secs(2)));
        let dies_first = rng.u32().is_multiple_of(2);
        let (agent, name) = if dies_first { (&mut alpha, "alpha") } else { (&mut beta, "beta") };
        let start = Instant::now();
        agent.kill();
        agent.start();
        let (from, to) = if dies_first { (&lab.beta, &lab.alpha) } else { (&lab.alpha, &lab.beta) };
        // From the side that lives: it has to find out.
        wait_until_answered(from, to, BACK);
        times.push(start.elapsed());
        eprintln!("{round}: {name} died, back after {:?}", start.elapsed());
    }
    times.sort();
    eprintln!("{rounds} deaths: back after {:?} at the median, {:?} at most", times[times.len() / 2], times.last());
    both_up(&alpha, &beta, BACK);
    let one = |agent: &Agent, peer: &str| agent.peer(peer).shared_spis().len() == 1;
    wait_for("one tunnel", Duration::from_secs(20), || (one(&alpha, "beta") && one(&beta, "alpha")).then_some(()));
    assert_eq!(ping(&lab.alpha, &lab.beta, 20).lost(), 0);
}

#[test]
fn deaths_of_either_side_are_survived() {
    deaths(4);
}

#[test]
#[ignore = "long"]
fn fifty_deaths_of_either_side_are_survived() {
    deaths(50);
}

/// strongSwan rekeys the CHILD_SA every 5 seconds and the IKE SA every 12, under iperf3 both ways.
fn rekeys_without_end(seconds: u32) {
    let lab = Lab::direct();
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    config.rekey_seconds = Some((12, 5));
    let beta = Swan::start(&lab.beta, &config);
    let alpha = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &[PeerConfig::at(&lab.beta)]).queues(2));
    alpha.wait_for_state("beta", "up", FIRST_CONTACT);
    wait_until_answered(&lab.alpha, &lab.beta, FIRST_CONTACT);
    let transfer = Iperf::start(&lab.alpha, &lab.beta, &["-t", &seconds.to_string(), "--bidir", "-b", "20M"]);
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let (mut seen, mut most) = (std::collections::BTreeSet::new(), 0);
    while Instant::now() < until {
        let children = alpha.peer("beta").child_spis();
        most = most.max(children.len());
        seen.extend(children.into_iter().map(|spis| spis.0));
        sleep(Duration::from_secs(1));
    }
    let report = transfer.wait();
    let rate = report.0["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
    eprintln!("{} CHILD_SAs in {seconds} s, {most} at a time at most; {:.0} Mbit/s", seen.len(), rate / 1e6);
    assert!(seen.len() as u32 >= seconds / 6, "{} CHILD_SAs in {seconds} s", seen.len());
    // The old one, the new one, and one more of a rekey by our side that meets strongSwan's.
    assert!(most <= 4, "{most} CHILD_SAs at a time");
    assert_eq!(alpha.losses(), BTreeMap::new(), "we lost packets");
    let agree = || {
        let (inbound, outbound) = beta.only_child()?;
        (alpha.peer("beta").child_spis() == [(outbound, inbound)]).then_some(())
    };
    wait_for("one CHILD_SA that both ends know", Duration::from_secs(10), agree);
    assert_eq!(alpha.peer("beta").state(), "up");
}

#[test]
fn strongswan_rekeys_every_five_seconds() {
    rekeys_without_end(35);
}

#[test]
#[ignore = "long"]
fn strongswan_rekeys_every_five_seconds_for_ten_minutes() {
    rekeys_without_end(600);
}
