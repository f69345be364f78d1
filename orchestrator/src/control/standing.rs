// SPDX-License-Identifier: Apache-2.0
//! Where each gateway that follows stands: what it was told of each tenant, and what became of it.
//!
//! ```text
//!   told ──▶ pending ──answer──▶ in-force
//!                         ├────▶ refused    what was in force before still is
//!                         └────▶ unserved   the same: its engine is one that nothing is compiled for
//! ```
//! It is what gateways say of themselves and lives as long as their connection does.

use postern_common::control::{Applied, TenantConfig, tenant_of};
use postern_common::id::{FilterName, TenantId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The name of the gateway that shares this process.
pub(crate) const OWN_PROCESS: &str = "own-process";
/// Mistakes of one tenant that are kept of one gateway, and the letters of each.
const KEPT_MISTAKES: usize = 20;
const KEPT_LETTERS: usize = 500;

/// What became of the newest configuration that a gateway was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stand {
    /// It has not answered yet.
    Pending,
    /// It enforces it.
    InForce,
    /// It keeps to what it had.
    Refused,
    /// It keeps to what it had, because filters are compiled for other engines than its own.
    Unserved,
}

/// Where one gateway stands with one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayStand {
    /// Its name.
    pub(crate) gateway: String,
    /// The engine that it runs filters with.
    pub(crate) engine: String,
    /// What became of the newest configuration.
    pub(crate) stand: Stand,
    /// What it enforces, if it ever put one in force.
    pub(crate) in_force: Option<Arc<Told>>,
    /// Why it keeps to what it had.
    pub(crate) reasons: Vec<String>,
}

/// A configuration, as far as it is told apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Its revision.
    pub(crate) revision: u64,
    /// The versions of its filters.
    pub(crate) filters: BTreeMap<FilterName, u64>,
}

impl Told {
    pub(super) fn of(config: &TenantConfig) -> Arc<Self> {
        let filters = config.filters.iter().map(|(name, filter)| (name.clone(), filter.version)).collect();
        Arc::new(Self { revision: config.revision, filters })
    }
}

/// All gateways that follow. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing(Arc<Mutex<Gateways>>);

#[derive(Debug, Default)]
struct Gateways {
    next: u64,
    by_number: BTreeMap<u64, Gateway>,
}

#[derive(Debug)]
struct Gateway {
    name: String,
    engine: String,
    tenants: BTreeMap<TenantId, Newest>,
}

#[derive(Debug)]
struct Newest {
    told: Arc<Told>,
    stand: Stand,
    is_served: bool,
    in_force: Option<Arc<Told>>,
    reasons: Vec<String>,
}

/// A gateway's place in the list, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    standing: Standing,
    number: u64,
}

impl Place {
    pub(super) const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.standing.gateways().by_number.remove(&self.number);
    }
}

impl Standing {
    fn gateways(&self) -> MutexGuard<'_, Gateways> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gateway that will be told.
    pub(super) fn enter(&self, name: &str, engine: &str) -> Place {
        let mut gateways = self.gateways();
        let number = gateways.next;
        gateways.next += 1;
        let gateway = Gateway { name: name.to_owned(), engine: engine.to_owned(), tenants: BTreeMap::new() };
        gateways.by_number.insert(number, gateway);
        drop(gateways);
        Place { standing: self.clone(), number }
    }

    /// A gateway is being told what a tenant is.
    pub(super) fn told(&self, number: u64, tenant: &TenantId, told: Arc<Told>, is_served: bool) {
        let mut gateways = self.gateways();
        let Some(gateway) = gateways.by_number.get_mut(&number) else { return };
        let in_force = gateway.tenants.get(tenant).and_then(|before| before.in_force.clone());
        let newest = Newest { told, stand: Stand::Pending, is_served, in_force, reasons: Vec::new() };
        gateway.tenants.insert(tenant.clone(), newest);
    }

    /// A gateway has answered to what it was told of a tenant.
    pub(super) fn answered(&self, number: u64, tenant: &TenantId, told: &Arc<Told>, refused: &[String]) {
        let mut gateways = self.gateways();
        let Some(gateway) = gateways.by_number.get_mut(&number) else { return };
        let Some(newest) = gateway.tenants.get_mut(tenant) else { return };
        if refused.is_empty() {
            newest.in_force = Some(Arc::clone(told));
        }
        // An answer to what was told before says nothing of the newest.
        if !Arc::ptr_eq(&newest.told, told) {
            return;
        }
        newest.stand = match (refused.is_empty(), newest.is_served) {
            (true, _) => Stand::InForce,
            (false, true) => Stand::Refused,
            (false, false) => Stand::Unserved,
        };
        let kept = refused.iter().take(KEPT_MISTAKES);
        newest.reasons = kept.map(|words| words.chars().take(KEPT_LETTERS).collect()).collect();
    }

