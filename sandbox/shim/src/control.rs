// SPDX-License-Identifier: Apache-2.0
//! The control socket: what the orchestrator may ask of a sandbox and its shim.
//!
//! HTTP/2 without TLS on a unix socket that only our own user may open. `/shim/…` is answered
//! here; all else is passed to `sandboxd` and back as it comes, with the flow control of both
//! connections chained, so a reader that stops stops the process that writes.
//!
//! A `Start` that names itself is kept (see [`execs`]), also for an orchestrator that was restarted
//! meanwhile.

use crate::cgroup::Cgroups;
use crate::channel::{Body, Channel, Owned};
use crate::folder::RunFolder;
use crate::spec::{Enforced, IsolatedBy, Spec};
use crate::{gvisor, memory};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_common::execs::{self, About, Execs, NotFollowed};
use postern_common::id::SandboxId;
use postern_common::problem::{CONTENT_TYPE, Code, Problem};
use postern_common::tasks::{Stop, Tasks};
use serde::Serialize;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// One follower per process and some calls; as `sandboxd` allows.
const STREAMS: u32 = 1024;
const SEND_BUFFER_BYTES: usize = 256 << 10;
const HEADER_BYTES: u32 = 32 << 10;
/// After a failed accept (no descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the kernel may take to stop all of a sandbox.
const FREEZE_TIME: Duration = Duration::from_secs(3);
const FREEZE_POLL: Duration = Duration::from_millis(1);
/// How long gVisor may take to write a picture: 50 MB took 0.05 s.
const PICTURE_TIME: Duration = Duration::from_secs(60);
/// What is told of its complaint, in characters.
const WORDS: usize = 1000;

/// What the shim tells of itself. An orchestrator of another version may read it: a field that is there
/// today stays, and means the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The spec that it was made by.
    pub spec: Spec,
    /// The shim's process id.
    pub pid: u32,
    /// Which limits hold.
    pub enforced: Enforced,
    /// Whether all of it stands still.
    pub is_frozen: bool,
}

/// Everything that a call may need.
#[derive(Debug)]
pub struct Served {
    /// What `/shim/status` tells.
    pub status: Status,
    /// The sandbox's groups, for pausing.
    pub cgroups: Cgroups,
    /// The way to `sandboxd`.
    pub channel: Channel,
    /// Commands whose output is kept.
    pub execs: Execs,
    /// Where the sandbox's things lie.
    pub folder: RunFolder,
    /// Cancelled when somebody asks the sandbox to end.
    pub ending: Stop,
}

/// Opens the socket and serves it until the tasks are stopped.
///
/// # Errors
/// If the socket cannot be made.
pub fn serve(at: &Path, served: Served, tasks: &Tasks) -> io::Result<()> {
    // A socket of a shim that was killed; two shims never have one folder.
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(at)?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o600))?;
    let served = Arc::new(served);
    let group = tasks.clone();
    tasks.spawn(async move |stop| {
        let _ = stop.run_until_cancelled(accept(listener, served, group)).await;
    });
    Ok(())
}

