//! libFuzzer's way to `checks/authority.rs`.
#![no_main]

#[path = "../checks/authority.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
