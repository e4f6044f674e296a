//! Each test makes two namespaces of its own and asks the kernel, and a second program where one is needed.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use super::*;
use crate::sys::netns::Namespace;

/// Two namespaces joined by `left` and `right`, both still down and without addresses.
fn two_hosts() -> (Namespace, Namespace) {
    let (left, right) = (Namespace::create().expect("needs root"), Namespace::create().expect("needs root"));
    let far = VethEnd { name: "right", namespace: Some(right.as_fd()) };
    in_namespace(&left, |netlink| netlink.create_veth(VethEnd { name: "left", namespace: None }, far).unwrap());
    (left, right)
}

fn in_namespace<T: Send>(namespace: &Namespace, work: impl FnOnce(&mut Netlink) -> T + Send) -> T {
    namespace.run(|| work(&mut Netlink::open().unwrap())).unwrap()
}

#[test]
fn a_pair_appears_in_both_namespaces_and_vanishes_from_both() {
    let (left, right) = two_hosts();
    let near = in_namespace(&left, |netlink| netlink.link("left").unwrap());
    assert!(!near.up && near.mtu == 1500 && near.hardware_address.len() == 6, "{near:?}");
    assert_eq!(in_namespace(&left, |netlink| netlink.link_index("left").unwrap()), near.index);
    assert_eq!(in_namespace(&right, |netlink| netlink.link("right").unwrap().name), "right");
    assert!(matches!(
        in_namespace(&left, |netlink| netlink.link("right")),
        Err(NetlinkError::NoSuchLink { link, .. }) if link == "right"
    ));
    in_namespace(&right, |netlink| netlink.delete_link("right").unwrap());
    assert_eq!(in_namespace(&left, |netlink| netlink.links().unwrap()).len(), 1, "only lo is left");
}

#[test]
fn mtu_queue_and_state_are_what_was_asked_for() {
    let (left, right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.set_mtu("left", 1400).unwrap();
        netlink.set_txqueuelen("left", 1234).unwrap();
        netlink.set_up("left").unwrap();
        let link = netlink.link("left").unwrap();
        assert_eq!((link.mtu, link.txqueuelen, link.up, link.running), (1400, 1234, true, false));
    });
    in_namespace(&right, |netlink| netlink.set_up("right").unwrap());
    in_namespace(&left, |netlink| {
        assert!(netlink.link("left").unwrap().running, "both ends are up");
        netlink.set_down("left").unwrap();
        assert!(!netlink.link("left").unwrap().up);
    });
}

#[test]
fn only_a_bridge_takes_ports() {
    let (left, _right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.create_bridge("bridge").unwrap();
        assert!(netlink.create_bridge("bridge").unwrap_err().is_present());
        netlink.join_bridge("left", "bridge").unwrap();
        assert_eq!(netlink.join_bridge("bridge", "left").unwrap_err().errno(), Some(libc::EOPNOTSUPP));
        let missing = netlink.join_bridge("left", "none");
        assert!(matches!(missing, Err(NetlinkError::NoSuchLink { link, .. }) if link == "none"));
    });
}

#[test]
fn a_link_moves_with_its_name_and_without_its_addresses() {
    let (left, right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.replace_address("left", "10.42.1.1/24".parse().unwrap()).unwrap();
        netlink.move_link("left", right.as_fd()).unwrap();
        assert!(netlink.link("left").is_err());
    });
    in_namespace(&right, |netlink| assert!(netlink.addresses_of("left").unwrap().is_empty()));
}

#[test]
fn addresses_are_added_listed_replaced_and_deleted() {
    let (left, _right) = two_hosts();
    in_namespace(&left, |netlink| {
        for address in ["10.42.1.1/32", "2001:db8::1/128"] {
            let address = address.parse().unwrap();
            netlink.add_address("left", address).unwrap();
            let again = netlink.add_address("left", address).unwrap_err();
            assert!(again.is_present(), "{again}");
            netlink.replace_address("left", address).unwrap();
            let listed: Vec<_> = netlink.addresses_of("left").unwrap().into_iter().map(|found| found.address).collect();
            assert_eq!(listed, [address]);
            netlink.delete_address("left", address).unwrap();
            assert!(netlink.delete_address("left", address).unwrap_err().is_absent());
            assert!(netlink.addresses_of("left").unwrap().is_empty());
        }
    });
}

