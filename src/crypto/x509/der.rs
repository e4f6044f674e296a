//! The little DER that the path builder does not tell: key usage, distinguished names, and the encodings that we write.
//!
//! What is read here was taken for a certificate by the path builder before; anything odd is an error all the same.

use std::fmt::Write as _;

pub const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const BIT_STRING: u8 = 0x03;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// `[0] version` and `[3] extensions` of a TBSCertificate (RFC 5280 §4.1).
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// id-ce-keyUsage (RFC 5280 §4.2.1.3).
const KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x0f];

/// id-ce-basicConstraints, 2.5.29.19.
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

/// Relative names of one distinguished name: more has no use.
const MAX_RDNS: usize = 16;

/// Attribute types by their short names: what people write, and the last octets of the OID.
const ATTRIBUTES: [(&str, &[u8]); 10] = [
    ("CN", &[0x55, 4, 3]),
    ("serialNumber", &[0x55, 4, 5]),
    ("C", &[0x55, 4, 6]),
    ("L", &[0x55, 4, 7]),
    ("ST", &[0x55, 4, 8]),
    ("O", &[0x55, 4, 10]),
    ("OU", &[0x55, 4, 11]),
    ("DC", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25]),
    ("UID", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1]),
    ("E", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
];

/// What a key may be used for, as its certificate says; everything if it does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyUsage(u8);

impl KeyUsage {
    const ALL: Self = Self(0xff);

    /// digitalSignature or nonRepudiation: either will do for IKE (RFC 4945 §5.1.3.2).
    pub const fn may_sign(self) -> bool {
        self.0 & 0xc0 != 0
    }

    /// keyCertSign.
    pub const fn may_certify(self) -> bool {
        self.0 & 0x04 != 0
    }
}

/// The next element: its tag and what is in it.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => {
            let (len, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *input = rest;
    Some((tag, content))
}

/// The next element, if it has this tag.
fn expect<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    element(input).filter(|(found, _)| *found == tag).map(|(_, content)| content)
}

/// The key usage of a certificate; none if it cannot be read.
pub fn key_usage(certificate: &[u8]) -> Option<KeyUsage> {
    let Some(mut value) = extension(certificate, &KEY_USAGE)? else { return Some(KeyUsage::ALL) };
    let (_unused, bits) = expect(&mut value, BIT_STRING)?.split_first()?;
    Some(KeyUsage(bits.first().copied().unwrap_or(0)))
}

/// Whether a certificate says that it is an authority's (basicConstraints, RFC 5280 §4.2.1.9); none if it cannot be read.
pub fn is_authority(certificate: &[u8]) -> Option<bool> {
    let Some(mut value) = extension(certificate, &BASIC_CONSTRAINTS)? else { return Some(false) };
    let mut constraints = expect(&mut value, SEQUENCE)?;
    Some(expect(&mut constraints, BOOLEAN).is_some_and(|flag| flag != [0]))
}

/// The value of an extension. The outer none: the certificate cannot be read; the inner one: it has no such extension.
fn extension<'a>(mut certificate: &'a [u8], wanted: &[u8]) -> Option<Option<&'a [u8]>> {
    let mut tbs = expect(&mut expect(&mut certificate, SEQUENCE)?, SEQUENCE)?;
    expect(&mut tbs, VERSION)?;
    // serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
    for _ in 0..6 {
        element(&mut tbs)?;
    }
    let mut extensions = loop {
        match element(&mut tbs) {
            None if tbs.is_empty() => return Some(None),
            None => return None,
            Some((EXTENSIONS, mut content)) => break expect(&mut content, SEQUENCE)?,
            Some(_) => {}
        }
    };
    while !extensions.is_empty() {
        let mut extension = expect(&mut extensions, SEQUENCE)?;
        let id = expect(&mut extension, OID)?;
        let (mut tag, mut value) = element(&mut extension)?;
        if tag == BOOLEAN {
            (tag, value) = element(&mut extension)?;
        }
        if id == wanted {
            return Some(Some(value)).filter(|_| tag == OCTET_STRING);
        }
    }
    Some(None)
}

/// What is in the one element of this tag that the octets are.
pub fn content(mut octets: &[u8], tag: u8) -> Option<&[u8]> {
    expect(&mut octets, tag).filter(|_| octets.is_empty())
}

/// Wraps a content.
pub fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..0x80 => out.push(len as u8),
        0x80..0x100 => out.extend([0x81, len as u8]),
        _ => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

