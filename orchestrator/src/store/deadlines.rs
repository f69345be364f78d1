// SPDX-License-Identifier: Apache-2.0
//! Deadlines of sandboxes: whose has come, and what puts them off.

use super::sandboxes::{on_idle, row};
use super::{AuditEntry, Columns, OnIdle, SandboxRow, Store, StoreError, micros};
use crate::lifecycle::State;
use jiff::Timestamp;
use postern_common::id::SandboxId;

/// How long before a deadline it is told of (contracts: an event 2 min before). Those that leave no more
/// time than this from their beginning are not told of: whoever set them knows.
const WARNING_MICROS: i64 = 2 * 60 * 1_000_000;

/// Which deadline of a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Its life's.
    Over,
    /// It was unused for too long, and this is to become of it.
    Unused(OnIdle),
    /// Nobody has resumed it.
    PausedTooLong,
}

impl Store {
    /// Notes that a running sandbox is in use.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn touch_sandbox(&self, id: &SandboxId, now: Timestamp) -> Result<(), StoreError> {
        let _under_way = self.time("touch_sandbox");
        let update = "UPDATE sandboxes SET idle_at_micros = $2 + idle_micros WHERE id = $1 AND status = 'running' \
             AND idle_at_micros < $2 + idle_micros";
        let _turn = self.turn().await?;
        sqlx::query(update).bind(id.as_str().to_owned()).bind(micros(now)).execute(&self.pool).await?;
        Ok(())
    }

    /// Live sandboxes of this place whose deadline has come, and what is to become of each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn due_sandboxes(&self, now: Timestamp) -> Result<Vec<(SandboxId, Due)>, StoreError> {
        let _under_way = self.time("due_sandboxes");
        let select = "SELECT id, status, on_idle, expires_at_micros FROM sandboxes \
             WHERE place = $2 AND status IN ('running', 'paused', 'stopped') AND (expires_at_micros <= $1 \
             OR (status = 'running' AND idle_at_micros <= $1) \
             OR (status = 'paused' AND paused_micros IS NOT NULL AND idle_at_micros <= $1)) LIMIT 1000";
        let rows =
            sqlx::query(select).bind(micros(now)).bind(self.place.to_string()).fetch_all(&self.pool).await?;
        let due = |row: &sqlx::any::AnyRow| {
            let due = if row.number("expires_at_micros")? <= micros(now) {
                Due::Over
            } else if row.text("status")? == State::Paused.as_str() {
                Due::PausedTooLong
            } else {
                Due::Unused(on_idle(&row.text("on_idle")?)?)
            };
            Ok((row.parsed("id")?, due))
        };
        rows.iter().map(due).collect()
    }

    /// Live sandboxes of this place with a deadline that comes within two minutes and was not told of: the
    /// sandbox's end, else that of its rest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn deadlines_soon(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(SandboxRow, Timestamp)>, StoreError> {
        let select = "SELECT * FROM sandboxes WHERE place = $3 AND status IN ('running', 'paused', 'stopped') \
             AND ((expires_at_micros > $1 AND expires_at_micros <= $2 \
             AND expires_at_micros - created_at_micros > $4 \
             AND COALESCE(told_deadline_micros, 0) <> expires_at_micros) \
             OR (expires_at_micros > $2 AND idle_at_micros > $1 AND idle_at_micros <= $2 \
             AND COALESCE(told_deadline_micros, 0) <> idle_at_micros \
             AND ((status = 'running' AND idle_micros >= $5) OR (status = 'paused' AND paused_micros > $4)))) \
             LIMIT 1000";
        let soon = micros(now).saturating_add(WARNING_MICROS);
        let rows = sqlx::query(select)
            .bind(micros(now))
            .bind(soon)
            .bind(self.place.to_string())
            .bind(WARNING_MICROS)
            // Where it may be unused for little longer than the warning, each use would be warned of.
            .bind(2 * WARNING_MICROS)
            .fetch_all(&self.pool)
            .await?;
        let with_deadline = |found: SandboxRow| {
            let end = found.new.expires_at;
            let deadline = if micros(end) <= soon { end } else { found.idle_at };
            (found, deadline)
        };
        rows.iter().map(|found| row(found).map(with_deadline)).collect()
    }

    /// Writes down that a deadline of a sandbox was told of, with the line that tells it; `false` if it was
    /// before, or is none any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tell_deadline(
        &self,
        id: &SandboxId,
        deadline: Timestamp,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let update = "UPDATE sandboxes SET told_deadline_micros = $2 WHERE id = $1 \
             AND status IN ('running', 'paused', 'stopped') AND COALESCE(told_deadline_micros, 0) <> $2 \
             AND (expires_at_micros = $2 OR idle_at_micros = $2)";
        let mut change = self.change().await?;
        let told = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(micros(deadline))
            .execute(&mut *change.0)
            .await?;
        if told.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }
}
