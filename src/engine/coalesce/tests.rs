//! What was joined is cut again, and must be what was there before.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::segment::Split;
use crate::wire::testing::Recipe;

const BOTH: Offloads = Offloads { tcp: true, udp: true };

/// Everything that comes out: packets, and super-packets whole and cut.
#[derive(Default)]
struct Collected {
    buffer: Vec<u8>,
    packets: Vec<Vec<u8>>,
    /// Packets per write.
    writes: Vec<usize>,
}

impl Sink for Collected {
    fn packet(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
        self.writes.push(1);
    }

    fn super_packet(&mut self, joined: &Joined<'_>) {
        let mut whole = joined.header.to_vec();
        for &(start, len) in joined.payloads {
            whole.extend(&self.buffer[start as usize..(start + len) as usize]);
        }
        assert_eq!(joined.ipv4, whole[0] == 0x45);
        let split = Split::parse(&whole, joined.gso).unwrap().unwrap();
        assert_eq!(split.count(), joined.payloads.len());
        // What the kernel would find: the pseudo-header's sum in the field, which makes the sum right.
        let mut finished = whole.clone();
        crate::wire::segment::complete_checksum(&mut finished, joined.upper, joined.field).unwrap();
        let again = Split::parse(&finished, Gso::None).unwrap();
        assert!(again.is_none());
        assert!(whole[0] != 0x45 || checksum(&whole[..20]) == 0);
        let addresses = if joined.ipv4 { &whole[12..20] } else { &whole[8..40] };
        let upper = &finished[joined.upper.into()..];
        let protocol = if matches!(joined.gso, Gso::Tcp(_)) { ip::TCP } else { ip::UDP };
        assert_eq!(Sum::default().with_pseudo_header(addresses, protocol, upper.len() as u32).with(upper).finish(), 0);
        for index in 0..split.count() {
            let mut packet = vec![0; split.len_of(index)];
            split.emit(index, &mut packet);
            self.packets.push(packet);
        }
        self.writes.push(split.count());
    }
}

fn run(packets: &[Vec<u8>], offloads: Offloads) -> Collected {
    let mut collected = Collected { buffer: packets.concat(), ..Collected::default() };
    let buffer = collected.buffer.clone();
    let mut coalescer = Coalescer::new(offloads);
    let mut start = 0;
    for packet in packets {
        coalescer.push(&buffer, start, packet.len() as u32, &mut collected);
        start += packet.len() as u32;
    }
    coalescer.flush(&buffer, &mut collected);
    assert_eq!(coalescer.used, 0);
    collected
}

/// How many packets each write carries.
fn writes(packets: &[Recipe]) -> Vec<usize> {
    let packets: Vec<Vec<u8>> = packets.iter().map(Recipe::build).collect();
    let collected = run(&packets, BOTH);
    assert_eq!(per_flow(&collected.packets), per_flow(&packets));
    collected.writes
}

/// A packet without what cutting may change: IPv4's identification under DF.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6..8] == ONLY_DF {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The packets of each flow in their order. All our headers have their ports at the same place, by family.
fn per_flow(packets: &[Vec<u8>]) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for packet in packets {
        let (upper, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
        let mut key = vec![packet[0], protocol];
        key.extend(&packet[upper..upper + 4]);
        flows.entry(key).or_default().push(comparable(packet));
    }
    flows
}

/// A flow's packets, one behind the other.
fn run_of(first: &Recipe, lengths: &[usize]) -> Vec<Recipe> {
    let mut sequence = first.sequence;
    let next = |(number, &len): (usize, &usize)| {
        let payload: Vec<u8> = (0..len).map(|at| (at * 7 + number) as u8).collect();
        let recipe = Recipe { payload, sequence, id: first.id.wrapping_add(number as u16), ..first.clone() };
        sequence = sequence.wrapping_add(len as u32);
        recipe
    };
    lengths.iter().enumerate().map(next).collect()
}

/// All four kinds.
fn kinds() -> impl Iterator<Item = Recipe> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter().map(|(v6, tcp)| Recipe::new(v6, tcp, &[]))
}

