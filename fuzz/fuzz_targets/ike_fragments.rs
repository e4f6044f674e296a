//! Fragments of IKE messages under the right keys, held against a second opinion.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass::fuzzing::ike_fragments(data));
