// SPDX-License-Identifier: Apache-2.0
//! Syncs beside sandboxes that are pods. One that was begun goes on by itself, whichever orchestrator had it
//! begin: nothing of it is kept here, no task and no connection. Its session in the database says that
//! there is one; whoever finds a sandbox that runs without begins its sync.
//!
//! ```text
//! begin ─▶ session · Begin ─▶ followed until everything is brought in; left to itself
//! token due (one orchestrator looks for all) ─▶ Token; not taken ─▶ session ends, and it is begun anew
//! finish ─▶ session · Begin {only flush} ─▶ followed until flushed; session ends
//! ```

use super::{
    BEGIN_LATER, FIRST_PAUSE, FLUSH_TIME, HYDRATE_TIME, LONGEST_PAUSE, SILENCE, SyncError, Syncs, within,
};
use crate::runtime::agent::Next;
use crate::runtime::{Agent, RuntimeError};
use crate::store::SandboxRow;
use postern_common::clock;
use postern_common::files::orders::{Begin, Told};
use postern_common::files::{Bounds, Report};
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::sync::PoisonError;
use tokio::time::{Instant, sleep, timeout};

impl Syncs {
    /// Brings a user's files into a pod.
    pub(super) async fn begin_beside(&self, sandbox: &SandboxRow) -> Result<Option<Report>, SyncError> {
        let begun = Instant::now();
        let report = self.order_beside(sandbox, false).await?;
        self.0.durations.get_or_create(&[("phase", "hydrate")]).observe(begun.elapsed().as_secs_f64());
        Ok(report)
    }

