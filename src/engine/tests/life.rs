//! How an engine starts, talks with its brain, fails and ends.

use super::hosts::Host;
use super::*;

fn loopback_host(workers: u8) -> Host {
    let namespace = Namespace::create().expect("these tests need root for network namespaces");
    inside(&namespace, || ip("link set lo up"));
    Host::start(namespace, 1, &config(workers, TunBackend::Offload))
}

fn bind(host: &Host, address: &str) -> UdpSocket {
    let socket = inside(&host.namespace, || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn path(local: &str, remote: &str) -> Path {
    Path { local: local.parse().unwrap(), remote: remote.parse().unwrap() }
}

#[test]
fn ike_messages_travel_on_both_ports() {
    let host = loopback_host(2);
    let (plain, natt) = (bind(&host, "127.0.0.2:5500"), bind(&host, "127.0.0.2:14500"));
    plain.send_to(b"\0\0\0\0 is an SPI here", "127.0.0.9:500").unwrap();
    natt.send_to(b"\0\0\0\0and a marker here", "127.0.0.9:4500").unwrap();
    let (plain_path, natt_path) = (path("127.0.0.9:500", "127.0.0.2:5500"), path("127.0.0.9:4500", "127.0.0.2:14500"));
    let expected = [
        Heard::Ike(plain_path, Transport::Plain, b"\0\0\0\0 is an SPI here".to_vec()),
        Heard::Ike(natt_path, Transport::Natt, b"and a marker here".to_vec()),
    ];
    await_that("both messages", || heard(&host.handle).len() == 2);
    assert!(expected.iter().all(|expected| heard(&host.handle).contains(expected)), "{:?}", heard(&host.handle));

    host.handle
        .call(move |script, _| {
            script.transmits.push_back(transmit(plain_path, Transport::Plain, b"plain answer"));
            script.transmits.push_back(transmit(natt_path, Transport::Natt, b"marked answer"));
            script.keepalives.push_back(natt_path);
        })
        .unwrap();
    let mut buffer = [0; 100];
    let (len, from) = receive(&plain, &mut buffer);
    assert_eq!((&buffer[..len], from), (&b"plain answer"[..], plain_path.local));
    let (len, from) = receive(&natt, &mut buffer);
    assert_eq!((&buffer[..len], from), (&b"\0\0\0\0marked answer"[..], natt_path.local));
    let (len, from) = receive(&natt, &mut buffer);
    assert_eq!((&buffer[..len], from), (&[0xff][..], natt_path.local));
    host.stop();
}

#[test]
fn the_brain_is_woken_when_it_wants_to_be() {
    let host = loopback_host(1);
    let delay = Duration::from_millis(50);
    let at = host
        .handle
        .ask(move |script, now| {
            script.wake_at = Some(now + delay);
            now + delay
        })
        .unwrap();
    await_that("the timer", || host.handle.ask(|script, _| script.woken_at.is_some()).unwrap());
    let woken_at = host.handle.ask(|script, _| script.woken_at).unwrap().unwrap();
    assert!(woken_at >= at && woken_at.since(at) < Duration::from_secs(5), "{woken_at:?}, wanted {at:?}");
    host.stop();
}

#[test]
fn what_was_asked_before_the_end_is_still_sent() {
    let host = loopback_host(1);
    let natt = bind(&host, "127.0.0.2:14500");
    let path = path("127.0.0.1:4500", "127.0.0.2:14500");
    for _ in 0..10 {
        let goodbye = move |script: &mut Script, _| script.transmits.push_back(transmit(path, Transport::Natt, b"bye"));
        host.handle.call(goodbye).unwrap();
    }
    host.stop();
    let mut buffer = [0; 100];
    for _ in 0..10 {
        assert_eq!(receive(&natt, &mut buffer).0, 7);
    }
}

#[test]
fn nothing_is_left_behind() {
    let namespace = Namespace::create().expect("these tests need root for network namespaces");
    for workers in [2, 1, 3] {
        let handle = inside(&namespace, || Engine::start(&config(workers, TunBackend::Offload), Script::default()).unwrap());
        let caller = handle.caller();
        assert_eq!(handle.ports(), (500, 4500));
        assert_eq!(handle.stop(PATIENCE), Ok(()));
        assert_eq!(caller.call(|_, _| ()), Err(Unreachable::Ended));
    }
    // A handle that is dropped ends its engine as well, a moment later.
    drop(inside(&namespace, || Engine::start(&config(1, TunBackend::Offload), Script::default()).unwrap()));
    let mut again = None;
    await_that("the ports and the name are free", || {
        again = inside(&namespace, || Engine::start(&config(1, TunBackend::Offload), Script::default()).ok());
        again.is_some()
    });
    assert_eq!(again.unwrap().stop(PATIENCE), Ok(()));
}

#[test]
fn what_cannot_work_says_so_at_once() {
    let namespace = Namespace::create().expect("these tests need root for network namespaces");
    let start = |config: Config| inside(&namespace, || Engine::start(&config, Script::default()));
    let first = start(config(1, TunBackend::Offload)).unwrap();
    let other_ports = Config { ike_port: 501, natt_port: 4501, ..config(1, TunBackend::Offload) };
    for (config, words) in [
        (config(2, TunBackend::Offload), "UDP port 500 on 0.0.0.0 is in use"),
        (Config { ike_port: 501, ..config(2, TunBackend::Offload) }, "UDP port 4500 on 0.0.0.0 is in use"),
        (other_ports.clone(), "an interface named \"overlay0\" exists already"),
        (Config { tun_name: "over lay".to_owned(), ..other_ports }, "is no name for an interface"),
    ] {
        let error = start(config).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(first.stop(PATIENCE), Ok(()));
}

#[test]
fn a_panic_is_told() {
    let host = loopback_host(1);
    host.handle.call(|_, _| panic!("as the test wants it")).unwrap();
    let ended = host.handle.ended().recv_timeout(PATIENCE).unwrap();
    let failure = Ended { thread: "underpass-ctl".to_owned(), failure: Some("panic: as the test wants it".to_owned()) };
    assert_eq!(ended, failure);
    assert_eq!(host.handle.call(|_, _| ()), Err(Unreachable::Ended));
    assert_eq!(host.handle.ask(|_, _| ()), Err(Unreachable::Ended));
    // Heard of once; the end of the others is no failure.
    assert_eq!(host.handle.stop(PATIENCE), Ok(()));
}

#[test]
fn a_device_that_is_gone_is_told() {
    let host = loopback_host(2);
    inside(&host.namespace, || ip("link delete overlay0"));
    let mut names = Vec::new();
    for _ in 0..2 {
        let ended = host.handle.ended().recv_timeout(PATIENCE).unwrap();
        assert!(ended.failure.unwrap().starts_with("reading from the TUN device"), "{names:?}");
        names.push(ended.thread);
    }
    names.sort_unstable();
    assert_eq!(names, ["underpass-w0", "underpass-w1"]);
    assert_eq!(host.handle.stop(PATIENCE), Ok(()));
}

#[test]
fn orders_reach_a_worker_in_any_number() {
    let host = loopback_host(2);
    // Many times a mailbox's size, in one go; each is acknowledged once, in order.
    let spis: Vec<Spi> = (0..2000).map(|number| spi(0x4000_0001 + (number << 8))).collect();
    let to_peer = path("127.0.0.1:4500", "127.0.0.2:14500");
    let orders: Vec<_> =
        spis.iter().flat_map(|&inbound| install(child(to_peer, inbound, spi(0x7000_0000)), false)).collect();
    update(&host.handle, orders);
    await_that("all are installed", || heard(&host.handle).len() == spis.len());
    assert_eq!(heard(&host.handle), spis.iter().copied().map(installed).collect::<Vec<_>>());
    host.stop();
}

#[test]
fn an_idle_engine_sleeps() {
    let host = loopback_host(2);
    let switches = || {
        // Times that a thread of this process, named as ours in this namespace, gave up its core of its own accord.
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let ours = tasks.filter(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.starts_with("underpass-") && std::fs::read_link(task.path().join("ns/net")).is_ok_and(|ns| ns == own)
        });
        let counts = ours.filter_map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        });
        counts.collect::<Vec<u64>>()
    };
    // The kernel's router solicitations come in the first seconds; they are few.
    std::thread::sleep(Duration::from_millis(200));
    let before = inside(&host.namespace, switches);
    std::thread::sleep(Duration::from_millis(500));
    let after = inside(&host.namespace, switches);
    assert_eq!((before.len(), after.len()), (3, 3));
    let woken: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
    assert!(woken < 20, "three idle threads woke {woken} times in half a second");
    host.stop();
}

#[test]
fn a_device_that_was_down_goes_on() {
    let host = loopback_host(2);
    update(&host.handle, [routes(1, 2, WorkerIndex(1))]);
    inside(&host.namespace, || {
        ip("link set overlay0 down");
        ip("link set overlay0 up");
        ip("route add 10.42.0.0/16 dev overlay0");
        UdpSocket::bind((host.inner(), 0)).unwrap().send_to(b"hello", "10.42.2.1:7").unwrap();
    });
    let wanted = Heard::Event(WorkerIndex(1), Event::WantSa(PEER));
    await_that("the packet arrives", || heard(&host.handle).contains(&wanted));
    assert!(host.handle.ended().is_empty());
    host.stop();
}
