//! What `swanctl --list-sas --raw` says, as a tree.
//!
//! One line per IKE SA: `list-sa event {NAME {key=value … child-sas {NAME-1 {key=value …}}}}`. Values end at a blank or a
//! brace; lists stand in square brackets.

use std::collections::BTreeMap;

/// A section: its values and its sections, by name.
#[derive(Debug, Default)]
pub struct Section {
    values: BTreeMap<String, String>,
    pub sections: BTreeMap<String, Section>,
}

impl Section {
    /// The value of a key.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn value(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("no `{key}` in {self:?}"))
    }

    fn parse(rest: &mut &str) -> Self {
        let mut section = Self::default();
        loop {
            *rest = rest.trim_start();
            if rest.is_empty() {
                return section;
            }
            if let Some(after) = rest.strip_prefix('}') {
                *rest = after;
                return section;
            }
            let end = rest.find(['=', '{', '}']).unwrap_or(rest.len());
            let key = rest[..end].trim().to_owned();
            let is_section = rest[end..].starts_with('{');
            *rest = rest.get(end + 1..).unwrap_or("");
            if is_section {
                section.sections.insert(key, Self::parse(rest));
            } else {
                section.values.insert(key, value(rest));
            }
        }
    }
}

fn value(rest: &mut &str) -> String {
    let end = match rest.strip_prefix('[') {
        Some(list) => 2 + list.find(']').expect("a list that ends"),
        None => rest.find([' ', '}']).unwrap_or(rest.len()),
    };
    let value = rest[..end].to_owned();
    *rest = &rest[end..];
    value
}

/// The IKE SAs, oldest first as charon lists them.
pub fn ike_sas(raw: &str) -> Vec<Section> {
    let events = raw.lines().filter_map(|line| line.strip_prefix("list-sa event {"));
    events.flat_map(|mut line| Section::parse(&mut line).sections.into_values()).collect()
}

#[test]
fn an_event_is_read() {
    let raw = "list-sa event {overlay {uniqueid=1 version=2 state=ESTABLISHED local-vips=[] child-sas {net-1 {name=net \
               state=INSTALLED spi-in=c1 local-ts=[10.42.2.0/24 10.42.3.0/24] bytes-in=0} net-2 {name=net state=DELETED}}}}\n\
               list-sas reply {}\n";
    let sas = ike_sas(raw);
    assert_eq!(sas.len(), 1);
    assert_eq!(sas[0].value("state"), "ESTABLISHED");
    let children = &sas[0].sections["child-sas"].sections;
    assert_eq!(children.len(), 2);
    assert_eq!(children["net-1"].value("local-ts"), "[10.42.2.0/24 10.42.3.0/24]");
    assert_eq!(children["net-1"].value("bytes-in"), "0");
    assert_eq!(children["net-2"].value("state"), "DELETED");
}
