// SPDX-License-Identifier: Apache-2.0
//! What orchestrators tell each other of the gateways that follow them: often, and for a moment only.

use super::{Columns, Dialect, Store, StoreError};

/// What another orchestrator has not said again for so long is nobody's any more.
const SILENT_SECONDS: f64 = 10.0;

impl Store {
    /// Says something of our gateways, and hears what the others say of theirs: each with its name.
    /// With SQLite there are no others.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn say_and_hear(&self, said: &str) -> Result<Vec<(String, String)>, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(Vec::new());
        }
        let upsert = "INSERT INTO gateways_following (replica, said, said_at) VALUES ($1, $2, clock_timestamp()) \
             ON CONFLICT (replica) DO UPDATE SET said = excluded.said, said_at = excluded.said_at";
        sqlx::query(upsert).bind(self.replica.to_string()).bind(said.to_owned()).execute(&self.pool).await?;
        let select = "SELECT replica, said FROM gateways_following WHERE replica <> $1 \
             AND said_at > clock_timestamp() - make_interval(secs => $2) ORDER BY replica";
        let query = sqlx::query(select).bind(self.replica.to_string()).bind(SILENT_SECONDS);
        let rows = query.fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.text("replica")?, row.text("said")?))).collect()
    }

    /// Takes back what was said, by us and by whoever is silent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn say_no_more(&self) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            let delete = "DELETE FROM gateways_following WHERE replica = $1 \
                 OR said_at < clock_timestamp() - make_interval(secs => $2)";
            let query = sqlx::query(delete).bind(self.replica.to_string()).bind(SILENT_SECONDS * 60.0);
            query.execute(&self.pool).await?;
        }
        Ok(())
    }
}
