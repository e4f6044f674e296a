//! Containers that run, and what becomes of them: an MTU that follows.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use underpass::sys::netlink::Netlink;
use underpass::sys::netns::Namespace;

use crate::attach::pings;
use crate::lab::agent::{Agent, AgentConfig, PeerConfig, both_up};
use crate::lab::site::Site;
use crate::lab::{Host, Lab, wait_for};

/// The agent looks every second.
const NOTICED: Duration = Duration::from_secs(20);

fn mtu_of(namespace: &Namespace, link: &str) -> u32 {
    namespace.run(|| Netlink::open().unwrap().link(link).unwrap().mtu).unwrap()
}

/// The MTU of both ends of a container's wire.
fn ends(site: &Site, container: &str) -> (u32, u32) {
    (mtu_of(&site.namespace, &site.containers[container].port), mtu_of(site.inside(container), "eth0"))
}

fn until(site: &Site, container: &str, mtu: u32) {
    let what = format!("{container} to have an MTU of {mtu}");
    wait_for(&what, NOTICED, || (ends(site, container) == (mtu, mtu)).then_some(()));
}

/// Packets of this size pass whole in both directions.
fn passes_whole(near: &Site, far: &Site, mtu: u32) {
    let payload = (mtu - 28).to_string();
    for (from, to) in [(near, far), (far, near)] {
        assert!(pings(from.inside("c1"), to.address("c1"), &["-M", "do", "-s", &payload]), "a packet of {mtu} octets");
    }
}

/// With a driver whose network has this `mtu`.
fn config(host: &Host, peer: &Host, folder: &Path, tun: &str, network: u32) -> AgentConfig {
    let folder = folder.display();
    AgentConfig {
        mtu: tun.to_owned(),
        more: format!(
            "cni: {{conf_dir: {folder}/net.d, bin_dir: {folder}/bin, cache_dir: {folder}/cache}}
drivers:
  - name: Ours
    default_network: {{name: ours, subnets: [{{network_address: 10.42.0.0/16}}]}}
    cni_config:
      10-ours.conf: {{type: underpass-cni, mtu: {network}, linkMTUOverhead: 50}}
"
        ),
        ..AgentConfig::new(host, &[PeerConfig::at(peer)])
    }
}

#[test]
fn the_mtu_of_running_containers_follows() {
    let lab = Lab::direct();
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let configs = |tun: &str, network| {
        let one = |host, peer, at: usize| config(host, peer, folders[at].path(), tun, network);
        [one(&lab.alpha, &lab.beta, 0), one(&lab.beta, &lab.alpha, 1)]
    };
    let [alpha, beta] = configs("1300", 1500);
    let mut agents = [Agent::running(&lab.alpha, &alpha), Agent::running(&lab.beta, &beta)];
    let mut near = Site::of_agent(&lab.alpha, &agents[0]);
    let mut far = Site::of_agent(&lab.beta, &agents[1]);
    for site in [&mut near, &mut far] {
        let mut conf = site.conf();
        (conf["mtu"], conf["linkMTUOverhead"]) = (json!(1500), json!(50));
        site.add_with("c1", &conf);
    }
    both_up(&agents[0], &agents[1]);
    assert_eq!((ends(&near, "c1"), ends(&far, "c1")), ((1300, 1300), (1300, 1300)), "what the tunnel takes, not 1450");
    passes_whole(&near, &far, 1300);

    // An agent that starts with another MTU.
    for (agent, config) in agents.iter_mut().zip(configs("1400", 1500)) {
        agent.configure(&config);
        assert_eq!(agent.stop("TERM"), Some(0));
        agent.start();
    }
    for site in [&near, &far] {
        until(site, "c1", 1400);
        assert_eq!(mtu_of(&site.namespace, "managed0"), 1400, "the bridge follows its ports");
    }
    both_up(&agents[0], &agents[1]);
    passes_whole(&near, &far, 1400);

    // A network that says less, and then more than the tunnel takes.
    for (network, mtu) in [(1370, 1320), (1600, 1400)] {
        for (agent, config) in agents.iter_mut().zip(configs("1400", network)) {
            agent.configure(&config);
            agent.signal("HUP");
        }
        for site in [&near, &far] {
            until(site, "c1", mtu);
        }
        passes_whole(&near, &far, mtu);
    }
    // A device that somebody made narrower.
    near.namespace.run(|| Netlink::open().unwrap().set_mtu("underpass0", 1290).unwrap()).unwrap();
    until(&near, "c1", 1290);
    assert_eq!(ends(&far, "c1"), (1400, 1400));
}
