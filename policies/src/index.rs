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
use crate::party::{Key, Names, Party, Prehashed};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

type Filed<T> = HashMap<Key, Arc<T>, BuildHasherDefault<Prehashed>>;
type Resources = Filed<Principals>;

/// Editions so far; the first is that of no policies.
static EDITIONS: AtomicU64 = AtomicU64::new(1);

/// The policies of one action and resource by their principal.
#[derive(Debug, Clone, Default)]
struct Principals {
    filed: Filed<Vec<Arc<CompiledPolicy>>>,
    /// What a request may have to consider here, worked out once and again after a change.
    load: OnceLock<Load>,
}

impl Principals {
    /// The policies, about to be changed.
    fn change(&mut self) -> &mut Filed<Vec<Arc<CompiledPolicy>>> {
        self.load = OnceLock::new();
        &mut self.filed
    }

    #[expect(clippy::iter_over_hash_type, reason = "sums and maxima are the same in any order")]
    fn load(&self) -> Load {
        *self.load.get_or_init(|| {
            // A sandbox is `in` its tenant, one user and itself, and equal to itself: of each kind
            // of name at most one key matches.
            let (mut broad, mut most) = (Load::default(), [Load::default(); 3]);
            for (key, bucket) in &self.filed {
                let bucket = bucket.iter().fold(Load::default(), |sum, policy| sum.and(policy.load()));
                match key.names() {
                    Names::All => broad = broad.and(bucket),
                    Names::User => most[0] = most[0].or(bucket),
                    Names::Group => most[1] = most[1].or(bucket),
                    Names::One => most[2] = most[2].or(bucket),
                }
            }
            most.into_iter().fold(broad, Load::and)
        })
    }
}

/// What it takes to decide a request, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Policies whose scope matches.
    pub candidates: usize,
    /// Expressions in their conditions.
    pub expressions: usize,
}

impl Load {
    fn and(self, other: Self) -> Self {
        Self {
            candidates: self.candidates.saturating_add(other.candidates),
            expressions: self.expressions.saturating_add(other.expressions),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            candidates: self.candidates.max(other.candidates),
            expressions: self.expressions.max(other.expressions),
        }
    }
}

/// All policies of a set by their scope.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    actions: Filed<Resources>,
    /// INVARIANT: two indexes of one edition hold the same policies.
    edition: u64,
}

impl Index {
    /// Tells what is filed from all else that this process ever filed.
    pub(crate) fn edition(&self) -> u64 {
        self.edition
    }

    pub(crate) fn insert(&mut self, policy: &Arc<CompiledPolicy>) {
        self.edition = EDITIONS.fetch_add(1, Ordering::Relaxed);
        let filing = &policy.filing;
        for action in &filing.actions {
            let resources = Arc::make_mut(self.actions.entry(action.clone()).or_default());
            let principals = Arc::make_mut(resources.entry(filing.resource.clone()).or_default());
            let bucket = Arc::make_mut(principals.change().entry(filing.principal.clone()).or_default());
            bucket.push(Arc::clone(policy));
        }
    }

    pub(crate) fn remove(&mut self, policy: &Arc<CompiledPolicy>) {
        self.edition = EDITIONS.fetch_add(1, Ordering::Relaxed);
        let filing = &policy.filing;
        for action in &filing.actions {
            let Some(resources) = self.actions.get_mut(action).map(Arc::make_mut) else { continue };
            let Some(principals) = resources.get_mut(&filing.resource).map(Arc::make_mut) else { continue };
            let filed = principals.change();
            let Some(bucket) = filed.get_mut(&filing.principal).map(Arc::make_mut) else { continue };
            bucket.retain(|filed| !Arc::ptr_eq(filed, policy));
            if bucket.is_empty() {
                filed.remove(&filing.principal);
            }
            if filed.is_empty() {
                resources.remove(&filing.resource);
            }
            if resources.is_empty() {
                self.actions.remove(action);
            }
        }
    }

    /// What a request of any sandbox to this action and resource may have to consider, at most.
    pub(crate) fn load(&self, action: &Party, resource: &Party) -> Load {
        let resources = action.keys().iter().filter_map(|key| self.actions.get(key));
        let principals = resources.flat_map(|resources| {
            resource.keys().iter().filter_map(|resource_key| resources.get(resource_key))
        });
        principals.fold(Load::default(), |sum, principals| sum.and(principals.load()))
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
                    let Some(bucket) = principals.filed.get(principal_key) else { continue };
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
