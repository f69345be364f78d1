// SPDX-License-Identifier: Apache-2.0
//! A filter's author, from an empty folder to a gateway that applies the filter: through the built
//! programs, with nothing of this project beside the folder.

use crate::handmade::{laborious_component, wasi_component};
use crate::running::{Backend, Up, http, postern, programs, project, wait_for};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

/// What the edit puts in the place of what `new` wrote.
const EDITED: &str = r#"
        if request.path().contains("ord-1002") {
            log(Level::Warn, "somebody asked for ord-1002");
            return Rejection::new("not-that-one", "ord-1002 is closed").with_status(410).into();
        }
        // Agents of the example say no reason.
        if self.config.header == "none" {
            return Verdict::Continue;
        }
        match request.header(&self.config.header) {"#;
const CASES: &str = r#"
[[case]]
name = "a closed order is gone"
request = { path = "/orders/ord-1002", headers = { x-reason = "look" } }
expect = { verdict = "reject", status = 410, code = "not-that-one" }
"#;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    // Outside of this project: its toolchain file does not count there.
    let toolchain = project().join("rust-toolchain.toml");
    let channel = fs::read_to_string(toolchain).expect("reads");
    let channel = channel.lines().find_map(|line| line.strip_prefix("channel = ")).expect("has one");
    let output = postern(folder)
        .args(arguments)
        .env("RUSTUP_TOOLCHAIN", channel.trim_matches('"'))
        .output()
        .expect("postern runs");
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {told}");
    output
}

