//! The house rules, executed: every rule of how code is laid out here is a function over the source text that returns what
//! it found, as `file:line: what`.
//!
//! [`IMPORTS`] and the constants below it are the rules as data, and the one place to change them. Below them stand
//! one function per rule and one test per rule over the real tree. `tidy/source.rs` reads the files; `tidy/bad_inputs.rs` looks for tests;
//! `tidy/rules_can_fail.rs` breaks every rule with a snippet.

#[path = "tidy/bad_inputs.rs"]
mod bad_inputs;
#[path = "tidy/rules_can_fail.rs"]
mod rules_can_fail;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use source::{Mention, Paths, Source, attributes_of, files, is_test, read, sources};

/// Which module stands directly on which. A module may import itself and whatever lies below it along these edges.
/// `ike` and `esp` do not reach each other: `node` is the only place that knows both.
const IMPORTS: &[(&str, &[&str])] = &[
    ("main", &["cli", "cni"]),
    ("cli", &["agent", "control", "config", "observe", "network", "store", "ipam", "sys"]),
    (
        "agent",
        &["docker", "discovery", "ports", "engine", "store", "observe", "control", "config", "network", "ipam", "sys"],
    ),
    ("cni", &["attach", "config", "control"]),
    ("docker", &["attach"]),
    ("attach", &["ipam", "network", "sys"]),
    ("engine", &["node", "sys"]),
    ("fuzzing", &["node"]),
    ("node", &["ike", "esp"]),
    ("ike", &["wire", "crypto"]),
    ("esp", &["wire", "crypto"]),
    ("wire", &["model"]),
    ("crypto", &["model"]),
    ("ipam", &["store"]),
    ("discovery", &["store"]),
    ("ports", &["store", "sys"]),
    ("store", &["config", "sys"]),
    ("network", &["config"]),
    ("config", &["crypto"]),
    ("control", &["observe", "model"]),
    ("observe", &["model"]),
    ("sys", &["model"]),
    ("model", &[]),
];

/// Pure functions that must live where `unsafe` does, and the modules that may use them from below.
const VECTOR_CODE: (&[&str], &str) = (&["wire", "crypto"], "crate::sys::vector");

/// Modules without sockets, files, clock, threads or global randomness: all of these come to them as arguments.
const PURE: &[&str] = &["model", "wire", "crypto", "esp", "ike", "node", "network", "config"];

/// What a pure module may not name outside its tests.
const IMPURE_PATHS: &[&str] = &[
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::ToSocketAddrs",
    "std::os::unix::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tracing",
    "getrandom",
    "ring::rand::SystemRandom",
    "mio",
    "socket2",
    "rustix",
    "libc",
];

/// Randomness that a library takes from nowhere else: file and path.
const IMPURE_EXCEPTIONS: &[(&str, &str)] = &[("src/crypto/x509/credential.rs", "ring::rand::SystemRandom")];

/// Libraries that only `src/crypto` names, tests included.
const CRYPTO_CRATES: &[&str] =
    &["ring", "aes_gcm", "chacha20poly1305", "x25519_dalek", "curve25519_dalek", "p256", "p384", "ml_kem", "fips203"];

/// Where `unsafe` may stand.
const UNSAFE_HOME: &str = "src/sys/";

/// A longer file is hard to hold in the head, and to review.
const FILE_LINES_MAX: usize = 600;

/// From the signature to the closing brace: one screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer for now: file, name, lines. The list only shrinks: a number that is too large fails as well.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// Paths of one developer's machine (split here, so that this file does not hold them itself).
const FOREIGN_WORDS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/")];

// --- the rules ---

/// Every module that lies below `from`, along the edges of the table.
fn below(from: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(module) = open.pop() {
        let direct = IMPORTS.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, direct)| direct);
        open.extend(direct.iter().filter(|name| found.insert(**name)).map(|name| (*name).to_owned()));
    }
    found
}

fn imports_run_downwards(source: &Source) -> Vec<String> {
    let Some(own) = source.top() else { return Vec::new() };
    if !IMPORTS.iter().any(|(name, _)| *name == own) {
        return vec![source.finding(1, format!("module `{own}` is not in the table of imports"))];
    }
    let allowed = below(own);
    let upward = |mention: &Mention| {
        let ours = mention.path[0] == "crate" || (own == "main" && mention.path[0] == "underpass");
        let target = mention.path.get(1).filter(|_| ours)?;
        let is_vector_code = VECTOR_CODE.0.contains(&own) && mention.path.join("::").starts_with(VECTOR_CODE.1);
        let fine = target == own || allowed.contains(target.as_str()) || is_vector_code;
        let what = format!("`{own}` may not import `{target}`: imports run downwards only");
        (!fine).then(|| source.finding(mention.line, what))
    };
    Paths::of(source).iter().filter_map(upward).collect()
}

