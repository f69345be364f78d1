// SPDX-License-Identifier: Apache-2.0
//! Facts about this installation, by name.

use super::{Columns, Dialect, Store, StoreError};
use sqlx::any::AnyRow;

const FACT: &str = "SELECT value FROM installation WHERE name = $1";

impl Store {
    /// The fact `name`; if there is none, `fresh` becomes it. Two orchestrators that ask at once
    /// get the same answer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn fact(&self, name: &'static str, fresh: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        sqlx::query("INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(fresh)
            .execute(&self.pool)
            .await?;
        sqlx::query(FACT).bind(name).fetch_one(&self.pool).await?.bytes("value")
    }

    /// Counts the fact `name` up, to `at_least` or by one, and returns it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn next_number(&self, name: &'static str, at_least: u64) -> Result<u64, StoreError> {
        if self.dialect == Dialect::Postgres {
            // In one statement: of two orchestrators that count at once, each gets a number of its own.
            let count = "INSERT INTO installation (name, value) VALUES ($1, convert_to(CAST($2 AS TEXT), 'UTF8')) \
                 ON CONFLICT (name) DO UPDATE SET value = convert_to(CAST(GREATEST( \
                 CAST(convert_from(installation.value, 'UTF8') AS BIGINT) + 1, $3) AS TEXT), 'UTF8') RETURNING value";
            let first = at_least.max(1);
            let query = sqlx::query(count).bind(name).bind(first.to_string());
            let row = query.bind(i64::try_from(at_least).unwrap_or(i64::MAX)).fetch_one(&self.pool).await?;
            return number(Some(&row), name);
        }
        let mut change = self.change().await?;
        let row = sqlx::query(FACT).bind(name).fetch_optional(&mut *change.0).await?;
        let before = number(row.as_ref(), name)?;
        let next = before.saturating_add(1).max(at_least);
        let upsert = "INSERT INTO installation (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        sqlx::query(upsert).bind(name).bind(next.to_string().into_bytes()).execute(&mut *change.0).await?;
        change.commit().await?;
        Ok(next)
    }

    /// The fact `name`, which counts; 0 if it never did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn number(&self, name: &'static str) -> Result<u64, StoreError> {
        let row = sqlx::query(FACT).bind(name).fetch_optional(&self.pool).await?;
        number(row.as_ref(), name)
    }
}

fn number(row: Option<&AnyRow>, name: &'static str) -> Result<u64, StoreError> {
    let Some(row) = row else { return Ok(0) };
    let bytes = row.bytes("value")?;
    let text = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
    text.ok_or(StoreError::Corrupt { what: name })
}
