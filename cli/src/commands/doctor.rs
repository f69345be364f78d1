// SPDX-License-Identifier: Apache-2.0
//! `postern doctor`: what this machine can do, and what to change where it cannot.
//!
//! Facts are gathered first ([`facts`], which runs a real sandbox of each isolation), then judged
//! by pure code ([`judge`]): a line for each, `ok`, `warn` or `fail`. Nothing stays behind.

mod facts;
mod judge;

use crate::failure::Failure;
use crate::output::Output;
use crate::up::Surroundings;
use anyhow::anyhow;
use judge::{Finding, Verdict};
use postern_common::settings::Settings;
use serde_json::json;

/// Looks, tells, and fails if something keeps `postern up` from working.
pub(super) async fn run(settings: &Settings, around: &Surroundings, output: Output) -> Result<(), Failure> {
    let findings = judge::judge(&facts::gather(settings, around).await);
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
    let answer = json!({ "findings": findings, "failed": failed });
    output.answer(&answer, || lines(&findings));
    match failed {
        0 => Ok(()),
        1 => Err(anyhow!("one thing keeps `postern up` from working: see `fail` above").into()),
        more => Err(anyhow!("{more} things keep `postern up` from working: see `fail` above").into()),
    }
}

/// A line for each finding, and one more that says what to do.
fn lines(findings: &[Finding]) -> String {
    let mut lines = Vec::with_capacity(findings.len());
    for finding in findings {
        lines.push(format!("{:<4}  {:<18} {}", finding.verdict.as_str(), finding.check, finding.what));
        lines.extend(finding.remedy.as_ref().map(|remedy| format!("      {:<18} → {remedy}", "")));
    }
    lines.join("\n")
}
