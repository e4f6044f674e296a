//! What came to port 4500 (RFC 3948 §2.2 to 2.4): ESP, IKE behind the non-ESP marker, or a keepalive.

/// Four zero octets, where ESP has its SPI.
pub(super) const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The whole payload of a keepalive.
pub(super) const KEEPALIVE: [u8; 1] = [0xff];

/// What a payload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Payload<'a> {
    /// Keeps a NAT's mapping open; says nothing.
    Keepalive,
    /// An IKE message, without the marker.
    Ike(&'a [u8]),
    /// ESP, or something too short to be anything.
    Esp,
}

/// Tells them apart.
pub(super) fn classify(payload: &[u8]) -> Payload<'_> {
    if payload == KEEPALIVE {
        Payload::Keepalive
    } else if let Some(message) = payload.strip_prefix(&NON_ESP_MARKER) {
        Payload::Ike(message)
    } else {
        Payload::Esp
    }
}
