//! A network whose driver says something else than before: what can be changed while containers use it, and what cannot.
//!
//! A container keeps the address, the interface and the gateway that it was given. So what decides these stays until nobody has
//! any; the rest is for those who come next.

use serde_json::{Map, Value};

use super::{CniFile, Spec};

/// Keys of a plugin that decide nothing about containers that are connected.
const FREE_KEYS: [&str; 5] = ["mtu", "linkMTUOverhead", "dns", "logToFile", "isDebugLevel"];

/// The difference between two states of a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The network with what can be changed.
    pub spec: Spec,
    /// The keys that can be changed.
    pub in_place: Vec<String>,
    /// The keys that cannot while containers use it.
    pub refused: Vec<String>,
}

impl Change {
    /// From one to the other.
    #[must_use]
    pub fn between(old: &Spec, new: &Spec) -> Self {
        let mut change = Self { spec: old.clone(), in_place: Vec::new(), refused: Vec::new() };
        let Self { spec, in_place, refused } = &mut change;
        take(&mut spec.driver, &new.driver, "name", in_place);
        take(&mut spec.description, &new.description, "default_network.description", in_place);
        take(&mut spec.host_ports, &new.host_ports, "default_network.host_ports", in_place);
        take(&mut spec.dns, &new.dns, "default_network.dns", in_place);
        take(&mut spec.dns_search, &new.dns_search, "default_network.dns_search", in_place);
        take(&mut spec.metadata, &new.metadata, "metadata", in_place);
        if old.subnets != new.subnets {
            refused.push("default_network.subnets".to_owned());
        }
        let names = |files: &[CniFile]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
        if names(&old.cni_config) != names(&new.cni_config) {
            refused.push("cni_config".to_owned());
            return change;
        }
        for (file, new) in spec.cni_config.iter_mut().zip(&new.cni_config) {
            let path = format!("cni_config.{}", file.name);
            if let (Value::Object(old), Value::Object(new)) = (&mut file.netconf, &new.netconf) {
                members(old, new, &path, in_place, refused);
            }
        }
        change
    }
}

fn take<T: Clone + PartialEq>(old: &mut T, new: &T, key: &str, in_place: &mut Vec<String>) {
    if old != new {
        old.clone_from(new);
        in_place.push(key.to_owned());
    }
}

/// Takes over the free keys of a section, and names the others that differ.
fn members(
    old: &mut Map<String, Value>,
    new: &Map<String, Value>,
    path: &str,
    in_place: &mut Vec<String>,
    refused: &mut Vec<String>,
) {
    let mut keys: Vec<String> = old.keys().cloned().collect();
    keys.extend(new.keys().filter(|key| !old.contains_key(*key)).cloned());
    for key in keys {
        if old.get(&key) == new.get(&key) {
            continue;
        }
        let full = format!("{path}.{key}");
        if let ("ipam", Some(Value::Object(old)), Some(Value::Object(new))) =
            (key.as_str(), old.get_mut(&key), new.get(&key))
        {
            members(old, new, &full, in_place, refused);
        } else if FREE_KEYS.contains(&key.as_str()) {
            match new.get(&key) {
                Some(value) => old.insert(key, value.clone()),
                None => old.shift_remove(&key),
            };
            in_place.push(full);
        } else {
            refused.push(full);
        }
    }
}

#[cfg(test)]
mod tests;
