//! The rules of the source tree that no compiler holds: imports point down, `unsafe` has one home, files
//! stay short, protobuf types stay at the edge, and attestation reads no text its subject controls.
//!
//! Works on text, not on syntax: a path built by a macro would escape it.

/// Bottom first. A module may import from the rows below its own, never from its own row or above.
#[cfg(test)]
const LAYERS: &[&[&str]] = &[
    &[
        "clock", "diag", "drain", "endpoint", "exit", "files", "id", "json", "manager", "pem", "queue",
        "ready", "secret",
    ],
    &["fileset", "telemetry", "verify"],
    &["authority", "config", "lease", "ledger", "policy", "registration", "sync"],
    &["audit", "issue", "revocation", "task", "trust"],
    &["federation", "proof", "workload"],
    &["api"],
    // Above `api`, not beside it: the Unix listener and its pinned peers are those of the gRPC sockets.
    &["web"],
    &["app"],
    &["cli"],
    &["main"],
];

/// Where generated protobuf types may appear.
#[cfg(test)]
const PROTO_USERS: &[&str] = &["api", "cli", "verify"];

/// Lines of a file without its tests: worth a thought, and the end.
#[cfg(test)]
const LONG_FILE: usize = 400;
#[cfg(test)]
const TOO_LONG_FILE: usize = 600;

/// The one file that may say `unsafe`, and how long it may be.
#[cfg(test)]
const UNSAFE_HOME: &str = "attestors/src/sys.rs";
#[cfg(test)]
const UNSAFE_HOME_LINES: usize = 60;

/// `/proc` files that the process under attestation writes itself (threats C02).
#[cfg(test)]
const SELF_WRITTEN: &[&str] = &["mountinfo", "cmdline", "environ"];

#[cfg(test)]
mod tests {
    #![expect(clippy::string_slice, reason = "offsets come from searches in the same string")]

