// SPDX-License-Identifier: Apache-2.0
//! Policies that only watch: alone or as a whole set, they change no answer, and records and
//! counters tell what they would have done. And what records keep of a request.

use crate::refusals::admin;
use crate::world::{World, eventually};
use postern_common::control::Applied;
use postern_common::decision::{DecisionRecord, ShadowPart, ShadowScope, Verdict};
use postern_common::id::PolicyName;
use postern_policies::RecordedRequest;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;

const ENFORCED: &str = r#"
@id("all") permit (principal, action, resource is Postern::Backend);
@id("watching") @mode("shadow")
forbid (principal, action == desk::Action::"createRefund", resource) when { context.body.amount > 10 };
"#;

const SET: &str = r#"
@id("reads") permit (principal, action in desk::Action::"read", resource);
"#;

async fn world(shadow: &str) -> World {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.described())], Some(ENFORCED));
    config.shadow_policies =
        BTreeMap::from([(PolicyName::parse("next").expect("a name"), shadow.to_owned())]);
    assert_eq!(world.put(config).await, Applied::InForce);
    world
}

/// The records of as many requests.
async fn records(world: &World, count: usize) -> Vec<DecisionRecord> {
    let found = Mutex::new(Vec::new());
    eventually("the records come home", || {
        let mut found = found.lock().expect("no panic");
        found.extend(world.decisions());
        found.len() >= count
    })
    .await;
    found.into_inner().expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_watches_changes_no_answer_and_is_told_and_counted() {
    let world = world(SET).await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    assert_eq!(sandbox.post("/refunds", &json!({"order": "1", "amount": 5})).await.status, 200);
    assert_eq!(sandbox.post("/refunds", &json!({"order": "1", "amount": 50})).await.status, 200);
    let records = records(&world, 3).await;
    let part = |scope, verdict, policies: &[&str]| {
        let policies = policies.iter().map(|&id| id.to_owned()).collect();
        ShadowPart { scope, verdict, policies }
    };
    assert_eq!(records[0].shadow, [part(ShadowScope::Set, Verdict::Allow, &["reads"])]);
    let set = part(ShadowScope::Set, Verdict::Deny, &[]);
    assert_eq!(records[1].shadow, std::slice::from_ref(&set));
    assert_eq!(records[2].shadow, [part(ShadowScope::Policies, Verdict::Deny, &["watching"]), set]);
    assert!(records.iter().all(|record| record.verdict == Verdict::Allow));
    let metrics = admin(&world, "/metrics").await;
    for line in [
        r#"postern_policy_shadow_decisions_total{scope="set",policy="",would="deny",enforced="allow"} 2"#,
        r#"postern_policy_shadow_decisions_total{scope="set",policy="",would="allow",enforced="allow"} 1"#,
        r#"postern_policy_shadow_decisions_total{scope="policy",policy="watching",would="deny",enforced="allow"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_in_shadow_that_is_wrong_is_refused_with_its_file() {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.described())], Some(ENFORCED));
    config.shadow_policies =
        BTreeMap::from([(PolicyName::parse("next").expect("a name"), "permit (principal);".to_owned())]);
    let Applied::Refused(mistakes) = world.put(config).await else { panic!("is in force") };
    assert!(mistakes[0].contains("policies/shadow/next.cedar:1:"), "{mistakes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_keep_what_policies_saw_of_allowed_and_denied_requests() {
    let world = world(SET).await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let reader = world.sandbox("bob", &["desk/read"]).await;
    let body = json!({"order": "1", "amount": 50, "extra": {"private": "word"}});
    assert_eq!(sandbox.post("/refunds", &body).await.status, 200);
    assert_eq!(reader.post("/refunds", &body).await.status, 403);
    let records = records(&world, 2).await;
    let kept = records[0].evidence.as_deref().expect("is kept");
    assert!(!kept.contains("private"), "what policies cannot see is not kept: {kept}");
    let request = RecordedRequest::read(kept).expect("is one");
    assert_eq!((request.decision, request.session.user_id.as_str()), (records[0].id.clone(), "alice"));
    assert_eq!(request.body.expect("a body")["amount"], 50);
    assert!(!kept.contains(&sandbox.token), "no token is kept");
}
