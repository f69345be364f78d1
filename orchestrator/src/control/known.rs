// SPDX-License-Identifier: Apache-2.0
//! What gateways know, and what of it each is told.

use super::{OtherEngines, Publication};
use postern_common::control::{Change, EndedSession, State, TenantConfig};
use postern_common::id::{SandboxId, TenantId};
use postern_common::session::Session;
use postern_filter_engine::settings::fingerprint;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What gateways know, by name, so that each change finds its place.
#[derive(Default)]
pub(super) struct Known {
    tenants: BTreeMap<TenantId, (Arc<TenantConfig>, Arc<OtherEngines>)>,
    sessions: BTreeMap<SandboxId, Session>,
    ended: BTreeMap<SandboxId, EndedSession>,
    /// Tenants that are no more. A name is never given again, so they stay so.
    removed: BTreeSet<TenantId>,
}

impl From<State> for Known {
    fn from(state: State) -> Self {
        Self {
            removed: BTreeSet::new(),
            tenants: state
                .tenants
                .into_iter()
                .map(|tenant| (tenant.tenant.clone(), (tenant, Arc::default())))
                .collect(),
            sessions: state
                .sessions
                .into_iter()
                .map(|session| (session.sandbox_id.clone(), session))
                .collect(),
            ended: state.ended.into_iter().map(|ended| (ended.sandbox_id.clone(), ended)).collect(),
        }
    }
}

impl Known {
    /// What a gateway of this engine is told, and of which tenants it can serve no filters.
    pub(super) fn snapshot(&self, engine: &str) -> (State, BTreeSet<TenantId>) {
        let now = postern_common::clock::now();
        let mut unserved = BTreeSet::new();
        let tenant = |(name, (config, others)): (&TenantId, &(Arc<TenantConfig>, Arc<OtherEngines>))| {
            let (config, is_served) = for_engine(config, others, engine);
            if !is_served {
                unserved.insert(name.clone());
            }
            config
        };
        let state = State {
            tenants: self.tenants.iter().map(tenant).collect(),
            // One that nobody ended but time is over all the same.
            sessions: self.sessions.values().filter(|session| session.expires_at > now).cloned().collect(),
            ended: self.ended.values().cloned().collect(),
        };
        (state, unserved)
    }

    /// Takes a change over; `false` if it comes too late to count.
    pub(super) fn apply(&mut self, Publication { change, others }: &Publication) -> bool {
        match change {
            Change::Snapshot(state) => *self = Self::from(State::clone(state)),
            Change::Session(session) => {
                // An ended session never comes back, whatever was on its way.
                if self.ended.contains_key(&session.sandbox_id) {
                    return false;
                }
                self.sessions.insert(session.sandbox_id.clone(), Session::clone(session));
            }
            Change::SessionEnded(ended) => {
                let now = postern_common::clock::now();
                self.ended.retain(|_, ended| ended.until > now);
                self.sessions.remove(&ended.sandbox_id);
                self.ended.insert(ended.sandbox_id.clone(), ended.clone());
            }
            Change::Tenant(tenant) => {
                let known = self.tenants.get(&tenant.tenant);
                let is_past = known.is_some_and(|(known, _)| known.revision > tenant.revision);
                if is_past || self.removed.contains(&tenant.tenant) {
                    return false;
                }
                self.tenants.insert(tenant.tenant.clone(), (Arc::clone(tenant), Arc::clone(others)));
            }
            Change::TenantRemoved(tenant) => {
                self.tenants.remove(tenant);
                self.removed.insert(tenant.clone());
            }
            Change::Try(_) => {}
        }
        true
    }
}

/// A tenant's configuration for a gateway of this engine, and whether filters are compiled for it.
pub(super) fn for_engine(
    config: &Arc<TenantConfig>,
    others: &OtherEngines,
    engine: &str,
) -> (Arc<TenantConfig>, bool) {
    if config.filters.is_empty() || engine == fingerprint().to_string() {
        return (Arc::clone(config), true);
    }
    match others.get(engine) {
        Some(filters) => {
            (Arc::new(TenantConfig { filters: filters.clone(), ..TenantConfig::clone(config) }), true)
        }
        // It refuses what is for another engine, and says so.
        None => (Arc::clone(config), false),
    }
}
