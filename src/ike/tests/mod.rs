//! Scenarios between whole endpoints: who sends what, then what each side holds.

mod handshake;
mod seeds;
