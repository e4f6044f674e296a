//! What a plugin answers, as each version of the specification has it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// A version of the specification.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(non_camel_case_types, reason = "the dots of the version, as underscores")]
pub(super) enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(super) const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(super) const LATEST: Self = Self::V1_1_0;

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// The answer to VERSION.
pub(super) fn versions() -> Value {
    json!({"cniVersion": Version::LATEST.text(), "supportedVersions": Version::ALL.map(Version::text)})
}

/// An address as a container gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address {
    /// With the prefix length that the container sees.
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    pub dst: IpNet,
    pub gw: Option<IpAddr>,
}

/// What an IPAM plugin answers to ADD.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Success {
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

impl Success {
    pub(super) fn as_json(&self, version: Version) -> Value {
        let mut result = Map::from_iter([("cniVersion".to_owned(), version.text().into())]);
        if version <= Version::V0_2_0 {
            for (key, ipv6) in [("ip4", false), ("ip6", true)] {
                if let Some(address) = self.addresses.iter().find(|it| it.address.addr().is_ipv6() == ipv6) {
                    result.insert(key.to_owned(), self.family(address, ipv6));
                }
            }
        } else {
            let addresses: Vec<Value> = self.addresses.iter().map(|address| listed(address, version)).collect();
            result.insert("ips".to_owned(), addresses.into());
            let routes: Vec<Value> = self.routes.iter().map(route).collect();
            if !routes.is_empty() {
                result.insert("routes".to_owned(), routes.into());
            }
        }
        result.insert("dns".to_owned(), json!({}));
        Value::Object(result)
    }

    /// One address with the routes of its family: there was room for no more.
    fn family(&self, address: &Address, ipv6: bool) -> Value {
        let mut value = Map::from_iter([("ip".to_owned(), address.address.to_string().into())]);
        value.extend(address.gateway.map(|gateway| ("gateway".to_owned(), gateway.to_string().into())));
        let routes: Vec<Value> = self.routes.iter().filter(|route| route.dst.addr().is_ipv6() == ipv6).map(route).collect();
        if !routes.is_empty() {
            value.insert("routes".to_owned(), routes.into());
        }
        Value::Object(value)
    }
}

fn listed(address: &Address, version: Version) -> Value {
    let mut value = Map::new();
    if version < Version::V1_0_0 {
        let family = if address.address.addr().is_ipv6() { "6" } else { "4" };
        value.insert("version".to_owned(), family.into());
    }
    value.insert("address".to_owned(), address.address.to_string().into());
    value.extend(address.gateway.map(|gateway| ("gateway".to_owned(), gateway.to_string().into())));
    Value::Object(value)
}

fn route(route: &Route) -> Value {
    let mut value = Map::from_iter([("dst".to_owned(), route.dst.to_string().into())]);
    value.extend(route.gw.map(|gw| ("gw".to_owned(), gw.to_string().into())));
    Value::Object(value)
}

/// The addresses in a result of any version, as in `prevResult`.
pub(super) fn addresses_in(result: &Value) -> Vec<IpAddr> {
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten().filter_map(|ip| ip.get("address"));
    let single = ["ip4", "ip6"].into_iter().filter_map(|key| result.get(key)?.get("ip"));
    listed.chain(single).filter_map(|text| text.as_str()?.parse::<IpNet>().ok()).map(|net| net.addr()).collect()
}

/// Why nothing was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// Up to 99 the specification's, from 100 on ours.
    pub code: u32,
    pub message: String,
}

/// A container has addresses already, or CHECK does not find what it should have.
pub(super) const LEASE: u32 = 100;
/// Every address is taken.
pub(super) const EXHAUSTED: u32 = 101;
/// The requested address is not to be had.
pub(super) const NOT_TO_BE_HAD: u32 = 102;
/// The journal is damaged.
pub(super) const DAMAGED: u32 = 103;
/// "Incompatible CNI version".
const INCOMPATIBLE: u32 = 1;
/// "Invalid necessary environment variables".
const ENVIRONMENT: u32 = 4;
/// "I/O failure".
const IO: u32 = 5;
/// "Failed to decode content".
const DECODE: u32 = 6;
/// "Invalid network config".
const CONFIGURATION: u32 = 7;
/// The namespace cannot be used; the reference implementation's number.
const NAMESPACE: u32 = 8;
/// "Try again later".
pub(super) const TRY_LATER: u32 = 11;
/// "The plugin is not available (i.e. cannot service ADD requests)".
const NOT_AVAILABLE: u32 = 50;

impl Fault {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn incompatible(message: impl Into<String>) -> Self {
        Self::new(INCOMPATIBLE, message)
    }

    pub(super) fn environment(message: impl Into<String>) -> Self {
        Self::new(ENVIRONMENT, message)
    }

    pub(super) fn io(message: impl Into<String>) -> Self {
        Self::new(IO, message)
    }

    pub(super) fn decode(message: impl Into<String>) -> Self {
        Self::new(DECODE, message)
    }

    pub(super) fn configuration(message: impl Into<String>) -> Self {
        Self::new(CONFIGURATION, message)
    }

    pub(super) fn namespace(message: impl Into<String>) -> Self {
        Self::new(NAMESPACE, message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(NOT_AVAILABLE, message)
    }

    pub(super) fn as_json(&self, version: Version) -> Value {
        json!({"cniVersion": version.text(), "code": self.code, "msg": self.message})
    }
}
