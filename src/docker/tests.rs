//! The watch against a daemon that answers as Docker 20.10 does, and the reader of its answers against bad ones.

mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Link;
use super::http::{Exchange, HttpError, Line, Stop};
use super::table::Refusal;
use fake::{Scene, container};

const LABEL: (&str, &str) = ("io.rancher.container.network", "true");

fn own_pid() -> u32 {
    std::process::id()
}

#[test]
fn a_container_has_its_address_from_its_start_to_its_removal() {
    let mut scene = Scene::new();
    scene.watch();
    scene.until("the watch", |report| report.link == Link::Watching);
    scene.daemon.set("create", container("c1", 0, &[LABEL]));
    scene.until_is("c1", "Waiting: it does not run yet", &[]);
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    scene.daemon.set("die", container("c1", 0, &[LABEL]));
    scene.until_is("c1", "Waiting: it does not run; its address stays its own", &["10.42.1.2"]);
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    scene.daemon.remove("c1");
    scene.until("nobody", |report| report.containers.is_empty());
    // A container that never ran may have something on the host from before we looked.
    assert_eq!(scene.log(), ["unplug c1", "plug c1", "unplug c1", "plug c1", "unplug c1", "release c1"]);
}

#[test]
fn its_other_names_and_ports_are_those_that_docker_says() {
    let mut scene = Scene::new();
    scene.watch();
    scene.until("the watch", |report| report.link == Link::Watching);
    let view = || scene.report.lock().unwrap().containers[0].clone();
    let mut web = container("c1", own_pid(), &[LABEL]);
    web["NetworkSettings"] = json!({
        "Ports": {
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
            "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}], "81/tcp": null, "odd": [{"HostIp": "", "HostPort": "x"}],
        },
        "Networks": {"bridge": {"Aliases": null}, "front": {"Aliases": ["c1", "www", "name-of-c1"]}, "back": {"Aliases": ["www", "x"]}},
    });
    scene.daemon.set("start", web);
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    assert_eq!(view().aliases, ["www", "x"], "what says more than its id and its name");
    assert_eq!(view().ports, ["8080->80/tcp", "127.0.0.1:5353->53/udp"]);
    let mut bare = container("c1", 0, &[LABEL]);
    bare["NetworkSettings"] = json!({"Ports": null, "Networks": null});
    scene.daemon.set("die", bare);
    scene.until_is("c1", "Waiting", &["10.42.1.2"]);
    assert_eq!((view().aliases, view().ports), (Vec::new(), Vec::new()));
}

#[test]
fn who_has_no_label_is_not_even_looked_at() {
    let mut scene = Scene::new();
    scene.daemon.set("start", container("old", own_pid(), &[("other", "label")]));
    scene.watch();
    scene.until("the watch", |report| report.link == Link::Watching);
    scene.daemon.set("start", container("new", own_pid(), &[]));
    scene.daemon.set("start", container("mine", own_pid(), &[LABEL]));
    scene.daemon.set("start", container("no", own_pid(), &[(LABEL.0, "false")]));
    scene.daemon.set("start", container("last", own_pid(), &[LABEL]));
    scene.until_is("last", "Attached", &["10.42.1.3"]);
    assert_eq!(scene.log(), ["plug mine", "plug last"]);
    let requests = scene.daemon.world.lock().unwrap().requests.join("\n");
    assert!(!requests.contains("/old/") && !requests.contains("/new/"), "{requests}");
    assert!(scene.report.lock().unwrap().containers.iter().all(|view| view.id != "no"));
}

#[test]
fn what_runs_is_adopted_and_what_is_gone_is_released_at_the_start() {
    let mut scene = Scene::new();
    for (id, address) in [("runs", "10.42.1.7"), ("stopped", "10.42.1.8"), ("removed", "10.42.1.9")] {
        let held = vec![address.parse().unwrap()];
        scene.hands.0.lock().unwrap().held.insert(id.to_owned(), held);
    }
    scene.daemon.set("start", container("runs", own_pid(), &[LABEL]));
    scene.daemon.set("die", container("stopped", 0, &[LABEL]));
    scene.watch();
    scene.until_is("runs", "Attached", &["10.42.1.7"]);
    scene.until_is("stopped", "Waiting: it does not run; its address stays its own", &["10.42.1.8"]);
    assert_eq!(scene.log(), ["unplug removed", "release removed", "plug runs", "unplug stopped"]);
}

#[test]
fn a_daemon_that_comes_back_is_listened_to_again() {
    let mut scene = Scene::new();
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.daemon.set("start", container("c2", own_pid(), &[LABEL]));
    scene.watch();
    scene.until_is("c2", "Attached", &["10.42.1.3"]);
    scene.daemon.end();
    scene.until("Docker is away", |report| matches!(&report.link, Link::Away(_)));
    scene.until_is("c2", "Attached", &["10.42.1.3"]);
    // Meanwhile one is removed, and nobody is told.
    scene.daemon.world.lock().unwrap().containers.remove("c1");
    scene.daemon.listen();
    scene.until("c2 alone", |report| report.link == Link::Watching && report.containers.len() == 1);
    scene.daemon.set("start", container("c3", own_pid(), &[LABEL]));
    scene.until_is("c3", "Attached", &["10.42.1.3"]);
    let log = scene.log();
    assert_eq!(log.iter().filter(|deed| *deed == "release c1").count(), 1, "{log:?}");
    assert!(!log.contains(&"release c2".to_owned()), "{log:?}");
}

