// SPDX-License-Identifier: Apache-2.0
//! Sandboxes over HTTP: made or found, shown, destroyed.

mod wanted;

use super::inside::{running, woken};
use super::problems::Refused;
use super::{Answer, Api, Call, idempotency, json, scope};
use crate::driver::{DriveError, First, Keep, Wish};
use crate::keys::random;
use crate::lifecycle::{Event, State};
use crate::pool::{Claim, Place};
use crate::runtime::{Enforced, Isolation, RuntimeError};
use crate::store::{IdempotencyKey, Kept, KeptAnswer, SandboxFilter, SandboxRow};
use crate::tenant::Tenant;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::id::{ConversationId, SandboxId, TenantId};
use postern_common::problem::{Code, Problem};
use postern_common::secret::Secret;
use postern_common::session::Grant;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wanted::Wanted;

/// How long `?wait=running` holds an answer: the runtime gives a start 25 s, files come on top.
const START_TIME: Duration = Duration::from_secs(60);
/// How long a create call waits for a claim on a cluster; one that takes longer starts cold.
const CLAIM_TIME: Duration = Duration::from_secs(2);
/// How long a destroy holds its answer.
const END_TIME: Duration = Duration::from_secs(60);
/// How long a create waits for the conversation's sandbox before it, which is on its way out.
const PREDECESSOR_TIME: Duration = Duration::from_secs(30);

/// A sandbox as the API shows it (contracts: Sandbox).
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Shown {
    sandbox_id: String,
    tenant: String,
    user_id: String,
    conversation_id: String,
    status: &'static str,
    /// Once it is stopped: `memory`, it goes on where it was, or `files`, it begins anew with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    runtime: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolation: Option<&'static str>,
    network: &'static str,
    limits: BTreeMap<&'static str, ShownLimit>,
    template: String,
    operations: Vec<Grant>,
    labels: BTreeMap<String, String>,
    #[schemars(with = "String")]
    created_at: Timestamp,
    #[schemars(with = "String")]
    expires_at: Timestamp,
    #[schemars(with = "String")]
    idle_at: Timestamp,
    /// Only in the answer to create and refresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// A limit, and whether the machine holds the sandbox to it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
struct ShownLimit {
    value: u64,
    unit: &'static str,
    /// Absent until the sandbox runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    enforced: Option<bool>,
}

impl Shown {
    fn of(api: &Api, row: &SandboxRow, token: Option<&Secret<String>>) -> Self {
        let new = &row.new;
        Self {
            sandbox_id: new.id.to_string(),
            tenant: new.tenant.to_string(),
            user_id: new.user_id.to_string(),
            conversation_id: new.conversation_id.to_string(),
            status: row.state.shown(),
            kept: row.kept.as_ref().filter(|_| row.state == State::Stopped).map(Kept::as_str),
            reason: row.reason.clone(),
            runtime: api.host.name(),
            isolation: row.running.as_ref().map(|running| running.isolation.as_str()),
            // A local sandbox has no interface but loopback: there is nothing that may fail to hold.
            network: "enforced",
            limits: limits(row),
            template: new.template.to_string(),
            operations: new.operations.clone(),
            labels: new.labels.clone(),
            created_at: row.created_at,
            expires_at: new.expires_at,
            idle_at: row.idle_at,
            token: token.map(|token| token.reveal().clone()),
        }
    }
}

fn limits(row: &SandboxRow) -> BTreeMap<&'static str, ShownLimit> {
    let limits = row.running.as_ref().map_or(row.new.asked.limits, |running| running.limits);
    let enforced = row.running.as_ref().map(|running| running.enforced);
    let limit =
        |value, unit, which: fn(Enforced) -> bool| ShownLimit { value, unit, enforced: enforced.map(which) };
    BTreeMap::from([
        ("memory", limit(limits.memory_bytes, "bytes", |enforced| enforced.memory)),
        ("cpu", limit(u64::from(limits.cpu_millis), "millicores", |enforced| enforced.cpu)),
        ("pids", limit(u64::from(limits.pids), "processes", |enforced| enforced.pids)),
        ("disk", limit(limits.disk_bytes, "bytes", |enforced| enforced.disk)),
    ])
}

