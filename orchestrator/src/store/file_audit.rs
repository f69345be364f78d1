// SPDX-License-Identifier: Apache-2.0
//! The audit log of users' files.

#[cfg(test)]
use super::Store;
use super::audit_chain::shown;
use super::{Actor, Change, Columns, StoreError, micros, whole_micros};
use jiff::Timestamp;
use postern_common::audit::{Log, link};
use postern_common::id::{DecisionId, EventId, SandboxId, TenantId, UserId};
use serde::Serialize;
use sqlx::AssertSqlSafe;

/// Lines that one statement writes: 50 times 13 values, well below what either database takes.
const LINES_AT_ONCE: usize = 50;
/// Columns that are written.
const COLUMNS: usize = 13;

/// A line of the log, before it has its place in it.
#[derive(Debug, Clone)]
pub(crate) struct FileEntry {
    /// When.
    pub(crate) at: Timestamp,
    /// Whose.
    pub(crate) tenant: TenantId,
    /// Whose.
    pub(crate) user: UserId,
    /// Which file, from the top of the user's.
    pub(crate) path: String,
    /// What.
    pub(crate) action: &'static str,
    /// Who.
    pub(crate) actor: Actor,
    /// From which sandbox.
    pub(crate) sandbox: Option<SandboxId>,
    /// By which decision.
    pub(crate) decision: Option<DecisionId>,
    /// What it holds since.
    pub(crate) digest: Option<String>,
    /// How much that is.
    pub(crate) size_bytes: Option<u64>,
}

/// A line as it is shown, and as its hash is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FileLine {
    sequence: i64,
    id: String,
    at: Timestamp,
    tenant: String,
    user_id: String,
    path: String,
    action: String,
    actor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<i64>,
}

impl FileEntry {
    fn line(&self) -> FileLine {
        FileLine {
            sequence: 0,
            id: EventId::generate().as_str().to_owned(),
            at: whole_micros(self.at),
            tenant: self.tenant.as_str().to_owned(),
            user_id: self.user.as_str().to_owned(),
            path: self.path.clone(),
            action: self.action.to_owned(),
            actor: self.actor.to_string(),
            sandbox_id: self.sandbox.as_ref().map(|id| id.as_str().to_owned()),
            decision_id: self.decision.as_ref().map(|id| id.as_str().to_owned()),
            digest: self.digest.clone(),
            size_bytes: self.size_bytes.map(|size| i64::try_from(size).unwrap_or(i64::MAX)),
        }
    }
}

pub(super) fn line(row: &impl Columns) -> Result<FileLine, StoreError> {
    Ok(FileLine {
        sequence: row.number("sequence")?,
        id: row.text("id")?,
        at: row.time("at_micros")?,
        tenant: row.text("tenant")?,
        user_id: row.text("user_id")?,
        path: row.text("path")?,
        action: row.text("action")?,
        actor: row.text("actor")?,
        sandbox_id: row.maybe_text("sandbox_id")?,
        decision_id: row.maybe_text("decision_id")?,
        digest: row.maybe_text("digest")?,
        size_bytes: row.maybe_number("size_bytes")?,
    })
}

/// A line in its place: the hash before it, and its own.
type Linked = (FileLine, String, String);

impl Change {
    /// Writes lines of the files' log as part of this change, in this order; they are of one tenant.
    /// Whoever else has a line for it waits until the change has ended, so they come last in one.
    pub(crate) async fn record_files(
        &mut self,
        tenant: &TenantId,
        entries: &[FileEntry],
    ) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        debug_assert!(entries.iter().all(|entry| entry.tenant == *tenant));
        let mut head = self.head(Log::Files, tenant.as_str()).await?;
        for entries in entries.chunks(LINES_AT_ONCE) {
            let mut lines = Vec::with_capacity(entries.len());
            for entry in entries {
                let line = entry.line();
                let hash = link(&head.hash, &shown(Log::Files, &line)?);
                let previous = std::mem::replace(&mut head.hash, hash);
                lines.push((line, previous, head.hash.clone()));
            }
            head.length = head.length.saturating_add(i64::try_from(lines.len()).unwrap_or(i64::MAX));
            self.insert_lines(lines).await?;
        }
        // Nobody else can have written one meanwhile.
        let last = "SELECT MAX(sequence) AS sequence FROM file_audit_log WHERE tenant = $1";
        let last = sqlx::query(last).bind(tenant.as_str().to_owned()).fetch_one(&mut *self.0).await?;
        head.sequence = last.number("sequence")?;
        self.set_head(Log::Files, tenant.as_str(), &head).await
    }

    async fn insert_lines(&mut self, lines: Vec<Linked>) -> Result<(), StoreError> {
        let insert = format!(
            "INSERT INTO file_audit_log (id, at_micros, tenant, user_id, path, action, actor, \
             sandbox_id, decision_id, digest, size_bytes, previous_hash, hash) VALUES {}",
            self.rows(lines.len(), COLUMNS)
        );
        let mut query = sqlx::query(AssertSqlSafe(insert));
        for (line, previous, hash) in lines {
            query = query
                .bind(line.id)
                .bind(micros(line.at))
                .bind(line.tenant)
                .bind(line.user_id)
                .bind(line.path)
                .bind(line.action)
                .bind(line.actor)
                .bind(line.sandbox_id)
                .bind(line.decision_id)
                .bind(line.digest)
                .bind(line.size_bytes)
                .bind(previous)
                .bind(hash);
        }
        query.execute(&mut *self.0).await?;
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    /// Writes lines of the files' log, of one tenant, that go with no other change.
    pub(crate) async fn record_files(
        &self,
        tenant: &TenantId,
        entries: &[FileEntry],
    ) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        change.record_files(tenant, entries).await?;
        change.commit().await
    }
}
