// SPDX-License-Identifier: Apache-2.0
//! Files whose time has come, users who are held, and what lies in the archive.

use super::files::{AT_ONCE, places};
use super::{AuditEntry, Change, Columns, FileOwner, FilesHeld, Store, StoreError, micros};
use crate::storage::{ArchivePlace, Digest, FilePath, Version};
use jiff::Timestamp;
use postern_common::id::{TenantId, UserId};
use postern_common::retention::Why;
use sqlx::AssertSqlSafe;
use std::collections::HashMap;

/// When a tenant's files go; `None`: never for that reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cutoffs {
    /// Written before.
    pub(crate) written: Option<Timestamp>,
    /// Used last before.
    pub(crate) used: Option<Timestamp>,
}

/// A place in the order of users and paths.
pub(crate) type FilePlace = (String, String);

/// A file whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DueFile {
    /// Whose.
    pub(crate) user: UserId,
    /// Which.
    pub(crate) path: FilePath,
    /// Its bytes.
    pub(crate) size: u64,
    /// Their digest, if anybody has computed it.
    pub(crate) digest: Option<Digest>,
    /// Which write of it.
    pub(crate) version: Version,
    /// Why.
    pub(crate) why: Why,
}

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchivedFile {
    /// Whose.
    pub(crate) user: UserId,
    /// Which path it had.
    pub(crate) path: FilePath,
    /// Where it lies.
    pub(crate) place: ArchivePlace,
    /// Its bytes.
    pub(crate) size: u64,
}

/// A place in the order of users, paths and places in the archive.
pub(crate) type ArchivedPlace = (String, String, String);

/// A user whose files stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HoldRow {
    /// Whose.
    pub(crate) owner: FileOwner,
    /// Why.
    pub(crate) reason: String,
    /// Who said so.
    pub(crate) set_by: String,
    /// When.
    pub(crate) set_at: Timestamp,
}

/// What became of a user who was to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetHold {
    /// They are held.
    Set,
    /// There is no such tenant, or no more.
    NoTenant,
    /// They are being erased.
    BeingErased,
}

const HOLD_ON: &str = "SELECT * FROM user_holds WHERE tenant = $1 AND user_id = $2";

fn hold(row: &impl Columns) -> Result<HoldRow, StoreError> {
    Ok(HoldRow {
        owner: FileOwner { tenant: row.parsed("tenant")?, user: row.parsed("user_id")? },
        reason: row.text("reason")?,
        set_by: row.text("set_by")?,
        set_at: row.time("set_at_micros")?,
    })
}

