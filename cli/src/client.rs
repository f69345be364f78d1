// SPDX-License-Identifier: Apache-2.0
//! Calls of the REST API: one connection for each, JSON both ways, problems as failures.
//!
//! Commands make one call and end, so there is no pool and no retry. Everything that a server
//! sends is bounded, because it need not be ours.

mod dial;
mod events;
mod exec;
mod transfer;

pub(crate) use dial::{Body, Stream};
pub(crate) use events::{Event, EventReader};
pub(crate) use exec::Happened;

use crate::connection::Connection;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use postern_common::problem::Problem;
use postern_common::tasks::Tasks;
use serde_json::Value;
use std::time::Duration;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

/// The largest answer that is read at once: a full page of the longest lists is under 2 MiB.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// Until the head of an answer is there: creating a sandbox may take a cold start.
const ANSWER_TIME: Duration = Duration::from_secs(120);
/// The same where memory is kept or gone on from: a server gives that five minutes, and whoever comes third
/// waits for one of two to be done.
pub(crate) const PICTURE_TIME: Duration = Duration::from_secs(660);

/// Talks to one server. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    connection: Connection,
    tasks: Tasks,
}

/// An answer that is no problem.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its JSON; `null` if there was no body.
    pub body: Value,
    /// The version that it shows, if it shows one.
    pub tag: Option<HeaderValue>,
}

/// In whose place something is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// Whatever is there.
    Anything,
    /// Nothing: there is none yet.
    Nothing,
    /// The version with this tag.
    Tagged(HeaderValue),
}

