//! Containers of this host in the store: what is missing is written, what is too much is deleted, many in one transaction.

use super::api::{Guard, Kv, Write};
use super::session::{End, Follower};
use super::usage::Usage;

/// Writes of one transaction: etcd takes 128 (`--max-txn-ops`).
const BATCH: usize = 100;

/// Octets of one transaction: etcd takes 1.5 MiB (`--max-request-bytes`).
const BATCH_OCTETS: usize = 512 * 1024;

/// A key, and what is to stand there.
type Change = (String, Option<Vec<u8>>);

impl Follower {
    /// Makes the endpoints of this host what they are.
    pub(super) fn settle_endpoints(&mut self, id: &str, usage: &Usage) -> Result<(), End> {
        let folder = self.keys.endpoints(id);
        let stored = self.records.endpoints_of(id);
        let mut changes: Vec<Change> = Vec::new();
        for (key, endpoint) in &usage.endpoints {
            let record = endpoint.record();
            if stored.get(key.as_str()).is_none_or(|stored| stored.as_bytes() != record) {
                changes.push((format!("{folder}{key}"), Some(record)));
            }
        }
        let gone = stored.keys().filter(|key| !usage.endpoints.contains_key(**key));
        changes.extend(gone.map(|key| (format!("{folder}{key}"), None)));
        let mut rest = changes.as_slice();
        while !rest.is_empty() {
            let mut octets = 0;
            let fits = |(key, record): &&Change| {
                octets += key.len() + record.as_ref().map_or(0, Vec::len);
                octets <= BATCH_OCTETS
            };
            let count = rest.iter().take(BATCH).take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            self.write_endpoints(id, batch)?;
            rest = later;
        }
        Ok(())
    }

    fn write_endpoints(&mut self, id: &str, batch: &[Change]) -> Result<(), End> {
        let writes: Vec<Write<'_>> = batch.iter().map(write).collect();
        let removed = self.keys.removed(id);
        let Some(revision) = self.api.transact_at(&[Guard::Absent(&removed)], &writes)? else { return Ok(()) };
        tracing::debug!("wrote {} endpoints into the store", writes.len());
        // The watch says the same a moment later.
        for (key, record) in batch.iter().cloned() {
            self.records.change(match record {
                Some(value) => Ok(Kv { key, value, created: revision, modified: revision }),
                None => Err(key),
            });
        }
        Ok(())
    }
}

fn write((key, record): &Change) -> Write<'_> {
    match record {
        Some(record) => Write::Put(key, record.clone()),
        None => Write::Delete(key),
    }
}
