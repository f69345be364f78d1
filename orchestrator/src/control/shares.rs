// SPDX-License-Identifier: Apache-2.0
//! What gateways have together: tenants' budgets, shared out by what each is asked for, and the keys
//! of their assertions, of which each shows all.

use postern_common::control::assertions::{AssertionKey, AssertionKeys};
use postern_common::control::budgets::{Budgets, Shares, WHOLE};
use postern_common::id::{GatewayName, TenantId};
use postern_common::tasks::{Stop, Tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the keys of a gateway that left are shown: longer than its assertions live and than
/// backends keep key sets.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Keys of gateways that left under one name, which replicas may share.
const KEYS_OF_ONE: usize = 16;
/// How often parts are set anew; gateways of other processes hear of it within as much again.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is shared out equally, whatever the demand: what a gateway has for the first requests of a
/// tenant that went elsewhere so far.
const EQUAL: f64 = 0.05;
/// What is left of a demand after one interval.
const FADE: f64 = 0.5;
/// Demand below which a tenant is as good as unasked.
const FORGOTTEN: f64 = 0.01;

/// The gateways that share budgets. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sharing(Arc<Mutex<Members>>);

#[derive(Debug, Default)]
struct Members {
    next: u64,
    gateways: BTreeMap<u64, Member>,
    /// Keys of gateways that left, whose last assertions may still be under way.
    left: Vec<Left>,
}

/// A key of a gateway that left.
#[derive(Debug)]
struct Left {
    since: Instant,
    gateway: Option<GatewayName>,
    key: AssertionKey,
}

#[derive(Debug)]
struct Member {
    /// Its name, if it is a gateway of its own.
    gateway: Option<GatewayName>,
    budgets: Budgets,
    demand: BTreeMap<TenantId, f64>,
    assertions: AssertionKeys,
}

/// A gateway's place among those that share, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Sharer {
    sharing: Sharing,
    number: u64,
}

impl Drop for Sharer {
    fn drop(&mut self) {
        let mut members = self.sharing.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = members.gateways.remove(&self.number) {
            members.remember(member);
        }
        members.share();
    }
}

impl Sharing {
    /// Sets parts anew until the tasks are stopped.
    pub(crate) fn keep_sharing(&self, tasks: &Tasks) {
        let sharing = self.clone();
        tasks.spawn(async move |stop: Stop| {
            let mut ticks = tokio::time::interval(INTERVAL);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                sharing.tick();
            }
        });
    }

    /// A gateway comes: from now on the others have less.
    pub(crate) fn enter(
        &self,
        gateway: Option<GatewayName>,
        budgets: Budgets,
        assertions: AssertionKeys,
    ) -> Sharer {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = members.next;
        members.next += 1;
        members.gateways.insert(number, Member { gateway, budgets, demand: BTreeMap::new(), assertions });
        members.share();
        Sharer { sharing: self.clone(), number }
    }

    /// Takes back the keys of a gateway whose credential was: nothing that it signs counts any more.
    pub(crate) fn revoke(&self, gateway: &GatewayName) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its = |name: &Option<GatewayName>| name.as_ref() == Some(gateway);
        members.left.retain(|left| !is_its(&left.gateway));
        members.gateways.retain(|_, member| !is_its(&member.gateway));
        members.share();
    }

    /// The keys that gateways' assertions count with now.
    pub(crate) fn keys(&self) -> Vec<AssertionKey> {
        let members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = members.gateways.values().filter_map(|member| member.assertions.own());
        own.chain(members.left.iter().map(|left| left.key.clone())).collect()
    }

    fn tick(&self) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members.gateways.values_mut() {
            member.demand.values_mut().for_each(|demand| *demand *= FADE);
            member.demand.retain(|_, demand| *demand > FORGOTTEN);
            for (tenant, asked) in member.budgets.take_demand() {
                #[expect(clippy::cast_precision_loss, reason = "a proportion")]
                let asked = asked as f64;
                *member.demand.entry(tenant).or_default() += asked;
            }
        }
        members.share();
    }
}

impl Members {
    /// Keeps the key of a gateway that left: the newest few of each name, for as long as its
    /// assertions may be under way.
    fn remember(&mut self, Member { gateway, assertions, .. }: Member) {
        let Some(key) = assertions.own() else { return };
        self.left.retain(|left| left.key != key);
        let of_this = self.left.iter().filter(|left| left.gateway == gateway).count();
        if of_this >= KEYS_OF_ONE
            && let Some(oldest) = self.left.iter().position(|left| left.gateway == gateway)
        {
            self.left.remove(oldest);
        }
        self.left.push(Left { since: Instant::now(), gateway, key });
    }

