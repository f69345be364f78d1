// SPDX-License-Identifier: Apache-2.0
//! The database: one set of queries for SQLite and Postgres.
//!
//! `sqlx` stays in here. Times are microseconds since 1970, structures are JSON text, and every
//! change that the audit log describes is written in one transaction with its entry. Nothing here
//! decides anything: states, versions and rights are judged by the callers.

mod api_keys;
mod audit;
mod audit_chain;
mod claims;
mod deadlines;
mod decisions;
mod erasures;
mod file_audit;
mod files;
mod filter_versions;
mod following;
mod gateways;
mod idempotency;
mod installation;
mod memory;
mod migrations;
mod notices;
mod nth_files;
mod peer_sessions;
mod policies;
mod quotas;
mod resources;
mod retained;
mod rows;
mod sandboxes;
mod select;
mod sessions;
mod snapshots;
mod sync_sessions;
mod tenants;
mod tickets;
mod times;
mod uploads;
mod user_locks;
mod warm;

pub(crate) use api_keys::{ApiKeyRow, KeyScope, Role};
pub(crate) use audit::{Action, Actor, AuditEntry, AuditFilter, Event};
pub(crate) use audit_chain::{LineFilter, MarkFilter};
pub(crate) use claims::CLAIM_SECONDS;
pub(crate) use deadlines::Due;
pub(crate) use decisions::DecisionFilter;
pub(crate) use erasures::BegunErasure;
#[cfg(test)]
pub(crate) use files::FileEvent;
pub(crate) use files::{FileChange, FileOwner, FileRow, FileState, FilesHeld, Share};
pub(crate) use filter_versions::FilterVersion;
pub(crate) use gateways::GatewayRow;
pub(crate) use idempotency::{IdempotencyKey, KeptAnswer};
pub(crate) use memory::{Kept, KeptMemory};
pub use migrations::{AtStart, MigrateError, MigrationStatus, MigrationStep, Migrations};
pub(crate) use notices::Notice;
pub(crate) use peer_sessions::PeerSessionRow;
pub(crate) use policies::{NO_SET, NewVersion, PolicyTexts, PolicyVersion, set_digest};
pub(crate) use quotas::{OverQuota, Quotas};
pub use resources::Kind;
pub(crate) use resources::{Resource, ResourceChange};
pub(crate) use retained::{ArchivedFile, ArchivedPlace, Cutoffs, DueFile, FilePlace, HoldRow, SetHold};
pub(crate) use sandboxes::{
    AddedSandbox, Asked, NewSandbox, OnIdle, SandboxChange, SandboxFilter, SandboxRow, Terms, Transition,
};
use select::Select;
pub(crate) use sessions::SessionRow;
pub(crate) use snapshots::{SnapshotFilter, SnapshotRow};
pub(crate) use sync_sessions::SyncSessionRow;
pub use tenants::Owner;
pub(crate) use tenants::{MadeTenant, Released, RemovedTenant, TenantRow};
use times::Times;
pub(crate) use uploads::{OPEN_UPLOADS, UploadRow};
use user_locks::UserLocks;
pub(crate) use warm::{WarmRow, WarmState};

use jiff::Timestamp;
use postern_common::id::{EventId, SandboxId};
use postern_common::secret::Secret;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, Row, Transaction};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Connections to SQLite: one writes at a time whatever their number, the rest read.
const SQLITE_CONNECTIONS: u32 = 4;
/// Connections to Postgres of one orchestrator; servers allow 100 by default, shared by replicas.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a call waits for a free connection.
const ACQUIRE_TIME: Duration = Duration::from_secs(5);

/// What SQLite is told on each connection. `FULL`: an acknowledged write survives a power cut. Of the file it
/// keeps 512 KiB in memory, not 2 MiB: the machine's cache has the rest.
const SQLITE_SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
     PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA cache_size = -512";
/// What Postgres is told on each connection: no query of ours takes long.
const POSTGRES_SETTINGS: &str =
    "SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '30s'";

/// Which database this is, where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is neither.
    #[error("`DATABASE_URL` must begin with `sqlite://` or `postgres://`")]
    Scheme,
    /// The folder or file of a SQLite database.
    #[error("could not make `{}`; choose another `DATABASE_URL` or data folder", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error("could not connect to the database; check `DATABASE_URL` and that the server runs")]
    Connect(#[source] sqlx::Error),
    /// Its tables are not what they should be.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
}

