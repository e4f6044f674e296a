//! AUTH by X.509 certificates: the payloads CERT and CERTREQ (RFC 7296 §3.6, §3.7), and identities that a certificate holds.

use bytes::Bytes;

use crate::crypto::x509::{self, Claimed, Credential, Signed, TrustAnchors};
use crate::ike::config::{Authorities, ProvedBy};
use crate::model::PeerId;
use crate::wire::ike::{AuthMethod, Certificate, Payload};

/// ID type (RFC 7296 §3.5).
pub const ID_DER_ASN1_DN: u8 = 9;

/// CERT encodings: an X.509 certificate for signatures, and a URL of one or of several.
const X509_SIGNATURE: u8 = 4;
const HASH_AND_URL: [u8; 2] = [12, 13];

/// Authorities that CERTREQ names: it is a hint, and must not make an answer to a stranger long.
const MAX_REQUESTED: usize = 4;

/// Checks the certificates of a peer and its AUTH.
pub(super) fn verify(
    authorities: &Authorities,
    parts: &[&[u8]],
    (method, auth): (AuthMethod, &[u8]),
    certificates: &[Certificate],
    id: &PeerId,
    id_body: &[u8],
) -> Result<ProvedBy, String> {
    let certified = certificates.iter().filter(|certificate| certificate.encoding == X509_SIGNATURE);
    let chain: Vec<&[u8]> = certified.map(|certificate| &certificate.data[..]).collect();
    if chain.is_empty() && certificates.iter().any(|certificate| HASH_AND_URL.contains(&certificate.encoding)) {
        return Err("the peer sent the URL of its certificate (hash and URL): nothing is fetched here".to_owned());
    }
    if method == AuthMethod::SharedKey {
        return Err(super::wrong_method(method, "a certificate"));
    }
    let now = (authorities.wall_clock)();
    let signed = Signed { method: method.value(), auth, message: &parts.concat() };
    x509::verify(&chain, &authorities.anchors, Claimed::of(id, id_body.get(4..).unwrap_or_default()), now, signed)
        .map(ProvedBy::Certificate)
        .map_err(|error| error.to_string())
}

/// Our ID payload: a distinguished name in the very encoding of our certificate.
pub fn own_id_body(credential: &Credential, id: &PeerId) -> Vec<u8> {
    match id {
        PeerId::Distinguished(_) => super::with_id_type(ID_DER_ASN1_DN, credential.subject()),
        other => super::id_body(other),
    }
}

/// The ID payload of somebody else's distinguished name: how its certificate encodes it, we do not know.
pub(super) fn id_body(name: &str) -> Vec<u8> {
    super::with_id_type(ID_DER_ASN1_DN, &x509::name_der(name).unwrap_or_default())
}

/// The identity in an ID payload of this type.
pub(super) fn parse_id(data: &[u8]) -> Result<PeerId, String> {
    let text = x509::name_text(data).ok_or("the distinguished name in the ID payload cannot be read")?;
    Ok(PeerId::Distinguished(text))
}

/// CERT payloads, our own certificate first.
pub fn payloads(credential: &Credential) -> impl Iterator<Item = Payload> {
    credential
        .chain()
        .map(|der| Payload::Certificate(Certificate { encoding: X509_SIGNATURE, data: Bytes::copy_from_slice(der) }))
}

/// CERTREQ for certificates of these authorities; some peers show theirs only if asked. None without any.
pub fn request<'a>(anchors: impl Iterator<Item = &'a TrustAnchors>) -> Option<Payload> {
    let mut hashes: Vec<[u8; 20]> = Vec::new();
    for hash in anchors.flat_map(TrustAnchors::key_hashes) {
        if !hashes.contains(&hash) {
            hashes.push(hash);
        }
        if hashes.len() == MAX_REQUESTED {
            break;
        }
    }
    let body = [&[X509_SIGNATURE][..], &hashes.concat()].concat();
    (!hashes.is_empty()).then(|| Payload::CertificateRequest(body.into()))
}
