//! The key schedule (RFC 7296 §2.13, §2.14, §2.17, §2.18).

use crate::crypto::Prf;
use crate::model::{AeadAlgorithm, IkeSuite, SaKey, Secret};

/// The seven keys of an IKE SA; with an AEAD, SK_ai and SK_ar are empty and left out (RFC 5282 §7).
#[derive(Clone, Debug)]
pub struct IkeKeys {
    /// SK_d: the key of keys for CHILD_SAs and rekeys.
    pub sk_d: Secret,
    /// SK_ei with its salt: protects what the original initiator sends.
    pub sk_ei: SaKey,
    /// SK_er with its salt.
    pub sk_er: SaKey,
    /// SK_pi: goes into the initiator's AUTH.
    pub sk_pi: Secret,
    /// SK_pr
    pub sk_pr: Secret,
}

/// Keys of the first IKE SA: SKEYSEED = prf(Ni | Nr, g^ir).
#[must_use]
pub fn initial(suite: IkeSuite, shared: &Secret, nonce_i: &[u8], nonce_r: &[u8], spi_i: u64, spi_r: u64) -> IkeKeys {
    let skeyseed = Prf(suite.prf).compute(&[nonce_i, nonce_r].concat(), &[shared.expose()]);
    schedule(suite, &skeyseed, nonce_i, nonce_r, spi_i, spi_r)
}

/// Keys of a rekeyed IKE SA: SKEYSEED = prf_old(SK_d (old), g^ir (new) | Ni | Nr [| SK(1)]); the rest is as for the first. SK(1)
/// is the secret of an additional key exchange in IKE_FOLLOWUP_KE (RFC 9370 §2.2.4). With the same prf and the secret of
/// IKE_INTERMEDIATE in place of g^ir, this is also the formula of the keys behind that (§2.2.2).
#[must_use]
#[allow(clippy::too_many_arguments, reason = "the formula has that many")]
pub fn rekeyed(
    old_prf: Prf,
    old_sk_d: &Secret,
    suite: IkeSuite,
    (shared, additional): (&Secret, Option<&Secret>),
    nonce_i: &[u8],
    nonce_r: &[u8],
    spi_i: u64,
    spi_r: u64,
) -> IkeKeys {
    let additional = additional.map_or(&[][..], Secret::expose);
    let skeyseed = old_prf.compute(old_sk_d.expose(), &[shared.expose(), nonce_i, nonce_r, additional]);
    schedule(suite, &skeyseed, nonce_i, nonce_r, spi_i, spi_r)
}

/// {SK_d | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
fn schedule(suite: IkeSuite, skeyseed: &Secret, nonce_i: &[u8], nonce_r: &[u8], spi_i: u64, spi_r: u64) -> IkeKeys {
    let sk_len = suite.prf.output_len();
    let sk_e_len = suite.aead.keymat_len();
    let seed: [&[u8]; 4] = [nonce_i, nonce_r, &spi_i.to_be_bytes(), &spi_r.to_be_bytes()];
    let keymat = Prf(suite.prf).expand(skeyseed.expose(), &seed, 3 * sk_len + 2 * sk_e_len);
    let mut rest = keymat.expose();
    let mut take = |len| Secret::copy_of(rest.split_off(..len).expect("the sum of the lengths was asked for"));
    IkeKeys {
        sk_d: take(sk_len),
        sk_ei: SaKey { keymat: take(sk_e_len) },
        sk_er: SaKey { keymat: take(sk_e_len) },
        sk_pi: take(sk_len),
        sk_pr: take(sk_len),
    }
}

/// Keys of a CHILD_SA: KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr [| SK(1)]). SK(1) is the secret of an additional key exchange in
/// IKE_FOLLOWUP_KE (RFC 9370 §2.2.4). First what the exchange's initiator seals with, then what
/// its responder seals with.
#[must_use]
pub fn child(
    prf: Prf,
    sk_d: &Secret,
    (shared, additional): (Option<&Secret>, Option<&Secret>),
    nonce_i: &[u8],
    nonce_r: &[u8],
    aead: AeadAlgorithm,
) -> (SaKey, SaKey) {
    let shared = shared.map_or(&[][..], Secret::expose);
    let additional = additional.map_or(&[][..], Secret::expose);
    let keymat = prf.expand(sk_d.expose(), &[shared, nonce_i, nonce_r, additional], 2 * aead.keymat_len());
    let (initiator, responder) = keymat.expose().split_at(aead.keymat_len());
    (SaKey { keymat: Secret::copy_of(initiator) }, SaKey { keymat: Secret::copy_of(responder) })
}

#[cfg(test)]
mod tests;
