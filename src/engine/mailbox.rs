//! The control thread's orders to a worker, and the workers' news to the control thread.
//!
//! Orders are never lost: what a full mailbox does not take waits in the control thread and goes first at its next turn. News
//! are level-triggered: what a full channel does not take stays in the data plane, where equal news coalesce, and the worker
//! asks again soon.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::esp::{Event, Update};
use crate::model::WorkerIndex;

/// Orders that wait for a worker: more than a rekey of every SA of a small fleet makes at once.
const ORDERS: usize = 256;

/// News that wait for the control thread.
const NEWS: usize = 1024;

/// The control thread's side of one worker's mailbox.
pub(super) struct Outgoing {
    channel: Sender<Update>,
    overflow: VecDeque<Update>,
}

/// A mailbox: the control thread's side and the worker's.
pub(super) fn mailbox() -> (Outgoing, Receiver<Update>) {
    let (sender, receiver) = bounded(ORDERS);
    (Outgoing { channel: sender, overflow: VecDeque::new() }, receiver)
}

impl Outgoing {
    /// Puts an order behind all before it.
    pub(super) fn post(&mut self, update: Update) {
        self.overflow.push_back(update);
    }

    /// Moves waiting orders into the mailbox; true if any moved, so that the worker is to be woken.
    pub(super) fn deliver(&mut self) -> bool {
        let before = self.overflow.len();
        while let Some(update) = self.overflow.pop_front() {
            match self.channel.try_send(update) {
                Ok(()) => {}
                Err(TrySendError::Full(update)) => {
                    self.overflow.push_front(update);
                    break;
                }
                // The worker is gone, which the agent hears from the thread itself.
                Err(TrySendError::Disconnected(_)) => self.overflow.clear(),
            }
        }
        self.overflow.len() != before
    }

    /// Whether orders still wait here.
    pub(super) fn is_behind(&self) -> bool {
        !self.overflow.is_empty()
    }
}

/// A worker's side of the news.
pub(super) struct News {
    worker: WorkerIndex,
    channel: Sender<(WorkerIndex, Event)>,
    /// What the channel did not take.
    held: Option<Event>,
}

/// Senders for so many workers and the receiver for the control thread.
pub(super) fn news(workers: u8) -> (Vec<News>, Receiver<(WorkerIndex, Event)>) {
    let (sender, receiver) = bounded(NEWS);
    let news = |number| News { worker: WorkerIndex(number), channel: sender.clone(), held: None };
    ((0..workers).map(news).collect(), receiver)
}

impl News {
    /// Sends what `next` has, as far as the channel takes it; true if any went, so that the control thread is to be woken.
    pub(super) fn send(&mut self, mut next: impl FnMut() -> Option<Event>) -> bool {
        let mut any = false;
        while let Some(event) = self.held.take().or_else(&mut next) {
            match self.channel.try_send((self.worker, event)) {
                Ok(()) => any = true,
                Err(TrySendError::Full((_, event))) => {
                    self.held = Some(event);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => break,
            }
        }
        any
    }

    /// Whether the channel was full: ask again soon.
    pub(super) const fn is_behind(&self) -> bool {
        self.held.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Spi;

    fn spi(number: u32) -> Spi {
        Spi::new(1000 + number).unwrap()
    }

    #[test]
    fn orders_survive_a_full_mailbox_in_their_order() {
        let (mut outgoing, incoming) = mailbox();
        let count = 3 * ORDERS as u32;
        for number in 0..count {
            outgoing.post(Update::Activate(spi(number)));
            outgoing.deliver();
        }
        assert!(outgoing.is_behind());
        assert!(!outgoing.deliver(), "nothing moves while nobody reads");
        for number in 0..count {
            outgoing.deliver();
            match incoming.try_recv() {
                Ok(Update::Activate(got)) => assert_eq!(got, spi(number)),
                other => panic!("{number}: {other:?}"),
            }
        }
        assert!(!outgoing.is_behind() && incoming.try_recv().is_err());
    }

    #[test]
    fn orders_for_a_worker_that_is_gone_do_not_pile_up() {
        let (mut outgoing, incoming) = mailbox();
        drop(incoming);
        outgoing.post(Update::Activate(spi(1)));
        outgoing.deliver();
        assert!(!outgoing.is_behind());
    }

    #[test]
    fn news_wait_with_their_maker_while_the_channel_is_full() {
        let (mut senders, receiver) = news(2);
        let mut made = 0;
        let mut next = || {
            made += 1;
            Some(Event::InboundUsed(spi(made)))
        };
        assert!(senders[1].send(&mut next));
        assert!(senders[1].is_behind());
        assert!(!senders[1].send(&mut next), "still full");
        assert_eq!(made as usize, NEWS + 1, "one is held, the rest was not even asked for");
        for number in 1..=NEWS as u32 {
            assert_eq!(receiver.try_recv(), Ok((WorkerIndex(1), Event::InboundUsed(spi(number)))));
        }
        let mut none = || None;
        assert!(senders[1].send(&mut none), "the held one goes first");
        assert!(!senders[1].is_behind());
        assert_eq!(receiver.try_recv(), Ok((WorkerIndex(1), Event::InboundUsed(spi(NEWS as u32 + 1)))));
    }
}
