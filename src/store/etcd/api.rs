//! etcd's API v3 by its JSON gateway: keys and values are base64, 64-bit numbers are texts, and what is zero is missing.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::http::{Connection, is_timeout};
use super::tls::Credentials;
use crate::config::EtcdEndpoint;
use crate::model::Secret;

/// How long one request may take: etcd answers within milliseconds unless it elects a leader.
const PATIENCE: Duration = Duration::from_secs(5);

/// Characters of a refusal that are shown.
const MAX_REASON: usize = 200;

/// Records that are asked for at a time.
const PAGE: usize = 1000;

/// Why etcd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It cannot be reached, or went away.
    #[error("{}: {}", .0, in_words(.1))]
    Io(String, io::Error),
    /// It answered, and refuses.
    #[error("etcd refuses {path}: {message}")]
    Refused {
        /// What was asked.
        path: &'static str,
        /// What it said.
        message: String,
    },
    /// It would, and this host does not let it.
    #[error("{0}")]
    Kept(String),
    /// It answered something that makes no sense.
    #[error("etcd's answer to {0} makes no sense: {1}")]
    Nonsense(&'static str, String),
}

/// The system's own word for an answer that does not come is "temporarily unavailable".
fn in_words(error: &io::Error) -> String {
    if is_timeout(error) { "it does not answer".to_owned() } else { error.to_string() }
}

/// A record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kv {
    pub key: String,
    pub value: Vec<u8>,
    pub created: i64,
    pub modified: i64,
}

/// Everything under a prefix at one revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub kvs: Vec<Kv>,
    pub head: Head,
}

/// Which store answered, and how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(in crate::store) struct Head {
    pub cluster: String,
    pub revision: i64,
}

