// SPDX-License-Identifier: Apache-2.0
//! Brings the tables up to date, and back.
//!
//! The bookkeeping is that of golang-migrate (`schema_migrations`, one row: version and dirty), so
//! that either tool goes on where the other stopped. Unlike it, each step and its row are one
//! transaction here, so a step that fails leaves nothing behind. On Postgres both take the same
//! advisory lock.

use super::{Change, Columns, Dialect, OpenError, Store, StoreError};
use postern_common::secret::Secret;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row};

/// One step, for each database.
pub(super) struct Migration {
    pub(super) version: i64,
    name: &'static str,
    /// For SQLite: up and down.
    sqlite: [&'static str; 2],
    /// For Postgres: up and down.
    postgres: [&'static str; 2],
}

macro_rules! migrations {
    ($($version:literal $name:literal),* $(,)?) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sqlite: [
                include_str!(concat!("../../../migrations/sqlite/", $name, ".up.sql")),
                include_str!(concat!("../../../migrations/sqlite/", $name, ".down.sql")),
            ],
            postgres: [
                include_str!(concat!("../../../migrations/", $name, ".up.sql")),
                include_str!(concat!("../../../migrations/", $name, ".down.sql")),
            ],
        }),*]
    };
}

pub(super) const MIGRATIONS: &[Migration] = migrations![
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
    28 "000028_chain_audit_logs",
    29 "000029_tell_other_orchestrators",
    36 "000036_share_sandboxes",
    37 "000037_retain_files",
    38 "000038_share_gateways",
    40 "000040_spend_tickets",
    41 "000041_settle_retention",
    42 "000042_keep_memory",
    43 "000043_tell_deadlines",
];

/// What is done about tables that are not up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// They are brought up to date.
    Auto,
    /// They are left alone, and nothing is started.
    Check,
}

/// The tables could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A step of another tool was interrupted.
    #[error(
        "migration {version} was interrupted: look at what it left, undo it, then say so with \
         `postern migrate force {before}` (or `migrate -path migrations/ -database $DATABASE_URL force {before}`)"
    )]
    Dirty {
        /// The step.
        version: i64,
        /// The one before; -1 if there is none.
        before: i64,
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
    /// Steps are missing, and are not to be done by themselves.
    #[error(
        "the database is at version {found} and this release needs {known}: run `postern migrate up`, or have \
         it done at each start with `POSTERN_MIGRATE=auto`"
    )]
    Behind {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// There is no such step.
    #[error("there is no migration {0}: `postern migrate status` lists them")]
    Unknown(i64),
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
    /// Rights could not be given.
    #[error("role `{role}` could not be given its rights; it must exist, and you must own the tables")]
    Grant {
        /// The role.
        role: String,
        /// Why.
        source: sqlx::Error,
    },
    /// SQLite has no roles.
    #[error("SQLite knows no roles: who can open the file can do everything")]
    NoRoles,
}

/// What a database's tables are like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationStatus {
    /// The last step that was done; 0 if none was.
    pub version: i64,
    /// Whether that step was interrupted.
    pub dirty: bool,
    /// The steps of this release.
    pub steps: Vec<MigrationStep>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationStep {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: &'static str,
    /// Whether it is done.
    pub done: bool,
}

fn bookkeeping(error: sqlx::Error) -> MigrateError {
    MigrateError::Bookkeeping(error.into())
}

fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |last| last.version)
}

/// The step before this version, by its number; as golang-migrate says "none" if there is none.
fn before(version: i64) -> i64 {
    MIGRATIONS.iter().rev().find(|step| step.version < version).map_or(-1, |step| step.version)
}

/// Makes the bookkeeping as golang-migrate's drivers do, if it is not there.
async fn prepare(store: &Store) -> Result<(), MigrateError> {
    let create = match store.dialect {
        Dialect::Sqlite => {
            "CREATE TABLE IF NOT EXISTS schema_migrations (version uint64, dirty bool);
             CREATE UNIQUE INDEX IF NOT EXISTS version_unique ON schema_migrations (version)"
        }
        Dialect::Postgres => {
            "CREATE TABLE IF NOT EXISTS schema_migrations (version bigint not null primary key, dirty boolean not null)"
        }
    };
    sqlx::raw_sql(create).execute(&store.pool).await.map(drop).map_err(bookkeeping)
}

/// Does the steps that are missing, each in a transaction of its own.
pub(super) async fn bring_up(store: &Store) -> Result<(), MigrateError> {
    prepare(store).await?;
    while step_up(store, newest()).await?.is_some() {}
    Ok(())
}

/// Makes sure that no step is missing; writes nothing.
pub(super) async fn check(store: &Store) -> Result<(), MigrateError> {
    let mut change = store.change().await.map_err(bookkeeping)?;
    // Without the table nobody has been here.
    let (version, dirty) = read(store, &mut change).await.unwrap_or_default();
    drop(change);
    let known = newest();
    match version {
        _ if dirty => Err(MigrateError::Dirty { version, before: before(version) }),
        found if found > known => Err(MigrateError::Newer { found, known }),
        found if found < known => Err(MigrateError::Behind { found, known }),
        _ => Ok(()),
    }
}

