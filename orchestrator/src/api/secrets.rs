// SPDX-License-Identifier: Apache-2.0
//! Secrets over HTTP: set and removed, never shown.

use super::input::Fields;
use super::problems::Refused;
use super::{Answer, Api, Call, empty, json};
use http::StatusCode;
use postern_common::id::SecretName;
use postern_common::problem::{Code, Problem};
use postern_common::secret::Secret;
use serde_json::json as value;
use std::sync::Arc;

/// `GET /secrets`: names only.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant()?;
    api.configuration.tenant(&tenant).await.map_err(Refused::from)?;
    let rows = api.store.secrets(&tenant).await.map_err(Refused::from)?;
    let shown = rows
        .iter()
        .map(|row| value!({ "name": row.name, "version": row.version, "updated_at": row.updated_at }));
    json(StatusCode::OK, &value!({ "secrets": shown.collect::<Vec<_>>() }))
}

/// `PUT /secrets/{name}`: `{value}`. Secrets are the API's also where a folder owns the rest, for
/// none may lie in the folder.
pub(super) async fn put(api: Arc<Api>, call: Call) -> Answer {
    let name: SecretName = call.path("name")?;
    let mut fields = Fields::read(&call.body)?;
    let secret = fields.text("value").map(Secret::new);
    if secret.as_ref().is_none_or(|secret| secret.reveal().is_empty()) {
        fields.mistake("/value", "is required and not empty");
    } else if secret.as_ref().is_some_and(|secret| secret.reveal().contains(['\r', '\n', '\0'])) {
        fields.mistake("/value", "a secret that is sent in a header holds no line break and no zero byte");
    }
    fields.finish()?;
    let Some(secret) = secret else { return Err(super::input::mistaken("/value", "is required")) };
    let edition = call.edition()?;
    api.configuration.set_secret(&call.tenant()?, &name, &secret, &edition).await.map_err(Refused::from)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `DELETE /secrets/{name}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let name: SecretName = call.path("name")?;
    let removed = api.configuration.remove_secret(&call.tenant()?, &name, &call.edition()?).await;
    if removed.map_err(Refused::from)? {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    Err(Problem::new(Code::NotFound, format!("there is no secret `{name}`"))
        .hint("`GET /secrets` lists the names"))
}
