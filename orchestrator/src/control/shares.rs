// SPDX-License-Identifier: Apache-2.0
//! What gateways have together: tenants' budgets, shared out by what each is asked for, and the keys
//! of their assertions, of which each shows all. Where several orchestrators have gateways, each tells
//! the others of its own once a second.

use crate::store::Store;
use postern_common::control::assertions::{AssertionKey, AssertionKeys};
use postern_common::control::budgets::{Budgets, Shares, WHOLE};
use postern_common::id::{GatewayName, TenantId};
use postern_common::tasks::{Stop, Tasks};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// Of gateways that follow other orchestrators, by these.
    others: BTreeMap<String, Said>,
}

/// What an orchestrator tells others of its gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Said {
    gateways: u32,
    demand: BTreeMap<TenantId, f64>,
    keys: Vec<(Option<GatewayName>, AssertionKey)>,
}

/// Of another orchestrator: what is beyond this is not read.
const SAID_BYTES: usize = 4 << 20;

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
    pub(crate) fn keep_sharing(&self, store: Store, tasks: &Tasks) {
        let sharing = self.clone();
        tasks.spawn(async move |stop: Stop| {
            let mut ticks = tokio::time::interval(INTERVAL);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                sharing.tick();
                if store.has_others() && stop.run_until_cancelled(sharing.tell_others(&store)).await.is_none()
                {
                    return;
                }
            }
        });
    }

    /// Tells other orchestrators of our gateways and hears of theirs. What cannot be heard stays as it
    /// was: nobody gets more of a budget because the database is away.
    async fn tell_others(&self, store: &Store) {
        // Numbers and names: always serializes.
        let said = serde_json::to_string(&self.said()).unwrap_or_default();
        match store.say_and_hear(&said).await {
            Ok(heard) => self.hear(heard),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "other orchestrators' gateways were not heard of"
                );
            }
        }
    }

    fn said(&self) -> Said {
        let members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gateways = u32::try_from(members.gateways.len()).unwrap_or(u32::MAX);
        Said { gateways, demand: members.demand(), keys: members.own_keys() }
    }

    fn hear(&self, heard: Vec<(String, String)>) {
        let read = |(replica, text): (String, String)| {
            let said = (text.len() <= SAID_BYTES).then(|| serde_json::from_str::<Said>(&text).ok());
            let mut said = said.flatten()?;
            // Nobody is believed to have a key under another's name.
            said.keys.retain(|(_, key)| key.is_true());
            Some((replica, said))
        };
        let heard: BTreeMap<String, Said> = heard.into_iter().filter_map(read).collect();
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut members.others, heard);
        // What the gateways of one that is silent have signed is under way as well; one that is not
        // remembers its own.
        for (replica, said) in before {
            if !members.others.contains_key(&replica) {
                said.keys.into_iter().for_each(|(gateway, key)| members.remember_key(gateway, key));
            }
        }
        members.share();
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
        members.others.values_mut().for_each(|said| said.keys.retain(|(name, _)| !is_its(name)));
        members.share();
    }

    /// The keys that gateways' assertions count with now.
    pub(crate) fn keys(&self) -> Vec<AssertionKey> {
        let members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.keys()
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
        if let Some(key) = assertions.own() {
            self.remember_key(gateway, key);
        }
    }

    fn remember_key(&mut self, gateway: Option<GatewayName>, key: AssertionKey) {
        self.left.retain(|left| left.key != key);
        let of_this = self.left.iter().filter(|left| left.gateway == gateway).count();
        if of_this >= KEYS_OF_ONE
            && let Some(oldest) = self.left.iter().position(|left| left.gateway == gateway)
        {
            self.left.remove(oldest);
        }
        self.left.push(Left { since: Instant::now(), gateway, key });
    }

    /// Keys of gateways that follow this orchestrator, or did a moment ago.
    fn own_keys(&self) -> Vec<(Option<GatewayName>, AssertionKey)> {
        let own = |member: &Member| Some((member.gateway.clone(), member.assertions.own()?));
        let left = self.left.iter().map(|left| (left.gateway.clone(), left.key.clone()));
        self.gateways.values().filter_map(own).chain(left).collect()
    }

    /// Those of all gateways.
    fn keys(&self) -> Vec<AssertionKey> {
        let others = self.others.values().flat_map(|said| said.keys.iter().map(|(_, key)| key));
        let mut keys: Vec<AssertionKey> = self.own_keys().into_iter().map(|(_, key)| key).collect();
        keys.extend(others.cloned());
        keys.sort();
        keys.dedup();
        keys
    }

    /// What our gateways are asked for.
    fn demand(&self) -> BTreeMap<TenantId, f64> {
        let mut all = BTreeMap::new();
        for (tenant, asked) in self.gateways.values().flat_map(|member| &member.demand) {
            *all.entry(tenant.clone()).or_insert(0.0) += asked;
        }
        all
    }

    /// Gives each gateway its part of each budget, together never more than the whole; and all keys.
    fn share(&mut self) {
        self.left.retain(|left| left.since.elapsed() < REMEMBERED);
        let keys = self.keys();
        self.gateways.values().for_each(|member| member.assertions.set_all(keys.clone()));
        let others: u32 = self.others.values().fold(0, |all, said| all.saturating_add(said.gateways));
        #[expect(clippy::cast_precision_loss, reason = "some gateways")]
        let count = (self.gateways.len() as f64 + f64::from(others)).max(1.0);
        let mut all = self.demand();
        for (tenant, asked) in self.others.values().flat_map(|said| &said.demand) {
            *all.entry(tenant.clone()).or_insert(0.0) += asked.max(0.0);
        }
        for member in self.gateways.values() {
            let part = |(tenant, all): (&TenantId, &f64)| {
                let asked = member.demand.get(tenant).copied().unwrap_or_default();
                (tenant.clone(), parts(EQUAL / count + (1.0 - EQUAL) * asked / all))
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

    /// Has two orchestrators hear of each other, as the database carries it.
    fn meet(one: &Sharing, two: &Sharing) {
        let text = |sharing: &Sharing| serde_json::to_string(&sharing.said()).expect("serializes");
        let (of_one, of_two) = (text(one), text(two));
        one.hear(vec![("two".to_owned(), of_two)]);
        two.hear(vec![("one".to_owned(), of_one)]);
    }

    #[test]
    fn gateways_of_several_orchestrators_share_one_budget() {
        let (one, two) = (Sharing::default(), Sharing::default());
        let edges = [edge(&one), edge(&one), edge(&two)];
        meet(&one, &two);
        assert!(edges.iter().all(|edge| edge.share.parts() == WHOLE / 3));
        edges[0].share.ask(900);
        edges[2].share.ask(100);
        for sharing in [&one, &two] {
            sharing.tick();
        }
        meet(&one, &two);
        let parts: Vec<_> =
            edges.iter().map(|edge| f64::from(edge.share.parts()) / f64::from(WHOLE)).collect();
        assert!((parts[0] - 0.87).abs() < 0.01 && (parts[2] - 0.11).abs() < 0.01, "{parts:?}");
        assert!(all(&edges) <= WHOLE);
        one.hear(vec![]);
        assert!(all(&edges[..2]) + 2 >= WHOLE, "the other is silent: what it had is free");
    }

    #[test]
    fn each_gateway_shows_the_keys_of_all_orchestrators_and_those_of_a_silent_one_a_while() {
        let (one, two) = (Sharing::default(), Sharing::default());
        let come = |sharing: &Sharing, number: u8| {
            let keys = AssertionKeys::default();
            keys.set_own(AssertionKey::new(&[number; 32]).expect("a key"));
            let sharer = sharing.enter(None, Budgets::default(), keys.clone());
            (keys, sharer)
        };
        let (here, _stays) = come(&one, 1);
        let (there, _stays_too) = come(&two, 2);
        meet(&one, &two);
        assert_eq!((here.all().len(), there.all()), (2, here.all()));
        assert_eq!(one.keys().len(), 2);
        one.hear(vec![]);
        assert_eq!(here.all().len(), 2, "its last assertions are under way");
        let planted = AssertionKey { kid: here.all()[0].kid.clone(), x: there.all()[1].x.clone() };
        let said = Said { keys: vec![(None, planted)], ..Said::default() };
        one.hear(vec![("two".to_owned(), serde_json::to_string(&said).expect("serializes"))]);
        assert_eq!(here.all().len(), 2, "a key under another's name is none");
        one.hear(vec![("two".to_owned(), "{".to_owned())]);

        // A gateway whose credential is taken back is nobody's, whomever it followed.
        let name = GatewayName::parse("edge").expect("a name");
        let keys = AssertionKeys::default();
        keys.set_own(AssertionKey::new(&[3; 32]).expect("a key"));
        let leaves = two.enter(Some(name.clone()), Budgets::default(), keys);
        meet(&one, &two);
        assert_eq!(here.all().len(), 3);
        two.revoke(&name);
        one.revoke(&name);
        drop(leaves);
        meet(&one, &two);
        assert_eq!((here.all().len(), there.all().len()), (2, 2));
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
