//! libFuzzer's way to `checks/entries.rs`.
#![no_main]

#[path = "../checks/entries.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
