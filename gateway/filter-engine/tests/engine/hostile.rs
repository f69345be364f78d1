// SPDX-License-Identifier: Apache-2.0
//! Each way to misbehave is contained under its own name, and the engine goes on.

use crate::fixture::{call, configured, context, engine, load, load_with, manifest, view};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};
use postern_filter_engine::{Called, ConfiguredFilter, FilterFailure, Outcome, Part, ResponseView};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn hostile(way: &str) -> ConfiguredFilter {
    configured(&load(&engine(), "hostile"), json!({"way": way}))
}

/// The cause of the failure of one way; then the same filter answers a decent request.
async fn cause(filter: &ConfiguredFilter, way: &str) -> String {
    let called = call(filter, &[("x-hostile", way)], "{}").await;
    let cause = match called.outcome {
        Err(failure) => failure.cause().to_owned(),
        Ok(outcome) => format!("{outcome:?}"),
    };
    let after = call(filter, &[("x-hostile", "nothing")], "{}").await;
    assert_eq!(after.outcome, Ok(Outcome::Continue), "after `{way}`");
    assert_eq!(filter.filter().tenant_in_flight(), 0, "after `{way}`");
    cause
}

#[tokio::test]
async fn a_filter_that_loops_ends_at_its_deadline() {
    assert_eq!(cause(&hostile(""), "loop").await, "deadline");
}

#[tokio::test]
async fn every_way_to_use_things_up_ends_under_its_own_name() {
    // Time enough on any machine, so that the other bounds are the ones that are met.
    let patient = manifest("hostile").replace("time = \"20ms\"", "time = \"1s\"");
    let loaded = load_with(&engine(), "hostile", "acme", &patient).expect("loads");
    let filter = configured(&loaded, json!({}));
    for (way, expected) in [
        ("loop-in-host", "host_calls"),
        ("allocate", "memory"),
        ("recurse", "stack"),
        ("recurse-frames", "trap"),
        ("trap", "trap"),
        ("divide", "trap"),
        ("flood-log", "host_calls"),
        ("many-changes", "changes"),
        ("lying-length", "trap"),
    ] {
        assert_eq!(cause(&filter, way).await, expected, "{way}");
    }
}

#[tokio::test]
async fn every_way_to_overstep_ends_the_call() {
    let filter = hostile("");
    for way in [
        "set-authorization",
        "set-length",
        "set-host",
        "set-forwarded",
        "split-header",
        "relative-path",
        "long-body",
        "unknown-counter",
        "unknown-bucket",
    ] {
        assert_eq!(cause(&filter, way).await, "forbidden", "{way}");
    }
}

#[tokio::test]
async fn a_rejection_that_is_none_is_a_failure() {
    let filter = hostile("");
    for way in ["ok-status", "split-code", "long-message"] {
        assert_eq!(cause(&filter, way).await, "verdict", "{way}");
    }
}

#[tokio::test]
async fn identity_can_be_asked_for_but_only_as_a_change_that_is_judged_again() {
    let called = call(&hostile("identity"), &[], "{}").await;
    let Ok(Outcome::Changed(changes)) = called.outcome else {
        panic!("expected changes, got {:?}", called.outcome)
    };
    assert_eq!(changes.iter().count(), 4);
    assert_eq!(changes.path(), Some("/users/somebody-else"));
}

#[tokio::test]
async fn a_filter_sees_no_credential_and_no_cookie() {
    let secrets = [
        ("authorization", "Bearer secret"),
        ("cookie", "a=secret"),
        ("proxy-authorization", "secret"),
        ("x-hostile", "read-secrets"),
    ];
    assert_eq!(call(&hostile(""), &secrets, "{}").await.outcome, Ok(Outcome::Continue));
}

