//! `docs/cli.md` has a row for every command, with every option that it takes and no other.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory as _;

/// Of nearly every command; the page says so once.
const COMMON: [&str; 3] = ["socket", "server-uid", "output"];

type Rows = BTreeMap<String, BTreeSet<String>>;

fn taken(command: &clap::Command, path: &str, rows: &mut Rows) {
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    let mut has_own = true;
    for sub in shown {
        has_own = false;
        taken(sub, format!("{path} {}", sub.get_name()).trim_start(), rows);
    }
    if has_own {
        let options = command.get_arguments().filter(|option| !option.is_hide_set());
        let names = options.filter_map(clap::Arg::get_long).filter(|name| !COMMON.contains(name));
        rows.insert(path.to_owned(), names.map(str::to_owned).collect());
    }
}

fn documented(page: &str) -> Rows {
    let (_, section) = page.split_once("\n## Options\n").unwrap();
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    rows.map(|row| {
        let (command, options) = row.split_once("` | ").unwrap();
        let words = options.split('`').filter_map(|word| word.strip_prefix("--"));
        let name = |word: &str| word.split([' ', '[', '=']).next().unwrap().to_owned();
        (command.to_owned(), words.map(name).collect())
    })
    .collect()
}

#[test]
fn the_page_has_every_command_and_option() {
    let mut rows = Rows::new();
    taken(&super::Cli::command(), "", &mut rows);
    let page = documented(include_str!("../../docs/cli.md"));
    assert!(rows.len() > 40);
    assert_eq!(page.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>(), "commands");
    for (command, options) in &rows {
        assert_eq!(page.get(command), Some(options), "{command}");
    }
}
