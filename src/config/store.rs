//! The section `store`: where the hosts of the overlay are listed.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::message::Report;
use super::scalar::{self, Expected};
use super::section::{Field, Section};
use super::{CertificateFiles, EtcdEndpoint, EtcdSettings, Mesh, Store, read};

/// Servers of one store: etcd's clusters have three, five or seven.
const MAX_ENDPOINTS: usize = 16;

/// Subnets of one network.
const MAX_SUBNETS: usize = 16;

/// etcd's client port.
const ETCD_PORT: u16 = 2379;

/// Where our keys begin unless something else is said.
const PREFIX: &str = "/underpass";

/// The network that containers get which name none, as it always was.
const SUBNET: &str = "10.42.0.0/16";

/// A host's block in it: 253 containers.
const BLOCK: u8 = 24;

/// The blocks that a network may be cut into: at least a handful of addresses, at most what a whole host needs.
const BLOCKS: (u64, u64) = (16, 30);

/// `mesh`.
pub(super) fn mesh(text: &str) -> Result<Mesh, Expected> {
    scalar::word(text, &[("full", Mesh::Full), ("on-demand", Mesh::OnDemand)])
}

/// `store`.
pub(super) fn store(field: &Field<'_>, folder: &Path, report: &mut Report) -> Option<Store> {
    let mut section = Section::of(field, report)?;
    let Some(kind) = section.take("kind") else {
        report.error(field.line, format!("{}.kind", field.key), "expected file or etcd; it is missing");
        return None;
    };
    let kind = kind.read(report, |text| scalar::word(text, &[("file", true), ("etcd", false)]))?.value;
    let store = if kind { file(&mut section, folder, report) } else { etcd(&mut section, folder, report) };
    section.finish(report);
    store
}

fn file(section: &mut Section<'_>, folder: &Path, report: &mut Report) -> Option<Store> {
    match section.take("path") {
        Some(field) => read::path(&field, folder, report).map(Store::File),
        None => {
            report.error(
                section.line,
                format!("{}.path", section.key),
                "expected the path of a list of hosts; it is missing",
            );
            None
        }
    }
}

fn etcd(section: &mut Section<'_>, folder: &Path, report: &mut Report) -> Option<Store> {
    let allow_plaintext = section.take("allow_plaintext").and_then(|field| field.read(report, scalar::boolean));
    let endpoints = match section.take("endpoints") {
        Some(field) => endpoints(&field, allow_plaintext.is_some_and(|allowed| allowed.value), report),
        None => {
            let key = format!("{}.endpoints", section.key);
            report.error(
                section.line,
                key,
                "expected a list of servers such as [\"https://192.0.2.10:2379\"]; it is missing",
            );
            None
        }
    };
    let prefix = section.take("prefix").and_then(|field| field.read(report, prefix));
    let mut path = |key: &'static str| section.take(key).and_then(|field| read::path(&field, folder, report));
    let [ca_file, chain, key, password] = ["ca_file", "cert_file", "key_file", "password_file"].map(&mut path);
    let user = section.take("user").and_then(|field| field.read(report, scalar::identity));
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some(CertificateFiles { chain, key }),
        (None, None) => None,
        (Some(alone), None) | (None, Some(alone)) => {
            alone.error(report, "expected cert_file and key_file together; the other one is missing");
            None
        }
    };
    let login = match (user, password) {
        (Some(user), Some(password)) => Some((user.value, password)),
        (None, None) => None,
        (Some(alone), None) => {
            alone.error(report, "expected user and password_file together; password_file is missing");
            None
        }
        (None, Some(alone)) => {
            alone.error(report, "expected user and password_file together; user is missing");
            None
        }
    };
    if let (Some(endpoint), None) = (endpoints.iter().flatten().find(|endpoint| endpoint.tls), &ca_file) {
        let key = format!("{}.ca_file", section.key);
        report.error(
            section.line,
            key,
            format!("expected who may have issued the certificate of {endpoint}; it is missing"),
        );
    }
    let (subnets, block) = network(section, report)?;
    Some(Store::Etcd(Box::new(EtcdSettings {
        endpoints: endpoints?,
        prefix: prefix.map_or_else(|| PREFIX.to_owned(), |prefix| prefix.value),
        ca_file,
        certificate,
        login,
        subnets,
        block,
    })))
}

