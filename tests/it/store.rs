//! Hosts that a store lists: a file that changes, and etcd, which hosts join by themselves and which may go away.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::lab::agent::Agent;
use crate::lab::command::said;
use crate::lab::etcd::Etcd;
use crate::lab::traffic::{Pinging, wait_until_answered};
use crate::lab::{Host, Lab, wait_for};

/// Several agents' start on a busy machine, and their handshakes.
const FIRST_CONTACT: Duration = Duration::from_secs(60);

/// A change in the store is in effect everywhere after this.
const NEWS: Duration = Duration::from_secs(20);

/// A configuration without overlay and peers: the store has them.
fn yaml(host: &Host, store: &str, more: &str) -> String {
    let Host { name, address, .. } = host;
    format!("host: {{name: {name}, advertise: [\"{address}\"]}}\ntun: {{queues: 1}}\nstore: {{{store}}}\n{more}\n")
}

/// Agents with keys, which are not started yet.
fn agents(hosts: &[&Host]) -> (Vec<Agent>, Vec<String>) {
    let agents: Vec<Agent> = hosts.iter().map(|host| Agent::new(host)).collect();
    let keys = agents.iter().map(Agent::generate_key).collect();
    (agents, keys)
}

/// A list of these hosts.
fn list(hosts: &[(&Host, &String)]) -> String {
    let line = |(host, key): &(&Host, &String)| {
        let Host { name, address, block, .. } = host;
        format!("  - {{name: {name}, addresses: [{address}], blocks: [{block}], public_key: \"{key}\"}}\n")
    };
    format!("hosts:\n{}", hosts.iter().map(line).collect::<String>())
}

/// As an editor does it: another file under the same name.
fn replace(path: &std::path::Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).expect("a draft");
    fs::rename(&draft, path).expect("a file");
}

fn states(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let state = |peer: &Value| format!("{} {}", text(&peer["name"]), text(&peer["state"]));
    status["peers"].as_array().expect("peers").iter().map(state).collect()
}

fn wait_for_states(agent: &Agent, limit: Duration, expected: &[&str]) {
    wait_for(&format!("{expected:?}"), limit, || {
        let states = states(agent);
        eprintln!("{states:?}");
        (states == expected).then_some(())
    });
}

