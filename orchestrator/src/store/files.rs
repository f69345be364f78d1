// SPDX-License-Identifier: Apache-2.0
//! What is known of users' files besides their bytes, and what happened to them.
//!
//! The store of objects is the truth; a row here is what was written last as far as we know, and
//! counts only while its version is the object's. Each change is written in one transaction with
//! its line of the log.

use super::file_audit::FileEntry;
use super::user_locks::UserLock;
use super::{Change, Columns, Dialect, Store, StoreError, micros};
use crate::storage::{ArchivePlace, Digest, FilePath, Usage, Version, Writer};
use jiff::Timestamp;
use postern_common::id::{TenantId, UserId};
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Files of one statement: 13 values each, well below what either database takes.
pub(super) const AT_ONCE: usize = 100;

/// A file as it was written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRow {
    /// Where it is.
    pub(crate) path: FilePath,
    /// Its bytes.
    pub(crate) size: u64,
    /// Their digest, if anybody has computed it.
    pub(crate) digest: Option<Digest>,
    /// Its mode.
    pub(crate) mode: u32,
    /// Which write it is.
    pub(crate) version: Version,
    /// When it was changed, as who wrote it said.
    pub(crate) modified: Timestamp,
    /// Its media type.
    pub(crate) content_type: Option<String>,
}

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileChange {
    /// It was written.
    Written(FileRow),
    /// It was removed by us.
    Removed(FilePath),
    /// Retention moved it to this place in the archive; this is what it was.
    Archived(FileRow, ArchivePlace),
    /// Retention removed it.
    Expired(FilePath),
    /// Retention removed it from this place in the archive.
    ArchiveExpired(FilePath, ArchivePlace),
    /// Somebody else wrote it right into the store.
    Found(FileRow),
    /// Somebody else removed it from the store; this version was there.
    Missing(FilePath, Version),
    /// Its mode is another.
    Mode(FilePath, u32),
    /// A folder or link was made or removed.
    Shaped(FilePath),
}

impl FileChange {
    const fn action(&self) -> &'static str {
        match self {
            Self::Written(_) => "file.written",
            Self::Removed(_) => "file.removed",
            Self::Archived(..) => "file.archived",
            Self::Expired(_) => "file.expired",
            Self::ArchiveExpired(..) => "file.archive-expired",
            Self::Found(_) => "file.found",
            Self::Missing(..) => "file.missing",
            Self::Mode(..) => "file.mode",
            Self::Shaped(_) => "file.shaped",
        }
    }

    /// Of which file.
    pub(crate) const fn path(&self) -> &FilePath {
        match self {
            Self::Written(row) | Self::Found(row) | Self::Archived(row, _) => &row.path,
            Self::Removed(path)
            | Self::Expired(path)
            | Self::ArchiveExpired(path, _)
            | Self::Missing(path, _)
            | Self::Mode(path, _)
            | Self::Shaped(path) => path,
        }
    }
}

/// Whose files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileOwner {
    /// The tenant.
    pub(crate) tenant: TenantId,
    /// Its user.
    pub(crate) user: UserId,
}

/// Who else may change a user's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Whoever changes others of them.
    Together,
    /// Nobody.
    Alone,
}

/// What is known of all of a user's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileState {
    /// What they take.
    pub(crate) usage: Usage,
    /// Whether their user is being erased.
    pub(crate) is_being_erased: bool,
}

/// No other orchestrator changes these files while this lives.
pub(crate) struct FilesHeld {
    change: Option<Change>,
    lock: Option<UserLock>,
}

impl FilesHeld {
    /// The change that holds them, or a new one where locks of this machine do; those are held as long
    /// as the other half lives.
    pub(super) async fn into_change(self, store: &Store) -> Result<(Change, Option<UserLock>), StoreError> {
        match self.change {
            Some(change) => Ok((change, self.lock)),
            None => Ok((store.change().await?, self.lock)),
        }
    }
}

/// A line of the log of files.
#[cfg(test)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileEvent {
    /// Its place in the log.
    pub(crate) sequence: i64,
    /// What happened.
    pub(crate) action: String,
    /// To what.
    pub(crate) path: String,
    /// Who did it.
    pub(crate) actor: String,
}

