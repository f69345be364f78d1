// SPDX-License-Identifier: Apache-2.0
//! Decisions of the gateways: kept up to a bound, the oldest go first.

use super::{Columns, Store, StoreError, json_text, micros};
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::id::{SandboxId, TenantId};

/// Decisions that are kept: about 100 MB of records.
const KEPT: i64 = 100_000;

/// Which decisions to show.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecisionFilter {
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// Of this sandbox.
    pub(crate) sandbox: Option<SandboxId>,
    /// With this verdict.
    pub(crate) verdict: Option<Verdict>,
    /// Older than this id.
    pub(crate) before: Option<String>,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

pub(crate) const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Error => "error",
    }
}

impl Store {
    /// Keeps a batch of decisions. One that is there already is left as it is.
    ///
    /// # Errors
    /// [`StoreError`]; then none of the batch was kept.
    pub(crate) async fn keep_decisions(&self, batch: &[DecisionRecord]) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        let insert = "INSERT INTO decisions (id, at_micros, tenant, sandbox_id, verdict, code, record) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING";
        for record in batch {
            sqlx::query(insert)
                .bind(record.id.as_str().to_owned())
                .bind(micros(record.at))
                .bind(record.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
                .bind(record.sandbox_id.as_ref().map(|sandbox| sandbox.as_str().to_owned()))
                .bind(verdict_name(record.verdict))
                .bind(record.code.map(|code| code.as_str()))
                .bind(json_text(record, "record")?)
                .execute(&mut *change.0)
                .await?;
        }
        change.commit().await
    }

    /// Drops what is over the bound.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn trim_decisions(&self) -> Result<(), StoreError> {
        let delete =
            "DELETE FROM decisions WHERE id <= (SELECT id FROM decisions ORDER BY id DESC LIMIT 1 OFFSET $1)";
        sqlx::query(delete).bind(KEPT).execute(&self.pool).await?;
        Ok(())
    }

    /// A page of decisions, newest first, as the JSON that the gateways sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn decisions(
        &self,
        filter: &DecisionFilter,
    ) -> Result<Vec<serde_json::Value>, StoreError> {
        let select = "SELECT record FROM decisions WHERE ($1 = '' OR tenant = $1) AND ($2 = '' OR sandbox_id = $2) \
             AND ($3 = '' OR verdict = $3) AND ($4 = '' OR id < $4) ORDER BY id DESC LIMIT $5";
        let rows = sqlx::query(select)
            .bind(filter.tenant.as_ref().map_or("", TenantId::as_str).to_owned())
            .bind(filter.sandbox.as_ref().map_or("", SandboxId::as_str).to_owned())
            .bind(filter.verdict.map_or("", verdict_name))
            .bind(filter.before.clone().unwrap_or_default())
            .bind(i64::from(super::page_size(filter.limit)))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| row.json("record")).collect()
    }
}
