//! What CNI plugins answer, for whoever wants to know an address in it: the plugin of addresses, and who counts containers.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// The addresses in a result of any version, as in `prevResult`.
#[must_use]
pub fn addresses_in(result: &Value) -> Vec<IpAddr> {
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten().filter_map(|ip| ip.get("address"));
    let single = ["ip4", "ip6"].into_iter().filter_map(|key| result.get(key)?.get("ip"));
    listed.chain(single).filter_map(|text| text.as_str()?.parse::<IpNet>().ok()).map(|net| net.addr()).collect()
}
