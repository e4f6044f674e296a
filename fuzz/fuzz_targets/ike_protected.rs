//! Payload lists under the right keys at a live IKE machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::ike_protected(data));
