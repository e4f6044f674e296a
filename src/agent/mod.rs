//! The host agent: what the configuration wants, made true on this host, and kept so.

pub mod files;
mod random;

pub use random::OsRng;
