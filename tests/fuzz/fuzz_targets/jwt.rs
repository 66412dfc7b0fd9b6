//! libFuzzer's way to `checks/jwt.rs`.
#![no_main]

#[path = "../checks/jwt.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
