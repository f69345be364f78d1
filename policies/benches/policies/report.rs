// SPDX-License-Identifier: Apache-2.0
//! Measures, prints and writes down.

use crate::Outcome;
use std::io::Write as _;
use std::time::Duration;

/// What was measured, in the form that every benchmark of the project writes.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<serde_json::Value>);

impl Report {
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &str, against: Option<f64>) {
        let ratio = against.map(|against| value / against);
        let line = serde_json::json!({"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio});
        let beside = against
            .zip(ratio)
            .map_or(String::new(), |(against, ratio)| format!("{against:>14.2} {ratio:>8.4}"));
        // Nobody reads a table that cannot be printed; the file is what counts.
        drop(writeln!(std::io::stdout(), "{name:<26} {value:>10.2} {unit:<4} {beside}"));
        self.0.push(line);
    }

    pub(crate) fn finish(self) -> Outcome {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("policies.json"), serde_json::to_vec_pretty(&self.0)?)?;
        Ok(())
    }
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The median over samples of the microseconds that one call takes, each sample of `batch` calls.
pub(crate) fn sampled(samples: usize, batch: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut turn = 0;
    let mut times = Vec::with_capacity(samples);
    for _ in 0..=samples {
        let start = thread_time();
        for _ in 0..batch {
            call(turn);
            turn += 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        times.push((thread_time() - start).as_secs_f64() * 1e6 / batch as f64);
    }
    // The first sample warms up.
    median(times.split_off(1))
}

/// Milliseconds that one call takes.
pub(crate) fn milliseconds<E>(call: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
    let start = thread_time();
    call()?;
    Ok((thread_time() - start).as_secs_f64() * 1_000.0)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What this process holds in memory.
pub(crate) fn resident_bytes() -> Outcome<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let resident = pages.split_whitespace().nth(1).ok_or("statm has no second field")?;
    Ok(resident.parse::<u64>()? * 4096)
}
