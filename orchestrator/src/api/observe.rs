// SPDX-License-Identifier: Apache-2.0
//! What happened: events, decisions, and whether all is well.

use super::input::mistaken;
use super::problems::Refused;
use super::{Answer, Api, Call, json};
use crate::store::{AuditFilter, DecisionFilter};
use http::StatusCode;
use postern_common::decision::Verdict;
use postern_common::id::DecisionId;
use serde_json::json as value;
use std::sync::Arc;

/// `GET /events`.
pub(super) async fn events(api: Arc<Api>, call: Call) -> Answer {
    let filter = AuditFilter {
        tenant: call.tenant_filter()?,
        sandbox: call.query.parsed("sandbox_id")?,
        after: call.query.parsed("after")?.unwrap_or(0),
        limit: call.query.parsed("limit")?,
    };
    let events = api.store.events(&filter).await.map_err(Refused::from)?;
    let next = events.last().map(|event| event.sequence);
    json(StatusCode::OK, &value!({ "events": events, "next": next }))
}

/// `GET /decisions`.
pub(super) async fn decisions(api: Arc<Api>, call: Call) -> Answer {
    let verdict = match call.query.text("verdict") {
        None => None,
        Some("allow") => Some(Verdict::Allow),
        Some("deny") => Some(Verdict::Deny),
        Some("error") => Some(Verdict::Error),
        Some(_) => return Err(mistaken("/query/verdict", "expected `allow`, `deny` or `error`")),
    };
    let before: Option<DecisionId> = call.query.parsed("before")?;
    let filter = DecisionFilter {
        tenant: call.tenant_filter()?,
        sandbox: call.query.parsed("sandbox_id")?,
        verdict,
        before: before.map(|id| id.to_string()),
        limit: call.query.parsed("limit")?,
    };
    let decisions = api.store.decisions(&filter).await.map_err(Refused::from)?;
    let next = decisions.last().and_then(|record| record.get("id")).cloned();
    json(StatusCode::OK, &value!({ "decisions": decisions, "next": next }))
}

/// `GET /healthz`: the process answers. Whether it can work is `/readyz` of the admin port.
pub(super) async fn health(_api: Arc<Api>, _call: Call) -> Answer {
    json(StatusCode::OK, &value!({ "status": "ok" }))
}
