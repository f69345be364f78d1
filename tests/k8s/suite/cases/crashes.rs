// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of the orchestrator in the middle of whatever it does.

use super::lifecycle::{claims, id, pool_of};
use crate::cluster::{Cluster, until};
use crate::manifests;
use crate::postern::{Postern, create_call};
use serde_json::Value;
use std::time::Duration;

/// Rounds of the short form; `ROUNDS=` asks for more.
const ROUNDS: u32 = 4;
/// Sandboxes that are being made, or destroyed, when it is killed.
const AT_ONCE: u32 = 4;

pub(super) fn rounds() -> u32 {
    std::env::var_os("ROUNDS").and_then(|it| it.to_str()?.parse().ok()).unwrap_or(ROUNDS)
}

fn listed(postern: &Postern<'_>) -> Vec<Value> {
    let answer = postern.call("GET", "/sandbox", None).json();
    answer["sandboxes"].as_array().expect("a list").clone()
}

/// Those that are neither running nor over.
pub(super) fn on_their_way(sandboxes: &[Value]) -> bool {
    let is_settled = |it: &Value| matches!(it["status"].as_str(), Some("running" | "destroyed" | "failed"));
    sandboxes.iter().any(|it| !is_settled(it))
}

pub(crate) async fn an_orchestrator_that_is_killed_at_any_moment_leaks_nothing(cluster: &Cluster) {
    let mut postern = Postern::start(cluster, "crash").await;
    for round in 0..rounds() {
        let calls: Vec<_> = (0..AT_ONCE)
            .map(|number| std::thread::spawn(create_call(postern.caller(), &format!("r{round}-{number}"))))
            .collect();
        // Somewhere between the first claim and the last answer; another place in each round.
        tokio::time::sleep(Duration::from_millis(u64::from(40 + 90 * (round % 8)))).await;
        postern.crash_orchestrator();
        calls.into_iter().for_each(|call| drop(call.join().expect("no panic")));
        postern.start_orchestrator();
        until("every sandbox runs or is over", async || (!on_their_way(&listed(&postern))).then_some(()))
            .await;
        let running: Vec<String> =
            listed(&postern).iter().filter(|it| it["status"] == "running").map(id).collect();
        for sandbox in &running {
            assert_eq!(postern.exec(sandbox, &["sh", "-c", "echo $SANDBOX_ID"]).trim(), sandbox.as_str());
            // Until the gateway follows again it says that it does not know the session yet.
            until("it is adopted, with its door", async || {
                (postern.agent(sandbox, &["GET", "/orders"])["status"] == 200).then_some(())
            })
            .await;
        }
        until("there is a claim for each that runs", async || {
            (claims(&postern).await.len() == running.len()).then_some(())
        })
        .await;
        if let Some(last) = running.last() {
            // Half of it in the middle of a destroy.
            drop(postern.call("DELETE", &format!("/sandbox/{last}?wait=no"), None));
            postern.crash_orchestrator();
            postern.start_orchestrator();
        }
        for sandbox in &running {
            drop(postern.call("DELETE", &format!("/sandbox/{sandbox}"), None));
        }
        until("no claim is left", async || claims(&postern).await.is_empty().then_some(())).await;
    }
    cluster.apply(&manifests::pool("default", 0), &postern.namespace).await;
    pool_of(&postern, 0).await;
}