fn pure_modules_are_pure(source: &Source) -> Vec<String> {
    let Some(own) = source.top().filter(|own| PURE.contains(own)) else { return Vec::new() };
    let impure = |mention: &Mention| {
        let path = mention.path.join("::");
        let named = IMPURE_PATHS.iter().find(|impure| path == **impure || path.starts_with(&format!("{impure}::")))?;
        let is_excepted = IMPURE_EXCEPTIONS.iter().any(|(file, path)| source.path == *file && *path == *named);
        let what = format!("`{own}` is pure and may not use `{named}`: take it as an argument");
        (!mention.in_test && !is_excepted).then(|| source.finding(mention.line, what))
    };
    Paths::of(source).iter().filter_map(impure).collect()
}

fn crypto_libraries_stay_in_crypto(source: &Source) -> Vec<String> {
    let Some(own) = source.top().filter(|own| *own != "crypto") else { return Vec::new() };
    let named = |mention: &Mention| {
        let library = CRYPTO_CRATES.iter().find(|library| mention.path[0] == **library && mention.path.len() > 1)?;
        Some(source.finding(mention.line, format!("`{own}` may not name `{library}`: only `crypto` does")))
    };
    Paths::of(source).iter().filter_map(named).collect()
}

/// Lines where an identifier stands, in code and in macro calls, not in comments.
fn lines_of(word: &str, tokens: TokenStream, found: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if ident == word => found.push(ident.span().start().line),
            TokenTree::Group(group) => lines_of(word, group.stream(), found),
            _ => {}
        }
    }
}

fn unsafe_code_is_at_home_and_explained(source: &Source) -> Vec<String> {
    let tokens: TokenStream = source.text.parse().expect("a file that parsed once");
    let mut found = Vec::new();
    lines_of("unsafe", tokens, &mut found);
    let lines: Vec<&str> = source.text.lines().collect();
    let complaint = |line: usize| {
        if !source.path.starts_with(UNSAFE_HOME) {
            return Some(source.finding(line, format!("`unsafe` outside {UNSAFE_HOME}")));
        }
        (!explained(&lines, line)).then(|| source.finding(line, "`unsafe` without a SAFETY comment"))
    };
    found.into_iter().filter_map(complaint).collect()
}

/// Whether the line (from 1), or the comment over the statement that it belongs to, says why it is sound.
fn explained(lines: &[&str], line: usize) -> bool {
    let says_why = |text: &str| text.contains("SAFETY:") || text.contains("# Safety");
    if says_why(lines[line - 1]) {
        return true;
    }
    let mut above = lines[..line - 1].iter().rev().map(|text| text.trim());
    let over_statement =
        above.by_ref().find(|text| text.starts_with("//") || text.is_empty() || text.ends_with([';', '{', '}']));
    let comment = over_statement.into_iter().chain(above).take_while(|text| text.starts_with("//"));
    comment.into_iter().any(says_why)
}

/// Lines of the items that only tests see.
struct TestLines(usize);

impl<'ast> Visit<'ast> for TestLines {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if is_test(attributes_of(item)) {
            self.0 += 1 + item.span().end().line - item.span().start().line;
        } else {
            visit::visit_item(self, item);
        }
    }
}

fn files_are_short(source: &Source) -> Vec<String> {
    if source.test_only && source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut tests = TestLines(0);
    if source.path.starts_with("src/") {
        tests.visit_file(&source.tree);
    }
    let lines = source.text.lines().count() - tests.0;
    let what = format!("{lines} lines without tests, more than {FILE_LINES_MAX}: cut it");
    if lines > FILE_LINES_MAX { vec![source.finding(1, what)] } else { Vec::new() }
}

/// Every function outside of tests: name, first line, number of lines.
struct Functions {
    in_test: bool,
    found: Vec<(String, usize, usize)>,
}

impl Functions {
    fn of(source: &Source) -> Vec<(String, usize, usize)> {
        let mut functions = Self { in_test: source.test_only && source.path.starts_with("src/"), found: Vec::new() };
        functions.visit_file(&source.tree);
        functions.found
    }