    use std::fs;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};

    use super::*;

    fn rank(module: &str) -> Option<usize> {
        LAYERS.iter().position(|row| row.contains(&module))
    }

    /// The code of a file: no comment lines, nothing from its `mod tests` on.
    fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
        let end = text.find("\n#[cfg(test)]\nmod tests").unwrap_or(text.len());
        text[..end].lines().enumerate().map(|(n, line)| (n + 1, line)).filter(|(_, l)| !is_comment(l))
    }

    fn is_comment(line: &str) -> bool {
        line.trim_start().starts_with("//")
    }

    /// The identifier at the start of `text`, empty when there is none.
    fn ident(text: &str) -> &str {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")
    }

    /// Whether `word` stands in `line` with no letter, digit or `_` on either side.
    fn has_word(line: &str, word: &str) -> bool {
        line.match_indices(word).any(|(at, _)| {
            let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
            !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name)
        })
    }

    /// Top-level module of a file under `src/`, and how many `super::` lead from it to the crate root.
    fn place(file: &str) -> Option<(&str, usize)> {
        let inside = file.strip_prefix("src/")?.strip_suffix(".rs")?;
        let module = inside.split('/').next()?;
        let depth = inside.trim_end_matches("/mod").split('/').count();
        (module != "lib").then_some((module, depth))
    }

    /// Every broken import rule in one file under `src/`, tests included, as `file:line: what`.
    fn import_faults(file: &str, text: &str) -> Vec<String> {
        let Some((own, depth)) = place(file) else { return Vec::new() };
        let Some(own_rank) = rank(own) else { return vec![format!("{file}: module `{own}` has no layer")] };
        let mut faults = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !is_comment(l)) {
            let mut fault = |what: String| faults.push(format!("{file}:{}: {what}", number + 1));
            for root in ["crate::", "mayfly::"] {
                for (at, _) in line.match_indices(root) {
                    if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                        continue;
                    }
                    let rest = &line[at + root.len()..];
                    if rest.starts_with('{') {
                        fault(format!("grouped import `{root}{{…}}` hides an edge"));
                        continue;
                    }
                    let to = ident(rest);
                    if to != own && rank(to).is_none_or(|theirs| theirs >= own_rank) {
                        fault(format!("`{own}` may not import `{to}`"));
                    }
                }
            }
            if let Some(to) = climbs_to(line, depth)
                && to != own
            {
                fault(format!("`super::` climbs out of `{own}` to `{to}`: write `crate::{to}`"));
            }
            if has_word(line, "mayfly_proto") && !PROTO_USERS.contains(&own) {
                fault(format!("protobuf types in `{own}`"));
            }
        }
        faults
    }

    /// The top-level module that a chain of `super::` in `line` reaches, when it is long enough.
    fn climbs_to(line: &str, depth: usize) -> Option<&str> {
        let start = line.find("super::")?;
        let mut rest = &line[start..];
        let mut steps = 0;
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
            steps += 1;
        }
        let to = ident(rest);
        (steps >= depth && rest[to.len()..].starts_with("::") && rank(to).is_some()).then_some(to)
    }

    /// Lines that count against the length budget.
    fn budget_lines(text: &str) -> usize {
        text.find("\n#[cfg(test)]\nmod tests").map_or(text, |end| &text[..end]).lines().count()
    }

    /// Lines of code that read a `/proc` file whose text the subject controls.
    fn self_written_reads(file: &str, text: &str) -> Vec<String> {
        code(text)
            .filter(|(_, line)| SELF_WRITTEN.iter().any(|word| has_word(line, word)))
            .map(|(number, line)| format!("{file}:{number}: {}", line.trim()))
            .collect()
    }

    /// Lines of code that say `unsafe`.
    fn unsafe_lines(file: &str, text: &str) -> Vec<String> {
        let whole = text.lines().enumerate().filter(|(_, l)| !is_comment(l));
        whole.filter(|(_, line)| has_word(line, "unsafe")).map(|(n, _)| format!("{file}:{}", n + 1)).collect()
    }

    /// Every hand-written Rust file under `dir`, as (path from the root with `/`, text).
    fn sources(dir: &str) -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        let mut open: Vec<PathBuf> = vec![root.join(dir)];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(&next).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    if !name.ends_with("/gen") && !name.ends_with("/target") {
                        open.push(path);
                    }
                } else if name.ends_with(".rs") {
                    found.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        assert!(!found.is_empty(), "no sources under {dir}");
        found
    }

    fn none(faults: &[String]) {
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn imports_point_down() {
        none(&sources("src").iter().flat_map(|(file, text)| import_faults(file, text)).collect::<Vec<_>>());
    }

    #[test]
    fn every_module_has_a_layer_and_every_layer_a_module() {
        let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
        let modules: Vec<&str> =
            lib.lines().filter_map(|l| l.split_once("mod ")?.1.strip_suffix(';')).collect();
        for module in &modules {
            assert!(rank(module).is_some(), "no layer for `{module}`: add it to LAYERS in tests/layers.rs");
        }
        for module in LAYERS.iter().copied().flatten().filter(|m| **m != "main") {
            assert!(modules.contains(module), "layer names `{module}`, which is not in src/lib.rs");
        }
    }

    #[test]
    fn attestors_know_nothing_of_the_rest() {
        for (file, text) in sources("attestors/src") {
            for (number, line) in text.lines().enumerate().filter(|(_, l)| !is_comment(l)) {
                assert!(
                    !line.contains("mayfly::") && !line.contains("mayfly_proto"),
                    "{file}:{}: {line}",
                    number + 1
                );
            }
        }
    }

    #[test]
    fn unsafe_code_has_one_short_home() {
        let mut faults = Vec::new();
        for dir in ["src", "attestors", "proto/src"] {
            for (file, text) in sources(dir).iter().filter(|(file, _)| file != UNSAFE_HOME) {
                let attributes = text.replace("unsafe_code", "").replace("unsafe_op_in_unsafe_fn", "");
                faults.extend(unsafe_lines(file, &attributes));
            }
        }
        none(&faults);
        if let Ok(text) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(UNSAFE_HOME)) {
            let lines = budget_lines(&text);
            assert!(
                lines <= UNSAFE_HOME_LINES,
                "{UNSAFE_HOME} has {lines} lines, {UNSAFE_HOME_LINES} allowed"
            );
        }
    }

    #[test]
    fn files_keep_to_their_length() {
        let mut faults = Vec::new();
        for (file, text) in ["src", "attestors/src", "proto/src"].into_iter().flat_map(sources) {
            let lines = budget_lines(&text);
            if lines > TOO_LONG_FILE {
                faults
                    .push(format!("{file}: {lines} lines without tests, {TOO_LONG_FILE} allowed: split it"));
            } else if lines > LONG_FILE {
                writeln!(std::io::stderr(), "warning: {file}: {lines} lines without tests").unwrap();
            }
        }
        none(&faults);
    }

    #[test]
    fn every_file_says_what_it_is() {
        let all = ["src", "attestors/src", "proto/src", "tests"].into_iter().flat_map(sources);
        let faults: Vec<String> =
            all.filter(|(_, text)| !text.starts_with("//!")).map(|(file, _)| file).collect();
        assert!(faults.is_empty(), "no `//!` header: {faults:?}");
    }

    /// Threats C02: the text of these files is whatever the workload wants it to be.
    #[test]
    fn c02_attestors_read_nothing_the_workload_writes() {
        let all = sources("attestors/src");
        none(&all.iter().flat_map(|(file, text)| self_written_reads(file, text)).collect::<Vec<_>>());
    }

    #[test]
    fn the_import_checker_sees_planted_violations() {
        let up = import_faults("src/ledger/mod.rs", "use crate::workload::Shell;\n");
        assert_eq!(up, ["src/ledger/mod.rs:1: `ledger` may not import `workload`"]);
        let sideways = import_faults("src/ledger/rows.rs", "fn f() { crate::lease::now() }\n");
        assert_eq!(sideways, ["src/ledger/rows.rs:1: `ledger` may not import `lease`"]);
        let grouped = import_faults("src/api/mod.rs", "use crate::{id::Id, clock};\n");
        assert!(grouped[0].contains("grouped import"), "{grouped:?}");
        let climbing = import_faults("src/lease/core.rs", "use super::super::workload::Shell;\n");
        assert!(climbing[0].contains("climbs out of `lease`"), "{climbing:?}");
        let proto = import_faults("src/workload/mod.rs", "use mayfly_proto::workload::X;\n");
        assert!(proto[0].contains("protobuf types"), "{proto:?}");
        let homeless = import_faults("src/gossip/mod.rs", "");
        assert!(homeless[0].contains("has no layer"), "{homeless:?}");
        assert_eq!(import_faults("src/api/mod.rs", "use crate::nowhere::X;\n").len(), 1);
    }

    #[test]
    fn the_import_checker_lets_good_code_pass() {
        let good = "//! See [`crate::app`].\nuse crate::id::LeaseId;\nuse crate::workload::Shell;\n\
                    use super::Row;\nuse mayfly_proto::workload::X;\nuse mayfly_attestors::Host;\n";
        assert_eq!(import_faults("src/api/health.rs", good), Vec::<String>::new());
        assert_eq!(import_faults("src/main.rs", "fn main() { mayfly::cli::main() }"), Vec::<String>::new());
        assert_eq!(import_faults("src/lib.rs", "pub mod app;"), Vec::<String>::new());
    }

    #[test]
    fn the_text_checkers_see_planted_violations() {
        assert_eq!(self_written_reads("f", "open(\"cmdline\")\n").len(), 1);
        assert_eq!(self_written_reads("f", "// cmdline\nlet environment = 1;\n").len(), 0);
        assert_eq!(unsafe_lines("f", "fn f() { unsafe { g() } }\n"), ["f:1"]);
        assert_eq!(unsafe_lines("f", "// unsafe\nlet unsafely = 1;\n"), Vec::<String>::new());
        assert_eq!(budget_lines("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    }
}
