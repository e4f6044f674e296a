//! Published vectors as text files: records of `name = value` lines, a blank line between records.

use std::collections::HashMap;

/// The octets that these digits mean.
pub fn hex(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2), "odd number of digits: {digits}");
    let octet = |i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap_or_else(|_| panic!("no hex: {digits}"));
    (0..digits.len()).step_by(2).map(octet).collect()
}

/// The digits of these octets.
pub fn to_hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// One record.
pub struct Record(HashMap<String, String>);

impl Record {
    /// A value as it stands in the file.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("the record has no {name}"))
    }

    /// A value's octets.
    pub fn octets(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }
}

/// The records of a file. Lines with `#` are comments; an indented line continues the value above it.
pub fn records(file: &str) -> Vec<Record> {
    let mut records = vec![HashMap::<String, String>::new()];
    let mut name = "";
    for line in file.lines().filter(|line| !line.starts_with('#')) {
        let record = records.last_mut().expect("there is always one");
        if line.is_empty() {
            records.push(HashMap::new());
        } else if let Some(more) = line.strip_prefix("  ") {
            record.get_mut(name).expect("a value comes before its continuation").push_str(more);
        } else {
            let (key, value) = line.split_once(" = ").expect("name = value");
            name = key;
            assert!(record.insert(key.to_owned(), value.to_owned()).is_none(), "{key} stands twice in a record");
        }
    }
    records.into_iter().filter(|record| !record.is_empty()).map(Record).collect()
}
