//! libFuzzer's way to `checks/proof.rs`.
#![no_main]

#[path = "../checks/proof.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
