//! Datagrams at a data plane with one SA.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::esp_open(data));
