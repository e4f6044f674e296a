//! How a file is read: its syntax tree, where it stands in the crate, and every path that it names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Folders whose Rust files are held to the rules.
const RUST_FOLDERS: &[&str] = &["src", "tests", "benches", "examples", "fuzz/fuzz_targets"];

/// Folders that hold no text of ours.
const SKIPPED: &[&str] = &["target", ".git", "corpus", "artifacts", "coverage"];

/// One Rust file: its text, its syntax tree, and where it stands in the crate.
pub struct Source {
    pub path: String,
    pub text: String,
    pub tree: syn::File,
    /// `["ike", "keymat"]` for `src/ike/keymat.rs`; `["main"]` for the binary; empty for the root and for files outside `src`.
    pub module: Vec<String>,
    /// The file is compiled for tests only.
    pub test_only: bool,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Self {
        let tree = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}:{}: {error}", error.span().start().line));
        let test_only = path.starts_with("tests/") || path.starts_with("benches/");
        Self { path: path.to_owned(), text: text.to_owned(), tree, module: module_of(path), test_only }
    }

    pub fn finding(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// The first part of the module's path, the name that the import table knows; `None` for the crate's root.
    pub fn top(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }
}

fn module_of(path: &str) -> Vec<String> {
    let Some(inside) = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { return Vec::new() };
    let mut module: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

/// Every Rust file of the project, with those marked that only `#[cfg(test)] mod …;` brings in.
pub fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = files()
        .into_iter()
        .filter(|path| path.ends_with(".rs") && RUST_FOLDERS.iter().any(|folder| path.starts_with(&format!("{folder}/"))))
        .map(|path| Source::parse(&path, &read(&path)))
        .collect();
    assert!(sources.len() > 10, "the source tree was not found");
    let test_modules: Vec<Vec<String>> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.test_only |= test_modules.iter().any(|module| source.module.starts_with(module));
    }
    sources
}

fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let out_of_line = source.tree.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() && is_test(&module.attrs) => Some(module.ident.to_string()),
        _ => None,
    });
    out_of_line.map(|name| source.module.iter().cloned().chain([name]).collect()).collect()
}

/// Every file of the repository but what builds, tools and fuzzers leave behind, relative to its root.
pub fn files() -> Vec<String> {
    fn walk(root: &Path, relative: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(relative)).expect("a readable folder") {
            let entry = entry.expect("a folder entry");
            let name = entry.file_name().into_string().expect("a file name in UTF-8");
            let path = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().expect("a file type").is_dir() {
                walk(root, &path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut found);
    found.sort();
    found
}

pub fn read(path: &str) -> String {
    let octets = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a readable file");
    String::from_utf8_lossy(&octets).into_owned()
}

/// Whether an item is compiled for tests only: `#[cfg(test)]`, `#[cfg(all(test, …))]` or `#[test]`.
pub fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = match &attribute.meta {
            syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string(),
            meta => return meta.path().is_ident("test"),
        };
        condition == "test" || condition.starts_with("all (test") || condition.starts_with("all(test")
    })
}

pub fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// A path that the code names, made absolute: `crate::…` or `library::…`.
#[derive(Debug)]
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
    pub in_test: bool,
}

/// Collects every path of a file. Names that a `use` or a `mod` brought in are replaced by what they stand for.
pub struct Paths {
    module: Vec<String>,
    in_test: bool,
    known: BTreeMap<String, Vec<String>>,
    mentions: Vec<Mention>,
}

impl Paths {
    pub fn of(source: &Source) -> Vec<Mention> {
        let mut paths =
            Self { module: source.module.clone(), in_test: source.test_only, known: BTreeMap::new(), mentions: Vec::new() };
        // Twice: the first time learns the names, in whatever order the file brings them in.
        paths.visit_file(&source.tree);
        paths.mentions.clear();
        paths.visit_file(&source.tree);
        paths.mentions
    }

    fn absolute(&self, path: &[String]) -> Vec<String> {
        let mut base: Vec<String> = [vec!["crate".to_owned()], self.module.clone()].concat();
        let mut rest = path;
        match rest.first().map(String::as_str) {
            Some("crate") => return path.to_vec(),
            Some("self") => rest = &rest[1..],
            Some("super") => {}
            Some(name) => {
                return [self.known.get(name).cloned().unwrap_or(vec![name.to_owned()]), rest[1..].to_vec()].concat();
            }
            None => return Vec::new(),
        }
        while rest.first().is_some_and(|part| part == "super") {
            base.pop();
            rest = &rest[1..];
        }
        [base, rest.to_vec()].concat()
    }

    fn mention(&mut self, path: &[String], line: usize) {
        let path = self.absolute(path);
        self.mentions.push(Mention { path, line, in_test: self.in_test });
    }

    fn use_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let extended = |ident: &syn::Ident| [prefix.to_vec(), vec![ident.to_string()]].concat();
        let line = tree.span().start().line;
        let (path, name) = match tree {
            syn::UseTree::Path(path) => return self.use_tree(&extended(&path.ident), &path.tree),
            syn::UseTree::Group(group) => return group.items.iter().for_each(|tree| self.use_tree(prefix, tree)),
            syn::UseTree::Glob(_) => return self.mention(prefix, line),
            syn::UseTree::Name(name) if name.ident == "self" => (prefix.to_vec(), prefix.last().cloned()),
            syn::UseTree::Name(name) => (extended(&name.ident), Some(name.ident.to_string())),
            syn::UseTree::Rename(rename) => (extended(&rename.ident), Some(rename.rename.to_string())),
        };
        self.mention(&path, line);
        if let Some(name) = name.filter(|name| path.len() > 1 || path[0] != *name) {
            self.known.insert(name, self.absolute(&path));
        }
    }

    /// Paths inside a macro call are not parsed; `a :: b :: c` is read off its tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if colons == 2 || path.is_empty() => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() && colons < 2 => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
            if path.len() > 1 {
                self.mention(&path, line);
            }
            (path, colons) = (Vec::new(), 0);
        }
        if path.len() > 1 {
            self.mention(&path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let outside = self.in_test;
        self.in_test |= is_test(attributes_of(item));
        visit::visit_item(self, item);
        self.in_test = outside;
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        self.module.push(name.clone());
        let path = [vec!["crate".to_owned()], self.module.clone()].concat();
        visit::visit_item_mod(self, item);
        self.module.pop();
        self.known.insert(name, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.mention(&parts, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}
