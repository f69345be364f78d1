// SPDX-License-Identifier: Apache-2.0
//! `postern policy`: what an author needs before a server comes into it, and then the server.
//!
//! What needs no server computes on a configuration folder alone, with the very code that the
//! gateway decides by.

mod authorize;
mod bench;
mod format;
mod rollout;
mod schema;
mod source;

use super::Server;
use crate::arguments::Policy;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::anyhow;
use postern_common::decision::Mode;
use postern_common::id::TenantId;
use postern_policies::{TestReport, baseline_report, run_tests};
use source::Sources;
use std::path::Path;

/// Runs one of the commands.
pub(super) async fn run(
    wanted: Policy,
    tenant: TenantId,
    server: impl FnOnce() -> Result<Server, Failure>,
    output: Output,
) -> Result<(), Failure> {
    match wanted {
        Policy::Explain { decision } => rollout::explain(&server()?, &decision).await,
        Policy::Diff { candidate, limit } => {
            rollout::diff(&server()?, &Sources::read(&candidate, &tenant)?, limit).await
        }
        Policy::Push { folder, shadow, dry_run } => {
            let mode = if shadow { Mode::Shadow } else { Mode::Enforce };
            rollout::push(&server()?, &Sources::read(&folder, &tenant)?, mode, dry_run).await
        }
        Policy::Promote { policies, dry_run } => rollout::promote(&server()?, &policies, dry_run).await,
        Policy::Rollback { to } => rollout::roll_back(&server()?, to).await,
        Policy::Status => rollout::status(&server()?).await,
        Policy::DropShadow => rollout::drop_shadow(&server()?).await,
        local => {
            // They compute, and so they block.
            let running = tokio::task::spawn_blocking(move || compute(local, &tenant, output));
            running.await.map_err(anyhow::Error::new)?
        }
    }
}

/// The commands that need no server.
fn compute(wanted: Policy, tenant: &TenantId, output: Output) -> Result<(), Failure> {
    match wanted {
        Policy::Check { folder } => check(&folder, tenant, output),
        Policy::Fmt { paths, check } => format::run(&paths, check, output),
        Policy::Test { baseline: true, .. } => {
            tested(&baseline_report().map_err(source::mistakes)?, false, output)
        }
        Policy::Test { folder, whole, .. } => test(&folder, whole, tenant, output),
        Policy::Bench { folder } => bench::run(&folder, tenant, output),
        Policy::Schema { folder, backend, openapi } => {
            let text = match (backend, openapi) {
                (Some(backend), Some(file)) => schema::of_document(&backend, &file, tenant)?,
                _ => Sources::read(&folder, tenant)?.schema.text().to_owned(),
            };
            output.line(text.trim_end());
            Ok(())
        }
        Policy::Authorize(wanted) if wanted.batch => authorize::batch(&mut std::io::stdin().lock(), output),
        Policy::Authorize(wanted) => authorize::one(&wanted, output),
        Policy::Explain { .. }
        | Policy::Diff { .. }
        | Policy::Push { .. }
        | Policy::Promote { .. }
        | Policy::Rollback { .. }
        | Policy::Status
        | Policy::DropShadow => Err(Failure::Usage("this command asks a server".to_owned())),
    }
}

/// Reports mistakes and warnings with file, line and what to do.
fn check(folder: &Path, tenant: &TenantId, output: Output) -> Result<(), Failure> {
    let policies = Sources::read(folder, tenant)?.load()?;
    let warnings = policies.warnings();
    for warning in &warnings {
        output.note(&format!("warning: {warning}"));
    }
    let told = serde_json::json!({ "policies": policies.len(), "warnings": warnings });
    output.answer(&told, || format!("{} policies are sound, {} warnings", policies.len(), warnings.len()));
    Ok(())
}

/// Runs a folder's cases.
fn test(folder: &Path, whole: bool, tenant: &TenantId, output: Output) -> Result<(), Failure> {
    let sources = Sources::read(folder, tenant)?;
    if sources.tests.is_empty() {
        return Err(anyhow!(
            "there are no cases in `{}`: write `policies/tests/NAME.toml`, as docs/policies.md shows",
            folder.display()
        )
        .into());
    }
    let report = run_tests(&sources.load()?, &sources.tests).map_err(source::mistakes)?;
    tested(&report, whole, output)
}

fn tested(report: &TestReport, whole: bool, output: Output) -> Result<(), Failure> {
    output.answer(report, || report.to_string());
    if !report.has_passed() {
        return Err(anyhow!("some cases were not answered as they say").into());
    }
    if whole && !report.coverage.iter().all(postern_policies::PolicyCoverage::is_whole) {
        return Err(anyhow!("some policies or clauses are not exercised by any case (--whole)").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
