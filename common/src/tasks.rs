// SPDX-License-Identifier: Apache-2.0
//! Ownership of background tasks: whoever starts one can stop it and waits for it.
//!
//! `tokio::spawn` is forbidden by lint everywhere else. A [`Tasks`] hands each task a [`Stop`];
//! dropping the last clone of a `Tasks` stops nothing, [`Tasks::shut_down`] stops and waits.

use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells a task that it should end.
pub type Stop = CancellationToken;

/// A group of tasks with one owner. Cheap to clone; all clones are the same group.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: Stop,
}

/// Some tasks were still running when the grace period ended.
#[derive(Debug, thiserror::Error)]
#[error("{running} tasks were still running after {grace:?} and were abandoned")]
pub struct ShutDownTimeout {
    /// How many had not ended.
    pub running: usize,
    /// The time that they had been given.
    pub grace: Duration,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task of this group. It should end soon after its [`Stop`] is cancelled.
    ///
    /// Must be called within a tokio runtime.
    pub fn spawn<Task, Running>(&self, task: Task)
    where
        Task: FnOnce(Stop) -> Running,
        Running: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task(self.stop.clone()));
    }

    /// The token that [`Tasks::stop`] cancels, for code that runs inside a caller's own future.
    #[must_use]
    pub fn stop_token(&self) -> Stop {
        self.stop.clone()
    }

    /// A group within this one: it is stopped with its parent, or alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), stop: self.stop.child_token() }
    }

    /// Asks every task to end, without waiting.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Asks every task to end and waits until all have, or until `grace` is over.
    ///
    /// # Errors
    /// [`ShutDownTimeout`] if some were still running then.
    pub async fn shut_down(&self, grace: Duration) -> Result<(), ShutDownTimeout> {
        self.stop();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .map_err(|_elapsed| ShutDownTimeout { running: self.tracker.len(), grace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn shut_down_waits_for_a_task_that_cleans_up_after_the_stop() {
        let tasks = Tasks::new();
        let cleaned = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cleaned);
        tasks.spawn(async move |stop: Stop| {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            seen.store(true, Ordering::SeqCst);
        });
        tasks.shut_down(Duration::from_secs(5)).await.expect("ends in time");
        assert!(cleaned.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_its_stop_is_counted_not_waited_for() {
        let tasks = Tasks::new();
        tasks.spawn(async |_stop| std::future::pending::<()>().await);
        let late = tasks.shut_down(Duration::from_secs(1)).await.expect_err("cannot end");
        assert_eq!(late.running, 1);
    }

    #[tokio::test]
    async fn a_child_group_stops_with_its_parent_but_not_the_other_way_round() {
        let parent = Tasks::new();
        let child = parent.child();
        child.stop();
        assert!(!parent.stop_token().is_cancelled());
        let other = parent.child();
        parent.stop();
        assert!(other.stop_token().is_cancelled());
    }
}
