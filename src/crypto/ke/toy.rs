//! Key exchanges for schedules that are played by the ten thousand: values of the right lengths and secrets that agree, made by a few
//! multiplications. They hide nothing. Only tests have them, and only where they ask.

use std::cell::Cell;

use crate::crypto::{KeyExchange, KeyExchangeError};
use crate::model::{KeGroup, Rng, Secret, SeededRng};

/// Octets of an ML-KEM-768 ciphertext.
const CIPHERTEXT_LEN: usize = 1088;

/// Octets of a secret.
const SECRET_LEN: usize = 32;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// From now on, on this thread.
pub(crate) fn play_with_toys(on: bool) {
    ON.set(on);
}

pub(super) fn is_on() -> bool {
    ON.get()
}

pub(super) struct Toy {
    group: KeGroup,
    public: Vec<u8>,
}

impl Toy {
    pub(super) fn random(group: KeGroup, rng: &mut dyn Rng) -> Self {
        let mut public = vec![0; group.public_len()];
        SeededRng::new(draw(rng)).fill(&mut public);
        Self { group, public }
    }
}

impl KeyExchange for Toy {
    fn group(&self) -> KeGroup {
        self.group
    }

    fn public_value(&self) -> &[u8] {
        &self.public
    }

    fn agree(&self, peer_value: &[u8]) -> Result<Secret, KeyExchangeError> {
        let is_kem = self.group == KeGroup::MlKem768;
        let expected = if is_kem { CIPHERTEXT_LEN } else { self.public.len() };
        if peer_value.len() != expected {
            return Err(KeyExchangeError::Length);
        }
        let ends = if is_kem { [&self.public[..], peer_value] } else { sorted(&self.public, peer_value) };
        Ok(secret(ends))
    }
}

/// A ciphertext for this key, and the secret.
pub(super) fn encapsulate(peer_value: &[u8], rng: &mut dyn Rng) -> Result<(Vec<u8>, Secret), KeyExchangeError> {
    if peer_value.len() != KeGroup::MlKem768.public_len() {
        return Err(KeyExchangeError::Length);
    }
    let mut ciphertext = vec![0; CIPHERTEXT_LEN];
    SeededRng::new(draw(rng)).fill(&mut ciphertext);
    let secret = secret([peer_value, &ciphertext]);
    Ok((ciphertext, secret))
}

/// Of as many octets as the real ones draw, or close to it.
fn draw(rng: &mut dyn Rng) -> u64 {
    let mut octets = [0; 32];
    rng.fill(&mut octets);
    fold(&octets)
}

fn sorted<'a>(one: &'a [u8], other: &'a [u8]) -> [&'a [u8]; 2] {
    [one.min(other), one.max(other)]
}

fn secret([one, other]: [&[u8]; 2]) -> Secret {
    let mut octets = vec![0; SECRET_LEN];
    SeededRng::new(fold(one).rotate_left(7) ^ fold(other)).fill(&mut octets);
    Secret::new(octets)
}

/// FNV-1a.
fn fold(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &octet| (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn both_ends_agree_and_others_do_not() {
    let mut rng = SeededRng::new(1);
    for group in KeGroup::ALL {
        let [one, other, third] = [(); 3].map(|()| Toy::random(group, &mut rng));
        let secret = one.agree(other.public_value()).unwrap();
        assert_eq!(secret.expose(), other.agree(one.public_value()).unwrap().expose());
        assert_ne!(secret.expose(), third.agree(one.public_value()).unwrap().expose());
        assert!(one.agree(&[1; 5]).is_err());
    }
    let half = Toy::random(KeGroup::MlKem768, &mut rng);
    let (ciphertext, secret) = encapsulate(half.public_value(), &mut rng).unwrap();
    assert_eq!(half.agree(&ciphertext).unwrap().expose(), secret.expose());
    assert!(encapsulate(&[1; 32], &mut rng).is_err() && half.agree(half.public_value()).is_err());
}
