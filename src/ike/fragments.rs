//! Fragments of one message, until all are there (RFC 7383 §2.6).
//!
//! Only authentic fragments get here, so only who holds the keys can make us keep anything, and one direction of an IKE SA keeps
//! one message of at most [`MAX_COLLECTED_LEN`] octets. A larger total makes a new set (its sender cuts smaller, §2.5.2), a smaller
//! one is ignored, and so is a second fragment with the same number.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::limits::{MAX_COLLECTED_LEN, MAX_FRAGMENTS};
use crate::wire::ike::{ExchangeType, Fragment};

/// What fragments belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Of {
    pub message_id: u32,
    pub exchange: ExchangeType,
}

/// The fragments of one message.
#[derive(Debug)]
struct Set {
    of: Of,
    total: u16,
    /// The type of the first payload and the datagram, of the first fragment.
    head: Option<(u8, Bytes)>,
    pieces: BTreeMap<u16, Vec<u8>>,
    octets: usize,
}

/// A message that is whole.
#[derive(PartialEq, Eq, Debug)]
pub struct Collected {
    /// The type of its first payload.
    pub first: u8,
    /// Its chain of payloads.
    pub chain: Vec<u8>,
    /// The datagram of its first fragment: who sends that again wants the answer again (§2.6.1).
    pub head: Bytes,
}

/// One direction's fragments.
#[derive(Debug, Default)]
pub struct Collection(Option<Set>);

impl Collection {
    /// Whether a fragment is worth opening. It is not authentic yet, so this changes nothing.
    pub fn wants(&self, of: Of, fragment: Fragment) -> bool {
        if fragment.total > MAX_FRAGMENTS {
            return false;
        }
        match &self.0 {
            Some(set) if set.of == of && fragment.total == set.total => !set.pieces.contains_key(&fragment.number),
            Some(set) if set.of == of => fragment.total > set.total,
            _ => true,
        }
    }

    /// Takes an authentic fragment that is [wanted](Self::wants): the type that it names as that of the first payload, its text, and
    /// the datagram that it was.
    pub fn take(&mut self, of: Of, fragment: Fragment, first: u8, text: &[u8], datagram: &[u8]) -> Option<Collected> {
        let set = match self.0.take() {
            Some(set) if set.of == of && set.total == fragment.total => set,
            _ => Set { of, total: fragment.total, head: None, pieces: BTreeMap::new(), octets: 0 },
        };
        let set = self.0.insert(set);
        set.octets += text.len();
        if set.octets > MAX_COLLECTED_LEN {
            self.0 = None;
            return None;
        }
        if fragment.number == 1 {
            set.head = Some((first, Bytes::copy_from_slice(datagram)));
        }
        set.pieces.insert(fragment.number, text.to_vec());
        if set.pieces.len() < usize::from(set.total) {
            return None;
        }
        let Set { head, pieces, .. } = self.0.take()?;
        let (first, head) = head?;
        Some(Collected { first, chain: pieces.into_values().collect::<Vec<_>>().concat(), head })
    }

    /// Forgets everything: the message came whole, or is not waited for any more.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Of = Of { message_id: 1, exchange: ExchangeType::IkeAuth };

    /// Gives fragments as (number, total, text); says what came of the last.
    fn give(collection: &mut Collection, fragments: &[(u16, u16, &str)]) -> Option<String> {
        let mut last = None;
        for &(number, total, text) in fragments {
            let fragment = Fragment { number, total };
            last = if collection.wants(OF, fragment) {
                collection.take(OF, fragment, number as u8 + 32, text.as_bytes(), text.as_bytes())
            } else {
                None
            };
        }
        last.map(|whole| {
            assert_eq!((whole.first, whole.head.is_empty()), (33, false), "the first fragment names the first payload");
            String::from_utf8(whole.chain).expect("ASCII")
        })
    }

    #[test]
    fn any_order_gives_the_order_of_the_numbers() {
        for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
            let fragments = order.map(|number| (number, 3, ["one ", "two ", "three"][usize::from(number) - 1]));
            assert_eq!(give(&mut Collection::default(), &fragments).as_deref(), Some("one two three"), "{order:?}");
        }
    }

    #[test]
    fn the_first_of_two_with_one_number_stays() {
        let mut collection = Collection::default();
        assert_eq!(give(&mut collection, &[(2, 2, "b"), (2, 2, "x"), (1, 2, "a")]).as_deref(), Some("ab"));
    }

    #[test]
    fn a_total_may_grow_and_never_shrink() {
        let mut collection = Collection::default();
        assert_eq!(give(&mut collection, &[(1, 2, "a"), (1, 3, "c"), (2, 2, "b")]), None);
        assert_eq!(give(&mut collection, &[(3, 3, "e"), (2, 3, "d")]).as_deref(), Some("cde"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut collection = Collection::default();
        assert!(!collection.wants(OF, Fragment { number: 1, total: MAX_FRAGMENTS + 1 }));
        let text = "x".repeat(MAX_COLLECTED_LEN / 4);
        for number in 1..=40 {
            assert_eq!(give(&mut collection, &[(number, 50, &text)]), None);
            assert!(collection.0.as_ref().is_none_or(|set| set.octets <= MAX_COLLECTED_LEN));
        }
        // Another message takes the place of one that never became whole.
        let other = Of { message_id: 2, ..OF };
        assert!(collection.take(other, Fragment { number: 1, total: 1 }, 33, b"", b"").is_some());
        assert!(collection.0.is_none());
    }
}
