// SPDX-License-Identifier: Apache-2.0
//! Versions of policy sets, and decisions with what policies saw.

use super::*;
use jiff::SignedDuration;
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::id::DecisionId;

fn policy(name: &str, text: &str) -> ResourceChange {
    let body = serde_json::to_string(text).expect("JSON");
    ResourceChange::Put(Resource {
        kind: Kind::Policy,
        name: name.to_owned(),
        digest: format!("digest of {text}"),
        body,
        component: None,
        sealed: None,
    })
}

pub(super) async fn every_set_that_was_in_force_is_a_version(store: &Store) {
    assert_eq!(make(store, "acme").await, MadeTenant::Made);
    let change = async |expected, has, changes: &[ResourceChange], action| {
        let changed = store.change_resources(&tenant(), expected, has, changes, &[audit(action)]).await;
        assert!(changed.expect("answers"));
    };
    change(1, true, &[policy("a", "one")], Action::PoliciesPushed).await;
    let template = ResourceChange::Put(Resource {
        kind: Kind::Template,
        name: "t".to_owned(),
        body: "{}".to_owned(),
        component: None,
        sealed: None,
        digest: "d".to_owned(),
    });
    change(2, true, &[template], Action::ResourcePut).await;
    change(3, true, &[policy("a", "two"), policy("b", "it's")], Action::ConfigurationApplied).await;
    change(4, false, &[], Action::ResourceRemoved).await;
    let versions = store.policy_versions(&tenant()).await.expect("answers");
    let told: Vec<(i64, &str)> = versions.iter().map(|it| (it.number, it.how.as_str())).collect();
    assert_eq!(told, [(4, "put"), (3, "applied"), (2, "pushed"), (1, "before")], "a template is no policy");
    assert_eq!(versions[0].author, "orchestrator");
    let texts = async |number| {
        let (_, texts) = store.policy_version(&tenant(), number).await.expect("answers").expect("is there");
        texts.map(|texts| texts.into_values().collect::<Vec<_>>())
    };
    assert_eq!(texts(1).await, None, "no set of its own");
    assert_eq!(texts(2).await, Some(vec!["one".to_owned()]));
    assert_eq!(texts(3).await, Some(vec!["two".to_owned(), "it's".to_owned()]));
    assert_eq!(texts(4).await, None);
    let third = store.policy_version_of(&tenant(), &versions[1].digest).await.expect("answers");
    assert_eq!(third.expect("is there").0.number, 3);
    for number in 5..=110 {
        change(number, true, &[policy("a", &format!("text {number}"))], Action::PoliciesPushed).await;
    }
    let versions = store.policy_versions(&tenant()).await.expect("answers");
    assert_eq!((versions.len(), versions[0].number), (100, 110), "the oldest go");
}

pub(super) fn decision(age: SignedDuration, evidence: Option<&str>) -> DecisionRecord {
    DecisionRecord {
        tenant: Some(tenant()),
        verdict: Verdict::Allow,
        evidence: evidence.map(Into::into),
        ..DecisionRecord::begin(now().saturating_sub(age).expect("in range"), "GET")
    }
}

pub(super) async fn decisions_are_kept_within_their_bounds(store: &Store) {
    let (old, seen, bare) = (
        decision(SignedDuration::from_hours(24 * 8), Some("old")),
        decision(SignedDuration::ZERO, Some("seen")),
        decision(SignedDuration::ZERO, None),
    );
    store.keep_decisions(&[old.clone(), seen.clone(), bare.clone()]).await.expect("answers");
    let kept = async |id: &DecisionId| store.decision(Some(&tenant()), id).await.expect("answers");
    let (record, evidence) = kept(&seen.id).await.expect("is there");
    assert_eq!(evidence.as_deref(), Some("seen"));
    assert!(record.get("evidence").is_none(), "it is kept beside the record: {record}");
    assert_eq!(kept(&bare.id).await.expect("is there").1, None);
    assert!(kept(&old.id).await.is_some());
    store.trim_decisions(now()).await.expect("answers");
    assert!(kept(&old.id).await.is_none(), "a week is over");
    assert!(kept(&seen.id).await.is_some());
    assert_eq!(store.evidence(&tenant(), 10).await.expect("answers"), ["seen"]);
    let stranger = TenantId::parse("other").expect("a name");
    assert!(store.decision(Some(&stranger), &seen.id).await.expect("answers").is_none());
    // 70 of 4 MiB are too much; the newest stay.
    let large = "x".repeat(4 << 20);
    for _ in 0..70 {
        store.keep_decisions(&[decision(SignedDuration::ZERO, Some(&large))]).await.expect("answers");
    }
    store.trim_decisions(now()).await.expect("answers");
    assert!(kept(&seen.id).await.is_none(), "the oldest go");
    let left = store.evidence(&tenant(), 1000).await.expect("answers").len();
    assert_eq!(left, 63, "as many as fit 256 MiB with their records");
}
