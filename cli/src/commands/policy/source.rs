// SPDX-License-Identifier: Apache-2.0
//! A configuration folder as policies see it: its schema, its policy files and their tests.

use crate::failure::Failure;
use anyhow::anyhow;
use postern_common::folder::{self, TenantFiles};
use postern_common::id::{PolicyName, TenantId};
use postern_openapi::Document;
use postern_policies::{Mistake, PolicySource, TenantPolicies, TenantSchema, schema_from_openapi};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a folder says of policies.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) schema: Arc<TenantSchema>,
    /// The same files by their bare names, as the API takes them.
    pub(super) files: TenantFiles,
    /// `None`: the folder has no set of its own.
    pub(super) policies: Option<Vec<PolicySource>>,
    pub(super) tests: Vec<PolicySource>,
}

impl Sources {
    /// Reads a folder.
    pub(super) fn read(folder: &Path, tenant: &TenantId) -> Result<Self, Failure> {
        let files = folder::read_for_policies(folder).map_err(anyhow::Error::new)?;
        Ok(Self {
            schema: schema_of(&files, tenant)?,
            policies: files.policies.as_ref().map(|policies| named(policies, "", "cedar")),
            tests: named(&files.policy_tests, "tests/", "toml"),
            files,
        })
    }

    /// The set, checked; mistakes are the failure.
    pub(super) fn load(&self) -> Result<TenantPolicies, Failure> {
        TenantPolicies::load(&self.schema, self.policies.as_deref()).map_err(mistakes)
    }

    /// The folder's set, as the API takes it.
    pub(super) fn texts(&self) -> Result<&BTreeMap<PolicyName, String>, Failure> {
        let none = || anyhow!("the folder has no `policies/`: there is no set to send");
        Ok(self.files.policies.as_ref().ok_or_else(none)?)
    }
}

fn named(files: &BTreeMap<PolicyName, String>, folder: &str, extension: &str) -> Vec<PolicySource> {
    let source = |(name, text): (&PolicyName, &String)| PolicySource {
        name: format!("policies/{folder}{name}.{extension}"),
        text: text.clone(),
    };
    files.iter().map(source).collect()
}

/// Mistakes as a failure that shows each with its place.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(super) fn mistakes(found: Vec<Mistake>) -> Failure {
    let count = found.len();
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    let plural = if count == 1 { "" } else { "s" };
    anyhow!("{count} mistake{plural} in the policies\n{}", told.join("\n")).into()
}

/// What the folder's policies may speak of: our own types, and its backends' documents.
fn schema_of(files: &TenantFiles, tenant: &TenantId) -> Result<Arc<TenantSchema>, Failure> {
    let mut backends = Vec::new();
    let mut mistakes = Vec::new();
    for (name, backend) in &files.backends {
        let parsed = backend.document.as_deref().map_or_else(|| Ok(Document::any_path()), Document::parse);
        match parsed {
            Ok(document) => backends.push(schema_from_openapi(name, &document)),
            Err(found) => {
                let file = backend.backend.openapi.as_deref().unwrap_or("openapi");
                mistakes.extend(found.iter().map(|it| format!("backends/{name}/{file}: {it}")));
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(
            anyhow!("the documents of the backends have mistakes:\n  {}", mistakes.join("\n  ")).into()
        );
    }
    Ok(TenantSchema::build(tenant, &backends).map_err(anyhow::Error::new)?)
}
