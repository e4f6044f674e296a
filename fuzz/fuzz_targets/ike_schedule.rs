//! Two live hosts: the octets choose what arrives, what is lost or comes twice, when clocks ring, and what the hosts are told.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::ike_schedule(data));
