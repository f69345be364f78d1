// SPDX-License-Identifier: Apache-2.0
//! Sandboxes: what was asked for, what became of it, and its deadlines. It is long because each query about
//! a sandbox stands here.

use super::memory::{Kept, kept};
use super::quotas::over_quota;
use super::{
    AuditEntry, Change, Columns, Dialect, IdempotencyKey, OverQuota, Quotas, Select, SessionRow, Store,
    StoreError, duration_micros, json_text, micros,
};
use crate::lifecycle::{Outcome, State};
use crate::runtime::{Limits, Running, Wanted};
use jiff::Timestamp;
pub(crate) use postern_common::folder::OnIdle;
use postern_common::id::{ConversationId, SandboxId, TemplateName, TenantId, UserId};
use postern_common::session::Grant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Every live sandbox, by the index `sandboxes_live_by_age`; the condition is spelled as there.
pub(super) const LIVE: &str =
    "SELECT * FROM sandboxes WHERE status NOT IN ('destroyed', 'failed') ORDER BY created_at_micros";

/// The HTTP status of an answer to who made a sandbox.
const MADE: u16 = 201;

/// What is asked of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// How well it must be kept apart.
    pub(crate) isolation: Wanted,
    /// What it may use.
    pub(crate) limits: Limits,
    /// The SandboxTemplate that it is made from, on a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes: Option<String>,
    /// The image that its root is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
}

/// A sandbox that is to be.
#[derive(Debug, Clone)]
pub(crate) struct NewSandbox {
    /// Its id.
    pub(crate) id: SandboxId,
    /// Its tenant.
    pub(crate) tenant: TenantId,
    /// Its user.
    pub(crate) user_id: UserId,
    /// Its conversation.
    pub(crate) conversation_id: ConversationId,
    /// What it is made from.
    pub(crate) template: TemplateName,
    /// What it may call.
    pub(crate) operations: Vec<Grant>,
    /// What the application says of the user.
    pub(crate) claims: serde_json::Map<String, serde_json::Value>,
    /// The application's labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The environment of the create call and the template, sealed.
    pub(crate) env_sealed: Option<Vec<u8>>,
    /// A keyed digest of the create call's environment, to compare repeats by.
    pub(crate) env_digest: String,
    /// What is asked of the runtime.
    pub(crate) asked: Asked,
    /// Who asked.
    pub(crate) created_by: String,
    /// Its end, unless it is extended.
    pub(crate) expires_at: Timestamp,
    /// How long it may be unused.
    pub(crate) idle: Duration,
    /// What becomes of it then.
    pub(crate) on_idle: OnIdle,
    /// How long it stays paused before it is destroyed; `None`: until its end.
    pub(crate) paused: Option<Duration>,
}

/// What became of a wish for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AddedSandbox {
    /// It is written down.
    Added,
    /// Its conversation has a live one.
    Taken,
    /// Its tenant may have no more.
    OverQuota(OverQuota),
    /// Another create call with the same idempotency key was faster.
    Repeated,
    /// It was to be one that was kept ready, and that is not ready any more.
    NotReady,
    /// There is no such tenant, or no more.
    NoTenant,
    /// Its user is being erased.
    BeingErased,
}

/// On which terms a sandbox is written down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// What its tenant may have.
    pub(crate) quotas: Quotas,
    /// What a repeat of the call is known by.
    pub(crate) key: Option<IdempotencyKey>,
    /// Whether it is one that was kept ready, and is claimed by this.
    pub(crate) is_warm: bool,
    /// Its first session, which is written with it.
    pub(crate) session: Option<SessionRow>,
}

