// SPDX-License-Identifier: Apache-2.0
//! Configurations that wait to be compiled: the newest of each tenant, tenants in turn.
//!
//! What waits is bounded by the number of tenants, so that handing over never blocks: a newer
//! configuration takes the place of one that waits, and whoever waits for the older one's answer
//! gets the newer one's. A tenant is compiled for once at a time, and then goes to the end of the
//! queue, so that one whose configurations take long delays its own alone.

use super::freshness::Generation;
use crate::Gateway;
use postern_common::control::{Applied, TenantConfig, of_tenant};
use postern_common::id::TenantId;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

/// What is to become of a tenant.
#[derive(Debug)]
pub(crate) enum Work {
    Put(Arc<TenantConfig>),
    Remove,
}

/// Work, and who waits for it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    /// The epoch of its message.
    pub(crate) epoch: u64,
    answers: Vec<Answer>,
}

/// Who waits for a job.
#[derive(Debug)]
pub(crate) enum Answer {
    One(oneshot::Sender<Applied>),
    /// A snapshot, of which it is one tenant's part.
    Part(Arc<Batch>),
}

impl Job {
    /// Tells everybody who waits what was wrong with the tenant, if anything was.
    pub(crate) fn answer(answers: Vec<Answer>, tenant: &TenantId, mistakes: &[String]) {
        for answer in answers {
            match answer {
                Answer::One(applied) => drop(applied.send(applied_with(mistakes.to_vec()))),
                Answer::Part(batch) => batch.part_done(tenant, mistakes),
            }
        }
    }

    /// The work alone, and who waits for it.
    pub(crate) fn into_parts(self) -> (Work, u64, Vec<Answer>) {
        (self.work, self.epoch, self.answers)
    }
}

fn applied_with(mistakes: Vec<String>) -> Applied {
    if mistakes.is_empty() { Applied::InForce } else { Applied::Refused(mistakes) }
}

/// A snapshot whose tenants are being compiled; when the last is done, it is in force.
#[derive(Debug)]
pub(crate) struct Batch {
    gateway: Arc<Gateway>,
    generation: Generation,
    state: Mutex<Parts>,
}

#[derive(Debug)]
struct Parts {
    left: usize,
    mistakes: Vec<String>,
    applied: Option<oneshot::Sender<Applied>>,
}

impl Batch {
    /// A snapshot of so many parts, and what was wrong with it so far.
    pub(crate) fn new(
        gateway: &Arc<Gateway>,
        generation: Generation,
        parts: usize,
        mistakes: Vec<String>,
        applied: oneshot::Sender<Applied>,
    ) -> Arc<Self> {
        let state = Mutex::new(Parts { left: parts, mistakes, applied: Some(applied) });
        Arc::new(Self { gateway: Arc::clone(gateway), generation, state })
    }

    fn part_done(&self, tenant: &TenantId, mistakes: &[String]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = state.left.saturating_sub(1);
        state.mistakes.extend(mistakes.iter().map(|mistake| of_tenant(tenant, mistake)));
    }
}

impl Drop for Batch {
    /// The last part is done: whatever was wrong with some tenants, the state is whole. A batch
    /// that was given up with parts left tells nobody anything.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.left > 0 {
            return;
        }
        self.gateway.freshness.in_force(self.generation);
        let mistakes = std::mem::take(&mut state.mistakes);
        if let Some(applied) = state.applied.take() {
            drop(applied.send(applied_with(mistakes)));
        }
    }
}

#[derive(Debug, Default)]
struct Jobs {
    /// Tenants whose turn comes, each once.
    queue: VecDeque<TenantId>,
    /// The newest work of each tenant.
    waiting: HashMap<TenantId, Job>,
    /// Tenants that are compiled for now.
    running: HashSet<TenantId>,
}

/// The queue. Never blocks whoever adds to it.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    jobs: Mutex<Jobs>,
    more: Notify,
}

