// SPDX-License-Identifier: Apache-2.0
//! The chain of filters of an operation on the way back, last attached first: each may continue,
//! change the answer, or refuse it.
//!
//! ```text
//! no body    called once with the head; the body streams past
//! whole      the body is held, at most so long, then called once
//! parts      called part after part as the body streams; the first before the head is answered
//! ```
//! What filters do to an answer is judged by nobody afterwards: it goes to the sandbox, which is
//! nobody to be protected from its own tenant. Hop-by-hop headers and cookies are cleaned later.

use super::request::{unread, view_of};
use super::stream::{Pump, Stage, Surroundings, shown};
use super::{AttachedFilter, Failure, ResponseBody, session_of};
use crate::Gateway;
use crate::authorize::Granted;
use crate::decision::Draft;
use crate::identify::Caller;
use crate::limits::{HeldRoom, Rooms, roomed};
use crate::reject::Reject;
use crate::response::{Answer, Body, BrokenOff};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName};
use http::{StatusCode, response::Parts};
use http_body::Body as _;
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{Changes, Outcome, RequestView};
use std::sync::Arc;
use std::time::Instant;

/// What judging an answer needs of its request, taken before credentials are attached to that.
#[derive(Debug)]
pub(crate) struct Answering {
    request: Arc<RequestView>,
    /// In the order in which they are called.
    filters: Vec<Arc<AttachedFilter>>,
}

/// The filters that will see the answer to a request; `None` if there is none.
///
/// # Errors
/// [`Reject`] if the request cannot be shown, which it could before.
pub(crate) fn answers_to(granted: &Granted) -> Result<Option<Answering>, Reject> {
    let call = granted.call();
    let asked = call.operation.filters.iter().rev().filter(|filter| filter.has(Phase::Response));
    let filters: Vec<_> = asked.map(Arc::clone).collect();
    if filters.is_empty() {
        return Ok(None);
    }
    Ok(Some(Answering { request: Arc::new(view_of(call, None)?), filters }))
}

/// Runs the chain over an answer. What streams on is judged as it comes.
///
/// # Errors
/// [`Reject::FilterRejected`] as a filter says, [`Reject::FilterFailed`] where one came to no
/// verdict or could not see what it reads, unless the tenant lets answers pass then; and what can
/// happen to an answer on its way.
pub(crate) async fn on_response(
    gateway: &Gateway,
    caller: &Caller,
    rooms: &Rooms,
    answering: Option<Answering>,
    mut answer: Answer,
    draft: &mut Draft,
) -> Result<Answer, Reject> {
    let Some(Answering { request, filters }) = answering else { return Ok(answer) };
    // The head is here; what filters wait for of the body has the backend's time once more.
    let deadline = Instant::now() + answer.backend.timeout;
    let around =
        Surroundings { reports: gateway.reports.clone(), session: Arc::clone(session_of(caller)), request };
    let is_readable = is_plain(&answer.head);
    let mut flow = Flow::Streaming(answer.body);
    if is_readable && let Some(limit) = held_bytes(&filters) {
        flow = hold(rooms, &filters, flow, limit, deadline).await?;
    }
    let mut passing = Passing { around, is_readable, flow, stages: Vec::new() };
    for filter in filters {
        passing.meet(filter, &mut answer.head, draft).await?;
    }
    answer.body = passing.into_body(&mut answer.head, deadline, draft).await?;
    draft.stage("filters");
    Ok(answer)
}

/// An answer's body on its way through the chain.
struct Passing {
    around: Surroundings,
    /// As the backend sent it; what filters say of it in the head changes nothing.
    is_readable: bool,
    flow: Flow,
    /// The filters that will see it as it streams, in their order.
    stages: Vec<Stage>,
}

impl Passing {
    /// The next filter: called now, unless it sees the body as it streams.
    async fn meet(
        &mut self,
        filter: Arc<AttachedFilter>,
        head: &mut Parts,
        draft: &mut Draft,
    ) -> Result<(), Reject> {
        let (reads, around) = (filter.response_body(), &self.around);
        match (reads, &mut self.flow) {
            (ResponseBody::None, _) => {
                let outcome = once(around, &filter, head, None, draft).await?;
                if let Outcome::Changed(changes) = outcome {
                    changes.apply_to_headers(&mut head.headers);
                }
            }
            _ if !self.is_readable => {
                pass_by(&filter, draft, "unreadable", "the answer is compressed, or a part of a whole")?;
            }
            (ResponseBody::Whole(limit), Flow::Whole(bytes, _)) if bytes.len() as u64 <= limit => {
                let outcome = once(around, &filter, head, Some(bytes.clone()), draft).await?;
                if let Outcome::Changed(changes) = outcome {
                    change_whole(&mut head.headers, bytes, &changes);
                }
            }
            (ResponseBody::Whole(_), _) => {
                let words = "the answer is longer than filter.toml's `body.response`";
                pass_by(&filter, draft, "too_long", words)?;
            }
            (ResponseBody::Parts(limit), Flow::Whole(bytes, _)) => {
                let mut stage = Stage::new(filter, limit);
                let whole = std::mem::take(bytes);
                *bytes = stage.feed(around, head, whole, true).await?;
                stage.tell(draft, &mut head.headers);
            }
            (ResponseBody::Parts(limit), Flow::Streaming(_)) => {
                self.stages.push(Stage::new(filter, limit));
            }
        }
        Ok(())
    }

