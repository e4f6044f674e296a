//! AUTH and identities: what is accepted, and every way to be refused.

use super::*;
use crate::crypto::SigningKey;
use crate::crypto::testdata::to_hex;
use crate::model::{PrfAlgorithm, SeededRng};

const PSK: &[u8] = b"the key that alpha and beta know";
const PRF: Prf = Prf(PrfAlgorithm::HmacSha2_256);

/// What the peer named "alpha" signs.
struct Signed {
    message: Vec<u8>,
    nonce: Vec<u8>,
    sk_p: Secret,
    id_body: Vec<u8>,
}

impl Signed {
    fn alpha(prf: Prf) -> Self {
        Self {
            message: vec![1; 100],
            nonce: vec![2; 32],
            sk_p: Secret::new(vec![3; prf.0.output_len()]),
            id_body: id_body(&alpha()),
        }
    }

    fn octets(&self) -> SignedOctets<'_> {
        SignedOctets {
            message: &self.message,
            peer_message: None,
            nonce: &self.nonce,
            sk_p: &self.sk_p,
            id_body: &self.id_body,
            int_auth: &[],
        }
    }
}

fn alpha() -> PeerId {
    PeerId::Fqdn("alpha".to_owned())
}

fn psk(octets: &[u8]) -> Secret {
    Secret::copy_of(octets)
}

fn key(seed: u64) -> SigningKey {
    SigningKey::generate(&mut SeededRng::new(seed))
}

/// Both ways to prove oneself: how alpha does it, and what its peers demand.
fn both() -> [(LocalAuth, PeerAuth); 2] {
    [
        (LocalAuth::Psk(psk(PSK)), PeerAuth::Psk(psk(PSK))),
        (LocalAuth::HostKeys(vec![key(1)]), PeerAuth::HostKeys(vec![key(1).verifying_key()])),
    ]
}

fn check(auth: &PeerAuth, signed: &Signed, received: &Auth) -> Result<Authenticated<PeerId>, String> {
    verify(PRF, auth, signed.octets(), received, &[], alpha()).map(|(proof, _)| proof)
}

/// The values are `openssl dgst`'s, with the formula written out by hand:
///
/// ```text
/// M = HMAC(key 03…03, 02 00 00 00 "alpha"), P = HMAC(key PSK, "Key Pad for IKEv2"), AUTH = HMAC(key P, 01…01 02…02 M)
/// ```
#[test]
fn psk_auth_is_the_formula() {
    let expected = [
        "39e21a41b7d55a677b5e9196895004b33e45ac029cab4349018a9c9f1aaf3d41",
        "dc1f5bc7edb578fe9baf9a58a78e5634c43a43d03988834a296d732337b0eac2fb8c4654dbb2520f23c54e7e2e534036",
        "48dfb892ed07d501dd845b8fb845457879f3ffe817c40c69e9d07610caf1f37b\
         659fb10f672a43216a5506785a7279fd41c3693f73b296fd1f9276b5d573923c",
    ];
    for (algorithm, expected) in PrfAlgorithm::ALL.into_iter().zip(expected) {
        let prf = Prf(algorithm);
        let signed = Signed::alpha(prf);
        let auth = sign(prf, &LocalAuth::Psk(psk(PSK)), signed.octets());
        assert_eq!(auth.method, AuthMethod::SharedKey);
        assert_eq!(to_hex(&auth.data), expected);
        let (proof, by) = verify(prf, &PeerAuth::Psk(psk(PSK)), signed.octets(), &auth, &[], alpha()).unwrap();
        assert_eq!((proof.value(), by), (&alpha(), ProvedBy::SharedKey));
    }
}

/// RFC 7427 §3: length, AlgorithmIdentifier, signature over the octets themselves.
#[test]
fn ed25519_auth_is_a_digital_signature_over_the_octets() {
    let signed = Signed::alpha(PRF);
    let auth = sign(PRF, &LocalAuth::HostKeys(vec![key(1)]), signed.octets());
    assert_eq!(auth.method, AuthMethod::DigitalSignature);
    assert_eq!(auth.data[..8], [7, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70]);
    let maced_id = PRF.compute(signed.sk_p.expose(), &[&signed.id_body]);
    let octets = [&signed.message[..], &signed.nonce, maced_id.expose()].concat();
    assert!(key(1).verifying_key().verify(&octets, &auth.data[8..]));
    assert!(check(&PeerAuth::HostKeys(vec![key(1).verifying_key()]), &signed, &auth).is_ok());
    let error = check(&PeerAuth::HostKeys(vec![key(2).verifying_key()]), &signed, &auth).unwrap_err();
    assert!(error.contains("public key"), "{error}");
}

