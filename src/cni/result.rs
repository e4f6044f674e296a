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
    /// Which of the result's interfaces has it; plugins for addresses know none.
    pub interface: Option<usize>,
}

/// An interface as it was made, on the host or in the container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Interface {
    pub name: String,
    pub mac: String,
    pub mtu: Option<u32>,
    /// The container's namespace; none on the host.
    pub sandbox: Option<String>,
}

/// A route of the container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    pub dst: IpNet,
    pub gw: Option<IpAddr>,
}

/// What a plugin answers to ADD.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Success {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// As somebody said it: it is for the runtime.
    pub dns: Map<String, Value>,
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
            let interfaces: Vec<Value> = self.interfaces.iter().map(|interface| interface.as_json(version)).collect();
            if !interfaces.is_empty() {
                result.insert("interfaces".to_owned(), interfaces.into());
            }
            let addresses: Vec<Value> = self.addresses.iter().map(|address| listed(address, version)).collect();
            result.insert("ips".to_owned(), addresses.into());
            let routes: Vec<Value> = self.routes.iter().map(route).collect();
            if !routes.is_empty() {
                result.insert("routes".to_owned(), routes.into());
            }
        }
        result.insert("dns".to_owned(), self.dns.clone().into());
        Value::Object(result)
    }

    /// Reads a result of any version, such as `prevResult` or another plugin's; none if it is no result.
    pub(super) fn parse(result: &Value) -> Option<Self> {
        result.as_object()?;
        let list = |key: &str| match result.get(key) {
            None | Some(Value::Null) => Some(&[][..]),
            Some(Value::Array(items)) => Some(items.as_slice()),
            Some(_) => None,
        };
        let mut success = Self {
            interfaces: list("interfaces")?.iter().map(Interface::parse).collect::<Option<_>>()?,
            addresses: list("ips")?.iter().map(|ip| Address::parse(ip, "address")).collect::<Option<_>>()?,
            routes: list("routes")?.iter().map(Route::parse).collect::<Option<_>>()?,
            dns: result.get("dns").and_then(Value::as_object).cloned().unwrap_or_default(),
        };
        for family in ["ip4", "ip6"].into_iter().filter_map(|key| result.get(key)).filter(|value| !value.is_null()) {
            success.addresses.push(Address::parse(family, "ip")?);
            for route in family.get("routes").and_then(Value::as_array).into_iter().flatten() {
                success.routes.push(Route::parse(route)?);
            }
        }
        Some(success)
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

impl Interface {
    fn as_json(&self, version: Version) -> Value {
        let mut value = Map::from_iter([("name".to_owned(), self.name.clone().into())]);
        value.insert("mac".to_owned(), self.mac.clone().into());
        let mtu = self.mtu.filter(|_| version >= Version::V1_1_0);
        value.extend(mtu.map(|mtu| ("mtu".to_owned(), mtu.into())));
        value.extend(self.sandbox.clone().map(|sandbox| ("sandbox".to_owned(), sandbox.into())));
        Value::Object(value)
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        Some(Self {
            name: text("name")?,
            mac: text("mac").unwrap_or_default(),
            mtu: value.get("mtu").and_then(Value::as_u64).and_then(|mtu| u32::try_from(mtu).ok()),
            sandbox: text("sandbox"),
        })
    }
}

impl Address {
    fn parse(value: &Value, key: &str) -> Option<Self> {
        let gateway = value.get("gateway").and_then(Value::as_str).filter(|text| !text.is_empty());
        let interface = value.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        Some(Self {
            address: value.get(key)?.as_str()?.parse().ok()?,
            gateway: gateway.map(str::parse).transpose().ok()?,
            interface,
        })
    }
}

impl Route {
    /// A route as configurations and results have it.
    pub(super) fn parse(value: &Value) -> Option<Self> {
        let gateway = value.get("gw").and_then(Value::as_str).filter(|text| !text.is_empty());
        let dst: IpNet = value.get("dst")?.as_str()?.parse().ok()?;
        Some(Self { dst: dst.trunc(), gw: gateway.map(str::parse).transpose().ok()? })
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
    value.extend(address.interface.map(|index| ("interface".to_owned(), index.into())));
    Value::Object(value)
}

fn route(route: &Route) -> Value {
    let mut value = Map::from_iter([("dst".to_owned(), route.dst.to_string().into())]);
    value.extend(route.gw.map(|gw| ("gw".to_owned(), gw.to_string().into())));
    Value::Object(value)
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
/// The kernel refused a part of the attachment.
pub(super) const ATTACHMENT: u32 = 104;
/// CHECK finds something missing.
pub(super) const CHANGED: u32 = 105;
/// "Incompatible CNI version".
pub(super) const INCOMPATIBLE: u32 = 1;
/// "Invalid necessary environment variables".
pub(super) const ENVIRONMENT: u32 = 4;
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
