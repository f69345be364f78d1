// SPDX-License-Identifier: Apache-2.0
//! Keeping shelves as full as templates want them: one look after each change and once a second.

use super::claim::GIVEN_TIME;
use super::{Place, Pool, Ready, Wanted};
use crate::asked;
use crate::configuration::Configuration;
use crate::keys::random;
use crate::runtime::{Create, Isolation};
use crate::store::{Asked, StoreError, WarmRow, WarmState};
use crate::tenant::Tenant;
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How often is looked when nothing has changed: so soon a changed template is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Sandboxes that are made at the same time: the rest of the machine is for those that are used.
const MADE_AT_ONCE: usize = 2;
/// After a failed try the next one waits, each time twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where it is read what is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wants {
    /// The tenants' templates.
    pub(crate) configuration: Configuration,
    /// The isolation that the operator wants exactly, if any.
    pub(crate) isolation: Option<Isolation>,
}

impl Wants {
    async fn read(&self) -> Result<BTreeMap<Place, Wanted>, StoreError> {
        let tenants = self.configuration.tenants().await?;
        Ok(tenants.iter().flat_map(|tenant| self.of(tenant)).collect())
    }

    /// What one tenant's templates want, in the order of their names up to what the operator allows
    /// to one tenant. A template that cannot be served here wants nothing.
    fn of(&self, tenant: &Tenant) -> Vec<(Place, Wanted)> {
        let caps = self.configuration.caps();
        let mut room = usize::try_from(caps.warm_pool).unwrap_or(usize::MAX);
        let mut wanted = Vec::new();
        for (name, template) in &tenant.files.templates {
            let count = usize::try_from(template.warm_pool.unwrap_or(0)).unwrap_or(usize::MAX).min(room);
            let Some(isolation) = asked::isolation(template, self.isolation).ok().filter(|_| count > 0)
            else {
                continue;
            };
            room -= count;
            let (limits, image) = (asked::limits(template, caps), template.image.clone());
            let asked = Asked { isolation, limits, kubernetes: None, image };
            let place = Place { tenant: tenant.row.name.clone(), template: name.clone() };
            wanted.push((place, Wanted { asked, count }));
        }
        wanted
    }
}

/// When a place is tried again whose last try failed.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Instant,
    next: Duration,
}

impl Pool {
    /// Keeps the shelves full until `stop`.
    pub(crate) async fn watch(self, stop: Stop, wants: Wants) {
        let (failed, mut failures) = tokio::sync::mpsc::channel(MADE_AT_ONCE);
        let mut waits: BTreeMap<Place, Wait> = BTreeMap::new();
        loop {
            match stop.run_until_cancelled(wants.read()).await {
                None => return,
                Some(Ok(wanted)) => {
                    self.retire(wanted);
                    waits.retain(|_, wait| wait.until + LONGEST_WAIT > Instant::now());
                    while let Some((place, asked)) = self.missing(&waits) {
                        self.make(place, asked, failed.clone());
                    }
                }
                Some(Err(error)) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "warm sandboxes are made later"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.changed.notified() => {}
                Some(place) = failures.recv() => put_off(&mut waits, place),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Takes down what is wanted, and ends what is not wanted any more.
    pub(super) fn retire(&self, wanted: BTreeMap<Place, Wanted>) {
        let mut gone: Vec<Ready> = Vec::new();
        let mut shelves = self.shelves();
        for (place, shelf) in &mut shelves.ready {
            let wish = wanted.get(place);
            let (keep, other): (VecDeque<_>, VecDeque<_>) = std::mem::take(shelf)
                .into_iter()
                .partition(|ready| wish.is_some_and(|wish| wish.asked == ready.asked));
            *shelf = keep;
            gone.extend(other);
            while shelf.len() > wish.map_or(0, |wish| wish.count) {
                gone.extend(shelf.pop_back());
            }
        }
        shelves.ready.retain(|_, shelf| !shelf.is_empty());
        shelves.wanted = wanted;
        drop(shelves);
        for ready in gone {
            self.end(ready.running.sandbox);
        }
    }

    /// A place that lacks one, if one more may be made now; from then on it counts as being made.
    /// The place that has the least of what it wants comes first.
    fn missing(&self, waits: &BTreeMap<Place, Wait>) -> Option<(Place, Asked)> {
        let mut shelves = self.shelves();
        if shelves.is_closed || shelves.making.values().sum::<usize>() >= MADE_AT_ONCE {
            return None;
        }
        let now = Instant::now();
        let given = |place: &Place| {
            let is_given = |since: Instant| now.saturating_duration_since(since) < GIVEN_TIME;
            shelves.given.values().filter(|(of, since)| of == place && is_given(*since)).count()
        };
        let has = |place: &Place| {
            shelves.ready.get(place).map_or(0, VecDeque::len)
                + shelves.making.get(place).copied().unwrap_or(0)
                + given(place)
        };
        let lacking = shelves.wanted.iter().filter(|(place, wanted)| {
            has(place) < wanted.count && waits.get(*place).is_none_or(|wait| wait.until <= now)
        });
        let (place, wanted) = lacking.min_by_key(|(place, wanted)| has(place) * 1000 / wanted.count)?;
        let (place, asked) = (place.clone(), wanted.asked.clone());
        *shelves.making.entry(place.clone()).or_default() += 1;
        Some((place, asked))
    }

    fn make(&self, place: Place, asked: Asked, failed: tokio::sync::mpsc::Sender<Place>) {
        let pool = self.clone();
        self.0.tasks.spawn(async move |stop: Stop| {
            // After a shutdown in the middle, the next start ends what was begun.
            let made = stop.run_until_cancelled(pool.try_to_make(&place, asked)).await;
            if let Some(Err(error)) = &made {
                tracing::warn!(?place, error, "no warm sandbox was made; tried again later");
                let _ = failed.send(place.clone()).await.is_ok();
            }
            let mut shelves = pool.shelves();
            if let Some(making) = shelves.making.get_mut(&place) {
                *making = making.saturating_sub(1);
            }
            shelves.making.retain(|_, making| *making > 0);
            drop(shelves);
            pool.0.changed.notify_one();
        });
    }

    async fn try_to_make(
        &self,
        place: &Place,
        asked: Asked,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let id = random(12)?;
        let id = SandboxId::from_random(id.reveal().first_chunk().copied().unwrap_or_default());
        let row = WarmRow {
            id: id.clone(),
            tenant: place.tenant.clone(),
            template: place.template.clone(),
            state: WarmState::Making,
            asked,
            running: None,
        };
        self.shelves().busy.insert(id.clone());
        let made = async {
            self.0.store.add_warm(&row, clock::now()).await?;
            let Asked { isolation, limits, kubernetes, image } = row.asked.clone();
            let create = Create { sandbox: id.clone(), isolation, limits, kubernetes, image };
            let running = self.0.host.create(create).await?;
            let is_ready = self.0.store.warm_is_ready(&running).await?;
            Ok((running, is_ready))
        };
        match made.await {
            Ok((running, true)) => {
                self.shelve(place.clone(), Ready { asked: row.asked, running });
                Ok(())
            }
            Ok((_, false)) => {
                self.end_now(&id).await;
                Ok(())
            }
            Err(error) => {
                self.end_now(&id).await;
                Err(error)
            }
        }
    }
}

fn put_off(waits: &mut BTreeMap<Place, Wait>, place: Place) {
    let wait = waits.get(&place).map_or(FIRST_WAIT, |wait| wait.next);
    let next = (wait * 2).min(LONGEST_WAIT);
    waits.insert(place, Wait { until: Instant::now() + wait, next });
}

#[cfg(test)]
mod tests;
