//! Single texts as values. Each function says what it expected; the caller says where, and what it got.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

/// What was expected, and perhaps what was meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Expected {
    /// Behind "expected".
    pub what: String,
    /// Behind "did you mean", with its quotes or brackets.
    pub suggestion: Option<String>,
}

impl Expected {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), suggestion: None }
    }

    pub(crate) fn or(what: impl Into<String>, suggestion: Option<String>) -> Self {
        Self { what: what.into(), suggestion: suggestion.map(|text| format!("{text:?}")) }
    }
}

/// A decimal number within bounds, without sign, leading zeros or separators: YAML dialects read those differently.
pub(crate) fn number(text: &str, min: u64, max: u64) -> Result<u64, Expected> {
    let expected = || Expected::new(format!("a whole number from {min} to {max}"));
    let plain =
        !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let value: u64 = if plain { text.parse().map_err(|_| expected())? } else { return Err(expected()) };
    if (min..=max).contains(&value) { Ok(value) } else { Err(expected()) }
}

/// `true` or `false`.
pub(crate) fn boolean(text: &str) -> Result<bool, Expected> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "y" | "on" | "1" | "true" => Some("true"),
                "no" | "n" | "off" | "0" | "false" => Some("false"),
                _ => None,
            };
            Err(Expected { what: "true or false".to_owned(), suggestion: meant.map(str::to_owned) })
        }
    }
}

/// One of these words.
pub(crate) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Expected> {
    if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(value);
    }
    let names: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
    Err(Expected::or(listed(&names, "or"), closest(text, &names).map(str::to_owned)))
}

/// `90s`, `4h`, `1h30m`: numbers, each with its unit, largest first.
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, Expected> {
    let bounds = || format!("a duration from {} to {}, such as 90s, 10m or 4h", in_units(min), in_units(max));
    let expected = || Expected::new(bounds());
    if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(Expected::or(bounds(), Some(format!("{text}s"))));
    }
    let mut total = Duration::ZERO;
    let mut last = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let count: u64 = rest[..digits].parse().map_err(|_| expected())?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let &(_, unit) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(expected)?;
        if unit >= last {
            return Err(expected());
        }
        last = unit;
        rest = &rest[letters..];
        let part = count.checked_mul(unit).map(Duration::from_secs).ok_or_else(expected)?;
        total = total.checked_add(part).ok_or_else(expected)?;
    }
    if text.is_empty() || total < min || total > max { Err(expected()) } else { Ok(total) }
}

/// Units of durations in seconds.
const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// A whole number of the largest unit that divides it.
fn in_units(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let &(name, unit) = UNITS.iter().find(|(_, unit)| seconds.is_multiple_of(*unit)).unwrap_or(&UNITS[3]);
    format!("{}{name}", seconds / unit)
}

/// A prefix whose host bits are zero.
pub(crate) fn prefix(text: &str) -> Result<IpNet, Expected> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(Expected::or("a prefix such as 10.42.1.0/24", Some(IpNet::from(address).to_string())));
    }
    let Ok(net) = text.parse::<IpNet>() else { return Err(Expected::new("a prefix such as 10.42.1.0/24")) };
    if net != net.trunc() {
        return Err(Expected::or("a prefix without host bits", Some(net.trunc().to_string())));
    }
    Ok(net)
}

/// An address, with or without the prefix length of a single host.
pub(super) fn host_address(text: &str) -> Result<IpAddr, Expected> {
    let what = "an address such as 10.42.1.1/32";
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address);
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => Ok(net.addr()),
        Ok(net) => Err(Expected::or(what, Some(IpNet::from(net.addr()).to_string()))),
        Err(_) => Err(Expected::new(what)),
    }
}

/// An address that datagrams can be sent to, with or without a port.
pub(crate) fn endpoint(text: &str) -> Result<(IpAddr, Option<u16>), Expected> {
    const WHAT: &str = "an address or ADDRESS:PORT (names are not looked up)";
    let (address, port) = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(address), _) => (address, None),
        (_, Ok(endpoint)) if endpoint.port() != 0 => (endpoint.ip(), Some(endpoint.port())),
        (_, Ok(_)) => return Err(Expected::new("a port from 1 to 65535")),
        _ => return Err(Expected::or(WHAT, bracketed(text))),
    };
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(Expected::new("the address of one host"));
    }
    Ok((address.to_canonical(), port))
}

/// `fd00::1:4500` with a port that IPv6 cannot tell from the address, or `[fd00::1]` without one.
fn bracketed(text: &str) -> Option<String> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<IpAddr>().ok().map(|address| address.to_string())
}

/// A name that is safe in files, logs and IKE identities: a DNS name's characters and `_`.
pub(crate) fn name(text: &str) -> Result<String, Expected> {
    /// As long as a DNS label.
    const MAX: usize = 63;
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    let ends = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
    let octets = text.as_bytes();
    if octets.len() <= MAX && octets.iter().all(|&octet| fine(octet)) && ends(octets.first()) && ends(octets.last()) {
        return Ok(text.to_owned());
    }
    Err(Expected::new(format!(
        "a name of at most {MAX} letters, digits, '-', '_' and '.', with a letter or digit at each end"
    )))
}

/// What goes into an ID payload: a name, or the literal of an address.
pub(super) fn identity(text: &str) -> Result<String, Expected> {
    /// As long as a DNS name.
    const MAX: usize = 253;
    let fine = text.bytes().all(|octet| octet.is_ascii_graphic());
    #[cfg(feature = "x509")]
    if text.contains('=') {
        let name = crate::crypto::x509::canonical_name(text).filter(|name| name.len() <= MAX);
        return name.ok_or_else(|| Expected::new("a distinguished name such as C=CH, O=Example, CN=gw.example.org"));
    }
    if text.contains('@') || text.contains('=') {
        return Err(Expected::new("a host name or an address (other kinds of IKE identities are not supported)"));
    }
    if text.is_empty() || text.len() > MAX || !fine {
        return Err(Expected::new(format!("a host name or an address of at most {MAX} printable ASCII characters")));
    }
    Ok(text.to_owned())
}

/// What the kernel takes as the name of an interface.
pub(crate) fn interface(text: &str) -> Result<String, Expected> {
    /// IFNAMSIZ without the NUL.
    const MAX: usize = 15;
    // The kernel refuses '/', ':' and spaces, and formats '%d'; the rest of the graphic characters only invites trouble.
    let fine = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    if (1..=MAX).contains(&text.len()) && text.bytes().all(fine) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(Expected::new(format!("an interface name of 1 to {MAX} letters, digits, '-', '_' and '.'")))
}

/// The word that was probably meant: few letters away, measured by the length of what was written.
pub(crate) fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    /// No word of ours is half as long, and the comparison takes time by the square.
    const LONGEST: usize = 64;
    if text.len() > LONGEST {
        return None;
    }
    let folded = text.to_ascii_lowercase().replace('-', "_");
    let distance = |word: &str| strsim::damerau_levenshtein(&folded, word);
    let limit = (folded.chars().count() / 3).clamp(1, 3);
    words.iter().copied().filter(|word| distance(word) <= limit).min_by_key(|word| distance(word))
}

/// `a, b or c`.
pub(crate) fn listed(words: &[&str], last: &str) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [front @ .., back] => format!("{} {last} {back}", front.join(", ")),
    }
}
