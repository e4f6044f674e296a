//! The `underpass` binary.

fn main() {}
