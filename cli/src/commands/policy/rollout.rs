// SPDX-License-Identifier: Apache-2.0
//! `postern policy explain`, `diff`, `push`, `promote`, `rollback`, `status`: what needs the server
//! that decides, or remembers.

use super::super::{Server, cell};
use super::source::Sources;
use crate::client::segment;
use crate::failure::Failure;
use crate::output::table;
use postern_common::decision::Mode;
use serde_json::{Value, json};

/// Why a request was decided as it was.
pub(super) async fn explain(server: &Server, decision: &str) -> Result<(), Failure> {
    let answer = server.get(&format!("/decisions/{}/explanation", segment(decision))).await?;
    server.output.answer(&answer, || text(&answer, "text"));
    Ok(())
}

/// What a candidate set would change of requests of the past.
pub(super) async fn diff(server: &Server, candidate: &Sources, limit: u32) -> Result<(), Failure> {
    let body = json!({ "policies": candidate.texts()? });
    let answer = server.post(&format!("/policy-set/diff?limit={limit}"), &body).await?;
    server.output.answer(&answer, || text(&answer, "text"));
    Ok(())
}

/// Puts a whole set in force, or in shadow.
pub(super) async fn push(server: &Server, from: &Sources, mode: Mode, dry_run: bool) -> Result<(), Failure> {
    let shadow = mode == Mode::Shadow;
    let body = if shadow {
        json!({ "policies": from.texts()?, "mode": "shadow" })
    } else {
        json!({ "policies": from.texts()?, "tests": from.files.policy_tests })
    };
    let answer = server.put(&format!("/policy-set?dry_run={dry_run}"), &body).await?;
    let what = if shadow { "the set is in shadow: it changes no answer" } else { "the set is in force" };
    server.output.answer(&answer, || changed(&answer, what));
    Ok(())
}

/// Puts what watches in force.
pub(super) async fn promote(server: &Server, policies: &[String], dry_run: bool) -> Result<(), Failure> {
    let body = if policies.is_empty() { json!({}) } else { json!({ "policies": policies }) };
    let answer = server.post(&format!("/policy-set/promote?dry_run={dry_run}"), &body).await?;
    let what = match policies {
        [] => "the set that was in shadow is in force".to_owned(),
        ids => format!("in force: {}", ids.join(", ")),
    };
    server.output.answer(&answer, || changed(&answer, &what));
    Ok(())
}

/// Puts an older set in force again.
pub(super) async fn roll_back(server: &Server, to: Option<i64>) -> Result<(), Failure> {
    let body = to.map_or_else(|| json!({}), |version| json!({ "version": version }));
    let answer = server.post("/policy-set/rollback", &body).await?;
    server.output.answer(&answer, || changed(&answer, "the older set is in force again"));
    Ok(())
}

/// Takes the set in shadow away.
pub(super) async fn drop_shadow(server: &Server) -> Result<(), Failure> {
    let answer = server.delete("/policy-set/shadow").await?;
    server.output.answer(&answer, || changed(&answer, "no set is in shadow"));
    Ok(())
}

/// What is in force, what watches, and the versions.
pub(super) async fn status(server: &Server) -> Result<(), Failure> {
    let set = server.get("/policy-set").await?;
    let versions = server.get("/policy-set/versions").await?;
    let told = json!({ "set": set, "versions": versions.get("versions") });
    server.output.answer(&told, || shown(&set, &versions));
    Ok(())
}

