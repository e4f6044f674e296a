//! Every way to a network, and every way past one.

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Two networks, `ipsec` being the managed one, beside Docker's own `web_default`.
fn ask(mode: &str, pairs: &[(&str, &str)]) -> Result<Choice, ChoiceError> {
    let subnet: [IpNet; 1] = ["10.42.0.0/16".parse().unwrap()];
    let networks = [KnownNetwork { name: "ipsec", subnets: &subnet }, KnownNetwork { name: "blue", subnets: &[] }];
    let choices = Choices { networks: &networks, managed: Some("ipsec"), docker: &["web_default"] };
    choose(mode, &labels(pairs), &choices)
}

/// The network, and a `+` if Docker's address is there as well; or Docker's mode.
fn place(mode: &str, pairs: &[(&str, &str)]) -> String {
    match ask(mode, pairs).unwrap_or_else(|error| panic!("{mode} {pairs:?}: {error}")).place {
        Place::Network(attachment) => {
            format!("{}{}", attachment.network, if attachment.beside_docker { " beside Docker's" } else { "" })
        }
        Place::Docker(mode) => format!("{mode:?}"),
    }
}

const ON: (&str, &str) = (LABEL_NETWORK, "true");

#[test]
fn mode_and_labels_decide() {
    for (mode, pairs, expected) in [
        ("managed", &[][..], "ipsec"),
        ("ipsec", &[], "ipsec"),
        ("blue", &[], "blue"),
        ("", &[], "Bridge"),
        ("default", &[], "Bridge"),
        ("bridge", &[], "Bridge"),
        ("host", &[], "Host"),
        ("none", &[], "None"),
        ("container:web", &[], "Container(\"web\")"),
        ("web_default", &[], "Network(\"web_default\")"),
        ("", &[ON], "ipsec beside Docker's"),
        ("default", &[ON], "ipsec beside Docker's"),
        ("bridge", &[(LABEL_NETWORK, " True ")], "ipsec beside Docker's"),
        ("none", &[ON], "ipsec"),
        ("bridge", &[(LABEL_NETWORK, "false")], "Bridge"),
        ("host", &[ON], "Host"),
        ("container:web", &[ON], "Container(\"web\")"),
        ("web_default", &[ON], "Network(\"web_default\")"),
        ("bridge", &[(LABEL_CNI_NETWORK, "blue")], "blue beside Docker's"),
        ("web_default", &[(LABEL_CNI_NETWORK, "blue")], "blue beside Docker's"),
        ("none", &[(LABEL_CNI_NETWORK, "managed")], "ipsec"),
        ("managed", &[(LABEL_CNI_NETWORK, "blue")], "blue"),
        ("bridge", &[ON, (LABEL_CNI_NETWORK, "blue")], "blue beside Docker's"),
        ("bridge", &[(LABEL_NETWORK, "false"), (LABEL_CNI_NETWORK, "blue")], "blue beside Docker's"),
        ("bridge", &[(LABEL_CNI_NETWORK, "")], "Bridge"),
        ("bridge", &[("annotation.io.rancher.cni.network", "blue")], "blue beside Docker's"),
    ] {
        assert_eq!(place(mode, pairs), expected, "{mode} {pairs:?}");
    }
    let choice = ask("host", &[ON, (LABEL_DNS, "true")]).unwrap();
    assert_eq!(choice.dns, Some(true));
    assert_eq!(choice.remarks, ["label io.rancher.container.network has no effect with mode host"]);
    assert_eq!(ask("bridge", &[ON]).unwrap().remarks, Vec::<String>::new());
}

#[test]
fn labels_say_what_the_container_gets() {
    let attachment = |pairs: &[(&str, &str)]| match ask("managed", pairs).unwrap().place {
        Place::Network(attachment) => attachment,
        Place::Docker(mode) => panic!("{mode:?}"),
    };
    let address = |pairs: &[(&str, &str)]| attachment(pairs).address;
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(address(&[]), AddressWish::Any);
    assert_eq!(address(&[(LABEL_IP, "10.42.1.7/16")]), AddressWish::This(ip("10.42.1.7"), Some(16)));
    assert_eq!(address(&[(LABEL_IP, "10.42.1.7")]), AddressWish::This(ip("10.42.1.7"), None));
    assert_eq!(address(&[(LABEL_REQUESTED_IP, "10.42.1.8")]), AddressWish::OneOf(vec![ip("10.42.1.8")]));
    let several = address(&[(LABEL_REQUESTED_IP, "10.42.1.8, 10.42.1.9,10.42.1.8")]);
    assert_eq!(several, AddressWish::OneOf(vec![ip("10.42.1.8"), ip("10.42.1.9")]));
    let both = address(&[(LABEL_REQUESTED_IP, "10.42.1.8"), (LABEL_IP, "10.42.1.7/16")]);
    assert_eq!(both, AddressWish::This(ip("10.42.1.7"), Some(16)), "what it has counts more than what it wishes");
    let full = attachment(&[(LABEL_MAC, "02:42:0A:2a:01:07"), (LABEL_MTU_OVERHEAD, "0")]);
    assert_eq!(full.mac.unwrap().to_string(), "02:42:0a:2a:01:07");
    assert_eq!(full.link_mtu_overhead, Some(0));
    assert_eq!((attachment(&[]).mac, attachment(&[]).link_mtu_overhead), (None, None));
    assert_eq!(ask("managed", &[(LABEL_DNS, "false")]).unwrap().dns, Some(false));
    assert_eq!(place("blue", &[(LABEL_IP, "192.0.2.1/24")]), "blue", "its plugin decides");
}

