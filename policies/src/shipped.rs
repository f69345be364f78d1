// SPDX-License-Identifier: Apache-2.0
//! What is shipped is tested as its users test theirs: cases as data, of which coverage is asked.

use crate::fixture::{backend, schema, told};
use crate::{
    BASE, Case, PolicySource, TenantPolicies, TenantSchema, TestReport, authorize, run_tests,
    schema_from_openapi,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A folder of the repository.
fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The files of `folder` that end in `.EXTENSION`.
fn sources(folder: &Path, extension: &str) -> Vec<PolicySource> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    let source = |path: &PathBuf| PolicySource {
        name: path.display().to_string(),
        text: std::fs::read_to_string(path).expect("a text"),
    };
    let sources: Vec<_> = paths.iter().map(source).collect();
    assert!(!sources.is_empty(), "no `.{extension}` in {}", folder.display());
    sources
}

fn run(policies: &TenantPolicies, tests: &Path) -> TestReport {
    let report =
        run_tests(policies, &sources(tests, "toml")).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
    assert!(report.has_passed(), "{report}");
    report
}

fn not_whole(report: &TestReport) -> Vec<&str> {
    report.coverage.iter().filter(|policy| !policy.is_whole()).map(|policy| policy.id.as_str()).collect()
}

#[test]
fn the_baseline_keeps_its_cases_and_they_cover_it() {
    let baseline =
        TenantPolicies::load(&schema(), None).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
    let report = run(&baseline, &folder("policies/tests"));
    assert_eq!(not_whole(&report), Vec::<&str>::new(), "{report}");
}

#[test]
fn the_example_keeps_its_cases_and_they_cover_it() {
    let config = folder("examples/support-desk/config");
    let document =
        std::fs::read_to_string(config.join("backends/support-desk/openapi.yaml")).expect("a text");
    let document = postern_openapi::Document::parse(&document).expect("the document is right");
    let backends = [schema_from_openapi(&backend("support-desk"), &document)];
    let schema = TenantSchema::build(&"default".parse().expect("a name"), &backends).expect("a schema");
    let policies = TenantPolicies::load(&schema, Some(&sources(&config.join("policies"), "cedar")))
        .unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
    let report = run(&policies, &config.join("policies/tests"));
    assert_eq!(not_whole(&report), Vec::<&str>::new(), "{report}");
}

/// Whether the baseline lets the sandbox of a user of `user_in` reach a backend of `backend_of`,
/// and what decides.
fn crossing(sandbox_of: &str, user_in: &str, backend_of: &str) -> (&'static str, Vec<String>) {
    let id = |of_type: &str, id: &str| json!({"type": format!("Postern::{of_type}"), "id": id});
    let tenant = |name: &str| json!({"uid": id("Tenant", name), "attrs": {}, "parents": []});
    let entities = json!([
        tenant("acme"),
        tenant("rival"),
        {"uid": id("User", "u"), "attrs": {}, "parents": [id("Tenant", user_in)]},
        {"uid": id("Labels", "l"), "attrs": {}, "parents": []},
        {"uid": id("Backend", "b"), "attrs": {"tenant": id("Tenant", backend_of)}, "parents": [id("Tenant", backend_of)]},
        {"uid": id("Sandbox", "s"), "parents": [id("User", "u")], "attrs": {
            "tenant": id("Tenant", sandbox_of), "user": id("User", "u"), "conversation": "c",
            "template": "default", "operations": ["*"], "labels": id("Labels", "l"), "isolation": "gvisor"}},
    ]);
    let case: Case = serde_json::from_value(json!({
        "id": 1,
        "schema": format!("{BASE}\naction call appliesTo {{ principal: Postern::Sandbox, resource: Postern::Backend }};"),
        "policies": sources(&folder("policies/baseline"), "cedar").iter().map(|source| source.text.as_str()).collect::<String>(),
        "entities": entities,
        "requests": [{"principal": id("Sandbox", "s"), "action": {"type": "Action", "id": "call"},
            "resource": id("Backend", "b"), "context": Value::Object(serde_json::Map::new())}],
    }))
    .expect("a case");
    let answer = authorize(&case).unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.validates, "{:?}", answer.validation_errors);
    let result = answer.results.into_iter().next().expect("an answer");
    assert!(result.errors.is_empty(), "{result:?}");
    (result.effective, result.reasons)
}

#[test]
fn nothing_crosses_a_tenant_however_the_entities_are_put_together() {
    assert_eq!(crossing("acme", "acme", "acme"), ("allow", vec!["postern-permit".to_owned()]));
    for (sandbox_of, user_in, backend_of) in [
        ("acme", "acme", "rival"),
        ("acme", "rival", "acme"),
        ("acme", "rival", "rival"),
        ("rival", "acme", "acme"),
    ] {
        let answer = crossing(sandbox_of, user_in, backend_of);
        assert_eq!(
            answer,
            ("deny", vec!["postern-tenant".to_owned()]),
            "{sandbox_of} {user_in} {backend_of}"
        );
    }
}