impl Store {
    /// Waits until no other orchestrator changes any of these objects of a user, or anything of theirs if
    /// all is to be changed alone. SQLite serves only one, whose own locks do, and what an operator runs
    /// beside it, which the user's lock keeps apart.
    ///
    /// # Errors
    /// [`StoreError`], also if others hold them for too long.
    pub(crate) async fn hold_files(
        &self,
        (user, share): (&str, Share),
        keys: &[&str],
    ) -> Result<FilesHeld, StoreError> {
        if let Some(locks) = &self.user_locks {
            return Ok(FilesHeld { change: None, lock: Some(locks.hold(user, share).await?) });
        }
        let mut change = self.change().await?;
        let files: BTreeSet<i64> = keys.iter().map(|key| number(key)).collect();
        let numbers = [number(user)].into_iter().chain(files);
        let list = numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        // In one order for everybody, the user first, so that two never wait for each other.
        let hold = "SELECT COUNT(CASE WHEN place = 1 AND $2 = 1 THEN pg_advisory_xact_lock_shared(number)::text \
             ELSE pg_advisory_xact_lock(number)::text END) FROM \
             (SELECT number, place FROM unnest(string_to_array($1, ',')::bigint[]) WITH ORDINALITY \
             AS numbered (number, place) ORDER BY place) AS numbers";
        let query = sqlx::query(hold).bind(list).bind(i64::from(share == Share::Together));
        query.execute(&mut *change.0).await?;
        Ok(FilesHeld { change: Some(change), lock: None })
    }