#[test]
fn an_ipv6_address_is_usable_at_once() {
    let (left, _right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.set_up("lo").unwrap();
        netlink.set_up("left").unwrap();
        netlink.add_address("left", "2001:db8::1/64".parse().unwrap()).unwrap();
        // A tentative address (duplicate address detection under way) cannot be bound.
        UdpSocket::bind("[2001:db8::1]:0").unwrap();
    });
}

#[test]
fn routes_are_added_replaced_found_and_deleted() {
    let (left, right) = two_hosts();
    in_namespace(&right, |netlink| netlink.set_up("right").unwrap());
    in_namespace(&left, |netlink| {
        netlink.set_up("left").unwrap();
        for (own, destination) in [("10.42.1.1/32", "10.42.2.0/24"), ("2001:db8:1::1/128", "2001:db8:2::/64")] {
            let (own, destination): (ipnet::IpNet, ipnet::IpNet) = (own.parse().unwrap(), destination.parse().unwrap());
            netlink.add_address("left", own).unwrap();
            let plain = RouteSpec::new(destination, "left");
            netlink.add_route(plain).unwrap();
            assert!(netlink.add_route(plain).unwrap_err().is_present());
            netlink.replace_route(RouteSpec { source: Some(own.addr()), mtu: Some(1320), ..plain }).unwrap();
            let expected = Route {
                destination,
                link_index: Some(netlink.link_index("left").unwrap()),
                gateway: None,
                source: Some(own.addr()),
                mtu: Some(1320),
            };
            assert_eq!(netlink.routes_to(destination).unwrap(), [expected]);
            assert_eq!(source_towards(destination.addr()), own.addr());
            netlink.delete_route(destination, "left").unwrap();
            assert!(netlink.routes_to(destination).unwrap().is_empty());
            assert!(netlink.delete_route(destination, "left").unwrap_err().is_absent());
        }
    });
}

/// Which source address the kernel itself would choose, asked through another door than netlink.
fn source_towards(destination: IpAddr) -> IpAddr {
    let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect((destination, 9)).unwrap();
    socket.local_addr().unwrap().ip()
}

#[test]
fn a_route_with_host_bits_is_a_route_to_its_prefix() {
    let (left, _right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.set_up("left").unwrap();
        netlink.add_route(RouteSpec::new("10.42.2.7/24".parse().unwrap(), "left")).unwrap();
        assert_eq!(netlink.routes_to("10.42.2.0/24".parse().unwrap()).unwrap().len(), 1);
    });
}

#[test]
fn the_default_route_and_the_local_table_are_told_apart() {
    let (left, _right) = two_hosts();
    in_namespace(&left, |netlink| {
        netlink.set_up("left").unwrap();
        netlink.add_address("left", "10.42.1.1/32".parse().unwrap()).unwrap();
        netlink.add_route(RouteSpec::new("0.0.0.0/0".parse().unwrap(), "left")).unwrap();
        assert_eq!(netlink.routes_to("0.0.0.0/0".parse().unwrap()).unwrap().len(), 1);
        let own = netlink.routes_to("10.42.1.1/32".parse().unwrap()).unwrap();
        assert!(own.is_empty(), "the kernel's own entry is in another table: {own:?}");
    });
}

