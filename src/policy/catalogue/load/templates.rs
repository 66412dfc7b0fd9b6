//! `[[templates]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::template::{Piece, Pieces};
use super::super::{Ceilings, MAX_CREDENTIAL_TTL, MAX_TASK_TTL, Param, ParamType, Template, TemplateDetail};
use super::{filled_line, groups, name, owner};
use crate::diag::{Found, Shown, Table, line};
use crate::policy::Action;

pub(super) struct TemplateDraft {
    pub(super) template: Template,
    /// The targets it names.
    pub(super) targets: Vec<Found<String>>,
}

pub(super) fn read_template(table: &mut Table<'_>) -> Option<TemplateDraft> {
    table.require("name", "write `name = \"…\"`");
    table.require("owner", "say who answers for it");
    let name_found = table.parsed("name", name);
    let description = table.parsed("description", line).map(|found| found.value).unwrap_or_default();
    let owner = owner(table);
    let groups = groups(table);
    let params: Vec<_> = table.tables("params", read_param).into_iter().flatten().flatten().collect();
    let known: BTreeSet<&str> = params.iter().map(|(name, _)| name.value.as_str()).collect();
    if known.len() < params.len() {
        table.problem(table.place(), "has two `params` of one name: remove one");
    }
    let ceilings = table.section("ceilings", read_ceilings);
    let details = table.tables("details", |table| read_detail(table, &known));
    let (targets, details): (Vec<_>, Vec<_>) = details.into_iter().flatten().flatten().unzip();
    let params: BTreeMap<String, Param> =
        params.into_iter().map(|(name, param)| (name.value, param)).collect();
    let template = Template {
        name: name_found?.value,
        description,
        owner,
        groups,
        params,
        ceilings,
        details,
        place: table.place().clone(),
    };
    Some(TemplateDraft { template, targets })
}

fn read_param(table: &mut Table<'_>) -> Option<(Found<String>, Param)> {
    table.require("name", "write `name = \"…\"`");
    table.require("type", "write \"name\", \"integer\", \"boolean\" or \"choice\"");
    let name_found = table.parsed("name", name);
    let kind = table.choice("type", &[("name", 0), ("integer", 1), ("boolean", 2), ("choice", 3)]);
    let (min, max) = (table.integer("min"), table.integer("max"));
    let choices = table.each_parsed("choices", filled_line);
    let default = table.parsed("default", line);
    let (kind, place) = kind.map(|found| (found.value, found.place))?;
    if kind != 1 && (min.is_some() || max.is_some()) {
        table.problem(&place, "is no \"integer\": remove `min` and `max`");
    }
    if (kind == 3) != choices.is_there() {
        table.problem(&place, "and `choices` go together: \"choice\" needs them, and nothing else has them");
    }
    let kind = match kind {
        0 => ParamType::Name,
        1 => ParamType::Integer {
            min: min.map_or(i64::MIN, |found| found.value),
            max: max.map_or(i64::MAX, |found| found.value),
        },
        2 => ParamType::Boolean,
        _ => ParamType::Choice(choices.values().collect()),
    };
    if let Some(default) = default.as_ref().filter(|default| !kind.takes(&default.value)) {
        table.problem(&default.place, format!("`{}` is no value of its own type", Shown(&default.value)));
    }
    Some((name_found?, Param { kind, default: default.map(|found| found.value) }))
}

fn read_ceilings(table: &mut Table<'_>) -> Ceilings {
    let second = Duration::from_secs(1);
    for key in ["max_bytes", "max_cost_microusd"] {
        if let Some(found) = table.integer(key) {
            table.problem(&found.place, "cannot be kept: nobody counts that yet, so remove it");
        }
    }
    Ceilings {
        ttl: duration(table, "ttl", second..=MAX_TASK_TTL),
        credential_ttl: duration(table, "credential_ttl", second..=MAX_CREDENTIAL_TTL),
        idle: duration(table, "idle", second..=MAX_TASK_TTL),
        max_calls: count(table, "max_calls", i64::MAX),
        max_children: small(table, "max_children", 64),
        max_depth: small(table, "max_depth", 8),
    }
}

fn duration(table: &mut Table<'_>, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
    let found = table.duration(key)?;
    table.within(found, &range)
}

fn count(table: &mut Table<'_>, key: &'static str, most: i64) -> Option<u64> {
    let found = table.integer(key)?;
    table.within(found, &(0..=most)).and_then(|number| u64::try_from(number).ok())
}

fn small(table: &mut Table<'_>, key: &'static str, most: i64) -> Option<u32> {
    count(table, key, most).and_then(|number| u32::try_from(number).ok())
}

/// The target it names, and the rest.
fn read_detail(table: &mut Table<'_>, params: &BTreeSet<&str>) -> Option<(Found<String>, TemplateDetail)> {
    table.require("target", "write the name of a target");
    table.require("actions", "write what may be done, such as `actions = [\"read\"]`");
    let target = table.parsed("target", name);
    let actions = table.each_parsed("actions", |text| match text.parse::<Action>() {
        Ok(action) if action.is_on_target() => Ok(action),
        _ => Err("is none of read, write, delete, execute, admin: write one of them"),
    });
    let locations = table.each_parsed("locations", filled_line).values().collect();
    let mut set = |key| table.each_parsed(key, filled_line).values().collect::<BTreeSet<String>>();
    let (datatypes, tools, methods, paths) = (set("datatypes"), set("tools"), set("methods"), set("paths"));
    let identifier = table.parsed("identifier", line).map(|found| found.value).unwrap_or_default();
    let target = target?;
    let detail = TemplateDetail {
        target: target.value.clone(),
        actions: actions.values().collect(),
        locations,
        datatypes,
        identifier,
        tools,
        methods,
        paths,
    };
    for piece in detail.texts().flat_map(Pieces) {
        if let Piece::Param(name) = piece
            && !params.contains(name)
        {
            let message =
                format!("has `{{{}}}`, and the template has no parameter of that name", Shown(name));
            table.problem(table.place(), message);
        }
    }
    Some((target, detail))
}