/// While a host changes its key, its peers pin the old one and the new one, and are told which it was.
#[test]
fn any_of_the_pinned_keys_will_do() {
    let signed = Signed::alpha(PRF);
    let pins = PeerAuth::HostKeys(vec![key(1).verifying_key(), key(2).verifying_key()]);
    for seed in 1..=3 {
        // We sign with the first of ours.
        let auth = sign(PRF, &LocalAuth::HostKeys(vec![key(seed), key(1)]), signed.octets());
        match verify(PRF, &pins, signed.octets(), &auth, &[], alpha()) {
            Ok((_, by)) => assert_eq!(by, ProvedBy::HostKey(key(seed).verifying_key())),
            Err(error) => {
                let [one, two] = [1, 2].map(|seed| key(seed).verifying_key().to_base64());
                assert_eq!(seed, 3);
                assert!(error.ends_with(&format!("({one} or {two})")), "{error}");
            }
        }
    }
    assert!(
        check(&PeerAuth::HostKeys(Vec::new()), &signed, &sign(PRF, &LocalAuth::HostKeys(vec![key(1)]), signed.octets()))
            .is_err()
    );
}

/// Both IKE_SA_INIT messages behind eight zero octets, the signer's own last, and IntAuth at the end; written out by hand.
#[test]
fn a_full_transcript_and_intermediate_exchanges_are_under_the_signature() {
    let signed = Signed::alpha(PRF);
    let maced_id = PRF.compute(signed.sk_p.expose(), &[&signed.id_body]);
    let (theirs, int_auth) = ([9; 70], [8; 68]);
    let plain = signed.octets();
    let full = SignedOctets { peer_message: Some(&theirs), ..plain };
    let (own, end): (&[u8], _) = (&signed.message, [&signed.nonce[..], maced_id.expose()].concat());
    for (octets, expected) in [
        (plain, [own, &end].concat()),
        (SignedOctets { int_auth: &int_auth, ..plain }, [own, &end, &int_auth].concat()),
        (full, [&[0; 8], &theirs[..], own, &end].concat()),
        (SignedOctets { int_auth: &int_auth, ..full }, [&[0; 8], &theirs[..], own, &end, &int_auth].concat()),
    ] {
        let auth = sign(PRF, &LocalAuth::HostKeys(vec![key(1)]), octets);
        assert!(key(1).verifying_key().verify(&expected, &auth.data[8..]));
        assert!(verify(PRF, &PeerAuth::HostKeys(vec![key(1).verifying_key()]), octets, &auth, &[], alpha()).is_ok());
    }
}

/// Whatever of the signed octets another end sees differently, the proof fails. That is also what refuses a reflection (cases
/// 50 and 78): our own AUTH is over our message, the peer's nonce and our SK_p.
#[test]
fn case_78_auth_over_other_octets_is_refused() {
    for (local, peer) in both() {
        let signed = Signed::alpha(PRF);
        let auth = sign(PRF, &local, signed.octets());
        assert!(check(&peer, &signed, &auth).is_ok());
        let changes: [fn(&mut Signed); 5] = [
            |signed| signed.message[99] ^= 1,
            |signed| signed.message.truncate(99),
            |signed| signed.nonce[0] ^= 1,
            |signed| signed.sk_p = Secret::new(vec![4; 32]),
            // The reserved octets are covered as they came.
            |signed| signed.id_body[1] = 1,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut other = Signed::alpha(PRF);
            change(&mut other);
            assert!(check(&peer, &other, &auth).is_err(), "change {i}");
        }
    }
}

#[test]
fn reserved_octets_of_the_id_are_signed_as_they_came() {
    for (local, peer) in both() {
        let mut signed = Signed::alpha(PRF);
        signed.id_body[1..4].copy_from_slice(&[0xaa, 0xbb, 0xcc]);
        let auth = sign(PRF, &local, signed.octets());
        assert!(check(&peer, &signed, &auth).is_ok());
    }
}

