// SPDX-License-Identifier: Apache-2.0
//! `postern filter bench`: what a call costs, for each case: microseconds of CPU and memory.

use super::build::kilobytes;
use super::cases::{self, Case};
use super::folder::FilterFolder;
use super::rig::Rig;
use crate::failure::Failure;
use crate::output::{Output, table};
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{Called, ConfiguredFilter, Context, ResponseView};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The median counts.
const ROUNDS: usize = 5;
/// Calls of a round.
const CALLS: u32 = 1_000;

pub(super) async fn run(folder: &Path, only: Option<&str>, output: Output) -> Result<(), Failure> {
    let folder = FilterFolder::open(folder)?;
    let mut all = Vec::new();
    for file in folder.case_files()? {
        all.extend(cases::read(&file)?);
    }
    all.retain(|case| only.is_none_or(|only| case.name.contains(only)));
    if all.is_empty() {
        return Err(Failure::Usage(
            "there is no such case: calls of the cases in tests/ are measured".to_owned(),
        ));
    }
    let rig = Rig::load(&folder).await?;
    let mut rows = Vec::new();
    for case in &all {
        rows.push((case.name.clone(), measure(&rig, case).await?));
    }
    let load = rig.loading.as_secs_f64() * 1e6;
    let told: Vec<_> = rows
        .iter()
        .map(|(name, (cost, memory))| json!({ "case": name, "microseconds": cost, "memory_bytes": memory }))
        .collect();
    output.answer(&json!({ "cases": told, "load_microseconds": load }), || {
        let cells = rows.iter().map(|(name, (cost, memory))| {
            vec![name.clone(), format!("{cost:.1}"), format!("{}", memory >> 10)]
        });
        let shown = table(&["CASE", "CPU µs", "MEMORY KiB"], &cells.collect::<Vec<_>>());
        format!(
            "{shown}\na fresh instance for each call; the median of {ROUNDS} rounds of {CALLS}\ncompiled in {} ms to {:.1} KB, verified and loaded in {load:.0} µs",
            rig.compiling.as_millis(),
            kilobytes(rig.code_bytes),
        )
    });
    Ok(())
}

/// Microseconds of CPU of a call, and the memory of its instance.
async fn measure(rig: &Rig, case: &Case) -> Result<(f64, usize), Failure> {
    let (filter, context) = (case.filter(rig)?, case.context()?);
    let answer = case.answer()?.filter(|_| filter.filter().manifest().has(Phase::Response)).map(Arc::new);
    let memory = call(&filter, &context, answer.as_ref()).await.memory_bytes;
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let before = cpu();
        for _ in 0..CALLS {
            drop(call(&filter, &context, answer.as_ref()).await);
        }
        rounds.push(cpu().saturating_sub(before));
    }
    rounds.sort_unstable();
    let median = rounds.get(ROUNDS / 2).copied().unwrap_or_default();
    Ok((median.as_secs_f64() * 1e6 / f64::from(CALLS), memory))
}

async fn call(filter: &ConfiguredFilter, context: &Context, answer: Option<&Arc<ResponseView>>) -> Called {
    match answer {
        Some(answer) => filter.on_response(context.clone(), Arc::clone(answer)).await,
        None => filter.on_request(context.clone()).await,
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
