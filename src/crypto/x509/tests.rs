//! Chains as they should be, and every way in which they are not.

use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, date_time_ymd};

use super::authority::{Authority, KINDS, NOW, params};
use super::*;
use crate::model::PeerId;

const MESSAGE: &[u8] = b"the octets under the signature";

/// What `beta` shows: a certificate with these parameters under this authority, then those of `above`.
struct Shown {
    chain: Vec<Vec<u8>>,
    auth: Vec<u8>,
}

impl Shown {
    fn new(authority: &Authority, params: &CertificateParams, kind: &str, above: &[&Authority]) -> Self {
        let (pem, key) = authority.issue(params, kind);
        let chain = std::iter::once(pem.as_str()).chain(above.iter().map(|above| above.pem()));
        let chain = chain.map(|pem| pem_blocks(pem.as_bytes(), CERTIFICATE).unwrap()[0].to_vec()).collect();
        // A certificate that we would not use ourselves still has a key.
        let good = Authority::new("any", "p256").issue_for(&key, "beta");
        Self { chain, auth: good.sign(MESSAGE) }
    }

    fn check(&self, root: &Authority, claimed: Claimed<'_>, now: u64) -> Result<String, String> {
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let signed = Signed { method: 14, auth: &self.auth, message: MESSAGE };
        verify(&chain, &root.anchors(), claimed, now, signed).map_err(|error| error.to_string())
    }
}

const BETA: Claimed<'_> = Claimed::Name("beta");

/// Why beta's certificate with these parameters is refused.
fn refused(change: impl FnOnce(&mut CertificateParams)) -> String {
    let root = Authority::new("root", "p256");
    let mut params = params("beta", false);
    change(&mut params);
    Shown::new(&root, &params, "p256", &[]).check(&root, BETA, NOW).unwrap_err()
}

#[test]
fn every_kind_of_key_proves_itself_under_every_kind_of_authority() {
    for above in KINDS {
        let root = Authority::new("root", above);
        for kind in KINDS {
            let shown = Shown::new(&root, &params("beta", false), kind, &[]);
            let description = shown.check(&root, BETA, NOW).unwrap_or_else(|error| panic!("{kind} under {above}: {error}"));
            assert!(description.starts_with("certificate O=Example, CN=beta, SHA-256 "), "{description}");
            let mut other = shown.auth.clone();
            *other.last_mut().unwrap() ^= 1;
            let error = Shown { auth: other, ..shown }.check(&root, BETA, NOW).unwrap_err();
            assert_eq!(error, "the signature is not by the key of the certificate of O=Example, CN=beta");
        }
    }
}

#[test]
fn a_signature_over_other_octets_or_with_another_key_is_refused() {
    let root = Authority::new("root", "p256");
    let shown = Shown::new(&root, &params("beta", false), "p384", &[]);
    let stranger = Shown::new(&root, &params("gamma", false), "p384", &[]);
    let error = Shown { auth: stranger.auth.clone(), ..shown }.check(&root, BETA, NOW).unwrap_err();
    assert!(error.starts_with("the signature is not by the key"), "{error}");
    let chain: Vec<&[u8]> = stranger.chain.iter().map(Vec::as_slice).collect();
    let signed = Signed { method: 14, auth: &stranger.auth, message: b"other octets" };
    assert!(verify(&chain, &root.anchors(), Claimed::Name("gamma"), NOW, signed).is_err());
}

/// RFC 4754: r and s one behind the other, under methods of their own.
#[test]
fn signatures_of_rfc_4754_are_taken() {
    use p256::ecdsa::signature::Signer as _;
    use pkcs8::DecodePrivateKey as _;
    let root = Authority::new("root", "p256");
    for (kind, method) in [("p256", 9), ("p384", 10)] {
        let (pem, key) = root.issue(&params("beta", false), kind);
        let chain = pem_blocks(pem.as_bytes(), CERTIFICATE).unwrap();
        let key = pem_blocks(key.as_bytes(), "PRIVATE KEY").unwrap();
        let auth = if method == 9 {
            let signature: p256::ecdsa::Signature = p256::ecdsa::SigningKey::from_pkcs8_der(&key[0]).unwrap().sign(MESSAGE);
            signature.to_bytes().to_vec()
        } else {
            let signature: p384::ecdsa::Signature = p384::ecdsa::SigningKey::from_pkcs8_der(&key[0]).unwrap().sign(MESSAGE);
            signature.to_bytes().to_vec()
        };
        let check = |method, auth: &[u8]| {
            verify(&[&chain[0]], &root.anchors(), BETA, NOW, Signed { method, auth, message: MESSAGE })
        };
        assert!(check(method, &auth).is_ok(), "{kind}");
        assert!(check(19 - method, &auth).is_err() && check(1, &auth).is_err() && check(method, &auth[1..]).is_err());
    }
}

