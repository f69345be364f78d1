// SPDX-License-Identifier: Apache-2.0
//! What authors are told, on copies of the example.

use super::*;
use crate::arguments::Authorize;
use std::fs;
use std::path::PathBuf;

fn tenant() -> TenantId {
    TenantId::parse("default").expect("a name")
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/support-desk/config")
}

fn example() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for path in [
        "backends/support-desk/backend.toml",
        "backends/support-desk/openapi.yaml",
        "policies/support-desk.cedar",
        "policies/tests/support-desk.toml",
    ] {
        let to = folder.path().join(path);
        fs::create_dir_all(to.parent().expect("has one")).expect("makes folders");
        fs::copy(shipped().join(path), to).expect("copies");
    }
    folder
}

/// What `check` says of the example with one text of its policies replaced.
fn told(from: &str, to: &str) -> String {
    let folder = example();
    let file = folder.path().join("policies/support-desk.cedar");
    let text = fs::read_to_string(&file).expect("reads");
    assert!(text.contains(from), "{from}");
    fs::write(&file, text.replacen(from, to, 1)).expect("writes");
    let failed = check(folder.path(), &tenant(), Output::new(false)).expect_err("is refused");
    assert_eq!(failed.exit_code(), 1);
    failed.to_string()
}

#[test]
fn the_example_is_sound_tidy_and_tested_whole() {
    let output = Output::new(false);
    check(&shipped(), &tenant(), output).expect("is sound");
    format::run(&[shipped()], true, output).expect("is tidy");
    test(&shipped(), true, &tenant(), output).expect("is tested whole");
}

#[test]
fn the_baseline_is_tested() {
    tested(&baseline_report().expect("is readable"), false, Output::new(false)).expect("passes");
}

#[test]
fn a_syntax_error_shows_where_it_is() {
    insta::assert_snapshot!(told("action in support_desk::Action::\"read\",", "action in,"));
}

#[test]
fn a_type_error_shows_what_was_compared() {
    insta::assert_snapshot!(told("decimal(\"100.0\")", "100"));
}

#[test]
fn a_field_that_does_not_exist_comes_with_a_suggestion() {
    insta::assert_snapshot!(told("context.body.amount.", "context.body.amuont."));
}

#[test]
fn an_unknown_action_comes_with_a_suggestion() {
    insta::assert_snapshot!(told("Action::\"createRefund\"", "Action::\"creatRefund\""));
}

#[test]
fn a_condition_that_can_never_hold_is_refused() {
    let forever = "when { context.body.amount.greaterThan(decimal(\"100.0\")) }";
    insta::assert_snapshot!(told(forever, "when { principal is Postern::ApiKey }"));
}

#[test]
fn every_mistake_is_told_at_once() {
    let folder = example();
    let file = folder.path().join("policies/support-desk.cedar");
    fs::write(&file, "permit (principal, action, resource);\n@id(\"a\") permit (principal, action, resource)\n  when { context.nothing };\n@id(\"a\") forbid (principal, action == 7, resource);\n").expect("writes");
    let failed = check(folder.path(), &tenant(), Output::new(false)).expect_err("is refused");
    insta::assert_snapshot!(failed);
}

#[test]
fn cases_that_fail_or_leave_something_out_are_failures() {
    let folder = example();
    let file = folder.path().join("policies/tests/support-desk.toml");
    let text = fs::read_to_string(&file).expect("reads");
    fs::write(&file, text.replacen("expect = \"allow\"", "expect = \"deny\"", 1)).expect("writes");
    assert!(test(folder.path(), false, &tenant(), Output::new(false)).is_err(), "a case fails");
    let first = text.split("[[case]]").nth(1).expect("a case");
    fs::write(&file, format!("[[case]]{first}")).expect("writes");
    test(folder.path(), false, &tenant(), Output::new(false)).expect("passes");
    assert!(test(folder.path(), true, &tenant(), Output::new(false)).is_err(), "most is left out");
    fs::remove_file(&file).expect("removes");
    let none = test(folder.path(), false, &tenant(), Output::new(false)).expect_err("has none").to_string();
    assert!(none.contains("policies/tests/NAME.toml"), "{none}");
}

