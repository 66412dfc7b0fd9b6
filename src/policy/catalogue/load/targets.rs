//! `[[targets]]`.

use std::collections::BTreeMap;

use super::super::target::Operations;
use super::super::{Target, TargetKind};
use super::{filled_line, groups, name, owner};
use crate::diag::{Found, Table};
use crate::policy::{Action, Binding};

pub(super) fn read_target(table: &mut Table<'_>) -> Option<Target> {
    table.require("name", "write `name = \"…\"`, the name that policies use");
    table.require("audience", "write the one `aud` that the target accepts, such as its URL");
    table.require("data_class", "say how sensitive what it holds is, such as \"internal\"");
    table.require("owner", "say who answers for it");
    let name_found = table.parsed("name", name);
    let audience = table.parsed("audience", filled_line);
    let kind = table.choice("kind", &KINDS.map(|kind| (kind.as_str(), kind))).map(|found| found.value);
    let kind = kind.unwrap_or(TargetKind::Http);
    let data_class = table.parsed("data_class", name);
    let groups = groups(table);
    let owner = owner(table);
    let binding = table.choice("binding", &BINDINGS.map(|binding| (binding.as_str(), binding)));
    let location = table.parsed("location", location).map(|found| found.value);
    let listed = table.has("actions");
    let read = table.section("actions", |table| read_operations(table, kind));
    let operations = if kind == TargetKind::Http && !listed { Operations::of_methods() } else { read };
    Some(Target {
        name: name_found?.value,
        audience: audience?.value,
        kind,
        data_class: data_class?.value,
        groups,
        owner,
        binding: binding.map_or(Binding::Mtls, |found| found.value),
        location,
        operations,
        place: table.place().clone(),
    })
}

fn read_operations(table: &mut Table<'_>, kind: TargetKind) -> Operations {
    let mut operations = Operations::default();
    let mut seen = BTreeMap::new();
    for (key, action) in [
        ("read", Action::Read),
        ("write", Action::Write),
        ("delete", Action::Delete),
        ("execute", Action::Execute),
        ("admin", Action::Admin),
    ] {
        for Found { value, place } in table.each_parsed(key, |text| operation(text, kind)).found() {
            if let Some(first) = seen.insert(value.clone(), key) {
                table.problem(
                    &place,
                    format!("is listed under `{first}` already: an operation is one action"),
                );
                continue;
            }
            match value {
                (method, Some(path)) => drop(operations.http.insert((method, path), action)),
                (name, None) => drop(operations.named.insert(name, action)),
            }
        }
    }
    operations
}

/// `METHOD` or `METHOD /path` where it is HTTP, else any name.
fn operation(text: &str, kind: TargetKind) -> Result<(String, Option<String>), &'static str> {
    if kind != TargetKind::Http {
        let usable =
            !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic());
        return usable
            .then(|| (text.to_owned(), None))
            .ok_or("is no operation: write the name of a tool, or a statement's first word");
    }
    let (method, path) = text.split_once(' ').unwrap_or((text, ""));
    let is_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    let path = path.strip_suffix('/').unwrap_or(path);
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#%*".contains(&byte);
    let segments = || path.split('/').skip(1).all(|segment| !["", ".", ".."].contains(&segment));
    let is_path = path.is_empty() || path.starts_with('/') && path.bytes().all(plain) && segments();
    (is_method && is_path)
        .then(|| (method.to_owned(), Some(path.to_owned())))
        .ok_or("is no operation: write a method in capitals, or a method and the beginning of a path: \"POST /search\"")
}

fn location(text: &str) -> Result<String, &'static str> {
    let wrong =
        "is no location: write a URL such as \"https://wiki.example.org/api\", without query or fragment";
    let uri = text.parse::<http::Uri>().map_err(|_not_a_url| wrong)?;
    let plain =
        matches!(uri.scheme_str(), Some("https" | "http")) && uri.query().is_none() && !text.contains('#');
    let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if plain && uri.host().is_some() && !user { Ok(text.to_owned()) } else { Err(wrong) }
}

const KINDS: [TargetKind; 4] = [TargetKind::Http, TargetKind::Mcp, TargetKind::Sql, TargetKind::Other];
const BINDINGS: [Binding; 3] = [Binding::Mtls, Binding::Dpop, Binding::Bearer];
