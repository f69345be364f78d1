// SPDX-License-Identifier: Apache-2.0
//! Sessions of addresses over HTTP: for tests, and for clients that are no sandboxes.

use super::input::Fields;
use super::problems::{ERASE_FIRST, Refused};
use super::{Answer, Api, Call, empty, json};
use crate::sessions::peers::{PeerSessionError, WantedPeer};
use crate::store::{Action, AuditEntry, PeerSessionRow};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::{ConversationId, SandboxId, UserId};
use postern_common::problem::{Code, Problem};
use postern_common::session::Grant;
use postern_common::token::MAX_TTL;
use serde_json::{Value, json as value};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

fn shown(row: &PeerSessionRow) -> Value {
    value!({
        "session_id": row.id,
        "tenant": row.tenant,
        "user_id": row.user_id,
        "conversation_id": row.conversation_id,
        "operations": row.operations,
        "peer": row.address,
        "created_by": row.created_by,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
    })
}

/// `GET /sessions`.
pub(super) async fn list(api: Arc<Api>, _call: Call) -> Answer {
    let rows = api.store.peer_sessions(clock::now(), None).await.map_err(Refused::from)?;
    json(StatusCode::OK, &value!({ "sessions": rows.iter().map(shown).collect::<Vec<_>>() }))
}

/// `POST /sessions`: `{user_id, conversation_id, operations, peer, ttl?}`.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant()?;
    let mut fields = Fields::read(&call.body)?;
    let user: Option<UserId> = fields.required("user_id");
    let conversation: Option<ConversationId> = fields.required("conversation_id");
    let operations: Option<Vec<Grant>> = fields.list("operations");
    let address: Option<IpAddr> = fields.required("peer");
    let ttl = fields.duration("ttl").unwrap_or(MAX_TTL);
    if !(Duration::from_secs(1)..=MAX_TTL).contains(&ttl) {
        fields.mistake("/ttl", "from 1s to 1h");
    }
    fields.finish()?;
    let (Some(user_id), Some(conversation_id), Some(address)) = (user, conversation, address) else {
        return Err(super::input::mistaken("", "user_id, conversation_id and peer are required"));
    };
    api.configuration.tenant(&tenant).await.map_err(Refused::from)?;
    let (actor, now) = (call.actor()?, clock::now());
    let operations = operations.unwrap_or_default();
    let created_by = actor.to_string();
    let wanted =
        WantedPeer { tenant: tenant.clone(), user_id, conversation_id, operations, address, ttl, created_by };
    let audit = AuditEntry::new(now, Some(tenant), Action::SessionAdded, actor);
    let audit = audit.subject(format!("session/{address}")).request(Some(call.request_id.clone()));
    let made = api.peers.add(wanted, &audit, now).await.map_err(|error| match error {
        PeerSessionError::Store(error) => Refused::from(error).into(),
        PeerSessionError::BeingErased => {
            Problem::new(Code::StateConflict, error.to_string()).hint(ERASE_FIRST)
        }
        error => Problem::new(Code::Internal, error.to_string()),
    });
    let (row, token) = made?;
    let mut body = shown(&row);
    if let Some(body) = body.as_object_mut() {
        body.insert("token".to_owned(), Value::from(token.reveal().as_str()));
    }
    json(StatusCode::CREATED, &body)
}

/// `DELETE /sessions/{id}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let id: SandboxId = call.path("id")?;
    let now = clock::now();
    let audit = AuditEntry::new(now, None, Action::SessionEnded, call.actor()?);
    let audit = audit.subject(format!("session/{id}")).request(Some(call.request_id.clone()));
    if !api.peers.end(&id, &audit, now).await.map_err(Refused::from)? {
        return Err(Problem::new(Code::NotFound, format!("there is no session `{id}` of an address"))
            .hint("`GET /sessions` lists them; a sandbox's session ends with its sandbox"));
    }
    Ok(empty(StatusCode::NO_CONTENT))
}