/// A distinguished name as people write it, `C=CH, O=Example, CN=beta`, in the order of the encoding. `content` is what stands in its
/// outer SEQUENCE. None if it holds what has no such text: several attributes in one place, or strings that are not UTF-8.
pub fn name_to_text(content: &[u8]) -> Option<String> {
    let (mut rdns, mut out) = (content, String::new());
    for _ in 0..MAX_RDNS {
        if rdns.is_empty() {
            return Some(out);
        }
        let mut set = expect(&mut rdns, SET)?;
        let mut attribute = expect(&mut set, SEQUENCE)?;
        let kind = expect(&mut attribute, OID)?;
        let (tag, value) = element(&mut attribute)?;
        if !set.is_empty() || !attribute.is_empty() || ![UTF8_STRING, PRINTABLE_STRING, IA5_STRING].contains(&tag) {
            return None;
        }
        if !out.is_empty() {
            out.push_str(", ");
        }
        match ATTRIBUTES.iter().find(|(_, oid)| *oid == kind) {
            Some((name, _)) => out.push_str(name),
            None => {
                for octet in kind {
                    let _ = write!(out, "{octet:02x}");
                }
            }
        }
        out.push('=');
        for letter in str::from_utf8(value).ok()?.chars() {
            if matches!(letter, ',' | '\\' | '=') {
                out.push('\\');
            }
            out.push(letter);
        }
    }
    None
}

/// The encoding of such a text, with its outer SEQUENCE. None if it is no distinguished name, or has attributes of other types than
/// we know.
pub fn name_from_text(text: &str) -> Option<Vec<u8>> {
    let mut rdns = Vec::new();
    for part in split(text, ',') {
        let (kind, value) = split_once(part.trim_start())?;
        let value = unescape(value.trim());
        let (kind, oid) = ATTRIBUTES.iter().find(|(name, _)| name.eq_ignore_ascii_case(kind.trim()))?;
        let tag = match *kind {
            "C" | "serialNumber" => PRINTABLE_STRING,
            "DC" | "E" => IA5_STRING,
            _ => UTF8_STRING,
        };
        if value.is_empty() || tag != UTF8_STRING && !value.is_ascii() {
            return None;
        }
        let attribute = [wrap(OID, oid), wrap(tag, value.as_bytes())].concat();
        rdns.extend(wrap(SET, &wrap(SEQUENCE, &attribute)));
    }
    Some(wrap(SEQUENCE, &rdns))
}

/// Cuts at a letter that has no backslash in front of it.
fn split(text: &str, at: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |letter| {
        let cut = letter == at && !escaped;
        escaped = letter == '\\' && !escaped;
        cut
    })
}

fn split_once(text: &str) -> Option<(&str, &str)> {
    let kind = split(text, '=').next()?;
    Some((kind, text[kind.len()..].strip_prefix('=')?))
}

fn unescape(text: &str) -> String {
    let mut escaped = false;
    let keep = |letter: &char| {
        escaped = *letter == '\\' && !escaped;
        !escaped
    };
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_texts_and_back() {
        for (text, canonical) in [
            ("CN=beta", "CN=beta"),
            ("c=CH,  o=Example Corp ,cn=gw.example.org", "C=CH, O=Example Corp, CN=gw.example.org"),
            (r"O=Example\, Inc., CN=a\=b\\c", r"O=Example\, Inc., CN=a\=b\\c"),
            ("CN=Zoë", "CN=Zoë"),
            ("DC=org, DC=example, UID=7, E=a@b", "DC=org, DC=example, UID=7, E=a@b"),
        ] {
            let der = name_from_text(text).expect(text);
            let mut input = &der[..];
            let content = expect(&mut input, SEQUENCE).unwrap();
            assert_eq!(name_to_text(content).as_deref(), Some(canonical));
        }
        for none in ["", "CN", "CN=", "=x", "X=y", "CN=a,", "C=Zoë", ",CN=a"] {
            assert_eq!(name_from_text(none), None, "{none}");
        }
    }

    #[test]
    fn odd_names_have_no_text() {
        let attribute = |tag, value: &[u8]| wrap(SEQUENCE, &[wrap(OID, ATTRIBUTES[0].1), wrap(tag, value)].concat());
        assert!(name_to_text(&wrap(SET, &attribute(UTF8_STRING, b"a"))).is_some());
        for odd in [
            wrap(SET, &attribute(UTF8_STRING, b"\xff")),
            wrap(SET, &attribute(0x1e, b"\0a")),
            wrap(SET, &[attribute(UTF8_STRING, b"a"), attribute(UTF8_STRING, b"b")].concat()),
            wrap(SET, &attribute(UTF8_STRING, b"a")).repeat(MAX_RDNS + 1),
            vec![SET, 0x80, 0, 0],
            vec![SET, 5, 0],
        ] {
            assert_eq!(name_to_text(&odd), None, "{odd:x?}");
        }
    }
}
