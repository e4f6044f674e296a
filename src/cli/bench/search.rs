//! The highest rate at which less than one datagram in a hundred is lost.

use super::packets::Trial;

/// What may be lost. Benchmarks of routers ask for none at all (RFC 2544 §26.1); two hosts that share a machine's cores with the
/// generator lose some to the scheduler at any rate.
pub const LOSS: f64 = 0.01;

/// Loss that may have been a hiccup of the machine: the rate is tried once more.
const HICCUP: f64 = 0.05;

/// The answer is known this well.
const PRECISION: f64 = 1.04;

/// Rates that are tried, at most.
pub const RATES: usize = 8;

/// A sender that reaches less than this part of what is asked of it cannot go faster.
const REACHED: f64 = 0.97;

/// Searches below `start` by halves; `attempt` sends at a rate. The answer is the best trial that lost little, if any did.
///
/// # Errors
/// Those of `attempt`.
pub fn highest<E>(start: f64, mut attempt: impl FnMut(f64) -> Result<Trial, E>) -> Result<Option<Trial>, E> {
    let (mut low, mut high) = (0.0_f64, start);
    let mut best: Option<Trial> = None;
    for _ in 0..RATES {
        if high < PRECISION * low {
            break;
        }
        let rate = f64::midpoint(low, high);
        let mut trial = attempt(rate)?;
        if (LOSS..HICCUP).contains(&trial.loss()) {
            trial = attempt(rate)?;
        }
        if trial.loss() >= LOSS {
            high = rate;
            continue;
        }
        if best.is_none_or(|best| trial.rate() > best.rate()) {
            best = Some(trial);
        }
        low = low.max(trial.sent_rate());
        if trial.sent_rate() < REACHED * rate {
            high = low;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn trial(sent_rate: f64, rate: f64) -> Trial {
        Trial { sent: sent_rate as u64, received: rate as u64, octets: 0, seconds: 1.0 }
    }

    /// Something that carries so much and loses the rest, behind a sender that cannot send more than that.
    fn pipe(capacity: f64, fastest: f64) -> impl Fn(f64) -> Result<Trial, Infallible> {
        move |rate| Ok(trial(rate.min(fastest), rate.min(fastest).min(capacity)))
    }

    #[test]
    fn the_limit_is_found_from_above_and_below() {
        for capacity in [1e3, 5e4, 123_456.0, 199_000.0] {
            let found = highest(200_000.0, pipe(capacity, 1e9)).unwrap().unwrap().rate();
            // Eight halvings find the large ones to 4 %; the small ones to the start's 256th part.
            let room = (capacity * 0.04).max(200_000.0 / 256.0);
            assert!(found <= capacity && found >= capacity - room, "{capacity}: {found}");
        }
    }

    #[test]
    fn a_slow_sender_ends_the_search() {
        let mut attempts = 0;
        let found = highest(1e6, |rate| {
            attempts += 1;
            pipe(1e9, 3e5)(rate)
        });
        assert_eq!((found.unwrap().unwrap().rate(), attempts), (3e5, 1));
    }

    #[test]
    fn a_hiccup_is_forgiven_once() {
        let mut attempts = Vec::new();
        let found = highest(1e5, |rate| {
            attempts.push(rate);
            let hiccup = attempts.len() == 1;
            Ok::<_, Infallible>(trial(rate, if hiccup { rate * 0.97 } else { rate }))
        });
        assert_eq!(attempts[..2], [5e4, 5e4]);
        assert!(found.unwrap().unwrap().rate() > 9e4);
        // Twice is no hiccup.
        assert_eq!(highest(1e5, |rate| Ok::<_, Infallible>(trial(rate, rate * 0.97))), Ok(None));
    }

    #[test]
    fn errors_end_it() {
        assert_eq!(highest(1e5, |_| Err("gone")), Err("gone"));
    }
}
