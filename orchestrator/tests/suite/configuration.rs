// SPDX-License-Identifier: Apache-2.0
//! What a tenant owns: checked whole, changed all or nothing, one owner, `ETag`s, secrets.

use crate::bench::{Bench, new_folder};
use http::{Method, StatusCode};
use postern_common::folder::TenantFiles;
use postern_common::id::TenantId;
use postern_orchestrator::Claim;
use postern_orchestrator::configuration::{ConfigurationError, Edited};
use serde_json::{Value, json};
use std::path::Path;

const DOCUMENT: &str = r#"{"openapi": "3.1.0", "info": {"title": "desk", "version": "1"}, "paths": {
    "/orders": {"get": {"operationId": "listOrders", "responses": {}}},
    "/refunds": {"post": {"operationId": "createRefund", "responses": {}}}}}"#;

fn desk() -> Value {
    json!({ "backend": { "url": "http://desk.internal:8080/api", "openapi": "openapi.yaml", "credential": "desk-token" }, "document": DOCUMENT })
}

fn whole() -> Value {
    json!({
        "backends": { "desk": desk() },
        "policies": { "desk": "@id(\"reads\") permit (principal, action in desk::Action::\"read\", resource);" },
        "templates": { "default": { "operations": ["desk/read"], "ttl": "30m" } },
    })
}