#[tokio::test]
async fn a_flood_of_logs_is_cut_and_cannot_forge_lines() {
    let filter = hostile("some-logs");
    let Called { outcome, logs, .. } = call(&filter, &[], "{}").await;
    assert_eq!(outcome, Ok(Outcome::Continue));
    assert!(logs.iter().map(|line| line.message.len()).sum::<usize>() <= 4096);
    assert!(logs.iter().all(|line| !line.message.contains('\n')));
    assert!(filter.filter().dropped_logs() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_one_tenant_are_bounded_and_another_tenant_is_served_meanwhile() {
    let engine = engine();
    let patient = manifest("hostile").replace("time = \"20ms\"", "time = \"500ms\"");
    let mine =
        configured(&load_with(&engine, "hostile", "evil", &patient).expect("loads"), json!({"way": "loop"}));
    let loops: Vec<_> = (0..8)
        .map(|_| {
            let filter = mine.clone();
            Box::pin(async move { call(&filter, &[], "{}").await.outcome })
        })
        .collect();
    let all = futures_util::future::join_all(loops);
    tokio::pin!(all);
    let other = configured(&load(&engine, "hostile"), json!({}));
    let decent = async {
        for _ in 0..20 {
            assert_eq!(call(&other, &[], "{}").await.outcome, Ok(Outcome::Continue));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        outcomes = &mut all => panic!("the loops ended before twenty calls of another tenant: {outcomes:?}"),
        () = decent => {}
    }
    let outcomes = all.await;
    let refused =
        |failure: &FilterFailure| outcomes.iter().filter(|it| it.as_ref().err() == Some(failure)).count();
    assert_eq!(refused(&FilterFailure::Deadline), 4);
    assert_eq!(refused(&FilterFailure::Concurrency), 4);
}

#[tokio::test]
async fn a_filter_that_failed_waits_for_its_turn_until_it_has_behaved_for_a_while() {
    let filter = hostile("");
    assert!(ends_at_once(&filter).await, "the control");
    let trapped = call(&filter, &[("x-hostile", "trap")], "{}").await.outcome;
    assert_eq!(trapped.expect_err("fails").cause(), "trap");
    for _ in 0..16 {
        assert!(waits(&filter), "before it begins");
        assert_eq!(call(&filter, &[], "{}").await.outcome, Ok(Outcome::Continue));
    }
    assert!(ends_at_once(&filter).await, "it has behaved");
}

/// A tick comes each millisecond, whatever is called: of calls that take 20 µs one in fifty has one in it.
#[tokio::test]
async fn a_call_that_has_just_begun_waits_for_nothing_when_a_tick_comes() {
    let filter = hostile("");
    for _ in 0..5_000 {
        let begun = Instant::now();
        let mut called = std::pin::pin!(call(&filter, &[], "{}"));
        let ended = called.as_mut().now_or_never();
        let took = begun.elapsed();
        if ended.is_none() {
            // The machine was busy with others meanwhile: then it is to end all the same.
            assert!(took >= Duration::from_micros(250), "it waits when it has taken {took:?}");
            assert_eq!(called.await.outcome, Ok(Outcome::Continue));
        }
    }
}

/// Whether a call does not wait for anything: some do, in which a tick comes when the machine has held them up.
async fn ends_at_once(filter: &ConfiguredFilter) -> bool {
    for _ in 0..100 {
        let mut called = std::pin::pin!(call(filter, &[], "{}"));
        if called.as_mut().now_or_never().is_some() {
            return true;
        }
        called.await;
    }
    false
}

/// Whether calls wait for their turn before they begin. None of these does anything.
fn waits(filter: &ConfiguredFilter) -> bool {
    (0..100).all(|_| call(filter, &[("x-hostile", "nothing")], "{}").now_or_never().is_none())
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_call_leaves_its_filter_suspect() {
    let filter = hostile("loop");
    let left = tokio::time::timeout(Duration::from_millis(5), call(&filter, &[], "{}")).await;
    assert!(left.is_err());
    assert!(waits(&filter));
}

#[tokio::test]
async fn a_filter_that_has_hardly_any_time_is_suspect_once_it_is_used_up() {
    let hasty = manifest("hostile").replace("time = \"20ms\"", "time = \"2ms\"");
    let loaded = load_with(&engine(), "hostile", "acme", &hasty).expect("loads");
    let filter = configured(&loaded, json!({"way": "loop"}));
    let ended = call(&filter, &[], "{}").await.outcome;
    assert_eq!(ended.expect_err("fails").cause(), "deadline");
    assert!(waits(&filter));
}

#[tokio::test]
async fn a_call_that_is_dropped_gives_its_place_back() {
    let filter = hostile("loop");
    let dropped = tokio::time::timeout(Duration::from_millis(3), call(&filter, &[], "{}")).await;
    assert!(dropped.is_err());
    assert_eq!(filter.filter().tenant_in_flight(), 0);
    let after = call(&filter, &[("x-hostile", "nothing")], "{}").await;
    assert_eq!(after.outcome, Ok(Outcome::Continue));
}

async fn respond_with(manifest: &str, way: &str, part: Option<Part>) -> Result<Outcome, FilterFailure> {
    let loaded = load_with(&engine(), "hostile", "acme", manifest).expect("loads");
    let filter = configured(&loaded, json!({"way": way}));
    let response = ResponseView {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Some(bytes::Bytes::from_static(b"{}")),
        part,
    };
    filter.on_response(context(view(&[], "{}")), Arc::new(response)).await.outcome
}

async fn respond(way: &str) -> Result<Outcome, FilterFailure> {
    respond_with(&manifest("hostile"), way, None).await
}

#[tokio::test]
async fn the_response_phase_has_the_same_bounds() {
    assert_eq!(respond("response-loop").await, Err(FilterFailure::Deadline));
    for way in ["response-cookie", "response-long-body", "part-keep-all"] {
        let failure = respond(way).await.expect_err("is forbidden");
        assert_eq!(failure.cause(), "forbidden", "{way}");
    }
    let Ok(Outcome::Changed(changes)) = respond("response-body").await else { panic!("expected a new body") };
    assert_eq!(changes.body().map(|body| &body[..]), Some(&b"{\"rewritten\":true}"[..]));
}

#[tokio::test]
async fn parts_have_bounds_of_their_own() {
    let parts = manifest("hostile").replace("response = \"64KiB\"", "response_chunk = \"4KiB\"");
    let middle = Part { index: 1, is_last: false };
    let last = Part { is_last: true, ..middle };
    for (way, part) in [
        ("part-late-header", middle),
        ("part-keep-last", last),
        ("part-keep-all", last),
        ("response-long-body", middle),
    ] {
        let outcome = respond_with(&parts, way, Some(part)).await;
        assert_eq!(outcome.expect_err("is forbidden").cause(), "forbidden", "{way}");
    }
    let Ok(Outcome::Changed(changes)) = respond_with(&parts, "part-keep-all", Some(middle)).await else {
        panic!("two bytes may be kept")
    };
    assert_eq!(changes.kept(), 2);
    let first = Part { index: 0, is_last: false };
    let outcome = respond_with(&parts, "part-late-header", Some(first)).await;
    assert_eq!(outcome, Ok(Outcome::Continue), "the control: in the first part it does nothing");
}

#[tokio::test]
async fn what_a_filter_that_failed_uses_up_is_no_workers_time() {
    let filter = hostile("");
    let used = async || {
        let before = clock_gettime(ClockId::ThreadCPUTime);
        let ended = call(&filter, &[("x-hostile", "loop")], "{}").await.outcome;
        assert_eq!(ended, Err(FilterFailure::Deadline));
        let after = clock_gettime(ClockId::ThreadCPUTime);
        (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec
    };
    let (first, second) = (used().await, used().await);
    assert!(second < first / 4, "{first} ns of its first call, {second} ns of its second");
}