    /// Writes down what happened to files, and lets them go.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it was written.
    pub(crate) async fn end_files(
        &self,
        held: FilesHeld,
        owner: &FileOwner,
        by: &Writer,
        at: Timestamp,
        changes: &[FileChange],
    ) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (mut change, _lock) = held.into_change(self).await?;
        change.files(owner, by, at, changes).await?;
        change.commit().await
    }

    /// Every file of a user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn files(&self, owner: &FileOwner) -> Result<Vec<FileRow>, StoreError> {
        let select = "SELECT path, size_bytes, digest, mode, object_version, modified_at_micros, content_type \
             FROM file_metadata WHERE tenant = $1 AND user_id = $2";
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        query.fetch_all(&self.pool).await?.iter().map(row).collect()
    }

    /// Files of a user by path, byte by byte: those after `after` whose path begins with `prefix`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn files_page(
        &self,
        owner: &FileOwner,
        prefix: &str,
        after: Option<&FilePath>,
        limit: u32,
    ) -> Result<Vec<FileRow>, StoreError> {
        let select = match self.dialect {
            Dialect::Sqlite => {
                "SELECT path, size_bytes, digest, mode, object_version, modified_at_micros, content_type \
                 FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND path > $3 \
                 AND substr(path, 1, $4) = $5 ORDER BY path LIMIT $6"
            }
            Dialect::Postgres => {
                "SELECT path, size_bytes, digest, mode, object_version, modified_at_micros, content_type \
                 FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND path COLLATE \"C\" > $3 \
                 AND substr(path, 1, $4::int) = $5 ORDER BY path COLLATE \"C\" LIMIT $6"
            }
        };
        let query = sqlx::query(AssertSqlSafe(select)).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        let query = query.bind(after.map_or("", FilePath::as_str));
        let query = query.bind(i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX)).bind(prefix);
        query.bind(i64::from(limit)).fetch_all(&self.pool).await?.iter().map(row).collect()
    }

    /// A file of a user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn file(
        &self,
        owner: &FileOwner,
        path: &FilePath,
    ) -> Result<Option<FileRow>, StoreError> {
        let select = "SELECT path, size_bytes, digest, mode, object_version, modified_at_micros, content_type \
             FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND path = $3";
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        query.bind(path.as_str()).fetch_optional(&self.pool).await?.as_ref().map(row).transpose()
    }

    /// What a user's files take.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn file_usage(&self, owner: &FileOwner) -> Result<Usage, StoreError> {
        Ok(self.file_state(owner).await?.usage)
    }

    /// What a change of a user's files begins with.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn file_state(&self, owner: &FileOwner) -> Result<FileState, StoreError> {
        // The type of a sum is the database's own choice.
        let length = match self.dialect {
            Dialect::Sqlite => "LENGTH(CAST(path AS BLOB))",
            Dialect::Postgres => "OCTET_LENGTH(path)",
        };
        let select = format!(
            "SELECT CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) AS bytes, COUNT(*) AS files, \
             CAST(COALESCE(SUM({length}), 0) AS BIGINT) AS names, \
             (SELECT COUNT(*) FROM user_erasures WHERE tenant = $1 AND user_id = $2) AS erasures \
             FROM file_metadata WHERE tenant = $1 AND user_id = $2"
        );
        let query = sqlx::query(AssertSqlSafe(select)).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        let found = query.fetch_one(&self.pool).await?;
        let number = |name| found.number(name).map(|number| u64::try_from(number).unwrap_or(0));
        let usage = Usage { bytes: number("bytes")?, files: number("files")?, names: number("names")? };
        Ok(FileState { usage, is_being_erased: number("erasures")? > 0 })
    }

    /// Those of these files that are there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn files_among(
        &self,
        owner: &FileOwner,
        paths: &[FilePath],
    ) -> Result<HashMap<FilePath, FileRow>, StoreError> {
        let mut found = HashMap::with_capacity(paths.len());
        for paths in paths.chunks(AT_ONCE) {
            let select = format!(
                "SELECT path, size_bytes, digest, mode, object_version, modified_at_micros, content_type \
                 FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND path IN ({})",
                places(3, paths.len())
            );
            let query = sqlx::query(AssertSqlSafe(select));
            let query = query.bind(owner.tenant.as_str()).bind(owner.user.as_str());
            let query = paths.iter().fold(query, |query, path| query.bind(path.as_str()));
            for one in query.fetch_all(&self.pool).await? {
                let one = row(&one)?;
                found.insert(one.path.clone(), one);
            }
        }
        Ok(found)
    }

    /// Those of these paths that are folders, for a file lies below them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn folders_among(
        &self,
        owner: &FileOwner,
        paths: &[FilePath],
    ) -> Result<HashSet<FilePath>, StoreError> {
        // `0` is the character after `/`: byte by byte, whatever the database's own order is.
        let below = match self.dialect {
            Dialect::Sqlite => "path > asked.column1 || '/' AND path < asked.column1 || '0'",
            Dialect::Postgres => {
                "path COLLATE \"C\" > asked.column1 || '/' AND path COLLATE \"C\" < asked.column1 || '0'"
            }
        };
        let mut found = HashSet::new();
        for paths in paths.chunks(AT_ONCE) {
            let values: Vec<String> = (3..).take(paths.len()).map(|place| format!("(${place})")).collect();
            let select = format!(
                "SELECT asked.column1 AS path FROM (VALUES {}) AS asked WHERE EXISTS \
                 (SELECT 1 FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND {below})",
                values.join(", ")
            );
            let query = sqlx::query(AssertSqlSafe(select));
            let query = query.bind(owner.tenant.as_str()).bind(owner.user.as_str());
            let query = paths.iter().fold(query, |query, path| query.bind(path.as_str()));
            for one in query.fetch_all(&self.pool).await? {
                found.insert(one.parsed("path")?);
            }
        }
        Ok(found)
    }

    /// Notes that files were used now, once an hour at most: retention asks for no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn used_file(
        &self,
        owner: &FileOwner,
        path: &FilePath,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const HOUR_MICROS: i64 = 3_600_000_000;
        let update = "UPDATE file_metadata SET used_at_micros = $4 \
             WHERE tenant = $1 AND user_id = $2 AND path = $3 AND used_at_micros < $5";
        let _turn = self.turn().await?;
        sqlx::query(update)
            .bind(owner.tenant.as_str())
            .bind(owner.user.as_str())
            .bind(path.as_str())
            .bind(micros(now))
            .bind(micros(now) - HOUR_MICROS)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The log of a user's files, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    #[cfg(test)]
    pub(crate) async fn file_events(&self, owner: &FileOwner) -> Result<Vec<FileEvent>, StoreError> {
        let select = "SELECT sequence, action, path, actor FROM file_audit_log \
             WHERE tenant = $1 AND user_id = $2 ORDER BY sequence";
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        let rows = query.fetch_all(&self.pool).await?;
        let event = |row: &sqlx::any::AnyRow| {
            Ok(FileEvent {
                sequence: row.number("sequence")?,
                action: row.text("action")?,
                path: row.text("path")?,
                actor: row.text("actor")?,
            })
        };
        rows.iter().map(event).collect()
    }
}

