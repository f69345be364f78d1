// SPDX-License-Identifier: Apache-2.0
//! Sessions of sandboxes' syncs.

use super::{Columns, Select, Store, StoreError, json_text, micros};
use jiff::Timestamp;
use postern_common::control::EndedSession;
use postern_common::id::{ConversationId, SandboxId, TemplateName, TenantId, UserId};
use postern_common::session::{AcceptedToken, Peer};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyncSessionRow {
    /// Its id, which has the form of a sandbox's.
    pub(crate) id: SandboxId,
    /// The sandbox whose files it carries.
    pub(crate) sandbox: SandboxId,
    /// Its tenant.
    pub(crate) tenant: TenantId,
    /// Its user: these files and no others.
    pub(crate) user_id: UserId,
    /// Its conversation.
    pub(crate) conversation_id: ConversationId,
    /// The sandbox's template.
    pub(crate) template: TemplateName,
    /// Where its requests must come from.
    pub(crate) peer: Peer,
    /// The tokens that are accepted.
    pub(crate) tokens: Vec<AcceptedToken>,
    /// When the token is to be replaced.
    pub(crate) rotate_at: Timestamp,
}

impl SyncSessionRow {
    /// When its last token expires.
    pub(crate) fn last_token_until(&self) -> Timestamp {
        self.tokens.iter().map(|token| token.until).max().unwrap_or(Timestamp::MIN)
    }
}

fn row(row: &impl Columns) -> Result<SyncSessionRow, StoreError> {
    Ok(SyncSessionRow {
        id: row.parsed("id")?,
        sandbox: row.parsed("sandbox_id")?,
        tenant: row.parsed("tenant")?,
        user_id: row.parsed("user_id")?,
        conversation_id: row.parsed("conversation_id")?,
        template: row.parsed("template")?,
        peer: row.json("peer")?,
        tokens: row.json("tokens")?,
        rotate_at: row.time("rotate_at_micros")?,
    })
}

