// SPDX-License-Identifier: Apache-2.0
//! Uploads that are under way, and what goes when a user is erased.

use super::{AuditEntry, Columns, Dialect, FileOwner, Share, Store, StoreError, micros};
use crate::storage::{Condition, Digest, FilePath, Version};
use jiff::Timestamp;
use postern_common::id::{TenantId, UploadId, UserId};
use sqlx::any::AnyRow;

/// Uploads of one user that may be under way: each may have a thousand parts.
pub(crate) const OPEN_UPLOADS: i64 = 100;

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UploadRow {
    /// Its id.
    pub(crate) id: UploadId,
    /// Whose file it is to be.
    pub(crate) owner: FileOwner,
    /// Where.
    pub(crate) path: FilePath,
    /// Its bytes.
    pub(crate) size: u64,
    /// The bytes of each part but the last.
    pub(crate) part_bytes: u64,
    /// What its digest must be.
    pub(crate) digest: Option<Digest>,
    /// Its media type.
    pub(crate) content_type: Option<String>,
    /// Its mode.
    pub(crate) mode: Option<u32>,
    /// What must be there when it is completed.
    pub(crate) condition: Condition,
    /// Who began it.
    pub(crate) created_by: String,
    /// When.
    pub(crate) created_at: Timestamp,
    /// When it is forgotten.
    pub(crate) expires_at: Timestamp,
    /// The version that it became.
    pub(crate) completed: Option<Version>,
}

/// What of a user was erased from the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ErasedRows {
    /// Files.
    pub(crate) files: u64,
    /// Decisions.
    pub(crate) decisions: u64,
    /// Files in the archive.
    pub(crate) archived: u64,
    /// Snapshots.
    pub(crate) snapshots: u64,
    /// Sandboxes that are over.
    pub(crate) sandboxes: u64,
    /// Sessions of addresses and of syncs.
    pub(crate) sessions: u64,
}

