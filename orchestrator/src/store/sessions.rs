// SPDX-License-Identifier: Apache-2.0
//! Sessions: which tokens gateways accept, until when. Tokens themselves are never stored.

use super::{Change, Columns, Select, Store, StoreError, json_text, micros};
use jiff::Timestamp;
use postern_common::control::EndedSession;
use postern_common::id::SandboxId;
use postern_common::session::{AcceptedToken, Peer};

/// What is known of a session besides its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRow {
    /// Whose it is.
    pub(crate) sandbox_id: SandboxId,
    /// Where its requests must come from.
    pub(crate) peer: Peer,
    /// The tokens that are accepted.
    pub(crate) tokens: Vec<AcceptedToken>,
    /// The session's end.
    pub(crate) expires_at: Timestamp,
    /// When the token is to be replaced.
    pub(crate) rotate_at: Timestamp,
}

fn row(row: &impl Columns) -> Result<SessionRow, StoreError> {
    Ok(SessionRow {
        sandbox_id: row.parsed("sandbox_id")?,
        peer: row.json("peer")?,
        tokens: row.json("tokens")?,
        expires_at: row.time("expires_at_micros")?,
        rotate_at: row.time("rotate_at_micros")?,
    })
}

impl Change {
    /// Writes a session; `false` if it has ended already, or if its sandbox does not live.
    pub(super) async fn put_session(&mut self, session: &SessionRow) -> Result<bool, StoreError> {
        let upsert = "INSERT INTO sessions (sandbox_id, peer, tokens, expires_at_micros, rotate_at_micros, \
             last_token_until_micros) SELECT id, CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS BIGINT), \
             CAST($5 AS BIGINT), CAST($6 AS BIGINT) FROM sandboxes \
             WHERE id = $1 AND status IN ('creating', 'running', 'paused', 'stopped', 'waking') ON CONFLICT (sandbox_id) DO UPDATE SET \
             peer = excluded.peer, tokens = excluded.tokens, expires_at_micros = excluded.expires_at_micros, \
             rotate_at_micros = excluded.rotate_at_micros, last_token_until_micros = CASE WHEN excluded.tokens = '[]' \
             THEN sessions.last_token_until_micros ELSE excluded.last_token_until_micros END \
             WHERE sessions.ended_at_micros IS NULL";
        let last = session.tokens.iter().map(|token| token.until).max().unwrap_or(session.expires_at);
        let written = sqlx::query(upsert)
            .bind(session.sandbox_id.as_str().to_owned())
            .bind(json_text(&session.peer, "peer")?)
            .bind(json_text(&session.tokens, "tokens")?)
            .bind(micros(session.expires_at))
            .bind(micros(session.rotate_at))
            .bind(micros(last))
            .execute(&mut *self.0)
            .await?;
        Ok(written.rows_affected() == 1)
    }
}

