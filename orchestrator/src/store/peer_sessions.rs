// SPDX-License-Identifier: Apache-2.0
//! Sessions that an operator registered for an address. They have one token and end with it.

use super::{AuditEntry, Columns, Select, Store, StoreError, json_text, micros};
use jiff::Timestamp;
use postern_common::control::EndedSession;
use postern_common::id::{ConversationId, SandboxId, TenantId, UserId};
use postern_common::session::Grant;
use std::net::IpAddr;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSessionRow {
    /// Its id, which has the form of a sandbox's.
    pub(crate) id: SandboxId,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// The user that it speaks for.
    pub(crate) user_id: UserId,
    /// The conversation that it speaks for.
    pub(crate) conversation_id: ConversationId,
    /// What it may call.
    pub(crate) operations: Vec<Grant>,
    /// Where its requests must come from.
    pub(crate) address: IpAddr,
    /// Its token's id.
    pub(crate) jti: String,
    /// Who made it.
    pub(crate) created_by: String,
    /// When.
    pub(crate) created_at: Timestamp,
    /// Its end and its token's.
    pub(crate) expires_at: Timestamp,
}

fn row(row: &impl Columns) -> Result<PeerSessionRow, StoreError> {
    Ok(PeerSessionRow {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant")?,
        user_id: row.parsed("user_id")?,
        conversation_id: row.parsed("conversation_id")?,
        operations: row.json("operations")?,
        address: row.parsed("address")?,
        jti: row.text("jti")?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at_micros")?,
        expires_at: row.time("expires_at_micros")?,
    })
}

impl Store {
    /// Adds one, and forgets those that have expired; `false` if its user is being erased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_peer_session(
        &self,
        session: &PeerSessionRow,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        change.lock_tenant(&session.tenant).await?;
        if change.is_being_erased(&session.tenant, &session.user_id).await? {
            return Ok(false);
        }
        let forget = "DELETE FROM peer_sessions WHERE expires_at_micros <= $1";
        sqlx::query(forget).bind(micros(session.created_at)).execute(&mut *change.0).await?;
        let insert = "INSERT INTO peer_sessions (id, tenant, user_id, conversation_id, operations, address, jti, \
             created_by, created_at_micros, expires_at_micros) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        sqlx::query(insert)
            .bind(session.id.as_str().to_owned())
            .bind(session.tenant.as_str().to_owned())
            .bind(session.user_id.as_str().to_owned())
            .bind(session.conversation_id.as_str().to_owned())
            .bind(json_text(&session.operations, "operations")?)
            .bind(session.address.to_string())
            .bind(session.jti.clone())
            .bind(session.created_by.clone())
            .bind(micros(session.created_at))
            .bind(micros(session.expires_at))
            .execute(&mut *change.0)
            .await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Those that live.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn peer_sessions(
        &self,
        now: Timestamp,
        only: Option<&SandboxId>,
    ) -> Result<Vec<PeerSessionRow>, StoreError> {
        let rows = Select::of("SELECT * FROM peer_sessions")
            .and("ended_at_micros IS NULL AND expires_at_micros > ?", Some(micros(now)))
            .and("id = ?", only.map(SandboxId::as_str))
            .page("created_at_micros, id", u32::MAX, &self.pool)
            .await?;
        rows.iter().map(row).collect()
    }

    /// Those that were ended before their token expired.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn ended_peer_sessions(
        &self,
        now: Timestamp,
        only: Option<&SandboxId>,
    ) -> Result<Vec<EndedSession>, StoreError> {
        let rows = Select::of("SELECT * FROM peer_sessions")
            .and("ended_at_micros IS NOT NULL AND expires_at_micros > ?", Some(micros(now)))
            .and("id = ?", only.map(SandboxId::as_str))
            .page("id", u32::MAX, &self.pool)
            .await?;
        let ended = |found| row(found).map(|it| EndedSession { sandbox_id: it.id, until: it.expires_at });
        rows.iter().map(ended).collect()
    }

    /// Ends one for good and tells until when its token would have been good; `None` if there is
    /// none, or it has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_peer_session(
        &self,
        id: &SandboxId,
        now: Timestamp,
        audit: &AuditEntry,
    ) -> Result<Option<EndedSession>, StoreError> {
        let mut change = self.change().await?;
        let end = "UPDATE peer_sessions SET ended_at_micros = $2 WHERE id = $1 AND ended_at_micros IS NULL \
             AND expires_at_micros > $2";
        let ended =
            sqlx::query(end).bind(id.as_str().to_owned()).bind(micros(now)).execute(&mut *change.0).await?;
        if ended.rows_affected() == 0 {
            return Ok(None);
        }
        let select = "SELECT expires_at_micros FROM peer_sessions WHERE id = $1";
        let found = sqlx::query(select).bind(id.as_str().to_owned()).fetch_one(&mut *change.0).await?;
        let until = found.time("expires_at_micros")?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(Some(EndedSession { sandbox_id: id.clone(), until }))
    }
}
