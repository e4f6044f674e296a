//! COOKIE as responder (RFC 7296 §2.6): when too many half-open IKE SAs wait, an initiator must first show that it hears us at
//! the address that it claims. Until then nothing of it is kept.
//!
//! `Cookie = epoch | prf(secret, SPIi | IPi | Ni)`. The epoch is RFC 7296's VersionIDofSecret: each has a secret of its own, drawn when
//! it is needed first. Those of the current and of the last one count, so a cookie is good for one to two [`COOKIE_EPOCH`]s.

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
#[derive(Debug, Default)]
pub struct CookieJar {
    /// The newest secret, and the one before it, with their epochs.
    secrets: [Option<(u64, Secret)>; 2],
}

impl CookieJar {
    /// The cookie of this initiator.
    pub fn bake(&mut self, now: Instant, claimant: Claimant<'_>, rng: &mut dyn Rng) -> Bytes {
        let current = epoch(now);
        if self.secrets[0].as_ref().is_none_or(|(epoch, _)| *epoch != current) {
            let mut secret = vec![0; SECRET_LEN];
            rng.fill(&mut secret);
            self.secrets[1] = self.secrets[0].replace((current, Secret::new(secret)));
        }
        self.secrets[0].as_ref().map_or_else(Bytes::new, |(epoch, secret)| cookie(*epoch, secret, claimant))
    }

    /// Whether this is its cookie, and not a stale one.
    pub fn is_good(&self, now: Instant, claimant: Claimant<'_>, received: &[u8]) -> bool {
        let current = epoch(now);
        let young = self.secrets.iter().flatten().filter(|(epoch, _)| current - epoch <= 1);
        young.into_iter().any(|(epoch, secret)| crypto::equal(&cookie(*epoch, secret, claimant), received))
    }
}

fn cookie(epoch: u64, secret: &Secret, Claimant { spi, source, nonce }: Claimant<'_>) -> Bytes {
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
    let mac = Prf(PrfAlgorithm::HmacSha2_256).compute(secret.expose(), &[&spi.to_be_bytes(), &lengths, source, nonce]);
    [&epoch.to_be_bytes()[..], mac.expose()].concat().into()
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
        let (mut jar, rng) = (CookieJar::default(), &mut SeededRng::new(1));
        let claimant = Claimant { spi: 1, source: [192, 0, 2, 1].into(), nonce: &[7; 32] };
        let later = |epochs: u32| Instant::from_origin(COOKIE_EPOCH * epochs);
        assert!(!jar.is_good(later(0), claimant, &[]), "nobody has one yet");
        let cookie = jar.bake(Instant::ORIGIN, claimant, rng);
        assert!((1..=64).contains(&cookie.len()));
        assert_eq!(jar.bake(Instant::ORIGIN, claimant, rng), cookie);
        let others = [
            Claimant { spi: 2, ..claimant },
            Claimant { source: [192, 0, 2, 2].into(), ..claimant },
            Claimant { nonce: &[8; 32], ..claimant },
        ];
        for other in others {
            assert!(!jar.is_good(later(0), other, &cookie), "{other:?}");
        }
        for bad in [&cookie[..cookie.len() - 1], &[]] {
            assert!(!jar.is_good(later(0), claimant, bad));
        }
        let mut another_host = CookieJar::default();
        another_host.bake(later(0), claimant, &mut SeededRng::new(2));
        assert!(!another_host.is_good(later(0), claimant, &cookie));
        // The next secret, and the one after it.
        let next = jar.bake(later(1), claimant, rng);
        assert_ne!(next[8..], cookie[8..], "another secret");
        assert!(jar.is_good(later(1), claimant, &cookie) && jar.is_good(later(1), claimant, &next));
        assert!(!jar.is_good(later(2), claimant, &cookie), "stale, although its secret is still there");
        jar.bake(later(2), claimant, rng);
        assert!(!jar.is_good(later(2), claimant, &cookie) && jar.is_good(later(2), claimant, &next));
        // An epoch without any cookie.
        jar.bake(later(9), claimant, rng);
        assert!(!jar.is_good(later(9), claimant, &next));
    }
}