/// A list that could not be read is not an empty one: nobody loses an address.
#[test]
fn a_daemon_that_is_out_of_order_takes_nothing_away() {
    let mut scene = Scene::new();
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.watch();
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    scene.daemon.end();
    scene.daemon.world.lock().unwrap().broken = Some(500);
    scene.daemon.listen();
    scene.until("the reason", |report| report.link == Link::Away("Docker answered 500: out of order".to_owned()));
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    assert_eq!(scene.log(), ["plug c1"]);
}

#[test]
fn labels_that_make_no_sense_are_told_and_nothing_is_touched() {
    let mut scene = Scene::new();
    type Case<'c> = (&'c str, &'c [(&'c str, &'c str)], &'c str);
    let cases: [Case<'_>; 5] = [
        ("a", &[(LABEL.0, "yes")], "Failed: label io.rancher.container.network: expected true or false, got \"yes\""),
        ("b", &[LABEL, ("io.rancher.container.requested_ip", "10.42.1")], "Failed: label io.rancher.container.requested_ip"),
        (
            "c",
            &[LABEL, ("io.rancher.container.mac_address", "01:00:5e:00:00:01")],
            "Failed: label io.rancher.container.mac_address",
        ),
        ("d", &[("io.rancher.cni.network", "ipsex")], "Failed: no network is called \"ipsex\" (did you mean \"ipsec\"?)"),
        ("e", &[LABEL, ("io.rancher.cni.link_mtu_overhead", "-1")], "Failed: label io.rancher.cni.link_mtu_overhead"),
    ];
    for (id, labels, _) in cases {
        scene.daemon.set("start", container(id, own_pid(), labels));
    }
    scene.watch();
    for (id, _, state) in cases {
        scene.until_is(id, state, &[]);
    }
    assert_eq!(scene.log(), [""; 0]);
    scene.daemon.remove("a");
    scene.until("b to e", |report| report.containers.len() == 4);
}

#[test]
fn trouble_is_tried_again_until_it_is_over() {
    let mut scene = Scene::new();
    scene.hands.0.lock().unwrap().refuses = Some(Refusal::Trouble("10.42.1.7 is taken".to_owned()));
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL, ("io.rancher.container.ip", "10.42.1.7/16")]));
    scene.watch();
    scene.until_is("c1", "Failed: 10.42.1.7 is taken", &[]);
    scene.hands.0.lock().unwrap().refuses = None;
    scene.until_is("c1", "Attached", &["10.42.1.7"]);
    // Its network goes away under it: it runs, and nobody says that all is well.
    scene.hands.0.lock().unwrap().refuses = Some(Refusal::NoNetwork("no network is called \"ipsec\"".to_owned()));
    let event = json!({"Type": "network", "Action": "disconnect", "Actor": {"ID": "n", "Attributes": {"container": "c1"}}});
    scene.daemon.say(&event);
    scene.until_is("c1", "Disconnected: no network is called", &["10.42.1.7"]);
}

/// A process that ended while we looked is nobody's namespace.
#[test]
fn a_process_that_is_gone_leads_nowhere() {
    let mut scene = Scene::new();
    let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    scene.daemon.set("start", container("c1", pid, &[LABEL]));
    scene.watch();
    scene.until_is("c1", "Failed: its network namespace: No such file", &[]);
    assert_eq!(scene.log(), [""; 0]);
}

/// Docker says nothing of a container while it starts it.
#[test]
fn silence_about_one_container_is_no_silence_about_others() {
    let mut scene = Scene::new();
    scene.daemon.world.lock().unwrap().silent_about = Some("slow".to_owned());
    scene.daemon.set("start", container("slow", own_pid(), &[LABEL]));
    scene.daemon.set("start", container("tidy", own_pid(), &[LABEL]));
    scene.watch();
    scene.until_is("tidy", "Attached", &["10.42.1.2"]);
    assert_eq!(scene.report.lock().unwrap().link, Link::Watching);
    scene.daemon.world.lock().unwrap().silent_about = None;
    scene.until_is("slow", "Attached", &["10.42.1.3"]);
}

#[test]
fn a_bug_ends_the_watch_alone() {
    let mut scene = Scene::new();
    scene.hands.0.lock().unwrap().panics = true;
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.watch();
    scene.until("the end", |report| report.link == Link::Broken);
    scene.stop();
}