#[test]
fn the_tables_say_how_large_a_packet_may_be() {
    let namespace = Namespace::create().expect("needs root");
    in_namespace(&namespace, |netlink| {
        let end = |name| VethEnd { name, namespace: None };
        netlink.create_veth(end("near"), end("far")).unwrap();
        netlink.set_mtu("near", 1400).unwrap();
        netlink.set_up("near").unwrap();
        netlink.set_up("far").unwrap();
        netlink.add_address("near", "192.0.2.1/24".parse().unwrap()).unwrap();
        let narrow = RouteSpec { mtu: Some(1000), ..RouteSpec::new("198.51.100.0/24".parse().unwrap(), "near") };
        netlink.add_route(narrow).unwrap();
        assert_eq!(netlink.own_mtu("192.0.2.2".parse().unwrap()).unwrap(), 1400);
        assert_eq!(netlink.own_mtu("198.51.100.7".parse().unwrap()).unwrap(), 1000);
        let error = netlink.own_mtu("203.0.113.1".parse().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("look up the route to 203.0.113.1: "), "{error}");
    });
}

#[test]
fn changes_are_heard_of_once() {
    let namespace = Namespace::create().expect("needs root");
    in_namespace(&namespace, |netlink| {
        let monitor = Monitor::open().unwrap();
        assert!(!monitor.has_changed());
        let changes: [fn(&mut Netlink); 4] = [
            |netlink| netlink.set_up("lo").unwrap(),
            |netlink| netlink.set_mtu("lo", 1300).unwrap(),
            |netlink| netlink.add_address("lo", "192.0.2.1/24".parse().unwrap()).unwrap(),
            |netlink| netlink.add_route(RouteSpec::new("198.51.100.0/24".parse().unwrap(), "lo")).unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            change(netlink);
            assert!(monitor.has_changed(), "change {number}");
            while monitor.has_changed() {}
        }
    });
}

#[test]
fn what_an_interface_threw_away_is_counted() {
    let namespace = Namespace::create().expect("needs root");
    in_namespace(&namespace, |netlink| {
        let device = crate::sys::tun::TunDevice::open("tun-test", 1, crate::sys::tun::TunBackend::Offload, false).unwrap();
        netlink.set_txqueuelen("tun-test", 4).unwrap();
        netlink.add_address("tun-test", "192.0.2.1/24".parse().unwrap()).unwrap();
        netlink.set_up("tun-test").unwrap();
        let before = netlink.dropped_outbound("tun-test").unwrap();
        let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
        for _ in 0..20 {
            // Its errors do not matter: the counter is what is looked at.
            let _ = sender.send_to(b"x", "192.0.2.2:9");
        }
        let dropped = netlink.dropped_outbound("tun-test").unwrap() - before;
        assert!((16..=20).contains(&dropped), "{dropped} of 20, 4 fit at most");
        assert!(netlink.dropped_outbound("no-such").unwrap_err().is_absent());
        drop(device);
    });
}

#[test]
fn errors_say_what_was_tried() {
    let namespace = Namespace::create().expect("needs root");
    in_namespace(&namespace, |netlink| {
        let error = netlink.add_address("underpass0", "10.42.1.1/32".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "add address 10.42.1.1/32 to underpass0: there is no network interface underpass0");
        let error = netlink.set_mtu("lo", u32::MAX).unwrap_err();
        assert!(error.to_string().starts_with("set the MTU of lo to 4294967295: "), "{error}");
        assert!(error.to_string().contains("the kernel says"), "{error}");
        let error = netlink.add_route(RouteSpec::new("10.42.2.0/24".parse().unwrap(), "lo")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENETDOWN), "{error}");
    });
}

#[test]
fn a_listing_of_many_links_is_whole() {
    // 200 descriptions do not fit into one datagram.
    let namespace = Namespace::create().expect("needs root");
    in_namespace(&namespace, |netlink| {
        for number in 0..100 {
            let (near, far) = (format!("a{number}"), format!("b{number}"));
            let end = |name| VethEnd { name, namespace: None };
            netlink.create_veth(end(&near), end(&far)).unwrap();
        }
        assert_eq!(netlink.links().unwrap().len(), 201);
    });
}
