//! Anti-replay (RFC 4303 §3.4.3): which sequence numbers were seen, and what the high half of an extended one must be.
//!
//! A datagram walks through three types: [`ReplayWindow::check`] turns the 32 bits on the wire into a [`Checked`] sequence
//! number, the ICV turns that into an [`Authenticated`] one, and only that can be [`ReplayWindow::accept`]ed. So nothing
//! that is not authentic can move the window.
//!
//! The window is a ring of 64-bit words as in RFC 6479: advancing clears whole words and shifts nothing.

use crate::model::DropReason;

/// Smallest window in packets: RFC 4303 §3.4.3 asks for at least 32, a word holds 64.
const MIN_WINDOW: u32 = 64;

/// Largest window in packets: 16 KiB of memory per SA, far more than any path reorders.
const MAX_WINDOW: u32 = 1 << 17;

/// Sequence numbers per word of the ring.
const WORD_BITS: u64 = u64::BITS as u64;

/// The sequence numbers that were accepted on one inbound SA.
#[derive(Debug)]
pub struct ReplayWindow {
    /// T of RFC 4303 appendix A: the highest sequence number that was authenticated; 0 before the first.
    top: u64,
    /// W: how many numbers up to and including `top` are told apart.
    window: u32,
    /// Whether sequence numbers have a high half that is not sent.
    esn: bool,
    /// One bit per sequence number, one word more than the window needs, a power of two of them.
    words: Box<[u64]>,
}

/// A sequence number that was not seen yet, of a datagram whose ICV is still to be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checked(u64);

/// The sequence number of a datagram whose ICV holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Authenticated(u64);

/// What an accepted sequence number says about the order of datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// Above all before it.
    Newest,
    /// Between or below others.
    Reordered,
}

impl Checked {
    /// The whole sequence number, high half included.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The verdict on the ICV.
    ///
    /// # Errors
    /// [`DropReason::BadIcv`].
    pub const fn authenticate(self, icv_holds: bool) -> Result<Authenticated, DropReason> {
        if icv_holds { Ok(Authenticated(self.0)) } else { Err(DropReason::BadIcv) }
    }
}

impl ReplayWindow {
    /// An empty window of about that many packets: sizes outside 64 to 131072 are taken to the nearer end.
    #[must_use]
    pub fn new(window: u32, esn: bool) -> Self {
        let window = window.clamp(MIN_WINDOW, MAX_WINDOW);
        // One word more than the window spans: the word that the top is in may hold only numbers above the window's bottom.
        let words = (u64::from(window).div_ceil(WORD_BITS) + 1).next_power_of_two();
        Self { top: 0, window, esn, words: vec![0; words as usize].into_boxed_slice() }
    }

    /// The highest sequence number that was authenticated; 0 before the first.
    #[must_use]
    pub const fn top(&self) -> u64 {
        self.top
    }

    /// Whether a datagram with these 32 bits may still come; nothing changes.
    ///
    /// # Errors
    /// [`DropReason::ZeroSequence`], [`DropReason::TooOld`] or [`DropReason::Replay`].
    pub fn check(&self, low: u32) -> Result<Checked, DropReason> {
        let sequence = if self.esn { self.infer(low).ok_or(DropReason::TooOld)? } else { u64::from(low) };
        if sequence == 0 {
            return Err(DropReason::ZeroSequence);
        }
        self.check_whole(sequence)?;
        Ok(Checked(sequence))
    }

    /// Marks the number as seen. It may have become a replay since it was checked: by a twin in the same batch.
    ///
    /// # Errors
    /// [`DropReason::TooOld`] or [`DropReason::Replay`]; nothing changed then.
    pub fn accept(&mut self, Authenticated(sequence): Authenticated) -> Result<Accepted, DropReason> {
        self.check_whole(sequence)?;
        let order = if sequence > self.top {
            self.advance(sequence);
            Accepted::Newest
        } else {
            Accepted::Reordered
        };
        let (word, bit) = self.place(sequence);
        self.words[word] |= bit;
        Ok(order)
    }

    /// Replay check on a whole sequence number.
    fn check_whole(&self, sequence: u64) -> Result<(), DropReason> {
        if sequence > self.top {
            return Ok(());
        }
        if self.top - sequence >= u64::from(self.window) {
            return Err(DropReason::TooOld);
        }
        let (word, bit) = self.place(sequence);
        if self.words[word] & bit == 0 { Ok(()) } else { Err(DropReason::Replay) }
    }

