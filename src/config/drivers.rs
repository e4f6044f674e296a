//! `drivers`, `cni` and `host.labels`: where network drivers stand, and where what follows from them goes.
//!
//! An item of `drivers` is the name of a compose file, or a block as such a file holds it. What a block says is read by the
//! module `network`, which knows drivers; here it stays as it stands in the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::message::Report;
use super::scalar::Expected;
use super::section::{Field, Placed, Section, shortened};
use super::yaml::{Node, Value};

/// Drivers of one host: each brings a network, and a host has few.
const MAX_DRIVERS: usize = 64;

/// Where runtimes look for network configurations unless they are told something else.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";

/// Where Debian has plugins.
pub const CNI_BIN_DIR: &str = "/usr/lib/cni";

/// Where runtimes and the reference plugins note what they did.
pub const CNI_CACHE_DIR: &str = "/var/lib/cni";

/// One of `drivers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DriverSource {
    /// A compose file.
    File(Placed<PathBuf>),
    /// A block in the configuration itself.
    Block(DriverBlock),
}

/// A block that was not read yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriverBlock {
    pub(crate) line: usize,
    pub(crate) key: String,
    pub(crate) node: Node,
}

/// `cni`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cni {
    /// `conf_dir`: where runtimes look for network configurations. Networks' own folders stand beside it.
    pub conf_dir: PathBuf,
    /// `bin_dir`: where plugins are.
    pub bin_dir: PathBuf,
    /// `cache_dir`: where runtimes note which containers they connected.
    pub cache_dir: PathBuf,
}

impl Default for Cni {
    fn default() -> Self {
        Self { conf_dir: CNI_CONF_DIR.into(), bin_dir: CNI_BIN_DIR.into(), cache_dir: CNI_CACHE_DIR.into() }
    }
}

/// Reads `drivers`.
pub(super) fn drivers(top: &mut Section<'_>, folder: &Path, report: &mut Report) -> Vec<DriverSource> {
    let items = top.take("drivers").and_then(|field| field.list(report, MAX_DRIVERS)).unwrap_or_default();
    items.iter().filter_map(|item| driver(item, folder, report)).collect()
}

fn driver(item: &Field<'_>, folder: &Path, report: &mut Report) -> Option<DriverSource> {
    match &item.node.value {
        Value::Map(_) => {
            let block = DriverBlock { line: item.line, key: item.key.clone(), node: item.node.clone() };
            Some(DriverSource::Block(block))
        }
        Value::Text(_) => path(item, "the path of a compose file", folder, report).map(DriverSource::File),
        Value::Null | Value::List(_) => {
            item.refuse(report, &Expected::new("the path of a compose file, or a block with the keys of network_driver"));
            None
        }
    }
}

/// Reads `cni`.
pub(super) fn cni(top: &mut Section<'_>, folder: &Path, report: &mut Report) -> Cni {
    let mut cni = Cni::default();
    let Some(field) = top.take("cni") else { return cni };
    let Some(mut section) = Section::of(&field, report) else { return cni };
    let Cni { conf_dir, bin_dir, cache_dir } = &mut cni;
    for (key, place) in [("conf_dir", conf_dir), ("bin_dir", bin_dir), ("cache_dir", cache_dir)] {
        if let Some(read) = section.take(key).and_then(|field| path(&field, "the path of a folder", folder, report)) {
            *place = read.value;
        }
    }
    section.finish(report);
    cni
}

/// Reads `host.labels`: what `__host_label__` in a driver's CNI configuration stands for.
pub(super) fn labels(host: Option<&Field<'_>>, report: &mut Report) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let Some(Field { key, node: Node { value: Value::Map(entries), .. }, .. }) = host else { return labels };
    let Some((found, node)) = entries.iter().find(|(entry, _)| entry.text == "labels") else { return labels };
    let field = Field { line: found.line, key: format!("{key}.labels"), node };
    // As a section only for the message if it is none.
    let (Some(_), Value::Map(entries)) = (Section::of(&field, report), &node.value) else { return labels };
    for (name, node) in entries {
        let field = Field { line: name.line, key: format!("{}.{}", field.key, shortened(&name.text)), node };
        if let Some(read) = field.read(report, |text| Ok(text.to_owned())) {
            labels.insert(name.text.clone(), read.value);
        }
    }
    labels
}

/// A path, from the configuration's folder.
fn path(field: &Field<'_>, what: &str, folder: &Path, report: &mut Report) -> Option<Placed<PathBuf>> {
    field.read(report, |text| match text {
        "" => Err(Expected::new(what)),
        _ => Ok(folder.join(text)),
    })
}
