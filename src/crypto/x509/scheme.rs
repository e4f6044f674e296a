//! Signatures of AUTH by certified keys (RFC 7427, RFC 4754): which AlgorithmIdentifiers are accepted, and our own.
//!
//! RSA signs with PSS only. PKCS#1 v1.5 is where checks went wrong again and again, RFC 8247 §3.2 prefers PSS, and every peer that
//! speaks RFC 7427 can do it. It is accepted inside certificates, since few RSA authorities sign otherwise.

use pki_types::SignatureVerificationAlgorithm;
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519,
    RSA_PSS_2048_8192_SHA256_LEGACY_KEY, RSA_PSS_2048_8192_SHA384_LEGACY_KEY, RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
};

use super::der::{self, SEQUENCE};

/// A verifier of the path builder.
type Verifier = &'static dyn SignatureVerificationAlgorithm;

/// AlgorithmIdentifiers, without their outer SEQUENCE: id-Ed25519, ecdsa-with-SHA256 and ecdsa-with-SHA384 have no parameters.
pub const ID_ED25519: [u8; 5] = [0x06, 3, 0x2b, 0x65, 0x70];
pub const ID_ECDSA_SHA256: [u8; 10] = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
pub const ID_ECDSA_SHA384: [u8; 10] = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

/// The OIDs of RSA without their last octet: 1.2.840.113549.1.1.
const PKCS1: [u8; 10] = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];

/// The last octets: id-RSASSA-PSS, id-mgf1, and the signatures of PKCS#1 v1.5.
const PSS: u8 = 10;
const MGF1: u8 = 8;
const PKCS1_V1_5: [u8; 7] = [2, 4, 5, 11, 12, 13, 14];

/// SHA-256, SHA-384 and SHA-512: the last octet of the OID 2.16.840.1.101.3.4.2, and octets of a digest, which are those of the salt.
const HASHES: [(u8, u8); 3] = [(1, 32), (2, 48), (3, 64)];

/// The parameters of RSASSA-PSS for one hash (RFC 4055 §3.1). Two things may be written in two ways: the hash with NULL or nothing
/// as parameter, and the trailer field, whose only value is also its default (RFC 7427 appendix A.4.3 writes it).
pub fn pss_identifier((hash, salt): (u8, u8), null: bool, trailer: bool) -> Vec<u8> {
    let hash = [&[0x06, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash][..], if null { &[5, 0] } else { &[] }].concat();
    let hash = der::wrap(SEQUENCE, &hash);
    let mgf = der::wrap(SEQUENCE, &[&PKCS1[..], &[MGF1], &hash].concat());
    let mut parameters = [der::wrap(0xa0, &hash), der::wrap(0xa1, &mgf), der::wrap(0xa2, &[2, 1, salt])].concat();
    if trailer {
        parameters.extend([0xa3, 3, 2, 1, 1]);
    }
    [&PKCS1[..], &[PSS], &der::wrap(SEQUENCE, &parameters)].concat()
}

/// What we write for our own RSA keys: SHA-256, DER to the letter.
pub fn own_pss_identifier() -> Vec<u8> {
    pss_identifier(HASHES[0], true, false)
}

/// In front of a signature in AUTH: the length of the AlgorithmIdentifier, and the AlgorithmIdentifier (RFC 7427 §3).
pub fn prefix(identifier: &[u8]) -> Vec<u8> {
    let sequence = der::wrap(SEQUENCE, identifier);
    [&[sequence.len() as u8][..], &sequence].concat()
}

/// Cuts the data of a digital signature (method 14) into who may verify it and the signature.
///
/// # Errors
/// A sentence.
pub fn cut(data: &[u8]) -> Result<(Vec<Verifier>, &[u8]), String> {
    let (&len, rest) = data.split_first().ok_or("the AUTH payload holds no signature")?;
    let (identifier, signature) =
        rest.split_at_checked(len.into()).ok_or("the AlgorithmIdentifier in AUTH is longer than the payload")?;
    let is = |known: &[u8]| identifier == der::wrap(SEQUENCE, known);
    let verifiers = if is(&ID_ED25519) {
        vec![ED25519]
    } else if is(&ID_ECDSA_SHA256) {
        vec![ECDSA_P256_SHA256, ECDSA_P384_SHA256]
    } else if is(&ID_ECDSA_SHA384) {
        vec![ECDSA_P384_SHA384, ECDSA_P256_SHA384]
    } else {
        vec![pss_verifier(identifier)?]
    };
    Ok((verifiers, signature))
}