impl Store {
    /// Writes one that is new.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_sync_session(&self, session: &SyncSessionRow) -> Result<(), StoreError> {
        let insert = "INSERT INTO sync_sessions (id, sandbox_id, tenant, user_id, conversation_id, template, \
             peer, tokens, rotate_at_micros, last_token_until_micros) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let _turn = self.turn().await?;
        sqlx::query(insert)
            .bind(session.id.as_str().to_owned())
            .bind(session.sandbox.as_str().to_owned())
            .bind(session.tenant.as_str().to_owned())
            .bind(session.user_id.as_str().to_owned())
            .bind(session.conversation_id.as_str().to_owned())
            .bind(session.template.as_str().to_owned())
            .bind(json_text(&session.peer, "peer")?)
            .bind(json_text(&session.tokens, "tokens")?)
            .bind(micros(session.rotate_at))
            .bind(micros(session.last_token_until()))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Writes the tokens of one that lives; `false` if it has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn change_sync_session(&self, session: &SyncSessionRow) -> Result<bool, StoreError> {
        let update = "UPDATE sync_sessions SET tokens = $2, rotate_at_micros = $3, last_token_until_micros = $4 \
             WHERE id = $1 AND ended_at_micros IS NULL";
        let _turn = self.turn().await?;
        let changed = sqlx::query(update)
            .bind(session.id.as_str().to_owned())
            .bind(json_text(&session.tokens, "tokens")?)
            .bind(micros(session.rotate_at))
            .bind(micros(session.last_token_until()))
            .execute(&self.pool)
            .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// One that has not ended, by its own id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sync_session(&self, id: &SandboxId) -> Result<Option<SyncSessionRow>, StoreError> {
        let select = "SELECT * FROM sync_sessions WHERE id = $1 AND ended_at_micros IS NULL";
        let found = sqlx::query(select).bind(id.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// Those that have not ended: of one sandbox, or all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sync_sessions(
        &self,
        sandbox: Option<&SandboxId>,
    ) -> Result<Vec<SyncSessionRow>, StoreError> {
        let select = "SELECT * FROM sync_sessions WHERE ended_at_micros IS NULL AND (sandbox_id = $1 OR $1 = '') \
             ORDER BY id";
        let sandbox = sandbox.map_or("", SandboxId::as_str).to_owned();
        let rows = sqlx::query(select).bind(sandbox).fetch_all(&self.pool).await?;
        rows.iter().map(row).collect()
    }

    /// Sandboxes of this place that run and whose sync's token is to be replaced by now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn syncs_to_rotate(&self, now: Timestamp) -> Result<Vec<SandboxId>, StoreError> {
        let _under_way = self.time("syncs_to_rotate");
        let select = "SELECT sandbox_id FROM sync_sessions WHERE ended_at_micros IS NULL AND rotate_at_micros <= $1 \
             AND sandbox_id IN (SELECT id FROM sandboxes WHERE status = 'running' AND place = $2) \
             ORDER BY rotate_at_micros LIMIT 1000";
        let rows =
            sqlx::query(select).bind(micros(now)).bind(self.place.to_string()).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("sandbox_id")).collect()
    }

    /// Ends one for good.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_sync_session(&self, id: &SandboxId, now: Timestamp) -> Result<(), StoreError> {
        let end = "UPDATE sync_sessions SET ended_at_micros = $2 WHERE id = $1 AND ended_at_micros IS NULL";
        let _turn = self.turn().await?;
        sqlx::query(end).bind(id.as_str().to_owned()).bind(micros(now)).execute(&self.pool).await?;
        Ok(())
    }

    /// Those that ended and whose tokens have not all expired, or only one of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn ended_sync_sessions(
        &self,
        now: Timestamp,
        only: Option<&SandboxId>,
    ) -> Result<Vec<EndedSession>, StoreError> {
        let rows = Select::of("SELECT id, last_token_until_micros FROM sync_sessions")
            .and("ended_at_micros IS NOT NULL AND last_token_until_micros > ?", Some(micros(now)))
            .and("id = ?", only.map(SandboxId::as_str))
            .page("id", u32::MAX, &self.pool)
            .await?;
        let ended = |row: &sqlx::any::AnyRow| {
            Ok(EndedSession { sandbox_id: row.parsed("id")?, until: row.time("last_token_until_micros")? })
        };
        rows.iter().map(ended).collect()
    }

    /// Which version of a file was written last as far as is known, and by whom.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn file_writer(
        &self,
        (tenant, user): (&TenantId, &UserId),
        path: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        let select = "SELECT COALESCE(object_version, '') AS version, written_by FROM file_metadata \
             WHERE tenant = $1 AND user_id = $2 AND path = $3";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(user.as_str().to_owned())
            .bind(path.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|row| Ok((row.text("version")?, row.text("written_by")?))).transpose()
    }

    /// The newest change of a user's files, 0 if there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn newest_revision(
        &self,
        (tenant, user): (&TenantId, &UserId),
    ) -> Result<i64, StoreError> {
        // By the end of an index, however long the log is.
        let select = "SELECT CAST(COALESCE(MAX(sequence), 0) AS BIGINT) AS newest FROM file_audit_log \
             WHERE tenant = $1 AND user_id = $2";
        let query = sqlx::query(select).bind(tenant.as_str().to_owned()).bind(user.as_str().to_owned());
        query.fetch_one(&self.pool).await?.number("newest")
    }

    /// The newest change of a user's files after one that is known, and whether any of those was not
    /// made in this sandbox.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn files_revision(
        &self,
        (tenant, user): (&TenantId, &UserId),
        sandbox: &SandboxId,
        after: i64,
    ) -> Result<(i64, bool), StoreError> {
        let select = "SELECT CAST(COALESCE(MAX(sequence), $4) AS BIGINT) AS newest, \
             CAST(COALESCE(MAX(CASE WHEN sandbox_id = $3 THEN 0 ELSE 1 END), 0) AS BIGINT) AS theirs \
             FROM file_audit_log WHERE tenant = $1 AND user_id = $2 AND sequence > $4";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(user.as_str().to_owned())
            .bind(sandbox.as_str().to_owned())
            .bind(after)
            .fetch_one(&self.pool)
            .await?;
        Ok((found.number("newest")?, found.number("theirs")? != 0))
    }
}
