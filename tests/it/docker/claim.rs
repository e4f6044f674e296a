//! With etcd: addresses by label that lie in none of this host's blocks.

use std::time::Duration;

use serde_json::Value;

use super::host::DockerHost;
use super::{LABEL, addresses_inside, drivers};
use crate::lab::etcd::Etcd;
use crate::lab::{Host, Lab, wait_for};

/// What the store says is in effect everywhere after this, and a container that was refused is tried again.
const NEWS: Duration = Duration::from_secs(60);

/// A host with Docker whose agent has joined by etcd.
fn joined(host: &Host, etcd: &Etcd) -> DockerHost {
    let mut made = DockerHost::new(host);
    let Host { name, address, .. } = host;
    let yaml = format!(
        "host: {{name: {name}, advertise: [\"{address}\"]}}\ntun: {{queues: 1}}\n\
         store: {{kind: etcd, endpoints: [\"{}\"], allow_plaintext: true}}\n{}",
        etcd.url(),
        drivers(&made.folder())
    );
    made.start_agent_as(&yaml);
    made
}

fn ip(address: &str) -> String {
    format!("--label=io.rancher.container.ip={address}")
}

fn requested(addresses: &str) -> String {
    format!("--label=io.rancher.container.requested_ip={addresses}")
}

/// What the agent said when it left the container as it is: once, however often it was tried.
fn refusal(host: &DockerHost, name: &str) -> String {
    let why = host.until(name, "failed")["why"].as_str().expect("a reason").to_owned();
    let log = host.agent.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(&format!("container {name} (")) && line.contains("is left as it is"))
        .collect();
    assert!(told.len() == 1 && told[0].ends_with(&why), "{why}: {told:?}");
    let complaint = format!("container {name} of Docker is failed: {why}");
    let status = host.agent.status();
    let warnings = status["warnings"].as_array().expect("a list");
    assert_eq!(warnings.iter().filter(|it| **it == *complaint).count(), 1, "{complaint}: {warnings:?}");
    why
}

fn reachable(host: &DockerHost, value: bool) {
    let is = || (host.agent.status()["store"]["reachable"] == value).then_some(());
    wait_for(&format!("the store to be reachable from {}: {value}", host.host.name), NEWS, is);
}