async fn accept(listener: UnixListener, served: Arc<Served>, tasks: Tasks) {
    loop {
        let Ok((connection, _from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (served, group) = (Arc::clone(&served), tasks.clone());
        tasks.spawn(async move |stop| {
            let _ = stop.run_until_cancelled(converse(connection, served, group)).await;
        });
    }
}

async fn converse(connection: UnixStream, served: Arc<Served>, tasks: Tasks) {
    let service = service_fn(move |request| {
        let served = Arc::clone(&served);
        async move { Ok::<_, Infallible>(served.answer(request).await) }
    });
    let ended = hyper::server::conn::http2::Builder::new(Owned(tasks))
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(connection), service)
        .await;
    // The orchestrator may leave as it likes.
    drop(ended);
}

impl Served {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if let Some(about) = About::of(request.method(), request.uri(), request.headers()) {
            return self.kept(about, request).await;
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/shim/status") => {
                let status = Status { is_frozen: self.cgroups.is_frozen(), ..self.status.clone() };
                json(StatusCode::OK, "application/json", &status)
            }
            (&Method::GET, "/shim/usage") => json(StatusCode::OK, "application/json", &self.cgroups.usage()),
            (&Method::POST, "/shim/stop") => {
                self.ending.cancel();
                empty(StatusCode::ACCEPTED)
            }
            (&Method::POST, "/shim/pause") => self.freeze(true).await,
            (&Method::POST, "/shim/resume") => self.freeze(false).await,
            (&Method::POST, "/shim/picture") => self.picture().await,
            (&Method::DELETE, "/shim/picture") => self.forget_picture(),
            (_, path) if path.starts_with("/shim/") => {
                problem(&Problem::new(Code::NotFound, "the shim has no such call"))
            }
            _ => match self.channel.send(request.map(BodyExt::boxed_unsync)).await {
                Ok(response) => response.map(BodyExt::boxed_unsync),
                Err(error) => problem(&Problem::new(Code::UpstreamUnreachable, error.to_string())),
            },
        }
    }

    /// Starts a command whose output is kept, or follows it.
    async fn kept(&self, about: About, request: Request<Incoming>) -> Response<Body> {
        let headers = request.headers().clone();
        let followed = match about {
            About::Follow => self.execs.follow(request.uri(), &headers),
            About::Start => {
                let channel = self.channel.clone();
                let started = async move {
                    let sent = channel.send(request.map(BodyExt::boxed_unsync)).await;
                    sent.map_err(|error| Problem::new(Code::UpstreamUnreachable, error.to_string()))
                };
                self.execs.start(&headers, started).await
            }
        };
        match followed {
            Ok(body) => {
                let mut response = Response::new(body);
                let kind = HeaderValue::from_static(execs::CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Err(NotFollowed::Problem(told)) => problem(&told),
            Err(NotFollowed::Refused(refused)) => (*refused).map(BodyExt::boxed_unsync),
        }
    }

    /// Has gVisor write the picture of the sandbox's memory into the run folder. Whoever asks has put it
    /// to sleep; it is as it was whatever comes of this.
    async fn picture(&self) -> Response<Body> {
        let IsolatedBy::Gvisor { runsc } = &self.status.spec.isolation else {
            return problem(&Problem::new(Code::RuntimeUnavailable, "only gVisor can keep memory"));
        };
        let (spec, limit) = (&self.status.spec, self.status.spec.memory_with_runtime());
        if let Err(error) = memory::make(&self.folder, spec.limits.memory_bytes) {
            let detail = format!("there is no place for the picture of its memory: {error}");
            return problem(&Problem::new(Code::RuntimeUnavailable, detail));
        }
        // What the sandbox's own processes write there counts as theirs.
        let room = limit.saturating_add(memory::at_most(spec.limits.memory_bytes));
        let _ = self.cgroups.bound_memory(room);
        let written = tokio::time::timeout(PICTURE_TIME, run(runsc, gvisor::picture(spec, &self.folder)));
        let written = written.await.unwrap_or_else(|_late| Err("it took too long".to_owned()));
        match written {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            Err(why) => {
                drop(self.forget_picture());
                let detail = format!("gVisor could not write its memory: {why}");
                problem(&Problem::new(Code::RuntimeUnavailable, detail))
            }
        }
    }

    fn forget_picture(&self) -> Response<Body> {
        if let Err(error) = memory::forget(&self.folder) {
            return problem(&Problem::new(Code::RuntimeUnavailable, error.to_string()));
        }
        let is_bounded = self.cgroups.lower_memory(self.status.spec.memory_with_runtime());
        if is_bounded || !self.status.enforced.memory {
            return empty(StatusCode::NO_CONTENT);
        }
        let detail = "the sandbox uses the memory that its picture took: its limit cannot be lowered again";
        problem(&Problem::new(Code::RuntimeUnavailable, detail))
    }

    /// Answers when it is so: the kernel stops processes one after the other.
    async fn freeze(&self, frozen: bool) -> Response<Body> {
        if let Err(error) = self.cgroups.set_frozen(frozen) {
            return problem(&Problem::new(Code::RuntimeUnavailable, error.to_string()));
        }
        let deadline = tokio::time::Instant::now() + FREEZE_TIME;
        while self.cgroups.is_frozen() != frozen {
            if tokio::time::Instant::now() > deadline {
                // Half of it may stand still, which is neither.
                drop(self.cgroups.set_frozen(false));
                let detail = "the sandbox's processes did not stop in time";
                return problem(&Problem::new(Code::RuntimeUnavailable, detail));
            }
            tokio::time::sleep(FREEZE_POLL).await;
        }
        empty(StatusCode::NO_CONTENT)
    }
}

/// Runs a program to its end; what it said last if it failed.
async fn run(program: &Path, arguments: Vec<OsString>) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(words.trim().chars().flat_map(char::escape_default).take(WORDS).collect())
}

fn problem(problem: &Problem) -> Response<Body> {
    json(StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY), CONTENT_TYPE, problem)
}

fn json(status: StatusCode, content_type: &'static str, value: &impl Serialize) -> Response<Body> {
    // Our own types are maps with string keys: they always serialize.
    let mut response = answer(status, serde_json::to_vec(value).unwrap_or_default());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    answer(status, Vec::new())
}

fn answer(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response =
        Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
