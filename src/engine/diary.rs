//! What the control thread hears, sends and orders, for `agent --log debug` (IKE messages, SAs) and `--log trace` (the rest).
//! Names, SPIs and sizes only: nothing that a key could be told from.

use crate::esp::{Event, Update};
use crate::model::{Path, WorkerIndex};
use crate::wire::ike::Header;

/// An IKE message came in.
pub fn received(path: Path, message: &[u8]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!("from {}: {}", path.remote, ike(message));
    }
}

/// An IKE message leaves.
pub fn sent(path: Path, message: &[u8]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!("to {}: {}", path.remote, ike(message));
    }
}

/// One line about an IKE message, from its header.
fn ike(message: &[u8]) -> String {
    let len = message.len();
    match Header::parse(message) {
        Ok((Header { initiator_spi, responder_spi, exchange, flags, message_id }, _)) => {
            let kind = if flags.response { "response" } else { "request" };
            format!("{exchange} {kind} {message_id}, SPIs {initiator_spi:016x} and {responder_spi:016x}, {len} octets")
        }
        Err(error) => format!("{len} octets that are no IKE message: {error}"),
    }
}

/// An order to a worker, or to all.
pub fn ordered(update: &Update) {
    match update {
        Update::Install { child, .. } => tracing::debug!(
            "install the CHILD_SA {} inbound, {} outbound ({})",
            child.inbound_spi,
            child.outbound_spi,
            child.suite
        ),
        Update::Activate(spi) => tracing::debug!("send with the CHILD_SA {spi}"),
        Update::Retire { spi, at_once: true } => tracing::debug!("end the CHILD_SA {spi} at once"),
        Update::Retire { spi, at_once: false } => tracing::debug!("send no more with the CHILD_SA {spi}"),
        Update::PathChanged(spi, path) => tracing::debug!("send the CHILD_SA {spi} to {}", path.remote),
        Update::PathLimit(_, Some(limit)) => tracing::debug!("a path carries ESP datagrams of {limit} octets"),
        Update::Reserve(spi) => tracing::trace!("expect ESP with SPI {spi}"),
        Update::Release(spi) => tracing::trace!("expect no ESP with SPI {spi}"),
        _ => {}
    }
}

/// A worker's news.
pub fn heard(worker: WorkerIndex, event: &Event) {
    tracing::trace!("worker {}: {event:?}", worker.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_by_its_header() {
        let mut message = vec![0x11; 8];
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[33, 0x20, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 28]);
        assert_eq!(ike(&message), "IKE_SA_INIT request 0, SPIs 1111111111111111 and 0000000000000000, 28 octets");
        assert!(ike(&message[..20]).starts_with("20 octets that are no IKE message: "));
    }
}
