//! The key schedule against NIST ACVP.

use super::*;
use crate::crypto::testdata::{Record, records};
use crate::model::{KeGroup, PrfAlgorithm};

/// A published derivation.
struct Vector {
    record: Record,
    prf: PrfAlgorithm,
}

impl Vector {
    fn all() -> Vec<Self> {
        let vectors = records(include_str!("../../crypto/testdata/ikev2_kdf.txt")).into_iter().map(|record| {
            let prf = match record.text("prf") {
                "sha256" => PrfAlgorithm::HmacSha2_256,
                "sha512" => PrfAlgorithm::HmacSha2_512,
                other => panic!("{other}"),
            };
            Self { record, prf }
        });
        let vectors = vectors.collect::<Vec<_>>();
        assert_eq!(vectors.len(), 2);
        vectors
    }

    fn octets(&self, name: &str) -> Vec<u8> {
        self.record.octets(name)
    }

    fn secret(&self, name: &str) -> Secret {
        Secret::new(self.octets(name))
    }

    fn spi(&self, name: &str) -> u64 {
        u64::from_be_bytes(self.octets(name).try_into().unwrap())
    }

    fn sk_d(&self) -> Secret {
        Secret::copy_of(&self.octets("keymat")[..self.prf.output_len()])
    }

    fn suite(&self, aead: AeadAlgorithm) -> IkeSuite {
        IkeSuite { aead, prf: self.prf, group: KeGroup::X25519, additional: None }
    }
}

/// The seven keys in their order; SK_ai and SK_ar are empty.
fn concat(keys: &IkeKeys) -> Vec<u8> {
    let parts = [&keys.sk_d, &keys.sk_ei.keymat, &keys.sk_er.keymat, &keys.sk_pi, &keys.sk_pr];
    parts.map(Secret::expose).concat()
}

#[test]
fn acvp_first_ike_sa() {
    for vector in Vector::all() {
        for aead in AeadAlgorithm::ALL {
            let keys = initial(
                vector.suite(aead),
                &vector.secret("g_ir"),
                &vector.octets("ni"),
                &vector.octets("nr"),
                vector.spi("spi_i"),
                vector.spi("spi_r"),
            );
            for sk in [&keys.sk_d, &keys.sk_pi, &keys.sk_pr] {
                assert_eq!(sk.len(), vector.prf.output_len());
            }
            for sk_e in [&keys.sk_ei, &keys.sk_er] {
                assert_eq!(sk_e.keymat.len(), aead.key_len() + 4);
            }
            let keys = concat(&keys);
            assert_eq!(keys, vector.octets("keymat")[..keys.len()]);
        }
    }
}

/// The vectors end at the new SKEYSEED; what follows it is the function that the test above has checked.
#[test]
fn acvp_rekeyed_ike_sa() {
    for vector in Vector::all() {
        // The old SA's PRF makes SKEYSEED, the new one's the rest (RFC 7296 §2.18).
        for new_prf in PrfAlgorithm::ALL {
            let suite = IkeSuite { prf: new_prf, ..vector.suite(AeadAlgorithm::Aes256Gcm16) };
            let (ni, nr) = (vector.octets("ni"), vector.octets("nr"));
            let secret = vector.secret("g_ir_new");
            let keys = rekeyed(Prf(vector.prf), &vector.sk_d(), suite, (&secret, None), &ni, &nr, 5, 6);
            let seed: [&[u8]; 4] = [&ni, &nr, &[0, 0, 0, 0, 0, 0, 0, 5], &[0, 0, 0, 0, 0, 0, 0, 6]];
            let keys = concat(&keys);
            let expected = Prf(new_prf).expand(&vector.octets("skeyseed_rekeyed"), &seed, keys.len());
            assert_eq!(keys, expected.expose());
        }
    }
}

/// RFC 9370 §2.2.4: SKEYSEED = prf(SK_d, SK(0) | Ni | Nr | SK(1)).
#[test]
fn the_secret_of_an_additional_key_exchange_comes_last() {
    let vector = &Vector::all()[0];
    let (prf, suite) = (Prf(vector.prf), vector.suite(AeadAlgorithm::Aes256Gcm16));
    let (zero, one) = (Secret::new(vec![1; 32]), Secret::new(vec![2; 32]));
    let keys = rekeyed(prf, &vector.sk_d(), suite, (&zero, Some(&one)), &[3; 16], &[4; 16], 5, 6);
    let skeyseed = prf.compute(vector.sk_d().expose(), &[&[&[1; 32][..], &[3; 16], &[4; 16], &[2; 32]].concat()]);
    let seed: [&[u8]; 4] = [&[3; 16], &[4; 16], &[0, 0, 0, 0, 0, 0, 0, 5], &[0, 0, 0, 0, 0, 0, 0, 6]];
    let keys = concat(&keys);
    assert_eq!(keys, prf.expand(skeyseed.expose(), &seed, keys.len()).expose());
}

#[test]
fn acvp_child_sa() {
    for vector in Vector::all() {
        for aead in AeadAlgorithm::ALL {
            for (shared, name) in [(None, "child"), (Some(vector.secret("g_ir_new")), "child_pfs")] {
                let (ni, nr) = (vector.octets("ni"), vector.octets("nr"));
                let (initiator, responder) = child(Prf(vector.prf), &vector.sk_d(), (shared.as_ref(), None), &ni, &nr, aead);
                let keymat = vector.octets(name);
                let len = aead.keymat_len();
                assert_eq!(initiator.keymat.expose(), &keymat[..len]);
                assert_eq!(responder.keymat.expose(), &keymat[len..2 * len]);
            }
        }
    }
}

#[test]
fn debug_shows_no_key() {
    let vector = &Vector::all()[0];
    let suite = vector.suite(AeadAlgorithm::Aes256Gcm16);
    let keys = initial(suite, &vector.secret("g_ir"), &vector.octets("ni"), &vector.octets("nr"), 1, 2);
    assert_eq!(
        format!("{keys:?}"),
        "IkeKeys { sk_d: Secret(32 octets), sk_ei: SaKey { keymat: Secret(36 octets) }, \
         sk_er: SaKey { keymat: Secret(36 octets) }, sk_pi: Secret(32 octets), sk_pr: Secret(32 octets) }"
    );
}
