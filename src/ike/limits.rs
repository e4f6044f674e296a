//! Every time and every bound of the machine, each with its reason.

use std::time::Duration;

/// The port that IKE starts on (RFC 7296 §2).
pub const IKE_PORT: u16 = 500;

/// The port that IKE floats to, where ESP travels too (RFC 3948).
pub const NATT_PORT: u16 = 4500;

/// First wait for a response; a round trip across the globe is shorter.
pub const RETRANSMIT_FIRST: Duration = Duration::from_millis(500);

/// The longest wait between two transmissions: a path that comes back is noticed within this time, and used a second later.
pub const RETRANSMIT_CAP: Duration = Duration::from_secs(4);

/// A request that is not answered for so long is not going to be: its IKE SA is dead (RFC 7296 §2.4).
pub const GIVE_UP: Duration = Duration::from_secs(45);

/// A peer that is heard lives (RFC 7296 §2.4): what it has not answered yet is given up no sooner than so long after. A partition that
/// ended a moment ago then costs nothing: the request is sent twice more at least.
pub const HEARD_PATIENCE: Duration = Duration::from_secs(8);

/// A peer that speaks and never answers is given up so much later at most. With [`GIVE_UP`] it is still less than [`HARD_MARGIN`].
pub const HEARD_PATIENCE_MOST: Duration = Duration::from_secs(12);

/// An initiation (IKE_SA_INIT and IKE_AUTH together) ends after this time; the reconciler then begins anew. An IKE_AUTH that leaves
/// near its end is waited for longer, by [`HALF_OPEN_LIFETIME`].
pub const GIVE_UP_INITIATE: Duration = Duration::from_secs(30);

/// Where a peer may be at several places, one that does not answer for so long (three transmissions) is followed by the next.
pub const NEXT_PLACE: Duration = Duration::from_secs(3);

/// An initiation that nobody has answered for so long is said to meet trouble: two transmissions were lost at least.
pub const SILENCE: Duration = Duration::from_secs(2);

/// A Delete of an IKE SA is repeated for so long: the peer that misses it finds out by its own probes.
pub const GIVE_UP_DELETE: Duration = Duration::from_secs(10);

/// A responder's IKE SA without a valid IKE_AUTH is forgotten after this time.
pub const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(15);

/// Half-open IKE SAs of everybody before an initiator must return a cookie. Each costs some kilobytes and one key exchange per
/// [`HALF_OPEN_LIFETIME`].
pub const HALF_OPEN_LIMIT: usize = 64;

/// Half-open IKE SAs of one source (an IPv4 address, or an IPv6 /64 as RFC 8019 §4 counts) before it must return a cookie.
pub const HALF_OPEN_PER_SOURCE: usize = 8;

/// Once cookies are asked for, of everybody or of one source, they are until fewer than this part of the half-open IKE SAs above
/// are left: at the very edge, one initiator would be asked and the next not.
pub const HALF_OPEN_CALM: usize = 2;

/// Half-open IKE SAs of everybody, cookie or not: who reaches it owns many addresses.
pub const HALF_OPEN_MAX: usize = 512;

/// Half-open IKE SAs of one source, cookie or not. Those beyond [`HALF_OPEN_PER_SOURCE`] are out of reach of who forges its
/// address.
pub const HALF_OPEN_PER_SOURCE_MAX: usize = 32;

/// A cookie is good for one to two of these. Returning it takes a round trip; RFC 7296 §2.6 wants the secret changed often.
pub const COOKIE_EPOCH: Duration = Duration::from_secs(60);

/// An answer to who has not returned a cookie is at most so many times as long as its request. QUIC allows three (RFC 9000 §8.1); ours
/// is never longer than 1.7 times the shortest request that offers one suite and X25519, unless many authorities are to be named.
pub const AMPLIFICATION: usize = 2;

/// COOKIE answers that one initiation follows; a responder that asks for more is broken or not the responder.
pub const MAX_COOKIES: u32 = 5;

/// INVALID_KE_PAYLOAD answers that one exchange follows: our list has three groups, of which one was tried.
pub const MAX_INVALID_KE: u32 = 2;

/// Answers to one IKE_SA_INIT that are followed side by side until AUTH tells which is the peer's (RFC 7296 §2.4). Each costs a key
/// exchange and one message that is repeated.
pub const MAX_ANSWERS: usize = 4;

/// After the first answer, one that it has overtaken may come for so long; no initiation fails before.
pub const ANSWERS_OPEN: Duration = Duration::from_secs(2);

/// A probe is lost after this time: with 0.5 s, 1 s, 2 s between them, at least three transmissions went unanswered.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// CHILD_SAs of one IKE SA, those for single workers apart. One carries everything; the rest is for rekeys under way and for
/// peers with many subnets.
pub const MAX_CHILDREN: usize = 16;

/// CHILD_SAs for single workers of one IKE SA (RFC 9611): one for each worker that a host can have. One more is refused with
/// TS_MAX_QUEUE.
pub const MAX_WORKER_CHILDREN: usize = 64;

/// A peer that wants no more CHILD_SAs for single workers is asked again after this: its load may have changed.
pub const RETRY_WORKER_CHILD: Duration = Duration::from_secs(300);

/// A CHILD_SA that the peer made for one of its workers is sent with after this, if our worker needs one and the peer has not
/// sent on it: our answer has arrived by then, or was sent again.
pub const WORKER_CHILD_STANDBY: Duration = Duration::from_secs(1);

