// SPDX-License-Identifier: Apache-2.0
//! What create calls with an `Idempotency-Key` got, so that a repeat gets the same: bounded in time
//! and, for each tenant, in number.

use super::{Change, Columns, Store, StoreError, micros};
use jiff::{SignedDuration, Timestamp};
use postern_common::id::{SandboxId, TenantId};

/// How long a key is remembered: a caller that was away for a night finds its answer.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Keys of one tenant that are remembered, the newest ones: some 3 MB.
const MOST: i64 = 10_000;

/// A key of a caller, and what the call with it asked for: keyed digests of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyKey {
    /// The header's value.
    pub(crate) key: String,
    /// What was asked for.
    pub(crate) fingerprint: String,
}

/// What a call with a key got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptAnswer {
    /// What it had asked for.
    pub(crate) fingerprint: String,
    /// The sandbox that it got.
    pub(crate) sandbox: SandboxId,
    /// The HTTP status that it got.
    pub(crate) status: u16,
}

fn forgotten(now: Timestamp) -> i64 {
    micros(now.saturating_sub(KEPT).unwrap_or(Timestamp::MIN))
}

impl Store {
    /// What the call with this key got, if it is remembered. A sandbox that never ran is nothing
    /// that it got.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn kept_answer(
        &self,
        tenant: &TenantId,
        key: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<KeptAnswer>, StoreError> {
        let select = "SELECT idempotency_keys.* FROM idempotency_keys JOIN sandboxes ON sandboxes.id = sandbox_id \
             WHERE idempotency_keys.tenant = $1 AND key = $2 AND at_micros > $3 \
             AND sandboxes.status <> 'failed' AND (outcome IS NULL OR outcome <> 'failed')";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(key.key.clone())
            .bind(forgotten(now))
            .fetch_optional(&self.pool)
            .await?;
        let kept = |row: sqlx::any::AnyRow| {
            Ok(KeptAnswer {
                fingerprint: row.text("fingerprint")?,
                sandbox: row.parsed("sandbox_id")?,
                status: u16::try_from(row.number("status")?)
                    .map_err(|_out_of_range| StoreError::Corrupt { what: "status" })?,
            })
        };
        found.map(kept).transpose()
    }

    /// Remembers that a call found a sandbox that was there; `false` if another call with its key
    /// was faster.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn keep_found(
        &self,
        tenant: &TenantId,
        key: &IdempotencyKey,
        (sandbox, status): (&SandboxId, u16),
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let is_kept = change.keep_answer(tenant, key, (sandbox, status), now).await?;
        change.commit().await?;
        Ok(is_kept)
    }

    /// Forgets keys that are too old, and the oldest of a tenant that has too many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_answers(&self, now: Timestamp) -> Result<(), StoreError> {
        let old = "DELETE FROM idempotency_keys WHERE at_micros <= $1";
        let turn = self.turn().await?;
        sqlx::query(old).bind(forgotten(now)).execute(&self.pool).await?;
        drop(turn);
        let crowded = "SELECT tenant FROM idempotency_keys GROUP BY tenant HAVING COUNT(*) > $1";
        for row in sqlx::query(crowded).bind(MOST).fetch_all(&self.pool).await? {
            let tenant = row.text("tenant")?;
            let oldest = "DELETE FROM idempotency_keys WHERE tenant = $1 AND key NOT IN \
                 (SELECT key FROM idempotency_keys WHERE tenant = $1 ORDER BY at_micros DESC, key LIMIT $2)";
            let _turn = self.turn().await?;
            sqlx::query(oldest).bind(tenant).bind(MOST).execute(&self.pool).await?;
        }
        Ok(())
    }
}

impl Change {
    /// Remembers what a call with a key got; `false` if its key is another call's.
    pub(super) async fn keep_answer(
        &mut self,
        tenant: &TenantId,
        key: &IdempotencyKey,
        (sandbox, status): (&SandboxId, u16),
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        // What is forgotten and not yet gone is written over, and what led to nothing.
        let insert = "INSERT INTO idempotency_keys (tenant, key, fingerprint, sandbox_id, status, at_micros) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, key) DO UPDATE SET \
             fingerprint = excluded.fingerprint, sandbox_id = excluded.sandbox_id, status = excluded.status, \
             at_micros = excluded.at_micros WHERE idempotency_keys.at_micros <= $7 \
             OR EXISTS (SELECT 1 FROM sandboxes WHERE sandboxes.id = idempotency_keys.sandbox_id \
             AND (sandboxes.status = 'failed' OR sandboxes.outcome = 'failed'))";
        let inserted = sqlx::query(insert)
            .bind(tenant.as_str().to_owned())
            .bind(key.key.clone())
            .bind(key.fingerprint.clone())
            .bind(sandbox.as_str().to_owned())
            .bind(i64::from(status))
            .bind(micros(now))
            .bind(forgotten(now))
            .execute(&mut *self.0)
            .await?;
        Ok(inserted.rows_affected() == 1)
    }
}
