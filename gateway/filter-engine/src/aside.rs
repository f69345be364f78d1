// SPDX-License-Identifier: Apache-2.0
//! A thread of its own for calls of filters that failed lately (`suspicion`), so that what they use up is
//! no worker's time: who is served beside them waits for no tick of theirs.
//!
//! It is of the scheduler's idle class: whoever wakes beside it runs at once, where niceness would still let
//! it end a slice first. That class has a share of a full machine all the same, if a small one, and what a
//! call may hold that a worker wants, a lock of the allocator, is not held for long: who waits for it sleeps,
//! and so leaves a core.

use std::sync::mpsc;
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

const IDLE: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);

/// The thread; it ends when this is dropped, and with it the calls that it has.
#[derive(Debug)]
pub(crate) struct Aside {
    runtime: Handle,
    /// Dropped, it tells the thread to end. Nobody waits for that: the last call may be what drops this.
    _stop: oneshot::Sender<()>,
}

impl Aside {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, runtime) = mpsc::channel();
        std::thread::Builder::new().name("filter-aside".to_owned()).spawn(move || {
            // Of this thread alone. Where it is refused the thread has a core's share as others have.
            let _granted =
                set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, IDLE).is_ok();
            match Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => {
                    let _heard = started.send(Ok(runtime.handle().clone())).is_ok();
                    let _dropped = runtime.block_on(stopped).is_ok();
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        let runtime = runtime.recv().map_err(std::io::Error::other)??;
        Ok(Self { runtime, _stop: stop })
    }

    /// Runs a call there; nothing if it panicked. Dropping the future ends the call.
    pub(crate) async fn run<Answer: Send + 'static>(
        &self,
        call: impl Future<Output = Answer> + Send + 'static,
    ) -> Option<Answer> {
        AbortOnDropHandle::new(self.runtime.spawn(call)).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thread_priority::unix::thread_schedule_policy;

    #[tokio::test]
    async fn the_thread_is_of_the_idle_class_and_no_other_is() {
        let before = thread_schedule_policy();
        let aside = Aside::start().expect("starts");
        assert_eq!(aside.run(async { thread_schedule_policy() }).await, Some(Ok(IDLE)));
        assert_ne!(before, Ok(IDLE));
        assert_eq!(thread_schedule_policy(), before);
    }

    #[tokio::test]
    async fn a_call_runs_on_the_thread_and_its_panic_ends_nothing_else() {
        let aside = Aside::start().expect("starts");
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(aside.run(async { panic!("of a host function") }).await, None::<()>);
        assert_eq!(aside.run(async move { name() }).await.flatten().as_deref(), Some("filter-aside"));
    }

    /// A call without end, and what says that it is over.
    fn endless() -> (impl Future<Output = ()> + Send, oneshot::Receiver<()>) {
        let (held, end) = oneshot::channel();
        let call = async move {
            let _held: oneshot::Sender<()> = held;
            std::future::pending::<()>().await;
        };
        (call, end)
    }

    #[tokio::test]
    async fn a_call_ends_when_who_asked_leaves_and_when_the_engine_does() {
        let aside = Aside::start().expect("starts");
        let (call, end) = endless();
        let mut asked = Box::pin(aside.run(call));
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(asked);
        assert!(end.await.is_err());
        let (call, end) = endless();
        let _held = aside.runtime.spawn(call);
        drop(aside);
        assert!(end.await.is_err());
    }
}
