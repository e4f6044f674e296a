//! The control thread: the only one that the [`Brain`] runs on.
//!
//! It owns port 500 and the last socket of port 4500, to which the kernel steers what carries the non-ESP marker. Requests of
//! other threads come as closures, so that nothing else needs a lock. After each of them, and after each batch of datagrams
//! and news, the brain is drained: orders go to the workers first, then its messages leave.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::brain::Brain;
use super::exchange::Content;
use super::forward::Forwarder;
use super::mailbox::Outgoing;
use super::stranger::Stranger;
use super::{Command, Shared, diary};
use crate::esp::Event;
use crate::ike::Transmit;
use crate::model::{DropReason, Drops, Instant, Path, Transport, WorkerIndex};
use crate::node::Recipient;
use crate::sys::udp::{self, Datagram, ReceiveBatch, SendBatch, UdpSocket};
use crate::wire::natt::{self, Natt};

/// Messages per `recvmmsg`.
const RECEIVE_BATCH: usize = 8;

/// `recvmmsg` calls per turn and socket.
const RECEIVE_CALLS: usize = 4;

/// News and parcels per turn.
const MAIL_BATCH: usize = 256;

/// How soon orders that did not fit a worker's mailbox are tried again.
const RETRY: Duration = Duration::from_millis(1);

const IKE: Token = Token(0);
const NATT: Token = Token(1);

