//! Who is behind a NAT (RFC 7296 §2.23), although everybody lies about it.
//!
//! We always send a wrong hash of our source, so that the peer encapsulates ESP in UDP whatever the path is like; strongSwan
//! with `encap=yes` does the same. So a source hash that does not match says nothing. What remains true is the peer's hash of
//! *our* address, and between our own hosts a Vendor ID in IKE_AUTH, [`VENDOR_ID_PREFIX`] and the true hash of the sender.
//! In IKE_AUTH it is authenticated, and the sender knows by then which address it sends from.

use bytes::Bytes;

use super::contents::Contents;
use super::natd;
use crate::model::{IkeSpi, Path, Rng};
use crate::wire::ike::{Notify, NotifyType, Payload};

/// Our Vendor ID: this, then the 20 octets of the sender's true source hash.
pub const VENDOR_ID_PREFIX: &[u8; 16] = b"underpass natd 1";

/// Octets of a hash.
const HASH_LEN: usize = 20;

/// What is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Nat {
    /// Whether a NAT hides us.
    pub local: Option<bool>,
    /// Whether a NAT hides the peer.
    pub remote: Option<bool>,
}

impl Nat {
    /// What an IKE_SA_INIT message tells that came by this path and holds these notifications.
    pub fn observe(contents: &Contents, spi_i: u64, spi_r: u64, path: Path) -> Self {
        let matches = |kind, end| {
            let hash = natd::hash(spi_i, spi_r, end);
            // Several source notifies are legal, any match counts; other lengths never match.
            contents.notifies(kind).any(|notify| notify.data[..] == hash)
        };
        let asked = contents.notify(NotifyType::NatDetectionDestinationIp).is_some();
        let local = (asked && !path.local.ip().is_unspecified())
            .then(|| !matches(NotifyType::NatDetectionDestinationIp, path.local));
        let remote = matches(NotifyType::NatDetectionSourceIp, path.remote).then_some(false);
        Self { local, remote }
    }

    /// What the Vendor ID of one of our own hosts adds; false if the message has none, so that the peer is a foreign one.
    pub fn observe_vendor_id(&mut self, contents: &Contents, spis: (u64, u64), path: Path) -> bool {
        let hash = contents
            .vendor_ids
            .iter()
            .filter_map(|vendor_id| vendor_id.strip_prefix(VENDOR_ID_PREFIX))
            .find(|hash| hash.len() == HASH_LEN);
        if let Some(hash) = hash {
            self.remote = Some(*hash != natd::hash(spis.0, spis.1, path.remote));
        }
        hash.is_some()
    }
}

/// The NAT detection notifies of an IKE_SA_INIT message to `path.remote`: a wrong source, the true destination.
pub fn notifies(rng: &mut dyn Rng, spi_i: u64, spi_r: u64, path: Path) -> [Payload; 2] {
    let mut fake = vec![0; HASH_LEN];
    rng.fill(&mut fake);
    let destination = natd::hash(spi_i, spi_r, path.remote);
    [
        Payload::Notify(Notify::new(NotifyType::NatDetectionSourceIp, fake)),
        Payload::Notify(Notify::new(NotifyType::NatDetectionDestinationIp, destination.to_vec())),
    ]
}

/// The Vendor ID that goes into our IKE_AUTH messages; none while we do not know which address they leave from.
pub fn vendor_id(spis: (u64, u64), path: Path) -> Option<Payload> {
    if path.local.ip().is_unspecified() {
        return None;
    }
    let hash = natd::hash(spis.0, spis.1, path.local);
    Some(Payload::VendorId(Bytes::from([&VENDOR_ID_PREFIX[..], &hash].concat())))
}

/// The SPIs of an IKE SA in the order of the header.
pub fn spis(initiator: bool, local: IkeSpi, remote: IkeSpi) -> (u64, u64) {
    if initiator { (local.value(), remote.value()) } else { (remote.value(), local.value()) }
}
