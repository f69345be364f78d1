// SPDX-License-Identifier: Apache-2.0
//! Calls the orchestrator's files API through this sync's own socket of the gateway.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use postern_common::files::{Changed, Changes, Get, Listing, Outcome, ROUTE};
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// The longest listing: 200,000 entries of some hundred bytes, and long names.
const LISTING_BYTES: usize = 256 << 20;
/// What is read of a refusal.
const REFUSAL_BYTES: usize = 16 << 10;
/// From a call's last byte to its answer's head.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Connections that are kept while nobody needs them.
const KEPT: usize = 8;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The gateway is not there, or went away.
    #[error("the gateway cannot be reached")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("the call broke off")]
    Broken(#[source] hyper::Error),
    /// Nobody answered.
    #[error("there was no answer in time")]
    Late,
    /// The answer was a refusal.
    #[error("the call was refused with {status}: {detail}")]
    Refused { status: StatusCode, detail: String },
    /// The answer is none.
    #[error("the answer cannot be read")]
    Unreadable,
    /// There is more of it than is held.
    #[error(
        "the answer has more than {0} bytes: the user has too many files, or too long paths; remove some by the API"
    )]
    TooLong(usize),
}

/// The body of a call.
pub(crate) enum Body {
    Whole(Bytes),
    Piped(Option<Bytes>, mpsc::Receiver<Bytes>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Piped(first, pipe) => match first.take() {
                Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
                None => pipe.poll_recv(context).map(|bytes| bytes.map(|it| Ok(Frame::data(it)))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Self::Piped(..) => http_body::SizeHint::default(),
        }
    }
}

/// The way to the files API. Clones are the same.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    socket: PathBuf,
    token: watch::Receiver<Secret<String>>,
    idle: Mutex<Vec<SendRequest<Body>>>,
    tasks: Tasks,
}

impl Client {
    /// Calls go to this socket, each with the token of its moment.
    pub(crate) fn new(socket: PathBuf, token: watch::Receiver<Secret<String>>, tasks: Tasks) -> Self {
        Self(Arc::new(Inner { socket, token, idle: Mutex::default(), tasks }))
    }

    /// Owns what goes on beside a call.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// All that the user has.
    pub(crate) async fn list(&self) -> Result<Listing, CallError> {
        let answer = self.call("list", Body::Whole(Bytes::new())).await?;
        read(answer, LISTING_BYTES).await
    }

    /// Waits for a change.
    pub(crate) async fn changes(&self, changes: Changes) -> Result<Changed, CallError> {
        let answer = self.call("changes", json(&changes)?).await?;
        read(answer, REFUSAL_BYTES).await
    }

    /// Files' content, as a pack that goes into `to` as it comes. Whoever reads there may leave.
    pub(crate) async fn get(&self, get: &Get, to: mpsc::Sender<Bytes>) -> Result<(), CallError> {
        let mut body = self.call("get", json(get)?).await?.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(CallError::Broken)?.into_data() else { continue };
            if to.send(bytes).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts a pack: what came out of the pipe already, and what comes.
    pub(crate) async fn put(
        &self,
        first: Bytes,
        rest: mpsc::Receiver<Bytes>,
    ) -> Result<Vec<Outcome>, CallError> {
        read(self.call("put", Body::Piped(Some(first), rest)).await?, LISTING_BYTES).await
    }

    async fn call(&self, call: &'static str, body: Body) -> Result<Response<Incoming>, CallError> {
        let is_piped = matches!(body, Body::Piped(..));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("/{ROUTE}/{call}").parse().map_err(|_never| CallError::Unreadable)?;
        let token = format!("Bearer {}", self.0.token.borrow().reveal());
        let mut token = HeaderValue::try_from(token).map_err(|_never| CallError::Unreadable)?;
        token.set_sensitive(true);
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, token);
        headers.insert(HOST, HeaderValue::from_static("gateway"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let mut sender = self.connection().await?;
        // What is put takes as long as the disk that it is read from; the gateway bounds its pace.
        let answered = sender.send_request(request);
        let response = if is_piped {
            answered.await.map_err(CallError::Broken)?
        } else {
            let answered = tokio::time::timeout(ANSWER_TIME, answered).await;
            answered.map_err(|_late| CallError::Late)?.map_err(CallError::Broken)?
        };
        self.keep(sender);
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = Limited::new(response.into_body(), REFUSAL_BYTES).collect().await;
        let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let detail = serde_json::from_slice(&text).ok().and_then(|json: serde_json::Value| {
            Some(format!("{}: {}", json.get("code")?.as_str()?, json.get("detail")?.as_str()?))
        });
        Err(CallError::Refused { status, detail: detail.unwrap_or_default() })
    }

    async fn connection(&self) -> Result<SendRequest<Body>, CallError> {
        let idle = {
            let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|sender| !sender.is_closed());
            // One whose answer is still being read is not ready, and not waited for.
            idle.iter().position(SendRequest::is_ready).map(|place| idle.swap_remove(place))
        };
        if let Some(sender) = idle {
            return Ok(sender);
        }
        let stream = UnixStream::connect(&self.0.socket).await.map_err(CallError::Connect)?;
        let (sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(CallError::Broken)?;
        self.0.tasks.spawn(async move |stop: Stop| drop(stop.run_until_cancelled(connection).await));
        Ok(sender)
    }

    /// It is used again once the answer's body was read; else it has closed by then.
    fn keep(&self, sender: SendRequest<Body>) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(sender);
        }
    }
}

fn json(value: &impl Serialize) -> Result<Body, CallError> {
    let text = serde_json::to_vec(value).map_err(|_no_json| CallError::Unreadable)?;
    Ok(Body::Whole(text.into()))
}

async fn read<Answer: DeserializeOwned>(
    answer: Response<Incoming>,
    most: usize,
) -> Result<Answer, CallError> {
    let body = Limited::new(answer.into_body(), most).collect().await;
    let is_long = |error: &(dyn std::error::Error + 'static)| error.is::<LengthLimitError>();
    let body =
        body.map_err(|cut| if is_long(&*cut) { CallError::TooLong(most) } else { CallError::Unreadable });
    let body = body?.to_bytes();
    serde_json::from_slice(&body).map_err(|_malformed| CallError::Unreadable)
}
