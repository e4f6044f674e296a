//! A thousand peers of one agent: what they cost it. The peers are nodes of this process, each with a socket of its own on the other
//! host; they do the whole of IKE and carry nothing.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use underpass::esp::{Event, Update};
use underpass::ike::{self, EndpointConfig, LocalAuth, PeerAuth, PostQuantum};
use underpass::model::{
    AeadAlgorithm, Instant, Path, PeerId, PeerIndex, Secret, SeededRng, TrafficSelector, Transport, WorkerIndex,
};
use underpass::node::{Node, NodeConfig};

use crate::lab::agent::{Agent, AgentConfig, PeerConfig};
use crate::lab::{Host, Lab, PSK, wait_for};

const PEERS: u16 = 1000;

/// The NAT-T port of the first peer.
const FIRST_PORT: u16 = 10_000;

/// In front of every IKE message on a NAT-T port.
const MARKER: [u8; 4] = [0; 4];

fn name(number: u16) -> String {
    format!("peer{number}")
}

fn block(number: u16) -> String {
    format!("10.43.{}.{}/32", number >> 8, number & 255)
}

/// One peer, which waits to be called.
struct Spoke {
    node: Node,
    socket: UdpSocket,
}

impl Spoke {
    fn new(number: u16, address: IpAddr, hub: &Host) -> Self {
        let socket = UdpSocket::bind((address, FIRST_PORT + number)).expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let selector = |text: &str| vec![TrafficSelector::from_prefix(text.parse().expect("a prefix"))];
        let psk = || Secret::copy_of(PSK.as_bytes());
        let peer = ike::PeerConfig {
            index: PeerIndex(0),
            name: hub.name.to_owned(),
            local_id: PeerId::Fqdn(name(number)),
            remote_id: PeerId::Fqdn(hub.name.to_owned()),
            local_auth: LocalAuth::Psk(psk()),
            remote_auth: PeerAuth::Psk(psk()),
            remote: None,
            alternatives: Vec::new(),
            suites: AeadAlgorithm::ALL.to_vec(),
            post_quantum: PostQuantum::Preferred,
            local_selectors: selector(&block(number)),
            remote_selectors: selector(hub.block),
            owner: WorkerIndex(0),
        };
        let config = NodeConfig {
            ike: EndpointConfig {
                ike_rekey: Duration::from_secs(4 * 3600),
                child_rekey: Duration::from_secs(3600),
                replay_window: 4096,
                ike_port: 500,
                natt_port: 4500,
                workers: 1,
            },
            workers: 1,
            tun_mtu: 1400,
            local_prefixes: Vec::new(),
            probe_interval: Duration::from_secs(10),
            peers: vec![peer],
        };
        let rng = |seed: u64| Box::new(SeededRng::new(u64::from(number) << 8 | seed));
        Self { node: Node::new(Instant::ORIGIN, config, rng(1), rng(2)), socket }
    }

    /// Takes what came.
    fn receive(&mut self, now: Instant) {
        let local = self.socket.local_addr().expect("an address");
        let mut buffer = [0; 4096];
        while let Ok((length, remote)) = self.socket.recv_from(&mut buffer) {
            if let Some(message) = buffer[..length].strip_prefix(&MARKER) {
                self.node.handle_ike(now, Path { local, remote }, Transport::Natt, message);
                self.settle(now);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
            self.settle(now);
        }
    }

    fn settle(&mut self, now: Instant) {
        while let Some((_, update)) = self.node.poll_update() {
            if let Update::Install { ticket, .. } = update {
                self.node.handle_event(now, Event::Installed(ticket));
            }
        }
        while self.node.poll_notice().is_some() || self.node.poll_keepalive().is_some() {}
        while let Some(transmit) = self.node.poll_transmit() {
            // What a full socket refuses is sent again.
            let _ = self.socket.send_to(&[&MARKER[..], &transmit.message].concat(), transmit.path.remote);
        }
    }
}

/// Lives on the other host until it is told to end.
fn crowd(host: &Host, hub: &Host, stop: &AtomicBool) {
    let namespace = std::fs::File::open(format!("/run/netns/{}", host.netns)).expect("a namespace");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("root may enter it");
    let address: IpAddr = host.address.parse().expect("an address");
    let mut spokes: Vec<Spoke> = (0..PEERS).map(|number| Spoke::new(number, address, hub)).collect();
    let mut poll = Poll::new().expect("a poll");
    for (number, spoke) in spokes.iter().enumerate() {
        let fd = spoke.socket.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE).expect("room");
    }
    let (began, mut events) = (Clock::now(), Events::with_capacity(PEERS.into()));
    let now = || Instant::from_origin(began.elapsed());
    let mut next_tick = now();
    while !stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(100))).expect("a poll");
        events.iter().for_each(|event| spokes[event.token().0].receive(now()));
        if now() >= next_tick {
            next_tick = now() + Duration::from_millis(250);
            spokes.iter_mut().for_each(|spoke| spoke.tick(now()));
        }
    }
}

/// Resident memory in kB, and CPU time so far in hundredths of a second.
pub fn cost(pid: u32) -> (u64, u64) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the agent runs");
    let status = read("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let memory = line.trim().trim_end_matches(" kB").parse().expect("a number");
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in parentheses").split_whitespace().collect();
    let time = |place: usize| fields[place].parse::<u64>().expect("a number");
    (memory, time(11) + time(12))
}

#[test]
#[ignore = "a measurement; see docs/performance.md"]
fn a_thousand_peers_of_one_agent() {
    let lab = Lab::direct();
    let peers: Vec<PeerConfig> = (0..PEERS)
        .map(|number| PeerConfig {
            name: name(number),
            address: Some(SocketAddr::new(lab.beta.address.parse().expect("an address"), FIRST_PORT + number).to_string()),
            blocks: block(number),
            ..PeerConfig::at(&lab.beta)
        })
        .collect();
    let agent = Agent::running(&lab.alpha, &AgentConfig::new(&lab.alpha, &peers));
    std::thread::sleep(Duration::from_secs(5));
    let before = cost(agent.pid());
    let stop = Arc::new(AtomicBool::new(false));
    let thread = {
        let (host, hub, stop) = (lab.beta.clone(), lab.alpha.clone(), Arc::clone(&stop));
        std::thread::spawn(move || crowd(&host, &hub, &stop))
    };
    let up = || {
        let status = agent.status();
        let peers = status["peers"].as_array().expect("a list of peers");
        peers.iter().filter(|peer| peer["state"] == "up").count()
    };
    let ((), took) = wait_for("a thousand peers to be up", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_millis(450));
        (up() == usize::from(PEERS)).then_some(())
    });
    let after = cost(agent.pid());
    std::thread::sleep(Duration::from_secs(30));
    let idle = cost(agent.pid());
    assert_eq!(up(), usize::from(PEERS), "all stay up");
    println!("{PEERS} peers up in {took:.1?} (attempts that failed before wait for the end of their pauses)");
    println!("resident memory: {} kB configured, {} kB up: {:.1} kB for each", before.0, idle.0, {
        idle.0.saturating_sub(before.0) as f64 / f64::from(PEERS)
    });
    println!("CPU of the agent: {} ms in all until they were up", (after.1 - before.1) * 10);
    println!("CPU of the agent with all of them idle: {:.1} %", (idle.1 - after.1) as f64 / 30.0);
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the crowd ends");
}
