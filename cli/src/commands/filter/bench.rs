// SPDX-License-Identifier: Apache-2.0
//! `postern filter bench`: what a call costs, for each case: microseconds of CPU and memory.
//!
//! However slow the calls are, all cases together take no longer than was asked for: a case that
//! has used up its part of the time is measured by fewer calls, and says by how many.

use super::build::kilobytes;
use super::cases::{self, Case};
use super::folder::FilterFolder;
use super::rig::Rig;
use crate::failure::Failure;
use crate::output::{Output, table};
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{Called, ConfiguredFilter, Context, ResponseView};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The median counts.
const ROUNDS: u32 = 5;
/// Calls of a round, where there is time for them.
const CALLS: u32 = 1_000;

/// What a case came to.
#[derive(Debug)]
struct Measured {
    name: String,
    /// Of CPU, each call.
    microseconds: f64,
    memory_bytes: usize,
    /// In all rounds.
    calls: u32,
}

impl Measured {
    fn told(&self) -> Value {
        json!({
            "case": self.name,
            "microseconds": self.microseconds,
            "memory_bytes": self.memory_bytes,
            "calls": self.calls,
        })
    }

    fn row(&self) -> Vec<String> {
        let (cost, memory) = (format!("{:.1}", self.microseconds), (self.memory_bytes >> 10).to_string());
        vec![self.name.clone(), cost, memory, self.calls.to_string()]
    }
}

pub(super) async fn run(
    folder: &Path,
    only: Option<&str>,
    time: Duration,
    output: Output,
) -> Result<(), Failure> {
    let folder = FilterFolder::open(folder)?;
    let mut all = Vec::new();
    for file in folder.case_files()? {
        all.extend(cases::read(&file)?);
    }
    all.retain(|case| only.is_none_or(|only| case.name.contains(only)));
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Err(Failure::Usage(
            "there is no such case: calls of the cases in tests/ are measured".to_owned(),
        ));
    }
    output.note("compiling as the orchestrator will");
    let rig = Rig::load(&folder).await?;
    let mut measured = Vec::new();
    for (case, number) in all.iter().zip(1..) {
        output.note(&format!("measuring {number} of {count}: {}", case.name));
        measured.push(measure(&rig, case, time / count / ROUNDS).await?);
    }
    let load = rig.loading.as_secs_f64() * 1e6;
    let told: Vec<_> = measured.iter().map(Measured::told).collect();
    output.answer(&json!({ "cases": told, "load_microseconds": load }), || {
        let rows: Vec<_> = measured.iter().map(Measured::row).collect();
        let shown = table(&["CASE", "CPU µs", "MEMORY KiB", "CALLS"], &rows);
        format!(
            "{shown}\na fresh instance for each call; the median of {ROUNDS} rounds\ncompiled in {} ms to {:.1} KB, verified and loaded in {load:.0} µs",
            rig.compiling.as_millis(),
            kilobytes(rig.code_bytes),
        )
    });
    Ok(())
}

/// Calls a case again and again: in each round as often as is wanted or there is time for.
async fn measure(rig: &Rig, case: &Case, round: Duration) -> Result<Measured, Failure> {
    let (filter, context) = (case.filter(rig)?, case.context()?);
    let answer = case.answer()?.filter(|_| filter.filter().manifest().has(Phase::Response)).map(Arc::new);
    let memory_bytes = call(&filter, &context, answer.as_ref()).await.memory_bytes;
    let (mut rounds, mut calls) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let (begun, before) = (Instant::now(), cpu());
        let mut made = 0;
        while made == 0 || (made < CALLS && begun.elapsed() < round) {
            drop(call(&filter, &context, answer.as_ref()).await);
            made += 1;
        }
        rounds.push(cpu().saturating_sub(before).as_secs_f64() * 1e6 / f64::from(made));
        calls += made;
    }
    rounds.sort_unstable_by(f64::total_cmp);
    let microseconds = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
    Ok(Measured { name: case.name.clone(), microseconds, memory_bytes, calls })
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
