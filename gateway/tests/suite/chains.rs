// SPDX-License-Identifier: Apache-2.0
//! How filters are put together: where one is attached, in which order they run, and one that is
//! attached twice.

use crate::filters::{artefact, chain, name, patient, world};
use crate::plugins::{compiled, sign};
use crate::world::{Answer, Sandbox, World};
use postern_common::control::{Applied, FilterArtefact, TenantConfig};
use postern_common::decision::FilterPhase;
use serde_json::{Value, json};
use std::sync::Arc;

const JSON: (&str, &str) = ("content-type", "application/json");
const REFUND: &[u8] = br#"{"order":"1","amount":1}"#;
/// The operations that the table below asks for.
const ASKED: [&str; 4] = ["listOrders", "getOrder", "getProfile", "createRefund"];

async fn ask(sandbox: &Sandbox, operation: &str) -> Answer {
    match operation {
        "listOrders" => sandbox.get("/orders").await,
        "getOrder" => sandbox.get("/orders/7").await,
        "getProfile" => sandbox.get("/users/alice/profile").await,
        "createRefund" => sandbox.call("POST", "/refunds", &[JSON], REFUND).await,
        other => panic!("{other} is not asked for here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_met_by_the_operations_tags_and_groups_that_it_is_attached_to_and_no_others() {
    let world = world().await;
    let cases: [(&[&str], &[&str]); 7] = [
        (&["getOrder"], &["getOrder"]),
        // The document's tag.
        (&["orders"], &["listOrders", "getOrder"]),
        (&["read"], &["listOrders", "getOrder", "getProfile"]),
        (&["write"], &["createRefund"]),
        (&["orders", "write"], &["listOrders", "getOrder", "createRefund"]),
        (&["read", "getOrder"], &["listOrders", "getOrder", "getProfile"]),
        (&[], &ASKED),
    ];
    for (round, (operations, met)) in cases.into_iter().enumerate() {
        let attached = json!([{ "name": "hostile", "operations": operations, "config": { "way": "trap" } }]);
        assert_eq!(world.put(chain(&world, "acme", &["hostile"], &attached)).await, Applied::InForce);
        let sandbox = world.sandbox(&format!("alice{round}"), &["*"]).await;
        for operation in ASKED {
            let answer = match operation {
                "getProfile" => sandbox.get(&format!("/users/alice{round}/profile")).await,
                _ => ask(&sandbox, operation).await,
            };
            let wanted = if met.contains(&operation) { 500 } else { 200 };
            assert_eq!(answer.status, wanted, "{operations:?}: {operation}: {:?}", answer.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_to_an_operation_that_does_not_exist_is_refused_and_the_last_good_one_stays() {
    let world = world().await;
    let trap = |operations: Value| json!([{ "name": "hostile", "operations": operations, "config": { "way": "trap" } }]);
    let good = chain(&world, "acme", &["hostile"], &trap(json!(["createRefund"])));
    assert_eq!(world.put(good).await, Applied::InForce);
    for (unknown, operations) in
        [("refund", json!(["refund"])), ("orderz", json!(["orders", "orderz"])), ("any", json!(["any"]))]
    {
        let mistaken = chain(&world, "acme", &["hostile"], &trap(operations));
        let Applied::Refused(told) = world.put(mistaken).await else { panic!("`{unknown}` was taken") };
        let words = format!("filter `hostile` is attached to `{unknown}`, which is no operation or group");
        assert!(told.len() == 1 && told[0].contains(&words), "{told:?}");
        let sandbox = world.sandbox("alice", &["*"]).await;
        assert_eq!(ask(&sandbox, "createRefund").await.status, 500, "`{unknown}`: it is still attached");
        assert_eq!(ask(&sandbox, "listOrders").await.status, 200, "`{unknown}`: and to nothing else");
    }
}

/// The hostile code under another name, in the way that its attachment says.
fn hostile(named: &str, phases: &str) -> FilterArtefact {
    let manifest = format!(
        "phases = {phases}\nhost = [\"session\", \"log\", \"counter\", \"rate-limit\"]\ncounters = [\"known\"]\nlimits = {{ time = \"1s\" }}\n[buckets.known]\nper_second = 1.0\nburst = 2\n"
    );
    let artefact = sign(&compiled("hostile"), ("acme", named), 1, &manifest).into();
    FilterArtefact { manifest: Arc::from(manifest), artefact, version: 1 }
}

/// Two filters in this order, each in its way.
fn two(world: &World, phases: &str, ways: [(&str, &str); 2]) -> TenantConfig {
    let attached: Vec<_> =
        ways.iter().map(|(named, way)| json!({ "name": named, "config": { "way": way } })).collect();
    let mut config = chain(world, "acme", &[], &json!(attached));
    for (named, _) in ways {
        config.filters.insert(name(named), hostile(named, phases));
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_pass_the_chain_backwards() {
    let world = world().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let (trap, reject) = ("response-trap", "response-reject");
    for (ways, status) in [([("one", trap), ("two", reject)], 403), ([("one", reject), ("two", trap)], 500)] {
        assert_eq!(world.put(two(&world, r#"["response"]"#, ways)).await, Applied::InForce);
        let answer = ask(&sandbox, "listOrders").await;
        assert_eq!(
            answer.status, status,
            "the one that is attached last decides: {ways:?}: {:?}",
            answer.body
        );
    }
    let both = two(&world, r#"["request", "response"]"#, [("one", ""), ("two", "")]);
    assert_eq!(world.put(both).await, Applied::InForce);
    world.decisions();
    assert_eq!(ask(&sandbox, "listOrders").await.status, 200);
    let records = world.decisions();
    let ran = &records.last().expect("a record").filters;
    let ran: Vec<_> =
        ran.iter().map(|ran| (ran.name.as_str(), ran.phase == Some(FilterPhase::Response))).collect();
    assert_eq!(ran, [("one", false), ("two", false), ("two", true), ("one", true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_filter_may_be_attached_twice_with_settings_of_each() {
    let world = world().await;
    let attached = json!([
        { "name": "claim-injection", "config": { "headers": { "X-Plan": "plan" } } },
        { "name": "claim-injection", "operations": ["getOrder"], "config": { "headers": { "X-Tongue": "locale" } } },
    ]);
    let mut config = chain(&world, "acme", &[], &attached);
    let twice = artefact("claim-injection", "acme", 1, &patient("claim-injection"));
    config.filters.insert(name("claim-injection"), twice);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world
        .sandbox_with("acme", "alice", &["*"], |session| {
            session.claims.insert("plan".into(), json!("free"));
            session.claims.insert("locale".into(), json!("de"));
        })
        .await;
    let cases: [(&str, &[&str], usize); 2] = [("getOrder", &["de"], 2), ("listOrders", &[], 1)];
    for (operation, tongue, runs) in cases {
        world.decisions();
        let answer = ask(&sandbox, operation).await;
        assert_eq!(answer.status, 200, "{operation}: {:?}", answer.body);
        assert_eq!(answer.seen_header("x-plan"), ["free"], "{operation}");
        assert_eq!(answer.seen_header("x-tongue"), tongue, "{operation}");
        let records = world.decisions();
        assert_eq!(records.last().expect("a record").filters.len(), runs, "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_was_removed_does_not_come_back_in_an_older_version() {
    let world = world().await;
    let plugin = "claim-injection";
    let put = async |version: Option<u64>| {
        let attached = if version.is_some() { json!([plugin]) } else { json!([]) };
        let mut config = chain(&world, "acme", &[], &attached);
        if let Some(version) = version {
            config.filters.insert(name(plugin), artefact(plugin, "acme", version, &patient(plugin)));
        }
        world.put(config).await
    };
    assert_eq!(put(Some(2)).await, Applied::InForce);
    // Removed, and something else changed since.
    for _ in 0..2 {
        assert_eq!(put(None).await, Applied::InForce);
    }
    let Applied::Refused(told) = put(Some(1)).await else { panic!("an older version was taken") };
    assert!(told[0].contains("version 1 is older than version 2, which has been in force"), "{told:?}");
    assert_eq!(put(Some(3)).await, Applied::InForce, "a newer one is taken");
}
