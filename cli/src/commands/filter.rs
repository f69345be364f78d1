// SPDX-License-Identifier: Apache-2.0
//! `postern filter`: the tenant's WebAssembly filters.

use super::Server;
use crate::arguments::Filter;
use crate::failure::Failure;
use anyhow::Context as _;
use postern_common::folder::FilterFiles;
use postern_common::id::FilterName;
use std::path::Path;

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Filter) -> Result<(), Failure> {
    match wanted {
        Filter::Ls => {
            server.list(&server.get("/filters").await?, "filters", &["name", "version", "updated_at"])
        }
        Filter::Push { name, folder } => {
            let name: FilterName = name.parse().map_err(|error| Failure::Usage(format!("{error}")))?;
            let body = serde_json::to_value(read(&folder, &name)?).context("a filter of ours")?;
            let pushed = server.put(&format!("/filters/{name}"), &body).await?;
            server.output.answer(&pushed, || format!("filter {name} is pushed"));
            Ok(())
        }
    }
}

fn read(folder: &Path, name: &FilterName) -> Result<FilterFiles, Failure> {
    let manifest = folder.join("filter.toml");
    let component = folder.join(format!("{name}.wasm"));
    Ok(FilterFiles {
        manifest: std::fs::read_to_string(&manifest)
            .with_context(|| format!("`{}` cannot be read", manifest.display()))?,
        component: std::fs::read(&component)
            .with_context(|| format!("`{}` cannot be read", component.display()))?,
    })
}
