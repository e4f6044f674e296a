//! Ed25519 against RFC 8032, RFC 8410, Wycheproof and the points of small order.

use super::*;
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