/// Whatever it waits for, the watch ends at once when it is told to.
#[test]
fn a_watch_ends_when_it_is_told_to() {
    let mut scene = Scene::new();
    scene.watch();
    scene.until("the watch", |report| report.link == Link::Watching);
    scene.stop();
    scene.daemon.end();
    // Somebody listens and never answers.
    let _silent = UnixListener::bind(scene.daemon.socket()).unwrap();
    scene.watch();
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    scene.stop();
    assert!(start.elapsed() < Duration::from_secs(4), "a question has five seconds: it did not wait for them");
}

/// One answer, in pieces of one octet, and then the end of the connection.
fn asked(answer: &[u8]) -> Result<(u16, Vec<u8>), HttpError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = answer.to_vec();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut octet = [0];
            stream.read_exact(&mut octet).unwrap();
            request.push(octet[0]);
        }
        assert!(request.starts_with(b"GET /x HTTP/1.1\r\nHost: "));
        // Who asked may have hung up: that is what is tested.
        let _ = answer.iter().try_for_each(|octet| stream.write_all(&[*octet]));
    });
    let (stop, _given) = Stop::new().unwrap();
    let said = Exchange::get(&path, "/x", &stop).and_then(|exchange| Ok((exchange.status, exchange.body(64)?)));
    server.join().unwrap();
    said
}

#[test]
fn bodies_end_where_the_head_says() {
    let fine = |answer: &str| asked(answer.as_bytes()).unwrap();
    assert_eq!(fine("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}XX"), (200, b"{}".to_vec()));
    assert_eq!(fine("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), (404, Vec::new()));
    assert_eq!(fine("HTTP/1.0 200 OK\r\n\r\nto the end"), (200, b"to the end".to_vec()));
    let chunked = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(fine(&format!("{chunked}3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n")), (200, b"abc0123456789".to_vec()));
    assert_eq!(fine("HTTP/1.1 204 No Content\r\n\r\n"), (204, Vec::new()));
}

#[test]
fn answers_that_are_none_are_refused() {
    let bad = |answer: &str| asked(answer.as_bytes()).unwrap_err().to_string();
    let head = "HTTP/1.1 200 OK\r\n";
    assert!(bad("").contains("ended in the middle"));
    assert!(bad("HTTP/1.1 200 OK\r\nContent-Le").contains("ended in the middle"));
    assert!(bad("SSH-2.0-OpenSSH\r\n\r\n").contains("not HTTP"));
    assert!(bad(&format!("{head}Content-Length: -1\r\n\r\n")).contains("Content-Length"));
    assert!(bad(&format!("{head}Content-Length: 9\r\n\r\nshort")).contains("ended in the middle"));
    assert!(bad(&format!("{head}Content-Length: 65\r\n\r\n{}", "x".repeat(65))).contains("more than 64 octets"));
    assert!(bad(&format!("{head}Transfer-Encoding: gzip\r\n\r\n")).contains("transfer coding"));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    assert!(bad(&format!("{chunked}zz\r\n")).contains("without its size"));
    assert!(bad(&format!("{chunked}2\r\nabcd\r\n")).contains("without its end"));
    assert!(bad(&format!("{chunked}fffffffffffffffff\r\n")).contains("without its size"));
    assert!(bad(&format!("{chunked}5\r\nab")).contains("ended in the middle"));
    assert!(bad(&format!("{head}{}", "a: b\r\n".repeat(65))).contains("not HTTP"));
}

#[test]
fn lines_come_whole_or_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (stop, _given) = Stop::new().unwrap();
    let (ready, go) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").unwrap();
        go.recv().unwrap();
        stream.write_all(b"6\r\n two\r\n\r\n").unwrap();
        stream.write_all(b"4\r\n3\n4\n\r\n0\r\n\r\n").unwrap();
        go.recv().unwrap();
    });
    let mut exchange = Exchange::get(&path, "/", &stop).unwrap();
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(exchange.line(99, soon()).unwrap(), Line::Late);
    assert_eq!(exchange.line(99, soon()).unwrap(), Line::Late);
    ready.send(()).unwrap();
    assert_eq!(exchange.line(99, None).unwrap(), Line::Whole(b"one two".to_vec()));
    assert_eq!(exchange.line(99, None).unwrap(), Line::Whole(b"3".to_vec()));
    assert_eq!(exchange.line(99, None).unwrap(), Line::Whole(b"4".to_vec()));
    assert_eq!(exchange.line(99, None).unwrap(), Line::Ended);
    ready.send(()).unwrap();
    server.join().unwrap();
}

/// A network that is changed, or a tunnel that is narrower, concerns containers of which Docker has no news.
#[test]
fn news_of_networks_are_for_those_who_have_theirs() {
    let mut scene = Scene::new();
    scene.daemon.set("start", container("c1", own_pid(), &[LABEL]));
    scene.watch();
    scene.until_is("c1", "Attached", &["10.42.1.2"]);
    scene.hands.0.lock().unwrap().news = true;
    scene.until("another look", |_| scene.log() == ["plug c1", "plug c1"]);
}
