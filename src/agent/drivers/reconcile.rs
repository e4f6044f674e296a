//! The networks held against the drivers of the configuration: made, changed, or taken away, but never below their containers.

use std::path::Path;

use super::clash::clash;
use super::list::{List, Network, Origin, State};
use super::settle::uninstall;
use super::usage::Container;
use super::{bridges, containers, named};
use crate::ipam::Seconds;
use crate::network::{Change, Driver, Labels, Spec};

/// The networks while the agent holds them against its drivers.
pub(super) struct Reconciler<'l> {
    pub list: &'l mut List,
    pub state_dir: &'l Path,
    pub labels: &'l Labels,
    pub now: Seconds,
    pub warnings: &'l mut Vec<String>,
}

impl Reconciler<'_> {
    /// A driver that is configured: its network is made, or changed.
    pub(super) fn driver(&mut self, driver: &Driver) {
        let Some(spec) = Spec::of(driver, self.labels) else {
            self.warnings.push(format!("driver {}: no default_network: it brings no network", driver.name));
            return;
        };
        let containers = self.list.find(&spec.name).map(|network| self.containers(network)).unwrap_or_default();
        if self.list.find(&spec.name).is_none() {
            if let Some(clash) = clash(self.list, &spec) {
                self.warnings.push(format!("driver {}: {clash}", driver.name));
                return;
            }
            tracing::info!("driver {} brings network {}", driver.name, spec.name);
            self.list.networks.push(Network::new(spec, Origin::Driver, self.now));
            return;
        }
        let others: List = {
            let mut others = self.list.clone();
            others.networks.retain(|network| network.spec.name != spec.name);
            others
        };
        let Some(network) = self.list.find_mut(&spec.name) else { return };
        network.origin = Origin::Driver;
        if !network.state.is_wanted() {
            return;
        }
        let change = Change::between(&network.spec, &spec);
        if containers.is_empty() && !change.refused.is_empty() {
            // Else its own bridge of before is taken for another network's.
            self.warnings.extend(bridges::take_down(&others, &network.spec));
        }
        // While somebody is on it, the network's own bridge of before would be in its way.
        let clash = if containers.is_empty() { clash(&others, &spec) } else { None };
        if change.refused.is_empty() || (containers.is_empty() && clash.is_none()) {
            if network.spec != spec {
                tracing::info!("network {}: changed: {}", spec.name, [change.in_place, change.refused].concat().join(", "));
            }
            network.spec = spec;
            return;
        }
        let why = clash.unwrap_or_else(|| {
            let who = named(&containers);
            format!("while containers use it: stop {who}, and reload; or bring it under another name")
        });
        let why = if containers.is_empty() { format!(": {why}") } else { format!(" {why}") };
        if !change.in_place.is_empty() {
            tracing::info!("network {}: changed: {}", spec.name, change.in_place.join(", "));
        }
        let keys = change.refused.join(", ");
        self.warnings.push(format!("network {}: {keys} cannot be changed{why}", spec.name));
        network.spec = change.spec;
    }

    /// Networks whose driver is not configured: they go when nobody is on them.
    pub(super) fn without_driver(&mut self, drivers: &[Driver]) {
        let brought = |name: &str| {
            drivers.iter().any(|driver| driver.default_network.as_ref().is_some_and(|network| network.name == name))
        };
        let orphans: Vec<String> = self
            .list
            .networks
            .iter()
            .filter(|network| network.origin == Origin::Driver && !brought(&network.spec.name))
            .map(|network| network.spec.name.clone())
            .collect();
        for name in orphans {
            let Some(network) = self.list.find(&name) else { continue };
            let containers = self.containers(network);
            match network.state {
                State::Removed => self.list.networks.retain(|network| network.spec.name != name),
                // It goes when its containers do.
                State::Disconnected => {
                    if let Some(network) = self.list.find_mut(&name) {
                        network.origin = Origin::Command;
                    }
                }
                State::Active | State::Failed if containers.is_empty() => {
                    tracing::info!("network {name}: removed, as its driver is");
                    let spec = network.spec.clone();
                    self.warnings.extend(uninstall(self.list, &name, self.state_dir));
                    self.list.networks.retain(|network| network.spec.name != name);
                    self.warnings.extend(bridges::take_down(self.list, &spec));
                }
                State::Active | State::Failed => {
                    let who = named(&containers);
                    let message = format!(
                        "network {name}: its driver is not configured any more, but it is in use by {who}: it stays until they \
                         are stopped and the configuration is read again; `underpass net rm {name} --force` disconnects them"
                    );
                    self.warnings.push(message);
                }
            }
        }
    }

    fn containers(&self, network: &Network) -> Vec<Container> {
        containers(self.list, network, self.state_dir)
    }
}
