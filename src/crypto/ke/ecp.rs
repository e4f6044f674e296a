//! The random ECP groups (RFC 5903): values travel as x and y without the 0x04 of SEC 1, the secret is x alone.

use p256::NistP256;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey};
use p384::NistP384;
use zeroize::Zeroizing;

use crate::crypto::{KeyExchange, KeyExchangeError};
use crate::model::{KeGroup, Rng, Secret};

/// SEC 1's mark of an uncompressed point, which IKE leaves out.
const UNCOMPRESSED: u8 = 4;

/// Octets of a value with its mark, in the largest group.
const SEC1_MAX: usize = 1 + KeGroup::EcP384.public_len();

/// A curve and its number in IKE.
pub(super) trait EcpCurve: CurveArithmetic {
    const GROUP: KeGroup;
}

impl EcpCurve for NistP256 {
    const GROUP: KeGroup = KeGroup::EcP256;
}

impl EcpCurve for NistP384 {
    const GROUP: KeGroup = KeGroup::EcP384;
}

/// Our half. The private value wipes itself.
pub(super) struct Ecp<C: EcpCurve> {
    private: SecretKey<C>,
    /// x, then y.
    public: Box<[u8]>,
}

impl<C> Ecp<C>
where
    C: EcpCurve,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    /// Draws whole private values until one lies in 1..n, so that each is as likely as any other.
    pub(super) fn random(rng: &mut dyn Rng) -> Self {
        let mut private = Zeroizing::new([0; SEC1_MAX]);
        let private = &mut private[..C::GROUP.public_len() / 2];
        loop {
            rng.fill(private);
            if let Some(exchange) = Self::from_private(private) {
                return exchange;
            }
        }
    }

    /// None if the number is not in 1..n.
    pub(super) fn from_private(private: &[u8]) -> Option<Self> {
        let private = SecretKey::<C>::from_slice(private).ok()?;
        let public = private.public_key().to_sec1_point(false).as_bytes()[1..].into();
        Some(Self { private, public })
    }
}

impl<C> KeyExchange for Ecp<C>
where
    C: EcpCurve,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    fn group(&self) -> KeGroup {
        C::GROUP
    }

    fn public_value(&self) -> &[u8] {
        &self.public
    }

    fn agree(&self, peer_value: &[u8]) -> Result<Secret, KeyExchangeError> {
        if peer_value.len() != C::GROUP.public_len() {
            return Err(KeyExchangeError::Length);
        }
        let mut sec1 = [UNCOMPRESSED; SEC1_MAX];
        let sec1 = &mut sec1[..1 + peer_value.len()];
        sec1[1..].copy_from_slice(peer_value);
        // Refuses coordinates that are no field elements and points that are not on the curve. The point at infinity has no
        // such encoding, and the curves have no other points of low order.
        let peer = PublicKey::<C>::from_sec1_bytes(sec1).map_err(|_| KeyExchangeError::NotOnCurve)?;
        let shared = self.private.diffie_hellman(&peer);
        Ok(Secret::copy_of(shared.raw_secret_bytes()))
    }
}
