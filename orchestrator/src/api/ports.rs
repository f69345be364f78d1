// SPDX-License-Identifier: Apache-2.0
//! `POST /sandbox/{id}/ports`: for a while, one sandbox on a port of this machine's loopback, in E2B's
//! own wire, so that its SDKs work in their debug mode without a change.
//!
//! What that exposes: processes and files of that one sandbox, to whoever on this machine knows the
//! URL, whose path begins with 128 random bits; nothing else of the sandbox, of its shim or of this
//! process. It closes by itself, within an hour at most, and with every key that could open it gone
//! it still ends then.
//!
//! A call wakes a sandbox that is stopped, in the name of whoever opened the port; asking for its health
//! does not.

use super::inside::{START_TIME, enter, running_for};
use super::sandboxes::named;
use super::{Answer, Api, Call, empty, input, is_local_host, json};
use crate::driver::Cause;
use crate::keys::{hex, random};
use crate::lifecycle::State;
use crate::runtime::agent::Body as AgentBody;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::execs::{AFTER, EXEC, WISH};
use postern_common::id::SandboxId;
use postern_common::problem::{Code, Problem};
use postern_common::tasks::{Stop, Tasks};
use serde::Serialize;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long a port is open unless its opener says, and at most.
const OPEN_TIME: Duration = Duration::from_secs(600);
const MOST_TIME: Duration = Duration::from_secs(3600);
/// Ports of all sandboxes at one time, and connections of one.
const PORTS: usize = 16;
const CONNECTIONS: usize = 64;
/// A client that opens a connection and says nothing is let go after this.
const HEAD_TIME: Duration = Duration::from_secs(30);
const HEAD_BYTES: usize = 32 << 10;
/// 128 bits.
const SECRET_BYTES: usize = 16;
/// Asks whether it runs, and is no use of it.
const HEALTH: &str = "/health";
/// After a failed accept (no descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What belongs to one connection, and what is between the shim and us.
const NOT_PASSED_ON: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static(EXEC),
    HeaderName::from_static(WISH),
    HeaderName::from_static(AFTER),
];

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Ports that are open.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<Vec<Open>>);

#[derive(Debug)]
struct Open {
    sandbox: SandboxId,
    tasks: Tasks,
}

impl Ports {
    /// Takes a place; `None` if there is none left.
    fn take(&self, sandbox: &SandboxId, tasks: &Tasks) -> Option<Tasks> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|open| !open.tasks.stop_token().is_cancelled());
        if open.len() >= PORTS {
            return None;
        }
        let tasks = tasks.child();
        open.push(Open { sandbox: sandbox.clone(), tasks: tasks.clone() });
        Some(tasks)
    }

    fn close(&self, sandbox: &SandboxId) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for open in open.iter().filter(|open| open.sandbox == *sandbox) {
            open.tasks.stop();
        }
    }
}

/// `POST /sandbox/{id}/ports`.
pub(super) async fn open(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Serialize)]
    struct Opened {
        /// For `E2B_SANDBOX_URL`; whoever knows it has the sandbox.
        url: String,
        expires_at: Timestamp,
    }
    let mut fields = input::Fields::read(&call.body)?;
    let time = fields.duration("ttl").unwrap_or(OPEN_TIME);
    if time > MOST_TIME {
        fields.mistake("/ttl", "is at most `1h`");
    }
    fields.finish()?;
    if api.host.name() != "local" {
        return Err(Problem::new(Code::StateConflict, "sandboxes do not run on this machine")
            .hint("use `exec`, `files` and `terminal`"));
    }
    let cause = call.cause(None)?;
    let (row, _agent) = enter(&api, &call, START_TIME).await?;
    let full = || {
        Problem::new(Code::ConcurrencyLimited, "16 ports are open already")
            .hint("close one: `DELETE /sandbox/{id}/ports`")
    };
    let id = row.new.id;
    let internal = |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error.to_string());
    let secret = random(SECRET_BYTES).map_err(|error| internal(&error))?;
    let secret = hex(secret.reveal());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| internal(&error))?;
    let address = listener.local_addr().map_err(|error| internal(&error))?;
    let tasks = api.ports.take(&id, &api.tasks).ok_or_else(full)?;
    let port = Arc::new(Port { api: Arc::clone(&api), id, secret: secret.clone(), cause });
    serve(port, listener, &tasks, time);
    let expires_at = clock::now() + crate::driver::signed(time);
    json(StatusCode::CREATED, &Opened { url: format!("http://{address}/{secret}"), expires_at })
}

/// `DELETE /sandbox/{id}/ports`.
pub(super) async fn close(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    api.ports.close(&row.new.id);
    Ok(empty(StatusCode::NO_CONTENT))
}

