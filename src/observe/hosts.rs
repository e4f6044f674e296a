//! The hosts of a store: what `host ls --json` prints (schema `underpass.hosts/1`).

use serde::{Deserialize, Serialize};

use super::render::{plain, table};

/// The `schema` of [`Hosts`].
const HOSTS_SCHEMA: &str = "underpass.hosts/1";

/// The answer to `hosts`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hosts {
    /// `underpass.hosts/1`.
    pub schema: String,
    /// The hosts asked for; who joined first stands first.
    pub hosts: Vec<Host>,
}

impl Hosts {
    /// Wraps them.
    #[must_use]
    pub fn new(hosts: Vec<Host>) -> Self {
        Self { schema: HOSTS_SCHEMA.to_owned(), hosts }
    }
}

/// One host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// What it is called here, which is its name unless somebody before it has that one. `peers` calls it so, too.
    pub label: String,
    /// Its name.
    pub name: String,
    /// What tells it from all others: made of its key in etcd, its name in a file.
    pub id: String,
    /// `this host`, or the state of the tunnel to it: `up`, `one-way`, `idle`, `connecting`, `retrying`, `down`; `unused` if there is
    /// no peer of it here.
    pub state: String,
    /// Whether the store has heard of it lately.
    pub seen: bool,
    /// Where it says it is.
    pub addresses: Vec<String>,
    /// What it owns.
    pub blocks: Vec<String>,
    /// Its public keys, base64; none with a group key.
    pub keys: Vec<String>,
}

/// A table of hosts.
#[must_use]
pub fn render_hosts(hosts: &[Host]) -> String {
    if hosts.is_empty() {
        return "no hosts are known\n".to_owned();
    }
    let mut rows = vec![["HOST", "STATE", "STORE", "ADDRESSES", "BLOCKS", "ID"].map(str::to_owned)];
    rows.extend(hosts.iter().map(|host| {
        [
            plain(&host.label),
            plain(&host.state),
            seen(host).to_owned(),
            joined(&host.addresses),
            joined(&host.blocks),
            plain(host.id.get(..16).unwrap_or(&host.id)),
        ]
    }));
    let mut out = String::new();
    table(&mut out, &rows, "");
    out
}

/// Everything about one host.
#[must_use]
pub fn render_host(host: &Host) -> String {
    let mut rows = vec![
        ["name".to_owned(), plain(&host.name)],
        ["ID".to_owned(), plain(&host.id)],
        ["store".to_owned(), seen(host).to_owned()],
        ["addresses".to_owned(), joined(&host.addresses)],
        ["blocks".to_owned(), joined(&host.blocks)],
    ];
    if host.keys.is_empty() {
        rows.push(["public key".to_owned(), "none: the group key".to_owned()]);
    }
    rows.extend(host.keys.iter().map(|key| ["public key".to_owned(), plain(key)]));
    let mut out = format!("{}: {}\n", plain(&host.label), plain(&host.state));
    table(&mut out, &rows, "  ");
    out
}

const fn seen(host: &Host) -> &'static str {
    if host.seen { "seen" } else { "not seen" }
}

fn joined(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { items.iter().map(|item| plain(item)).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_the_schema_says() {
        let host = Host {
            label: "alpha-0202".into(),
            name: "alpha".into(),
            id: "02020202020202020202".into(),
            state: "up".into(),
            seen: true,
            addresses: vec!["192.0.2.1".into()],
            blocks: Vec::new(),
            keys: vec!["AA==".into()],
        };
        let expected = serde_json::json!({"schema": "underpass.hosts/1", "hosts": [{
            "label": "alpha-0202", "name": "alpha", "id": "02020202020202020202", "state": "up", "seen": true,
            "addresses": ["192.0.2.1"], "blocks": [], "keys": ["AA=="]
        }]});
        assert_eq!(serde_json::to_value(Hosts::new(vec![host.clone()])).unwrap(), expected);
        assert_eq!(
            render_hosts(&[host]),
            "HOST        STATE  STORE  ADDRESSES  BLOCKS  ID\nalpha-0202  up     seen   192.0.2.1  -       0202020202020202\n"
        );
    }
}
