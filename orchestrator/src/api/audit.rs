// SPDX-License-Identifier: Apache-2.0
//! The audit logs over HTTP, as whoever reads them can check them: lines with their hashes, marks
//! with their signatures.

use super::input::mistaken;
use super::problems::Refused;
use super::{Answer, Api, Call, json};
use crate::store::{LineFilter, MarkFilter};
use http::StatusCode;
use postern_common::audit::{Log, Mark};
use postern_common::problem::Problem;
use serde_json::{Value, json as value};
use std::sync::Arc;

fn log(call: &Call) -> Result<Log, Problem> {
    match call.query.text("log") {
        None => Ok(Log::Sandboxes),
        Some(name) => {
            name.parse().map_err(|_unknown| mistaken("/query/log", "expected `sandboxes` or `files`"))
        }
    }
}

/// `GET /audit`.
pub(super) async fn lines(api: Arc<Api>, call: Call) -> Answer {
    let filter = LineFilter {
        log: log(&call)?,
        tenant: call.tenant_filter()?,
        user: call.query.parsed("user_id")?,
        sandbox: call.query.parsed("sandbox_id")?,
        after: call.query.parsed("after")?.unwrap_or(0),
        limit: call.query.parsed("limit")?,
    };
    let lines = api.store.audit_lines(&filter).await.map_err(Refused::from)?;
    let next = lines.last().and_then(|line| line.get("sequence")).cloned();
    json(StatusCode::OK, &value!({ "lines": lines, "next": next }))
}

/// `GET /audit/marks`.
pub(super) async fn marks(api: Arc<Api>, call: Call) -> Answer {
    let filter = MarkFilter {
        log: log(&call)?,
        tenant: call.tenant_filter()?,
        after: call.query.parsed("after")?.unwrap_or(0),
        limit: call.query.parsed("limit")?,
    };
    let found = api.store.audit_marks(&filter).await.map_err(Refused::from)?;
    let next = found.last().map(|(number, _)| *number);
    let marks: Vec<Value> = found.into_iter().map(|(_, mark): (i64, Mark)| value!(mark)).collect();
    let (key, installation) = (api.audit.key().to_string(), api.audit.installation());
    json(StatusCode::OK, &value!({ "installation": installation, "key": key, "marks": marks, "next": next }))
}
