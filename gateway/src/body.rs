// SPDX-License-Identifier: Apache-2.0
//! Admits a request's body: whole, where something judges it; else as a stream, untouched.
//!
//! The declaration that the request's type falls under is chosen here, once, and goes along with
//! the body. A body is judged where that type is JSON or a form, held where an attached filter
//! reads it, and, where the operation does not declare its type by name, judged as what it looks
//! like ([`doubt`]): identity may not hide in it. A body of another type that the document names is
//! its backend's own affair. A judged body may have no `Content-Encoding`.

mod doubt;
pub(crate) mod multipart;
pub(crate) mod streamed;
mod written;

use crate::config::JUDGED_STALL_TIME;
use crate::limits::{HeldRoom, Rooms};
use crate::pace::Pace;
use crate::reject::{Reject, Scope};
use crate::route::{Call, Routed};
use bytes::{Bytes, BytesMut};
pub(crate) use doubt::names as names_in_doubt;
use doubt::{BLANKS, Beginning, beginning};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use multipart::Multipart;
use postern_common::problem::FieldError;
use postern_openapi::{Content, ContentKind, MediaType, Query, json};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use streamed::StreamedBody;
use tokio_util::sync::CancellationToken;
pub(crate) use written::JsonBody;

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
    #[error("there is no room for the body")]
    NoRoom(Scope),
}

/// A body on its way to a verdict.
#[derive(Debug)]
pub(crate) enum AdmittedBody {
    None,
    /// Parsed strictly; what is forwarded is written from this.
    Json(JsonBody),
    /// Parsed strictly; what is forwarded is written from this.
    Form(Query),
    /// Parsed strictly; what is forwarded is put together from this.
    Multipart(Multipart),
    /// Text of a type that the operation does not declare by name: it is no JSON, but a server
    /// might read names in it as a form's ([`names_in_doubt`]).
    Doubtful(String),
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
    /// What the operation says of a body of this type. INVARIANT: there wherever a body is.
    pub(crate) content: Option<Arc<Content>>,
}

/// How a body will be treated, and by which declaration.
struct Plan {
    content: Arc<Content>,
    /// The request's own type.
    media: Option<MediaType>,
    treatment: Treatment,
}

#[derive(Clone, Copy)]
enum Treatment {
    Judge(ContentKind),
    /// Held and judged as what it looks like.
    Doubt,
    /// Not looked into, but for its beginning where it is not declared by name.
    Opaque {
        is_declared: bool,
        has_reader: bool,
    },
}

/// Admits the body of a routed request.
///
/// Reads it within the gateway's `waits.body` if it is judged; stops when the session ends, or the
/// sandbox only trickles.
///
/// # Errors
/// [`Reject`] for a body that is too large, slow, of a wrong type, compressed, or not strict JSON,
/// and for one more than the session may have held at a time.
pub(crate) async fn admit(
    routed: Routed,
    ended: &CancellationToken,
    rooms: &Rooms,
) -> Result<Admitted, Reject> {
    let Routed { mut call, body, .. } = routed;
    let media = media_type(&mut call)?;
    let room = rooms.enter();
    if body.is_end_stream() {
        return Ok(Admitted { call, body: AdmittedBody::None, content: None });
    }
    let Some(plan) = plan(&call, media)? else {
        return refuse(body, call, ended, &room).await;
    };
    let limit = call.backend.judged_body_bytes;
    if !matches!(plan.treatment, Treatment::Opaque { is_declared: true, has_reader: false }) {
        check_declared(&body, plan.treatment, limit)?;
        call.room = Some(Arc::clone(&room));
    }
    let admitted = match plan.treatment {
        Treatment::Opaque { is_declared: true, has_reader: false } => {
            AdmittedBody::Stream(StreamedBody::new(body, None, &call.backend, ended)?)
        }
        Treatment::Opaque { is_declared: false, has_reader: false } => {
            look(body, &call, ended, &room).await?
        }
        Treatment::Judge(_) | Treatment::Doubt | Treatment::Opaque { has_reader: true, .. } => {
            read(collect(body, limit, call.backend.waits.body, ended, &room).await?, &plan, limit)?
        }
    };
    if matches!(admitted, AdmittedBody::Stream(_)) {
        call.room = None;
    }
    Ok(plan.admitted(call, admitted))
}