/// The network that the first host makes.
fn network(section: &mut Section<'_>, report: &mut Report) -> Option<(Vec<IpNet>, u8)> {
    let (min, max) = BLOCKS;
    let length = |text: &str| scalar::number(text, min, max).map(|length| length as u8);
    let block = section.take("block").and_then(|field| field.read(report, length)).map_or(BLOCK, |block| block.value);
    let Some(field) = section.take("subnets") else { return Some((vec![SUBNET.parse().ok()?], block)) };
    let subnets = field.read_list(report, MAX_SUBNETS, scalar::prefix);
    for subnet in &subnets {
        if subnet.value.addr().is_ipv6() || subnet.value.prefix_len() > block {
            subnet.error(report, format!("expected an IPv4 prefix that holds blocks of /{block}, got {}", subnet.value));
        }
        super::check::usable_block(subnet, report);
    }
    if subnets.is_empty() {
        field.refuse(report, &Expected::new("at least one prefix such as 10.42.0.0/16"));
    }
    Some((subnets.into_iter().map(|subnet| subnet.value).collect(), block))
}

fn endpoints(field: &Field<'_>, allow_plaintext: bool, report: &mut Report) -> Option<Vec<EtcdEndpoint>> {
    let errors = report.messages.len();
    let placed = field.read_list(report, MAX_ENDPOINTS, endpoint);
    if placed.is_empty() && report.messages.len() == errors {
        field.refuse(report, &Expected::new("at least one server such as https://192.0.2.10:2379"));
    }
    for endpoint in &placed {
        let EtcdEndpoint { tls, host, .. } = &endpoint.value;
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !tls && !is_here && !allow_plaintext {
            endpoint.error(
                report,
                "expected https: whoever is on the way could add hosts of his own; allow_plaintext: true takes that risk",
            );
        }
    }
    Some(placed.into_iter().map(|endpoint| endpoint.value).collect()).filter(|endpoints: &Vec<_>| !endpoints.is_empty())
}

fn endpoint(text: &str) -> Result<EtcdEndpoint, Expected> {
    let what = "a server such as https://192.0.2.10:2379";
    let (tls, rest) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ => return Err(Expected::or(what, scalar::endpoint(text).is_ok().then(|| format!("https://{text}")))),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| Expected::new(what))?)),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        Some(port) => scalar::number(port, 1, u64::from(u16::MAX)).map_err(|_| Expected::new(what))? as u16,
        None => ETCD_PORT,
    };
    let is_address = host.parse::<IpAddr>().is_ok();
    if !is_address && scalar::name(host).is_err() {
        return Err(Expected::new(what));
    }
    Ok(EtcdEndpoint { tls, host: host.to_owned(), port })
}