/// A query failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is away.
    #[error("the database did not answer as it should")]
    Database(#[from] sqlx::Error),
    /// A row holds what we never wrote.
    #[error("the database holds a `{what}` that cannot be read; was it edited by hand?")]
    Corrupt {
        /// The column.
        what: &'static str,
    },
    /// A lock beside SQLite's file.
    #[error("a user's lock beside the database was not to be had")]
    Locks(#[source] io::Error),
    /// Our claim has ended, and somebody else has it.
    #[error("another orchestrator has taken over sandbox `{sandbox}`; nothing was written")]
    TakenOver {
        /// Which.
        sandbox: SandboxId,
    },
}

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: AnyPool,
    dialect: Dialect,
    /// How this orchestrator is told from others on the same database.
    replica: Arc<str>,
    /// Where the sandboxes run that this orchestrator drives: a machine, or a cluster.
    place: Arc<str>,
    /// What holds users' files where the database cannot.
    user_locks: Option<Arc<UserLocks>>,
    /// Whose turn it is to write, where only one can.
    turns: Option<Arc<Mutex<()>>>,
    times: Times,
}

/// The turn to write; ends when dropped.
type Turn = OwnedMutexGuard<()>;

/// A transaction, and the turn that it has; dropped without [`Change::commit`] it never was.
pub(crate) struct Change(Transaction<'static, Any>, Option<Turn>, Dialect);

impl Store {
    /// Opens the database at `url` and brings its tables up to date.
    ///
    /// # Errors
    /// [`OpenError`] says what to mend.
    pub(crate) async fn open(url: &Secret<String>) -> Result<Self, OpenError> {
        Self::open_at(url, Some(AtStart::Auto)).await
    }

    /// Opens the database at `url`. Without a word about it, the tables of SQLite are brought up to
    /// date, for nobody else does it, and those of Postgres are looked at, for others use them too.
    /// A SQLite file is made with mode 0600 if it is not there.
    ///
    /// # Errors
    /// [`OpenError`] says what to mend.
    pub(crate) async fn open_at(url: &Secret<String>, at_start: Option<AtStart>) -> Result<Self, OpenError> {
        let store = Self::connect(url).await?;
        let usual = match store.dialect {
            Dialect::Sqlite => AtStart::Auto,
            Dialect::Postgres => AtStart::Check,
        };
        match at_start.unwrap_or(usual) {
            AtStart::Auto => migrations::bring_up(&store).await?,
            AtStart::Check => migrations::check(&store).await?,
        }
        Ok(store)
    }

    /// Connects to the database at `url`, whatever is in it.
    async fn connect(url: &Secret<String>) -> Result<Self, OpenError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let url = url.reveal().as_str();
        let (dialect, user_locks) = match url.split_once("://") {
            Some(("sqlite", path)) => {
                let path = Path::new(path.split('?').next().unwrap_or(path));
                make_private(path)?;
                (Dialect::Sqlite, Some(Arc::new(UserLocks::of(path))))
            }
            Some(("postgres" | "postgresql", _)) => (Dialect::Postgres, None),
            _ => return Err(OpenError::Scheme),
        };
        let replica: Arc<str> =
            Arc::from(format!("postern-{}", EventId::generate().as_str().trim_start_matches("evt_")));
        let (connections, settings) = match dialect {
            Dialect::Sqlite => (SQLITE_CONNECTIONS, SQLITE_SETTINGS.to_owned()),
            Dialect::Postgres => {
                (POSTGRES_CONNECTIONS, format!("{POSTGRES_SETTINGS}; SET application_name = '{replica}'"))
            }
        };
        let settings: Arc<str> = Arc::from(settings);
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIME)
            // SQLite has no other end that could be gone: asking it first would double the way of each query.
            .test_before_acquire(dialect == Dialect::Postgres)
            .after_connect(move |connection, _about| {
                // INVARIANT: constants of ours, and an id that we have just made.
                let settings = sqlx::AssertSqlSafe(settings.to_string());
                Box::pin(async move { sqlx::raw_sql(settings).execute(connection).await.map(drop) })
            })
            .connect(url)
            .await
            .map_err(OpenError::Connect)?;
        let turns = (dialect == Dialect::Sqlite).then(Arc::default);
        Ok(Self { pool, dialect, replica, place: Arc::from(""), user_locks, turns, times: times::new() })
    }

    /// Begins a change. SQLite takes its write lock at once, so that two changes cannot both have
    /// read before either writes.
    pub(crate) async fn change(&self) -> Result<Change, sqlx::Error> {
        let begin = match self.dialect {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        };
        let turn = self.turn().await?;
        Ok(Change(self.pool.begin_with(begin).await?, turn, self.dialect))
    }

    /// Waits until nobody else of this process writes, where only one can. Without it SQLite asks for its lock
    /// again and again, after pauses that grow from 1 to 100 ms, and holds a connection meanwhile.
    ///
    /// INVARIANT: before a connection is taken, and never twice at once: who has it waits for no other write.
    async fn turn(&self) -> Result<Option<Turn>, sqlx::Error> {
        let Some(turns) = &self.turns else { return Ok(None) };
        let turn = tokio::time::timeout(ACQUIRE_TIME, Arc::clone(turns).lock_owned()).await;
        turn.map(Some).map_err(|_late| sqlx::Error::PoolTimedOut)
    }

    /// The same database, for an orchestrator that drives the sandboxes of this place.
    #[must_use]
    pub(crate) fn at(self, place: &str) -> Self {
        Self { place: Arc::from(place), ..self }
    }

    /// Where this orchestrator's sandboxes run.
    #[must_use]
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// How this orchestrator is told from others.
    #[must_use]
    pub(crate) fn replica(&self) -> &str {
        &self.replica
    }

    /// Whether other orchestrators may use this database at the same time.
    #[must_use]
    pub(crate) fn has_others(&self) -> bool {
        self.dialect == Dialect::Postgres
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Database`] if not.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let _under_way = self.time("ping");
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection, after what is under way.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

impl Change {
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        let Self(transaction, turn, _) = self;
        transaction.commit().await?;
        drop(turn);
        Ok(())
    }
}

/// Makes a SQLite file, and its folder, so that nobody else can read them.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop).map_err(failed)
}

/// A time as the tables spell it.
pub(crate) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// A time without what the tables do not keep of it.
pub(crate) fn whole_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(micros(at)).unwrap_or(at)
}

fn timestamp(micros: i64, what: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|_out_of_range| StoreError::Corrupt { what })
}

/// A duration as the tables spell it.
pub(crate) fn duration_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Reads columns by name, with an error that names the column.
trait Columns {
    fn text(&self, name: &'static str) -> Result<String, StoreError>;
    fn maybe_text(&self, name: &'static str) -> Result<Option<String>, StoreError>;
    fn number(&self, name: &'static str) -> Result<i64, StoreError>;
    fn maybe_number(&self, name: &'static str) -> Result<Option<i64>, StoreError>;
    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, StoreError>;
    fn maybe_bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError>;

    fn time(&self, name: &'static str) -> Result<Timestamp, StoreError> {
        timestamp(self.number(name)?, name)
    }

    fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, StoreError> {
        self.text(name)?.parse().map_err(|_malformed| StoreError::Corrupt { what: name })
    }

    fn maybe_parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, StoreError> {
        let parse = |text: String| text.parse().map_err(|_malformed| StoreError::Corrupt { what: name });
        self.maybe_text(name)?.map(parse).transpose()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(name)?).map_err(|_malformed| StoreError::Corrupt { what: name })
    }
}

impl Columns for AnyRow {
    fn text(&self, name: &'static str) -> Result<String, StoreError> {
        Ok(self.try_get(name)?)
    }
    fn maybe_text(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        Ok(self.try_get(name)?)
    }
    fn number(&self, name: &'static str) -> Result<i64, StoreError> {
        Ok(self.try_get(name)?)
    }
    fn maybe_number(&self, name: &'static str) -> Result<Option<i64>, StoreError> {
        Ok(self.try_get(name)?)
    }
    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, StoreError> {
        Ok(self.try_get(name)?)
    }
    fn maybe_bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.try_get(name)?)
    }
}

/// JSON text of a value of ours.
fn json_text(value: &impl serde::Serialize, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_unserializable| StoreError::Corrupt { what })
}

/// A page's bound: at most `wanted`, at least one, never more than a page may hold.
pub(crate) fn page_size(wanted: Option<u32>) -> u32 {
    /// What a page holds unless the caller says otherwise.
    const USUAL: u32 = 100;
    /// What a page holds at most: some 500 KiB of decisions.
    const MOST: u32 = 1000;
    wanted.unwrap_or(USUAL).clamp(1, MOST)
}

#[cfg(test)]
pub(crate) mod tests;
