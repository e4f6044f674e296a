//! Requests, responses and faults as values, and the two ways of a line of JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The socket's file name in the run directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Largest request line in octets, its end included: no request comes near, and a stranger cannot fill the memory.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Largest response that a client takes, in octets: a status of tens of thousands of peers.
pub(super) const MAX_RESPONSE: usize = 64 * 1024 * 1024;

/// The `schema` of a response line.
const SCHEMA: &str = "underpass.control/1";

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Everything: answered by [`Status`](crate::observe::Status).
    Status {},
    /// All peers, or the one of that name: answered by [`Peers`](crate::observe::Peers).
    Peers {
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Replace an SA with a peer now: answered by [`Rekeyed`] once it has begun.
    Rekey {
        /// Its name.
        peer: String,
        /// Which SA.
        what: RekeyWhat,
    },
    /// All hosts of the store, or those of that name or ID: answered by [`Hosts`](crate::observe::Hosts).
    Hosts {
        /// A name, label or ID.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Take a host out of the store for good: answered by [`HostRemoved`].
    #[serde(rename = "host-remove")]
    HostRemove {
        /// Its name, label or ID.
        name: String,
        /// Also if the store has heard of it lately.
        force: bool,
    },
    /// Claim a single address in the store that is in none of this host's blocks, for a lease that stands in the journal: answered by
    /// [`Claimed`].
    #[serde(rename = "address-claim")]
    AddressClaim {
        /// The network, as the journal of addresses calls it.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// Claim another block of a network in the store, as this host's are full: answered by [`Claimed`].
    #[serde(rename = "block-claim")]
    BlockClaim {
        /// The network, as the journal of addresses calls it.
        network: String,
    },
    /// The containers that the agent itself knows of, and those of other hosts in the store: answered by [`Containers`](crate::observe::Containers).
    Containers {},
    /// Which agent is this: answered by [`Version`].
    Version {},
}

/// Which SA is to be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RekeyWhat {
    /// Every CHILD_SA of the peer.
    Child,
    /// The IKE SA.
    Ike,
}

/// The answer to [`Request::Rekey`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rekeyed {
    /// `underpass.rekey/1`.
    pub schema: String,
    /// With whom.
    pub peer: String,
    /// What is being replaced.
    pub what: RekeyWhat,
}

impl Rekeyed {
    /// The rekey of that SA has begun.
    #[must_use]
    pub fn new(peer: &str, what: RekeyWhat) -> Self {
        Self { schema: "underpass.rekey/1".to_owned(), peer: peer.to_owned(), what }
    }
}

/// The answer to [`Request::HostRemove`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostRemoved {
    /// `underpass.host-removed/1`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its ID.
    pub id: String,
    /// Blocks that are free again.
    pub blocks: Vec<String>,
}

impl HostRemoved {
    /// That host is gone.
    #[must_use]
    pub fn new(name: &str, id: &str, blocks: Vec<String>) -> Self {
        Self { schema: "underpass.host-removed/1".to_owned(), name: name.to_owned(), id: id.to_owned(), blocks }
    }
}

/// The answer to [`Request::AddressClaim`] and [`Request::BlockClaim`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claimed {
    /// `underpass.claimed/1`.
    pub schema: String,
    /// Of which network.
    pub network: String,
    /// The address, or the blocks that this host has now.
    pub prefixes: Vec<String>,
}

impl Claimed {
    /// These are this host's.
    #[must_use]
    pub fn new(network: &str, prefixes: Vec<String>) -> Self {
        Self { schema: "underpass.claimed/1".to_owned(), network: network.to_owned(), prefixes }
    }
}

/// The answer to [`Request::Version`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// `underpass.version/1`.
    pub schema: String,
    /// The agent's version.
    pub version: String,
    /// Its process ID, in its own namespace.
    pub pid: u32,
}

impl Version {
    /// This process.
    #[must_use]
    pub fn own() -> Self {
        Self {
            schema: "underpass.version/1".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        }
    }
}

/// A request that got no answer, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// For programs.
    pub kind: FaultKind,
    /// For people: one sentence.
    pub message: String,
}

