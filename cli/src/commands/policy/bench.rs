// SPDX-License-Identifier: Apache-2.0
//! `postern policy bench`: how long this folder's policies take, on this machine, for the requests
//! that its own cases describe.

use super::source::{Sources, mistakes};
use crate::failure::Failure;
use crate::output::{Output, table};
use anyhow::anyhow;
use postern_common::id::TenantId;
use postern_policies::{ReadyCase, TenantPolicies, ready_cases};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long all cases together are measured.
const MEASURED: Duration = Duration::from_secs(2);
/// Decisions between two looks at the clock.
const BATCH: u32 = 20;

/// Measures and prints.
pub(super) fn run(folder: &Path, tenant: &TenantId, output: Output) -> Result<(), Failure> {
    let sources = Sources::read(folder, tenant)?;
    let begun = Instant::now();
    let policies = sources.load()?;
    let loading = begun.elapsed();
    let cases = ready_cases(&policies, &sources.tests).map_err(mistakes)?;
    if cases.is_empty() {
        return Err(anyhow!("there are no cases to measure: write some in `policies/tests`").into());
    }
    let share = MEASURED / u32::try_from(cases.len()).unwrap_or(u32::MAX);
    let measured: Vec<(&str, f64, f64)> = cases
        .iter()
        .map(|case| {
            let (middle, late) = measure(&policies, case, share);
            (case.name.as_str(), middle, late)
        })
        .collect();
    let told = json!({
        "policies": policies.len(),
        "load_milliseconds": loading.as_secs_f64() * 1e3,
        "cases": measured.iter().map(|(name, middle, late)| json!({"name": name, "p50_microseconds": middle, "p99_microseconds": late})).collect::<Vec<_>>(),
    });
    output.answer(&told, || {
        let rows: Vec<Vec<String>> = measured
            .iter()
            .map(|(name, middle, late)| {
                vec![(*name).to_owned(), format!("{middle:.1}"), format!("{late:.1}")]
            })
            .collect();
        format!(
            "{}\n{} policies, loaded in {:.1} ms",
            table(&["CASE", "P50 µs", "P99 µs"], &rows),
            policies.len(),
            loading.as_secs_f64() * 1e3
        )
    });
    Ok(())
}

/// The median and the 99th percentile of a decision, in microseconds.
fn measure(policies: &TenantPolicies, case: &ReadyCase, share: Duration) -> (f64, f64) {
    let mut samples = Vec::new();
    let begun = Instant::now();
    // Two samples at least: the first warms up and does not count.
    while samples.len() < 2 || begun.elapsed() < share {
        let start = Instant::now();
        for _ in 0..BATCH {
            std::hint::black_box(case.decide(policies));
        }
        samples.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
    }
    let mut samples = samples.split_off(1);
    samples.sort_by(f64::total_cmp);
    let at = |percent: usize| samples.get(samples.len() * percent / 100).copied().unwrap_or(f64::NAN);
    (at(50), at(99))
}
