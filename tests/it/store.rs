//! Hosts that a store lists: a file that changes, and etcd, which hosts join by themselves and which may go away; and what containers have
//! of it: single addresses, further blocks, names on other hosts.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::agent::Agent;
use crate::lab::command::said;
use crate::lab::etcd::Etcd;
use crate::lab::site::{Site, output};
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
    // Two that call each other at once have two for a moment.
    let (before, _) = wait_for("one CHILD_SA", FIRST_CONTACT, || {
        let peer = agents[0].peer("beta");
        let spis = (peer.ike_spis(), peer.child_spis());
        (spis.1.len() == 1).then_some(spis)
    });

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

/// Whether a container's ping is answered, within so many attempts of a second.
fn reaches(site: &Site, container: &str, address: &str, attempts: u32) -> bool {
    let ping = ["ping", "-n", "-c", "1", "-W", "1", address];
    (0..attempts).any(|_| output(site.inside(container), &ping).status.success())
}

/// What `ps` shows: address and host of each container.
fn shown(agent: &Agent) -> Vec<String> {
    let output = agent.control(&["ps", "--json"]);
    assert!(output.status.success(), "ps: {}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let containers = answer["containers"].as_array().expect("a list").iter();
    let mut shown: Vec<String> =
        containers.map(|it| format!("{} {}", it["addresses"][0], it["host"]).replace('"', "")).collect();
    shown.sort();
    shown
}

/// Containers come by the plugin on one host after the other for so long, and each is reached from another host; how many.
fn containers_come(sites: &mut [Site], seconds: u32) -> usize {
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let mut count = 0;
    while Instant::now() < until || count < sites.len() {
        let (here, there) = (count % sites.len(), (count + 1) % sites.len());
        let conf = sites[here].conf_of_agent();
        let address = sites[here].add_with(&format!("during{count}"), &conf);
        assert!(reaches(&sites[there], "before", &address, 5), "{address} is not reached");
        count += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    count
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
    let mut sites: Vec<Site> = hosts.iter().zip(&agents).map(|(host, agent)| Site::of_agent(host, agent)).collect();
    for site in &mut sites {
        let conf = site.conf_of_agent();
        site.add_with("before", &conf);
    }
    let addresses: Vec<String> = sites.iter().map(|site| site.address("before").to_string()).collect();
    for (from, to) in [(0, 1), (2, 3), (4, 0)] {
        assert!(reaches(&sites[from], "before", &addresses[to], 10), "{} is not reached", addresses[to]);
    }

    // etcd dies under traffic of hosts and of containers, while containers come, and an agent restarts, and comes back.
    let count = seconds_away * 20 + 200;
    let pairs = [(0, 1), (2, 3), (4, 0)];
    let mut pings: Vec<Pinging> = pairs.map(|(from, to)| Pinging::start(&hosts[from], &hosts[to], count)).into();
    pings.extend(pairs.map(|(from, to)| Pinging::inside(sites[from].inside("before"), &addresses[to], count)));
    etcd.kill();
    wait_for("the store to be missed", NEWS, || (agents[0].status()["store"]["reachable"] == false).then_some(()));
    assert_eq!(agents[0].control(&["status"]).status.code(), Some(0), "every peer is up");
    let text = said(&agents[0].control(&["status"]));
    assert!(text.contains("everything stays as it was"), "{text}");
    let started = containers_come(&mut sites, seconds_away);
    let figures: Vec<_> = pings.into_iter().map(Pinging::wait).collect();
    let sent: u32 = figures.iter().map(|pings| pings.sent).sum();
    eprintln!("{seconds_away} s without the store: {started} containers came, {sent} pings, {figures:?}");
    assert!(figures.iter().all(|pings| pings.sent == count && pings.lost() == 0), "{figures:?}");
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
    // Who came meanwhile is known everywhere, and where he is.
    let mut expected = Vec::new();
    for (host, site) in hosts.iter().zip(&sites) {
        expected.extend(site.containers.values().map(|container| format!("{} {}", container.address, host.name)));
    }
    expected.sort();
    for agent in &agents {
        wait_for("all containers on all hosts", NEWS, || (shown(agent) == expected).then_some(()));
    }
    epsilon_ends(&mut agents, hosts[4].block);
}

/// A host that is gone for good.
fn epsilon_ends(agents: &mut [Agent], block: &str) {
    agents[4].kill();
    let output = agents[1].control(&["host", "rm", "epsilon", "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(block), "{}", said(&output));
    for agent in &agents[..4] {
        wait_for("epsilon to be forgotten", NEWS, || {
            states(agent).iter().all(|state| !state.starts_with("epsilon")).then_some(())
        });
        wait_for("its containers as well", NEWS, || {
            shown(agent).iter().all(|line| !line.ends_with(" epsilon")).then_some(())
        });
    }
    assert_eq!(agents[1].control(&["host", "show", "epsilon"]).status.code(), Some(8));
}

#[test]
fn five_agents_join_by_themselves_and_need_no_store_afterwards() {
    join_and_outlive(8);
}

#[test]
#[ignore = "a minute without the store"]
fn five_agents_go_without_the_store_for_a_minute() {
    join_and_outlive(60);
}

/// Agents on the first hosts of the laboratory with etcd, their tunnels up, and a site of each; `more` is about the network.
fn joined(lab: &Lab, etcd: &Etcd, count: usize, more: &str) -> Vec<(Agent, Site)> {
    let hosts: Vec<&Host> = [&lab.alpha, &lab.beta].into_iter().chain(&lab.others).take(count).collect();
    let store = format!("kind: etcd, endpoints: [\"{}\"], allow_plaintext: true{more}", etcd.url());
    let start = |host: &&Host| {
        let mut agent = Agent::new(host);
        agent.configure_as(&yaml(host, &store, ""));
        agent.start();
        let site = Site::of_agent(host, &agent);
        (agent, site)
    };
    let joined: Vec<(Agent, Site)> = hosts.iter().map(start).collect();
    for (agent, _) in &joined {
        wait_for("all peers to be up", FIRST_CONTACT, || {
            let states = states(agent);
            (states.len() == count - 1 && states.iter().all(|state| state.ends_with(" up"))).then_some(())
        });
    }
    joined
}

fn blocks_of(agent: &Agent, name: &str) -> Vec<String> {
    let listed = hosts_of(agent);
    let host = listed.iter().find(|host| host["name"] == name).expect("its record");
    host["blocks"].as_array().expect("a list").iter().map(|block| block.as_str().expect("a text").to_owned()).collect()
}

#[test]
fn an_address_by_name_is_reached_wherever_its_container_is() {
    let (lab, switch) = Lab::switched();
    let mut etcd = Etcd::running(&switch);
    let mut joined = joined(&lab, &etcd, 3, "");
    let block = blocks_of(&joined[0].0, "alpha").remove(0);
    let of_alpha = |last: u8| block.replace(".0/24", &format!(".{last}"));
    let asking = |site: &Site, address: &str| {
        let mut conf = site.conf_of_agent();
        conf["runtimeConfig"] = json!({"ips": [address]});
        conf
    };
    for (_, site) in &mut joined {
        let conf = site.conf_of_agent();
        site.add_with("c", &conf);
    }
    let [alpha, beta, gamma] = &mut joined[..] else { unreachable!() };
    // One in nobody's block, and one out of alpha's: both come to beta.
    let (far, moved) = ("10.42.200.7", of_alpha(77));
    for (name, address) in [("far", far), ("moved", &moved)] {
        let conf = asking(&beta.1, address);
        assert_eq!(beta.1.add_with(name, &conf), address);
    }
    for site in [&alpha.1, &beta.1, &gamma.1] {
        for address in [far, &moved] {
            assert!(reaches(site, "c", address, 20), "{address} from {}", site.address("c"));
        }
    }
    for name in ["far", "moved"] {
        assert!(reaches(&beta.1, name, &alpha.1.address("c").to_string(), 5), "{name} to alpha");
        assert!(reaches(&beta.1, name, &gamma.1.address("c").to_string(), 5), "{name} to gamma");
    }
    let (code, why) = alpha.1.refused("x", &asking(&alpha.1, &moved));
    assert_eq!(code, 102, "{why}");
    assert!(why.contains("is held by a container of host "), "{why}");
    let (code, why) = gamma.1.refused("x", &asking(&gamma.1, far));
    assert_eq!((code, why.ends_with("10.42.200.7 is in no block of this host, and host beta has it")), (102, true), "{why}");
    // What a container of alpha has, alpha alone knows: beta is told.
    let (code, why) = beta.1.refused("x", &asking(&beta.1, &alpha.1.address("c").to_string()));
    assert!(code == 102 && why.contains("is held by container c (eth0)"), "{code} {why}");
    // The host's own address is nobody else's either.
    let (code, why) = beta.1.refused("x", &asking(&beta.1, &of_alpha(1)));
    assert!(code == 102 && why.contains("reserved for the host"), "{code} {why}");
    let (code, why) = beta.1.refused("x", &asking(&beta.1, "10.43.0.9"));
    assert!(code == 102 && why.contains("in no block of this host"), "{code} {why}");

    // It moves: away from beta, and home to alpha.
    beta.1.del("moved");
    let conf = asking(&alpha.1, &moved);
    let ((), _) = wait_for("the address to be alpha's again", NEWS, || {
        let ipam = said(&alpha.0.control(&["ipam", "ls", "--json"]));
        (!ipam.contains("/host")).then_some(())
    });
    assert_eq!(alpha.1.add_with("moved", &conf), moved);
    for (_, site) in [&*beta, &*gamma] {
        assert!(reaches(site, "c", &moved, 20), "{moved} on alpha from {}", site.address("c"));
    }
    let routes = |host: &Host| host.run(&["ip", "route", "show", far]);
    assert!(routes(&lab.beta).contains("managed0") && routes(&lab.alpha).contains("underpass0"));

    // Without the store, or without an agent, nobody guesses; what there is stays.
    etcd.kill();
    wait_for("the store to be missed", NEWS, || (gamma.0.status()["store"]["reachable"] == false).then_some(()));
    let (code, why) = gamma.1.refused("x", &asking(&gamma.1, "10.42.200.8"));
    assert!(code == 11 && why.contains("the store cannot be reached") && why.ends_with("try again later"), "{code} {why}");
    assert!(reaches(&gamma.1, "c", far, 5));
    gamma.0.kill();
    let (code, why) = gamma.1.refused("x", &asking(&gamma.1, "10.42.200.8"));
    assert!(code == 11 && why.contains("no agent is running") && why.ends_with("try again later"), "{code} {why}");
    let leases = said(&gamma.0.control(&["ipam", "ls", "--json"]));
    assert!(!leases.contains("\"x\""), "nothing is left of it: {leases}");
    gamma.0.start();
    etcd.start();
    // And goes with its container, whoever notices.
    beta.1.del("far");
    wait_for("the address to be free", NEWS, || routes(&lab.alpha).is_empty().then_some(()));
    wait_for("the bridge's route to go", NEWS, || routes(&lab.beta).is_empty().then_some(()));
    let conf = asking(&gamma.1, far);
    wait_for("the store", NEWS, || (gamma.0.status()["store"]["reachable"] == true).then_some(()));
    assert_eq!(gamma.1.add_with("far", &conf), far);
    assert!(reaches(&alpha.1, "c", far, 20));
}

#[test]
fn a_host_takes_its_next_block_before_it_is_full() {
    let (lab, switch) = Lab::switched();
    let mut etcd = Etcd::running(&switch);
    // Seven blocks of six addresses behind the gateway's one.
    let mut joined = joined(&lab, &etcd, 2, ", subnets: [10.42.0.0/26], block: 29");
    let [alpha, beta] = &mut joined[..] else { unreachable!() };
    let conf = |site: &Site| {
        let mut conf = site.conf_of_agent();
        conf["ipam"] = json!({"type": "rancher-cni-ipam", "subnetPrefixSize": "/26"});
        conf
    };
    let beta_conf = conf(&beta.1);
    beta.1.add_with("c", &beta_conf);
    let own = blocks_of(&alpha.0, "alpha");
    assert_eq!(own.len(), 1);
    // Five addresses besides the host's own; the fourth container makes it three quarters and more.
    let alpha_conf = conf(&alpha.1);
    for number in 0..4 {
        alpha.1.add_with(&format!("c{number}"), &alpha_conf);
    }
    wait_for("a second block", NEWS, || (blocks_of(&alpha.0, "alpha").len() == 2).then_some(()));
    // In a burst nobody waits for that.
    for number in 4..16 {
        let address = alpha.1.add_with(&format!("c{number}"), &alpha_conf);
        assert!(reaches(&beta.1, "c", &address, 20), "{address}");
    }
    assert_eq!(blocks_of(&beta.0, "alpha")[0], own[0], "the first one stays the first");
    // Until the last one: six are alpha's, one is beta's.
    let mut held = Vec::new();
    let last = loop {
        assert!(held.len() < 40, "there are not so many addresses");
        let namespace = crate::lab::site::namespace();
        let output = alpha.1.attempt("ADD", &format!("more{}", held.len()), &namespace, &alpha_conf);
        if !output.status.success() {
            break serde_json::from_slice::<Value>(&output.stdout).expect("JSON");
        }
        held.push(namespace);
    };
    let text = last["msg"].as_str().expect("a message");
    assert!(
        last["code"] == 101 && text.ends_with("; no block of /29 is free in the store's network: all 7 are owned by hosts"),
        "{last}"
    );
    assert!(text.contains("no free IPv4 address in "), "{text}");
    let warnings = alpha.0.status()["warnings"].to_string();
    assert!(warnings.contains("network managed: its addresses run out here, and no block of /29 is free"), "{warnings}");
    etcd.kill();
    wait_for("the store to be missed", NEWS, || (alpha.0.status()["store"]["reachable"] == false).then_some(()));
    let (code, why) = alpha.1.refused("x", &alpha_conf);
    assert!(code == 11 && why.ends_with("try again later"), "{code} {why}");
}
