//! Traffic through the tunnel: pings that count their losses, and TCP that counts its bits.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use underpass::sys::netns::Namespace;

use super::command::{Daemon, said, text};
use super::{Host, Lab, attempt, wait_for};

/// What became of a run of pings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pings {
    pub sent: u32,
    pub received: u32,
}

impl Pings {
    pub fn lost(self) -> u32 {
        self.sent - self.received
    }
}

/// Sends `count` pings, 20 a second, from the overlay address of one host to that of the other.
pub fn ping(from: &Host, to: &Host, count: u32) -> Pings {
    Pinging::start(from, to, count).wait()
}

/// Whether ten pings are answered, all of them, at the third try at the latest: strongSwan alone, on both hosts, loses one now and
/// then on a busy machine. Tests that say that nothing may be lost count by [`Pinging`] instead.
pub fn ten_are_answered(from: &Host, to: &Host) -> bool {
    (0..3).any(|_| ping(from, to, 10).lost() == 0)
}

/// Pings both ways between alpha and beta, as [`ten_are_answered`] has it.
///
/// # Panics
///
/// When they are not answered.
pub fn both_answer(lab: &Lab) {
    wait_until_answered(&lab.alpha, &lab.beta, Duration::from_secs(5));
    assert!(ten_are_answered(&lab.alpha, &lab.beta), "alpha to beta");
    assert!(ten_are_answered(&lab.beta, &lab.alpha), "beta to alpha");
}

/// One ping that may wait a second for its answer.
pub fn answers(from: &Host, to: &Host) -> bool {
    from.attempt(&["ping", "-n", "-c", "1", "-W", "1", "-I", from.inner, to.inner]).status.success()
}

/// Pings until one is answered; how long that took.
pub fn wait_until_answered(from: &Host, to: &Host, limit: Duration) -> Duration {
    let what = format!("a ping from {} to {}", from.name, to.name);
    wait_for(&what, limit, || answers(from, to).then_some(())).1
}

/// How long the answer to the last ping of a run may take, in seconds.
///
/// `ping` itself does not wait for it: once everything is sent it ends after the pause between two, or twice the longest round trip, and
/// `-W` is about runs without any answer. A busy machine takes longer than that now and then.
const PATIENCE: f64 = 2.0;

/// Pings that run beside the test.
pub struct Pinging {
    pid: u32,
    /// The figures, or all that `ping` said instead.
    figures: JoinHandle<Result<Pings, String>>,
}

impl Pinging {
    /// See [`ping`].
    pub fn start(from: &Host, to: &Host, count: u32) -> Self {
        Self::paced(from, count, "0.05", &["-I", from.inner, to.inner])
    }

    /// One ping in so many seconds, with further arguments. More are sent while the last of the `count` has time to be answered.
    pub fn paced(from: &Host, count: u32, interval: &str, more: &[&str]) -> Self {
        let pause: f64 = interval.parse().expect("seconds");
        let all = (count + (PATIENCE / pause).ceil() as u32).to_string();
        Self::spawn(from, Some(count), &[&["-i", interval, "-c", &all], more].concat())
    }

    /// All of them at once, with further arguments.
    pub fn burst(from: &Host, count: u32, more: &[&str]) -> Self {
        let (all, patience) = (count.to_string(), PATIENCE.to_string());
        Self::spawn(from, Some(count), &[&["-l", &all, "-c", &all, "-i", &patience], more].concat())
    }

    /// 20 a second, for so many seconds.
    pub fn lasting(from: &Host, to: &Host, seconds: u32) -> Self {
        Self::spawn(from, None, &["-i", "0.05", "-w", &seconds.to_string(), "-I", from.inner, to.inner])
    }

    fn spawn(from: &Host, count: Option<u32>, arguments: &[&str]) -> Self {
        let argv = from.on(&[&["ping", "-n", "-W", "2"], arguments].concat()).join(" ");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec setpriv --pdeathsig KILL {argv} 2>&1")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().expect("the command ping");
        // Somebody must read all the time what it says, or it stops when the pipe is full.
        Self { pid: child.id(), figures: thread::spawn(move || follow(child, count)) }
    }

    /// 20 a second out of a container, so many of them.
    pub fn inside(container: &Namespace, to: &str, count: u32) -> Self {
        let all = (count + (PATIENCE / 0.05).ceil() as u32).to_string();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ping", "-n", "-W", "2", "-i", "0.05", "-c", &all, to]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = container.spawn(command).expect("the command ping");
        Self { pid: child.id(), figures: thread::spawn(move || follow(child, Some(count))) }
    }

    /// Ends them early; their figures do not matter.
    pub fn abandon(self) {
        attempt(&["kill", "-INT", &self.pid.to_string()]);
        let _ = self.figures.join();
    }

    /// Waits for the last answer.
    pub fn wait(self) -> Pings {
        self.figures.join().expect("it does not panic").unwrap_or_else(|said| panic!("ping said no figures:\n{said}"))
    }
}

