// SPDX-License-Identifier: Apache-2.0
//! Files inside a sandbox: read, written, listed, moved, removed and watched.
//!
//! They are the agent's, and so is everything that is said of them: an answer changes nothing outside
//! of that sandbox's own view, and is bounded.

use super::inside::{ANSWER_TIME, START_TIME, answered, ended, enter, path, refused, silent, spelled};
use super::{Answer, Api, Call, empty, input, json, sse};
use crate::runtime::Agent;
use crate::runtime::agent::{Body as AgentBody, Envelopes, Next, about_path, accepted};
use crate::storage::Content;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use postern_common::id::SandboxId;
use postern_common::problem::{Code, Problem};
use postern_common::tasks::Stop;
use serde::{Deserialize, Serialize};
use serde_json::json as value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

/// A list of 20,000 entries, which is as many as `sandboxd` gives.
const LIST_BYTES: usize = 32 << 20;
/// Events that may wait for a slow reader.
const QUEUED_EVENTS: usize = 16;
/// A comment this often keeps connections alive; a watched sandbox is in use.
const NOTE_EVERY: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Done {}

/// A file as the sandbox tells of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireEntry {
    #[serde(default)]
    pub(super) name: String,
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) path: String,
    /// 64-bit numbers are text in that codec.
    #[serde(default)]
    size: Option<String>,
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    modified_time: Option<jiff::Timestamp>,
    #[serde(default)]
    symlink_target: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// A file as the API shows it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Entry {
    name: String,
    path: String,
    /// Of what a link leads to: `file`, `folder`, `link` (one that leads nowhere) or `other`.
    kind: &'static str,
    size: u64,
    /// As `chmod` writes it.
    mode: String,
    owner: String,
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    modified_at: Option<jiff::Timestamp>,
    /// There if it is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl From<WireEntry> for Entry {
    fn from(entry: WireEntry) -> Self {
        Self {
            kind: match entry.kind.as_str() {
                "FILE_TYPE_FILE" => "file",
                "FILE_TYPE_DIRECTORY" => "folder",
                "FILE_TYPE_SYMLINK" => "link",
                _ => "other",
            },
            name: entry.name,
            path: entry.path,
            size: entry.size.and_then(|text| text.parse().ok()).unwrap_or(0),
            mode: format!("{:04o}", entry.mode & 0o7777),
            owner: entry.owner,
            group: entry.group,
            modified_at: entry.modified_time,
            link_target: entry.symlink_target,
            metadata: entry.metadata,
        }
    }
}

#[derive(Deserialize)]
struct OneEntry {
    entry: WireEntry,
}

/// A request for `sandboxd`'s own HTTP calls.
pub(super) fn request(
    method: Method,
    what: &str,
    path: &str,
    body: AgentBody,
) -> Result<Request<AgentBody>, Problem> {
    let too_long = |_error| Problem::new(Code::RequestMalformed, "the path is too long");
    about_path(method, what, path, body).map_err(too_long)
}

pub(super) fn no_body() -> AgentBody {
    crate::runtime::agent::full(Bytes::new())
}

/// `GET /sandbox/{id}/files/{path}`.
pub(super) async fn read(api: Arc<Api>, call: Call) -> Answer {
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let asked = agent.send(request(Method::GET, "/files", &path, no_body())?);
    let found = answered(&row.new.id, async { accepted(asked.await?).await }).await?;
    let length = found.headers().get(header::CONTENT_LENGTH).cloned();
    let mut response = download(Body::new(found.into_body()));
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    Ok(response)
}