async fn read(store: &Store, change: &mut Change) -> Result<(i64, bool), MigrateError> {
    let at = match store.dialect {
        Dialect::Sqlite => {
            "SELECT CAST(version AS BIGINT) AS version, CAST(dirty AS INTEGER) AS dirty FROM schema_migrations"
        }
        Dialect::Postgres => "SELECT version, CAST(dirty AS INTEGER) AS dirty FROM schema_migrations",
    };
    let Some(row) = sqlx::query(at).fetch_optional(&mut *change.0).await.map_err(bookkeeping)? else {
        return Ok((0, false));
    };
    let version = row.number("version").map_err(MigrateError::Bookkeeping)?;
    let dirty: i64 = row
        .try_get::<i64, _>("dirty")
        .or_else(|_narrower| row.try_get::<i32, _>("dirty").map(i64::from))
        .map_err(bookkeeping)?;
    Ok((version.max(0), dirty != 0))
}

/// Begins a step: nobody else does one meanwhile. Which version there is; an interrupted one is
/// refused.
async fn begin(store: &Store) -> Result<(Change, i64), MigrateError> {
    let mut change = store.change().await.map_err(bookkeeping)?;
    if store.dialect == Dialect::Postgres {
        let about =
            "SELECT CAST(current_database() AS TEXT) AS name, CAST(current_schema() AS TEXT) AS schema";
        let about = sqlx::query(about).fetch_one(&mut *change.0).await.map_err(bookkeeping)?;
        let text = |column| about.text(column).map_err(MigrateError::Bookkeeping);
        let lock = advisory_lock(&text("name")?, &text("schema")?);
        let wait = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock);
        wait.execute(&mut *change.0).await.map_err(bookkeeping)?;
        let lock = "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE";
        sqlx::query(lock).execute(&mut *change.0).await.map_err(bookkeeping)?;
    }
    match read(store, &mut change).await? {
        (version, true) => Err(MigrateError::Dirty { version, before: before(version) }),
        (version, false) => Ok((change, version)),
    }
}

/// The number of the lock that golang-migrate takes on Postgres: a checksum of what is migrated, with
/// the database as the path of its URL, times a constant of its own.
pub(super) fn advisory_lock(database: &str, schema: &str) -> i64 {
    const SALT: u32 = 1_486_364_155;
    i64::from(crc32(format!("{schema}\0schema_migrations\0/{database}").as_bytes()).wrapping_mul(SALT))
}

/// The checksum of Ethernet and zip.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |rest: u32, _| if rest & 1 == 1 { rest >> 1 ^ 0xEDB8_8320 } else { rest >> 1 };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// Does the next step up to `last`, if there is one. Read and written under one lock, so that two
/// orchestrators that start at once do each step once.
async fn step_up(store: &Store, last: i64) -> Result<Option<i64>, MigrateError> {
    let (change, found) = begin(store).await?;
    if found > newest() {
        return Err(MigrateError::Newer { found, known: newest() });
    }
    let next = MIGRATIONS.iter().find(|step| step.version > found && step.version <= last);
    let Some(next) = next else { return Ok(None) };
    run(store, change, next, 0, next.version).await.map(Some)
}

/// Takes the last step back, if there is one.
async fn step_down(store: &Store) -> Result<Option<i64>, MigrateError> {
    let (change, found) = begin(store).await?;
    if found == 0 {
        return Ok(None);
    }
    let last = MIGRATIONS.iter().find(|step| step.version == found).ok_or(MigrateError::Unknown(found))?;
    run(store, change, last, 1, before(found)).await.map(Some)
}

/// Runs a step in this direction and writes down where that leads.
async fn run(
    store: &Store,
    mut change: Change,
    step: &Migration,
    direction: usize,
    leads_to: i64,
) -> Result<i64, MigrateError> {
    let failed = |source| MigrateError::Step { version: step.version, source };
    let scripts = match store.dialect {
        Dialect::Sqlite => &step.sqlite,
        Dialect::Postgres => &step.postgres,
    };
    let script = scripts.get(direction).copied().unwrap_or_default();
    sqlx::raw_sql(script).execute(&mut *change.0).await.map_err(failed)?;
    set(&mut change, leads_to).await.map_err(failed)?;
    change.0.commit().await.map_err(failed)?;
    Ok(leads_to)
}

/// Writes down the version, which was reached whole; none is no row, as golang-migrate has it.
async fn set(change: &mut Change, version: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM schema_migrations").execute(&mut *change.0).await?;
    if version >= 0 {
        let insert = sqlx::query("INSERT INTO schema_migrations (version, dirty) VALUES ($1, FALSE)");
        insert.bind(version).execute(&mut *change.0).await?;
    }
    Ok(())
}

/// The tables of a database, for whoever looks after them: nothing else is opened.
#[derive(Debug)]
pub struct Migrations(Store);

