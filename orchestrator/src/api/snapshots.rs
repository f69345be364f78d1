// SPDX-License-Identifier: Apache-2.0
//! Snapshots over HTTP: taken, listed, shown, removed. `POST /sandbox {snapshot}` makes a sandbox from
//! one.

use super::inside::{START_TIME, enter};
use super::problems::Refused;
use super::{Answer, Api, Call, empty, input, json, scope};
use crate::store::{SnapshotFilter, SnapshotRow};
use http::StatusCode;
use jiff::Timestamp;
use postern_common::id::SnapshotId;
use postern_common::problem::{Code, Problem};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A snapshot as the API shows it.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Shown {
    snapshot_id: String,
    tenant: String,
    user_id: String,
    /// Of which sandbox it was taken.
    sandbox_id: String,
    template: String,
    labels: BTreeMap<String, String>,
    /// `files`: the home folder and `/data/scratch`; `memory`: all processes with their memory too.
    kind: &'static str,
    size_bytes: u64,
    #[schemars(with = "String")]
    created_at: Timestamp,
}

impl From<SnapshotRow> for Shown {
    fn from(row: SnapshotRow) -> Self {
        Self {
            snapshot_id: row.id.to_string(),
            tenant: row.tenant.to_string(),
            user_id: row.user_id.to_string(),
            sandbox_id: row.sandbox_id.to_string(),
            template: row.template.to_string(),
            labels: row.labels,
            kind: if row.memory.is_some() { "memory" } else { "files" },
            size_bytes: row.size_bytes,
            created_at: row.at,
        }
    }
}

/// `POST /sandbox/{id}/snapshot`.
pub(super) async fn take(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = input::Fields::read(&call.body)?;
    let with_memory = fields.flag("memory").unwrap_or(false);
    fields.finish()?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let taken = if with_memory {
        let snapshots = Arc::clone(&api.snapshots);
        api.driver.snapshot(snapshots, &row.new.id, call.cause(None)?).await.map_err(Refused::from)?
    } else {
        api.snapshots.take(&row, &agent, None).await.map_err(Refused::from)?
    };
    json(StatusCode::CREATED, &Shown::from(taken))
}

/// `GET /snapshots`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Serialize)]
    struct Page {
        snapshots: Vec<Shown>,
        /// For `?before=`, if there may be more.
        next: Option<String>,
    }
    let filter = SnapshotFilter {
        tenant: call.tenant_filter()?,
        user: call.query.parsed("user_id")?,
        before: call.query.parsed("before")?,
        limit: call.query.parsed("limit")?,
    };
    let found = api.store.snapshots(&filter).await.map_err(Refused::from)?;
    let next = found.last().map(|row| row.id.to_string());
    let caller = call.caller()?;
    let seen = found.into_iter().filter(|row| scope::sees_snapshot(caller, row));
    json(StatusCode::OK, &Page { snapshots: seen.map(Shown::from).collect(), next })
}

/// The snapshot of this id, if the key sees it. Another tenant's is not there.
pub(super) async fn named(api: &Api, call: &Call, id: &SnapshotId) -> Result<SnapshotRow, Problem> {
    let row = api.store.snapshot(id).await.map_err(Refused::from)?.ok_or_else(|| unknown(id))?;
    let is_theirs = call.tenant_filter()?.is_none_or(|tenant| tenant == row.tenant);
    if is_theirs && scope::sees_snapshot(call.caller()?, &row) { Ok(row) } else { Err(unknown(id)) }
}

pub(super) fn unknown(id: &SnapshotId) -> Problem {
    Problem::new(Code::NotFound, format!("there is no snapshot `{id}`, or not for this user"))
        .hint("`GET /snapshots` lists what there is")
}

/// `GET /snapshots/{id}`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, &call.path("id")?).await?;
    json(StatusCode::OK, &Shown::from(row))
}

/// `DELETE /snapshots/{id}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, &call.path("id")?).await?;
    api.snapshots.remove(&row.id).await.map_err(Refused::from)?;
    Ok(empty(StatusCode::NO_CONTENT))
}
