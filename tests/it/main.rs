//! The integration tests: whole hosts in network namespaces of this machine, with strongSwan as the foreign peer.
//!
//! They need root and the packages that `tests/run` installs; without them they fail and say so. Each test makes its own
//! namespaces and removes them, so tests may run side by side. [`lab`] holds the tools; `tests/run` runs everything, and
//! `docs/testing.md` names the long versions that are `#[ignore]`d.

mod lab;

mod attach;
mod attached;
mod barrier;
mod bench;
mod churn;
mod cni;
mod commands;
mod containerd;
mod crowd;
mod demo;
mod docker;
mod fallback;
mod figures;
mod foreign;
mod foreign_alone;
#[cfg(feature = "x509")]
mod foreign_x509;
mod host_keys;
mod libreswan;
mod loops;
mod matrix;
mod moving;
mod mtu;
mod networks;
mod pair;
mod podman;
mod scapy;
mod setup;
mod speed;
mod store;
mod storms;
