// SPDX-License-Identifier: Apache-2.0
//! Users who are being erased: marked before anything of them goes, until nothing is left.
//!
//! Under the mark nothing of theirs comes: no sandbox, no file, no hold. Who died in between, or could
//! not do all, leaves it; erasing them again goes on with it.

use super::{Action, Change, Columns, FileOwner, FilesHeld, HoldRow, Store, StoreError, micros};
use jiff::Timestamp;
use postern_common::id::{SandboxId, TenantId, UserId};

/// What became of a user who was to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BegunErasure {
    /// They are marked: all of theirs may go.
    Begun,
    /// They are held.
    Held(HoldRow),
    /// They have live sandboxes, or such whose sessions have not ended.
    Lives(Vec<SandboxId>),
}

const MARK: &str = "SELECT begun_at_micros FROM user_erasures WHERE tenant = $1 AND user_id = $2";

impl Store {
    /// Marks a user whose files nobody else changes as being erased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn begin_erasure(
        &self,
        held: FilesHeld,
        owner: &FileOwner,
        now: Timestamp,
    ) -> Result<BegunErasure, StoreError> {
        let (mut change, _lock) = held.into_change(self).await?;
        // INVARIANT: who adds a sandbox or a hold locks the tenant too: they are done, or find the mark.
        change.lock_tenant(&owner.tenant).await?;
        let (tenant, user) = (|| owner.tenant.as_str().to_owned(), || owner.user.as_str().to_owned());
        let live = "SELECT id FROM sandboxes WHERE tenant = $1 AND user_id = $2 \
             AND (status NOT IN ('destroyed', 'failed') OR EXISTS (SELECT 1 FROM sessions \
             WHERE sessions.sandbox_id = sandboxes.id AND sessions.ended_at_micros IS NULL)) ORDER BY id";
        let live = sqlx::query(live).bind(tenant()).bind(user()).fetch_all(&mut *change.0).await?;
        if !live.is_empty() {
            let ids = live.iter().map(|row| row.parsed("id")).collect::<Result<_, _>>()?;
            return Ok(BegunErasure::Lives(ids));
        }
        if let Some(hold) = change.hold_on(owner).await? {
            return Ok(BegunErasure::Held(hold));
        }
        let mark = "INSERT INTO user_erasures (tenant, user_id, begun_at_micros) VALUES ($1, $2, $3) \
             ON CONFLICT (tenant, user_id) DO NOTHING";
        let mark = sqlx::query(mark).bind(tenant()).bind(user()).bind(micros(now));
        mark.execute(&mut *change.0).await?;
        change.commit().await?;
        Ok(BegunErasure::Begun)
    }

    /// Whether a user is being erased.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn is_being_erased(&self, owner: &FileOwner) -> Result<bool, StoreError> {
        let query = sqlx::query(MARK).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        Ok(query.fetch_optional(&self.pool).await?.is_some())
    }

    /// Whether a user is being erased, or their tenant's files are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn is_going(&self, owner: &FileOwner) -> Result<bool, StoreError> {
        let select = "SELECT 1 FROM removed_tenants WHERE name = $1 AND erased_at_micros IS NULL LIMIT 1";
        let query = sqlx::query(select).bind(owner.tenant.as_str());
        let is_removed = query.fetch_optional(&self.pool).await?.is_some();
        Ok(is_removed || self.is_being_erased(owner).await?)
    }

    /// The sandboxes of a user whose files were set aside, as the audit log has it: that outlives them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn set_aside_of(&self, owner: &FileOwner) -> Result<Vec<SandboxId>, StoreError> {
        let select = "SELECT DISTINCT sandbox_id FROM sandbox_audit_log \
             WHERE tenant = $1 AND user_id = $2 AND action = $3 AND sandbox_id IS NOT NULL";
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        let found = query.bind(Action::FilesSetAside.as_str()).fetch_all(&self.pool).await?;
        found.iter().map(|row| row.parsed("sandbox_id")).collect()
    }
}

impl Change {
    /// Whether a user is being erased.
    ///
    /// INVARIANT: their tenant is locked, and stays so until what rests on the answer is written.
    pub(super) async fn is_being_erased(
        &mut self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(MARK).bind(tenant.as_str().to_owned()).bind(user.as_str().to_owned());
        Ok(query.fetch_optional(&mut *self.0).await?.is_some())
    }
}
