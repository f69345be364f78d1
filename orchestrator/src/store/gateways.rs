// SPDX-License-Identifier: Apache-2.0
//! Gateways and the keyed hashes that stand for their credentials.

use super::{AuditEntry, Columns, Store, StoreError, micros};
use jiff::Timestamp;
use postern_common::id::GatewayName;

/// A gateway, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayRow {
    /// Its name.
    pub(crate) name: GatewayName,
    /// The keyed hash of its secret.
    pub(crate) hash: Vec<u8>,
    /// Who made it.
    pub(crate) created_by: String,
    /// When.
    pub(crate) created_at: Timestamp,
}

fn row(row: &impl Columns) -> Result<GatewayRow, StoreError> {
    Ok(GatewayRow {
        name: row.parsed("name")?,
        hash: row.bytes("hash")?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at_micros")?,
    })
}

impl Store {
    /// Adds a gateway; `false` if there is one of this name, which keeps its credential.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_gateway(
        &self,
        gateway: &GatewayRow,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let insert = "INSERT INTO gateways (name, hash, created_by, created_at_micros) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO NOTHING";
        let added = sqlx::query(insert)
            .bind(gateway.name.as_str().to_owned())
            .bind(gateway.hash.clone())
            .bind(gateway.created_by.clone())
            .bind(micros(gateway.created_at))
            .execute(&mut *change.0)
            .await?;
        if added.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The gateway of this name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn gateway(&self, name: &GatewayName) -> Result<Option<GatewayRow>, StoreError> {
        let select = "SELECT * FROM gateways WHERE name = $1";
        let found = sqlx::query(select).bind(name.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// All gateways, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn gateways(&self) -> Result<Vec<GatewayRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM gateways ORDER BY name LIMIT 1000").fetch_all(&self.pool).await?;
        rows.iter().map(row).collect()
    }

    /// Removes a gateway; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_gateway(
        &self,
        name: &GatewayName,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let delete = sqlx::query("DELETE FROM gateways WHERE name = $1").bind(name.as_str().to_owned());
        if delete.execute(&mut *change.0).await?.rows_affected() == 0 {
            return Ok(false);
        }
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }
}
