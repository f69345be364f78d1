// SPDX-License-Identifier: Apache-2.0
//! A tenant's budget, shared out over the gateways that live.
//!
//! ```text
//!  gateway: every request asks ─▶ demand ──▶ orchestrator: by demand, each second
//!           its bucket fills at rate × part ◀── shares
//! ```
//! The parts of all gateways together are never more than the whole, so the tenant gets what it was
//! given however many gateways there are; and a gateway that nobody asks keeps a small part, so that
//! its first requests are not refused.

use crate::id::TenantId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A whole budget, in the unit of parts.
pub const WHOLE: u32 = 1 << 20;

/// Requests by tenant, in tokens, whether they were let through or not.
pub type Demand = BTreeMap<TenantId, u64>;

/// One gateway's parts of the tenants' budgets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// Its part of each budget that is not named.
    pub others: u32,
    /// Its parts by tenant.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<TenantId, u32>,
}

impl Default for Shares {
    /// Those of the only gateway.
    fn default() -> Self {
        Self { others: WHOLE, tenants: BTreeMap::new() }
    }
}

impl Shares {
    /// The part of a tenant's budget; never nothing and never more than the whole.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> u32 {
        self.tenants.get(tenant).copied().unwrap_or(self.others).clamp(1, WHOLE)
    }
}

/// One gateway's part of one tenant's budget.
#[derive(Debug)]
pub struct Share {
    parts: AtomicU32,
    asked: AtomicU64,
}

impl Share {
    /// The part, of [`WHOLE`]; at least 1.
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.parts.load(Ordering::Relaxed)
    }

    /// Counts tokens that are asked for.
    pub fn ask(&self, tokens: u32) {
        self.asked.fetch_add(u64::from(tokens), Ordering::Relaxed);
    }
}

/// One gateway's parts and demand, seen from both of its ends. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Budgets(Arc<RwLock<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    shares: Shares,
    known: BTreeMap<TenantId, Arc<Share>>,
}

impl Inner {
    fn of(&mut self, tenant: &TenantId) -> &Arc<Share> {
        let parts = self.shares.of(tenant);
        let fresh = || Arc::new(Share { parts: AtomicU32::new(parts), asked: AtomicU64::new(0) });
        self.known.entry(tenant.clone()).or_insert_with(fresh)
    }
}

impl Budgets {
    /// The gateway's part of a tenant's budget, kept up to date for as long as anybody holds it.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Arc<Share> {
        Arc::clone(self.0.write().unwrap_or_else(PoisonError::into_inner).of(tenant))
    }

    /// What was asked for since it was taken last. Tenants that nobody holds any more are forgotten.
    #[must_use]
    pub fn take_demand(&self) -> Demand {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut demand = Demand::new();
        inner.known.retain(|tenant, share| {
            let asked = share.asked.swap(0, Ordering::Relaxed);
            if asked > 0 {
                demand.insert(tenant.clone(), asked);
            }
            asked > 0 || Arc::strong_count(share) > 1
        });
        demand
    }

    /// Adds demand that was taken elsewhere, on its way home.
    pub fn add_demand(&self, demand: &Demand) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (tenant, asked) in demand {
            inner.of(tenant).asked.fetch_add(*asked, Ordering::Relaxed);
        }
    }

    /// The parts as they were set last.
    #[must_use]
    pub fn shares(&self) -> Shares {
        self.0.read().unwrap_or_else(PoisonError::into_inner).shares.clone()
    }

    /// Sets the parts of all tenants.
    pub fn set(&self, shares: Shares) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (tenant, share) in &inner.known {
            share.parts.store(shares.of(tenant), Ordering::Relaxed);
        }
        inner.shares = shares;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a name")
    }

    #[test]
    fn the_only_gateway_has_all_and_parts_follow_what_is_set() {
        let budgets = Budgets::default();
        let acme = budgets.of(&tenant("acme"));
        assert_eq!(acme.parts(), WHOLE);
        budgets.set(Shares { others: WHOLE / 2, tenants: BTreeMap::from([(tenant("acme"), WHOLE / 4)]) });
        assert_eq!(acme.parts(), WHOLE / 4, "who holds it sees it");
        assert_eq!(budgets.of(&tenant("other")).parts(), WHOLE / 2);
        budgets.set(Shares { others: 0, tenants: BTreeMap::from([(tenant("acme"), u32::MAX)]) });
        assert_eq!(
            (acme.parts(), budgets.of(&tenant("other")).parts()),
            (WHOLE, 1),
            "never more, never nothing"
        );
    }

    #[test]
    fn demand_is_counted_once_and_who_left_is_forgotten() {
        let budgets = Budgets::default();
        let acme = budgets.of(&tenant("acme"));
        acme.ask(2);
        acme.ask(3);
        budgets.add_demand(&Demand::from([(tenant("acme"), 5), (tenant("gone"), 1)]));
        assert_eq!(budgets.take_demand(), Demand::from([(tenant("acme"), 10), (tenant("gone"), 1)]));
        assert_eq!(budgets.take_demand(), Demand::new());
        let known = |budgets: &Budgets| budgets.0.read().expect("no panic").known.len();
        assert_eq!(known(&budgets), 1);
        drop(acme);
        drop(budgets.take_demand());
        assert_eq!(known(&budgets), 0);
    }
}
