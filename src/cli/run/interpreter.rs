//! Which command lines can be measured: the interpreter must run the measured file and nothing before it. Pure.
//!
//! An interpreter can be told in many ways to run something else first (`-c`, `--require`, a start-up file). So for
//! each one that is known there is a list of the options that are harmless, and everything else is refused; what is
//! known to be an interpreter and is not on the list cannot be measured at all. Any other program only reads the
//! measured files: which program that is, the entry says.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

/// How a program finds what it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Python,
    Node,
    /// The first argument is the script, and there are no options.
    ScriptFirst,
    /// It runs nothing but itself, as far as we know.
    Program,
}

/// A measured file as the command line writes it, and where its sealed copy is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Copy {
    pub(super) file: OsString,
    pub(super) at: OsString,
    /// It is handed over in a variable, and need not be an argument.
    pub(super) by_variable: bool,
}

/// Why a command line cannot be measured; always the user's to mend.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unmeasurable {
    #[error("`{0}` runs code in ways that mayfly does not know: it cannot be measured")]
    Interpreter(String),
    #[error(
        "with `--measure`, `{program}` may not be given `{option}`: it could run something else than the measured file"
    )]
    Option { program: String, option: String },
    #[error("`{program}` would run `{script}`, which is not measured: add `--measure {script}`")]
    Script { program: String, script: String },
    #[error("`{0}` is given no script: with `--measure` there must be one, and it must be measured")]
    NoScript(String),
    #[error(
        "`{0}` is measured but not among the program's arguments, so that it would read another copy of it: write it \
         there, or hand it over in a variable with `--measure NAME={0}`"
    )]
    Unused(String),
}

/// By the name of the program's file.
pub(super) fn kind_of(file: &Path) -> Result<Kind, Unmeasurable> {
    let name = file.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    let base = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match base {
        _ if begins(&["python", "pypy"]) => Ok(Kind::Python),
        "node" | "nodejs" => Ok(Kind::Node),
        "sh" | "dash" | "bash" => Ok(Kind::ScriptFirst),
        _ if begins(&["perl"]) => Ok(Kind::ScriptFirst),
        other if UNKNOWN.contains(&other) || begins(&["ruby", "php", "lua", "node-", "nodejs-"]) => {
            Err(Unmeasurable::Interpreter(name.into_owned()))
        }
        _ => Ok(Kind::Program),
    }
}

/// The arguments with each measured file replaced by its copy, and the options that shut out everything else.
pub(super) fn rewrite(
    program: &OsStr,
    kind: Kind,
    arguments: &[OsString],
    copies: &[Copy],
) -> Result<Vec<OsString>, Unmeasurable> {
    let shown = || program.to_string_lossy().into_owned();
    let mut used = vec![false; copies.len()];
    let (options, rest) = match kind {
        Kind::Program | Kind::ScriptFirst => (Vec::new(), arguments),
        Kind::Python => options(program, arguments, is_harmless_to_python)?,
        Kind::Node => options(program, arguments, is_harmless_to_node)?,
    };
    if kind != Kind::Program {
        let script = rest.first().ok_or_else(|| Unmeasurable::NoScript(shown()))?;
        if !copies.iter().any(|copy| copy.file == *script) {
            return Err(not_the_script(program, script));
        }
    }
    let mut out = shut_in(kind, options);
    for argument in rest {
        out.push(replaced(argument, copies, &mut used));
    }
    for (copy, used) in copies.iter().zip(used) {
        if !used && !copy.by_variable {
            return Err(Unmeasurable::Unused(copy.file.to_string_lossy().into_owned()));
        }
    }
    Ok(out)
}

fn not_the_script(program: &OsStr, script: &OsStr) -> Unmeasurable {
    let program = program.to_string_lossy().into_owned();
    let script = script.to_string_lossy().into_owned();
    if script.starts_with('-') {
        Unmeasurable::Option { program, option: script }
    } else {
        Unmeasurable::Script { program, script }
    }
}

