//! `docker`: whether containers of a Docker daemon get addresses by their labels.

use std::path::PathBuf;

use super::message::Report;
use super::scalar::Expected;
use super::section::{Field, Section};
use super::yaml::Value;

/// Where Docker listens unless something else is said.
const SOCKET: &str = "/var/run/docker.sock";

/// `docker`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Docker {
    /// `socket`.
    pub socket: PathBuf,
}

/// Reads the section: `off`, or one with a socket. Without it nobody asks Docker anything.
pub(super) fn read(field: &Field<'_>, report: &mut Report) -> Option<Docker> {
    if matches!(&field.node.value, Value::Text(text) if text == "off") {
        return None;
    }
    let mut section = Section::of(field, report)?;
    let socket = section.take("socket").and_then(|field| {
        field.read(report, |text| match text.strip_prefix("unix://").unwrap_or(text) {
            path if path.starts_with('/') => Ok(PathBuf::from(path)),
            _ => Err(Expected::new(format!("the absolute path of a socket, such as {SOCKET}"))),
        })
    });
    section.finish(report);
    Some(Docker { socket: socket.map_or_else(|| SOCKET.into(), |socket| socket.value) })
}
