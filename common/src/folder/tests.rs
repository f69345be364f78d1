// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::fs;
use std::path::Path;

const BACKEND: &str = r#"
url = "http://127.0.0.1:9000"
openapi = "openapi.yaml"
credential = "desk-key"
filters = ["card-guard", { name = "claims", operations = ["write"], config = { plan = "x-plan" } }]

[identity]
user = ["customer_id"]

[limits]
body = "64KiB"
timeout = "10s"

[operations.createRefund]
per_second = 0.5
burst = 2
"#;

const TEMPLATE: &str = r#"
isolation = "namespaces"
operations = ["desk/read", "desk/createRefund"]
cpu = 0.5
memory = "256MiB"
ttl = "30m"
env = { LANG = "C.UTF-8" }
"#;

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("makes folders");
        fs::write(path, text).expect("writes");
    }
}

fn mistakes(files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), files);
    read(folder.path()).expect_err("is refused").to_string()
}

#[test]
fn a_whole_folder_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        &[
            ("backends/desk/backend.toml", BACKEND),
            ("backends/desk/openapi.yaml", "openapi: 3.1.0"),
            ("policies/desk.cedar", "permit(principal, action, resource);"),
            ("policies/tests/desk.toml", ""),
            ("filters/card-guard/filter.toml", "phases = [\"request\"]"),
            ("filters/card-guard/card-guard.wasm", "\0asm"),
            ("templates/default.toml", TEMPLATE),
            ("limits.toml", "[session]\nper_second = 5\nburst = 10\n"),
            ("README.md", "# ours"),
            (".git/config", ""),
        ],
    );
    let files = read(folder.path()).expect("is read");
    let desk = &files.backends["desk"];
    assert_eq!(desk.document.as_deref(), Some("openapi: 3.1.0"));
    assert_eq!(desk.backend.limits.timeout, Some(Duration::from_secs(10)));
    assert_eq!(desk.backend.limits.body, Some(ByteSize::kib(64)));
    assert_eq!(desk.backend.identity.user, ["customer_id"]);
    assert_eq!(desk.backend.filters[1].name().as_str(), "claims");
    assert_eq!(files.templates["default"].ttl, Some(Duration::from_secs(1800)));
    assert_eq!(files.limits.session.expect("is set").burst, Some(10));
    assert_eq!(files.policies.as_ref().map(BTreeMap::len), Some(1));
    assert_eq!(files.policy_tests.len(), 1);
}

#[test]
fn what_was_read_survives_the_wire() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        &[
            ("backends/desk/backend.toml", BACKEND),
            ("backends/desk/openapi.yaml", "openapi: 3.1.0"),
            ("templates/default.toml", TEMPLATE),
            ("filters/f/filter.toml", ""),
            ("filters/f/f.wasm", "\0asm\u{1}"),
        ],
    );
    let files = read(folder.path()).expect("is read");
    let json = serde_json::to_string(&files).expect("serializes");
    assert_eq!(serde_json::from_str::<TenantFiles>(&json).expect("parses"), files);
}

#[test]
fn no_policies_folder_is_not_an_empty_set() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(read(folder.path()).expect("an empty folder is a configuration").policies, None);
    fs::create_dir(folder.path().join("policies")).expect("makes a folder");
    assert_eq!(read(folder.path()).expect("is read").policies, Some(BTreeMap::new()));
}

#[test]
fn every_mistake_is_reported_with_its_file_and_line() {
    let shown = mistakes(&[
        ("backends/desk/backend.toml", "url = \"http://127.0.0.1:9000\"\nopenapy = \"x\"\n"),
        ("backends/Desk/backend.toml", "url = \"http://127.0.0.1:9000\"\n"),
        ("backends/far/backend.toml", "url = \"http://127.0.0.1:9000\"\nopenapi = \"../../secret\"\n"),
        ("backends/missing/backend.toml", "url = \"http://127.0.0.1:9000\"\nopenapi = \"openapi.yaml\"\n"),
        ("limits.toml", "[tenant]\nper_second = \"many\"\n"),
        ("policy/x.cedar", ""),
        ("policies/x.rego", ""),
        ("filters/f/filter.toml", ""),
        ("templates/default.toml", "ttl = \"soon\"\n"),
    ]);
    insta::assert_snapshot!(shown);
}

#[test]
fn a_named_pipe_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("backends/desk")).expect("makes folders");
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("limits.toml")).expect("links");
    let shown = read(folder.path()).expect_err("is refused").to_string();
    assert!(shown.contains("limits.toml: cannot be read: it is not a regular file"), "{shown}");
}

#[test]
fn editors_get_a_schema_that_refuses_unknown_keys() {
    let schema = schemars::schema_for!(BackendFile);
    assert_eq!(schema.as_value()["additionalProperties"], serde_json::json!(false));
    assert!(schema.as_value()["properties"]["identity"]["description"].as_str().is_some());
}

#[test]
fn a_set_in_shadow_lies_beside_the_one_in_force_and_a_filter_unbuilt_hinders_no_policy() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = [
        ("policies/desk.cedar", "one"),
        ("policies/shadow/desk.cedar", "two"),
        ("policies/tests/desk.toml", "three"),
        ("filters/guard/filter.toml", "phases = []"),
    ];
    write(folder.path(), &written);
    let files = read_for_policies(folder.path()).expect("reads");
    let texts = |texts: &BTreeMap<PolicyName, String>| texts.values().cloned().collect::<Vec<_>>();
    assert_eq!(files.policies.as_ref().map(texts), Some(vec!["one".to_owned()]));
    assert_eq!(
        (texts(&files.shadow_policies), texts(&files.policy_tests)),
        (vec!["two".to_owned()], vec!["three".to_owned()])
    );
    let whole = read(folder.path()).expect_err("the filter has no component").to_string();
    assert!(whole.contains("guard.wasm"), "{whole}");
}
