// SPDX-License-Identifier: Apache-2.0
//! Users over HTTP: erased with all that is kept of them.

use super::files::owner;
use super::problems::Refused;
use super::{Answer, Api, Call, json};
use crate::store::{Action, AuditEntry, FileOwner};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::percent_encoded;
use postern_common::problem::{Code, Problem};
use serde_json::json as value;
use std::sync::Arc;

/// `DELETE /users/{user_id}`: erases files, uploads and decisions. May be repeated.
pub(super) async fn erase(api: Arc<Api>, call: Call) -> Answer {
    let (tenant, user) = owner(&call)?;
    let sandboxes = api.store.live_sandboxes().await.map_err(Refused::from)?;
    let live: Vec<String> = sandboxes
        .iter()
        .filter(|sandbox| sandbox.new.tenant == tenant && sandbox.new.user_id == user)
        .map(|sandbox| sandbox.new.id.to_string())
        .collect();
    if !live.is_empty() {
        let detail = format!("the user has live sandboxes, whose files would come back: {}", live.join(", "));
        return Err(
            Problem::new(Code::StateConflict, detail).hint("destroy them first: `DELETE /sandbox/{id}`")
        );
    }
    let owner = FileOwner { tenant: tenant.clone(), user: user.clone() };
    let objects = api.storage.erase_user(&owner).await.map_err(Refused::from)?;
    let audit = AuditEntry::new(clock::now(), Some(tenant), Action::UserErased, call.actor()?)
        .subject(format!("user/{}", percent_encoded(user.as_str())))
        .request(Some(call.request_id.clone()));
    let rows = api.store.erase_user(&owner, &audit).await.map_err(Refused::from)?;
    let kept = value!([{ "what": "audit log",
        "why": "what happened is kept as long as `POSTERN_RETENTION_EVENTS` says, with user_id and paths" }]);
    json(
        StatusCode::OK,
        &value!({
            "erased": { "objects": objects, "files": rows.files, "decisions": rows.decisions },
            "kept": kept,
        }),
    )
}
