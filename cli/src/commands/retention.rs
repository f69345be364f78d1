// SPDX-License-Identifier: Apache-2.0
//! `postern retention`: users' files by age and last use, step by step, and users who are held.

use super::Server;
use crate::arguments::Retention;
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use postern_common::retention::{Report, Step};
use serde_json::json;

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Retention) -> Result<(), Failure> {
    match wanted {
        Retention::Run { dry_run } => retire(server, dry_run).await,
        Retention::Hold { user, reason } => {
            let path = format!("/users/{}/hold", segment(&user));
            let held = server.put(&path, &json!({ "reason": reason })).await?;
            server.output.answer(&held, || format!("files of {user} stay until they are released"));
            Ok(())
        }
        Retention::Release { user } => {
            server.delete(&format!("/users/{}/hold", segment(&user))).await?;
            let released = json!({ "user_id": user, "released": true });
            server.output.done(&released, || format!("files of {user} may go again"));
            Ok(())
        }
        Retention::Holds => holds(server).await,
    }
}

/// A run, from its first step to its last. One that is stopped in between has done what it told, and
/// the next one does the rest.
async fn retire(server: &Server, dry_run: bool) -> Result<(), Failure> {
    let (mut report, mut after) = (Report::new(dry_run), None);
    loop {
        let told = server.post("/retention", &json!({ "dry_run": dry_run, "after": after })).await?;
        let step: Step = serde_json::from_value(told).context("the answer is no step of a run")?;
        let Some(next) = report.add(step) else { break };
        server.output.note(&format!("{} files so far", report.count()));
        after = Some(next);
    }
    server.output.answer(&report, || report.to_string().trim_end().to_owned());
    match report.failures {
        0 => Ok(()),
        failures => {
            Err(anyhow::anyhow!("{failures} files failed; run it again, and see the orchestrator's log")
                .into())
        }
    }
}

async fn holds(server: &Server) -> Result<(), Failure> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/holds?limit=1000{after}")).await?;
        all.extend(page.get("holds").and_then(|holds| holds.as_array()).cloned().unwrap_or_default());
        match page.get("next").and_then(|next| next.as_str()) {
            Some(next) => after = format!("&after={}", segment(next)),
            None => break,
        }
    }
    server.list(&json!({ "holds": all }), "holds", &["tenant", "user_id", "reason", "set_by", "set_at"])
}