/// What may be changed of a live sandbox; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SandboxChange {
    /// Its end.
    pub(crate) expires_at: Option<Timestamp>,
    /// How long it may be unused.
    pub(crate) idle: Option<Duration>,
    /// Its labels, all of them.
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// A sandbox that is or was.
#[derive(Debug, Clone)]
pub(crate) struct SandboxRow {
    /// What was asked for.
    pub(crate) new: NewSandbox,
    /// What it is now.
    pub(crate) state: State,
    /// Why it ended, once it does.
    pub(crate) reason: Option<String>,
    /// What the runtime made of it.
    pub(crate) running: Option<Running>,
    /// When it was asked for.
    pub(crate) created_at: Timestamp,
    /// When it will have been unused for too long.
    pub(crate) idle_at: Timestamp,
    /// Where it runs.
    pub(crate) place: String,
    /// What is kept of it, once it is stopped.
    pub(crate) kept: Option<Kept>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct SandboxFilter {
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// Of this user.
    pub(crate) user: Option<UserId>,
    /// Of this conversation.
    pub(crate) conversation: Option<ConversationId>,
    /// With this status.
    pub(crate) status: Option<String>,
    /// With this label.
    pub(crate) label: Option<(String, String)>,
    /// After this one, in the order of the list (newest first).
    pub(crate) after: Option<SandboxId>,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

/// A page of sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// The sandboxes, newest first.
    pub(crate) sandboxes: Vec<SandboxRow>,
    /// Whether there are more.
    pub(crate) has_more: bool,
}

/// A change of state that is to be written.
#[derive(Debug, Clone)]
pub(crate) struct Transition {
    /// The state that it must be in.
    pub(crate) from: State,
    /// The state that it will be in.
    pub(crate) to: State,
    /// Why, where it ends.
    pub(crate) reason: Option<String>,
    /// What the runtime made of it, once it did.
    pub(crate) running: Option<Running>,
    /// Whether this is the doing of who has claimed the sandbox: then only while it is theirs.
    pub(crate) is_claimed: bool,
}

const fn on_idle_text(on_idle: OnIdle) -> &'static str {
    match on_idle {
        OnIdle::Stop => "stop",
        OnIdle::Destroy => "destroy",
        OnIdle::Pause => "pause",
    }
}

pub(super) fn on_idle(text: &str) -> Result<OnIdle, StoreError> {
    let all = [OnIdle::Destroy, OnIdle::Pause, OnIdle::Stop];
    let found = all.into_iter().find(|it| on_idle_text(*it) == text);
    found.ok_or(StoreError::Corrupt { what: "on_idle" })
}

pub(super) fn row(row: &impl Columns) -> Result<SandboxRow, StoreError> {
    let state = State::parse(&row.text("status")?, row.maybe_text("outcome")?.as_deref())
        .ok_or(StoreError::Corrupt { what: "status" })?;
    let running = row.maybe_text("running")?.map(|text| RunningRecord::read(&text)).transpose()?;
    let id: SandboxId = row.parsed("id")?;
    let paused = row.maybe_number("paused_micros")?;
    let new = NewSandbox {
        id: id.clone(),
        tenant: row.parsed("tenant")?,
        user_id: row.parsed("user_id")?,
        conversation_id: row.parsed("conversation_id")?,
        template: row.parsed("template")?,
        operations: row.json("operations")?,
        claims: row.json("claims")?,
        labels: row.json("labels")?,
        env_sealed: row.maybe_bytes("env_sealed")?,
        env_digest: row.text("env_digest")?,
        asked: row.json("wanted")?,
        created_by: row.text("created_by")?,
        expires_at: row.time("expires_at_micros")?,
        idle: Duration::from_micros(u64::try_from(row.number("idle_micros")?).unwrap_or(0)),
        on_idle: on_idle(&row.text("on_idle")?)?,
        paused: paused.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))),
    };
    Ok(SandboxRow {
        new,
        state,
        reason: row.maybe_text("reason")?,
        running: running.map(|record| record.of(id)),
        created_at: row.time("created_at_micros")?,
        idle_at: row.time("idle_at_micros")?,
        place: row.text("place")?,
        kept: row.maybe_text("kept")?.map(|text| kept(&text)).transpose()?,
    })
}

/// [`Running`] as the table keeps it: without the id, which is the row's.
#[derive(Serialize, Deserialize)]
pub(super) struct RunningRecord {
    isolation: crate::runtime::Isolation,
    limits: Limits,
    enforced: crate::runtime::Enforced,
}

impl RunningRecord {
    pub(super) fn read(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|_malformed| StoreError::Corrupt { what: "running" })
    }

    pub(super) fn write(running: &Running) -> Result<String, StoreError> {
        let Running { isolation, limits, enforced, .. } = running;
        json_text(&Self { isolation: *isolation, limits: *limits, enforced: *enforced }, "running")
    }

    pub(super) fn of(self, sandbox: SandboxId) -> Running {
        Running { sandbox, isolation: self.isolation, limits: self.limits, enforced: self.enforced }
    }
}

