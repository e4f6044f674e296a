//! A way through Docker's filter.
//!
//! Docker makes DROP the policy of iptables' chain FORWARD, which every packet meets that this host forwards: those between the tunnel and
//! containers, whichever runtime made them, and those of containers on bridges of ours on their way outside. No accept in a table of ours
//! would change that, as a drop anywhere counts. What is left to users is the chain DOCKER-USER, which Docker never touches: into it go
//! our few rules, before its last one (RETURN) and behind whatever else stands there. They accept what our own tables have let pass, and
//! nothing for Docker's networks but what comes out of the tunnel.
//!
//! `iptables` itself is asked to do so: it is the one that Docker uses, and only it knows which of the kernel's two kinds of tables it is
//! for. Where there is none, or no such chain, there is nothing to do.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::attach;

/// Docker's chain for its users.
const CHAIN: &str = "DOCKER-USER";

/// What marks our rules.
const COMMENT: &str = "underpass";

/// Asked again at the soonest after a change, and without any.
const AGAIN: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));

/// See the module.
#[derive(Debug)]
pub(super) struct Passage {
    /// Those that this host has.
    programs: Vec<&'static str>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// Something changed since.
    changed: bool,
    /// What was wanted then.
    wanted: BTreeSet<String>,
    /// What the log was told last.
    told: String,
}

impl Default for Passage {
    fn default() -> Self {
        let programs = vec!["iptables", "ip6tables"];
        Self { programs, asked: None, changed: true, wanted: BTreeSet::new(), told: String::new() }
    }
}

impl Passage {
    /// Looks whether our rules are there and no others, if it is time for that: at once where others are wanted than before.
    pub(super) fn look(&mut self, tun: &str, changed: bool) {
        self.changed |= changed;
        let pause = if self.changed { AGAIN.0 } else { AGAIN.1 };
        let is_time = self.asked.is_none_or(|asked| asked.elapsed() >= pause);
        if !(is_time || changed) {
            return;
        }
        let wanted = match attach::bridges() {
            Ok(bridges) => rules(tun, &bridges),
            Err(error) => return self.tell(&error.to_string()),
        };
        if !is_time && wanted == self.wanted {
            return;
        }
        let is_first = self.asked.is_none();
        (self.asked, self.changed) = (Some(Instant::now()), false);
        // A host without containers pays nothing; one that has none left is cleaned up once.
        if wanted.is_empty() && self.wanted.is_empty() && !is_first {
            return;
        }
        self.wanted = wanted;
        let mut trouble = String::new();
        for program in self.programs.clone() {
            match settle(program, &self.wanted) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.programs.retain(|it| *it != program),
                Err(error) => trouble = format!("{program}: {error}"),
                Ok(0) => {}
                Ok(made) => tracing::info!("{program}: made {made} rules in {CHAIN} for packets of containers"),
            }
        }
        self.tell(&trouble);
    }

    /// The same trouble again is no news.
    fn tell(&mut self, trouble: &str) {
        if self.told != trouble && !trouble.is_empty() {
            tracing::warn!("Docker's filter may drop packets of containers: {trouble}");
        }
        trouble.clone_into(&mut self.told);
    }
}

/// The rules, as `iptables -S` writes them.
fn rules(tun: &str, bridges: &[attach::Bridge]) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for bridge in bridges {
        let name = &bridge.name;
        // What may reach containers on a bridge of ours is fenced in tables of ours; on Docker's own it is for Docker to say.
        let matches = match bridge.is_ours {
            true => vec![format!("-i {name}"), format!("-o {name}")],
            false => vec![format!("-i {tun} -o {name}"), format!("-i {name} -o {tun}")],
        };
        rules.extend(matches.iter().map(|matches| format!("{matches} -m comment --comment {COMMENT} -j ACCEPT")));
    }
    rules
}

/// Makes the rules that are missing and removes ours that should not be there; returns how many were made.
fn settle(program: &str, wanted: &BTreeSet<String>) -> io::Result<usize> {
    let listed = run(program, &["-S", CHAIN])?;
    if !listed.status.success() {
        // No such chain: Docker is not there, or does not filter.
        return Ok(0);
    }
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let prefix = format!("-A {CHAIN} ");
    let present: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
    let ours: Vec<&str> = present.iter().copied().filter(|rule| is_ours(rule)).collect();
    for rule in ours.iter().filter(|rule| !wanted.contains(**rule)) {
        change(program, "-D", None, rule)?;
    }
    let last = present.last().is_some_and(|rule| *rule == "-j RETURN");
    let kept = present.iter().filter(|rule| !is_ours(rule) || wanted.contains(**rule)).count();
    let mut made = 0;
    for rule in wanted.iter().filter(|rule| !ours.contains(&rule.as_str())) {
        // The number of the last rule, or one more.
        let place = (kept + made + usize::from(!last)).to_string();
        change(program, "-I", Some(&place), rule)?;
        made += 1;
    }
    Ok(made)
}

fn is_ours(rule: &str) -> bool {
    rule.split_ascii_whitespace()
        .skip_while(|word| *word != "--comment")
        .nth(1)
        .is_some_and(|word| word.trim_matches('"') == COMMENT)
}

fn change(program: &str, how: &str, place: Option<&str>, rule: &str) -> io::Result<()> {
    let words: Vec<&str> = [how, CHAIN].into_iter().chain(place).chain(rule.split(' ')).collect();
    let output = run(program, &words)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", words.join(" "), said.lines().next().unwrap_or_default())))
}

fn run(program: &str, words: &[&str]) -> io::Result<Output> {
    // Whoever holds its lock lets go soon.
    Command::new(program).args(["-w", "2"]).args(words).output()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_new_netns;

    fn run_in(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).output().expect("iptables");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn rules_stand_before_the_last_one_and_are_made_once() {
        in_new_netns(|| {
            let bridge = |name: &str, is_ours| attach::Bridge { name: name.to_owned(), is_ours };
            let wanted = rules("underpass0", &[bridge("managed0", true), bridge("docker0", false)]);
            assert_eq!(settle("iptables", &wanted).unwrap(), 0, "no Docker");
            let users = "-A DOCKER-USER -s 192.0.2.0/24 -j DROP";
            for line in ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN", &users.replace("-A", "-I")] {
                run_in(&format!("iptables {line}"));
            }
            assert_eq!((settle("iptables", &wanted).unwrap(), settle("iptables", &wanted).unwrap()), (4, 0));
            let listed = || run_in("iptables -S DOCKER-USER");
            let mark = "-m comment --comment underpass -j ACCEPT";
            let expected = [
                "-N DOCKER-USER".to_owned(),
                users.to_owned(),
                format!("-A DOCKER-USER -i docker0 -o underpass0 {mark}"),
                format!("-A DOCKER-USER -i managed0 {mark}"),
                format!("-A DOCKER-USER -i underpass0 -o docker0 {mark}"),
                format!("-A DOCKER-USER -o managed0 {mark}"),
                "-A DOCKER-USER -j RETURN".to_owned(),
            ];
            assert_eq!(listed().lines().collect::<Vec<_>>(), expected);
            // A bridge that is gone takes its rules with it, and nobody else's.
            assert_eq!(settle("iptables", &rules("underpass0", &[bridge("docker0", false)])).unwrap(), 0);
            assert_eq!(listed().matches("underpass ").count(), 2, "{}", listed());
            assert!(listed().contains(users) && listed().ends_with("-j RETURN\n"));
            run_in("iptables -F DOCKER-USER");
            assert_eq!(settle("iptables", &wanted).unwrap(), 4);
            let error = settle("no-such-program", &wanted).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        });
    }
}
