// SPDX-License-Identifier: Apache-2.0
//! What is known of snapshots of sandboxes.

use super::memory::kept_memory;
use super::{Columns, KeptMemory, Store, StoreError, json_text, micros, page_size};
use jiff::Timestamp;
use postern_common::id::{SandboxId, SnapshotId, TemplateName, TenantId, UserId};
use std::collections::BTreeMap;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    /// Its id.
    pub(crate) id: SnapshotId,
    /// Its tenant.
    pub(crate) tenant: TenantId,
    /// Whose it is.
    pub(crate) user_id: UserId,
    /// Of which sandbox it was taken.
    pub(crate) sandbox_id: SandboxId,
    /// That sandbox's template.
    pub(crate) template: TemplateName,
    /// That sandbox's labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Bytes of its files, archived, and of its memory.
    pub(crate) size_bytes: u64,
    /// Its memory, where that is in it.
    pub(crate) memory: Option<KeptMemory>,
    /// When.
    pub(crate) at: Timestamp,
}

/// Which snapshots a list is of.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotFilter {
    /// Of this tenant.
    pub(crate) tenant: Option<TenantId>,
    /// Of this user.
    pub(crate) user: Option<UserId>,
    /// Older than this one, for the next page.
    pub(crate) before: Option<SnapshotId>,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

fn row(row: &impl Columns) -> Result<SnapshotRow, StoreError> {
    Ok(SnapshotRow {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant")?,
        user_id: row.parsed("user_id")?,
        sandbox_id: row.parsed("sandbox_id")?,
        template: row.parsed("template")?,
        labels: row.json("labels")?,
        size_bytes: u64::try_from(row.number("size_bytes")?).unwrap_or(0),
        memory: row.maybe_text("memory")?.map(|text| kept_memory(&text)).transpose()?,
        at: row.time("at_micros")?,
    })
}

impl Store {
    /// Writes a snapshot down, unless its tenant has `most` already; whether it did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_snapshot(&self, snapshot: &SnapshotRow, most: u32) -> Result<bool, StoreError> {
        let insert = "INSERT INTO snapshots (id, tenant, user_id, sandbox_id, template, labels, size_bytes, at_micros, \
             memory) SELECT $1, $2, $3, $4, $5, $6, CAST($7 AS BIGINT), CAST($8 AS BIGINT), CAST($10 AS TEXT) \
             WHERE (SELECT COUNT(*) FROM snapshots WHERE tenant = $2) < $9";
        let _turn = self.turn().await?;
        let added = sqlx::query(insert)
            .bind(snapshot.id.as_str().to_owned())
            .bind(snapshot.tenant.as_str().to_owned())
            .bind(snapshot.user_id.as_str().to_owned())
            .bind(snapshot.sandbox_id.as_str().to_owned())
            .bind(snapshot.template.as_str().to_owned())
            .bind(json_text(&snapshot.labels, "labels")?)
            .bind(i64::try_from(snapshot.size_bytes).unwrap_or(i64::MAX))
            .bind(micros(snapshot.at))
            .bind(i64::from(most))
            .bind(snapshot.memory.as_ref().map(|memory| json_text(memory, "memory")).transpose()?)
            .execute(&self.pool)
            .await?;
        Ok(added.rows_affected() == 1)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn snapshot(&self, id: &SnapshotId) -> Result<Option<SnapshotRow>, StoreError> {
        let select = sqlx::query("SELECT * FROM snapshots WHERE id = $1").bind(id.as_str().to_owned());
        select.fetch_optional(&self.pool).await?.as_ref().map(row).transpose()
    }

    /// Snapshots, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotRow>, StoreError> {
        // Ids sort by time; none is `~`.
        let select = "SELECT * FROM snapshots WHERE ($1 = '' OR tenant = $1) AND ($2 = '' OR user_id = $2) \
             AND id < $3 ORDER BY id DESC LIMIT $4";
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let rows = sqlx::query(select)
            .bind(text(filter.tenant.as_ref().map(TenantId::as_str)))
            .bind(text(filter.user.as_ref().map(UserId::as_str)))
            .bind(filter.before.as_ref().map_or("~", SnapshotId::as_str).to_owned())
            .bind(i64::from(page_size(filter.limit)))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(row).collect()
    }

    /// Every snapshot's id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM snapshots").fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("id")).collect()
    }

    /// Removes a snapshot; whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_snapshot(&self, id: &SnapshotId) -> Result<bool, StoreError> {
        let _turn = self.turn().await?;
        let removed = sqlx::query("DELETE FROM snapshots WHERE id = $1").bind(id.as_str().to_owned());
        Ok(removed.execute(&self.pool).await?.rows_affected() == 1)
    }
}
