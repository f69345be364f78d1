// SPDX-License-Identifier: Apache-2.0
//! What happened: events, decisions, and whether all is well.

use super::input::mistaken;
use super::problems::Refused;
use super::{Answer, Api, Call, json, sse};
use crate::store::{AuditFilter, DecisionFilter, Event, Store, StoreError};
use bytes::Bytes;
use http::{StatusCode, header};
use postern_common::decision::Verdict;
use postern_common::id::DecisionId;
use postern_common::problem::{Code, Problem};
use serde_json::json as value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep};

/// Readers of the log that are told as it grows, of all tenants together: each asks the database
/// once a second.
const MAX_FOLLOWERS: usize = 64;
static FOLLOWERS: Semaphore = Semaphore::const_new(MAX_FOLLOWERS);
/// How often a reader that has all is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A quiet connection is kept alive so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// Events that may wait for a slow reader.
const QUEUED_EVENTS: usize = 64;

/// `GET /events`: a page, or for a reader that accepts server-sent events all that come, from
/// `Last-Event-ID` or `after` on.
pub(super) async fn events(api: Arc<Api>, call: Call) -> Answer {
    let filter = AuditFilter {
        tenant: call.tenant_filter()?,
        sandbox: call.query.parsed("sandbox_id")?,
        after: call.query.parsed("after")?.unwrap_or(0),
        limit: call.query.parsed("limit")?,
    };
    if wants_stream(&call) {
        let after = last_event(&call)?.unwrap_or(filter.after);
        return stream(&api, Log::Events(filter), after);
    }
    let events = api.store.events(&filter).await.map_err(Refused::from)?;
    let next = events.last().map(|event| event.sequence);
    json(StatusCode::OK, &value!({ "events": events, "next": next }))
}

fn wants_stream(call: &Call) -> bool {
    let accepts = call.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accepts.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The number of the last event that a reader has had.
fn last_event(call: &Call) -> Result<Option<i64>, Refused> {
    let Some(last) = call.headers.get("last-event-id") else { return Ok(None) };
    let last = last.to_str().ok().and_then(|last| last.parse().ok());
    Ok(Some(last.ok_or_else(|| mistaken("/header/Last-Event-ID", "expected an event's number"))?))
}

/// What a reader follows. Everything in it has a number that rises.
enum Log {
    Events(AuditFilter),
    Decisions(DecisionFilter),
}

/// What is told of one entry.
struct Told {
    number: i64,
    kind: String,
    json: serde_json::Value,
}

impl Log {
    /// What follows number `after`; a page of it. What cannot be shown ends the stream.
    async fn read(&mut self, store: &Store, after: i64) -> Result<Vec<Told>, StoreError> {
        match self {
            Self::Events(filter) => {
                filter.after = after;
                let shown = |event: Event| {
                    let json = serde_json::to_value(&event).unwrap_or_default();
                    Told { number: event.sequence, kind: event.action, json }
                };
                Ok(store.events(filter).await?.into_iter().map(shown).collect())
            }
            Self::Decisions(filter) => {
                let shown = |(number, json)| Told { number, kind: "decision".to_owned(), json };
                Ok(store.decisions_after(filter, after).await?.into_iter().map(shown).collect())
            }
        }
    }
}

fn stream(api: &Api, log: Log, after: i64) -> Answer {
    let place = FOLLOWERS.try_acquire().map_err(|_full| {
        Problem::new(Code::ConcurrencyLimited, format!("{MAX_FOLLOWERS} readers follow the log already"))
            .hint("read pages: `GET /events?after=`")
    })?;
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let store = api.store.clone();
    api.tasks.spawn(async move |stop| {
        let _ = stop.run_until_cancelled(follow(store, log, after, sender)).await;
        drop(place);
    });
    Ok(sse::response(receiver))
}

/// Tells a reader what is in the log and what comes, until it leaves. If the database fails, the
/// stream ends, and the reader begins again where it was (`Last-Event-ID`).
async fn follow(store: Store, mut log: Log, mut after: i64, sender: mpsc::Sender<Bytes>) {
    let mut told = Instant::now();
    while let Ok(events) = log.read(&store, after).await {
        for Told { number, kind, json } in &events {
            let event = sse::event(u64::try_from(*number).unwrap_or(0), kind, json);
            if sender.send(event).await.is_err() {
                return;
            }
            (after, told) = (*number, Instant::now());
        }
        if !events.is_empty() {
            continue;
        }
        if told.elapsed() >= KEEP_ALIVE_EVERY {
            told = Instant::now();
            if sender.send(sse::KEEP_ALIVE).await.is_err() {
                return;
            }
        }
        tokio::select! { () = sender.closed() => return, () = sleep(LOOK_EVERY) => {} }
    }
}

/// `GET /decisions`: a page, or for a reader that accepts server-sent events all that come home,
/// from `Last-Event-ID` or `after` on; without either, from now on.
pub(super) async fn decisions(api: Arc<Api>, call: Call) -> Answer {
    let verdict = match call.query.text("verdict") {
        None => None,
        Some("allow") => Some(Verdict::Allow),
        Some("deny") => Some(Verdict::Deny),
        Some("error") => Some(Verdict::Error),
        Some(_) => return Err(mistaken("/query/verdict", "expected `allow`, `deny` or `error`")),
    };
    let before: Option<DecisionId> = call.query.parsed("before")?;
    let after: Option<i64> = call.query.parsed("after")?;
    let filter = DecisionFilter {
        tenant: call.tenant_filter()?,
        sandbox: call.query.parsed("sandbox_id")?,
        verdict,
        before: before.map(|id| id.to_string()),
        limit: call.query.parsed("limit")?,
    };
    if wants_stream(&call) {
        let after = match last_event(&call)?.or(after) {
            Some(after) => after,
            None => api.store.last_decision().await.map_err(Refused::from)?,
        };
        return stream(&api, Log::Decisions(filter), after);
    }
    let decisions = api.store.decisions(&filter).await.map_err(Refused::from)?;
    let next = decisions.last().and_then(|record| record.get("id")).cloned();
    json(StatusCode::OK, &value!({ "decisions": decisions, "next": next }))
}

/// `GET /healthz`: the process answers. Whether it can work is `/readyz` of the admin port.
pub(super) async fn health(_api: Arc<Api>, _call: Call) -> Answer {
    json(StatusCode::OK, &value!({ "status": "ok" }))
}
