// SPDX-License-Identifier: Apache-2.0
//! `postern policy fmt`: policy files laid out in one way.

use super::source::mistakes;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::{Context as _, anyhow};
use postern_policies::{PolicySource, format};
use std::path::{Path, PathBuf};

/// Lays files out anew; with `check` only says which would change. Nothing is written if one of
/// them cannot be parsed.
pub(super) fn run(paths: &[PathBuf], check: bool, output: Output) -> Result<(), Failure> {
    let mut files = Vec::new();
    for path in paths {
        files.extend(found(path)?);
    }
    let (mut changed, mut wrong) = (Vec::new(), Vec::new());
    for path in &files {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("`{shown}` cannot be read"))?;
        let source = PolicySource { name: shown, text };
        match format(&source) {
            Ok(tidy) if tidy == source.text => {}
            Ok(tidy) => changed.push((path, tidy)),
            Err(found) => wrong.extend(found),
        }
    }
    if !wrong.is_empty() {
        return Err(mistakes(wrong));
    }
    if !check {
        for (path, tidy) in &changed {
            std::fs::write(path, tidy).with_context(|| format!("`{}` cannot be written", path.display()))?;
        }
    }
    let names: Vec<String> = changed.iter().map(|(path, _)| path.display().to_string()).collect();
    let told = serde_json::json!({ "files": files.len(), "changed": names });
    output.answer(&told, || {
        let verb = if check { "would change" } else { "laid out" };
        let mut lines: Vec<String> = names.iter().map(|name| format!("{verb}: {name}")).collect();
        lines.push(format!("{} files, {} {verb}", files.len(), names.len()));
        lines.join("\n")
    });
    if check && !names.is_empty() {
        return Err(anyhow!("run `postern policy fmt` without --check to lay them out").into());
    }
    Ok(())
}

/// The `.cedar` files that a path means: itself, or those of a configuration or policy folder.
fn found(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let inner = path.join("policies");
    let folder = if inner.is_dir() { inner } else { path.to_owned() };
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("`{}` cannot be read", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cedar") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(anyhow!("there is no `.cedar` file in `{}`", folder.display()).into());
    }
    Ok(files)
}