impl Store {
    /// Begins an upload, unless its user has too many under way, or all of them together would have
    /// more than `most_bytes`; tells whether it did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_upload(
        &self,
        upload: &UploadRow,
        most_bytes: u64,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let (tenant, user) = (upload.owner.tenant.as_str(), upload.owner.user.as_str());
        // One after the other, so that each sees those before it.
        let held = self.hold_files((&format!("uploads {tenant} {user}"), Share::Alone), &[]).await?;
        let (mut change, _lock) = held.into_change(self).await?;
        let select = "SELECT COUNT(*) AS uploads, CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) AS bytes \
             FROM file_uploads WHERE tenant = $1 AND user_id = $2 AND completed_version IS NULL";
        let open = sqlx::query(select).bind(tenant).bind(user).fetch_one(&mut *change.0).await?;
        let bytes = u64::try_from(open.number("bytes")?).unwrap_or(u64::MAX).saturating_add(upload.size);
        if open.number("uploads")? >= OPEN_UPLOADS || bytes > most_bytes {
            return Ok(false);
        }
        let insert = "INSERT INTO file_uploads (id, tenant, user_id, path, size_bytes, part_bytes, digest, \
             content_type, mode, condition, created_by, created_at_micros, expires_at_micros) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
        sqlx::query(insert)
            .bind(upload.id.as_str())
            .bind(upload.owner.tenant.as_str())
            .bind(upload.owner.user.as_str())
            .bind(upload.path.as_str())
            .bind(i64::try_from(upload.size).unwrap_or(i64::MAX))
            .bind(i64::try_from(upload.part_bytes).unwrap_or(i64::MAX))
            .bind(upload.digest.map(|digest| digest.to_string()))
            .bind(upload.content_type.clone())
            .bind(upload.mode.map(i64::from))
            .bind(condition_text(&upload.condition))
            .bind(upload.created_by.clone())
            .bind(micros(upload.created_at))
            .bind(micros(upload.expires_at))
            .execute(&mut *change.0)
            .await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// An upload.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn upload(&self, id: &UploadId) -> Result<Option<UploadRow>, StoreError> {
        let select = sqlx::query("SELECT * FROM file_uploads WHERE id = $1").bind(id.as_str());
        select.fetch_optional(&self.pool).await?.as_ref().map(row).transpose()
    }

    /// Notes what an upload became.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn upload_completed(&self, id: &UploadId, version: &Version) -> Result<(), StoreError> {
        let update = "UPDATE file_uploads SET completed_version = $2 WHERE id = $1";
        let _turn = self.turn().await?;
        sqlx::query(update).bind(id.as_str()).bind(version.as_str()).execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets an upload.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_upload(&self, id: &UploadId) -> Result<(), StoreError> {
        let _turn = self.turn().await?;
        sqlx::query("DELETE FROM file_uploads WHERE id = $1").bind(id.as_str()).execute(&self.pool).await?;
        Ok(())
    }

    /// Uploads that have expired, the oldest first, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn expired_uploads(
        &self,
        now: Timestamp,
        most: u32,
    ) -> Result<Vec<UploadId>, StoreError> {
        let select =
            "SELECT id FROM file_uploads WHERE expires_at_micros <= $1 ORDER BY expires_at_micros LIMIT $2";
        let rows = sqlx::query(select).bind(micros(now)).bind(i64::from(most)).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("id")).collect()
    }

    /// The uploads of a user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn uploads_of(&self, owner: &FileOwner) -> Result<Vec<UploadId>, StoreError> {
        let select = "SELECT id FROM file_uploads WHERE tenant = $1 AND user_id = $2";
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        query.fetch_all(&self.pool).await?.iter().map(|row| row.parsed("id")).collect()
    }

    /// Forgets what is known of a user's files, sandboxes and sessions, and what was decided of the
    /// user's requests; then they are being erased no more.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was forgotten.
    pub(crate) async fn erase_user(
        &self,
        owner: &FileOwner,
        audit: &AuditEntry,
    ) -> Result<ErasedRows, StoreError> {
        let mut change = self.change().await?;
        let decisions = match self.dialect {
            Dialect::Sqlite => {
                "DELETE FROM decisions WHERE tenant = $1 AND json_extract(record, '$.user_id') = $2"
            }
            Dialect::Postgres => {
                "DELETE FROM decisions WHERE tenant = $1 AND (record::json ->> 'user_id') = $2"
            }
        };
        let mut erased = [0; 10];
        for (count, delete) in erased.iter_mut().zip([
            "DELETE FROM file_metadata WHERE tenant = $1 AND user_id = $2",
            decisions,
            "DELETE FROM archived_files WHERE tenant = $1 AND user_id = $2",
            "DELETE FROM snapshots WHERE tenant = $1 AND user_id = $2",
            "DELETE FROM file_uploads WHERE tenant = $1 AND user_id = $2",
            // Those that are over; none lives while this is called.
            "DELETE FROM sandboxes WHERE tenant = $1 AND user_id = $2 AND status IN ('destroyed', 'failed')",
            "DELETE FROM peer_sessions WHERE tenant = $1 AND user_id = $2",
            "DELETE FROM sync_sessions WHERE tenant = $1 AND user_id = $2",
            "DELETE FROM user_uses WHERE tenant = $1 AND user_id = $2",
            // Nothing is left: the mark that kept the rest away goes with the last of it.
            "DELETE FROM user_erasures WHERE tenant = $1 AND user_id = $2",
        ]) {
            let delete = sqlx::query(delete).bind(owner.tenant.as_str()).bind(owner.user.as_str());
            *count = delete.execute(&mut *change.0).await?.rows_affected();
        }
        change.record(audit).await?;
        change.commit().await?;
        let [files, decisions, archived, snapshots, _uploads, sandboxes, peers, syncs, _uses, _mark] = erased;
        Ok(ErasedRows { files, decisions, archived, snapshots, sandboxes, sessions: peers + syncs })
    }
}

const VERSION: &str = "version:";

fn condition_text(condition: &Condition) -> String {
    match condition {
        Condition::Anything => "anything".to_owned(),
        Condition::Nothing => "nothing".to_owned(),
        Condition::Something => "something".to_owned(),
        Condition::Version(version) => format!("{VERSION}{}", version.as_str()),
    }
}

fn condition(text: &str) -> Result<Condition, StoreError> {
    match (text, text.strip_prefix(VERSION)) {
        ("anything", _) => Ok(Condition::Anything),
        ("nothing", _) => Ok(Condition::Nothing),
        ("something", _) => Ok(Condition::Something),
        (_, Some(version)) => Ok(Condition::Version(Version::from(version.to_owned()))),
        _ => Err(StoreError::Corrupt { what: "condition" }),
    }
}

fn row(row: &AnyRow) -> Result<UploadRow, StoreError> {
    let bytes = |name| row.number(name).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let (tenant, user): (TenantId, UserId) = (row.parsed("tenant")?, row.parsed("user_id")?);
    Ok(UploadRow {
        id: row.parsed("id")?,
        owner: FileOwner { tenant, user },
        path: row.parsed("path")?,
        size: bytes("size_bytes")?,
        part_bytes: bytes("part_bytes")?,
        digest: row.maybe_parsed("digest")?,
        content_type: row.maybe_text("content_type")?,
        mode: row.maybe_number("mode")?.and_then(|mode| u32::try_from(mode).ok()),
        condition: condition(&row.text("condition")?)?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at_micros")?,
        expires_at: row.time("expires_at_micros")?,
        completed: row.maybe_text("completed_version")?.map(Version::from),
    })
}