fn pss_verifier(identifier: &[u8]) -> Result<Verifier, String> {
    let verifiers: [Verifier; 3] =
        [RSA_PSS_2048_8192_SHA256_LEGACY_KEY, RSA_PSS_2048_8192_SHA384_LEGACY_KEY, RSA_PSS_2048_8192_SHA512_LEGACY_KEY];
    for (hash, verifier) in HASHES.into_iter().zip(verifiers) {
        for (null, trailer) in [(true, false), (true, true), (false, false), (false, true)] {
            if identifier == der::wrap(SEQUENCE, &pss_identifier(hash, null, trailer)) {
                return Ok(verifier);
            }
        }
    }
    let oid = identifier.get(2..).and_then(|content| content.strip_prefix(&PKCS1)).and_then(|rest| rest.first());
    Err(match oid {
        Some(last) if PKCS1_V1_5.contains(last) => {
            "the peer signs with RSA PKCS#1 v1.5: only RSASSA-PSS is taken (strongSwan: rsa_pss = yes)".to_owned()
        }
        Some(&PSS) => {
            "the parameters of its RSASSA-PSS signature are not SHA-2 with MGF1 and a salt of the digest's length".to_owned()
        }
        _ => "the signature is by none of Ed25519, ECDSA with SHA-256 or SHA-384, and RSASSA-PSS".to_owned(),
    })
}

/// A signature of RFC 4754 (methods 9 and 10): r and s, of which the verifier wants a SEQUENCE of two INTEGERs.
///
/// # Errors
/// A sentence.
pub fn rfc4754(method: u8, data: &[u8]) -> Result<(Verifier, Vec<u8>), String> {
    let (verifier, len): (Verifier, _) = match method {
        9 => (ECDSA_P256_SHA256, 64),
        10 => (ECDSA_P384_SHA384, 96),
        other => return Err(format!("AUTH method {other} is not taken with certificates: a digital signature (14) is")),
    };
    if data.len() != len {
        return Err(format!("an ECDSA signature of method {method} has {len} octets, this one has {}", data.len()));
    }
    let (r, s) = data.split_at(len / 2);
    Ok((verifier, der::wrap(SEQUENCE, &[integer(r), integer(s)].concat())))
}

/// An unsigned INTEGER.
fn integer(octets: &[u8]) -> Vec<u8> {
    let significant = octets.iter().position(|octet| *octet != 0).map_or(&[0][..], |first| &octets[first..]);
    let sign = if significant[0] >= 0x80 { &[0][..] } else { &[] };
    der::wrap(0x02, &[sign, significant].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testdata::hex;

    /// RFC 7427 appendix A.
    #[test]
    fn identifiers_are_those_of_the_rfc() {
        let wrapped = |identifier: &[u8]| der::wrap(SEQUENCE, identifier);
        assert_eq!(wrapped(&ID_ECDSA_SHA256), hex("300a06082a8648ce3d040302"));
        assert_eq!(wrapped(&ID_ECDSA_SHA384), hex("300a06082a8648ce3d040303"));
        assert_eq!(
            wrapped(&pss_identifier(HASHES[0], true, true)),
            hex("304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d0609608648016503\
                 04020105 00a203020120a303020101".replace(' ', "").as_str())
        );
    }

    #[test]
    fn case_80_other_algorithms_of_certified_keys_are_refused() {
        let auth = |identifier: &[u8]| [&prefix(identifier)[..], &[1; 64]].concat();
        assert!(cut(&auth(&ID_ED25519)).is_ok());
        let mut long_salt = pss_identifier(HASHES[0], true, false);
        *long_salt.last_mut().unwrap() = 33;
        let huge_salt = {
            let hash = der::wrap(0xa2, &[2, 4, 0x7f, 0xff, 0xff, 0xff]);
            [&PKCS1[..], &[PSS], &der::wrap(SEQUENCE, &hash)].concat()
        };
        for (identifier, why) in [
            ([&PKCS1[..], &[11, 5, 0]].concat(), "PKCS#1 v1.5"),
            ([&PKCS1[..], &[5, 5, 0]].concat(), "PKCS#1 v1.5"),
            ([&PKCS1[..], &[PSS]].concat(), "parameters"),
            (long_salt, "parameters"),
            (huge_salt, "parameters"),
            (hex("06072a8648ce3d0401"), "none of"),
            (Vec::new(), "none of"),
        ] {
            let error = cut(&auth(&identifier)).err().unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
        for data in [&[][..], &[1], &[200, 0x30, 5], &[255; 255]] {
            assert!(cut(data).is_err());
        }
        assert!(rfc4754(1, &[0; 64]).is_err() && rfc4754(9, &[0; 63]).is_err() && rfc4754(11, &[0; 132]).is_err());
    }

    #[test]
    fn integers_are_minimal_and_positive() {
        for (octets, der) in [(&[0, 0][..], &[2, 1, 0][..]), (&[0, 0x7f], &[2, 1, 0x7f]), (&[0, 0x80], &[2, 2, 0, 0x80])] {
            assert_eq!(integer(octets), der);
        }
    }
}
