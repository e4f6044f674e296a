//! Figures of the managed network, each a table by one command, on a machine that does nothing else; `docs/testing.md` has the commands.
//!
//! Times of ADD are those of the plugin's process, from its start to its end. A container is reached when another host's TCP segment is
//! answered: nobody listens in it, so the answer is a refusal. That is tried from the moment when ADD is answered.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use underpass::crypto::SigningKey;
use underpass::store::etcd::host_id;
use underpass::sys::netns::Namespace;

use crate::crowd::cost;
use crate::lab::agent::{Agent, mirrored, started};
use crate::lab::etcd::Etcd;
use crate::lab::site::Site;
use crate::lab::{Host, Lab, wait_for};

/// How long an agent is watched that has nothing to do.
const AT_REST: Duration = Duration::from_secs(20);

/// Several agents' start, and what they learn.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many of what is measured: a variable's number, or this.
fn number(variable: &str, usual: usize) -> usize {
    let said = std::env::var(variable).ok();
    said.map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: expected a number, got {text}")))
}

/// The time after which `address` is reached from this host.
fn reached_from(host: &Host, address: &str) -> Duration {
    let namespace = Namespace::open(&Path::new("/run/netns").join(&host.netns)).expect("the host");
    let port = SocketAddr::new(address.parse().expect("an address"), 9);
    let start = Instant::now();
    let attempt = move || {
        loop {
            match TcpStream::connect_timeout(&port, Duration::from_millis(20)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return start.elapsed(),
                other => assert!(start.elapsed() < PATIENCE, "{port} is not reached: {other:?}"),
            }
        }
    };
    namespace.run(attempt).expect("the host")
}

/// One line of a table: what, median, 99th percentile, longest.
/// So many containers, one after the other: the times of each ADD, and those from its answer until `other` reaches the container.
fn come(site: &mut Site, count: usize, other: &Host) -> (Vec<Duration>, Vec<Duration>) {
    let mut conf = site.conf();
    conf["underpass"] = json!({"stateDir": site.state});
    (0..count)
        .map(|number| {
            let (address, took) = site.add_timed(&format!("c{number}"), &conf);
            (took, reached_from(other, &address))
        })
        .unzip()
}

fn line(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)].as_secs_f64() * 1e3;
    println!("| {what} | {:.1} | {:.1} | {:.1} |", at(50), at(99), at(100));
}

fn head(title: &str) {
    let build = match std::env::var("UNDERPASS_PROGRAM") {
        Ok(program) => program,
        Err(_) if cfg!(debug_assertions) => "a debug build".to_owned(),
        Err(_) => "a release build".to_owned(),
    };
    println!("\n{title}, {build}");
    columns();
}

fn columns() {
    println!("\n| ms | median | 99 % | longest |\n|---|---:|---:|---:|");
}

/// What an agent costs that has nothing to do.
fn at_rest(what: &str, agent: &Agent) {
    let before = cost(agent.pid());
    thread::sleep(AT_REST);
    let after = cost(agent.pid());
    // Hundredths of a second.
    let percent = (after.1 - before.1) as f64 / AT_REST.as_secs_f64();
    println!("{what}: {:.1} MB resident, {percent:.2} % of a core over {AT_REST:?}", after.0 as f64 / 1e3);
    assert!(percent < 20.0, "{percent}");
}

/// `UNDERPASS_CONTAINERS` says another number than 500; at most 750.
#[test]
#[ignore = "a measurement; see docs/performance.md"]
fn five_hundred_containers_on_one_host() {
    const BLOCKS: &str = "10.42.1.0/24, 10.42.101.0/24, 10.42.102.0/24";
    let count = number("UNDERPASS_CONTAINERS", 500);
    let lab = Lab::direct();
    let [mut mine, mut theirs] = mirrored(&lab);
    (mine.blocks, theirs.peers[0].blocks) = (BLOCKS.to_owned(), BLOCKS.to_owned());
    let (alpha, _beta) = started(&lab, &mine, &theirs);
    let empty = cost(alpha.pid()).0;
    let mut site = Site::of_agent(&lab.alpha, &alpha);
    let (added, reached) = come(&mut site, count, &lab.beta);
    head(&format!("{count} containers on one host"));
    let part = (count / 5).max(1);
    line("ADD, all", &added);
    line(&format!("ADD, the first {part}"), &added[..part]);
    line(&format!("ADD, the last {part}"), &added[count - part..]);
    line("from the answer to ADD until the other host reaches it", &reached);
    println!();
    println!("the agent without containers: {:.1} MB resident", empty as f64 / 1e3);
    at_rest(&format!("the agent with {count} containers"), &alpha);
    let deleted: Vec<Duration> = (0..count)
        .map(|number| {
            let start = Instant::now();
            site.del(&format!("c{number}"));
            start.elapsed()
        })
        .collect();
    columns();
    line("DEL, all", &deleted);
}