/// Bytes of the agent's on their way out: never a page, never run, never kept by a cache.
pub(super) fn download(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The caller's body as a sandbox's: it ends with an error if it stands still, and so does what it
/// was written to.
fn upload(content: Content) -> AgentBody {
    StreamBody::new(content.map(|bytes| bytes.map(Frame::data))).boxed_unsync()
}

/// `PUT /sandbox/{id}/files/{path}`.
pub(super) async fn write(api: Arc<Api>, mut call: Call) -> Answer {
    let path = path(&call)?;
    let content = call.content();
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let mut request = request(Method::POST, "/files", &path, upload(content))?;
    let kind = HeaderValue::from_static("application/octet-stream");
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    // As long as bytes come it may take; the body itself has the bound.
    let written = agent.send(request).await.map_err(|error| refused(&row.new.id, error))?;
    drop(accepted(written).await.map_err(|error| refused(&row.new.id, error))?);
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `DELETE /sandbox/{id}/files/{path}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let message = value!({ "path": path });
    let Done {} = answered(&row.new.id, agent.call("/filesystem.Filesystem/Remove", &message)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `GET /sandbox/{id}/entries/{path}`.
pub(super) async fn stat(api: Arc<Api>, call: Call) -> Answer {
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    json(StatusCode::OK, &entry(&row.new.id, &agent, &path).await?)
}

/// What there is at a path.
pub(super) async fn entry(id: &SandboxId, agent: &Agent, path: &str) -> Result<Entry, Problem> {
    let message = value!({ "path": path });
    let found: OneEntry = answered(id, agent.call("/filesystem.Filesystem/Stat", &message)).await?;
    Ok(found.entry.into())
}

/// `GET /sandbox/{id}/folders/{path}`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Deserialize)]
    struct Found {
        #[serde(default)]
        entries: Vec<WireEntry>,
    }
    #[derive(Serialize)]
    struct Page {
        entries: Vec<Entry>,
    }
    let (path, depth) = (path(&call)?, call.query.parsed::<u32>("depth")?.unwrap_or(1));
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let message = value!({ "path": path, "depth": depth });
    let asked = agent.call_up_to::<Found>(LIST_BYTES, "/filesystem.Filesystem/ListDir", &message);
    let found = answered(&row.new.id, asked).await?;
    json(StatusCode::OK, &Page { entries: found.entries.into_iter().map(Entry::from).collect() })
}

/// `PUT /sandbox/{id}/folders/{path}`.
pub(super) async fn make(api: Arc<Api>, call: Call) -> Answer {
    input::Fields::read(&call.body)?.finish()?;
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let message = value!({ "path": path });
    let made =
        answered(&row.new.id, agent.call::<OneEntry>("/filesystem.Filesystem/MakeDir", &message)).await;
    match made {
        Ok(made) => json(StatusCode::CREATED, &Entry::from(made.entry)),
        // It was there.
        Err(problem) if problem.code == Code::StateConflict => {
            json(StatusCode::OK, &entry(&row.new.id, &agent, &path).await?)
        }
        Err(problem) => Err(problem),
    }
}

/// `POST /sandbox/{id}/move`.
pub(super) async fn rename(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = input::Fields::read(&call.body)?;
    let (from, to) = (fields.required::<String>("from"), fields.required::<String>("to"));
    fields.finish()?;
    let message = value!({
        "source": spelled(&from.unwrap_or_default())?, "destination": spelled(&to.unwrap_or_default())?,
    });
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    // Between folders that are mounts of their own a tree is copied: that takes its time.
    let moved = agent.call::<OneEntry>("/filesystem.Filesystem/Move", &message).await;
    let moved = moved.map_err(|error| refused(&row.new.id, error))?;
    json(StatusCode::OK, &Entry::from(moved.entry))
}

/// One message of a watched folder.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Told {
    Start {},
    Filesystem(Change),
    Keepalive {},
}

#[derive(Deserialize)]
struct Change {
    #[serde(default)]
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
}

impl Change {
    fn kind(&self) -> &'static str {
        match self.kind.as_str() {
            "EVENT_TYPE_CREATE" => "created",
            "EVENT_TYPE_WRITE" => "written",
            "EVENT_TYPE_REMOVE" => "removed",
            "EVENT_TYPE_RENAME" => "moved",
            "EVENT_TYPE_CHMOD" => "changed",
            _ => "other",
        }
    }
}

/// `GET /sandbox/{id}/watch/{path}`: server-sent events of what happens in a folder.
pub(super) async fn watch(api: Arc<Api>, call: Call) -> Answer {
    let path = path(&call)?;
    let message = value!({ "path": path, "recursive": call.query.flag("recursive")? });
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let id = row.new.id;
    let mut told = answered(&id, agent.stream("/filesystem.Filesystem/WatchDir", &message)).await?;
    match timeout(ANSWER_TIME, told.next::<Told>()).await.map_err(|_late| silent(&id))? {
        Ok(Next::Message(Told::Start {})) => {}
        Ok(Next::End(Some(failure))) => return Err(ended(&id, &failure.code, &failure.message)),
        Err(error) => return Err(refused(&id, error)),
        Ok(_) => return Err(silent(&id)),
    }
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let group = api.tasks.clone();
    group.spawn(async move |stop: Stop| {
        let _ = stop.run_until_cancelled(pass(&api, &id, told, sender)).await;
    });
    Ok(sse::response(receiver))
}

async fn pass(api: &Api, id: &SandboxId, mut told: Envelopes, sender: mpsc::Sender<Bytes>) {
    let mut note = interval_at(Instant::now() + NOTE_EVERY, NOTE_EVERY);
    let mut number = 0;
    loop {
        let next = tokio::select! {
            next = told.next::<Told>() => next,
            _ = note.tick() => {
                api.driver.touch(id).await;
                if sender.send(sse::KEEP_ALIVE).await.is_err() { return; }
                continue;
            }
            () = sender.closed() => return,
        };
        number += 1;
        let event = match next {
            Ok(Next::Message(Told::Filesystem(change))) => {
                sse::event(number, change.kind(), &value!({ "name": change.name }))
            }
            Ok(Next::Message(_)) => continue,
            Ok(Next::End(None)) => return,
            Ok(Next::End(Some(failure))) => problem(number, ended(id, &failure.code, &failure.message)),
            Err(error) => problem(number, refused(id, error)),
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

fn problem(number: u64, problem: Problem) -> Bytes {
    // Our own type is a map with string keys: it always serializes.
    sse::event(number, "error", &serde_json::to_value(problem).unwrap_or_default())
}
