//! IKE messages in clear, and SK payloads whose ICV is taken for good.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::ike_message(data));