    /// A gateway has answered to a snapshot of these tenants.
    pub(super) fn answered_snapshot(&self, number: u64, tenants: &[(TenantId, Arc<Told>)], answer: &Applied) {
        let mut refused: BTreeMap<TenantId, Vec<String>> = BTreeMap::new();
        if let Applied::Refused(mistakes) = answer {
            for (tenant, mistake) in mistakes.iter().filter_map(|mistake| tenant_of(mistake)) {
                refused.entry(tenant).or_default().push(mistake.to_owned());
            }
        }
        for (tenant, told) in tenants {
            let mistakes = refused.get(tenant).map_or(&[][..], Vec::as_slice);
            self.answered(number, tenant, told, mistakes);
        }
    }

    /// A tenant is no more.
    pub(super) fn removed(&self, tenant: &TenantId) {
        for gateway in self.gateways().by_number.values_mut() {
            gateway.tenants.remove(tenant);
        }
    }

    /// Where every gateway stands with a tenant, by name.
    pub(crate) fn of(&self, tenant: &TenantId) -> Vec<GatewayStand> {
        let gateways = self.gateways();
        let stand = |gateway: &Gateway| {
            let newest = gateway.tenants.get(tenant);
            GatewayStand {
                gateway: gateway.name.clone(),
                engine: gateway.engine.clone(),
                stand: newest.map_or(Stand::Pending, |newest| newest.stand),
                in_force: newest.and_then(|newest| newest.in_force.clone()),
                reasons: newest.map(|newest| newest.reasons.clone()).unwrap_or_default(),
            }
        };
        let mut stands: Vec<_> = gateways.by_number.values().map(stand).collect();
        stands.sort_by(|one, other| one.gateway.cmp(&other.gateway));
        stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::control::of_tenant;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a name")
    }

    fn told(revision: u64) -> Arc<Told> {
        Arc::new(Told { revision, filters: BTreeMap::new() })
    }

    #[test]
    fn what_a_gateway_refuses_leaves_in_force_what_was() {
        let (standing, acme) = (Standing::default(), tenant("acme"));
        let place = standing.enter("edge", "engine");
        let (first, second) = (told(1), told(2));
        standing.told(place.number(), &acme, Arc::clone(&first), true);
        assert_eq!(standing.of(&acme)[0].stand, Stand::Pending);
        standing.answered(place.number(), &acme, &first, &[]);
        standing.told(place.number(), &acme, Arc::clone(&second), true);
        standing.answered(place.number(), &acme, &second, &["it is wrong".to_owned()]);
        let stand = &standing.of(&acme)[0];
        assert_eq!((stand.stand, stand.in_force.clone()), (Stand::Refused, Some(first)));
        assert_eq!(stand.reasons, ["it is wrong"]);
        drop(place);
        assert!(standing.of(&acme).is_empty(), "who left stands nowhere");
    }

    #[test]
    fn a_late_answer_says_nothing_of_what_was_told_since() {
        let (standing, acme) = (Standing::default(), tenant("acme"));
        let place = standing.enter("edge", "engine");
        let (first, second) = (told(1), told(2));
        standing.told(place.number(), &acme, Arc::clone(&first), true);
        standing.told(place.number(), &acme, second, false);
        standing.answered(place.number(), &acme, &first, &["late".to_owned()]);
        assert_eq!(standing.of(&acme)[0].stand, Stand::Pending);
        standing.answered(place.number(), &acme, &first, &[]);
        let stand = &standing.of(&acme)[0];
        assert_eq!((stand.stand, stand.in_force.clone()), (Stand::Pending, Some(first)));
    }

    #[test]
    fn a_snapshot_is_answered_tenant_by_tenant() {
        let standing = Standing::default();
        let (acme, other) = (tenant("acme"), tenant("other"));
        let place = standing.enter("edge", "engine");
        let all = [(acme.clone(), told(1)), (other.clone(), told(2))];
        for (tenant, told) in &all {
            standing.told(place.number(), tenant, Arc::clone(told), *tenant != acme);
        }
        let refused = vec![of_tenant(&acme, "filters/x: another engine"), "a socket".to_owned()];
        standing.answered_snapshot(place.number(), &all, &Applied::Refused(refused));
        let (one, two) = (&standing.of(&acme)[0], &standing.of(&other)[0]);
        assert_eq!((one.stand, two.stand), (Stand::Unserved, Stand::InForce));
        assert_eq!((one.in_force.clone(), one.reasons.len()), (None, 1));
    }
}
