// SPDX-License-Identifier: Apache-2.0
//! A tenant's policy set as a whole: pushed, watched in shadow, promoted, rolled back, compared
//! with requests of the past; and why one of those was decided as it was.

use super::input::Fields;
use super::problems::Refused;
use super::{Answer, Api, Call, json};
use crate::configuration::{ConfigurationError, Edit};
use crate::policy_set::{self, PolicySetChange, Texts, named, version_of};
use crate::store::{Kind, PolicyVersion};
use crate::tenant::Tenant;
use http::StatusCode;
use postern_common::decision::{DecisionRecord, ShadowScope, Verdict};
use postern_common::id::DecisionId;
use postern_common::problem::{Code, Problem};
use postern_policies::{RecordedRequest, in_shadow};
use serde::Serialize;
use serde_json::{Value, json as value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Decisions that are looked through for what policies in shadow would have done.
const WATCHED: u32 = 1_000;
/// Requests that are decided again unless the caller says otherwise.
const REPLAYED: u32 = 1_000;

async fn tenant(api: &Api, call: &Call) -> Result<Arc<Tenant>, Problem> {
    Ok(api.configuration.tenant(&call.tenant()?).await.map_err(Refused::from)?)
}

async fn change(api: &Api, call: &Call, change: PolicySetChange) -> Answer {
    let edit = Edit::PolicySet(change);
    let edited =
        api.configuration.edit(&call.tenant()?, &edit, &call.edition()?).await.map_err(Refused::from)?;
    let version = api.store.policy_versions(&call.tenant()?).await.map_err(Refused::from)?.into_iter().next();
    let mut answer = value!(edited);
    if let (Some(answer), Some(version)) = (answer.as_object_mut(), version) {
        answer.insert("policy_version".to_owned(), value!(version));
    }
    json(StatusCode::OK, &answer)
}

/// Files by name, as the body's field `name` has them.
fn texts(fields: &mut Fields, name: &str) -> Option<Texts> {
    let texts = fields.texts(name)?;
    let mut found = Texts::new();
    for (file, text) in texts {
        match file.parse() {
            Ok(file) => drop(found.insert(file, text)),
            Err(error) => {
                fields.mistake(format!("/{name}/{}", super::input::escaped(&file)), format!("{error}"));
            }
        }
    }
    Some(found)
}

/// `PUT /policy-set`: `{policies: {name: text}, tests?, mode?}`.
pub(super) async fn push(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read_up_to(&call.body, super::body::CONFIGURATION_BYTES)?;
    let (policies, tests) = (texts(&mut fields, "policies"), texts(&mut fields, "tests"));
    let mode = fields.text("mode");
    if !matches!(mode.as_deref(), None | Some("enforce" | "shadow")) {
        fields.mistake("/mode", "expected `enforce` or `shadow`");
    }
    if policies.is_none() {
        fields.mistake("/policies", "is required: an object of texts by file name");
    }
    fields.finish()?;
    let policies = policies.unwrap_or_default();
    let wanted = if mode.as_deref() == Some("shadow") {
        PolicySetChange::Watch { policies }
    } else {
        PolicySetChange::Push { policies, tests }
    };
    change(&api, &call, wanted).await
}

/// `DELETE /policy-set/shadow`.
pub(super) async fn drop_shadow(api: Arc<Api>, call: Call) -> Answer {
    change(&api, &call, PolicySetChange::DropWatch).await
}

/// `POST /policy-set/promote`: `{policies?: [id]}`; without ids the set in shadow is meant.
pub(super) async fn promote(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read(&call.body)?;
    let ids: Option<Vec<String>> = fields.list("policies");
    fields.finish()?;
    let wanted = match ids {
        Some(ids) if !ids.is_empty() => PolicySetChange::Enforce { ids: ids.into_iter().collect() },
        _ => PolicySetChange::Promote,
    };
    change(&api, &call, wanted).await
}

/// `POST /policy-set/rollback`: `{version?}`; without one, to the version before.
pub(super) async fn roll_back(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read(&call.body)?;
    let wanted = fields.take("version");
    let wanted = match wanted {
        None => None,
        Some(number) => match number.as_i64() {
            Some(number) => Some(number),
            None => {
                fields.mistake("/version", "expected the number of a version");
                None
            }
        },
    };
    fields.finish()?;
    let name = call.tenant()?;
    let versions = api.store.policy_versions(&name).await.map_err(Refused::from)?;
    let number = wanted.or_else(|| versions.get(1).map(|version| version.number));
    let number = number.ok_or_else(|| {
        Problem::new(Code::StateConflict, "there is no version before this one")
            .hint("`GET /policy-set/versions` lists what there is")
    })?;
    let found = api.store.policy_version(&name, number).await.map_err(Refused::from)?;
    let (version, texts) = found.ok_or_else(|| no_version(number))?;
    change(&api, &call, PolicySetChange::RollBack { number: version.number, texts }).await
}

fn no_version(number: i64) -> Problem {
    Problem::new(Code::NotFound, format!("there is no version {number} of the policy set, or not any more"))
        .hint("`GET /policy-set/versions` lists what there is")
}

/// What policies in shadow would have done of the newest requests.
#[derive(Debug, Default, Serialize)]
struct Tally {
    would_allow: u64,
    would_deny: u64,
    /// Requests that would have been answered differently.
    would_change: u64,
}

/// `GET /policy-set`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let name = &tenant.row.name;
    let version = api.store.policy_versions(name).await.map_err(Refused::from)?.into_iter().next();
    let filter = crate::store::DecisionFilter {
        tenant: Some(name.clone()),
        limit: Some(WATCHED),
        ..crate::store::DecisionFilter::default()
    };
    let decisions = api.store.decisions(&filter).await.map_err(Refused::from)?;
    let digest = version_of(&tenant, Kind::Policy);
    let (set, policies) = tallies(decisions, &digest);
    let own = tenant.files.policies.as_ref();
    let watching: BTreeSet<String> =
        own.iter().flat_map(|all| all.values()).flat_map(|text| in_shadow(text)).collect();
    let names = |texts: &Texts| texts.keys().map(ToString::to_string).collect::<Vec<_>>();
    let shadow_set = (!tenant.files.shadow_policies.is_empty())
        .then(|| value!({ "files": names(&tenant.files.shadow_policies), "of_recent_requests": set }));
    json(
        StatusCode::OK,
        &value!({
            "tenant": name,
            "digest": digest,
            "has_own_set": own.is_some(),
            "files": own.map(names),
            "version": version,
            "shadow_set": shadow_set,
            "shadow_policies": watching
                .iter()
                .map(|id| value!({ "id": id, "of_recent_requests": policies.get(id).unwrap_or(&Tally::default()) }))
                .collect::<Vec<_>>(),
        }),
    )
}

