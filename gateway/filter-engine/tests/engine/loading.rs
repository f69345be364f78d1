// SPDX-License-Identifier: Apache-2.0
//! What is loaded, and what is refused before it runs.

use crate::fixture::{compiled, engine, load, load_with, manifest, sign};
use postern_common::id::{FilterName, TenantId};
use postern_filter_engine::LoadFilterError;
use postern_filter_engine::artefact::{Expected, RefusedArtefact};

fn load_as(artefact: &[u8], tenant: &str, name: &str, manifest: &str) -> Result<(), LoadFilterError> {
    let tenant = TenantId::parse(tenant).expect("a name");
    let name = FilterName::parse(name).expect("a name");
    let expected = Expected { tenant: &tenant, name: &name, version: 1, manifest };
    engine().load(artefact, &expected).map(drop)
}

fn reason(result: Result<(), LoadFilterError>) -> RefusedArtefact {
    match result {
        Err(LoadFilterError::Refused { reason, .. }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_loaded_filter_says_what_was_signed() {
    let filter = load(&engine(), "claim-injection");
    assert_eq!(filter.statement().name.as_str(), "claim-injection");
    assert_eq!(filter.statement().tenant.as_str(), "acme");
    assert_eq!(filter.statement().fingerprint, engine().fingerprint());
}

#[test]
fn an_artefact_of_another_tenant_is_refused() {
    let text = manifest("claim-injection");
    let artefact = sign(&compiled("claim-injection"), ("evil", "claim-injection"), 1, &text);
    assert!(matches!(
        reason(load_as(&artefact, "acme", "claim-injection", &text)),
        RefusedArtefact::OtherTenant(_)
    ));
}

#[test]
fn native_code_that_was_changed_after_signing_is_never_loaded() {
    let text = manifest("claim-injection");
    let mut artefact = sign(&compiled("claim-injection"), ("acme", "claim-injection"), 1, &text);
    let middle = artefact.len() / 2;
    artefact[middle] ^= 0x80;
    assert_eq!(reason(load_as(&artefact, "acme", "claim-injection", &text)), RefusedArtefact::Code);
}

#[test]
fn a_manifest_that_was_widened_after_signing_is_refused() {
    let text = manifest("card-guard");
    let artefact = sign(&compiled("card-guard"), ("acme", "card-guard"), 1, &text);
    let wider = text.replace("host = [\"counter\"]", "host = [\"counter\", \"session\"]");
    assert_ne!(text, wider);
    assert_eq!(reason(load_as(&artefact, "acme", "card-guard", &wider)), RefusedArtefact::Manifest);
}

#[test]
fn a_host_function_that_the_manifest_does_not_ask_for_is_named() {
    let narrow = "phases = [\"request\"]";
    let refused = load_with(&engine(), "claim-injection", "acme", narrow).map(drop);
    match refused {
        Err(LoadFilterError::NotAskedFor { function, .. }) => assert_eq!(function, "session"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_manifest_with_mistakes_is_refused_with_all_of_them() {
    let refused = load_with(&engine(), "card-guard", "acme", "phase = []\nhosts = []").map(drop);
    match refused {
        Err(LoadFilterError::Manifest { mistakes, .. }) => assert_eq!(mistakes.0.len(), 3),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn signed_bytes_that_are_no_code_are_refused() {
    let text = manifest("card-guard");
    let artefact = sign(&[0; 500], ("acme", "card-guard"), 1, &text);
    assert!(matches!(load_as(&artefact, "acme", "card-guard", &text), Err(LoadFilterError::Code { .. })));
}

#[test]
fn code_of_a_later_contract_is_refused_by_its_version() {
    let text = manifest("claim-injection");
    let of = ("acme", "claim-injection");
    let mut code = compiled("claim-injection").to_vec();
    assert!(load_as(&sign(&code, of, 1, &text), "acme", "claim-injection", &text).is_ok(), "the control");
    let places: Vec<usize> =
        code.windows(6).enumerate().filter(|(_, it)| *it == b"@1.0.0").map(|(place, _)| place).collect();
    places.into_iter().for_each(|place| code[place..place + 6].copy_from_slice(b"@1.3.0"));
    match load_as(&sign(&code, of, 1, &text), "acme", "claim-injection", &text) {
        Err(LoadFilterError::OtherContract { import, .. }) => assert!(import.ends_with("@1.3.0"), "{import}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
