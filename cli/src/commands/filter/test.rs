// SPDX-License-Identifier: Apache-2.0
//! `postern filter test`: the cases of a folder, in the gateway's engine.

use super::cases;
use super::folder::FilterFolder;
use super::rig::Rig;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::anyhow;
use serde_json::json;
use std::path::Path;

pub(super) async fn run(folder: &Path, only: Option<&str>, output: Output) -> Result<(), Failure> {
    let folder = FilterFolder::open(folder)?;
    let files = folder.case_files()?;
    if files.is_empty() {
        let place = folder.path.display();
        return Err(Failure::Usage(format!("there are no cases: write `{place}/tests/cases.toml`")));
    }
    let rig = Rig::load(&folder).await?;
    let (mut results, mut failed) = (Vec::new(), 0_usize);
    for file in files {
        for case in cases::read(&file)? {
            if only.is_some_and(|only| !case.name.contains(only)) {
                continue;
            }
            let differences = case.run(&rig).await?;
            failed += usize::from(!differences.is_empty());
            results.push((case.name, differences));
        }
    }
    if results.is_empty() {
        return Err(Failure::Usage("no case has a name with that in it".to_owned()));
    }
    let passed = results.len() - failed;
    let told: Vec<_> = results
        .iter()
        .map(|(name, differences)| json!({ "name": name, "differences": differences }))
        .collect();
    output.answer(&json!({ "passed": passed, "failed": failed, "cases": told }), || {
        let mut lines = Vec::new();
        for (name, differences) in &results {
            let mark = if differences.is_empty() { "ok    " } else { "FAILED" };
            lines.push(format!("{mark}  {name}"));
            lines.extend(differences.iter().map(|difference| format!("        {difference}")));
        }
        lines.push(format!("{passed} passed, {failed} failed"));
        lines.join("\n")
    });
    if failed > 0 { Err(anyhow!("{failed} of {} cases failed", results.len()).into()) } else { Ok(()) }
}
