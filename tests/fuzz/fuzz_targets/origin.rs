//! libFuzzer's way to `checks/origin.rs`.
#![no_main]

#[path = "../checks/origin.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
