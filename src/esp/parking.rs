//! Waiting rooms: datagrams on an SPI whose key is still being negotiated, and packets to a peer that has no SA yet.
//!
//! Waiting is the exception, so what waits is a copy of its own on the heap; all of it is bounded by the constants here.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::model::Instant;

/// What may wait per SPI and per peer: a first flight of TCP and a ping or two, not a file.
pub const PER_KEY: usize = 64;

/// What may wait per SPI and per peer, in octets: so that one of them cannot fill the room with jumbo packets.
pub const PER_KEY_OCTETS: usize = 128 << 10;

/// What may wait in one room in all, in octets: bounds memory when many peers are away at once.
pub const ROOM_OCTETS: usize = 4 << 20;

/// What a waiting packet costs besides its octets, so that tiny packets cannot fill the memory either.
const OVERHEAD: usize = 128;

/// How long anything waits: longer than a handshake with two retransmissions takes, shorter than a sender's patience.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// A room in which things wait in order, by key.
#[derive(Debug)]
pub struct WaitingRoom<K, T> {
    queues: HashMap<K, Queue<T>>,
    octets: usize,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    octets: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    until: Instant,
    octets: usize,
    what: T,
}

/// There was no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl<K, T> Default for WaitingRoom<K, T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), octets: 0 }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), octets: 0 }
    }
}

impl<T> Queue<T> {
    /// Takes the first.
    fn next(&mut self) -> Option<Waiting<T>> {
        let first = self.waiting.pop_front()?;
        self.octets -= first.octets;
        Some(first)
    }
}

impl<K: Eq + Hash + Copy, T> WaitingRoom<K, T> {
    /// Opens a queue, so that [`is_open`](Self::is_open) holds.
    pub fn open(&mut self, key: K) {
        self.queues.entry(key).or_default();
    }

    /// Whether there is a queue under this key.
    pub fn is_open(&self, key: K) -> bool {
        self.queues.contains_key(&key)
    }

    /// Whether anything waits under this key.
    pub fn waits(&self, key: K) -> bool {
        self.queues.get(&key).is_some_and(|queue| !queue.waiting.is_empty())
    }

    /// Puts something of so many octets to the end of its queue, which is opened if need be; `make` runs if there is room.
    pub fn park(&mut self, now: Instant, key: K, octets: usize, make: impl FnOnce() -> T) -> Result<(), Full> {
        let octets = octets + OVERHEAD;
        let queue = self.queues.entry(key).or_default();
        let fits =
            queue.waiting.len() < PER_KEY && queue.octets + octets <= PER_KEY_OCTETS && self.octets + octets <= ROOM_OCTETS;
        if !fits {
            return Err(Full);
        }
        queue.waiting.push_back(Waiting { until: now + PATIENCE, octets, what: make() });
        queue.octets += octets;
        self.octets += octets;
        Ok(())
    }

    /// Takes the first in the queue; an empty queue stays open.
    pub fn next(&mut self, key: K) -> Option<T> {
        let first = self.queues.get_mut(&key)?.next()?;
        self.octets -= first.octets;
        Some(first.what)
    }

    /// Closes the queue; says how many still waited.
    pub fn close(&mut self, key: K) -> usize {
        let queue = self.queues.remove(&key).unwrap_or_default();
        self.octets -= queue.octets;
        queue.waiting.len()
    }

    /// Sends away who waited too long; says how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        for queue in self.queues.values_mut() {
            while queue.waiting.front().is_some_and(|first| first.until <= now) {
                self.octets -= queue.next().map_or(0, |first| first.octets);
                expired += 1;
            }
        }
        expired
    }

    /// When [`expire`](Self::expire) will find the next.
    pub fn deadline(&self) -> Option<Instant> {
        self.queues.values().filter_map(|queue| Some(queue.waiting.front()?.until)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn each_queue_keeps_its_order_and_its_bound() {
        let mut room = WaitingRoom::default();
        for number in 0..PER_KEY {
            assert_eq!(room.park(at(0), 'a', 1400, || number), Ok(()));
        }
        assert_eq!(room.park(at(0), 'a', 1, || 999), Err(Full));
        assert_eq!(room.park(at(0), 'b', 1, || 7), Ok(()));
        assert_eq!((room.next('a'), room.next('a'), room.next('b'), room.next('c')), (Some(0), Some(1), Some(7), None));
        assert_eq!(room.close('a'), PER_KEY - 2);
        assert!(room.octets == 0 && !room.is_open('a') && room.is_open('b') && !room.waits('b'));
    }

    #[test]
    fn jumbo_packets_fill_their_own_queue_only() {
        let mut room = WaitingRoom::default();
        let parked = (0..PER_KEY).take_while(|_| room.park(at(0), 'a', 60_000, || ()).is_ok()).count();
        assert_eq!(parked, 2);
        assert_eq!((room.park(at(0), 'a', 1, || ()), room.park(at(0), 'b', 60_000, || ())), (Ok(()), Ok(())));
        assert_eq!((room.close('a'), room.close('b'), room.octets), (3, 1, 0));
    }

    #[test]
    fn the_whole_room_is_bounded_in_octets() {
        let mut room = WaitingRoom::default();
        let parked = (0..100_000u32).take_while(|&key| room.park(at(0), key, 0, || ()).is_ok()).count();
        assert_eq!(parked, ROOM_OCTETS / OVERHEAD);
        assert_eq!(room.park(at(0), 0, 0, || ()), Err(Full));
    }

    #[test]
    fn patience_ends() {
        let mut room = WaitingRoom::default();
        assert_eq!(room.deadline(), None);
        room.park(at(1), 'a', 10, || 1).expect("room");
        room.park(at(2), 'a', 10, || 2).expect("room");
        assert_eq!(room.deadline(), Some(at(1) + PATIENCE));
        assert_eq!(room.expire(at(4)), 0);
        assert_eq!(room.expire(at(5)), 1);
        assert_eq!(room.deadline(), Some(at(6)));
        assert_eq!(room.next('a'), Some(2));
        assert_eq!(room.octets, 0);
    }
}
