// SPDX-License-Identifier: Apache-2.0
//! Folders inside a sandbox as tar streams, out and in. Whatever a sandbox or a caller sends passes
//! the [`sieve`](super::sieve): what comes out is plain.

use super::inside::{START_TIME, answered, enter, path, refused};
use super::sandbox_files::{download, no_body, request};
use super::sieve::{Refused, Sieve};
use super::{Answer, Api, Call, json};
use crate::runtime::agent::{Body as AgentBody, accepted};
use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use postern_common::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The answer of `sandboxd` to a tree.
const ANSWER_BYTES: usize = 4096;

/// `GET /sandbox/{id}/trees/{path}`.
pub(super) async fn read(api: Arc<Api>, call: Call) -> Answer {
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let asked = agent.send(request(Method::GET, "/tree", &path, no_body())?);
    let found = answered(&row.new.id, async { accepted(asked.await?).await }).await?;
    let bytes = BodyStream::new(found.into_body()).map(|frame| match frame {
        Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
        Err(error) => Err(io::Error::other(error)),
    });
    let id = row.new.id;
    let sifted = sifted(bytes, move |error| {
        tracing::warn!(sandbox = %id, %error, "a sandbox's archive was cut off");
    });
    let mut response = download(Body::from_stream(sifted));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// `PUT /sandbox/{id}/trees/{path}`.
pub(super) async fn write(api: Arc<Api>, mut call: Call) -> Answer {
    #[derive(Deserialize, Serialize)]
    struct Unpacked {
        entries: u64,
        bytes: u64,
    }
    let path = path(&call)?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let id = row.new.id;
    let why = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&why);
    let sifted = sifted(call.content(), move |error| {
        *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    });
    let body: AgentBody = StreamBody::new(sifted.map(|bytes| bytes.map(Frame::data))).boxed_unsync();
    let answered = async {
        let answer = accepted(
            agent
                .send(request(Method::POST, "/tree", &path, body)?)
                .await
                .map_err(|error| refused(&id, error))?,
        );
        let answer = answer.await.map_err(|error| refused(&id, error))?;
        let answer = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let malformed = || refused(&id, crate::runtime::AgentError::Malformed);
        serde_json::from_slice::<Unpacked>(&answer.map_err(|_cut| malformed())?.to_bytes())
            .map_err(|_odd| malformed())
    };
    let unpacked = answered.await;
    // What was wrong with the archive says more than how the sandbox took its end.
    if let Some(error) = why.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(Problem::new(Code::InvalidInput, error.to_string())
            .hint("send a tar stream, not compressed, of files, folders and links within it; what came before it was unpacked"));
    }
    json(StatusCode::OK, &unpacked?)
}

/// What passes the sieve. The stream ends with an error where something does not.
fn sifted(
    from: impl Stream<Item = io::Result<Bytes>> + Unpin + Send + 'static,
    tell: impl FnMut(&Refused) + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let pass = Passing { from, sieve: Sieve::new(), tell };
    futures_util::stream::unfold(Some(pass), async |passing| {
        let mut passing = passing?;
        match passing.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(passing))),
            Ok(None) => {
                let end = passing.sieve.finish().map_err(|error| passing.refuse(error));
                Some((end, None))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Passing<From, Tell> {
    from: From,
    sieve: Sieve,
    tell: Tell,
}

impl<From: Stream<Item = io::Result<Bytes>> + Unpin, Tell: FnMut(&Refused)> Passing<From, Tell> {
    fn refuse(&mut self, error: Refused) -> io::Error {
        (self.tell)(&error);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// The next bytes that passed; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(bytes) = self.from.next().await {
            let passed = self.sieve.push(&bytes?).map_err(|error| self.refuse(error))?;
            if !passed.is_empty() {
                return Ok(Some(passed));
            }
        }
        Ok(None)
    }
}
