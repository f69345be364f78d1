// SPDX-License-Identifier: Apache-2.0
//! What a tenant's sandboxes may take together, counted where a new one is written down.

use super::{Asked, Change, Columns, NewSandbox, StoreError, micros};
use jiff::Timestamp;
pub(crate) use postern_common::folder::Quotas;
use postern_common::id::TenantId;

/// What a tenant's live sandboxes may use, by the index `sandboxes_live`. Every conversation's id is
/// longer than nothing: said so that this index fits best, in whichever order SQLite read them.
pub(super) const LIVE_LIMITS: &str = "SELECT wanted FROM sandboxes WHERE tenant = $1 AND conversation_id > '' \
     AND status NOT IN ('destroyed', 'failed')";
/// Sandboxes that a tenant asked for lately, by the index `sandboxes_of_tenant`.
pub(super) const COUNT_RECENT: &str =
    "SELECT COUNT(*) AS count FROM sandboxes WHERE tenant = $1 AND created_at_micros >= $2";

/// A quota that a sandbox would exceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the quota `{name}` of {quota}{unit} would be exceeded: {used} are used, {asked} more wanted")]
pub(crate) struct OverQuota {
    /// Its name in `limits.toml`.
    pub(crate) name: &'static str,
    /// What is counted, for people.
    pub(crate) unit: &'static str,
    /// What is allowed.
    pub(crate) quota: u64,
    /// What there is.
    pub(crate) used: u64,
    /// What the sandbox would add.
    pub(crate) asked: u64,
}

/// What a tenant uses.
#[derive(Debug, Default)]
struct Used {
    sandboxes: u64,
    recent: u64,
    cpu_millis: u64,
    memory_bytes: u64,
    disk_bytes: u64,
}

/// The first of a tenant's quotas that a sandbox would exceed.
///
/// INVARIANT: the tenant's row is locked.
pub(super) async fn over_quota(
    change: &mut Change,
    new: &NewSandbox,
    quotas: &Quotas,
    now: Timestamp,
) -> Result<Option<OverQuota>, StoreError> {
    if *quotas == Quotas::default() {
        return Ok(None);
    }
    let used = used(change, &new.tenant, now).await?;
    let limits = new.asked.limits;
    let cpu = quotas.cpu.map(|cores| u64::from(cores) * 1000);
    let counted = [
        ("sandboxes", "", quotas.sandboxes.map(u64::from), used.sandboxes, 1),
        ("creates_per_minute", "", quotas.creates_per_minute.map(u64::from), used.recent, 1),
        ("cpu", " millicores", cpu, used.cpu_millis, u64::from(limits.cpu_millis)),
        (
            "memory",
            " bytes",
            quotas.memory.map(|quota| quota.as_u64()),
            used.memory_bytes,
            limits.memory_bytes,
        ),
        ("disk", " bytes", quotas.disk.map(|quota| quota.as_u64()), used.disk_bytes, limits.disk_bytes),
    ];
    let over = |(name, unit, quota, used, asked): (_, _, Option<u64>, u64, u64)| {
        let quota = quota.filter(|quota| used.saturating_add(asked) > *quota)?;
        Some(OverQuota { name, unit, quota, used, asked })
    };
    Ok(counted.into_iter().find_map(over))
}

async fn used(change: &mut Change, tenant: &TenantId, now: Timestamp) -> Result<Used, StoreError> {
    let since = now.saturating_sub(jiff::SignedDuration::from_mins(1)).unwrap_or(Timestamp::MIN);
    let recent = sqlx::query(COUNT_RECENT).bind(tenant.as_str().to_owned()).bind(micros(since));
    let recent = recent.fetch_one(&mut *change.0).await?.number("count")?;
    let recent = u64::try_from(recent).unwrap_or(0);
    let mut used = Used { recent, ..Used::default() };
    for row in sqlx::query(LIVE_LIMITS).bind(tenant.as_str().to_owned()).fetch_all(&mut *change.0).await? {
        let Asked { limits, .. } = row.json("wanted")?;
        used.sandboxes += 1;
        used.cpu_millis = used.cpu_millis.saturating_add(u64::from(limits.cpu_millis));
        used.memory_bytes = used.memory_bytes.saturating_add(limits.memory_bytes);
        used.disk_bytes = used.disk_bytes.saturating_add(limits.disk_bytes);
    }
    Ok(used)
}