/// What must hold for a transaction to take place.
#[derive(Clone, Debug)]
pub(super) enum Guard<'k> {
    /// There is no such key.
    Absent(&'k str),
    /// No key under the prefix was written after this revision.
    Unchanged(&'k str, i64),
    /// This very key was written last at this revision.
    Still(&'k str, i64),
}

/// What a transaction does.
#[derive(Clone, Debug)]
pub(super) enum Write<'k> {
    Put(&'k str, Vec<u8>),
    /// With a lease, by which it goes.
    PutLeased(&'k str, Vec<u8>, i64),
    Delete(&'k str),
    /// Everything under a prefix.
    DeleteAll(&'k str),
}

/// A client of one cluster.
#[derive(Debug)]
pub(super) struct Api {
    endpoints: Vec<EtcdEndpoint>,
    /// Which of them answered last.
    current: usize,
    tls: Option<Arc<ClientConfig>>,
    login: Option<(String, Secret)>,
    token: Option<String>,
    connection: Option<Connection>,
}

impl Api {
    /// Connects to nobody yet.
    pub(super) fn new(endpoints: Vec<EtcdEndpoint>, tls: Option<Arc<ClientConfig>>, credentials: &Credentials) -> Self {
        Self { endpoints, current: 0, tls, login: credentials.login.clone(), token: None, connection: None }
    }

    /// The server that is spoken to.
    fn endpoint(&self) -> String {
        self.endpoints[self.current].to_string()
    }

    /// Our own address towards the server, if a connection is open.
    pub(super) fn local_address(&self) -> Option<IpAddr> {
        self.connection.as_ref()?.local().ok().map(|local| local.ip().to_canonical())
    }

    fn connect(&mut self) -> Result<Connection, ApiError> {
        let mut last = None;
        for _ in 0..self.endpoints.len() {
            match Connection::open(&self.endpoints[self.current], self.tls.as_ref()) {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(ApiError::Io(self.endpoint(), error)),
            }
            self.current = (self.current + 1) % self.endpoints.len();
        }
        Err(last.unwrap_or_else(|| ApiError::Io("etcd".to_owned(), io::Error::other("no server is configured"))))
    }

    /// Asks for one answer, by a connection that is kept.
    fn call(&mut self, path: &'static str, request: &Value) -> Result<Value, ApiError> {
        let body = serde_json::to_vec(request).unwrap_or_default();
        self.log_in()?;
        match self.call_once(path, &body) {
            Err(ApiError::Refused { message, .. }) if self.login.is_some() && message.contains("invalid auth token") => {
                // Tokens live for some minutes, or until the server restarts.
                self.token = None;
                self.log_in()?;
                self.call_once(path, &body)
            }
            other => other,
        }
    }

    fn call_once(&mut self, path: &'static str, body: &[u8]) -> Result<Value, ApiError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let deadline = Instant::now() + PATIENCE;
        let token = self.token.as_deref();
        let exchanged =
            connection.post(path, token, body, deadline).and_then(|status| Ok((status, connection.rest(deadline)?)));
        let (status, answer) = exchanged.map_err(|error| {
            let failed = ApiError::Io(self.endpoint(), error);
            // The next request goes to the next server.
            self.current = (self.current + 1) % self.endpoints.len();
            failed
        })?;
        self.connection = Some(connection);
        match serde_json::from_slice(&answer) {
            Ok(value) if status == 200 => Ok(value),
            Ok(value) => Err(refused(path, &value)),
            // What stands before the gateway answers in words.
            Err(_) if status != 200 => {
                let text: String = String::from_utf8_lossy(&answer).chars().take(MAX_REASON).collect();
                Err(ApiError::Refused { path, message: format!("{} (status {status})", text.trim()) })
            }
            Err(error) => Err(ApiError::Nonsense(path, error.to_string())),
        }
    }

    /// Gets a token, if there is a user and no token yet.
    fn log_in(&mut self) -> Result<(), ApiError> {
        const PATH: &str = "/v3/auth/authenticate";
        let Some((user, password)) = self.login.clone().filter(|_| self.token.is_none()) else { return Ok(()) };
        let password = std::str::from_utf8(password.expose())
            .map_err(|_| ApiError::Refused { path: PATH, message: "the password is no text".to_owned() })?;
        let body = Secret::new(serde_json::to_vec(&json!({"name": user, "password": password})).unwrap_or_default());
        let answer = self.call_once(PATH, body.expose())?;
        let token = answer["token"].as_str().ok_or_else(|| ApiError::Nonsense(PATH, "no token in it".to_owned()))?;
        // It goes into a header.
        if !token.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(ApiError::Nonsense(PATH, "a token with odd characters".to_owned()));
        }
        self.token = Some(token.to_owned());
        Ok(())
    }

    /// Which store this is, and how far it is.
    pub(super) fn head(&mut self, prefix: &str) -> Result<Head, ApiError> {
        const PATH: &str = "/v3/kv/range";
        let (key, end) = range(prefix);
        Ok(head(&self.call(PATH, &json!({"key": key, "range_end": end, "count_only": true}))?))
    }

    /// Everything under a prefix, at one revision.
    pub(super) fn list(&mut self, prefix: &str) -> Result<Listing, ApiError> {
        const PATH: &str = "/v3/kv/range";
        let (mut key, end) = range(prefix);
        let mut listing = Listing { kvs: Vec::new(), head: Head::default() };
        loop {
            let mut request = json!({"key": key, "range_end": end, "limit": PAGE.to_string()});
            if listing.head.revision > 0 {
                request["revision"] = listing.head.revision.to_string().into();
            }
            let answer = self.call(PATH, &request)?;
            if listing.head.revision == 0 {
                listing.head = head(&answer);
            }
            let kvs = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
            for kv in kvs {
                listing.kvs.push(read_kv(kv).ok_or_else(|| ApiError::Nonsense(PATH, "a record without a key".to_owned()))?);
            }
            match listing.kvs.last() {
                Some(last) if answer["more"] == true && !kvs.is_empty() => key = BASE64.encode(format!("{}\0", last.key)),
                _ => return Ok(listing),
            }
        }
    }

    /// Does all of it if every guard holds; whether it was done.
    pub(super) fn transact(&mut self, guards: &[Guard<'_>], writes: &[Write<'_>]) -> Result<bool, ApiError> {
        Ok(self.transact_at(guards, writes)?.is_some())
    }

    /// The same; at which revision it was done.
    pub(super) fn transact_at(&mut self, guards: &[Guard<'_>], writes: &[Write<'_>]) -> Result<Option<i64>, ApiError> {
        let compare = |guard: &Guard<'_>| match guard {
            Guard::Absent(key) => {
                json!({"target": "CREATE", "result": "EQUAL", "key": BASE64.encode(key), "create_revision": "0"})
            }
            Guard::Unchanged(prefix, revision) => {
                let (key, end) = range(prefix);
                let bound = (revision + 1).to_string();
                json!({"target": "MOD", "result": "LESS", "key": key, "range_end": end, "mod_revision": bound})
            }
            Guard::Still(key, revision) => {
                json!({"target": "MOD", "result": "EQUAL", "key": BASE64.encode(key), "mod_revision": revision.to_string()})
            }
        };
        let write = |write: &Write<'_>| match write {
            Write::Put(key, value) => {
                json!({"request_put": {"key": BASE64.encode(key), "value": BASE64.encode(value)}})
            }
            Write::PutLeased(key, value, lease) => {
                json!({"request_put": {"key": BASE64.encode(key), "value": BASE64.encode(value), "lease": lease.to_string()}})
            }
            Write::Delete(key) => json!({"request_delete_range": {"key": BASE64.encode(key)}}),
            Write::DeleteAll(prefix) => {
                let (key, end) = range(prefix);
                json!({"request_delete_range": {"key": key, "range_end": end}})
            }
        };
        let compares: Vec<Value> = guards.iter().map(compare).collect();
        let writes: Vec<Value> = writes.iter().map(write).collect();
        let answer = self.call("/v3/kv/txn", &json!({"compare": compares, "success": writes}))?;
        Ok((answer["succeeded"] == true).then(|| head(&answer).revision))
    }

    /// Lets the store forget what was before a revision.
    #[cfg(test)]
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), ApiError> {
        self.call("/v3/kv/compaction", &json!({"revision": revision.to_string()})).map(drop)
    }

    /// From now on everybody needs a password; this user may do everything below a prefix.
    #[cfg(test)]
    pub(super) fn enable_authentication(&mut self, user: &str, password: &str, prefix: &str) -> Result<(), ApiError> {
        let (key, end) = range(prefix);
        let permission = json!({"permType": "READWRITE", "key": key, "range_end": end});
        self.call("/v3/auth/role/add", &json!({"name": user}))?;
        self.call("/v3/auth/role/grant", &json!({"name": user, "perm": permission}))?;
        for name in ["root", user] {
            self.call("/v3/auth/user/add", &json!({"name": name, "password": password}))?;
        }
        self.call("/v3/auth/user/grant", &json!({"user": user, "role": user}))?;
        self.call("/v3/auth/role/add", &json!({"name": "root"}))?;
        self.call("/v3/auth/user/grant", &json!({"user": "root", "role": "root"}))?;
        self.call("/v3/auth/enable", &json!({})).map(drop)
    }

    /// A lease of so long.
    pub(super) fn grant(&mut self, seconds: u32) -> Result<i64, ApiError> {
        const PATH: &str = "/v3/lease/grant";
        let answer = self.call(PATH, &json!({"TTL": seconds.to_string()}))?;
        number(&answer["ID"]).ok_or_else(|| ApiError::Nonsense(PATH, "no lease in it".to_owned()))
    }

    /// Lets a lease live on; false if it has ended.
    pub(super) fn keep_alive(&mut self, lease: i64) -> Result<bool, ApiError> {
        let answer = self.call("/v3/lease/keepalive", &json!({"ID": lease.to_string()}))?;
        Ok(number(&answer["result"]["TTL"]).is_some_and(|left| left > 0))
    }

    /// Follows everything under a prefix from a revision on, by a connection of its own.
    pub(super) fn watch(&mut self, prefix: &str, from: i64) -> Result<Watch, ApiError> {
        const PATH: &str = "/v3/watch";
        self.log_in()?;
        let (key, end) = range(prefix);
        let request = json!({"create_request": {"key": key, "range_end": end, "start_revision": from.to_string()}});
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let mut connection = self.connect()?;
        let deadline = Instant::now() + PATIENCE;
        let failed = |error| ApiError::Io(self.endpoint(), error);
        let status = connection.post(PATH, self.token.as_deref(), &body, deadline).map_err(failed)?;
        if status != 200 {
            let answer = connection.rest(deadline).map_err(failed)?;
            return Err(refused(PATH, &serde_json::from_slice(&answer).unwrap_or_default()));
        }
        Ok(Watch { connection, line: Vec::new(), endpoint: self.endpoint() })
    }
}

/// A stream of changes.
#[derive(Debug)]
pub(super) struct Watch {
    connection: Connection,
    /// What came of a message that is not whole yet.
    line: Vec<u8>,
    endpoint: String,
}

/// What a watch says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// Nothing until the deadline.
    Nothing,
    /// These changes, in order, up to this revision: records that were written, keys that were deleted.
    Changes(Vec<Result<Kv, String>>, i64),
    /// The changes that were asked for are forgotten: everything must be listed again.
    Compacted,
    /// It ends.
    Ended(String),
}

