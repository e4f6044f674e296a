//! Filters of others between the tunnel and containers: the status names what drops packets, with the command that lets them pass, as long
//! as they are dropped and no longer.

use std::time::Duration;

use crate::attach::pings;
use crate::lab::agent::{Agent, paired};
use crate::lab::site::Site;
use crate::lab::{Host, Lab, wait_for};

/// When what is in the way is known, on a busy machine.
const NEWS: Duration = Duration::from_secs(60);

/// One way to be in the way: its words, what the status says, and how it ends.
struct Case {
    bar: &'static str,
    said: &'static str,
    end: &'static str,
}

const CASES: [Case; 6] = [
    Case {
        bar: "iptables -P FORWARD DROP",
        said: "by the chain FORWARD of the nftables table ip filter (its policy): ",
        end: "iptables -P FORWARD ACCEPT; iptables -F FORWARD; nft delete table ip filter",
    },
    Case {
        bar: "nft 'add table inet fw; add chain inet fw through { type filter hook forward priority 0; policy drop; }'",
        said: "by the chain through of the nftables table inet fw (its policy): ",
        end: "nft delete table inet fw",
    },
    // Two at once: the one behind that drops is found.
    Case {
        bar: "nft 'add table ip fw; add chain ip fw early { type filter hook forward priority -5; policy accept; }; \
              add chain ip fw late { type filter hook forward priority 5; policy accept; }; \
              add rule ip fw late ct state established accept; add rule ip fw late reject'",
        said: "by the chain late of the nftables table ip fw: ",
        end: "nft delete table ip fw",
    },
    Case {
        bar: "iptables -t mangle -A FORWARD -i underpass0 -j DROP",
        said: "by the chain FORWARD of the nftables table ip mangle: ",
        end: "nft delete table ip mangle",
    },
    Case {
        bar: "iptables-legacy -P FORWARD DROP",
        said: "by the chain FORWARD of legacy iptables: ",
        end: "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD",
    },
    Case {
        bar: "sysctl -qw net.ipv4.ip_forward=0",
        said: "this host does not forward what the tunnel brings for containers on managed0: ",
        end: "true",
    },
];

/// What the status says is in the way.
fn said(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let warnings = status["warnings"].as_array().expect("a list").iter();
    let texts = warnings.map(|it| it.as_str().expect("a text").to_owned());
    texts.filter(|text| text.contains("what the tunnel brings")).collect()
}

/// A change of addresses, after which everything is looked at anew.
fn stir(host: &Host) {
    for change in ["add", "del"] {
        host.run(&["ip", "address", change, "192.0.2.99/32", "dev", "lo"]);
    }
}

#[test]
fn what_drops_forwarded_packets_is_named_with_what_helps() {
    let lab = Lab::direct();
    let (alpha, beta) = paired(&lab, |config| config);
    let mut sites = [(&lab.alpha, &alpha), (&lab.beta, &beta)].map(|(host, agent)| Site::of_agent(host, agent));
    sites.iter_mut().for_each(|site| drop(site.add("c")));
    let shell = |line: &str| lab.alpha.run(&["sh", "-c", line]);
    let passes = || pings(sites[1].inside("c"), sites[0].address("c"), &[]);
    wait_for("a ping between containers", NEWS, || passes().then_some(()));
    for Case { bar, said: expected, end } in CASES {
        shell(bar);
        assert!(!passes(), "{bar}: nothing is in the way");
        stir(&lab.alpha);
        let found = || said(&alpha).into_iter().find(|text| text.contains(expected));
        let (found, took) = wait_for(&format!("{expected} ({bar})"), NEWS, found);
        eprintln!("{bar}: {took:?}: {found}");
        assert_eq!(said(&alpha).len(), 1, "{:?}", said(&alpha));
        // What it says helps.
        let command = found.split('`').nth(1).unwrap_or_else(|| panic!("no command in {found}"));
        shell(command);
        assert!(passes(), "{command}: still in the way");
        wait_for("no warning", NEWS, || said(&alpha).is_empty().then_some(()));
        shell(end);
    }
    assert_eq!(said(&beta), [""; 0], "there is nothing");
    let tables = lab.alpha.run(&["nft", "list", "tables"]);
    assert!(!tables.contains("probe"), "{tables}");
    let log = alpha.log();
    assert_eq!(log.matches("WARN what the tunnel brings").count(), CASES.len() - 1, "each once: {log}");
}
