//! Random schedules over two to eight hosts, and what must hold after each (the letters are those of the messages):
//!
//! - P1: the keys of a CHILD_SA agree at its two ends, or neither has it;
//! - P2: one IKE SA for a pair of hosts, one CHILD_SA for everything, one for a pair of workers;
//! - P3: no nonce twice under a key;
//! - P4: no IKE SA with somebody who has not the other's key;
//! - P5: a rekey loses no packet where the network loses none;
//! - P6: who proves nothing costs a bounded number of half-open IKE SAs;
//! - P7: when the network works again, packets pass within `FLOWS_WITHIN`;
//! - P8: no input makes endless work.
//!
//! A schedule is made of a seed or of octets that a fuzzer chose, and can be printed. It is played in three acts: the steps; then
//! everything is mended and must settle; then, on a network that only delays and repeats, everything is rekeyed under traffic.

use std::time::Duration;

use super::play::Play;
use crate::model::{Rng, SeededRng};
use crate::node::Rekey;

/// One thing that happens. Hosts are counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Time passes.
    Wait(Duration),
    /// The next clock that is set rings, or the next datagram arrives; nothing else.
    Next,
    /// So many of a hundred datagrams are lost, come twice, or have a wrong bit.
    Wire { loss: u8, duplication: u8, corruption: u8 },
    /// Datagrams take up to so much longer, and overtake each other.
    Delay(Duration),
    /// What the first sends to the second vanishes.
    Cut(u8, u8),
    /// What two send to each other vanishes.
    Sever(u8, u8),
    /// Nothing vanishes any more.
    Mend,
    /// A host loses everything that it does not have on disk, and starts again.
    Crash(u8),
    /// The same, and it stays away.
    Stop(u8),
    /// It is back.
    Start(u8),
    /// A host's clock jumps forwards.
    Jump(u8, Duration),
    /// A host sleeps, clock and all.
    Sleep(u8, Duration),
    /// A host rekeys what it has with another.
    Rekey(u8, u8, Rekey),
    /// Both do, before either hears of it.
    RekeyBoth(u8, u8, Rekey),
    /// The CHILD_SAs that a host sends with end hard.
    Expire(u8, u8),
    /// A host's configuration loses a peer, and gets it back.
    Reload(u8, u8),
    /// An inner packet, by this worker.
    Talk(u8, u8, u8),
    /// Somebody sends again what left a host so many datagrams ago; from his own address if `elsewhere`.
    Replay { ago: u16, elsewhere: bool },
    /// Somebody sends a host so many IKE_SA_INIT requests.
    Flood(u8, u8),
    /// Datagrams wait for a hand from now on.
    Hold,
    /// One that waits arrives.
    Deliver(u8),
    /// One that waits is lost.
    Lose(u8),
    /// One that waits arrives, and waits on.
    Twice(u8),
    /// All that wait arrive, and no more wait.
    Release,
}

impl Step {
    /// What three octets stand for, for this many hosts.
    fn of([kind, a, b]: [u8; 3], hosts: u8) -> Self {
        let here = a % hosts + 1;
        let there = (here + b % (hosts - 1)) % hosts + 1;
        let what = if b & 0x80 == 0 { Rekey::Child } else { Rekey::Ike };
        match kind % 64 {
            0..=9 => Self::Wait(Duration::from_millis(80) * u32::from(a)),
            10..=15 => Self::Wait(Duration::from_millis(2) * u32::from(a)),
            16 => Self::Next,
            17 | 18 => Self::Wire { loss: a % 50, duplication: b % 50, corruption: if b & 1 == 0 { 0 } else { a % 10 } },
            19 | 20 => Self::Delay(Duration::from_millis(4) * u32::from(a)),
            21 => Self::Cut(here, there),
            22 => Self::Sever(here, there),
            23 | 24 => Self::Mend,
            25..=27 => Self::Crash(here),
            28 => Self::Stop(here),
            29 | 30 => Self::Start(here),
            31 => Self::Jump(here, Duration::from_secs(1 << (b % 14))),
            32 => Self::Sleep(here, Duration::from_secs(1 << (b % 7))),
            33..=37 => Self::Rekey(here, there, what),
            38..=41 => Self::RekeyBoth(here, there, what),
            42..=44 => Self::Expire(here, there),
            45 => Self::Reload(here, there),
            46..=49 => Self::Talk(here, there, b),
            50 | 51 => Self::Replay { ago: u16::from(a) * 2, elsewhere: b & 1 == 1 },
            52 => Self::Flood(here, b),
            53 | 54 => Self::Hold,
            55..=57 => Self::Deliver(a),
            58 | 59 => Self::Lose(a),
            60 | 61 => Self::Twice(a),
            _ => Self::Release,
        }
    }
}

/// What is played, and by whom.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Of the world's chance.
    pub seed: u64,
    /// Hosts: 2 to 8.
    pub hosts: u8,
    /// Workers of each.
    pub workers: u8,
    /// Ed25519 host keys in place of shared ones.
    pub host_keys: bool,
    /// Whether hosts with lower numbers only wait for those with higher ones.
    pub some_wait: bool,
    /// When CHILD_SAs and IKE SAs are rekeyed.
    pub lifetimes: (Duration, Duration),
    /// How long what a worker says takes to its node.
    pub lag: Duration,
    /// Host 1 and the last one have other keys for each other.
    pub estranged: bool,
    /// Somebody at another address says that he is host 1, and has no key.
    pub impostor: bool,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// The schedule that a seed stands for.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = SeededRng::new(seed);
        let mut octets = vec![0; 6 + 3 * (8 + rng.u32() as usize % 56)];
        rng.fill(&mut octets);
        Self::of_octets(seed, &octets, 8)
    }

    /// The schedule that these octets stand for: some that say who plays, then three for each step.
    #[must_use]
    pub fn of_octets(seed: u64, octets: &[u8], most_hosts: u8) -> Self {
        let (cast, steps) = octets.split_at(octets.len().min(6));
        let at = |place: usize| cast.get(place).copied().unwrap_or_default();
        // Half of all worlds have two hosts: what is wrong between two is found soonest there.
        let hosts = match at(0) % 16 {
            0..=7 => 2,
            8..=11 => 3,
            more => more - 8,
        };
        let hosts = hosts.min(most_hosts);
        let lifetimes = match at(1) % 4 {
            0 => (20, 70),
            1 => (45, 30),
            _ => (3600, 4 * 3600),
        };
        Self {
            seed,
            hosts,
            workers: 1 + at(2) % 2,
            host_keys: at(3) % 4 == 1,
            some_wait: at(3) / 4 % 4 == 1,
            lifetimes: (Duration::from_secs(lifetimes.0), Duration::from_secs(lifetimes.1)),
            lag: Duration::from_millis([0, 0, 2, 40][usize::from(at(4) % 4)]),
            estranged: hosts > 2 && at(5) % 8 == 1,
            impostor: at(5) / 8 % 8 == 1,
            steps: steps.chunks_exact(3).map(|step| Step::of([step[0], step[1], step[2]], hosts)).collect(),
        }
    }

    /// Plays it.
    ///
    /// # Errors
    /// A sentence that says what did not hold.
    pub fn play(&self) -> Result<(), String> {
        Play::new(self).run()
    }

    /// Plays it, and writes down what happens.
    #[must_use]
    pub fn story(&self) -> String {
        let mut play = Play::new(self);
        play.write_down();
        let outcome = play.run();
        format!("{}{outcome:?}", play.told())
    }
}