impl Watch {
    /// What comes next, until the deadline.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Told, ApiError> {
        loop {
            if let Some(end) = self.line.iter().position(|&octet| octet == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return told(&line);
            }
            match self.connection.piece(deadline) {
                Ok(Some(piece)) => self.line.extend_from_slice(&piece),
                Ok(None) => return Ok(Told::Ended("the server ended the watch".to_owned())),
                Err(error) if is_timeout(&error) => return Ok(Told::Nothing),
                Err(error) => return Err(ApiError::Io(self.endpoint.clone(), error)),
            }
        }
    }
}

/// One line of a watch.
fn told(line: &[u8]) -> Result<Told, ApiError> {
    const PATH: &str = "/v3/watch";
    let nonsense = |why: String| ApiError::Nonsense(PATH, why);
    let value: Value = serde_json::from_slice(line).map_err(|error| nonsense(error.to_string()))?;
    let Some(result) = value.get("result") else {
        return Ok(Told::Ended(value["error"]["message"].as_str().unwrap_or("no reason").to_owned()));
    };
    if result["canceled"] == true {
        return Ok(match number(&result["compact_revision"]) {
            Some(_) => Told::Compacted,
            None => Told::Ended(result["cancel_reason"].as_str().unwrap_or("no reason").to_owned()),
        });
    }
    let events = result["events"].as_array().map_or(&[][..], Vec::as_slice);
    let change = |event: &Value| {
        let kv = read_kv(&event["kv"]).ok_or_else(|| nonsense("an event without a key".to_owned()))?;
        Ok(if event["type"] == "DELETE" { Err(kv.key) } else { Ok(kv) })
    };
    let changes = events.iter().map(change).collect::<Result<_, ApiError>>()?;
    Ok(Told::Changes(changes, head(result).revision))
}