#[test]
fn fmt_lays_out_what_parses_and_touches_nothing_else() {
    let folder = example();
    let file = folder.path().join("policies/support-desk.cedar");
    let tidy = fs::read_to_string(&file).expect("reads");
    let untidy = tidy.replace("permit (\n  principal is", "permit(principal is");
    assert_ne!(tidy, untidy);
    fs::write(&file, &untidy).expect("writes");
    let paths = [folder.path().to_owned()];
    format::run(&paths, true, Output::new(false)).expect_err("would change");
    assert_eq!(fs::read_to_string(&file).expect("reads"), untidy, "--check changes nothing");
    format::run(&paths, false, Output::new(false)).expect("lays out");
    assert_eq!(fs::read_to_string(&file).expect("reads"), tidy);
    fs::write(&file, format!("{untidy} permit (;")).expect("writes");
    let failed = format::run(&paths, false, Output::new(false)).expect_err("does not parse");
    assert!(failed.to_string().contains("support-desk.cedar:"), "{failed}");
}

#[test]
fn bench_measures_the_cases() {
    bench::run(&shipped(), &tenant(), Output::new(true)).expect("measures");
}

#[test]
fn the_schema_names_the_documents_operations() {
    let document = shipped().join("backends/support-desk/openapi.yaml");
    let alone = schema::of_document("support-desk", &document, &tenant()).expect("is one");
    let whole = Sources::read(&shipped(), &tenant()).expect("reads").schema.text().to_owned();
    assert_eq!(alone, whole, "a folder with one backend is that backend");
    assert!(alone.contains("namespace support_desk") && alone.contains("action \"createRefund\""));
    assert!(schema::of_document("Not a name", &document, &tenant()).is_err());
}

#[test]
fn a_mistake_in_a_document_names_its_file() {
    let folder = example();
    let document = folder.path().join("backends/support-desk/openapi.yaml");
    fs::write(&document, "openapi: 9.0.0").expect("writes");
    let told = Sources::read(folder.path(), &tenant()).expect_err("is refused").to_string();
    assert!(told.contains("backends/support-desk/openapi.yaml"), "{told}");
    let told = schema::of_document("desk", &document, &tenant()).expect_err("is refused").to_string();
    assert!(told.contains("openapi.yaml"), "{told}");
}

fn case() -> serde_json::Value {
    serde_json::json!({
        "id": 1, "schema": "entity U; entity R; action a appliesTo { principal: U, resource: R };",
        "policies": "permit(principal, action, resource);", "entities": [],
        "requests": [{"principal": {"type": "U", "id": "u"}, "action": {"type": "Action", "id": "a"},
                      "resource": {"type": "R", "id": "r"}, "context": {}}],
    })
}

#[test]
fn cases_are_answered_line_by_line_and_bad_ones_are_counted() {
    let case = case();
    authorize::batch(&mut format!("{case}\n\n{case}\n").as_bytes(), Output::new(true)).expect("answers");
    let mut unread = case.clone();
    unread["policies"] = "permit;".into();
    let lines = format!("not one\n{unread}\n{case}\n{{\"id\": 3}}\n");
    let failed = authorize::batch(&mut lines.as_bytes(), Output::new(true)).expect_err("three are unread");
    assert!(failed.to_string().contains("3 of 4 cases"), "{failed}");
}

#[test]
fn four_files_are_one_case() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = case();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("writes");
        Some(path)
    };
    let text = |field: &str| case[field].as_str().expect("text").to_owned();
    let mut wanted = Authorize {
        batch: false,
        schema: write("schema", text("schema")),
        policies: write("policies", text("policies")),
        entities: write("entities", case["entities"].to_string()),
        request: write("request", case["requests"][0].to_string()),
    };
    authorize::one(&wanted, Output::new(true)).expect("answers one");
    wanted.request = write("requests", case["requests"].to_string());
    authorize::one(&wanted, Output::new(true)).expect("answers a list");
    wanted.request = write("broken", "{}".to_owned());
    let failed = authorize::one(&wanted, Output::new(true)).expect_err("is none").to_string();
    assert!(failed.contains("broken"), "{failed}");
}
