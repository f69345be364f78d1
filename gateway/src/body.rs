// SPDX-License-Identifier: Apache-2.0
//! Admits a request's body: whole, where something judges it; else as a stream, untouched.
//!
//! A body is judged where the operation describes it as JSON or a form, where an attached filter
//! reads it, and, for backends without a document, where it is or looks like JSON or a form:
//! identity may not hide in it. A judged body may have no `Content-Encoding`. Multipart bodies
//! are refused for now.

pub(crate) mod streamed;

use crate::config::BODY_TIME;
use crate::limits::{self, Room};
use crate::registry::LiveSession;
use crate::reject::Reject;
use crate::route::{Call, Routed};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use postern_common::problem::FieldError;
use postern_openapi::{Content, ContentKind, Query, json};
use serde_json::Value;
use std::sync::Arc;
use streamed::StreamedBody;
use tokio_util::sync::CancellationToken;

/// Why a body cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyFault {
    #[error("the body is longer than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body broke off")]
    Broken,
    #[error("the session has ended")]
    SessionEnded,
}

/// A body on its way to a verdict.
#[derive(Debug)]
pub(crate) enum AdmittedBody {
    None,
    /// Parsed strictly; what is forwarded is written from this.
    Json(Value),
    /// Parsed strictly; what is forwarded is written from this.
    Form(Query),
    /// Held whole because a filter reads it; not looked into.
    Whole(Bytes),
    /// Not looked into.
    Stream(Box<StreamedBody>),
}

/// A request whose body may be judged.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) call: Call,
    pub(crate) body: AdmittedBody,
}

/// How a body will be treated.
enum Plan {
    Refuse,
    Judge(ContentKind),
    /// For a filter; judged if its type is not declared and it looks like JSON.
    Hold {
        looks: bool,
    },
    Stream,
    /// Stream unless it looks like JSON.
    Look,
}

/// Admits the body of a routed request.
///
/// Reads it within `config::BODY_TIME` if it is judged; stops when the session ends.
///
/// # Errors
/// [`Reject`] for a body that is too large, slow, of a wrong type, compressed, or not strict JSON,
/// and for one more than the session may have held at a time.
pub(crate) async fn admit(routed: Routed, session: &LiveSession, all: &Room) -> Result<Admitted, Reject> {
    let Routed { mut call, body } = routed;
    let ended = &session.ended;
    if body.is_end_stream() {
        check_absent(&call)?;
        return Ok(Admitted { call, body: AdmittedBody::None });
    }
    let essence = essence(&call.headers);
    let plan = plan(&call, &essence)?;
    if matches!(plan, Plan::Judge(_) | Plan::Hold { .. } | Plan::Look) {
        let bytes = expected_bytes(&body, &plan, &call)?;
        call.room = Some(Arc::new(limits::room(&session.limiter, all, bytes)?));
    }
    let judged = call.backend.judged_body_bytes;
    let admitted = match plan {
        Plan::Refuse => refuse(body, ended).await?,
        Plan::Judge(kind) => judge(body, kind, judged, &call, ended).await?,
        Plan::Hold { looks } => held(collect(body, judged, ended).await?, looks, &call)?,
        Plan::Stream => AdmittedBody::Stream(StreamedBody::new(body, None, &call.backend, ended)?),
        Plan::Look => look(body, &call, ended).await?,
    };
    match &admitted {
        AdmittedBody::None => check_absent(&call)?,
        AdmittedBody::Json(_) | AdmittedBody::Form(_) => retype(&mut call.headers, &essence),
        AdmittedBody::Whole(_) => {}
        AdmittedBody::Stream(_) => call.room = None,
    }
    Ok(Admitted { call, body: admitted })
}

/// How much memory a body may take: what it declares, or all that it may have.
fn expected_bytes(body: &Incoming, plan: &Plan, call: &Call) -> Result<u64, Reject> {
    let limit = call.backend.judged_body_bytes;
    match body.size_hint().exact() {
        None => Ok(limit),
        Some(declared) if declared <= limit => Ok(declared),
        // It may turn out to be one that is streamed.
        Some(_) if matches!(plan, Plan::Look) => Ok(limit),
        Some(_) => Err(Reject::BodyTooLarge { limit }),
    }
}

