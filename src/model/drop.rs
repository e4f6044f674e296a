//! Every packet that is thrown away has a name, a counter and a sentence; this table makes all three.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($variant:ident, $name:literal, $sentence:literal;)*) => {
        /// Why a packet was dropped. The name is the key in `status --json` and in metrics.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $sentence] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the table.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)*];

            /// The counter's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

drop_reasons! {
    // --- outbound ---
    InnerMalformed, "inner_malformed", "a packet to be sent is not a whole IPv4 or IPv6 packet";
    NoRoute, "no_route", "no peer owns the destination";
    NoOutboundSa, "no_outbound_sa", "the peer has no tunnel up and its waiting room is full";
    ParkedTooLong, "parked_too_long", "a packet waited for a tunnel that did not come up in time";
    OutboundSelector, "outbound_selector", "the peer's traffic selectors do not allow the packet to be sent";
    SourceNotOurs, "source_not_ours", "the source of a packet to be sent is not an address of ours";
    TooBig, "too_big", "a packet with DF is larger than the path carries; its sender was told";
    SequenceExhausted, "sequence_exhausted", "the SA has used its last sequence number and waits for its successor";
    DeviceFull, "device_full", "packets (large ones count as one) came faster than they could be read, and the kernel threw them away";
    QueueFull, "queue_full", "a queue was full";
    SendFailed, "send_failed", "the kernel refused to send the datagram";
    // --- inbound, before the ICV ---
    SocketFull, "socket_full", "datagrams came faster than they could be read, and the kernel threw them away";
    Truncated, "truncated", "a datagram was longer than the memory for it, or came without its sender's address";
    Runt, "runt", "a datagram is too short to be ESP";
    ReservedSpi, "reserved_spi", "an SPI between 1 and 255 is reserved";
    UnknownSpi, "unknown_spi", "no SA has this SPI";
    NotAligned, "not_aligned", "an ESP packet's length is not a multiple of four";
    Replay, "replay", "the sequence number was seen before";
    TooOld, "too_old", "the sequence number lies before the replay window";
    ZeroSequence, "zero_sequence", "sequence number zero is never sent";
    BadIcv, "bad_icv", "the ICV does not match: damaged, forged, or sealed with another key";
    // --- inbound, behind the ICV ---
    BadPadding, "bad_padding", "the pad length is larger than the packet";
    NextHeader, "next_header", "the next header is neither IPv4, IPv6 nor a dummy packet";
    Dummy, "dummy", "a dummy packet, sent to hide traffic, to probe the path or to say that an SA works";
    BadInner, "bad_inner", "what was sealed is not a whole IP packet of the kind that the next header says";
    InboundSelector, "inbound_selector", "the SA's traffic selectors do not allow what the peer sent";
    SourceNotPeers, "source_not_peers", "the inner source belongs to another host than the one that sent it";
    DestinationNotOurs, "destination_not_ours", "the inner destination is not an address of this host";
    EcnInvalid, "ecn_invalid", "congestion was marked on a packet whose transport cannot hear of it";
    TunWriteFailed, "tun_write_failed", "the kernel refused a packet that came out of the tunnel";
    // --- in clear: counted by the guard's nftables rules, which the kernel runs ---
    ClearOverlay, "clear_overlay", "a packet in clear for an overlay address of this host";
    ForgedOverlay, "forged_overlay", "a packet in clear whose source claims to be in the overlay";
    // --- IKE ---
    Keepalive, "keepalive", "a NAT keepalive";
    IkeMalformed, "ike_malformed", "an IKE message that does not parse";
    IkeVersion, "ike_version", "an IKE message of another major version";
    IkeUnknownSpi, "ike_unknown_spi", "an IKE message for an IKE SA that does not exist";
    IkeBadIcv, "ike_bad_icv", "an IKE message whose ICV does not match";
    IkeUnexpected, "ike_unexpected", "an IKE message that does not fit the state of its IKE SA";
    IkeMessageId, "ike_message_id", "an IKE message whose message ID is not the expected one";
    IkeFragment, "ike_fragment", "a fragment of an IKE message that came before, does not fit its others, or is one of too many";
    IkeHalfOpenLimit, "ike_half_open_limit", "too many half-open IKE SAs";
    IkeShort, "ike_short", "an IKE_SA_INIT request much shorter than its answer, whose sender has not shown that it hears us";
    IkeNoPeer, "ike_no_peer", "an IKE request from somebody who is not configured";
}

/// One counter per reason. Each instance has one writer; anybody may read it at any time.
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Drops {
    /// Counts one packet. A plain load and store: there is one writer.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts so many packets.
    pub fn add(&self, reason: DropReason, packets: u64) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
    }

    /// How many packets were dropped for this reason.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Every reason that was counted at least once.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.of(reason))).filter(|&(_, count)| count > 0)
    }
}