    /// Begins the sync of a sandbox that lives and has none, until that succeeds.
    ///
    /// INVARIANT: one task for each sandbox, however often it is asked for: each sweep does so, and an agent
    /// can have its sync fail for ever.
    pub(super) fn begin_beside_soon(&self, sandbox: SandboxRow) {
        let Some(beginning) = Beginning::of(self, &sandbox.new.id) else { return };
        let syncs = self.clone();
        self.0.tasks.spawn(async move |stop: Stop| {
            let _until_it_ends = beginning;
            let (id, mut pause) = (&sandbox.new.id, FIRST_PAUSE);
            if stop.run_until_cancelled(sleep(BEGIN_LATER)).await.is_none() {
                return;
            }
            while let Some(Err(error)) = stop.run_until_cancelled(syncs.begin_if_without(&sandbox)).await {
                {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(sandbox = %id, error, cause = error.source(), "its sync is begun again");
                }
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    async fn begin_if_without(&self, sandbox: &SandboxRow) -> Result<(), SyncError> {
        if self.0.sessions.is_without(&sandbox.new.id).await? {
            self.order_beside(sandbox, false).await?;
        }
        Ok(())
    }

    /// Flushes a pod's files; the session ends with that.
    pub(super) async fn finish_beside(&self, sandbox: &SandboxRow) -> Result<Option<Report>, SyncError> {
        let (id, begun) = (&sandbox.new.id, Instant::now());
        let flushed = within(id, FLUSH_TIME, self.order_beside(sandbox, true)).await;
        // Also of one that was too late: should the sandbox go on, it is found to be without a sync.
        self.end_session(id).await?;
        let report = flushed?;
        self.0.durations.get_or_create(&[("phase", "flush")]).observe(begun.elapsed().as_secs_f64());
        Ok(report)
    }

    /// Gives a pod's sync its next token. One that does not take it is without a session afterwards; of a pod
    /// that is being deleted, whose sync flushes, it stays as it is.
    ///
    /// # Errors
    /// [`SyncError`].
    pub(crate) async fn rotate_beside(&self, id: &SandboxId) -> Result<(), SyncError> {
        if !self.0.host.is_sync_beside(id) {
            return Ok(());
        }
        let Some(token) = self.0.sessions.refresh_of(id, clock::now()).await? else { return Ok(()) };
        let handed = async {
            let Some((agent, _)) = self.0.host.sync_beside(id).await? else { return Ok(false) };
            agent.sync_token(&token).await.map_err(failed(id))?;
            Ok::<_, RuntimeError>(true)
        };
        let handed = handed.await;
        if !matches!(handed, Ok(true)) {
            self.end_session(id).await?;
        }
        Ok(handed.map(|_handed| ())?)
    }

    /// Has a pod's sync begin, in place of any that runs, and follows it until it has done the first of its
    /// work; `None` if the pod has none.
    async fn order_beside(
        &self,
        sandbox: &SandboxRow,
        only_flush: bool,
    ) -> Result<Option<Report>, SyncError> {
        let id = &sandbox.new.id;
        let Some((agent, peer)) = self.0.host.sync_beside(id).await? else { return Ok(None) };
        let (session, token) = self.0.sessions.open(sandbox, peer, clock::now()).await?;
        let bounds = match sandbox.new.asked.limits.disk_bytes {
            // The template sets none.
            0 => Bounds::default(),
            bytes => Bounds { bytes, ..Bounds::default() },
        };
        let begin = Begin { token, only_flush, is_torn: false, bounds, tells_each: false };
        let followed = follow(id, &agent, &begin).await;
        if followed.is_err() {
            // Whoever looks next finds it without. That of another who was quicker stays.
            self.0.sessions.end_one(session, clock::now()).await?;
        }
        followed.map(Some)
    }
}

/// A sandbox whose sync is being begun; ends when dropped.
struct Beginning {
    syncs: Syncs,
    sandbox: SandboxId,
}

impl Beginning {
    /// `None` while there is one.
    fn of(syncs: &Syncs, sandbox: &SandboxId) -> Option<Self> {
        let mut beginning = syncs.0.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = beginning.insert(sandbox.clone());
        is_first.then(|| Self { syncs: syncs.clone(), sandbox: sandbox.clone() })
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut beginning = self.syncs.0.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        beginning.remove(&self.sandbox);
    }
}

/// Has a sync begin, and hears it until the first of its work is done: for as long as it says something, and
/// not for ever, whatever it says.
async fn follow(id: &SandboxId, agent: &Agent, begin: &Begin) -> Result<Report, SyncError> {
    let time = if begin.only_flush { FLUSH_TIME } else { HYDRATE_TIME };
    within(id, time, hear(id, agent, begin)).await
}

async fn hear(id: &SandboxId, agent: &Agent, begin: &Begin) -> Result<Report, SyncError> {
    let mut telling = agent.begin_sync(begin).await.map_err(failed(id))?;
    loop {
        let told = timeout(SILENCE, telling.next::<Told>()).await;
        let told = told.map_err(|_silent| SyncError::Silent(id.clone()))?.map_err(failed(id))?;
        match told {
            Next::Message(Told::Hydrated(report) | Told::Flushed(report)) => return Ok(report),
            Next::Message(Told::Failed { why }) => return Err(SyncError::Failed(id.clone(), why)),
            Next::Message(Told::Progress { files, of_files, bytes, of_bytes }) => {
                tracing::info!(sandbox = %id, files, of_files, bytes, of_bytes, "files are being carried");
            }
            Next::Message(Told::Carried { .. } | Told::Synced { .. }) => {}
            Next::End(failure) => {
                let why = failure.map_or_else(|| "it ended without a word".to_owned(), |it| it.message);
                return Err(SyncError::Failed(id.clone(), why));
            }
        }
    }
}

fn failed(id: &SandboxId) -> impl Fn(crate::runtime::AgentError) -> RuntimeError {
    |source| RuntimeError::Agent { sandbox: id.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use postern_common::secret::Secret;
    use postern_common::tasks::Tasks;
    use std::convert::Infallible;
    use std::time::Duration;

    /// A sync that tells, always in time, that it is where it was.
    async fn never_done(tasks: &Tasks) -> Agent {
        let told = Told::Progress { files: 1, of_files: 2, bytes: 1, of_bytes: 2 };
        let told = serde_json::to_vec(&told).expect("serializes");
        let length = u32::try_from(told.len()).expect("is short").to_be_bytes();
        let envelope = Bytes::from([&[0_u8][..], &length, &told].concat());
        let service = service_fn(move |_begin: Request<Incoming>| {
            let frames = stream::unfold(envelope.clone(), |envelope: Bytes| async move {
                sleep(SILENCE - Duration::from_secs(1)).await;
                Some((Ok::<_, Infallible>(Frame::data(envelope.clone())), envelope))
            });
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
        });
        let (near, far) = tokio::io::duplex(1024);
        let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(far), service);
        tasks.spawn(async move |stop: Stop| drop(stop.run_until_cancelled(serving).await));
        Agent::on(near, tasks).await.expect("connects")
    }

    #[tokio::test(start_paused = true)]
    async fn a_sync_that_tells_on_and_on_is_given_up() {
        let tasks = Tasks::new();
        let agent = never_done(&tasks).await;
        let id = SandboxId::parse("sandbox-abcdefghijkl").expect("is one");
        for (only_flush, time) in [(false, HYDRATE_TIME), (true, FLUSH_TIME)] {
            let (token, bounds) = (Secret::new("a".to_owned()), Bounds::default());
            let begin = Begin { token, only_flush, is_torn: false, bounds, tells_each: false };
            let begun = Instant::now();
            let error = follow(&id, &agent, &begin).await.expect_err("is never done");
            assert!(begun.elapsed() >= time, "the control: it was not silent: {error}");
            assert!(matches!(error, SyncError::Slow(..)), "{error}");
        }
    }
}
