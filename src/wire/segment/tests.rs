//! Super-packets against the packets that a naive sender would have made one by one.

use std::num::NonZeroU16;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::testing::{Recipe, naive_checksum};

fn gso(recipe: &Recipe, size: u16) -> Gso {
    let size = NonZeroU16::new(size).unwrap();
    if recipe.tcp { Gso::Tcp(size) } else { Gso::Udp(size) }
}

/// What a sender without offloads makes of the same write.
fn naive(whole: &Recipe, size: u16) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = match whole.payload.len() {
        0 => vec![&[]],
        _ => whole.payload.chunks(size.into()).collect(),
    };
    let last = pieces.len() - 1;
    let packets = pieces.iter().enumerate().map(|(index, piece)| {
        let mut recipe = Recipe { payload: piece.to_vec(), id: whole.id.wrapping_add(index as u16), ..whole.clone() };
        recipe.sequence = whole.sequence.wrapping_add((index * usize::from(size)) as u32);
        let mut kept = 0x7f & !0x09;
        kept |= if index == 0 { 0x80 } else { 0 };
        kept |= if index == last { 0x09 } else { 0 };
        recipe.flags &= kept;
        recipe.build()
    });
    packets.collect()
}

fn split(octets: &[u8], gso: Gso) -> Vec<Vec<u8>> {
    let split = Split::parse(octets, gso).unwrap().unwrap();
    let emit = |index| {
        let mut packet = vec![0xaa; split.len_of(index)];
        split.emit(index, &mut packet);
        packet
    };
    assert_eq!(split.len_of(split.count()), 0);
    assert_eq!(split.stride(), split.len_of(0));
    (0..split.count()).map(emit).collect()
}

/// A super-packet as the kernel hands it over: lengths of the whole, a checksum that nobody finished.
fn unfinished(recipe: &Recipe) -> Vec<u8> {
    let mut octets = recipe.build();
    let field = recipe.header_len() - if recipe.tcp { 4 + recipe.options.len() } else { 2 };
    octets[field..field + 2].fill(0x77);
    octets
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let payload = (any::<u8>(), 0..5000_usize);
    (any::<(bool, bool, u8, u16, u8, u32, u32, u16)>(), vec(any::<[u8; 4]>(), 0..=10), payload).prop_map(
        |((v6, tcp, class, id, flags, sequence, ack, window), options, (seed, len))| {
            let payload: Vec<u8> = (0..len).map(|at| seed.wrapping_add((at * at) as u8)).collect();
            let options = if tcp { options.concat() } else { Vec::new() };
            Recipe { class, id, flags, sequence, ack, window, options, ..Recipe::new(v6, tcp, &payload) }
        },
    )
}

proptest! {
    #[test]
    fn as_if_sent_one_by_one(recipe in recipe(), size in 1..1500_u16) {
        prop_assert_eq!(split(&unfinished(&recipe), gso(&recipe, size)), naive(&recipe, size));
    }

    #[test]
    fn nothing_that_the_kernel_says_is_trusted(octets in vec(any::<u8>(), 0..100), head in 0..4_usize, size in 1..100_u16) {
        let mut octets = octets;
        // Most random octets are no packet at all: let some come closer.
        let len = octets.len();
        if let Some(first) = octets.first_mut() {
            *first = [*first, 0x45, 0x46, 0x60][head];
        }
        if len > 40 && head > 0 {
            let total = if head == 3 { len - 40 } else { len };
            let place = if head == 3 { 4 } else { 2 };
            octets[place..place + 2].copy_from_slice(&(total as u16).to_be_bytes());
            octets[if head == 3 { 6 } else { 9 }] = if size % 2 == 0 { 6 } else { 17 };
        }
        for gso in [Gso::Tcp(NonZeroU16::new(size).unwrap()), Gso::Udp(NonZeroU16::new(size).unwrap())] {
            if let Ok(Some(split)) = Split::parse(&octets, gso) {
                for index in 0..split.count() {
                    split.emit(index, &mut vec![0; split.len_of(index)]);
                }
            }
        }
    }
}

#[test]
fn a_write_of_64_kilobytes_at_the_smallest_common_mss_makes_122_segments() {
    let recipe = Recipe::new(false, true, &vec![5; 122 * 536]);
    let packets = split(&unfinished(&recipe), gso(&recipe, 536));
    assert_eq!(packets.len(), 122);
    assert_eq!(packets, naive(&recipe, 536));
}

#[test]
fn ends_and_pushes_are_the_last_ones_and_the_answer_to_congestion_the_first_ones() {
    // FIN, PSH, ACK, ECE, CWR.
    let recipe = Recipe { flags: 0xd9, ..Recipe::new(true, true, &[1; 30]) };
    let flags = split(&unfinished(&recipe), gso(&recipe, 10)).iter().map(|packet| packet[53]).collect::<Vec<_>>();
    assert_eq!(flags, [0xd0, 0x50, 0x59]);
}

#[test]
fn a_computed_zero_is_sent_as_all_ones() {
    // What makes the sum of the rest zero is the complement of that sum.
    let mut recipe = Recipe::new(false, false, &[0; 4]);
    let sum = recipe.build()[26..28].to_vec();
    recipe.payload[..2].copy_from_slice(&sum);
    let packet = &split(&unfinished(&recipe), gso(&recipe, 10))[0];
    assert_eq!(packet[26..28], [0xff, 0xff]);
    let mut single = unfinished(&recipe);
    // The pseudo-header's sum, as the kernel leaves it.
    let pseudo = !naive_checksum(&[&single[12..20], &[0, 17, 0, 12]].concat());
    single[26..28].copy_from_slice(&pseudo.to_be_bytes());
    complete_checksum(&mut single, 20, 6).unwrap();
    assert_eq!(single[26..28], [0xff, 0xff]);
}

#[test]
fn other_packets_than_promised_are_refused() {
    let size = NonZeroU16::new(10).unwrap();
    let tcp = Recipe::new(false, true, &[1; 30]).build();
    let refused = |octets: &[u8], gso| Split::parse(octets, gso).map(|split| split.map(|split| split.count())).unwrap_err();
    assert_eq!(refused(&tcp, Gso::Udp(size)), SplitError::Protocol);
    assert_eq!(refused(&tcp[..50], Gso::Tcp(size)), SplitError::Ip(IpError::TotalLength));
    let change = |place: usize, value: u8| {
        let mut octets = tcp.clone();
        octets[place] = value;
        octets
    };
    // More fragments; a header of 16 octets; one of 60 in 50.
    assert_eq!(refused(&change(6, 0x20), Gso::Tcp(size)), SplitError::Protocol);
    assert_eq!(refused(&change(32, 0x40), Gso::Tcp(size)), SplitError::Header);
    let mut short = Recipe::new(false, true, &[]).build();
    short[32] = 0xf0;
    assert_eq!(refused(&short, Gso::Tcp(size)), SplitError::Header);
    assert!(Split::parse(&tcp, Gso::None).unwrap().is_none());
}

#[test]
fn a_checksum_that_was_left_to_us_is_computed() {
    // RFC 1071 §3: the words 0001 f203 f4f5 f6f7 sum up to ddf2; two octets of field in front of them.
    let mut packet = [0xaa, 0, 0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    complete_checksum(&mut packet, 1, 0).unwrap();
    assert_eq!(packet[1..3], (!0xddf2_u16).to_be_bytes());
    for (start, offset) in [(12, 0), (4, 6), (0, u16::MAX)] {
        assert_eq!(complete_checksum(&mut [0; 11], start, offset), Err(SplitError::Header));
    }
}