#[test]
fn validity_times_are_held_against_the_clock() {
    let root = Authority::new("root", "p256");
    let shown = Shown::new(&root, &params("beta", false), "p256", &[]);
    let year = 31_536_000;
    assert_eq!(
        shown.check(&root, BETA, NOW + year).unwrap_err(),
        "the certificate of O=Example, CN=beta expired on 2027-01-01 00:00 UTC"
    );
    assert_eq!(
        shown.check(&root, BETA, NOW - year).unwrap_err(),
        "the certificate of O=Example, CN=beta is not valid before 2026-01-01 00:00 UTC: is the clock right?"
    );
    assert_eq!(date(0), "1970-01-01 00:00 UTC");
    assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
    assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
    assert_eq!(date(4_107_542_399), "2100-02-28 23:59 UTC");
}

#[test]
fn only_pinned_authorities_count() {
    let (root, other) = (Authority::new("root", "p256"), Authority::new("root", "p256"));
    let shown = Shown::new(&other, &params("beta", false), "p256", &[&other]);
    let error = shown.check(&root, BETA, NOW).unwrap_err();
    assert!(error.contains("is not signed by the pinned authority (O=Example, CN=root)"), "{error}");
    let stranger = Authority::new("stranger", "p256");
    assert_eq!(
        Shown::new(&stranger, &params("beta", false), "p256", &[]).check(&root, BETA, NOW).unwrap_err(),
        "the certificate of O=Example, CN=beta, issued by O=Example, CN=stranger, does not lead to the pinned authority \
         (O=Example, CN=root)"
    );
}

#[test]
fn identities_are_bound_to_certificates() {
    let root = Authority::new("root", "p256");
    let mut named = params("beta", false);
    named.subject_alt_names.push(SanType::DnsName("GW.example.org".try_into().unwrap()));
    named.subject_alt_names.push(SanType::DnsName("*.wild.example".try_into().unwrap()));
    named.subject_alt_names.push(SanType::IpAddress("192.0.2.2".parse().unwrap()));
    let shown = Shown::new(&root, &named, "p256", &[]);
    let dn = name_der("O=Example, CN=beta").unwrap();
    let address = |text: &str| Claimed::Address(text.parse::<IpAddr>().unwrap());
    for fine in [BETA, Claimed::Name("gw.EXAMPLE.org"), address("192.0.2.2"), Claimed::Distinguished(&dn)] {
        assert!(shown.check(&root, fine, NOW).is_ok(), "{fine:?}");
    }
    let others = ["CN=beta", "O=Example, CN=Beta", "O=Example, CN=beta, CN=beta"].map(|text| name_der(text).unwrap());
    let mut wrong = vec![
        Claimed::Name("gamma"),
        Claimed::Name("a.wild.example"),
        Claimed::Name("*.wild.example"),
        Claimed::Name("example.org"),
        Claimed::Name("192.0.2.2"),
        Claimed::Name(""),
        address("192.0.2.3"),
        address("2001:db8::1"),
        Claimed::Distinguished(&[]),
    ];
    wrong.extend(others.iter().map(|der| Claimed::Distinguished(der)));
    for claimed in wrong {
        let error = shown.check(&root, claimed, NOW).unwrap_err();
        assert!(error.starts_with("the certificate of O=Example, CN=beta is not for "), "{claimed:?}: {error}");
    }
}

#[test]
fn keys_are_used_for_what_they_are_for() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyEncipherment};
    let usage = |usages: &[KeyUsagePurpose]| {
        let usages = usages.to_vec();
        move |params: &mut CertificateParams| params.key_usages = usages
    };
    for wrong in [&[KeyAgreement][..], &[KeyEncipherment, CrlSign]] {
        let error = refused(usage(wrong));
        assert_eq!(error, "the certificate of O=Example, CN=beta is not for signatures (key usage)");
    }
    let purposes = |purposes: &[ExtendedKeyUsagePurpose]| {
        let purposes = purposes.to_vec();
        move |params: &mut CertificateParams| params.extended_key_usages = purposes
    };
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, OcspSigning, Other};
    let error = refused(purposes(&[CodeSigning, OcspSigning]));
    assert!(error.contains("other purposes than IKE or TLS"), "{error}");
    let root = Authority::new("root", "p256");
    for fine in [vec![Any], vec![CodeSigning, ClientAuth], vec![Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17])]] {
        let mut params = params("beta", false);
        params.key_usages = vec![DigitalSignature];
        params.extended_key_usages = fine;
        assert!(Shown::new(&root, &params, "p256", &[]).check(&root, BETA, NOW).is_ok());
    }
    let error = refused(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(error.contains("is an authority's own"), "{error}");
}

