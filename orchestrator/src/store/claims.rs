// SPDX-License-Identifier: Apache-2.0
//! Who works on what, where several orchestrators share a database: leases.
//!
//! ```text
//!  claim ─▶ held, kept by `keep_claims` ─▶ released: anybody's, but still in the last holder's name
//!             │ its holder is silent for CLAIM_SECONDS
//!             └▶ anybody's: whoever takes it next, the one before writes nothing more
//! ```
//! INVARIANT: a row of `leases` goes only with its sandbox. So who has lost a claim finds another's
//! name there for as long as there is anything to write, and is refused (`Change::still_ours`).
//! Time is the database's. SQLite has one orchestrator, which holds everything.

use super::{Change, Columns, Dialect, Store, StoreError};
use postern_common::id::SandboxId;
use std::collections::BTreeSet;

/// How long a claim outlives its holder.
pub(crate) const CLAIM_SECONDS: u32 = 15;

/// The name of the lease on a sandbox.
fn lease_on(sandbox: &SandboxId) -> String {
    format!("sandbox/{sandbox}")
}

impl Store {
    /// Takes, or keeps, the lease `name` for `seconds`; `false` while another orchestrator has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn lease(&self, name: &str, seconds: u32) -> Result<bool, StoreError> {
        let take = match self.dialect {
            // Whoever has the file is alone.
            Dialect::Sqlite => return Ok(true),
            Dialect::Postgres => {
                "INSERT INTO leases (name, holder, fence, until) \
                 VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3)) \
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until, \
                 fence = leases.fence + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END \
                 WHERE leases.holder = excluded.holder OR leases.until < clock_timestamp()"
            }
        };
        let query = sqlx::query(take).bind(name.to_owned()).bind(self.replica.to_string());
        Ok(query.bind(f64::from(seconds)).execute(&self.pool).await?.rows_affected() == 1)
    }

    /// Claims a sandbox; `false` while another orchestrator works on it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn claim(&self, sandbox: &SandboxId) -> Result<bool, StoreError> {
        self.lease(&lease_on(sandbox), CLAIM_SECONDS).await
    }

    /// Lets a sandbox go, for whoever wants it next.
    ///
    /// # Errors
    /// [`StoreError`]; then it is ours for as long as [`Store::keep_claims`] is called.
    pub(crate) async fn release(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            let release = "UPDATE leases SET until = 'epoch' WHERE name = $1 AND holder = $2";
            let query = sqlx::query(release).bind(lease_on(sandbox)).bind(self.replica.to_string());
            query.execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Keeps every claim of ours; to be called well within [`CLAIM_SECONDS`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn keep_claims(&self) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            let keep = "UPDATE leases SET until = clock_timestamp() + make_interval(secs => $2) \
                 WHERE holder = $1 AND until > 'epoch' AND name LIKE 'sandbox/%'";
            let query = sqlx::query(keep).bind(self.replica.to_string()).bind(f64::from(CLAIM_SECONDS));
            query.execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Whether our claim on a sandbox holds at this moment: asked before something is done to it that
    /// no database can take back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn has_claimed(&self, sandbox: &SandboxId) -> Result<bool, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(true);
        }
        let select = "SELECT CAST(holder = $2 AND until > clock_timestamp() AS INTEGER) AS ours FROM leases \
             WHERE name = $1";
        let query = sqlx::query(select).bind(lease_on(sandbox)).bind(self.replica.to_string());
        let found = query.fetch_optional(&self.pool).await?;
        Ok(found.map(|row| row.number("ours")).transpose()? == Some(1))
    }

    /// The sandboxes that other orchestrators work on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn claimed_elsewhere(&self) -> Result<BTreeSet<SandboxId>, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(BTreeSet::new());
        }
        let select = "SELECT substr(name, 9) AS sandbox FROM leases \
             WHERE name LIKE 'sandbox/%' AND holder <> $1 AND until > clock_timestamp()";
        let rows = sqlx::query(select).bind(self.replica.to_string()).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("sandbox")).collect()
    }

    /// Forgets claims that outlived their sandbox, or whose sandbox never came to be.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_claims(&self) -> Result<u64, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(0);
        }
        let delete = "DELETE FROM leases WHERE name LIKE 'sandbox/%' \
             AND until < clock_timestamp() - make_interval(mins => 10) AND NOT EXISTS (SELECT 1 FROM sandboxes \
             WHERE id = substr(leases.name, 9) AND status NOT IN ('destroyed', 'failed'))";
        Ok(sqlx::query(delete).execute(&self.pool).await?.rows_affected())
    }

    /// Gives our leases back, so that another orchestrator need not wait for their end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn give_leases_back(&self) -> Result<(), StoreError> {
        self.end_leases_of(&self.replica).await
    }

    /// Ends the leases of an orchestrator that is known to be no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_leases_of(&self, holder: &str) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            let give = sqlx::query("UPDATE leases SET until = 'epoch' WHERE holder = $1");
            give.bind(holder.to_owned()).execute(&self.pool).await?;
        }
        Ok(())
    }
}

impl Change {
    /// Fails if another orchestrator has taken over a sandbox that we worked on; nobody does so before
    /// this change has ended.
    pub(super) async fn still_ours(&mut self, store: &Store, sandbox: &SandboxId) -> Result<(), StoreError> {
        if store.dialect == Dialect::Sqlite {
            return Ok(());
        }
        let select = "SELECT holder FROM leases WHERE name = $1 FOR SHARE";
        let found = sqlx::query(select).bind(lease_on(sandbox)).fetch_optional(&mut *self.0).await?;
        match found.map(|row| row.text("holder")).transpose()? {
            Some(holder) if holder != *store.replica => {
                Err(StoreError::TakenOver { sandbox: sandbox.clone() })
            }
            _ => Ok(()),
        }
    }
}