    /// Gives each gateway its part of each budget, together never more than the whole; and all keys.
    fn share(&mut self) {
        self.left.retain(|left| left.since.elapsed() < REMEMBERED);
        let own = self.gateways.values().filter_map(|member| member.assertions.own());
        let mut keys: Vec<AssertionKey> = own.chain(self.left.iter().map(|left| left.key.clone())).collect();
        keys.sort();
        keys.dedup();
        self.gateways.values().for_each(|member| member.assertions.set_all(keys.clone()));
        #[expect(clippy::cast_precision_loss, reason = "some gateways")]
        let count = (self.gateways.len() as f64).max(1.0);
        let tenants: BTreeSet<&TenantId> =
            self.gateways.values().flat_map(|member| member.demand.keys()).collect();
        let all: BTreeMap<&TenantId, f64> = tenants
            .into_iter()
            .map(|tenant| (tenant, self.gateways.values().filter_map(|it| it.demand.get(tenant)).sum()))
            .collect();
        for member in self.gateways.values() {
            let part = |(tenant, all): (&&TenantId, &f64)| {
                let asked = member.demand.get(*tenant).copied().unwrap_or_default();
                (TenantId::clone(tenant), parts(EQUAL / count + (1.0 - EQUAL) * asked / all))
            };
            member
                .budgets
                .set(Shares { others: parts(1.0 / count), tenants: all.iter().map(part).collect() });
        }
    }
}

fn parts(of_whole: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1")]
    let parts = (of_whole.clamp(0.0, 1.0) * f64::from(WHOLE)) as u32;
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::control::budgets::Share;

    fn acme() -> TenantId {
        TenantId::parse("acme").expect("a name")
    }

    struct Edge {
        share: Arc<Share>,
        _sharer: Sharer,
    }

    fn edge(sharing: &Sharing) -> Edge {
        let budgets = Budgets::default();
        let share = budgets.of(&acme());
        let assertions = AssertionKeys::default();
        Edge { share, _sharer: sharing.enter(None, budgets, assertions) }
    }

    fn all(edges: &[Edge]) -> u32 {
        edges.iter().map(|edge| edge.share.parts()).sum()
    }

    #[test]
    fn one_gateway_has_the_whole_and_several_share_it_equally_until_they_are_asked() {
        let sharing = Sharing::default();
        let mut edges = vec![edge(&sharing)];
        assert_eq!(edges[0].share.parts(), WHOLE);
        edges.extend((0..3).map(|_| edge(&sharing)));
        assert!(edges.iter().all(|edge| edge.share.parts() == WHOLE / 4));
        edges.truncate(1);
        assert_eq!(edges[0].share.parts(), WHOLE, "who leaves leaves its part");
    }

    #[test]
    fn keys_of_who_left_are_shown_a_while_and_those_of_a_revoked_gateway_not_at_all() {
        let sharing = Sharing::default();
        let seen = AssertionKeys::default();
        let _watching = sharing.enter(None, Budgets::default(), seen.clone());
        let name = GatewayName::parse("edge").expect("a name");
        let come = |number: u8| {
            let keys = AssertionKeys::default();
            keys.set_own(AssertionKey::new(&[number; 32]).expect("a key"));
            sharing.enter(Some(name.clone()), Budgets::default(), keys)
        };
        drop(come(1));
        assert_eq!(seen.all().len(), 1, "its last assertions are under way");
        (0..100).for_each(|number| drop(come(number)));
        assert_eq!(seen.all().len(), KEYS_OF_ONE, "however often it comes");
        let stays = come(200);
        sharing.revoke(&name);
        assert_eq!(seen.all(), []);
        drop(stays);
        assert_eq!(seen.all(), [], "also when its connection ends after that");
    }

    #[test]
    fn parts_follow_demand_and_are_never_more_than_the_whole() {
        let sharing = Sharing::default();
        let edges: Vec<_> = (0..3).map(|_| edge(&sharing)).collect();
        edges[0].share.ask(900);
        edges[1].share.ask(100);
        sharing.tick();
        let parts: Vec<_> =
            edges.iter().map(|edge| f64::from(edge.share.parts()) / f64::from(WHOLE)).collect();
        assert!((parts[0] - 0.87).abs() < 0.01 && (parts[1] - 0.11).abs() < 0.01, "{parts:?}");
        assert!(parts[2] > 0.01, "who is not asked keeps something for the first request: {parts:?}");
        assert!(all(&edges) <= WHOLE);
        for _ in 0..30 {
            sharing.tick();
        }
        assert!(edges.iter().all(|edge| edge.share.parts() == WHOLE / 3), "old demand is forgotten");
    }
}
