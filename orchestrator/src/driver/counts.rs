// SPDX-License-Identifier: Apache-2.0
//! What is counted while sandboxes are driven, for the admin port.

use super::Driver;
use crate::sessions::Sessions;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// A counter for each value of one label.
type Named = Family<[(&'static str, &'static str); 1], Counter>;

/// Since the start. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    quota_refusals: Named,
    orphans: Named,
}

impl Counts {
    /// A create call was refused because of this quota.
    pub(super) fn refused(&self, quota: &'static str) {
        self.quota_refusals.get_or_create(&[("quota", quota)]).inc();
    }

    /// A thing of this kind that nobody knew was removed.
    pub(super) fn removed(&self, kind: &'static str) {
        self.orphans.get_or_create(&[("kind", kind)]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Create calls that were refused, by the quota that would have been exceeded";
        registry.register("quota_refusals", help, self.quota_refusals.clone());
        let help = "Things that nobody knew and that were removed, by kind; `sandbox` is all of one";
        registry.register("reconcile_orphans", help, self.orphans.clone());
    }
}

impl Driver {
    /// Tells a registry of all that is counted here, and of tokens.
    pub(crate) fn register_counts(&self, registry: &mut Registry) {
        self.0.counts.register(registry);
        let sessions: &Sessions = &self.parts().sessions;
        sessions.register(registry);
    }
}