fn name(text: &str) -> TenantId {
    TenantId::parse(text).expect("a name")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_applied_whole_and_told_to_gateways() {
    let bench = Bench::without_sandboxes().await;
    let tried = bench.post("/apply?dry_run", whole()).await.json();
    assert_eq!((tried["dry_run"].clone(), tried["changes"].as_array().map(Vec::len)), (json!(true), Some(3)));
    assert_eq!(bench.get("/backends").await.json()["backends"], json!([]), "only tried");

    let applied = bench.post("/apply", whole()).await;
    assert_eq!(applied.status, StatusCode::OK, "{}", applied.text);
    assert_eq!(applied.json()["gateways_in_force"], 1);
    let told = bench.told().tenants.last().expect("was told").clone();
    assert_eq!(told.backends.len(), 1);
    assert!(told.policies.as_ref().is_some_and(|policies| policies.len() == 1));

    let again = bench.post("/apply", whole()).await.json();
    assert_eq!(again["changes"], json!([]), "nothing differs");
    let added = json!({ "templates": { "small": { "operations": [], "memory": "64MiB" } } });
    let changes = bench.post("/apply", added.clone()).await.json()["changes"].clone();
    assert_eq!(
        changes,
        json!([{ "kind": "template", "name": "small", "change": "added" }]),
        "without prune nothing goes"
    );
    let mut pruned = whole();
    pruned["policies"] = Value::Null;
    let changes = bench.post("/apply?prune=true", pruned).await.json()["changes"].clone();
    assert_eq!(
        changes,
        json!([{ "kind": "policy", "name": "desk", "change": "removed" }, { "kind": "template", "name": "small", "change": "removed" }])
    );
    assert!(bench.told().tenants.last().expect("was told").policies.is_none(), "the baseline's permit again");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_is_told_at_once_and_nothing_is_activated() {
    let bench = Bench::without_sandboxes().await;
    bench.post("/apply", whole()).await;
    let before = bench.told().tenants.len();
    let wrong = json!({
        "backends": {
            "desk": { "backend": { "url": "ftp://user@desk", "openapi": "openapi.yaml", "filters": ["nothing"],
                "operations": { "listOrder": { "per_second": 0.0 } } }, "document": DOCUMENT },
        },
        "policies": { "desk": "@id(\"a\") permit (principal, action == desk::Action::\"listOrder\", resource);" },
        "templates": { "default": { "operations": ["desk/unheard"], "cpu": -1.0, "ttl": "48h", "env": { "SANDBOX_ID": "x", "1A": "y" } } },
        "limits": { "session": { "per_second": -1.0 } },
    });
    let refused = bench.post("/apply", wrong).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-input")
    );
    let errors = refused.json()["errors"].clone();
    let pointers: Vec<&str> =
        errors.as_array().expect("a list").iter().filter_map(|error| error["pointer"].as_str()).collect();
    for place in [
        "/backends/desk/backend/url",
        "/backends/desk/backend/filters",
        "/backends/desk/backend/operations/listOrder",
        "/policies/desk",
        "/templates/default/operations/0",
        "/templates/default/cpu",
        "/templates/default/ttl",
        "/templates/default/env/SANDBOX_ID",
        "/templates/default/env/1A",
        "/limits/session/per_second",
    ] {
        assert!(pointers.contains(&place), "{place} is not in {pointers:?}");
    }
    assert_eq!(bench.told().tenants.len(), before, "gateways heard nothing");
    assert_eq!(bench.get("/templates/default").await.json()["ttl"], "30m", "what was in force still is");
    let unknown = bench.post("/apply", json!({ "backend": {} })).await;
    assert_eq!(unknown.code(), "invalid-input", "an unknown field is a mistake");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_refuses_is_refused_when_it_is_put() {
    let bench = Bench::without_sandboxes().await;
    let words = "backends/desk: `desk.internal:8080` is not in gateway.upstreams.allow";
    bench.told().refuses = Some(vec![words.to_owned(), "no place: is named here".to_owned()]);
    for (method, path, body) in [
        (Method::POST, "/apply", whole()),
        (Method::POST, "/apply?dry_run", whole()),
        (Method::PUT, "/backends/desk", desk()),
    ] {
        let refused = bench.call(method, path, body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {}", refused.text);
        let errors = refused.json()["errors"].clone();
        assert_eq!(errors[0]["pointer"], "/backends/desk", "{path}");
        assert!(errors[0]["message"].as_str().is_some_and(|text| text.contains("upstreams.allow")));
        assert_eq!(errors[1], json!({ "pointer": "", "message": "no place: is named here" }));
    }
    assert_eq!(bench.get("/backends").await.json()["backends"], json!([]), "nothing was stored");
    assert!(bench.told().tenants.is_empty(), "and nothing told");
    bench.told().refuses = None;
    assert_eq!(bench.post("/apply", whole()).await.json()["gateways_in_force"], 1);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_changes_at_the_same_time_gateways_end_with_the_last() {
    let bench = Bench::without_sandboxes().await;
    let puts = (0..6).map(|number| {
        let path = format!("/templates/t{number}");
        let bench = &bench;
        async move {
            let secret = bench.put("/secrets/desk-token", json!({ "value": format!("v{number}") })).await;
            assert_eq!(secret.status, StatusCode::NO_CONTENT, "{}", secret.text);
            bench.put(&path, json!({ "operations": [] })).await.status
        }
    });
    let statuses = futures_util::future::join_all(puts).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::CREATED), "{statuses:?}");
    let revisions: Vec<u64> = bench.told().tenants.iter().map(|tenant| tenant.revision).collect();
    assert!(revisions.is_sorted(), "{revisions:?}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_rests_on_what_its_author_saw() {
    let bench = Bench::without_sandboxes().await;
    let put = async |headers: &[(&str, &str)], ttl: &str| {
        let bearer = format!("Bearer {}", bench.key);
        let all: Vec<(&str, &str)> =
            headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        bench
            .send(Method::PUT, "/templates/small", &all, &json!({ "ttl": ttl, "operations": [] }).to_string())
            .await
    };
    assert_eq!(put(&[("if-match", "*")], "1m").await.code(), "precondition-failed", "it is not there yet");
    let made = put(&[("if-none-match", "*")], "1m").await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(put(&[("if-none-match", "*")], "2m").await.code(), "precondition-failed", "it is there");
    let tag = made.etag();
    let shown = bench.get("/templates/small").await;
    assert_eq!((shown.etag(), shown.json()["ttl"].clone()), (tag.clone(), json!("1m")));
    let bearer = format!("Bearer {}", bench.key);
    let known = bench
        .send(Method::GET, "/templates/small", &[("authorization", &bearer), ("if-none-match", &tag)], "")
        .await;
    assert_eq!((known.status, known.text.as_str()), (StatusCode::NOT_MODIFIED, ""));

    let changed = put(&[("if-match", &tag)], "2m").await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_ne!(changed.etag(), tag);
    assert_eq!(
        put(&[("if-match", &tag)], "3m").await.code(),
        "precondition-failed",
        "somebody changed it since"
    );
    let stale = bench
        .send(Method::DELETE, "/templates/small", &[("authorization", &bearer), ("if-match", &tag)], "")
        .await;
    assert_eq!(stale.code(), "precondition-failed");
    assert_eq!(bench.delete("/templates/small").await.status, StatusCode::NO_CONTENT);
    assert_eq!(bench.delete("/templates/small").await.code(), "not-found");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_folder_and_the_api_never_both_own_a_tenant() {
    let bench = Bench::without_sandboxes().await;
    let folder = bench.folder.path().join("config");
    let files: TenantFiles = serde_json::from_value(whole()).expect("files");
    let applied = apply(&bench, "default", &folder, &files, Claim::Own).await.expect("applies");
    assert_eq!(applied.changes.len(), 3);
    for (method, path, body) in [
        (Method::POST, "/apply", whole()),
        (Method::PUT, "/templates/small", json!({})),
        (Method::PUT, "/policies/other", json!({ "text": "" })),
        (Method::DELETE, "/backends/desk", Value::Null),
    ] {
        let refused = bench.call(method, path, body).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (StatusCode::CONFLICT, "owned-elsewhere"),
            "{path}"
        );
        assert!(refused.field("detail").contains("watched folder"), "it says who: {}", refused.text);
    }
    let secret = bench.put("/secrets/desk-token", json!({ "value": "s3cret" })).await;
    assert_eq!(secret.status, StatusCode::NO_CONTENT, "secrets never lie in a folder");
    let other = bench.folder.path().join("elsewhere");
    let refused = apply(&bench, "default", &other, &files, Claim::Own).await;
    assert!(matches!(refused, Err(ConfigurationError::OwnedElsewhere { .. })), "{refused:?}");

    bench.post("/tenants", json!({ "name": "acme" })).await;
    let refused = apply(&bench, "acme", &folder, &files, Claim::Own).await;
    assert!(
        matches!(refused, Err(ConfigurationError::OwnedElsewhere { .. })),
        "the API owns it: {refused:?}"
    );
    bench.orchestrator.release_folder(&name("default")).await.expect("lets go");
    assert_eq!(bench.put("/templates/small", json!({})).await.status, StatusCode::CREATED);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_gets_back_what_nobody_changed_and_takes_over_only_when_told_to() {
    let bench = Bench::without_sandboxes().await;
    let files: TenantFiles = serde_json::from_value(whole()).expect("files");
    let (own, other) = (bench.folder.path().join("config"), bench.folder.path().join("elsewhere"));
    let is_refused = |found: &Result<_, _>| matches!(found, Err(ConfigurationError::OwnedElsewhere { .. }));
    apply(&bench, "default", &own, &files, Claim::Own).await.expect("applies");
    bench.orchestrator.release_folder(&name("default")).await.expect("lets go");
    bench.orchestrator.release_folder(&name("default")).await.expect("once more changes nothing");
    // Edited while it did not own the tenant: nobody else has changed anything.
    let with = |template: Value, policy: &str| {
        let mut whole = whole();
        whole["templates"]["default"] = template;
        whole["policies"]["more"] = policy.into();
        serde_json::from_value::<TenantFiles>(whole).expect("files")
    };
    let edited = with(json!({ "ttl": "20m" }), "");
    let refused = apply(&bench, "default", &other, &edited, Claim::Own).await;
    assert!(is_refused(&refused), "another folder never had it: {refused:?}");
    apply(&bench, "default", &own, &edited, Claim::Own).await.expect("has it back");
    apply(&bench, "default", &own, &files, Claim::Own).await.expect("owns it");

    bench.orchestrator.release_folder(&name("default")).await.expect("lets go");
    apply(&bench, "default", &other, &files, Claim::Own).await.expect("says what is in force already");
    bench.orchestrator.release_folder(&name("default")).await.expect("lets go");
    assert_eq!(bench.put("/templates/of-the-api", json!({})).await.status, StatusCode::CREATED);
    let refused = apply(&bench, "default", &other, &files, Claim::Own).await;
    assert!(is_refused(&refused), "the API has changed it: {refused:?}");
    let wrong = apply(&bench, "default", &other, &with(json!({}), "permit ("), Claim::TakeOver).await;
    assert!(matches!(wrong, Err(ConfigurationError::Mistakes(_))), "{wrong:?}");
    let put = bench.put("/templates/of-the-api", json!({ "ttl": "10m" })).await;
    assert_eq!(put.status, StatusCode::OK, "what is wrong takes nothing over: {}", put.text);
    let taken = apply(&bench, "default", &other, &files, Claim::TakeOver).await.expect("was told to");
    assert!(taken.changes.iter().any(|change| change.name == "of-the-api"), "{taken:?}");
    let refused = bench.put("/templates/of-the-api", json!({})).await;
    assert_eq!(refused.code(), "owned-elsewhere");
    apply(&bench, "default", &own, &files, Claim::TakeOver).await.expect("also from another folder");
    bench.close().await;
}

async fn apply(
    bench: &Bench,
    tenant: &str,
    folder: &Path,
    files: &TenantFiles,
    claim: Claim,
) -> Result<Edited, ConfigurationError> {
    bench.orchestrator.apply_folder(&name(tenant), folder, files.clone(), claim).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_reaches_the_gateways_that_need_it_and_nobody_else() {
    let bench = Bench::without_sandboxes().await;
    bench.post("/apply", whole()).await;
    for (name, value) in [("desk-token", "hunter2-of-the-desk"), ("unused", "hunter3-of-nobody")] {
        let set = bench.put(&format!("/secrets/{name}"), json!({ "value": value })).await;
        assert_eq!((set.status, set.text.as_str()), (StatusCode::NO_CONTENT, ""));
    }
    let told = bench.told().tenants.last().expect("was told").clone();
    let names: Vec<&str> = told.secrets.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["desk-token"], "only what a credential names");
    assert_eq!(told.secrets.values().next().expect("one").reveal(), "hunter2-of-the-desk");
    assert!(!format!("{told:?}").contains("hunter2"), "debug output shows none");

    for path in ["/secrets", "/events", "/backends/desk", "/keys"] {
        assert!(!bench.get(path).await.text.contains("hunter"), "{path}");
    }
    assert_eq!(
        bench.get("/secrets/desk-token").await.code(),
        "method-not-allowed",
        "there is no way to read one"
    );
    for file in walk(&bench.data()) {
        let bytes = std::fs::read(&file).expect("readable");
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "in {}", file.display());
    }
    assert_eq!(bench.delete("/secrets/desk-token").await.status, StatusCode::NO_CONTENT);
    assert!(bench.told().tenants.last().expect("was told").secrets.is_empty());
    bench.close().await;
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("readable").flatten();
    entries
        .flat_map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_an_installation_are_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::without_sandboxes().await;
    bench.put("/secrets/a", json!({ "value": "b" })).await;
    let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&bench.data()), 0o700);
    for file in walk(&bench.data()).iter().chain(&[bench.folder.path().join("key")]) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backend_url_makes_the_default_backend() {
    let bench = Bench::open(new_folder(), false, |config| {
        config.backend_url = Some("http://127.0.0.1:9999".parse().expect("a URL"));
    })
    .await;
    let told = bench.told().snapshots[0].tenants.clone();
    let tenant = told.iter().find(|tenant| tenant.tenant.as_str() == "default").expect("is there");
    assert_eq!(tenant.default_backend.as_ref().map(ToString::to_string).as_deref(), Some("default"));
    assert_eq!(bench.get("/backends").await.json()["backends"][0]["name"], "default");
    let body =
        json!({ "user_id": "a", "conversation_id": "c", "operations": ["default/write", "default/unheard"] });
    let refused = bench.post("/sandbox", body).await;
    assert_eq!(refused.json()["errors"][0]["pointer"], "/operations/1", "{}", refused.text);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_template_asks_for_more_than_the_operator_allows() {
    let bench = Bench::open(new_folder(), false, |config| {
        config.caps.memory = serde_json::from_value(json!("1GiB")).expect("a size");
        config.caps.ttl = std::time::Duration::from_secs(2 * 3600);
    })
    .await;
    let greedy = json!({
        "operations": [], "memory": "64GiB", "cpu": 1e9, "pids": 4_000_000_000_u32, "disk": "1TiB", "ttl": "23h"
    });
    let refused = bench.put("/templates/greedy", greedy).await;
    assert_eq!(refused.code(), "invalid-input", "{}", refused.text);
    insta::assert_json_snapshot!(refused.json()["errors"]);
    let within = json!({ "operations": [], "memory": "1GiB", "ttl": "2h" });
    assert_eq!(bench.put("/templates/within", within).await.status, StatusCode::CREATED);
    let long = json!({ "user_id": "a", "conversation_id": "c", "ttl": "3h" });
    let refused = bench.post("/sandbox", long).await;
    assert_eq!(refused.json()["errors"][0]["pointer"], "/ttl", "{}", refused.text);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_tenant_s_name_and_files_are_nobody_s() {
    let bench = Bench::without_sandboxes().await;
    assert_eq!(bench.post("/tenants", json!({ "name": "acme" })).await.status, StatusCode::CREATED);
    let files = bench.data().join("files/tenants/acme/users/alice/files");
    std::fs::create_dir_all(&files).expect("makes folders");
    std::fs::write(files.join("letter"), "of alice").expect("writes");
    assert_eq!(bench.delete("/tenants/acme").await.status, StatusCode::NO_CONTENT);
    let again = bench.post("/tenants", json!({ "name": "acme" })).await;
    assert_eq!((again.status, again.code().as_str()), (StatusCode::CONFLICT, "state-conflict"));
    assert!(again.field("detail").contains("never given again"), "{}", again.text);
    let tenant = bench.data().join("files/tenants/acme");
    crate::bench::until("its files are erased", async || !tenant.exists()).await;
    assert_eq!(bench.delete("/tenants/acme").await.code(), "not-found");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_s_env_is_sealed_and_only_its_names_are_shown() {
    let bench = Bench::real().await;
    let template = json!({ "operations": [], "env": { "API_TOKEN": "hunter4-of-the-template" } });
    let made = bench.put("/templates/small", template.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let again = bench.put("/templates/small", template.clone()).await;
    assert_eq!((again.json()["changes"].clone(), again.etag()), (json!([]), made.etag()), "the same");
    let mut other = template;
    other["env"]["API_TOKEN"] = json!("hunter5-of-the-template");
    let changed = bench.put("/templates/small", other).await;
    assert_ne!(changed.etag(), made.etag(), "another value is another template");

    let shown = bench.get("/templates/small").await;
    assert_eq!(shown.json()["env_names"], json!(["API_TOKEN"]));
    let back = bench.put("/templates/small", shown.json()).await;
    assert_eq!(back.code(), "invalid-input", "what is shown is not what can be put: {}", back.text);
    for path in ["/templates", "/templates/small", "/events"] {
        assert!(!bench.get(path).await.text.contains("hunter"), "{path}");
    }
    for file in walk(&bench.data()) {
        let bytes = std::fs::read(&file).expect("readable");
        assert!(!bytes.windows(6).any(|window| window == b"hunter"), "in {}", file.display());
    }
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "template": "small" });
    let sandbox = bench.post("/sandbox?wait=running", body).await;
    assert_eq!(sandbox.status, StatusCode::CREATED, "{}", sandbox.text);
    let inside = bench.shell(&sandbox.field("sandbox_id"), "printf %s \"$API_TOKEN\"").await;
    assert_eq!(inside, "hunter5-of-the-template");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applied_configuration_rests_on_the_version_that_was_compared_with() {
    let bench = Bench::without_sandboxes().await;
    bench.put("/templates/other", json!({ "operations": [] })).await;
    let tried = bench.post("/apply?dry_run", whole()).await.json();
    assert_eq!(tried["kept"], json!([{ "kind": "template", "name": "other" }]), "the body lacks it");
    let version = tried["version"].as_i64().expect("a number");
    bench.put("/templates/third", json!({ "operations": [] })).await;
    let late = bench.post(&format!("/apply?version={version}"), whole()).await;
    assert_eq!((late.status, late.code().as_str()), (StatusCode::PRECONDITION_FAILED, "precondition-failed"));
    assert_eq!(bench.get("/backends").await.json()["backends"], json!([]));
    let now = version + 1;
    let pruned = bench.post(&format!("/apply?prune&version={now}"), whole()).await;
    assert_eq!(pruned.status, StatusCode::OK, "{}", pruned.text);
    assert_eq!(pruned.json().get("kept"), None, "nothing stays");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_test_of_policies_refuses_a_whole_configuration_with_file_and_case() {
    let bench = Bench::without_sandboxes().await;
    let case = |expect: &str| {
        format!(
            "[[case]]\nname = \"orders are read\"\noperation = \"desk/listOrders\"\nexpect = \"{expect}\"\n"
        )
    };
    let with = |text: String| {
        let mut all = whole();
        all["policy_tests"] = json!({ "desk": text });
        all
    };
    let refused = bench.post("/apply", with(case("deny"))).await;
    assert_eq!(refused.code(), "invalid-input", "{}", refused.text);
    let error = refused.json()["errors"][0].clone();
    assert_eq!(error["pointer"], "/policy_tests/desk");
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("policies/tests/desk.toml") && message.contains("orders are read"), "{message}");
    let unread = bench.post("/apply", with("[[case]]\nnome = \"x\"\n".to_owned())).await;
    assert_eq!(unread.json()["errors"][0]["pointer"], "/policy_tests/desk", "{}", unread.text);
    assert_eq!(bench.post("/apply", with(case("allow"))).await.status, StatusCode::OK);
    let stricter = json!({ "text": "@id(\"none\") forbid (principal, action, resource);" });
    let part = bench.put("/policies/desk", stricter).await;
    assert_eq!(part.status, StatusCode::OK, "one part is put before the other: {}", part.text);
    bench.close().await;
}
