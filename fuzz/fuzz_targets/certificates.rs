//! Certificates and AUTH of somebody who claims to be a peer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::certificates(data));
