// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

fn places(text: &str) -> Vec<String> {
    let mistakes = Manifest::parse(text).expect_err("has mistakes");
    mistakes.0.into_iter().map(|mistake| mistake.place).collect()
}

#[test]
fn a_manifest_that_says_little_gets_the_least() {
    let manifest = Manifest::parse("phases = [\"request\"]").expect("reads");
    assert!(manifest.has(Phase::Request) && !manifest.has(Phase::Response));
    assert!(manifest.host.is_empty());
    assert_eq!((manifest.request_body, manifest.response_body), (None, None));
    assert_eq!(manifest.limits, Limits::default());
}

#[test]
fn everything_that_may_be_said_is_read() {
    let manifest = Manifest::parse(
        r#"
        phases = ["request", "response"]
        host = ["session", "log", "counter", "rate-limit", "json-schema"]
        body = { request = "64KiB", response = "1MiB" }
        counters = ["refused"]
        limits = { time = "5ms", memory = "1MiB", host_calls = 7, log = "1KiB" }
        [buckets.lookups]
        per_second = 1.5
        [schemas.order]
        type = "object"
        [config]
        words = ["a"]
        [config_schema]
        required = ["words"]
        "#,
    )
    .expect("reads");
    assert_eq!(manifest.host.len(), HostFunction::ALL.len());
    assert_eq!((manifest.request_body, manifest.response_body), (Some(65_536), Some(1 << 20)));
    let limits = Limits { time: Duration::from_millis(5), memory: 1 << 20, host_calls: 7, log: 1024 };
    assert_eq!(manifest.limits, limits);
    let rate = BucketRate { per_second: 1.5, burst: 2 };
    assert_eq!(manifest.buckets.get("lookups"), Some(&rate));
    assert!(manifest.schemas.contains_key("order") && manifest.counters.contains("refused"));
}

#[test]
fn a_response_comes_whole_or_in_parts_not_both() {
    let parts = "phases = [\"response\"]\nbody = { response_chunk = \"16KiB\" }";
    let manifest = Manifest::parse(parts).expect("reads");
    assert_eq!((manifest.response_body, manifest.response_chunk), (None, Some(16 << 10)));
    assert!(manifest.reads_responses());
    let both = parts.replace("16KiB\"", "16KiB\", response = \"1KiB\"");
    assert_eq!(places(&both), ["body.response_chunk"]);
    assert_eq!(places(&parts.replace("16KiB", "1MiB")), ["body.response_chunk"]);
}

#[test]
fn a_filter_does_not_say_what_becomes_of_requests_that_it_fails_on() {
    let mistakes = Manifest::parse("phases = [\"request\"]\non_failure = \"open\"").expect_err("is refused");
    assert!(mistakes.to_string().contains("backend.toml"), "{mistakes}");
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_key() {
    let found = places(
        r#"
        phase = ["request"]
        host = ["network"]
        body = { request = "1GiB", all = true }
        counters = ["Not A Name"]
        limits = { time = "1h", memory = "1KiB", host_calls = 0, fuel = 1 }
        buckets.empty = { per_second = 0 }
        schemas.bad = { type = "nothing" }
        [config]
        count = "many"
        [config_schema.properties.count]
        type = "integer"
        "#,
    );
    let expected = [
        "phases",
        "host",
        "body.request",
        "body.all",
        "limits.time",
        "limits.memory",
        "limits.host_calls",
        "limits.fuel",
        "counters",
        "buckets.empty.per_second",
        "schemas.bad",
        "config/count",
        "phase",
    ];
    assert_eq!(found, expected);
}

#[test]
fn text_that_is_no_toml_is_reported_with_its_line() {
    assert_eq!(places("phases = [\"request\"]\n\nhost = ["), ["line 3"]);
    assert_eq!(places(&"#".repeat(300_000)), ["filter.toml"]);
}

#[test]
fn a_schema_that_refers_elsewhere_is_refused() {
    for schema in ["\"$ref\" = \"#\"", "properties.a.\"$ref\" = \"https://example.com/s\""] {
        let text = format!("phases = [\"request\"]\n[schemas.loop]\n{schema}");
        assert_eq!(places(&text), ["schemas.loop"], "{schema}");
    }
}

proptest! {
    #[test]
    fn no_text_brings_the_reader_down(text in "\\PC{0,200}") {
        let _either = Manifest::parse(&text);
    }

    #[test]
    fn no_key_of_any_type_brings_the_reader_down(
        key in "phases|host|body|limits|counters|buckets|schemas|config|config_schema|on_failure",
        value in "1|-1|true|\"x\"|\\[1\\]|\\[\"request\"\\]|\\{a=1\\}|1979-05-27|1.5|nan",
    ) {
        let _either = Manifest::parse(&format!("{key} = {value}"));
    }
}