/// So many hosts in etcd, of which none is there: each has a key, an address and a block.
fn fill(etcd: &Etcd, hosts: usize) {
    let mut script = String::new();
    for number in 1..=u16::try_from(hosts).expect("not so many") {
        let [high, low] = number.to_be_bytes();
        let mut seed = [7; 32];
        seed[..2].copy_from_slice(&[high, low]);
        let key = SigningKey::from_seed(&seed).verifying_key();
        let id = host_id(&key);
        let record = json!({
            "v": 1, "name": format!("host{number}"), "keys": [key.to_base64()], "addresses": [format!("10.9.{}.{low}", 100 + high)],
            "version": "0"
        });
        let block = format!("10.{}.{low}.0_24", 50 + high);
        script += &format!("etcdctl put /underpass/v1/mesh/hosts/{id} '{record}' >/dev/null\n");
        script +=
            &format!("etcdctl put /underpass/v1/mesh/blocks/managed/{block} '{{\"v\":1,\"owner\":\"{id}\"}}' >/dev/null\n");
    }
    for part in script.lines().collect::<Vec<_>>().chunks(500) {
        etcd.script(&part.join("\n"));
    }
}

/// How many peers an agent has, and how many of them are up.
fn peers(agent: &Agent) -> (usize, usize) {
    let status = agent.status();
    let all = status["peers"].as_array().expect("peers");
    (all.len(), all.iter().filter(|peer| peer["state"] == "up").count())
}

/// `UNDERPASS_HOSTS` says another number than 1000, `UNDERPASS_CONTAINERS` another than 100.
#[test]
#[ignore = "a measurement, for a machine that does nothing else"]
fn a_thousand_hosts_in_the_store() {
    let hosts = number("UNDERPASS_HOSTS", 1000);
    let count = number("UNDERPASS_CONTAINERS", 100);
    let (lab, switch) = Lab::switched();
    let etcd = Etcd::running(&switch);
    fill(&etcd, hosts - 2);
    let start = |host: &Host| {
        let mut agent = Agent::new(host);
        agent.configure_as(&format!(
            "host: {{name: {}, advertise: [\"{}\"]}}\ntun: {{queues: 1}}\nstore: {{kind: etcd, endpoints: [\"{}\"], \
             allow_plaintext: true}}\n",
            host.name,
            host.address,
            etcd.url()
        ));
        let began = Instant::now();
        agent.start();
        (agent, began)
    };
    let (alpha, began) = start(&lab.alpha);
    wait_for("all hosts", PATIENCE, || (peers(&alpha).0 == hosts - 2).then_some(()));
    let knows = began.elapsed();
    let (_beta, began) = start(&lab.beta);
    wait_for("the other host to be up", PATIENCE, || (peers(&alpha) == (hosts - 1, 1)).then_some(()));
    let joined = began.elapsed();

    let mut site = Site::of_agent(&lab.alpha, &alpha);
    let (added, reached) = come(&mut site, count, &lab.beta);
    head(&format!("{hosts} hosts in etcd, {count} containers on one of the two that are there"));
    line("ADD", &added);
    line("from the answer to ADD until the other host reaches it", &reached);
    println!();
    println!("an agent knows all hosts {knows:.1?} after its start; a host that joins is up {joined:.1?} after its start");
    thread::sleep(Duration::from_secs(5));
    at_rest(&format!("an agent that knows {hosts} hosts"), &alpha);
}