impl Plan {
    /// The request with its body. Of a body that will be written anew the type goes on alone:
    /// parameters such as `charset` say nothing true of what is written.
    fn admitted(self, mut call: Call, body: AdmittedBody) -> Admitted {
        let kept: Option<&[&str]> = match body {
            AdmittedBody::Json(_) | AdmittedBody::Form(_) => Some(&[]),
            AdmittedBody::Multipart(_) => Some(&["boundary"]),
            AdmittedBody::None
            | AdmittedBody::Doubtful(_)
            | AdmittedBody::Whole(_)
            | AdmittedBody::Stream(_) => None,
        };
        if let (Some(kept), Some(media)) = (kept, self.media)
            && let Ok(value) = HeaderValue::from_str(&media.with_only(kept).to_string())
        {
            Arc::make_mut(&mut call.headers).insert(CONTENT_TYPE, value);
        }
        Admitted { call, body, content: Some(self.content) }
    }
}

/// Refuses a body that declares more than it may have, before it is read.
fn check_declared(body: &Incoming, treatment: Treatment, limit: u64) -> Result<(), Reject> {
    match body.size_hint().exact() {
        // One that is only looked at may turn out to be one that is streamed.
        Some(declared)
            if declared > limit && !matches!(treatment, Treatment::Opaque { has_reader: false, .. }) =>
        {
            Err(Reject::BodyTooLarge { limit })
        }
        _ => Ok(()),
    }
}

/// A body that the operation does not take: nothing but an empty one will do.
async fn refuse(
    body: Incoming,
    call: Call,
    ended: &CancellationToken,
    room: &HeldRoom,
) -> Result<Admitted, Reject> {
    match collect(body, 0, call.backend.waits.body, ended, room).await {
        Ok(_empty) => Ok(Admitted { call, body: AdmittedBody::None, content: None }),
        Err(BodyFault::TooLarge { .. }) => Err(takes_none()),
        Err(fault) => Err(fault.into()),
    }
}

fn takes_none() -> Reject {
    let message = "this operation takes no body".to_owned();
    Reject::Schema(vec![FieldError { pointer: "/body".to_owned(), message }])
}

/// The request's type, whose header is written anew from what was read.
fn media_type(call: &mut Call) -> Result<Option<MediaType>, Reject> {
    const UNREADABLE: Reject =
        Reject::ContentType("`Content-Type` is no media type, or names a parameter twice");
    let Some(value) = call.headers.get(CONTENT_TYPE) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_not_ascii| UNREADABLE)?;
    let media = MediaType::parse(text).map_err(|_refusal| UNREADABLE)?;
    if media.is_range() {
        return Err(UNREADABLE);
    }
    let value = HeaderValue::from_str(&media.to_string()).map_err(|_not_ascii| UNREADABLE)?;
    Arc::make_mut(&mut call.headers).insert(CONTENT_TYPE, value);
    Ok(Some(media))
}

/// How a body of this type is treated; `None` if the operation takes no body.
fn plan(call: &Call, media: Option<MediaType>) -> Result<Option<Plan>, Reject> {
    let Some(declared) = &call.operation.operation.body else {
        return Ok(None);
    };
    let essence = media.as_ref().map(MediaType::essence);
    let content =
        declared.content(essence).ok_or(Reject::ContentType("the operation takes no body of this type"))?;
    // A range says nothing of how the body is read, so the request's own type does.
    let kind = ContentKind::of(essence.unwrap_or_default());
    let is_declared = !content.is_range();
    let has_reader = call.operation.filters.iter().any(|filter| filter.needs_body());
    let treatment = match kind {
        ContentKind::Multipart if essence != Some("multipart/form-data") => {
            return Err(Reject::ContentType("of multipart bodies only form-data is taken"));
        }
        ContentKind::Json | ContentKind::Form | ContentKind::Multipart => Treatment::Judge(kind),
        ContentKind::Other if is_declared => Treatment::Opaque { is_declared, has_reader },
        ContentKind::Other if content.schema.is_some() => {
            return Err(Reject::ContentType("the operation's schema fits JSON and forms only"));
        }
        ContentKind::Other if essence.is_some_and(doubt::is_opaque) => {
            Treatment::Opaque { is_declared, has_reader }
        }
        ContentKind::Other => Treatment::Doubt,
    };
    if !matches!(treatment, Treatment::Opaque { is_declared: true, .. }) {
        check_encodings(call, media.as_ref())?;
    }
    Ok(Some(Plan { content: Arc::clone(content), media, treatment }))
}