#[test]
fn case_73_shared_keys_of_every_length() {
    let signed = Signed::alpha(PRF);
    let mut seen = Vec::new();
    for len in [1, 63, 64, 65, 127, 128, 129, 1000] {
        let secret = psk(&vec![0x55; len]);
        let auth = sign(PRF, &LocalAuth::Psk(secret.clone()), signed.octets());
        assert!(check(&PeerAuth::Psk(secret), &signed, &auth).is_ok(), "{len}");
        let error = check(&PeerAuth::Psk(psk(PSK)), &signed, &auth).unwrap_err();
        assert!(error.contains("another shared key"), "{error}");
        assert!(!seen.contains(&auth.data), "{len}");
        seen.push(auth.data);
    }
}

#[test]
fn case_73_an_empty_shared_key_proves_nothing() {
    let signed = Signed::alpha(PRF);
    let auth = sign(PRF, &LocalAuth::Psk(psk(b"")), signed.octets());
    let error = check(&PeerAuth::Psk(psk(b"")), &signed, &auth).unwrap_err();
    assert!(error.contains("no shared key"), "{error}");
}

#[test]
fn case_74_only_the_configured_method_counts() {
    let signed = Signed::alpha(PRF);
    for (local, peer) in both() {
        let good = sign(PRF, &local, signed.octets());
        let others = [0, 1, 3, 9, 13, 200].map(AuthMethod::Other);
        for method in others.into_iter().chain([AuthMethod::SharedKey, AuthMethod::DigitalSignature]) {
            let auth = Auth { method, data: good.data.clone() };
            assert_eq!(check(&peer, &signed, &auth).is_ok(), method == good.method, "{method:?}");
        }
    }
    // Who holds both secrets may still use only the one that is asked for.
    let [(_, wants_psk), (by_key, wants_key)] = both();
    let error = check(&wants_psk, &signed, &sign(PRF, &by_key, signed.octets())).unwrap_err();
    assert_eq!(error, "the peer proves itself by a digital signature (14), but here it is configured with a shared key (2)");
    let error = check(&wants_key, &signed, &sign(PRF, &LocalAuth::Psk(psk(PSK)), signed.octets())).unwrap_err();
    assert_eq!(error, "the peer proves itself by a shared key (2), but here it is configured with a digital signature (14)");
}

#[test]
fn case_75_auth_data_of_every_other_length_is_refused() {
    let signed = Signed::alpha(PRF);
    for (local, peer) in both() {
        let good = sign(PRF, &local, signed.octets()).data;
        let longer = [&good[..], &[0]].concat();
        for len in 0..=longer.len() {
            let auth = Auth { data: Bytes::copy_from_slice(&longer[..len]), ..sign(PRF, &local, signed.octets()) };
            assert_eq!(check(&peer, &signed, &auth).is_ok(), len == good.len(), "{len} octets");
        }
    }
}