impl Change {
    /// Writes down what happened to files, with its lines of the log.
    async fn files(
        &mut self,
        owner: &FileOwner,
        by: &Writer,
        at: Timestamp,
        changes: &[FileChange],
    ) -> Result<(), StoreError> {
        // Of two writes of one file in a call the last counts: one statement takes it once.
        let mut written: BTreeMap<&FilePath, &FileRow> = BTreeMap::new();
        for change in changes {
            match change {
                FileChange::Written(row) | FileChange::Found(row) => {
                    written.insert(&row.path, row);
                    continue;
                }
                FileChange::Shaped(_) => continue,
                _ => {}
            }
            self.put_files(owner, by, at, &std::mem::take(&mut written)).await?;
            match change {
                FileChange::Removed(path) | FileChange::Expired(path) => {
                    self.drop_file(owner, path, None).await?;
                }
                FileChange::Archived(row, place) => self.archive_file(owner, (row, *place), at).await?,
                FileChange::ArchiveExpired(path, place) => self.drop_archived(owner, path, *place).await?,
                FileChange::Missing(path, version) => self.drop_file(owner, path, Some(version)).await?,
                FileChange::Mode(path, mode) => self.set_mode(owner, path, *mode).await?,
                FileChange::Written(_) | FileChange::Found(_) | FileChange::Shaped(_) => {}
            }
        }
        self.put_files(owner, by, at, &written).await?;
        let lines: Vec<FileEntry> = changes.iter().map(|change| line(owner, by, at, change)).collect();
        self.record_files(&owner.tenant, &lines).await
    }

