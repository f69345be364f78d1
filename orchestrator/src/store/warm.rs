// SPDX-License-Identifier: Apache-2.0
//! Sandboxes that are kept ready and are nobody's yet.

use super::sandboxes::RunningRecord;
use super::{Asked, Change, Columns, Store, StoreError, json_text, micros};
use crate::runtime::Running;
use jiff::Timestamp;
use postern_common::id::{SandboxId, TemplateName, TenantId};

/// What a warm sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WarmState {
    /// It is to be made.
    Making,
    /// It can be claimed.
    Ready,
    /// It is on its way out.
    Ending,
}

impl WarmState {
    const ALL: [Self; 3] = [Self::Making, Self::Ready, Self::Ending];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Ending => "ending",
        }
    }
}

/// A sandbox that is kept ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WarmRow {
    /// Its id, which stays when it is claimed.
    pub(crate) id: SandboxId,
    /// Whose template it is for.
    pub(crate) tenant: TenantId,
    /// The template.
    pub(crate) template: TemplateName,
    /// What it is.
    pub(crate) state: WarmState,
    /// What was asked of the runtime.
    pub(crate) asked: Asked,
    /// What the runtime made of it, once it did.
    pub(crate) running: Option<Running>,
}

fn row(row: &impl Columns) -> Result<WarmRow, StoreError> {
    let status = row.text("status")?;
    let state = WarmState::ALL.into_iter().find(|state| state.as_str() == status);
    let id: SandboxId = row.parsed("id")?;
    let running = row.maybe_text("running")?.map(|text| RunningRecord::read(&text)).transpose()?;
    Ok(WarmRow {
        tenant: row.parsed("tenant")?,
        template: row.parsed("template")?,
        state: state.ok_or(StoreError::Corrupt { what: "status" })?,
        asked: row.json("wanted")?,
        running: running.map(|record| record.of(id.clone())),
        id,
    })
}

impl Store {
    /// Writes down that a sandbox is to be made and kept ready.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_warm(&self, warm: &WarmRow, now: Timestamp) -> Result<(), StoreError> {
        let insert = "INSERT INTO warm_sandboxes (id, tenant, template, status, wanted, created_at_micros, place) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let _turn = self.turn().await?;
        sqlx::query(insert)
            .bind(warm.id.as_str().to_owned())
            .bind(warm.tenant.as_str().to_owned())
            .bind(warm.template.as_str().to_owned())
            .bind(WarmState::Making.as_str())
            .bind(json_text(&warm.asked, "wanted")?)
            .bind(micros(now))
            .bind(self.place.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Writes down that one was made; `false` if it is on its way out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn warm_is_ready(&self, running: &Running) -> Result<bool, StoreError> {
        let update = "UPDATE warm_sandboxes SET status = $2, running = $3 WHERE id = $1 AND status = $4";
        let _turn = self.turn().await?;
        let updated = sqlx::query(update)
            .bind(running.sandbox.as_str().to_owned())
            .bind(WarmState::Ready.as_str())
            .bind(RunningRecord::write(running)?)
            .bind(WarmState::Making.as_str())
            .execute(&self.pool)
            .await?;
        Ok(updated.rows_affected() == 1)
    }

    /// Writes down that one is to end; `false` if there is none any more, as when it was claimed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_warm(&self, id: &SandboxId) -> Result<bool, StoreError> {
        let update = "UPDATE warm_sandboxes SET status = $2 WHERE id = $1";
        let _turn = self.turn().await?;
        let updated = sqlx::query(update)
            .bind(id.as_str().to_owned())
            .bind(WarmState::Ending.as_str())
            .execute(&self.pool)
            .await?;
        Ok(updated.rows_affected() == 1)
    }

    /// Forgets one of which nothing is left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_warm(&self, id: &SandboxId) -> Result<(), StoreError> {
        let delete = "DELETE FROM warm_sandboxes WHERE id = $1 AND status = $2";
        let _turn = self.turn().await?;
        sqlx::query(delete)
            .bind(id.as_str().to_owned())
            .bind(WarmState::Ending.as_str())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// All of this place, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn warm_sandboxes(&self) -> Result<Vec<WarmRow>, StoreError> {
        let select = "SELECT * FROM warm_sandboxes WHERE place = $1 ORDER BY created_at_micros, id";
        let rows = sqlx::query(select).bind(self.place.to_string()).fetch_all(&self.pool).await?;
        rows.iter().map(row).collect()
    }
}

impl Change {
    /// Takes a ready one out, for good; `false` if it is not ready any more.
    pub(super) async fn claim_warm(&mut self, id: &SandboxId) -> Result<bool, StoreError> {
        let delete = "DELETE FROM warm_sandboxes WHERE id = $1 AND status = $2";
        let deleted = sqlx::query(delete)
            .bind(id.as_str().to_owned())
            .bind(WarmState::Ready.as_str())
            .execute(&mut *self.0)
            .await?;
        Ok(deleted.rows_affected() == 1)
    }
}