/// What is judged must be what the backend will read.
fn check_encodings(call: &Call, media: Option<&MediaType>) -> Result<(), Reject> {
    if call.headers.contains_key(CONTENT_ENCODING) {
        return Err(Reject::ContentEncoding);
    }
    let charset = media.and_then(|media| media.parameter("charset"));
    match charset {
        Some(charset) if !["utf-8", "us-ascii"].iter().any(|it| charset.eq_ignore_ascii_case(it)) => {
            Err(Reject::ContentType("a body that is judged is UTF-8; send it as such"))
        }
        _ => Ok(()),
    }
}

/// Reads a whole body as planned.
fn read(bytes: Bytes, plan: &Plan, limit: u64) -> Result<AdmittedBody, Reject> {
    match plan.treatment {
        _ if bytes.is_empty() => Ok(AdmittedBody::None),
        Treatment::Judge(ContentKind::Form) => form(&bytes),
        Treatment::Judge(ContentKind::Multipart) => {
            let media = plan.media.as_ref().ok_or(Reject::Internal("a multipart body has no type"))?;
            Multipart::parse(&bytes, media, limits_of(limit)).map(AdmittedBody::Multipart)
        }
        Treatment::Judge(_) => json(&bytes, limit),
        Treatment::Doubt => doubtful(&bytes, plan.media.as_ref(), limit),
        Treatment::Opaque { is_declared: false, .. } if beginning(&bytes, true) == Beginning::Json => {
            json(&bytes, limit)
        }
        Treatment::Opaque { .. } => Ok(AdmittedBody::Whole(bytes)),
    }
}

fn limits_of(limit: u64) -> json::Limits {
    json::Limits { bytes: usize::try_from(limit).unwrap_or(usize::MAX), ..json::Limits::default() }
}

fn json(bytes: &[u8], limit: u64) -> Result<AdmittedBody, Reject> {
    json::parse(bytes, limits_of(limit))
        .map(|value| AdmittedBody::Json(JsonBody::new(value)))
        .map_err(|malformed| Reject::Malformed(format!("`/body{}`: {malformed}", malformed.pointer)))
}

fn form(bytes: &[u8]) -> Result<AdmittedBody, Reject> {
    let form = Query::parse_form(bytes, bytes.len());
    form.map(AdmittedBody::Form).map_err(|refusal| Reject::Malformed(refusal.to_string()))
}

/// A body of undeclared type that may be text: many servers read JSON whatever its type says, and
/// what has no type as a form.
fn doubtful(bytes: &[u8], media: Option<&MediaType>, limit: u64) -> Result<AdmittedBody, Reject> {
    const NO_TEXT: Reject = Reject::ContentType(
        "a body of this type must be UTF-8 without NUL and byte order mark; send bytes as application/octet-stream",
    );
    if beginning(bytes, true) == Beginning::Json {
        return json(bytes, limit);
    }
    let text = std::str::from_utf8(bytes).map_err(|_not_utf8| NO_TEXT)?;
    if text.contains('\0') || text.starts_with('\u{feff}') {
        return Err(NO_TEXT);
    }
    // A type that says something else is taken for a form only by what reads as one exactly.
    let is_form = match media {
        None => true,
        Some(media) => media.essence().contains("form") || Query::parse_form(bytes, bytes.len()).is_ok(),
    };
    Ok(if is_form {
        AdmittedBody::Doubtful(text.to_owned())
    } else {
        AdmittedBody::Whole(Bytes::copy_from_slice(bytes))
    })
}