fn prefix(text: &str) -> Result<String, Expected> {
    /// No key of ours becomes unwieldy by it.
    const MAX: usize = 200;
    let text = text.strip_suffix('/').unwrap_or(text);
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.' | b'/');
    if (2..=MAX).contains(&text.len()) && text.starts_with('/') && text.bytes().all(fine) {
        return Ok(text.to_owned());
    }
    Err(Expected::new("a prefix of keys such as /underpass, of letters, digits, '-', '_', '.' and '/'"))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Mesh, Store, Surroundings, parse};

    fn read(text: &str) -> Result<Config, String> {
        let surroundings = Surroundings { hostname: Some("alpha".into()), cattle_agent_ip: None };
        let (config, report) = parse(std::path::Path::new("/e/u.yaml"), text.as_bytes(), &surroundings);
        config.filter(|_| report.messages.is_empty()).ok_or_else(|| report.to_string())
    }

    fn refusal(text: &str) -> String {
        read(text).unwrap_err()
    }

    #[test]
    fn a_store_of_each_kind_is_read() {
        let config = read("store: {kind: file, path: hosts.yaml}\nmesh: on-demand").unwrap();
        assert!(matches!(&config.store, Some(Store::File(path)) if path.value.ends_with("e/hosts.yaml")));
        assert_eq!((config.mesh, config.overlay.blocks.len()), (Mesh::OnDemand, 0));
        let text = "store: {kind: etcd, endpoints: ['https://etcd.example.org', 'http://[::1]:2380/'], prefix: /one/, ca_file: ca.pem, \
                    cert_file: c, key_file: k, user: u, password_file: p, subnets: [10.50.0.0/20], block: 26}";
        let Some(Store::Etcd(etcd)) = read(text).unwrap().store else { panic!("etcd") };
        let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["https://etcd.example.org:2379", "http://[::1]:2380"]);
        assert_eq!((etcd.prefix.as_str(), etcd.block, etcd.subnets.len()), ("/one", 26, 1));
        assert!(etcd.certificate.is_some() && etcd.login.is_some());
        let Some(Store::Etcd(etcd)) = read("store: {kind: etcd, endpoints: [http://127.0.0.1]}").unwrap().store else {
            panic!("etcd")
        };
        assert_eq!(
            (etcd.prefix.as_str(), etcd.block, etcd.subnets[0].to_string().as_str()),
            ("/underpass", 24, "10.42.0.0/16")
        );
    }

    #[test]
    fn mistakes_are_said() {
        for (store, message) in [
            ("{}", "store.kind: expected file or etcd; it is missing"),
            ("{kind: consul}", "store.kind: expected file or etcd, got \"consul\""),
            ("{kind: file}", "store.path: expected the path of a list of hosts; it is missing"),
            ("{kind: file, path: h, endpoints: []}", "store.endpoints: unknown key"),
            ("{kind: etcd}", "store.endpoints: expected a list of servers"),
            ("{kind: etcd, endpoints: ['192.0.2.1:2379']}", "did you mean \"https://192.0.2.1:2379\"?"),
            (
                "{kind: etcd, endpoints: ['http://192.0.2.1:2379']}",
                "store.endpoints[0]: expected https: whoever is on the way",
            ),
            (
                "{kind: etcd, endpoints: ['https://192.0.2.1']}",
                "store.ca_file: expected who may have issued the certificate of https://192.0.2.1:2379",
            ),
            (
                "{kind: etcd, endpoints: ['http://127.0.0.1'], user: u}",
                "store.user: expected user and password_file together",
            ),
            (
                "{kind: etcd, endpoints: ['http://127.0.0.1'], cert_file: u}",
                "store.cert_file: expected cert_file and key_file together",
            ),
            (
                "{kind: etcd, endpoints: ['http://127.0.0.1'], subnets: [10.42.1.0/25]}",
                "an IPv4 prefix that holds blocks of /24",
            ),
            ("{kind: etcd, endpoints: ['http://127.0.0.1'], prefix: underpass}", "store.prefix: expected a prefix of keys"),
        ] {
            let refusal = refusal(&format!("store: {store}"));
            assert!(refusal.contains(message), "{store}: {refusal}");
        }
        assert!(read("store: {kind: etcd, endpoints: ['http://192.0.2.1'], allow_plaintext: true}").is_ok());
        assert!(refusal("mesh: half\noverlay: {blocks: [10.42.1.0/24]}").contains("expected full or on-demand"));
        assert!(refusal("host: {name: a}").contains("overlay"), "without a store blocks must be said");
    }

    #[test]
    fn addresses_that_others_hardly_reach_are_warned_of() {
        let warning =
            |addresses: &str| refusal(&format!("host: {{advertise: [{addresses}]}}\noverlay: {{blocks: [10.42.1.0/24]}}"));
        assert!(
            warning("172.17.0.5").starts_with("/e/u.yaml:1: warning: host.advertise[0]: 172.17.0.5 is of 172.17.0.0/16")
        );
        assert!(warning("127.0.0.1").contains("loopback"));
        assert!(warning("'::1'").contains("loopback"));
        assert!(warning("192.0.2.1, 192.0.2.1").contains("host.advertise[1]: this stands in the list already (line 1)"));
    }
}