impl Change {
    /// `false` if the conversation has a live one, or the id is taken.
    async fn insert_sandbox(
        &mut self,
        new: &NewSandbox,
        (at, place): (Timestamp, &str),
    ) -> Result<bool, StoreError> {
        let insert = "INSERT INTO sandboxes (id, tenant, user_id, conversation_id, status, template, operations, claims, \
             labels, env_sealed, env_digest, wanted, created_by, created_at_micros, expires_at_micros, idle_micros, \
             idle_at_micros, on_idle, paused_micros, place) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) \
             ON CONFLICT DO NOTHING";
        let idle = duration_micros(new.idle);
        let inserted = sqlx::query(insert)
            .bind(new.id.as_str().to_owned())
            .bind(new.tenant.as_str().to_owned())
            .bind(new.user_id.as_str().to_owned())
            .bind(new.conversation_id.as_str().to_owned())
            .bind(State::Creating.as_str())
            .bind(new.template.as_str().to_owned())
            .bind(json_text(&new.operations, "operations")?)
            .bind(json_text(&new.claims, "claims")?)
            .bind(json_text(&new.labels, "labels")?)
            .bind(new.env_sealed.clone())
            .bind(new.env_digest.clone())
            .bind(json_text(&new.asked, "wanted")?)
            .bind(new.created_by.clone())
            .bind(micros(at))
            .bind(micros(new.expires_at))
            .bind(idle)
            .bind(micros(at).saturating_add(idle))
            .bind(on_idle_text(new.on_idle))
            .bind(new.paused.map(duration_micros))
            .bind(place.to_owned())
            .execute(&mut *self.0)
            .await?;
        Ok(inserted.rows_affected() > 0)
    }
}

