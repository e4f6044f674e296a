//! The authorities that are pinned for a peer, and the check of the certificates that it shows.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter, RequiredEkuNotFoundContext,
    VerifiedPath,
};

use super::{
    CERTIFICATE, CertificateError, MAX_ANCHORS, MAX_CHAIN, MAX_CHAIN_LEN, date, der, name_text, pem_blocks, scheme,
};
use crate::crypto::sha1;
use crate::model::PeerId;

/// The authorities whose certificates are believed from one peer. Their own validity times do not count: they are pinned.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustAnchors {
    anchors: Vec<TrustAnchor<'static>>,
    /// SHA-1 of each key: computed once, as strangers make us say them.
    key_hashes: Vec<[u8; 20]>,
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustAnchors({self})")
    }
}

/// Their names.
impl fmt::Display for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.anchors.iter().map(|anchor| subject_text(&anchor.subject)).collect();
        f.write_str(&names.join(" or "))
    }
}

impl TrustAnchors {
    /// Reads a file of certificates.
    ///
    /// # Errors
    /// A sentence.
    pub fn from_pem(text: &[u8]) -> Result<Self, CertificateError> {
        let blocks = pem_blocks(text, CERTIFICATE)?;
        if blocks.is_empty() || blocks.len() > MAX_ANCHORS {
            return Err(format!("expected 1 to {MAX_ANCHORS} PEM blocks of type CERTIFICATE, got {}", blocks.len()).into());
        }
        let anchor = |der: &[u8]| {
            let certificate = CertificateDer::from_slice(der);
            let anchor =
                webpki::anchor_from_trusted_cert(&certificate).map_err(|error| format!("not a certificate: {error}"))?;
            let anchor = anchor.to_owned();
            let missing = match (der::is_authority(der), der::key_usage(der)) {
                (Some(true), Some(usage)) if usage.may_certify() => return Ok(anchor),
                (Some(true), _) => "key usage",
                _ => "basic constraints",
            };
            Err(format!("{} may not issue certificates ({missing})", subject_text(&anchor.subject)))
        };
        let anchors = blocks.iter().map(|der| anchor(der)).collect::<Result<Vec<TrustAnchor<'static>>, String>>()?;
        let key_hash = |anchor: &TrustAnchor<'_>| sha1(&[&der::wrap(der::SEQUENCE, &anchor.subject_public_key_info)]);
        let key_hashes = anchors.iter().map(key_hash).collect();
        Ok(Self { anchors, key_hashes })
    }

    /// What CERTREQ says of them: SHA-1 of each key (RFC 7296 §3.7).
    pub fn key_hashes(&self) -> impl Iterator<Item = [u8; 20]> + '_ {
        self.key_hashes.iter().copied()
    }
}

/// Who a peer says that it is.
#[derive(Clone, Copy, Debug)]
pub enum Claimed<'a> {
    /// A host name.
    Name(&'a str),
    /// An address.
    Address(IpAddr),
    /// A distinguished name, encoded.
    Distinguished(&'a [u8]),
}

impl<'a> Claimed<'a> {
    /// An identity in the words of certificates; a distinguished name as it came, in `der`.
    #[must_use]
    pub fn of(id: &'a PeerId, der: &'a [u8]) -> Self {
        match id {
            PeerId::Fqdn(name) => Self::Name(name),
            PeerId::Ipv4(address) => Self::Address((*address).into()),
            PeerId::Ipv6(address) => Self::Address((*address).into()),
            PeerId::Distinguished(_) => Self::Distinguished(der),
        }
    }
}

/// What the key of a certificate is to have signed: an AUTH payload.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The number of its method.
    pub method: u8,
    /// Its data.
    pub auth: &'a [u8],
    /// What is under the signature.
    pub message: &'a [u8],
}

/// Checks certificates and what is signed with the key of the first, which is the peer's own (RFC 7296 §3.6); the others may come in
/// any order. `now` is in seconds since 1970. Returns a description of the certificate for people.
///
/// # Errors
/// A sentence.
pub fn verify(
    certificates: &[&[u8]],
    anchors: &TrustAnchors,
    claimed: Claimed<'_>,
    now: u64,
    signed: Signed<'_>,
) -> Result<String, CertificateError> {
    let len = certificates.iter().map(|certificate| certificate.len()).sum::<usize>();
    if certificates.len() > MAX_CHAIN || len > MAX_CHAIN_LEN {
        let count = certificates.len();
        let expected = format!("expected at most {MAX_CHAIN} certificates of {MAX_CHAIN_LEN} octets in all");
        return Err(format!("{expected}, got {count} of {len}").into());
    }
    let certificates: Vec<CertificateDer<'_>> = certificates.iter().map(|der| CertificateDer::from_slice(der)).collect();
    let (first, intermediates) = certificates.split_first().ok_or("the peer sent no X.509 certificate")?;
    let leaf = EndEntityCert::try_from(first).map_err(|error| format!("the peer's certificate cannot be read: {error}"))?;
    bound_to(&leaf, claimed)?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors.anchors, intermediates, time, Purposes, None, Some(&certifies))
        .map_err(|error| refusal(&leaf, certificates.len() > 1, anchors, &error))?;
    if !der::key_usage(first).is_some_and(der::KeyUsage::may_sign) {
        return Err(format!("{} is not for signatures (key usage)", whose(&leaf)).into());
    }
    if signed.is_good(&leaf)? {
        Ok(describe(&leaf, first))
    } else {
        Err(format!("the signature is not by the key of {}", whose(&leaf)).into())
    }
}

