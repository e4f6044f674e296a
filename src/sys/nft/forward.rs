//! The forward hook, as a packet finds it: who hooks in there, and whether packets get through.
//!
//! In nf_tables an accept ends its own chain only, while a drop in any chain is final; and what legacy iptables does there nobody tells. So
//! rules cannot say whether a packet passes, and packets are sent to see. For a moment a table of ours stands around all other chains of
//! the hook, with a checkpoint behind each priority: each counts the trial packets that came so far, and the last one ends them, so that
//! nobody ever gets one. No other packet is touched.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_DUMP;

use super::message::{Attributes, Message, attribute};
use super::rule::Field;
use super::table::{Family, Hook, Transaction, counted, remove_table};
use super::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, GuardError, HOOK_HOOKNUM, HOOK_PRIORITY, Load, POLICY_ACCEPT, Rule,
    explain, open, text,
};

/// `NFT_MSG_GETCHAIN`.
const LIST_CHAINS: u16 = 4;

/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;

/// The table that stands for a moment.
const TABLE: &str = "underpass-probe";

/// Where legacy iptables hooks in (`NF_IP_PRI_MANGLE`, `_FILTER`, `_SECURITY`): its chains are in no list.
const LEGACY: [i32; 3] = [-150, 0, 50];

/// UDP, as IP numbers it; and the port of the service that throws everything away (RFC 863): what a trial packet is for.
pub const UDP: u8 = 17;
/// See [`UDP`].
pub const DISCARD: u16 = 9;

/// How long a packet may take from the device through the hook: the kernel takes it there at once unless it is busy.
const PATIENCE: Duration = Duration::from_millis(20);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// A chain of nf_tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// `ip`, `ip6`, `inet`, …
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it stands at the forward hook; none if it does not.
    pub forward: Option<i32>,
    /// Whether it drops what no rule of it decides on.
    pub drops: bool,
}

/// A packet that is to be tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// The interface that it leaves by, if this host forwards it as it should.
    pub out: String,
    /// Whom it is for.
    pub destination: IpAddr,
}

/// What became of a trial packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was not forwarded by that interface at all.
    Absent,
    /// It got through.
    Passed,
    /// A chain of this priority dropped it.
    Dropped(i32),
}

/// Every chain of nf_tables for IP, with those that iptables has made by it.
///
/// # Errors
/// [`GuardError`].
pub fn chains() -> Result<Vec<Chain>, GuardError> {
    let action = || "list the chains of nftables".to_owned();
    let answer = open(action)?.request(Message::new(LIST_CHAINS, 0, Attributes::default()), NLM_F_DUMP);
    Ok(answer.map_err(|fault| explain(fault, action))?.iter().filter_map(chain).collect())
}

fn chain(message: &Message) -> Option<Chain> {
    // NFPROTO_INET, _IPV4 and _IPV6.
    let family = match message.family() {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let name = |kind| Some(String::from_utf8_lossy(text(message.attribute(kind))?).into_owned());
    let number = |octets: &[u8]| octets.try_into().ok().map(u32::from_be_bytes);
    let hook = message.attribute(CHAIN_HOOK);
    let is_forward = |hook: &&[u8]| attribute(hook, HOOK_HOOKNUM).and_then(number) == Some(HOOK_FORWARD);
    let forward = hook.filter(is_forward).and_then(|hook| attribute(hook, HOOK_PRIORITY).and_then(number));
    let policy = message.attribute(CHAIN_POLICY).and_then(number);
    Some(Chain {
        family,
        table: name(CHAIN_TABLE)?,
        name: name(CHAIN_NAME)?,
        forward: forward.map(u32::cast_signed),
        drops: policy.is_some_and(|policy| policy != POLICY_ACCEPT),
    })
}

/// Sends a packet for each trial, and says what became of it. `send` gives the host one that came in by `tun`.
///
/// # Errors
/// [`GuardError`].
pub fn probe(tun: &str, trials: &[Trial], mut send: impl FnMut(&Trial)) -> Result<Vec<Verdict>, GuardError> {
    let mut priorities: Vec<i32> =
        chains()?.iter().filter(|chain| chain.table != TABLE).filter_map(|it| it.forward).collect();
    priorities.extend(LEGACY);
    priorities.sort_unstable();
    priorities.dedup();
    // What a killed one has left counts no more.
    remove_table(Family::Inet, TABLE)?;
    checkpoints(tun, trials, &priorities).commit()?;
    trials.iter().for_each(&mut send);
    let verdicts = verdicts(trials, &priorities);
    remove_table(Family::Inet, TABLE)?;
    verdicts
}

/// One checkpoint before everybody, and one behind each priority: a new chain stands before those of its own priority.
fn checkpoints(tun: &str, trials: &[Trial], priorities: &[i32]) -> Transaction {
    let mut table = Transaction::new(Family::Inet, TABLE);
    let places = [i32::MIN].into_iter().chain(priorities.iter().map(|priority| priority.saturating_add(1)));
    for (number, priority) in places.enumerate() {
        let rule = |(trial, it): (usize, &Trial)| {
            let counter = counter(trial, number);
            concerned(tun, it).count(&counter)
        };
        (0..trials.len()).for_each(|trial| table.counter(&counter(trial, number)));
        let hook = Hook { kind: "filter", number: HOOK_FORWARD, priority };
        table.chain(&format!("behind{number}"), Some(hook), trials.iter().enumerate().map(rule).collect());
    }
    let hook = Hook { kind: "filter", number: HOOK_FORWARD, priority: i32::MAX };
    table.chain("end", Some(hook), trials.iter().map(|it| concerned(tun, it).drop()).collect());
    table
}

fn concerned(tun: &str, trial: &Trial) -> Rule {
    let mut out = [0; 16];
    out.iter_mut().zip(trial.out.bytes()).for_each(|(octet, value)| *octet = value);
    Rule::default()
        .came_in_by(tun)
        .address_in(Field::Destination, trial.destination.into(), &[])
        .is(Load::OutInterface, &out)
        .is(Load::Protocol, &[UDP])
        .is(Load::DestinationPort, &DISCARD.to_be_bytes())
}

fn counter(trial: usize, checkpoint: usize) -> String {
    format!("trial{trial}-{checkpoint}")
}

fn verdicts(trials: &[Trial], priorities: &[i32]) -> Result<Vec<Verdict>, GuardError> {
    let came = |trial, checkpoint| {
        let count = counted(Family::Inet, TABLE, &counter(trial, checkpoint));
        count.map(|count| count.is_some_and(|count| count.packets > 0))
    };
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let mut all = true;
        for trial in 0..trials.len() {
            all &= came(trial, priorities.len())?;
        }
        if all {
            break;
        }
        thread::sleep(LOOK);
    }
    let verdict = |trial| {
        let passed = (0..=priorities.len()).map(|checkpoint| came(trial, checkpoint)).collect::<Result<Vec<bool>, _>>()?;
        Ok(match passed.iter().position(|passed| !passed) {
            None => Verdict::Passed,
            Some(0) => Verdict::Absent,
            Some(first) => Verdict::Dropped(priorities[first - 1]),
        })
    };
    (0..trials.len()).map(verdict).collect()
}