#[test]
fn addresses_of_the_store_are_claimed_by_label_and_go_back() {
    let lab = Lab::direct();
    let mut etcd = Etcd::running(&lab.alpha);
    let (alpha, mut beta) = (joined(&lab.alpha, &etcd), joined(&lab.beta, &etcd));
    alpha.start_container("web", &[LABEL]);
    beta.start_container("other", &[LABEL]);
    let (web, other) = (alpha.address("web"), beta.address("other"));
    alpha.reaches("web", &other);

    // One in nobody's block, beside Docker's address, and one out of alpha's block, alone.
    let far = "10.42.200.7";
    let moved = format!("{}.77", web.rsplit_once('.').expect("an address").0);
    assert_ne!(web.rsplit_once('.'), other.rsplit_once('.'));
    beta.start_container("far", &[LABEL, &ip(far)]);
    beta.start_container("moved", &[LABEL, "--network=none", &requested(&moved)]);
    assert_eq!((beta.address("far"), beta.address("moved")), (far.to_owned(), moved.clone()));
    assert!(addresses_inside(&beta, "far").contains(&format!("{far}/16")));
    assert_eq!(addresses_inside(&beta, "moved"), [format!("{moved}/16")]);
    for address in [far, &moved] {
        alpha.reaches("web", address);
        beta.reaches("other", address);
    }
    beta.reaches("far", &web);
    beta.reaches("moved", &web);

    // What is taken is refused, wherever it is; of several wishes the next one counts.
    alpha.start_container("late", &[LABEL, &ip(far)]);
    assert!(refusal(&alpha, "late").ends_with(&format!("{far} is in no block of this host, and host beta has it")));
    beta.start_container("thief", &[LABEL, &ip(&web)]);
    let why = refusal(&beta, "thief");
    assert!(
        why.contains(&format!("{web} is in no block of this host, and ")) && why.contains("is held by container "),
        "{why}"
    );
    alpha.start_container("modest", &[LABEL, &requested(&format!("{far},{moved},10.42.200.8"))]);
    assert_eq!(alpha.address("modest"), "10.42.200.8");
    beta.reaches("other", "10.42.200.8");
    assert_eq!(addresses_inside(&beta, "thief").len(), 1, "Docker's address alone");

    // It stays the container's own over restarts: of the container, of the agent, of Docker.
    beta.docker(&["restart", "-t", "0", "far"]);
    assert_eq!(beta.address("far"), far);
    alpha.reaches("web", far);
    beta.kill_agent();
    beta.agent.start();
    assert_eq!((beta.address("far"), beta.address("moved")), (far.to_owned(), moved.clone()));
    alpha.reaches("web", &moved);
    beta.stop_docker();
    beta.start_docker();
    for name in ["other", "far", "moved"] {
        beta.docker(&["start", name]);
    }
    assert_eq!((beta.address("far"), beta.address("moved")), (far.to_owned(), moved.clone()));
    alpha.reaches("web", far);

    // Removed is given back: whoever was refused gets it, and alpha has its own again.
    beta.docker(&["rm", "-f", "far", "moved", "thief"]);
    assert_eq!(alpha.address("late"), far);
    beta.reaches("other", far);
    let lent = || alpha.leased().iter().all(|address| *address != moved).then_some(());
    wait_for("the address to be alpha's again", NEWS, lent);
    alpha.start_container("home", &[LABEL, &ip(&moved)]);
    assert_eq!(alpha.address("home"), moved);
    beta.reaches("other", &moved);

    // Without the store nobody guesses, and who asked gets it when the store is back.
    etcd.kill();
    reachable(&beta, false);
    beta.start_container("patient", &[LABEL, &ip("10.42.200.9")]);
    let why = refusal(&beta, "patient");
    assert!(why.contains("the store cannot be reached"), "{why}");
    beta.start_container("own", &[LABEL]);
    alpha.reaches("web", &beta.address("own"));
    etcd.start();
    assert_eq!(beta.address("patient"), "10.42.200.9");
    alpha.reaches("web", "10.42.200.9");

    // Nobody is left, nor is an address.
    alpha.docker(&["rm", "-f", "web", "late", "modest", "home"]);
    beta.docker(&["rm", "-f", "other", "patient", "own"]);
    for host in [&alpha, &beta] {
        wait_for("no leases", NEWS, || host.leased().is_empty().then_some(()));
        let warnings = host.agent.status()["warnings"].as_array().cloned().unwrap_or_default();
        let of_docker = |text: &&Value| text.as_str().is_some_and(|text| text.contains("container "));
        assert_eq!(warnings.iter().find(of_docker), None);
    }
    let none = || (!etcd.script("etcdctl get --prefix /underpass --keys-only\n").contains("10.42.200.")).then_some(());
    wait_for("no claims", NEWS, none);
}

/// A claim that nobody answered is none, whoever was killed meanwhile: two containers with one address cut each other off.
#[test]
fn who_is_killed_while_it_asks_for_an_address_does_not_have_it() {
    let lab = Lab::direct();
    let etcd = Etcd::running(&lab.alpha);
    let (alpha, mut beta) = (joined(&lab.alpha, &etcd), joined(&lab.beta, &etcd));
    alpha.start_container("web", &[LABEL]);
    beta.start_container("other", &[LABEL]);
    let web = alpha.address("web");
    beta.reaches("other", &web);
    // Alpha, in whose block it is, does not answer.
    alpha.freeze_agent();
    beta.start_container("thief", &[LABEL, &ip(&web)]);
    wait_for("the lease to wait for its claim", NEWS, || beta.leased().contains(&web).then_some(()));
    beta.kill_agent();
    assert!(beta.leased().contains(&web), "killed too late");
    beta.agent.start();
    alpha.wake_agent();
    let why = beta.until("thief", "failed")["why"].to_string();
    assert_eq!(addresses_inside(&beta, "thief").len(), 1, "Docker's address alone: {why}");
    beta.reaches("other", &web);
    let held = || {
        let why = beta.until("thief", "failed")["why"].to_string();
        why.contains("is held by container ").then_some(())
    };
    wait_for("alpha to say whose it is", NEWS, held);
    assert_eq!(alpha.until("web", "attached")["addresses"][0], *web);
}