/// Reads a body again, as a filter left it, under the same rules as a client's.
pub(crate) fn read_again(mut call: Call, bytes: Bytes) -> Result<Admitted, Reject> {
    let limit = call.backend.judged_body_bytes;
    if bytes.len() as u64 > limit {
        return Err(Reject::BodyTooLarge { limit });
    }
    let media = media_type(&mut call)?;
    if bytes.is_empty() {
        return Ok(Admitted { call, body: AdmittedBody::None, content: None });
    }
    let plan = plan(&call, media)?.ok_or_else(takes_none)?;
    let body = read(bytes, &plan, limit)?;
    Ok(plan.admitted(call, body))
}

/// A body of an opaque type that is not declared by name: judged if it begins like JSON.
async fn look(
    mut body: Incoming,
    call: &Call,
    ended: &CancellationToken,
    room: &HeldRoom,
) -> Result<AdmittedBody, Reject> {
    let limit = call.backend.judged_body_bytes;
    let begun = tokio::time::Instant::now();
    let mut start = BytesMut::new();
    let begins = loop {
        let data =
            tokio::time::timeout_at(begun + call.backend.waits.body, next_data(&mut body, ended)).await;
        let data = data.map_err(|_elapsed| BodyFault::TooSlow)??;
        start.extend_from_slice(data.as_deref().unwrap_or_default());
        match beginning(&start, data.is_none()) {
            Beginning::Undecided if start.len() > BLANKS => {
                return Err(Reject::Malformed("the body begins with blanks; send it without".into()));
            }
            Beginning::Undecided => {}
            decided => break decided,
        }
    };
    if begins == Beginning::Other {
        return match () {
            () if start.is_empty() => Ok(AdmittedBody::None),
            () => {
                Ok(AdmittedBody::Stream(StreamedBody::new(body, Some(start.freeze()), &call.backend, ended)?))
            }
        };
    }
    let left = limit.saturating_sub(start.len() as u64);
    let rest = collect(body, left, call.backend.waits.body, ended, room).await;
    let rest = rest.map_err(|fault| match fault {
        BodyFault::TooLarge { .. } => BodyFault::TooLarge { limit },
        other => other,
    })?;
    start.extend_from_slice(&rest);
    json(&start, limit)
}

async fn next_data(body: &mut Incoming, ended: &CancellationToken) -> Result<Option<Bytes>, BodyFault> {
    let frame = tokio::select! {
        biased;
        () = ended.cancelled() => return Err(BodyFault::SessionEnded),
        frame = body.frame() => frame,
    };
    match frame {
        None => Ok(None),
        Some(Err(_broken)) => Err(BodyFault::Broken),
        // Trailers of a request are never forwarded: nothing has judged them.
        Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
    }
}

/// Reads a whole body of at most `limit` bytes within `wait`, taking room as it comes.
async fn collect(
    mut body: Incoming,
    limit: u64,
    wait: Duration,
    ended: &CancellationToken,
    room: &HeldRoom,
) -> Result<Bytes, BodyFault> {
    let mut pace = Pace::new(JUDGED_STALL_TIME);
    let all = async {
        let mut whole = BytesMut::new();
        loop {
            let data = tokio::select! {
                biased;
                data = next_data(&mut body, ended) => data?,
                () = poll_fn(|context| pace.poll_too_slow(context)) => return Err(BodyFault::TooSlow),
            };
            let Some(data) = data else { return Ok(whole.freeze()) };
            pace.moved(data.len());
            let length = (whole.len() + data.len()) as u64;
            if length > limit {
                return Err(BodyFault::TooLarge { limit });
            }
            room.grow_to(length).map_err(BodyFault::NoRoom)?;
            whole.extend_from_slice(&data);
        }
    };
    tokio::time::timeout(wait, all).await.map_err(|_elapsed| BodyFault::TooSlow)?
}
