//! An authority for tests: issues certificates, good and bad.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};

use super::{Credential, TrustAnchors};

/// 2026-07-01, when tests happen: every certificate is valid in 2026 unless it says otherwise.
pub const NOW: u64 = 1_782_864_000;

/// An RSA key of 2048 bits, made by `openssl genpkey` for tests.
const RSA_KEY: &str = include_str!("../testdata/rsa.key");

/// The kinds of keys.
pub const KINDS: [&str; 4] = ["ed25519", "p256", "p384", "rsa"];

/// A new key of a kind; of RSA always the same.
pub fn key(kind: &str) -> KeyPair {
    let algorithm = match kind {
        "ed25519" => &PKCS_ED25519,
        "p256" => &PKCS_ECDSA_P256_SHA256,
        "p384" => &PKCS_ECDSA_P384_SHA384,
        _ => return KeyPair::from_pem(RSA_KEY).unwrap(),
    };
    KeyPair::generate_for(algorithm).unwrap()
}

/// What an authority, or a host, is certified to be.
pub fn params(name: &str, is_ca: bool) -> CertificateParams {
    let names = if is_ca { Vec::new() } else { vec![name.to_owned()] };
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    params
}

/// A root, or one between a root and hosts.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A root.
    pub fn new(name: &str, kind: &str) -> Self {
        let (params, key) = (params(name, true), key(kind));
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// One below this one.
    pub fn below(&self, params: CertificateParams) -> Self {
        let key = key("p256");
        Self { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn anchors(&self) -> TrustAnchors {
        TrustAnchors::from_pem(self.pem.as_bytes()).unwrap()
    }

    /// The certificate of a host and its key.
    pub fn issue(&self, params: &CertificateParams, kind: &str) -> (String, String) {
        let key = key(kind);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The same as what a host has.
    pub fn credential(&self, name: &str, kind: &str) -> Credential {
        let (chain, key) = self.issue(&params(name, false), kind);
        Credential::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    /// A certificate for a key that is there already.
    pub fn issue_for(&self, key: &str, name: &str) -> Credential {
        let pair = KeyPair::from_pem(key).unwrap();
        let chain = params(name, false).signed_by(&pair, &self.issuer).unwrap().pem();
        Credential::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }
}
