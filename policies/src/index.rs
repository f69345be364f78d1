// SPDX-License-Identifier: Apache-2.0
//! Finds the policies whose scope matches a request, and no others.
//!
//! Policies are filed by action, then resource, then principal, under the one key that each part
//! of their scope has. A request looks under every key that could match it, a few dozen look-ups
//! however many policies there are. So a policy that is not found has a scope that is false, and
//! Cedar would have skipped it: leaving it out changes neither answer, reasons nor errors.
//!
//! ```text
//!   actions: Any | == A | in G     resources: Any | is T | == R | in P     principals: likewise
//!      └─▶ Resources ──────────────────▶ Principals ───────────────────────────▶ policies
//! ```
//!
//! The levels are shared: a copy of the index costs its top level, and a change copies only the
//! way to it.

use crate::compile::CompiledPolicy;
use crate::party::{Key, Party, Prehashed};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

type Filed<T> = HashMap<Key, Arc<T>, BuildHasherDefault<Prehashed>>;
type Principals = Filed<Vec<Arc<CompiledPolicy>>>;
type Resources = Filed<Principals>;

/// All policies of a set by their scope.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    actions: Filed<Resources>,
}

impl Index {
    pub(crate) fn insert(&mut self, policy: &Arc<CompiledPolicy>) {
        let filing = &policy.filing;
        for action in &filing.actions {
            let resources = Arc::make_mut(self.actions.entry(action.clone()).or_default());
            let principals = Arc::make_mut(resources.entry(filing.resource.clone()).or_default());
            let bucket = Arc::make_mut(principals.entry(filing.principal.clone()).or_default());
            bucket.push(Arc::clone(policy));
        }
    }

    pub(crate) fn remove(&mut self, policy: &Arc<CompiledPolicy>) {
        let filing = &policy.filing;
        for action in &filing.actions {
            let Some(resources) = self.actions.get_mut(action).map(Arc::make_mut) else { continue };
            let Some(principals) = resources.get_mut(&filing.resource).map(Arc::make_mut) else { continue };
            let Some(bucket) = principals.get_mut(&filing.principal).map(Arc::make_mut) else { continue };
            bucket.retain(|filed| !Arc::ptr_eq(filed, policy));
            if bucket.is_empty() {
                principals.remove(&filing.principal);
            }
            if principals.is_empty() {
                resources.remove(&filing.resource);
            }
            if resources.is_empty() {
                self.actions.remove(action);
            }
        }
    }

    /// Calls `found` once for each policy whose scope matches, in no particular order.
    pub(crate) fn candidates<'a>(
        &'a self,
        principal: &Party,
        action: &Party,
        resource: &Party,
        mut found: impl FnMut(&'a Arc<CompiledPolicy>),
    ) {
        for action_key in action.keys() {
            let Some(resources) = self.actions.get(action_key) else { continue };
            for resource_key in resource.keys() {
                let Some(principals) = resources.get(resource_key) else { continue };
                for principal_key in principal.keys() {
                    let Some(bucket) = principals.get(principal_key) else { continue };
                    for policy in
                        bucket.iter().filter(|policy| fits(policy, principal, action, resource, action_key))
                    {
                        found(policy);
                    }
                }
            }
        }
    }
}

/// What the keys leave open: the type of `is TYPE in ENTITY`, and that a policy filed under
/// several actions is found under the first that matches only.
fn fits(
    policy: &CompiledPolicy,
    principal: &Party,
    action: &Party,
    resource: &Party,
    found_by: &Key,
) -> bool {
    let filing = &policy.filing;
    let is_of = |wanted: &Option<Arc<_>>, party: &Party| {
        wanted.as_ref().is_none_or(|wanted| **wanted == *party.uid().entity_type())
    };
    is_of(&filing.principal_type, principal)
        && is_of(&filing.resource_type, resource)
        && (filing.actions.len() < 2
            || filing.actions.iter().find(|filed| action.keys().contains(filed)) == Some(found_by))
}
