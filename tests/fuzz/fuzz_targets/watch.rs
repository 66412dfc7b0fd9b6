//! libFuzzer's way to `checks/watch.rs`.
#![no_main]

#[path = "../checks/watch.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
