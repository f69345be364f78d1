// SPDX-License-Identifier: Apache-2.0
//! Runs a sync beside each sandbox of this machine: one process, begun when the sandbox is made or
//! adopted, begun again when it ends by itself, and ended with the sandbox. Those of pods are in `beside`.
//!
//! ```text
//! begin ─▶ process: hydrated ─▶ (watching; begun again if it ends) ─▶ stop ─▶ finish: a process that
//!                                                                           flushes what is left
//! ```
//! A sync may be killed at any moment: what it agreed on with the store lies beside the files, and the
//! next one goes on from there. It ends by itself when this process does, whose pipe it reads.

mod beside;

use super::calls::entry_of_file;
use crate::host::{Host, UserFolder};
use crate::runtime::RuntimeError;
use crate::sessions::SessionError;
use crate::sessions::sync::SyncSessions;
use crate::storage::{FileEntry, Listing, Slot, Storage, UserFiles};
use crate::store::{SandboxRow, StoreError};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::files::orders::{Begin, LINE_BYTES, Order, Told};
use postern_common::files::{Bounds, Report};
use postern_common::id::SandboxId;
use postern_common::tasks::{Stop, Tasks};
use postern_common::telemetry::SECONDS;
use postern_shim::processes;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A sync that tells nothing for so long while it brings in or flushes has failed.
const SILENCE: Duration = Duration::from_secs(90);
/// And one that tells on and on has, after so long: the largest disk at 5 MB/s.
const HYDRATE_TIME: Duration = Duration::from_secs(3600);
/// What a flush may take: as long as the largest disk at 100 MB/s, and some.
const FLUSH_TIME: Duration = Duration::from_secs(300);
/// One that nobody waits for is begun so much later: whoever made its sandbox uses that at once, and to begin a sync
/// would take the processor from it. What is changed until then, it finds when it begins.
const BEGIN_LATER: Duration = Duration::from_millis(100);
/// The pause before one that ended by itself is begun again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran for so long has not failed at once.
const GOOD_RUN: Duration = Duration::from_secs(30);
/// How long one may take to end after its input did.
const END_TIME: Duration = Duration::from_secs(2);
/// What is kept of its complaint.
const COMPLAINT_BYTES: u64 = 4096;
/// What is read at a time of what it tells, for which each sandbox holds room: more than most messages have.
const TOLD_BYTES: usize = 1024;

/// Files could not be carried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// The process could not be started.
    #[error("the sync of sandbox `{0}` could not be started")]
    Spawn(SandboxId, #[source] io::Error),
    /// It ended, and said why.
    #[error("the sync of sandbox `{0}` failed: {1}")]
    Failed(SandboxId, String),
    /// It says nothing.
    #[error("the sync of sandbox `{0}` makes no progress")]
    Silent(SandboxId),
    /// It says much, and is never done.
    #[error("the sync of sandbox `{0}` was not done within {time} s", time = .1.as_secs())]
    Slow(SandboxId, Duration),
    /// Its session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// By `phase`: `hydrate` or `flush`.
pub(crate) type Durations = Family<[(&'static str, &'static str); 1], Histogram>;

/// All syncs of this machine. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Syncs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Arc<dyn Host>,
    sessions: SyncSessions,
    storage: Storage,
    tasks: Tasks,
    running: Mutex<BTreeMap<SandboxId, Kept>>,
    /// Those in pods that are tried to be begun until that succeeds.
    beginning: Mutex<BTreeSet<SandboxId>>,
    durations: Durations,
    lag: Histogram,
}

/// One that is kept running.
#[derive(Debug)]
struct Kept {
    stop: Stop,
    /// Resolves when nothing of it runs.
    ended: oneshot::Receiver<()>,
}

/// A process and the ways to it.
struct Process {
    child: Child,
    input: ChildStdin,
    telling: Telling,
    session: SandboxId,
    rotate_at: Timestamp,
}

