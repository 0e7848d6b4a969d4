#![no_main]
//! See `hearth::guest::channel::fuzz::messages`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth::guest::channel::fuzz::messages(data));