impl Fault {
    /// A fault of that kind with that sentence.
    #[must_use]
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of [`Fault`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The request line makes no sense.
    BadRequest,
    /// There is no such thing.
    NotFound,
    /// The asker is neither root nor the agent's user.
    NotPermitted,
    /// Too many connections at once: ask again.
    Busy,
    /// The agent did not get round to it in time.
    Timeout,
    /// It cannot be done now.
    Failed,
    /// What it takes is away: it may work later.
    Away,
}

/// Either part of a response line; never both.
#[derive(Serialize, Deserialize)]
struct Envelope {
    schema: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

/// The request in a line, without its end.
///
/// # Errors
/// A [`FaultKind::BadRequest`] that says what is wrong and where.
pub(super) fn parse_request(line: &[u8]) -> Result<Request, Fault> {
    let bad = |why: String| Fault::new(FaultKind::BadRequest, format!("bad request: {why}"));
    // serde would also take a tagged value written as an array.
    if line.trim_ascii_start().first().is_some_and(|&octet| octet != b'{') {
        return Err(bad("expected a JSON object".to_owned()));
    }
    serde_json::from_slice(line).map_err(|error| bad(error.to_string()))
}

/// The response as a line, with its end.
pub(super) fn emit_response(response: Result<Value, Fault>) -> Vec<u8> {
    let (result, error) = match response {
        Ok(value) => (Some(value), None),
        Err(fault) => (None, Some(fault)),
    };
    let envelope = Envelope { schema: SCHEMA.to_owned(), result, error };
    // Strings, numbers and maps with text keys: nothing in it can fail to become JSON.
    let mut line = serde_json::to_vec(&envelope).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a response line says.
///
/// # Errors
/// The outer one describes a line that is no response; the inner one is the agent's fault.
pub(super) fn parse_response(line: &[u8]) -> Result<Result<Value, Fault>, String> {
    let envelope: Envelope = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if envelope.schema != SCHEMA {
        return Err(format!("the answer's schema is {:?}, expected {SCHEMA:?}", envelope.schema));
    }
    match (envelope.result, envelope.error) {
        (Some(value), None) => Ok(Ok(value)),
        (None, Some(fault)) => Ok(Err(fault)),
        _ => Err("an answer holds either a result or an error".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_protocol_says() {
        for (text, request) in [
            (r#"{"command":"status"}"#, Request::Status {}),
            (r#"{"command":"peers"}"#, Request::Peers { name: None }),
            (r#"{"command":"peers","name":"beta"}"#, Request::Peers { name: Some("beta".into()) }),
            (
                r#"{"command":"rekey","peer":"beta","what":"child"}"#,
                Request::Rekey { peer: "beta".into(), what: RekeyWhat::Child },
            ),
            (r#"{"command":"containers"}"#, Request::Containers {}),
            (r#"{"command":"version"}"#, Request::Version {}),
            (
                r#"{"command":"address-claim","network":"managed","address":"10.42.9.5"}"#,
                Request::AddressClaim { network: "managed".into(), address: [10, 42, 9, 5].into() },
            ),
            (r#"{"command":"block-claim","network":"managed"}"#, Request::BlockClaim { network: "managed".into() }),
            (r#"{"command":"hosts"}"#, Request::Hosts { name: None }),
            (
                r#"{"command":"host-remove","name":"beta","force":true}"#,
                Request::HostRemove { name: "beta".into(), force: true },
            ),
        ] {
            assert_eq!(parse_request(text.as_bytes()).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn malformed_requests_are_faults_that_say_why() {
        for (text, part) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("null", "expected"),
            (r#"["version"]"#, "expected a JSON object"),
            ("{}", "command"),
            (r#"{"command":"halt"}"#, "unknown variant"),
            (r#"{"command":"status","verbose":true}"#, "verbose"),
            (r#"{"command":"status"} x"#, "trailing"),
            (r#"{"command":"rekey","peer":"beta"}"#, "what"),
            (r#"{"command":"rekey","peer":"beta","what":"both"}"#, "both"),
            (r#"{"command":"peers","name":7}"#, "invalid type"),
            ("{\"command\":\"peers\",\"name\":\"\u{0}\"}", "control character"),
        ] {
            let fault = parse_request(text.as_bytes()).unwrap_err();
            assert_eq!(fault.kind, FaultKind::BadRequest);
            assert!(fault.message.contains(part), "{text}: {}", fault.message);
        }
        assert!(parse_request(b"{\"command\":\"peers\",\"name\":\"\xff\"}").is_err(), "not UTF-8");
        assert!(parse_request("[".repeat(60_000).as_bytes()).is_err(), "nested too deep");
    }

    #[test]
    fn responses_come_back_as_they_left() {
        let value = serde_json::json!({"schema": "x/1", "n": 1});
        assert_eq!(parse_response(&emit_response(Ok(value.clone()))), Ok(Ok(value)));
        let fault = Fault::new(FaultKind::NotFound, "no such peer");
        assert_eq!(parse_response(&emit_response(Err(fault.clone()))), Ok(Err(fault)));
        for line in ["", "{}", r#"{"schema":"underpass.control/1"}"#, r#"{"schema":"underpass.control/2","result":1}"#] {
            assert!(parse_response(line.as_bytes()).is_err(), "{line}");
        }
    }
}
