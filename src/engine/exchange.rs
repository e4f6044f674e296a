//! Strays: packets that reached another thread than the one whose business they are.
//!
//! A TUN queue follows the flow's last write and forgets it after three seconds, so one-way flows to a peer with a single SA
//! stray for good; the kernel steers an aggregate of datagrams by its first SPI only; and what came before the steering program
//! was attached may lie anywhere. Each stray travels as a [`Parcel`]: a buffer that changes its owner, through one bounded
//! lock-free ring per receiver, so that the packets of a flow stay in order. The receiver sends the empty buffer back to
//! its home; nothing is allocated on the way. A full ring or an empty pool drops the packet, which is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use mio::Waker;

use crate::model::{Gso, Path, Transport, WorkerIndex};
use crate::sys::tun::MAX_PACKET;

/// Parcels that wait for one receiver: as many as two senders' pools hold.
const RING: usize = 256;

/// Whose a parcel, a ring or a doorbell is: worker n's number is n, the control thread's is the number of workers.
pub(super) type Member = usize;

/// A buffer on its way to another thread. It holds one packet, or datagrams of one path back to back.
pub(super) struct Parcel {
    home: Member,
    /// What is in it.
    pub(super) content: Content,
    /// How many octets of it count.
    pub(super) len: usize,
    /// Room for the largest packet there is.
    pub(super) octets: Box<[u8]>,
}

/// What a parcel carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// An inner packet from the TUN, or many.
    Inner(Gso),
    /// ESP datagrams.
    Outer {
        /// Where they came from.
        path: Path,
        /// Their outer ECN bits.
        ecn: u8,
        /// Length of each but the last, which may be shorter.
        stride: usize,
    },
    /// An IKE message without non-ESP marker.
    Ike {
        /// Where it came from.
        path: Path,
        /// How.
        transport: Transport,
    },
}

impl Parcel {
    /// The octets that count.
    pub(super) fn text(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// Puts octets behind those that are there; false if they do not fit.
    pub(super) fn append(&mut self, octets: &[u8]) -> bool {
        let Some(place) = self.octets.get_mut(self.len..self.len + octets.len()) else { return false };
        place.copy_from_slice(octets);
        self.len += octets.len();
        true
    }
}

/// Wakes a thread, only if it sleeps: waking costs a system call.
pub(super) struct Doorbell {
    sleeping: AtomicBool,
    waker: Waker,
}

impl Doorbell {
    pub(super) const fn new(waker: Waker) -> Self {
        Self { sleeping: AtomicBool::new(false), waker }
    }

    /// Call after something was put where the sleeper looks: it has seen that, or it is woken.
    pub(super) fn ring(&self) {
        // Pairs with the fence in `sleep_unless`: one of the two sides sees what the other wrote.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            // It cannot fail on a live eventfd, and there is nobody to tell.
            let _ = self.waker.wake();
        }
    }

    /// Announces sleep, looks once more, and says whether the thread may sleep.
    pub(super) fn sleep_unless(&self, work: impl FnOnce() -> bool) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if work() {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

/// The rings and doorbells of all threads.
pub(super) struct Exchange {
    ends: Box<[End]>,
    strays: Box<[StrayCounters]>,
}

/// What one thread handed to others. It writes them, anybody may read; no two share a cache line (or the pair of lines that
/// processors fetch together).
#[derive(Debug, Default)]
#[repr(align(128))]
struct StrayCounters {
    inner: AtomicU64,
    outer: AtomicU64,
}

/// What a worker handed to others, so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strays {
    /// Inner packets or super-packets of its TUN queue: another worker has the SA.
    pub inner: u64,
    /// ESP datagrams of its socket: another worker has the SPI.
    pub outer: u64,
}

struct End {
    inbox: ArrayQueue<Box<Parcel>>,
    /// Parcels of this member that come home. It holds them all, so that none is ever lost.
    returns: ArrayQueue<Box<Parcel>>,
    doorbell: Doorbell,
}

impl Exchange {
    /// Rings for the workers, then the control thread, with the size of each one's pool and its doorbell.
    pub(super) fn new(members: impl IntoIterator<Item = (usize, Doorbell)>) -> Self {
        let end = |(pool, doorbell)| End { inbox: ArrayQueue::new(RING), returns: ArrayQueue::new(pool), doorbell };
        let ends: Box<[End]> = members.into_iter().map(end).collect();
        let strays = ends.iter().map(|_| StrayCounters::default()).collect();
        Self { ends, strays }
    }

