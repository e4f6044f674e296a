//! Containers come and go on two hosts while their agents are killed at random, and nothing is left of it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use underpass::model::{Rng, SeededRng};

use crate::lab::agent::{Agent, UNDERPASS, both_up, paired};
use crate::lab::site::{Site, run};
use crate::lab::{Lab, attempt};

/// Containers that a host has at once, at most.
const AT_ONCE: usize = 6;

/// Containers come and go until `stop`, and then the rest goes. `held` has the addresses of both hosts.
fn churn(site: &mut Site, seed: u64, stop: &AtomicBool, held: &Mutex<BTreeSet<String>>, made: &AtomicUsize) {
    let mut rng = SeededRng::new(seed);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) || !site.containers.is_empty() {
        let full = site.containers.len() >= AT_ONCE || stop.load(Ordering::Relaxed);
        let mut chance = [0; 2];
        rng.fill(&mut chance);
        if full || (chance[0] % 3 == 0 && !site.containers.is_empty()) {
            let name = site.containers.keys().nth(usize::from(chance[1]) % site.containers.len()).unwrap().clone();
            held.lock().unwrap().remove(&site.address(&name).to_string());
            site.del(&name);
        } else {
            // Addresses rest for a minute, and a block has 253 of them.
            if number > 120 {
                thread::sleep(Duration::from_millis(500));
            }
            let address = site.add(&format!("c{number}"));
            assert!(held.lock().unwrap().insert(address.clone()), "{address} is given out twice");
            made.fetch_add(1, Ordering::Relaxed);
            number += 1;
        }
    }
}

/// Says so when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills one agent or the other so many times, and starts it again.
fn agents_die(kills: u32) {
    let lab = Lab::direct();
    let (mut alpha, mut beta) = paired(&lab, |config| config);
    let mut sites = [Site::of_agent(&lab.alpha, &alpha), Site::of_agent(&lab.beta, &beta)];
    let (stop, held, made) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for (seed, site) in sites.iter_mut().enumerate() {
            let (stop, held, made) = (&stop, &held, &made);
            scope.spawn(move || churn(site, seed as u64, stop, held, made));
        }
        // Agents belong to the thread that starts them: this one. Whatever happens here, the others end.
        let _end = Stop(&stop);
        let mut rng = SeededRng::new(u64::from(kills));
        for _ in 0..kills {
            let mut chance = [0; 2];
            rng.fill(&mut chance);
            thread::sleep(Duration::from_millis(u64::from(chance[1])));
            let agent: &mut Agent = if chance[0] % 2 == 0 { &mut alpha } else { &mut beta };
            agent.kill();
            thread::sleep(Duration::from_millis(u64::from(chance[1] % 64)));
            agent.start();
        }
    });
    eprintln!("{} containers, {kills} deaths", made.load(Ordering::Relaxed));
    both_up(&alpha, &beta);
    for site in &sites {
        nothing_is_left(site);
    }
    // And it works.
    let [on_alpha, on_beta] = &mut sites;
    let (from, to) = (on_alpha.add("from"), on_beta.add("to"));
    assert_ne!(from, to);
    run(on_alpha.inside("from"), &format!("ping -n -c 3 -i 0.2 -W 2 {to}"));
}

fn nothing_is_left(site: &Site) {
    let state = site.state.display().to_string();
    let found = attempt(&[UNDERPASS, "--state-dir", &state, "ipam", "check", "--json"]);
    let found: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!(found["findings"], Value::Array(Vec::new()), "{found}");
    let links = run(&site.namespace, "ip -o link show type veth");
    let ports: Vec<&str> = links.lines().filter(|line| line.contains("master")).collect();
    assert!(ports.is_empty(), "{ports:?}");
    let rules = run(&site.namespace, "nft list ruleset");
    assert!(!rules.contains("02:00:0a:2a:"), "addresses of containers that are gone: {rules}");
    let neighbours = run(&site.namespace, "ip neigh show proxy");
    assert!(neighbours.is_empty(), "{neighbours}");
    let routes = run(&site.namespace, "ip route show");
    assert!(!routes.lines().any(|route| route.contains("veth")), "{routes}");
}

#[test]
fn agents_that_are_killed_leave_nothing_of_containers_that_come_and_go() {
    agents_die(6);
}

#[test]
#[ignore = "long"]
fn agents_that_are_killed_a_hundred_times_leave_nothing() {
    agents_die(100);
}
