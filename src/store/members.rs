//! What a store knows, in the words of the agent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{PeerRemote, doubtful};
use crate::crypto::VerifyingKey;
use crate::model::Secret;

/// The hosts of an overlay.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Each of them; who came first stands first.
    pub hosts: Vec<Member>,
    /// One key for all, instead of one for each.
    pub group_key: Option<Secret>,
    /// What is odd about them, one sentence each.
    pub warnings: Vec<String>,
}

/// One host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// What it calls itself in IKE, and what it is called by programs: its name in a file, made of its first key in etcd.
    pub id: String,
    /// Its name. Several may have one.
    pub name: String,
    /// Its public keys: more than one while it changes its key. Empty with a group key.
    pub keys: Vec<VerifyingKey>,
    /// Where it can be reached, most wanted first. Empty: it calls.
    pub addresses: Vec<PeerRemote>,
    /// What it owns; later also single addresses out of others' blocks.
    pub blocks: Vec<IpNet>,
    /// Whether the store has heard of it lately. A host that it has not heard of keeps its tunnels; it is only not called any more.
    pub seen: bool,
}

/// Who we are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    /// `host.name`.
    pub name: String,
    /// Our public keys: the host's key, and the one before it while it is changed.
    pub keys: Vec<VerifyingKey>,
}

impl Members {
    /// Which of them we are: the one with our key, or with a group key the one with our name.
    #[must_use]
    pub fn own(&self, own: &Own) -> Option<&Member> {
        let is_own = |member: &&Member| match self.group_key {
            Some(_) => member.name == own.name,
            None => member.keys.iter().any(|key| own.keys.contains(key)),
        };
        self.hosts.iter().find(is_own)
    }

    /// How each host is called here: by its name, or if somebody before it has that name already, by name and ID.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        let mut taken = BTreeMap::<&str, usize>::new();
        let mut labels = Vec::new();
        for Member { name, id, .. } in &self.hosts {
            let count = taken.entry(name).or_default();
            *count += 1;
            labels.push(if *count == 1 { name.clone() } else { format!("{name}-{}", id.get(..8).unwrap_or(id)) });
        }
        labels
    }

    /// What is odd about names and addresses: none of it is an error, as hosts are told apart by their keys.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let mut names = BTreeMap::<&str, usize>::new();
        let mut places = BTreeMap::<String, Vec<&str>>::new();
        for member in &self.hosts {
            *names.entry(&member.name).or_default() += 1;
            for place in &member.addresses {
                places.entry(place.to_string()).or_default().push(&member.name);
                if let Some(doubt) = doubtful(place.address()) {
                    doubts.push(format!("{}: {} {doubt}", member.name, place.address()));
                }
            }
        }
        doubts.extend(names.into_iter().filter(|(_, count)| *count > 1).map(|(name, count)| {
            format!("{count} hosts are called {name}: if one of them is gone for good, `underpass host rm` ends it")
        }));
        doubts.extend(places.into_iter().filter(|(_, names)| names.len() > 1).map(|(place, names)| {
            format!("{} have one address, {place}: who calls it reaches only one of them", names.join(" and "))
        }));
        doubts
    }
}

impl Member {
    /// Whether an address of the underlay is one of its own.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|place| place.address() == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SigningKey;

    fn member(name: &str, seed: u8, address: &str) -> Member {
        let key = SigningKey::from_seed(&[seed; 32]).verifying_key();
        Member {
            id: format!("{seed:02x}{seed:02x}{seed:02x}{seed:02x}ffff"),
            name: name.to_owned(),
            keys: vec![key],
            addresses: vec![PeerRemote::Standard(address.parse().unwrap())],
            blocks: Vec::new(),
            seen: true,
        }
    }

    #[test]
    fn a_host_is_its_key_and_neither_its_name_nor_its_address() {
        let hosts = vec![member("alpha", 1, "192.0.2.1"), member("alpha", 2, "192.0.2.1"), member("beta", 3, "172.17.0.2")];
        let members = Members { hosts, ..Members::default() };
        let own = |seed: u8| Own { name: "alpha".into(), keys: vec![SigningKey::from_seed(&[seed; 32]).verifying_key()] };
        assert_eq!(members.own(&own(2)), Some(&members.hosts[1]));
        assert_eq!(members.own(&own(9)), None, "a name proves nothing");
        assert_eq!(members.labels(), ["alpha", "alpha-02020202", "beta"]);
        let doubts = members.doubts();
        assert_eq!(doubts.len(), 3, "{doubts:?}");
        assert!(doubts[0].contains("Docker"), "{doubts:?}");
        assert!(doubts[1].starts_with("2 hosts are called alpha"), "{doubts:?}");
        assert!(doubts[2].starts_with("alpha and alpha have one address, 192.0.2.1"), "{doubts:?}");
    }
}