/// The keys that begin with a prefix, as first one and the first one behind.
fn range(prefix: &str) -> (String, String) {
    // Prefixes are ASCII and never empty.
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (BASE64.encode(prefix), BASE64.encode(end))
}

fn head(answer: &Value) -> Head {
    let header = &answer["header"];
    let cluster = header["cluster_id"].as_str().unwrap_or_default().to_owned();
    Head { cluster, revision: number(&header["revision"]).unwrap_or(0) }
}

fn number(value: &Value) -> Option<i64> {
    value.as_str()?.parse().ok()
}

fn read_kv(value: &Value) -> Option<Kv> {
    let octets = |field: &Value| BASE64.decode(field.as_str().unwrap_or_default()).ok();
    Some(Kv {
        key: String::from_utf8(octets(value.get("key")?)?).ok()?,
        value: octets(&value["value"])?,
        created: number(&value["create_revision"]).unwrap_or(0),
        modified: number(&value["mod_revision"]).unwrap_or(0),
    })
}

fn refused(path: &'static str, answer: &Value) -> ApiError {
    let message = answer["message"].as_str().or(answer["error"].as_str()).unwrap_or("without a reason");
    ApiError::Refused { path, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_said_to() {
        let said = |kind: io::ErrorKind| ApiError::Io("http://192.0.2.1:2379".to_owned(), kind.into()).to_string();
        assert_eq!(said(io::ErrorKind::WouldBlock), "http://192.0.2.1:2379: it does not answer");
        assert_eq!(said(io::ErrorKind::ConnectionRefused), "http://192.0.2.1:2379: connection refused");
    }
}