impl Store {
    /// Writes down that a sandbox is to be made, with its session and under which idempotency key, unless its
    /// conversation has a live one or its tenant is gone or may have no more: the database decides
    /// that, whoever asks at the same time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_sandbox(
        &self,
        new: &NewSandbox,
        terms: &Terms,
        audit: &AuditEntry,
    ) -> Result<AddedSandbox, StoreError> {
        let _under_way = self.time("add_sandbox");
        let Terms { quotas, key, is_warm, session } = terms;
        let mut change = self.change().await?;
        // INVARIANT: locked until the commit, so that nobody removes the tenant meanwhile; and
        // where sandboxes are counted, against all others who count.
        let is_there = match self.dialect {
            Dialect::Postgres if *quotas == Quotas::default() => {
                let share = "SELECT name FROM tenants WHERE name = $1 FOR SHARE";
                let name = new.tenant.as_str().to_owned();
                sqlx::query(share).bind(name).fetch_optional(&mut *change.0).await?.is_some()
            }
            Dialect::Postgres | Dialect::Sqlite => change.lock_tenant(&new.tenant).await?,
        };
        if !is_there {
            return Ok(AddedSandbox::NoTenant);
        }
        if change.is_being_erased(&new.tenant, &new.user_id).await? {
            return Ok(AddedSandbox::BeingErased);
        }
        if let Some(over) = over_quota(&mut change, new, quotas, audit.at).await? {
            return Ok(AddedSandbox::OverQuota(over));
        }
        if *is_warm && !change.claim_warm(&new.id).await? {
            return Ok(AddedSandbox::NotReady);
        }
        if !change.insert_sandbox(new, (audit.at, &self.place)).await? {
            return Ok(AddedSandbox::Taken);
        }
        if let Some(key) = key
            && !change.keep_answer(&new.tenant, key, (&new.id, MADE), audit.at).await?
        {
            return Ok(AddedSandbox::Repeated);
        }
        if let Some(session) = session
            && !change.put_session(session).await?
        {
            return Ok(AddedSandbox::Taken);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(AddedSandbox::Added)
    }

    /// Moves a sandbox from one state to another; `false` if it is not in the first any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn move_sandbox(
        &self,
        id: &SandboxId,
        transition: &Transition,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let _under_way = self.time("move_sandbox");
        let mut change = self.change().await?;
        if transition.is_claimed {
            change.still_ours(self, id).await?;
        }
        let (status, outcome) = (transition.to.as_str(), transition.to.outcome().map(Outcome::as_str));
        let is_over = transition.to.is_over();
        let update = "UPDATE sandboxes SET status = $3, outcome = $4, reason = COALESCE(reason, $5), \
             running = COALESCE($6, running), \
             env_sealed = CASE WHEN $7 = 1 THEN NULL ELSE env_sealed END, \
             ended_at_micros = CASE WHEN $7 = 1 THEN $8 ELSE ended_at_micros END, \
             kept = CASE WHEN $7 = 1 OR $3 = 'running' THEN NULL ELSE kept END, \
             idle_at_micros = CASE WHEN $3 = 'paused' THEN COALESCE($8 + paused_micros, expires_at_micros) \
             WHEN $3 = 'stopped' THEN expires_at_micros \
             WHEN $2 IN ('paused', 'waking') AND $3 = 'running' THEN $8 + idle_micros ELSE idle_at_micros END \
             WHERE id = $1 AND status = $2";
        let updated = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(transition.from.as_str())
            .bind(status)
            .bind(outcome)
            .bind(transition.reason.clone())
            .bind(transition.running.as_ref().map(RunningRecord::write).transpose()?)
            .bind(i64::from(is_over))
            .bind(micros(audit.at))
            .execute(&mut *change.0)
            .await?;
        if updated.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Changes a sandbox that is being made, runs or is kept; `false` if it is not any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn change_sandbox(
        &self,
        id: &SandboxId,
        new: &SandboxChange,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let update = "UPDATE sandboxes SET expires_at_micros = COALESCE($2, expires_at_micros), \
             idle_micros = COALESCE($3, idle_micros), \
             idle_at_micros = CASE WHEN status = 'stopped' THEN COALESCE($2, expires_at_micros) \
             WHEN $3 IS NULL OR status = 'paused' THEN idle_at_micros ELSE $4 + $3 END, \
             labels = COALESCE($5, labels) \
             WHERE id = $1 AND status IN ('creating', 'running', 'paused', 'stopped', 'waking')";
        let updated = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(new.expires_at.map(micros))
            .bind(new.idle.map(duration_micros))
            .bind(micros(audit.at))
            .bind(new.labels.as_ref().map(|labels| json_text(labels, "labels")).transpose()?)
            .execute(&mut *change.0)
            .await?;
        if updated.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The sandbox with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        let _under_way = self.time("sandbox");
        let select = "SELECT * FROM sandboxes WHERE id = $1";
        let found = sqlx::query(select).bind(id.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// The live sandbox of a conversation.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn live_sandbox(
        &self,
        tenant: &TenantId,
        conversation: &ConversationId,
    ) -> Result<Option<SandboxRow>, StoreError> {
        let _under_way = self.time("live_sandbox");
        let select = "SELECT * FROM sandboxes WHERE tenant = $1 AND conversation_id = $2 \
             AND status NOT IN ('destroyed', 'failed')";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(conversation.as_str().to_owned())
            .fetch_optional(&self.pool)
            .await?;
        found.as_ref().map(row).transpose()
    }

    /// Every sandbox that is not over, wherever it runs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn live_sandboxes(&self) -> Result<Vec<SandboxRow>, StoreError> {
        let _under_way = self.time("live_sandboxes");
        let rows = sqlx::query(LIVE).fetch_all(&self.pool).await?;
        rows.iter().map(row).collect()
    }

    /// Every sandbox of this place that is not over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn own_sandboxes(&self) -> Result<Vec<SandboxRow>, StoreError> {
        let _under_way = self.time("own_sandboxes");
        let mut live = self.live_sandboxes().await?;
        live.retain(|row| row.place == *self.place);
        Ok(live)
    }

    /// A page of sandboxes, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Listing, StoreError> {
        let limit = super::page_size(filter.limit);
        let after = "(created_at_micros, id) < (SELECT created_at_micros, id FROM sandboxes WHERE id = ?)";
        // What wakes is shown as one that is being made.
        let creating = filter.status.as_deref().filter(|status| *status == State::Creating.as_str());
        let other = filter.status.as_deref().filter(|_| creating.is_none());
        let rows = Select::of("SELECT * FROM sandboxes")
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .and("user_id = ?", filter.user.as_ref().map(UserId::as_str))
            .and("conversation_id = ?", filter.conversation.as_ref().map(ConversationId::as_str))
            .and("status = ?", other)
            .and("status IN (?, 'waking')", creating)
            .and_label(self.dialect, filter.label.as_ref())
            .and(after, filter.after.as_ref().map(SandboxId::as_str))
            .page("created_at_micros DESC, id DESC", limit + 1, &self.pool)
            .await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        let sandboxes = rows.iter().take(limit).map(row).collect::<Result<_, _>>()?;
        Ok(Listing { sandboxes, has_more })
    }

    /// Forgets sandboxes that ended before `before`, at most `most`; returns how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_sandboxes(&self, before: Timestamp, most: u32) -> Result<u64, StoreError> {
        let delete = "DELETE FROM sandboxes WHERE id IN \
             (SELECT id FROM sandboxes WHERE ended_at_micros < $1 ORDER BY ended_at_micros LIMIT $2)";
        let _turn = self.turn().await?;
        let deleted =
            sqlx::query(delete).bind(micros(before)).bind(i64::from(most)).execute(&self.pool).await?;
        Ok(deleted.rows_affected())
    }
}
