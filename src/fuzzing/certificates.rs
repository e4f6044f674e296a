//! The certificates of somebody who claims to be a peer, and AUTH.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::crypto::x509::{self, Claimed, Credential, Signed, TrustAnchors};

/// The pinned authority. Nobody has its key any more, nor those of the two below, so nobody can make others.
const ROOT: &[u8] = include_bytes!("testdata/root.pem");

/// beta's certificate (DNS name `beta`, address 192.0.2.2), the one above it, and beta's AUTH over [`MESSAGE`].
pub(super) const BETA: &[u8] = include_bytes!("testdata/beta.der");
pub(super) const BETWEEN: &[u8] = include_bytes!("testdata/between.der");
pub(super) const AUTH: &[u8] = include_bytes!("testdata/beta.auth");

const MESSAGE: &[u8] = b"the octets under the signature";

/// When the three are valid: 2027.
const NOW: u64 = 1_800_000_000;

/// Kind of identity, length of AUTH, AUTH, then certificates behind their lengths: whoever is believed shows beta's certificate and
/// calls itself what stands in there.
pub fn certificates(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let Some((auth, rest)) = cut(rest) else { return };
    let mut chain = Vec::new();
    let mut rest = rest;
    while let Some((certificate, more)) = cut(rest) {
        chain.push(certificate);
        rest = more;
    }
    let anchors = TrustAnchors::from_pem(ROOT).expect("a certificate");
    let claimed = match kind & 3 {
        0 => Claimed::Name("beta"),
        1 => Claimed::Address([192, 0, 2, 2].into()),
        2 => Claimed::Distinguished(rest),
        _ => Claimed::Name("gamma"),
    };
    let method = if kind & 4 == 0 { 14 } else { kind >> 3 };
    match x509::verify(&chain, &anchors, claimed, NOW, Signed { method, auth, message: MESSAGE }) {
        Ok(description) => {
            assert!(chain[0] == BETA && chain.contains(&BETWEEN), "{description}");
            assert!(auth.ends_with(&AUTH[AUTH.len() - 32..]), "half of a signature cannot be another's");
            assert!(method == 14 && kind & 3 != 3);
        }
        Err(error) => assert!(!error.to_string().chars().any(char::is_control), "{error}"),
    }
    for certificate in chain {
        files(certificate);
        if let Some(text) = x509::name_text(certificate) {
            let encoded = x509::name_der(&text);
            assert!(encoded.is_none_or(|der| x509::name_text(&der).as_ref() == Some(&text)), "{text:?}");
        }
    }
}

/// The same octets in files of ours.
fn files(der: &[u8]) {
    let pem = |kind: &str| format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", BASE64.encode(der));
    if let Ok(anchors) = TrustAnchors::from_pem(pem("CERTIFICATE").as_bytes()) {
        assert!(anchors.key_hashes().count() == 1 && !anchors.to_string().is_empty());
    }
    let key = Credential::from_pem(pem("CERTIFICATE").as_bytes(), pem("PRIVATE KEY").as_bytes());
    assert!(key.is_err(), "a certificate is no key");
}

/// A length of two octets, and so many.
fn cut(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}
