//! libFuzzer's way to `checks/bundle.rs`.
#![no_main]

#[path = "../checks/bundle.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