#[test]
fn neighbours_of_a_flow_are_joined_and_a_shorter_one_ends_the_run() {
    for kind in kinds() {
        assert_eq!(writes(&run_of(&kind, &[100, 100, 100])), [3], "{kind:?}");
        assert_eq!(writes(&run_of(&kind, &[100, 100, 40, 40])), [3, 1], "{kind:?}");
        assert_eq!(writes(&run_of(&kind, &[100, 101])), [1, 1], "{kind:?}");
    }
}

#[test]
fn flows_are_joined_beside_each_other() {
    let kind = Recipe::new(false, true, &[]);
    let other = Recipe { ports: [1, 2], ..kind.clone() };
    let (one, two) = (run_of(&kind, &[100; 3]), run_of(&other, &[100; 3]));
    let mixed: Vec<Recipe> = one.into_iter().zip(two).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(writes(&mixed), [3, 3]);
}

#[test]
fn never_more_than_a_packet_can_be_long_and_the_kernel_takes() {
    let tcp = Recipe::new(false, true, &[]);
    assert_eq!(writes(&run_of(&tcp, &[1348; 50])), [48, 2]);
    assert_eq!(writes(&run_of(&tcp, &[10; 130])), [128, 2]);
    let udp = Recipe::new(false, false, &[]);
    assert_eq!(writes(&run_of(&udp, &[10; 66])), [64, 2]);
}

#[test]
fn datagrams_to_tunnels_are_never_joined() {
    for port in TUNNEL_PORTS {
        for ports in [[port, 5], [5, port]] {
            let kind = Recipe { ports, ..Recipe::new(false, false, &[]) };
            assert_eq!(writes(&run_of(&kind, &[100; 2])), [1, 1], "{port}");
        }
    }
    // What TCP carries there nobody takes apart by packets.
    let kind = Recipe { ports: [5, 4789], ..Recipe::new(false, true, &[]) };
    assert_eq!(writes(&run_of(&kind, &[100; 2])), [2]);
}

#[test]
fn what_differs_in_a_header_is_not_joined() {
    type Change = fn(&mut Recipe);
    let of_both: [Change; 3] = [|r| r.class = 3, |r| r.class = 4, |r| r.ttl = 63];
    let of_tcp: [Change; 6] = [
        |r| r.ack += 1,
        |r| r.window += 1,
        |r| r.options[7] += 1,
        |r| r.options = vec![1; 4],
        |r| r.flags |= 0x40,
        |r| r.sequence += 1,
    ];
    for kind in kinds() {
        for change in of_both.iter().chain(if kind.tcp { &of_tcp[..] } else { &[] }) {
            let mut packets = run_of(&kind, &[100; 3]);
            change(&mut packets[1]);
            assert_eq!(writes(&packets), [1, 1, 1], "{:?}", packets[1]);
        }
    }
}

#[test]
fn the_ends_of_a_connection_and_answers_to_congestion_go_alone() {
    for flags in [0x11, 0x12, 0x14, 0x30, 0x90, 0x00] {
        let mut packets = run_of(&Recipe::new(true, true, &[]), &[100; 3]);
        packets[1].flags = flags;
        assert_eq!(writes(&packets), [1, 1, 1], "{flags:#x}");
    }
    // ECE on all of them is the same header.
    let echo = Recipe { flags: 0x50, ..Recipe::new(true, true, &[]) };
    assert_eq!(writes(&run_of(&echo, &[100; 3])), [3]);
}

#[test]
fn a_push_ends_the_run_and_stays_with_the_last() {
    let mut packets = run_of(&Recipe::new(false, true, &[]), &[100; 4]);
    packets[1].flags |= PSH;
    assert_eq!(writes(&packets), [2, 2]);
}

#[test]
fn segments_without_data_go_alone_and_overtake_nothing() {
    let packets = run_of(&Recipe::new(false, true, &[]), &[100, 100, 0, 100]);
    let collected = run(&packets.iter().map(Recipe::build).collect::<Vec<_>>(), BOTH);
    assert_eq!(collected.writes, [2, 1, 1]);
}

#[test]
fn without_df_nothing_is_joined_as_the_identification_counts() {
    let kind = Recipe { dont_fragment: false, ..Recipe::new(false, false, &[]) };
    assert_eq!(writes(&run_of(&kind, &[100; 2])), [1, 1]);
}

