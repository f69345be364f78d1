// SPDX-License-Identifier: Apache-2.0
//! Threads for calls that do not end at once, below everything that serves.
//!
//! A thread that computes keeps its core until the end of its slice, for milliseconds, though a
//! thread that serves becomes ready; unless its policy is `SCHED_IDLE`: then it makes way at once.
//! So a call begins on the worker that asks, and goes on here if it is still running at its first
//! tick. Calls of a filter that has failed lately begin here.

use std::future::Future;
use std::thread::available_parallelism;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{Error, ThreadPriority};
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Lane(Option<Runtime>);

impl Lane {
    /// A thread for each core: filters that are slow by nature may have all that no request needs.
    ///
    /// # Errors
    /// The machine gives no more threads, or does not let them make way.
    pub(crate) fn start() -> std::io::Result<Self> {
        // Asked first, on a thread of its own: a runtime cannot say what its threads met.
        std::thread::scope(|scope| scope.spawn(make_way).join())
            .map_err(|_panicked| std::io::Error::other("the thread that asked panicked"))?
            .map_err(std::io::Error::other)?;
        let threads = available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("filter-lane")
            .enable_time()
            .on_thread_start(|| drop(make_way()))
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs a call here. Dropping what comes back ends the call at its next tick.
    pub(crate) fn run<Out: Send + 'static>(
        &self,
        call: impl Future<Output = Out> + Send + 'static,
    ) -> Option<AbortOnDropHandle<Out>> {
        self.0.as_ref().map(|runtime| AbortOnDropHandle::new(runtime.spawn(call)))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Without waiting: the last to hold the engine may be a call, on one of these threads.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets this thread run only when no other is ready. Needs no privilege.
fn make_way() -> Result<(), Error> {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use thread_priority::unix::thread_schedule_policy;

    #[tokio::test]
    async fn what_runs_in_the_lane_makes_way_for_everything_else() {
        let lane = Lane::start().expect("threads");
        let policy = lane.run(async { thread_schedule_policy() }).expect("runs").await.expect("ends");
        assert_eq!(policy, Ok(ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle)));
        let here = thread_schedule_policy();
        assert_eq!(here, Ok(ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other)), "the control");
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_ends() {
        let lane = Lane::start().expect("threads");
        let (held, ended) = tokio::sync::oneshot::channel::<()>();
        let call = lane.run(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(call);
        ended.await.expect_err("its end was dropped");
    }

    #[tokio::test]
    async fn a_call_may_be_the_last_to_hold_the_lane() {
        let lane = Arc::new(Lane::start().expect("threads"));
        let (let_go, may_end) = tokio::sync::oneshot::channel::<()>();
        let (done, ended) = tokio::sync::oneshot::channel();
        let held = Arc::clone(&lane);
        let call = lane.run(async move {
            drop(may_end.await);
            // A panic in here would drop `done` unsent.
            drop(held);
            drop(done.send(()));
        });
        drop(lane);
        drop(let_go);
        ended.await.expect("dropping it panics nowhere");
        drop(call);
    }
}