/// Of the decisions made by this version of the set: what the set in shadow, and each policy in
/// shadow, would have made of them.
fn tallies(decisions: Vec<Value>, digest: &str) -> (Tally, BTreeMap<String, Tally>) {
    let (mut set, mut policies) = (Tally::default(), BTreeMap::<String, Tally>::new());
    let records = decisions.into_iter().filter_map(|it| serde_json::from_value::<DecisionRecord>(it).ok());
    for record in records.filter(|record| record.versions.policies == digest) {
        let was_allowed = !matches!(record.code, Some(Code::PolicyDenied | Code::PolicyError));
        for part in &record.shadow {
            let would_allow = part.verdict == Verdict::Allow;
            let count = |tally: &mut Tally| {
                tally.would_allow += u64::from(would_allow);
                tally.would_deny += u64::from(!would_allow);
                tally.would_change += u64::from(would_allow != was_allowed);
            };
            match part.scope {
                ShadowScope::Set => count(&mut set),
                ShadowScope::Policies => {
                    part.policies.iter().for_each(|id| count(policies.entry(id.clone()).or_default()));
                }
            }
        }
    }
    (set, policies)
}

/// `GET /policy-set/versions`.
pub(super) async fn versions(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let versions = api.store.policy_versions(&tenant.row.name).await.map_err(Refused::from)?;
    json(StatusCode::OK, &value!({ "versions": versions }))
}

/// `GET /policy-set/versions/{number}`.
pub(super) async fn version(api: Arc<Api>, call: Call) -> Answer {
    let number: i64 = call.path("number")?;
    let found = api.store.policy_version(&call.tenant()?, number).await.map_err(Refused::from)?;
    let (version, policies) = found.ok_or_else(|| no_version(number))?;
    json(StatusCode::OK, &value!({ "version": version, "policies": policies }))
}

/// `POST /policy-set/diff`: `{policies: {name: text}, limit?}`.
pub(super) async fn compare(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Serialize)]
    struct Compared {
        #[serde(flatten)]
        diff: postern_policies::PolicyDiff,
        /// The same for people.
        text: String,
    }
    let mut fields = Fields::read_up_to(&call.body, super::body::CONFIGURATION_BYTES)?;
    let candidate = texts(&mut fields, "policies");
    if candidate.is_none() {
        fields.mistake("/policies", "is required: an object of texts by file name");
    }
    fields.finish()?;
    let limit = call.query.parsed("limit")?.unwrap_or(REPLAYED);
    let tenant = tenant(&api, &call).await?;
    let evidence = api.store.evidence(&tenant.row.name, limit).await.map_err(Refused::from)?;
    let candidate = candidate.unwrap_or_default();
    let diff = blocking(move || policy_set::replay(&tenant, &candidate, &evidence)).await?;
    json(StatusCode::OK, &Compared { text: diff.to_string(), diff })
}

/// Runs what computes off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConfigurationError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done.map_err(Refused::from)?),
        Err(_panicked) => Err(Problem::new(Code::Internal, "it could not be computed")),
    }
}