/// `POST /sandbox`.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant()?;
    let tenant = api.configuration.tenant(&tenant).await.map_err(Refused::from)?;
    let wanted = Wanted::read(&api, &call, &tenant)?;
    let until_running = match call.query.text("wait") {
        None => false,
        Some("running") => true,
        Some(_) => return Err(super::input::mistaken("/query/wait", "expected `running`")),
    };
    let key = idempotency::read(&api.keys, &call)?;
    let deadline = tokio::time::Instant::now() + PREDECESSOR_TIME;
    loop {
        if let Some(key) = &key
            && let Some(kept) = kept(&api, &tenant.row.name, key).await?
        {
            idempotency::is_repeat(key, &kept)?;
            return replayed(&api, &call, kept, until_running).await;
        }
        if let Some(row) = live(&api, &tenant.row.name, &wanted.conversation_id).await? {
            if row.state.outcome().is_none() {
                wanted.compare(&row)?;
                if let Some(key) = &key
                    && !keep_found(&api, key, &row).await?
                {
                    continue;
                }
                return found(&api, &call, row, until_running).await;
            }
            // It is on its way out; the conversation may have a new one once it is gone.
            let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
            let gone = api.driver.wait(&row.new.id, State::is_over, rest).await.map_err(Refused::from)?;
            if !gone.state.is_over() {
                return Err(Problem::new(
                    Code::StateConflict,
                    "the conversation's last sandbox is still being destroyed",
                )
                .hint("try again in a few seconds"));
            }
            continue;
        }
        if let Some((row, token)) = make(&api, &call, (&tenant, &wanted), key.clone(), until_running).await? {
            return json(StatusCode::CREATED, &Shown::of(&api, &row, Some(&token)));
        }
    }
}

/// Makes a sandbox, or claims one that is ready; `None` if somebody was faster, and what they made is
/// to be looked at.
async fn make(
    api: &Api,
    call: &Call,
    (tenant, wanted): (&Tenant, &Wanted),
    key: Option<IdempotencyKey>,
    until_running: bool,
) -> Result<Option<(SandboxRow, Secret<String>)>, Problem> {
    let judged = wanted.judge(api, call, tenant)?;
    let level = match judged.offered() {
        Some(offered) => offered,
        None => level(api, judged.isolation()).await?,
    };
    let mut new = wanted.sandbox(api, call, tenant, (&judged, fresh_id()?), clock::now())?;
    scope::new_sandbox(api, call, tenant, &new)?;
    let quotas = tenant.files.limits.quotas.clone();
    let (snapshot, with_memory) = (wanted.snapshot(api, call, tenant).await?, wanted.with_memory());
    let start = First { snapshot, with_memory, commands: judged.start() };
    let written = api.drain.enter().await?;
    let place = Place { tenant: tenant.row.name.clone(), template: wanted.template()? };
    let claim = api.pool.take(&place, &new.asked).await;
    let is_warm = claim.is_some();
    if let Some(id) = claim.as_ref().and_then(Claim::sandbox) {
        new = wanted.sandbox(api, call, tenant, (&judged, id.clone()), clock::now())?;
    }
    let wish = Wish { new, quotas, level, key, start, claim };
    let created = api.driver.create(wish, call.cause(None)?).await;
    drop(written);
    match created {
        Ok((row, token)) => {
            let patience = match (until_running || is_warm, judged.offered()) {
                (true, _) => START_TIME,
                // The cluster keeps some ready: those are bound within a moment.
                (false, Some(_)) => CLAIM_TIME,
                (false, None) => Duration::ZERO,
            };
            let row = if patience.is_zero() { row } else { until_made(api, row, patience).await? };
            Ok(Some((row, token)))
        }
        Err(DriveError::Taken | DriveError::Repeated | DriveError::NotReady) => Ok(None),
        Err(error) => Err(Refused::from(error).into()),
    }
}

fn fresh_id() -> Result<SandboxId, Problem> {
    let random = random(12).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(SandboxId::from_random(random.reveal().first_chunk().copied().unwrap_or_default()))
}

async fn live(
    api: &Api,
    tenant: &TenantId,
    conversation: &ConversationId,
) -> Result<Option<SandboxRow>, Problem> {
    Ok(api.store.live_sandbox(tenant, conversation).await.map_err(Refused::from)?)
}

async fn kept(api: &Api, tenant: &TenantId, key: &IdempotencyKey) -> Result<Option<KeptAnswer>, Problem> {
    Ok(api.store.kept_answer(tenant, key, clock::now()).await.map_err(Refused::from)?)
}

async fn keep_found(api: &Api, key: &IdempotencyKey, row: &SandboxRow) -> Result<bool, Problem> {
    let answer = (&row.new.id, StatusCode::OK.as_u16());
    Ok(api.store.keep_found(&row.new.tenant, key, answer, clock::now()).await.map_err(Refused::from)?)
}

