//! Every row of `docs/bad-inputs.md` has a test that bears its number, and no test bears another.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};

use super::source::{Source, read, sources};

/// How many there are.
const CASES: u16 = 120;

/// The numbers in `case_51_…`, `case_01_to_03_…`, `case_84_and_85_…` and their like.
fn numbers(name: &str) -> Vec<u16> {
    let Some(rest) = name.strip_prefix("case_") else { return Vec::new() };
    let mut words = rest.split('_').peekable();
    let mut found: Vec<u16> = words.next().and_then(|word| word.parse().ok()).into_iter().collect();
    while let (Some(&last), Some(&join)) = (found.last(), words.peek()) {
        words.next();
        let next = words.next().and_then(|word| word.parse::<u16>().ok());
        match (join, next) {
            ("to", Some(end)) => found.extend(last + 1..=end),
            ("and", Some(other)) => found.push(other),
            _ => break,
        }
    }
    found
}

/// The names of functions under `#[test]`, with those that are ignored left out: they run by hand only.
struct Tests(Vec<String>);

impl<'ast> Visit<'ast> for Tests {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let has = |name: &str| function.attrs.iter().any(|attribute| attribute.path().is_ident(name));
        if has("test") && !has("ignore") {
            self.0.push(function.sig.ident.to_string());
        }
        visit::visit_item_fn(self, function);
    }
}

fn tests(source: &Source) -> Vec<String> {
    let mut tests = Tests(Vec::new());
    tests.visit_file(&source.tree);
    tests.0
}

/// The numbers that the tables name, in their order.
fn rows(text: &str) -> Vec<u16> {
    let number = |line: &str| line.strip_prefix("| ")?.split([' ', '*']).next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

/// What is wrong with these rows and the names of these tests.
fn complaints(rows: &[u16], names: &[String]) -> Vec<String> {
    let mut complaints = Vec::new();
    if rows != (1..=CASES).collect::<Vec<_>>() {
        complaints.push(format!("the tables do not count from 1 to {CASES}"));
    }
    let tested: BTreeSet<u16> = names.iter().flat_map(|name| numbers(name)).collect();
    complaints.extend((1..=CASES).filter(|number| !tested.contains(number)).map(|number| format!("{number} has no test")));
    let stray = tested.iter().filter(|number| !(1..=CASES).contains(*number));
    complaints.extend(stray.map(|number| format!("a test is called after {number}, which is no row")));
    complaints
}

#[test]
fn every_bad_input_has_a_test() {
    let names: Vec<String> = sources().iter().flat_map(tests).collect();
    let complaints = complaints(&rows(&read("docs/bad-inputs.md")), &names);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn names_are_read_as_they_are_meant() {
    assert_eq!(numbers("case_07_ike_without_marker"), [7]);
    assert_eq!(numbers("case_01_to_03_runts"), [1, 2, 3]);
    assert_eq!(numbers("case_84_and_85_selectors_that_are_not_ours"), [84, 85]);
    assert_eq!(numbers("case_62_and_63_truncated"), [62, 63]);
    assert_eq!(numbers("in_case_7"), []);
    assert_eq!(numbers("case_of_doubt"), []);
    let source =
        "#[test] fn case_1_a() {} fn case_2_b() {} #[test] #[ignore] fn case_3_c() {} mod m { #[test] fn case_4_d() {} }";
    assert_eq!(tests(&Source::parse("tests/it/x.rs", source)), ["case_1_a", "case_4_d"]);
    assert_eq!(rows("| No. | What |\n|---|---|\n| 7 | a |\n| 8* | b |\n"), [7, 8]);
}

#[test]
fn a_number_without_a_test_is_found() {
    let all: Vec<u16> = (1..=CASES).collect();
    let names: Vec<String> = all.iter().map(|number| format!("case_{number}_x")).collect();
    assert_eq!(complaints(&all, &names), [""; 0]);
    assert_eq!(complaints(&all, &names[1..]), ["1 has no test"]);
    assert_eq!(complaints(&all[1..], &names), ["the tables do not count from 1 to 120"]);
    let stray = [&names[..], &["case_121_x".to_owned()]].concat();
    assert_eq!(complaints(&all, &stray), ["a test is called after 121, which is no row"]);
}