/// The options before the script, all of which must be harmless, and the rest.
fn options<'a>(
    program: &OsStr,
    arguments: &'a [OsString],
    is_harmless: fn(&str) -> bool,
) -> Result<(Vec<OsString>, &'a [OsString]), Unmeasurable> {
    let count = arguments.iter().take_while(|argument| argument.as_bytes().starts_with(b"-")).count();
    let (options, rest) = arguments.split_at_checked(count).unwrap_or((arguments, &[]));
    match options.iter().find(|option| !option.to_str().is_some_and(is_harmless)) {
        Some(option) => Err(not_the_script(program, option)),
        None => Ok((options.to_vec(), rest)),
    }
}

/// Adds what keeps the interpreter from reading code by the user's environment, home or current directory.
fn shut_in(kind: Kind, mut options: Vec<OsString>) -> Vec<OsString> {
    let wanted: &[&str] = match kind {
        Kind::Python => &["-I"],
        // A memory file has no name that `node` could resolve.
        Kind::Node => &["--preserve-symlinks-main", "--no-global-search-paths"],
        Kind::ScriptFirst | Kind::Program => &[],
    };
    for option in wanted {
        if !options.iter().any(|there| there == option) {
            options.push(OsString::from(option));
        }
    }
    options
}

/// Flags without a value, alone or several after one dash.
fn is_harmless_to_python(option: &str) -> bool {
    option.len() > 1
        && option.strip_prefix('-').is_some_and(|flags| flags.bytes().all(|f| b"bBEIOPqsSuv".contains(&f)))
}

fn is_harmless_to_node(option: &str) -> bool {
    let option = option.replace('_', "-");
    let (name, value) = option.split_once('=').map_or((option.as_str(), None), |(n, v)| (n, Some(v)));
    match value {
        None => [
            "--preserve-symlinks-main",
            "--no-global-search-paths",
            "--enable-source-maps",
            "--no-warnings",
            "--no-deprecation",
            "--trace-warnings",
            "--trace-uncaught",
        ]
        .contains(&name),
        Some(_) => ["--max-old-space-size", "--stack-trace-limit", "--unhandled-rejections"].contains(&name),
    }
}

/// The argument, or the copy of the file that it is, or that it ends in after a `=`.
fn replaced(argument: &OsString, copies: &[Copy], used: &mut [bool]) -> OsString {
    for (copy, used) in copies.iter().zip(used) {
        let file = copy.file.as_bytes();
        let before = argument.as_bytes().strip_suffix(file);
        if let Some(before) = before.filter(|before| before.is_empty() || before.ends_with(b"=")) {
            *used = true;
            return OsString::from_vec([before, copy.at.as_bytes()].concat());
        }
    }
    argument.clone()
}