/// What a process tells.
struct Telling {
    output: BufReader<ChildStdout>,
    /// What has come of a line: a wait for the rest may be given up and begun again.
    line: Vec<u8>,
}

impl Syncs {
    pub(crate) fn new(host: Arc<dyn Host>, sessions: SyncSessions, storage: Storage, tasks: Tasks) -> Self {
        let durations = Durations::new_with_constructor(|| Histogram::new(SECONDS));
        let lag = Histogram::new(SECONDS);
        let (running, beginning) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { host, sessions, storage, tasks, running, beginning, durations, lag }))
    }

    /// How long bringing in and flushing took.
    pub(crate) fn durations(&self) -> Durations {
        self.0.durations.clone()
    }

    /// How long changes took to the store.
    pub(crate) fn lag(&self) -> Histogram {
        self.0.lag.clone()
    }

    /// Brings a user's files into a sandbox and keeps them in step from then on; `None` if its host
    /// carries files by other means. Where there are none nothing is begun: who makes the sandbox calls
    /// [`Syncs::resume`] once it runs.
    ///
    /// # Errors
    /// [`SyncError`]; then none runs.
    pub(crate) async fn begin(&self, sandbox: &SandboxRow) -> Result<Option<Report>, SyncError> {
        let begun = Instant::now();
        self.stop(&sandbox.new.id).await;
        // What cannot be told now is for the sync to find out.
        let listed = if self.0.host.has_syncs() { self.files(sandbox).list().await.ok() } else { None };
        let is_empty = listed.as_ref().is_some_and(|it| *it == Listing::default());
        let is_beside = self.0.host.is_sync_beside(&sandbox.new.id);
        if is_beside && !is_empty {
            return self.begin_beside(sandbox).await;
        }
        if !is_beside && self.0.host.is_shared() && self.0.host.has_syncs() {
            let sandbox = &sandbox.new.id;
            tracing::warn!(%sandbox, "its pod has no container `sync`, so its user's files are not carried; the chart's SandboxTemplates have one");
            return Ok(None);
        }
        if is_empty {
            // There is nothing to wait for: a sandbox that was kept ready is its caller's at once.
            return Ok(Some(Report::default()));
        }
        let at_hand = listed.map(|it| it.files).unwrap_or_default();
        let Some(mut process) = self.spawn(sandbox, false, &at_hand).await? else { return Ok(None) };
        let hydrating = process.until(&sandbox.new.id, Wanted::Hydrated);
        let report = match within(&sandbox.new.id, HYDRATE_TIME, hydrating).await {
            Ok(report) => report,
            Err(error) => {
                process.end().await;
                self.end_session(&sandbox.new.id).await?;
                return Err(error);
            }
        };
        self.0.durations.get_or_create(&[("phase", "hydrate")]).observe(begun.elapsed().as_secs_f64());
        self.keep(sandbox.clone(), Some(process));
        Ok(Some(report))
    }

    fn files(&self, sandbox: &SandboxRow) -> UserFiles {
        self.0.storage.of(&sandbox.new.tenant, &sandbox.new.user_id)
    }

    /// Fills a new slot with what this machine has of its user's files. The sync brings the rest, so
    /// what goes wrong here costs time and nothing else.
    async fn fill(&self, sandbox: &SandboxRow, files: &[FileEntry], state: &Path) -> Result<(), SyncError> {
        let id = &sandbox.new.id;
        let Some(UserFolder { path, owner, .. }) = self.0.host.user_folder(id).await? else { return Ok(()) };
        let slot = Slot { files: &path, owner, state };
        match self.files(sandbox).fill(files, slot, entry_of_file).await {
            Ok(filled) => tracing::debug!(sandbox = %id, ?filled, "files were at hand"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sandbox = %id, error, "files at hand were not used; all come from the store");
            }
        }
        Ok(())
    }

    /// Keeps what a slot has for the user's next sandbox here.
    async fn remember(&self, sandbox: &SandboxRow) {
        let id = &sandbox.new.id;
        let kept = async {
            let Some(folder) = self.0.host.user_folder(id).await.map_err(io::Error::other)? else {
                return Ok(0);
            };
            let files = self.files(sandbox);
            let listed = files.list().await.map_err(io::Error::other)?;
            files.keep(listed.files, &folder.path).await
        };
        if let Err(error) = kept.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sandbox = %id, error, "its files are not in the cache: the next one gets them from the store");
        }
    }

    /// Keeps a sandbox's files in step that runs already, unless its sync does: it ended with an orchestrator
    /// before, or had nothing to bring in.
    pub(crate) fn resume(&self, sandbox: &SandboxRow) {
        if self.0.host.is_sync_beside(&sandbox.new.id) {
            return self.begin_beside_soon(sandbox.clone());
        }
        if self.0.host.is_shared() {
            // Its pod has none.
            return;
        }
        if !self.keeps(&sandbox.new.id) {
            self.keep(sandbox.clone(), None);
        }
    }

    /// Whether a sandbox's sync is kept running here, also before it has begun.
    pub(crate) fn keeps(&self, sandbox: &SandboxId) -> bool {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(sandbox)
    }

    /// Ends a sandbox's sync; when this returns nothing of it runs.
    pub(crate) async fn stop(&self, sandbox: &SandboxId) {
        let kept = self.0.running.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
        let Some(Kept { stop, ended }) = kept else { return };
        stop.cancel();
        // Closed without a word it has ended too.
        drop(ended.await);
    }

    /// Brings what is left of an ended sandbox's files to the store; `None` if its host does so by other
    /// means. The session ends with it.
    ///
    /// # Errors
    /// [`SyncError`]; it may be repeated.
    pub(crate) async fn finish(&self, sandbox: &SandboxRow) -> Result<Option<Report>, SyncError> {
        let id = &sandbox.new.id;
        self.stop(id).await;
        // Ended now, its session would end what it flushes by itself.
        self.0.host.until_sync_left(id).await;
        if self.0.host.is_sync_beside(id) {
            return self.finish_beside(sandbox).await;
        }
        let begun = Instant::now();
        let Some(mut process) = self.spawn(sandbox, true, &[]).await? else { return Ok(None) };
        let flushed = within(id, FLUSH_TIME, process.until(id, Wanted::Flushed)).await;
        process.end().await;
        let report = flushed?;
        self.end_session(id).await?;
        self.0.durations.get_or_create(&[("phase", "flush")]).observe(begun.elapsed().as_secs_f64());
        Box::pin(self.remember(sandbox)).await;
        Ok(Some(report))
    }

    /// Ends the session of a sandbox's sync.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn end_session(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        self.0.sessions.end(sandbox, clock::now()).await
    }

    async fn spawn(
        &self,
        sandbox: &SandboxRow,
        only_flush: bool,
        at_hand: &[FileEntry],
    ) -> Result<Option<Process>, SyncError> {
        let id = &sandbox.new.id;
        let Some(prepared) = self.0.host.sync(id).await? else { return Ok(None) };
        if !at_hand.is_empty() {
            Box::pin(self.fill(sandbox, at_hand, &prepared.state)).await?;
        }
        let (session, token) = self.0.sessions.open(sandbox, prepared.peer, clock::now()).await?;
        let failed = |error| SyncError::Spawn(id.clone(), error);
        let mut child = tokio::process::Command::from(prepared.command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let telling = Telling { output: BufReader::with_capacity(TOLD_BYTES, output), line: Vec::new() };
        let (session, rotate_at) = (session.id, session.rotate_at);
        let mut process = Process { child, input, telling, session, rotate_at };
        let bounds = Bounds { bytes: sandbox.new.asked.limits.disk_bytes, ..Bounds::default() };
        // One that runs has been on its disk since that was made.
        let is_torn = only_flush && prepared.is_torn;
        if is_torn {
            tracing::warn!(sandbox = %id, "the machine stopped while its disk was written: nothing of it replaces or removes what the store has");
        }
        let begin = Begin { token, only_flush, is_torn, bounds, tells_each: false };
        process.order(&Order::Begin(begin)).await.map_err(failed)?;
        Ok(Some(process))
    }

    fn keep(&self, sandbox: SandboxRow, first: Option<Process>) {
        let (told, ended) = oneshot::channel();
        let stop = self.0.tasks.stop_token().child_token();
        let kept = Kept { stop: stop.clone(), ended };
        let id = sandbox.new.id.clone();
        let before = self.0.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kept);
        // Whoever keeps one anew has stopped the one before.
        before.into_iter().for_each(|kept| kept.stop.cancel());
        let syncs = self.clone();
        self.0.tasks.spawn(async move |_all: Stop| {
            syncs.keep_running(&sandbox, first, &stop).await;
            // Nobody may be waiting.
            let _ = told.send(()).is_ok();
        });
    }

    async fn keep_running(&self, sandbox: &SandboxRow, mut process: Option<Process>, stop: &Stop) {
        let (id, mut pause) = (&sandbox.new.id, FIRST_PAUSE);
        if process.is_none() && stop.run_until_cancelled(tokio::time::sleep(BEGIN_LATER)).await.is_none() {
            return;
        }
        loop {
            let begun = Instant::now();
            let ran = match process.take() {
                Some(running) => self.attend(id, running, stop).await,
                // Large, and over in a moment, where the rest of this waits for as long as the sandbox lives.
                None => match stop.run_until_cancelled(Box::pin(self.spawn(sandbox, false, &[]))).await {
                    None | Some(Ok(None)) => return,
                    Some(Ok(Some(running))) => self.attend(id, running, stop).await,
                    // Its own session has ended with its sandbox.
                    Some(Err(error)) => Err(error),
                },
            };
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = ran {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sandbox = %id, error, cause = error.source(), "its sync is begun again");
            }
            pause = if begun.elapsed() > GOOD_RUN { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Hears what a sync tells and replaces its token in time, until it ends or is to end.
    async fn attend(&self, id: &SandboxId, mut process: Process, stop: &Stop) -> Result<(), SyncError> {
        let begun = Instant::now();
        loop {
            let until = process.rotate_at.duration_since(clock::now());
            let until = Duration::try_from(until).unwrap_or_default();
            let (child, told) = process.parts();
            tokio::select! {
                () = stop.cancelled() => {
                    process.end().await;
                    return Ok(());
                }
                () = tokio::time::sleep(until) => {
                    let refreshed = Box::pin(self.0.sessions.refresh(&process.session, clock::now()));
                    let (session, token) = refreshed.await?;
                    process.rotate_at = session.rotate_at;
                    let ordered = process.order(&Order::Token(token)).await;
                    ordered.map_err(|error| SyncError::Spawn(id.clone(), error))?;
                }
                // Its outer process alone may be gone: what is within ends with its input.
                _ended = child.wait() => {
                    let why = process.complaint().await;
                    process.end().await;
                    return Err(SyncError::Failed(id.clone(), why));
                }
                told = told.next() => match told {
                    Some(Told::Carried { report, lag_millis }) => {
                        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a lag")]
                        self.0.lag.observe(lag_millis as f64 / 1000.0);
                        if report.left_count > 0 || report.conflict_count > 0 {
                            tracing::info!(sandbox = %id, ?report, "files were left, or kept beside others");
                        }
                    }
                    Some(Told::Hydrated(_)) => {
                        // One that was begun again: of a sandbox's first whoever began it has heard.
                        let took = begun.elapsed().as_secs_f64();
                        self.0.durations.get_or_create(&[("phase", "hydrate")]).observe(took);
                    }
                    Some(Told::Failed { why }) => return Err(SyncError::Failed(id.clone(), why)),
                    Some(_) => {}
                    None => {
                        let why = process.complaint().await;
                        return Err(SyncError::Failed(id.clone(), why));
                    }
                },
            }
        }
    }
}

/// Waits for the first of a sync's work, for so long at most, whatever it tells meanwhile.
async fn within<Done>(
    id: &SandboxId,
    time: Duration,
    work: impl Future<Output = Result<Done, SyncError>>,
) -> Result<Done, SyncError> {
    let done = tokio::time::timeout(time, work).await;
    done.unwrap_or_else(|_late| Err(SyncError::Slow(id.clone(), time)))
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Hydrated,
    Flushed,
}

impl Telling {
    /// What it tells next; `None` when it has ended. What is no line of its own is passed over.
    async fn next(&mut self) -> Option<Told> {
        loop {
            let most = u64::try_from(LINE_BYTES.saturating_sub(self.line.len())).unwrap_or(u64::MAX);
            let read = (&mut self.output).take(most).read_until(b'\n', &mut self.line).await;
            if !read.is_ok_and(|read| read > 0) {
                return None;
            }
            if let Ok(told) = serde_json::from_slice(&std::mem::take(&mut self.line)) {
                return Some(told);
            }
        }
    }
}

impl Process {
    async fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input.write_all(&line).await?;
        self.input.flush().await
    }

    /// Its end and its words, which are waited for together.
    const fn parts(&mut self) -> (&mut Child, &mut Telling) {
        (&mut self.child, &mut self.telling)
    }

    /// Waits until it tells that it is done, for as long as it makes progress.
    async fn until(&mut self, id: &SandboxId, wanted: Wanted) -> Result<Report, SyncError> {
        loop {
            let told = tokio::time::timeout(SILENCE, self.telling.next()).await;
            match (told.map_err(|_silent| SyncError::Silent(id.clone()))?, wanted) {
                (Some(Told::Hydrated(report)), Wanted::Hydrated)
                | (Some(Told::Flushed(report)), Wanted::Flushed) => return Ok(report),
                (Some(Told::Progress { files, of_files, bytes, of_bytes }), _) => {
                    tracing::info!(sandbox = %id, files, of_files, bytes, of_bytes, "files are being carried");
                }
                (Some(Told::Failed { why }), _) => return Err(SyncError::Failed(id.clone(), why)),
                (Some(_), _) => {}
                (None, _) => {
                    let why = self.complaint().await;
                    return Err(SyncError::Failed(id.clone(), why));
                }
            }
        }
    }

    /// What it wrote to its standard error, bounded and escaped.
    async fn complaint(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let reading = async { stderr.take(COMPLAINT_BYTES).read_to_end(&mut text).await };
            // What came before is what there is.
            drop(tokio::time::timeout(END_TIME, reading).await);
        }
        let text = String::from_utf8_lossy(&text);
        let text = text.trim().escape_debug().to_string();
        if text.is_empty() { "it ended without a word".to_owned() } else { text }
    }

    /// Ends it: first by the end of its input, then by force.
    async fn end(self) {
        let Self { mut child, input, telling, .. } = self;
        drop((input, telling));
        if tokio::time::timeout(END_TIME, child.wait()).await.is_err() {
            // Bubblewrap leaves behind what runs within when it is killed. The end of its input ends that, but not
            // while it stands still.
            if let Some(pid) = child.id().and_then(|pid| pid.try_into().ok()) {
                processes::kill(processes::below(pid));
            }
            // It may have ended just now.
            let _ = child.kill().await.is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<Keep: Future>(
        _keep: impl Fn(&'static Syncs, &'static SandboxRow, Option<Process>, &'static Stop) -> Keep,
    ) -> usize {
        size_of::<Keep>()
    }

    #[test]
    fn one_that_is_kept_running_holds_little() {
        let size = size(Syncs::keep_running);
        assert!(size <= 4096, "{size} bytes for each sandbox");
    }
}
