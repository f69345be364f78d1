// SPDX-License-Identifier: Apache-2.0
//! Beside a sandbox that is a pod: process 1 of the container in which `postern-sync` carries the user's
//! files. It is the same program as in the sandbox, and another container: the agent sees nothing of it but
//! its port.
//!
//! ```text
//! orchestrator ── TCP 49984 ── listen ── Begin, Token ── here ── lines ──▶ postern-sync ── /slot/data/user
//!                                                          ▲                    │
//!                               gateway ◀── TLS, or TCP ── way ◀── its socket ──┘
//! ```
//!
//! Whoever orders a `Begin` follows it until everything is brought in, or flushed. From then on the sync
//! goes on by itself, whatever becomes of the orchestrator, and is begun again here when it ends: what it
//! agreed on with the store lies beside the tree. A second `Begin` takes the place of the first. SIGTERM has
//! it flush: a node that is drained loses nothing that can still be carried.

use crate::connect::{self, Body, Code, Failure, Streamed};
use crate::control::{Owned, unimplemented};
use crate::door;
use crate::identity::Gateway;
use crate::listen;
use crate::options::Listen;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_common::files::orders::{Begin, LINE_BYTES, Order, Told};
use postern_common::tasks::{Stop, Tasks};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::UnixListener;
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// The program, beside our own.
const PROGRAM: &str = "postern-sync";
/// What a sync tells and nobody has read yet.
const TOLD: usize = 64;
/// The longest message that the orchestrator takes is 256 KiB; names of files are the agent's.
const TOLD_BYTES: usize = 192 << 10;
/// The pause before one that ended by itself is begun again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran for so long has not failed at once.
const GOOD_RUN: Duration = Duration::from_secs(30);
/// What a last flush may take, and the wait for it: within the 30 s that a pod has to end.
const LAST_MILLIS: u64 = 20_000;
const LAST_TIME: Duration = Duration::from_secs(25);
/// After a failed accept (no descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The body of `postern.Sync/Begin`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    begin: Begin,
    gateway: Gateway,
}

#[derive(Serialize)]
struct Done {}

/// The container: its places, and the sync that runs.
struct Beside {
    program: PathBuf,
    tree: PathBuf,
    state: PathBuf,
    running: Mutex<Option<Run>>,
    tasks: Tasks,
}

/// A sync that was begun.
struct Run {
    tasks: Tasks,
    orders: mpsc::Sender<Order>,
    /// Resolves when nothing of it runs.
    ended: oneshot::Receiver<()>,
    only_flushes: bool,
}

/// Serves signed orders until SIGTERM.
///
/// # Errors
/// If it cannot listen, or there is no place for what syncs remember.
pub(crate) async fn run(slot: &Path, listen: Option<Listen>) -> io::Result<()> {
    let listen = listen.ok_or_else(|| io::Error::other("`sync` wants --listen, --pod and --control-key"))?;
    let mut told = signal(SignalKind::terminate())?;
    let tasks = Tasks::new();
    let beside = Arc::new(Beside {
        program: std::env::current_exe()?.with_file_name(PROGRAM),
        // As on one machine: the sandbox is shown `data`, and nothing of `sync`.
        tree: slot.join("data/user"),
        state: slot.join("sync"),
        running: Mutex::default(),
        tasks: tasks.clone(),
    });
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&beside.state)?;
    let serving = Arc::clone(&beside);
    // The agent shares this pod's network: nobody in here is listened to.
    let _bound = listen::open_before(listen, false, move |far| serve(far, serving), &tasks).await?;
    told.recv().await;
    beside.flush().await;
    tasks.stop();
    Ok(())
}

async fn serve(far: DuplexStream, beside: Arc<Beside>) {
    let tasks = beside.tasks.clone();
    let service = service_fn(move |request| {
        let beside = Arc::clone(&beside);
        async move { Ok::<_, Infallible>(beside.answer(request).await) }
    });
    let server = hyper::server::conn::http2::Builder::new(Owned(tasks));
    // It ends with this process.
    drop(server.serve_connection(TokioIo::new(far), service).await);
}

