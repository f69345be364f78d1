// SPDX-License-Identifier: Apache-2.0
//! Decisions of the gateways: kept up to a bound, the oldest go first.

use super::{Change, Columns, Select, Store, StoreError, json_text, micros};
use jiff::{SignedDuration, Timestamp};
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::id::{DecisionId, SandboxId, TenantId};
use sqlx::AssertSqlSafe;

/// Decisions that are kept.
const KEPT: i64 = 100_000;
/// Bytes of their records and what policies saw, together.
const KEPT_BYTES: i64 = 256 << 20;
/// How long they are kept.
const KEPT_TIME: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Decisions that are decided again at once, at most.
const REPLAYED: u32 = 10_000;

/// Decisions of one statement: 10 values each, well below what either database takes.
const AT_ONCE: usize = 128;
/// Values of a decision.
const VALUES: usize = 10;

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

impl Change {
    /// Writes decisions with their numbers, in one statement.
    async fn insert_decisions(&mut self, lines: &[(&DecisionRecord, i64)]) -> Result<(), StoreError> {
        let insert = format!(
            "INSERT INTO decisions (id, at_micros, tenant, sandbox_id, verdict, code, record, evidence, bytes, number) \
             VALUES {} ON CONFLICT (id) DO NOTHING",
            self.rows(lines.len(), VALUES)
        );
        let mut query = sqlx::query(AssertSqlSafe(insert));
        for (record, number) in lines {
            let evidence = record.evidence.as_deref().map(str::to_owned);
            // The record is shown as it is; what policies saw is shown by its explanation alone.
            let shown = DecisionRecord { evidence: None, ..(*record).clone() };
            let text = json_text(&shown, "record")?;
            let bytes = text.len() + evidence.as_ref().map_or(0, String::len);
            query = query
                .bind(record.id.as_str().to_owned())
                .bind(micros(record.at))
                .bind(record.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()))
                .bind(record.sandbox_id.as_ref().map(|sandbox| sandbox.as_str().to_owned()))
                .bind(verdict_name(record.verdict))
                .bind(record.code.map(|code| code.as_str()))
                .bind(text)
                .bind(evidence)
                .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
                .bind(*number);
        }
        query.execute(&mut *self.0).await?;
        Ok(())
    }
}

impl Store {
    /// Keeps a batch of decisions. One that is there already is left as it is.
    ///
    /// # Errors
    /// [`StoreError`]; then none of the batch was kept.
    pub(crate) async fn keep_decisions(&self, batch: &[DecisionRecord]) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        let take = "UPDATE decision_numbers SET value = value + $1 WHERE only_row = 1 RETURNING value";
        let count = i64::try_from(batch.len()).unwrap_or(i64::MAX);
        let last = sqlx::query(take).bind(count).fetch_one(&mut *change.0).await?.number("value")?;
        let numbered: Vec<_> = batch.iter().zip(last - count + 1..).collect();
        for lines in numbered.chunks(AT_ONCE) {
            change.insert_decisions(lines).await?;
        }
        change.commit().await
    }

    /// Drops what is over one of the bounds: number, bytes, age.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn trim_decisions(&self, now: Timestamp) -> Result<(), StoreError> {
        let number =
            "DELETE FROM decisions WHERE id <= (SELECT id FROM decisions ORDER BY id DESC LIMIT 1 OFFSET $1)";
        let turn = self.turn().await?;
        sqlx::query(number).bind(KEPT).execute(&self.pool).await?;
        // Others get theirs in between: each of these may take long.
        drop(turn);
        let oldest = now.saturating_sub(KEPT_TIME).unwrap_or(Timestamp::MIN);
        let age = "DELETE FROM decisions WHERE at_micros < $1";
        let turn = self.turn().await?;
        sqlx::query(age).bind(micros(oldest)).execute(&self.pool).await?;
        drop(turn);
        let bytes = "DELETE FROM decisions WHERE id <= (SELECT MAX(id) FROM \
             (SELECT id, SUM(bytes) OVER (ORDER BY id DESC) AS total FROM decisions) AS sized WHERE total > $1)";
        let _turn = self.turn().await?;
        sqlx::query(bytes).bind(KEPT_BYTES).execute(&self.pool).await?;
        Ok(())
    }

    /// One decision: the JSON that the gateway sent, and what policies saw of the request.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn decision(
        &self,
        tenant: Option<&TenantId>,
        id: &DecisionId,
    ) -> Result<Option<(serde_json::Value, Option<String>)>, StoreError> {
        let select = "SELECT record, evidence FROM decisions WHERE id = $1 AND ($2 = '' OR tenant = $2)";
        let row = sqlx::query(select)
            .bind(id.as_str().to_owned())
            .bind(tenant.map_or("", TenantId::as_str).to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| Ok((row.json("record")?, row.maybe_text("evidence")?))).transpose()
    }

    /// What policies saw of a tenant's newest requests, newest first, where it was kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn evidence(&self, tenant: &TenantId, limit: u32) -> Result<Vec<String>, StoreError> {
        let select = "SELECT evidence FROM decisions WHERE tenant = $1 AND evidence IS NOT NULL \
             ORDER BY id DESC LIMIT $2";
        let rows = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(i64::from(limit.clamp(1, REPLAYED)))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| row.text("evidence")).collect()
    }

    /// The number of the last decision that came home; 0 before the first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn last_decision(&self) -> Result<i64, StoreError> {
        sqlx::query("SELECT value FROM decision_numbers").fetch_one(&self.pool).await?.number("value")
    }

    /// Decisions in the order in which they came home, with their numbers, after number `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn decisions_after(
        &self,
        filter: &DecisionFilter,
        after: i64,
    ) -> Result<Vec<(i64, serde_json::Value)>, StoreError> {
        let rows = Select::of("SELECT number, record FROM decisions")
            .and("number > ?", Some(after))
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .and("sandbox_id = ?", filter.sandbox.as_ref().map(SandboxId::as_str))
            .and("verdict = ?", filter.verdict.map(verdict_name))
            .page("number", super::page_size(filter.limit), &self.pool)
            .await?;
        rows.iter().map(|row| Ok((row.number("number")?, row.json("record")?))).collect()
    }

    /// A page of decisions, newest first, as the JSON that the gateways sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn decisions(
        &self,
        filter: &DecisionFilter,
    ) -> Result<Vec<serde_json::Value>, StoreError> {
        let rows = Select::of("SELECT record FROM decisions")
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .and("sandbox_id = ?", filter.sandbox.as_ref().map(SandboxId::as_str))
            .and("verdict = ?", filter.verdict.map(verdict_name))
            .and("id < ?", filter.before.as_deref())
            .page("id DESC", super::page_size(filter.limit), &self.pool)
            .await?;
        rows.iter().map(|row| row.json("record")).collect()
    }
}
