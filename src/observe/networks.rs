//! Networks and their containers in the status model, and on the screen.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Status;
use super::render::{duration_in_words, plain, table};

/// A network of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether containers get it that name none: it is called `managed` as well.
    pub managed: bool,
    /// What people call its driver; empty for one that was made by hand.
    pub driver: String,
    /// `active`, `failed`, `removed` or `disconnected`.
    pub state: String,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// What is in the way, if it failed.
    pub problem: Option<String>,
}

/// A container whose network was removed by force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disconnected {
    /// The network.
    pub network: String,
    /// The container's id, as its runtime calls it.
    pub container: String,
    /// The interface in it.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Since the network was removed.
    pub seconds_ago: u64,
}

/// Both lists for people: nothing at all where there are no networks.
pub(super) fn render(out: &mut String, status: &Status) {
    if !status.networks.is_empty() {
        let _ = writeln!(out);
        let mut rows = vec![["NETWORK", "STATE", "SUBNETS", "DRIVER"].map(str::to_owned)];
        rows.extend(status.networks.iter().map(|network| {
            let managed = if network.managed { " (managed)" } else { "" };
            let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
            let subnets: Vec<String> = network.subnets.iter().map(|subnet| plain(subnet)).collect();
            let name = format!("{}{managed}", plain(&network.name));
            [name, plain(&network.state), or_dash(subnets.join(", ")), or_dash(plain(&network.driver))]
        }));
        table(out, &rows, "");
        let failed = status.networks.iter().filter_map(|network| Some((network, network.problem.as_deref()?)));
        for (network, problem) in failed {
            let _ = writeln!(out, "  {}: {}", plain(&network.name), plain(problem));
        }
    }
    if !status.disconnected.is_empty() {
        let _ = writeln!(out, "\ndisconnected containers");
        let row = |lost: &Disconnected| {
            let addresses: Vec<String> = lost.addresses.iter().map(|address| plain(address)).collect();
            let ago = duration_in_words(lost.seconds_ago);
            [
                format!("{} ({})", plain(&lost.container), plain(&lost.interface)),
                addresses.join(", "),
                format!("network {} was removed by force {ago} ago", plain(&lost.network)),
            ]
        };
        table(out, &status.disconnected.iter().map(row).collect::<Vec<_>>(), "  ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_who_lost_one_are_on_the_screen() {
        let mut status = Status::new("alpha");
        let mut out = String::new();
        render(&mut out, &status);
        assert_eq!(out, "", "without drivers nothing is said of networks");
        let network = |name: &str, managed, state: &str, driver: &str| Network {
            name: name.into(),
            managed,
            driver: driver.into(),
            state: state.into(),
            subnets: if managed { vec!["10.42.0.0/16".into()] } else { Vec::new() },
            problem: (state == "failed").then(|| "/etc/cni/blue.d: not ours".into()),
        };
        status.networks = vec![
            network("ipsec", true, "active", "Rancher IPsec"),
            network("blue", false, "failed", ""),
            network("red", false, "disconnected", "x"),
        ];
        status.disconnected.push(Disconnected {
            network: "red".into(),
            container: "c1\u{1b}".into(),
            interface: "eth0".into(),
            addresses: vec!["10.43.1.2".into()],
            seconds_ago: 61,
        });
        render(&mut out, &status);
        assert_eq!(
            out,
            "
NETWORK          STATE         SUBNETS       DRIVER
ipsec (managed)  active        10.42.0.0/16  Rancher IPsec
blue             failed        -             -
red              disconnected  -             x
  blue: /etc/cni/blue.d: not ours

disconnected containers
  c1\\u{1b} (eth0)  10.43.1.2  network red was removed by force 1 min 1 s ago
"
        );
        assert!(status.is_degraded(), "somebody has no network");
        status.disconnected.clear();
        assert!(status.is_degraded(), "a network is not what it should be");
        status.networks.remove(1);
        assert!(!status.is_degraded());
    }
}