#[test]
fn every_bit_of_auth_counts() {
    let signed = Signed::alpha(PRF);
    for (local, peer) in both() {
        let good = sign(PRF, &local, signed.octets());
        for bit in 0..8 * good.data.len() {
            let mut data = good.data.to_vec();
            data[bit / 8] ^= 1 << (bit % 8);
            let auth = Auth { method: good.method, data: data.into() };
            assert!(check(&peer, &signed, &auth).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn identities_come_back() {
    for (text, body) in [
        ("alpha", &b"\x02\0\0\0alpha"[..]),
        ("192.0.2.1", &[1, 0, 0, 0, 192, 0, 2, 1]),
        ("2001:db8::1", &[5, 0, 0, 0, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ] {
        let id = PeerId::from_text(text);
        assert_eq!(id_body(&id), body);
        assert_eq!(parse_id(body), Ok(id.clone()));
        // Reserved octets are ignored (RFC 7296 §2.5).
        let mut reserved = body.to_vec();
        reserved[1..4].fill(0xff);
        assert_eq!(parse_id(&reserved), Ok(id));
    }
}

#[test]
fn case_76_malformed_identities_are_refused() {
    let with = |kind: u8, data: &[u8]| [&[kind, 0, 0, 0], data].concat();
    let distinguished_name = if cfg!(feature = "x509") { "cannot be read" } else { "type 9" };
    for (body, reason) in [
        (vec![], "shorter than its four"),
        (vec![2, 0, 0], "shorter than its four"),
        (with(2, b""), "empty name"),
        (with(2, b"alp\0ha"), "NUL"),
        (with(2, b"alpha\0"), "NUL"),
        (with(2, &[b'a', 0xff, 0xfe]), "UTF-8"),
        (with(1, &[]), "IPv4 address, but holds 0 octets"),
        (with(1, &[192, 0, 2]), "IPv4 address, but holds 3 octets"),
        (with(1, &[192, 0, 2, 1, 0]), "IPv4 address, but holds 5 octets"),
        (with(5, &[0; 4]), "IPv6 address, but holds 4 octets"),
        (with(5, &[0; 17]), "IPv6 address, but holds 17 octets"),
        (with(0, b"alpha"), "type 0"),
        (with(3, b"alpha@example.org"), "type 3"),
        (with(9, &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), distinguished_name),
        (with(11, b"key"), "type 11"),
        (with(255, &[0; 65_531]), "type 255"),
    ] {
        let error = parse_id(&body).unwrap_err();
        assert!(error.contains(reason), "{error:?} for {:x?}", &body[..body.len().min(20)]);
    }
    // The largest payload there is. It is a name, if a useless one.
    assert!(parse_id(&with(2, &[b'a'; 65_531])).is_ok());
}

/// An address as a name is not the address: types are compared too.
#[test]
fn case_79_a_correct_auth_under_another_identity_is_refused() {
    for (local, peer) in both() {
        for body in [
            &b"\x02\0\0\0beta"[..],
            b"\x02\0\0\0Alpha",
            b"\x02\0\0\0alpha.",
            b"\x01\0\0\0\xc0\0\x02\x01",
            b"\x0b\0\0\0alpha",
            b"",
        ] {
            let signed = Signed { id_body: body.to_vec(), ..Signed::alpha(PRF) };
            let auth = sign(PRF, &local, signed.octets());
            assert!(check(&peer, &signed, &auth).is_err(), "{body:x?}");
        }
    }
    let signed = Signed { id_body: b"\x02\0\0\x00192.0.2.1".to_vec(), ..Signed::alpha(PRF) };
    let auth = sign(PRF, &LocalAuth::Psk(psk(PSK)), signed.octets());
    let address = PeerId::from_text("192.0.2.1");
    let error = verify(PRF, &PeerAuth::Psk(psk(PSK)), signed.octets(), &auth, &[], address).unwrap_err();
    assert_eq!(error, "the peer calls itself by the name 192.0.2.1, but the address 192.0.2.1 is expected");
}

#[test]
fn case_80_other_algorithm_identifiers_are_refused() {
    let signed = Signed::alpha(PRF);
    let peer = PeerAuth::HostKeys(vec![key(1).verifying_key()]);
    let good = sign(PRF, &LocalAuth::HostKeys(vec![key(1)]), signed.octets());
    let signature = &good.data[8..];
    let sha1_with_rsa = [&[15, 0x30, 0x0d, 0x06, 0x09][..], b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &[5, 0]].concat();
    // RSASSA-PSS with a salt length of 2^31.
    let pss =
        [&[25, 0x30, 0x17, 0x06, 0x09][..], b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a", &[0x30, 0x0a, 0xa2, 0x08]].concat();
    let pss = [&pss[..], &[0x02, 0x06, 0, 0x80, 0, 0, 0, 0]].concat();
    for prefix in [
        &[][..],
        &[0],
        &[6, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70],
        &[8, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70],
        &[255, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70],
        &[7, 0x30, 4, 6, 3, 0x2b, 0x65, 0x70],
        &[7, 0x30, 5, 6, 3, 0x2b, 0x65, 0x71],
        // With NULL parameters, which RFC 8410 §3 forbids.
        &[9, 0x30, 7, 6, 3, 0x2b, 0x65, 0x70, 5, 0],
        // Without the length.
        &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70],
        &sha1_with_rsa,
        &pss,
    ] {
        let auth = Auth { method: AuthMethod::DigitalSignature, data: [prefix, signature].concat().into() };
        assert!(check(&peer, &signed, &auth).is_err(), "{prefix:x?}");
    }
    let auth = Auth { method: AuthMethod::DigitalSignature, data: [&ED25519_PREFIX[..], signature].concat().into() };
    assert!(check(&peer, &signed, &auth).is_ok());
}
