// SPDX-License-Identifier: Apache-2.0
//! `postern policy`: what an author needs before a server comes into it. Works on a configuration
//! folder alone, with the very code that the gateway decides by.

use crate::arguments::Policy;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::{Context as _, anyhow};
use postern_common::folder::{self, TenantFiles};
use postern_common::id::TenantId;
use postern_openapi::Document;
use postern_policies::{PolicySource, TenantPolicies, TenantSchema, schema_from_openapi};
use std::io::{BufRead, Read as _};
use std::path::Path;
use std::sync::Arc;

/// The longest case of `authorize --batch`: thousands of policies and entities fit.
const MAX_CASE_BYTES: u64 = 64 * 1024 * 1024;

/// Runs one of the commands; they compute, and so they block.
pub(super) async fn run(wanted: Policy, tenant: TenantId, output: Output) -> Result<(), Failure> {
    let running = tokio::task::spawn_blocking(move || match wanted {
        Policy::Check { folder } => check(&folder, &tenant, output),
        Policy::Schema { folder } => {
            output.line(schema_of(&folder::read(&folder).map_err(anyhow::Error::new)?, &tenant)?.text());
            Ok(())
        }
        Policy::Authorize { batch: _ } => authorize(&mut std::io::stdin().lock(), output),
    });
    running.await.map_err(anyhow::Error::new)?
}

/// Reports mistakes and warnings with file, line and what to do.
fn check(folder: &Path, tenant: &TenantId, output: Output) -> Result<(), Failure> {
    let files = folder::read(folder).map_err(anyhow::Error::new)?;
    let schema = schema_of(&files, tenant)?;
    let sources = sources(&files);
    match TenantPolicies::load(&schema, sources.as_deref()) {
        Ok(policies) => {
            let warnings = policies.warnings();
            for warning in &warnings {
                output.note(&format!("warning: {warning}"));
            }
            let told = serde_json::json!({ "policies": policies.len(), "warnings": warnings });
            output.answer(&told, || {
                format!("{} policies are sound, {} warnings", policies.len(), warnings.len())
            });
            Ok(())
        }
        Err(mistakes) => {
            for mistake in &mistakes {
                output.note(&mistake.to_string());
            }
            Err(anyhow!("{} mistakes in the policies of `{}`", mistakes.len(), folder.display()).into())
        }
    }
}

fn sources(files: &TenantFiles) -> Option<Vec<PolicySource>> {
    let policies = files.policies.as_ref()?;
    let source = |(name, text): (_, &String)| PolicySource {
        name: format!("policies/{name}.cedar"),
        text: text.clone(),
    };
    Some(policies.iter().map(source).collect())
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

/// Answers one case a line until the input ends (contracts: Cedar).
fn authorize(mut input: &mut dyn BufRead, output: Output) -> Result<(), Failure> {
    for number in 1.. {
        let mut line = String::new();
        if (&mut input).take(MAX_CASE_BYTES).read_line(&mut line)? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let case = serde_json::from_str(&line).with_context(|| format!("line {number} is no case"))?;
        let answer = postern_policies::authorize(&case).with_context(|| format!("line {number}"))?;
        output.record(&answer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tenant() -> TenantId {
        TenantId::parse("default").expect("a name")
    }

    fn example() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/support-desk/config");
        for path in [
            "backends/support-desk/backend.toml",
            "backends/support-desk/openapi.yaml",
            "policies/support-desk.cedar",
        ] {
            let to = folder.path().join(path);
            fs::create_dir_all(to.parent().expect("has one")).expect("makes folders");
            fs::copy(from.join(path), to).expect("copies");
        }
        folder
    }

    #[test]
    fn the_examples_policies_are_sound() {
        check(example().path(), &tenant(), Output::new(false)).expect("are sound");
    }

    #[test]
    fn a_type_error_is_a_failure() {
        let folder = example();
        let file = folder.path().join("policies/support-desk.cedar");
        let text = fs::read_to_string(&file).expect("reads");
        fs::write(&file, text.replace("decimal(\"100.0\")", "100")).expect("writes");
        let failed = check(folder.path(), &tenant(), Output::new(false)).expect_err("is refused");
        assert_eq!(failed.exit_code(), 1);
    }

    #[test]
    fn the_schema_names_the_documents_operations() {
        let files = folder::read(example().path()).expect("reads");
        let schema = schema_of(&files, &tenant()).expect("is one");
        assert!(schema.text().contains("support_desk") && schema.text().contains("createRefund"));
    }

    #[test]
    fn a_mistake_in_a_document_names_its_file() {
        let folder = example();
        fs::write(folder.path().join("backends/support-desk/openapi.yaml"), "openapi: 9.0.0")
            .expect("writes");
        let files = folder::read(folder.path()).expect("reads");
        let told = schema_of(&files, &tenant()).expect_err("is refused").to_string();
        assert!(told.contains("backends/support-desk/openapi.yaml"), "{told}");
    }

    #[test]
    fn cases_are_answered_line_by_line_and_a_bad_one_is_named() {
        let case = serde_json::json!({
            "id": 1, "schema": "entity U; entity R; action a appliesTo { principal: U, resource: R };",
            "policies": "permit(principal, action, resource);", "entities": [],
            "requests": [{"principal": {"type": "U", "id": "u"}, "action": {"type": "Action", "id": "a"},
                          "resource": {"type": "R", "id": "r"}, "context": {}}],
        });
        authorize(&mut format!("{case}\n\n{case}\n").as_bytes(), Output::new(true)).expect("answers");
        let failed = authorize(&mut format!("{case}\nnot one\n").as_bytes(), Output::new(true));
        assert!(failed.expect_err("is refused").to_string().contains("line 2"));
    }
}