/// A repeat by its key: what the first call got, as it is now.
async fn replayed(api: &Api, call: &Call, kept: KeptAnswer, until_running: bool) -> Answer {
    let row = api.driver.sandbox(&kept.sandbox).await.map_err(Refused::from)?;
    let is_over = row.state.is_over() || row.state.outcome().is_some();
    let mut answer = if is_over {
        scope::sandbox(api, call, &row).await?;
        json(StatusCode::OK, &Shown::of(api, &row, None))?
    } else {
        found(api, call, row, until_running).await?
    };
    *answer.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    answer.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    Ok(answer)
}

/// A repeat: the same user with the same wishes gets the sandbox and a fresh token.
async fn found(api: &Api, call: &Call, row: SandboxRow, until_running: bool) -> Answer {
    scope::sandbox(api, call, &row).await?;
    // Its token can be replaced once it runs; until then the one that made it is waited for, and one
    // that is paused goes on.
    let is_waited_for = until_running || row.state.is_beginning();
    let row = if is_waited_for { until_made(api, row, START_TIME).await? } else { row };
    let row =
        if row.state == State::Stopped { woken(api, call.cause(None)?, row, START_TIME).await? } else { row };
    if row.state == State::Paused {
        let resumed = api.driver.freeze(&row.new.id, Event::Resume, call.cause(None)?).await;
        resumed.map_err(Refused::from)?;
    }
    let (row, token) = api.driver.refresh(&row.new.id, call.cause(None)?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &Shown::of(api, &row, Some(&token)))
}

/// Waits until a sandbox runs. That it failed is a problem which says why.
async fn until_made(api: &Api, row: SandboxRow, patience: Duration) -> Result<SandboxRow, Problem> {
    let made = |state: State| !state.is_beginning();
    let row = api.driver.wait(&row.new.id, made, patience).await.map_err(Refused::from)?;
    if row.state.outcome().is_none() && !row.state.is_over() {
        return Ok(row);
    }
    let reason = row.reason.as_deref().unwrap_or("it was destroyed meanwhile");
    Err(Problem::new(Code::RuntimeUnavailable, format!("sandbox `{}` does not run: {reason}", row.new.id))
        .hint("`postern doctor` says what this machine can do; else try again"))
}

/// The isolation that a new sandbox will have.
async fn level(api: &Api, wanted: crate::runtime::Wanted) -> Result<Isolation, Problem> {
    let (least, exact) = match wanted {
        crate::runtime::Wanted::AtLeast(least) => (least, None),
        crate::runtime::Wanted::Exactly(exact) => (exact, Some(exact)),
    };
    let probed = api.host.probe().await;
    let fits = |level: Isolation| level >= least && exact.is_none_or(|exact| exact == level);
    let best = probed.iter().find(|probed| fits(probed.level) && probed.outcome.is_ok());
    if let Some(best) = best {
        return Ok(best.level);
    }
    let tried = probed.iter().filter(|probed| fits(probed.level));
    let why: Vec<String> = tried
        .filter_map(|probed| probed.outcome.as_ref().err().map(|why| format!("{}: {why}", probed.level)))
        .collect();
    Err(Refused::from(RuntimeError::IsolationUnavailable { wanted: least.as_str(), why: why.join("; ") })
        .into())
}

/// The sandbox that the path names, if the key sees its tenant and may do with it what is called.
/// Another tenant's is not there.
pub(super) async fn named(api: &Api, call: &Call, parameter: &str) -> Result<SandboxRow, Problem> {
    let id: SandboxId = call.path(parameter)?;
    let row = api.driver.sandbox(&id).await.map_err(Refused::from)?;
    let is_visible = match call.tenant_filter()? {
        Some(tenant) => row.new.tenant == tenant,
        None => true,
    };
    if !is_visible {
        return Err(Refused::from(DriveError::Unknown(id)).into());
    }
    scope::sandbox(api, call, &row).await?;
    Ok(row)
}

/// `GET /sandbox`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Serialize)]
    struct Page {
        sandboxes: Vec<Shown>,
        /// For `?after=`, if there are more.
        next: Option<String>,
    }
    let filter = SandboxFilter {
        tenant: call.tenant_filter()?,
        user: call.query.parsed("user_id")?,
        conversation: call.query.parsed("conversation_id")?,
        status: call.query.text("status").map(str::to_owned),
        label: call.query.text("label").map(label).transpose()?,
        after: call.query.parsed("after")?,
        limit: call.query.parsed("limit")?,
    };
    let page = api.store.list_sandboxes(&filter).await.map_err(Refused::from)?;
    let next = page.sandboxes.last().filter(|_| page.has_more).map(|row| row.new.id.to_string());
    let caller = call.caller()?;
    let seen = page.sandboxes.iter().filter(|row| scope::sees(caller, row));
    let sandboxes = seen.map(|row| Shown::of(&api, row, None)).collect();
    json(StatusCode::OK, &Page { sandboxes, next })
}

