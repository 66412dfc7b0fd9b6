//! libFuzzer's way to `checks/spiffe_id.rs`.
#![no_main]

#[path = "../checks/spiffe_id.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