impl Store {
    /// Writes a session, for whoever has claimed its sandbox; `false` if it has ended already, which stays so, or if its sandbox is on
    /// its way out: what would end it may have passed by.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn put_session(&self, session: &SessionRow) -> Result<bool, StoreError> {
        let _under_way = self.time("put_session");
        let mut change = self.change().await?;
        change.still_ours(self, &session.sandbox_id).await?;
        let is_written = change.put_session(session).await?;
        change.commit().await?;
        Ok(is_written)
    }

    /// The session of a sandbox, unless it has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn session(&self, sandbox: &SandboxId) -> Result<Option<SessionRow>, StoreError> {
        let _under_way = self.time("session");
        let select = "SELECT * FROM sessions WHERE sandbox_id = $1 AND ended_at_micros IS NULL";
        let found = sqlx::query(select).bind(sandbox.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// Sessions of this place whose token is to be replaced. That of a paused sandbox, which cannot take one, is
    /// replaced when it is resumed; that of a stopped one has none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sessions_to_rotate(&self, now: Timestamp) -> Result<Vec<SandboxId>, StoreError> {
        let _under_way = self.time("sessions_to_rotate");
        let select = "SELECT sandbox_id FROM sessions WHERE ended_at_micros IS NULL AND rotate_at_micros <= $1 \
             AND expires_at_micros > $1 AND sandbox_id IN \
             (SELECT id FROM sandboxes WHERE status NOT IN ('paused', 'stopped', 'waking') AND place = $2) \
             ORDER BY rotate_at_micros LIMIT 1000";
        let rows =
            sqlx::query(select).bind(micros(now)).bind(self.place.to_string()).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("sandbox_id")).collect()
    }

    /// Sandboxes that are over and whose session has not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sessions_of_the_over(&self) -> Result<Vec<SandboxId>, StoreError> {
        let select = "SELECT sandbox_id FROM sessions JOIN sandboxes ON sandboxes.id = sessions.sandbox_id \
             WHERE sessions.ended_at_micros IS NULL AND status IN ('destroyed', 'failed') LIMIT 1000";
        let rows = sqlx::query(select).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("sandbox_id")).collect()
    }

    /// Has a live session's token replaced at `at`, sooner or later than was planned; for whoever has
    /// claimed its sandbox.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn rotate_session_at(
        &self,
        sandbox: &SandboxId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        change.still_ours(self, sandbox).await?;
        sqlx::query(
            "UPDATE sessions SET rotate_at_micros = $2 WHERE sandbox_id = $1 AND ended_at_micros IS NULL",
        )
        .bind(sandbox.as_str().to_owned())
        .bind(micros(at))
        .execute(&mut *change.0)
        .await?;
        change.commit().await
    }

    /// Ends a session for good and tells until when its tokens would have been good; `None` if
    /// there never was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_session(
        &self,
        sandbox: &SandboxId,
        now: Timestamp,
    ) -> Result<Option<EndedSession>, StoreError> {
        let _under_way = self.time("end_session");
        let mut change = self.change().await?;
        sqlx::query(
            "UPDATE sessions SET ended_at_micros = $2 WHERE sandbox_id = $1 AND ended_at_micros IS NULL",
        )
        .bind(sandbox.as_str().to_owned())
        .bind(micros(now))
        .execute(&mut *change.0)
        .await?;
        let select = "SELECT last_token_until_micros FROM sessions WHERE sandbox_id = $1";
        let found =
            sqlx::query(select).bind(sandbox.as_str().to_owned()).fetch_optional(&mut *change.0).await?;
        let until = found.map(|row| row.time("last_token_until_micros")).transpose()?;
        change.commit().await?;
        Ok(until.map(|until| EndedSession { sandbox_id: sandbox.clone(), until }))
    }

    /// Ended sessions whose tokens have not all expired.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn ended_sessions(
        &self,
        now: Timestamp,
        only: Option<&SandboxId>,
    ) -> Result<Vec<EndedSession>, StoreError> {
        let rows = Select::of("SELECT sandbox_id, last_token_until_micros FROM sessions")
            .and("ended_at_micros IS NOT NULL AND last_token_until_micros > ?", Some(micros(now)))
            .and("sandbox_id = ?", only.map(SandboxId::as_str))
            .page("sandbox_id", u32::MAX, &self.pool)
            .await?;
        let ended = |row: &sqlx::any::AnyRow| {
            Ok(EndedSession {
                sandbox_id: row.parsed("sandbox_id")?,
                until: row.time("last_token_until_micros")?,
            })
        };
        rows.iter().map(ended).collect()
    }

    /// Forgets ended sessions whose tokens have all expired.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_sessions(&self, now: Timestamp) -> Result<(), StoreError> {
        for forget in [
            "DELETE FROM sessions WHERE ended_at_micros IS NOT NULL AND last_token_until_micros <= $1",
            "DELETE FROM sync_sessions WHERE ended_at_micros IS NOT NULL AND last_token_until_micros <= $1",
        ] {
            let _turn = self.turn().await?;
            sqlx::query(forget).bind(micros(now)).execute(&self.pool).await?;
        }
        Ok(())
    }
}
