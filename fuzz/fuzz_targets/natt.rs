//! Datagrams on the NAT-T port.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::natt(data));
