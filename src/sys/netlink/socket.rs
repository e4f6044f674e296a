//! One blocking netlink socket: a request goes out, everything that answers it comes back.
//!
//! The kernel handles a request within `sendmsg`, so its answers wait in the socket when the call returns; the receive
//! timeout is a safety net, not a part of the protocol. An answer ends with an acknowledgement or an error that carries
//! the request's sequence number, or with `NLMSG_DONE` when it is a listing.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket as Descriptor, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};

/// The kernel fills its answers into buffers of at most 32 KiB; twice that leaves room for one oversized message.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// No answer of a live kernel takes longer, not even where a hundred interfaces vanish under its lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A listing that the kernel marks as torn (the table changed meanwhile) is asked for again, this often at most.
const LISTING_ATTEMPTS: usize = 8;

/// Netlink messages start at multiples of four octets.
const ALIGNMENT: usize = 4;

/// The netlink message header: length, type, flags, sequence number, port.
const HEADER: usize = 16;

/// `NLMSGERR_ATTR_MSG`: the attribute of an error that holds the kernel's explanation.
const ERROR_TEXT: u16 = 1;

/// All messages that came back for one request.
pub(crate) type Answer<M> = Vec<M>;

/// A failure that does not know yet what was being tried.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The kernel's errno, and its explanation if it gave one.
    Refused { reason: io::Error, hint: Option<String> },
    /// The socket failed.
    Transport(io::Error),
    /// The answer does not parse.
    Malformed(String),
}

impl Fault {
    fn malformed(what: impl fmt::Display) -> Self {
        Self::Malformed(what.to_string())
    }

    fn refused(error: &ErrorMessage) -> Self {
        Self::Refused { reason: error.to_io(), hint: explanation(&error.header) }
    }
}