/// What runs code that it is told, in ways for which nobody has made a list here.
const UNKNOWN: [&str; 26] = [
    "zsh", "ksh", "fish", "csh", "tcsh", "busybox", "toybox", "deno", "bun", "java", "Rscript", "R", "julia",
    "tclsh", "wish", "guile", "racket", "erl", "elixir", "pwsh", "gawk", "mawk", "awk", "gdb", "emacs",
    "vim",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy(file: &str, at: &str) -> Copy {
        Copy { file: file.into(), at: at.into(), by_variable: false }
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn rewritten(program: &str, arguments: &str, copies: &[Copy]) -> Result<String, Unmeasurable> {
        let kind = kind_of(Path::new(program))?;
        let out = rewrite(OsStr::new(program), kind, &words(arguments), copies)?;
        Ok(out.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    fn refused(program: &str, arguments: &str) -> Unmeasurable {
        rewritten(program, arguments, &[copy("a.py", "/3")]).expect_err(arguments)
    }

    #[test]
    fn programs_are_known_by_the_name_of_their_file() {
        for (name, kind) in [
            ("/usr/bin/python3.11", Kind::Python),
            ("python", Kind::Python),
            ("/usr/bin/python3.11-dbg", Kind::Python),
            ("/usr/bin/node_exporter", Kind::Program),
            ("/usr/bin/node", Kind::Node),
            ("/bin/dash", Kind::ScriptFirst),
            ("/usr/bin/perl5.36.0", Kind::ScriptFirst),
            ("/opt/agent/bin/agent", Kind::Program),
        ] {
            assert_eq!(kind_of(Path::new(name)), Ok(kind), "{name}");
        }
        for name in ["/usr/bin/ruby3.1", "/usr/bin/zsh", "/usr/bin/lua5.4", "deno"] {
            assert!(matches!(kind_of(Path::new(name)), Err(Unmeasurable::Interpreter(_))), "{name}");
        }
    }

    #[test]
    fn the_script_is_replaced_by_its_copy_and_the_interpreter_shut_in() {
        let copies = [copy("a.py", "/3"), copy("m.json", "/4")];
        let python = |line| rewritten("python3", line, &copies).unwrap();
        assert_eq!(python("a.py m.json"), "-I /3 /4");
        assert_eq!(python("-I -uB a.py --model=m.json x"), "-I -uB /3 --model=/4 x");
        assert_eq!(python("a.py -c evil m.json"), "-I /3 -c evil /4", "what the script is told is its own");
        let node = rewritten("node", "--max_old_space_size=64 a.js", &[copy("a.js", "/3")]).unwrap();
        assert_eq!(node, "--max_old_space_size=64 --preserve-symlinks-main --no-global-search-paths /3");
        assert_eq!(rewritten("bash", "a.sh -x", &[copy("a.sh", "/3")]).unwrap(), "/3 -x");
        let agent = rewritten("/opt/agent", "serve --config=a.toml", &[copy("a.toml", "/3")]).unwrap();
        assert_eq!(agent, "serve --config=/3");
    }

    #[test]
    fn nothing_else_may_run_before_the_script() {
        for line in [
            "-c evil a.py",
            "-m evil a.py",
            "-i a.py",
            "-Ic evil a.py",
            "-W error::evil a.py",
            "-X importtime a.py",
            "--check-hash-based-pycs always a.py",
            "- a.py",
            "-- a.py",
        ] {
            assert!(matches!(refused("python3", line), Unmeasurable::Option { .. }), "{line}");
        }
        for line in [
            "-e evil a.py",
            "-r ./evil a.py",
            "--require=./evil a.py",
            "--import ./evil a.py",
            "--loader=./evil a.py",
            "--env-file=.env a.py",
            "--inspect a.py",
            "--run evil a.py",
            "- a.py",
        ] {
            assert!(matches!(refused("node", line), Unmeasurable::Option { .. }), "{line}");
        }
        for line in ["-c evil a.py", "--rcfile evil a.py", "-x a.py"] {
            assert!(matches!(refused("bash", line), Unmeasurable::Option { .. }), "{line}");
        }
    }

    #[test]
    fn a_script_that_is_not_measured_is_refused_whatever_follows_it() {
        for program in ["python3", "node", "sh"] {
            let why = refused(program, "evil.py a.py");
            assert!(matches!(&why, Unmeasurable::Script { script, .. } if script == "evil.py"), "{why}");
            assert!(matches!(refused(program, ""), Unmeasurable::NoScript(_)));
        }
        assert!(matches!(refused("python3", "-I"), Unmeasurable::NoScript(_)));
    }

    #[test]
    fn a_measured_file_must_reach_the_program() {
        assert_eq!(refused("/opt/agent", "serve"), Unmeasurable::Unused("a.py".to_owned()));
        assert_eq!(refused("/opt/agent", "xa.py a.pyx"), Unmeasurable::Unused("a.py".to_owned()));
        let by_variable = Copy { by_variable: true, ..copy("a.toml", "/3") };
        assert_eq!(rewritten("/opt/agent", "serve", &[by_variable]).unwrap(), "serve");
    }

    proptest! {
        /// Whatever is asked for: what the interpreter is told to run is the copy.
        #[test]
        fn an_accepted_line_runs_the_measured_script(
            program in "(python3|node|bash)",
            arguments in proptest::collection::vec("(-I|-B|-c|-e|-uB|--no-warnings|--require=x|--|-|evil|a[.]py|x=a[.]py)", 0..5),
        ) {
            let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
            let kind = kind_of(Path::new(&program)).unwrap();
            if let Ok(out) = rewrite(OsStr::new(&program), kind, &arguments, &[copy("a.py", "/3")]) {
                let script = out.iter().find(|word| !word.as_bytes().starts_with(b"-")).unwrap();
                prop_assert_eq!(script, "/3");
                let bad = |word: &&OsString| ["-c", "-e", "-", "--", "--require=x"].iter().any(|bad| *word == bad);
                prop_assert_eq!(out.iter().take_while(|word| *word != "/3").find(bad), None);
            }
        }
    }
}
