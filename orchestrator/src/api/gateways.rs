// SPDX-License-Identifier: Apache-2.0
//! Gateways over HTTP: who may follow the control stream, and who does.

use super::input::Fields;
use super::problems::Refused;
use super::{Answer, Api, Call, empty, json};
use crate::store::{Action, AuditEntry, GatewayRow};
use crate::stream::{AddGatewayError, Connected};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::GatewayName;
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::sync::Arc;

fn shown(row: &GatewayRow, connected: &[Arc<Connected>]) -> Value {
    let connections = connected.iter().filter(|it| it.name == row.name).map(|it| {
        value!({ "from": it.from.to_string(), "since": it.since, "engine": it.engine, "version": it.version() })
    });
    let connections: Vec<_> = connections.collect();
    value!({
        "name": row.name,
        "created_by": row.created_by,
        "created_at": row.created_at,
        "connected": connections.len(),
        "connections": connections,
    })
}

/// `GET /gateways`.
pub(super) async fn list(api: Arc<Api>, _call: Call) -> Answer {
    let rows = api.store.gateways().await.map_err(Refused::from)?;
    let connected = api.stream.connected();
    let rows: Vec<_> = rows.iter().map(|row| shown(row, &connected)).collect();
    json(StatusCode::OK, &value!({ "gateways": rows }))
}

/// `POST /gateways`: `{name}`.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read(&call.body)?;
    let name: Option<GatewayName> = fields.required("name");
    fields.finish()?;
    let Some(name) = name else { return Err(super::input::mistaken("/name", "is required")) };
    let actor = call.actor()?;
    let audit = AuditEntry::new(clock::now(), None, Action::GatewayAdded, actor.clone());
    let audit = audit.subject(format!("gateway/{name}")).request(Some(call.request_id.clone()));
    let made = api.stream.add(&name, actor.to_string(), &audit).await.map_err(|error| match error {
        AddGatewayError::Store(error) => Refused::from(error).into(),
        AddGatewayError::Random(error) => Problem::new(Code::Internal, error.to_string()),
    })?;
    let Some((row, credential)) = made else {
        return Err(Problem::new(Code::StateConflict, format!("there is a gateway `{name}` already"))
            .hint("choose another name, or revoke that one first with `DELETE /gateways/{name}`"));
    };
    let mut body = shown(&row, &[]);
    if let Some(body) = body.as_object_mut() {
        body.insert("credential".to_owned(), Value::from(credential.reveal().as_str()));
    }
    json(StatusCode::CREATED, &body)
}

/// `DELETE /gateways/{name}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let name: GatewayName = call.path("name")?;
    let audit = AuditEntry::new(clock::now(), None, Action::GatewayRevoked, call.actor()?);
    let audit = audit.subject(format!("gateway/{name}")).request(Some(call.request_id.clone()));
    if !api.stream.revoke(&name, &audit).await.map_err(Refused::from)? {
        return Err(Problem::new(Code::NotFound, format!("there is no gateway `{name}`"))
            .hint("`GET /gateways` lists them"));
    }
    Ok(empty(StatusCode::NO_CONTENT))
}
