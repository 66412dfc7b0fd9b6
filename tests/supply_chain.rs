//! What may be built in: the bans and sources of `deny.toml`, held without any tool beside Cargo.
//! (`cargo deny`, which `tests/run` calls too, reads the same file and adds licences.)

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn table(file: &str) -> toml::Table {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        fs::read_to_string(&path).unwrap().parse().unwrap_or_else(|why| panic!("{file}: {why}"))
    }

    fn banned() -> Vec<String> {
        let deny = table("deny.toml");
        let list = deny["bans"]["deny"].as_array().unwrap();
        list.iter().map(|ban| ban["crate"].as_str().unwrap().to_owned()).collect()
    }

    /// Names of everything that a build with every feature compiles. `Cargo.lock` alone will not do: it
    /// also lists optional dependencies that nothing switches on.
    fn compiled() -> Vec<String> {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--workspace", "--all-features"])
            .args(["--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let text = String::from_utf8(tree.stdout).unwrap();
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    #[test]
    fn no_second_crypto_back_end_is_compiled_in() {
        let (compiled, banned) = (compiled(), banned());
        assert!(compiled.iter().any(|name| name == "aws-lc-rs"), "cargo tree said nothing useful");
        assert!(banned.iter().any(|name| name == "ring") && banned.iter().any(|name| name == "openssl"));
        let found: Vec<&String> = banned.iter().filter(|name| compiled.contains(name)).collect();
        assert!(
            found.is_empty(),
            "banned by deny.toml: {found:?} (cargo tree --all-features -i NAME says why)"
        );
    }

    #[test]
    fn every_crate_comes_from_crates_io_with_a_checksum() {
        let lock = table("Cargo.lock");
        let own = ["mayfly", "mayfly-attestors", "mayfly-harness", "mayfly-proto"];
        for package in lock["package"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap();
            if own.contains(&name) {
                assert!(package.get("source").is_none(), "{name} is ours");
                continue;
            }
            assert_eq!(package.get("source").and_then(|s| s.as_str()), Some(CRATES_IO), "{name}");
            assert!(package.get("checksum").is_some(), "{name} has no checksum");
        }
    }

    /// Failpoints stop or kill the agent: the feature must stay out of every default.
    #[test]
    fn failpoints_are_off_unless_asked_for() {
        for file in ["Cargo.toml", "attestors/Cargo.toml"] {
            let manifest = table(file);
            let features = manifest["features"].as_table().unwrap();
            let mut on: Vec<&str> = vec!["default"];
            let mut next = 0;
            while let Some(name) = on.get(next) {
                let more = features.get(*name).and_then(|list| list.as_array()).into_iter().flatten();
                on.extend(more.filter_map(|one| one.as_str()).collect::<Vec<_>>());
                next += 1;
            }
            assert!(!on.iter().any(|name| name.contains("failpoints")), "{file}: by default: {on:?}");
            for dependency in manifest["dependencies"].as_table().unwrap().values() {
                let features = dependency.get("features").and_then(|f| f.as_array());
                let on = features.is_some_and(|f| f.iter().any(|f| f.as_str() == Some("failpoints")));
                assert!(!on, "{file} switches failpoints on");
            }
        }
    }
}