impl Store {
    /// Files of a tenant whose time has come and whose user has no live sandbox, by user and path:
    /// those after `after`, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn due_files(
        &self,
        tenant: &TenantId,
        cutoffs: Cutoffs,
        after: &FilePlace,
        most: u32,
    ) -> Result<Vec<DueFile>, StoreError> {
        let select = "SELECT f.user_id AS user_id, f.path AS path, f.size_bytes AS size_bytes, f.digest AS digest, \
             f.object_version AS object_version, CASE WHEN f.written_at_micros < $4 THEN 1 ELSE 0 END AS is_old \
             FROM file_metadata f LEFT JOIN user_uses u ON u.tenant = f.tenant AND u.user_id = f.user_id \
             WHERE f.tenant = $1 AND (f.user_id > $2 OR (f.user_id = $2 AND f.path > $3)) \
             AND (f.written_at_micros < $4 OR (f.used_at_micros < $5 AND COALESCE(u.used_at_micros, 0) < $5)) \
             AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.tenant = f.tenant AND s.user_id = f.user_id \
             AND s.status NOT IN ('destroyed', 'failed')) ORDER BY f.user_id, f.path LIMIT $6";
        let cutoff = |at: Option<Timestamp>| at.map_or(i64::MIN, micros);
        let query = sqlx::query(select).bind(tenant.as_str().to_owned());
        let query = query.bind(after.0.clone()).bind(after.1.clone());
        let query = query.bind(cutoff(cutoffs.written)).bind(cutoff(cutoffs.used)).bind(i64::from(most));
        let due = |row: &sqlx::any::AnyRow| {
            Ok(DueFile {
                user: row.parsed("user_id")?,
                path: row.parsed("path")?,
                size: u64::try_from(row.number("size_bytes")?).unwrap_or(0),
                digest: row.text("digest")?.parse().ok(),
                version: Version::from(row.maybe_text("object_version")?.unwrap_or_default()),
                why: if row.number("is_old")? == 1 { Why::Age } else { Why::Unused },
            })
        };
        query.fetch_all(&self.pool).await?.iter().map(due).collect()
    }

    /// Whether a user uses their files: a sandbox is live, or has brought them in since `used`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn uses_files(
        &self,
        owner: &FileOwner,
        used: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let select = "SELECT (SELECT COUNT(*) FROM sandboxes WHERE tenant = $1 AND user_id = $2 \
             AND status NOT IN ('destroyed', 'failed')) + (SELECT COUNT(*) FROM user_uses WHERE tenant = $1 \
             AND user_id = $2 AND used_at_micros >= $3) AS uses";
        let query = sqlx::query(select).bind(owner.tenant.as_str().to_owned());
        let query = query.bind(owner.user.as_str().to_owned());
        let row = query.bind(used.map_or(i64::MAX, micros)).fetch_one(&self.pool).await?;
        Ok(row.number("uses")? > 0)
    }

    /// Notes that a sandbox has brought in a user's files, once an hour at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn used_files(&self, owner: &FileOwner, now: Timestamp) -> Result<(), StoreError> {
        const HOUR_MICROS: i64 = 3_600_000_000;
        let upsert = "INSERT INTO user_uses (tenant, user_id, used_at_micros) VALUES ($1, $2, $3) \
             ON CONFLICT (tenant, user_id) DO UPDATE SET used_at_micros = excluded.used_at_micros \
             WHERE user_uses.used_at_micros < $4";
        let query = sqlx::query(upsert).bind(owner.tenant.as_str().to_owned());
        let query = query.bind(owner.user.as_str().to_owned()).bind(micros(now));
        let _turn = self.turn().await?;
        query.bind(micros(now) - HOUR_MICROS).execute(&self.pool).await?;
        Ok(())
    }

    /// Files of a tenant that came into the archive before `before`, by user, path and place: those
    /// after `after`, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn due_archived(
        &self,
        tenant: &TenantId,
        before: Timestamp,
        after: &ArchivedPlace,
        most: u32,
    ) -> Result<Vec<ArchivedFile>, StoreError> {
        let select = "SELECT user_id, path, place, size_bytes FROM archived_files \
             WHERE tenant = $1 AND (user_id > $2 OR (user_id = $2 AND (path > $3 OR (path = $3 AND place > $4)))) \
             AND archived_at_micros < $5 ORDER BY user_id, path, place LIMIT $6";
        let query = sqlx::query(select).bind(tenant.as_str().to_owned());
        let query = query.bind(after.0.clone()).bind(after.1.clone()).bind(after.2.clone());
        let query = query.bind(micros(before)).bind(i64::from(most));
        let archived = |row: &sqlx::any::AnyRow| {
            Ok(ArchivedFile {
                user: row.parsed("user_id")?,
                path: row.parsed("path")?,
                place: row.parsed("place")?,
                size: u64::try_from(row.number("size_bytes")?).unwrap_or(0),
            })
        };
        query.fetch_all(&self.pool).await?.iter().map(archived).collect()
    }

    /// Where these paths of a user have files in the archive, and since when.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn archived_among(
        &self,
        owner: &FileOwner,
        paths: &[FilePath],
    ) -> Result<HashMap<(FilePath, ArchivePlace), Timestamp>, StoreError> {
        let mut found = HashMap::new();
        for paths in paths.chunks(AT_ONCE) {
            let select = format!(
                "SELECT path, place, archived_at_micros FROM archived_files \
                 WHERE tenant = $1 AND user_id = $2 AND path IN ({})",
                places(3, paths.len())
            );
            let query = sqlx::query(AssertSqlSafe(select));
            let query = query.bind(owner.tenant.as_str()).bind(owner.user.as_str());
            let query = paths.iter().fold(query, |query, path| query.bind(path.as_str()));
            for row in query.fetch_all(&self.pool).await? {
                found.insert((row.parsed("path")?, row.parsed("place")?), row.time("archived_at_micros")?);
            }
        }
        Ok(found)
    }

    /// Holds a user, or says anew why; whoever retires files of theirs has ended before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn set_hold(
        &self,
        held: FilesHeld,
        hold: &HoldRow,
        audit: &AuditEntry,
    ) -> Result<SetHold, StoreError> {
        let (mut change, _lock) = held.into_change(self).await?;
        // INVARIANT: locked, so that neither the tenant nor the user goes beside it.
        if !change.lock_tenant(&hold.owner.tenant).await? {
            return Ok(SetHold::NoTenant);
        }
        if change.is_being_erased(&hold.owner.tenant, &hold.owner.user).await? {
            return Ok(SetHold::BeingErased);
        }
        let upsert = "INSERT INTO user_holds (tenant, user_id, reason, set_by, set_at_micros) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, user_id) DO UPDATE SET reason = excluded.reason, \
             set_by = excluded.set_by, set_at_micros = excluded.set_at_micros";
        sqlx::query(upsert)
            .bind(hold.owner.tenant.as_str().to_owned())
            .bind(hold.owner.user.as_str().to_owned())
            .bind(hold.reason.clone())
            .bind(hold.set_by.clone())
            .bind(micros(hold.set_at))
            .execute(&mut *change.0)
            .await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(SetHold::Set)
    }

    /// Lets a user go; whether they were held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn release_hold(
        &self,
        owner: &FileOwner,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let delete = sqlx::query("DELETE FROM user_holds WHERE tenant = $1 AND user_id = $2");
        let delete = delete.bind(owner.tenant.as_str().to_owned()).bind(owner.user.as_str().to_owned());
        if delete.execute(&mut *change.0).await?.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Why a user is held, if they are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn hold_on(&self, owner: &FileOwner) -> Result<Option<HoldRow>, StoreError> {
        let select = sqlx::query(HOLD_ON).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        select.fetch_optional(&self.pool).await?.as_ref().map(hold).transpose()
    }

    /// Held users of a tenant, or of all, by tenant and user: those after `after`, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn holds(
        &self,
        tenant: Option<&TenantId>,
        after: &FilePlace,
        most: u32,
    ) -> Result<Vec<HoldRow>, StoreError> {
        let select = "SELECT * FROM user_holds WHERE ($1 = '' OR tenant = $1) \
             AND (tenant > $2 OR (tenant = $2 AND user_id > $3)) ORDER BY tenant, user_id LIMIT $4";
        let query = sqlx::query(select).bind(tenant.map_or("", TenantId::as_str).to_owned());
        let query = query.bind(after.0.clone()).bind(after.1.clone()).bind(i64::from(most));
        query.fetch_all(&self.pool).await?.iter().map(hold).collect()
    }

    /// How many files of a user lie in the archive.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn count_archived(&self, owner: &FileOwner) -> Result<u64, StoreError> {
        let select = "SELECT COUNT(*) AS count FROM archived_files WHERE tenant = $1 AND user_id = $2";
        let query = sqlx::query(select).bind(owner.tenant.as_str().to_owned());
        let row = query.bind(owner.user.as_str().to_owned()).fetch_one(&self.pool).await?;
        Ok(u64::try_from(row.number("count")?).unwrap_or(0))
    }
}

impl Change {
    /// Why a user is held, if they are.
    pub(super) async fn hold_on(&mut self, owner: &FileOwner) -> Result<Option<HoldRow>, StoreError> {
        let select = sqlx::query(HOLD_ON).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        select.fetch_optional(&mut *self.0).await?.as_ref().map(hold).transpose()
    }
}