impl Beside {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/postern.Sync/Begin" => connect::stream(match connect::read_envelope(body).await {
                Ok(message) => self.begin(message).await,
                Err(failure) => Err(failure),
            }),
            "/postern.Sync/Token" => connect::unary(match connect::read_unary(body).await {
                Ok(order) => self.token(order).await,
                Err(failure) => Err(failure),
            }),
            path => connect::unary::<()>(Err(unimplemented(path))),
        }
    }

    /// Begins a sync in place of the one that runs.
    async fn begin(&self, Message { begin, gateway }: Message) -> Result<Streamed, Failure> {
        door::is_usable(&gateway).map_err(|why| Failure::new(Code::InvalidArgument, why))?;
        let mut running = self.running.lock().await;
        if running.as_ref().is_some_and(|run| run.only_flushes && !run.orders.is_closed())
            && !begin.only_flush
        {
            // Whoever would go on has not heard that the sandbox ends.
            return Err(Failure::new(Code::FailedPrecondition, "the last of its files are being carried"));
        }
        if let Some(run) = running.take() {
            run.tasks.stop();
            // Closed without a word it has ended too.
            drop(run.ended.await);
        }
        let failed = |error: io::Error| Failure::new(Code::Internal, error.to_string());
        // `sandboxd` makes it too, perhaps a moment later.
        std::fs::create_dir_all(&self.tree).map_err(failed)?;
        let (tasks, socket) = (self.tasks.child(), self.state.join("gateway.sock"));
        open_way(&socket, &gateway, &tasks).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.arg(&self.tree).arg(&self.state).arg(&socket).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let (orders, given) = mpsc::channel(1);
        let (answer, told) = mpsc::channel(TOLD);
        let (alive, ended) = oneshot::channel::<()>();
        let only_flushes = begin.only_flush;
        let carrying = Carrying {
            command,
            begin,
            orders: given,
            answer: Some(answer),
            has_begun: false,
            is_last: only_flushes,
            tasks: tasks.clone(),
        };
        tasks.spawn(async move |stop: Stop| {
            carrying.run(&stop).await;
            drop(alive);
        });
        *running = Some(Run { tasks, orders, ended, only_flushes });
        Ok(Streamed::new(told))
    }

    /// Gives the sync that runs its next token.
    async fn token(&self, order: Order) -> Result<Done, Failure> {
        let refuse = |why| Failure::new(Code::FailedPrecondition, why);
        if !matches!(order, Order::Token(_)) {
            return Err(refuse("expected a token"));
        }
        let orders = self.running.lock().await.as_ref().map(|run| run.orders.clone());
        let orders = orders.ok_or_else(|| refuse("no sync was begun here"))?;
        orders.send(order).await.map(|()| Done {}).map_err(|_ended| refuse("the sync has ended"))
    }

    /// Has the sync that runs bring everything to the store, and waits for that for a while.
    async fn flush(&self) {
        // INVARIANT: held to the end, so that nobody begins a second sync of the same tree meanwhile.
        let mut running = self.running.lock().await;
        let Some(run) = running.take() else { return };
        let flushed = async {
            // A token may be on its way before it.
            if run.orders.send(Order::Flush { within_millis: LAST_MILLIS }).await.is_ok() {
                drop(run.ended.await);
            }
        };
        drop(timeout(LAST_TIME, flushed).await);
    }
}

/// A sync that is kept running.
struct Carrying {
    command: Command,
    /// With its newest token.
    begin: Begin,
    orders: mpsc::Receiver<Order>,
    /// Whoever had it begin, until it is told how that went.
    answer: Option<mpsc::Sender<Bytes>>,
    /// Everything was brought in once.
    has_begun: bool,
    /// It was ordered to flush: it is not begun again.
    is_last: bool,
    tasks: Tasks,
}

