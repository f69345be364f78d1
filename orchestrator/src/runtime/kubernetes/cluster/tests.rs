// SPDX-License-Identifier: Apache-2.0

use super::*;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

const NAME: &str = "sandbox-abcdefghijkl";
const OWNER: &str = "default-x7k2p";

fn empty() -> Cluster {
    let (listed, _) = watch::channel([false; WATCHES]);
    Cluster(Arc::new(Inner { state: Mutex::default(), listed }))
}

fn id() -> SandboxId {
    SandboxId::parse(NAME).expect("an id")
}

fn object<Object: DeserializeOwned>(value: Value) -> Object {
    serde_json::from_value(value).expect("is one")
}

fn claim(sandbox: &str) -> Claim {
    object(json!({
        "metadata": { "name": NAME },
        "spec": { "warmPoolRef": { "name": "default" } },
        "status": { "sandbox": { "name": sandbox } },
    }))
}

fn pod(uid: &str) -> Pod {
    let owner =
        json!({ "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": OWNER, "uid": "u" });
    object(json!({ "metadata": { "name": OWNER, "uid": uid, "ownerReferences": [owner] } }))
}

fn tell<Object: Kept>(cluster: &Cluster, event: Event<Object>) {
    cluster.take(event, &mut BTreeSet::new());
}

#[test]
fn a_claim_is_seen_with_the_pod_of_its_sandbox_whatever_came_first() {
    for is_claim_first in [true, false] {
        let cluster = empty();
        if is_claim_first {
            tell(&cluster, Event::Apply(claim(OWNER)));
            tell(&cluster, Event::Apply(pod("1")));
        } else {
            tell(&cluster, Event::Apply(pod("1")));
            tell(&cluster, Event::Apply(claim(OWNER)));
        }
        let View { claim, pod } = cluster.view(&id());
        assert_eq!((claim.is_some(), pod.map(|pod| pod.uid)), (true, Some("1".to_owned())));
    }
}

#[test]
fn after_a_new_list_what_is_not_on_it_is_gone() {
    let cluster = empty();
    tell(&cluster, Event::Apply(claim(OWNER)));
    tell(&cluster, Event::Apply(pod("1")));
    let mut fresh = BTreeSet::new();
    cluster.take(Event::<Claim>::Init, &mut fresh);
    cluster.take(Event::<Claim>::InitDone, &mut fresh);
    assert_eq!(cluster.claims(), Vec::new());
    assert!(cluster.pod_of(OWNER).is_some(), "pods have a list of their own");
}

#[tokio::test]
async fn everything_is_listed_when_all_four_watches_have_told() {
    let cluster = empty();
    let soon = Duration::from_millis(10);
    tell(&cluster, Event::<Claim>::InitDone);
    tell(&cluster, Event::<Pod>::InitDone);
    tell(&cluster, Event::<Template>::InitDone);
    assert!(!cluster.is_listed(soon).await);
    tell(&cluster, Event::<WarmPool>::InitDone);
    assert!(cluster.is_listed(soon).await);
}

#[tokio::test]
async fn who_waits_for_a_claim_is_woken_by_it_and_by_its_pod_and_forgotten_afterwards() {
    let cluster = empty();
    let waiting = cluster.clone();
    let waits = async move {
        waiting
            .wait(&id(), Duration::from_secs(60), |view| view.pod.as_ref().map(|pod| pod.uid.clone()))
            .await
    };
    let tells = async {
        tell(&cluster, Event::Apply(claim(OWNER)));
        tokio::task::yield_now().await;
        tell(&cluster, Event::Apply(pod("7")));
    };
    let (found, ()) = tokio::join!(waits, tells);
    assert_eq!(found.expect("is told"), "7");
    assert!(cluster.state().waiting.is_empty());
}

#[tokio::test]
async fn who_waits_for_the_end_is_woken_by_the_pod_that_goes_after_its_claim() {
    let cluster = empty();
    tell(&cluster, Event::Apply(claim(OWNER)));
    tell(&cluster, Event::Apply(pod("7")));
    let waiting = cluster.clone();
    let waits = async move {
        let pod = || waiting.pod_of(OWNER);
        waiting
            .wait(&id(), Duration::from_secs(60), |view| {
                (view.claim.is_none() && pod().is_none()).then_some(())
            })
            .await
    };
    let tells = async {
        tell(&cluster, Event::Delete(claim(OWNER)));
        tokio::task::yield_now().await;
        tell(&cluster, Event::Delete(pod("7")));
    };
    let (found, ()) = tokio::join!(waits, tells);
    assert!(found.is_ok());
    assert!(cluster.state().claimed.is_empty(), "nothing is kept of what is gone");
}

#[tokio::test]
async fn waiting_has_an_end_and_tells_what_was_seen() {
    let cluster = empty();
    tell(&cluster, Event::Apply(claim("")));
    let seen = cluster.wait(&id(), Duration::from_millis(5), |_view| None::<()>).await;
    assert!(seen.expect_err("never comes").claim.is_some());
}

#[test]
fn a_pool_of_the_template_s_own_name_comes_first_and_any_other_will_do() {
    let cluster = empty();
    let pool = |name: &str, template: &str| {
        object::<WarmPool>(json!({
            "metadata": { "name": name }, "spec": { "sandboxTemplateRef": { "name": template } },
        }))
    };
    tell(&cluster, Event::Apply(pool("a-first", "small")));
    assert_eq!(cluster.pool_of("small").as_deref(), Some("a-first"));
    tell(&cluster, Event::Apply(pool("small", "small")));
    assert_eq!(cluster.pool_of("small").as_deref(), Some("small"));
    tell(&cluster, Event::Apply(pool("large", "small")));
    assert_eq!(cluster.pool_of("large"), None, "a name alone says nothing");
}