fn hosts_of(agent: &Agent) -> Vec<Value> {
    let output = agent.control(&["host", "ls", "--json"]);
    assert!(output.status.success(), "host ls: {}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["schema"], "underpass.hosts/1");
    answer["hosts"].as_array().expect("a list").clone()
}

#[test]
fn a_list_of_hosts_makes_a_mesh_and_grows_while_packets_flow() {
    let (lab, _switch) = Lab::switched();
    let (alpha, beta, gamma) = (&lab.alpha, &lab.beta, &lab.others[0]);
    let (mut agents, keys) = agents(&[alpha, beta, gamma]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hosts.yaml");
    let two = list(&[(alpha, &keys[0]), (beta, &keys[1])]);
    replace(&path, &two);
    let store = format!("kind: file, path: {}", path.display());
    for (agent, host) in agents.iter_mut().zip([alpha, beta, gamma]) {
        agent.configure_as(&yaml(host, &store, ""));
        agent.start();
    }
    agents[0].wait_for_state("beta", "up", FIRST_CONTACT);
    wait_until_answered(alpha, beta, FIRST_CONTACT);
    assert_eq!(states(&agents[2]), [""; 0], "it is not listed");
    let warnings = agents[2].status()["warnings"].to_string();
    assert!(warnings.contains("does not list this host") && warnings.contains(&keys[2]), "{warnings}");
    let before = (agents[0].peer("beta").ike_spis(), agents[0].peer("beta").child_spis());

    let pings = Pinging::start(alpha, beta, 400);
    replace(&path, &list(&[(alpha, &keys[0]), (beta, &keys[1]), (gamma, &keys[2])]));
    wait_for_states(&agents[0], NEWS, &["beta up", "gamma up"]);
    wait_until_answered(gamma, alpha, NEWS);
    wait_until_answered(gamma, beta, NEWS);
    // A list that cannot be used changes nothing, and is said.
    replace(&path, &two.replace("name: beta", "name: alpha"));
    let (store, _) = wait_for("the trouble", NEWS, || {
        let store = agents[0].status()["store"].clone();
        (store["reachable"] == false).then_some(store)
    });
    assert!(store["last_error"].as_str().expect("why").contains("is the name of another host already"), "{store}");
    assert_eq!(states(&agents[0]), ["beta up", "gamma up"]);
    // And one that is shorter takes gamma away.
    replace(&path, &two);
    wait_for_states(&agents[0], NEWS, &["beta up"]);
    wait_for_states(&agents[2], NEWS, &[]);
    assert_eq!(pings.wait().lost(), 0, "alpha and beta were not concerned");
    assert_eq!((agents[0].peer("beta").ike_spis(), agents[0].peer("beta").child_spis()), before);
    assert_eq!(agents[0].status()["store"]["reachable"], true);
    let states: Vec<Value> = hosts_of(&agents[0]).iter().map(|host| host["state"].clone()).collect();
    assert_eq!(states, ["this host", "up"]);
}

#[test]
fn tunnels_of_a_mesh_on_demand_wait_for_the_first_packet_and_lose_none() {
    let (lab, _switch) = Lab::switched();
    let (alpha, beta, gamma) = (&lab.alpha, &lab.beta, &lab.others[0]);
    let (mut agents, keys) = agents(&[alpha, beta, gamma]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hosts.yaml");
    replace(&path, &list(&[(alpha, &keys[0]), (beta, &keys[1]), (gamma, &keys[2])]));
    let store = format!("kind: file, path: {}", path.display());
    for (agent, host) in agents.iter_mut().zip([alpha, beta, gamma]) {
        agent.configure_as(&yaml(host, &store, "mesh: on-demand"));
        agent.start();
    }
    // Longer than any start is put off.
    std::thread::sleep(Duration::from_secs(4));
    for (agent, others) in agents.iter().zip([["beta", "gamma"], ["alpha", "gamma"], ["alpha", "beta"]]) {
        assert_eq!(states(agent), others.map(|name| format!("{name} idle")));
        assert_eq!(agent.control(&["status"]).status.code(), Some(0), "idle is fine");
    }
    assert_eq!(Pinging::start(alpha, beta, 60).wait().lost(), 0, "the first ones wait for the tunnel");
    wait_for_states(&agents[0], NEWS, &["beta up", "gamma idle"]);
    wait_for_states(&agents[2], NEWS, &["alpha idle", "beta idle"]);
}

/// Five agents, etcd, and every tunnel up.
fn five(lab: &Lab, etcd: &Etcd) -> Vec<Agent> {
    let hosts: Vec<&Host> = [&lab.alpha, &lab.beta].into_iter().chain(&lab.others).collect();
    let store = format!("kind: etcd, endpoints: [\"{}\"], allow_plaintext: true", etcd.url());
    let agents: Vec<Agent> = hosts
        .iter()
        .map(|host| {
            let mut agent = Agent::new(host);
            agent.configure_as(&yaml(host, &store, ""));
            agent.start();
            agent
        })
        .collect();
    for agent in &agents {
        wait_for("four peers that are up", FIRST_CONTACT, || {
            let states = states(agent);
            (states.len() == 4 && states.iter().all(|state| state.ends_with(" up"))).then_some(())
        });
    }
    agents
}

/// The hosts with the addresses that the store gave them.
fn given(agent: &Agent, lab: &Lab) -> Vec<Host> {
    let listed = hosts_of(agent);
    let given = |host: &Host| {
        let record = listed.iter().find(|record| record["name"] == host.name).expect("its record");
        let block = record["blocks"][0].as_str().expect("a block");
        // For the life of a test.
        let (block, inner) = (block.to_owned().leak(), block.replace(".0/24", ".1").leak());
        Host { block, inner, ..host.clone() }
    };
    [&lab.alpha, &lab.beta].into_iter().chain(&lab.others).map(given).collect()
}

fn join_and_outlive(seconds_away: u32) {
    let (lab, switch) = Lab::switched();
    let mut etcd = Etcd::running(&switch);
    let mut agents = five(&lab, &etcd);
    let hosts = given(&agents[0], &lab);
    let mut blocks: Vec<&str> = hosts.iter().map(|host| host.block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), 5, "{blocks:?}");
    for (from, to) in [(0, 1), (2, 3), (4, 0)] {
        wait_until_answered(&hosts[from], &hosts[to], NEWS);
    }

    // etcd dies under traffic, while an agent restarts as well, and comes back.
    let count = seconds_away * 20 + 200;
    let pings: Vec<Pinging> =
        [(0, 1), (2, 3), (4, 0)].map(|(from, to)| Pinging::start(&hosts[from], &hosts[to], count)).into();
    etcd.kill();
    wait_for("the store to be missed", NEWS, || (agents[0].status()["store"]["reachable"] == false).then_some(()));
    assert_eq!(agents[0].control(&["status"]).status.code(), Some(0), "every peer is up");
    let text = said(&agents[0].control(&["status"]));
    assert!(text.contains("everything stays as it was"), "{text}");
    // Addresses are given out without it.
    let ipam = said(&agents[0].control(&["ipam", "ls"]));
    assert!(ipam.contains(hosts[0].block), "{ipam}");
    std::thread::sleep(Duration::from_secs(seconds_away.into()));
    for pings in pings {
        assert_eq!(pings.wait().lost(), 0);
    }
    agents[3].kill();
    agents[3].start();
    wait_for("delta's peers, out of what it knew", FIRST_CONTACT, || {
        let states = states(&agents[3]);
        (states.len() == 4 && states.iter().all(|state| state.ends_with(" up"))).then_some(())
    });
    wait_until_answered(&hosts[3], &hosts[0], NEWS);
    etcd.start();
    for agent in &agents {
        wait_for("the store", NEWS, || (agent.status()["store"]["reachable"] == true).then_some(()));
    }
    assert_eq!(
        given(&agents[1], &lab).iter().map(|host| host.block).collect::<Vec<_>>(),
        hosts.iter().map(|host| host.block).collect::<Vec<_>>()
    );

    // A host that is gone for good.
    agents[4].kill();
    let output = agents[1].control(&["host", "rm", "epsilon", "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(hosts[4].block), "{}", said(&output));
    for agent in &agents[..4] {
        wait_for("epsilon to be forgotten", NEWS, || {
            states(agent).iter().all(|state| !state.starts_with("epsilon")).then_some(())
        });
    }
    assert_eq!(agents[1].control(&["host", "show", "epsilon"]).status.code(), Some(8));
}

#[test]
fn five_agents_join_by_themselves_and_need_no_store_afterwards() {
    join_and_outlive(10);
}

#[test]
#[ignore = "a minute without the store"]
fn five_agents_go_without_the_store_for_a_minute() {
    join_and_outlive(60);
}
