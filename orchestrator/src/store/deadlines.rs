// SPDX-License-Identifier: Apache-2.0
//! Deadlines of sandboxes: whose has come, and what puts them off.

use super::sandboxes::on_idle;
use super::{Columns, OnIdle, Store, StoreError, micros};
use crate::lifecycle::State;
use jiff::Timestamp;
use postern_common::id::SandboxId;

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
}