/// A netlink socket of one protocol, with its count of requests.
pub(crate) struct Socket {
    descriptor: Descriptor,
    sequence: u32,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens a socket of this netlink protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut descriptor = Descriptor::new(protocol)?;
        descriptor.bind_auto()?;
        descriptor.connect(&SocketAddr::new(0, 0))?;
        // Explanations in errors (Linux 4.12), and errors that do not repeat the request; neither is needed to work.
        let _ = descriptor.set_ext_ack(true);
        let _ = descriptor.set_cap_ack(true);
        set_socket_timeout(&descriptor, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { descriptor, sequence: 0 })
    }

    /// One request and its answer. `flags` hold what the request asks for: `NLM_F_ACK` for a change, `NLM_F_DUMP` for a
    /// listing, neither for a question with exactly one answer.
    pub(crate) fn request<M>(&mut self, message: M, flags: u16) -> Result<Answer<M>, Fault>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..LISTING_ATTEMPTS {
            let sequence = self.next_sequence();
            let octets = serialize(message.clone(), flags | NLM_F_REQUEST, sequence);
            self.send(&octets)?;
            if let Some(answer) = self.collect(sequence, flags)? {
                return Ok(answer);
            }
        }
        Err(Fault::malformed("the table changes faster than it can be listed"))
    }

    /// Several requests that the kernel carries out together or not at all (nfnetlink batches). The first error wins; the
    /// acknowledgement of the message with `NLM_F_ACK` ends the answer.
    pub(crate) fn batch<M>(&mut self, messages: Vec<(M, u16)>) -> Result<(), Fault>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let first = self.sequence.wrapping_add(1);
        let (mut octets, mut acknowledged) = (Vec::new(), first);
        for (message, flags) in messages {
            let sequence = self.next_sequence();
            if flags & NLM_F_ACK != 0 {
                acknowledged = sequence;
            }
            octets.extend_from_slice(&serialize(message, flags | NLM_F_REQUEST, sequence));
        }
        // A batch is one datagram; the default buffer holds some 500 rules. More is allowed to whoever may change rules.
        let _ = set_socket_send_buffer_size(&self.descriptor, octets.len().saturating_mul(2).max(RECEIVE_BUFFER));
        self.send(&octets)?;
        self.await_batch::<M>(first, acknowledged)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, octets: &[u8]) -> Result<(), Fault> {
        loop {
            match self.descriptor.send(octets, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Transport(error)),
            }
        }
    }

    /// The next datagram from the kernel.
    fn receive(&self) -> Result<Vec<u8>, Fault> {
        let mut datagram = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            match self.descriptor.recv(&mut datagram, libc::MSG_TRUNC) {
                Ok(length) if length > datagram.len() => return Err(Fault::malformed(format!("{length} octets at once"))),
                Ok(_) => return Ok(datagram),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Fault::Transport(io::Error::from(io::ErrorKind::TimedOut)));
                }
                Err(error) => return Err(Fault::Transport(error)),
            }
        }
    }

    /// Reads until the answer to `sequence` is whole. `None`: a listing that is torn and must be asked for again.
    fn collect<M: NetlinkDeserializable>(&self, sequence: u32, flags: u16) -> Result<Option<Answer<M>>, Fault> {
        let (listing, acknowledged) = (flags & NLM_F_DUMP == NLM_F_DUMP, flags & NLM_F_ACK != 0);
        let (mut answer, mut torn) = (Vec::new(), false);
        loop {
            let datagram = self.receive()?;
            for frame in Frames(&datagram) {
                let (header, octets) = frame?;
                // Left-overs of a request that was given up; kernels number answers as their requests.
                if header.sequence_number != sequence {
                    continue;
                }
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                let message = match NetlinkMessage::<M>::deserialize(octets) {
                    Ok(message) => message,
                    // A newer kernel may describe some unrelated link in a form that the parser does not know; the rest
                    // of the listing is still good.
                    Err(_) if listing => continue,
                    Err(error) => return Err(Fault::malformed(error)),
                };
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        answer.push(message);
                        if !listing && !acknowledged {
                            return Ok(Some(answer));
                        }
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(Fault::refused(&error)),
                    NetlinkPayload::Error(_) => return Ok(Some(answer)),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let reason = io::Error::from_raw_os_error(-done.code);
                        return Err(Fault::Refused { reason, hint: None });
                    }
                    NetlinkPayload::Done(_) => return Ok((!torn).then_some(answer)),
                    NetlinkPayload::Overrun(_) => return Err(Fault::malformed("overrun")),
                    _ => {}
                }
            }
        }
    }

    /// Reads the errors and the one acknowledgement of a batch. An error at its first message (no permission, no such
    /// subsystem, commit failed) stands for the whole and may be the only answer.
    fn await_batch<M: NetlinkDeserializable>(&self, first: u32, acknowledged: u32) -> Result<(), Fault> {
        let mut refusal = None;
        loop {
            let datagram = self.receive()?;
            for frame in Frames(&datagram) {
                let (header, octets) = frame?;
                if header.sequence_number.wrapping_sub(first) > acknowledged.wrapping_sub(first) {
                    continue;
                }
                let message = NetlinkMessage::<M>::deserialize(octets).map_err(Fault::malformed)?;
                let NetlinkPayload::Error(error) = message.payload else { continue };
                if error.code.is_some() && refusal.is_none() {
                    refusal = Some(Fault::refused(&error));
                }
                let ends = header.sequence_number == acknowledged || header.sequence_number == first;
                match refusal {
                    Some(refusal) if ends => return Err(refusal),
                    None if ends => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// The message as octets, with its header.
fn serialize<M: NetlinkSerializable>(message: M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// Cuts a datagram into messages: each one's header, and its octets with the header.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(NetlinkHeader, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((header, length)) = parse_header(self.0) else {
            self.0 = &[];
            return Some(Err(Fault::malformed("a message that is longer than its datagram")));
        };
        let (frame, next) = (&self.0[..length], length.next_multiple_of(ALIGNMENT).min(self.0.len()));
        self.0 = &self.0[next..];
        Some(Ok((header, frame)))
    }
}

/// The header at the start of the octets, and the length that it claims if it fits.
fn parse_header(octets: &[u8]) -> Option<(NetlinkHeader, usize)> {
    let field = |at: usize| octets.get(at..at + 4).and_then(|field| field.try_into().ok());
    let half = |at: usize| octets.get(at..at + 2).and_then(|field| field.try_into().ok());
    let mut header = NetlinkHeader::default();
    header.length = u32::from_ne_bytes(field(0)?);
    header.message_type = u16::from_ne_bytes(half(4)?);
    header.flags = u16::from_ne_bytes(half(6)?);
    header.sequence_number = u32::from_ne_bytes(field(8)?);
    header.port_number = u32::from_ne_bytes(field(12)?);
    let length = usize::try_from(header.length).ok()?;
    (length >= HEADER && length <= octets.len()).then_some((header, length))
}

/// The text among an error's attributes. They follow the header of the request that failed (its payload is left out,
/// because we asked for capped errors).
fn explanation(request: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(request.get(HEADER..)?);
    let text = attributes.map_while(Result::ok).find(|attribute| attribute.kind() == ERROR_TEXT)?;
    let text = text.value().split(|&octet| octet == 0).next()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}