/// `GET /decisions/{id}/explanation`.
pub(super) async fn explain(api: Arc<Api>, call: Call) -> Answer {
    let id: DecisionId = call.path("id")?;
    let missing = || {
        Problem::new(Code::NotFound, format!("there is no decision `{id}`, or not any more"))
            .hint("`GET /decisions` lists those that are kept")
    };
    let kept = api.store.decision(call.tenant_filter()?.as_ref(), &id).await.map_err(Refused::from)?;
    let (shown, evidence) = kept.ok_or_else(missing)?;
    let record: DecisionRecord = serde_json::from_value(shown.clone())
        .map_err(|_malformed| Problem::new(Code::Internal, "the record cannot be read any more"))?;
    let mut notes: Vec<String> = Vec::new();
    let (mut asked_for, mut told_why) = (Value::Null, Value::Null);
    let mut text = told(&record);
    if let Some(request) = asked(&record, evidence, &mut notes) {
        let name = record.tenant.clone().ok_or_else(missing)?;
        let tenant = api.configuration.tenant(&name).await.map_err(Refused::from)?;
        if record.versions.routes != version_of(&tenant, Kind::Backend) {
            notes.push("the documents of the backends have changed since".to_owned());
        }
        let policies = set_of(&api, &tenant, &record, &mut notes).await?;
        let asked = request.clone();
        let explained = blocking(move || policy_set::explain(&tenant, policies.as_ref(), &asked)).await?;
        asked_for = value!(request);
        match explained {
            Some(explained) => {
                text.push_str(&format!("\n\n{}", explained.explanation));
                let entities = serde_json::to_string(&explained.entities).unwrap_or_default();
                text.push_str(&format!("\n\nentities: {entities}"));
                told_why = value!(explained);
            }
            None => notes.push("there is no such operation any more".to_owned()),
        }
        text.push_str(&format!(
            "\n\nrequest: {}",
            serde_json::to_string_pretty(&request).unwrap_or_default()
        ));
    }
    for note in &notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    let answer = value!({ "decision": shown, "request": asked_for, "explanation": told_why, "notes": notes, "text": text });
    json(StatusCode::OK, &answer)
}

/// What policies saw; says why where that is not known.
fn asked(
    record: &DecisionRecord,
    evidence: Option<String>,
    notes: &mut Vec<String>,
) -> Option<RecordedRequest> {
    let Some(evidence) = evidence else {
        notes.push(match record.code {
            Some(code) if !matches!(code, Code::PolicyDenied | Code::PolicyError) => {
                format!("no policy was asked: the request was refused before, as `{}`", code.as_str())
            }
            _ => "what policies saw was not kept: the request was too large, or refused by its route"
                .to_owned(),
        });
        return None;
    };
    let read = RecordedRequest::read(&evidence);
    if read.is_err() {
        notes.push("what policies saw was written by another release and cannot be read".to_owned());
    }
    read.ok()
}

/// The set that the decision was made by, if its version is still there; else the one in force.
async fn set_of(
    api: &Api,
    tenant: &Tenant,
    record: &DecisionRecord,
    notes: &mut Vec<String>,
) -> Result<Option<Texts>, Problem> {
    let digest = &record.versions.policies;
    if *digest == version_of(tenant, Kind::Policy) {
        return Ok(tenant.files.policies.clone());
    }
    let found = api.store.policy_version_of(&tenant.row.name, digest).await.map_err(Refused::from)?;
    match found {
        Some((PolicyVersion { number, .. }, texts)) => {
            notes.push(format!(
                "decided by version {number} of the policy set, which is not in force any more"
            ));
            Ok(texts.as_ref().map(named).transpose().map_err(Refused::from)?)
        }
        None => {
            notes.push(
                "the set of that time is not kept any more: this is how the one in force decides".to_owned(),
            );
            Ok(tenant.files.policies.clone())
        }
    }
}

/// What the record says, in a few lines.
fn told(record: &DecisionRecord) -> String {
    let verdict = match record.verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
        Verdict::Error => "failed",
    };
    let name = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let code = record.code.map_or(String::new(), |code| format!(" ({})", code.as_str()));
    let mut text = format!(
        "{} {} {}: {verdict}{code}\n  {} {}/{} by sandbox {} of user {}",
        record.id,
        record.at,
        name(record.tenant.as_ref().map(AsRef::as_ref)),
        record.method,
        name(record.backend.as_ref().map(AsRef::as_ref)),
        name(record.operation.as_ref().map(AsRef::as_ref)),
        name(record.sandbox_id.as_ref().map(AsRef::as_ref)),
        name(record.user_id.as_ref().map(AsRef::as_ref)),
    );
    for part in &record.shadow {
        let scope = match part.scope {
            ShadowScope::Policies => "policies in shadow",
            ShadowScope::Set => "the set in shadow",
        };
        let word = if part.verdict == Verdict::Allow { "allow" } else { "deny" };
        text.push_str(&format!("\n  {scope} would {word}: {}", part.policies.join(", ")));
    }
    text
}