impl Client {
    /// A client of this server.
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, tasks: Tasks::new() }
    }

    /// Makes a call; `path` begins with a slash.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        self.call_within(ANSWER_TIME, method, path, body).await
    }

    /// Makes a call whose answer may take this long.
    pub(crate) async fn call_within(
        &self,
        time: Duration,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let request = self.request(method, path, body, "application/json")?;
        answer(self.exchange_within(time, request).await?).await
    }

    /// Puts something in the place of what is expected there; refused (412) if something else is.
    pub(crate) async fn put_over(&self, path: &str, body: &Value, over: Over) -> Result<Answer, Failure> {
        let mut request = self.request(Method::PUT, path, Some(body), "application/json")?;
        match over {
            Over::Anything => {}
            Over::Nothing => drop(request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Over::Tagged(tag) => drop(request.headers_mut().insert(IF_MATCH, tag)),
        }
        answer(self.exchange(request).await?).await
    }

    /// Makes a call whose answer is a stream of events.
    pub(crate) async fn events(&self, path: &str, body: &Value) -> Result<EventReader, Failure> {
        let response = self.send(Method::POST, path, Some(body), "text/event-stream").await?;
        Ok(EventReader::new(response.into_body()))
    }

    /// Reads something that is a stream of events.
    pub(crate) async fn follow(&self, path: &str) -> Result<EventReader, Failure> {
        let response = self.send(Method::GET, path, None, "text/event-stream").await?;
        Ok(EventReader::new(response.into_body()))
    }

    /// Goes on with a stream of events after number `last`.
    pub(crate) async fn go_on(&self, path: &str, last: u64) -> Result<EventReader, Failure> {
        let mut request = self.request(Method::GET, path, None, "text/event-stream")?;
        request.headers_mut().insert("last-event-id", HeaderValue::from(last));
        Ok(EventReader::new(self.exchange(request).await?.into_body()))
    }

    /// Reads bytes.
    pub(crate) async fn download(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        self.send(Method::GET, path, None, "*/*").await
    }

    /// Sends bytes, for as long as it takes.
    pub(crate) async fn upload(&self, method: Method, path: &str, bytes: Body) -> Result<Value, Failure> {
        let mut request = self.request(method, path, None, "application/json")?.map(|_none| bytes);
        let kind = HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        let mut sender = self.dial().await?;
        let response =
            sender.send_request(request).await.map_err(|error| self.unreachable(error.to_string()))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let body = collected(response.into_body()).await?;
        if body.is_empty() { Ok(Value::Null) } else { json(&body) }
    }

    /// Opens a WebSocket.
    pub(crate) async fn socket(&self, path: &str) -> Result<WebSocketStream<Box<dyn Stream>>, Failure> {
        let url = &self.connection.url;
        let stream = dial::open(url).await.map_err(|error| self.unreachable(format!("{error:#}")))?;
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        let target = format!("{scheme}://{}{}{path}", dial::authority(url), url.path().trim_end_matches('/'));
        let mut request = target.into_client_request().context("the server's URL")?;
        request.headers_mut().insert(AUTHORIZATION, self.authorization()?);
        match tokio::time::timeout(ANSWER_TIME, client_async(request, stream)).await {
            Ok(Ok((socket, _answer))) => Ok(socket),
            Ok(Err(tungstenite::Error::Http(refused))) => {
                let body = refused.body().as_deref().unwrap_or_default();
                Err(problem(refused.status(), body))
            }
            Ok(Err(error)) => Err(self.unreachable(error.to_string())),
            Err(_elapsed) => Err(self.unreachable(format!("no answer within {} s", ANSWER_TIME.as_secs()))),
        }
    }

    fn unreachable(&self, reason: String) -> Failure {
        Failure::Unreachable { url: self.connection.url.to_string(), reason }
    }

    async fn dial(&self) -> Result<dial::Sender, Failure> {
        let dialled = dial::dial(&self.connection.url, &self.tasks).await;
        dialled.map_err(|error| self.unreachable(format!("{error:#}")))
    }

    /// Owns what runs beside a command.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Sends a request; a problem in answer to it is a failure.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        accept: &'static str,
    ) -> Result<Response<Incoming>, Failure> {
        self.exchange(self.request(method, path, body, accept)?).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        accept: &'static str,
    ) -> Result<Request<Body>, Failure> {
        // Not joined as a URL, which would resolve an encoded `..` in an id.
        let url = &self.connection.url;
        let target = format!("{}{path}", url.path().trim_end_matches('/'));
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, dial::authority(url))
            .header(ACCEPT, accept)
            .header(AUTHORIZATION, self.authorization()?);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        Ok(request.body(body).context("a request of ours")?)
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        self.exchange_within(ANSWER_TIME, request).await
    }

    async fn exchange_within(
        &self,
        time: Duration,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut sender = self.dial().await?;
        let answer = tokio::time::timeout(time, sender.send_request(request)).await;
        let response = answer
            .map_err(|_elapsed| self.unreachable(format!("no answer within {} s", time.as_secs())))?
            .map_err(|error| self.unreachable(error.to_string()))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn authorization(&self) -> Result<HeaderValue, Failure> {
        let text = format!("Bearer {}", self.connection.key.reveal());
        let mut value = HeaderValue::from_str(&text).map_err(|_malformed| {
            Failure::Usage("POSTERN_API_KEY is no key: it holds characters that no key has".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

async fn answer(response: Response<Incoming>) -> Result<Answer, Failure> {
    let (head, body) = response.into_parts();
    let body = collected(body).await?;
    let body = if body.is_empty() { Value::Null } else { json(&body)? };
    Ok(Answer { status: head.status, body, tag: head.headers.get(ETAG).cloned() })
}

/// The answer that says no, as a failure.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = match collected(response.into_body()).await {
        Ok(body) => body,
        Err(failure) => return failure,
    };
    problem(status, &body)
}

fn problem(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Failure::Refused(Box::new(problem)),
        Err(_) => Failure::Failed(anyhow!("the server answered {status} without saying why; is it Postern?")),
    }
}

async fn collected(body: Incoming) -> Result<Bytes, Failure> {
    let limited = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    Ok(limited.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes())
}

fn json(body: &[u8]) -> Result<Value, Failure> {
    Ok(serde_json::from_slice(body).context("the answer is no JSON; is this server Postern?")?)
}

/// What stays as it is in a segment of a path (contracts: Ids).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// A path inside a sandbox as the rest of a call's path.
pub(crate) fn inside(path: &str) -> String {
    let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(segment).collect();
    segments.join("/")
}

/// `text` as one segment of a path or one value of a query.
pub(crate) fn segment(text: &str) -> String {
    match text {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => utf8_percent_encode(text, SEGMENT).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stays_one_whatever_it_holds() {
        for (text, wanted) in [
            ("a/b", "a%2Fb"),
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("...", "..."),
            ("a?b#c", "a%3Fb%23c"),
            ("ü", "%C3%BC"),
            ("%2e", "%252e"),
            ("sandbox-a1.b_C", "sandbox-a1.b_C"),
        ] {
            assert_eq!(segment(text), wanted);
        }
    }
}
