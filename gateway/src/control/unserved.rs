// SPDX-License-Identifier: Apache-2.0
//! Tenants whose filters came compiled for another engine than this gateway's.
//!
//! What such a tenant had in force stays so, and everybody is served. But it is not what the
//! orchestrator says it should be, and only another release of either side mends that: so the
//! gateway is not ready while there is one.

use postern_common::control::TenantConfig;
use postern_common::id::TenantId;
use postern_filter_engine::artefact::engine_of;
use postern_filter_engine::settings::fingerprint;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The tenants that wait for filters of this gateway's engine.
#[derive(Debug, Default)]
pub(crate) struct Unserved(Mutex<BTreeSet<TenantId>>);

impl Unserved {
    fn tenants(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a configuration brings a filter that says it is for another engine. Nothing is
    /// verified by that, so it decides nothing but what an operator is told.
    pub(crate) fn is_foreign(config: &TenantConfig) -> bool {
        let own = fingerprint();
        config.filters.values().any(|filter| engine_of(&filter.artefact).is_some_and(|engine| engine != own))
    }

    /// The newest configuration of a tenant could not be put in force for that.
    pub(crate) fn note(&self, tenant: &TenantId) {
        self.tenants().insert(tenant.clone());
    }

    /// The newest configuration of a tenant is in force, or the tenant is gone.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.tenants().remove(tenant);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.tenants().len()
    }
}