#[test]
fn names_that_there_are_not_are_told_with_those_that_there_are() {
    let error = |mode: &str, pairs: &[(&str, &str)]| ask(mode, pairs).unwrap_err().to_string();
    assert_eq!(
        error("green", &[]),
        "no network is called \"green\"; there are managed, ipsec, blue, host, none, bridge, container:<x>, web_default"
    );
    assert!(error("ipsek", &[]).starts_with("no network is called \"ipsek\" (did you mean \"ipsec\"?); there are "));
    assert!(error("bridge", &[(LABEL_CNI_NETWORK, "green")]).starts_with("no network is called \"green\"; there are "));
    let none = choose("managed", &Labels::new(), &Choices::default()).unwrap_err();
    assert_eq!(none, ChoiceError::NoManaged);
    let none = choose("x", &Labels::new(), &Choices::default()).unwrap_err().to_string();
    assert_eq!(none, "no network is called \"x\"; there are host, none, bridge, container:<x>");
}

#[test]
fn labels_that_make_no_sense_are_errors() {
    for (label, value, part) in [
        (LABEL_NETWORK, "yes", "expected true or false, got \"yes\""),
        (LABEL_DNS, "1", "label io.rancher.container.dns: expected true or false"),
        (LABEL_IP, "10.42.1", "expected an address such as 10.42.1.7 or 10.42.1.7/16, got \"10.42.1\""),
        (LABEL_IP, "10.43.0.7/16", "10.43.0.7 is in none of the subnets of network ipsec (10.42.0.0/16)"),
        (LABEL_REQUESTED_IP, "10.42.1.7,", "or several with commas"),
        (LABEL_REQUESTED_IP, "10.42.1.7,10.43.0.1", "label io.rancher.container.requested_ip: 10.43.0.1 is in none"),
        (LABEL_MAC, "02:42:0a:2a:01", "expected the address of one interface"),
        (LABEL_MAC, "02:42:0a:2a:01:07:08", "expected the address of one interface"),
        (LABEL_MAC, "+2:42:0a:2a:01:07", "expected the address of one interface"),
        (LABEL_MAC, "03:42:0a:2a:01:07", "expected the address of one interface"),
        (LABEL_MAC, "00:00:00:00:00:00", "expected the address of one interface"),
        (LABEL_MTU_OVERHEAD, "-1", "expected a whole number from 0 to 65535"),
        (LABEL_CNI_NETWORK, "host", "expected the name of a network (managed, ipsec, blue), got \"host\""),
        (LABEL_CNI_NETWORK, "container:x", "expected the name of a network"),
    ] {
        let error = ask("managed", &[(label, value)]).unwrap_err().to_string();
        assert!(error.contains(part), "{label}={value}: {error}");
    }
    for mode in ["host", "container:web"] {
        let error = ask(mode, &[(LABEL_CNI_NETWORK, "blue")]).unwrap_err().to_string();
        assert!(error.ends_with(&format!("with mode {mode} the container has no network namespace of its own")), "{error}");
    }
    assert_eq!(place("bridge", &[(LABEL_IP, "nonsense")]), "Bridge", "whoever is left alone may have any labels");
}

#[test]
fn labels_that_do_nothing_are_told() {
    let idle = |names: &[&str]| idle_labels(&names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect());
    let fine =
        [LABEL_NETWORK, LABEL_IP, LABEL_DNS, "io.rancher.container.uuid", "io.rancher.container.name", "other", "io.x.ip"];
    assert_eq!(idle(&fine), [""; 0]);
    assert_eq!(idle(&["annotation.io.rancher.cni.wait"]), ["label io.rancher.cni.wait has no effect here"]);
    assert_eq!(
        idle(&["io.rancher.container.request_ip", "io.rancher.cni.netwrok"]),
        [
            "label io.rancher.cni.netwrok has no effect: did you mean io.rancher.cni.network?",
            "label io.rancher.container.request_ip has no effect: did you mean io.rancher.container.requested_ip?"
        ]
    );
}
