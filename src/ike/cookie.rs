//! COOKIE as responder (RFC 7296 §2.6): when too many half-open IKE SAs wait, an initiator must first show that it hears us at
//! the address that it claims. Until then nothing of it is kept.
//!
//! `Cookie = epoch | prf(secret, epoch | SPIi | IPi | Ni)`. The epoch takes the place of RFC 7296's VersionIDofSecret: cookies of
//! the current and of the last one count, so each is good for one to two [`COOKIE_EPOCH`]s.

use std::net::IpAddr;

use bytes::Bytes;

use super::limits::COOKIE_EPOCH;
use crate::crypto::{self, Prf};
use crate::model::{Instant, PrfAlgorithm, Rng, Secret};

/// Octets of the secret: as many as the PRF's output.
const SECRET_LEN: usize = 32;

/// What a cookie vouches for.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    pub spi: u64,
    pub source: IpAddr,
    pub nonce: &'a [u8],
}

/// Makes cookies and knows them again, without remembering any.
#[derive(Debug)]
pub struct CookieJar(Secret);

impl CookieJar {
    /// With a secret of its own.
    pub fn new(rng: &mut dyn Rng) -> Self {
        let mut secret = vec![0; SECRET_LEN];
        rng.fill(&mut secret);
        Self(Secret::new(secret))
    }

    /// The cookie of this initiator.
    pub fn bake(&self, now: Instant, claimant: Claimant<'_>) -> Bytes {
        self.of_epoch(epoch(now), claimant)
    }

    /// Whether this is its cookie, and not a stale one.
    pub fn is_good(&self, now: Instant, claimant: Claimant<'_>, cookie: &[u8]) -> bool {
        let current = epoch(now);
        let epochs = [Some(current), current.checked_sub(1)];
        epochs.into_iter().flatten().any(|epoch| crypto::equal(&self.of_epoch(epoch, claimant), cookie))
    }

    fn of_epoch(&self, epoch: u64, Claimant { spi, source, nonce }: Claimant<'_>) -> Bytes {
        let (spi, epoch) = (spi.to_be_bytes(), epoch.to_be_bytes());
        let (v4, v6);
        let source: &[u8] = match source.to_canonical() {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        // Of variable length are the address, which the nonce cannot pass for as its own length is covered too, and the nonce.
        let lengths = [source.len() as u8];
        let mac = Prf(PrfAlgorithm::HmacSha2_256).compute(self.0.expose(), &[&epoch, &spi, &lengths, source, nonce]);
        [&epoch[..], mac.expose()].concat().into()
    }
}

fn epoch(now: Instant) -> u64 {
    now.since_origin().as_secs() / COOKIE_EPOCH.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SeededRng;

    #[test]
    fn a_cookie_is_good_for_its_own_claimant_and_for_two_epochs_at_most() {
        let jar = CookieJar::new(&mut SeededRng::new(1));
        let claimant = Claimant { spi: 1, source: [192, 0, 2, 1].into(), nonce: &[7; 32] };
        let cookie = jar.bake(Instant::ORIGIN, claimant);
        assert!((1..=64).contains(&cookie.len()));
        let later = |epochs: u32| Instant::from_origin(COOKIE_EPOCH * epochs);
        assert!(jar.is_good(later(0), claimant, &cookie) && jar.is_good(later(1), claimant, &cookie));
        assert!(!jar.is_good(later(2), claimant, &cookie));
        let others = [
            Claimant { spi: 2, ..claimant },
            Claimant { source: [192, 0, 2, 2].into(), ..claimant },
            Claimant { nonce: &[8; 32], ..claimant },
        ];
        for other in others {
            assert!(!jar.is_good(later(0), other, &cookie), "{other:?}");
        }
        let another_host = CookieJar::new(&mut SeededRng::new(2));
        assert!(!another_host.is_good(later(0), claimant, &cookie));
        for bad in [&cookie[..cookie.len() - 1], &[]] {
            assert!(!jar.is_good(later(0), claimant, bad));
        }
    }
}