impl Carrying {
    async fn run(mut self, stop: &Stop) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.once(stop).await {
                let why = format!("`{PROGRAM}` could not be started: {error}");
                self.tell(Told::Failed { why }, stop).await;
            }
            if stop.is_cancelled() || self.is_last || !self.has_begun {
                if self.answer.is_some() {
                    let why = "it ended without a word".to_owned();
                    self.tell(Told::Failed { why }, stop).await;
                }
                return;
            }
            pause = if begun.elapsed() > GOOD_RUN { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Runs one until it ends, or is to. What it says on its standard error is the container's log.
    async fn once(&mut self, stop: &Stop) -> io::Result<()> {
        let mut child = self.command.spawn()?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let (to, mut telling) = mpsc::channel(TOLD);
        self.tasks.spawn(async move |_ends_with_the_child| read(output, to).await);
        order(&mut input, &Order::Begin(self.begin.clone())).await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(given) = self.orders.recv() => {
                    if let Order::Token(token) = &given {
                        self.begin.token = token.clone();
                    }
                    self.is_last |= matches!(given, Order::Flush { .. });
                    order(&mut input, &given).await;
                }
                told = telling.recv() => match told {
                    Some(told) => self.tell(told, stop).await,
                    None => break,
                },
            }
        }
        // It may be killed at any moment. Mostly it has ended.
        drop(child.kill().await);
        Ok(())
    }

    async fn tell(&mut self, told: Told, stop: &Stop) {
        self.has_begun |= matches!(told, Told::Hydrated(_));
        let is_over = matches!(told, Told::Hydrated(_) | Told::Flushed(_) | Told::Failed { .. });
        let Some(answer) = &self.answer else { return };
        // Whoever asked may have left, or be slow: an end waits for neither.
        drop(stop.run_until_cancelled(answer.send(connect::envelope(&short(told)))).await);
        if is_over {
            drop(stop.run_until_cancelled(answer.send(connect::end_of_stream(None))).await);
            self.answer = None;
        }
    }
}

/// A report without names where they are too long: everything is counted all the same.
fn short(mut told: Told) -> Told {
    let is_long = serde_json::to_vec(&told).is_ok_and(|json| json.len() > TOLD_BYTES);
    if let Told::Hydrated(report) | Told::Flushed(report) | Told::Carried { report, .. } = &mut told
        && is_long
    {
        report.left.clear();
        report.conflicts.clear();
    }
    told
}

/// One that reads no more has ended, which is heard on its output.
async fn order(input: &mut ChildStdin, order: &Order) {
    let Ok(mut line) = serde_json::to_vec(order) else { return };
    line.push(b'\n');
    let written = async {
        input.write_all(&line).await?;
        input.flush().await
    };
    drop(written.await);
}

/// Reads what a sync tells until it ends. What is no line of its own is passed over.
async fn read(output: ChildStdout, to: mpsc::Sender<Told>) {
    let (mut output, most) = (BufReader::new(output), u64::try_from(LINE_BYTES).unwrap_or(u64::MAX));
    loop {
        let mut line = Vec::new();
        let read = (&mut output).take(most).read_until(b'\n', &mut line).await;
        if !read.is_ok_and(|read| read > 0) {
            return;
        }
        if let Ok(told) = serde_json::from_slice(&line)
            && to.send(told).await.is_err()
        {
            return;
        }
    }
}

/// Has the gateway at a socket, which only this container sees: bytes go to it and back as they are.
fn open_way(socket: &Path, gateway: &Gateway, tasks: &Tasks) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    let (way, group) = (Arc::new(door::Way::to(Some(gateway), socket)), tasks.clone());
    tasks.spawn(async move |stop: Stop| {
        let _ = stop.run_until_cancelled(accept(listener, way, group)).await;
    });
    Ok(())
}

async fn accept(listener: UnixListener, way: Arc<door::Way>, tasks: Tasks) {
    loop {
        let Ok((mut near, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let way = Arc::clone(&way);
        tasks.spawn(async move |stop: Stop| {
            let carried = async {
                let mut far = door::connect(&way).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            };
            // One that breaks is begun again by the sync.
            drop(stop.run_until_cancelled(carried).await);
        });
    }
}

#[cfg(test)]
mod tests;