/// A body that the operation does not take: nothing but an empty one will do.
async fn refuse(body: Incoming, ended: &CancellationToken) -> Result<AdmittedBody, Reject> {
    match collect(body, 0, ended).await {
        Ok(_empty) => Ok(AdmittedBody::None),
        Err(BodyFault::TooLarge { .. }) => Err(violation("this operation takes no body")),
        Err(fault) => Err(fault.into()),
    }
}

/// Writes the type that the body was judged as. Parameters such as `charset` were not part of
/// the judgement, so they do not go on.
fn retype(headers: &mut HeaderMap, essence: &str) {
    headers.remove(CONTENT_TYPE);
    if let Ok(value) = HeaderValue::from_str(essence)
        && !essence.is_empty()
    {
        headers.insert(CONTENT_TYPE, value);
    }
}

fn violation(message: &str) -> Reject {
    Reject::Schema(vec![FieldError { pointer: "/body".to_owned(), message: message.to_owned() }])
}

fn check_absent(call: &Call) -> Result<(), Reject> {
    match &call.operation.operation.body {
        Some(body) if body.is_required => Err(violation("is required")),
        _ => Ok(()),
    }
}

/// Type and subtype of `Content-Type` in lower case; empty without one.
fn essence(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The declaration that the request's content type falls under.
pub(crate) fn declared_content(call: &Call) -> Option<&Content> {
    call.operation.operation.body.as_ref()?.content(&essence(&call.headers))
}

fn kind_of(essence: &str) -> ContentKind {
    match essence {
        "application/x-www-form-urlencoded" => ContentKind::Form,
        "application/json" | "text/json" => ContentKind::Json,
        other if other.ends_with("+json") => ContentKind::Json,
        other if other.starts_with("multipart/") => ContentKind::Multipart,
        _ => ContentKind::Other,
    }
}

fn plan(call: &Call, essence: &str) -> Result<Plan, Reject> {
    let Some(declared) = &call.operation.operation.body else {
        return Ok(Plan::Refuse);
    };
    let content =
        declared.content(essence).ok_or(Reject::ContentType("the operation takes no body of this type"))?;
    // A range says nothing of how the body is read, so the request's own type does.
    let kind = if content.media_type.contains('*') { kind_of(essence) } else { content.kind };
    if !matches!(kind, ContentKind::Other) && call.headers.contains_key(CONTENT_ENCODING) {
        return Err(Reject::ContentEncoding);
    }
    match kind {
        ContentKind::Json | ContentKind::Form => Ok(Plan::Judge(kind)),
        ContentKind::Multipart => Err(Reject::ContentType("multipart bodies are not taken yet")),
        ContentKind::Other if call.operation.filters.iter().any(|filter| filter.needs_body()) => {
            Ok(Plan::Hold { looks: content.media_type.contains('*') })
        }
        ContentKind::Other if content.media_type.contains('*') => Ok(Plan::Look),
        ContentKind::Other => Ok(Plan::Stream),
    }
}

async fn judge(
    body: Incoming,
    kind: ContentKind,
    limit: u64,
    call: &Call,
    ended: &CancellationToken,
) -> Result<AdmittedBody, Reject> {
    let bytes = collect(body, limit, ended).await?;
    if bytes.is_empty() {
        return Ok(AdmittedBody::None);
    }
    read(&bytes, kind, call)
}

/// Reads a whole body strictly.
fn read(bytes: &Bytes, kind: ContentKind, call: &Call) -> Result<AdmittedBody, Reject> {
    let bound = usize::try_from(call.backend.judged_body_bytes).unwrap_or(usize::MAX);
    if matches!(kind, ContentKind::Form) {
        let form = Query::parse_form(bytes, bound);
        return form.map(AdmittedBody::Form).map_err(|refusal| Reject::Malformed(refusal.to_string()));
    }
    let limits = json::Limits { bytes: bound, ..json::Limits::default() };
    let value = json::parse(bytes, limits);
    value
        .map(AdmittedBody::Json)
        .map_err(|malformed| Reject::Malformed(format!("`/body{}`: {malformed}", malformed.pointer)))
}

/// Reads a changed JSON body, as a filter wrote it, under the same rules as a client's.
pub(crate) fn read_again(bytes: &Bytes, call: &Call) -> Result<AdmittedBody, Reject> {
    if bytes.len() as u64 > call.backend.judged_body_bytes {
        return Err(Reject::BodyTooLarge { limit: call.backend.judged_body_bytes });
    }
    match plan(call, &essence(&call.headers))? {
        _ if bytes.is_empty() => Ok(AdmittedBody::None),
        Plan::Judge(kind) => read(bytes, kind, call),
        Plan::Refuse => Err(violation("this operation takes no body")),
        Plan::Hold { looks } => held(bytes.clone(), looks, call),
        Plan::Look => held(bytes.clone(), true, call),
        Plan::Stream => Ok(AdmittedBody::Whole(bytes.clone())),
    }
}

fn held(bytes: Bytes, looks: bool, call: &Call) -> Result<AdmittedBody, Reject> {
    match () {
        () if bytes.is_empty() => Ok(AdmittedBody::None),
        () if looks && call.headers.contains_key(CONTENT_ENCODING) => Err(Reject::ContentEncoding),
        () if looks && looks_like_json(&bytes) => read(&bytes, ContentKind::Json, call),
        () => Ok(AdmittedBody::Whole(bytes)),
    }
}

/// A body of undeclared type: judged if its first byte begins a JSON object or list, since many
/// servers read JSON whatever its type says.
async fn look(mut body: Incoming, call: &Call, ended: &CancellationToken) -> Result<AdmittedBody, Reject> {
    let first = tokio::time::timeout(BODY_TIME, first_data(&mut body, ended)).await;
    let Some(first) = first.map_err(|_elapsed| BodyFault::TooSlow)?? else {
        return Ok(AdmittedBody::None);
    };
    if first.iter().all(u8::is_ascii_whitespace) {
        // Leading blanks mean nothing in JSON and can hide its beginning.
        return Err(Reject::Malformed("the body begins with blanks; send it without".into()));
    }
    if !looks_like_json(&first) {
        return Ok(AdmittedBody::Stream(StreamedBody::new(body, Some(first), &call.backend, ended)?));
    }
    if call.headers.contains_key(CONTENT_ENCODING) {
        return Err(Reject::ContentEncoding);
    }
    let limit = call.backend.judged_body_bytes;
    let rest = collect(body, limit.saturating_sub(first.len() as u64), ended).await;
    let rest = rest.map_err(|fault| match fault {
        BodyFault::TooLarge { .. } => BodyFault::TooLarge { limit },
        other => other,
    })?;
    let mut whole = BytesMut::from(first);
    whole.extend_from_slice(&rest);
    read(&whole.freeze(), ContentKind::Json, call)
}

fn looks_like_json(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    matches!(start.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// The first data that is not empty.
async fn first_data(body: &mut Incoming, ended: &CancellationToken) -> Result<Option<Bytes>, BodyFault> {
    loop {
        match next_data(body, ended).await? {
            Some(data) if data.is_empty() => {}
            other => return Ok(other),
        }
    }
}

async fn next_data(body: &mut Incoming, ended: &CancellationToken) -> Result<Option<Bytes>, BodyFault> {
    let frame = tokio::select! {
        biased;
        () = ended.cancelled() => return Err(BodyFault::SessionEnded),
        frame = tokio::time::timeout(BODY_TIME, body.frame()) => {
            frame.map_err(|_elapsed| BodyFault::TooSlow)?
        }
    };
    match frame {
        None => Ok(None),
        Some(Err(_broken)) => Err(BodyFault::Broken),
        // Trailers of a request are never forwarded: nothing has judged them.
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
    }
}

/// Reads a whole body of at most `limit` bytes.
async fn collect(mut body: Incoming, limit: u64, ended: &CancellationToken) -> Result<Bytes, BodyFault> {
    let all = async {
        let mut whole = BytesMut::new();
        while let Some(data) = next_data(&mut body, ended).await? {
            if (whole.len() + data.len()) as u64 > limit {
                return Err(BodyFault::TooLarge { limit });
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(BODY_TIME, all).await.map_err(|_elapsed| BodyFault::TooSlow)?
}
