// SPDX-License-Identifier: Apache-2.0
//! `postern policy schema --backend NAME --openapi FILE`: the schema of one document, for a
//! backend that is not configured yet.

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use postern_common::id::{BackendName, TenantId};
use postern_openapi::Document;
use postern_policies::{TenantSchema, schema_from_openapi};
use std::path::Path;

/// The whole schema of a tenant with this one backend.
pub(super) fn of_document(backend: &str, file: &Path, tenant: &TenantId) -> Result<String, Failure> {
    let backend: BackendName = backend.parse().map_err(|error| Failure::Usage(format!("{error}")))?;
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("`{shown}` cannot be read"))?;
    let document = Document::parse(&text).map_err(|found| {
        let lines: Vec<String> = found.iter().map(|it| format!("{shown}: {it}")).collect();
        anyhow!("the document has mistakes:\n  {}", lines.join("\n  "))
    })?;
    let schema = TenantSchema::build(tenant, &[schema_from_openapi(&backend, &document)]);
    Ok(schema.map_err(anyhow::Error::new)?.text().to_owned())
}
