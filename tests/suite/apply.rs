// SPDX-License-Identifier: Apache-2.0
//! `postern apply` against a running `up`: the difference first, then all or nothing.

use crate::running::{Backend, Up, copy_folder, postern};
use serde_json::json;
use std::fs;

#[test]
fn what_a_gateway_may_not_reach_is_refused_and_what_it_may_is_put_in_force() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    assert_eq!(up.call("POST", "/tenants", Some(&json!({ "name": "acme" }))).status, 201);
    // The watched folder is another tenant's, and its backend the only one that may be reached.
    let config = up.folder.path().join("acme");
    copy_folder(&up.config(), &config);
    let other = up.call("PUT", "/templates/other?tenant=acme", Some(&json!({ "operations": [] })));
    assert_eq!(other.status, 201, "{other:?}");
    let apply = |arguments: &[&str]| {
        let mut command = postern(up.folder.path());
        let output = command.args(["--tenant", "acme", "apply"]).arg(&config).args(arguments).output();
        let output = output.expect("postern runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let file = config.join("backends/support-desk/backend.toml");
    let good = fs::read_to_string(&file).expect("reads");
    fs::write(&file, good.replace(&format!("127.0.0.1:{}", backend.port), "127.0.0.1:1")).expect("writes");
    for arguments in [&["--dry-run"][..], &[]] {
        let (code, told, errors) = apply(arguments);
        assert_eq!(code, Some(1), "{told}{errors}");
        assert!(errors.contains("/backends/support-desk") && errors.contains("upstreams.allow"), "{errors}");
    }
    assert_eq!(up.call("GET", "/backends?tenant=acme", None).json()["backends"], json!([]));

    fs::write(&file, &good).expect("writes");
    let (code, told, errors) = apply(&["--dry-run"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(told.contains("+ backend support-desk") && told.contains("nothing was changed"), "{told}");
    let (code, told, errors) = apply(&[]);
    assert_eq!(code, Some(0), "{errors}");
    let (difference, rest) = told.split_once("differ\n").expect("the difference is told");
    assert!(difference.contains("+ backend support-desk"), "{told}");
    assert!(difference.contains("template other stays"), "{told}");
    assert!(rest.contains("is in force") && rest.contains("--prune"), "{told}");
    let (_, told, _) = apply(&["--prune"]);
    assert!(told.contains("- template other") && told.contains("1 differs"), "{told}");
}