/// A label as a filter names it.
fn label(text: &str) -> Result<(String, String), Problem> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(super::input::mistaken("/query/label", "expected NAME=VALUE")),
    }
}

/// `GET /sandbox/{id}`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    json(StatusCode::OK, &Shown::of(&api, &row, None))
}

/// `GET /sandbox/{id}/usage`.
pub(super) async fn usage(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    api.driver.is_here(&row).map_err(Refused::from)?;
    let usage = api.host.usage(&row.new.id).await.map_err(Refused::from)?;
    let unknown = || {
        Problem::new(Code::NotFound, "what sandboxes use is not counted here")
            .hint("ask the cluster: `kubectl top pods`")
    };
    json(StatusCode::OK, &usage.ok_or_else(unknown)?)
}

/// `PATCH /sandbox/{id}`.
pub(super) async fn change(api: Arc<Api>, call: Call) -> Answer {
    let change = wanted::changes(&call.body, clock::now(), api.configuration.caps())?;
    let mut row = named(&api, &call, "id").await?;
    if let Some(labels) = &change.labels {
        // A key for some labels does not take a sandbox out of its own sight, nor into another's.
        row.new.labels.clone_from(labels);
        scope::sandbox(&api, &call, &row).await?;
    }
    let row = api.driver.change(&row.new.id, change, call.cause(None)?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &Shown::of(&api, &row, None))
}

/// `DELETE /sandbox/{id}`.
pub(super) async fn destroy(api: Arc<Api>, call: Call) -> Answer {
    let patience = match call.query.text("wait") {
        None | Some("destroyed") => END_TIME,
        Some("no") => Duration::ZERO,
        Some(_) => return Err(super::input::mistaken("/query/wait", "expected `destroyed` or `no`")),
    };
    let row = named(&api, &call, "id").await?;
    let cause = call.cause(Some("it was destroyed by request"))?;
    api.driver.happen(&row.new.id, Event::Destroy, None, cause).await.map_err(Refused::from)?;
    let row = api.driver.wait(&row.new.id, State::is_over, patience).await.map_err(Refused::from)?;
    let status = if row.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    json(status, &Shown::of(&api, &row, None))
}

/// `POST /tokens/{sandbox}/refresh`.
pub(super) async fn refresh(api: Arc<Api>, call: Call) -> Answer {
    super::input::Fields::read(&call.body)?.finish()?;
    let row = named(&api, &call, "sandbox").await?;
    let (row, token) = api.driver.refresh(&row.new.id, call.cause(None)?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &Shown::of(&api, &row, Some(&token)))
}

/// `POST /sandbox/{id}/pause`.
pub(super) async fn pause(api: Arc<Api>, call: Call) -> Answer {
    freeze(&api, &call, Event::Pause).await
}

/// `POST /sandbox/{id}/resume`.
pub(super) async fn resume(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    if matches!(row.state, State::Stopped | State::Waking) {
        super::input::Fields::read(&call.body)?.finish()?;
        let row = running(&api, &call, row, START_TIME).await?;
        return json(StatusCode::OK, &Shown::of(&api, &row, None));
    }
    freeze(&api, &call, Event::Resume).await
}

/// `POST /sandbox/{id}/stop`.
pub(super) async fn stop(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = super::input::Fields::read(&call.body)?;
    let keep = match fields.text("keep").as_deref() {
        None => Keep::Best,
        Some("memory") => Keep::Memory,
        Some("files") => Keep::Files,
        Some(_) => {
            fields.mistake("/keep", "expected `memory` or `files`");
            Keep::Best
        }
    };
    fields.finish()?;
    let row = named(&api, &call, "id").await?;
    let row = api.driver.stop(&row.new.id, keep, call.cause(None)?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &Shown::of(&api, &row, None))
}

async fn freeze(api: &Api, call: &Call, event: Event) -> Answer {
    super::input::Fields::read(&call.body)?.finish()?;
    let row = named(api, call, "id").await?;
    let row = api.driver.freeze(&row.new.id, event, call.cause(None)?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &Shown::of(api, &row, None))
}
