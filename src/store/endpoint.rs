//! A container as other hosts know it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Octets of a record beyond which labels are left out: a store is no place for whole documents.
const MAX: usize = 16 * 1024;

/// A container's interface on a network.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The version of this record.
    pub v: u32,
    /// The network, as its host calls it.
    pub network: String,
    /// The container's id, as its runtime calls it.
    pub container: String,
    /// Its interface.
    pub interface: String,
    /// By whom it came: `docker` or `cni`.
    pub runtime: String,
    /// How it is, in the words of `underpass ps`.
    pub state: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its link-layer address, if it is known.
    pub mac: Option<String>,
    /// What it is called.
    pub names: Vec<String>,
    /// What it may be called besides.
    pub aliases: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its ports that are to be reached at its host, as its runtime was told: `8080->80/tcp`.
    pub ports: Vec<String>,
    /// Since when it has its addresses: seconds since 1970.
    pub since: u64,
}

impl Endpoint {
    /// As it is written down.
    pub(super) fn record(&self) -> Vec<u8> {
        let octets = |endpoint: &Self| serde_json::to_vec(endpoint).unwrap_or_default();
        let whole = octets(self);
        if whole.len() <= MAX { whole } else { octets(&Self { labels: BTreeMap::new(), ..self.clone() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_beyond_all_measure_are_left_out() {
        let with = |label: String| Endpoint { labels: [("a".into(), label)].into(), ..Endpoint::default() };
        let read = |endpoint: &Endpoint| serde_json::from_slice::<Endpoint>(&endpoint.record()).unwrap();
        let small = with("x".repeat(100));
        assert_eq!(read(&small), small);
        assert_eq!(read(&with("x".repeat(MAX))), Endpoint::default());
        assert_eq!(serde_json::from_str::<Endpoint>(r#"{"v":1,"later":7}"#).unwrap().v, 1, "what is new is no obstacle");
    }
}