/// Reads what `ping` says. Of more than `count` the first ones count, and when those are answered it ends.
fn follow(mut child: Child, count: Option<u32>) -> Result<Pings, String> {
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);
    let (mut said, mut answered) = (String::new(), BTreeSet::new());
    for line in lines {
        answered.extend(answered_by(&line).filter(|&number| count.is_none_or(|count| number <= count)));
        said += &format!("{line}\n");
        if count.is_some_and(|count| answered.len() == count as usize) {
            let _ = child.kill();
            break;
        }
    }
    child.wait().expect("a child of ours");
    let received = answered.len() as u32;
    let pings = match count {
        Some(sent) if sent == received => Pings { sent, received },
        _ => Pings { sent: count.unwrap_or(sent_by(&said).ok_or(said)?), received },
    };
    if pings.lost() > 0 {
        let missing: Vec<String> = (1..=pings.sent).filter(|n| !answered.contains(n)).map(|n| n.to_string()).collect();
        eprintln!("{} of {} pings lost: {}", pings.lost(), pings.sent, missing.join(" "));
    }
    Ok(pings)
}

/// The number of the ping that this line says is answered.
fn answered_by(line: &str) -> Option<u32> {
    line.split_once("bytes from")?.1.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()
}

/// How many were sent, by the line at the end.
fn sent_by(said: &str) -> Option<u32> {
    said.lines().find_map(|line| line.split_once(" packets transmitted")?.0.parse().ok())
}

/// Sends TCP for so many seconds; bits per second as the receiver counted them.
pub fn tcp_bits_per_second(from: &Host, to: &Host, seconds: u32) -> f64 {
    Iperf::start(from, to, &["-t", &seconds.to_string()]).wait().bits_per_second()
}

/// TCP for a second between two containers, forwards and backwards. Each side is a function that runs a command inside its container.
///
/// For a time and not for a number of octets: at the end of those iperf3 drops what has not arrived yet.
pub fn streams(server: impl Fn(&[&str]) -> Output, client: impl Fn(&[&str]) -> Output, address: &str) {
    let started = server(&["iperf3", "-s", "-D"]);
    assert!(started.status.success(), "iperf3 -s: {}", said(&started));
    wait_for("iperf3 to listen", Duration::from_secs(5), || {
        (!server(&["ss", "-Hltn", "sport", "=", "5201"]).stdout.is_empty()).then_some(())
    });
    for backwards in [&[][..], &["-R"]] {
        let output = client(&[&["iperf3", "-c", address, "-t", "1", "-J"], backwards].concat());
        assert!(output.status.success(), "iperf3 {backwards:?}: {}", said(&output));
        let bits = IperfReport(serde_json::from_slice(&output.stdout).expect("iperf3's JSON")).bits_per_second();
        eprintln!("to {address} {backwards:?}: {:.0} Mbit/s", bits / 1e6);
        assert!(bits > 1e6, "{}", said(&output));
    }
}

/// An `iperf3` that runs beside the test.
pub struct Iperf {
    client: Child,
    _server: Daemon,
    _folder: TempDir,
}

impl Iperf {
    /// From one host to the other, with these further arguments.
    pub fn start(from: &Host, to: &Host, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("iperf3.log");
        let server = to.on(&["iperf3", "-s", "-1", "--forceflush", "-B", to.inner]);
        let server = Daemon::start("iperf3 -s", &server, &[], &log);
        wait_for("iperf3 to listen", Duration::from_secs(5), || server.log().contains("listening").then_some(()));
        let client = from.on(&["iperf3", "-J", "-B", from.inner, "-c", to.inner]);
        let argv = [&["setpriv", "--pdeathsig", "KILL"], &client[..], arguments].concat();
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { client: command.spawn().expect("the command iperf3"), _server: server, _folder: folder }
    }

    /// Waits for its end. It ends by itself: a transfer that stands still is given up by TCP.
    pub fn wait(self) -> IperfReport {
        let output = self.client.wait_with_output().expect("a child of ours");
        assert!(output.status.success(), "iperf3: {}", said(&output));
        IperfReport(serde_json::from_str(&text(&output.stdout)).expect("iperf3's JSON"))
    }
}

/// What `iperf3 -J` says.
pub struct IperfReport(pub Value);

impl IperfReport {
    /// As the receiver counted them.
    pub fn bits_per_second(&self) -> f64 {
        self.0["end"]["sum_received"]["bits_per_second"].as_f64().expect("a figure")
    }

    /// Segments that TCP sent again.
    pub fn retransmits(&self) -> u64 {
        self.0["end"]["sum_sent"]["retransmits"].as_u64().expect("a figure")
    }

    /// Bits per second in each interval, as the sender counted them.
    pub fn steps(&self) -> Vec<f64> {
        let intervals = self.0["intervals"].as_array().expect("a list");
        intervals.iter().map(|interval| interval["sum"]["bits_per_second"].as_f64().expect("a figure")).collect()
    }
}

#[test]
fn figures_are_read() {
    let output = "--- 10.42.2.1 ping statistics ---\n40 packets transmitted, 38 received, 5% packet loss, time 2ms\n";
    assert_eq!(sent_by(output), Some(40));
    assert_eq!(sent_by("3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 2ms\n"), Some(3));
    assert_eq!(sent_by("ping: connect: Network is unreachable\n"), None);
    assert_eq!(answered_by("64 bytes from 10.42.2.1: icmp_seq=2 ttl=64 time=1 ms"), Some(2));
    assert_eq!(answered_by("From 10.42.1.1 icmp_seq=3 Destination Host Unreachable"), None);
}