impl Signed<'_> {
    fn is_good(self, leaf: &EndEntityCert<'_>) -> Result<bool, String> {
        /// Digital signature (RFC 7427).
        const DIGITAL_SIGNATURE: u8 = 14;
        if self.method == DIGITAL_SIGNATURE {
            let (verifiers, signature) = scheme::cut(self.auth)?;
            return Ok(verifiers
                .into_iter()
                .any(|verifier| leaf.verify_signature(verifier, self.message, signature).is_ok()));
        }
        let (verifier, signature) = scheme::rfc4754(self.method, self.auth)?;
        Ok(leaf.verify_signature(verifier, self.message, &signature).is_ok())
    }
}

/// For people: the subject, and a fingerprint as `openssl x509 -fingerprint -sha256` has it.
pub fn describe(leaf: &EndEntityCert<'_>, der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let octets: Vec<String> = digest.as_ref().iter().map(|octet| format!("{octet:02X}")).collect();
    format!("certificate {}, SHA-256 {}", subject_text(leaf.subject()), octets.join(":"))
}

/// Whether a certificate names who its owner says that it is: names exactly, without wildcards.
pub fn bound_to(leaf: &EndEntityCert<'_>, claimed: Claimed<'_>) -> Result<(), CertificateError> {
    let is_valid_for = |name: ServerName<'_>| leaf.verify_is_valid_for_subject_name(&name).is_ok();
    let (is_bound, claimed) = match claimed {
        Claimed::Name(name) => {
            let stands_there = leaf.valid_dns_names().any(|held| held.eq_ignore_ascii_case(name));
            (stands_there && ServerName::try_from(name).is_ok_and(is_valid_for), name.escape_debug().to_string())
        }
        Claimed::Address(address) => (is_valid_for(ServerName::IpAddress(address.into())), address.to_string()),
        Claimed::Distinguished(name) => {
            let text = name_text(name).unwrap_or_else(|| "a distinguished name without a text".to_owned());
            (name == der::wrap(der::SEQUENCE, leaf.subject()), text.escape_debug().to_string())
        }
    };
    if is_bound {
        return Ok(());
    }
    let names: Vec<String> = leaf.valid_dns_names().take(4).map(|name| name.escape_debug().to_string()).collect();
    let names = if names.is_empty() { "no host names".to_owned() } else { names.join(", ") };
    Err(format!("{} is not for {claimed} (it names {names}, and addresses if any)", whose(leaf)).into())
}

/// What certificates of IKE may be for, if they say what they are for (RFC 4945 §5.1.3.12): anything, IKE, or TLS at either end.
struct Purposes;

impl ExtendedKeyUsageValidator for Purposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        const ANY: [usize; 5] = [2, 5, 29, 37, 0];
        const PKIX: [usize; 8] = [1, 3, 6, 1, 5, 5, 7, 3];
        /// serverAuth, clientAuth, id-kp-ipsecIKE
        const FINE: [usize; 3] = [1, 2, 17];
        let (mut present, mut says_nothing, mut is_fine) = (Vec::new(), true, false);
        for purpose in purposes {
            let oid = purpose?.to_decoded_oid();
            says_nothing = false;
            is_fine |= oid == ANY || oid.split_last().is_some_and(|(last, rest)| rest == PKIX && FINE.contains(last));
            present.push(oid);
        }
        if is_fine || says_nothing {
            return Ok(());
        }
        Err(Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext {
            required: webpki::KeyUsage::server_auth(),
            present,
        }))
    }
}

/// Every certificate between the peer's own and the authority must be one that may issue others.
fn certifies(path: &VerifiedPath<'_>) -> Result<(), Error> {
    let mut between = path.intermediate_certificates();
    let all = between.all(|certificate| der::key_usage(&certificate.der()).is_some_and(|usage| usage.may_certify()));
    if all { Ok(()) } else { Err(Error::EndEntityUsedAsCa) }
}

fn refusal(leaf: &EndEntityCert<'_>, has_more: bool, anchors: &TrustAnchors, error: &Error) -> CertificateError {
    // The path builder does not say which of several it was.
    let which = if has_more { format!("a certificate in the chain of {}", whose(leaf)) } else { whose(leaf) };
    let sentence = match error {
        Error::CertExpired { not_after, .. } => format!("{which} expired on {}", date(not_after.as_secs())),
        Error::CertNotValidYet { not_before, .. } => {
            format!("{which} is not valid before {}: is the clock right?", date(not_before.as_secs()))
        }
        Error::UnknownIssuer => {
            let issuer = subject_text(leaf.issuer());
            format!("{}, issued by {issuer}, does not lead to the pinned authority ({anchors})", whose(leaf))
        }
        Error::InvalidSignatureForPublicKey
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            format!(
                "{which} is not signed by the pinned authority ({anchors}), or by one between: the name is right, the key is not"
            )
        }
        Error::RequiredEkuNotFoundContext(_) => {
            format!("{which} is for other purposes than IKE or TLS (extended key usage)")
        }
        Error::EndEntityUsedAsCa => format!("{which} was issued by one that may not issue any"),
        Error::CaUsedAsEndEntity => format!("{which} is an authority's own"),
        other => format!("{which} is not believed: {other}"),
    };
    sentence.into()
}

/// `the certificate of CN=beta`.
fn whose(leaf: &EndEntityCert<'_>) -> String {
    format!("the certificate of {}", subject_text(leaf.subject()))
}

/// A name without its outer SEQUENCE, for people: whoever made the certificate chose these octets.
fn subject_text(content: &[u8]) -> String {
    let text = der::name_to_text(content).filter(|text| !text.is_empty());
    text.map_or_else(|| "a nameless subject".to_owned(), |text| text.escape_debug().to_string())
}
