#![no_main]
//! See `hearth::guest::channel::fuzz::records`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth::guest::channel::fuzz::records(data));