    /// Counts an inner packet that this member hands over.
    pub(super) fn count_inner(&self, member: Member) {
        bump(&self.strays[member].inner);
    }

    /// Counts an ESP datagram that this member hands over.
    pub(super) fn count_outer(&self, member: Member) {
        bump(&self.strays[member].outer);
    }

    /// What each worker handed over.
    pub(super) fn strays(&self) -> Vec<Strays> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let workers = self.strays[..self.workers()].iter();
        workers.map(|strays| Strays { inner: read(&strays.inner), outer: read(&strays.outer) }).collect()
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.ends.len() - 1
    }

    /// The control thread.
    pub(super) fn control(&self) -> Member {
        self.ends.len() - 1
    }

    /// The worker of that number, if there is one.
    pub(super) fn worker(&self, index: WorkerIndex) -> Option<Member> {
        Some(usize::from(index.0)).filter(|&member| member < self.workers())
    }

    /// Somebody's doorbell.
    pub(super) fn doorbell(&self, member: Member) -> &Doorbell {
        &self.ends[member].doorbell
    }

    /// Hands a parcel over and wakes its receiver; gives it back if the ring is full.
    pub(super) fn send(&self, to: Member, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        let end = &self.ends[to];
        end.inbox.push(parcel)?;
        end.doorbell.ring();
        Ok(())
    }

    /// The oldest parcel for this member.
    pub(super) fn receive(&self, member: Member) -> Option<Box<Parcel>> {
        self.ends[member].inbox.pop()
    }

    /// Whether a parcel waits for this member.
    pub(super) fn has_parcels(&self, member: Member) -> bool {
        !self.ends[member].inbox.is_empty()
    }

    /// Sends an emptied parcel home.
    pub(super) fn give_back(&self, parcel: Box<Parcel>) {
        let home = parcel.home;
        // The ring holds all of a pool; were it full nevertheless, the buffer would merely be freed.
        let _ = self.ends[home].returns.push(parcel);
    }
}

/// Adds one to a counter whose only writer we are.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// One member's own parcels that are at home.
pub(super) struct Pool {
    member: Member,
    #[allow(clippy::vec_box, reason = "parcels are boxed for good: a pointer travels through the rings")]
    free: Vec<Box<Parcel>>,
}

impl Pool {
    /// So many parcels, as many as the exchange was told. Their memory is touched only as far as it is used.
    pub(super) fn new(member: Member, parcels: usize) -> Self {
        let parcel = |_| {
            Box::new(Parcel {
                home: member,
                content: Content::Inner(Gso::None),
                len: 0,
                octets: vec![0; MAX_PACKET].into_boxed_slice(),
            })
        };
        Self { member, free: (0..parcels).map(parcel).collect() }
    }

    /// An empty parcel: the one used last, as its memory is still warm.
    pub(super) fn take(&mut self, exchange: &Exchange) -> Option<Box<Parcel>> {
        if self.free.is_empty() {
            while let Some(parcel) = exchange.ends[self.member].returns.pop() {
                self.free.push(parcel);
            }
        }
        let mut parcel = self.free.pop()?;
        parcel.len = 0;
        Some(parcel)
    }

