//! `mayfly demo` is what a visitor runs first: it must work as it stands.

use std::process::Command;

#[test]
fn the_demo_shows_every_step_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let shown =
        Command::new(env!("CARGO_BIN_EXE_mayfly")).arg("demo").env("TMPDIR", home.path()).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{text}\n{}", String::from_utf8_lossy(&shown.stderr));
    for step in
        ["is accepted", "kill -9", "is refused", "is on CRL", "a TLS verifier that reads the CRL refuses"]
    {
        assert!(text.contains(step), "no `{step}` in:\n{text}");
    }
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
