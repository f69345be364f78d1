// SPDX-License-Identifier: Apache-2.0
//! Brings the tables up to date.
//!
//! The bookkeeping is that of golang-migrate (`schema_migrations`, one row: version and dirty), so
//! that either tool goes on where the other stopped. Unlike it, each step and its row are one
//! transaction here, so a step that fails leaves nothing behind.

use super::{Columns, Dialect, Store, StoreError};
use sqlx::Row;

/// One step, for each database.
struct Migration {
    version: i64,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal),* $(,)?) => {
        &[$(Migration {
            version: $version,
            sqlite: include_str!(concat!("../../../migrations/sqlite/", $name, ".up.sql")),
            postgres: include_str!(concat!("../../../migrations/", $name, ".up.sql")),
        }),*]
    };
}

const MIGRATIONS: &[Migration] = migrations![
    1 "000001_create_file_metadata",
    2 "000002_create_file_audit_log",
    3 "000003_create_sandbox_audit_log",
    4 "000004_create_installation",
    5 "000005_create_tenants",
    6 "000006_create_sandboxes",
    7 "000007_create_decisions",
    8 "000008_create_policy_versions",
    9 "000009_scope_api_keys",
    10 "000010_create_revision",
    12 "000012_create_filter_versions",
    13 "000013_create_gateways",
    14 "000014_create_idempotency_keys",
    15 "000015_create_warm_sandboxes",
    16 "000016_pause_sandboxes",
    17 "000017_number_decisions",
    18 "000018_describe_files",
    19 "000019_create_file_uploads",
    22 "000022_create_sync_sessions",
    24 "000024_create_snapshots",
];

/// The tables could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A step of another tool was interrupted.
    #[error(
        "migration {version} was interrupted: look at what it left, undo it, then set the version with \
         `migrate -path migrations/ -database $DATABASE_URL force {}`",
        version - 1
    )]
    Dirty {
        /// The step.
        version: i64,
    },
    /// A newer release has been here.
    #[error(
        "the database is at version {found}, this release knows {known}: install the newer release again"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A step failed and was taken back.
    #[error("migration {version} failed and was taken back; the cause follows")]
    Step {
        /// The step.
        version: i64,
        /// Why.
        source: sqlx::Error,
    },
    /// The bookkeeping cannot be read.
    #[error("could not read `schema_migrations`")]
    Bookkeeping(#[source] StoreError),
}

/// Does the steps that are missing, each in a transaction of its own.
pub(super) async fn bring_up(store: &Store) -> Result<(), MigrateError> {
    let bookkeeping = |error: sqlx::Error| MigrateError::Bookkeeping(error.into());
    let create = match store.dialect {
        // As golang-migrate's drivers make it.
        Dialect::Sqlite => {
            "CREATE TABLE IF NOT EXISTS schema_migrations (version uint64, dirty bool);
             CREATE UNIQUE INDEX IF NOT EXISTS version_unique ON schema_migrations (version)"
        }
        Dialect::Postgres => {
            "CREATE TABLE IF NOT EXISTS schema_migrations (version bigint not null primary key, dirty boolean not null)"
        }
    };
    sqlx::raw_sql(create).execute(&store.pool).await.map_err(bookkeeping)?;
    let known = MIGRATIONS.last().map_or(0, |last| last.version);
    while step(store, known).await? {}
    Ok(())
}

/// Does the next step if there is one. Read and written under one lock, so that two orchestrators
/// that start at once do each step once.
async fn step(store: &Store, known: i64) -> Result<bool, MigrateError> {
    let bookkeeping = |error: sqlx::Error| MigrateError::Bookkeeping(error.into());
    let mut change = store.change().await.map_err(bookkeeping)?;
    if store.dialect == Dialect::Postgres {
        let lock = "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE";
        sqlx::query(lock).execute(&mut *change.0).await.map_err(bookkeeping)?;
    }
    let at =
        "SELECT CAST(version AS BIGINT) AS version, CAST(dirty AS INTEGER) AS dirty FROM schema_migrations";
    let row = sqlx::query(at).fetch_optional(&mut *change.0).await.map_err(bookkeeping)?;
    let found = match &row {
        Some(row) => {
            let version = row.number("version").map_err(MigrateError::Bookkeeping)?;
            let dirty: i64 = row
                .try_get::<i64, _>("dirty")
                .or_else(|_narrower| row.try_get::<i32, _>("dirty").map(i64::from))
                .map_err(bookkeeping)?;
            if dirty != 0 {
                return Err(MigrateError::Dirty { version });
            }
            version
        }
        None => 0,
    };
    if found > known {
        return Err(MigrateError::Newer { found, known });
    }
    let Some(next) = MIGRATIONS.iter().find(|migration| migration.version > found) else {
        return Ok(false);
    };
    let version = next.version;
    let failed = |source| MigrateError::Step { version, source };
    let script = match store.dialect {
        Dialect::Sqlite => next.sqlite,
        Dialect::Postgres => next.postgres,
    };
    sqlx::raw_sql(script).execute(&mut *change.0).await.map_err(failed)?;
    sqlx::query("DELETE FROM schema_migrations").execute(&mut *change.0).await.map_err(failed)?;
    sqlx::query("INSERT INTO schema_migrations (version, dirty) VALUES ($1, FALSE)")
        .bind(version)
        .execute(&mut *change.0)
        .await
        .map_err(failed)?;
    change.0.commit().await.map_err(failed)?;
    Ok(true)
}