#[test]
fn from_an_empty_folder_to_a_filter_that_the_next_request_meets() {
    let backend = Backend::start();
    let up = Up::by_api(&backend);
    let sandbox = up.sandbox("alice", "c1");
    let id = sandbox["sandbox_id"].as_str().expect("an id");
    let status = |order: &str| up.agent(id, &["GET", &format!("/orders/{order}")])["status"].as_u64();
    assert_eq!(status("ord-1002"), Some(200), "the control: no filter yet");

    run(up.folder.path(), &["filter", "new", "closed-orders"]);
    let folder = up.folder.path().join("closed-orders");
    let code = fs::read_to_string(folder.join("src/lib.rs")).expect("reads");
    let edited = code.replace("        match request.header(&self.config.header) {", EDITED);
    assert_ne!(code, edited);
    fs::write(folder.join("src/lib.rs"), edited).expect("writes");
    let cases = folder.join("tests/cases.toml");
    fs::write(&cases, fs::read_to_string(&cases).expect("reads") + CASES).expect("writes");
    let manifest = folder.join("filter.toml");
    let text = fs::read_to_string(&manifest).expect("reads");

    let at = folder.to_str().expect("is text");
    run(up.folder.path(), &["filter", "build", at]);
    let tested = run(up.folder.path(), &["--json", "filter", "test", at]);
    let tested: Value = serde_json::from_slice(&tested.stdout).expect("is JSON");
    assert_eq!((tested["passed"].as_u64(), tested["failed"].as_u64()), (Some(4), Some(0)), "{tested}");
    fs::write(&manifest, text.replace("header = \"x-reason\"", "header = \"none\"")).expect("writes");
    let pushed = run(up.folder.path(), &["--json", "filter", "push", at, "--attach", "support-desk"]);
    let pushed: Value = serde_json::from_slice(&pushed.stdout).expect("is JSON");
    assert_eq!(pushed["version"], 1, "{pushed}");
    assert_eq!(pushed["attached_to"], serde_json::json!(["support-desk"]), "{pushed}");

    assert_eq!(status("ord-1002"), Some(410), "the very next request");
    assert_eq!(status("ord-1001"), Some(200));
    let logs = wait_for("the filter's log", || {
        let logs = up.told(&["filter", "logs", "closed-orders"]);
        logs["lines"].as_array().is_some_and(|lines| !lines.is_empty()).then_some(logs)
    });
    assert_eq!(logs["lines"][0]["message"], "somebody asked for ord-1002");

    // A second version, and back.
    let source = fs::read_to_string(folder.join("src/lib.rs")).expect("reads");
    fs::write(folder.join("src/lib.rs"), source.replace("ord-1002", "ord-1001")).expect("writes");
    run(up.folder.path(), &["filter", "build", at]);
    run(up.folder.path(), &["filter", "push", at]);
    assert_eq!((status("ord-1001"), status("ord-1002")), (Some(410), Some(200)));
    let back = up.told(&["filter", "rollback", "closed-orders"]);
    assert_eq!(back["filter_version"], 3, "versions only rise: {back}");
    assert_eq!((status("ord-1001"), status("ord-1002")), (Some(200), Some(410)));
    let events = up.told_by("GET", "/events?limit=1000");
    let actions: Vec<_> =
        events["events"].as_array().expect("a list").iter().map(|it| it["action"].clone()).collect();
    assert!(actions.iter().any(|action| action == "filter.rolled-back"), "{actions:?}");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// What asserts that the example's card-guard runs: it refuses a note with a card's number.
fn card_guard(up: &Up) -> impl Fn(&str) {
    let sandbox = up.sandbox("alice", "c1");
    let id = sandbox["sandbox_id"].as_str().expect("an id").to_owned();
    move |what| {
        let note = r#"{"order_id": "ord-1001", "amount": 1.0, "note": "4111 1111 1111 1111"}"#;
        let answer = up.agent(&id, &["POST", "/refunds", note]);
        assert_eq!(answer["status"], 422, "{what}: {answer}");
    }
}

#[test]
fn what_cannot_be_a_filter_is_refused_and_the_last_good_one_serves_on() {
    let backend = Backend::start();
    let up = Up::by_api(&backend);
    let serves = card_guard(&up);
    serves("the control");
    let folder = project().join("examples/support-desk/config/filters/card-guard");
    let manifest = fs::read_to_string(folder.join("filter.toml")).expect("reads");
    let good = fs::read(folder.join("card-guard.wasm")).expect("is built");
    let half = &good[..good.len() / 2];
    let no_export: &[u8] = b"\0asm\x0d\0\x01\0";
    let wasi = wasi_component();
    for (what, component, manifest, wanted) in [
        ("no WebAssembly", &b"#!/bin/sh"[..], manifest.as_str(), "no WebAssembly"),
        ("a forbidden import", &wasi, &manifest, "wasi:clocks/wall-clock@0.2.0"),
        ("no export", no_export, &manifest, "exports no `on-request`"),
        ("half of one", half, &manifest, "malformed"),
        ("a manifest with a typo", &good, "phase = []", "is no key here"),
    ] {
        let body = serde_json::json!({ "manifest": manifest, "component": base64(component) });
        for path in ["/filters/card-guard/versions", "/filters/card-guard"] {
            let method = if path.ends_with("versions") { "POST" } else { "PUT" };
            let answer = up.call(method, path, Some(&body));
            assert_eq!(answer.status, 422, "{what}: {answer:?}");
            assert!(answer.text.contains(wanted), "{what}: {answer:?}");
        }
        serves(what);
    }
    // It compiles, and would call what its manifest does not ask for: the gateway says so.
    let narrow =
        manifest.replace("host = [\"counter\"]", "host = []").replace("counters = [\"refused\"]", "");
    let body = serde_json::json!({ "manifest": narrow, "component": base64(&good) });
    let answer = up.call("PUT", "/filters/card-guard", Some(&body));
    assert!(answer.text.contains("uses `counter`"), "{answer:?}");
    serves("a filter that the gateway refuses");
}

#[test]
fn what_is_too_much_for_the_compiler_is_refused_and_the_last_good_one_serves_on() {
    let mut large = b"\0asm\x0d\0\x01\0".to_vec();
    large.resize(64 * 1024 * 1024 + 1, 0);
    let slow = laborious_component(2_000, 3_000);
    too_much(
        &[("POSTERN_FILTER_COMPILE_CPU", "3s")],
        &[(large, "the component is larger than 64 MiB"), (slow, "compiling took longer than 3s")],
    );
    let hungry = laborious_component(1, 500_000);
    too_much(
        &[("POSTERN_FILTER_COMPILE_MEMORY", "256MiB")],
        &[(hungry, "may have needed more than 256 MiB")],
    );
}

/// Each of these components is refused within these bounds, with its words, and changes nothing.
fn too_much(bounds: &[(&str, &str)], components: &[(Vec<u8>, &str)]) {
    let backend = Backend::start();
    let up = Up::by_api_with(&backend, bounds);
    let serves = card_guard(&up);
    serves("the control: card-guard itself was compiled within these bounds");
    let manifest = project().join("examples/support-desk/config/filters/card-guard/filter.toml");
    let manifest = fs::read_to_string(manifest).expect("reads");
    for (component, wanted) in components {
        let body = serde_json::json!({ "manifest": manifest, "component": base64(component) });
        let answer = up.call("PUT", "/filters/card-guard", Some(&body));
        assert_eq!(answer.status, 422, "{wanted}: {answer:?}");
        assert!(answer.text.contains(wanted), "{wanted}: {answer:?}");
        let versions = up.told_by("GET", "/filters/card-guard/versions");
        assert_eq!(versions["in_force"], 1, "{wanted}: {versions}");
        serves(wanted);
    }
}

#[test]
fn pushing_and_putting_in_force_are_two_rights_and_versions_only_rise() {
    let backend = Backend::start();
    let up = Up::by_api(&backend);
    let developer = up.told(&["key", "create", "--role", "developer"]);
    let developer = format!("Bearer {}", developer["key"].as_str().expect("a key"));
    let as_developer = |path: &str, body: &Value| {
        http(&up.written("url"), "POST", path, &[("Authorization", &developer)], Some(body))
    };
    let folder = project().join("examples/support-desk/config/filters/card-guard");
    let manifest = fs::read_to_string(folder.join("filter.toml")).expect("reads");
    let component = base64(&fs::read(folder.join("card-guard.wasm")).expect("is built"));
    let version = |comment: &str| serde_json::json!({ "manifest": format!("# {comment}\n{manifest}"), "component": component });
    let pushed = as_developer("/filters/card-guard/versions", &version("two"));
    assert_eq!((pushed.status, pushed.json()["version"].as_i64()), (201, Some(2)), "{pushed:?}");
    let again = as_developer("/filters/card-guard/versions", &version("two"));
    assert_eq!(again.json()["version"], 2, "the same is the same");
    let refused = as_developer("/filters/card-guard/activate", &serde_json::json!({}));
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"), "{refused:?}");
    let in_force = || up.told_by("GET", "/filters/card-guard/versions")["in_force"].as_i64();
    assert_eq!(in_force(), Some(1));
    assert_eq!(up.told(&["filter", "activate", "card-guard"])["filter_version"], 2);
    let older = up.call("POST", "/filters/card-guard/activate", Some(&serde_json::json!({ "version": 1 })));
    assert!(older.status == 409 && older.text.contains("rollback"), "{older:?}");
    assert_eq!(up.told(&["filter", "rollback", "card-guard"])["filter_version"], 3);
    // Each of the two alone: who pushes does not activate, and who activates does nothing else.
    let key = |role: &str| {
        let made = up.told(&["key", "create", "--role", role]);
        format!("Bearer {}", made["key"].as_str().expect("a key"))
    };
    let (pusher, activator) = (key("filters:push"), key("filters:activate"));
    let call = |key: &str, method: &str, path: &str, body: Option<&Value>| {
        http(&up.written("url"), method, path, &[("Authorization", key)], body).status
    };
    let (push, activate) = ("/filters/card-guard/versions", "/filters/card-guard/activate");
    let (newer, nothing) = (version("four"), serde_json::json!({}));
    assert_eq!(call(&activator, "POST", push, Some(&newer)), 403);
    assert_eq!(call(&pusher, "POST", push, Some(&newer)), 201);
    assert_eq!(call(&pusher, "POST", activate, Some(&nothing)), 403);
    assert_eq!(in_force(), Some(3), "it is pushed and not in force");
    for key in [&pusher, &activator] {
        assert_eq!(call(key, "GET", push, None), 200, "both see what there is");
        assert_eq!(call(key, "PUT", "/filters/card-guard", Some(&newer)), 403, "both in one");
        for path in ["/keys", "/secrets", "/sandbox", "/policies", "/events"] {
            assert_eq!(call(key, "GET", path, None), 403, "{path}");
        }
        let without = up.told_by("GET", "/backends/support-desk");
        assert_eq!(call(key, "PUT", "/backends/support-desk", Some(&without)), 403);
    }
    assert_eq!(call(&activator, "POST", activate, Some(&nothing)), 422, "which, it has to say");
    assert_eq!(in_force(), Some(3));
    let fourth = serde_json::json!({ "version": 4 });
    assert_eq!(call(&activator, "POST", activate, Some(&fourth)), 200);
    assert_eq!(in_force(), Some(4));
    // Removal does not begin at one again.
    let mut without = up.told_by("GET", "/backends/support-desk");
    without["backend"]["filters"] = serde_json::json!([]);
    assert_eq!(up.call("PUT", "/backends/support-desk", Some(&without)).status, 200);
    assert_eq!(up.call("DELETE", "/filters/card-guard", None).status, 204);
    assert_eq!(in_force(), None);
    assert_eq!(up.call("PUT", "/filters/card-guard", Some(&version("again"))).status, 201);
    assert_eq!(in_force(), Some(5));
}

#[test]
fn what_is_wrong_with_a_filter_is_said_with_what_to_do() {
    let place = tempfile::tempdir().expect("a folder");
    let told = |arguments: &[&str]| {
        let output = postern(place.path()).args(arguments).output().expect("runs");
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(told(&["filter", "build", "."]).contains("postern filter new"));
    fs::write(place.path().join("filter.toml"), "phases = [\"request\"]\n").expect("writes");
    let nameless = told(&["filter", "test", "."]);
    assert!(nameless.contains("tests/cases.toml") || nameless.contains("cannot name a filter"), "{nameless}");
}

#[test]
fn first_party_filters_pass_their_cases_as_a_tenants_do() {
    let place = tempfile::tempdir().expect("a folder");
    let mut count = 0;
    for entry in fs::read_dir(project().join("plugins")).expect("reads") {
        let plugin = entry.expect("reads").path();
        let name = plugin.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let folder = place.path().join(&name);
        fs::create_dir_all(folder.join("tests")).expect("makes folders");
        fs::copy(plugin.join("filter.toml"), folder.join("filter.toml")).expect("copies");
        fs::copy(plugin.join("tests/cases.toml"), folder.join("tests/cases.toml")).expect("has cases");
        let component = programs().join("filters").join(format!("{name}.wasm"));
        fs::copy(component, folder.join(format!("{name}.wasm"))).expect("is built");
        run(place.path(), &["filter", "test", folder.to_str().expect("is text")]);
        count += 1;
    }
    assert_eq!(count, 6);
    // What passes because nothing is looked at would pass this too.
    let folder = place.path().join("card-guard");
    let wrong = "[[case]]\nname = \"wrong\"\nrequest = { json = {} }\nexpect = { verdict = \"reject\" }\n";
    fs::write(folder.join("tests/cases.toml"), wrong).expect("writes");
    let output = postern(place.path()).args(["filter", "test"]).arg(&folder).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && told.contains("verdict: expected `reject`, got `continue`"),
        "{told}"
    );
}

#[test]
fn a_push_into_a_watched_folder_s_tenant_says_where_to_copy_it() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let folder = project().join("examples/support-desk/config/filters/card-guard");
    let output = up.postern(&["filter", "push", folder.to_str().expect("is text")]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("owned-elsewhere") && told.contains("copy"), "{told}");
}
