//! Narrowing of traffic selectors (RFC 7296 §2.9).
//!
//! A selector is a box: a range of addresses, a protocol or all, a range of ports. What both sides want is the intersection
//! of each of theirs with each of ours; what one box of the result holds is not said again by another.

use std::net::IpAddr;

use crate::model::TrafficSelector;

/// Selectors in one TS payload: its count field is one octet. A longer result is cut, which is narrowing too.
const MAX_SELECTORS: usize = 255;

/// Start and end port that mean every port, also those that nobody can see.
const ANY: (u16, u16) = (0, u16::MAX);

/// Start and end port that mean only packets whose ports nobody can see, such as fragments (RFC 7296 §3.13.1).
const OPAQUE: (u16, u16) = (u16::MAX, 0);

/// The part of `proposed` that `allowed` holds, as the responder answers it; empty means TS_UNACCEPTABLE. A first selector
/// that is a single packet's (RFC 7296 §2.9) only asks that the result contain it: as every part of `proposed` that can be
/// had is in the result, so is that packet.
#[must_use]
pub fn narrow(proposed: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut narrowed: Vec<TrafficSelector> = Vec::new();
    for part in proposed.iter().flat_map(|theirs| allowed.iter().filter_map(|ours| intersection(theirs, ours))) {
        if narrowed.len() == MAX_SELECTORS {
            break;
        }
        if !narrowed.iter().any(|wider| is_within(&part, wider)) {
            narrowed.retain(|narrower| !is_within(narrower, &part));
            narrowed.push(part);
        }
    }
    narrowed
}

/// Whether every selector of `inner` lies within one of `outer`: what an initiator demands of the answer. An answer without
/// selectors is none.
#[must_use]
pub fn is_subset(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    !inner.is_empty() && inner.iter().all(|inner| outer.iter().any(|outer| is_within(inner, outer)))
}

/// Whether `inner` is meaningful and holds nothing that `outer` does not hold.
fn is_within(inner: &TrafficSelector, outer: &TrafficSelector) -> bool {
    intersection(inner, outer).as_ref() == Some(inner)
}

/// What both hold.
fn intersection(a: &TrafficSelector, b: &TrafficSelector) -> Option<TrafficSelector> {
    // Both of one family, or the range is none.
    let (start, end): (IpAddr, IpAddr) = (a.start().max(b.start()), a.end().min(b.end()));
    let protocol = match (protocol(a)?, protocol(b)?) {
        (0, other) | (other, 0) => other,
        (same, other) if same == other => same,
        _ => return None,
    };
    let ports = match ((a.start_port, a.end_port), (b.start_port, b.end_port)) {
        // ANY holds OPAQUE (RFC 4301 §4.4.1.1), a range of real ports does not.
        (OPAQUE, OPAQUE | ANY) | (ANY, OPAQUE) => OPAQUE,
        (OPAQUE, _) | (_, OPAQUE) => return None,
        (a, b) => (a.0.max(b.0), a.1.min(b.1)),
    };
    if ports.0 > ports.1 && ports != OPAQUE {
        return None;
    }
    let mut selector = TrafficSelector::new(start, end)?;
    (selector.protocol, selector.start_port, selector.end_port) = (protocol, ports.0, ports.1);
    Some(selector)
}