    /// The body that goes on. One that filters see as it streams has begun: they have seen its head.
    async fn into_body(self, head: &mut Parts, deadline: Instant, draft: &mut Draft) -> Result<Body, Reject> {
        match self.flow {
            Flow::Whole(bytes, room) => Ok(Body::Own(roomed(bytes, Some(room)))),
            Flow::Streaming(body) if self.stages.is_empty() => Ok(body),
            Flow::Streaming(body) => {
                let mut pump = Pump::begin(self.around, head.clone(), body, self.stages, deadline).await?;
                pump.tell(draft, &mut head.headers);
                Ok(Body::Filtered(pump.into_body()))
            }
        }
    }
}

/// Calls a filter once for the whole answer.
async fn once(
    around: &Surroundings,
    filter: &AttachedFilter,
    head: &Parts,
    body: Option<Bytes>,
    draft: &mut Draft,
) -> Result<Outcome, Reject> {
    let (request, view) = (Arc::clone(&around.request), shown(head, body, None));
    let called = filter.call(&around.reports, &around.session, request, Some(view)).await;
    draft.filter(filter.part(&called));
    filter.decide(called.outcome)
}

/// A body on its way through the chain.
enum Flow {
    Streaming(Body),
    /// All of it, and the memory that it takes.
    Whole(Bytes, Arc<HeldRoom>),
}

/// Whether filters can read the body for what it means: it is not compressed, not a range and not
/// what goes through a WebSocket.
fn is_plain(head: &Parts) -> bool {
    let encoding = head.headers.get(CONTENT_ENCODING);
    encoding.is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        && head.status != StatusCode::PARTIAL_CONTENT
        && head.status != StatusCode::SWITCHING_PROTOCOLS
}

/// What becomes of an answer that a filter cannot see.
fn pass_by(
    filter: &Arc<AttachedFilter>,
    draft: &mut Draft,
    cause: &'static str,
    words: &str,
) -> Result<(), Reject> {
    let mut part = unread(filter);
    part.phase = Some(postern_common::decision::FilterPhase::Response);
    if !filter.is_shadow() {
        part.verdict = "failed".to_owned();
        part.code = Some(cause.to_owned());
    }
    draft.filter(part);
    filter.decide(Err(Failure::new(cause, words.to_owned()))).map(drop)
}

/// How much of the body is to be held: as much as the filter takes that takes most.
fn held_bytes(filters: &[Arc<AttachedFilter>]) -> Option<u64> {
    let whole = filters.iter().filter_map(|filter| match filter.response_body() {
        ResponseBody::Whole(limit) => Some(limit),
        ResponseBody::None | ResponseBody::Parts(_) => None,
    });
    whole.max()
}

/// Holds a body whole if it is not longer than `limit`; a longer one streams on, nothing lost.
async fn hold(
    rooms: &Rooms,
    filters: &[Arc<AttachedFilter>],
    flow: Flow,
    limit: u64,
    deadline: Instant,
) -> Result<Flow, Reject> {
    let Flow::Streaming(mut body) = flow else { return Ok(flow) };
    if body.size_hint().exact().is_some_and(|declared| declared > limit) {
        return Ok(Flow::Streaming(body));
    }
    // Who only watches must not be the reason for a refusal.
    let is_watched_only = filters.iter().all(|filter| filter.is_shadow());
    let room = rooms.enter();
    let mut held = BytesMut::new();
    let read = async {
        while let Some(part) = body.next_data().await {
            held.extend_from_slice(&part.map_err(|broken| refusal(&broken))?);
            let length = held.len() as u64;
            match room.grow_to(length) {
                Ok(()) if length <= limit => {}
                Err(scope) if !is_watched_only => return Err(Reject::ConcurrencyLimited(scope)),
                Ok(()) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    };
    let read = tokio::time::timeout_at(deadline.into(), read).await;
    match read.map_err(|_elapsed| Reject::UpstreamTimeout)? {
        Ok(true) => Ok(Flow::Whole(held.freeze(), room)),
        Ok(false) => {
            let begun = roomed(held.freeze(), Some(room));
            Ok(Flow::Streaming(Body::Joined { begun, rest: Box::new(body) }))
        }
        Err(reject) => Err(reject),
    }
}

/// What an answer is that broke off before anything of it was passed on.
pub(super) fn refusal(broken: &BrokenOff) -> Reject {
    match broken {
        BrokenOff::SessionEnded => Reject::SessionEnded,
        BrokenOff::Backend(error) => Reject::UpstreamUnreachable(error.to_string()),
        BrokenOff::Filter => Reject::Internal("a filter refused an answer before it saw it"),
        BrokenOff::TooSlow => Reject::BodyTimeout,
    }
}

fn change_whole(headers: &mut HeaderMap, body: &mut Bytes, changes: &Changes) {
    if let Some(new) = changes.body() {
        *body = new.clone();
        no_longer_true(headers);
    }
    changes.apply_to_headers(headers);
}

/// Takes back what a head says of a body that has been, or may be, rewritten.
pub(super) fn no_longer_true(headers: &mut HeaderMap) {
    const OF_BODIES: [&str; 5] = ["accept-ranges", "content-digest", "content-md5", "digest", "repr-digest"];
    headers.remove(CONTENT_LENGTH);
    headers.remove(ETAG);
    for name in OF_BODIES {
        headers.remove(HeaderName::from_static(name));
    }
}