    fn function(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, block: &syn::Block) {
        if !self.in_test && !is_test(attributes) {
            let (start, end) = (signature.span().start().line, block.span().end().line);
            self.found.push((signature.ident.to_string(), start, end - start + 1));
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let outside = self.in_test;
        self.in_test |= is_test(attributes_of(item));
        visit::visit_item(self, item);
        self.in_test = outside;
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.attrs, &function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.attrs, &function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.attrs, &function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

fn functions_are_short(source: &Source, exceptions: &[(&str, &str, usize)]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for (name, line, lines) in Functions::of(source) {
        let exception = exceptions.iter().find(|(path, function, _)| *path == source.path && *function == name);
        if lines > FUNCTION_LINES_MAX && exception.is_some_and(|(_, _, allowed)| lines == *allowed) {
            used.insert(name);
        } else if lines > FUNCTION_LINES_MAX {
            let what = format!("`{name}` has {lines} lines, more than {FUNCTION_LINES_MAX}: cut it");
            findings.push(source.finding(line, what));
        }
    }
    let stale = exceptions.iter().filter(|(path, name, _)| *path == source.path && !used.contains(*name));
    findings.extend(stale.map(|(_, name, _)| source.finding(1, format!("the exception for `{name}` is out of date"))));
    findings
}

fn files_open_with_their_story(source: &Source) -> Vec<String> {
    let told = source.text.starts_with("//! ");
    if told { Vec::new() } else { vec![source.finding(1, "the file does not open with `//!`")] }
}

fn no_function_is_called_get(source: &Source) -> Vec<String> {
    let getters = Functions::of(source).into_iter().filter(|(name, _, _)| name.starts_with("get_"));
    getters.map(|(name, line, _)| source.finding(line, format!("`{name}`: no `get_` in names"))).collect()
}

/// Every dependency says in a comment on its line, or on its last line, what it is for.
fn dependencies_say_why(path: &str, manifest: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut in_dependencies = false;
    let mut open_brackets = 0;
    for (index, line) in manifest.lines().enumerate() {
        let (value, comment) = split_comment(line);
        if let Some(section) = value.trim().strip_prefix('[').filter(|_| open_brackets == 0) {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
            continue;
        }
        open_brackets += value.matches(['[', '{']).count();
        open_brackets = open_brackets.saturating_sub(value.matches([']', '}']).count());
        if in_dependencies && open_brackets == 0 && !value.trim().is_empty() && comment.trim().is_empty() {
            findings.push(format!("{path}:{}: a dependency without a comment that says why", index + 1));
        }
    }
    findings
}

/// A line of TOML, cut at the first `#` outside of quotes.
fn split_comment(line: &str) -> (&str, &str) {
    let mut quoted = false;
    for (index, character) in line.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '#' if !quoted => return (&line[..index], &line[index + 1..]),
            _ => {}
        }
    }
    (line, "")
}

fn no_foreign_words(path: &str, text: &str) -> Vec<String> {
    let named = |line: &str| FOREIGN_WORDS.iter().find(|word| line.contains(**word)).copied();
    let found = text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, named(line)?)));
    found.map(|(line, word)| format!("{path}:{line}: `{word}` is a path of somebody's machine")).collect()
}

// --- the rules over the tree ---

fn assert_none(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} finding(s):\n{}", findings.len(), findings.join("\n"));
}

fn over_sources(rule: impl Fn(&Source) -> Vec<String>) {
    assert_none(sources().iter().flat_map(rule).collect());
}

#[test]
fn the_tree_imports_downwards() {
    over_sources(imports_run_downwards);
}

#[test]
fn the_trees_pure_modules_are_pure() {
    over_sources(pure_modules_are_pure);
}

#[test]
fn the_tree_names_crypto_libraries_in_one_place() {
    over_sources(crypto_libraries_stay_in_crypto);
}

#[test]
fn the_tree_explains_its_unsafe_code() {
    over_sources(unsafe_code_is_at_home_and_explained);
}

#[test]
fn the_trees_files_are_short() {
    over_sources(files_are_short);
}

#[test]
fn the_trees_functions_are_short() {
    over_sources(|source| functions_are_short(source, LONG_FUNCTIONS));
    let gone = |path: &str| !Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
    assert_none(LONG_FUNCTIONS.iter().filter(|(path, _, _)| gone(path)).map(|it| format!("{it:?} is gone")).collect());
}

#[test]
fn the_trees_files_open_with_their_story() {
    over_sources(files_open_with_their_story);
}

#[test]
fn the_tree_has_no_get() {
    over_sources(no_function_is_called_get);
}

#[test]
fn the_manifest_says_why() {
    assert_none(dependencies_say_why("Cargo.toml", &read("Cargo.toml")));
}

#[test]
fn the_repository_names_nobodys_machine() {
    assert_none(files().iter().flat_map(|path| no_foreign_words(path, &read(path))).collect());
}