impl Migrations {
    /// Opens the database at `url` and changes nothing. A SQLite file is made if it is not there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(url: &Secret<String>) -> Result<Self, OpenError> {
        let store = Store::connect(url).await?;
        prepare(&store).await?;
        Ok(Self(store))
    }

    /// Those of a database that is open.
    #[cfg(test)]
    pub(super) fn of(store: &Store) -> Self {
        Self(store.clone())
    }

    /// Where the tables are.
    ///
    /// # Errors
    /// [`MigrateError::Bookkeeping`].
    pub async fn status(&self) -> Result<MigrationStatus, MigrateError> {
        let mut change = self.0.change().await.map_err(bookkeeping)?;
        let (version, dirty) = read(&self.0, &mut change).await?;
        let step = |step: &Migration| MigrationStep {
            version: step.version,
            name: step.name,
            done: step.version <= version,
        };
        Ok(MigrationStatus { version, dirty, steps: MIGRATIONS.iter().map(step).collect() })
    }

    /// Does the steps that are missing up to `to`, or all; `each` is told of every one that is done.
    ///
    /// # Errors
    /// [`MigrateError`]; what was done by then stays so.
    pub async fn up(&self, to: Option<i64>, mut each: impl FnMut(i64)) -> Result<(), MigrateError> {
        let last = to.unwrap_or_else(newest);
        if !MIGRATIONS.iter().any(|step| step.version == last) {
            return Err(MigrateError::Unknown(last));
        }
        while let Some(version) = step_up(&self.0, last).await? {
            each(version);
        }
        Ok(())
    }

    /// Takes the last `steps` back; `each` is told where each led.
    ///
    /// # Errors
    /// [`MigrateError`]; what was taken back by then stays so.
    pub async fn down(&self, steps: u32, mut each: impl FnMut(i64)) -> Result<(), MigrateError> {
        for _ in 0..steps {
            let Some(version) = step_down(&self.0).await? else { break };
            each(version);
        }
        Ok(())
    }

    /// Says which version an interrupted step was brought back to by hand; -1 is none.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub async fn force(&self, version: i64) -> Result<(), MigrateError> {
        if version != -1 && !MIGRATIONS.iter().any(|step| step.version == version) {
            return Err(MigrateError::Unknown(version));
        }
        let mut change = self.0.change().await.map_err(bookkeeping)?;
        set(&mut change, version).await.map_err(bookkeeping)?;
        change.0.commit().await.map_err(bookkeeping)
    }

    /// Gives a role of Postgres what an orchestrator needs, and of the audit logs no more than to
    /// add to them and to read them.
    ///
    /// # Errors
    /// [`MigrateError::Grant`], [`MigrateError::NoRoles`].
    pub async fn grant(&self, role: &str) -> Result<(), MigrateError> {
        if self.0.dialect == Dialect::Sqlite {
            return Err(MigrateError::NoRoles);
        }
        let failed = |source| MigrateError::Grant { role: role.to_owned(), source };
        let quoted = format!("\"{}\"", role.replace('"', "\"\""));
        let mut change = self.0.change().await.map_err(failed)?;
        let about = "SELECT quote_ident(current_schema()) AS schema";
        let about = sqlx::query(about).fetch_one(&mut *change.0).await.map_err(failed)?;
        let schema: String = about.try_get("schema").map_err(failed)?;
        let script = GRANT.replace("SCHEMA_NAME", &schema).replace("ROLE", &quoted);
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *change.0).await.map_err(failed)?;
        change.0.commit().await.map_err(failed)
    }

    /// Closes every connection.
    pub async fn close(self) {
        self.0.close().await;
    }
}

/// The rights of an orchestrator's role.
const GRANT: &str = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA SCHEMA_NAME TO ROLE;
     GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA SCHEMA_NAME TO ROLE;
     ALTER DEFAULT PRIVILEGES IN SCHEMA SCHEMA_NAME GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO ROLE;
     ALTER DEFAULT PRIVILEGES IN SCHEMA SCHEMA_NAME GRANT USAGE, SELECT ON SEQUENCES TO ROLE;
     REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON schema_migrations FROM ROLE;
     REVOKE UPDATE, DELETE, TRUNCATE ON sandbox_audit_log, file_audit_log, audit_marks FROM ROLE;
     GRANT EXECUTE ON FUNCTION postern_cut_audit_log(TEXT, TEXT) TO ROLE";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_the_one_of_the_other_tool() {
        // The check value of this checksum, as its catalogues give it.
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert!((0..=i64::from(u32::MAX)).contains(&advisory_lock("postern", "public")));
        assert_ne!(advisory_lock("postern", "public"), advisory_lock("postern", "other"));
    }

    #[test]
    fn what_comes_before_a_step_is_another_step_or_none() {
        assert_eq!((before(1), before(2), before(12)), (-1, 1, 10), "numbers have gaps");
        assert!(MIGRATIONS.is_sorted_by_key(|step| step.version));
    }
}
