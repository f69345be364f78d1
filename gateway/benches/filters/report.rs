// SPDX-License-Identifier: Apache-2.0
//! Prints and writes down, in the form that every benchmark of the project has.

use anyhow::{Context as _, Result};
use std::io::Write as _;

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<serde_json::Value>);

impl Report {
    /// A row: its value, and what was measured beside it in the same run.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &str, against: Option<f64>, bar: &str) {
        let ratio = against.map(|against| value / against);
        let beside = against.map_or(String::new(), |against| format!("{against:.2}"));
        // Nobody reads a table that cannot be printed; the file is what counts.
        drop(writeln!(std::io::stdout(), "{name:<28} {value:>10.2} {unit:<4} {beside:>12}  {bar}"));
        let line = serde_json::json!({"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio});
        self.0.push(line);
    }

    pub(crate) fn finish(self) -> Result<()> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("filters.json"), serde_json::to_vec_pretty(&self.0)?)?;
        Ok(())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What this process holds in memory.
pub(crate) fn resident_bytes() -> Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let resident = pages.split_whitespace().nth(1).context("statm has a second field")?;
    Ok(resident.parse::<u64>()? * 4096)
}
