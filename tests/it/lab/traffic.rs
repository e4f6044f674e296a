//! Traffic through the tunnel: pings that count their losses, and TCP that counts its bits.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use underpass::sys::netns::Namespace;

use super::command::{Daemon, said, text};
use super::{Host, Lab, wait_for};

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

    fn parse(output: &str) -> Self {
        let line = output.lines().find(|line| line.contains("packets transmitted"));
        let line = line.unwrap_or_else(|| panic!("ping said no figures:\n{output}"));
        let number = |word: &str| -> u32 {
            let before = line.split(',').find(|part| part.contains(word)).and_then(|part| part.split_whitespace().next());
            before.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no `{word}` in: {line}"))
        };
        Self { sent: number("transmitted"), received: number("received") }
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

/// Pings that run beside the test.
pub struct Pinging {
    child: Child,
}

impl Pinging {
    /// See [`ping`].
    pub fn start(from: &Host, to: &Host, count: u32) -> Self {
        Self::with(from, &["-i", "0.05", "-c", &count.to_string(), "-I", from.inner, to.inner])
    }

    /// Pings with these arguments.
    pub fn with(from: &Host, arguments: &[&str]) -> Self {
        let argv = from.on(&[&["ping", "-n", "-W", "2"], arguments].concat()).join(" ");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec setpriv --pdeathsig KILL {argv}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("the command ping") }
    }

    /// The same out of a container.
    pub fn inside(container: &Namespace, arguments: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ping", "-n", "-W", "2"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: container.spawn(command).expect("the command ping") }
    }

    /// Ends them early; their figures do not matter.
    pub fn abandon(mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// Waits for the last answer.
    pub fn wait(self) -> Pings {
        let output = self.child.wait_with_output().expect("a child of ours");
        let pings = Pings::parse(&said(&output));
        if pings.lost() > 0 {
            eprintln!("{} of {} pings lost: {}", pings.lost(), pings.sent, missing(&text(&output.stdout), pings.sent));
        }
        pings
    }
}

/// Sends TCP for so many seconds; bits per second as the receiver counted them.
pub fn tcp_bits_per_second(from: &Host, to: &Host, seconds: u32) -> f64 {
    Iperf::start(from, to, &["-t", &seconds.to_string()]).wait().bits_per_second()
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

/// The numbers of the pings that were not answered.
fn missing(output: &str, sent: u32) -> String {
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
    let answered: BTreeSet<u32> = output.lines().filter(|line| line.contains("bytes from")).filter_map(number).collect();
    let missing: Vec<String> = (1..=sent).filter(|n| !answered.contains(n)).map(|n| n.to_string()).collect();
    missing.join(" ")
}

#[test]
fn figures_are_read() {
    let output = "--- 10.42.2.1 ping statistics ---\n40 packets transmitted, 38 received, 5% packet loss, time 2ms\n";
    assert_eq!(Pings::parse(output), Pings { sent: 40, received: 38 });
    let output = "3 packets transmitted, 0 received, +3 errors, 100% packet loss, time 2ms\n";
    assert_eq!(Pings::parse(output).lost(), 3);
    let output = "64 bytes from 10.42.2.1: icmp_seq=2 ttl=64 time=1 ms\nFrom 10.42.1.1 icmp_seq=3 Unreachable\n";
    assert_eq!(missing(output, 4), "1 3 4");
}
