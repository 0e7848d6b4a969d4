#![no_main]
//! See `hearth::rpc::fuzz::request`.
libfuzzer_sys::fuzz_target!(|data: &[u8]| hearth::rpc::fuzz::request(data));
