// SPDX-License-Identifier: Apache-2.0
//! `postern apply`: makes a tenant's configuration what a folder says, all or nothing.

use super::Server;
use crate::arguments::Apply;
use crate::failure::Failure;
use anyhow::Context as _;
use serde_json::Value;

/// Sends the folder and prints what differs.
pub(super) async fn run(server: &Server, wanted: &Apply) -> Result<(), Failure> {
    let files = postern_common::folder::read(&wanted.folder).map_err(anyhow::Error::new)?;
    let body = serde_json::to_value(files).context("a folder of ours")?;
    let path = format!("/apply?dry_run={}&prune={}", wanted.dry_run, wanted.prune);
    let answer = server.post(&path, &body).await?;
    server.output.answer(&answer, || differences(&answer, wanted.dry_run));
    Ok(())
}

/// One line for each thing that differs, and what became of them.
fn differences(answer: &Value, is_dry_run: bool) -> String {
    let changes = answer.get("changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let line = |change: &Value| {
        let text = |field| change.get(field).and_then(Value::as_str).unwrap_or("?");
        let sign = match text("change") {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        format!("{sign} {} {}", text("kind"), text("name"))
    };
    let mut lines: Vec<String> = changes.iter().map(line).collect();
    lines.push(match (changes.len(), is_dry_run) {
        (0, _) => "nothing differs".to_owned(),
        (count, true) => format!("{count} differ; nothing was changed (--dry-run)"),
        (count, false) => format!("{count} changed, in force now"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_one_line_each() {
        let answer = json!({"changes": [
            {"change": "added", "kind": "backend", "name": "desk"},
            {"change": "changed", "kind": "policy", "name": "desk"},
            {"change": "removed", "kind": "template", "name": "old"},
        ]});
        insta::assert_snapshot!(differences(&answer, true), @r"
        + backend desk
        ~ policy desk
        - template old
        3 differ; nothing was changed (--dry-run)
        ");
        assert_eq!(differences(&json!({"changes": []}), false), "nothing differs");
    }
}