fn text(answer: &Value, field: &str) -> String {
    answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// One line for each file that differs, and what became of it all.
fn changed(answer: &Value, what: &str) -> String {
    let changes = answer.get("changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut lines: Vec<String> = changes
        .iter()
        .map(|change| {
            let sign = match cell(change, "change").as_str() {
                "added" => '+',
                "removed" => '-',
                _ => '~',
            };
            format!("{sign} {} {}", cell(change, "kind"), cell(change, "name"))
        })
        .collect();
    let is_dry_run = answer.get("dry_run") == Some(&Value::Bool(true));
    let version = answer.get("policy_version").map(|version| cell(version, "number"));
    lines.push(match (changes.len(), is_dry_run, version) {
        (0, _, _) => "nothing differs".to_owned(),
        (count, true, _) => format!("{count} files differ; nothing was changed (--dry-run)"),
        (_, false, Some(number)) => format!("{what} (version {number})"),
        (_, false, None) => what.to_owned(),
    });
    lines.join("\n")
}

fn shown(set: &Value, versions: &Value) -> String {
    let mut lines = vec![match set.get("version").filter(|version| !version.is_null()) {
        Some(version) => {
            format!("version {} is in force since {}", cell(version, "number"), cell(version, "at"))
        }
        None if set.get("has_own_set") == Some(&Value::Bool(true)) => {
            "a set of its own is in force".to_owned()
        }
        None => "no set was put: what a session's token names is allowed".to_owned(),
    }];
    let tally = |of: Option<&Value>| {
        let of = of.and_then(|of| of.get("of_recent_requests")).cloned().unwrap_or_default();
        format!(
            "would allow {}, would deny {}, would change {}",
            cell(&of, "would_allow"),
            cell(&of, "would_deny"),
            cell(&of, "would_change")
        )
    };
    if let Some(shadow) = set.get("shadow_set").filter(|shadow| !shadow.is_null()) {
        lines.push(format!("a set is in shadow: of the newest requests it {}", tally(Some(shadow))));
    }
    for policy in set.get("shadow_policies").and_then(Value::as_array).into_iter().flatten() {
        lines.push(format!(
            "policy {} is in shadow: of the newest requests it {}",
            cell(policy, "id"),
            tally(Some(policy))
        ));
    }
    let rows: Vec<Vec<String>> = versions
        .get("versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|version| ["number", "how", "author", "at", "digest"].map(|field| cell(version, field)).to_vec())
        .collect();
    if !rows.is_empty() {
        lines.push(table(&["VERSION", "HOW", "AUTHOR", "AT", "DIGEST"], &rows));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_its_files_and_version() {
        let answer = json!({
            "changes": [{"kind": "policy", "name": "desk", "change": "changed"}, {"kind": "policy", "name": "old", "change": "removed"}],
            "dry_run": false, "policy_version": {"number": 3},
        });
        insta::assert_snapshot!(changed(&answer, "the set is in force"), @r"
        ~ policy desk
        - policy old
        the set is in force (version 3)
        ");
        let same = json!({"changes": [], "dry_run": true});
        assert_eq!(changed(&same, "the set is in force"), "nothing differs");
    }

    #[test]
    fn status_tells_what_is_in_force_what_watches_and_what_was() {
        let version = json!({"number": 2, "how": "pushed", "author": "key:abc", "at": "2026-01-02T03:04:05Z", "digest": "0123"});
        let recent = json!({"would_allow": 5, "would_deny": 2, "would_change": 2});
        let set = json!({"version": version, "has_own_set": true, "shadow_set": {"of_recent_requests": recent},
            "shadow_policies": [{"id": "limit", "of_recent_requests": recent}]});
        insta::assert_snapshot!(shown(&set, &json!({"versions": [version]})), @r"
        version 2 is in force since 2026-01-02T03:04:05Z
        a set is in shadow: of the newest requests it would allow 5, would deny 2, would change 2
        policy limit is in shadow: of the newest requests it would allow 5, would deny 2, would change 2
        VERSION  HOW     AUTHOR   AT                    DIGEST
        2        pushed  key:abc  2026-01-02T03:04:05Z  0123
        ");
        let none = json!({"version": null, "has_own_set": false, "shadow_set": null, "shadow_policies": []});
        assert_eq!(
            shown(&none, &json!({"versions": []})),
            "no set was put: what a session's token names is allowed"
        );
    }
}
