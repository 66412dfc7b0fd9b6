//! libFuzzer's way to `checks/wit.rs`.
#![no_main]

#[path = "../checks/wit.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
