// SPDX-License-Identifier: Apache-2.0
//! `postern apply`: puts a folder's configuration in force for a tenant, all or nothing.
//!
//! The difference is asked for and printed first; then exactly that is sent, resting on the version
//! that was compared with. What the folder does not have stays, and is named, unless `--prune`.

use super::Server;
use crate::arguments::Apply;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use serde_json::Value;

/// Prints what differs, then sends the folder.
pub(super) async fn run(server: &Server, wanted: &Apply) -> Result<(), Failure> {
    let files = postern_common::folder::read(&wanted.folder).map_err(anyhow::Error::new)?;
    let body = serde_json::to_value(files).context("a folder of ours")?;
    let path = format!("/apply?prune={}", wanted.prune);
    let tried = server.post(&format!("{path}&dry_run=true"), &body).await?;
    if wanted.dry_run {
        let told = || format!("{}\nnothing was changed (--dry-run)", difference(&tried));
        server.output.answer(&tried, told);
        return Ok(());
    }
    let version = tried.get("version").and_then(Value::as_i64).context("the answer names no version")?;
    server.output.text(|| difference(&tried));
    let applied = server.post(&format!("{path}&version={version}"), &body).await?;
    server.output.answer(&applied, || in_force(&applied));
    let refused = texts(&applied, "refused_by_gateways");
    if refused.is_empty() {
        return Ok(());
    }
    Err(anyhow!("a gateway keeps to the configuration before:\n  {}", refused.join("\n  ")).into())
}

/// One line for each thing that differs, and for each that stays though the folder lacks it.
fn difference(answer: &Value) -> String {
    let text = |item: &Value, field| item.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    let named = |item: &Value| format!("{} {}", text(item, "kind"), text(item, "name"));
    let change = |item: &Value| {
        let sign = match text(item, "change").as_str() {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        format!("{sign} {}", named(item))
    };
    let changes = items(answer, "changes");
    let mut lines: Vec<String> = changes.iter().map(change).collect();
    let kept = items(answer, "kept");
    lines.extend(kept.iter().map(|item| format!("  {} stays: the folder does not have it", named(item))));
    lines.push(match changes.len() {
        0 => "nothing differs".to_owned(),
        1 => "1 differs".to_owned(),
        count => format!("{count} differ"),
    });
    if !kept.is_empty() {
        lines.push("what stays goes with --prune".to_owned());
    }
    lines.join("\n")
}

/// Where it is in force by now.
fn in_force(answer: &Value) -> String {
    let number = |field| answer.get(field).and_then(Value::as_u64).unwrap_or_default();
    let (version, here, pending) =
        (number("version"), number("gateways_in_force"), number("gateways_pending"));
    match (here, pending, texts(answer, "refused_by_gateways").is_empty()) {
        (_, _, false) => format!("version {version} is stored, and refused"),
        (0, 0, true) => format!("version {version} is stored; pending: no gateway is connected"),
        (_, 0, true) => format!("version {version} is in force"),
        (_, pending, true) => format!(
            "version {version} is stored; pending: {pending} of {} gateways have not answered yet",
            here + pending
        ),
    }
}

fn items<'a>(answer: &'a Value, list: &str) -> &'a [Value] {
    answer.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn texts(answer: &Value, list: &str) -> Vec<String> {
    items(answer, list).iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_one_line_each_and_what_stays_is_named() {
        let answer = json!({"changes": [
            {"change": "added", "kind": "backend", "name": "desk"},
            {"change": "changed", "kind": "policy", "name": "desk"},
            {"change": "removed", "kind": "template", "name": "old"},
        ], "kept": [{"kind": "filter", "name": "guard"}]});
        insta::assert_snapshot!(difference(&answer), @r"
        + backend desk
        ~ policy desk
        - template old
          filter guard stays: the folder does not have it
        3 differ
        what stays goes with --prune
        ");
        assert_eq!(difference(&json!({"changes": []})), "nothing differs");
    }

    #[test]
    fn in_force_is_said_of_nothing_else() {
        let told = |here: u64, pending: u64, refused: &[&str]| {
            in_force(&json!({"version": 7, "gateways_in_force": here, "gateways_pending": pending,
                "refused_by_gateways": refused}))
        };
        let all = [told(2, 0, &[]), told(1, 2, &[]), told(0, 0, &[]), told(1, 0, &["no"])].join("\n");
        insta::assert_snapshot!(all, @r"
        version 7 is in force
        version 7 is stored; pending: 2 of 3 gateways have not answered yet
        version 7 is stored; pending: no gateway is connected
        version 7 is stored, and refused
        ");
    }
}
