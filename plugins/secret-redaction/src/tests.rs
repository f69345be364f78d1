// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_sdk_wasm::harness::{Case, Outcome};

/// Made up; each has the form of its kind.
const SECRETS: [&str; 7] = [
    "AKIAABCDEFGHIJKLMNOP",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-abcdefghijklmnopqrstuvwx",
    "xoxb-1234567890-abcdefghijklmnop",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl",
    "acme_live_12345678",
    "-----BEGIN RSA PRIVATE KEY-----\\nMIIEow\\nIBAAKC\\n-----END RSA PRIVATE KEY-----",
];

fn run(parts: &[&[u8]]) -> (String, Vec<Outcome>) {
    let config = serde_json::json!({"prefixes": ["acme_live_"]});
    let (passed, outcomes) =
        Case::get("/tickets").config(config).run_parts::<SecretRedaction>(parts).expect("runs");
    (String::from_utf8(passed).expect("is text"), outcomes)
}

#[test]
fn every_kind_of_secret_is_blanked_and_counted() {
    for secret in SECRETS {
        let text = format!("{{\"note\":\"use {secret} today\"}}");
        let (passed, outcomes) = run(&[text.as_bytes()]);
        assert_eq!(passed, r#"{"note":"use [redacted] today"}"#, "{secret}");
        assert_eq!(outcomes[0].counters.get("redacted"), Some(&1), "{secret}");
    }
}

#[test]
fn a_secret_that_a_stream_cuts_anywhere_is_still_blanked() {
    for secret in SECRETS {
        let text = format!("data: {secret}\n\ndata: more\n\n");
        for cut in 0..=text.len() {
            let (begin, end) = text.as_bytes().split_at(cut);
            let (passed, _) = run(&[begin, end, b""]);
            assert_eq!(passed, "data: [redacted]\n\ndata: more\n\n", "{secret} cut at {cut}");
        }
    }
}

#[test]
fn a_secret_behind_something_that_only_looks_like_its_beginning_is_found() {
    let (passed, _) = run(&[b"task-sk-abcdefghijklmnopqrstuvwx;"]);
    assert_eq!(passed, "[redacted];");
}

#[test]
fn what_is_no_secret_passes_as_it_is() {
    for text in [
        "an AKIA is a key, sk- too, and eyJ is how a token begins",
        "risk-assessment-of-the-last-quarter-of-2026",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "--- a line --- another ---",
        "",
    ] {
        let (passed, outcomes) = run(&[text.as_bytes(), b""]);
        assert_eq!(passed, text);
        assert!(outcomes.iter().all(|it| it.counters.is_empty()), "{text}");
    }
}

#[test]
fn a_word_that_is_too_long_to_be_seen_whole_is_refused() {
    let long = "a".repeat(20_000);
    let (passed, outcomes) = run(&[long.as_bytes(), b""]);
    assert_eq!(passed, "");
    assert_eq!(outcomes[0].rejection().map(|it| it.code.as_str()), Some("word-too-long"));
    let (passed, _) = run(&[long.as_bytes()]);
    assert_eq!(passed, long, "the control: all of it was there at once");
}
