// SPDX-License-Identifier: Apache-2.0
//! The audit log of sandboxes and of what tenants own; also what `/events` shows.

use super::audit_chain::shown;
use super::{Change, Columns, Select, Store, StoreError, micros, whole_micros};
use jiff::Timestamp;
use postern_common::audit::{Log, link};
use postern_common::id::{ApiKeyId, ConversationId, EventId, RequestId, SandboxId, TenantId, UserId};
use serde::Serialize;
use std::fmt;

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Actor {
    /// A caller of the API.
    Key(ApiKeyId),
    /// The orchestrator itself: a deadline, a sweep, a sandbox that ended.
    Orchestrator,
    /// The watched folder.
    Folder,
    /// What runs in a sandbox, whose changed files came to the store.
    Sandbox(SandboxId),
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(formatter, "key:{id}"),
            Self::Orchestrator => formatter.write_str("orchestrator"),
            Self::Folder => formatter.write_str("folder"),
            Self::Sandbox(id) => write!(formatter, "sandbox:{id}"),
        }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident $text:literal;)*) => {
        /// What was done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Action { $($(#[$doc])* $name,)* }

        impl Action {
            /// The name in the log and in `/events`.
            #[must_use]
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

actions! {
    /// A sandbox was asked for.
    SandboxCreated "sandbox.created";
    /// A sandbox changed its state.
    SandboxChanged "sandbox.changed";
    /// A deadline of a sandbox comes soon.
    DeadlineNear "sandbox.deadline-near";
    /// A sandbox's deadlines or labels were changed.
    SandboxPatched "sandbox.patched";
    /// A sandbox's token was replaced.
    TokenRefreshed "token.refreshed";
    /// Files that could not be kept, or how many were.
    FilesKept "files.kept";
    /// Files could not be kept and lie where only the operator finds them.
    FilesSetAside "files.set-aside";
    /// Files that were brought in are gone from the machine.
    FilesLost "files.lost";
    /// An upload of a user's file was begun.
    UploadBegun "upload.begun";
    /// A URL was signed by which anybody can read a user's file.
    DownloadSigned "download.signed";
    /// A user's files and decisions were erased.
    UserErased "user.erased";
    /// A user's files are to stay, whatever else says that they go.
    HoldSet "hold.set";
    /// They may go again.
    HoldReleased "hold.released";
    /// A tenant was made.
    TenantCreated "tenant.created";
    /// A tenant and all that it owned is gone.
    TenantRemoved "tenant.removed";
    /// A part of a tenant's configuration was put.
    ResourcePut "resource.put";
    /// A part of a tenant's configuration was removed.
    ResourceRemoved "resource.removed";
    /// A tenant's configuration was applied whole.
    ConfigurationApplied "configuration.applied";
    /// A policy set was put whole, in force or in shadow.
    PoliciesPushed "policies.pushed";
    /// Policies came out of shadow.
    PoliciesPromoted "policies.promoted";
    /// A policy set of before is in force again.
    PoliciesRolledBack "policies.rolled-back";
    /// A filter was pushed, and is not in force by that.
    FilterPushed "filter.pushed";
    /// A pushed filter is to be put in force.
    FilterActivated "filter.activated";
    /// A filter is to go back to what an older version was.
    FilterRolledBack "filter.rolled-back";
    /// A secret was set.
    SecretSet "secret.set";
    /// A secret was removed.
    SecretRemoved "secret.removed";
    /// An API key was made.
    KeyCreated "key.created";
    /// An API key was removed.
    KeyRemoved "key.removed";
    /// A gateway got a credential.
    GatewayAdded "gateway.added";
    /// A gateway's credential was revoked.
    GatewayRevoked "gateway.revoked";
    /// A session was registered for an address.
    SessionAdded "session.added";
    /// A session of an address was ended.
    SessionEnded "session.ended";
}

/// A line of the log, before it has its place in it.
#[derive(Debug, Clone)]
pub(crate) struct AuditEntry {
    /// When.
    pub(crate) at: Timestamp,
    /// Whose; `None` for what concerns the whole installation.
    pub(crate) tenant: Option<TenantId>,
    /// What.
    pub(crate) action: Action,
    /// Who.
    pub(crate) actor: Actor,
    /// The sandbox, with its user and conversation.
    pub(crate) sandbox: Option<(SandboxId, UserId, ConversationId)>,
    /// The thing, where it is no sandbox: `backend/desk`.
    pub(crate) subject: Option<String>,
    /// The states before and after.
    pub(crate) change: Option<(&'static str, &'static str)>,
    /// Why.
    pub(crate) reason: Option<String>,
    /// The request that asked for it.
    pub(crate) request_id: Option<RequestId>,
}

impl AuditEntry {
    /// An entry that says no more than this.
    #[must_use]
    pub(crate) const fn new(at: Timestamp, tenant: Option<TenantId>, action: Action, actor: Actor) -> Self {
        Self {
            at,
            tenant,
            action,
            actor,
            sandbox: None,
            subject: None,
            change: None,
            reason: None,
            request_id: None,
        }
    }

    /// Names the thing.
    #[must_use]
    pub(crate) fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Says why.
    #[must_use]
    pub(crate) fn reason(mut self, reason: Option<String>) -> Self {
        self.reason = reason;
        self
    }

    /// Names the request.
    #[must_use]
    pub(crate) fn request(mut self, request: Option<RequestId>) -> Self {
        self.request_id = request;
        self
    }
}

/// A line of the log as `/events` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct Event {
    /// Its place in the log; pages go on after it.
    pub(crate) sequence: i64,
    /// Its id.
    pub(crate) id: String,
    /// When.
    #[schemars(with = "String")]
    pub(crate) at: Timestamp,
    /// Whose; empty for what concerns the whole installation.
    pub(crate) tenant: String,
    /// What was done.
    pub(crate) action: String,
    /// Who did it: `key:ID`, `orchestrator` or `folder`.
    pub(crate) actor: String,
    /// The sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox_id: Option<String>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<String>,
    /// Its conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
    /// The thing, where it is no sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    /// The state before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_status: Option<String>,
    /// The state after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to_status: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The request that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<String>,
}

/// Which events to show.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditFilter {
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// Of this sandbox.
    pub(crate) sandbox: Option<SandboxId>,
    /// After this place in the log.
    pub(crate) after: i64,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

impl AuditEntry {
    /// The line as it is shown, and as its hash is made of it.
    fn line(&self, id: &EventId) -> Event {
        let sandbox = self.sandbox.as_ref();
        Event {
            sequence: 0,
            id: id.as_str().to_owned(),
            at: whole_micros(self.at),
            tenant: self.tenant.as_ref().map_or("", TenantId::as_str).to_owned(),
            action: self.action.as_str().to_owned(),
            actor: self.actor.to_string(),
            sandbox_id: sandbox.map(|(id, _, _)| id.as_str().to_owned()),
            user_id: sandbox.map(|(_, user, _)| user.as_str().to_owned()),
            conversation_id: sandbox.map(|(_, _, conversation)| conversation.as_str().to_owned()),
            subject: self.subject.clone(),
            from_status: self.change.map(|(from, _)| from.to_owned()),
            to_status: self.change.map(|(_, to)| to.to_owned()),
            reason: self.reason.clone(),
            request_id: self.request_id.as_ref().map(|id| id.as_str().to_owned()),
        }
    }
}

impl Change {
    /// Writes a line of the audit log as part of this change. Whoever else has a line for the same
    /// tenant waits until the change has ended, so it comes last in one.
    pub(crate) async fn record(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        let line = entry.line(&EventId::generate());
        let mut head = self.head(Log::Sandboxes, &line.tenant).await?;
        let previous = head.hash.clone();
        head.hash = link(&previous, &shown(Log::Sandboxes, &line)?);
        let insert = "INSERT INTO sandbox_audit_log (id, at_micros, tenant, action, actor, sandbox_id, user_id, \
             conversation_id, subject, from_status, to_status, reason, request_id, previous_hash, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING sequence";
        let row = sqlx::query(insert)
            .bind(line.id)
            .bind(micros(line.at))
            .bind(line.tenant.clone())
            .bind(line.action)
            .bind(line.actor)
            .bind(line.sandbox_id)
            .bind(line.user_id)
            .bind(line.conversation_id)
            .bind(line.subject)
            .bind(line.from_status)
            .bind(line.to_status)
            .bind(line.reason)
            .bind(line.request_id)
            .bind(previous)
            .bind(head.hash.clone())
            .fetch_one(&mut *self.0)
            .await?;
        head.sequence = row.number("sequence")?;
        head.length += 1;
        self.set_head(Log::Sandboxes, &line.tenant, &head).await
    }
}

impl Store {
    /// Writes a line of the audit log that goes with no other change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn record(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        change.record(entry).await?;
        change.commit().await
    }

    /// A page of the audit log, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn events(&self, filter: &AuditFilter) -> Result<Vec<Event>, StoreError> {
        let rows = Select::of("SELECT * FROM sandbox_audit_log")
            .and("sequence > ?", Some(filter.after))
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .and("sandbox_id = ?", filter.sandbox.as_ref().map(SandboxId::as_str))
            .page("sequence", super::page_size(filter.limit), &self.pool)
            .await?;
        let is_of_all = filter.tenant.is_none() && filter.sandbox.is_none();
        let rows = if is_of_all { self.settled(rows, filter.after)? } else { rows };
        rows.iter().map(event).collect()
    }
}

pub(super) fn event(row: &impl Columns) -> Result<Event, StoreError> {
    Ok(Event {
        sequence: row.number("sequence")?,
        id: row.text("id")?,
        at: row.time("at_micros")?,
        tenant: row.text("tenant")?,
        action: row.text("action")?,
        actor: row.text("actor")?,
        sandbox_id: row.maybe_text("sandbox_id")?,
        user_id: row.maybe_text("user_id")?,
        conversation_id: row.maybe_text("conversation_id")?,
        subject: row.maybe_text("subject")?,
        from_status: row.maybe_text("from_status")?,
        to_status: row.maybe_text("to_status")?,
        reason: row.maybe_text("reason")?,
        request_id: row.maybe_text("request_id")?,
    })
}