/// Why the control thread gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    /// A socket is broken.
    #[error("receiving IKE messages: {0}")]
    Udp(#[source] io::Error),
    /// The event loop is broken.
    #[error("waiting for events: {0}")]
    Poll(#[source] io::Error),
}

/// What the control thread is made of.
pub(super) struct Setup<B> {
    pub(super) brain: B,
    pub(super) ike: Arc<UdpSocket>,
    pub(super) natt: Arc<UdpSocket>,
    pub(super) poll: Poll,
    pub(super) commands: Receiver<Command<B>>,
    pub(super) news: Receiver<(WorkerIndex, Event)>,
    pub(super) mailboxes: Vec<Outgoing>,
    pub(super) drops: Arc<Drops>,
    pub(super) shared: Arc<Shared>,
}

/// A socket and whether it may have something.
struct Source {
    socket: Arc<UdpSocket>,
    transport: Transport,
    ready: bool,
    drops: Arc<Drops>,
}

/// The control thread.
pub(super) struct Control<B> {
    brain: B,
    poll: Poll,
    events: Events,
    ike: Source,
    natt: Source,
    commands: Receiver<Command<B>>,
    news: Receiver<(WorkerIndex, Event)>,
    mailboxes: Vec<Outgoing>,
    forward: Forwarder,
    stranger: Stranger,
    receive: ReceiveBatch,
    send: SendBatch,
    /// Marker and message, to be sent.
    frame: Vec<u8>,
    drops: Arc<Drops>,
    shared: Arc<Shared>,
}

/// One whole buffer to be sent.
struct Frame {
    len: usize,
    path: Path,
}

impl Datagram for Frame {
    fn range(&self) -> Range<usize> {
        0..self.len
    }

    fn path(&self) -> Path {
        self.path
    }

    fn ecn(&self) -> u8 {
        0
    }
}

impl<B: Brain> Control<B> {
    pub(super) fn new(setup: Setup<B>) -> io::Result<Self> {
        let Setup { brain, ike, natt, poll, commands, news, mailboxes, drops, shared } = setup;
        poll.registry().register(&mut SourceFd(&ike.as_raw_fd()), IKE, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&natt.as_raw_fd()), NATT, Interest::READABLE)?;
        let member = shared.exchange.control();
        Ok(Self {
            brain,
            poll,
            events: Events::with_capacity(8),
            ike: Source { socket: ike, transport: Transport::Plain, ready: true, drops: Arc::clone(&drops) },
            natt: Source { socket: natt, transport: Transport::Natt, ready: true, drops: Arc::clone(&drops) },
            commands,
            news,
            mailboxes,
            forward: Forwarder::new(member, Arc::clone(&shared), Arc::clone(&drops)),
            stranger: Stranger::default(),
            receive: ReceiveBatch::new(RECEIVE_BATCH),
            send: SendBatch::default(),
            frame: Vec::new(),
            drops,
            shared,
        })
    }

    /// Works until the engine stops; commands that were given before are still done, and what they send leaves.
    pub(super) fn run(mut self) -> Result<(), ControlError> {
        loop {
            let stopping = self.shared.is_stopping();
            let now = self.shared.now();
            self.turn(now)?;
            if stopping {
                return Ok(());
            }
            self.wait()?;
        }
    }

    fn turn(&mut self, now: Instant) -> Result<(), ControlError> {
        while let Ok(command) = self.commands.try_recv() {
            command(&mut self.brain, now);
            self.drain();
        }
        self.take_mail(now);
        self.drain();
        self.read_ike(now)?;
        self.drain();
        self.read_natt(now)?;
        if self.brain.poll_timeout().is_some_and(|at| at <= now) {
            self.brain.handle_timeout(now);
        }
        self.drain();
        Ok(())
    }

    /// News of the workers, and IKE messages that strayed to them.
    fn take_mail(&mut self, now: Instant) {
        for _ in 0..MAIL_BATCH {
            let Ok((worker, event)) = self.news.try_recv() else { break };
            diary::heard(worker, &event);
            match event {
                Event::PathNarrow(path) => self.look_at(now, path),
                event => self.brain.handle_event(now, worker, event),
            }
        }
        for _ in 0..MAIL_BATCH {
            let Some(parcel) = self.shared.exchange.receive(self.shared.exchange.control()) else { break };
            if let Content::Ike { path, transport } = parcel.content {
                diary::received(path, parcel.text());
                self.brain.handle_ike(now, path, transport, parcel.text());
            }
            self.shared.exchange.give_back(parcel);
        }
    }

    /// Asks the kernel at once what a path takes: a few system calls, and every packet until then costs several more.
    fn look_at(&mut self, now: Instant, path: Path) {
        match udp::path_mtu(Some(path.local.ip()), path.remote) {
            Ok(mtu) => self.brain.handle_path_mtu(now, path, mtu),
            Err(error) => tracing::debug!("the MTU of the path to {}: {error}", path.remote.ip()),
        }
    }

    /// Port 500: every datagram is an IKE message.
    fn read_ike(&mut self, now: Instant) -> Result<(), ControlError> {
        for _ in 0..RECEIVE_CALLS {
            if !self.ike.receive(&mut self.receive)? {
                break;
            }
            let (arena, messages) = self.receive.parts();
            for message in messages {
                for (start, len) in message.datagrams() {
                    let octets = &arena[start as usize..(start + len) as usize];
                    diary::received(message.path, octets);
                    self.brain.handle_ike(now, message.path, self.ike.transport, octets);
                }
            }
        }
        Ok(())
    }

    /// Port 4500: IKE behind the marker; keepalives and ESP that strayed here.
    fn read_natt(&mut self, now: Instant) -> Result<(), ControlError> {
        for _ in 0..RECEIVE_CALLS {
            if !self.natt.receive(&mut self.receive)? {
                break;
            }
            let (arena, messages) = self.receive.parts();
            for message in messages {
                for (start, len) in message.datagrams() {
                    let octets = &arena[start as usize..(start + len) as usize];
                    match natt::classify(octets) {
                        Natt::Keepalive => self.drops.count(DropReason::Keepalive),
                        Natt::Ike(text) => {
                            diary::received(message.path, text);
                            self.brain.handle_ike(now, message.path, self.natt.transport, text);
                        }
                        Natt::Esp(spi) => match self.shared.exchange.worker(spi.owner()) {
                            Some(to) => self.forward.outer(to, message.path, message.ecn, octets),
                            None => {
                                self.drops.count(DropReason::UnknownSpi);
                                self.stranger.note(now, message.path);
                            }
                        },
                        Natt::Malformed(reason) => self.drops.count(reason),
                    }
                }
            }
            self.forward.flush();
        }
        if let Some(event) = self.stranger.poll_event() {
            // Worker 0 stands for those that do not exist: the kernel steers such datagrams there, too.
            self.brain.handle_event(now, WorkerIndex(0), event);
        }
        Ok(())
    }

    /// Does what the brain wants: orders first, as messages may announce what they install.
    fn drain(&mut self) {
        while let Some((recipient, update)) = self.brain.poll_update() {
            diary::ordered(&update);
            match recipient {
                Recipient::All => self.mailboxes.iter_mut().for_each(|mailbox| mailbox.post(update.clone())),
                Recipient::Worker(WorkerIndex(number)) => {
                    if let Some(mailbox) = self.mailboxes.get_mut(usize::from(number)) {
                        mailbox.post(update);
                    }
                }
            }
        }
        for (number, mailbox) in self.mailboxes.iter_mut().enumerate() {
            if mailbox.deliver() {
                self.shared.exchange.doorbell(number).ring();
            }
        }
        while let Some(Transmit { path, transport, message }) = self.brain.poll_transmit() {
            diary::sent(path, &message);
            self.frame.clear();
            if transport == Transport::Natt {
                self.frame.extend_from_slice(&natt::NON_ESP_MARKER);
            }
            self.frame.extend_from_slice(&message);
            self.transmit(path, transport);
        }
        while let Some(path) = self.brain.poll_keepalive() {
            self.frame.clear();
            self.frame.extend_from_slice(&natt::KEEPALIVE);
            self.transmit(path, Transport::Natt);
        }
        while let Some(notice) = self.brain.poll_notice() {
            let peer = notice.peer.as_deref();
            if notice.warning {
                tracing::warn!(peer, "{}", notice.text);
            } else {
                tracing::info!(peer, "{}", notice.text);
            }
        }
    }

    /// Sends the frame. A message that cannot leave is lost; IKE sends it again.
    fn transmit(&mut self, path: Path, transport: Transport) {
        let source = if transport == Transport::Plain { &self.ike } else { &self.natt };
        let frame = Frame { len: self.frame.len(), path };
        let report = source.socket.send(&mut self.send, &self.frame, &[frame]);
        if report.blocked || report.too_large + report.no_buffers + report.refused > 0 {
            self.drops.count(DropReason::SendFailed);
        }
    }

    fn wait(&mut self) -> Result<(), ControlError> {
        let exchange = &self.shared.exchange;
        let doorbell = exchange.doorbell(exchange.control());
        let mail = || {
            self.shared.is_stopping()
                || !self.commands.is_empty()
                || !self.news.is_empty()
                || exchange.has_parcels(exchange.control())
        };
        let asleep = !self.ike.ready && !self.natt.ready && doorbell.sleep_unless(mail);
        let retry = self.mailboxes.iter().any(Outgoing::is_behind).then_some(RETRY);
        // The turn may have computed signatures: look at the clock again.
        let timer = self.brain.poll_timeout().map(|at| at.since(self.shared.now()));
        let timeout = if asleep { [retry, timer].into_iter().flatten().min() } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(&mut self.events, timeout);
        doorbell.awake();
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(ControlError::Poll(error)),
        }
        for event in &self.events {
            match event.token() {
                IKE => self.ike.ready = true,
                NATT => self.natt.ready = true,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Source {
    /// Fills the batch; false if there is nothing.
    fn receive(&mut self, batch: &mut ReceiveBatch) -> Result<bool, ControlError> {
        if !self.ready {
            return Ok(false);
        }
        match self.socket.receive(batch) {
            Ok(may_have_more) => {
                self.drops.add(DropReason::SocketFull, batch.lost().into());
                self.drops.add(DropReason::Truncated, batch.unusable().into());
                self.ready = may_have_more;
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {
                    self.ready = false;
                    Ok(false)
                }
                ErrorKind::Interrupted | ErrorKind::OutOfMemory => Ok(false),
                _ => Err(ControlError::Udp(error)),
            },
        }
    }
}
