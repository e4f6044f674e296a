//! X.509 for foreign peers (feature `x509`): pinned authorities, our own certificate, and the check of a peer's.
//!
//! Path building is webpki's; what IKE asks besides stands here: the identity that a certificate is bound to, key usage (RFC 4945), the
//! forms of signatures in AUTH, and bounds. Nothing is fetched: no CRL, no OCSP, no URL. A peer is let in for as long as its
//! certificate is valid and its authority pinned.

mod chain;
mod credential;
mod der;
mod scheme;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

pub use chain::{Claimed, Signed, TrustAnchors, verify};
pub use credential::Credential;

/// Certificates of one chain: the peer's own and those between it and the pinned authority.
pub const MAX_CHAIN: usize = 5;

/// Octets of all of them.
pub const MAX_CHAIN_LEN: usize = 16 * 1024;

/// Authorities that are pinned for one peer.
const MAX_ANCHORS: usize = 8;

const CERTIFICATE: &str = "CERTIFICATE";

/// Why a file of certificates or keys cannot be used, or a certificate is not believed: a sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(String);

impl From<String> for CertificateError {
    fn from(sentence: String) -> Self {
        Self(sentence)
    }
}

impl From<&str> for CertificateError {
    fn from(sentence: &str) -> Self {
        Self(sentence.to_owned())
    }
}

/// A distinguished name as it is compared and shown, `C=CH, O=Example, CN=beta`; none if the text is none.
#[must_use]
pub fn canonical_name(text: &str) -> Option<String> {
    name_text(&name_der(text)?)
}

/// The encoding of a distinguished name.
#[must_use]
pub fn name_der(text: &str) -> Option<Vec<u8>> {
    der::name_from_text(text)
}

/// The text of an encoded distinguished name.
#[must_use]
pub fn name_text(name: &[u8]) -> Option<String> {
    let content = der::content(name, der::SEQUENCE)?;
    der::name_to_text(content).filter(|text| !text.is_empty())
}

/// The PEM blocks of one kind in a text (RFC 7468), in memory that wipes itself.
fn pem_blocks(text: &[u8], kind: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, CertificateError> {
    let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----"));
    let find = |text: &[u8], mark: &str| text.windows(mark.len()).position(|window| window == mark.as_bytes());
    let (mut blocks, mut rest) = (Vec::new(), text);
    while let Some(start) = find(rest, &begin) {
        rest = &rest[start + begin.len()..];
        let len = find(rest, &end).ok_or_else(|| format!("a PEM block of type {kind} has no end"))?;
        let body: Zeroizing<Vec<u8>> =
            Zeroizing::new(rest[..len].iter().copied().filter(|octet| !octet.is_ascii_whitespace()).collect());
        let mut der = Zeroizing::new(vec![0; body.len().div_ceil(4) * 3]);
        let decoded =
            BASE64.decode_slice(&*body, &mut der).map_err(|_| format!("a PEM block of type {kind} is not base64"))?;
        der.truncate(decoded);
        blocks.push(der);
        rest = &rest[len..];
    }
    Ok(blocks)
}

/// Seconds since 1970 as a date.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the odd day is the last; an era is 400 of them.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
pub(crate) mod authority;
#[cfg(test)]
mod tests;