    async fn set_mode(&mut self, owner: &FileOwner, path: &FilePath, mode: u32) -> Result<(), StoreError> {
        let update = "UPDATE file_metadata SET mode = $4 WHERE tenant = $1 AND user_id = $2 AND path = $3";
        sqlx::query(update)
            .bind(owner.tenant.as_str())
            .bind(owner.user.as_str())
            .bind(path.as_str())
            .bind(i64::from(mode))
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    async fn put_files(
        &mut self,
        owner: &FileOwner,
        by: &Writer,
        at: Timestamp,
        rows: &BTreeMap<&FilePath, &FileRow>,
    ) -> Result<(), StoreError> {
        /// Values of a row.
        const VALUES: usize = 13;
        let rows: Vec<&FileRow> = rows.values().copied().collect();
        for rows in rows.chunks(AT_ONCE) {
            let put = format!(
                "INSERT INTO file_metadata (tenant, user_id, path, size_bytes, digest, mode, object_version, \
                 written_by, created_at_micros, modified_at_micros, used_at_micros, content_type, written_at_micros) VALUES {} \
                 ON CONFLICT (tenant, user_id, path) DO UPDATE SET size_bytes = excluded.size_bytes, \
                 digest = excluded.digest, mode = excluded.mode, object_version = excluded.object_version, \
                 written_by = excluded.written_by, modified_at_micros = excluded.modified_at_micros, \
                 used_at_micros = excluded.used_at_micros, content_type = excluded.content_type, \
                 written_at_micros = excluded.written_at_micros",
                self.rows(rows.len(), VALUES)
            );
            let mut query = sqlx::query(AssertSqlSafe(put));
            for row in rows {
                query = query
                    .bind(owner.tenant.as_str())
                    .bind(owner.user.as_str())
                    .bind(row.path.as_str())
                    .bind(i64::try_from(row.size).unwrap_or(i64::MAX))
                    .bind(row.digest.map(|digest| digest.to_string()).unwrap_or_default())
                    .bind(i64::from(row.mode))
                    .bind(row.version.as_str())
                    .bind(by.actor.to_string())
                    .bind(micros(at))
                    .bind(micros(row.modified))
                    .bind(micros(at))
                    .bind(row.content_type.clone())
                    .bind(micros(at));
            }
            query.execute(&mut *self.0).await?;
        }
        Ok(())
    }

    async fn archive_file(
        &mut self,
        owner: &FileOwner,
        (row, place): (&FileRow, ArchivePlace),
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.drop_file(owner, &row.path, None).await?;
        let upsert = "INSERT INTO archived_files (tenant, user_id, path, size_bytes, digest, archived_at_micros, place) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, user_id, path, place) DO UPDATE SET \
             size_bytes = excluded.size_bytes, digest = excluded.digest, \
             archived_at_micros = excluded.archived_at_micros";
        sqlx::query(upsert)
            .bind(owner.tenant.as_str())
            .bind(owner.user.as_str())
            .bind(row.path.as_str())
            .bind(i64::try_from(row.size).unwrap_or(i64::MAX))
            .bind(row.digest.map(|digest| digest.to_string()).unwrap_or_default())
            .bind(micros(at))
            .bind(place.to_string())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    async fn drop_archived(
        &mut self,
        owner: &FileOwner,
        path: &FilePath,
        place: ArchivePlace,
    ) -> Result<(), StoreError> {
        let delete =
            "DELETE FROM archived_files WHERE tenant = $1 AND user_id = $2 AND path = $3 AND place = $4";
        let delete = sqlx::query(delete).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        delete.bind(path.as_str()).bind(place.to_string()).execute(&mut *self.0).await?;
        Ok(())
    }

    async fn drop_file(
        &mut self,
        owner: &FileOwner,
        path: &FilePath,
        version: Option<&Version>,
    ) -> Result<(), StoreError> {
        let delete = "DELETE FROM file_metadata WHERE tenant = $1 AND user_id = $2 AND path = $3 \
             AND ($4 = '' OR object_version = $4)";
        sqlx::query(delete)
            .bind(owner.tenant.as_str())
            .bind(owner.user.as_str())
            .bind(path.as_str())
            .bind(version.map_or("", Version::as_str))
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

/// What the log of files says of a change.
fn line(owner: &FileOwner, by: &Writer, at: Timestamp, change: &FileChange) -> FileEntry {
    let row = match change {
        FileChange::Written(row) | FileChange::Found(row) | FileChange::Archived(row, _) => Some(row),
        _ => None,
    };
    FileEntry {
        at,
        tenant: owner.tenant.clone(),
        user: owner.user.clone(),
        path: change.path().as_str().to_owned(),
        action: change.action(),
        actor: by.actor.clone(),
        sandbox: by.sandbox.clone(),
        decision: by.decision.clone(),
        digest: row.and_then(|row| row.digest).map(|digest| digest.to_string()),
        size_bytes: row.map(|row| row.size),
    }
}

/// `$FIRST, …`: so many places for values.
pub(super) fn places(first: usize, count: usize) -> String {
    let places: Vec<String> = (first..first + count).map(|place| format!("${place}")).collect();
    places.join(", ")
}

/// The lock of an object: eight bytes of its name's digest.
pub(super) fn number(key: &str) -> i64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(Digest::of(key.as_bytes()).as_bytes()).for_each(|(to, from)| *to = *from);
    i64::from_be_bytes(bytes)
}

fn row(row: &sqlx::any::AnyRow) -> Result<FileRow, StoreError> {
    let digest = row.text("digest")?;
    Ok(FileRow {
        path: row.parsed("path")?,
        size: u64::try_from(row.number("size_bytes")?).unwrap_or(0),
        digest: digest.parse().ok(),
        mode: u32::try_from(row.number("mode")?).unwrap_or(0),
        version: Version::from(row.maybe_text("object_version")?.unwrap_or_default()),
        modified: row.time("modified_at_micros")?,
        content_type: row.maybe_text("content_type")?,
    })
}