#[test]
fn what_was_damaged_before_the_tunnel_stays_so() {
    for kind in kinds() {
        let mut packets: Vec<Vec<u8>> = run_of(&kind, &[100; 3]).iter().map(Recipe::build).collect();
        *packets[1].last_mut().unwrap() ^= 1;
        let collected = run(&packets, BOTH);
        assert_eq!((collected.writes, collected.packets), (vec![1, 1, 1], packets));
    }
    // So does a header.
    let mut packets: Vec<Vec<u8>> = run_of(&Recipe::new(false, true, &[]), &[100; 2]).iter().map(Recipe::build).collect();
    packets[1][10] ^= 1;
    assert_eq!(run(&packets, BOTH).writes, [1, 1]);
}

#[test]
fn a_datagram_without_checksum_goes_alone() {
    let mut packets: Vec<Vec<u8>> = run_of(&Recipe::new(false, false, &[]), &[100; 2]).iter().map(Recipe::build).collect();
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    let collected = run(&packets, BOTH);
    assert_eq!((collected.writes, collected.packets), (vec![1, 1], packets));
}

#[test]
fn fragments_overtake_nothing() {
    let mut packets: Vec<Vec<u8>> = run_of(&Recipe::new(false, false, &[]), &[100; 4]).iter().map(Recipe::build).collect();
    packets[2][6] = 0x20;
    let collected = run(&packets, BOTH);
    assert_eq!(collected.writes, [2, 1, 1]);
    assert_eq!(comparable(&collected.packets[2]), comparable(&packets[2]));
}

#[test]
fn what_the_kernel_does_not_take_is_not_joined() {
    for kind in kinds() {
        let packets: Vec<Vec<u8>> = run_of(&kind, &[100; 2]).iter().map(Recipe::build).collect();
        let only_other = Offloads { tcp: !kind.tcp, udp: kind.tcp };
        assert_eq!(run(&packets, only_other).writes, [1, 1]);
    }
}

/// A packet of one of a few flows, mostly the one that continues it.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    len: usize,
    flags: u8,
    skip: bool,
    class: u8,
    df: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![6 => Just(64_usize), 1 => 0..80_usize];
    let flags = prop_oneof![8 => Just(0x10_u8), 1 => Just(0x18_u8), 1 => any::<u8>()];
    let class = prop_oneof![9 => Just(0_u8), 1 => 0..4_u8];
    (0..6_usize, len, flags, prop::bool::weighted(0.05), class, prop::bool::weighted(0.95))
        .prop_map(|(flow, len, flags, skip, class, df)| Step { flow, len, flags, skip, class, df })
}

proptest! {
    #[test]
    fn cut_again_it_is_what_it_was(steps in vec(step(), 1..200)) {
        let mut flows: Vec<Recipe> = kinds().collect();
        flows.extend(kinds().filter(|kind| !kind.v6).map(|kind| Recipe { ports: [1, 2], ..kind }));
        let packets = steps.iter().enumerate().map(|(number, step)| {
            let flow = &mut flows[step.flow];
            flow.sequence = flow.sequence.wrapping_add(if step.skip { 9 } else { 0 });
            let payload: Vec<u8> = (0..step.len).map(|at| (at * 3 + number) as u8).collect();
            let (flags, class, dont_fragment) = (step.flags, step.class, step.df);
            let packet = Recipe { payload, flags, class, dont_fragment, id: number as u16, ..flow.clone() }.build();
            flow.sequence = flow.sequence.wrapping_add(step.len as u32);
            packet
        });
        let packets: Vec<Vec<u8>> = packets.collect();
        let collected = run(&packets, BOTH);
        prop_assert_eq!(per_flow(&collected.packets), per_flow(&packets));
    }

    #[test]
    fn no_octets_are_too_strange(packets in vec(vec(any::<u8>(), 1..80), 1..20), head in any::<u8>()) {
        let mut packets = packets;
        for (number, packet) in packets.iter_mut().enumerate() {
            packet[0] = if (number as u8) & head == 0 { 0x45 } else { 0x60 };
            let place = if packet[0] == 0x45 { 9 } else { 6 };
            if let Some(protocol) = packet.get_mut(place) {
                *protocol = if head & 1 == 0 { 6 } else { 17 };
            }
        }
        let mut out = run(&packets, BOTH).packets;
        out.sort();
        packets.sort();
        prop_assert_eq!(out, packets);
    }
}