    /// Puts back a parcel of this pool that never left.
    pub(super) fn put(&mut self, parcel: Box<Parcel>) {
        self.free.push(parcel);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    fn polls_and_exchange(members: usize, pool: usize) -> (Vec<Poll>, Exchange) {
        let polls: Vec<Poll> = (0..members).map(|_| Poll::new().unwrap()).collect();
        let doorbells = polls.iter().map(|poll| (pool, Doorbell::new(Waker::new(poll.registry(), Token(0)).unwrap())));
        let exchange = Exchange::new(doorbells);
        (polls, exchange)
    }

    #[test]
    fn parcels_travel_in_order_and_come_home() {
        let (_polls, exchange) = polls_and_exchange(3, 2);
        let mut pool = Pool::new(0, 2);
        let addresses: HashSet<_> = pool.free.iter().map(|parcel| parcel.octets.as_ptr()).collect();
        for round in 0..5_u8 {
            for number in 0..2 {
                let mut parcel = pool.take(&exchange).unwrap();
                assert!(addresses.contains(&parcel.octets.as_ptr()), "no new memory in round {round}");
                assert!(parcel.append(&[round, number]));
                exchange.send(1, parcel).ok().unwrap();
            }
            assert!(pool.take(&exchange).is_none(), "both are away");
            assert!(!exchange.has_parcels(2) && exchange.has_parcels(1));
            for number in 0..2 {
                let parcel = exchange.receive(1).unwrap();
                assert_eq!(parcel.text(), [round, number]);
                exchange.give_back(parcel);
            }
        }
        assert!(exchange.receive(1).is_none());
    }

    #[test]
    fn a_full_ring_gives_the_parcel_back() {
        let (_polls, exchange) = polls_and_exchange(2, RING + 1);
        let mut pool = Pool::new(0, RING + 1);
        for _ in 0..RING {
            exchange.send(1, pool.take(&exchange).unwrap()).ok().unwrap();
        }
        let parcel = exchange.send(1, pool.take(&exchange).unwrap()).err().unwrap();
        pool.put(parcel);
        assert!(pool.take(&exchange).is_some());
    }

    #[test]
    fn a_parcel_holds_no_more_than_the_largest_packet() {
        let mut parcel = Pool::new(0, 1).free.pop().unwrap();
        assert!(parcel.append(&[1; 65_000]));
        assert!(!parcel.append(&[2; 536]));
        assert!(parcel.append(&[3; 535]));
        assert_eq!(parcel.text().len(), MAX_PACKET);
    }

    #[test]
    fn only_existing_workers_have_numbers() {
        let (_polls, exchange) = polls_and_exchange(3, 1);
        assert_eq!([0, 1, 2, 255].map(|index| exchange.worker(WorkerIndex(index))), [Some(0), Some(1), None, None]);
        assert_eq!((exchange.workers(), exchange.control()), (2, 2));
    }

    #[test]
    fn what_came_before_the_announcement_keeps_awake_and_what_comes_after_wakes() {
        let (mut polls, exchange) = polls_and_exchange(2, 2);
        let mut pool = Pool::new(0, 2);
        let mut events = Events::with_capacity(1);
        let mut woken = || {
            polls[1].poll(&mut events, Some(Duration::ZERO)).unwrap();
            !events.is_empty()
        };
        let doorbell = exchange.doorbell(1);
        exchange.send(1, pool.take(&exchange).unwrap()).ok().unwrap();
        assert!(!doorbell.sleep_unless(|| exchange.has_parcels(1)));
        assert!(!woken(), "it was awake: no system call");
        exchange.give_back(exchange.receive(1).unwrap());
        // The parcel comes when the look behind the announcement is over.
        let asleep = doorbell.sleep_unless(|| {
            let work = exchange.has_parcels(1);
            exchange.send(1, pool.take(&exchange).unwrap()).ok().unwrap();
            work
        });
        assert!(asleep && woken());
        doorbell.ring();
        assert!(!woken(), "once is enough");
    }

    /// There is one parcel, so a wake-up that is lost stops both sides for good.
    #[test]
    fn nobody_sleeps_over_a_parcel() {
        const ROUNDS: usize = 20_000;
        let (mut polls, exchange) = polls_and_exchange(2, 1);
        let exchange = Arc::new(exchange);
        let mut poll = polls.pop().unwrap();
        let sender = Arc::clone(&exchange);
        let thread = std::thread::spawn(move || {
            let mut pool = Pool::new(0, 1);
            let mut sent = 0;
            while sent < ROUNDS {
                match pool.take(&sender) {
                    Some(parcel) => {
                        sender.send(1, parcel).ok().unwrap();
                        sent += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        let mut events = Events::with_capacity(1);
        let mut received = 0;
        while received < ROUNDS {
            if let Some(parcel) = exchange.receive(1) {
                received += 1;
                exchange.give_back(parcel);
            } else if exchange.doorbell(1).sleep_unless(|| exchange.has_parcels(1)) {
                // A paused machine interrupts the wait; then the parcel decides.
                let interrupted = poll.poll(&mut events, Some(Duration::from_secs(5))).is_err();
                exchange.doorbell(1).awake();
                assert!(interrupted || !events.is_empty(), "slept over parcel {received}");
            }
        }
        thread.join().unwrap();
    }
}