#[test]
fn chains_are_followed_and_bounded() {
    let root = Authority::new("root", "p256");
    let (one, two) = (root.below(params("one", true)), Authority::new("nobody", "p256"));
    let beta = params("beta", false);
    // The order of those above does not matter, and what is not needed does no harm.
    assert!(Shown::new(&one, &beta, "ed25519", &[&two, &one]).check(&root, BETA, NOW).is_ok());
    assert!(Shown::new(&one, &beta, "ed25519", &[]).check(&root, BETA, NOW).is_err(), "one is missing");
    let error = Shown::new(&one, &beta, "p256", &[&one; MAX_CHAIN]).check(&root, BETA, NOW).unwrap_err();
    assert!(error.starts_with("expected at most 5 certificates of 16384 octets in all, got 6 of"), "{error}");

    // Whoever may not certify does not: without the flag, with another key usage, too deep.
    let no_authority = root.below(params("host", false));
    assert!(Shown::new(&no_authority, &beta, "p256", &[&no_authority]).check(&root, BETA, NOW).is_err());
    let mut no_certifier = params("crl", true);
    no_certifier.key_usages = vec![KeyUsagePurpose::CrlSign];
    let no_certifier = root.below(no_certifier);
    let error = Shown::new(&no_certifier, &beta, "p256", &[&no_certifier]).check(&root, BETA, NOW).unwrap_err();
    assert!(error.contains("was issued by one that may not issue any"), "{error}");
    let mut shallow = params("shallow", true);
    shallow.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let shallow = root.below(shallow);
    let deep = shallow.below(params("deep", true));
    assert!(Shown::new(&deep, &beta, "p256", &[&deep, &shallow]).check(&root, BETA, NOW).is_err());
    let mut old = params("old", true);
    old.not_after = date_time_ymd(2026, 2, 1);
    let old = root.below(old);
    let error = Shown::new(&old, &beta, "p256", &[&old]).check(&root, BETA, NOW).unwrap_err();
    assert_eq!(error, "a certificate in the chain of the certificate of O=Example, CN=beta expired on 2026-02-01 00:00 UTC");
}

#[test]
fn octets_that_are_no_certificates_are_refused() {
    let root = Authority::new("root", "p256");
    let good = Shown::new(&root, &params("beta", false), "p256", &[]);
    let check = |chain: &[&[u8]]| {
        let signed = Signed { method: 14, auth: &good.auth, message: MESSAGE };
        verify(chain, &root.anchors(), BETA, NOW, signed).map_err(|error| error.to_string())
    };
    assert!(check(&[&good.chain[0]]).is_ok());
    assert_eq!(check(&[]).unwrap_err(), "the peer sent no X.509 certificate");
    let long = vec![0x30; MAX_CHAIN_LEN + 1];
    assert!(check(&[&long]).unwrap_err().starts_with("expected at most"));
    for junk in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &long[..1000]] {
        assert!(check(&[junk]).unwrap_err().starts_with("the peer's certificate cannot be read"), "{junk:x?}");
        // Beside a good one it is left alone.
        assert!(check(&[&good.chain[0], junk]).is_ok());
    }
    // Each octet in its turn: what is not covered by the authority's signature does not exist.
    for at in 0..good.chain[0].len() {
        let mut damaged = good.chain[0].clone();
        damaged[at] ^= 0x41;
        assert!(check(&[&damaged]).is_err(), "octet {at}");
    }
}

#[test]
fn our_own_files_are_checked() {
    let root = Authority::new("root", "p256");
    let read =
        |chain: &str, key: &str| Credential::from_pem(chain.as_bytes(), key.as_bytes()).map_err(|error| error.to_string());
    let (chain, key) = root.issue(&params("alpha", false), "p256");
    let (_, other_key) = root.issue(&params("alpha", false), "p256");
    let credential = read(&format!("{chain}{}", root.pem()), &key).unwrap();
    assert_eq!(credential.chain().count(), 2);
    assert!(!format!("{credential:?}").contains(&key[30..60]));
    assert_eq!(read(&chain, &other_key).unwrap_err(), "the private key is not that of the first certificate");
    for (chain, key, why) in [
        ("", key.as_str(), "expected 1 to 5 PEM blocks of type CERTIFICATE"),
        (&chain, "", "expected a PEM block of type PRIVATE KEY (PKCS#8"),
        (&chain, &key.replace("PRIVATE KEY", "EC PRIVATE KEY"), "expected a PEM block of type PRIVATE KEY (PKCS#8"),
        (
            &chain,
            "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----",
            "expected a key of Ed25519, P-256, P-384, or RSA",
        ),
        (&chain, "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----", "is not base64"),
        (&chain, "-----BEGIN PRIVATE KEY-----\nMC4C", "has no end"),
    ] {
        let error = read(chain, key).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let mut agreement = params("alpha", false);
    agreement.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    let (chain, key) = root.issue(&agreement, "p256");
    assert_eq!(read(&chain, &key).unwrap_err(), "the first certificate is not for signatures (key usage)");

    assert!(credential.check_identity(&PeerId::from_text("alpha")).is_ok());
    assert!(credential.check_identity(&PeerId::from_text("O=Example, CN=alpha")).is_ok());
    for wrong in ["beta", "192.0.2.1", "CN=alpha"] {
        let error = credential.check_identity(&PeerId::from_text(wrong)).unwrap_err().to_string();
        assert!(error.contains("alpha"), "{error}");
    }
    assert!(TrustAnchors::from_pem(root.pem().repeat(9).as_bytes()).is_err());
    assert!(TrustAnchors::from_pem(chain.as_bytes()).unwrap_err().to_string().contains("may not issue certificates"));
    assert_eq!(root.anchors().key_hashes().count(), 1);
}