/// A peer may ask for one new SA (CREATE_CHILD_SA, rekeys included) per this time: each costs a key exchange, and a rekeyed IKE SA
/// is remembered for [`REKEYED_LINGER`]. Honest peers ask a few times an hour.
pub const NEW_SA_INTERVAL: Duration = Duration::from_secs(1);

/// So many at once: a CHILD_SA for each of many subnets, twice.
pub const NEW_SA_BURST: u32 = 2 * MAX_CHILDREN as u32;

/// Jobs that wait for the request window of one IKE SA. Duplicates are not queued, so this is not reached by honest use.
pub const MAX_JOBS: usize = 4 * (MAX_CHILDREN + MAX_WORKER_CHILDREN);

/// The loser of two IKE SAs with one peer lives on for so long, so that the winner is up on both sides before.
pub const DUPLICATE_OVERLAP: Duration = Duration::from_secs(2);

/// If its initiator does not delete the loser in this time, the other side does.
pub const DUPLICATE_PATIENCE: Duration = Duration::from_secs(10);

/// A closed IKE SA's last answer is repeated for so long to a peer that missed it.
pub const CLOSED_LINGER: Duration = Duration::from_secs(30);

/// A rekeyed IKE SA whose successor carries everything waits so long for its Delete.
pub const REKEYED_LINGER: Duration = Duration::from_secs(60);

/// After an IKE rekey its responder makes no request on the new IKE SA before it heard from the peer on it, or for so long: the
/// peer may still wait for the answer that makes the new SA.
pub const SUCCESSOR_SILENCE: Duration = Duration::from_secs(3);

/// A rekey that was refused for now (TEMPORARY_FAILURE) is tried again after this, and up to as much again.
pub const RETRY_REKEY: Duration = Duration::from_secs(2);

/// After so many refused rekeys of an IKE SA a fresh one is made beside it.
pub const MAX_REKEY_FAILURES: u32 = 3;

/// An IKE SA without CHILD_SA asks for one after this, doubled with each refusal.
pub const RETRY_CHILD_FIRST: Duration = Duration::from_secs(2);

/// The longest pause between two such attempts.
pub const RETRY_CHILD_CAP: Duration = Duration::from_secs(60);

/// The side that did not ask for the missing CHILD_SA waits so much longer, so that both rarely ask at once.
pub const RETRY_CHILD_PATIENCE: Duration = Duration::from_secs(8);

/// Two CHILD_SAs for the same traffic are reduced to one after this time.
pub const SURPLUS_OVERLAP: Duration = Duration::from_secs(3);

/// Unauthenticated hints about one peer are passed on at most this often.
pub const HINT_INTERVAL: Duration = Duration::from_secs(2);

/// INVALID_IKE_SPI answers to everybody leave at most this often: they are a courtesy.
pub const UNKNOWN_SPI_INTERVAL: Duration = Duration::from_millis(100);

/// Lifetimes are shortened by up to a tenth, so that two ends and many peers do not rekey in step.
pub const LIFETIME_JITTER: u32 = 10;

/// An SA outlives the time of its rekey by a tenth, but at least by this: a rekey whose peer is away ends with [`GIVE_UP`] at the
/// latest, and one that was refused is tried again a few times. With less, a short absence would cost packets.
pub const HARD_MARGIN: Duration = Duration::from_secs(60);

/// Packets after which a CHILD_SA is rekeyed: half of what sequence numbers without ESN allow.
pub const SOFT_PACKETS: u64 = 1 << 31;

/// Octets after which a CHILD_SA is rekeyed: 64 GiB, far below AES-GCM's bounds.
pub const SOFT_OCTETS: u64 = 1 << 36;

/// Octets of an IKE message (without non-ESP marker) above which it travels in fragments, if the peer reassembles them: with
/// marker, UDP and IPv6 headers it then fills 1280 octets, which every IPv6 link carries whole and IPv4 links do as well (RFC
/// 7383 §2.5.1).
pub const MAX_MESSAGE_LEN: usize = 1280 - 40 - 8 - 4;

/// Fragments of one message that we take; peers that cut to 576 octets need as many for 32 KiB.
pub const MAX_FRAGMENTS: u16 = 64;

/// Octets of a message that we reassemble. One per direction of an IKE SA is kept, half-open ones included.
pub const MAX_COLLECTED_LEN: usize = 32 * 1024;

/// Octets of our nonces: at least half the key size of the largest PRF (RFC 7296 §2.10).
pub const NONCE_LEN: usize = 32;

/// IKE_SA_INIT requests that are remembered so that late duplicates make no new state. Beyond that the oldest is forgotten: a
/// duplicate that comes so late costs one half-open IKE SA.
pub const MAX_KNOWN_INITS: usize = 4 * HALF_OPEN_MAX;

/// Of those, the ones of one source: how many IKE SAs it may begin per [`KNOWN_INIT_LIFETIME`], also if they are done at once.
pub const MAX_KNOWN_INITS_PER_SOURCE: usize = 256;

/// For how long they are.
pub const KNOWN_INIT_LIFETIME: Duration = Duration::from_secs(60);

/// A peer that seems to be elsewhere is looked for there at most so often: an attacker who overtakes its packets costs us one small
/// request in this time.
pub const CHECK_PAUSE: Duration = Duration::from_secs(1);

/// A peer that says that it moves, and answers from where it was, is looked for so often again.
pub const CHECK_TRIES: u32 = 3;

/// Further addresses of one end (MOBIKE) that count: each is tried when the path goes silent.
pub const MAX_ADDRESSES: usize = 8;