    /// Moves the top up and clears the words that come into use.
    fn advance(&mut self, sequence: u64) {
        let old = self.top / WORD_BITS;
        let steps = (sequence / WORD_BITS - old).min(self.words.len() as u64);
        let mask = self.words.len() - 1;
        for step in 1..=steps {
            self.words[(old.wrapping_add(step) as usize) & mask] = 0;
        }
        self.top = sequence;
    }

    /// The word and the bit of a sequence number.
    fn place(&self, sequence: u64) -> (usize, u64) {
        ((sequence / WORD_BITS) as usize & (self.words.len() - 1), 1 << (sequence % WORD_BITS))
    }

    /// RFC 4303 appendix A2.2: the whole sequence number that these low 32 bits stand for; none if it lies outside 64 bits.
    fn infer(&self, low: u32) -> Option<u64> {
        // Tl, Th: the halves of T. W: the window.
        let (tl, th) = (self.top as u32, (self.top >> 32) as u32);
        let bottom = tl.wrapping_sub(self.window - 1);
        let high = if tl >= self.window - 1 {
            // Case A: the window lies in one subspace.       Seql >= Tl - W + 1  ->  Seqh = Th, else Th + 1
            if low >= bottom { th } else { th.checked_add(1)? }
        } else {
            // Case B: the window spans two subspaces.        Seql >= Tl - W + 1  ->  Seqh = Th - 1, else Th
            // In the first subspace there is none before it: the number is a far jump ahead.
            if low >= bottom { th.saturating_sub(1) } else { th }
        };
        Some(u64::from(high) << 32 | u64::from(low))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn accept(window: &mut ReplayWindow, low: u32) -> Result<Accepted, DropReason> {
        let authenticated = window.check(low)?.authenticate(true)?;
        window.accept(authenticated)
    }

    /// A window that has seen nothing but this number.
    fn window_at(top: u64, size: u32, esn: bool) -> ReplayWindow {
        let mut window = ReplayWindow::new(size, esn);
        window.accept(Authenticated(top)).expect("an empty window takes every number");
        window
    }

    #[test]
    fn case_107_zero_replay_and_the_edges_of_the_window() {
        let mut window = ReplayWindow::new(128, false);
        assert_eq!(accept(&mut window, 0), Err(DropReason::ZeroSequence));
        assert_eq!(accept(&mut window, 1), Ok(Accepted::Newest));
        assert_eq!(accept(&mut window, 1), Err(DropReason::Replay));
        assert_eq!(accept(&mut window, 1000), Ok(Accepted::Newest));
        // The window holds 873 to 1000.
        assert_eq!(accept(&mut window, 872), Err(DropReason::TooOld));
        assert_eq!(accept(&mut window, 873), Ok(Accepted::Reordered));
        assert_eq!(accept(&mut window, 873), Err(DropReason::Replay));
        assert_eq!(accept(&mut window, 874), Ok(Accepted::Reordered));
        assert_eq!(accept(&mut window, 1 << 31), Ok(Accepted::Newest));
        assert_eq!(accept(&mut window, 1000), Err(DropReason::TooOld));
        assert_eq!(accept(&mut window, u32::MAX), Ok(Accepted::Newest));
        // 32-bit numbers do not wrap: what follows the last is the past.
        assert_eq!(accept(&mut window, 1), Err(DropReason::TooOld));
        assert_eq!(window.top(), u64::from(u32::MAX));
    }

    #[test]
    fn a_bad_icv_cannot_reach_the_window() {
        let window = ReplayWindow::new(4096, true);
        assert_eq!(window.check(7).expect("new").authenticate(false), Err(DropReason::BadIcv));
        assert_eq!(window.top(), 0);
    }

    #[test]
    fn case_108_the_high_word_is_inferred_at_the_wrap() {
        let mut window = window_at(0xffff_ffff, 64, true);
        assert_eq!(window.check(5), Ok(Checked(0x1_0000_0005)));
        assert_eq!(accept(&mut window, 5), Ok(Accepted::Newest));
        // The window spans two subspaces now.
        assert_eq!(window.check(0xffff_fff0), Ok(Checked(0xffff_fff0)));
        assert_eq!(window.check(0xffff_ffff), Err(DropReason::Replay));
        assert_eq!(window.check(6), Ok(Checked(0x1_0000_0006)));
        // 64 - 6 numbers of the old subspace are left: the one before them stands for a jump ahead.
        assert_eq!(window.check(0xffff_ffc6), Ok(Checked(0xffff_ffc6)));
        assert_eq!(window.check(0xffff_ffc5), Ok(Checked(0x1_ffff_ffc5)));
        // With a top just above the window, zero of the next subspace is a real number.
        assert_eq!(window_at(0x1_0000_0040, 64, true).check(0), Ok(Checked(0x2_0000_0000)));
    }

    #[test]
    fn there_is_nothing_before_the_first_and_behind_the_last_subspace() {
        assert_eq!(ReplayWindow::new(64, true).check(0xffff_ffff), Ok(Checked(0xffff_ffff)));
        assert_eq!(ReplayWindow::new(64, true).check(0), Err(DropReason::ZeroSequence));
        assert_eq!(window_at(u64::MAX, 64, true).check(3), Err(DropReason::TooOld));
        assert_eq!(window_at(u64::MAX, 64, true).check(u32::MAX), Err(DropReason::Replay));
        assert_eq!(window_at(u64::MAX - 1, 64, true).check(u32::MAX), Ok(Checked(u64::MAX)));
    }

    #[test]
    fn sizes_are_taken_to_what_is_sensible() {
        for (asked, got) in [(0, 64), (63, 64), (65, 65), (4096, 4096), (u32::MAX, 1 << 17)] {
            let window = window_at(1 << 40, asked, true);
            assert_eq!(window.check_whole((1 << 40) - (got - 1)), Ok(()));
            assert_eq!(window.check_whole((1 << 40) - got), Err(DropReason::TooOld));
        }
    }

    /// The definition, without words and rings: every number that was accepted.
    struct Model {
        seen: BTreeSet<u64>,
        window: u64,
        esn: bool,
    }

    impl Model {
        fn accept(&mut self, low: u32) -> Result<Accepted, DropReason> {
            let top = self.seen.last().copied().unwrap_or(0);
            // RFC 4303 §3.4.3: of all numbers with these low bits, the one in the 2^32 that begin with the window.
            let sequence = if self.esn {
                let bottom = (i128::from(top) - i128::from(self.window) + 1).max(0);
                let behind = (i128::from(low) - bottom).rem_euclid(1 << 32);
                u64::try_from(bottom + behind).map_err(|_| DropReason::TooOld)?
            } else {
                u64::from(low)
            };
            if sequence == 0 {
                Err(DropReason::ZeroSequence)
            } else if sequence + self.window <= top {
                Err(DropReason::TooOld)
            } else if !self.seen.insert(sequence) {
                Err(DropReason::Replay)
            } else if sequence > top {
                Ok(Accepted::Newest)
            } else {
                Ok(Accepted::Reordered)
            }
        }
    }

    /// Steps relative to the top, near it and far from it.
    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![6 => -3i64..6, 4 => -300i64..300, 1 => -5000i64..5000, 1 => -(1i64 << 31)..(1i64 << 32)];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn the_window_is_the_model(
            size in prop_oneof![Just(64u32), Just(65), Just(100), Just(128), Just(4096)],
            esn in any::<bool>(),
            start in prop_oneof![Just(0u64), 1u64..200, (1u64 << 32) - 300..(1 << 32) + 300, (3u64 << 32) - 300..(3 << 32) + 300],
            steps in steps(),
        ) {
            let start = if esn { start } else { start & 0xffff_ffff };
            let mut window = ReplayWindow::new(size, esn);
            let mut model = Model { seen: BTreeSet::new(), window: size.into(), esn };
            if start > 0 {
                window.accept(Authenticated(start)).unwrap();
                model.seen.insert(start);
            }
            for step in steps {
                let low = window.top().wrapping_add_signed(step) as u32;
                prop_assert_eq!(accept(&mut window, low), model.accept(low));
                prop_assert_eq!(window.top(), model.seen.last().copied().unwrap_or(0));
            }
        }
    }
}