impl Pending {
    fn with<Done>(&self, change: impl FnOnce(&mut Jobs) -> Done) -> Done {
        change(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds work, in the place of older work of the tenant that has not begun.
    pub(crate) fn add(&self, tenant: TenantId, work: Work, epoch: u64, answer: Answer) {
        self.with(|jobs| {
            let mut answers = match jobs.waiting.remove(&tenant) {
                Some(older) => older.answers,
                None => {
                    if !jobs.running.contains(&tenant) {
                        jobs.queue.push_back(tenant.clone());
                    }
                    Vec::new()
                }
            };
            // Whoever gave up waiting leaves no trace, so that answers stay bounded too.
            answers.retain(|answer| !matches!(answer, Answer::One(applied) if applied.is_closed()));
            answers.push(answer);
            jobs.waiting.insert(tenant, Job { work, epoch, answers });
        });
        self.more.notify_one();
    }

    /// Tenants with work that has not begun.
    pub(crate) fn tenants(&self) -> Vec<TenantId> {
        self.with(|jobs| jobs.waiting.keys().cloned().collect())
    }

    /// Waits for the next tenant's work. Cancel-safe. [`Pending::done`] must follow.
    pub(crate) async fn next(&self) -> (TenantId, Job) {
        loop {
            let found = self.with(|jobs| {
                let tenant = jobs.queue.pop_front()?;
                let job = jobs.waiting.remove(&tenant)?;
                jobs.running.insert(tenant.clone());
                Some((tenant, job))
            });
            match found {
                Some(found) => return found,
                None => self.more.notified().await,
            }
        }
    }

    /// The tenant's work is done; what came meanwhile waits for its turn.
    pub(crate) fn done(&self, tenant: &TenantId) {
        self.with(|jobs| {
            jobs.running.remove(tenant);
            if jobs.waiting.contains_key(tenant) {
                jobs.queue.push_back(tenant.clone());
            }
        });
        self.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a name")
    }

    fn add(pending: &Pending, name: &str, epoch: u64) -> oneshot::Receiver<Applied> {
        let (applied, answer) = oneshot::channel();
        pending.add(tenant(name), Work::Remove, epoch, Answer::One(applied));
        answer
    }

    #[tokio::test]
    async fn the_newest_work_of_a_tenant_answers_for_all_before_it() {
        let pending = Pending::default();
        let answers: Vec<_> = (1..=1000).map(|epoch| add(&pending, "acme", epoch)).collect();
        let (name, job) = pending.next().await;
        let (_, epoch, waiting) = job.into_parts();
        assert_eq!((name.as_str(), epoch, waiting.len()), ("acme", 1000, 1000));
        Job::answer(waiting, &name, &["wrong".to_owned()]);
        for answer in answers {
            assert_eq!(answer.await.expect("an answer"), Applied::Refused(vec!["wrong".into()]));
        }
        assert!(pending.tenants().is_empty());
    }

    #[tokio::test]
    async fn tenants_take_turns_and_each_runs_once_at_a_time() {
        let pending = Pending::default();
        let _answers = [add(&pending, "slow", 1), add(&pending, "b", 1)];
        let (first, _job) = pending.next().await;
        assert_eq!(first.as_str(), "slow");
        let _more = [add(&pending, "slow", 2), add(&pending, "c", 1)];
        for expected in ["b", "c"] {
            let (name, _job) = pending.next().await;
            assert_eq!(name.as_str(), expected, "not the one that runs");
            pending.done(&name);
        }
        pending.done(&first);
        let (name, job) = pending.next().await;
        assert_eq!((name.as_str(), job.into_parts().1), ("slow", 2));
    }

    #[tokio::test]
    async fn whoever_stopped_waiting_leaves_no_trace() {
        let pending = Pending::default();
        for epoch in 0..100 {
            drop(add(&pending, "acme", epoch));
        }
        let (_, job) = pending.next().await;
        assert_eq!(job.into_parts().2.len(), 1, "the last one was not looked at again");
    }
}
