//! Proof that each rule can fail: a snippet that breaks it, and beside it one that does not.

use crate::source::Source;
use crate::{
    crypto_libraries_stay_in_crypto, dependencies_say_why, explained, files_are_short, files_open_with_their_story,
    functions_are_short, imports_run_downwards, no_foreign_words, no_function_is_called_get, pure_modules_are_pure,
    unsafe_code_is_at_home_and_explained,
};

/// What a rule finds in `text` if it stood at `path`, by line number.
fn lines(rule: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<usize> {
    let line = |finding: &String| finding.split(':').nth(1).and_then(|line| line.parse().ok()).expect("file:line:");
    rule(&Source::parse(path, text)).iter().map(line).collect()
}

#[test]
fn an_import_upwards_is_found() {
    let found = |path, text| lines(imports_run_downwards, path, text);
    assert_eq!(found("src/ike/mod.rs", "use crate::model::Spi;\nuse crate::esp::Outbox;"), [2]);
    assert_eq!(found("src/esp/mod.rs", "use crate::{model::Spi,\n ike::Event};"), [2]);
    assert_eq!(found("src/wire/ip.rs", "use super::super::crypto::Aead;"), [1]);
    assert_eq!(found("src/wire/ip.rs", "use super::natt::KIND;"), []);
    assert_eq!(found("src/wire/ip.rs", "fn f() { crate::engine::run() }"), [1]);
    assert_eq!(found("src/wire/ip.rs", "fn f() {\n println!(\"{}\", crate::engine::COUNT);\n}"), [2]);
    assert_eq!(found("src/wire/ip.rs", "mod tests { use super::super::super::agent::X; }"), [1]);
    assert_eq!(found("src/wire/ip.rs", "mod tests { use super::*; }"), []);
    assert_eq!(found("src/engine/worker.rs", "use crate::esp::Outbox; use crate::wire::natt;"), []);
    assert_eq!(found("src/main.rs", "use underpass::cli;"), []);
    assert_eq!(found("src/nowhere/mod.rs", ""), [1]);
}

#[test]
fn an_impure_path_is_found() {
    let found = |text| lines(pure_modules_are_pure, "src/esp/mod.rs", text);
    assert_eq!(found("use std::net::{IpAddr, UdpSocket};"), [1]);
    assert_eq!(found("use std::time::Duration;\nuse std::time::Instant;"), [2]);
    assert_eq!(found("use std::time;\nfn f() { time::SystemTime::now(); }"), [2]);
    assert_eq!(found("fn f() { std::thread::sleep(d) }"), [1]);
    assert_eq!(found("fn f() {\n tracing::debug!(\"x\");\n}"), [2]);
    assert_eq!(found("use crate::model::Instant;\nfn f() -> Instant { Instant::ZERO }"), []);
    assert_eq!(found("#[cfg(test)]\nmod tests { use std::fs; }"), []);
    assert_eq!(lines(pure_modules_are_pure, "src/engine/mod.rs", "use std::time::Instant;"), []);
}

#[test]
fn a_crypto_library_in_another_module_is_found() {
    let found = |path, text| lines(crypto_libraries_stay_in_crypto, path, text);
    assert_eq!(found("src/ike/mod.rs", "use ring::hmac;"), [1]);
    assert_eq!(found("src/ike/mod.rs", "#[cfg(test)]\nmod tests { fn f() { ::p256::x() } }"), [2]);
    assert_eq!(found("src/crypto/ring.rs", "use ring::hmac;"), []);
    assert_eq!(found("src/engine/mod.rs", "mod ring;\nuse ring::Ring;"), []);
}

#[test]
fn unsafe_code_abroad_or_unexplained_is_found() {
    let found = |path, text| lines(unsafe_code_is_at_home_and_explained, path, text);
    assert_eq!(found("src/esp/mod.rs", "// SAFETY: no.\nfn f() { unsafe { g() } }"), [2]);
    assert_eq!(found("src/sys/tun.rs", "fn f() {\n unsafe { g() }\n}"), [2]);
    assert_eq!(found("src/sys/tun.rs", "fn f() {\n // SAFETY: g asks nothing.\n unsafe { g() }\n}"), []);
    assert_eq!(
        found("src/sys/tun.rs", "fn f() {\n // SAFETY: g asks nothing,\n // nor h.\n let a =\n unsafe { g() };\n}"),
        []
    );
    assert_eq!(found("src/sys/tun.rs", "// SAFETY: for f.\nfn f() {\n h();\n unsafe { g() }\n}"), [4]);
    assert!(explained(&["/// # Safety", "/// `x` is open.", "#[inline]", "pub unsafe fn f() {}"], 4));
}

#[test]
fn a_long_file_is_found() {
    let line = "const A: u8 = 0;\n";
    assert_eq!(lines(files_are_short, "src/esp/mod.rs", &line.repeat(601)), [1]);
    assert_eq!(lines(files_are_short, "src/esp/mod.rs", &line.repeat(600)), []);
    let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(600), line.repeat(300));
    assert_eq!(lines(files_are_short, "src/esp/mod.rs", &with_tests), []);
}

#[test]
fn a_long_function_is_found_and_its_exception_only_shrinks() {
    let function = |lines: usize| format!("impl A {{\nfn long() {{\n{}}}\n}}\n", "f();\n".repeat(lines - 2));
    let found = |count, exceptions: &[_]| {
        lines(|source| functions_are_short(source, exceptions), "src/esp/mod.rs", &function(count))
    };
    assert_eq!(found(70, &[]), []);
    assert_eq!(found(71, &[]), [2]);
    assert_eq!(found(80, &[("src/esp/mod.rs", "long", 80)]), []);
    assert_eq!(found(81, &[("src/esp/mod.rs", "long", 80)]), [2, 1]);
    assert_eq!(found(70, &[("src/esp/mod.rs", "long", 80)]), [1]);
}

#[test]
fn a_file_without_its_story_is_found() {
    assert_eq!(lines(files_open_with_their_story, "src/esp/mod.rs", "use a::b;"), [1]);
    assert_eq!(lines(files_open_with_their_story, "src/esp/mod.rs", "//! It seals.\nuse a::b;"), []);
}

#[test]
fn a_getter_is_found() {
    assert_eq!(lines(no_function_is_called_get, "src/esp/mod.rs", "fn got() {}\nfn get_spi() {}"), [2]);
}

#[test]
fn a_dependency_without_a_reason_is_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na = \"1\" # why\nb = \"1#2\"\n[lints.rust]\nc = \"deny\"\n";
    assert_eq!(dependencies_say_why("Cargo.toml", manifest), ["Cargo.toml:5: a dependency without a comment that says why"]);
    let long = "[dev-dependencies]\na = { features = [\n  \"b\",\n] } # why\nc = { features = [\n  \"d\",\n] }\n";
    assert_eq!(dependencies_say_why("Cargo.toml", long), ["Cargo.toml:7: a dependency without a comment that says why"]);
}

#[test]
fn a_path_of_somebodys_machine_is_found() {
    let text = format!("fine\nsee {}user/file\n", crate::FOREIGN_WORDS[1]);
    assert_eq!(no_foreign_words("README.md", &text).len(), 1);
    assert_eq!(no_foreign_words("README.md", "see /var/lib/underpass\n"), Vec::<String>::new());
}
