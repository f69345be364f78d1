// SPDX-License-Identifier: Apache-2.0
//! What this machine can isolate, found out by doing it: that a program or a device is there
//! means nothing (facts/isolation.md knows one that hangs).

use super::{BEST_FIRST, LocalRuntime, start};
use crate::runtime::{Enforced, Isolation, Limits, Probed, Running, Runtime, RuntimeError, Wanted};
use aws_lc_rs::rand;
use postern_common::id::SandboxId;
use postern_shim::spec::IsolatedBy;
use std::time::Duration;

/// A level that takes longer does not work. A cold first start of gVisor on a busy machine took 3 s.
const TIME: Duration = Duration::from_secs(15);
/// Enough to start in.
const LIMITS: Limits = Limits { memory_bytes: 128 << 20, cpu_millis: 1000, pids: 64, disk_bytes: 16 << 20 };

/// Tries every level, best first.
pub(super) async fn all(runtime: &LocalRuntime) -> Vec<Probed> {
    let mut probed = Vec::new();
    for level in BEST_FIRST {
        probed.push(Probed { level, outcome: one(runtime, level).await });
    }
    probed
}

async fn one(runtime: &LocalRuntime, level: Isolation) -> Result<Enforced, String> {
    let isolation = runtime.program(level)?;
    let mut random = [0; 12];
    rand::fill(&mut random).map_err(|_unspecified| "there is no randomness".to_owned())?;
    let sandbox = SandboxId::from_random(random);
    // Called off, not dropped: what was begun is cleaned up also when the whole start is ended.
    let stop = runtime.tasks.stop_token();
    // What holds here is just being found out.
    let start = start::start(runtime, &sandbox, (isolation, None), (LIMITS, Enforced::default()), false);
    let started = tokio::time::timeout(TIME, stop.run_until_cancelled(start)).await;
    let cleaned = runtime.destroy(&sandbox).await;
    let late = |_elapsed| format!("it did not start within {} s", TIME.as_secs());
    let called_off = || "it was called off".to_owned();
    let Running { enforced, .. } = started.map_err(late)?.ok_or_else(called_off)?.map_err(explain)?;
    cleaned.map_err(explain)?;
    Ok(enforced)
}

fn explain(error: RuntimeError) -> String {
    match error {
        RuntimeError::Start { why, .. } => why,
        other => other.to_string(),
    }
}

/// The program for what is wanted, if that works here, and the limits that hold with it.
pub(super) async fn choose(
    runtime: &LocalRuntime,
    wanted: Wanted,
) -> Result<(IsolatedBy, Enforced), RuntimeError> {
    let probed = runtime.probe().await;
    let would_do = |level: Isolation| match wanted {
        Wanted::AtLeast(least) => level >= least,
        Wanted::Exactly(exactly) => level == exactly,
    };
    let candidates = probed.iter().filter(|probed| would_do(probed.level));
    let mut why = Vec::new();
    for Probed { level, outcome } in candidates {
        let program = |enforced: &Enforced| Ok((runtime.program(*level)?, *enforced));
        match outcome.as_ref().map_err(Clone::clone).and_then(program) {
            Ok(works) => return Ok(works),
            Err(reason) => why.push(format!("{level}: {reason}")),
        }
    }
    let (Wanted::AtLeast(level) | Wanted::Exactly(level)) = wanted;
    Err(RuntimeError::IsolationUnavailable { wanted: level.as_str(), why: why.join("; ") })
}