/// The protocol; none for ports without a protocol that could have them, which is no selector (RFC 7296 §3.13.1).
fn protocol(selector: &TrafficSelector) -> Option<u8> {
    let any_port = (selector.start_port, selector.end_port) == ANY;
    (selector.protocol != 0 || any_port).then_some(selector.protocol)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// `10.0.0.0/8`, `10.0.0.1..10.0.0.9`, each with an optional `[protocol/first-last]`.
    fn selector(text: &str) -> TrafficSelector {
        let (range, rest) = text.split_once('[').unwrap_or((text, "0/0-65535]"));
        let mut selector = match range.split_once("..") {
            Some((start, end)) => {
                let address = |text: &str| text.parse::<IpAddr>().expect("an address");
                TrafficSelector::new(address(start), address(end)).expect("a range")
            }
            None => TrafficSelector::from_prefix(range.parse().expect("a prefix")),
        };
        let (protocol, ports) = rest.trim_end_matches(']').split_once('/').expect("protocol and ports");
        let (first, last) = ports.split_once('-').expect("two ports");
        selector.protocol = protocol.parse().expect("a protocol");
        selector.start_port = first.parse().expect("a port");
        selector.end_port = last.parse().expect("a port");
        selector
    }

    fn selectors(texts: &[&str]) -> Vec<TrafficSelector> {
        texts.iter().map(|text| selector(text)).collect()
    }

    #[track_caller]
    fn check(proposed: &[&str], allowed: &[&str], expected: &[&str]) {
        assert_eq!(narrow(&selectors(proposed), &selectors(allowed)), selectors(expected));
    }

    #[test]
    fn case_84_narrowing() {
        check(&["0.0.0.0/0"], &["10.42.1.0/24"], &["10.42.1.0/24"]);
        check(&["10.42.1.0/24"], &["10.42.0.0/16"], &["10.42.1.0/24"]);
        check(&["10.42.1.0/24"], &["10.43.0.0/16"], &[]);
        check(&["10.0.0.5..10.0.0.20"], &["10.0.0.16..10.0.0.30"], &["10.0.0.16..10.0.0.20"]);
        check(&["0.0.0.0/0"], &["2001:db8::/32"], &[]);
        check(&["0.0.0.0/0", "::/0"], &["2001:db8::/32", "10.0.0.0/8"], &["10.0.0.0/8", "2001:db8::/32"]);
        check(&["10.0.0.0/8[6/80-90]"], &["10.1.0.0/16[6/85-99]"], &["10.1.0.0/16[6/85-90]"]);
        check(&["10.0.0.0/8[6/80-90]"], &["10.0.0.0/8"], &["10.0.0.0/8[6/80-90]"]);
        check(&["10.0.0.0/8[6/0-65535]"], &["10.0.0.0/8[17/0-65535]"], &[]);
        check(&["10.0.0.0/8[6/80-90]"], &["10.0.0.0/8[6/91-92]"], &[]);
    }

    #[test]
    fn case_84_opaque_and_impossible_ports() {
        check(&["10.0.0.0/8[17/65535-0]"], &["10.0.0.0/8"], &["10.0.0.0/8[17/65535-0]"]);
        check(&["10.0.0.0/8[17/65535-0]"], &["10.0.0.0/8[17/65535-0]"], &["10.0.0.0/8[17/65535-0]"]);
        check(&["10.0.0.0/8[17/65535-0]"], &["10.0.0.0/8[17/0-1000]"], &[]);
        check(&["10.0.0.0/8[17/9-3]"], &["10.0.0.0/8"], &[]);
        check(&["10.0.0.0/8[0/80-80]"], &["10.0.0.0/8"], &[]);
        check(&["10.0.0.0/8[0/80-80]"], &["10.0.0.0/8[6/0-65535]"], &[]);
        assert!(!is_subset(&selectors(&["10.0.0.0/8[17/9-3]"]), &selectors(&["10.0.0.0/8"])));
        assert!(!is_subset(&selectors(&["10.0.0.0/8[0/80-80]"]), &selectors(&["10.0.0.0/8"])));
    }

    #[test]
    fn first_selector_of_a_single_packet() {
        let packet = "10.42.1.7/32[6/4711-4711]";
        check(&[packet, "10.42.0.0/16"], &["10.42.1.0/24"], &["10.42.1.0/24"]);
        check(&[packet, "10.43.0.0/16"], &["10.42.1.0/24", "10.43.0.0/16"], &[packet, "10.43.0.0/16"]);
        check(&[packet, "10.43.0.0/16"], &["10.43.0.0/16"], &["10.43.0.0/16"]);
    }

    #[test]
    fn order_is_theirs_and_nothing_is_said_twice() {
        check(&["10.3.0.0/16", "10.1.0.0/16"], &["10.0.0.0/8"], &["10.3.0.0/16", "10.1.0.0/16"]);
        check(&["10.0.0.0/8", "10.0.0.0/8"], &["10.1.0.0/16", "10.1.0.0/16"], &["10.1.0.0/16"]);
        check(&["10.1.0.0/24", "10.2.0.0/16", "10.1.0.0/16"], &["10.0.0.0/8"], &["10.2.0.0/16", "10.1.0.0/16"]);
    }

    #[test]
    fn the_result_fits_a_payload() {
        let single = |index: u32| {
            let address = IpAddr::V4(Ipv4Addr::from(index * 2));
            TrafficSelector::new(address, address).expect("a range")
        };
        let proposed: Vec<_> = (0..300).map(single).collect();
        assert_eq!(narrow(&proposed, &selectors(&["0.0.0.0/0"])), proposed[..255]);
    }

    #[test]
    fn case_89_an_answer_may_be_narrower_but_not_wider() {
        let offered = selectors(&["10.42.0.0/16", "2001:db8::/32[6/0-65535]"]);
        for good in [&["10.42.0.0/16"][..], &["10.42.1.0/24", "10.42.2.0/24[17/53-53]"], &["2001:db8::/64[6/22-22]"]] {
            assert!(is_subset(&selectors(good), &offered), "{good:?}");
        }
        for bad in [&["0.0.0.0/0"][..], &["10.42.0.0/16", "10.43.0.0/32"], &["::/0"], &["2001:db8::/64"], &[]] {
            assert!(!is_subset(&selectors(bad), &offered), "{bad:?}");
        }
    }

    // ---- against a model that tries every packet of a small world ----

    /// Address, protocol, and port if it can be seen.
    type Packet = (u8, u8, Option<u16>);

    fn world() -> impl Iterator<Item = Packet> {
        let ports = [None, Some(0), Some(1), Some(2), Some(3), Some(65_535)];
        (0..8).flat_map(move |address| {
            [1, 6].into_iter().flat_map(move |protocol| ports.map(|port| (address, protocol, port)))
        })
    }

    /// Straight from RFC 7296 §3.13.1 and RFC 4301 §4.4.1.1.
    fn holds(selector: &TrafficSelector, (address, protocol, port): Packet) -> bool {
        let ports = (selector.start_port, selector.end_port);
        selector.contains_address(IpAddr::from([10, 0, 0, address]))
            && (selector.protocol == protocol || (selector.protocol == 0 && ports == (0, 65_535)))
            && match port {
                None => ports == (0, 65_535) || ports == (65_535, 0),
                Some(port) => ports.0 <= port && port <= ports.1,
            }
    }

    fn small_selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
        let ports = prop_oneof![Just((0, 65_535)), Just((65_535, 0)), (0..4_u16, 0..4_u16), (0..4_u16, Just(65_535))];
        let selector = ((0..8_u8, 0..8_u8), prop_oneof![Just(0), Just(1), Just(6)], ports).prop_map(
            |((a, b), protocol, (start_port, end_port))| {
                let address = |low| IpAddr::from([10, 0, 0, low]);
                let mut selector = TrafficSelector::new(address(a.min(b)), address(a.max(b))).expect("ordered");
                (selector.protocol, selector.start_port, selector.end_port) = (protocol, start_port, end_port);
                selector
            },
        );
        vec(selector, 0..5)
    }

    proptest! {
        #[test]
        fn narrowing_is_intersection(proposed in small_selectors(), allowed in small_selectors()) {
            let narrowed = narrow(&proposed, &allowed);
            for packet in world() {
                let by = |selectors: &[TrafficSelector]| selectors.iter().any(|selector| holds(selector, packet));
                prop_assert_eq!(by(&narrowed), by(&proposed) && by(&allowed), "{:?}", packet);
            }
            prop_assert!(narrowed.is_empty() || is_subset(&narrowed, &proposed) && is_subset(&narrowed, &allowed));
            prop_assert_eq!(&narrow(&narrowed, &allowed), &narrowed, "narrowing again changes nothing");
        }
    }
}