fn serve(port: Arc<Port>, listener: TcpListener, tasks: &Tasks, time: Duration) {
    let group = tasks.clone();
    tasks.spawn(async move |stop: Stop| {
        let accepted = accept(port, listener, group.clone());
        drop(tokio::time::timeout(time, stop.run_until_cancelled(accepted)).await);
        group.stop();
    });
}

async fn accept(port: Arc<Port>, listener: TcpListener, tasks: Tasks) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let Ok((connection, _from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let port = Arc::clone(&port);
        tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(port.converse(connection)).await;
            drop(place);
        });
    }
}

/// A sandbox's port.
struct Port {
    api: Arc<Api>,
    id: SandboxId,
    secret: String,
    /// Whoever opened it.
    cause: Cause,
}

impl Port {
    async fn converse(self: Arc<Self>, connection: TcpStream) {
        let service = service_fn(move |request| {
            let port = Arc::clone(&self);
            async move { Ok::<_, Infallible>(port.answer(request).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
        // A connection that breaks is its client's affair.
        drop(server.serve_connection(TokioIo::new(connection), service).await);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !is_local_host(request.headers(), request.uri()) {
            return said(StatusCode::FORBIDDEN, "the request's `Host` is not this machine");
        }
        let Some(target) = self.target(request.method(), request.uri()) else {
            return said(StatusCode::NOT_FOUND, "there is no such call here");
        };
        let is_needed = target.path() != HEALTH;
        if let Err(refused) = self.run(is_needed).await {
            return refused;
        }
        let Ok(agent) = self.api.host.connect(&self.id).await else { return gone() };
        match agent.send(passed_on(request, target)).await {
            Ok(mut response) => {
                remove(response.headers_mut());
                response.map(BodyExt::boxed_unsync)
            }
            Err(_broken) => said(StatusCode::BAD_GATEWAY, "the connection to the sandbox broke"),
        }
    }

    /// Sees to it that the sandbox runs, and has it woken if it `is_needed`.
    async fn run(&self, is_needed: bool) -> Result<(), Response<Body>> {
        let found = self.api.driver.sandbox(&self.id).await.map_err(|_unknown| gone())?;
        let ends = found.state.is_over() || found.state.outcome().is_some();
        if ends {
            return Err(gone());
        }
        if !is_needed {
            return if found.state == State::Running { Ok(()) } else { Err(gone()) };
        }
        let running = running_for(&self.api, self.cause.clone(), found, START_TIME).await;
        let row = running.map_err(|problem| {
            said(StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY), &problem.detail)
        })?;
        self.api.driver.used(&row).await;
        Ok(())
    }

    /// What the request is for inside, if it knows the secret and may be made.
    fn target(&self, method: &Method, uri: &Uri) -> Option<Uri> {
        let (secret, _) = uri.path().strip_prefix('/')?.split_once('/')?;
        let is_ours =
            aws_lc_rs::constant_time::verify_slices_are_equal(secret.as_bytes(), self.secret.as_bytes());
        is_ours.ok()?;
        let whole = uri.path_and_query()?.as_str();
        let rest = PathAndQuery::try_from(whole.get(1 + secret.len()..)?).ok()?;
        let allowed = match (method, rest.path()) {
            (&Method::GET, HEALTH) | (&Method::GET | &Method::POST, "/files") => true,
            (&Method::POST, path) => {
                let call = path
                    .strip_prefix("/process.Process/")
                    .or_else(|| path.strip_prefix("/filesystem.Filesystem/"));
                call.is_some_and(|name| {
                    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic())
                })
            }
            _ => false,
        };
        if !allowed {
            return None;
        }
        Uri::builder().scheme("http").authority("sandbox").path_and_query(rest).build().ok()
    }
}

fn passed_on(request: Request<Incoming>, target: Uri) -> Request<AgentBody> {
    let (parts, body) = request.into_parts();
    let mut passed = Request::new(body.map_err(std::io::Error::other).boxed_unsync());
    *passed.method_mut() = parts.method;
    *passed.uri_mut() = target;
    *passed.headers_mut() = parts.headers;
    remove(passed.headers_mut());
    passed
}

fn remove(headers: &mut HeaderMap) {
    for name in &NOT_PASSED_ON {
        headers.remove(name);
    }
}

/// E2B's clients read this text: the sandbox is no more, or does not run.
fn gone() -> Response<Body> {
    said(StatusCode::BAD_GATEWAY, "The sandbox was not found")
}

fn said(status: StatusCode, message: &str) -> Response<Body> {
    let json = serde_json::json!({ "code": status.as_u16(), "message": message }).to_string();
    let mut response =
        Response::new(Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
